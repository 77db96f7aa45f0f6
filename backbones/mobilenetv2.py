"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018) as a detection backbone.

The classifier's last 1280-wide convolution is left out. The released weights are in the layout of tonylins/pytorch-mobilenet-v2
(``features.<i>.conv.<j>``), which differs from torchvision's. Freezing counts stages, as everywhere here: FREEZE_AT 1 freezes the first
convolution and the first block, which the older project called 2, as it counted layers.
"""

import functools
import math
import re
from typing import Any, Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .fpn import common_options, register
from .layers import STAGES, Conv, ConvNormAct, Options, StagedBackbone, StagePlan, initialize_convs, spec_of

_relu6 = functools.partial(nn.ReLU6, inplace=True)


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
        common: `Options`.
    """

    layouts = ("released", "torchvision", "timm")
    classifier = re.compile(r"(classifier|features\.18|conv_head)\.|bn2\.")

    def __init__(
        self,
        stem_channels: int,
        groups: Sequence[tuple[str, int, int, int, int]],
        **common: Any,
    ):
        super().__init__()
        options = Options(**common)
        plans = dict(zip(STAGES[1:], options.plans()))
        stages: dict[str, nn.Sequential] = {name: nn.Sequential() for name in STAGES}
        stages["stem"].append(ConvNormAct(options.in_channels, stem_channels, 3, 2, norm=options.norm, act=_relu6))
        # our name of each released layer features.<i>
        self._released = ["stem.0"]
        self._starts = [1 + sum(group[3] for group in groups[:i]) for i in range(len(groups))]  # index of the first block of each group
        width, stride = stem_channels, 2
        shapes = {}
        for name, expansion, channels, count, first_stride in groups:
            plan = plans.get(name, StagePlan(first_stride, nn.Conv2d, nn.Conv2d))
            for i in range(count):
                self._released.append(f"{name}.{len(stages[name])}")
                reduces = i == 0 and first_stride > 1
                block_stride, conv = (plan.stride, plan.reducing) if reduces else (1, plan.conv)
                stages[name].append(InvertedResidual(width, channels, expansion, block_stride, options.norm, conv))
                width = channels
                stride *= block_stride
            shapes[name] = (channels, stride)
        for name, stage in stages.items():
            self.add_stage(name, stage, *shapes[name])
        initialize_convs(self, lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / (w.shape[0] * w.shape[2] * w.shape[3]))))
        # stride-2 convolutions round odd sizes up, as detectron2 expects: any size works
        self.finish(options, divisible=False)

    def translate_key(self, key: str, layout: str) -> str:
        if layout == "timm":
            return self._of_timm(key)
        match = re.match(r"features\.(\d+)\.(?:conv\.)?([\d.]+)\.(\w+)$", key)
        if not match or int(match[1]) >= len(self._released):
            return key
        index, position, leaf = int(match[1]), match[2], match[3]
        units = {0: [""], 1: ["depthwise.", "project."]}.get(index, ["expand.", "depthwise.", "project."])
        for i, unit in enumerate(units):
            # convolution, norm and activation of each unit in turn; torchvision has all units but the last, without one, in parts of their own
            places = [f"{3 * i}", f"{3 * i + 1}"]
            if layout == "torchvision":
                places = [f"{i}", f"{i + 1}"] if unit == units[-1] else [f"{i}.0", f"{i}.1"]
            if position in places:
                return f"{self._released[index]}.{unit}{('conv', 'norm')[places.index(position)]}.{leaf}"
        return key

    def _of_timm(self, key: str) -> str:
        stem = re.match(r"(conv_stem|bn1)\.(\w+)$", key)
        if stem:
            return f"stem.0.{'conv' if stem[1] == 'conv_stem' else 'norm'}.{stem[2]}"
        match = re.match(r"blocks\.(\d+)\.(\d+)\.(conv_pwl|conv_pw|conv_dw|bn\d)\.(\w+)$", key)
        if not match or int(match[1]) >= len(self._starts):
            return key
        index = self._starts[int(match[1])] + int(match[2])
        # the first group's block does not expand
        parts = {"conv_dw": "depthwise", "bn1": "depthwise", "conv_pw": "project", "bn2": "project"} if match[1] == "0" else _TIMM_PARTS
        if index >= len(self._released) or match[3] not in parts:
            return key
        return f"{self._released[index]}.{parts[match[3]]}.{'conv' if 'conv' in match[3] else 'norm'}.{match[4]}"


# convolutions and norms of timm's blocks that expand
_TIMM_PARTS = {"conv_pw": "expand", "bn1": "expand", "conv_dw": "depthwise", "bn2": "depthwise", "conv_pwl": "project", "bn3": "project"}

MobileNetV2Spec = spec_of(MobileNetV2)

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
    options = common_options(cfg, node, input_shape)
    # configs of vovnet-detectron2 name the features under RESNETS
    options["out_features"] = options["out_features"] or cfg.MODEL.RESNETS.OUT_FEATURES
    return MobileNetV2(**vars(SPECS["MobileNetV2"]), **options)


FAMILY = register("mobilenetv2", MobileNetV2, SPECS, build, bare_alias="build_mnv2_backbone")
