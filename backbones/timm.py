"""Any network of timm (Wightman, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models) that is a chain of stages.

timm itself builds the network, as its ``features_only`` model. Its modules are put into the stages "stem" and "res2" to "res5" by its
``feature_info``: the features are the same bit by bit. These networks are refused with a reason: those without features at strides 4, 8,
16 and 32 (plain ViTs), those for images of a single size, and those whose features do not come from a chain. Batch norms become the norms
that are asked for; other norms are part of the network and stay. Names are timm's behind "timm/", with or without the tag of weights, as in
"timm/convnext_tiny.fb_in22k". timm is optional, and imported where it is used.
"""

import copy
import functools
import importlib
import logging
import re
from typing import Any, Iterator, Mapping, NamedTuple, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from .errors import UserError, one_line, unknown
from .fpn import common_options, register
from .layers import STAGES, Options, StagedBackbone, build_norm, hold_sequence_norms, spec_of
from .meta import on_meta

PREFIX = "timm/"
# its own classes for these only add hooks that detection has no use for: the network is a chain all the same
_CHAINS = ("EfficientNetFeatures", "MobileNetV3Features")
# options that let transformers of fixed size accept any size, if they can
_ANY_SIZE: tuple[dict[str, bool], ...] = ({}, {"strict_img_size": False})
# buffers that older versions saved, and that are computed now
_COMPUTED = re.compile(r"\.(num_batches_tracked|attn_mask|relative_position_index|relative_coords_table)$")
_OLDEST = (1, 0, 24)  # those before it cannot be built without memory
_SIZES = ((256, 320), (288, 224))  # images that a network must take


def _timm() -> Any:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        said = f"networks named {PREFIX}... need timm, which cannot be imported ({error}): pip install 'backbones[timm]'"
        raise UserError(said, "missing-package") from None
    if tuple(map(int, re.findall(r"\d+", timm.__version__)[:3])) < _OLDEST:
        said = f"timm {timm.__version__} is too old: version {'.'.join(map(str, _OLDEST))} or newer is required: pip install -U timm"
        raise UserError(said, "missing-package")
    return timm


class NormAct(nn.Module):
    """A norm, and the dropout and activation that timm keeps inside its batch norms."""

    def __init__(self, norm: nn.Module, drop: nn.Module, act: nn.Module):
        super().__init__()
        self.norm, self.drop, self.act = norm, drop, act

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.drop(self.norm(x)))
        return y


class ChannelsLast(nn.ModuleDict):
    """A stage of modules that map (N, H, W, C), but as (N, C, H, W) from outside. The ``first`` one gets an image directly."""

    def __init__(self, first: bool):
        super().__init__()
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            x = x.permute(0, 2, 3, 1)
        for module in self.values():
            x = module(x)
        return x.permute(0, 3, 1, 2)


def _with_norms(module: nn.Module, norm: str) -> nn.Module:
    """``module`` with `NormAct` for every batch norm, of the same initial values, decay and epsilon."""
    if isinstance(module, nn.BatchNorm2d):
        new = build_norm(norm, module.num_features)
        own = new.state_dict()
        new.load_state_dict({key: value for key, value in module.state_dict().items() if key in own}, strict=False)
        for key in ("eps", "momentum"):
            if hasattr(new, key):
                setattr(new, key, getattr(module, key))
        return NormAct(new, getattr(module, "drop", nn.Identity()), getattr(module, "act", nn.Identity()))
    for name, child in module.named_children():
        setattr(module, name, _with_norms(child, norm))
    return module


class _About(NamedTuple):
    """What is known of a network before it is built."""

    options: dict[str, Any]  # of timm's ``create_model``
    owners: dict[str, str]  # module of the ``features_only`` model -> stage
    shapes: dict[str, ShapeSpec]
    names: dict[str, str]  # key of the ``features_only`` model -> ours
    keys: tuple[str, ...]  # of the whole network, classifier included
    classifier: tuple[str, ...]  # timm's names of its last layers


def _created(network: str, **options: Any) -> Any:
    try:
        return _timm().create_model(network, pretrained=False, **options)
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        asked = ", ".join(f"{key} {value}" for key, value in options.items() if key != "features_only")
        raise UserError(f"timm cannot build {PREFIX}{network} with {asked or 'features'}: {one_line(error)}", "unsupported") from error


def _staged(net: Any, owners: Mapping[str, str], norm: str) -> dict[str, nn.Module]:
    """The stages made of the modules of a ``features_only`` model."""
    last = getattr(net, "output_fmt", "NCHW") == "NHWC"
    stages: dict[str, nn.Module] = {name: ChannelsLast(name == STAGES[0]) if last else nn.Sequential() for name in STAGES}
    for name, module in list(net.items()):
        if name in owners:
            stages[owners[name]].add_module(name, _with_norms(module, norm))
    return stages


@functools.lru_cache(maxsize=64)
def _about(network: str) -> _About:
    """Raises UserError for a network that cannot be a backbone."""
    refused = functools.partial(UserError, code="unsupported")
    with on_meta():
        whole = _created(network)
        net = _created(network, features_only=True)
        options: dict[str, Any] = {"features_only": True}
        if type(net).__name__ in _CHAINS:
            options["feature_cfg"] = {"feature_cls": "list", "flatten_sequential": True}
            net = _created(network, **copy.deepcopy(options))  # a copy, because timm removes entries
    strides = net.feature_info.reduction()
    if not {4, 8, 16, 32} <= set(strides):
        raise refused(f"{PREFIX}{network} has features at strides {', '.join(map(str, strides))}: detectors need 4, 8, 16 and 32")
    if type(net).__name__ != "FeatureListNet" or net.concat:
        raise refused(f"{PREFIX}{network} is not a chain of stages: timm extracts its features with {type(net).__name__}")
    owners = dict(_owners(net, strides))
    reasons = []
    for more in _ANY_SIZE:
        try:
            with on_meta():
                stages = _staged(_created(network, **copy.deepcopy(options), **more), owners, "BN")
                shapes = [_shapes(stages, size) for size in _SIZES]
            break
        except UserError as error:
            reasons.append(error)
    else:
        raise refused(f"{PREFIX}{network} does not accept images of any size: {reasons[0]}") from reasons[0]
    if shapes[0] != shapes[1]:
        raise refused(f"{PREFIX}{network} returns features whose sizes are not proportional to the image's")
    classifier = getattr(_timm().get_pretrained_cfg(network), "classifier", None) or "fc"  # two names where it is distilled
    last = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return _About({**options, **more}, owners, shapes[0], dict(_names(stages)), tuple(whole.state_dict()), last)


def _names(stages: Mapping[str, nn.Module]) -> Iterator[tuple[str, str]]:
    """(key of the ``features_only`` model, ours) of every entry: ours has the stage before it, and a `NormAct`'s norm by name."""
    for stage, module in stages.items():
        units = {name for name, inner in module.named_modules() if isinstance(inner, NormAct)}
        for key in module.state_dict():
            module_name, _, entry = key.rpartition(".")
            unit = module_name.removesuffix(".norm")
            yield f"{unit}.{entry}" if unit in units and unit != module_name else key, f"{stage}.{key}"


def _owners(net: Any, strides: Sequence[int]) -> Iterator[tuple[str, str]]:
    """The stage of each module: a stage ends with the module that gives its feature; the stem, where it gives none, before that of "res2"."""
    taps = {name: strides[i] for i, name in enumerate(net.return_layers)}
    stage, waiting = 0, 2 in strides
    for name in net:
        if stage == 0 and not waiting and taps.get(name) == 4:
            stage = 1
        yield name, STAGES[stage]
        if taps.get(name) == 2 ** (stage + 1):
            stage += 1
            if stage == len(STAGES):
                return


def _shapes(stages: Mapping[str, nn.Module], size: tuple[int, int]) -> dict[str, ShapeSpec]:
    x, result = torch.empty(1, 3, *size, device="meta"), {}
    for name, stage in stages.items():
        try:
            x = stage.eval()(x)
        except (AssertionError, RuntimeError, ValueError) as error:
            raise UserError(str(error) or f"its stage {name} fails on {size[0]}x{size[1]}") from error
        if name == STAGES[0] and not _is_map(x, size):
            result[name] = ShapeSpec()  # inner format of some transformers, only for the next module
            continue
        if not _is_map(x, size):
            shape = "x".join(map(str, x.shape[1:])) if isinstance(x, Tensor) else type(x).__name__
            raise UserError(f"for {size[0]}x{size[1]} its stage {name} returns {shape}")
        result[name] = ShapeSpec(channels=x.shape[1], stride=size[0] // x.shape[2])
    return result


def _is_map(x: Any, size: tuple[int, int]) -> bool:
    """Whether it is a feature map (N, C, H, W) with a single stride for an image of that ``size``."""
    if not isinstance(x, Tensor) or x.dim() != 4:
        return False
    (height, rest), (width, other) = (divmod(side, max(count, 1)) for side, count in zip(size, x.shape[2:]))
    return height == width and rest == other == 0


class TimmNetwork(StagedBackbone):
    """A network of timm: emits "stem" (of stride 2 or 4), "res2" (4), "res3" (8), "res4" (16) and "res5" (32).

    It has no deformable stages, and dilates the last one where timm can. Sides of images must be multiples of the deepest stride.

    Args:
        network: timm's name of it, with or without a tag.
        drop_path: rate of stochastic depth in training.
        common: `Options`.
    """

    layouts = native_layouts = ("timm",)
    __jit_ignored_attributes__ = ["classifier", "released_images"]  # patterns, of which torch.jit.script knows no type

    def __init__(self, network: str, *, drop_path: float = 0.0, **common: Any):
        super().__init__()
        options = Options(**common)
        self.network, about = network, _about(network)
        if any(options.deform_on_per_stage):
            raise UserError(f"{PREFIX}{network} has no deformable stages: set DEFORM_ON_PER_STAGE to False, four times", "unsupported")
        more = copy.deepcopy(about.options)
        if options.in_channels != 3:
            more["in_chans"] = options.in_channels
        if drop_path:
            more["drop_path_rate"] = drop_path
        dilates = options.plans()[-1].stride == 1
        if dilates:
            more["output_stride"] = 16
        for name, stage in _staged(_created(network, **more), about.owners, options.norm).items():
            shape = about.shapes[name]
            self.add_stage(name, stage, shape.channels or 0, 16 if dilates and name == STAGES[-1] else shape.stride or 0)
        if options.norm in ("FrozenBN", "EvalBN"):
            hold_sequence_norms(self, trained=options.norm == "EvalBN")
        if options.in_channels == 3:  # the first convolution has another name in this project's files
            first = "|".join(re.escape(key) for key in (about.keys[0], next(iter(about.names))))
            self.released_images = (re.compile(rf"^((module|model)\.)?({first})$"), "RGB")
        head = {key.rpartition(".")[0] or key for key in about.keys if self.translate_key(key, "timm") == key}
        self.classifier = re.compile(rf"({'|'.join(map(re.escape, sorted({*head, *about.classifier})))})(\.|$)")
        if STAGES[0] in (options.out_features or ()) and about.shapes[STAGES[0]].channels is None:
            raise UserError(f"{PREFIX}{network} has no feature 'stem'. Allowed: {', '.join(STAGES[1:])}.", "unknown-name")
        self.finish(options, divisible=True)

    def translate_key(self, key: str, layout: str) -> str:
        names = _about(self.network).names
        # timm's models have "stages.0" for "stages_0"; TResNet's "body." is gone already, as wrappers are
        candidates = (key, key.replace(".", "_", 1), f"body_{key}")
        return next((names[candidate] for candidate in candidates if candidate in names), key)

    def translate_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str = "", layouts: Sequence[str] = ()) -> dict[str, Tensor]:
        """As the base class's. Raises UserError for entries that the network lacks, because a file of a deeper network would fill it too."""
        result, about = super().translate_state_dict(state_dict, prefix, layouts), _about(self.network)
        tops, known = {key.partition(".")[0] for key in about.keys}, {*about.names.values(), *about.keys}
        inside = [key[len(prefix) :] for key in result if key.startswith(prefix)]
        strange = [key for key in inside if key.partition(".")[0] in tops and key not in known and not self.classifier.match(key)]
        strange = [key for key in strange if not _COMPUTED.search(key)]
        if strange:
            said = f"{PREFIX}{self.network} has no place for {len(strange)} entries of the file, such as {strange[0]}"
            raise UserError(f"{said}: it belongs to another network", "misfit-weights")
        return result


TimmSpec = spec_of(TimmNetwork)


@functools.cache
def _known() -> frozenset[str]:
    """timm's names, with and without tags."""
    return frozenset((*_timm().list_models(), *_timm().list_models(include_tags=True)))


class _Specs(Mapping[str, Any]):
    """A row for each name that timm knows. Raises UserError for an unknown name with the prefix."""

    def __getitem__(self, name: str) -> Any:
        if not name.startswith(PREFIX):
            raise KeyError(name)
        network, library = name[len(PREFIX) :], _timm()
        if network not in _known():
            others = [PREFIX + other for other in library.list_models(include_tags="." in network)]
            raise unknown("backbone", name, others, listed='backbones zoo list "timm/*"')
        return TimmSpec(network)

    def __iter__(self) -> Iterator[str]:
        return (PREFIX + network for network in _timm().list_models(include_tags=True))

    def __len__(self) -> int:
        return sum(1 for _ in self)


SPECS = _Specs()


def images(name: str) -> dict[str, Any]:
    """What the weights that timm has for a name expect: RGB, and mean and deviation of values from 0 to 255."""
    config = _timm().get_pretrained_cfg(name.removeprefix(PREFIX))
    if config is None:
        return {}
    mean, std = ([round(255 * value, 4) for value in values] for values in (config.mean, config.std))
    return {"format": "RGB", "pixel_mean": mean, "pixel_std": std}


def pretrained(name: str) -> dict[str, Any] | None:
    """What timm states about its weights for a name; None if it has none.

    ``name`` with the tag (of the default weights where ``name`` has none), ``hub`` (id on the Hugging Face Hub), ``file`` there, ``url``,
    ``licence``, ``classes``, and ``preprocessing`` as `images` gives it; what timm does not state is left out. It states no accuracy. Raises
    UserError for a name that timm does not know.
    """
    config = _timm().get_pretrained_cfg(name.removeprefix(PREFIX)) if name in SPECS else None
    if config is None or not config.has_weights:
        return None
    said = {
        "hub": config.hf_hub_id,
        "file": config.hf_hub_filename,
        "url": config.url,
        "licence": config.license,
        "classes": config.num_classes,
    }
    about = {key: value for key, value in said.items() if value}
    return {"name": f"{PREFIX}{config.architecture}.{config.tag}", **about, "preprocessing": images(name)}


def build(cfg: CfgNode, input_shape: ShapeSpec) -> TimmNetwork:
    """The network that ``cfg.MODEL.TIMM`` asks for."""
    node = cfg.MODEL.TIMM
    if cfg.MODEL.TIMM.NAME not in SPECS:
        raise UserError(f"MODEL.TIMM.NAME is {node.NAME!r}: it must begin with {PREFIX}", "value", "MODEL.TIMM.NAME", f"{PREFIX}{node.NAME}")
    network = TimmNetwork(**vars(SPECS[node.NAME]), drop_path=node.DROP_PATH, **common_options(cfg, node, input_shape))
    if node.NORM != "FrozenBN" and not any(isinstance(module, NormAct) for module in network.modules()):
        logging.getLogger(__name__).warning(f"MODEL.TIMM.NORM {node.NORM} has no effect: {node.NAME} has no batch norms, and keeps its own")
    return network


FAMILY = register("timm", TimmNetwork, SPECS, build, variant_key="MODEL.TIMM.NAME", prefix=PREFIX, pretrained=pretrained)
