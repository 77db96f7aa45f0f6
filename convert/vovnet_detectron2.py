"""vovnet-detectron2 (https://github.com/youngwanLEE/vovnet-detectron2): its ImageNet files of VoVNetV2 and MobileNetV2."""

from .core import Preprocessing, Source, under

# its networks cannot be installed: outputs recorded from them are part of this project's tests
SOURCE = Source(
    "vovnet-detectron2",
    "CC BY-NC 4.0, not for commercial use",
    {"vovnet": "released", "mobilenetv2": "released"},
    lambda name: Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
    lambda data: under(data, "model", "state_dict"),
    lambda name, options: None,
)
