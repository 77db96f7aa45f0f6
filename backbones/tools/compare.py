"""Is the gain real? The difference in COCO's AP between two detectors' results on the same images, with a bootstrap interval.

Which images a data set happens to hold moves an AP. The bootstrap draws as many images with replacement, over and over, evaluates both
detectors on each draw, and so shows how far their difference moves with the images. How far it moves with another training run, it cannot show.
"""

import argparse
import contextlib
import io
import json
import math
import os
import re
import reprlib
import sys
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from ..errors import UserError, unknown
from ..files import replacing, write_whole
from . import picture, run

TASKS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # task -> the field that results need
PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
LIMIT = 1e9  # of any number in the files: beyond it, pycocotools' integers overflow
SIDE = 2**16  # of an image: beyond it, so do its counts of pixels
RUNS = re.compile("(?:[P-o]{0,6}[0-O])+")  # COCO's compressed run lengths: numbers of up to seven characters, all but their last from P on
SHOWN = 20  # classes in the printed table
DRAWN = 120  # classes in the picture


# --- precision and recall of weighted images


@dataclass
class Matches:
    """One detector's matches in one class and range of areas: D detections by falling score, G objects that count, at T IoU thresholds."""

    image: np.ndarray  # (D,) places of the detections' images
    true: np.ndarray  # (T, D) bool: matched to an object that counts
    counted: np.ndarray  # (T, D) bool: true or false, not left out as matched to a crowd, or of another size
    truth: np.ndarray  # (G,) places of the objects' images


def match(
    images: Dict[int, dict], places: Dict[int, int], category: dict, annotations: List[dict], results: List[dict], task: str, sigmas=()
) -> List[Matches]:
    """pycocotools' matches of one class, for each range of areas of the task: all, small, medium, large (keypoints: no small).

    Args:
        images: by id, of COCO's format.
        places: id -> row of the weights that `average_precision` takes.
        annotations, results: those of the class; pycocotools adds fields to the annotations.
        sigmas: of the keypoints; COCO's own without.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    used = sorted({entry["image_id"] for entry in [*annotations, *results]})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {"images": [images[i] for i in used], "annotations": annotations, "categories": [category]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]) if results else COCO(), task)
        if len(sigmas):
            evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.params.catIds, evaluation.params.imgIds = [category["id"]], used
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

    ``weights`` (I, S), integers, says how often each of the I images is in each sample. As pycocotools gives for copies of the images, but
    that equal scores in one image are not interleaved with those of its copies.
    """
    recalls = np.linspace(0.0, 1.0, 101)  # pycocotools' recThrs, to the bit
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
    weights = np.empty((images, samples), np.int16)
    for sample in range(samples):
        weights[:, sample] = np.bincount(rng.integers(0, images, images), minlength=images)
    return weights


# --- the comparison


def compare(
    dataset: Dict[str, Any],
    results: Sequence[List[dict]],
    task: str = "bbox",
    samples: int = 1000,
    seed: int = 0,
    confidence: float = 95.0,
    sigmas: Sequence[float] = (),
    progress: Callable[[Iterable], Iterable] = lambda categories: categories,
) -> Dict[str, Any]:
    """The differences in AP, B minus A, with percentile intervals of a paired bootstrap over images.

    Args:
        dataset: annotations, and
        results: A's and B's detections, in COCO's format, as `check_annotations` and `check_results` let pass.
        task: "bbox", "segm" or "keypoints".
        samples: of the bootstrap; both detectors are evaluated on each.
        confidence: of the intervals, in percent.
        sigmas: of the keypoints; COCO's own without.
        progress: wraps the iteration over classes, for a bar.

    Returns:
        "metrics", one row for AP, AP50, AP75, APs, APm, APl, and "classes", one for the AP of each class. A row has a name; ``a``, ``b``,
        ``difference``, ``low`` and ``high``, in points from 0 to 100, None where there are no objects; ``b_better``, the share of samples in
        which B is the better one; and the number of ``samples`` that have objects.
    """
    images = {image["id"]: image for image in dataset["images"]}
    places = {image: place for place, image in enumerate(sorted(images))}
    # the first column is the data set itself
    weights = np.concatenate([np.ones((len(images), 1), np.int16), draw(len(images), samples, seed)], axis=1)
    truth = _by_class({"iscrowd": 0, **annotation} for annotation in dataset["annotations"])
    found = [_by_class(r) for r in results]
    sizes = ("", "m", "l") if task == "keypoints" else ("", "s", "m", "l")
    categories = sorted(dataset["categories"], key=lambda category: category["id"])
    names = ["AP", "AP50", "AP75", *(f"AP{size}" for size in sizes[1:])]
    values = np.full((len(names), 2, len(categories), samples + 1), np.nan)
    for k, category in enumerate(progress(categories)):
        own = truth[category["id"]]
        if not own:  # COCO leaves the class out
            continue
        for detector in range(2):
            matches = match(images, places, category, own, found[detector][category["id"]], task, sigmas)
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
        "metrics": [_row(name, *pair, confidence) for name, pair in zip(names, means)],
        "classes": [{"id": c["id"], **_row(c["name"], *values[0, :, k], confidence)} for k, c in enumerate(categories)],
    }


def _by_class(entries: Iterable[dict]) -> Dict[int, List[dict]]:
    classes = defaultdict(list)
    for entry in entries:
        classes[entry["category_id"]].append(entry)
    return classes


def _row(name: str, a: np.ndarray, b: np.ndarray, confidence: float) -> Dict[str, Any]:
    """Of the values on the data set itself, which stand first, and on the samples."""
    difference = b - a
    drawn = difference[1:][~np.isnan(difference[1:])]
    if np.isnan(difference[0]) or not len(drawn):
        return {"name": name, **dict.fromkeys(("a", "b", "difference", "low", "high", "b_better")), "samples": 0}
    low, high = np.percentile(drawn, [50 - confidence / 2, 50 + confidence / 2])
    numbers = {"a": a[0], "b": b[0], "difference": difference[0], "low": low, "high": high, "b_better": (drawn > 0).mean()}
    return {"name": name, **{key: float(value) for key, value in numbers.items()}, "samples": len(drawn)}


def beyond_chance(row: Dict[str, Any]) -> bool:
    """Whether the interval leaves out 0."""
    return row["samples"] > 0 and (row["low"] > 0 or row["high"] < 0)


# --- files, none of them trusted


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -LIMIT <= value <= LIMIT


def _numbers(count: Optional[int] = None) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == (count or len(value)) and all(map(_number, value))


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53  # pycocotools keeps ids as float


_ID = ("an integer", _integer)
_NUMBER = ("a number", _number)
_SIZE = ("pixels", lambda value: _integer(value) and 0 < value < SIDE)
_BOX = ("[x, y, width, height]", _numbers(4))


def _check(entries: List[Any], fields: Dict[str, Tuple[str, Callable]], where: str) -> None:
    """Raises UserError for the first entry of which a field is missing or does not fit."""
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise UserError(f"{where}: entry {i} is {reprlib.repr(entry)}, not an object")
        for field, (kind, fits) in fields.items():
            if field not in entry:
                raise UserError(f"{where}: entry {i} has no {field}")
            if not fits(entry[field]):
                raise UserError(f"{where}: entry {i} has {field} {reprlib.repr(entry[field])}: it must be {kind}")


def _read(path: str, what: str) -> Any:
    try:
        with open(path, encoding="utf-8") as f:
            return json.load(f)
    except FileNotFoundError:
        raise UserError(f"{what} {path!r} is not there") from None
    except OSError as error:
        raise UserError(f"{what} {path!r} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {path!r} is not JSON: {error}") from error


def _runs_fit(mask: Any, height: int, width: int) -> bool:
    """Whether run lengths fill an image: pycocotools would read on behind those that do not, or never end."""
    from ..data.mapper import run_lengths

    if not isinstance(mask, dict) or mask.get("size") != [height, width]:
        return False
    counts = mask.get("counts")
    if isinstance(counts, list):
        return all(_integer(c) and c >= 0 for c in counts) and sum(counts) == height * width
    if not isinstance(counts, str) or not RUNS.fullmatch(counts):
        return False
    lengths = run_lengths(counts.encode())
    return bool((lengths >= 0).all() and lengths.sum() == height * width)


def _polygons(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(_numbers()(p) and len(p) >= 6 and len(p) % 2 == 0 for p in value):
        return False
    return all(abs(v) <= 2 * SIDE for p in value for v in p)  # pycocotools walks along the outline, in steps of a fifth of a pixel


def check_annotations(content: Any, task: str, path: str) -> None:
    """Raises UserError where ``content``, of the file ``path``, lacks what an evaluation of ``task`` reads."""
    what = f"annotations {path!r}"
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list) or not content[key]:
            raise UserError(f"{what} are not in COCO's format: there is no list {key!r} with entries")
    _check(content["images"], {"id": _ID, **({"height": _SIZE, "width": _SIZE} if task == "segm" else {})}, f"{what}, 'images'")
    _check(content["categories"], {"id": _ID, "name": ("a name", lambda v: isinstance(v, str))}, f"{what}, 'categories'")
    own = {"bbox": _BOX} if task == "bbox" else {}
    if task == "keypoints":
        own = {"bbox": _BOX, "keypoints": ("a list of numbers", _numbers()), "num_keypoints": _ID}
    fields = {"id": _ID, "image_id": _ID, "category_id": _ID, "area": _NUMBER, **own}
    _check(content["annotations"], fields, f"{what}, 'annotations'")
    for key, entries in content.items():
        if key in ("images", "annotations", "categories") and len({entry["id"] for entry in entries}) < len(entries):
            raise UserError(f"{what}: an id stands twice in {key!r}")
    images, classes = {image["id"]: image for image in content["images"]}, {c["id"] for c in content["categories"]}
    for i, annotation in enumerate(content["annotations"]):
        where = f"{what}, 'annotations': entry {i}"
        _known(annotation, images, classes, where)
        if annotation.get("iscrowd", 0) not in (0, 1):
            raise UserError(f"{where} has iscrowd {reprlib.repr(annotation['iscrowd'])}: it must be 0 or 1")
        if task == "segm":
            image, mask = images[annotation["image_id"]], annotation.get("segmentation")
            if not (_polygons(mask) or _runs_fit(mask, image["height"], image["width"])):
                raise UserError(f"{where} has no segmentation by polygons or by run lengths that fit its image")


def check_results(content: Any, dataset: Dict[str, Any], task: str, path: str) -> List[dict]:
    """The fields of the detections that ``task`` needs; raises UserError where ``content``, of the file ``path``, is no result list of it."""
    what = f"results {path!r}"
    if not isinstance(content, list):
        raise UserError(f"{what} are not in COCO's format: there is no list of detections")
    if not content:
        raise UserError(f"{what} hold no detections: there is nothing to compare")
    field = TASKS[task]
    if isinstance(content[0], dict) and field not in content[0]:
        has = [name for name, key in TASKS.items() if key in content[0]]
        raise UserError(f"{what} are not of task {task!r}: a detection has no {field}; of {', '.join(has) or 'none of the tasks'} they are")
    fits = {"bbox": _BOX, "segm": ("run lengths", lambda v: isinstance(v, dict)), "keypoints": ("a list of numbers", _numbers())}[task]
    _check(content, {"image_id": _ID, "category_id": _ID, "score": _NUMBER, field: fits}, what)
    images, classes = {image["id"]: image for image in dataset["images"]}, {c["id"] for c in dataset["categories"]}
    keys = ["image_id", "category_id", "score", field]
    # the size of a detection with keypoints is its box's where it has one, of one with a mask always the mask's
    if task == "keypoints" and all("bbox" in result for result in content):
        _check(content, {"bbox": _BOX}, what)
        keys.append("bbox")
    for i, result in enumerate(content):
        _known(result, images, classes, f"{what}: entry {i}")
        if task == "segm":
            image, mask = images[result["image_id"]], result[field]
            if not isinstance(mask.get("counts"), str) or not _runs_fit(mask, image["height"], image["width"]):
                raise UserError(f"{what}: entry {i} has a segmentation that is not of compressed run lengths that fit its image")
    return [{key: result[key] for key in keys} for result in content]


def _known(entry: dict, images: Dict[int, dict], classes: set, where: str) -> None:
    for key, known, owner in (("image_id", images, "images"), ("category_id", classes, "categories")):
        if entry[key] not in known:
            raise UserError(f"{where} has {key} {entry[key]}, which is not among the {owner!r} of the annotations: is it of another data set?")


def check_keypoints(dataset: Dict[str, Any], results: Sequence[List[dict]], sigmas: Sequence[float]) -> None:
    """Raises UserError where the numbers of keypoints do not agree."""
    wanted = len(sigmas) or 17
    for who, entries in (("objects", dataset["annotations"]), ("detections of A", results[0]), ("detections of B", results[1])):
        other = next((len(e["keypoints"]) / 3 for e in entries if len(e["keypoints"]) != 3 * wanted), None)
        if other is not None:
            hint = "" if sigmas else " Name your own by --oks-sigmas (TEST.KEYPOINT_OKS_SIGMAS of the config)."
            raise UserError(f"{who} have {other:g} keypoints, and there are {wanted} OKS sigmas.{hint}")


def annotation_file(name: str) -> str:
    """The path of the annotations of a data set in detectron2's catalogue; raises UserError where it has none in COCO's format."""
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.utils.file_io import PathManager

    from ..data import check_paths

    if name not in DatasetCatalog:
        raise unknown("data set", name, sorted(DatasetCatalog.keys()))
    check_paths(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("json_file") or metadata.get("evaluator_type") not in ("coco", "coco_panoptic_seg"):
        raise UserError(f"data set {name!r} has no annotations in COCO's format: name a file by --annotations")
    if metadata.get("generated"):  # which its first use does
        DatasetCatalog.get(name)
    return PathManager.get_local_path(metadata.json_file)


def results_file(path: str) -> str:
    """``path`` itself, or the results inside where it is the folder of a run."""
    return os.path.join(path, "inference", "coco_instances_results.json") if os.path.isdir(path) else path


# --- what is said


def table(rows: List[Dict[str, Any]], confidence: float) -> str:
    lines = []
    for row in rows:
        name = " ".join(row["name"].split())
        if not row["samples"]:
            lines.append([name, *"-----"])
            continue
        interval = f"{row['low']:+.2f} to {row['high']:+.2f}"
        lines.append([name, f"{row['a']:.2f}", f"{row['b']:.2f}", f"{row['difference']:+.2f}", interval, f"{100 * row['b_better']:.1f}%"])
    headers = ("", "A", "B", "B - A", f"{confidence:g}% interval", "B better in")
    return tabulate(lines, headers, "pipe", disable_numparse=True, colalign=("left", *["right"] * 5))


def verdict(row: Dict[str, Any], confidence: float) -> str:
    """One sentence on a row, in plain words."""
    if not row["samples"]:
        return "There are no objects to tell A and B apart by."
    if row["difference"] == row["low"] == row["high"] == 0:
        return f"A and B have the same {row['name']}, in every sample: there is no difference."
    interval = f"the {confidence:g}% interval of the difference, {row['low']:+.2f} to {row['high']:+.2f},"
    if not beyond_chance(row):
        return f"Whether A or B is better cannot be told: {interval} holds 0, so a difference of {row['difference']:+.2f} may be chance."
    better = "better" if row["low"] > 0 else "worse"
    return f"B is {better} than A by {abs(row['difference']):.2f} {row['name']}, beyond chance: {interval} leaves out 0."


def report(result: Dict[str, Any]) -> str:
    """The tables and sentences of a comparison."""
    confidence, metrics, classes = result["confidence"], result["metrics"], [c for c in result["classes"] if c["samples"]]
    apart = sorted(filter(beyond_chance, classes), key=lambda row: -abs(row["difference"]))
    lines = [table(metrics, confidence), "", verdict(metrics[0], confidence)]
    lines.append(
        f"Intervals are percentiles of {result['samples']} bootstrap samples of {result['images']} images, the same images for A and B. "
        "They say how the difference moves with the images, not with another training run."
    )
    by_chance = len(classes) * (1 - confidence / 100)
    lines.append(f"Classes whose interval leaves out 0: {len(apart)} of {len(classes)}; chance alone would give some {by_chance:.2g}.")
    if apart:
        shown = sorted(apart[:SHOWN], key=lambda row: -row["difference"])
        lines += ["", table(shown, confidence)]
    if len(apart) > SHOWN:
        lines.append(f"The {SHOWN} largest differences; --json and --plot give all.")
    return "\n".join(lines)


def plot(result: Dict[str, Any], output: str) -> None:
    """Writes a picture of the differences with their intervals: the metrics above, the classes sorted below."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    metrics = [row for row in result["metrics"] if row["samples"]][::-1]
    classes = sorted((row for row in result["classes"] if row["samples"]), key=lambda row: row["difference"])
    title = "AP of each class"
    if len(classes) > DRAWN:
        title = f"AP of the {DRAWN // 2} classes at either end, of {len(classes)}"
        classes = classes[: DRAWN // 2] + classes[-DRAWN // 2 :]
    line, head = 0.17, 1.3  # inches: of a row, of titles and axes
    heights = [line * (len(metrics) + 1) + 0.1, line * (len(classes) + 1)]
    figure, axes = plt.subplots(2, 1, figsize=(8, sum(heights) + head), height_ratios=heights, layout="constrained")
    for ax, rows, heading in zip(axes, (metrics, classes), (f"B - A, {result['confidence']:g}% intervals", title)):
        for y, row in enumerate(rows):
            colour = "tab:gray" if not beyond_chance(row) else "tab:blue" if row["low"] > 0 else "tab:red"
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot(row["difference"], y, "o", color=colour, markersize=4)
        # a $ would begin a formula
        ax.set_yticks(range(len(rows)), [" ".join(row["name"].split())[:30].replace("$", r"\$") for row in rows], fontsize=8)
        ax.set_ylim(-0.8, len(rows) - 0.2)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.grid(True, axis="x", alpha=0.25)
        ax.set_title(heading, fontsize=10)
    axes[1].set_xlabel("difference in AP, points\nblue: B is better beyond chance; red: worse; gray: the interval holds 0", fontsize=9)
    names = [result[who] if len(result[who]) < 90 else "..." + result[who][-87:] for who in "ab"]
    figure.suptitle(f"A: {names[0]}\nB: {names[1]}".replace("$", r"\$"), fontsize=8)
    kind = os.path.splitext(output)[1][1:].lower()
    try:
        with replacing(output) as partial:
            figure.savefig(partial, dpi=110, format=kind)
    except OSError as error:
        raise UserError(f"{output!r} cannot be written: {error.strerror}") from error
    finally:
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m backbones.tools.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("a", metavar="A", help="coco_instances_results.json of a detector, or the OUTPUT_DIR of its run")
    parser.add_argument("b", metavar="B", help="that of the other; differences are B minus A")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--annotations", metavar="JSON", help="of the images that were evaluated, in COCO's format")
    data.add_argument("--dataset", metavar="NAME", help="a data set of detectron2's catalogue, such as coco_2017_val or digits_val")
    parser.add_argument("--task", default="bbox", help=f"one of {', '.join(TASKS)} (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="of the bootstrap, at least 100 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=95, help="of the intervals, in percent (default: %(default)s)")
    parser.add_argument("--oks-sigmas", type=float, nargs="+", default=[], metavar="SIGMA", help="of keypoints other than COCO's 17")
    parser.add_argument("--json", metavar="FILE", help="write all numbers, those of all classes too")
    parser.add_argument("--plot", metavar="FILE", help="draw the differences and their intervals: .png, .jpg, .pdf or .svg")
    args = parser.parse_args()
    if args.task not in TASKS:
        raise unknown("--task", args.task, TASKS)
    if not 100 <= args.samples <= 100000:
        raise UserError(f"--samples {args.samples}: an interval needs at least 100, and more than 100000 are not kept in memory")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: it must be 0 or more")
    if not 0 < args.confidence < 100:
        raise UserError(f"--confidence {args.confidence:g}: it must be a percentage between 0 and 100")
    if not all(0 < sigma < math.inf for sigma in args.oks_sigmas):
        raise UserError("--oks-sigmas: they must be positive numbers")
    if args.plot:
        picture(args.plot, PICTURES)
    if args.json and os.path.isdir(args.json):
        raise UserError(f"--json {args.json!r} is a folder")

    path = args.annotations or annotation_file(args.dataset)
    dataset = _read(path, "annotation file")
    check_annotations(dataset, args.task, path)
    files = [results_file(args.a), results_file(args.b)]
    results = [check_results(_read(file, "result file"), dataset, args.task, file) for file in files]
    if args.task == "keypoints":
        check_keypoints(dataset, results, args.oks_sigmas)
    rows = compare(
        dataset,
        results,
        args.task,
        args.samples,
        args.seed,
        args.confidence,
        args.oks_sigmas,
        lambda categories: tqdm(categories, desc="classes", unit="class", mininterval=0.1 if sys.stderr.isatty() else 15),
    )
    about = {"a": files[0], "b": files[1], "annotations": path, "task": args.task, "images": len(dataset["images"])}
    about.update(samples=args.samples, seed=args.seed, confidence=args.confidence, interval="percentile")
    result = {**about, **rows}
    print(f"A: {files[0]}\nB: {files[1]}\n\n{report(result)}")
    for name, found in zip("AB", results):
        images = len({entry["image_id"] for entry in found})
        if images < 0.7 * len(dataset["images"]):
            print(f"{name} has detections in {images} of {len(dataset['images'])} images: are these the annotations that it was evaluated on?")
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    run(main)
