"""MAE-DET (Sun et al., "MAE-DET: Revisiting Maximum Entropy Principle in Zero-Shot NAS for Efficient Object Detection", ICML 2022).

S, M and L of the paper, and any network of the same blocks from a structure file: those that `backbones.search.zero_shot` writes and those of
the paper's project, in both of its dialects. A stem, then groups of bottlenecks (1x1, kxk with the stride, 1x1), whose shortcuts are averaged
over 2x2 pixels before they are projected; no pooling but that.

Worth knowing:
- They are trained from scratch: no ImageNet weights are released. The released detectors expect RGB images (`python -m convert lightnas`).
- The first bottleneck of every group projects its shortcut, also where the shapes agree.
- The original needs image sides divisible by 32, because its shortcuts round odd sizes down but its convolutions round them up. Here both
  round up, so that any size works.
"""

import ast
import os
import re
from typing import Any, NamedTuple, Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import UserError, one_line, unknown
from .files import not_there
from .fpn import common_options, register
from .layers import STAGES, ConvNormAct, Options, StagedBackbone, StagePlan, initialize_convs, rounded, spec_of


class Block(NamedTuple):
    """One entry of a structure: a convolution (``layers`` 0), or that many bottlenecks, of which the first has the stride.

    ``forced``: whether the first bottleneck projects its shortcut even where the shapes agree.
    """

    channels: int
    kernel_size: int
    stride: int
    layers: int = 0
    bottleneck: int = 0
    relu: bool = True
    forced: bool = True


Structure = tuple[Block, ...]


def stage_of(structure: Sequence[Block]) -> list[int]:
    """For each block the number of its stage, 0 being the stem: every block of stride 2 but the first begins one."""
    stages, stage = [], 0
    for i, block in enumerate(structure):
        stage += i > 0 and block.stride == 2
        stages.append(stage)
    return stages


def check_structure(structure: Sequence[Block], what: str = "the structure") -> Structure:
    """Returns ``structure`` if it has five stages at strides 2 to 32. Raises UserError for any other."""
    if not structure or structure[0].layers or structure[0].stride != 2:
        raise UserError(f"{what} must begin with a convolution of stride 2")
    count = stage_of(structure)[-1] + 1
    if count != len(STAGES):
        raise UserError(f"{what} has {count} stages, to stride {2**count}: detectors need {len(STAGES)}, to stride 32")
    return tuple(structure)


_CLASSES = {
    "ConvKXBNRELU": "conv",
    "ConvKXBN": "conv",
    "SuperResK1KXK1": "group",
    "SuperResConvK1KXK1": "group",  # the first release's name for the same
    "ResK1KXK1": "bottleneck",
}
_FIELDS = {
    "conv": ("in", "out", "k"),
    "bottleneck": ("in", "out", "k", "btn"),
    "group": ("in", "out", "k", "L", "btn"),
}
_OTHER_FIELDS = ("class", "s", "p", "g", "act", "inner_class", "force_resproj_skip")  # the last says nothing: groups always project
_MOST = {"L": 1000}  # over all blocks; every other number may be up to 65536
_MOST_BYTES = 1 << 20


def read_structure(path: str) -> Structure:
    """The structure in a file: a Python literal, a list of blocks or a dict with ``best_structures``. Nothing in it is executed.

    Raises UserError, naming the block and the field, for anything that is not a structure or not supported (quantized, grouped).
    """
    if not os.path.isfile(path):
        raise not_there("structure file", path)
    try:
        if os.path.getsize(path) > _MOST_BYTES:
            raise ValueError(f"it has {os.path.getsize(path)} bytes, too many for a structure")
        with open(path, encoding="utf-8-sig") as f:
            content = ast.literal_eval(f.read().strip())
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OSError) as error:
        reason = getattr(error, "msg", None) or one_line(error)
        raise UserError(f"structure file {path!r} is not a Python literal: {reason}") from error
    return parse_structure(content, f"structure file {path!r}")


def parse_structure(content: Any, what: str = "the structure") -> Structure:
    """The structure of a file's ``content``, either dialect. Raises UserError as `read_structure`."""
    if isinstance(content, dict):
        found = content.get("best_structures")
        if not isinstance(found, list) or not found:
            raise UserError(f"{what} is a dict without 'best_structures'")
        content = found[0]
    if not isinstance(content, (list, tuple)) or not content:
        raise UserError(f"{what} holds {_short(content)}, not a list of blocks")
    blocks: list[Block] = []
    for i, entry in enumerate(content):
        blocks.append(_parse_block(entry, i, blocks[-1].channels if blocks else 3, what))
    layers = sum(block.layers or 1 for block in blocks)
    if layers > _MOST["L"]:
        raise UserError(f"{what} has {layers} bottlenecks and convolutions, more than {_MOST['L']}")
    return check_structure(blocks, what)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parse_block(entry: Any, i: int, before: int, what: str) -> Block:
    where = f"{what}: block {i}"
    if not isinstance(entry, dict):
        raise UserError(f"{where} is {_short(entry)}, not a dict")
    name = entry.get("class") if isinstance(entry.get("class"), str) else _short(entry.get("class"))
    if "nbitsA" in entry or "nbitsW" in entry or "Quant" in str(name):
        raise UserError(f"{where} belongs to a quantized network (class {name!r}, nbitsA, nbitsW), which is not supported")
    if name not in _CLASSES:
        raise unknown(f"class in {where}", name, _CLASSES)
    kind = _CLASSES[name]
    for field in entry:
        if field not in (*_FIELDS[kind], *_OTHER_FIELDS):
            raise unknown(f"field in {where}", field, (*_FIELDS[kind], *_OTHER_FIELDS))
    values: dict[str, int] = {}
    for field in (*_FIELDS[kind], "s"):
        value = entry.get(field, 1 if field == "s" else None)
        most = _MOST.get(field, 1 << 16)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            problem = "is missing" if field not in entry else f"is {_short(value)}"
            raise UserError(f"{where}: field {field!r} {problem}: it must be a whole number from 1 to {most}")
        values[field] = value
    kernel = values["k"]
    for field, value, allowed in (
        ("s", values["s"], (1, 2)),
        ("k", kernel, tuple(range(1, 16, 2))),  # even kernels would change the size
        ("p", entry.get("p", (kernel - 1) // 2), ((kernel - 1) // 2,)),
        ("g", entry.get("g", 1), (1,)),
        ("act", entry.get("act", "relu"), ("relu",)),
        ("inner_class", entry.get("inner_class", "ResK1KXK1"), ("ResK1KXK1",)),
    ):
        if value not in allowed:
            raise unknown(f"value of field {field!r} in {where}", value, allowed)
    if values["in"] != before:
        raise UserError(f"{where}: field 'in' is {values['in']}, but {'the previous block gives' if i else 'images have'} {before}")
    layers, width = values.get("L", int(kind == "bottleneck")), values.get("btn", 0)
    return Block(values["out"], kernel, values["s"], layers, width, relu=name != "ConvKXBN", forced=kind != "bottleneck")


def format_structure(structure: Structure, in_channels: int = 3) -> str:
    """``structure`` as the text of a file, in the dialect with ``best_structures``."""
    lines = []
    for block in structure:
        name = ("SuperResK1KXK1" if block.forced else "ResK1KXK1") if block.layers else ("ConvKXBNRELU" if block.relu else "ConvKXBN")
        entry = {"class": name, "in": in_channels, "out": block.channels, "s": block.stride, "k": block.kernel_size}
        if block.layers and block.forced:
            entry.update(L=block.layers, btn=block.bottleneck, inner_class="ResK1KXK1")
        elif block.layers:
            entry["btn"] = block.bottleneck
        lines.append(f"    {entry!r},")
        in_channels = block.channels
    return "\n".join(["{'space_arch': 'CnnNet', 'best_structures': [[", *lines, "]]}", ""])


def scaled(structure: Structure, width: float) -> Structure:
    """``structure`` with every width times ``width``, to the nearest multiple of 8, at least 8."""
    if not 0 < width <= 16:
        raise UserError(f"MAE-DET's width is {width}: it must be above 0, and at most 16")
    if width == 1:
        return structure
    return tuple(
        block._replace(channels=rounded(block.channels * width), bottleneck=rounded(block.bottleneck * width) if block.layers else 0)
        for block in structure
    )


class Bottleneck(nn.Module):
    """1x1, kxk with the stride, 1x1, each with a norm; adds its input, averaged and projected where need be."""

    def __init__(self, in_channels: int, block: Block, reduces: bool, forced: bool, norm: str, plan: StagePlan):
        super().__init__()
        width, out_channels = block.bottleneck, block.channels
        stride, conv = (plan.stride, plan.reducing) if reduces else (1, plan.conv)
        self.conv1 = ConvNormAct(in_channels, width, norm=norm)
        self.conv2 = ConvNormAct(width, width, block.kernel_size, stride, norm=norm, conv=conv)
        self.conv3 = ConvNormAct(width, out_channels, norm=norm, act=nn.Identity)
        self.pool: nn.Module = nn.Identity()
        if reduces:  # where the stage is dilated instead, the same average at every pixel
            self.pool = (
                nn.AvgPool2d(2, ceil_mode=True) if stride == 2 else nn.Sequential(nn.ReplicationPad2d((0, 1, 0, 1)), nn.AvgPool2d(2, stride=1))
            )
        project = forced or in_channels != out_channels
        self.shortcut = ConvNormAct(in_channels, out_channels, norm=norm, act=nn.Identity) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(self.pool(x)))


class MAEDET(StagedBackbone):
    """MAE-DET: emits "stem" (stride 2), "res2" (4), "res3" (8), "res4" (16) and "res5" (32).

    Args:
        structure: its blocks, in order.
        width: factor of all its widths, which are rounded to multiples of 8.
        common: `Options`.
    """

    released_images = (re.compile(r"(^|\.)block_list\.\d"), "RGB")

    def __init__(
        self,
        structure: Sequence[Block],
        *,
        width: float = 1.0,
        **common: Any,
    ):
        super().__init__()
        options = Options(**common)
        norm = options.norm
        structure = scaled(check_structure(structure), width)
        plans = [StagePlan(2, nn.Conv2d, nn.Conv2d), *options.plans()]
        self._released: dict[str, str] = {}  # our name of each released block
        numbers = stage_of(structure)
        in_channels, stride = options.in_channels, 1
        for number, name in enumerate(STAGES):
            stage, plan = nn.Sequential(), plans[number]
            for i, block in enumerate(structure):
                if numbers[i] != number:
                    continue
                for j in range(max(block.layers, 1)):
                    place = f"block{len(stage) + 1}"
                    self._released[f"{i}.block_list.{j}" if block.layers and block.forced else f"{i}"] = f"{name}.{place}"
                    reduces = j == 0 and block.stride == 2
                    if block.layers:
                        unit: nn.Module = Bottleneck(in_channels, block, reduces, j == 0 and block.forced, norm, plan)
                    else:
                        act = nn.ReLU if block.relu else nn.Identity
                        conv_stride, conv = (plan.stride, plan.reducing) if reduces else (1, plan.conv)
                        unit = ConvNormAct(in_channels, block.channels, block.kernel_size, conv_stride, norm=norm, act=act, conv=conv)
                    stage.add_module(place, unit)
                    in_channels = block.channels
            stride *= plan.stride
            self.add_stage(name, stage, in_channels, stride)
        initialize_convs(self, lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"))
        self.finish(options, divisible=False)

    def translate_key(self, key: str, layout: str) -> str:
        match = re.match(r"block_list\.(\d+(?:\.block_list\.\d+)?)\.(?:(conv\d|residual_proj)\.)?(conv1|bn1)\.(\w+)$", key)
        if not match or match[1] not in self._released:
            return key
        unit = f"{match[2]}." if match[2] else ""
        part = "conv" if match[3] == "conv1" else "norm"
        return f"{self._released[match[1]]}.{unit.replace('residual_proj', 'shortcut')}{part}.{match[4]}"


MAEDETSpec = spec_of(MAEDET)


SPECS = {
    # channels, kernel, stride, bottlenecks, their width
    "MAE-DET-S": MAEDETSpec(
        (Block(32, 3, 2), Block(48, 5, 2, 2, 32), Block(272, 3, 2, 4, 120), Block(1024, 5, 2, 10, 80), Block(2048, 3, 2, 10, 240)),
    ),
    "MAE-DET-M": MAEDETSpec(
        (Block(64, 3, 2), Block(120, 3, 2, 2, 64), Block(512, 5, 2, 10, 72), Block(1632, 5, 2, 10, 112), Block(2048, 5, 2, 8, 184)),
    ),
    "MAE-DET-L": MAEDETSpec(
        (Block(80, 3, 2), Block(144, 3, 2, 2, 80), Block(608, 5, 2, 12, 88), Block(1912, 5, 2, 12, 136), Block(2400, 5, 2, 10, 220)),
    ),
}


def build(cfg: CfgNode, input_shape: ShapeSpec) -> MAEDET:
    """The MAE-DET that ``cfg.MODEL.MAEDET`` asks for: of its STRUCTURE file, or where there is none by its NAME."""
    node = cfg.MODEL.MAEDET
    if node.STRUCTURE:
        structure = read_structure(node.STRUCTURE)
    elif node.NAME in SPECS:
        structure = SPECS[node.NAME].structure
    else:
        raise unknown("MODEL.MAEDET.NAME", node.NAME, SPECS)
    return MAEDET(structure, **common_options(cfg, node, input_shape), width=node.WIDTH)


FAMILY = register("maedet", MAEDET, SPECS, build, variant_key="MODEL.MAEDET.NAME")
