"""MAE-DET's project (https://github.com/alibaba/lightweight-neural-architecture-search): its backbones, and its GFLV2 detectors whole."""

from typing import Any

from backbones import registry, zoo
from backbones.errors import UserError

from .core import IMAGENET_RGB, Converted, Preprocessing, Source, check_fit, identify, under_bottom_up
from .mmdet import head_key

# its networks cannot be installed: outputs recorded from them are part of this project's tests
SOURCE = Source("LightNAS", "Apache-2.0", {"maedet": "released"}, lambda name: IMAGENET_RGB, lambda data: ("state_dict", "model"))


def is_detector(contents: dict[str, Any]) -> bool:
    return any(key.startswith(("neck.", "bbox_head.")) for key in SOURCE.weights(contents))


def convert_detector(contents: dict[str, Any], preprocessing: Preprocessing | None = None, config: str = "") -> Converted:
    """A whole GFLV2 detector's file as ours: every tensor used, every weight of the model filled. It keeps taking RGB, as its config does.

    ``config``: the config whose model it is to fit; by default follows from the MAE-DET it holds. Raises UserError for a
    detector of another network, or where anything is unmatched, missing or of another shape.
    """
    # the numbers 0 to 16 are no weights
    weights = {key: value for key, value in SOURCE.weights(contents).items() if key != "bbox_head.integral.project"}
    backbone = {key: value for key, value in weights.items() if key.startswith("backbone.")}
    name, _, ours = identify(SOURCE, backbone)
    config = config or f"COCO-Detection/gfl_{name.replace('-', '_')}_FPN_73e.yaml"
    cfg = zoo.get_config(config)
    if cfg.MODEL.META_ARCHITECTURE != "GFL" or registry.BUILDERS.get(cfg.MODEL.BACKBONE.NAME) is not registry.family_of(name):
        raise UserError(f"{config} is not a GFL detector with {name}, which the file holds")
    expects = preprocessing or IMAGENET_RGB
    classes = weights.get("bbox_head.gfl_cls.bias")
    overrides = []
    if classes is not None and classes.dim() == 1 and len(classes) != cfg.MODEL.GFL.NUM_CLASSES:
        overrides = ["MODEL.GFL.NUM_CLASSES", str(len(classes))]
        cfg.MODEL.GFL.NUM_CLASSES = len(classes)
    cfg.MODEL.MAEDET.NORM = "FrozenBN"
    model = {**under_bottom_up(ours), **{head_key(key, "GFLV2"): value for key, value in weights.items() if not key.startswith("backbone.")}}
    check_fit(model, cfg, config)
    provenance = {
        "source": SOURCE.title,
        "network": name,
        "licence": SOURCE.licence,
        "channel_order": f"{expects.format}, as in the source",
        "config": config,
        "overrides": overrides,
        "detector": "GFLV2",
        "proof": {"run": False, "why": "its networks cannot be installed; this project's tests hold ours to outputs recorded from them"},
    }
    return Converted(model, expects, provenance)
