"""Image classification, to pretrain backbones of detectors: a small meta-architecture for detectron2's trainer."""

from typing import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from torch import Tensor, nn

from ..errors import UserError
from ..layers import ConvNormAct


@META_ARCH_REGISTRY.register()
class ImageClassifier(nn.Module):
    """The backbone's last feature, a 1x1 convolution (with ``channels``), the mean over all places, a linear layer.

    Inputs are dicts with "image" (C, H, W), 0 to 255, all of one size, and in training "label"; outputs are dicts with "scores" (classes,).

    Args:
        backbone: with at least one feature; the last one is used.
        num_classes: how many there are.
        channels: width of the 1x1 convolution, 0 for none.
        norm: of that convolution.
        dropout: in front of the linear layer.
        label_smoothing: of the loss.
        pixel_mean, pixel_std: of the images, in the order of their channels.
        input_format: that order.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        num_classes: int,
        channels: int = 0,
        norm: str = "BN",
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        input_format: str = "BGR",
    ):
        super().__init__()
        self.backbone = backbone
        self.feature, shape = list(backbone.output_shape().items())[-1]
        self.last_conv = ConvNormAct(shape.channels, channels, norm=norm) if channels else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels or shape.channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)
        self.num_classes, self.label_smoothing, self.input_format = num_classes, label_smoothing, input_format
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.CLASSIFIER
        if not 0 <= node.DROPOUT < 1 or not 0 <= node.LABEL_SMOOTHING < 1:
            raise UserError(f"MODEL.CLASSIFIER.DROPOUT {node.DROPOUT} and LABEL_SMOOTHING {node.LABEL_SMOOTHING} must be from 0 to below 1")
        return {
            "backbone": build_backbone(cfg),
            **{key: node[key.upper()] for key in ("num_classes", "channels", "norm", "dropout", "label_smoothing")},
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Tensor]]):
        images = torch.stack([x["image"].to(self.device, non_blocking=True) for x in batched_inputs])
        feature = self.last_conv(self.backbone((images - self.pixel_mean) / self.pixel_std)[self.feature])
        logits = self.fc(self.dropout(feature.mean(dim=(2, 3))))
        if not self.training:
            return [{"scores": scores} for scores in logits.float().softmax(dim=1)]
        labels = torch.tensor([x["label"] for x in batched_inputs], device=self.device)
        return {"loss_cls": F.cross_entropy(logits.float(), labels, label_smoothing=self.label_smoothing)}
