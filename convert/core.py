"""What every source shares: reading, finding out which network a file holds, the proof, writing."""

import dataclasses
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
from backbones.errors import UserError
from backbones.files import replacing
from backbones.layers import without_wrappers

# the same features in double precision: what differs then differs in structure, not in the order of sums
TOLERANCE = 1e-5
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
        """What became of the channels' order in a file that takes BGR."""
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
        weights: finds the state dict in what a file holds; raises UserError where there is none.
        network: the project's own network for a network of ours and the keyword arguments of `create`, with its library's name and version;
            None where the library is not installed.
    """

    title: str
    licence: str
    layouts: Mapping[str, str]
    preprocessing: Callable[[str], Preprocessing]
    weights: Callable[[dict[str, Any]], Mapping[str, Tensor]]
    network: Callable[[str, dict[str, Any]], tuple["Network", str] | None] = lambda name, options: None


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


def tensors(state_dict: Any, what: str) -> dict[str, Tensor]:
    """``state_dict``, where it is one of tensors; raises UserError where it is not."""
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise UserError(f"{what} is not a state dict")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not isinstance(value, (Tensor, np.ndarray)):
            raise UserError(f"{what} is not a state dict: {key!r} is a {type(value).__name__}, not a tensor")
    result = {key: torch.as_tensor(value) for key, value in without_wrappers(state_dict).items()}
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


def under(data: dict[str, Any], *keys: str) -> Mapping[str, Tensor]:
    """The state dict under the first of ``keys`` that is there, or the file itself."""
    return tensors(next((data[key] for key in keys if key in data), data), "the file")


def identify(
    source: Source, weights: Mapping[str, Tensor], candidates: Sequence[str] = (), options: Sequence[dict[str, Any]] = ({},)
) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """(name, keyword arguments of `create`, state dict) of the network of ours that the weights fill exactly.

    Raises UserError where there is none, with what differs from the nearest.
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
    if not tried:
        raise UserError(f"{source.title} has no {', '.join(candidates)}")
    name, wrong = min(tried, key=lambda attempt: len(attempt[1]))
    differ = f"from {name}, the nearest, {listed(wrong, 8)}"
    raise UserError(f"this is none of the networks that {source.title} and this project share; {differ}")


def listed(wrong: Sequence[str], most: int) -> str:
    return f"{len(wrong)} entries differ: {'; '.join(wrong[:most])}{'; ...' if len(wrong) > most else ''}"


def convert_backbone(source: Source, contents: dict[str, Any], preprocessing: Preprocessing | None = None, name: str = "") -> Converted:
    """A bare network's file as ours, in BGR, proved where the source's library is installed.

    ``preprocessing``: where it is not the source's usual one. Raises UserError for a file of another network, or where the proof fails.
    """
    weights = source.weights(contents)
    rounded = "regnet" in source.layouts and source.layouts["regnet"] in ("torchvision", "timm")
    options = ({}, {"rounding": "torchvision"}) if rounded else ({},)
    name, option, ours = identify(source, weights, [name] if name else (), options)
    expects = preprocessing or source.preprocessing(name)
    if expects.format == "RGB":
        with torch.device("meta"):
            net = registry.create(name, **option)
        key = next(f"{key}.weight" for key, module in net.named_modules() if isinstance(module, nn.Conv2d))  # it meets the image
        ours[key] = ours[key].flip(1)
    found = source.network(name, option)
    proof: dict[str, Any] = {"run": False, "why": f"the network of {source.title} is not installed here"}
    if found is not None:
        net = registry.create(name, **option)
        net.load_state_dict(ours, strict=False)
        proof = compare(*found, weights, net, flipped=expects.format == "RGB")
    provenance: dict[str, Any] = {"source": source.title, "network": name, "licence": source.licence, "proof": proof}
    provenance["channel_order"] = expects.order_in_bgr()
    if option:
        provenance["overrides"] = ["MODEL.REGNET.ROUNDING", option["rounding"]]
    return Converted(under_bottom_up(ours), expects.in_bgr(), provenance)


def under_bottom_up(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights under the names that a detector has for them, without the counters of batch norms."""
    return {f"backbone.bottom_up.{key}": value for key, value in state_dict.items() if not key.endswith("num_batches_tracked")}


def renamed(key: str, places: Sequence[tuple[str, Any]]) -> str:
    """``key``, where the first of the patterns that its beginning matches puts it."""
    for pattern, place in places:
        new, count = re.subn("^" + pattern, place, key)
        if count:
            return new
    return key


def check_fit(model: Mapping[str, Tensor], cfg: CfgNode, what: str) -> None:
    """Raises UserError where ``model`` does not fill the detector of ``cfg`` exactly."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        wrong = registry.misfits(model, build_model(cfg), r"^pixel_(mean|std)$|anchor_generator\.|num_batches_tracked$")
    if wrong:
        raise UserError(f"the file does not fit {what}, {listed(wrong, 12)}")


def compare(reference: Network, library: str, weights: Mapping[str, Tensor], ours: Backbone, flipped: bool) -> dict[str, Any]:
    """The largest difference of every feature between a source's network and ours, relative to the feature's largest value.

    ``weights`` are the source's; ``ours`` is filled already, and takes the channels reversed where ``flipped``. Raises UserError above
    TOLERANCE, or where the source's own network does not take its weights.
    """
    missing, unexpected = reference.module.load_state_dict(dict(weights), strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    classifier = getattr(ours, "classifier", re.compile("(?!)"))
    unexpected = [key for key in unexpected if not classifier.match(key)]
    if missing or unexpected:
        counts = f"{len(missing)} entries missing, {len(unexpected)} unexpected"
        raise UserError(f"{library} itself does not take this file: {counts}: {', '.join([*missing, *unexpected][:5])}")
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
            raise UserError(f"the proof failed: {feature} is 0 everywhere, or no number, in {library}")
        differences[feature] = float((a - b).abs().max() / b.abs().max())
    wrong = {feature: value for feature, value in differences.items() if not value <= TOLERANCE}  # so that NaN is wrong too
    if wrong:
        shown = ", ".join(f"{feature} by {value:.2g}" for feature, value in wrong.items())
        differ = f"features differ from those of {library}, {shown} of the largest value"
        raise UserError(f"the proof failed: {differ}, where {TOLERANCE:g} is allowed")
    return {"run": True, "library": library, "largest_relative_difference": differences, "tolerance": TOLERANCE, "input": list(PROOF_SIZE)}


def write(converted: Converted, path: str) -> None:
    """Writes ``.pth`` or ``.safetensors``, whole or not at all: tensors, and beside them what they are, as text and numbers."""
    about = {
        "preprocessing": {key: list(value) if isinstance(value, tuple) else value for key, value in vars(converted.preprocessing).items()},
        "provenance": {**converted.provenance, "converted_by": f"backbones {backbones.__version__}"},
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
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        raise UserError(f"{path!r} cannot be written: {reason}") from error
