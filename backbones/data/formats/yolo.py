"""YOLO: a text file for each image, in ``labels/`` where the image is in ``images/``, or beside it.

A ``data.yaml`` has the classes and the folders, or lists of images, of its splits. Each line is an object, in fractions of the image: a class
and a box (x, y of the middle, width, height), an outline (of masks, or of turned boxes), or a box and the keypoints of ``kpt_shape``.
"""

import contextlib
import itertools
import math
import os
from collections import Counter
from typing import Any, Iterable, Iterator, NamedTuple, Sequence

from ...documents import read_yaml
from ...errors import UserError
from .building import SPLITS, SUFFIXES, Builder, bounds, files, has, lists, number, text_of
from .naming import YOLO_LINE, foreign

_OBJ = "obj.names"  # of Darknet and CVAT
_NAMES = ("classes.txt", _OBJ, "labels.txt")  # files of class names, one a line
_LOOKED_AT = 1000  # files, to see what a folder holds
_FURTHEST = 2.0  # a larger value is a number of pixels, not a fraction


class Classes(NamedTuple):
    """``names`` by number, None if unknown; for keypoints, their number, the values of each, and which ones swap in a mirror."""

    names: dict[int, str] | None = None
    shape: tuple[int, int] | None = None
    points: Sequence[str] = ()
    flips: Sequence[int] = ()


def is_yaml(path: str) -> bool:
    return path.lower().endswith((".yaml", ".yml"))


_YAMLS = ("data.yaml", "dataset.yaml", "data.yml")


def yaml_in(folder: str, splits: bool = True) -> str | None:
    """The data.yaml of a folder, by that name or the first with classes and ``splits``; without them it must name the classes."""
    names = sorted(name for name in os.listdir(folder) if is_yaml(name))
    for name in sorted(names, key=lambda name: name not in _YAMLS):
        try:
            content = read_yaml(os.path.join(folder, name))
        except ValueError:
            if name in _YAMLS:
                _content(os.path.join(folder, name))  # says what is wrong with it
            continue
        keys = set(content) if isinstance(content, dict) else set()
        if {"names", "nc"} & keys and {"train", "val", "valid", "test"} & keys or not splits and "names" in keys:
            return os.path.join(folder, name)
    return None


def has_labels(folder: str) -> bool:
    """Whether a folder holds labels, or images with labels elsewhere."""
    texts = itertools.islice(files(folder, (".txt",)), _LOOKED_AT)
    return any(_is_label(path) for path in texts) or any(_label(path, "") for path in itertools.islice(files(folder, SUFFIXES), _LOOKED_AT))


def _is_label(path: str) -> bool:
    with contextlib.suppress(OSError), open(path, encoding="utf-8", errors="replace") as f:
        return YOLO_LINE.fullmatch(f.readline(10_000)) is not None
    return False


def splits(path: str) -> dict[str, tuple[str, str]]:
    """`formats.splits` for a data.yaml."""
    every = {split: (places, image_folder(places)) for split, places in _places(path).items()}
    roots = [root for _, root in every.values()]
    found = {}
    for split, (places, root) in every.items():
        alone = roots.count(root) == 1 or all(places == other for other, its in every.values() if its == root)
        if not alone and len(places) > 1:
            raise UserError(
                f"{path!r}: the images of {split!r} are mixed with those of other splits: give each split its own folder or list", "data"
            )
        found[split] = (path if alone else places[0], root)
    return found


def listed(folder: str) -> dict[str, tuple[str, str]]:
    """The splits of CVAT's YOLO 1.1: lists of images beside ``obj.names``, if there are several."""
    found = lists(folder) if os.path.isfile(os.path.join(folder, _OBJ)) else {}
    return {split: (path, image_folder([path])) for split, path in found.items()} if len(found) > 1 else {}


def read(path: str, images: str, exif: str = "turn") -> dict[str, Any]:
    """The data of a data.yaml's split, of a list of images, or of a folder of images or labels; see `formats.load`."""
    build, labels = Builder(images, exif), ""
    about: str | None = path
    if is_yaml(path):
        same = [places for places in _places(path).values() if image_folder(places) == os.path.normpath(images)]
        if any(places != same[0] for places in same):
            raise UserError(f"{path!r}: several splits have their images in {images!r}: give the list of a single split", "data")
        every = _images(same[0] if same else [images])
    elif os.path.isfile(path):
        every, about = _images([path]), _about(os.path.dirname(path), images)
    else:
        labels = path if has(path, (".txt",)) and not has(path, SUFFIXES) else ""
        every, about = _images([images]), _about(path, images)
    classes = _classes(build, about)
    if about not in (path, None):
        build.note(f"class names, read from {about!r}", count=len(classes.names or ()))
    used, lines, sound, first = set(), 0, 0, ""
    for picture in every:
        label = _label(picture, os.path.join(labels, os.path.relpath(os.path.dirname(picture), images)) if labels else "")
        image = build.image(picture)
        if label is None:
            build.note("images without a label file, which count as images without objects", repr(image["file_name"]))
            continue
        used.add(label)
        try:
            rows = [(i, line.split()) for i, line in enumerate(text_of(label).splitlines(), 1) if line.strip()]
        except ValueError as error:
            raise UserError(f"{label!r} is not a label file: {error}", "bad-file") from error
        if rows and "width" not in image:
            text = "objects left out because their image cannot be read, so its size is unknown"
            build.note(text, repr(image["file_name"]), len(rows), lost="object")
            continue
        for i, words in rows:
            where, lines = f"{label!r} line {i}", lines + 1
            try:
                values = _values(words, classes.shape)
            except ValueError as error:
                first = first or f"{where}: {error}"
                build.note("lines left out because they are not labels", f"{where}: {error}", lost="line")
                continue
            sound += 1
            if classes.names is not None and values[0] not in classes.names:
                raise UserError(
                    f"{where}: class {values[0]:g} has no name: {about!r} has {len(classes.names)} names, numbered from 0", "classes"
                )
            _object(build, image, values, classes.shape, where)
    if lines and not sound:
        raise UserError(f"none of {lines} lines is a YOLO label; the first, {first}", "bad-file")
    if os.path.isdir(path) or is_yaml(path):
        folders = sorted({os.path.dirname(label) for label in used} | ({labels} if labels else set()))
        spare = sorted({label for folder in folders for label in files(folder, (".txt",))} - used)
        spare = [label for label in spare if os.path.basename(label) not in _NAMES]
        build.note("label files left out because they have no image", repr(spare[0]) if spare else "", len(spare), lost="label file")
    names = classes.names
    if names is None:
        names = {i: str(i) for i in {a["category_id"] for a in build.annotations}}
        build.note("classes without names, named by their numbers because there is no data.yaml or classes.txt", count=len(names))
    more = {"keypoints": list(classes.points), **({"flip_idx": list(classes.flips)} if classes.flips else {})} if classes.shape else {}
    return build.content([(i, {"name": name, **more}) for i, name in sorted(names.items())])


def _values(words: list[str], shape: tuple[int, int] | None) -> list[float]:
    """The numbers of a line. Raises ValueError if it is not a label."""
    values = [number(word) for word in words]
    if values[0] != int(values[0]) or values[0] < 0:
        raise ValueError(f"{words[0][:20]!r} is not a class number")
    count = len(values) - 1
    is_box = _is_box(count, shape)
    if not is_box and (count < 6 or count % 2):
        raise ValueError(f"it has {len(values)} values")
    furthest = max(values[1:5] if is_box else values[1:], key=abs)
    if abs(furthest) > _FURTHEST:
        raise ValueError(f"{furthest:g} is not a fraction of the image")
    return values


def _is_box(count: int, shape: tuple[int, int] | None) -> bool:
    """Whether this number of values makes a box: alone, with a confidence, or with keypoints. Otherwise they are a polygon."""
    return count in (4, 5) or shape is not None and count == 4 + shape[0] * shape[1]


def _object(build: Builder, image: dict, values: list[float], shape: tuple[int, int] | None, where: str) -> None:
    own, rest, w, h = int(values[0]), values[1:], image["width"], image["height"]
    if not _is_box(len(rest), shape):
        polygon = [value * (h if i % 2 else w) for i, value in enumerate(rest)]
        build.add(image, own, bounds([polygon]), where, [polygon])
        return
    more: dict[str, Any] = {}
    if shape and len(rest) > 5:
        rows = [rest[i : i + shape[1]] for i in range(4, len(rest), shape[1])]
        # without visibilities, a point at 0, 0 or below is not labelled
        seen = [min(2, math.ceil(row[2])) if shape[1] == 3 else 2 * (min(row) >= 0 and any(row)) for row in rows]
        more["keypoints"] = [v for (x, y, *_), s in zip(rows, seen) for v in ((x * w, y * h, s) if s > 0 else (0, 0, 0))]
        more["num_keypoints"] = sum(s > 0 for s in seen)
    elif len(rest) == 5:
        build.note("sixth values of lines left out because they are confidences of detections", where)
    x, y, bw, bh = rest[:4]
    build.add(image, own, ((x - bw / 2) * w, (y - bh / 2) * h, (x + bw / 2) * w, (y + bh / 2) * h), where, **more)


def _content(path: str) -> dict[str, Any]:
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise UserError(f"{path!r} is not a YOLO data.yaml: {error}", "bad-file") from error
    if not isinstance(content, dict):
        raise UserError(f"{path!r} is not a YOLO data.yaml: it has no keys", "bad-file")
    return content


def _places(path: str) -> dict[str, list[str]]:
    """The folders and lists of images of a data.yaml's splits, which must exist: searched as Ultralytics does, and beside the yaml too."""
    content = _content(path)
    here, stated = os.path.dirname(path) or ".", str(content.get("path") or "").replace("\0", "")
    roots = [os.path.join(here, stated), stated, os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), stated), here]
    found: dict[str, list[str]] = {}
    for split, keys in SPLITS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        names = value if isinstance(value, list) else [value] if value is not None else []
        if not all(isinstance(name, str) and "\0" not in name for name in names):
            raise UserError(f"{path!r}: {split!r} is not the name of a folder: {str(value)[:100]!r}", "bad-file")
        places = []
        for name in (name.replace("\\", "/") for name in names):
            # exports often say ../train/images for train/images
            every = [os.path.normpath(os.path.join(root, n)) for n in (name, name.removeprefix("../")) for root in roots]
            there = next((place for place in every if os.path.exists(place)), None)
            if there is None and split != "test":
                raise UserError(f"{path!r}: the images of {split!r} do not exist: {every[0]!r}", "missing-file")
            places += [there] if there else []
        if places:
            found[split] = places
    if not found:
        raise UserError(f"{path!r} is not a YOLO data.yaml: it has none of 'train', 'val' and 'test'", "bad-file")
    return found


def _images(places: Iterable[str]) -> list[str]:
    """The images of folders and lists."""
    every = [path for place in places for path in (files(place, SUFFIXES) if os.path.isdir(place) else _listed(place))]
    if not every:
        raise UserError(f"{', '.join(map(repr, places))}: there are no images", "data")
    return list(dict.fromkeys(os.path.normpath(path) for path in every))


def _listed(path: str) -> Iterator[str]:
    """The images of a list, whose lines are relative to its folder, to one above, or to where another machine had them."""
    try:
        lines = text_of(path).splitlines()
    except ValueError as error:
        raise UserError(f"{path!r} is not a list of images: {error}", "bad-file") from error
    folder = os.path.dirname(path) or "."
    for i, line in enumerate(lines, 1):
        name = line.strip().replace("\\", "/")
        if not name:
            continue
        if not name.lower().endswith(SUFFIXES):
            other = foreign("\n".join(lines[:2]).encode(), path)
            said = f"is {other[0]}: {other[1]}" if other else f"line {i}: {name[:100]!r} is not an image name"
            raise UserError(f"{path!r} {said}", "bad-file")
        parts = name.split("/")
        ends = ["/".join(parts[i:]) for i in range(len(parts))]
        places = [name, *(os.path.join(root, end) for end in ends for root in (folder, os.path.join(folder, "..")))]
        yield next((place for place in places if os.path.isfile(place)), os.path.join(folder, name))


def image_folder(places: Iterable[str]) -> str:
    """The deepest folder that all images of folders and lists are in."""
    folders = {os.path.dirname(path) for path in _images(places)}
    if len({os.path.isabs(folder) for folder in folders}) > 1:
        folders = {os.path.abspath(folder) for folder in folders}
    return os.path.normpath(os.path.commonpath(list(folders)) or ".")


def _label(picture: str, folder: str) -> str | None:
    """The label file of an image: in ``folder`` if given; else in labels/ for images/, in a folder labels, or beside the image."""
    where, name = os.path.split(os.path.splitext(picture)[0] + ".txt")
    folders = (
        [folder] if folder else [mirrored(where, "images", "labels"), os.path.join(where, "labels"), os.path.join(where, "..", "labels"), where]
    )
    return next((os.path.normpath(path) for path in (os.path.join(f, name) for f in folders if f) if os.path.isfile(path)), None)


def mirrored(folder: str, old: str, new: str) -> str:
    """A folder with its last part ``old`` replaced; "" if it has none."""
    parts = folder.split(os.sep)
    if old not in parts:
        return ""
    last = len(parts) - 1 - parts[::-1].index(old)
    return os.sep.join([*parts[:last], new, *parts[last + 1 :]])


def _about(*folders: str) -> str | None:
    """The file that has the classes' names: a data.yaml or a list of names in one of these folders or in up to three above."""
    for folder in folders:
        folder = os.path.abspath(folder)
        for _ in range(4):
            for place in (folder, os.path.join(folder, "labels")):
                found = os.path.isdir(place) and (
                    yaml_in(place)
                    or next((path for path in (os.path.join(place, name) for name in _NAMES) if os.path.isfile(path)), None)
                    or yaml_in(place, splits=False)
                )
                if found:
                    return os.path.relpath(found) if not os.path.isabs(folders[0]) else found
            folder = os.path.dirname(folder)
    return None


def _classes(build: Builder, about: str | None) -> Classes:
    if about is None:
        return Classes()
    if not is_yaml(about):
        try:
            lines = [line.strip() for line in text_of(about).splitlines()]
        except ValueError as error:
            raise UserError(f"{about!r} is not a list of classes: {error}", "bad-file") from error
        return Classes({i: name for i, name in enumerate(lines) if name})
    content = _content(about)
    names = _names(build, about, content)
    shape, points, flips = (content.get(key) for key in ("kpt_shape", "kpt_names", "flip_idx"))
    if shape is None:
        return Classes(names)
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(n) is int for n in shape) and 0 < shape[0] < 1000 and shape[1] in (2, 3)):
        raise UserError(f"{about!r}: kpt_shape must be [number of keypoints, 2 or 3], not {str(shape)[:100]}", "bad-file")
    points = next(iter(points.values()), None) if isinstance(points, dict) else points
    if not (isinstance(points, list) and len({str(point) for point in points}) == len(points) == shape[0]):
        points = range(1, shape[0] + 1)
        build.note("keypoints without names, named by their numbers", repr(about), shape[0])
    if not (isinstance(flips, list) and sorted(map(str, flips)) == sorted(map(str, range(shape[0])))):
        flips = []
    return Classes(names, (shape[0], shape[1]), list(map(str, points)), list(map(int, flips)))


def _names(build: Builder, about: str, content: dict[str, Any]) -> dict[int, str]:
    """The classes' names of a data.yaml, by their numbers."""
    names, count = content.get("names"), content.get("nc")
    if names is None and type(count) is int and 0 < count < 100_000:
        build.note("classes without names, named by their numbers", repr(about), count)
        names = list(range(count))
    pairs = dict(enumerate(names)) if isinstance(names, list) else names
    try:
        result = {int(number(i)): str(name) for i, name in (pairs or {}).items() if not isinstance(name, (list, dict))}
    except (ValueError, AttributeError):
        result = {}
    if not pairs or len(result) < len(pairs) or min(result) < 0:
        raise UserError(
            f"{about!r}: 'names' must be a list of class names, or a mapping from numbers to names, not {str(names)[:100]}", "bad-file"
        )
    doubled = [name for name, times in Counter(result.values()).items() if times > 1]
    if doubled:
        raise UserError(f"{about!r}: two classes have the name {doubled[0][:100]!r}", "classes")
    return result
