"""RegNetX and RegNetY (Radosavovic et al., "Designing Network Design Spaces", CVPR 2020): the 24 models of pycls, and any other by its numbers.

A linear rule of a few numbers gives the width of every block; runs of equal width are the stages. A block is a bottleneck that does not
narrow: 1x1, grouped 3x3, 1x1. Y adds squeeze-excitation.

Worth knowing:
- Widths are rounded to the nearest multiple of the group width, exact halves to the even one. torchvision rounds halves up and never loses
  a tenth: three of its models (X-400MF, Y-800MF, Y-8.0GF) are other networks of the same names, which ``rounding="torchvision"`` builds.
- The weights of pycls, which detectron2 and MMDetection use too, expect BGR images with mean 103.53, 116.28, 123.675 and standard deviation
  57.375, 57.12, 58.395: detectron2's default deviation of 1 does not fit. torchvision's and timm's expect RGB; `python -m convert` turns them.
- A squeeze-excitation's width follows from its block's input, so in the first block of a stage from the stage before.
"""

import math
import re
from dataclasses import dataclass
from itertools import groupby
from typing import Mapping, Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import UserError, unknown
from .fpn import common_options, register_builders
from .layers import Conv, ConvNormAct, StagedBackbone, initialize_convs, stage_plans
from .registry import Family, register

STAGES = ("stem", "res2", "res3", "res4", "res5")
ROUNDINGS = ("pycls", "torchvision")


def round_to_groups(width: int, group_width: int, rounding: str = "pycls") -> int:
    """The multiple of ``group_width`` that a stage of ``width`` gets; narrower stages are one group and keep their width.

    "pycls": the nearest, of two equally near ones the even multiple. "torchvision": of two equally near ones the larger, and one more where
    a tenth of the width or more would be lost.
    """
    if width < group_width:
        return width
    count, rest = divmod(width, group_width)
    if rounding == "torchvision":
        count += 2 * rest >= group_width
        count += 10 * count * group_width < 9 * width
    else:
        count += 2 * rest > group_width or (2 * rest == group_width and count % 2)
    return count * group_width


def stage_widths(depth: int, w0: int, wa: float, wm: float, group_width: int, rounding: str = "pycls") -> list[tuple[int, int, int]]:
    """(width, blocks, group width) of every stage, by the paper's rule.

    Raises UserError for numbers that the rule does not take.
    """
    if rounding not in ROUNDINGS:
        raise unknown("rounding of RegNet's widths", rounding, ROUNDINGS)
    for name, value, fits, wanted in (
        ("depth", depth, depth >= 1, "at least 1"),
        ("w0", w0, w0 > 0 and w0 % 8 == 0, "a positive multiple of 8"),
        ("wa", wa, wa >= 0 and math.isfinite(wa), "0 or more"),
        ("wm", wm, wm > 1 and math.isfinite(wm), "more than 1"),
        ("group_width", group_width, group_width >= 1, "at least 1"),
    ):
        if not fits:
            raise UserError(f"RegNet's {name} is {value}: it must be {wanted}")
    widths = []
    for i in range(depth):
        exponent = round(math.log((w0 + wa * i) / w0) / math.log(wm))
        widths.append(8 * round(w0 * wm**exponent / 8))  # round: halves to even, as numpy's
    # widths of the rule never fall, so equal ones stand together
    stages = [(width, len(list(blocks))) for width, blocks in groupby(widths)]
    return [(round_to_groups(width, group_width, rounding), blocks, min(group_width, width)) for width, blocks in stages]


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in [0, 1], computed from all channels' means through a layer of ``width``."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, width, 1)
        self.fc2 = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate: Tensor = self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))
        return x * gate.sigmoid()


class XBlock(nn.Module):
    """The paper's X block, or with a gate its Y block: 1x1, grouped 3x3 with the stride, gate, 1x1; adds its input, projected if need be."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, se_width: int, norm: str, conv: Conv = nn.Conv2d):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, channels, norm=norm)
        self.conv2 = ConvNormAct(channels, channels, 3, stride, groups=groups, norm=norm, conv=conv)
        self.se = SqueezeExcite(channels, se_width) if se_width else nn.Identity()
        self.conv3 = ConvNormAct(channels, channels, norm=norm, act=nn.Identity)
        project = stride > 1 or in_channels != channels
        self.shortcut = ConvNormAct(in_channels, channels, stride=stride, norm=norm, act=nn.Identity) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.se(self.conv2(self.conv1(x)))) + self.shortcut(x))


class RegNet(StagedBackbone):
    """RegNet: emits "stem" (stride 2), "res2" (4), "res3" (8), "res4" (16) and "res5" (32).

    Args:
        depth, w0, wa, wm: number of blocks, first width, its growth a block, and the ratio of neighbouring stages' widths.
        group_width: channels a group of the 3x3 convolutions.
        se_ratio: width of the squeeze-excitation, in widths of the block's input; 0 for none (X).
        rounding: of widths to whole groups, "pycls" (the paper's) or "torchvision".
        in_channels, out_features, norm, freeze_at: as `VoVNet`'s.
        deform_on_per_stage: for res2 to res5, whether its 3x3 convolutions are deformable; ``deform_modulated`` makes them v2.
        res5_dilation: 2 for res5 at stride 16, with dilated convolutions.
    """

    stages = STAGES
    layouts = ("pycls", "mmdet", "torchvision", "timm")
    native_layouts = ("pycls", "mmdet")
    classifier = re.compile(r"(head\.)?fc\.")

    def __init__(
        self,
        depth: int,
        w0: int,
        wa: float,
        wm: float,
        group_width: int,
        se_ratio: float = 0.0,
        *,
        rounding: str = "pycls",
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
        stages = stage_widths(depth, w0, wa, wm, group_width, rounding)
        if len(stages) != 4:
            raise UserError(
                f"these numbers make a RegNet of {len(stages)} stages, of widths {[width for width, _, _ in stages]}: detectors need 4. "
                "A larger wa or depth, or a smaller wm, makes more."
            )
        if not 0 <= se_ratio <= 1:
            raise UserError(f"RegNet's se_ratio is {se_ratio}: it must be from 0, for none, to 1")
        plans = stage_plans(deform_on_per_stage, deform_modulated, deform_num_groups, res5_dilation)
        self.add_stage("stem", ConvNormAct(in_channels, 32, 3, stride=2, norm=norm), 32, stride=2)
        width, stride = 32, 2
        for name, (channels, blocks, group), plan in zip(STAGES[1:], stages, plans):
            stage = nn.Sequential()
            for b in range(blocks):
                se_width = round(se_ratio * width)
                block_stride, conv = (1, plan.conv) if b else (plan.stride, plan.reducing)
                stage.add_module(f"block{b + 1}", XBlock(width, channels, block_stride, channels // group, se_width, norm, conv))
                width = channels
            stride *= plan.stride
            self.add_stage(name, stage, channels, stride)
        # by fan-out, not divided by the groups
        initialize_convs(self, lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / (w.shape[0] * w.shape[2] * w.shape[3]))))
        self.finish(out_features, freeze_at, divisible=False)

    def translate_key(self, key: str, layout: str) -> str:
        names = _LAYOUTS[layout]
        module, _, leaf = key.rpartition(".")
        if module in names.stem:
            return f"stem.{names.stem[module]}.{leaf}"
        match = re.fullmatch(names.block + r"\.(?P<part>.+)", module)
        if not match or match["part"] not in names.parts:
            return key
        return f"res{int(match['stage']) + 1}.block{int(match['block']) + 1 - names.first}.{names.parts[match['part']]}.{leaf}"


@dataclass(frozen=True)
class _Layout:
    """Where another project keeps the same weights: its modules' names, and ours."""

    stem: Mapping[str, str]
    block: str  # pattern of a block's name; its stages count from 1
    first: int  # its number of a stage's first block
    parts: Mapping[str, str]


_LAYOUTS = {
    "pycls": _Layout(
        {"stem.conv": "conv", "stem.bn": "norm"},
        r"s(?P<stage>[1-4])\.b(?P<block>\d+)",
        1,
        {
            "proj": "shortcut.conv",
            "bn": "shortcut.norm",
            **{f"f.{letter}": f"conv{i}.conv" for i, letter in enumerate("abc", 1)},
            **{f"f.{letter}_bn": f"conv{i}.norm" for i, letter in enumerate("abc", 1)},
            "f.se.f_ex.0": "se.fc1",
            "f.se.f_ex.2": "se.fc2",
        },
    ),
    "mmdet": _Layout(
        {"conv1": "conv", "bn1": "norm"},
        r"layer(?P<stage>[1-4])\.(?P<block>\d+)",
        0,
        {
            "downsample.0": "shortcut.conv",
            "downsample.1": "shortcut.norm",
            **{f"conv{i}": f"conv{i}.conv" for i in (1, 2, 3)},
            **{f"bn{i}": f"conv{i}.norm" for i in (1, 2, 3)},
            "conv2.conv_offset": "conv2.conv.offset",
        },
    ),
    "torchvision": _Layout(
        {"stem.0": "conv", "stem.1": "norm"},
        r"trunk_output\.block(?P<stage>[1-4])\.block(?P=stage)-(?P<block>\d+)",
        0,
        {
            "proj.0": "shortcut.conv",
            "proj.1": "shortcut.norm",
            **{f"f.{letter}.0": f"conv{i}.conv" for i, letter in enumerate("abc", 1)},
            **{f"f.{letter}.1": f"conv{i}.norm" for i, letter in enumerate("abc", 1)},
            "f.se.fc1": "se.fc1",
            "f.se.fc2": "se.fc2",
        },
    ),
    "timm": _Layout(
        {"stem.conv": "conv", "stem.bn": "norm"},
        r"s(?P<stage>[1-4])\.b(?P<block>\d+)",
        1,
        {
            "downsample.conv": "shortcut.conv",
            "downsample.bn": "shortcut.norm",
            **{f"conv{i}.conv": f"conv{i}.conv" for i in (1, 2, 3)},
            **{f"conv{i}.bn": f"conv{i}.norm" for i in (1, 2, 3)},
            "se.fc1": "se.fc1",
            "se.fc2": "se.fc2",
        },
    ),
}


@dataclass(frozen=True)
class RegNetSpec:
    """One model: the structural arguments of `RegNet`."""

    depth: int
    w0: int
    wa: float
    wm: float
    group_width: int
    se_ratio: float = 0.0


SPECS = {
    "RegNetX-200MF": RegNetSpec(13, 24, 36.44, 2.49, 8),
    "RegNetX-400MF": RegNetSpec(22, 24, 24.48, 2.54, 16),
    "RegNetX-600MF": RegNetSpec(16, 48, 36.97, 2.24, 24),
    "RegNetX-800MF": RegNetSpec(16, 56, 35.73, 2.28, 16),
    "RegNetX-1.6GF": RegNetSpec(18, 80, 34.01, 2.25, 24),
    "RegNetX-3.2GF": RegNetSpec(25, 88, 26.31, 2.25, 48),
    "RegNetX-4.0GF": RegNetSpec(23, 96, 38.65, 2.43, 40),
    "RegNetX-6.4GF": RegNetSpec(17, 184, 60.83, 2.07, 56),
    "RegNetX-8.0GF": RegNetSpec(23, 80, 49.56, 2.88, 120),
    "RegNetX-12GF": RegNetSpec(19, 168, 73.36, 2.37, 112),
    "RegNetX-16GF": RegNetSpec(22, 216, 55.59, 2.1, 128),
    "RegNetX-32GF": RegNetSpec(23, 320, 69.86, 2.0, 168),
    "RegNetY-200MF": RegNetSpec(13, 24, 36.44, 2.49, 8, 0.25),
    "RegNetY-400MF": RegNetSpec(16, 48, 27.89, 2.09, 8, 0.25),
    "RegNetY-600MF": RegNetSpec(15, 48, 32.54, 2.32, 16, 0.25),
    "RegNetY-800MF": RegNetSpec(14, 56, 38.84, 2.4, 16, 0.25),
    "RegNetY-1.6GF": RegNetSpec(27, 48, 20.71, 2.65, 24, 0.25),
    "RegNetY-3.2GF": RegNetSpec(21, 80, 42.63, 2.66, 24, 0.25),
    "RegNetY-4.0GF": RegNetSpec(22, 96, 31.41, 2.24, 64, 0.25),
    "RegNetY-6.4GF": RegNetSpec(25, 112, 33.22, 2.27, 72, 0.25),
    "RegNetY-8.0GF": RegNetSpec(17, 192, 76.82, 2.19, 56, 0.25),
    "RegNetY-12GF": RegNetSpec(19, 168, 73.36, 2.37, 112, 0.25),
    "RegNetY-16GF": RegNetSpec(18, 200, 106.23, 2.48, 112, 0.25),
    "RegNetY-32GF": RegNetSpec(20, 232, 115.89, 2.53, 232, 0.25),
}


def build(cfg: CfgNode, input_shape: ShapeSpec) -> RegNet:
    """The RegNet that ``cfg.MODEL.REGNET`` asks for: by its NAME, or where that is empty by its numbers."""
    node = cfg.MODEL.REGNET
    numbers = {key: node[key.upper()] for key in ("depth", "w0", "wa", "wm", "group_width", "se_ratio")}
    if node.NAME:
        if node.NAME not in SPECS:
            raise unknown("MODEL.REGNET.NAME", node.NAME, SPECS)
        given = [key.upper() for key, value in numbers.items() if value]
        if given:
            raise UserError(
                f"MODEL.REGNET.NAME {node.NAME!r} and {', '.join(given)} exclude each other: for a RegNet of other numbers, set NAME ''"
            )
        numbers = vars(SPECS[node.NAME])
    return RegNet(**numbers, **common_options(cfg, node, input_shape), out_features=node.OUT_FEATURES, rounding=node.ROUNDING)


FAMILY = register(Family("regnet", RegNet, SPECS, build, variant_key="MODEL.REGNET.NAME"))
register_builders(FAMILY)
