"""Is the gain real? Compares two detectors' results on the same images: the difference in COCO's AP, with a bootstrap interval.

An AP depends on which images a data set happens to hold. The bootstrap repeatedly draws as many images with replacement, evaluates both
detectors on each draw, and so shows how far their difference varies with the images. It cannot show how far it varies between training runs.
"""

import contextlib
import json
import math
import os
import sys
from functools import partial
from typing import Any, Sequence

from detectron2.data import MetadataCatalog
from tabulate import tabulate
from tqdm import tqdm

from ..config import check_output_file
from ..data.annotations import parse
from ..data.holdout import HELD_OUT
from ..data.reader import read
from ..data.sources import Source, Use
from ..engine import Front
from ..errors import UserError, unknown
from ..evaluation.comparison import beyond_chance, compare
from ..evaluation.figures import first_entries, leading_task
from ..evaluation.results import TASKS, check_keypoints, check_results, read_truth, results_file, truth_of
from ..files import overwritten, save_figure, write_whole
from . import as_is, check_results_exist, dataset_of, evaluated, parser_of, picture, program, run, task_named

PICTURES = (".png", ".jpg", ".jpeg", ".pdf", ".svg")
SHOWN = 20  # classes in the printed table
DRAWN = 120  # classes in the picture


def table(rows: list[dict[str, Any]], confidence: float) -> str:
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


def verdict(row: dict[str, Any], confidence: float) -> str:
    """Describes a row in one plain sentence."""
    if not row["samples"]:
        return "There are no objects to compare A and B on."
    if row["difference"] == row["low"] == row["high"] == 0:
        return f"A and B have the same {row['name']}, in every sample: there is no difference."
    interval = f"the {confidence:g}% interval of the difference, {row['low']:+.2f} to {row['high']:+.2f},"
    if not beyond_chance(row):
        return f"A and B cannot be told apart: {interval} contains 0, so a difference of {row['difference']:+.2f} may be chance."
    better = "better" if row["low"] > 0 else "worse"
    return f"B is {better} than A by {abs(row['difference']):.2f} {row['name']}, beyond chance: {interval} does not contain 0."


def report(result: dict[str, Any], doubts: Sequence[str] = ()) -> str:
    """The tables and sentences of a comparison; ``doubts`` about its data stand in place of the verdict."""
    confidence, metrics, classes = result["confidence"], result["metrics"], [c for c in result["classes"] if c["samples"]]
    apart = sorted(filter(beyond_chance, classes), key=lambda row: -abs(row["difference"]))
    said = [*doubts, "So there is no verdict: the figures hold only if it was."] if doubts else [verdict(metrics[0], confidence)]
    lines = [table(metrics, confidence), "", *said]
    lines.append(
        f"Intervals are percentiles of {result['samples']} bootstrap samples of {result['images']} images, the same images for A and B. "
        "They show how the difference varies with the images, not between training runs."
    )
    by_chance = len(classes) * (1 - confidence / 100)
    lines.append(f"Classes whose interval does not contain 0: {len(apart)} of {len(classes)}; expected by chance alone: about {by_chance:.2g}.")
    if apart:
        shown = sorted(apart[:SHOWN], key=lambda row: -row["difference"])
        lines += ["", table(shown, confidence)]
    if len(apart) > SHOWN:
        lines.append(f"The {SHOWN} largest differences; --json and --plot show all.")
    return "\n".join(lines)


def plot(result: dict[str, Any], output: str) -> None:
    """Writes a picture of the differences with their intervals: the metrics above, the classes sorted below."""
    from matplotlib.figure import Figure

    metrics = [row for row in result["metrics"] if row["samples"]][::-1]
    classes = sorted((row for row in result["classes"] if row["samples"]), key=lambda row: row["difference"])
    title = "AP of each class"
    if len(classes) > DRAWN:
        title = f"AP of the {DRAWN // 2} classes at either end, of {len(classes)}"
        classes = classes[: DRAWN // 2] + classes[-DRAWN // 2 :]
    line, head = 0.17, 1.3  # inches: a row; titles and axes
    heights = [line * (len(metrics) + 1) + 0.1, line * (len(classes) + 1)]
    figure = Figure(figsize=(8, sum(heights) + head), layout="constrained")
    axes = figure.subplots(2, 1, height_ratios=heights)
    for ax, rows, heading in zip(axes, (metrics, classes), (f"B - A, {result['confidence']:g}% intervals", title)):
        for y, row in enumerate(rows):
            colour = "tab:gray" if not beyond_chance(row) else "tab:blue" if row["low"] > 0 else "tab:red"
            ax.plot([row["low"], row["high"]], [y, y], color=colour, linewidth=2, solid_capstyle="butt")
            ax.plot(row["difference"], y, "o", color=colour, markersize=4)
        # a $ would start a formula
        ax.set_yticks(range(len(rows)), [as_is(" ".join(row["name"].split())[:30]) for row in rows], fontsize=8)
        ax.set_ylim(-0.8, len(rows) - 0.2)
        ax.axvline(0, color="black", linewidth=0.8)
        ax.grid(True, axis="x", alpha=0.25)
        ax.set_title(heading, fontsize=10)
    axes[1].set_xlabel("difference in AP, points\nblue: B is better, beyond chance; red: worse; gray: the interval contains 0", fontsize=9)
    names = [result[who] if len(result[who]) < 90 else "..." + result[who][-87:] for who in "ab"]
    figure.suptitle(as_is(f"A: {names[0]}\nB: {names[1]}"), fontsize=8)
    save_figure(figure, output)


def _file_of(front: Front, name: str) -> list[Any]:
    """What says which images and annotations a data set has: its file, "" if it is unknown, and the part that is held out."""
    settings, whole = front.settings, name.removesuffix(HELD_OUT)
    file = {entry[0]: entry[1] for entry in settings.DATASETS.REGISTER}.get(whole) or MetadataCatalog.get(whole).get("json_file", "")
    return [os.path.realpath(file) if file else "", *(entry[1] for entry in settings.DATASETS.HOLD_OUT if entry[0] == whole != name)]


def _check_same_data(a: tuple[Front, str | None], b: tuple[Front, str | None]) -> None:
    """Raises UserError if two runs, each with its config and the name of its data, were evaluated on different data."""
    (file, *held), (other, *held_other) = (_file_of(front, name) if name else [""] for front, name in (a, b))
    if [file, held] != [other, held_other] and file and other:
        said = f"A was evaluated on {a[1]!r} ({file}), B on {b[1]!r} ({other})" if file != other else f"A and B held out other parts of {file}"
        same = f". If these are the same images, name those of A: --dataset {a[1]}" if file != other and _same_images(a, b) else ""
        raise UserError(f"{said}: evaluate both on the same data{same}", "data", "--dataset")


def _same_images(a: tuple[Front, str | None], b: tuple[Front, str | None]) -> bool:
    """Whether no image id means different files in the data of two runs, as far as these can be read."""
    first, second = (_image_names(front, name or "") for front, name in (a, b))
    return all(first[number] == second[number] for number in first.keys() & second.keys())


def _check_images(who: str, front: Front | None, path: str, dataset: dict[str, Any]) -> None:
    """Raises UserError if an image id of the truth, which is of ``path``, means another file in the data that a run was evaluated on."""
    name = next(iter(front.settings.DATASETS.TEST), "") if front else ""
    if not front or not name or _file_of(front, name)[0] == os.path.realpath(path):  # the same file need not be read again
        return
    own = _image_names(front, name)
    for image in dataset["images"]:
        file = os.path.basename(str(image.get("file_name", "")))
        if file and own.get(image["id"], file) != file:
            said = f"{who} was evaluated on other images: its image {image['id']} is {own[image['id']]!r}, not {file!r}"
            raise UserError(said, "data", "--annotations")


def _image_names(front: Front, name: str) -> dict[Any, str]:
    """File names by image id, of data that the config of a run registers."""
    entry = next((entry for entry in front.settings.DATASETS.REGISTER if entry[0] == name.removesuffix(HELD_OUT)), None)
    with contextlib.suppress(UserError):
        if entry:
            images = read(Source(entry[0], entry[1], entry[2], training=False), Use(), files=False).images
            return {image["id"]: os.path.basename(image["file_name"]) for image in images}
    return {}


def _of_file(path: str, front: Front | None, annotations: str, file: str) -> str:
    """The results of a run on the data of an annotation file. Raises UserError if it has several, and the file is of none of them."""
    tested = list(front.settings.DATASETS.TEST) if front and os.path.isdir(path) else []
    own = [name for name in tested if front and _file_of(front, name)[0] == os.path.realpath(annotations)]
    if len(tested) > 1 and not own:
        said = f"{path!r} has results on {', '.join(tested)}, none of which is of {annotations!r}"
        raise UserError(f"{said}: name the results, such as {results_file(path, tested[0], tested)}", "data", "--annotations")
    return results_file(path, own[0], tested) if own else file


def _doubt(who: str, results: list[dict], dataset: dict[str, Any], front: Front | None, annotations: str | None) -> str:
    """What says that results may be of other data: they have detections in few of the images with objects; else ""."""
    wanted = {a["image_id"] for a in dataset["annotations"]}
    found = {entry["image_id"] for entry in results}
    if len(wanted & found) >= 0.7 * len(wanted):
        return ""
    parts = [name for name in front.settings.DATASETS.TEST if name.endswith(HELD_OUT)] if front and annotations else []
    hint = f" Its config evaluates a part that was held out: --dataset {parts[0]}" if parts else ""
    return f"{who} has detections in {len(found)} of {len(dataset['images'])} images: was it evaluated on these annotations?{hint}"


def _add_classes(dataset: dict[str, Any], results: list[Any], other: Front, name: str, task: str) -> None:
    """Adds to the truth the classes that only B's model knows. The data have no objects of them, so no AP changes."""
    known = {category["id"] for category in dataset["categories"]}
    if all(not isinstance(result, dict) or result.get("category_id") in known for result in results):
        return
    other.register(names=[name])
    dataset["categories"] = [*dataset["categories"], *(c for c in truth_of(name, task)[1]["categories"] if c["id"] not in known)]


def main() -> None:
    parser = parser_of(program("compare"), __doc__)
    parser.add_argument("a", metavar="A", help="coco_instances_results.json of a detector, or the OUTPUT_DIR of its run")
    parser.add_argument("b", metavar="B", help="the same for the other detector; differences are B minus A")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--annotations", metavar="JSON", help="annotations of the evaluated images, in COCO's format")
    text = "a data set of detectron2's catalogue, or of the config (default: the one A was evaluated on)"
    data.add_argument("--dataset", metavar="NAME", help=text)
    parser.add_argument("--config-file", default="", metavar="FILE", help="a config that names your own data (default: config.yaml of A's run)")
    text = f"one of {', '.join(TASKS)} (default: masks if both results have them, else keypoints, else boxes)"
    parser.add_argument("--task", default="auto", type=task_named, help=text)
    parser.add_argument("--samples", type=int, default=1000, help="number of bootstrap samples, at least 100 (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bootstrap (default: %(default)s)")
    parser.add_argument("--confidence", type=float, default=95, help="confidence level of the intervals, in percent (default: %(default)s)")
    parser.add_argument("--oks-sigmas", type=float, nargs="+", default=[], metavar="SIGMA", help="OKS sigmas of keypoints other than COCO's 17")
    parser.add_argument("--json", metavar="FILE", help="write all numbers, including those of every class")
    parser.add_argument("--plot", metavar="FILE", help="draw the differences and their intervals: .png, .jpg, .pdf or .svg")
    args = parser.parse_args()
    if args.task not in (*TASKS, "auto"):
        raise unknown("--task", args.task, TASKS)
    if not 100 <= args.samples <= 100000:
        raise UserError(f"--samples {args.samples}: it must be from 100 (for an interval) to 100000 (for the memory)")
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: it must be 0 or more")
    if not 0 < args.confidence < 100:
        raise UserError(f"--confidence {args.confidence:g}: it must be a percentage between 0 and 100")
    if not all(0 < sigma < math.inf for sigma in args.oks_sigmas):
        raise UserError("--oks-sigmas: they must be positive numbers")
    if args.plot:
        picture(args.plot, PICTURES, "--plot")
    if args.json:
        check_output_file(args.json, "--json")

    front, name, first = evaluated(args.a, args.config_file, args.dataset)
    check_results_exist(args.b)
    try:
        other, of_b, second = evaluated(args.b, name=args.dataset)
    except UserError as error:  # a folder of another project
        print(f"B's config is left out, and its data are not checked: {error}")
        other, of_b, second = None, None, results_file(args.b, name)
    if args.annotations:
        first, second = (_of_file(path, of, args.annotations, file) for path, of, file in ((args.a, front, first), (args.b, other, second)))
    elif front and other and not (args.config_file or args.dataset):
        _check_same_data((front, name), (other, of_b))
    files = [first, second]
    if args.json and overwritten([args.json], filter(None, [*files, args.annotations])):
        raise UserError(f"--json {args.json!r} is read, and would be overwritten: name another file", "conflict", "--json")
    contents = [parse(file, "result file") for file in files]
    task = leading_task(*contents) if args.task == "auto" else args.task
    if task == "keypoints" and not args.oks_sigmas and front:
        args.oks_sigmas = list(front.settings.TEST.KEYPOINT_OKS_SIGMAS)
    if args.task == "auto":
        args.task, wanted = task, 3 * (len(args.oks_sigmas) or 17)
        points = [first["keypoints"] for first in first_entries(*contents)] if task == "keypoints" else []
        if any(isinstance(each, list) and len(each) != wanted for each in points):
            print("boxes are compared: keypoints other than COCO's need --oks-sigmas")
            args.task = "bbox"
        print(f"comparing AP of {args.task}: choose another task in the results with --task")
    if args.annotations:
        path, dataset = args.annotations, read_truth(args.annotations, "", args.task, print, Use.of(front.settings) if front else None)
    else:
        path, dataset = truth_of(dataset_of(front, name, ", or the annotations with --annotations"), args.task)
        if other and isinstance(contents[1], list):
            _add_classes(dataset, contents[1], other, name or "", args.task)
    for who, own in (("A", None if args.config_file else front), ("B", other)):
        _check_images(who, own, path, dataset)
    results = [check_results(content, dataset, args.task, file) for content, file in zip(contents, files)]
    if args.task == "keypoints":
        check_keypoints(dataset, results, args.oks_sigmas)
    progress = partial(tqdm, desc="classes", unit="class", mininterval=0.1 if sys.stderr.isatty() else 15)
    rows = compare(dataset, results, args.task, args.samples, args.seed, args.confidence, args.oks_sigmas, progress)
    result = {"a": files[0], "b": files[1], "annotations": path, "task": args.task, "images": len(dataset["images"]), **rows}
    result.update(samples=args.samples, seed=args.seed, confidence=args.confidence, interval="percentile")
    doubts = [doubt for who, found, of in zip("AB", results, (front, other)) if (doubt := _doubt(who, found, dataset, of, args.annotations))]
    # without a flag the data are those that the config names
    print(f"A: {files[0]}\nB: {files[1]}\n\n{report(result, doubts if args.annotations or args.dataset else ())}")
    for doubt in () if args.annotations or args.dataset else doubts:
        print(doubt)
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
    if args.plot:
        plot(result, args.plot)


if __name__ == "__main__":
    run(main)
