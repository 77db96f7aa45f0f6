"""labelme: a JSON file for each image, beside it. Shapes with the same label and group are one object. Classes are in alphabetical order."""

import base64
import io
import math
import os
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ...documents import read_json
from ...errors import UserError
from .building import Builder, Images, bounds, files, number

_LARGEST = 1 << 26  # bytes of a file of one image, which may hold the image too
_MOST = 1 << 30  # pixels of an image whose masks are read
_ROTATED = ("oriented_rectangle", "rotation")  # by labelme and by X-AnyLabeling
_FEWEST = 12  # least number of points of a circle in labelme's own converter


def is_labelme(content: Any) -> bool:
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and ("imagePath" in content or "imageData" in content)


def found_in(folder: str) -> bool:
    """Whether one of a folder's first JSON files is labelme's."""
    for _, path in zip(range(3), files(folder, (".json",))):
        try:
            if os.path.getsize(path) < _LARGEST and is_labelme(read_json(path)):
                return True
        except (OSError, ValueError):
            continue
    return False


def read(path: str, images: str, exif: str = "turn") -> dict[str, Any]:
    """The data of a folder; see `formats.load`."""
    build, pictures, used = Builder(images, exif), Images(images), set()
    names: set[str] = set()
    for file in files(path, (".json",)):
        try:
            content = read_json(file)
        except ValueError as error:
            raise UserError(f"{file!r} is not a labelme file: {error}", "bad-file") from error
        if not is_labelme(content):
            build.note("JSON files left out because they are not labelme's", repr(file), lost="JSON file")
            continue
        try:
            used.add(_image(build, content, file, path, pictures, names))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{file!r} is not a valid labelme file: {error}", "bad-file") from error
    build.note("images left out because they have no .json file", count=len(set(pictures.all) - used), lost="image")
    return build.content([(name, {"name": name}) for name in sorted(names)])


def _image(build: Builder, content: dict, file: str, folder: str, pictures: Images, names: set[str]) -> str:
    """Adds an image and its objects. Returns the image's path."""
    stated = str(content.get("imagePath") or "").replace("\\", "/")
    stem = os.path.splitext(os.path.relpath(file, folder))[0]
    path = os.path.normpath(os.path.join(os.path.dirname(file), stated)) if stated else ""
    if not os.path.isfile(path):
        path = pictures.find(stem, stated) or os.path.join(build.root, os.path.basename(stated) or f"{stem}.jpg")
    width, height = (number(content.get(key) or 0) for key in ("imageWidth", "imageHeight"))
    image = build.image(path, (int(width), int(height)) if min(width, height) >= 1 else None)
    groups: dict[Any, list[tuple[list[float], str]]] = {}
    for i, shape in enumerate(content["shapes"], 1):
        where = f"{file!r} shape {i}"
        label, kind = str(shape["label"]), shape.get("shape_type") or "polygon"
        points = [(number(x), number(y)) for x, y in shape["points"]]
        if kind == "mask":
            names.add(label)
            _mask(build, image, label, points, shape, where)
            continue
        outline = _outline(kind, points)
        if not outline:
            build.note(f"shapes left out: {str(kind)[:20]!r} of {len(points)} points has no area", where, lost="shape")
            continue
        if kind in _ROTATED:
            build.note("rotated boxes read as outlines: the boxes around them are upright", where)
        names.add(label)
        group = shape.get("group_id")
        groups.setdefault((label, i if group is None else f"group {group}"), []).append((outline, where))
    for (label, _), parts in groups.items():
        outlines = [outline for outline, _ in parts]
        build.note("shapes merged with others of their group", parts[0][1], len(parts) - 1)
        build.add(image, label, bounds(outlines), parts[0][1], outlines)
    return path


def _outline(kind: str, points: list[tuple[float, float]]) -> list[float]:
    """x0, y0, x1, y1, ... of a shape; nothing if it has no area."""
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        return [x0, y0, x1, y0, x1, y1, x0, y1]
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        count = max(_FEWEST, int(math.pi / math.acos(1 - 1 / radius))) if radius > 1 else _FEWEST
        angles = [2 * math.pi * i / count for i in range(count)]
        return [value for angle in angles for value in (x + radius * math.sin(angle), y + radius * math.cos(angle))]
    if kind in ("polygon", "rectangle", *_ROTATED) and len(points) >= 3:
        return [value for point in points for value in point]
    return []


def _mask(build: Builder, image: dict, label: str, points: list[tuple[float, float]], shape: dict, where: str) -> None:
    """A shape given as a picture; the shape's points are the positions of its first and last pixel."""
    (x0, y0), (x1, y1) = ((int(x), int(y)) for x, y in points)
    if image.get("width", 1e9) * image.get("height", 1e9) > _MOST or not 0 <= x0 <= x1 < image["width"] or not 0 <= y0 <= y1 < image["height"]:
        raise ValueError(f"{where}: its mask extends beyond the image, or the image is too large")
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
            if picture.size != (x1 - x0 + 1, y1 - y0 + 1):
                raise ValueError(f"it has {picture.size[0]}x{picture.size[1]} pixels, which differs from the size of its points")
            inside = np.asarray(picture.convert("L")) != 0
    except Exception as error:  # Pillow raises anything for a damaged picture
        raise ValueError(f"{where}: its mask cannot be read: {error}") from error
    whole = np.zeros((image["height"], image["width"]), np.uint8, order="F")
    whole[y0 : y1 + 1, x0 : x1 + 1] = inside
    runs = mask_util.encode(whole)
    x, y, w, h = mask_util.toBbox(runs).tolist()
    area = float(inside.sum())
    build.add(
        image, label, (x, y, x + w, y + h), where, segmentation={"size": list(runs["size"]), "counts": runs["counts"].decode()}, area=area
    )
