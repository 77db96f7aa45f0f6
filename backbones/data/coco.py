"""Registers COCO-format data from a config, without code, and says what is wrong with the files before anything starts."""

import logging
import os
from typing import Any, Iterator

from detectron2.config import CfgNode
from detectron2.data.datasets import register_coco_instances

from ..errors import UserError
from . import annotations
from .holdout import entries, is_registered
from .inspection import KINDS, evenly, look

_SAMPLED = 500  # images whose sizes are compared with those stated: enough for a systematic mistake, and takes seconds on a slow disk


def register_from_config(cfg: CfgNode) -> None:
    """Registers the data sets of ``cfg.DATASETS.REGISTER``: [name, annotation file, image folder] each.

    Class names come from the file. Every annotation is checked, every image must exist, and up to 500 images must have the size that the file
    states. Raises UserError for anything wrong, and for an entry of another form.
    """
    for name, json_file, image_root in entries(cfg, "REGISTER", {"'name'": str, "'annotations.json'": str, "'image_folder'": str}):
        if not os.path.isdir(image_root):
            raise UserError(f"DATASETS.REGISTER: image folder {image_root!r} of {name!r} is not there", "missing-file", "DATASETS.REGISTER")
        if is_registered(name, "json_file", json_file, "REGISTER"):
            continue
        content = annotations.read(json_file, _FILE)
        for problem in _problems(content, image_root):
            raise UserError(f"{_FILE} {json_file!r}: {problem}", "data", "DATASETS.REGISTER")
        if any(a["id"] == 0 for a in content["annotations"]):
            _, said, _ = KINDS["annotation id 0"]
            logging.getLogger(__name__).warning(f"{json_file}: an annotation {said}: number from 1")
        # ids in increasing order become classes 0, 1, 2, ... as in detectron2's loader, but known before the images are read
        categories = sorted(content["categories"], key=lambda category: category["id"])
        metadata: dict[str, Any] = {"thing_classes": [category["name"] for category in categories]}
        keypoints = [category["keypoints"] for category in categories if category.get("keypoints")]
        if keypoints:
            metadata.update(keypoint_names=keypoints[0], keypoint_flip_map=_flip_map(keypoints[0]))
        # what may be trained and evaluated: the fields that all annotations have
        fields = [{key for key, value in a.items() if value or value == 0} for a in content["annotations"]]
        metadata["annotation_fields"] = sorted(set.intersection(*fields)) if fields else []
        register_coco_instances(name, metadata, json_file, image_root)


_FILE = "DATASETS.REGISTER: annotation file"


def _problems(content: dict[str, list[Any]], image_root: str) -> Iterator[str]:
    """What detectron2 or pycocotools would fail on later, worst first."""
    yield from annotations.problems(content)
    images = {image["id"]: image for image in content["images"]}
    for a in content["annotations"]:
        kind = annotations.mask_fault(a.get("segmentation"), images[a["image_id"]]["height"], images[a["image_id"]]["width"])
        if kind in ("bad mask", "mask of other size"):
            yield f"annotation {a['id']} has a {kind}: {KINDS[kind][1]}"
    for image in content["images"]:
        if not os.path.isfile(os.path.join(image_root, image["file_name"])):
            yield f"image {image['file_name']!r} is not in {image_root!r}"
    for image in evenly(content["images"], _SAMPLED):
        for kind, about in look(os.path.join(image_root, image["file_name"]), image, pixels=False):
            if kind == "unreadable image":
                yield f"image {image['file_name']!r} cannot be read{about}"
            elif kind == "image of other size":
                yield f"image {image['file_name']!r} is {about.strip(' ()')} (width x height) as the annotations say"


def _flip_map(names: list[str]) -> list[tuple[str, str]]:
    return [(n, n.replace("left", "right", 1)) for n in names if "left" in n and n.replace("left", "right", 1) in names]


def read_categories(name: str, json_file: str) -> list[tuple[int, str]]:
    """(id, name) of every category of an annotation file, in the order of their classes; raises UserError as `register_from_config` does."""
    content = annotations.read(json_file, _FILE)
    for problem in annotations.problems({"categories": content["categories"], "images": [], "annotations": []}):
        raise UserError(f"{_FILE} {json_file!r}: {problem}", "data", "DATASETS.REGISTER")
    return sorted((category["id"], category["name"]) for category in content["categories"])
