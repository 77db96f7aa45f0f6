"""The table of all networks by name, and the networks in plain Python."""

import contextlib
import dataclasses
import fnmatch
import functools
import inspect
import re
from typing import Any, Callable, Mapping

from omegaconf import OmegaConf
from torch import Tensor, nn

from .errors import UserError, unknown
from .layers import StagedBackbone, without_wrappers
from .meta import on_meta


@dataclasses.dataclass(frozen=True)
class Family:
    """One family: ``network(**spec, **options)`` builds any of its ``specs``; ``build(cfg, input_shape)`` builds what a config asks for."""

    name: str  # as in its builders' names: build_<name>_backbone
    network: type[StagedBackbone]
    specs: Mapping[str, Any]  # spec name -> frozen dataclass of the network's structural arguments
    build: Callable[..., StagedBackbone]
    variant_key: str = ""  # the config key that names the spec, where there is more than one
    prefix: str = ""  # of all its names, where they are another library's: only patterns that begin with it list them
    # what is released for a network, where its library says so: ``name``, ``hub``, ``url``, ``licence``, ``preprocessing``
    pretrained: Callable[[str], dict[str, Any] | None] = lambda name: None

    @property
    def stages(self) -> tuple[str, ...]:
        return self.network.stages


FAMILIES: dict[str, Family] = {}
BUILDERS: dict[str, Family] = {}  # by the name of each registered builder: MODEL.BACKBONE.NAME


def is_network(name: str) -> bool:
    return any(name in family.specs for family in FAMILIES.values())


def family_of(name: str) -> Family:
    for family in FAMILIES.values():
        if isinstance(name, str) and name in family.specs:
            return family
    if full_name(name):
        raise UserError(f"unknown backbone: {name!r}. Did you mean {full_name(name)!r}?", "unknown-name", "--backbone", full_name(name))
    raise unknown("backbone", name, list_backbones(), listed="backbones zoo list")


def full_name(name: str) -> str:
    """The network that is meant by its name without its family's prefix, such as timm's resnet50, or detectron2's R-50; "" where none is."""
    if not isinstance(name, str):
        return ""
    resnet = re.fullmatch(r"r(?:es-?net)?[-_]?(\d+)", name.casefold())
    name = f"resnet{resnet[1]}" if resnet else name
    for family in FAMILIES.values():
        with contextlib.suppress(UserError):  # which a library's names raise, with the nearest of them
            if family.prefix and not name.startswith(family.prefix) and family.prefix + name in family.specs:
                return family.prefix + name
    return ""


def list_backbones(pattern: str = "*") -> list[str]:
    """Names of all networks that match a shell pattern such as ``"*MobileNet*"``; timm's for those that begin so, ``"timm/*convnext*"``."""
    families = [family for family in FAMILIES.values() if pattern.startswith(family.prefix)]
    return [name for family in families for name in family.specs if fnmatch.fnmatchcase(name, pattern)]


def get_spec(name: str) -> Any:
    """The row of that network: a frozen dataclass of its structure, with widths in channels.

    The papers of the families are on the front page. Raises UserError for an unknown name.
    """
    return family_of(name).specs[name]


def create(name: str, **overrides: Any) -> StagedBackbone:
    """A bare backbone with random weights, and with detectron2's ``Backbone`` API.

    It maps images (N, 3, H, W) to a dict of features, (N, channels, H / stride, W / stride) each; `StagedBackbone.output_shape` has their
    channels and strides.

    Args:
        name: one of `list_backbones`.
        overrides: keyword arguments of the family's class: ``out_features``, ``norm``, ``freeze_at``, ``in_channels``, and any field of
            its spec.

    Raises UserError for a name or an argument that does not exist.

    Examples:
        >>> create("V-39-eSE", norm="BN", out_features=("stage3", "stage4", "stage5"))
    """
    family = family_of(name)
    allowed = inspect.signature(family.network).parameters
    for key in overrides:
        if key not in allowed:
            raise unknown(f"argument of {family.network.__name__}", key, allowed)
    # a Python config has lists of its own kind
    plain = {key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value for key, value in overrides.items()}
    return family.network(**{**vars(family.specs[name]), **plain})


def translate(name: str, state_dict: Mapping[str, Tensor], layout: str | None = None, **overrides: Any) -> dict[str, Tensor]:
    """A released state dict of that network, in any known layout and prefix, with our key names.

    ``layout`` is one of the family's ``layouts``; by default the one that fits is found. The tensors stay as they are, so the network
    expects the source's channel order and preprocessing (``python -m convert`` changes the order). Entries outside the backbone (a
    detector's heads, a classifier) are left out. ``overrides`` are those of `create`. Raises UserError where anything of the network is
    missing, of another shape, or anything else in its place; lists it.
    """
    layouts = family_of(name).network.layouts
    if layout is not None and layout not in layouts:
        raise unknown(f"layout of {name}", layout, layouts)
    attempts = [attempt(name, state_dict, candidate, overrides) for candidate in ([layout] if layout else layouts)]
    result, wrong = min(attempts, key=lambda result_and_wrong: len(result_and_wrong[1]))
    if wrong:
        raise UserError(f"not a state dict of {name}, {len(wrong)} entries differ: {'; '.join(wrong[:20])}{'; ...' if len(wrong) > 20 else ''}")
    return result


@functools.lru_cache(maxsize=128)
def _on_meta(name: str, **overrides: Any) -> StagedBackbone:
    """The network without its memory, to look at; a file may be compared with every network there is."""
    with on_meta():
        return create(name, **overrides)


def attempt(name: str, state_dict: Mapping[str, Tensor], layout: str, overrides: Mapping[str, Any]) -> tuple[dict[str, Tensor], list[str]]:
    """`translate` of one layout: (the state dict as it comes out, what is wrong with it, a line an entry)."""
    whole = state_dict.get("model", state_dict)
    state_dict = without_wrappers(whole if isinstance(whole, Mapping) else state_dict)
    prefix = next((p for p in ("backbone.bottom_up.", "backbone.") if any(key.startswith(p) for key in state_dict)), "")
    # a batch norm takes whatever counters the file has; the state dict fits the other norms all the same
    norm = "BN" if any(key.endswith("num_batches_tracked") for key in state_dict) else "FrozenBN"
    own = _on_meta(name, **{"norm": norm, **{key: tuple(value) if isinstance(value, list) else value for key, value in overrides.items()}})
    inside = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    inside = {key: value for key, value in inside.items() if not own.classifier.match(key)}
    try:
        result = own.complete(own.translate_state_dict(inside, layouts=(layout,)), layout)
    except UserError as error:
        return {}, [str(error)] * len(inside)
    return result, misfits(result, own, "num_batches_tracked$")


def misfits(given: Mapping[str, Tensor], model: nn.Module, ignored: str) -> list[str]:
    """What of a state dict is not of ``model``, a line an entry; keys in which ``ignored`` is found may be missing."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    wrong = [f"missing {key}" for key in expected if key not in given and not re.search(ignored, key)]
    wrong += [f"unknown {key}" for key in given if key not in expected]
    shapes = {key: tuple(value.shape) for key, value in given.items()}
    return wrong + [f"{key} is {shapes[key]}, not {shape}" for key, shape in expected.items() if shapes.get(key, shape) != shape]
