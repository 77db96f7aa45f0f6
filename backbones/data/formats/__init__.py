"""Reads data in YOLO's, Pascal VOC's and labelme's forms into dictionaries of COCO's form, and names what other files are.

The readers are our own: labelformat leaves out images without labels, keypoints and mixed lines; supervision keypoints, and it makes bitmaps of
outlines; globox has boxes alone; datumaro asks for numpy 2.2 and Pillow 12; pylabel has had no release since 2023.
"""

import os
import re
import shlex
from typing import Any

from ...errors import UserError
from ...files import not_there
from . import labelme, voc, yolo
from .building import SPLITS, SUFFIXES, has
from .naming import foreign

__all__ = ["foreign", "load", "named", "single", "splits", "unused"]

_COCO = ("_annotations.coco.json", "annotations.json")  # as Roboflow and others name the file among its images
_ANNOTATIONS = "annotations"  # the folder that COCO's own files and CVAT's exports lie in, beside those of images
_ALLOWED = "COCO's JSON file, a YOLO data.yaml or folder, a Pascal VOC folder or list, a folder of labelme's files"


def load(path: str, images: str = "", exif: str = "turn") -> dict[str, Any] | None:
    """Reads data of another format as COCO's: "images", "categories", "annotations" and "notes"; None where the path is left to COCO's reader.

    Args:
        path: of YOLO, a data.yaml, a list of images (.txt), or a folder of images or labels; of Pascal VOC, a folder, or a list in
            ImageSets/Main; of labelme, a folder.
        images: the folder of the images, which names are relative to. By default it is that of the first of `splits`.
        exif: whether the sizes of images that no file states are those after the turn of their EXIF tag: "turn", or "ignore".

    "notes" counts what was left out or guessed, by kind; "lost" what of it was left out, such as "line". Ids start at 1, in the order of
    the classes. Pascal VOC's 'difficult' objects have ``ignore`` 1. Images that cannot be read, and whose size no file states, have no width,
    height or objects.
    Categories with keypoints have a ``flip_idx`` too if a data.yaml has it: the index of the point that each becomes when mirrored.

    Raises UserError for what cannot be read, with the file and the line.
    """
    if not images:
        path, images = next(iter(splits(path).values()))
    elif os.path.isdir(path):
        path = yolo.yaml_in(path) or path
    kind = _kind(path)
    if kind is None and os.path.isdir(path):
        places = [place for place in (path, os.path.join(path, _ANNOTATIONS)) if os.path.isdir(place)]
        near = [os.path.join(place, name) for place in places for name in sorted(os.listdir(place))]
        files = ", ".join(repr(file) for file in near if file.lower().endswith(".json"))
        hint = f" Name one of these annotation files: {files}." if files else ""
        raise UserError(f"folder {path!r} has no readable annotations. Allowed: {_ALLOWED}.{hint}", "bad-file")
    if kind is None:
        return None
    if not os.path.isdir(images):
        raise UserError(f"image folder {images!r} is a file", "missing-file") if os.path.isfile(images) else not_there("image folder", images)
    content = {"yolo": yolo.read, "voc": voc.read, "labelme": labelme.read}[kind](path, images, exif)
    if not content["images"]:
        raise UserError(f"{path!r} has no images", "data")
    if not content["categories"]:
        raise UserError(f"{path!r} has no objects, and therefore no classes", "data")
    return content


def splits(path: str) -> dict[str, tuple[str, str]]:
    """The splits of the data at a path: "train", "val" and "test", or "" for all -> (annotations, image folder), as `load` takes them.

    They are those of a YOLO data.yaml, of the lists of a Pascal VOC folder or of CVAT's YOLO, folders train, val (valid) and test, as
    Roboflow writes them, or COCO's files in ``annotations``; a folder's COCO file is its only .json, or is found by its name.
    Raises UserError if a data.yaml cannot be read or its images for training or validation do not exist.
    """
    if yolo.is_yaml(path) and os.path.isfile(path):
        return yolo.splits(path)
    if not os.path.isdir(path):
        return {"": (path, _image_folder(path))}
    inside = yolo.yaml_in(path)
    found = yolo.splits(inside) if inside else voc.splits(path) or yolo.listed(path)
    for split, names in () if found else SPLITS.items():
        for folder in (os.path.join(place, name) for name in names for place in (path, os.path.join(path, "images"))):
            if os.path.isdir(folder) and _coco_in(folder):
                found.setdefault(split, (_coco_in(folder), _image_folder(folder)))
            elif list(_in_annotations(folder)) == [""]:
                file = _in_annotations(folder)[""]
                found.setdefault(split, (file, _image_folder(file)))
            elif os.path.isdir(folder) and _kind(folder):
                found.setdefault(split, (folder, _image_folder(folder)))
    files = {split: os.path.join(path, f"{split}.json") for split in ("train", "val")}
    if not found and all(map(os.path.isfile, files.values())):  # as `backbones dataset split` writes them
        return {split: (file, path) for split, file in files.items()}
    if not found and not _coco_in(path):
        found = {split: (file, _image_folder(file)) for split, file in _in_annotations(path).items()}
    if found:
        return found
    return {"": (_coco_in(path) or path, _image_folder(path))}


def single(path: str) -> str:
    """The annotations at a path that images are named for: a folder's file of COCO if it has just one, else the path itself."""
    if not os.path.isdir(path) or _kind(path):
        return path
    found = splits(path)
    return next(iter(found.values()))[0] if len(found) == 1 else path


def named(found: dict[str, tuple[str, str]], split: str, flag: str) -> str:
    """What names one split of `splits` alone: its file, and with ``flag`` its folder if another has the same file, such as a data.yaml."""
    file, folder = map(shlex.quote, found[split])
    return f"{file} {flag} {folder}" if [other for other, _ in found.values()].count(found[split][0]) > 1 else file


def unused(path: str, images: str = "", other: str = "", overrides: str = "") -> list[str]:
    """A line on a split "test" of training data, which training leaves alone; none without one.

    ``images`` joins all splits, ``other`` are the data for evaluation if they are not of the same path. ``overrides``: what follows the flags
    of a command that evaluates on it.
    """
    found = splits(path) if path and not (images or other) else {}
    if "test" not in found or found["test"] == found.get("val"):
        return []
    name = named(found, "test", "--val-images")
    return [f"{path}: its split 'test' is not used. After the training: backbones train --eval-only --val {name} {overrides}".rstrip()]


def other_splits(path: str, images: str = "") -> list[str]:
    """A line on which split of the data at a path is evaluated, and how to name the others; none if there is one."""
    found = splits(path) if path and not images else {}
    if len(found) < 2 or "val" not in found:
        return []
    others = ", ".join(f"--val {named(found, split, '--val-images')} ({split})" for split in found if split != "val")
    return [f"{path}: its split 'val' is evaluated. Others: {others}"]


def _in_annotations(path: str) -> dict[str, str]:
    """The COCO files of a folder's ``annotations``, by the split that their names end in, or "" for a single one; {} if it is ambiguous."""
    folder = os.path.join(path, _ANNOTATIONS)
    names = [name for name in sorted(os.listdir(folder)) if name.lower().endswith(".json")] if os.path.isdir(folder) else []
    if len(names) == 1:
        return {"": os.path.join(folder, names[0])}
    found: dict[str, str] = {}
    for name in names:  # instances_val2017.json
        end = re.sub(r"\d+$", "", _end(name).lower())
        split = next((split for split, called in SPLITS.items() if end in called), "")
        if not split or split in found:
            return {}
        found[split] = os.path.join(folder, name)
    return found


def _end(file: str) -> str:
    return os.path.splitext(os.path.basename(file))[0].rpartition("_")[2]


def _coco_in(folder: str) -> str:
    """The path of a folder's COCO file; "" if it holds data of another format, or several candidates."""
    there = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    named = [name for name in _COCO if name in there]
    if named:
        return os.path.join(folder, named[0])
    files = [name for name in there if name.lower().endswith(".json")]
    of_an_image = files and any(name.lower().endswith(SUFFIXES) and os.path.splitext(name)[0] == files[0][:-5] for name in there)  # labelme's
    return os.path.join(folder, files[0]) if len(files) == 1 and not of_an_image and not _kind(folder) else ""


def _kind(path: str) -> str | None:
    """The format of the data at a path; None if it is not one of those read here."""
    if os.path.isdir(path):
        if yolo.yaml_in(path):
            return "yolo"
        if os.path.isdir(os.path.join(path, voc.ANNOTATIONS)) or has(path, (".xml",)):
            return "voc"
        if labelme.found_in(path):
            return "labelme"
        return "yolo" if yolo.has_labels(path) else None
    if yolo.is_yaml(path) and os.path.isfile(path):
        return "yolo"
    if path.lower().endswith(".txt") and os.path.isfile(path):
        return "voc" if os.path.isdir(os.path.join(os.path.dirname(path), "..", "..", voc.ANNOTATIONS)) else "yolo"
    return None


def _image_folder(path: str) -> str:
    """Where the images of a folder, a list or a file are by default."""
    if not os.path.isdir(path):
        folder = os.path.dirname(path) or "."
        if path.lower().endswith(".txt") and os.path.isfile(path):
            voc_root = os.path.normpath(os.path.join(folder, "..", ".."))
            return voc.image_folder(voc_root) if _kind(path) == "voc" else yolo.image_folder([path])
        above, end = os.path.dirname(os.path.abspath(folder)), _end(path)
        if os.path.basename(os.path.abspath(folder)) != _ANNOTATIONS or has(folder, SUFFIXES):
            return folder
        places = [os.path.join(above, "images", end), os.path.join(above, end), os.path.join(above, "images")]
        return next((place for place in places if os.path.isdir(place)), folder)
    if os.path.basename(os.path.abspath(path)) == _ANNOTATIONS and _coco_in(path):
        return _image_folder(_coco_in(path))
    places = [os.path.join(path, "images"), os.path.join(path, voc.PICTURES), yolo.mirrored(path, "labels", "images")]
    if os.path.basename(os.path.abspath(path)) == voc.ANNOTATIONS:
        places.append(os.path.join(os.path.dirname(os.path.abspath(path)), voc.PICTURES))
    return next((place for place in places if place and has(place, SUFFIXES)), path)
