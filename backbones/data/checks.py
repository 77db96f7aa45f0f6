"""What can be known to be wrong with a data set before training starts."""

import importlib.util
import os
from typing import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..checkpoint import fetch, read_checkpoint
from ..errors import UserError, unknown

_CITYSCAPES = [("cityscapesscripts", "cityscapesScripts", True), ("shapely", "shapely", True)]


def check_datasets(cfg: CfgNode, training: bool) -> None:
    """Raises UserError for a data set that is not registered, whose files are not there, or whose classes are not the model's.

    Looks at ``cfg.DATASETS.TEST``, and in ``training`` at ``TRAIN`` too.
    """
    if training and not cfg.DATASETS.TRAIN:
        raise UserError("DATASETS.TRAIN is empty: name at least one data set to train on")
    if not training and not cfg.DATASETS.TEST:
        raise UserError("DATASETS.TEST is empty: name at least one data set to evaluate on")
    for key in ("TRAIN", "TEST") if training else ("TEST",):
        files = cfg.DATASETS[f"PROPOSAL_FILES_{key}"] if cfg.MODEL.LOAD_PROPOSALS else None
        if files is not None and len(files) != len(cfg.DATASETS[key]):
            raise UserError(
                f"MODEL.LOAD_PROPOSALS needs a file for each data set: DATASETS.PROPOSAL_FILES_{key} has {len(files)}, "
                f"DATASETS.{key} {len(cfg.DATASETS[key])}"
            )
        for name in cfg.DATASETS[key]:
            if name not in DatasetCatalog:
                raise unknown(f"data set in DATASETS.{key}", name, sorted(DatasetCatalog.keys()))
            check_paths(name)
            check_packages(name, evaluating=key == "TEST")
            _check_classes(cfg, name)
            _check_annotations(cfg, name, key == "TRAIN")
        for name, path in zip(cfg.DATASETS[key], files or ()):
            _check_proposals(name, path)
    _check_folders(cfg, [*(cfg.DATASETS.TRAIN if training else ()), *cfg.DATASETS.TEST])


def _check_folders(cfg: CfgNode, names: Sequence[str]) -> None:
    """Raises UserError where images with classes go to a detector or others to a classifier, or where two sets number other classes."""
    classifies = cfg.MODEL.META_ARCHITECTURE == "ImageClassifier"
    for name in names:
        classes = MetadataCatalog.get(name).get("classes")
        if bool(classes) != classifies:
            kind = "images with a class each" if classes else "no images with a class each"
            raise UserError(f"data set {name!r} has {kind}, which MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} cannot use")
        first = MetadataCatalog.get(names[0]).get("classes")
        if classes and list(classes) != list(first):
            other = next((a, b) for a, b in zip([*first, None], [*classes, None]) if a != b)
            raise UserError(
                f"data sets {names[0]!r} and {name!r} have other classes: {other[0]!r} of the one stands where the other has {other[1]!r}"
            )


# evaluator types whose package is optional: the module, what pip is to install, and whether reading the data set needs it already
_PACKAGES = {
    "coco_panoptic_seg": [("panopticapi", "panopticapi-lite", False)],
    "cityscapes_panoptic_seg": [*_CITYSCAPES, ("panopticapi", "panopticapi-lite", False)],
    "cityscapes_instance": _CITYSCAPES,
    "cityscapes_sem_seg": _CITYSCAPES,
    "lvis": [("lvis", "--no-deps lvis", True)],  # it names opencv-python, which would overwrite a headless one
}


def check_packages(name: str, evaluating: bool) -> None:
    """Raises UserError where a data set, or its evaluation, needs a package that is not installed."""
    for module, package, always in _PACKAGES.get(MetadataCatalog.get(name).get("evaluator_type"), ()):
        if (evaluating or always) and importlib.util.find_spec(module) is None:
            raise UserError(f"data set {name!r} needs a package that is not installed: pip install {package}")


def check_paths(name: str) -> None:
    """Raises UserError where the files of a registered data set are not on the disk."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("generated"):  # made when first read
        return
    for field in ("json_file", "image_root", "panoptic_root", "panoptic_json", "sem_seg_root", "image_dir", "gt_dir", "dirname"):
        path = metadata.get(field)
        if path and "://" not in path and not os.path.exists(path):
            root = os.getenv("DETECTRON2_DATASETS", "datasets")
            hint = f" detectron2 looks under {root!r}, or where the variable DETECTRON2_DATASETS says." if path.startswith(root) else ""
            raise UserError(f"data set {name!r}: {field} {path!r} is not there.{hint}")


def _check_proposals(name: str, path: str) -> None:
    """Reads the file as numbers alone, as detectron2 then unpickles it with whatever code it holds."""
    local = fetch(path, PathManager) if "://" in path else path
    content = read_checkpoint(local, kind="proposal file")
    columns = [content.get(key, content.get(old)) for key, old in (("ids", "indexes"), ("boxes", "boxes"), ("objectness_logits", "scores"))]
    if any(not hasattr(column, "__len__") or len(column) != len(columns[0]) for column in columns):
        raise UserError(f"proposal file {path!r} needs 'ids', 'boxes' and 'objectness_logits', one of each for every image")
    missing = {str(record["image_id"]) for record in DatasetCatalog.get(name)} - {str(image) for image in columns[0]}
    if missing:
        raise UserError(f"proposal file {path!r} has none for {len(missing)} images of data set {name!r}, such as {min(missing)}")


def _check_classes(cfg: CfgNode, name: str) -> None:
    metadata, model = MetadataCatalog.get(name), cfg.MODEL
    things, stuff = metadata.get("thing_classes"), metadata.get("stuff_classes")
    keypoints = metadata.get("keypoint_names")
    architecture = model.META_ARCHITECTURE
    with_boxes = architecture in ("GeneralizedRCNN", "PanopticFPN")
    checks = [
        ("MODEL.ROI_HEADS.NUM_CLASSES", model.ROI_HEADS.NUM_CLASSES, with_boxes and things and len(things)),
        ("MODEL.RETINANET.NUM_CLASSES", model.RETINANET.NUM_CLASSES, "RetinaNet" in architecture and things and len(things)),
        (
            "MODEL.CLASSIFIER.NUM_CLASSES",
            model.CLASSIFIER.NUM_CLASSES,
            architecture == "ImageClassifier" and len(metadata.get("classes") or ()),
        ),
        ("MODEL.GFL.NUM_CLASSES", model.GFL.NUM_CLASSES, architecture == "GFL" and things and len(things)),
        (
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            model.SEM_SEG_HEAD.NUM_CLASSES,
            architecture in ("PanopticFPN", "SemanticSegmentor") and stuff and len(stuff),
        ),
        (
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
            model.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS,
            with_boxes and model.KEYPOINT_ON and keypoints and len(keypoints),
        ),
    ]
    for key, value, expected in checks:
        if expected and value != expected:
            raise UserError(f"{key} is {value}, but data set {name!r} has {expected}: set {key} {expected}")


def _check_annotations(cfg: CfgNode, name: str, training: bool) -> None:
    with_instances = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN")
    keypoints = with_instances and cfg.MODEL.KEYPOINT_ON
    fields = MetadataCatalog.get(name).get("annotation_fields")  # known of data from DATASETS.REGISTER
    if fields is not None:
        if cfg.MODEL.META_ARCHITECTURE in ("PanopticFPN", "SemanticSegmentor"):
            raise UserError(f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} needs semantic labels, which data set {name!r} has not")
        needed = {"bbox": "training"} if training else {"area": "COCO's evaluation", "iscrowd": "COCO's evaluation"}
        if with_instances and cfg.MODEL.MASK_ON:
            needed["segmentation"] = "MODEL.MASK_ON"
        if keypoints:
            needed["keypoints" if training else "num_keypoints"] = "MODEL.KEYPOINT_ON"
        for field, whose in needed.items():
            if field not in fields:
                raise UserError(f"{whose} needs {field!r} in every annotation of data set {name!r}. All have: {', '.join(fields) or 'none'}.")
    sigmas = cfg.TEST.KEYPOINT_OKS_SIGMAS
    if keypoints and not training and len(sigmas or [0] * 17) != cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS:
        raise UserError(
            f"TEST.KEYPOINT_OKS_SIGMAS has {len(sigmas) or 'the default 17'} values, but MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS is "
            f"{cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS}: give one for each keypoint"
        )
