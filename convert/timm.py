"""timm: VoVNetV2, whose missing gates are filled so that nothing changes, RegNet and MobileNetV2; whole, headless or ``features_only``."""

import importlib.util
import re
from typing import Any

from torch import Tensor

from .core import IMAGENET_RGB, Network, Preprocessing, Source, without_outer


def own_name(name: str, options: dict[str, Any]) -> str | None:
    """timm's name of a network of ours: regnetx_032, regnety_008_tv, ese_vovnet39b; None if it has none."""
    if name == "MobileNetV2":
        return "mobilenetv2_100"
    match = re.fullmatch(r"RegNet([XY])-([\d.]+)([MG])F", name)
    vovnet = re.fullmatch(r"V-(\d+)((-slim)?(-dw)?)-eSE", name)
    if vovnet and not options:
        return f"ese_vovnet{vovnet[1]}b{vovnet[2]}".replace("-", "_")
    if not match:
        return None
    hundreds = round(float(match[2]) * (10 if match[3] == "G" else 0.01))  # of megaflops
    return f"regnet{match[1].lower()}_{hundreds:03d}" + ("_tv" if options.get("rounding") == "torchvision" else "")


def _found(name: str, options: dict[str, Any]) -> tuple[Any, str] | None:
    """timm and its name of a network of ours, where it is installed and has it."""
    own = own_name(name, options)
    if importlib.util.find_spec("timm") is None or own is None:
        return None
    import timm

    return (timm, own) if timm.is_model(own) else None


def network(name: str, options: dict[str, Any]) -> tuple[Network, str] | None:
    """timm's own, without a classifier."""
    found = _found(name, options)
    if found is None:
        return None
    timm, own = found
    module = timm.create_model(own, num_classes=0)
    return Network(module, lambda image: module.forward_intermediates(image, intermediates_only=True)[-4:]), f"timm {timm.__version__}"


def preprocessing(name: str) -> Preprocessing:
    """As timm itself says, where it is installed, of its default weights; else ImageNet's in RGB."""
    found = _found(name, {})
    config = found and found[0].get_pretrained_cfg(found[1])
    if config is None:
        return IMAGENET_RGB
    mean, std = (tuple(round(255 * value, 4) for value in values) for values in (config.mean, config.std))
    return Preprocessing("RGB", mean, std)


def tidy(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """``features_only`` writes stages_0 and stem_0 for stages.0 and stem.0."""
    return {re.sub(r"^(backbone\.)?(stem|stages|blocks)_(\d)\.", r"\1\2.\3.", key): value for key, value in without_outer(weights).items()}


SOURCE = Source(
    "timm",
    "Apache-2.0, unless the weights' own page says otherwise",
    {"vovnet": "timm", "regnet": "timm", "mobilenetv2": "timm"},
    preprocessing,
    lambda data: ("state_dict", "model"),
    network,
    tidy,
)
