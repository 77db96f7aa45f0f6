"""COCO-format data registered from a config: no code needed."""

import json
import os
from typing import Any, Dict

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError


def register_from_config(cfg: CfgNode) -> None:
    """Registers the data sets of ``cfg.DATASETS.REGISTER``: [name, annotation file, image folder] each.

    Class names come from the file. Raises UserError for an entry of another form, a path that is not there, or a file that is not COCO's.
    """
    for entry in cfg.DATASETS.get("REGISTER", []):
        if not (isinstance(entry, (list, tuple)) and len(entry) == 3 and all(isinstance(part, str) for part in entry)):
            raise UserError(f"DATASETS.REGISTER: {entry!r} is not of the form ['name', 'annotations.json', 'image_folder']")
        name, json_file, image_root = entry
        if not os.path.isdir(image_root):
            raise UserError(f"DATASETS.REGISTER: image folder {image_root!r} of {name!r} is not there")
        content = _read(name, json_file)
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("json_file") == json_file:
                continue
            raise UserError(f"DATASETS.REGISTER: the name {name!r} is taken by another data set")
        # ids in increasing order become classes 0, 1, 2, ... as in detectron2's loader, but known before the images are read
        categories = sorted(content["categories"], key=lambda category: category["id"])
        metadata: Dict[str, Any] = {"thing_classes": [category["name"] for category in categories]}
        keypoints = [category["keypoints"] for category in categories if category.get("keypoints")]
        if keypoints:
            metadata.update(keypoint_names=keypoints[0], keypoint_flip_map=_flip_map(keypoints[0]))
        register_coco_instances(name, metadata, json_file, image_root)


def _read(name: str, json_file: str) -> Dict[str, Any]:
    if not os.path.isfile(json_file):
        raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r} of {name!r} is not there")
    try:
        with open(json_file) as f:
            content = json.load(f)
    except ValueError as error:
        raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r} is not JSON: {error}") from error
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r} is not in COCO's format: it has no {', '.join(missing)}")
    if not all(isinstance(c, dict) and isinstance(c.get("id"), int) and isinstance(c.get("name"), str) for c in content["categories"]):
        raise UserError(f"DATASETS.REGISTER: a category in {json_file!r} has no integer id or no name")
    return content


def _flip_map(names):
    return [(n, n.replace("left", "right", 1)) for n in names if "left" in n and n.replace("left", "right", 1) in names]
