"""COCO-format data registered from a config: no code needed, and what is wrong with the files said before anything starts."""

import logging
import os
import re
from typing import Any, Dict, Iterator, List, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image, UnidentifiedImageError

from ..documents import read_json
from ..errors import UserError
from .mapper import run_lengths

_SAMPLED = 500  # images opened to compare their sizes with those stated: enough for a systematic mistake, seconds on a slow disk


def register_from_config(cfg: CfgNode) -> None:
    """Registers the data sets of ``cfg.DATASETS.REGISTER``: [name, annotation file, image folder] each.

    Class names come from the file. Raises UserError for an entry of another form, a path that is not there, or a file that is not COCO's:
    every annotation is looked at, every image must be there, and of up to 500 images the size too.
    """
    for entry in cfg.DATASETS.get("REGISTER", []):
        if not (isinstance(entry, (list, tuple)) and len(entry) == 3 and all(isinstance(part, str) for part in entry)):
            raise UserError(f"DATASETS.REGISTER: {entry!r} is not of the form ['name', 'annotations.json', 'image_folder']")
        name, json_file, image_root = entry
        if not os.path.isdir(image_root):
            raise UserError(f"DATASETS.REGISTER: image folder {image_root!r} of {name!r} is not there")
        if name in DatasetCatalog:
            if MetadataCatalog.get(name).get("json_file") == json_file:
                continue
            raise UserError(f"DATASETS.REGISTER: the name {name!r} is taken by another data set")
        content = _read(name, json_file)
        for problem in _problems(content, image_root):
            raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r}: {problem}")
        if any(a["id"] == 0 for a in content["annotations"]):
            logging.getLogger(__name__).warning(
                f"{json_file}: an annotation has the id 0, whose detection pycocotools always counts as wrong: number from 1"
            )
        # ids in increasing order become classes 0, 1, 2, ... as in detectron2's loader, but known before the images are read
        categories = sorted(content["categories"], key=lambda category: category["id"])
        metadata: Dict[str, Any] = {"thing_classes": [category["name"] for category in categories]}
        keypoints = [category["keypoints"] for category in categories if category.get("keypoints")]
        if keypoints:
            metadata.update(keypoint_names=keypoints[0], keypoint_flip_map=_flip_map(keypoints[0]))
        # what may be trained and evaluated: the fields that all annotations have
        fields = [{key for key, value in a.items() if value or value == 0} for a in content["annotations"]]
        metadata["annotation_fields"] = sorted(set.intersection(*fields)) if fields else []
        register_coco_instances(name, metadata, json_file, image_root)


def _read(name: str, json_file: str) -> Dict[str, List[dict]]:
    if not os.path.isfile(json_file):
        raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r} of {name!r} is not there")
    try:
        content = read_json(json_file)
    except ValueError as error:
        raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r} is not JSON: {error}") from error
    missing = [key for key in ("images", "annotations", "categories") if not isinstance(content, dict) or key not in content]
    if missing:
        raise UserError(f"DATASETS.REGISTER: annotation file {json_file!r} is not in COCO's format: it has no {', '.join(missing)}")
    return content


def _problems(content: Dict[str, Any], image_root: str) -> Iterator[str]:
    """What detectron2 or pycocotools would stumble over later, worst first."""
    for key in ("images", "annotations", "categories"):
        if not isinstance(content[key], list) or not all(isinstance(entry, dict) for entry in content[key]):
            yield f"{key!r} is not a list of objects"
    for key in ("images", "categories"):
        if not content[key]:
            yield f"{key!r} is empty"
    for key, fields in _FIELDS.items():
        for i, entry in enumerate(content[key]):
            for field, (kind, fits) in fields.items():
                if field not in entry or not fits(entry[field]):
                    value = f"{field} {str(entry[field])[:200]!r}" if field in entry else f"no {field}"
                    yield f"entry {i} of {key!r} has {value}: it must have {kind}"
            for field, (kind, fits) in _MORE_FIELDS[key].items():
                if entry.get(field) is not None and not fits(entry[field]):
                    yield f"entry {i} of {key!r} has {field} {str(entry[field])[:200]!r}: it must be {kind}"
        seen = set()
        for entry in content[key]:
            if entry["id"] in seen:
                yield f"the id {entry['id']} stands twice in {key!r}"
            seen.add(entry["id"])
    for field, key in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in content[key]}
        for a in content["annotations"]:
            if a[field] not in known:
                yield f"annotation {a['id']} has {field} {a[field]!r}, which is not among the {key!r}"
    yield from _problems_of_masks(content)
    for image in content["images"]:
        if not os.path.isfile(os.path.join(image_root, image["file_name"])):
            yield f"image {image['file_name']!r} is not in {image_root!r}"
    for image in content["images"][:: max(1, -(-len(content["images"]) // _SAMPLED))]:
        try:
            with Image.open(os.path.join(image_root, image["file_name"])) as picture:
                size = picture.size[::-1] if picture.getexif().get(274, 1) >= 5 else picture.size  # a quarter turn, which detectron2 applies
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            yield f"image {image['file_name']!r} cannot be read: {error}"
        else:
            if size != (image["width"], image["height"]):
                stated = f"{image['width']}x{image['height']}"
                yield f"image {image['file_name']!r} is {size[0]}x{size[1]} (width x height), not {stated} as the annotations say"


def _problems_of_masks(content: Dict[str, Any]) -> Iterator[str]:
    """What pycocotools, whose C code looks at nothing, would fill wrong memory with."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for a in content["annotations"]:
        size, mask, problem = sizes[a["image_id"]], a.get("segmentation") or [], ""
        if isinstance(mask, dict):
            runs = run_lengths(mask["counts"].encode()) if isinstance(mask["counts"], str) else mask["counts"]
            if tuple(mask["size"]) != size:
                problem = f"of {mask['size']}, but the image is {list(size)} (height, width)"
            elif min(runs, default=-1) < 0 or max(runs) > size[0] * size[1] or sum(runs) != size[0] * size[1]:
                problem = f"whose counts are not those of {size[0]} x {size[1]} pixels"
        elif any(polygon and not -max(size) <= min(polygon) <= max(polygon) <= 2 * max(size) for polygon in mask):
            problem = "that lies outside its image"
        if problem:
            yield f"annotation {a['id']} has a segmentation {problem}"


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and set(map(type, value)) <= {int, float} and all(-1e6 <= v <= 1e6 for v in value)


def _segmentation(value: Any) -> bool:
    if isinstance(value, list):
        return all(_numbers(polygon) for polygon in value)
    if not isinstance(value, dict) or not isinstance(value.get("size"), list):
        return False
    counts = value.get("counts")
    if isinstance(counts, str):
        return re.fullmatch("([P-o]{0,6}[0-O])+", counts) is not None
    return isinstance(counts, list) and all(map(_integer, [*counts, *value["size"]]))


_ID = ("an integer id", _integer)
_SIZE = ("width and height in pixels", lambda value: _integer(value) and value > 0)
# what every entry must have: field -> (in words, test)
_FIELDS = {
    "images": {"id": _ID, "file_name": ("a file_name", lambda v: isinstance(v, str) and v != ""), "width": _SIZE, "height": _SIZE},
    "categories": {"id": _ID, "name": ("a name", lambda value: isinstance(value, str))},
    "annotations": {
        "id": _ID,
        "image_id": ("an integer image_id", _integer),
        "category_id": ("an integer category_id", _integer),
        "bbox": ("a bbox [x, y, width, height] of numbers", lambda value: _numbers(value) and len(value) == 4),
    },
}
# what it may have, or null
_MORE_FIELDS = {
    "images": {},
    "categories": {
        "keypoints": ("a list of names", lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value)),
    },
    "annotations": {
        "segmentation": ("polygons, or run lengths with size and counts", _segmentation),
        "keypoints": ("x, y and visibility of each", lambda value: _numbers(value) and len(value) % 3 == 0),
        "num_keypoints": ("a number", _integer),
        "iscrowd": ("0 or 1", lambda value: value in (0, 1)),
        "area": ("a number of pixels", lambda value: isinstance(value, (int, float)) and 0 <= value <= 1e12),
    },
}


def _flip_map(names):
    return [(n, n.replace("left", "right", 1)) for n in names if "left" in n and n.replace("left", "right", 1) in names]


def read_categories(name: str, json_file: str) -> List[Tuple[int, str]]:
    """(id, name) of every category of an annotation file, in the order of their classes; raises UserError as `register_from_config` does."""
    content = _read(name, json_file)
    for problem in _problems({**content, "images": [], "annotations": []}, ""):
        if not problem.startswith("'images'"):
            raise UserError(f"annotation file {json_file!r}: {problem}")
    return sorted((category["id"], category["name"]) for category in content["categories"])
