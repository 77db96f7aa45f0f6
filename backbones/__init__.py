"""Efficient, detection-ready backbones for detectron2.

Importing this package registers every builder in detectron2's ``BACKBONE_REGISTRY`` and the offline ``digits`` data sets in its catalogues.
"""

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "backbones extends detectron2, which this Python does not have (%s). In a checkout of this project `make quickstart` sets "
        "everything up; detectron2 is not on PyPI under its own name: its INSTALL.md says how to build it, and requirements/detectron2.txt "
        "names a build of it that pip can fetch." % error
    ) from None

from . import detectors, maedet, mobilenetv2, regnet, resnet, shufflenetv2, vovnet, zoo  # noqa: F401  for registration
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
