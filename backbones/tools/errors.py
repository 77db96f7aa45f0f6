"""Analyses the errors of a run's last evaluation: kinds of errors, confused classes, AP by size and crowding, and the worst images.

It reads RUN/inference/coco_instances_results.json and the data of RUN/config.yaml, and writes errors.html and errors.json into RUN.
The kinds are TIDE's, counted by the package tidecv (pip install tidecv). With --corruptions it evaluates the run's
model on test images that are blurred, noisy, compressed, too bright or flat.
"""

import base64
import html
import io
import json
import os
from typing import Any

from tabulate import tabulate

from ..config import check_output_file
from ..data import images
from ..data.annotations import parse
from ..drawing import ASIDE, RIGHT, WRONG, Mark, beside, draw, mask_of
from ..errors import UserError, counted
from ..evaluation import corruptions
from ..evaluation.figures import leading_task
from ..evaluation.mistakes import KINDS, Judged, by_kind_of_object, confusion, judge, tide
from ..evaluation.results import check_results, truth_of
from ..files import overwritten, write_whole
from . import add_threshold, check_needed, check_results_exist, dataset_of, evaluated, nothing_shown, parser_of, program, run, task_named
from .visualize import pixels_of

SHOWN = 20  # rows of the confusion's list
NO_OBJECT, NO_BOX = "no matching object", "no matching box"  # the confusion's background, as row and column

_STYLE = """:root{color-scheme:light dark}body{font:15px/1.45 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;
color:light-dark(#222,#ddd);background:light-dark(#fff,#161616)}h2{border-bottom:1px solid #888;margin-top:1.6em}
td,th{padding:.25em .8em .25em 0;text-align:right}td:first-child,th:first-child{text-align:left}figure{margin:1.2em 0}figure img{max-width:100%}
.scroll{overflow-x:auto}"""


def examine(dataset: dict[str, Any], results: list[dict], task: str, threshold: float) -> tuple[dict[str, Any], dict[Any, Judged]]:
    """All figures of an evaluation, and by image id which detections match which objects."""
    judged = judge(dataset, results, threshold)
    names, table = confusion(dataset, judged)
    try:
        kinds = tide(dataset, results, task)
    except UserError as error:  # everything else needs no package
        if error.code != "missing-package":
            raise
        print(error)
        kinds = None
    figures = {
        "task": task,
        "threshold": threshold,
        "images": len(dataset["images"]),
        "errors": kinds,
        "confusion": {"classes": names, "counts": table.tolist()},
        "AP by": by_kind_of_object(dataset, results, task),
    }
    return figures, judged


def tables(figures: dict[str, Any]) -> list[tuple[str, list[str], list[list[Any]]]]:
    """(heading, head, rows) of the tables that are printed and put on the page."""
    out: list[tuple[str, list[str], list[list[Any]]]] = []
    errors, meaning = figures["errors"], dict(KINDS.values())
    if errors:
        kinds = [[name, row["count"], f"{row['dAP']:.2f}", meaning[name]] for name, row in errors["kinds"].items()]
        kinds += [[name, errors[name]["count"], f"{errors[name]['dAP']:.2f}", "all of them"] for name in ("false positives", "false negatives")]
        heading = f"Kinds of errors (TIDE): AP50 of {figures['task']} is {errors['AP50']:.2f}, dAP is what each kind costs"
        if errors["absent"]:
            heading += f". {counted(errors['absent'], 'detection')} of classes that the data lack do not count here, as in AP"
        out.append((heading, ["", "count", "dAP", ""], kinds))
    else:
        out.append(("Kinds of errors (TIDE)", ["not counted: this needs a package that is not installed (pip install tidecv)"], []))
    names, counts = figures["confusion"]["classes"], figures["confusion"]["counts"]
    objects, boxes = [*names[:-1], NO_OBJECT], [*names[:-1], NO_BOX]
    off = [(counts[i][j], a, b) for i, a in enumerate(objects) for j, b in enumerate(boxes) if i != j and counts[i][j]]
    taken = [[truth, found, n] for n, truth, found in sorted(off, key=lambda row: -row[0])[:SHOWN]]

    def ap(row: dict[str, Any]) -> str:
        return "-" if row["AP"] is None else f"{row['AP']:.2f}"

    heading = f"Confused classes: boxes with IoU 0.5, scores from {figures['threshold']:g}; {NO_OBJECT!r} also counts loose and second boxes"
    out.append((heading, ["is", "found as", "times"], taken))
    for by, rows in figures["AP by"].items():
        out.append((f"AP of {figures['task']} by {by}", ["", "objects", "AP"], [[row["name"], row["objects"], ap(row)] for row in rows]))
    if "corruptions" in figures:
        rows = [[name, *(f"{value:.2f}" for value in values)] for name, values in figures["corruptions"].items()]
        out.append((f"AP of {figures['task']} on damaged images, by severity", ["", *map(str, figures["severities"])], rows))
    return out


def picture_of(record: dict[str, Any], judged: Judged, names: dict[int, str], reading: dict[str, Any]) -> bytes | None:
    """A JPEG of an image, ground truth next to detections: green is correct, orange has the wrong class, red is missed or a false positive.

    None, with a line that says so, if the image cannot be read.
    """
    from PIL import Image

    image = pixels_of(record["file_name"], **reading)
    if image is None:
        return None
    sides: list[list[Mark]] = [[], []]
    met = {i: d for d, i in zip(judged.found, judged.met) if i >= 0}
    for i, a in enumerate(judged.truth):
        sides[0].append(_mark(a, names, "", met.get(i), image.shape[:2]))
    for d, i in zip(judged.found, judged.met):
        sides[1].append(_mark(d, names, f" {100 * d['score']:.0f}", judged.truth[i] if i >= 0 else None, image.shape[:2]))
    buffer = io.BytesIO()
    Image.fromarray(beside(draw(image, sides[0]), draw(image, sides[1]))).save(buffer, "JPEG", quality=88)
    return buffer.getvalue()


def _mark(entry: dict[str, Any], names: dict[int, str], score: str, other: dict[str, Any] | None, shape: tuple[int, int]) -> Mark:
    colour = WRONG if other is None else RIGHT if other["category_id"] == entry["category_id"] else ASIDE
    x, y, w, h = entry["bbox"]
    mask = mask_of(entry["segmentation"], *shape) if entry.get("segmentation") else None
    return Mark((x, y, x + w, y + h), f"{names[entry['category_id']]}{score}", colour, mask)


def page(title: str, figures: dict[str, Any], pictures: list[tuple[str, bytes]]) -> str:
    """One self-contained HTML page, light or dark as the reader prefers."""
    e = html.escape
    parts = [
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">",
        f"<title>{e(title)}</title><style>{_STYLE}</style></head><body><h1>{e(title)}</h1>",
    ]

    def add(heading: str, head: list[str], rows: list[list[Any]]) -> None:
        body = "".join("<tr>" + "".join(f"<td>{e(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
        parts.append(f"<h2>{e(heading)}</h2><div class=scroll><table><tr>{''.join(f'<th>{e(h)}</th>' for h in head)}</tr>{body}</table></div>")

    for table in tables(figures):
        add(*table)
    names, counts = figures["confusion"]["classes"], figures["confusion"]["counts"]
    if len(names) <= 40:
        add(
            "Confusion: ground truth by row, predictions by column",
            ["", *names[:-1], NO_BOX],
            [[a, *row] for a, row in zip([*names[:-1], NO_OBJECT], counts)],
        )
    legend = "Green is correct, orange has the wrong class, red is missed (left) or a false positive (right)."
    parts.append(f"<h2>The worst images</h2><p>{legend}</p>")
    for caption, jpeg in pictures:
        data = base64.b64encode(jpeg).decode()
        parts.append(f'<figure><figcaption>{e(caption)}</figcaption><img alt="" src="data:image/jpeg;base64,{data}"></figure>')
    return "".join(parts) + "</body></html>\n"


def main() -> None:
    parser = parser_of(program("errors"), __doc__)
    parser.add_argument("run", metavar="RUN", help="the OUTPUT_DIR of a run, with its config.yaml and inference/")
    parser.add_argument("--dataset", metavar="NAME", help="the data that were evaluated (default: the first of the config's DATASETS.TEST)")
    parser.add_argument(
        "--task",
        default="auto",
        type=task_named,
        choices=("auto", "bbox", "segm"),
        help="default: masks if the results have them, else boxes",
    )
    add_threshold(parser, "lowest score in the confusion matrix and the pictures")
    parser.add_argument("--num", type=int, default=12, help="how many of the worst images to show (default: %(default)s)")
    parser.add_argument("--output", metavar="FILE", help="the page to write (default: errors.html in RUN); the .json is written next to it")
    parser.add_argument(
        "--corruptions", action="store_true", help="also evaluate the model on damaged images: one evaluation for each kind and severity"
    )
    parser.add_argument("--severities", type=int, nargs="+", default=[1, 3, 5], help="severities of the damage, from 1 to 5 (default: 1 3 5)")
    parser.add_argument("--weights", metavar="FILE", help="weights to evaluate on damaged images (default: model_final.pth in RUN)")
    args = parser.parse_args()
    if args.num < 0:
        raise UserError(f"--num {args.num} must be 0 or more", key="--num")
    if not all(1 <= severity <= 5 for severity in args.severities):
        raise UserError(f"--severities {' '.join(map(str, args.severities))}: each must be from 1 to 5", key="--severities")
    check_needed(parser, args, ("severities", "weights"), "--corruptions", args.corruptions)
    check_results_exist(args.run)
    left = os.path.join(args.run, "config.yaml")
    if not os.path.isfile(left):
        raise UserError(f"{args.run!r} is not the OUTPUT_DIR of a run: it has no config.yaml", "missing-file", "RUN")
    front, name, file = evaluated(args.run, name=args.dataset)
    if not os.path.isfile(file):
        raise UserError(f"{args.run!r} holds no evaluation: run `backbones train --eval-only` to write {file!r}", "missing-file", "RUN")
    output = args.output or os.path.join(args.run, "errors.html")
    check_output_file(output, "the page")
    if os.path.splitext(output)[1].lower() not in (".html", ".htm"):
        raise UserError(f"--output {output!r} must end in .html: its figures go into the .json next to it", "value", "--output")
    beside = f"{os.path.splitext(output)[0]}.json"
    if overwritten([beside], [file, os.path.join(args.run, "metrics.json")]):
        raise UserError(f"--output {output!r}: {beside!r} would be overwritten: name another page", "conflict", "--output")

    name = dataset_of(front, name)
    content = parse(file, "result file")
    task = leading_task(content) if args.task == "auto" else args.task
    task = "bbox" if task == "keypoints" else task  # TIDE does not know keypoints
    dataset = truth_of(name, task)[1]
    results = check_results(content, dataset, task, file)
    if task == "segm":  # judged by their boxes
        results = [{**r, "bbox": entry["bbox"]} for r, entry in zip(results, content)]
    else:  # masks that are not judged would only hide the boxes
        dataset = {**dataset, "annotations": [{k: v for k, v in a.items() if k != "segmentation"} for a in dataset["annotations"]]}
    figures, judged = examine(dataset, results, task, args.confidence_threshold)
    figures.update(run=args.run, dataset=name)
    said = nothing_shown((result["score"] for result in results), args.confidence_threshold)
    if said:
        print(f"{said}: every object counts as missed in the confusion and the pictures")
    if args.corruptions:
        figures["severities"] = args.severities
        figures["corruptions"] = corruptions.evaluate(
            front, name, task, args.severities, args.weights or os.path.join(args.run, "model_final.pth")
        )
    for heading, head, rows in (table for table in tables(figures) if table[2]):  # for a table without rows a line has said why
        print(f"\n{heading}\n{tabulate(rows, head, 'pipe')}")

    from detectron2.data import DatasetCatalog

    records = {record["image_id"]: record for record in DatasetCatalog.get(name)}
    number = {image: sum(row.counts().values()) for image, row in judged.items()}
    worst = [image for image in sorted(number, key=lambda image: -number[image]) if number[image] and image in records][: args.num]
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    pictures = []
    for image in worst:
        said = ", ".join(f"{count} {what}" for what, count in judged[image].counts().items() if count)
        caption = f"{os.path.basename(records[image]['file_name'])}: {said}"
        picture = picture_of(records[image], judged[image], names, images.settings(front.settings))
        if picture:
            pictures.append((caption, picture))
    write_whole(output, page(f"What went wrong: {args.run}, {name}", figures, pictures))
    write_whole(beside, json.dumps(figures, indent=1) + "\n")
    print(f"\n{output}")


if __name__ == "__main__":
    run(main)
