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
from typing import Any, NamedTuple

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.regnet import generate_regnet_parameters
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from .errors import UserError, unknown
from .fpn import common_options, register
from .layers import STAGES, Conv, ConvNormAct, Options, StagedBackbone, initialize_convs, spec_of

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
    widths, depths, *_ = generate_regnet_parameters(wa, w0, wm, depth)
    return [(round_to_groups(width, group_width, rounding), blocks, min(group_width, width)) for width, blocks in zip(widths, depths)]


class XBlock(nn.Module):
    """The paper's X block, or with a gate its Y block: 1x1, grouped 3x3 with the stride, gate, 1x1; adds its input, projected if need be."""

    def __init__(self, in_channels: int, channels: int, stride: int, groups: int, se_width: int, norm: str, conv: Conv = nn.Conv2d):
        super().__init__()
        self.conv1 = ConvNormAct(in_channels, channels, norm=norm)
        self.conv2 = ConvNormAct(channels, channels, 3, stride, groups=groups, norm=norm, conv=conv)
        self.se = SqueezeExcitation(channels, se_width) if se_width else nn.Identity()
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
        common: `Options`.
    """

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
        **common: Any,
    ):
        super().__init__()
        options = Options(**common)
        stages = stage_widths(depth, w0, wa, wm, group_width, rounding)
        if len(stages) != 4:
            raise UserError(
                f"these numbers make a RegNet with {len(stages)} stages of widths {[width for width, _, _ in stages]}: detectors need 4. "
                "For more stages, increase wa or depth, or decrease wm."
            )
        if not 0 <= se_ratio <= 1:
            raise UserError(f"RegNet's se_ratio is {se_ratio}: it must be between 0 (none) and 1")
        self.add_stage("stem", ConvNormAct(options.in_channels, 32, 3, stride=2, norm=options.norm), 32, stride=2)
        width, stride = 32, 2
        for name, (channels, blocks, group), plan in zip(STAGES[1:], stages, options.plans()):
            stage = nn.Sequential()
            for b in range(blocks):
                se_width = round(se_ratio * width)
                block_stride, conv = (1, plan.conv) if b else (plan.stride, plan.reducing)
                stage.add_module(f"block{b + 1}", XBlock(width, channels, block_stride, channels // group, se_width, options.norm, conv))
                width = channels
            stride *= plan.stride
            self.add_stage(name, stage, channels, stride)
        # by fan-out, not divided by the groups
        initialize_convs(self, lambda w: nn.init.normal_(w, std=math.sqrt(2.0 / (w.shape[0] * w.shape[2] * w.shape[3]))))
        self.finish(options, divisible=False)

    def translate_key(self, key: str, layout: str) -> str:
        layout_ = _LAYOUTS[layout]
        stem, parts = dict(zip(layout_.stem.split(), _STEM.split())), dict(zip(layout_.parts.split(), _PARTS.split()))
        module, _, leaf = key.rpartition(".")
        if module in stem:
            return f"stem.{stem[module]}.{leaf}"
        match = re.fullmatch(layout_.block + r"\.(?P<part>.+)", module)
        if not match or match["part"] not in parts:
            return key
        return f"res{int(match['stage']) + 1}.block{int(match['block']) + 1 - layout_.first}.{parts[match['part']]}.{leaf}"


class _Layout(NamedTuple):
    """Where another project keeps the same weights: its modules' names, in the order of ours."""

    stem: str
    block: str  # pattern of a block's name; its stages count from 1
    first: int  # its number of a stage's first block
    parts: str


_STEM = "conv norm"
_PARTS = "shortcut.conv shortcut.norm conv1.conv conv1.norm conv2.conv conv2.norm conv3.conv conv3.norm se.fc1 se.fc2 conv2.conv.offset"
_BLOCK = r"s(?P<stage>[1-4])\.b(?P<block>\d+)"
_TRUNK = r"trunk_output\.block(?P<stage>[1-4])\.block(?P=stage)-(?P<block>\d+)"
_LAYOUTS = {
    "pycls": _Layout("stem.conv stem.bn", _BLOCK, 1, "proj bn f.a f.a_bn f.b f.b_bn f.c f.c_bn f.se.f_ex.0 f.se.f_ex.2"),
    "mmdet": _Layout(
        "conv1 bn1",
        r"layer(?P<stage>[1-4])\.(?P<block>\d+)",
        0,
        "downsample.0 downsample.1 conv1 bn1 conv2 bn2 conv3 bn3 - - conv2.conv_offset",
    ),
    "torchvision": _Layout("stem.0 stem.1", _TRUNK, 0, "proj.0 proj.1 f.a.0 f.a.1 f.b.0 f.b.1 f.c.0 f.c.1 f.se.fc1 f.se.fc2"),
    "timm": _Layout(
        *("stem.conv stem.bn", _BLOCK, 1),
        "downsample.conv downsample.bn conv1.conv conv1.bn conv2.conv conv2.bn conv3.conv conv3.bn se.fc1 se.fc2",
    ),
}


RegNetSpec = spec_of(RegNet)

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
            raise unknown("MODEL.REGNET.NAME", node.NAME, SPECS, listed="backbones zoo list RegNet")
        given = [key.upper() for key, value in numbers.items() if value]
        if given:
            raise UserError(
                f"MODEL.REGNET.NAME {node.NAME!r} and {', '.join(given)} exclude each other: to define a RegNet by numbers, set NAME ''"
            )
        numbers = vars(SPECS[node.NAME])
    return RegNet(**numbers, **common_options(cfg, node, input_shape), rounding=node.ROUNDING)


FAMILY = register("regnet", RegNet, SPECS, build, variant_key="MODEL.REGNET.NAME")
