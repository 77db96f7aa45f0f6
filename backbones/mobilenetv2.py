"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018) as a detection backbone.

The classifier's last 1280-wide convolution is left out. The released weights are in the layout of tonylins/pytorch-mobilenet-v2
(``features.<i>.conv.<j>``), which differs from torchvision's. Freezing counts stages, as everywhere here: FREEZE_AT 1 freezes the first
convolution and the first block, which the older project called 2, as it counted layers.
"""

import math
import re
from dataclasses import dataclass
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .fpn import common_options, register_builders
from .layers import Conv, ConvNormAct, StagedBackbone, StagePlan, initialize_convs, stage_plans
from .registry import Family, register

STAGES = ("stem", "res2", "res3", "res4", "res5")


def _relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


class InvertedResidual(nn.Module):
    """Widens by ``expansion``, filters each channel, projects back without an activation; adds its input where the shapes agree."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, norm: str, conv: Conv = nn.Conv2d):
        super().__init__()
        width = in_channels * expansion
        self.expand = ConvNormAct(in_channels, width, norm=norm, act=_relu6) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNormAct(width, width, 3, stride, groups=width, norm=norm, act=_relu6, conv=conv)
        self.project = ConvNormAct(width, out_channels, norm=norm, act=nn.Identity)
        self.identity = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + y if self.identity else y


class MobileNetV2(StagedBackbone):
    """MobileNetV2: emits "stem" (stride 2), "res2" (4), "res3" (8), "res4" (16) and "res5" (32).

    Args:
        stem_channels: width of the first convolution.
        groups: (stage, expansion, channels, number of blocks, stride of the first) for each group of blocks, in order.
        in_channels, out_features, norm, freeze_at: as `VoVNet`'s.
        deform_on_per_stage: for res2 to res5, whether its depthwise layers are deformable; ``deform_modulated`` makes them v2.
        res5_dilation: 2 for res5 at stride 16, with dilated layers.
    """

    stages = STAGES
    layouts = ("released", "torchvision")
    classifier = re.compile(r"(classifier|features\.18)\.")

    def __init__(
        self,
        stem_channels: int,
        groups: Sequence[tuple[str, int, int, int, int]],
        *,
        in_channels: int = 3,
        out_features: Sequence[str] = STAGES[1:],
        norm: str = "FrozenBN",
        deform_on_per_stage: Sequence[bool] = (False, False, False, False),
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        res5_dilation: int = 1,
        freeze_at: int = 0,
    ):
        super().__init__()
        plans = dict(zip(STAGES[1:], stage_plans(deform_on_per_stage, deform_modulated, deform_num_groups, res5_dilation)))
        stages: dict[str, nn.Sequential] = {name: nn.Sequential() for name in STAGES}
        stages["stem"].append(ConvNormAct(in_channels, stem_channels, 3, 2, norm=norm, act=_relu6))
        # where each of the released layers features.<i> stands here
        self._released = ["stem.0"]
        width, stride = stem_channels, 2
        shapes = {}
        for name, expansion, channels, count, first_stride in groups:
            plan = plans.get(name, StagePlan(first_stride, nn.Conv2d, nn.Conv2d))
            for i in range(count):
                self._released.append(f"{name}.{len(stages[name])}")
                reduces = i == 0 and first_stride > 1
                block_stride, conv = (plan.stride, plan.reducing) if reduces else (1, plan.conv)
                stages[name].append(InvertedResidual(width, channels, expansion, block_stride, norm, conv))
                width = channels
                stride *= block_stride
            shapes[name] = (channels, stride)
        for name, stage in stages.items():
            self.add_stage(name, stage, *shapes[name])
        initialize_convs(self, lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / (w.shape[0] * w.shape[2] * w.shape[3]))))
        # stride-2 convolutions round odd sizes up, as detectron2 expects: any size works
        self.finish(out_features, freeze_at, divisible=False)

    def translate_key(self, key: str, layout: str) -> str:
        if layout == "torchvision":
            # features.<i>.conv.<unit>.<j>, but the last convolution and its norm features.<i>.conv.<j>
            last = 1 if key.startswith("features.1.") else 2
            key = re.sub(r"^(features\.\d+\.conv)\.(\d+)\.(\w+)$", lambda m: f"{m[1]}.{3 * last + int(m[2]) - last}.{m[3]}", key)
            key = re.sub(r"^(features\.\d+\.conv)\.(\d+)\.(\d+)\.", lambda m: f"{m[1]}.{3 * int(m[2]) + int(m[3])}.", key)
        match = re.match(r"features\.(\d+)\.(conv\.)?(\d+)\.(\w+)$", key)
        if not match or int(match[1]) >= len(self._released):
            return key
        index, inner, position, leaf = int(match[1]), match[2], int(match[3]), match[4]
        if not inner:  # features.0.{0,1}
            return f"{self._released[index]}.{'conv' if position == 0 else 'norm'}.{leaf}"
        # convolution, norm and activation in turn, three of each, or two where nothing is widened; the last has no activation
        units = ("depthwise", "project") if index == 1 else ("expand", "depthwise", "project")
        if position // 3 >= len(units) or position % 3 == 2:
            return key
        return f"{self._released[index]}.{units[position // 3]}.{'norm' if position % 3 else 'conv'}.{leaf}"


@dataclass(frozen=True)
class MobileNetV2Spec:
    """The structural arguments of `MobileNetV2`."""

    stem_channels: int
    groups: tuple[tuple[str, int, int, int, int], ...]


SPECS = {
    "MobileNetV2": MobileNetV2Spec(
        stem_channels=32,
        groups=(  # stage, expansion, channels, blocks, stride
            ("stem", 1, 16, 1, 1),
            ("res2", 6, 24, 2, 2),
            ("res3", 6, 32, 3, 2),
            ("res4", 6, 64, 4, 2),
            ("res4", 6, 96, 3, 1),
            ("res5", 6, 160, 3, 2),
            ("res5", 6, 320, 1, 1),
        ),
    ),
}


def build(cfg: CfgNode, input_shape: ShapeSpec) -> MobileNetV2:
    """The MobileNetV2 that ``cfg.MODEL.MOBILENETV2`` asks for."""
    node = cfg.MODEL.MOBILENETV2
    return MobileNetV2(
        **vars(SPECS["MobileNetV2"]),
        **common_options(cfg, node, input_shape),
        # configs of vovnet-detectron2 name the features under RESNETS
        out_features=node.OUT_FEATURES or cfg.MODEL.RESNETS.OUT_FEATURES,
    )


FAMILY = register(Family("mobilenetv2", MobileNetV2, SPECS, build))
register_builders(FAMILY, bare_alias="build_mnv2_backbone")
