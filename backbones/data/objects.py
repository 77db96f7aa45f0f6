"""Masks, keypoints and areas of a data set's objects: checks them, and repairs what has one sensible meaning."""

from collections import defaultdict
from typing import Any, Sequence

import pycocotools.mask as mask_util

from .annotations import mask_fault, numbers
from .dataset import Dataset
from .sources import Use


def polygons(entry: dict[str, Any]) -> str:
    """Makes a mask that is a single list of numbers one polygon, and drops short polygons beside others; the kind of the finding, or ""."""
    mask: Any = entry.get("segmentation")
    if type(mask) is not list or not mask:
        return ""
    if type(mask[0]) is not list:
        if len(mask) < 6 or not numbers(mask):
            return ""
        entry["segmentation"] = [mask]
        return "flat polygon"
    good = [polygon for polygon in mask if type(polygon) is not list or len(polygon) >= 6 and len(polygon) % 2 == 0]
    if not good or len(good) == len(mask):
        return ""
    entry["segmentation"] = good
    return "short polygon"


def masks(data: Dataset, use: Use) -> None:
    """Leaves each object a mask of polygons or run lengths that fits its image; `Use.no_mask` says what happens to an object without one.

    `polygons` has mended those that can be.
    """
    sizes = {image["id"]: (image["height"], image["width"]) for image in data.images}
    found: dict[str, list[int]] = defaultdict(list)  # kind -> places
    without: dict[str, list[int]] = defaultdict(list)
    for i, a in enumerate(data.annotations):
        mask: Any = a.get("segmentation")
        fault = mask_fault(mask, *sizes[a["image_id"]])
        if fault == "short polygon":  # all of them: `polygons` has dropped the others
            fault = "no mask"
        if fault and a["iscrowd"]:  # an evaluation of masks needs a mask for each object
            a["segmentation"] = [polygon_of_box(a["bbox"])]
            found["box as mask"].append(i)
        elif fault:
            without[fault].append(i)
        elif isinstance(mask, dict) and not a["iscrowd"]:
            data.runs += 1
    every = sorted(i for places in without.values() for i in places)
    if use.no_mask == "stop":
        if len(every) == sum(not a["iscrowd"] for a in data.annotations) and set(without) == {"no mask"}:
            without["no masks"] = without.pop("no mask")
        found.update(without)
    elif use.no_mask == "box":
        found["box as mask"] += every
        for i in every:
            data.annotations[i]["segmentation"] = [polygon_of_box(data.annotations[i]["bbox"])]
    else:
        found["object without mask"] = every
    for kind, places in found.items():
        data.findings.add_all(kind, places, data.name)
    if use.no_mask == "skip":
        gone = set(every)
        data.keep([i for i in range(len(data.annotations)) if i not in gone])


def keypoints(data: Dataset, use: Use) -> None:
    """Names the keypoints. If they are learnt, each object gets the same number, in the same order; zeros (unknown) if it has none."""
    used = {a["category_id"] for a in data.annotations if a.get("keypoints")}
    named = [c["keypoints"] for c in data.categories if c["id"] in used and _are_names(c.get("keypoints"))]
    given = [a["keypoints"] for a in data.annotations if a.get("keypoints") and numbers(a["keypoints"])]
    if named:
        data.keypoint_names = list(use.points if sorted(use.points) == sorted(named[0]) else named[0])
    elif given and use.keypoints:
        data.keypoint_names = [str(i + 1) for i in range(len(given[0]) // 3)]
        data.findings.add("keypoint names", f"{len(data.keypoint_names)} keypoints")
    elif not data.labelled:
        data.keypoint_names = next((list(c["keypoints"]) for c in data.categories if _are_names(c.get("keypoints"))), [])
    if not use.keypoints:
        return
    _in_order(data)
    count = 3 * len(data.keypoint_names)
    found: dict[str, list[int]] = defaultdict(list)
    for i, a in enumerate(data.annotations):
        points: Any = a.get("keypoints")
        stated = a.get("num_keypoints")
        sound = bool(points) and numbers(points, count)
        if not sound:
            if points:
                found["number of keypoints"].append(i)
            elif not a["iscrowd"]:
                found["keypoints absent"].append(i)
            points = a["keypoints"] = [0] * count
        flags = points[2::3]
        if not set(flags) <= {0, 1, 2}:
            found["keypoint visibility"].append(i)
        labelled = sum(v > 0 for v in flags)
        if stated != labelled:
            a["num_keypoints"] = labelled
            if stated is not None and sound:
                found["count of keypoints"].append(i)
    if data.labelled and not given:
        found["no keypoints"] = found.pop("keypoints absent", [])
    for kind, places in found.items():
        data.findings.add_all(kind, places, data.name)


def _in_order(data: Dataset) -> None:
    """Puts the keypoints of classes that name the same ones in another order into the order of ``data.keypoint_names``."""
    wanted = data.keypoint_names
    own = {c["id"]: c["keypoints"] for c in data.categories if _are_names(c.get("keypoints")) and c["keypoints"] != wanted}
    orders = {i: list(map(names.index, wanted)) for i, names in own.items() if sorted(names) == sorted(set(wanted))}
    places = []
    for i, a in enumerate(data.annotations) if orders else ():
        if a["category_id"] in orders and numbers(a.get("keypoints"), 3 * len(wanted)):
            a["keypoints"] = [value for k in orders[a["category_id"]] for value in a["keypoints"][3 * k : 3 * k + 3]]
            places.append(i)
    by_number = ("skeleton", "flip_idx")
    data.categories = [
        {**{key: value for key, value in c.items() if key not in by_number}, "keypoints": wanted} if c["id"] in orders else c
        for c in data.categories
    ]
    data.findings.add_all("keypoints by name", places, data.name)


def areas(data: Dataset) -> None:
    """Gives each object an area in pixels: that of its mask if it has one, else that of its box."""
    without = [a for a in data.annotations if type(a.get("area")) not in (int, float) or not 0 < a["area"] < 1e13]
    if without:
        sizes = {image["id"]: (image["height"], image["width"]) for image in data.images}
        for a in without:
            a["area"] = _area(a, *sizes[a["image_id"]])
        data.findings.add("area", count=len(without))


def _area(a: dict, height: int, width: int) -> float:
    mask: Any = a.get("segmentation")
    if not mask_fault(mask, height, width):
        runs = mask_util.frPyObjects(mask, height, width) if isinstance(mask, list) or isinstance(mask["counts"], list) else mask
        area = float(mask_util.area(mask_util.merge(runs) if isinstance(runs, list) else runs))
        if area > 0:
            return area
    return float(a["bbox"][2] * a["bbox"][3])


def box_of_keypoints(points: Any) -> list[float] | None:
    """x, y, width, height around the visible ones of [x, y, visibility, ...], if there are any."""
    if not points or not numbers(points) or len(points) % 3:
        return None
    return _around([(x, y) for x, y, v in zip(points[::3], points[1::3], points[2::3]) if v > 0])


def box_of_mask(mask: Any, height: int, width: int) -> list[float] | None:
    """x, y, width, height around a mask, if it is valid for an image of that size."""
    if mask_fault(mask, height, width):
        return None
    if isinstance(mask, dict):
        return mask_util.toBbox(mask_util.frPyObjects(mask, height, width) if isinstance(mask["counts"], list) else mask).tolist()
    return _around([point for polygon in mask for point in zip(polygon[::2], polygon[1::2])])


def polygon_of_box(box: Sequence[float]) -> list[float]:
    """The corners x, y, ... of a box x, y, width, height."""
    x, y, w, h = map(float, box)
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def _around(points: list[tuple[float, float]]) -> list[float] | None:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    return [float(min(xs)), float(min(ys)), float(max(xs) - min(xs)), float(max(ys) - min(ys))] if points else None


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)
