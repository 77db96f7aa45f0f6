"""Class names for a model's results. The data that it was trained on need not be on this machine."""

from typing import Any, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data.catalog import Metadata

from ..config import architecture, get
from ..data.holdout import HELD_OUT, KEPT
from ..documents import read_json


def names_of(cfg: CfgNode, checkpoint: Sequence[str] = (), stuff: Sequence[str] = ()) -> tuple[Metadata, str]:
    """Metadata to draw a config's results with, and a line that says where the class names come from.

    The names come from DATASETS.CLASSES, the loaded ``checkpoint``, a data set in detectron2's catalogue, or an annotation file of
    DATASETS.REGISTER if it exists; except the checkpoint's, only if they are as many as the model's classes. Otherwise classes are numbers.
    ``stuff``: the checkpoint's names of pixels, beside those of objects.
    """
    counts = {field: get(cfg, key) for key, field in architecture(cfg).classes.items()}
    field = next(iter(counts), "thing_classes")

    def fitting(found: Any, field: str = field) -> list[str]:
        return list(found) if found and len(found) == counts.get(field, len(found)) else []

    names = [name.removesuffix(HELD_OUT).removesuffix(KEPT) for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)]
    known = next((name for name in names if name in MetadataCatalog and fitting(MetadataCatalog.get(name).get(field))), None)
    about: dict[str, Any] = {key: value for key, value in MetadataCatalog.get(known).as_dict().items() if key != "name"} if known else {}
    if classes := fitting(cfg.DATASETS.get("CLASSES")):
        source = "DATASETS.CLASSES"
    elif checkpoint:
        classes, source = list(checkpoint), "the checkpoint"
    elif known:
        classes, source = list(about[field]), f"data set {known!r}"
    else:
        files = {entry[0]: entry[1] for entry in cfg.DATASETS.REGISTER if len(entry) == 3}
        found = ((files[name], fitting(_read(files[name]))) for name in names if name in files and counts)
        path, classes = next(((path, classes) for path, classes in found if classes), ("", []))
        source = repr(path) if path else ""
    said = f"class names come from {source}" if source else "class names are unknown, numbers are shown: set DATASETS.CLASSES"
    if "stuff_classes" in counts and not classes:  # without names, detectron2 draws no classes of pixels
        classes = _numbers(counts[field])
    if classes != list(about.get(field, ())):
        about = {field: classes} if classes else {}
    if "stuff_classes" in counts and field != "stuff_classes":
        pixels = list(stuff) or fitting(about.get("stuff_classes"), "stuff_classes")
        said += "" if pixels else "; those of stuff are unknown, numbers are shown"
        if not pixels or pixels != list(about.get("stuff_classes", ())):
            about.pop("stuff_colors", None)
            about["stuff_classes"] = pixels or _numbers(counts["stuff_classes"])
    if cfg.DATASETS.get("KEYPOINTS") and not about.get("keypoint_names"):
        about["keypoint_names"] = list(cfg.DATASETS.KEYPOINTS)
    return Metadata().set(**about), said


def _numbers(count: int) -> list[str]:
    return [str(i) for i in range(count)]


def _read(path: str) -> list[str]:
    """The category names in a file of COCO's format, in the order of their classes; none for any other file."""
    try:
        return [category["name"] for category in sorted(read_json(path)["categories"], key=lambda category: category["id"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []
