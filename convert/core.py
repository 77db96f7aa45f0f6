"""What all sources share: reading, identifying the network in a file, the proof, writing."""

import dataclasses
import itertools
import json
import math
import os
import re
from typing import Any, Callable, Mapping, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import Backbone, build_model
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor, nn

import backbones
from backbones import registry
from backbones.errors import UserError, first_of, one_line, unknown
from backbones.files import replacing
from backbones.layers import without_wrappers

# the same features in double precision: what differs then differs in structure, not in the order of sums
TOLERANCE = 1e-5
# counters that moving averages store with the weights
_COUNTERS = ("n_averaged", "steps")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
PROOF_SIZE = (1, 3, 160, 128)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What images the weights expect: order of the channels, and their mean and standard deviation in that order, of 0 to 255."""

    format: str
    pixel_mean: tuple[float, ...]
    pixel_std: tuple[float, ...]

    def __post_init__(self):
        for which, values in (("mean", self.pixel_mean), ("deviation", self.pixel_std)):
            if len(values) != 3 or not all(math.isfinite(v) and (which == "mean" or v > 0) for v in values):
                raise UserError(f"the {which} of the images is {list(values)}: it must be three numbers{' above 0' * (which != 'mean')}")

    def in_bgr(self) -> "Preprocessing":
        return self if self.format == "BGR" else Preprocessing("BGR", self.pixel_mean[::-1], self.pixel_std[::-1])

    def order_in_bgr(self) -> str:
        """What was done about the channel order in a file that expects BGR."""
        return "the first convolution turned from RGB to BGR" if self.format == "RGB" else "BGR, as in the source"


IMAGENET_RGB = Preprocessing("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
IMAGENET_BGR = IMAGENET_RGB.in_bgr()


@dataclasses.dataclass(frozen=True)
class Source:
    """One project's files of bare networks.

    Args:
        title: the project, as people know it.
        licence: of the weights it releases.
        layouts: its names for the weights, for each family that it has (see `registry.Family`).
        preprocessing: for the name of a network of ours.
        entries: for what a file holds, where it keeps its state dict, the usual name first.
        network: the project's own network for a network of ours and the keyword arguments of `create`, with its library's name and version;
            None where the library is not installed.
        tidy: unifies keys if the project has several forms; the network uses the result.
        stated: what a file itself says of its images, if it does.
    """

    title: str
    licence: str
    layouts: Mapping[str, str]
    preprocessing: Callable[[str], Preprocessing]
    entries: Callable[[dict[str, Any]], Sequence[str]]
    network: Callable[[str, dict[str, Any]], tuple["Network", str] | None] = lambda name, options: None
    tidy: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda weights: weights
    stated: Callable[[dict[str, Any]], Preprocessing | None] = lambda contents: None

    def entry(self, data: dict[str, Any], wanted: str = "") -> str:
        return entry_of(data, self.entries(data), wanted)

    def weights(self, data: dict[str, Any], wanted: str = "") -> dict[str, Tensor]:
        """The state dict in what a file holds, by default the usual one. Raises UserError if there is none."""
        weights = at(data, self.entry(data, wanted))
        tidied = self.tidy(weights)
        if len(tidied) != len(weights):
            raise UserError(f"the file holds {len(weights) - len(tidied)} tensors twice, under two names", "bad-file")
        return tidied


@dataclasses.dataclass(frozen=True)
class Network:
    """A network of a source's own: the module that its weights load into strictly, and a forward pass to the features at strides 4 to 32."""

    module: nn.Module
    features: Callable[[Tensor], Sequence[Tensor]]


@dataclasses.dataclass
class Converted:
    """A checkpoint of ours, before it is written."""

    model: dict[str, Tensor]
    preprocessing: Preprocessing
    provenance: dict[str, Any]
    classes: Sequence[str] = ()  # of a detector whose file names them


def tensors(state_dict: Any, what: str) -> dict[str, Tensor]:
    """The tensors of ``state_dict``; raises UserError for anything else in it."""
    if not isinstance(state_dict, Mapping) or not state_dict:
        found = "empty" if isinstance(state_dict, Mapping) else f"of type {_kind(state_dict)}"
        raise UserError(f"{what} is not a state dict: it is {found}", "bad-file")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, (Tensor, np.ndarray)):
            raise UserError(f"{what} is not a state dict: {key!r} is of type {_kind(value)}, not a tensor", "bad-file")
    result = {key: torch.as_tensor(value) for key, value in without_wrappers(state_dict).items() if key not in _COUNTERS}
    for key, value in result.items():
        fault = _fault(key, value)
        if fault:
            raise UserError(f"{what}: {key!r} {fault}")
    return result


def _fault(key: str, value: Tensor) -> str:
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return f"is {'quantized' if value.is_quantized else 'without values' if value.is_meta else 'sparse'}, not a plain tensor"
    if key.endswith("num_batches_tracked"):
        return ""
    if value.dtype not in _FLOATS:
        return f"is of type {value.dtype}, not floating point"
    if not value.isfinite().all():
        return "holds infinite numbers or NaN"
    return "holds negative variances" if key.endswith("running_var") and (value < 0).any() else ""


def state_dicts(data: dict[str, Any]) -> list[str]:
    """The entries of a file that are state dicts; "" alone where it is one itself."""

    def is_one(value: Any) -> bool:
        return isinstance(value, Mapping) and all(isinstance(k, str) and isinstance(v, (Tensor, np.ndarray)) for k, v in value.items())

    return [""] if is_one(data) else [key for key, value in data.items() if isinstance(key, str) and value and is_one(value)]


def entry_of(data: dict[str, Any], usual: Sequence[str], wanted: str = "") -> str:
    """The entry of a file to take, "" for the file itself: the one that is ``wanted``, else the first ``usual`` one, else the only one.

    Raises UserError if there is none, or several and none is usual.
    """
    found = state_dicts(data)
    if wanted and found == [""]:
        raise UserError(f"--key {wanted} does not apply: the file is a single state dict", "value", "--key")
    if wanted and wanted not in found:
        raise unknown("state dict in the file", wanted, found, key="--key")
    named = [key for key in usual if key in found] or ([] if found else [key for key in usual if key in data])
    if not wanted and not named and len(found) != 1:
        if found:
            names = ", ".join(found)
            raise UserError(f"the file holds several state dicts: {names}. Choose one with --key", "missing-argument", "--key", found[0])
        raise UserError(f"the file is not a state dict and does not contain one: it has {_kinds(data)}", "bad-file")
    return wanted or next(iter([*named, *found]))


def _kind(value: Any) -> str:
    return type(value).__name__.replace("_Inert", "object, unread")


def _kinds(data: Mapping[Any, Any]) -> str:
    shown = [f"{' '.join(str(key).split())[:40]} ({_kind(value)})" for key, value in data.items()]
    return first_of(shown, 8) or "nothing"


def at(data: dict[str, Any], entry: str) -> dict[str, Tensor]:
    return tensors(data[entry], f"the file's {entry}") if entry else tensors(data, "the file")


def under(data: dict[str, Any], *usual: str) -> dict[str, Tensor]:
    """The state dict in what a file holds, see `entry_of`."""
    return at(data, entry_of(data, usual))


def without_outer(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Removes the prefix of a module around the network, such as Lightning's; beside others', it becomes that of a backbone."""
    if not any(key.startswith("model.") for key in weights):
        return weights
    named = all(key.startswith("model.") for key in weights) or any(key.startswith("model.backbone.") for key in weights)
    prefix = "" if named else "backbone."
    return {prefix + key[len("model.") :] if key.startswith("model.") else key: value for key, value in weights.items()}


def bottom_up(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The backbone's part of a detector's weights, without its prefix, and the keys outside it; all weights if there is no such prefix."""
    prefix = next((p for p in ("backbone.bottom_up.", "backbone.") if any(key.startswith(p) for key in weights)), "")
    inside = {key[len(prefix) :]: value for key, value in weights.items() if key.startswith(prefix)}
    return inside, [key for key in weights if not key.startswith(prefix)]


def identify(
    source: Source, weights: Mapping[str, Tensor], candidates: Sequence[str] = (), options: Sequence[dict[str, Any]] = ({},)
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(name, keyword arguments of `create`, state dict) of our network that the weights fill exactly.

    Raises UserError if there is none, listing the differences from the nearest.
    """
    tried: list[tuple[str, list[str]]] = []
    for option in options:
        for name in candidates or [n for n in registry.list_backbones() if registry.family_of(n).name in source.layouts]:
            family = registry.family_of(name)
            if family.name not in source.layouts or (option and family.name != "regnet"):
                continue
            result, wrong = registry.attempt(name, weights, source.layouts[family.name], option)
            if not wrong:
                return name, option, result
            tried.append((name, wrong))
    if not tried and "timm" in source.layouts.values() and registry.family_of(candidates[0]).prefix:
        raise UserError(f"{candidates[0]} is timm's own network, whose files need no conversion: set MODEL.WEIGHTS to the file")
    if not tried:
        raise UserError(f"{source.title} has no {', '.join(candidates)}")
    name, wrong = min(tried, key=lambda attempt: len(attempt[1]))
    differ = f"compared with {name}, the nearest, {listed(wrong, 8)}"
    if len(wrong) > len(weights) / 2 and not candidates:  # it is something else: find out what
        _refuse_others(source, weights)
        modules = list(dict.fromkeys(key.split(".")[0] for key in weights))
        differ = f"it holds {len(weights)} tensors of {', '.join(modules[:12])}{', ...' if len(modules) > 12 else ''}"
    raise UserError(f"the file holds none of the networks that {source.title} and this project share; {differ}")


def _refuse_others(source: Source, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError for a network of ours with the key names of another source."""
    for name in registry.list_backbones():
        family = registry.family_of(name)
        options: Sequence[dict[str, Any]] = ({}, {"rounding": "torchvision"}) if family.name == "regnet" else ({},)
        for layout, option in itertools.product(family.network.layouts, options):
            if not registry.attempt(name, weights, layout, option)[1]:
                keys = "as its authors released it" if layout == "released" else f"with the key names of {layout}"
                raise UserError(f"the file is not from {source.title}: it holds {name} {keys}", "misfit-weights", "", layout)


def listed(wrong: Sequence[str], most: int) -> str:
    return f"{len(wrong)} entries differ: {'; '.join(wrong[:most])}{'; ...' if len(wrong) > most else ''}"


def as_it_is(contents: dict[str, Any], images: Mapping[str, Any], name: str) -> Converted:
    """A file of the network ``name``, in the order of channels that it has. Raises UserError for one of another network."""
    model = registry.translate(name, under(contents, "model", "state_dict"))
    proof = {"run": False, "why": "the network is the library's own"}
    expects = Preprocessing(images["format"], tuple(images["pixel_mean"]), tuple(images["pixel_std"]))
    provenance = {"network": name, "channel_order": f"{images['format']}, as in the source", "proof": proof}
    return Converted(under_bottom_up(model), expects, provenance)


def convert_backbone(
    source: Source, contents: dict[str, Any], preprocessing: Preprocessing | None = None, name: str = "", key: str = ""
) -> Converted:
    """A bare network's file as ours, in BGR, proved where the source's library is installed.

    ``preprocessing``: where neither the file states it nor it is the source's usual one. ``key``: the state dict to take, where it is not the
    usual one. Raises UserError for a file of another network, or where the proof fails.
    """
    weights, outside = bottom_up(source.weights(contents, key))
    rounded = "regnet" in source.layouts and source.layouts["regnet"] in ("torchvision", "timm")
    options = ({}, {"rounding": "torchvision"}) if rounded else ({},)
    name, option, ours = identify(source, weights, [name] if name else (), options)
    outside += [key for key in weights if registry.family_of(name).network.classifier.match(key)]
    expects = agreed(source.stated(contents), preprocessing) or source.preprocessing(name)
    if expects.format == "RGB":
        with torch.device("meta"):
            net = registry.create(name, **option)
        first = next(f"{key}.weight" for key, module in net.named_modules() if isinstance(module, nn.Conv2d))  # the first layer
        ours[first] = ours[first].flip(1)
    found = source.network(name, option)
    proof: dict[str, Any] = {"run": False, "why": f"the network of {source.title} is not installed here"}
    if found is not None:
        net = registry.create(name, **option)
        net.load_state_dict(ours, strict=False)
        proof = compare(*found, weights, net, flipped=expects.format == "RGB")
    provenance: dict[str, Any] = {"source": source.title, "network": name, "licence": source.licence, "proof": proof}
    provenance["channel_order"] = expects.order_in_bgr()
    provenance["taken"] = _taken(contents, source.entry(contents, key), outside)
    if option:
        provenance["overrides"] = ["MODEL.REGNET.ROUNDING", option["rounding"]]
    return Converted(under_bottom_up(ours), expects.in_bgr(), provenance)


def agreed(stated: Preprocessing | None, given: Preprocessing | None) -> Preprocessing | None:
    """What a file states of its images, else what the user says. Raises UserError if they differ."""
    if stated and given:
        said, told = ((*p.pixel_mean, *p.pixel_std) for p in (stated, given))
        if stated.format != given.format or not np.allclose(said, told, rtol=1e-3, atol=0):
            raise UserError(f"the file says that it expects {_words(stated)}, but --channels says {_words(given)}: omit the option")
    return stated or given


def _words(p: Preprocessing) -> str:
    return f"{p.format} images of mean {list(p.pixel_mean)} and deviation {list(p.pixel_std)}"


def _taken(contents: dict[str, Any], entry: str, outside: Sequence[str]) -> str:
    """What was used from a file, and what was not, in one line."""
    left = [f"{len(outside)} tensors outside the backbone ({', '.join(outside[:2])}{', ...' if len(outside) > 2 else ''})"] if outside else []
    if entry:
        others = [key for key in state_dicts(contents) if key != entry]
        left += [f"{key} (--key {key} takes it)" for key in others]
        plain = [key for key in contents if key != entry and key not in others]
        left += [_kinds({key: contents[key] for key in plain})] if plain else []
    return " ".join(f"{entry or 'the file, which is one state dict'}; left out: {', '.join(left) or 'nothing'}".split())


def under_bottom_up(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights under the names that a detector has for them, without the counters of batch norms."""
    return {f"backbone.bottom_up.{key}": value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def renamed(key: str, places: Sequence[tuple[str, Any]]) -> str:
    """``key``, renamed by the first pattern that matches its beginning."""
    for pattern, place in places:
        new, count = re.subn("^" + pattern, place, key)
        if count:
            return new
    return key


def check_fit(model: Mapping[str, Tensor], cfg: CfgNode, what: str) -> None:
    """Raises UserError if ``model`` does not fill the detector of ``cfg`` exactly."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        wrong = registry.misfits(model, build_model(cfg), r"^pixel_(mean|std)$|anchor_generator\.|num_batches_tracked$")
    if wrong:
        raise UserError(f"the file does not fit {what}, {listed(wrong, 12)}")


def compare(reference: Network, library: str, weights: Mapping[str, Tensor], ours: Backbone, flipped: bool) -> dict[str, Any]:
    """The largest difference of every feature between a source's network and ours, relative to the feature's largest value.

    ``weights`` are the source's; ``ours`` is already filled, and gets the channels reversed if ``flipped``. Raises UserError above
    TOLERANCE, or if the source's own network rejects the weights.
    """
    classifier = getattr(ours, "classifier", re.compile("(?!)"))  # of any number of classes, or none
    try:
        own = {key: value for key, value in weights.items() if not classifier.match(key)}
        missing, unexpected = reference.module.load_state_dict(own, strict=False)
    except RuntimeError as error:
        raise UserError(f"{library} itself rejects this file: {error}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked") and not classifier.match(key)]
    if missing or unexpected:
        counts = f"{len(missing)} entries missing, {len(unexpected)} unexpected"
        raise UserError(f"{library} itself rejects this file: {counts}: {', '.join([*missing, *unexpected][:5])}")
    image = torch.randn(PROOF_SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        reference.module.double().eval()
        expected = reference.features(image)
        actual = ours.double().eval()(image.flip(1) if flipped else image)
    differences = {}
    for (feature, a), b in zip(actual.items(), expected):
        if a.shape != b.shape:
            raise UserError(f"{feature} is {tuple(a.shape)}, but {tuple(b.shape)} in {library}")
        if not b.abs().max() > 0:
            raise UserError(f"the proof failed: {feature} is 0 everywhere or NaN in {library}")
        differences[feature] = float((a - b).abs().max() / b.abs().max())
    wrong = {feature: value for feature, value in differences.items() if not value <= TOLERANCE}  # so that NaN is wrong too
    if wrong:
        shown = ", ".join(f"{feature} by {value:.2g}" for feature, value in wrong.items())
        differ = f"features differ from those of {library}, {shown} of the largest value"
        raise UserError(f"the proof failed: {differ}; the tolerance is {TOLERANCE:g}")
    return {"run": True, "library": library, "largest_relative_difference": differences, "tolerance": TOLERANCE, "input": list(PROOF_SIZE)}


def write(converted: Converted, path: str) -> None:
    """Writes ``.pth`` or ``.safetensors``, whole or not at all: tensors, and beside them what they are, as text and numbers."""
    about = {
        "preprocessing": {key: list(value) if isinstance(value, tuple) else value for key, value in vars(converted.preprocessing).items()},
        "provenance": {**converted.provenance, "converted_by": f"backbones {backbones.__version__}"},
        **({"run": {"classes": list(converted.classes)}} if converted.classes else {}),  # where training writes them
    }
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with replacing(path) as partial, open(partial, "wb") as f:
            model = {key: value.contiguous().clone() for key, value in converted.model.items()}  # tensors that share memory are not written
            if path.endswith(".safetensors"):
                f.write(save(model, metadata={"format": "pt", "backbones": json.dumps(about)}))
            else:
                torch.save({"model": model, **about}, f)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:  # torch and safetensors have their own for a full disk
        reason = getattr(error, "strerror", None) or one_line(error)
        raise UserError(f"{path!r} cannot be written: {reason}") from error
