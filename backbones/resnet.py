"""What detectron2's own ResNet lacks: deformable stages without the compiled ``_C`` or on a CPU, and RetinaNet's levels without a ReLU."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, build_resnet_backbone
from detectron2.modeling.backbone import resnet
from torch import Tensor, nn
from torchvision import ops

from .fpn import build_retinanet_fpn


class TorchvisionDeformConv(ops.DeformConv2d):
    """detectron2's ``DeformConv`` and ``ModulatedDeformConv`` (which is given a ``mask``), with the same weights, by torchvision's operator."""

    def __init__(self, *args: Any, deformable_groups: int = 1, bias: bool = False, norm: Any = None, activation: Any = None, **kwargs: Any):
        super().__init__(*args, bias=bias, **kwargs)  # the operator takes the number of deformable groups from the offsets
        self.norm, self.activation = norm, activation

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Tensor | None = None) -> Tensor:
        x = ops.deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
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
def build_retinanet_resnet_p6p7_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """detectron2's ResNet under RetinaNet's FPN, with the choice of ``MODEL.FPN.P6_RELU`` that its own builder lacks."""
    return build_retinanet_fpn(cfg, build_resnet_backbone(cfg, input_shape))
