"""Whether a file's weights are meant for a model: trained with the same images and conventions. And its keys, in this project's names."""

import re
from typing import Any, Dict, Iterator

import numpy as np
from torch import nn

from ..detectors import LastStageROIHeads
from ..errors import UserError
from ..layouts import without_wrappers


def check_meant_for(model: nn.Module, checkpoint: Dict[str, Any], path: str, hint: str) -> None:
    """Raises UserError for weights that were trained with other images, or in another network of the same shapes: only the AP would tell.

    ``hint`` says how to load them all the same.
    """
    for reason in (*_of_images(model, checkpoint.get("preprocessing")), *_of_conventions(model, checkpoint), *_of_released(model, checkpoint)):
        raise UserError(f"checkpoint {path!r} {reason}. {hint}", "misfit-weights")


def _of_images(model: nn.Module, stated: Any) -> Iterator[str]:
    if not hasattr(model, "pixel_mean") or not isinstance(stated, dict):
        return
    form, mean, std = (stated.get(key) for key in ("format", "pixel_mean", "pixel_std"))
    ours: Any = model
    pairs = {
        "INPUT.FORMAT": (form, getattr(model, "input_format", form)),
        "MODEL.PIXEL_MEAN": (mean, ours.pixel_mean.flatten().tolist()),
        "MODEL.PIXEL_STD": (std, ours.pixel_std.flatten().tolist()),
    }
    wanted = [f'{key} "{theirs}"' for key, (theirs, mine) in pairs.items() if not _same(theirs, mine)]
    if wanted:
        yield f"expects other images than the config gives it: set {' '.join(wanted)}"


def _same(a: Any, b: Any) -> bool:
    try:
        return a == b or (len(a) == len(b) and bool(np.allclose(np.asarray(a, float), b, rtol=1e-4)))
    except (TypeError, ValueError):
        return False


def conventions_of(model: nn.Module) -> Dict[str, str]:
    """What the shapes of a model's weights do not say about their use: config key -> value."""
    return {key: value for module in model.modules() for key, value in getattr(module, "conventions", {}).items()}


def _of_conventions(model: nn.Module, checkpoint: Dict[str, Any]) -> Iterator[str]:
    stated = checkpoint.get("conventions")
    for key, value in conventions_of(model).items():
        theirs = stated.get(key, value) if isinstance(stated, dict) else value
        if theirs != value:
            yield f"was trained with {key} {theirs!r}, but the config has {value!r}: set {key} {theirs}"


def _of_released(model: nn.Module, checkpoint: Dict[str, Any]) -> Iterator[str]:
    """Released files do not say which images they were trained with; their keys say whose they are."""
    form = getattr(model, "input_format", None)
    for backbone in model.modules():
        keys, order = getattr(backbone, "released_images", (re.compile(""), form))
        if form and order and order != form and any(keys.search(key) for key in checkpoint["model"]):
            yield (
                f"holds weights as released, for {order} images, but INPUT.FORMAT is {form!r}: set it and the means in that order, "
                "or turn the weights by `python -m convert`"
            )


def overrides_of(checkpoint: Dict[str, Any]) -> str:
    """A sentence on the config that a converted file asks for; empty if it asks for none."""
    provenance = checkpoint.get("provenance")
    overrides = provenance.get("overrides") if isinstance(provenance, dict) else None
    if not overrides or not isinstance(overrides, list) or not all(isinstance(item, (str, int, float)) for item in overrides[:20]):
        return ""
    return f"The file says that its config needs {' '.join(map(str, overrides[:20]))[:300]}. "


def with_our_names(model: nn.Module, state_dict: Dict[str, Any]) -> Dict[str, Any]:
    """Removes the prefixes of wrappers, adds the backbone's where it is missing, and translates released key names."""
    state_dict = without_wrappers(state_dict)
    for prefix, backbone in model.named_modules():
        if not hasattr(backbone, "translate_state_dict"):
            continue
        prefix += "." if prefix else ""
        own = {key.rpartition(".")[0] for key in backbone.state_dict()}  # its layers: a weight that one of them lacks is the backbone's too
        if prefix and not any(key.startswith(prefix) for key in state_dict):
            # the file is of the bare network, or of a model with the network right under "backbone."
            outer = "backbone." if any(key.startswith("backbone.") for key in state_dict) else ""
            bare = backbone.translate_state_dict({key[len(outer) :]: value for key, value in state_dict.items() if key.startswith(outer)})
            bare = {prefix + key if key.rpartition(".")[0] in own else outer + key: value for key, value in bare.items()}
            state_dict = {**{key: value for key, value in state_dict.items() if not key.startswith(outer)}, **bare}
        state_dict = backbone.translate_state_dict(state_dict, prefix)
    for prefix, heads in model.named_modules():
        if isinstance(heads, LastStageROIHeads):
            moved = re.compile(rf"^(backbone\.(bottom_up\.)?)?{heads.stage}\.")
            state_dict = {moved.sub(f"{prefix}.res5.", key): value for key, value in state_dict.items()}
    return state_dict
