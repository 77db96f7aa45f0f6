"""What detectron2's own ResNet lacks: deformable stages without the compiled ``_C`` or on a CPU, and RetinaNet's levels without a ReLU."""

from typing import Optional

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_resnet_backbone
from detectron2.modeling.backbone import resnet
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from .fpn import build_retinanet_fpn


class TorchvisionDeformConv(nn.Module):
    """detectron2's ``DeformConv`` and ``ModulatedDeformConv`` (which is given a ``mask``), with the same weights, by torchvision's operator."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm=None,
        activation=None,
    ):
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.norm, self.activation = norm, activation
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")

    def forward(self, x: Tensor, offset: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        # groups and deformable groups follow from the shapes
        x = deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def _anywhere(original: type) -> type:
    """``original`` where it can run, torchvision's operator elsewhere."""
    if not issubclass(original, nn.Module):  # detectron2's stand-in for what was not compiled
        return TorchvisionDeformConv

    class OnAnyDevice(original):
        def forward(self, x: Tensor, offset: Tensor, *mask: Tensor) -> Tensor:
            return super().forward(x, offset, *mask) if x.is_cuda else TorchvisionDeformConv.forward(self, x, offset, *mask)

    OnAnyDevice.__name__ = OnAnyDevice.__qualname__ = original.__name__
    return OnAnyDevice


# where its ResNet looks them up
resnet.DeformConv, resnet.ModulatedDeformConv = _anywhere(resnet.DeformConv), _anywhere(resnet.ModulatedDeformConv)


@BACKBONE_REGISTRY.register()
def build_retinanet_resnet_p6p7_backbone(cfg, input_shape: ShapeSpec):
    """detectron2's ResNet under RetinaNet's FPN, with the choice of ``MODEL.FPN.P6_RELU`` that its own builder lacks."""
    return build_retinanet_fpn(cfg, build_resnet_backbone(cfg, input_shape))
