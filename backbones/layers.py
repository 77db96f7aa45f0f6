"""What two or more families share: options, norms, the conv unit, deformable convolution, and networks as chains of stages."""

import dataclasses
import functools
import inspect
import math
import re
from typing import Any, Callable, Mapping, NamedTuple, Pattern, Sequence

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torchvision import ops

from . import lean
from .errors import UserError, unknown

# detectron2's, usable in every key of a config that ends in NORM
COMMON_NORMS = ("", "FrozenBN", "BN", "SyncBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NORMS = (*COMMON_NORMS, "EvalBN")

STAGES = ("stem", "res2", "res3", "res4", "res5")  # of all families but VoVNet

# prefixes that data-parallel training, torch.compile and MMRazor add to a model's keys, and those that a detector adds to its backbone's
_WRAPPERS = re.compile(r"^((module|_orig_mod|architecture(\.model)?)\.)+")
_OUTER = re.compile(r"^((module|_orig_mod|architecture|model|backbone|bottom_up|body)\.)+")
_NOTHING = re.compile(r"(?!)")

Conv = Callable[..., nn.Module]  # what makes a convolution, with the arguments of ``nn.Conv2d``


def build_norm(norm: str, channels: int) -> nn.Module:
    """detectron2's norm of that name, or "EvalBN", `EvalBatchNorm2d`; "" gives the identity.

    "GN" uses 32 groups or, if 32 does not divide the channels, the largest smaller power of two that does (80 channels: 16).
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    if norm == "EvalBN":
        return EvalBatchNorm2d(channels)
    if norm == "GN":
        return nn.GroupNorm(math.gcd(32, channels), channels)
    return get_norm(norm, channels) or nn.Identity()


def rounded(width: float, multiple: int = 8) -> int:
    """The multiple nearest to a width, rounding halves up, and at least ``multiple``."""
    return max(multiple, int(width / multiple + 0.5) * multiple)


class EvalBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that never leaves evaluation mode: its statistics are those loaded, its weight and bias are trained.

    MMDetection's ``norm_eval=True``; `FrozenBatchNorm2d` trains neither.
    """

    def __init__(self, channels: int):
        super().__init__(channels)
        self.train(False)

    def train(self, mode: bool = True) -> "EvalBatchNorm2d":
        return super().train(False)


class EvalBatchNorm1d(nn.BatchNorm1d):
    """`EvalBatchNorm2d` for sequences (N, C, L)."""

    def train(self, mode: bool = True) -> "EvalBatchNorm1d":
        return super().train(False)


def hold_sequence_norms(module: nn.Module, trained: bool = False) -> None:
    """Makes batch norms of sequences `EvalBatchNorm1d`, because detectron2 freezes none; their weights are ``trained`` or frozen."""
    for norm in module.modules():
        if type(norm) is nn.BatchNorm1d:
            norm.__class__ = EvalBatchNorm1d
            norm.eval().requires_grad_(trained)


class DeformConv2d(ops.DeformConv2d):
    """Deformable convolution, v1 or (``modulated``) v2, that predicts its own offsets, by torchvision's operator, which every device has.

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
        if in_channels % deform_groups:
            raise UserError(f"deformable groups must divide the channels: {deform_groups} does not divide {in_channels}")
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.modulated = modulated
        self.offset_channels = 2 * deform_groups * kernel_size**2
        predicted = self.offset_channels * 3 // 2 if modulated else self.offset_channels
        self.offset = nn.Conv2d(in_channels, predicted, kernel_size, stride, padding, dilation)
        self.reset_offset()

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def reset_offset(self) -> None:
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        offset: Tensor = self.offset(x)
        mask: Tensor | None = None
        if self.modulated:
            mask = offset[:, self.offset_channels :].sigmoid()
            offset = offset[:, : self.offset_channels]
        y: Tensor = ops.deform_conv2d(x, offset, self.weight, self.bias, self.stride, self.padding, self.dilation, mask)
        return y


class StagePlan(NamedTuple):
    """How one stage behind the stem reduces its input, and what makes its 3x3 convolutions: the one that reduces, and all others."""

    stride: int
    reducing: Conv
    conv: Conv


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of every family's network besides its structure.

    Args:
        in_channels: channels of the image.
        out_features: the names to emit, by default all but the stem's; stages behind the deepest are not built.
        norm: a name in NORMS.
        deform_on_per_stage: of the four stages behind the stem, whether their spatial convolutions are deformable; ``deform_modulated`` makes
            them v2.
        res5_dilation: 2 for the last stage at stride 16, with dilated convolutions.
        freeze_at: how many stages to freeze, the stem being the first.
    """

    in_channels: int = 3
    out_features: Sequence[str] | None = None
    norm: str = "FrozenBN"
    deform_on_per_stage: Sequence[bool] = (False, False, False, False)
    deform_modulated: bool = False
    deform_num_groups: int = 1
    res5_dilation: int = 1
    freeze_at: int = 0

    def plans(self) -> list[StagePlan]:
        """The plans of the four stages behind the stem.

        With ``res5_dilation`` 2 the last stage keeps its input's size (DC5): it computes what it computed (but for gates, which see other
        means), at every pixel instead of every second, so that its weights serve as they are. Its reducing convolution therefore stays as
        dense as it was, where detectron2's ResNet spreads that one too.
        """
        if len(self.deform_on_per_stage) != 4:
            raise UserError(f"DEFORM_ON_PER_STAGE needs 4 values, one for each stage, not {list(self.deform_on_per_stage)}")
        if self.res5_dilation not in (1, 2):
            raise unknown("RES5_DILATION", self.res5_dilation, (1, 2))
        deformable = functools.partial(DeformConv2d, modulated=self.deform_modulated, deform_groups=self.deform_num_groups)
        convs = [deformable if on else nn.Conv2d for on in self.deform_on_per_stage]
        plans = [StagePlan(2, conv, conv) for conv in convs]
        if self.res5_dilation == 2:
            plans[-1] = StagePlan(1, convs[-1], dilated(convs[-1], 2))
        return plans


def dilated(conv: Conv, dilation: int) -> Conv:
    """What makes the convolutions of ``conv`` with their taps ``dilation`` pixels apart, padded to keep the size."""

    def make(*args: Any, padding: int, **kwargs: Any) -> nn.Module:
        return conv(*args, padding=padding * dilation, dilation=dilation, **kwargs)

    return make


class ConvNormAct(lean.KeepsActivations):
    """Convolution (padded to keep the size at stride 1), norm, activation. The convolution has a bias only where there is no norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        norm: str = "FrozenBN",
        act: Callable[[], nn.Module] = lambda: nn.ReLU(inplace=True),
        conv: Conv = nn.Conv2d,
    ):
        super().__init__()
        self.conv = conv(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, groups=groups, bias=norm == "")
        self.norm = build_norm(norm, out_channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():
            if self.keeps_less() and isinstance(self.norm, FrozenBatchNorm2d):
                return self._joined([x])
        y: Tensor = self.act(self.norm(self.conv(x)))
        return y

    @torch.jit.unused
    def keeps_less(self) -> bool:
        """Whether a backward pass will follow for which `lean` has an operation."""
        if self.activations != "lean" or not torch.is_grad_enabled():
            return False
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[no-untyped-call]
        return not traced and lean.fits(self.conv)

    @torch.jit.unused
    def of_pieces(self, pieces: list[Tensor]) -> Tensor:
        """The unit's output for the concatenation of ``pieces``, which need not be kept."""
        y: Tensor = self._joined(pieces) if self.keeps_less() else self(torch.cat(pieces, dim=1))
        return y

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        y: Tensor = self.act(lean.conv_norm(self.conv, self.norm, pieces))
        return y


def spec_of(network: type[nn.Module]) -> Any:
    """A frozen dataclass of a network's structural arguments, those that can be given by position: the type of the rows in a family's table."""
    parameters = [p for p in inspect.signature(network).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    fields = [(p.name, p.annotation, *([dataclasses.field(default=p.default)] if p.default is not p.empty else [])) for p in parameters]
    spec = dataclasses.make_dataclass(f"{network.__name__}Spec", fields, frozen=True)
    spec.__module__ = network.__module__  # where pickle looks for it
    return spec


def without_wrappers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without the prefixes of wrappers. Raises UserError if two entries get the same name."""
    result: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        _put(result, _WRAPPERS.sub("", key), key, value)
    return result


def _put(result: dict[str, Tensor], new: str, key: str, value: Tensor) -> None:
    if new in result:
        raise UserError(f"checkpoint holds {new!r} twice under different names; the second is {key!r}")
    result[new] = value


class StagedBackbone(lean.KeepsActivations, Backbone):
    """A chain of stages, each of which maps (N, C, H, W) to the next feature.

    A family's class names its ``stages``, in order, and takes `Options` as keyword arguments. Its constructor adds each stage with
    `add_stage` and closes with `finish`. ``load_state_dict`` takes released checkpoints; inside a detector, those of whole detectors, and so
    does detectron2's own checkpointer. `GatedCheckpointer` also takes a bare network's file for a detector, and ``.pyth`` files. Their layout
    is given by the other attributes below, and by overriding `translate_key` and `complete`.
    """

    stages: tuple[str, ...] = STAGES
    __constants__ = ["stages"]  # torch.jit.script reads it
    # the projects whose key names `translate_key` knows
    layouts: Sequence[str] = ("released",)
    # those whose weights expect images as in this project's configs: they load directly, others must be converted first
    native_layouts: Sequence[str] = ("released",)
    # keys of a released layout whose weights expect images in another order than this project's other configs give: (keys, order)
    released_images: tuple[Pattern[str], str] = (_NOTHING, "")
    # facts about the weights' use that their shapes do not show: saved with them, and compared when they are loaded
    conventions: dict[str, str] = {}
    # keys after the last feature, which detection does not need
    classifier: Pattern[str] = _NOTHING

    def __init_subclass__(cls) -> None:
        """Adds the options to the signature, by which overrides are checked."""
        own = [p for p in inspect.signature(cls.__init__).parameters.values() if p.kind is not p.VAR_KEYWORD]
        cls.__signature__ = inspect.Signature([*own[1:], *inspect.signature(Options).parameters.values()])

    def __init__(self) -> None:
        super().__init__()
        self.shapes: dict[str, ShapeSpec] = {}
        self.out_features: list[str] = []
        self.divisibility = 0

    def add_stage(self, name: str, stage: nn.Module, channels: int, stride: int) -> None:
        """Appends the next of the ``stages``; ``stride`` counts from the image."""
        assert name == self.stages[len(self.shapes)], f"{name} is not stage {len(self.shapes)} of {self.stages}"
        self.add_module(name, stage)
        self.shapes[name] = ShapeSpec(channels=channels, stride=stride)

    def finish(self, options: Options, divisible: bool) -> None:
        """Checks and sets the features to emit, drops the stages behind the last of them, freezes.

        ``divisible``: whether feature sizes agree with their strides only for images whose sides the deepest stride divides.
        """
        wanted = self.stages[1:] if options.out_features is None else options.out_features
        for name in wanted:
            if name not in self.stages:
                raise unknown("feature", name, self.stages)
        if not wanted:
            raise UserError(f"OUT_FEATURES is empty, so there are no features to return. Allowed: {', '.join(self.stages)}.")
        self.out_features = [name for name in self.stages if name in wanted]
        for name in self.stages[self.stages.index(self.out_features[-1]) + 1 :]:
            delattr(self, name)
        self.divisibility = self.shapes[self.out_features[-1]].stride if divisible else 0
        self.freeze(options.freeze_at)

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of each feature that it emits."""
        return {name: self.shapes[name] for name in self.out_features}

    @property
    def size_divisibility(self) -> int:
        return self.divisibility

    def freeze(self, freeze_at: int) -> None:
        """Freezes the first ``freeze_at`` stages, the stem being the first, and no others; 0 or less freezes nothing.

        Their parameters stop requiring gradients and their batch norms become ``FrozenBatchNorm2d``, or `EvalBatchNorm1d`.
        """
        count = len(self.stages)
        if freeze_at > count:
            raise UserError(f"FREEZE_AT {freeze_at} exceeds the number of stages, {count}: 0 freezes none, 1 the stem, {count} all")
        for name in self.stages[: max(freeze_at, 0)]:
            if hasattr(self, name):
                stage = getattr(self, name).requires_grad_(False)
                hold_sequence_norms(stage)
                setattr(self, name, FrozenBatchNorm2d.convert_frozen_batchnorm(stage))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Maps images (N, C, H, W) to the features asked for, by name, in order of depth."""
        outputs: dict[str, Tensor] = {}
        for name, stage in self.named_children():
            if name in self.stages:
                if torch.jit.is_scripting():
                    x = stage(x)
                else:
                    x = lean.checkpointed(stage, x) if self.computes_again() else stage(x)
                if name in self.out_features:
                    outputs[name] = x
        return outputs

    def translate_key(self, key: str, layout: str) -> str:
        """A key of a checkpoint in one of the `layouts` as ours; keys of other layouts are returned unchanged."""
        return key

    def complete(self, state_dict: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
        """Adds to a translated state dict what that layout's network lacks, so that ours computes the same."""
        return state_dict

    def translate_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str = "", layouts: Sequence[str] = ()) -> dict[str, Tensor]:
        """The entries under ``prefix`` with this network's key names, the others as they are; from the native ``layouts`` unless named.

        Drops batch counters where this network's norms keep none. Raises UserError if two entries get the same name.
        """
        own = set(self.state_dict())
        result: dict[str, Tensor] = {}
        for key, value in state_dict.items():
            new = key
            if key.startswith(prefix):
                relative = key[len(prefix) :]
                if relative not in own:
                    relative = _OUTER.sub("", relative)
                    for layout in layouts or self.native_layouts:
                        relative = self.translate_key(relative, layout)
                if relative.endswith("num_batches_tracked") and relative not in own:
                    continue
                new = prefix + relative
            _put(result, new, key, value)
        return result

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any) -> None:
        translated = self.translate_state_dict(state_dict, prefix)
        state_dict.clear()
        state_dict.update(translated)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def initialize_convs(module: nn.Module, init: Callable[[Tensor], object]) -> None:
    """Applies ``init`` to the weight of every convolution but those that predict sampling offsets, which start at zero."""
    for m in module.modules():
        if isinstance(m, (nn.Conv2d, DeformConv2d)):
            init(m.weight)
    for m in module.modules():
        if isinstance(m, DeformConv2d):
            m.reset_offset()
