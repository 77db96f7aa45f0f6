"""torchvision: RegNetX and RegNetY (three of them of other widths, see `backbones.regnet`) and MobileNetV2."""

import re
from typing import Any

import torchvision
from torchvision.models.feature_extraction import create_feature_extractor

from .core import IMAGENET_RGB, Network, Source, without_outer

_NODES = {
    "regnet": [f"trunk_output.block{i}" for i in (1, 2, 3, 4)],
    "mobilenetv2": ["features.3", "features.6", "features.13", "features.17"],
}


def network(name: str, options: dict[str, Any]) -> tuple[Network, str] | None:
    """torchvision's own, without its classifier."""
    own = "mobilenet_v2" if name == "MobileNetV2" else re.sub("[-.]", "_", name.lower().replace(".0gf", "gf"))
    own = own.replace("regnetx", "regnet_x").replace("regnety", "regnet_y")
    builder = getattr(torchvision.models, own, None)
    if builder is None:
        return None
    nodes = _NODES["mobilenetv2" if name == "MobileNetV2" else "regnet"]
    extractor = create_feature_extractor(builder().eval(), nodes)  # nothing behind the last node is left in it
    return Network(extractor, lambda image: list(extractor(image).values())), f"torchvision {torchvision.__version__}"


SOURCE = Source(
    "torchvision",
    "BSD-3-Clause",
    {"regnet": "torchvision", "mobilenetv2": "torchvision"},
    lambda name: IMAGENET_RGB,
    lambda data: ("state_dict", "model"),
    network,
    without_outer,
)
