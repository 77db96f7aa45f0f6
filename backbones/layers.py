"""What two or more families share: norms, the conv unit, deformable convolution, and the network as a chain of stages."""

import functools
import math
import re
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Sequence

import torch
from detectron2.layers import FrozenBatchNorm2d, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from . import lean
from .errors import UserError, unknown

# detectron2's, usable in every key of a config that ends in NORM
COMMON_NORMS = ("", "FrozenBN", "BN", "SyncBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NORMS = (*COMMON_NORMS, "EvalBN")

# what data-parallel training, torch.compile and MMRazor put in front of a model's keys, and what a detector puts in front of its backbone's
WRAPPERS = re.compile(r"^((module|_orig_mod|architecture(\.model)?)\.)+")
OUTER = re.compile(r"^((module|_orig_mod|architecture|model|backbone|bottom_up|body)\.)+")


def without_wrappers(state_dict: Mapping[str, Tensor]) -> Dict[str, Tensor]:
    """A state dict without those prefixes. Raises UserError where two entries become one."""
    result: Dict[str, Tensor] = {}
    for key, value in state_dict.items():
        new = WRAPPERS.sub("", key)
        if new in result:
            raise UserError(f"checkpoint holds {new!r} twice, under two names; the second is {key!r}")
        result[new] = value
    return result


def build_norm(norm: str, channels: int) -> nn.Module:
    """detectron2's norm of that name, or "EvalBN", `EvalBatchNorm2d`; "" gives the identity.

    "GN" takes 32 groups, or where 32 does not divide the channels the largest power of two below it that does (80 channels: 16).
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if norm == "EvalBN":
        return EvalBatchNorm2d(channels)
    if norm == "GN":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return get_norm(norm, channels) or nn.Identity()


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that never leaves evaluation mode: its statistics are those loaded, its weight and bias are trained.

    MMDetection's ``norm_eval=True``; `FrozenBatchNorm2d` trains neither.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.train(False)

    def train(self, mode: bool = True):
        return super().train(False)


class DeformConv2d(nn.Module):
    """Deformable convolution, v1 or (``modulated``) v2, by torchvision's operator, so that it runs on CPU and without detectron2's ``_C``.

    The sampling offsets start at zero, where v1 equals the plain convolution of the same ``weight``: pretrained dense weights load into it.
    Input (N, C, H, W), output (N, C_out, H', W'), as ``nn.Conv2d``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: int = 1,
        modulated: bool = False,
        deform_groups: int = 1,
    ):
        super().__init__()
        if in_channels % deform_groups:
            raise UserError(f"deformable groups must divide the channels: {deform_groups} does not divide {in_channels}")
        self.stride, self.padding, self.dilation, self.modulated = stride, padding, dilation, modulated
        self.offset_channels = 2 * deform_groups * kernel_size**2
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        predicted = self.offset_channels * 3 // 2 if modulated else self.offset_channels
        self.offset = nn.Conv2d(in_channels, predicted, kernel_size, stride, padding, dilation)
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.reset_offset()

    def reset_offset(self) -> None:
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.offset(x)
        stride, padding, dilation = (self.stride, self.stride), (self.padding, self.padding), (self.dilation, self.dilation)
        if self.modulated:
            mask = offset[:, self.offset_channels :].sigmoid()
            return deform_conv2d(x, offset[:, : self.offset_channels], self.weight, self.bias, stride, padding, dilation, mask=mask)
        return deform_conv2d(x, offset, self.weight, self.bias, stride, padding, dilation)


class StagePlan(NamedTuple):
    """How one stage behind the stem reduces its input, and what makes its 3x3 convolutions: the one that reduces, and all others."""

    stride: int
    reducing: Callable[..., nn.Module]
    conv: Callable[..., nn.Module]


def stage_plans(deform: Sequence[bool], modulated: bool, num_groups: int, res5_dilation: int) -> List[StagePlan]:
    """The plans of the four stages behind the stem.

    Their 3x3 convolutions are ``nn.Conv2d``, or where ``deform`` says so `DeformConv2d`. With ``res5_dilation`` 2 the last stage keeps its
    input's size (DC5): it computes what it computed (but for gates, which see other means), at every pixel instead of every second, so that its
    weights serve as they are. Its reducing convolution therefore stays as dense as it was, where detectron2's ResNet spreads that one too.
    """
    if len(deform) != 4:
        raise UserError(f"DEFORM_ON_PER_STAGE needs 4 values, one a stage, not {list(deform)}")
    if res5_dilation not in (1, 2):
        raise unknown("RES5_DILATION", res5_dilation, (1, 2))
    deformable = functools.partial(DeformConv2d, modulated=modulated, deform_groups=num_groups)
    convs = [deformable if on else nn.Conv2d for on in deform]
    plans = [StagePlan(2, conv, conv) for conv in convs]
    if res5_dilation == 2:
        plans[-1] = StagePlan(1, convs[-1], dilated(convs[-1], 2))
    return plans


def dilated(conv: Callable[..., nn.Module], dilation: int) -> Callable[..., nn.Module]:
    """What makes the convolutions of ``conv`` with their taps ``dilation`` pixels apart, padded to keep the size."""

    def make(*args, padding: int, **kwargs) -> nn.Module:
        return conv(*args, padding=padding * dilation, dilation=dilation, **kwargs)

    return make


class ConvNormAct(nn.Module):
    """Convolution (padded to keep the size at stride 1), norm, activation. The convolution has a bias only where there is no norm.

    ``lean``, which `keep_activations` sets: whether training keeps less, see `lean`.
    """

    lean: bool = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: str = "FrozenBN",
        act: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True),
        conv: Callable[..., nn.Module] = nn.Conv2d,
    ):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=norm == "")
        self.norm = build_norm(norm, out_channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.keeps_less() and isinstance(self.norm, FrozenBatchNorm2d):
                return self.act(lean.conv_norm(self.conv, self.norm, (x,)))
        return self.act(self.norm(self.conv(x)))

    @torch.jit.unused
    def keeps_less(self) -> bool:
        """Whether a backward pass is to come that `lean` has an operation for."""
        return (
            self.lean and torch.is_grad_enabled() and not torch.jit.is_tracing() and not torch.compiler.is_compiling() and lean.fits(self.conv)
        )

    @torch.jit.unused
    def of_pieces(self, pieces: List[Tensor]) -> Tensor:
        """The unit's output for the concatenation of ``pieces``, which it need not keep."""
        if self.keeps_less():
            return self.act(lean.conv_norm(self.conv, self.norm, pieces))
        return self(torch.cat(pieces, dim=1))


class StagedBackbone(Backbone):
    """A network whose children are its stages, in order: each maps (N, C, H, W) to the next feature.

    A family's constructor adds its stages with `add_stage` and closes with `finish`. The key names of its released checkpoints are
    understood wherever a state dict is loaded: directly, inside a detector, by detectron2's own checkpointer.
    """

    # the projects whose key names `translate_key` knows, and those of them whose weights take the images that this project's configs give:
    # theirs alone are understood wherever a state dict is loaded, the others are converted first
    layouts: Sequence[str] = ("released",)
    native_layouts: Sequence[str] = ("released",)
    # keys of a released layout whose weights expect images in another order than this project's other configs give: (keys, order)
    released_images = (re.compile(r"(?!)"), "")
    # how the weights are used, where their shapes do not say it: saved beside them, and compared when they are loaded
    conventions: Dict[str, str] = {}
    checkpointing: bool = False  # whether the backward pass computes each block again; `keep_activations` sets it
    classifier = re.compile(r"(?!)")  # keys behind the last feature, which detection has no use for

    def __init__(self):
        super().__init__()
        self._out_feature_channels: Dict[str, int] = {}
        self._out_feature_strides: Dict[str, int] = {}
        self._out_features: Sequence[str] = []
        self._size_divisibility = 0

    def add_stage(self, name: str, stage: nn.Module, channels: int, stride: int) -> None:
        """Appends ``stage``; ``stride`` counts from the image."""
        self.add_module(name, stage)
        self._out_feature_channels[name] = channels
        self._out_feature_strides[name] = stride

    def finish(self, out_features: Iterable[str], freeze_at: int, divisible: bool) -> None:
        """Checks and sets the features to emit, drops the stages behind the last of them, freezes.

        ``divisible``: whether feature sizes agree with their strides only for images whose sides the deepest stride divides.
        """
        stages = list(self._out_feature_channels)
        out_features = list(out_features)
        for name in out_features:
            if name not in stages:
                raise unknown("feature", name, stages)
        if not out_features:
            raise UserError(f"no feature to emit: OUT_FEATURES is empty. Allowed: {', '.join(stages)}.")
        self._out_features = [name for name in stages if name in out_features]
        for name in stages[stages.index(self._out_features[-1]) + 1 :]:
            delattr(self, name)
        self._size_divisibility = self._out_feature_strides[self._out_features[-1]] if divisible else 0
        self.freeze(freeze_at, stages)

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def freeze(self, freeze_at: int, stages: Sequence[str] = ()) -> None:
        """Freezes the first ``freeze_at`` stages, the stem being the first, and no others; 0 or less freezes nothing.

        Their parameters stop requiring gradients and their batch norms become ``FrozenBatchNorm2d``.
        """
        count = len(stages or self._out_feature_channels)
        if freeze_at > count:
            raise UserError(f"FREEZE_AT {freeze_at} is more than the {count} stages there are: 0 freezes none, 1 the stem, {count} all")
        for name, stage in list(self.named_children())[: max(freeze_at, 0)]:
            for parameter in stage.parameters():
                parameter.requires_grad_(False)
            setattr(self, name, FrozenBatchNorm2d.convert_frozen_batchnorm(stage))

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """Maps images (N, C, H, W) to the features asked for, by name, in order of depth."""
        outputs: Dict[str, Tensor] = {}
        for name, stage in self.named_children():
            if torch.jit.is_scripting():
                x = stage(x)
            else:
                x = self._through(stage, x)
            if name in self._out_features:
                outputs[name] = x
        return outputs

    @torch.jit.unused
    def _through(self, stage: nn.Module, x: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return stage(x)
        for block in stage if isinstance(stage, nn.Sequential) else (stage,):
            x = lean.checkpointed(block, x) if any(p.requires_grad for p in block.parameters()) else block(x)
        return x

    def translate_key(self, key: str, layout: str) -> str:
        """A key of a checkpoint in one of the `layouts` as ours; keys that are not of that layout come back as they are."""
        return key

    def complete(self, state_dict: Dict[str, Tensor], layout: str) -> Dict[str, Tensor]:
        """A translated state dict with what that layout's network does not have filled in, so that ours computes the same."""
        return state_dict

    def translate_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str = "", layouts: Sequence[str] = ()) -> Dict[str, Tensor]:
        """The entries under ``prefix`` with this network's key names, the others as they are; from the native ``layouts`` unless named.

        Drops batch counters where this network's norms keep none. Raises UserError where two entries become one.
        """
        own = set(self.state_dict())
        result: Dict[str, Tensor] = {}
        for key, value in state_dict.items():
            new = key
            if key.startswith(prefix):
                relative = key[len(prefix) :]
                if relative not in own:
                    relative = OUTER.sub("", relative)
                    for layout in layouts or self.native_layouts:
                        relative = self.translate_key(relative, layout)
                if relative.endswith("num_batches_tracked") and relative not in own:
                    continue
                new = prefix + relative
            if new in result:
                raise UserError(f"checkpoint holds {new!r} twice, under two names; the second is {key!r}")
            result[new] = value
        return result

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        translated = self.translate_state_dict(state_dict, prefix)
        state_dict.clear()
        state_dict.update(translated)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


ACTIVATIONS = ("all", "lean", "inputs")  # what training keeps of each block, see `keep_activations`


def keep_activations(model: nn.Module, kept: str) -> None:
    """What training keeps for the backward pass of this project's networks in ``model``, which computes the same in any case.

    "all": what torch keeps. "lean": no concatenation, and no frozen norm's input. "inputs": of each block its input alone, from which it is
    computed again (activation checkpointing): less memory, a third more time.
    """
    if kept not in ACTIVATIONS:
        raise unknown("what training keeps", kept, ACTIVATIONS)
    for module in model.modules():
        if isinstance(module, ConvNormAct):
            module.lean = kept == "lean"
        elif isinstance(module, StagedBackbone):
            module.checkpointing = kept == "inputs"


def initialize_convs(module: nn.Module, init: Callable[[Tensor], None]) -> None:
    """Applies ``init`` to the weight of every convolution but those that predict sampling offsets, which start at zero."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, DeformConv2d)):
            init(m.weight)
    for m in module.modules():
        if isinstance(m, DeformConv2d):
            m.reset_offset()
