"""Class names for a model's results. The data that it was trained on need not be on this machine."""

from typing import Any, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from ..config import architecture, get
from ..data.holdout import HELD_OUT, KEPT
from ..documents import read_json


def names_of(cfg: CfgNode, checkpoint: Sequence[str] = ()) -> tuple[Metadata, str]:
    """Metadata to draw a config's results with, and a line that says where the class names come from.

    The names come from DATASETS.CLASSES, a data set in detectron2's catalogue, the loaded ``checkpoint``, or an annotation
    file of DATASETS.REGISTER if it exists. Otherwise there are none: classes are numbers.
    """
    numbers = architecture(cfg).classes
    field = next(iter(numbers.values()), "thing_classes")
    names = [name.removesuffix(HELD_OUT).removesuffix(KEPT) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)]
    known = next((name for name in names if name in MetadataCatalog and MetadataCatalog.get(name).get(field)), None)
    about: dict[str, Any] = {key: value for key, value in MetadataCatalog.get(known).as_dict().items() if key != "name"} if known else {}
    classes = list(cfg.DATASETS.get("CLASSES", ()))
    if len(classes) != next((get(cfg, key) for key in numbers), len(classes)):  # of data that the model does not know
        classes = []
    if classes and classes != list(about.get(field, ())):
        about = {field: classes}
    if about:
        source = "DATASETS.CLASSES" if classes else f"data set {known!r}"
    elif checkpoint:
        about, source = {field: list(checkpoint)}, "the checkpoint"
    else:
        files = {entry[0]: entry[1] for entry in cfg.DATASETS.REGISTER if len(entry) == 3}
        count = next((get(cfg, key) for key in numbers), None)
        found = ((files[name], _read(files[name])) for name in names if name in files)
        path, classes = next(((path, classes) for path, classes in found if len(classes) == count), ("", []))
        about, source = ({field: classes}, repr(path)) if path else ({}, "")
    if cfg.DATASETS.get("KEYPOINTS") and not about.get("keypoint_names"):
        about["keypoint_names"] = list(cfg.DATASETS.KEYPOINTS)
    said = f"class names come from {source}" if source else "class names are unknown, numbers are shown: set DATASETS.CLASSES"
    return Metadata().set(**about), said


def _read(path: str) -> list[str]:
    """The category names in a file of COCO's format, in the order of their classes; none for any other file."""
    try:
        return [category["name"] for category in sorted(read_json(path)["categories"], key=lambda category: category["id"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []
