"""Efficient, detection-ready backbones for detectron2.

Importing this package registers every builder in detectron2's ``BACKBONE_REGISTRY`` and the offline ``digits`` data sets in its catalogues.
"""

import os
import sys
import warnings

if os.path.basename(sys.argv[0]) in ("-m", "backbones", "train_net.py"):  # this project's commands, during their slow imports
    _hook = sys.excepthook
    sys.excepthook = lambda kind, *error: print("interrupted", file=sys.stderr) if kind is KeyboardInterrupt else _hook(kind, *error)

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"backbones extends detectron2, which this Python does not have ({error}). It is not on PyPI under its own name. Build it with "
        "`pip install --no-build-isolation git+https://github.com/facebookresearch/detectron2`; on Linux with CPython 3.10 "
        "`pip install sal-detectron2` has it built. In a checkout of this project `make setup` does all of this."
    ) from None
try:
    import cv2  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"backbones needs OpenCV, which cannot be imported ({error}): `pip install opencv-python`, or `pip install opencv-python-headless` "
        "if libGL is missing"
    ) from None
with warnings.catch_warnings():  # fvcore scripts its losses as detectron2 imports them; other uses of scripting still warn
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
    from detectron2 import modeling as _  # noqa: F401

from . import detectors, maedet, mobilenetv2, regnet, resnet, shufflenetv2, timm, vovnet, zoo  # noqa: F401  for registration
from .config import add_backbones_config, add_vovnet_config, check_config
from .data import register_digits as _register_digits
from .errors import UserError
from .registry import create, get_spec, list_backbones, translate
from .swap import use_backbone

__version__ = "0.1.0"

__all__ = [
    "UserError",
    "add_backbones_config",
    "add_vovnet_config",
    "check_config",
    "create",
    "get_spec",
    "list_backbones",
    "translate",
    "use_backbone",
    "zoo",
]

_register_digits()
