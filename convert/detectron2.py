"""detectron2's own files, its zoo's, pickled or not, and its RegNets' (``s1`` to ``s4``): tensors alone, under names of a config's model."""

import re
from typing import Any

from detectron2.modeling import build_model

from backbones import zoo
from backbones.checkpoint import GatedCheckpointer, part_of
from backbones.config import check_config, merge_overrides
from backbones.errors import UserError

from . import pycls
from .core import Converted, Preprocessing, Source, bottom_up, tensors

REGNET = Source("detectron2's RegNet", "as the file's", {"regnet": "pycls"}, pycls.SOURCE.preprocessing, lambda data: ("model",), pycls.network)


def check_bare(contents: dict[str, Any], key: str) -> None:
    """Raises UserError for a file that needs its config."""
    if not any(key.startswith("s1.b1.") for key in bottom_up(REGNET.weights(contents, key))[0]):
        raise UserError("files of detectron2 need their config: add --config-file, such as COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")


def convert(path: str, contents: dict[str, Any], config: str, opts: list[str]) -> Converted:
    """A file of detectron2's that fills the model of ``config``, or its backbone.

    It is matched as detectron2 matches its zoo's files, and every tensor of it must find its place.
    """
    if config.endswith(".py"):
        raise UserError(f"--config-file {config!r} is a Python config: name the YAML config of this model", "unsupported", "--config-file")
    tensors(contents.get("blobs", contents.get("model", contents)), "the file")
    cfg = zoo.get_config(config)
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *opts])
    check_config(cfg)
    model = build_model(cfg)
    checkpointer = GatedCheckpointer(model, require="nothing")
    checkpointer.load(path)
    report = checkpointer.report
    assert report is not None  # it has loaded
    filled = set(report.total) - set(report.unfilled())
    bare = all(part_of(key) == "backbone" for key in filled)
    missing = report.unfilled("backbone") if bare else report.unfilled()
    # a classifier is no part of a detector
    unused = [key for key in report.unused if not re.match(r"(stem\.)?(fc|linear|pred|head)[\d.]*", key)]
    if missing or unused:
        counts = f"{len(missing)} weights missing or with the wrong shape, {len(unused)} unmatched"
        shown = "; ".join([f"missing {key}" for key in missing[:6]] + [f"unmatched {key}" for key in unused[:6]])
        raise UserError(f"the file does not fit {config}: {counts}: {shown}")
    provenance = {
        "source": "detectron2",
        "network": cfg.MODEL.BACKBONE.NAME,
        "licence": "as the file's; of detectron2's own zoo CC BY-SA 3.0",
        "channel_order": f"{cfg.INPUT.FORMAT}, as the config says",
        "config": config,
        "overrides": list(opts),
        "proof": {"run": False, "why": "the network is detectron2's own"},
    }
    if not bare:
        provenance["detector"] = cfg.MODEL.META_ARCHITECTURE
    expects = Preprocessing(cfg.INPUT.FORMAT, tuple(cfg.MODEL.PIXEL_MEAN), tuple(cfg.MODEL.PIXEL_STD))
    return Converted({key: value for key, value in model.state_dict().items() if key in filled}, expects, provenance)
