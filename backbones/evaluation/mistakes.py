"""What went wrong in an evaluation: TIDE's kinds of errors, which classes are confused, and AP by size and number of objects."""

import contextlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np

from ..errors import UserError
from .comparison import pycocotools_evaluation

# tidecv's short name -> ours, and what it means (Bolya et al., "TIDE", 2020)
KINDS = {
    "Cls": ("classification", "the location is right, the class is wrong"),
    "Loc": ("localisation", "the class is right, the box is off (IoU 0.1 to 0.5)"),
    "Both": ("both", "class and location are wrong"),
    "Dupe": ("duplicate", "another detection already matches the object"),
    "Bkg": ("background", "there is no object (IoU below 0.1)"),
    "Miss": ("missed", "no detection is near the object"),
}


@dataclass
class Judged:
    """The detections and objects of an image at a score threshold; each detection is matched to one object or none."""

    truth: list[dict]
    found: list[dict]  # by falling score, less those in crowds
    met: list[int]  # for each of ``found`` its place in ``truth``, or -1

    def counts(self) -> dict[str, int]:
        pairs = [(d, self.truth[i]) for d, i in zip(self.found, self.met) if i >= 0]
        wrong = sum(d["category_id"] != t["category_id"] for d, t in pairs)
        return {"wrong class": wrong, "no object": len(self.found) - len(pairs), "missed": len(self.truth) - len(pairs)}


def tide(dataset: dict[str, Any], results: list[dict], task: str = "bbox") -> dict[str, Any]:
    """TIDE's errors by tidecv, at IoU 0.5: AP50, and for each of `KINDS` the number of errors and the AP50 lost to them.

    As in the package, a detection in a crowd is no false positive and costs nothing, but is counted among the kinds, mostly as background.
    As in COCO's AP, detections of a class without objects do not count; "absent" is their number.

    Raises UserError without the package, or if there are no objects but crowds, or no detections.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            from tidecv import TIDE, Data
    except ImportError as error:
        why = "is not installed" if isinstance(error, ModuleNotFoundError) and error.name == "tidecv" else f"cannot be imported ({error})"
        said = f"kinds of errors (TIDE) are not counted: the package tidecv {why}: pip install tidecv"
        raise UserError(said, "missing-package", "tidecv") from error
    present = {a["category_id"] for a in dataset["annotations"] if not a.get("iscrowd")}
    if not present:
        raise UserError("all objects of the data are crowds, so there are no errors to count", "data", "--dataset")
    absent, results = len(results), [r for r in results if r["category_id"] in present]
    absent -= len(results)
    if not results:
        raise UserError("no detection is of a class that the data have objects of: AP is 0, and there is nothing to tell apart", "data")
    evaluation = pycocotools_evaluation(dataset, results, task)  # which gives polygons as run lengths
    truth, found = Data("truth"), Data("found", max_dets=evaluation.params.maxDets[-1])
    key = "mask" if task == "segm" else "box"
    for image in dataset["images"]:  # those without objects too
        truth.add_image(image["id"], str(image.get("file_name", image["id"])))
    for category in dataset["categories"]:
        truth.add_class(category["id"], category["name"])
    for a in dataset["annotations"]:
        shape = evaluation.cocoGt.annToRLE(a) if task == "segm" else a["bbox"]
        add = truth.add_ignore_region if a.get("iscrowd") else truth.add_ground_truth
        add(a["image_id"], a["category_id"], **{key: shape})
    for r in results:
        found.add_detection(r["image_id"], r["category_id"], r["score"], **{key: r["segmentation" if task == "segm" else "bbox"]})
    with matplotlib.rc_context():  # it sets colours for all pictures of the process
        evaluator = TIDE()
    run = evaluator.evaluate(truth, found, mode=TIDE.MASK if task == "segm" else TIDE.BOX)
    counts, lost, special = run.count_errors(), run.fix_main_errors(), run.fix_special_errors()
    false = {
        "FalsePos": sum(used[1] is False for data in run.ap_data.objs.values() for used in data.data_points.values()),
        "FalseNeg": sum(map(len, run.false_negatives.values())),
    }
    return {
        "AP50": float(run.ap),
        "absent": absent,
        "kinds": {KINDS[kind.short_name][0]: {"count": counts[kind], "dAP": float(lost[kind])} for kind in counts},
        "false positives": {"count": false["FalsePos"], "dAP": next(float(v) for k, v in special.items() if k.short_name == "FalsePos")},
        "false negatives": {"count": false["FalseNeg"], "dAP": next(float(v) for k, v in special.items() if k.short_name == "FalseNeg")},
    }


def judge(dataset: dict[str, Any], results: list[dict], threshold: float = 0.5, overlap: float = 0.5) -> dict[Any, Judged]:
    """By image id, what met what: boxes of any class, by falling score, each with the free object of highest IoU, ``overlap`` or more.

    Detections of a score below ``threshold`` do not count, nor do those that have met no object and lie in a crowd by more than half.
    """
    from pycocotools import mask as boxes

    truth, found, judged = defaultdict(list), defaultdict(list), {}
    for a in dataset["annotations"]:
        truth[a["image_id"]].append(a)
    for r in results:
        if r["score"] >= threshold:
            found[r["image_id"]].append(r)
    for image in (entry["id"] for entry in dataset["images"]):
        objects, crowds = ([a for a in truth[image] if bool(a.get("iscrowd")) == crowd] for crowd in (False, True))
        detections = sorted(found[image], key=lambda r: -r["score"])
        mine = np.array([r["bbox"] for r in detections], float).reshape(-1, 4)

        def ious(others: list[dict], crowd: bool, mine=mine) -> np.ndarray:
            if not len(mine) or not others:
                return np.zeros((len(mine), len(others)))
            return np.asarray(boxes.iou(mine, np.array([a["bbox"] for a in others], float), [crowd] * len(others)))

        free, met, table = np.ones(len(objects), bool), [], ious(objects, False)
        for row in table:
            best = int(np.argmax(row * free)) if len(objects) else -1
            hit = best >= 0 and (row * free)[best] >= overlap
            met.append(best if hit else -1)
            if hit:
                free[best] = False
        aside = ious(crowds, True).max(1, initial=0) > 0.5
        keep = [i for i in range(len(detections)) if met[i] >= 0 or not aside[i]]
        judged[image] = Judged(objects, [detections[i] for i in keep], [met[i] for i in keep])
    return judged


def confusion(dataset: dict[str, Any], judged: dict[Any, Judged]) -> tuple[list[str], np.ndarray]:
    """Names of the C classes and of "background", and (C + 1, C + 1) counts: ground truth by row, detections by column."""
    categories = sorted(dataset["categories"], key=lambda c: c["id"])
    place = {c["id"]: i for i, c in enumerate(categories)}
    table = np.zeros((len(place) + 1, len(place) + 1), int)
    for image in judged.values():
        for detection, i in zip(image.found, image.met):
            table[place[image.truth[i]["category_id"]] if i >= 0 else -1, place[detection["category_id"]]] += 1
        for i, a in enumerate(image.truth):
            table[place[a["category_id"]], -1] += i not in image.met
    return [*(c["name"] for c in categories), "background"], table


def by_kind_of_object(dataset: dict[str, Any], results: list[dict], task: str = "bbox") -> dict[str, list[dict[str, Any]]]:
    """AP and how many objects there are: by COCO's limits of size, by thirds of the data's own sizes, and by how many objects an image has."""
    evaluation = pycocotools_evaluation(dataset, results, task)
    areas = np.array([a["area"] for a in dataset["annotations"] if not a.get("iscrowd")], float)
    low, high = np.quantile(areas, [1 / 3, 2 / 3]) if len(areas) else (0.0, 0.0)
    past_low, past_high = (float(np.nextafter(v, np.inf)) for v in (low, high))  # COCO's ranges hold both ends: an object is in one third
    sizes = {
        "all": (0, 1e10), "small (below 32²)": (0, 32**2), "medium (32² to 96²)": (32**2, 96**2), "large (above 96²)": (96**2, 1e10),
        f"smallest third (up to {low**0.5:.0f}²)": (0, low),
        f"middle third ({low**0.5:.0f}² to {high**0.5:.0f}²)": (past_low, high), f"largest third (above {high**0.5:.0f}²)": (past_high, 1e10),
    }  # fmt: skip
    rows = [
        {"name": name, "objects": int(((areas >= a) & (areas <= b)).sum()), "AP": ap}
        for (name, (a, b)), ap in zip(sizes.items(), _aps(evaluation, [list(v) for v in sizes.values()]))
    ]
    number = Counter(a["image_id"] for a in dataset["annotations"] if not a.get("iscrowd"))
    has = np.array([number[image["id"]] for image in dataset["images"]])
    crowding, limits = [], sorted({int(v) for v in np.quantile(has, [1 / 3, 2 / 3, 1])}) if len(has) else []
    for first, last in zip([0, *(limit + 1 for limit in limits)], limits):
        ids = [image["id"] for image, count in zip(dataset["images"], has) if first <= count <= last]
        evaluation = pycocotools_evaluation(dataset, results, task)
        evaluation.params.imgIds = ids
        name = f"{first} to {last} objects" if first < last else f"{last} object{'' if last == 1 else 's'}"
        crowding.append({"name": name, "images": len(ids), "objects": sum(number[i] for i in ids), "AP": _aps(evaluation, [[0, 1e10]])[0]})
    return {"size": rows, "objects in the image": crowding}


def _aps(evaluation: Any, ranges: list[list[float]]) -> list[float | None]:
    """AP for each range of areas; None if there is no object."""
    evaluation.params.areaRng, evaluation.params.areaRngLbl = ranges, [str(i) for i in range(len(ranges))]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][..., -1]  # thresholds, recalls, classes, areas, at the most detections
    values = [precision[..., i][precision[..., i] > -1] for i in range(len(ranges))]
    return [100 * float(v.mean()) if v.size else None for v in values]
