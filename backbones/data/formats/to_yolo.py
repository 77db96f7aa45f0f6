"""Writes data in COCO's format as YOLO's: ``data.yaml``, ``labels/`` and links to the images in ``images/``."""

import os
import shutil
from collections import Counter
from typing import Any, Mapping, Sequence

import yaml

from ...errors import UserError
from .building import bounds, place_of

_APART = 1.0  # pixels by which a box may differ from its polygon before this is reported


def write(parts: Mapping[str, tuple[dict[str, Any], str]], folder: str) -> Counter:
    """Writes a data set to a new or empty folder: of each split ("train", "val", "test") the data and the folder of its images.

    A line is a box and keypoints if categories have keypoints, else a polygon if any object has one, else a box. Crowds are left out, as YOLO
    has none. Coordinates have 8 decimals: on an image of 10,000 pixels a box moves by 0.0001 at most. Images are linked, or copied where the
    system has no links. Returns what was left out or changed, counted. Raises UserError if the data cannot be written this way.
    """
    by_name: dict[str, dict] = {}
    for content, _ in parts.values():  # all splits of YOLO share one list of classes
        for category in sorted(content["categories"], key=lambda category: category["id"]):
            known = by_name.setdefault(category["name"], category)
            if (known.get("keypoints") or []) != (category.get("keypoints") or known.get("keypoints") or []):
                raise UserError(f"class {category['name']!r} has different keypoints in two of the splits", "classes")
    names, categories = list(by_name), list(by_name.values())
    points = {len(category.get("keypoints") or ()) for category in categories}
    if len(points) > 1:
        raise UserError(f"YOLO needs the same number of keypoints in all classes, not {' and '.join(map(str, sorted(points)))}", "unsupported")
    count, notes = max(points), Counter[str]()
    objects = [a for content, _ in parts.values() for a in content["annotations"] if not _ignored(a)]
    masks = sum(bool(a.get("segmentation")) for a in objects)
    drawn = not count and any(map(_outlines, objects))
    if masks and not drawn:
        reason = "keypoints take their place" if count else "all masks are run-length encodings (RLE), but YOLO needs polygons"
        notes[f"masks left out: {reason}"] = masks
    for split, (content, images) in parts.items():
        number = {category["id"]: names.index(category["name"]) for category in content["categories"]}
        lines: dict[Any, list[str]] = {image["id"]: [] for image in content["images"]}
        sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        for a in content["annotations"]:
            if _ignored(a):
                notes["crowds and ignored regions left out because YOLO has none"] += 1
            else:
                lines[a["image_id"]].append(_line(number[a["category_id"]], a, sizes[a["image_id"]], drawn, count, notes))
        _write_split(content["images"], lines, images, folder, split)
    about: dict[str, Any] = {**{split: f"images/{split}" for split in parts}, "names": dict(enumerate(names))}
    if count:
        about.update(kpt_shape=[count, 3], kpt_names={i: category["keypoints"] for i, category in enumerate(categories)})
        if categories[0].get("flip_idx"):
            about["flip_idx"] = categories[0]["flip_idx"]
    _file(os.path.join(folder, "data.yaml"), yaml.safe_dump(about, sort_keys=False, allow_unicode=True))
    return notes


def _write_split(images: list[dict], lines: dict[Any, list[str]], root: str, folder: str, split: str) -> None:
    paths = [os.path.abspath(place_of(root, image["file_name"])) for image in images]
    inside = os.path.join(os.path.abspath(root), "")
    if not all(path.startswith(inside) for path in paths):  # as in what `split` and `merge` write: nothing is written beyond the folder
        root = os.path.commonpath([os.path.dirname(path) for path in paths])
    stems: set[str] = set()
    for image, path in zip(images, paths):
        # readers look for labels by the last part that is called images, which must be ours
        name = os.path.join(*(part for part in os.path.relpath(path, root).split(os.sep) if part != "images"))
        stem = os.path.splitext(name)[0]
        if stem in stems:
            raise UserError(f"two images are named {stem!r} and would share one file of labels", "data")
        stems.add(stem)
        _file(os.path.join(folder, "labels", split, stem + ".txt"), "".join(line + "\n" for line in lines[image["id"]]))
        _link(path, os.path.join(folder, "images", split, name))


def _ignored(annotation: dict) -> bool:
    return bool(annotation.get("iscrowd") or annotation.get("ignore"))


def _line(number: int, annotation: dict, size: tuple[int, int], drawn: bool, points: int, notes: Counter) -> str:
    x, y, w, h = annotation["bbox"]
    values: list[float] = [x + w / 2, y + h / 2, w, h]
    if drawn:
        outlines = [[min(max(v, 0), size[i % 2]) for i, v in enumerate(outline)] for outline in _outlines(annotation)]
        if not outlines:
            notes["objects without a polygon, written as the corners of their box because others have polygons"] += 1
            outlines = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        elif max(abs(a - b) for a, b in zip(bounds(outlines), (x, y, x + w, y + h))) > _APART:
            notes["boxes that differ from their polygon: only the polygon is written"] += 1
        values = _joined(outlines)
    line = " ".join([str(number), *(f"{min(max(value / size[i % 2], 0), 1):.8f}" for i, value in enumerate(values))])
    if points:
        rows = annotation.get("keypoints") or [0, 0, 0] * points
        if len(rows) != 3 * points:
            raise UserError(f"an object has {len(rows) / 3:g} keypoints, but its class has {points}", "data")
        line += "".join(f" {a / size[0]:.8f} {b / size[1]:.8f} {int(v)}" for a, b, v in zip(rows[::3], rows[1::3], rows[2::3]))
    return line


def _outlines(annotation: dict) -> list[list[float]]:
    mask = annotation.get("segmentation")
    return [polygon for polygon in mask if len(polygon) >= 6] if isinstance(mask, list) else []


def _joined(outlines: Sequence[Sequence[float]]) -> list[float]:
    """Joins all parts into one polygon by lines there and back between their first points: box and area stay the same."""
    loops = []
    for outline in outlines:
        points = list(zip(outline[::2], outline[1::2]))
        loops.append(points if _signed(outline) >= 0 else points[::-1])
    if len(loops) == 1:
        path = loops[0]
    else:
        path = [point for loop in loops for point in (*loop, loop[0])] + [loop[0] for loop in loops[-2:0:-1]]
    return [value for point in path for value in point]


def _signed(polygon: Sequence[float]) -> float:
    xs, ys = polygon[::2], polygon[1::2]
    return sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))


def _file(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def _link(path: str, place: str) -> None:
    if not os.path.isfile(path):
        raise UserError(f"image {path!r} does not exist", "missing-file")
    os.makedirs(os.path.dirname(place), exist_ok=True)
    try:
        os.symlink(os.path.abspath(path), place)
    except OSError:
        shutil.copy(path, place)
