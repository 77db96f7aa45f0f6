"""Draws detections next to the ground truth, from the coco_instances_results.json that evaluation writes."""

import os
import sys
from collections import defaultdict
from typing import Any

import numpy as np

from ..data import check_paths, images
from ..data.annotations import faults, integer, mask_fault, numbers, parse
from ..data.loader import unreadable
from ..data.sources import unknown_data_set
from ..drawing import Mark, colour, mask_of, titled
from ..drawing import draw as draw_marks
from ..errors import UserError
from ..evaluation.mistakes import judge
from ..files import overwritten, write_whole
from . import add_threshold, dataset_of, evaluated, nothing_shown, parser_of, picture, program, run

_FIELDS = {
    "image_id": ("a number or a name", lambda value: isinstance(value, (int, str))),
    "category_id": ("an integer", integer),
    "bbox": ("4 numbers", lambda value: numbers(value, 4)),
    "score": ("a number", lambda value: numbers([value])),
}


def read_results(path: str) -> dict[Any, list[dict]]:
    """Detections in COCO's result format, by image id."""
    if not os.path.exists(path):
        raise UserError(f"results {path!r} do not exist: evaluation writes them to OUTPUT_DIR/inference")
    content, by_image = parse(path, "results"), defaultdict(list)
    for i, result in enumerate(content if isinstance(content, list) else [content]):
        for fault in faults(result, _FIELDS):
            raise UserError(f"results {path!r} are not in COCO's format: entry {i} {fault}", "bad-file")
        by_image[result["image_id"]].append(result)
    return by_image


def mistakes(records: list[dict[str, Any]], by_image: dict[Any, list[dict]], to_class: dict[int, int], threshold: float = 0.5) -> list[int]:
    """How much is wrong in each image of a detectron2 data set, as `errors` counts it: wrong class, no object, or missed.

    ``by_image`` are detections in COCO's format; ``to_class`` maps the data set's category ids to classes.
    """
    from detectron2.structures import BoxMode

    truth = [
        {**a, "image_id": d["image_id"], "bbox": BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS)}
        for d in records
        for a in d.get("annotations", ())
    ]
    found = [{**r, "category_id": to_class.get(r["category_id"], r["category_id"])} for each in by_image.values() for r in each]
    judged = judge({"images": [{"id": d["image_id"]} for d in records], "annotations": truth}, found, threshold)
    return [sum(judged[d["image_id"]].counts().values()) for d in records]


def draw(results: str, dataset: str, output: str, count: int = 12, threshold: float = 0.5, worst: bool = False, **reading: Any) -> None:
    """Writes one picture to ``output``: ``count`` images of ``dataset``, each with ground truth on the left and detections on the right.

    They are evenly chosen, or with ``worst`` those with the most `mistakes`, worst first. ``reading``: the arguments of `images.read`.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.structures import BoxMode

    if dataset not in DatasetCatalog:
        raise unknown_data_set("data set", dataset)
    check_paths(dataset)
    picture(output)
    by_image = read_results(results)
    dicts, metadata = DatasetCatalog.get(dataset), MetadataCatalog.get(dataset)
    if os.path.isfile(output) and overwritten([output], [*(d["file_name"] for d in dicts), results]):
        raise UserError(f"{output!r} is read, and would be overwritten: name another --output", "conflict", "--output")
    if not metadata.get("thing_classes") or metadata.get("labelled", True) and not all("annotations" in d for d in dicts):
        raise UserError(f"data set {dataset!r} has no objects to draw, only {metadata.get('evaluator_type')}")
    to_class = metadata.get("thing_dataset_id_to_contiguous_id", {})
    known = {d["image_id"] for d in dicts}
    for image, entries in by_image.items():
        if image not in known:
            raise _of_other_data(results, dataset, f"image_id {image!r}")
        for category in (r["category_id"] for r in entries if to_class):
            if category not in to_class:
                raise _of_other_data(results, dataset, f"category_id {category!r}")
    if worst:
        number = mistakes(dicts, by_image, to_class, threshold)
        chosen = [dicts[i] for i in np.argsort(-np.array(number), kind="stable")[:count]]
    else:
        chosen = [dicts[i] for i in np.linspace(0, len(dicts) - 1, min(count, len(dicts))).astype(int)]
    # else the truth's masks and keypoints would only hide the image
    masks, points = (any(field in r for d in chosen for r in by_image[d["image_id"]]) for field in ("segmentation", "keypoints"))
    tiles, titles = [], []
    for d in chosen:
        image = pixels_of(d["file_name"], **reading)  # as in training, rotated by its EXIF tag
        if image is None:
            continue

        def mark(entry: dict[str, Any], mode: Any, number: int, score: str = "", shape=image.shape[:2]) -> Mark:
            name = metadata.thing_classes[number] if number < len(metadata.thing_classes) else number
            mask = mask_of(entry["segmentation"], *shape) if masks and entry.get("segmentation") else None
            places = np.reshape(entry["keypoints"], (-1, 3)) if points and entry.get("keypoints") else None
            return Mark(BoxMode.convert(list(entry["bbox"]), mode, BoxMode.XYXY_ABS), f"{name}{score}", colour(number), mask, places)

        truth = [mark(a, a["bbox_mode"], a["category_id"]) for a in d.get("annotations", ())]
        kept = [r for r in by_image[d["image_id"]] if r["score"] >= threshold]
        if masks and any(r.get("segmentation") and mask_fault(r["segmentation"], *image.shape[:2]) for r in kept):
            said = f"results {results!r}: a detection in image {d['image_id']!r} has a mask that is damaged or not of the image's size"
            raise UserError(said, "bad-file")
        if not all(numbers(r.get("keypoints", [])) and len(r.get("keypoints", [])) % 3 == 0 for r in kept):
            said = f"results {results!r}: the keypoints of a detection in image {d['image_id']!r} are not x, y and score of each"
            raise UserError(said, "bad-file")
        found = [mark(r, BoxMode.XYWH_ABS, to_class.get(r["category_id"], r["category_id"]), f" {100 * r['score']:.0f}") for r in kept]
        left, right = draw_marks(image, truth), draw_marks(image, found)
        tiles.append(np.hstack([left, np.full((len(left), 4, 3), 255, np.uint8), right]))
        titles.append(f"ground truth | detections: {os.path.basename(d['file_name'])}")
    said = nothing_shown((r["score"] for d in chosen for r in by_image[d["image_id"]]), threshold)
    if said:
        print(said)
    if not tiles:
        raise UserError(f"none of the {len(chosen)} images can be read", "bad-file")
    write_grid(tiles, titles, output, 3 if len(tiles) >= 6 else 1)


def _of_other_data(results: str, dataset: str, entry: str) -> UserError:
    said = f"results {results!r} have {entry}, which data set {dataset!r} does not have: name the data that were evaluated with --dataset"
    return UserError(said, "data", "--dataset")


def pixels_of(path: str, **reading: Any) -> np.ndarray | None:
    """The pixels (H, W, 3) RGB of a file; None, with a line that says so, if it cannot be read or used."""
    try:
        return images.read(path, "RGB", **reading)
    except images.UNREADABLE as error:
        print(f"left out: {unreadable({'file_name': path}, error)}", file=sys.stderr)
    except UserError as error:
        print(f"left out: {error}", file=sys.stderr)
    return None


def write_grid(tiles: list[np.ndarray], titles: list[str], output: str, columns: int) -> None:
    """Writes a grid of RGB pictures, each with its title above it."""
    import cv2

    tiles = [titled(tile, title) for tile, title in zip(tiles, titles)]
    h, w = (max(t.shape[i] for t in tiles) for i in (0, 1))
    pad = 10
    rows = -(-len(tiles) // columns)
    grid = np.full((pad + rows * (h + pad), columns * (w + pad) + pad, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        y, x = (pad + place * (side + pad) for place, side in zip(divmod(i, columns), (h, w)))
        grid[y : y + tile.shape[0], x : x + tile.shape[1]] = tile
    write_whole(output, cv2.imencode(os.path.splitext(output)[1], grid[:, :, ::-1])[1].tobytes())


def main() -> None:
    parser = parser_of(program("visualize"), __doc__)
    parser.add_argument("--input", required=True, metavar="RUN", help="the OUTPUT_DIR of a run, or its inference/coco_instances_results.json")
    parser.add_argument("--dataset", metavar="NAME", help="the data that were evaluated (default: the first of the config's DATASETS.TEST)")
    parser.add_argument("--output", required=True, metavar="FILE", help="the picture to write, .png or .jpg")
    parser.add_argument("--config-file", metavar="FILE", help="a config that names your own data (default: config.yaml of the run)")
    parser.add_argument("--num", type=int, default=12, help="how many images to draw (default: %(default)s)")
    add_threshold(parser, "lowest score to draw")
    parser.add_argument("--worst", action="store_true", help="draw the images with the most mistakes, worst first")
    args = parser.parse_args()
    if args.num < 1:
        raise UserError(f"--num {args.num}: draw at least one image")
    front, name, results = evaluated(args.input, args.config_file, args.dataset)
    if not os.path.exists(results) and os.path.isdir(args.input):
        said = f"{args.input!r} holds no evaluation: run `backbones train --eval-only` to write {results!r}"
        raise UserError(said, "missing-file", "--input")
    name = dataset_of(front, name)
    reading = images.settings(front.settings) if front else {}
    draw(results, name, args.output, args.num, args.confidence_threshold, args.worst, **reading)
    print(args.output)


if __name__ == "__main__":
    run(main)
