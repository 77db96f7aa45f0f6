"""Finds what is wrong with a data set before training starts."""

import importlib.util
import os
from typing import Any, Callable, Collection, Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..checkpoint import fetch, read_checkpoint
from ..config import architecture, defaults, first_difference, get, learns
from ..errors import UserError, raised
from .sources import unknown_data_set

_CITYSCAPES = [("cityscapesscripts", "cityscapesScripts", True), ("shapely", "shapely", True)]


def check_datasets(cfg: CfgNode, training: bool) -> None:
    """Raises the first of `dataset_findings`."""
    for error in dataset_findings(cfg, training):
        raise error


def dataset_findings(cfg: CfgNode, training: bool, skip: Collection[str] = (), called: Callable[[str], str] = str) -> Iterator[UserError]:
    """Everything known to be wrong with the data sets of ``cfg.DATASETS.TEST``, and in ``training`` with those of ``TRAIN`` too.

    For example a data set that is not registered, whose files do not exist, or whose classes differ from the model's. Data sets in ``skip`` are
    not checked. ``called`` gives the user's name for a key.
    """
    need, what = ("DATASETS.TRAIN", "train") if training else ("DATASETS.TEST", "evaluate")
    if not get(cfg, need):
        yield UserError(f"{called(need)} is empty: name at least one data set to {what} on", "missing-argument", need)
    usable = []
    for split in ("TRAIN", "TEST") if training else ("TEST",):
        key, names = called(f"DATASETS.{split}"), cfg.DATASETS[split]
        files = cfg.DATASETS[f"PROPOSAL_FILES_{split}"] if cfg.MODEL.LOAD_PROPOSALS else None
        if files is not None and len(files) != len(names):
            said = f"MODEL.LOAD_PROPOSALS needs a file for each data set: DATASETS.PROPOSAL_FILES_{split} has {len(files)}, {key} {len(names)}"
            yield UserError(said, "missing-argument", f"DATASETS.PROPOSAL_FILES_{split}")
            files = None
        for i, name in enumerate(names):
            if name in skip:
                continue
            if name not in DatasetCatalog:
                brought = [entry[0] for entry in cfg.DATASETS.REGISTER if isinstance(entry, (list, tuple)) and entry]
                yield unknown_data_set(f"data set in {key}", name, key, map(str, brought))
                continue
            usable.append((key, name))
            for error in (*raised(check_paths, name, key), *raised(check_packages, name, split == "TEST", key)):
                yield error
                files = None  # which are of images that may not be read
            yield from _classes(cfg, name, called)
            yield from _annotations(cfg, name, split == "TRAIN", key)
            if files is not None:
                yield from raised(_check_proposals, name, files[i], f"DATASETS.PROPOSAL_FILES_{split}")
    yield from _folders(cfg, usable)
    if training and cfg.DATASETS.TRAIN and not any(MetadataCatalog.get(name).get(each) for _, name in usable for each in ("truth", "classes")):
        yield from _of_own_data(cfg, called)


def _of_own_data(cfg: CfgNode, called: Callable[[str], str]) -> Iterator[UserError]:
    """Keys of how own data are read, where there are none: they would change nothing."""
    usual = defaults()
    for key in ("DATASETS.CLASSES", "DATASETS.CROWDS", "DATASETS.NO_MASK", "DATASETS.BOX_FORMAT"):
        if get(cfg, key) != get(usual, key):
            said = f"{called(key)} {get(cfg, key)} is for data of --train or DATASETS.REGISTER, not {cfg.DATASETS.TRAIN[0]!r}"
            yield UserError(f"{said}, whose registration decides: remove the key, or name the files with --train", "conflict", key)


def _folders(cfg: CfgNode, names: Sequence[tuple[str, str]]) -> Iterator[UserError]:
    """Data sets of the wrong kind for the model, and data sets with different classes."""
    with_classes = []
    for key, name in names:
        classes = MetadataCatalog.get(name).get("classes")
        if bool(classes) != learns(cfg, "class"):
            kind = "images with a class each" if classes else "no images with a class each"
            said = f"data set {name!r} has {kind}, which MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} cannot use"
            yield UserError(said, "data", key)
        elif classes:
            with_classes.append((key, name, list(classes)))
    for key, name, classes in with_classes[1:]:
        first = with_classes[0]
        if classes != first[2]:
            one, other = first_difference(first[2], classes)
            said = f"data sets {first[1]!r} and {name!r} have different classes: {one!r} in the first is {other!r} in the second"
            yield UserError(said, "classes", key)


# evaluator types with an optional package: the module, what pip installs, and whether even reading the data set needs it
_PACKAGES = {
    "coco_panoptic_seg": [("panopticapi", "panopticapi-lite", False)],
    "cityscapes_panoptic_seg": [*_CITYSCAPES, ("panopticapi", "panopticapi-lite", False)],
    "cityscapes_instance": _CITYSCAPES,
    "cityscapes_sem_seg": _CITYSCAPES,
    "lvis": [("lvis", "--no-deps lvis", True)],  # it requires opencv-python, which would overwrite a headless one
}


def check_packages(name: str, evaluating: bool, key: str = "") -> None:
    """Raises UserError if a data set, or its evaluation, needs a package that is not installed; ``key`` names the data set in the config."""
    for module, package, always in _PACKAGES.get(MetadataCatalog.get(name).get("evaluator_type"), ()):
        if (evaluating or always) and importlib.util.find_spec(module) is None:
            raise UserError(f"data set {name!r} needs a package that is not installed: pip install {package}", "missing-package", key, package)


def check_paths(name: str, key: str = "") -> None:
    """Raises UserError if the files of a registered data set do not exist; ``key`` names the data set in the config."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("generated"):  # made when first read
        return
    for field in ("json_file", "image_root", "panoptic_root", "panoptic_json", "sem_seg_root", "image_dir", "gt_dir", "dirname"):
        path = metadata.get(field)
        if path and "://" not in path and not os.path.exists(path):
            root = os.getenv("DETECTRON2_DATASETS", "datasets")
            hint = f" detectron2 looks in {root!r}; to use another folder, set DETECTRON2_DATASETS." if path.startswith(root) else ""
            raise UserError(f"data set {name!r}: {field} {path!r} does not exist.{hint}", "missing-file", key)


def _check_proposals(name: str, path: str, key: str) -> None:
    """Reads the file as numbers only, because detectron2 would run any code in it."""
    local = fetch(path, PathManager) if "://" in path else path
    content: Any = read_checkpoint(local, kind="proposal file")
    columns = [content.get(key, content.get(old)) for key, old in (("ids", "indexes"), ("boxes", "boxes"), ("objectness_logits", "scores"))]
    if any(not hasattr(column, "__len__") or len(column) != len(columns[0]) for column in columns):
        raise UserError(f"proposal file {path!r} needs 'ids', 'boxes' and 'objectness_logits', one of each for every image", "bad-file", key)
    missing = {str(record["image_id"]) for record in DatasetCatalog.get(name)} - {str(image) for image in columns[0]}
    if missing:
        said = f"proposal file {path!r} has no proposals for {len(missing)} images of data set {name!r}, such as {min(missing)}"
        raise UserError(said, "data", key)


def _classes(cfg: CfgNode, name: str, called: Callable[[str], str]) -> Iterator[UserError]:
    for key, field in architecture(cfg).classes.items():
        expected = len(MetadataCatalog.get(name).get(field) or ())
        if expected and get(cfg, key) != expected and (field != "keypoint_names" or cfg.MODEL.KEYPOINT_ON):
            its = called(key)
            said = f"{its} is {get(cfg, key)}, but data set {name!r} has {expected}: set {its}{' ' if called is str else '='}{expected}"
            yield UserError(said, "classes", its, expected)


def _annotations(cfg: CfgNode, name: str, training: bool, key: str) -> Iterator[UserError]:
    if MetadataCatalog.get(name).get("truth") and learns(cfg, "semantic"):
        said = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} needs semantic labels, which data set {name!r} does not have"
        yield UserError(said, "data", key)
    sigmas, count = cfg.TEST.KEYPOINT_OKS_SIGMAS, cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS
    if learns(cfg, "keypoints") and not training and len(sigmas or [0] * 17) != count:
        said = f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas) or 'the default 17'} values, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is {count}"
        yield UserError(f"{said}: give one for each keypoint", "conflict", "TEST.KEYPOINT_OKS_SIGMAS")
