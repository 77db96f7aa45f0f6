"""Compares two detectors' AP on the same images, with a paired bootstrap over images."""

import contextlib
import io
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Sequence

import numpy as np


@dataclass
class Matches:
    """One detector's matches in one class and range of areas: D detections by falling score, G objects that count, at T IoU thresholds."""

    image: np.ndarray  # (D,) places of the detections' images
    true: np.ndarray  # (T, D) bool: matched to an object that counts
    counted: np.ndarray  # (T, D) bool: true or false, not left out as matched to a crowd, or of another size
    truth: np.ndarray  # (G,) places of the objects' images


def most_detections(dataset: dict[str, Any], results: list[dict]) -> int:
    """How many detections of a class in an image count: 100 as in COCO, or all if an image has more objects."""
    objects = Counter(a["image_id"] for a in dataset["annotations"])
    return max([100, *Counter(r["image_id"] for r in results).values()]) if max(objects.values(), default=0) > 100 else 100


def pycocotools_evaluation(dataset: dict[str, Any], results: list[dict], task: str, most: int = 0) -> Any:
    """pycocotools' ``COCOeval`` of results in COCO's format, ready to evaluate; ``most`` is by default `most_detections`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]) if results else COCO(), task)
    most = most or most_detections(dataset, results)
    if most > 100 and task != "keypoints":
        evaluation.params.maxDets = [1, 10, most]
    return evaluation


def match(
    images: dict[int, dict],
    places: dict[int, int],
    category: dict,
    annotations: list[dict],
    results: list[dict],
    task: str,
    sigmas: Sequence[float] = (),
    most: int = 0,
) -> list[Matches]:
    """pycocotools' matches of one class, for each range of areas of the task: all, small, medium, large (keypoints: no small).

    ``images`` and ``places``, rows of the weights that `average_precision` takes, are by id. pycocotools adds fields to the ``annotations``.
    """
    used = sorted({entry["image_id"] for entry in [*annotations, *results]})
    dataset = {"images": [images[i] for i in used], "annotations": annotations, "categories": [category]}
    evaluation = pycocotools_evaluation(dataset, results, task, most)
    if len(sigmas):
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    thresholds, found = len(evaluation.params.iouThrs), evaluation.evalImgs
    matches = []
    for area in range(len(evaluation.params.areaRng)):
        rows = found[area * len(used) : (area + 1) * len(used)]  # every image has objects or detections: none is None
        image = np.array([places[row["image_id"]] for row in rows], int)
        order = np.argsort(-np.concatenate([[], *(row["dtScores"] for row in rows)]), kind="mergesort")  # as pycocotools orders ties
        empty = np.zeros((thresholds, 0), bool)
        matched, left_out = (np.concatenate([empty, *(row[key] != 0 for row in rows)], 1)[:, order] for key in ("dtMatches", "dtIgnore"))
        truth_counts = np.array([np.count_nonzero(row["gtIgnore"] == 0) for row in rows], int)
        detections = np.repeat(image, [len(row["dtScores"]) for row in rows])[order]
        matches.append(Matches(detections, matched & ~left_out, ~left_out, np.repeat(image, truth_counts)))
    return matches


def average_precision(matches: Matches, weights: np.ndarray) -> np.ndarray:
    """(T, S) COCO's AP at each IoU threshold in each of S samples; NaN where a sample has no objects.

    ``weights`` (I, S), integers, says how often each of the I images is in each sample. pycocotools gives the same for that many
    copies of the images, except that it interleaves equal scores of an image and its copies.
    """
    recalls = np.linspace(0.0, 1.0, 101)  # exactly pycocotools' recThrs
    objects = weights[matches.truth].sum(0, dtype=np.int32)
    result = np.zeros((len(matches.true), weights.shape[1]))
    # Only at true detections does recall grow, and precision is looked up nowhere else. How many detections count before them comes from one
    # cumulative sum for all thresholds, of those that count at the highest, and from the few that differ from it.
    base = matches.counted[-1]
    before = np.cumsum(base)
    total = np.cumsum(weights[matches.image[base]], axis=0, dtype=np.int32)
    total = np.concatenate([np.zeros_like(total, shape=(1, total.shape[1])), total])
    for threshold, (true, counted) in enumerate(zip(matches.true, matches.counted)):
        change = counted.astype(np.int8) - base
        at = np.flatnonzero(true | (change != 0))
        if not len(at):
            continue
        drawn = weights[matches.image[at]]
        hits = np.cumsum(drawn * true[at, None], axis=0, dtype=np.int32)
        count = total[before[at]]
        if change.any():
            count += np.cumsum(drawn * change[at, None], axis=0, dtype=np.int32)
        precision = np.maximum.accumulate((hits / (count + np.spacing(1)))[::-1])[::-1]
        reached = np.searchsorted(recalls, hits / np.maximum(objects, 1), side="right")  # recall thresholds, up to each detection
        result[threshold] = (precision * np.diff(reached, axis=0, prepend=0)).sum(0) / len(recalls)
    return np.where(objects > 0, result, np.nan)


def draw(images: int, samples: int, seed: int) -> np.ndarray:
    """(images, samples) int16: how often each image is in each sample of as many images, drawn with replacement."""
    rng = np.random.default_rng(seed)
    return np.stack([np.bincount(rng.integers(0, images, images), minlength=images).astype(np.int16) for _ in range(samples)], axis=1)


def compare(
    dataset: dict[str, Any],
    results: Sequence[list[dict]],
    task: str = "bbox",
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 95.0,
    sigmas: Sequence[float] = (),
    progress: Callable[[Iterable], Iterable] = lambda categories: categories,
) -> dict[str, Any]:
    """The differences in AP, B minus A, with percentile intervals of a paired bootstrap over images.

    Args:
        dataset: annotations in COCO's format that passed `results.check_annotations`.
        results: A's and B's detections that passed `results.check_results`.
        task: "bbox", "segm" or "keypoints".
        samples: of the bootstrap. Both detectors are evaluated on each.
        confidence: of the intervals, in percent.
        sigmas: OKS sigmas of the keypoints; default: COCO's.
        progress: wraps the iteration over classes, for a bar.

    Returns:
        "metrics", one row for AP, AP50, AP75, APs, APm, APl, and "classes", one for the AP of each class. A row has a name; ``a``, ``b``,
        ``difference``, ``low`` and ``high``, in points from 0 to 100, None if there are no objects; ``b_better``, the share of samples in
        which B is the better one; and the number of ``samples`` that have objects.
    """
    images = {image["id"]: image for image in dataset["images"]}
    places = {image: place for place, image in enumerate(sorted(images))}
    # the first column is the data set itself
    weights = np.concatenate([np.ones((len(images), 1), np.int16), draw(len(images), samples, seed)], axis=1)
    truth = _by_class({**annotation, "iscrowd": annotation.get("iscrowd") or 0} for annotation in dataset["annotations"])
    found, most = [_by_class(r) for r in results], [most_detections(dataset, r) for r in results]
    sizes = ("", "m", "l") if task == "keypoints" else ("", "s", "m", "l")
    categories = sorted(dataset["categories"], key=lambda category: category["id"])
    names = ["AP", "AP50", "AP75", *(f"AP{size}" for size in sizes[1:])]
    values = np.full((len(names), 2, len(categories), samples + 1), np.nan)
    for k, category in enumerate(progress(categories)):
        own = truth[category["id"]]
        if not own:  # COCO leaves the class out
            continue
        for detector in range(2):
            matches = match(images, places, category, own, found[detector][category["id"]], task, sigmas, most[detector])
            step = max(8, 2**19 // (len(matches[0].image) + 1))  # samples at a time, which stay in the processor's cache
            for start in range(0, samples + 1, step):
                part = slice(start, start + step)
                for area, size in enumerate(matches):
                    ap = average_precision(size, weights[:, part])
                    values[0 if area == 0 else area + 2, detector, k, part] = ap.mean(0)
                    if area == 0:
                        values[1:3, detector, k, part] = ap[[0, 5]]  # IoU 0.5 and 0.75
    values *= 100
    present = ~np.isnan(values[:, :1])
    # in a sample, the mean over the classes that have objects in it, as COCO takes it
    with np.errstate(invalid="ignore"):
        means = np.where(present, values, 0).sum(2) / present.sum(2)
    return {
        "metrics": [_row(name, a, b, confidence) for name, (a, b) in zip(names, means)],
        "classes": [{"id": c["id"], **_row(c["name"], values[0, 0, k], values[0, 1, k], confidence)} for k, c in enumerate(categories)],
    }


def _by_class(entries: Iterable[dict]) -> dict[int, list[dict]]:
    classes = defaultdict(list)
    for entry in entries:
        classes[entry["category_id"]].append(entry)
    return classes


def _row(name: str, a: np.ndarray, b: np.ndarray, confidence: float) -> dict[str, Any]:
    """One row of `compare`. The first value of ``a`` and ``b`` is of the data set itself, the others of the samples."""
    difference = b - a
    drawn = difference[1:][~np.isnan(difference[1:])]
    if np.isnan(difference[0]) or not len(drawn):
        return {"name": name, **dict.fromkeys(("a", "b", "difference", "low", "high", "b_better")), "samples": 0}
    low, high = np.percentile(drawn, [50 - confidence / 2, 50 + confidence / 2])
    numbers = {"a": a[0], "b": b[0], "difference": difference[0], "low": low, "high": high, "b_better": (drawn > 0).mean()}
    return {"name": name, **{key: float(value) for key, value in numbers.items()}, "samples": len(drawn)}


def beyond_chance(row: dict[str, Any]) -> bool:
    """Whether the interval excludes 0."""
    return row["samples"] > 0 and (row["low"] > 0 or row["high"] < 0)
