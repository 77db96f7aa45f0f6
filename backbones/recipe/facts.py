"""The facts that rules use: statistics of the data."""

from collections import Counter
from dataclasses import dataclass
from typing import Sequence

import numpy as np
import pycocotools.mask as mask_util

from ..data.annotations import mask_fault, numbers
from ..data.dataset import Dataset
from ..data.image_files import evenly

_SAMPLED = 5000  # objects whose masks are checked
# a mask that fills this much of its box is the box
RECTANGLE = 0.98


@dataclass(frozen=True)
class Facts:
    """Statistics of the training data, and the number of images to evaluate on. Sizes are in pixels of the files."""

    images: int
    short: np.ndarray  # the shorter side of each image (N,)
    long: np.ndarray
    boxes: np.ndarray  # width and height of each object (M, 2), crowds left out
    shorter: np.ndarray  # shorter side of each object's image (M,)
    counts: dict[str, int]  # objects of each class
    shares: dict[str, float]  # for each class, the share of images that contain it
    empty: int  # images without objects
    per_image: np.ndarray  # objects of each image that has some
    masks: float  # the share of objects with a mask that is not a rectangle
    rectangles: float  # with a rectangle as mask
    keypoints: float  # with a visible keypoint
    tested: int  # images to evaluate on

    @property
    def objects(self) -> int:
        return len(self.boxes)


def facts_of(training: Sequence[Dataset], testing: Sequence[Dataset]) -> Facts:
    """Of data sets as `data.reader.read` gives them."""
    images = [image for data in training for image in data.images]
    sides = np.array([(min(i["width"], i["height"]), max(i["width"], i["height"])) for i in images], float).reshape(-1, 2)
    boxes, shorter, owners, per_class = [], [], [], []
    counts: Counter[str] = Counter()
    kinds = np.zeros(3)
    looked = 0
    for index, data in enumerate(training):
        sizes = {image["id"]: (image["height"], image["width"]) for image in data.images}
        objects = [a for a in data.annotations if not a["iscrowd"]]
        boxes += [a["bbox"][2:] for a in objects]
        shorter += [min(sizes[a["image_id"]]) for a in objects]
        owners += [(index, a["image_id"]) for a in objects]
        per_class += [data.classes[data.class_of[a["category_id"]]] for a in objects]
        for a in evenly(objects, _SAMPLED):
            looked += 1
            if not mask_fault(a.get("segmentation"), *sizes[a["image_id"]]):
                kinds[0 if _is_rectangle(a) else 1] += 1
            kinds[2] += numbers(a.get("keypoints")) and any(a["keypoints"][2::3])
        counts.update(data.counts())
    having = Counter(name for _, name in set(zip(owners, per_class)))  # images of each class
    per_image = np.array(list(Counter(owners).values()), int)
    rectangles, masks, keypoints = (kinds / max(looked, 1)).tolist()
    return Facts(
        images=len(images),
        short=sides[:, 0],
        long=sides[:, 1],
        boxes=np.array(boxes, float).reshape(-1, 2),
        shorter=np.array(shorter, float),
        counts=dict(counts),
        shares={name: having[name] / max(len(images), 1) for name in counts},
        empty=len(images) - len(per_image),
        per_image=per_image,
        masks=masks,
        rectangles=rectangles,
        keypoints=keypoints,
        tested=sum(len(data.images) for data in testing if data.labelled),
    )


def _is_rectangle(annotation: dict) -> bool:
    mask, (width, height) = annotation.get("segmentation"), annotation["bbox"][2:]
    if isinstance(mask, dict):
        area = float(mask_util.area(mask if isinstance(mask["counts"], (str, bytes)) else mask_util.frPyObjects(mask, *mask["size"])))
    else:
        area = sum(_shoelace(np.array(polygon, float).reshape(-1, 2)) for polygon in mask or ())
    return area >= RECTANGLE * width * height


def _shoelace(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2)
