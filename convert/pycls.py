"""pycls (https://github.com/facebookresearch/pycls): RegNetX and RegNetY, the files of its MODEL_ZOO.md."""

from typing import Any, Sequence

import detectron2
from detectron2.modeling.backbone import regnet

from backbones import registry

from .core import IMAGENET_BGR, Network, Source


def _entries(data: dict[str, Any]) -> Sequence[str]:
    # newer versions save the moving average beside the model, with the error of each
    errors = [data.get(key) for key in ("ema_err", "test_err")]
    average, plain = (error if isinstance(error, (int, float)) else 100.0 for error in errors)
    return ("ema_state" if "ema_state" in data and average < plain else "model_state",)


def network(name: str, options: dict[str, Any]) -> tuple[Network, str] | None:
    """detectron2's RegNet, which is pycls's under the same key names, with the classifier that the files have."""
    if options:
        return None
    spec = registry.get_spec(name)
    kinds = {"stem_class": regnet.SimpleStem, "stem_width": 32, "block_class": regnet.ResBottleneckBlock, "norm": "BN"}
    widths = {"depth": spec.depth, "w_a": spec.wa, "w_0": spec.w0, "w_m": spec.wm, "group_width": spec.group_width, "se_ratio": spec.se_ratio}
    module = regnet.RegNet(**kinds, **widths, out_features=["s1", "s2", "s3", "s4"])
    return Network(module, lambda image: list(module(image).values())), f"detectron2 {detectron2.__version__}, its RegNet"


SOURCE = Source("pycls", "MIT", {"regnet": "pycls"}, lambda name: IMAGENET_BGR, _entries, network)
