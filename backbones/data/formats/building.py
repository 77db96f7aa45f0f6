"""What the readers of all formats share: the dictionary that they build, notes on what they left out, and the images in a folder."""

import math
import os
import sys
import unicodedata
import warnings
from collections import Counter
from typing import Any, Iterable, Iterator, Sequence

from ..images import size

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".gif", ".jp2", ".avif")
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # and how tools call them
_LARGEST = 1e6  # pixels of a coordinate
_MOST = 1 << 24  # bytes of a file of annotations of one image


class Builder:
    """Builds a dictionary in COCO's format. ``root`` is the folder that names of images are relative to, ``exif`` of `images.size`."""

    def __init__(self, root: str, exif: str = "turn"):
        self.root, self.exif = root, exif
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._notes: dict[str, list] = {}  # text -> [count, the first place]
        self._lost: Counter[str] = Counter()

    def note(self, text: str, where: str = "", count: int = 1, lost: str = "") -> None:
        """Counts something that was left out or guessed; ``where`` is shown for the first. ``lost``: what was left out, such as "line"."""
        if count:
            self._notes.setdefault(text, [0, where])[0] += count
            self._lost.update({lost: count} if lost else {})

    def image(self, path: str, stated: tuple[int, int] | None = None) -> dict[str, Any]:
        """Adds the entry of an image. Without a ``stated`` (width, height) its size is read from the file, if possible."""
        entry: dict[str, Any] = {"id": len(self.images) + 1, "file_name": os.path.relpath(path, self.root).replace(os.sep, "/")}
        known = stated or file_size(path, self.exif)
        if known:
            entry.update(width=known[0], height=known[1])
        self.images.append(entry)
        return entry

    def add(self, image: dict, category: Any, box: Sequence[float], where: str, polygons: Sequence[Sequence[float]] = (), **more: Any) -> None:
        """Adds an object of a category, which gets its id from `content`, with its box x0, y0, x1, y1. An object without area is left out."""
        x0, y0, x1, y1 = box
        if x1 <= x0 or y1 <= y0:
            self.note("objects left out because their box has no area", where, lost="object")
            return
        entry = {"id": len(self.annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": [x0, y0, x1 - x0, y1 - y0]}
        entry.update(area=sum(map(area, polygons)) or (x1 - x0) * (y1 - y0), iscrowd=0)
        if polygons:
            entry["segmentation"] = [list(polygon) for polygon in polygons]
        self.annotations.append({**entry, **more})

    def content(self, categories: Sequence[tuple[Any, dict[str, Any]]]) -> dict[str, Any]:
        """The dictionary. ``categories``: (the category as given to `add`, the fields of its entry) in the order of the classes."""
        ids = {key: i for i, (key, _) in enumerate(categories, 1)}
        for annotation in self.annotations:
            annotation["category_id"] = ids[annotation["category_id"]]
        return {
            "images": self.images,
            "categories": [{"id": i, **fields} for i, (_, fields) in enumerate(categories, 1)],
            "annotations": self.annotations,
            "notes": {text + (f", the first {where}" if where else ""): count for text, (count, where) in self._notes.items()},
            "lost": dict(self._lost),
        }


def area(polygon: Sequence[float]) -> float:
    """The area of a polygon x0, y0, x1, y1, ... in square units, whatever its orientation."""
    xs, ys = polygon[::2], polygon[1::2]
    return abs(sum(xs[i - 1] * ys[i] - xs[i] * ys[i - 1] for i in range(len(xs)))) / 2


def bounds(polygons: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of the points of all polygons."""
    xs, ys = [x for polygon in polygons for x in polygon[::2]], [y for polygon in polygons for y in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def number(value: Any) -> float:
    """A number, also from a string. Raises ValueError for anything else, NaN, and coordinates beyond any image."""
    try:
        result = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
    except (ValueError, OverflowError):
        result = math.nan
    if not abs(result) <= _LARGEST:
        raise ValueError(f"{str(value)[:40]!r} is not a number of pixels")
    return result


def file_size(path: str, exif: str = "turn") -> tuple[int, int] | None:
    """Width and height of an image from its header, after the turn that its EXIF tag asks for unless ``exif`` is "ignore"; None if it
    cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd tags
            return size(path, exif, max_pixels=sys.maxsize)  # training refuses what is too large
    except Exception:  # of a damaged file; who reads the pixels says what is wrong
        return None


def place_of(root: str, name: str) -> str:
    """The path of an image by its name in a folder. One with ``..`` is resolved: shortened as text, it would miss the way up from a link."""
    path = os.path.join(root, name)
    return os.path.realpath(path) if ".." in name.split("/") else path


def walk(top: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """``os.walk`` without hidden folders, also into linked ones, but into each folder once, and into none that holds ``top``."""
    own, seen = os.path.join(os.path.realpath(top), ""), set()
    for where, folders, names in os.walk(top, followlinks=True):
        kept = []
        for name in sorted(name for name in folders if not name.startswith(".")):
            path = os.path.join(where, name)
            real = os.path.join(os.path.realpath(path), "")
            if real in seen or os.path.islink(path) and (real.startswith(own) or own.startswith(real)):
                continue
            seen.add(real)
            kept.append(name)
        folders[:] = kept
        yield where, folders, names


def files(folder: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """The files with one of these extensions in a folder and its subfolders, sorted, without hidden ones such as macOS's ``._a.jpg``."""
    for where, _, names in walk(folder):
        yield from (os.path.join(where, name) for name in sorted(names) if name.lower().endswith(suffixes) and not name.startswith("."))


def lists(folder: str) -> dict[str, str]:
    """The lists of images in a folder that are called as a split is, in capitals or not: split -> path."""
    names = sorted(os.listdir(folder), reverse=True) if os.path.isdir(folder) else []  # val.txt before Val.txt
    every = {split: [name for known in called for name in names if name.lower() == f"{known}.txt"] for split, called in SPLITS.items()}
    return {split: os.path.join(folder, found[0]) for split, found in every.items() if found}


def has(folder: str, suffixes: tuple[str, ...]) -> bool:
    """Whether a folder or a subfolder has a file with one of these extensions."""
    return next(files(folder, suffixes), None) is not None


def text_of(path: str) -> str:
    """A text file's content in UTF-8, or as its byte-order mark says. Raises ValueError if it is not text, or too long."""
    try:
        with open(path, "rb") as f:
            content = f.read(_MOST + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    if len(content) > _MOST:
        raise ValueError(f"it is larger than {_MOST >> 20} MB")
    if b"\0" in content and content[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is not text")
    return content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")


def without_suffix(name: str) -> str:
    """A name without an image's extension: ``a.b`` of ``a.b.jpg``, and of ``a.b``."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in SUFFIXES else name


def composed(name: str) -> str:
    """A name with each accent in one character with its letter, where macOS writes two."""
    return unicodedata.normalize("NFC", name)


class Images:
    """The images under a folder, to be found by the names of their annotation files."""

    def __init__(self, root: str):
        self.all = list(files(root, SUFFIXES))
        self._by_stem: dict[str, list[str]] = {}
        for path in self.all:
            stem = composed(without_suffix(os.path.relpath(path, root)))
            for name in {stem, os.path.basename(stem)}:
                self._by_stem.setdefault(name, []).append(path)

    def find(self, *names: str) -> str | None:
        """The image of the first of these names that is unambiguous, with or without folders, extensions apart; None if there is none."""
        for name in names:
            plain = name.replace("\\", "/")
            for stem in (without_suffix(plain), without_suffix(os.path.basename(plain))):
                found = self._by_stem.get(composed(os.path.normpath(stem)), [])
                same = [path for path in found if os.path.basename(path) == os.path.basename(plain)]
                if len(same or found) == 1:
                    return (same or found)[0]
        return None
