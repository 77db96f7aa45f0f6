"""Converts, splits, merges and shows annotated images in the formats of COCO, YOLO, Pascal VOC and labelme.

convert  COCO, YOLO, Pascal VOC or labelme to COCO, or to YOLO
split    hold out part of the images, with every class in both parts
merge    join data sets; classes of the same name become one
show     a picture of annotated images

Images stay where they are. COCO files written here give image paths relative to the folder of the file. How data are read may follow
as in training, KEY VALUE each: DATASETS.BOX_FORMAT, DATASETS.CROWDS, INPUT.EXIF, INPUT.UNREADABLE.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
from collections import Counter
from typing import Any, Callable, Collection, Iterable, Iterator, Sequence

import numpy as np

from ..config import KEYS, defaults, get, merge_overrides
from ..data import formats, reader, split
from ..data.annotations import mask_fault, numbers
from ..data.findings import KINDS
from ..data.formats import to_yolo
from ..data.formats.building import place_of
from ..data.image_list import SAMPLED
from ..data.images import UNREADABLE, opened, orientation
from ..data.sources import Source, Use
from ..drawing import Mark, colour, draw, mask_of
from ..errors import UserError, counted, first_of, plain
from ..files import is_stream, overwritten, write_whole
from . import parser_of, picture, program, run
from .visualize import pixels_of, write_grid

_READING = ("DATASETS.BOX_FORMAT", "DATASETS.CROWDS", "INPUT.EXIF", "INPUT.UNREADABLE")
_USE = Use(whole=True, scaled=True, max_pixels=sys.maxsize)  # no pixels are used: images may be deep or large
Part = tuple[dict[str, Any], str]  # data in COCO's format, and the folder of the images


def read(path: str, images: str, use: Use = _USE, headers: int = SAMPLED) -> dict[str, Any]:
    """Reads data in any known format, as training does, into COCO's format, with "notes": counts of what was repaired, left out or guessed.

    Masks that are neither polygons nor RLE of the image's size are left out. The headers of so many images are compared with the stated sizes.
    Raises UserError for data that cannot be used.
    """
    folder = images or os.path.dirname(os.path.abspath(path))
    data = reader.read(Source("", path, folder, training=False), use, headers)
    error = data.error()
    if error:
        raise error
    notes = Counter(data.findings.notes)
    for kind, count in data.findings.counts.items():
        first = first_of(data.findings.names[kind], 2)
        notes[f"{kind}: {KINDS[kind].message}{f': {first}' if first else ''}"] += count
    sizes = {image["id"]: (image["height"], image["width"]) for image in data.images}
    for a in data.annotations:
        if a.get("segmentation") and mask_fault(a["segmentation"], *sizes[a["image_id"]]):
            notes["masks left out: neither polygons nor run-length encoding (RLE) of the image's size"] += 1
            del a["segmentation"]
        if a.get("keypoints") and (not numbers(a["keypoints"]) or len(a["keypoints"]) % 3):
            raise UserError(f"{path!r}: annotation {a['id']} has keypoints that are not triples of x, y and visibility", "data")
    return {"annotations": [], **data.truth(), "notes": dict(notes)}


def parts(path: str, images: str = "", use: Use = _USE, headers: int = SAMPLED) -> dict[str, Part]:
    """The splits at a path; a single one is named "". ``images`` is their folder, and joins them into one."""
    found = {"": (path, images)} if images else formats.splits(path)
    every = {name: (read(*places, use, headers), places[1]) for name, places in found.items()}
    if len(every) > 1:
        _share_classes([content for content, _ in every.values()])
    return every


def one(path: str, images: str = "", use: Use = _USE) -> Part:
    """The data at a path, which must be a single split."""
    found = parts(path, images, use)
    if len(found) > 1:
        places = formats.splits(path)
        named = ", ".join(f"{formats.named(places, name, '--images')} ({name})" for name in places)
        raise UserError(f"{path!r} has several splits: name one of {named}", "missing-argument")
    return next(iter(found.values()))


def merged(every: list[Part]) -> tuple[dict[str, Any], dict[str, int]]:
    """Joins data sets, with absolute image paths, and notes. Classes of the same name become one, and so do images of the same file.

    Raises UserError if classes of the same name have different keypoints.
    """
    categories: dict[str, dict] = {}
    images: dict[str, dict] = {}
    annotations: list[dict] = []
    notes: Counter = Counter()
    for content, root in every:
        for category in sorted(content["categories"], key=lambda category: category["id"]):
            known = categories.setdefault(category["name"], {**category, "id": len(categories) + 1})
            if (known.get("keypoints") or []) != (category.get("keypoints") or []):
                raise UserError(f"class {category['name']!r} has different keypoints in two of the data sets", "classes")
        names = {category["id"]: categories[category["name"]]["id"] for category in content["categories"]}
        ids = {}
        for image in content["images"]:
            path = os.path.realpath(os.path.join(root, image["file_name"]))
            notes["images in more than one data set: their objects are joined"] += path in images
            ids[image["id"]] = images.setdefault(path, {**image, "id": len(images) + 1, "file_name": path})["id"]
        annotations += (
            {**a, "id": i, "image_id": ids[a["image_id"]], "category_id": names[a["category_id"]]}
            for i, a in enumerate(content["annotations"], len(annotations) + 1)
        )
    content = {"images": list(images.values()), "categories": list(categories.values()), "annotations": annotations}
    return content, {text: count for text, count in notes.items() if count}


def _summary(content: dict[str, Any]) -> str:
    kinds = {"images": "image", "annotations": "object", "categories": "class"}
    images, objects, classes = (counted(len(content[key]), name) for key, name in kinds.items())
    return f"{images}, {objects} of {classes}"


def _lines(written: str, content: dict[str, Any], notes: dict[str, int]) -> Iterator[str]:
    yield f"{written}: {_summary(content)}"
    yield from _said(notes)


def _said(notes: dict[str, int]) -> Iterator[str]:
    for text, count in notes.items():
        kind, _, rest = text.partition(": ")
        advice = f" -> {KINDS[kind].advice}" if kind in KINDS and KINDS[kind].key else ""
        yield f"  {kind} ({count}): {rest}{advice}" if kind in KINDS else f"  {count} {text}"


def _share_classes(found: Iterable[dict[str, Any]]) -> None:
    """Gives a class the same id in all splits of a data set: those in the files if they agree, else 1, 2, 3 ..."""
    every = [category for content in found for category in sorted(content["categories"], key=lambda category: category["id"])]
    own: dict[str, dict] = {}
    for category in every:
        own.setdefault(category["name"], category)
    agree = len({c["id"] for c in own.values()}) == len(own) and all(own[c["name"]]["id"] == c["id"] for c in every)
    number = {name: i for i, name in enumerate(own, 1)}
    for content in () if agree else found:
        ids = {category["id"]: number[category["name"]] for category in content["categories"]}
        content["categories"] = [{**category, "id": ids[category["id"]]} for category in content["categories"]]
        content["annotations"] = [{**a, "category_id": ids[a["category_id"]]} for a in content["annotations"]]


def _write_coco(content: dict[str, Any], images: str, output: str) -> None:
    """Writes a file with image paths relative to its folder."""
    folder = os.path.realpath(os.path.dirname(os.path.abspath(output)))  # the way up from a linked folder is that of its real place
    named = [
        {**image, "file_name": os.path.relpath(place_of(images, image["file_name"]), folder).replace(os.sep, "/")}
        for image in content["images"]
    ]
    write_whole(output, json.dumps({**{key: value for key, value in content.items() if key != "notes"}, "images": named}))


def _keep(inputs: Iterable[str], outputs: Collection[str], overwrite: bool, images: Iterable[str] = ()) -> None:
    """Raises UserError if one of the files to write is an input, or in a folder that is one; without ``overwrite`` also if it exists."""
    files = [file for path in inputs for file in (path, *(file for file, _ in formats.splits(path).values()))]
    inside = [os.path.join(file, name) for file in files if os.path.isdir(file) for name in os.listdir(file)]
    if path := overwritten(outputs, [*files, *inside, *images]):
        raise UserError(f"{path!r} is read, and would be overwritten: name another --output", "conflict", "--output")
    for path in () if overwrite else outputs:
        if os.path.isfile(path) and not is_stream(path):
            raise UserError(f"{path!r} exists: name another --output, or add --overwrite", "conflict", "--output")


def convert(input: str, output: str, images: str = "", to: str = "coco", use: Use = _USE, overwrite: bool = True) -> Iterator[str]:
    """Writes data in COCO's format, one file per split, or YOLO's, one new folder. Yields lines on what was written, left out and guessed.

    ``overwrite``: whether files may be replaced; the command replaces none without its flag.
    """
    found = parts(input, images, use)
    if to == "coco":
        stem, ending = os.path.splitext(output)
        targets = {name: output if len(found) == 1 else f"{stem}_{name}{ending}" for name in found}
        _keep([input], targets.values(), overwrite)
        for name, (content, root) in found.items():
            file = targets[name]
            _write_coco(content, root, file)
            yield from _lines(file, content, content["notes"])
        return
    if os.path.exists(output) and (not os.path.isdir(output) or os.listdir(output)):
        raise UserError(f"{output!r} already exists: name a new folder", "cannot-write", "--output")
    if use.exif == "ignore":
        _check_upright(place_of(root, image["file_name"]) for content, root in found.values() for image in content["images"])
    partial = output.rstrip("/\\") + ".partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        notes = to_yolo.write({name or "train": part for name, part in found.items()}, partial)
        if os.path.isdir(output):
            os.rmdir(output)
        os.replace(partial, output)
    except OSError as error:
        raise UserError(f"{output!r} cannot be written: {error.strerror}", "cannot-write", "--output") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for name, (content, _) in found.items():
        yield from _lines(os.path.join(output, "labels", name or "train"), content, content["notes"])
    yield f"{os.path.join(output, 'data.yaml')}: {', '.join(name or 'train' for name in found)}"
    yield from _said(notes)
    if not {"train", "val"} <= set(found):
        yield "  Ultralytics requires both 'train' and 'val' in it: add the other"


def _check_upright(files: Iterable[str]) -> None:
    """Raises UserError for an image that readers of YOLO would turn, while its annotations are those of the unturned image."""
    for file in files:
        with contextlib.suppress(*UNREADABLE), opened(file, sys.maxsize) as image:
            if orientation(image) > 1:
                said = f"{file!r} has an EXIF rotation, which YOLO's readers apply, but with INPUT.EXIF ignore its labels do not"
                raise UserError(f"{said}: remove the tag from such images, or convert to COCO", "conflict", "--to")


def divide(
    input: str, output: str, images: str = "", val: float = 0.2, seed: int = 0, use: Use = _USE, overwrite: bool = True
) -> Iterator[str]:
    """Writes train.json, and val.json with that share of the images, to a folder. Yields lines on what was written, left out and guessed."""
    content, root = one(input, images, use)
    _keep([input], [os.path.join(output, f"{name}.json") for name in ("train", "val")], overwrite)
    kept, held, alone = split.parts(content, val, seed)
    for name, part in (("train", kept), ("val", held)):
        _write_coco(part, root, os.path.join(output, f"{name}.json"))
        yield from _lines(os.path.join(output, f"{name}.json"), part, content["notes"] if name == "train" else {})
    if alone:
        yield f"  in one part only, because of the other classes in their images: {counted(len(alone), 'class')}, {', '.join(alone[:10])}"


def merge(input: list[str], output: str, images: Sequence[str] = (), use: Use = _USE, overwrite: bool = True) -> Iterator[str]:
    """Writes several data sets as one. Yields lines on what was written, left out and guessed."""
    if images and len(images) != len(input):
        raise UserError(f"--images names {len(images)} folders for {len(input)} data sets: name one for each", "value", "--images")
    every = [one(path, folder, use) for path, folder in zip(input, images or [""] * len(input))]
    _keep(input, [output], overwrite)
    content, notes = merged(every)
    _write_coco(content, "", output)
    for path, (each, _) in zip(input, every):
        yield from _lines(path, each, each["notes"])
    yield from _lines(output, content, notes)
    names = {category["id"]: category["name"] for category in content["categories"]}
    counts = Counter(names[a["category_id"]] for a in content["annotations"])
    yield "  " + first_of([f"{name} {counts[name]}" for name in sorted(names.values(), key=lambda name: -counts[name])], 20)
    by_letters: dict[str, list[str]] = {}
    for name in names.values():
        by_letters.setdefault(plain(name), []).append(repr(name))
    for alike in (alike for alike in by_letters.values() if len(alike) > 1):
        yield f"  WARNING: {' and '.join(alike)} are different classes: if they are one, give them the same name in the data, and merge again"


def show(input: str, output: str, images: str = "", num: int = 12, use: Use = _USE) -> Iterator[str]:
    """Writes one picture of ``num`` annotated images, evenly chosen, of all splits. Yields lines on what was written and left out."""
    if num < 1:
        raise UserError(f"--num {num}: draw at least one image", "value", "--num")
    picture(output)
    found = parts(input, images, use, headers=0)  # those that are drawn are compared
    if os.path.isfile(output):
        _keep([], [output], True, (place_of(root, image["file_name"]) for content, root in found.values() for image in content["images"]))
    shares = _shares(num, [len(content["images"]) for content, _ in found.values()])
    categories = sorted((category["id"], str(category["name"])) for content, _ in found.values() for category in content["categories"])
    classes = dict(categories)  # a class has one colour in all splits
    tiles, titles, drawn = [], [], []
    notes: Counter[str] = Counter()
    for (name, (content, root)), share in zip(found.items(), shares):
        for image, objects, tile in _drawn(content, root, classes, share, use.exif, notes):
            tiles.append(tile)
            titles.append(os.path.basename(image["file_name"]))
            drawn.append((name, image, objects))
        notes.update(content["notes"])
    if not tiles:
        raise UserError("none of the chosen images can be read", "bad-file")
    write_grid(tiles, titles, output, min(4, len(tiles)))
    content = {"images": drawn, "annotations": [a for _, _, objects in drawn for a in objects], "categories": set(classes.values())}
    yield from _lines(output, content, notes)
    if len(found) > 1:
        yield "  " + ", ".join(f"{count} of {name}" for name, count in Counter(name for name, _, _ in drawn).items())


def _shares(num: int, counts: Sequence[int]) -> list[int]:
    """How many of ``num`` images each split gives: as many as the others, or all that it has."""
    shares = [0] * len(counts)
    for _ in range(min(num, sum(counts))):
        shares[min((i for i in range(len(counts)) if shares[i] < counts[i]), key=lambda i: shares[i])] += 1
    return shares


def _drawn(
    content: dict[str, Any], root: str, classes: dict[int, str], num: int, exif: str, notes: Counter[str]
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]], np.ndarray]]:
    """Evenly chosen images of a split, their objects, and both drawn; ``classes`` are those of all. Unreadable ones are left out, and named."""
    chosen = [content["images"][i] for i in np.linspace(0, len(content["images"]) - 1, min(num, len(content["images"]))).astype(int)]
    number = {key: i for i, key in enumerate(classes)}
    objects: dict[Any, list[dict]] = {image["id"]: [] for image in chosen}
    for a in content["annotations"]:
        if a["image_id"] in objects:
            objects[a["image_id"]].append(a)
    for image in chosen:
        file = os.path.join(root, image["file_name"])
        if not os.path.isfile(file):
            raise UserError(f"image {file!r} does not exist", "missing-file", "--images")
        pixels = pixels_of(file, exif=exif, value_range=(0, 65535))
        if pixels is None:
            continue
        if pixels.shape[:2] != (image["height"], image["width"]):
            other = "ignore reads them unrotated" if exif == "turn" else "turn rotates them as their tag says"
            notes[f"images of another size than stated, which their objects may not fit (INPUT.EXIF {other})"] += 1
        marks = []
        for a in objects[image["id"]]:
            x, y, w, h = a["bbox"]
            mask = mask_of(a["segmentation"], *pixels.shape[:2]) if a.get("segmentation") else None
            points = np.reshape(a["keypoints"], (-1, 3)) if a.get("keypoints") else None
            marks.append(Mark((x, y, x + w, y + h), classes[a["category_id"]], colour(number[a["category_id"]]), mask, points))
        yield image, objects[image["id"]], draw(pixels, marks)


def _use(opts: list[str]) -> Use:
    """How data are read, by pairs KEY VALUE. Raises UserError for other keys and values."""
    other = next((key for key in opts[::2] if key not in _READING), None)
    if other:
        raise UserError(f"{other}: only keys of how data are read may follow: {', '.join(_READING)}", "conflict", other)
    cfg = defaults()
    merge_overrides(cfg, opts)
    for error in (key.error(get(cfg, key.name)) for key in KEYS if key.name in opts[::2]):
        if error:
            raise error
    said = Use.of(cfg)
    return dataclasses.replace(_USE, box_format=said.box_format, crowds=said.crowds, exif=said.exif, skip=said.skip)


def main() -> None:
    parser = parser_of(program("dataset"), __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    about = "COCO's JSON file; YOLO's data.yaml or folder; Pascal VOC's folder or list; a folder of labelme's files"
    one_of: dict[str, argparse.ArgumentParser] = {}
    for verb, text, output in (
        ("convert", "to COCO or YOLO", "the file, or for YOLO the folder, to write"),
        ("split", "hold out part of the images", "the folder to write train.json and val.json to"),
        ("merge", "join several data sets", "the file to write"),
        ("show", "draw annotated images", "the picture to write, .png or .jpg"),
    ):
        one_of[verb] = verbs.add_parser(verb, help=text, description=text)
        one_of[verb].add_argument("input", metavar="IN", nargs="+" if verb == "merge" else None, help=about)
        one_of[verb].add_argument("--output", required=True, metavar="PATH", help=output)
        images = "the image folder of each data set" if verb == "merge" else "the folder of the images (default: that of the annotations)"
        one_of[verb].add_argument("--images", default="", metavar="DIR", nargs="+" if verb == "merge" else None, help=images)
    one_of["convert"].add_argument("--to", choices=("coco", "yolo"), default="coco", help="the format to write (default: %(default)s)")
    for verb in ("convert", "split", "merge"):
        one_of[verb].add_argument("--overwrite", action="store_true", help="replace files that --output names")
    one_of["split"].add_argument("--val", type=float, default=0.2, metavar="SHARE", help="share of images to hold out (default: %(default)s)")
    one_of["split"].add_argument("--seed", type=int, default=0, help="seed of the choice of images (default: %(default)s)")
    one_of["show"].add_argument("--num", type=int, default=12, help="how many images to draw (default: %(default)s)")
    known, rest = parser.parse_known_args()
    args = {**vars(known), "use": _use(rest)}
    actions: dict[str, Callable[..., Iterator[str]]] = {"convert": convert, "split": divide, "merge": merge, "show": show}
    for line in actions[args.pop("verb")](**args):
        print(line)


if __name__ == "__main__":
    run(main)
