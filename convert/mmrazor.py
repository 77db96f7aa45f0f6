"""MMRazor's DetNAS (https://github.com/open-mmlab/mmrazor, versions 0.x and 1.x): its found network, alone or in Faster R-CNN.

A detector of it is one of MMDetection's under other names: with norms in the FPN and in a box head of four convolutions, and any choice of its
blocks. It takes RGB images; the first convolution is turned. Its networks cannot be installed here: outputs recorded from them are part of
this project's tests.
"""

from typing import Any

from . import mmdet
from .core import IMAGENET_RGB, Converted, Preprocessing, Source

SOURCE = Source(
    "MMRazor",
    "Apache-2.0",
    {"shufflenetv2": "mmrazor"},
    lambda name: IMAGENET_RGB,
    lambda data: ("state_dict",),
    stated=mmdet.stated_preprocessing,
)
is_detector = mmdet.is_detector


def convert_detector(contents: dict[str, Any], preprocessing: Preprocessing | None = None, config: str = "") -> Converted:
    """See `mmdet.convert_detector`."""
    return mmdet.convert_detector(contents, preprocessing, config, SOURCE)
