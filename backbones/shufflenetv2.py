"""ShuffleNetV2 in the search space of DetNAS (Chen et al., "DetNAS: Backbone Search for Object Detection", NeurIPS 2019).

Every block is one of four choices: a depthwise kernel of 3, 5 or 7, or an Xception-like chain of three, each in one width or several. Here are
the found networks of the paper and that of MMRazor, any other list of choices, and the supernet that holds all choices at once.

Worth knowing:
- The authors' networks and MMRazor's are not the same: the blocks of stride 2 split their width otherwise (``split``), and the channels are
  shuffled elsewhere (``shuffle``). The authors' code itself has two ways: supernets take "before", the networks it released "alternate".
- The stem, with a bias in the authors' networks, precedes a batch norm; there is no pooling. The last 1x1 convolution is the classifier's.
- Weights start as torch's do. The authors' start, a deviation of 1 / (inputs of a filter), learns hardly anything at small batches: its
  rates are far too high for the 1x1 convolutions, and too low for the depthwise ones.
- Published "300M" counts the convolutions of the body at 224x224; MMRazor's "0.34G" its whole classifier.
"""

import re
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .choices import CHOICES, SAMPLINGS, are_branch_widths, check_choices, choice_count, path_at, read_choices
from .errors import UserError, unknown
from .fpn import common_options, register
from .layers import STAGES, ConvNormAct, Options, StagedBackbone, StagePlan, rounded, spec_of
from .shuffle_block import SHUFFLES, SPLITS, ShuffleBlock

_OF_CHOICE = re.compile(r"(res\d\.block\d+)\.(\d+)\.(.+)$")  # a weight of a supernet's choice: block, choice, the rest


class ShuffleNetV2(StagedBackbone):
    """ShuffleNetV2 of choice blocks: emits "stem" (stride 2), "res2" (4), "res3" (8), "res4" (16) and "res5" (32).

    Args:
        stem_channels: width of the first convolution.
        channels, blocks: width and number of blocks of each of the four stages.
        choices: of every block, in order, an index into CHOICES; plus 4 k for the k-th of the ``branch_widths``.
        split, shuffle: among SPLITS and SHUFFLES, see the top of this file.
        stem_bias: whether the first convolution has a bias, as the authors' has, in front of its norm.
        width: factor of all its widths, which are rounded to multiples of 4.
        branch_widths: factors of the width within a block's branch, from which the choices choose. Guo et al., "Single Path One-Shot Neural
            Architecture Search with Uniform Sampling", ECCV 2020, search them so.
        common: `Options`.
    """

    layouts = ("mmrazor", "authors")
    native_layouts = ("mmrazor", "authors", "supernet")  # the last: of our own supernet, whose weights a path may start from
    classifier = re.compile(r"(layers\.4\.|last_conv\.|fc\.|head\.).*$")

    def __init__(
        self,
        stem_channels: int,
        channels: Sequence[int],
        blocks: Sequence[int],
        choices: Sequence[int],
        split: str = "input",
        shuffle: str = "alternate",
        stem_bias: bool = True,
        *,
        width: float = 1.0,
        branch_widths: Sequence[float] = (1.0,),
        **common: Any,
    ):
        super().__init__()
        options = Options(**common)
        norm = options.norm
        for key, value, allowed in (("SPLIT", split, SPLITS), ("SHUFFLE", shuffle, SHUFFLES)):
            if value not in allowed:
                raise unknown(f"MODEL.SHUFFLENETV2.{key}", value, allowed)
        if not 0 < width <= 16:
            raise UserError(f"ShuffleNetV2's width is {width}: it must be above 0, and at most 16")
        self.blocks, self.split, self.shuffle = tuple(blocks), split, shuffle
        if not are_branch_widths(branch_widths):
            said = f"MODEL.SHUFFLENETV2.BRANCH_WIDTHS is {branch_widths!r}: it must be a list of different numbers above 0, and at most 4"
            raise UserError(said, "value", "MODEL.SHUFFLENETV2.BRANCH_WIDTHS")
        self.branch_widths = tuple(branch_widths)
        self.choice_count = choice_count(branch_widths)
        self.choices = check_choices(choices, blocks, count=self.choice_count)
        self.conventions = {"MODEL.SHUFFLENETV2.SHUFFLE": shuffle}
        stem_channels, *channels = (c if width == 1 else rounded(c * width, 4) for c in (stem_channels, *channels))
        stem = ConvNormAct(options.in_channels, stem_channels, 3, stride=2, norm=norm)
        if stem_bias and norm:
            stem.conv.bias = nn.Parameter(torch.zeros(stem_channels))
        self.add_stage("stem", stem, stem_channels, stride=2)
        self._released: list[str] = []  # our name of each block, in order
        before, stride = stem_channels, 2
        for name, out, count, plan in zip(STAGES[1:], channels, blocks, options.plans()):
            stage = nn.Sequential()
            for i in range(count):
                place = f"block{i + 1}"
                stage.add_module(place, self._block(len(self._released), before, out, i == 0, norm, plan))
                self._released.append(f"{name}.{place}")
                before = out
            stride *= plan.stride
            self.add_stage(name, stage, out, stride)
        # convolutions of stride 2 round odd sizes up, as detectron2 expects: any size works
        self.finish(options, divisible=False)

    def _chosen(self, choice: int, in_channels: int, out_channels: int, reduces: bool, norm: str, plan: StagePlan) -> ShuffleBlock:
        width, kind = divmod(choice, len(CHOICES))
        return ShuffleBlock(in_channels, out_channels, kind, reduces, self.split, self.shuffle, norm, plan, self.branch_widths[width])

    def _block(self, index: int, *shape: Any) -> nn.Module:
        return self._chosen(self.choices[index], *shape)

    def _place(self, index: int, choice: int) -> str | None:
        """The prefix of a choice of a block, or None if this network has a different choice."""
        return f"{self._released[index]}." if index < len(self._released) and self.choices[index] == choice else None

    def translate_key(self, key: str, layout: str) -> str:
        if layout == "supernet":
            block = _OF_CHOICE.match(key)
            place = self._place(self._released.index(block[1]), int(block[2])) if block and block[1] in self._released else None
            return f"{place}{block[3]}" if block and place else key
        stem = re.match(r"(?:conv1|first_conv)\.(conv|bn)\.(\w+)$", key)
        if stem:
            return f"stem.{'conv' if stem[1] == 'conv' else 'norm'}.{stem[2]}"
        return (_of_mmrazor if layout == "mmrazor" else _of_authors)(self, key)


def _of_mmrazor(net: ShuffleNetV2, key: str) -> str:
    unit = r"(conv|bn)\.(\w+)$"
    match = re.match(
        r"layers\.(\d)\.(\d+)\.(?:_candidates|_candidate_ops|choices)\.(\w+)\.branch([12])\.(\d)\.(?:(depthwise_conv|pointwise_conv)\.)?"
        + unit,
        key,
    )
    if not match or match[3] not in CHOICES or int(match[1]) >= len(net.blocks) or int(match[2]) >= net.blocks[int(match[1])]:
        return key
    stage, block, name, branch, position, chain, part, leaf = match.groups()
    if bool(chain) != (name == "shuffle_xception" and branch == "2"):
        return key
    place = net._place(sum(net.blocks[: int(stage)]) + int(block), CHOICES.index(name))
    index = 2 * int(position) + (chain == "pointwise_conv") if chain else int(position)
    return key if place is None else f"{place}{'proj' if branch == '1' else 'main'}.{index}.{'conv' if part == 'conv' else 'norm'}.{leaf}"


_OPERATIONS = ("shufflenet_3x3", "shufflenet_5x5", "shufflenet_7x7", "xception_3x3")  # the authors' names of the choices


def _of_authors(net: ShuffleNetV2, key: str) -> str:
    match = re.match(
        r"features\.(\d+)\.(?:(\d)\.)?(?:conv\.(\d)|proj_conv)\.(interstellar|bn)\d[a-z]_(?:(\w+?_\dx\d)_branch2([abc])|proj)(_s)?(_bn)?\.(\w+)$",
        key,
    )
    if not match:
        return key
    index, chosen, position, kind, operation, letter, depthwise, depthwise_norm, leaf = match.groups()
    part = "norm" if kind == "bn" or depthwise_norm else "conv"
    if chosen is None:  # the block of a found network, whose projection does not say which choice it is of
        if int(index) >= len(net.choices) or (operation and operation != _OPERATIONS[net.choices[int(index)]]):
            return key
        chosen = net.choices[int(index)]
    place = net._place(int(index), int(chosen))
    if place is None or (operation and operation != _OPERATIONS[int(chosen)]):
        return key
    if position is None:
        return f"{place}proj.{0 if depthwise else 1}.{part}.{leaf}"
    if operation == "xception_3x3":
        at = 2 * "abc".index(letter) + (not depthwise)
    else:
        at = 0 if letter == "a" else 1 + (not depthwise)
    return f"{place}main.{at}.{part}.{leaf}"


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Copies the weights to a module of the same kind, whose kernels may be larger, and which may have more channels or fewer.

    Of more channels the last ones keep their own weights, but count for nothing in what reads them.
    """
    own = target.state_dict()
    for key, value in source.state_dict().items():
        goal = own[key]
        if "offset." in key and value.shape[0] != goal.shape[0]:  # for the points of a larger kernel
            continue
        if value.ndim == 4:
            value = F.pad(value, [(goal.shape[-1] - value.shape[-1]) // 2] * 4)
            goal[:, value.shape[1] :] = 0
        shared = tuple(slice(min(sizes)) for sizes in zip(value.shape, goal.shape))
        goal[shared] = value[shared]


class Choices(nn.ModuleList):
    """All choices of one block; the ``active`` one runs."""

    active = 0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self[self.active](x)
        return y


class ShuffleNetV2Supernet(ShuffleNetV2):
    """All choices of every block at once; the path set last with `set_path` runs. ``choices`` is the initial path, kept as ``given``.

    Args:
        sampling: which paths are trained, among SAMPLINGS.
        one_path_iters: that many iterations train one path first, the 3x3 choice of every block. Then all choices start from its weights.
    """

    def __init__(self, *args: Any, sampling: str = "uniform", one_path_iters: int = 0, **kwargs: Any):
        if sampling not in SAMPLINGS:
            raise unknown("MODEL.SHUFFLENETV2.SAMPLING", sampling, SAMPLINGS)
        super().__init__(*args, **kwargs)
        self._sampling, self.one_path_iters, self.given = sampling, one_path_iters, self.choices

    def _block(self, index: int, *shape: Any) -> nn.Module:
        block = Choices([self._chosen(choice, *shape) for choice in range(self.choice_count)])
        block.active = self.choices[index]
        return block

    def _place(self, index: int, choice: int) -> str | None:
        return f"{self._released[index]}.{choice}." if index < len(self._released) and choice < self.choice_count else None

    def set_path(self, path: Sequence[int]) -> None:
        """Sets the choice of every block, in order."""
        self.choices = check_choices(path, self.blocks, count=self.choice_count)
        for block, choice in zip((module for module in self.modules() if isinstance(module, Choices)), self.choices):
            block.active = choice

    def idle(self) -> list[nn.Module]:
        """The choices that do not run."""
        return [choice for module in self.modules() if isinstance(module, Choices) for i, choice in enumerate(module) if i != module.active]

    def train_path(self, seed: int, step: int) -> None:
        """Sets the path that iteration ``step`` of a training trains."""
        if step < self.one_path_iters:
            self.set_path([0] * sum(self.blocks))
            return
        if step and step == self.one_path_iters:
            self.spread()
        self.set_path(path_at(sum(self.blocks), seed, step, self._sampling, self.choice_count))

    @torch.no_grad()
    def spread(self) -> None:
        """Gives all choices of each block the weights of its first: they compute what it computes, chains and narrower branches nearly so.

        A kernel goes to the middle of a larger one; larger deformable ones keep offsets of their own. What the chain has besides becomes an
        identity, as in Chen et al., "Net2Net: Accelerating Learning via Knowledge Transfer", ICLR 2016.
        """
        for block in self.modules():
            if isinstance(block, Choices):
                choices: list[Any] = list(block)
                first = choices[0]
                for i, other in enumerate(choices[1:], 1):
                    if CHOICES[i % len(CHOICES)] != "shuffle_xception":
                        _copy(first, other)
                        continue
                    if first.proj is not None:
                        _copy(first.proj, other.proj)
                    for layer, own in zip(other.main, (None, 0, 1, None, None, 2)):
                        if own is None:
                            nn.init.dirac_(layer.conv.weight, layer.conv.groups)
                        else:
                            _copy(first.main[own], layer)

    def subnet_state_dict(self, path: Sequence[int]) -> dict[str, Tensor]:
        """The weights of a path, with the names that a `ShuffleNetV2` of those choices has."""
        path = check_choices(path, self.blocks, count=self.choice_count)
        result = {}
        for key, value in self.state_dict().items():
            match = _OF_CHOICE.match(key)
            if not match:
                result[key] = value
            elif int(match[2]) == path[self._released.index(match[1])]:
                result[f"{match[1]}.{match[3]}"] = value
        return result


def supernets(model: nn.Module) -> list[ShuffleNetV2Supernet]:
    return [module for module in model.modules() if isinstance(module, ShuffleNetV2Supernet)]


ShuffleNetV2Spec = spec_of(ShuffleNetV2)

_SMALL: dict[str, Any] = dict(stem_channels=16, channels=(64, 160, 320, 640), blocks=(4, 4, 8, 4))
_LARGE: dict[str, Any] = dict(blocks=(8, 8, 16, 8))
_LARGE_CHOICES = (
    *(0, 0, 3, 1, 2, 1, 0, 2),
    *(0, 3, 1, 2, 3, 3, 2, 0),
    *(2, 1, 1, 3, 2, 0, 2, 2, 2, 1, 3, 1, 0, 3, 3, 3),
    *(1, 3, 3, 3, 3, 3, 3, 3),
)
SPECS = {
    "DetNAS-300M": ShuffleNetV2Spec(**_SMALL, choices=(2, 1, 2, 0, 2, 1, 1, 2, 3, 3, 1, 3, 0, 0, 3, 1, 3, 1, 3, 2)),
    "DetNAS-RetinaNet-300M": ShuffleNetV2Spec(**_SMALL, choices=(2, 3, 1, 1, 3, 2, 1, 3, 3, 1, 1, 1, 3, 3, 2, 0, 3, 3, 3, 3)),
    "DetNAS-1.3G": ShuffleNetV2Spec(48, (96, 240, 480, 960), **_LARGE, choices=_LARGE_CHOICES),
    "DetNAS-3.8G": ShuffleNetV2Spec(72, (172, 432, 864, 1728), **_LARGE, choices=_LARGE_CHOICES),
    "DetNAS-MMRazor": ShuffleNetV2Spec(
        **_SMALL, choices=(1, 0, 0, 0, 3, 0, 3, 2, 2, 2, 3, 3, 0, 2, 1, 3, 2, 2, 2, 1), split="halves", shuffle="after", stem_bias=False
    ),
}


def _spec(node: CfgNode) -> dict[str, Any]:
    return {**vars(SPECS[node.NAME]), **{key.lower(): node[key] for key in ("SPLIT", "SHUFFLE") if node[key]}}


def read_subnet(node: CfgNode, path: str) -> tuple[int, ...]:
    """`read_choices` of a file that must be of the space that ``node``, a config's MODEL.SHUFFLENETV2, describes."""
    spec = _spec(node)
    stated = {"network": node.NAME, "split": spec["split"], "shuffle": spec["shuffle"], "width": node.WIDTH}
    stated["branch_widths"] = list(node.BRANCH_WIDTHS)
    return read_choices(path, spec["blocks"], stated, choice_count(node.BRANCH_WIDTHS))


def build(cfg: CfgNode, input_shape: ShapeSpec) -> ShuffleNetV2:
    """The ShuffleNetV2 that ``cfg.MODEL.SHUFFLENETV2`` asks for: NAME, with the choices of CHOICES or the SUBNET file where there are any."""
    node = cfg.MODEL.SHUFFLENETV2
    if node.NAME not in SPECS:
        raise unknown("MODEL.SHUFFLENETV2.NAME", node.NAME, SPECS)
    spec = _spec(node)
    if node.CHOICES and node.SUBNET:
        raise UserError("MODEL.SHUFFLENETV2.CHOICES and SUBNET exclude each other: both set the blocks")
    if node.CHOICES:
        spec["choices"] = node.CHOICES
    if node.SUBNET:
        spec["choices"] = read_subnet(node, node.SUBNET)
    options = {**spec, **common_options(cfg, node, input_shape), "width": node.WIDTH, "branch_widths": node.BRANCH_WIDTHS}
    if node.SUPERNET:
        return ShuffleNetV2Supernet(**options, sampling=node.SAMPLING, one_path_iters=node.ONE_PATH_ITERS)
    return ShuffleNetV2(**options)


FAMILY = register("shufflenetv2", ShuffleNetV2, SPECS, build, variant_key="MODEL.SHUFFLENETV2.NAME")
