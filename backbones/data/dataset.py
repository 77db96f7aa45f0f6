"""A data set as it is used: its images, objects and classes after `reader.read`."""

import contextlib
import gc
import os
from dataclasses import dataclass, field
from typing import Any, Iterator

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode

from ..errors import UserError, counted
from .annotations import numbers
from .findings import Findings, short
from .sources import Source, Use


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """Turns Python's garbage collector off: it would scan millions of new lists repeatedly, for longer than it takes to read them."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


@dataclass
class Dataset:
    """A data set as it is used.

    Attributes:
        images, annotations: in COCO's form, repaired. Paths of images are within the image folder, boxes x, y, width, height in pixels.
        categories: in the order of their ids, without groups, one for each name.
        classes: their names in the model's order; those of `Use.classes` if it names any.
        class_of: category id -> number of the class.
        keypoint_names: of the objects' classes.
        foreign: classes of the file that the model does not have.
        findings: what was repaired, left out, or is wrong. If a finding is an error, the lists may lack the entries it concerns.
        labelled: whether the file has annotations. A test set without annotations gets predictions, but no evaluation.
        runs: objects with RLE masks, which need INPUT.MASK_FORMAT bitmask.
        own_ids: of the annotations, as the file has them, where they were renumbered.
    """

    source: Source
    findings: Findings
    images: list[dict] = field(default_factory=list)
    annotations: list[dict] = field(default_factory=list)
    categories: list[dict] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    class_of: dict[int, int] = field(default_factory=dict)
    keypoint_names: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    labelled: bool = True
    runs: int = 0
    own_ids: list[Any] | None = None

    def error(self) -> UserError | None:
        """Why the data cannot be used, or None."""
        return self.findings.error(self.source.called, self.source.json_file, self.source.image_root)

    def name(self, place: int) -> str:
        """How a finding names an annotation: its id in the file, and its image."""
        a = self.annotations[place]
        number = a["id"] if self.own_ids is None else self.own_ids[place]
        image = next(image["file_name"] for image in self.images if image["id"] == a["image_id"])
        return f"annotation {short(number)} of {short(image)}"

    def keep(self, places: list[int]) -> None:
        """Drops all other annotations."""
        if len(places) < len(self.annotations):
            self.annotations = [self.annotations[i] for i in places]
            self.own_ids = [self.own_ids[i] for i in places] if self.own_ids is not None else None

    def summary(self) -> str:
        """The line that is logged for each data set."""
        crowds = sum(1 for a in self.annotations if a["iscrowd"])
        some = f"{len(self.class_of)} of " if len(self.class_of) < len(self.classes) else ""
        about = f"{counted(len(self.annotations) - crowds, 'object')} of {some}{counted(len(self.classes), 'class')}"
        about = about if self.labelled else "no annotations: predictions only, no evaluation"
        return f"{self.source.name}: {counted(len(self.images), 'image')}, {about}; {self.findings.effects()}; crowds: {crowds}"

    def counts(self) -> dict[str, int]:
        """The number of objects of each class, in their order; crowds are not counted."""
        found = np.bincount([self.class_of[a["category_id"]] for a in self.annotations if not a["iscrowd"]], minlength=len(self.classes))
        return dict(zip(self.classes, found.tolist()))

    def boxes(self, use: Use) -> np.ndarray:
        """The boxes (N, 4) x0, y0, x1, y1 of all objects, scaled to the network's input."""
        images = {image["id"]: use.scale(image["width"], image["height"]) for image in self.images}
        objects = [a for a in self.annotations if not a["iscrowd"]]
        boxes = np.array([a["bbox"] for a in objects], float).reshape(-1, 4) * np.array([[images[a["image_id"]]] for a in objects]).reshape(
            -1, 1
        )
        boxes[:, 2:] += boxes[:, :2]
        return boxes

    def most(self) -> int:
        """The largest number of objects in one image."""
        _, counts = np.unique([a["image_id"] for a in self.annotations], return_counts=True)
        return int(counts.max()) if len(counts) else 0

    def truth(self) -> dict[str, Any]:
        """The data in COCO's format for an evaluation; all classes of the model have a category."""
        categories = list(self.categories)
        free = 1 + max([0, *self.class_of])
        ids = {number: i for i, number in self.class_of.items()}
        for number, name in enumerate(self.classes):
            if number not in ids:
                categories.append({"id": free, "name": name})
                free += 1
        content: dict[str, Any] = {"info": {}, "images": self.images, "categories": categories}
        return {**content, "annotations": self.annotations} if self.labelled else content

    def ids(self) -> dict[int, int]:
        """Category id -> class, of all classes, as `truth` has them."""
        names = {name: number for number, name in enumerate(self.classes)}
        return {c["id"]: self.class_of.get(c["id"], names[c["name"]]) for c in self.truth()["categories"]}

    def records(self, use: Use) -> list[dict[str, Any]]:
        """detectron2's records, as its own loader makes them; with masks and keypoints if the model learns them."""
        with without_collections():
            return self._records(use)

    def _records(self, use: Use) -> list[dict[str, Any]]:
        objects: dict[int, list[dict]] = {image["id"]: [] for image in self.images}
        class_of, mode, given = self.class_of, BoxMode.XYWH_ABS, 3 * len(self.keypoint_names)
        for a in self.annotations:
            entry = {"iscrowd": a["iscrowd"], "bbox": a["bbox"], "category_id": class_of[a["category_id"]], "bbox_mode": mode}
            if use.masks and a.get("segmentation"):
                mask = a["segmentation"]
                entry["segmentation"] = mask_util.frPyObjects(mask, *mask["size"]) if _is_plain_runs(mask) else mask
            if use.keypoints or given and numbers(a.get("keypoints"), given):
                entry["keypoints"] = [v if i % 3 == 2 else v + 0.5 for i, v in enumerate(a["keypoints"])]  # pixels to their middles
            objects[a["image_id"]].append(entry)
        return [
            {
                "file_name": os.path.join(self.source.image_root, image["file_name"]),
                "height": image["height"],
                "width": image["width"],
                "image_id": image["id"],
                **({"annotations": objects[image["id"]]} if self.labelled else {}),
            }
            for image in sorted(self.images, key=lambda image: image["id"])
        ]


def _is_plain_runs(mask: Any) -> bool:
    return isinstance(mask, dict) and isinstance(mask["counts"], list)
