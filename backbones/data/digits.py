"""`digits_train` and `digits_val`: scenes of real handwriting, in COCO's format, made on first use without a download.

`digits_crowd_train` and `digits_crowd_val` are harder: small and large digits that hide parts of each other, among pieces of digits that are
no objects.

The 1,797 handwritten digits that ship inside scikit-learn (UCI Optical Recognition of Handwritten Digits, 8x8 pixels, CC BY 4.0) are
enlarged smoothly, turned, coloured and placed on textured backgrounds. There are annotations for every task: boxes and masks of ten classes,
four keypoints a digit (the extreme points of its stroke), and panoptic segmentation, with the textures as stuff. The validation scenes
use handwriting that no training scene uses: the last 450 digits of the collection, in its own order.

Masks are outlines: the holes of 0, 6, 8 and 9 belong to the digit, as COCO's polygons have no holes. Neither have those of a digit that
another hides in its middle; its ``area`` is of what is seen.
"""

import dataclasses
import functools
import json
import math
import os
import shutil
import tempfile
from typing import Any, Callable, Iterable

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json, load_sem_seg
from detectron2.data.datasets.coco_panoptic import merge_to_panoptic

from ..documents import read_json
from ..errors import UserError


@dataclasses.dataclass(frozen=True)
class Scenes:
    """A data set: how many scenes it has, and what they look like.

    Args:
        version: of the scenes, which are drawn from it: those of another version are made again.
        splits: number of scenes of each.
        size: of an image, in pixels, both sides.
        sides, count: ranges of the digits' sizes in pixels and of their number, without the upper end.
        overlap: the largest part of a digit that others may hide.
        clutter: range of the number of pieces of digits that are no objects, without the upper end.
    """

    version: int
    splits: dict[str, int]
    size: int
    sides: tuple[int, int]
    count: tuple[int, int]
    overlap: float = 0.0
    clutter: tuple[int, int] = (0, 1)


SETS = {
    "digits": Scenes(1, {"train": 1200, "val": 250}, 160, (36, 85), (2, 7)),
    "digits_crowd": Scenes(2, {"train": 4000, "val": 500}, 96, (18, 52), (3, 7), overlap=0.3, clutter=(1, 4)),
}
LOOK = ("size", "sides", "count", "overlap", "clutter")  # what `Scene` takes
CLASSES = [str(digit) for digit in range(10)]
STUFF = ["stripes", "checks", "dots", "clouds"]
KEYPOINTS = ["top", "bottom", "left", "right"]

HELD_OUT = 450  # of the 1,797 digits, at the end
_STUFF_ID = 101  # first category id of the stuff in the panoptic annotations


def root(which: str = "digits") -> str:
    """The folder of the scenes: ``which`` of SETS, where detectron2 looks for data sets."""
    return os.path.join(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")), which)


def register_digits() -> None:
    """Puts each set into detectron2's catalogues: ``<set>_<split>``, ``..._panoptic_separated``, ``..._panoptic_stuffonly``, and for
    classification ``<set>_classes_<split>``."""
    things = {
        "thing_classes": CLASSES,
        "keypoint_names": KEYPOINTS,
        "keypoint_flip_map": [("left", "right")],
        "thing_dataset_id_to_contiguous_id": {i + 1: i for i in range(len(CLASSES))},
    }
    # detectron2's "separated" format: class 0 of the semantic map stands for all things
    stuff = {
        "stuff_classes": ["things", *STUFF],
        "stuff_dataset_id_to_contiguous_id": {0: 0, **{_STUFF_ID + i: i + 1 for i in range(len(STUFF))}},
        "ignore_label": 255,
    }
    for which, split in ((which, split) for which, scenes in SETS.items() for split in scenes.splits):
        name, paths = f"{which}_{split}", _paths(root(which), split)
        if name in DatasetCatalog:
            continue
        instances = {"json_file": paths["instances"], "image_root": paths["images"], **things}
        semantic = {"image_root": paths["images"], "sem_seg_root": paths["stuff"], **stuff}
        panoptic = {"panoptic_root": paths["panoptic"], "panoptic_json": paths["panoptic"] + ".json", **instances, **semantic}
        for full, load, evaluator, metadata in (
            (name, _load_instances, "coco", instances),
            (f"{name}_panoptic_separated", _load_panoptic, "coco_panoptic_seg", panoptic),
            (f"{name}_panoptic_stuffonly", _load_semantic, "sem_seg", semantic),
            (f"{which}_classes_{split}", _load_classes, "classification", {"classes": CLASSES}),
        ):
            DatasetCatalog.register(full, functools.partial(load, full, which, split))
            MetadataCatalog.get(full).set(evaluator_type=evaluator, generated=True, **metadata)


def _paths(folder: str, split: str) -> dict[str, str]:
    return {
        "images": os.path.join(folder, split),
        "instances": os.path.join(folder, "annotations", f"instances_{split}.json"),
        "panoptic": os.path.join(folder, f"panoptic_{split}"),
        "stuff": os.path.join(folder, f"stuff_{split}"),
    }


def _load_instances(name: str, which: str, split: str) -> list[dict]:
    paths = _paths(generate(which=which), split)
    return load_coco_json(paths["instances"], paths["images"], name)


def _load_semantic(name: str, which: str, split: str) -> list[dict]:
    paths = _paths(generate(which=which), split)
    return load_sem_seg(paths["stuff"], paths["images"])


def _load_panoptic(name: str, which: str, split: str) -> list[dict]:
    return merge_to_panoptic(_load_instances(name, which, split), _load_semantic(name, which, split))


def _load_classes(name: str, which: str, split: str) -> list[dict]:
    """The digits of the scenes one by one, with a margin, as records of `classification`; as large as they are in the scenes."""
    paths, records = _paths(generate(which=which), split), []
    for image in load_coco_json(paths["instances"], paths["images"], extra_annotation_keys=["id"]):
        for a in image["annotations"]:
            x, y, w, h = a["bbox"]
            half = 0.65 * max(w, h)
            box = [x + w / 2 - half, y + h / 2 - half, x + w / 2 + half, y + h / 2 + half]
            crop = [int(min(max(side, 0), SETS[which].size)) for side in box]
            records.append({"file_name": image["file_name"], "crop": crop, "image_id": a["id"], "label": a["category_id"] - 1})
    return records


def generate(folder: str = "", progress: Callable[[Iterable[int]], Iterable[int]] = lambda scenes: scenes, which: str = "digits") -> str:
    """Makes the scenes of ``which`` of SETS if they do not exist yet, and returns their folder (by default `root`).

    The scenes are the same every time. The folder appears complete or not at all, even if several processes ask at once.
    Raises UserError if scikit-learn is missing, the folder cannot be written, or something else is in its place.
    """
    folder, scenes = folder or root(which), SETS[which]
    stamp = os.path.join(folder, "version.json")
    wanted = {"version": scenes.version, "scenes": scenes.splits, "image_size": scenes.size}
    found = _stamped(stamp)
    if found == wanted:
        return folder
    if os.path.exists(folder) and (not isinstance(found, dict) or found.keys() != wanted.keys()):  # somebody else's, as its version.json says
        raise UserError(f"{folder!r} exists, but this project did not create it: move it, or set DETECTRON2_DATASETS")
    parent = os.path.dirname(os.path.abspath(folder))
    try:
        os.makedirs(parent, exist_ok=True)
        temporary = tempfile.TemporaryDirectory(prefix=".digits-", dir=parent)
    except OSError as error:
        raise UserError(
            f"the digits cannot be written to {parent!r}: {error.strerror}. To use another folder, set DETECTRON2_DATASETS"
        ) from error
    with temporary:
        partial = os.path.join(temporary.name, "digits")
        digits, labels = handwriting()
        for seed, (split, count) in enumerate(scenes.splits.items()):
            held_out = slice(-HELD_OUT, None) if split == "val" else slice(None, -HELD_OUT)
            _write_split(_paths(partial, split), digits[held_out], labels[held_out], scenes, count, seed, progress)
        with open(os.path.join(partial, "version.json"), "w", encoding="utf-8") as f:
            json.dump(wanted, f)
        if os.path.exists(folder) and _stamped(stamp) != wanted:  # of an older version
            shutil.rmtree(folder)
        try:
            os.rename(partial, folder)
        except OSError:
            if _stamped(stamp) != wanted:  # else another process made the same scenes first
                raise
    return folder


def _stamped(stamp: str) -> Any:
    try:
        return read_json(stamp)
    except ValueError:
        return None


def handwriting() -> tuple[np.ndarray, np.ndarray]:
    """All digits as (1797, 8, 8) float32 in [0, 1], and their classes."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("the digits data set needs scikit-learn, which contains the handwriting: pip install scikit-learn") from None
    digits = load_digits()
    return (digits.images / 16.0).astype(np.float32), digits.target


def _write_split(
    paths: dict[str, str], digits: np.ndarray, labels: np.ndarray, scenes: Scenes, count: int, seed: int, progress: Callable[..., Any]
) -> None:
    for kind in ("images", "panoptic", "stuff"):
        os.makedirs(paths[kind])
    os.makedirs(os.path.dirname(paths["instances"]), exist_ok=True)
    annotations: list[dict[str, Any]] = []
    images, panoptic = [], []
    look = {key: getattr(scenes, key) for key in LOOK}
    for image_id in progress(range(1, count + 1)):
        # its own generator: a scene does not depend on how many came before
        scene = Scene(np.random.default_rng((scenes.version, seed, image_id)), digits, labels, **look)
        stem = f"{image_id:06d}"
        cv2.imwrite(os.path.join(paths["images"], stem + ".jpg"), scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        cv2.imwrite(os.path.join(paths["stuff"], stem + ".png"), scene.stuff)
        ids = scene.segment_ids
        cv2.imwrite(os.path.join(paths["panoptic"], stem + ".png"), np.stack([ids // 65536, ids // 256 % 256, ids % 256], -1).astype(np.uint8))
        images.append({"id": image_id, "file_name": stem + ".jpg", "height": scenes.size, "width": scenes.size})
        for annotation in scene.annotations:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, **annotation})
        panoptic.append({"image_id": image_id, "file_name": stem + ".png", "segments_info": scene.segments})
    things = [
        {"id": i + 1, "name": name, "supercategory": "digit", "keypoints": KEYPOINTS, "skeleton": [[1, 2], [3, 4]]}
        for i, name in enumerate(CLASSES)
    ]
    stuff = [{"id": _STUFF_ID + i, "name": name, "supercategory": "texture", "isthing": 0} for i, name in enumerate(STUFF)]
    about = {"description": "digits: scenes of handwritten digits (UCI, CC BY 4.0)", "version": str(scenes.version)}
    with open(paths["instances"], "w", encoding="utf-8") as f:
        f.write(json.dumps({"info": about, "images": images, "annotations": annotations, "categories": things}))  # faster than dump
    with open(paths["panoptic"] + ".json", "w", encoding="utf-8") as f:
        categories = [{"id": c["id"], "name": c["name"], "supercategory": "digit", "isthing": 1} for c in things] + stuff
        f.write(json.dumps({"info": about, "images": images, "annotations": panoptic, "categories": categories}))


class Scene:
    """One scene of handwriting; the other arguments are those of `Scenes`.

    It has ``image`` (BGR), ``stuff`` (0 for things, else the texture's place in STUFF plus 1), ``segment_ids`` and ``annotations``, of the
    parts that are seen.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        digits: np.ndarray,
        labels: np.ndarray,
        size: int = SETS["digits"].size,
        sides: tuple[int, int] = SETS["digits"].sides,
        count: tuple[int, int] = SETS["digits"].count,
        overlap: float = 0.0,
        clutter: tuple[int, int] = (0, 1),
    ):
        self.image, self.stuff = _background(rng, size)
        self._overlap = overlap
        self._taken = np.zeros(self.stuff.shape, bool)
        self._instances = np.zeros(self.stuff.shape, np.int32)
        self._labels: list[int] = []
        self._areas: list[int] = []  # with what is hidden
        pieces = int(rng.integers(*clutter)) if clutter[1] > 1 else 0
        for i in range(pieces + int(rng.integers(*count))):
            index = rng.integers(len(digits))
            self._place(rng, digits[index], None if i < pieces else int(labels[index]), int(rng.integers(*sides)))
        self.annotations = [self._annotation(i, label) for i, label in enumerate(self._labels, 1)]

    def _place(self, rng: np.random.Generator, digit: np.ndarray, label: int | None, size: int) -> None:
        """Draws a digit, or without a label half of one, turned any way."""
        ink = cv2.resize(np.pad(digit, 1), (size, size), interpolation=cv2.INTER_CUBIC)
        if label is None:
            ink[: size // 2] = 0
        angle = rng.uniform(0, 360) if label is None else rng.uniform(-15, 15)
        turn = cv2.getRotationMatrix2D((size / 2 - 0.5, size / 2 - 0.5), angle, 1.0)
        ink = np.clip(cv2.warpAffine(ink, turn, (size, size), flags=cv2.INTER_CUBIC), 0, 1)
        outline = cv2.findContours((ink > 0.45).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]
        outline = [contour for contour in outline if len(contour) >= 3 and cv2.contourArea(contour) >= 4]
        silhouette = cv2.drawContours(np.zeros((size, size), np.uint8), outline, -1, (1,), cv2.FILLED).astype(bool)
        if not silhouette.any():
            return
        for _ in range(20):  # places until one is free; a crowded scene gets by with fewer digits
            x, y = (int(v) for v in rng.integers(0, len(self.image) - size + 1, 2))
            window = (slice(y, y + size), slice(x, x + size))
            if self._free(window, silhouette):
                break
        else:
            return
        # ink that contrasts with what lies under it
        under = self.image[window].astype(np.float32)
        bright = under[silhouette].mean() < 128
        colour = rng.uniform(190, 255, 3) if bright else rng.uniform(0, 70, 3)
        # the edge of the mask lies half-way from paper to ink
        alpha = np.clip((ink - 0.3) / 0.3, 0, 1)[..., None]
        self.image[window] = np.clip(under * (1 - alpha) + colour * alpha + rng.normal(0, 4, under.shape) * alpha, 0, 255).astype(np.uint8)
        self._taken[window] |= cv2.dilate(silhouette.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        if label is not None:
            self._labels.append(label)
            self._areas.append(int(silhouette.sum()))
            self._instances[window][silhouette] = len(self._labels)
            self.stuff[window][silhouette] = 0

    def _free(self, window: tuple[slice, slice], silhouette: np.ndarray) -> bool:
        """Whether a digit may be drawn there: it touches no other, or leaves enough of each to be seen."""
        if not self._overlap:
            return not (self._taken[window] & silhouette).any()
        bins = len(self._areas) + 1
        after = np.bincount(self._instances.ravel(), minlength=bins) - np.bincount(self._instances[window][silhouette], minlength=bins)
        return bool((after[1:] >= (1 - self._overlap) * np.array(self._areas)).all())

    def _annotation(self, instance: int, label: int) -> dict[str, Any]:
        rows, columns = np.nonzero(self._instances == instance)
        left, top, width, height = box = _bounds(rows, columns)
        seen = self._instances[top : top + height, left : left + width] == instance
        extremes = [rows.argmin(), rows.argmax(), columns.argmin(), columns.argmax()]
        return {
            "category_id": label + 1,
            "bbox": box,
            "area": len(rows),
            "segmentation": [(polygon + (left, top)).ravel().tolist() for polygon in _polygons(seen)],
            "keypoints": [int(v) for i in extremes for v in (columns[i], rows[i], 2)],
            "num_keypoints": len(KEYPOINTS),
        }

    @property
    def segment_ids(self) -> np.ndarray:
        """(H, W) int32: 1, 2, ... for the digits, then one id for each texture that is seen."""
        return np.where(self._instances > 0, self._instances, len(self.annotations) + self.stuff)

    @property
    def segments(self) -> list[dict[str, Any]]:
        ids, result = self.segment_ids, []
        for segment in np.unique(ids):
            rows, columns = np.nonzero(ids == segment)
            thing = segment <= len(self.annotations)
            category = self.annotations[segment - 1]["category_id"] if thing else _STUFF_ID + int(segment) - len(self.annotations) - 1
            result.append({"id": int(segment), "category_id": category, "area": len(rows), "bbox": _bounds(rows, columns), "iscrowd": 0})
        return result


def _bounds(rows: np.ndarray, columns: np.ndarray) -> list[int]:
    return [int(columns.min()), int(rows.min()), int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1]


def _polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask as (N, 2) x, y, an eighth of a pixel inside its edge; OpenCV's run through the outer pixels' centres."""
    fine = mask.astype(np.uint8).repeat(4, axis=0).repeat(4, axis=1)
    return [(contour[:, 0] + 0.5) / 4 for contour in cv2.findContours(fine, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)[0]]


def _background(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """One to three regions of different textures: a BGR image, and the texture's place in STUFF plus 1 for each pixel."""
    kinds = rng.permutation(len(STUFF))[: rng.integers(1, 4)]
    # each pixel belongs to the nearest of a few points
    points = rng.uniform(0, size, (len(kinds), 2)).tolist()  # Python's floats: numpy 1 and 2 promote their own differently
    y, x = np.mgrid[:size, :size].astype(np.float32)
    nearest = np.argmin([(x - px) ** 2 + (y - py) ** 2 for px, py in points], axis=0)
    image, stuff = np.zeros((size, size, 3), np.float32), np.zeros((size, size), np.uint8)
    for i, kind in enumerate(kinds):
        a, b = rng.uniform(40, 215, (2, 3))
        b = a + (b - a) * 0.35  # textures have less contrast than the ink
        pattern = _texture(STUFF[kind], rng, x, y)[..., None]
        region = nearest == i
        image[region] = (a * (1 - pattern) + b * pattern)[region]
        stuff[region] = kind + 1
    return np.clip(image + rng.normal(0, 5, image.shape), 0, 255).astype(np.uint8), stuff


def _texture(kind: str, rng: np.random.Generator, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How much of its second colour each pixel has, from 0 to 1, (H, W)."""
    if kind == "clouds":
        return np.clip(cv2.resize(rng.uniform(0, 1, (8, 8)).astype(np.float32), x.shape[::-1], interpolation=cv2.INTER_CUBIC), 0, 1)
    angle, period = rng.uniform(0, np.pi), rng.uniform(7, 14)
    cos, sin = math.cos(angle), math.sin(angle)
    u, v = (x * cos + y * sin) / period, (y * cos - x * sin) / period
    if kind == "checks":
        return (np.floor(u) + np.floor(v)) % 2
    inside = u % 1 < 0.5 if kind == "stripes" else ((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < 0.09
    return inside.astype(np.float32)
