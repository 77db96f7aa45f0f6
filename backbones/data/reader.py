"""Reads data in COCO's format as annotation tools write it: once, repairing what has one sensible meaning, and counting all changes.

Training, evaluation, the doctor, `compare`, `visualize` and the searches read by `read`. Sound entries stay as they are in the file. The checks
work on columns of all annotations at once, as a file may have millions.
"""

import dataclasses
import difflib
import os
import re
from typing import Any, Sequence

import numpy as np

from ..documents import read_json
from ..errors import UserError, counted, first_of, plain
from ..files import not_there
from . import formats, objects
from .annotations import id_of, is_plain
from .dataset import Dataset, without_collections
from .findings import Findings, short
from .image_files import Files
from .image_list import SAMPLED, Progress, read_images
from .sources import Source, Use

_BIG = 10**6  # more pixels than any side of a box
_NONE = -(1 << 63)  # in a column of ids: there is none


def read(source: Source, use: Use, images: int | None = SAMPLED, progress: Progress = lambda items, **_: items, files: bool = True) -> Dataset:
    """The data set of a source.

    Args:
        use: what is done with the data, which decides what they must have.
        images: how many image files have their header read; None: all. Whether they exist is checked for all.
        progress: wraps long loops, called like ``tqdm``.
        files: whether the image files matter; if not, names are not changed.

    Raises UserError if the file cannot be read as COCO's at all. Faulty entries are listed in the findings.
    """
    with without_collections():
        return _read(source, use, images, progress, files)


def _read(source: Source, use: Use, images: int | None, progress: Progress, files: bool) -> Dataset:
    content = _content(source, use, files)
    notes = content.pop("notes", None)
    data = Dataset(source, Findings(source.name, notes=notes or {}, lost=content.pop("lost", None) or {}))
    if notes is not None and use.box_format != "xywh":
        use = dataclasses.replace(use, box_format="xywh")
        data.findings.add("box format")
    numbers, left_out = read_images(data, use, content["images"], images if files else 0, progress, Files(source.image_root) if files else None)
    place = {image["id"]: i for i, image in enumerate(data.images)}
    image_at = {own: place[number] for own, number in numbers.items() if number in place}
    category_at = _categories(data, content.get("categories") or [])
    entries = content.get("annotations") or []
    data.labelled = bool(entries)
    del content
    _Annotations(data, use, entries).read(image_at, category_at, numbers, left_out)
    number_classes(data, use.classes)
    if use.masks and data.labelled:
        objects.masks(data, use)
    objects.keypoints(data, use)
    objects.areas(data)
    if not data.images and not data.error():
        data.findings.add("no images")
    if source.training and not data.error() and all(a["iscrowd"] for a in data.annotations):
        data.findings.add("no objects", f"of {counted(len(data.images), 'image')}")
    return data


def parse(path: str, images: str, called: str, exif: str = "turn") -> dict[str, Any]:
    """The data at a path, in COCO's format: "images" and, but for data without annotations, "annotations" and "categories".

    For other formats "notes" has what was left out or guessed. ``called`` is how errors begin, ``exif`` that of `formats.load`.
    Raises UserError.
    """
    what = f"{called}annotation file {path!r}"
    if not os.path.exists(path):
        raise not_there(f"{called}annotation file", path)
    path = formats.single(path)
    content: Any = formats.load(path, images, exif)
    if content is not None:
        return content  # with our "notes"
    try:
        content = read_json(path)
    except ValueError as error:
        known = None
        if os.path.isfile(path):  # a pipe may never begin
            with open(path, "rb") as f:
                known = formats.foreign(f.read(1 << 14), path)
        raise UserError(f"{what} is {known[0]}: {known[1]}" if known else f"{what} is not JSON: {error}", "bad-file") from error
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        known = formats.foreign(content, path)
        if known:
            raise UserError(f"{what} is {known[0]}: {known[1]}", "bad-file")
    return {key: value for key, value in content.items() if key not in ("notes", "lost")} if isinstance(content, dict) else {}


def _content(source: Source, use: Use, files: bool) -> dict[str, Any]:
    name = f"{source.called}annotation file {source.json_file!r}"
    if files and not os.path.isdir(source.image_root):
        what = f"{source.called}image folder"
        is_file = os.path.isfile(source.image_root)
        raise UserError(f"{what} {source.image_root!r} is a file", "missing-file") if is_file else not_there(what, source.image_root)
    content = parse(source.json_file, source.image_root if files else "", source.called, use.exif)
    missing = [key for key in ("images", "categories") if key not in content]
    # data to predict only need no classes if those of another data set are used
    if missing and not (missing == ["categories"] and not source.training and not content.get("annotations") and use.classes):
        raise UserError(f"{name} is not in COCO's format: it has no {', '.join(missing)}", "bad-file")
    for key in ("images", "categories", "annotations"):
        if not isinstance(content.get(key, []), (list, type(None) if key == "annotations" else list)):
            raise UserError(f"{name}: {key!r} is not a list of objects", "bad-file")
    if "categories" in content and not content["categories"] and not use.classes:
        raise UserError(f"{name}: 'categories' is empty", "data")
    if not content["images"]:
        raise UserError(f"{name}: 'images' is empty", "data")
    if source.training and not content.get("annotations"):
        raise UserError(f"{name} has no annotations: there is nothing to train on", "data")
    return content


def _categories(data: Dataset, entries: list[Any]) -> dict[Any, int]:
    """Fills ``data.categories``, sorted, one for each name. Returns a map from each id in the file to one of theirs."""
    say = data.findings.add
    sound: list[tuple[Any, str, dict]] = []
    for i, entry in enumerate(entries):
        number, name = (id_of(entry.get("id")), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if number is None or type(name) not in (str, int, float) or name == "":
            say("malformed category", f"entry {i}")
        else:
            sound.append((number, str(name), entry))
    odd = sum(type(entry["id"]) is not int or not is_plain(number) for number, _, entry in sound)
    if odd:
        say("category ids", count=odd)
    if not any(isinstance(number, str) for number, *_ in sound):
        sound.sort(key=lambda row: row[0])
    anew = not all(is_plain(number) for number, *_ in sound)
    rows = enumerate(sound, 1) if anew else ((row[0], row) for row in sound)
    at: dict[Any, int] = {}
    names: dict[str, int] = {}
    for number, (own, name, entry) in rows:
        if own in at:
            known = next(c["name"] for c in data.categories if c["id"] == at[own])
            if known != name:
                say("duplicate category id", f"{own}: {short(known)} and {short(name)}")
            continue
        if name in names:
            say("duplicate category name", f"{short(name)} (ids {names[name]} and {number})")
        else:
            names[name] = number
            data.categories.append({**entry, "id": number, "name": name})
        at[own] = names[name]
    return at


def number_classes(data: Dataset, wanted: tuple[str, ...]) -> None:
    """Numbers the classes in the order of their ids or, if classes are ``wanted``, in that order by name. Leaves out their parent."""
    categories = data.categories
    used = {a["category_id"] for a in data.annotations}
    for group in categories if len(categories) > 1 and data.labelled else ():
        others = [c for c in categories if c is not group]
        if group["id"] not in used and all(c.get("supercategory") == group["name"] for c in others):
            data.findings.add("group category", short(group["name"]))
            categories = others
            break
    data.classes = list(wanted or (c["name"] for c in categories))
    number = {name: i for i, name in enumerate(data.classes)}
    data.class_of = {c["id"]: number[c["name"]] for c in categories if c["name"] in number}
    data.categories = [c for c in categories if c["id"] in data.class_of]
    foreign = {c["id"]: c["name"] for c in categories if c["id"] not in data.class_of}
    data.foreign += list(foreign.values())
    if foreign and not data.class_of and data.labelled:
        spelt = " (two spellings of the same)" if set(map(plain, foreign.values())) & set(map(plain, wanted)) else ""
        data.findings.add("other classes", f"{first_of([*map(short, foreign.values())])} here, {first_of([*map(short, wanted)])} there{spelt}")
    there = {c["name"] for c in categories}
    for i in foreign:
        count = sum(a["category_id"] == i for a in data.annotations)
        if not count:
            continue
        spelt = _alike(foreign[i], wanted)
        if spelt and spelt not in there and data.source.training:
            data.findings.add("misspelt class", f"{short(foreign[i])} here, {short(spelt)} there", count)
        else:
            data.findings.add("class of other data", f"{short(foreign[i])} ({count}{f', there spelt {short(spelt)}' if spelt else ''})", count)
    if foreign:
        data.keep([i for i, a in enumerate(data.annotations) if a["category_id"] not in foreign])
    order = [data.class_of[i] for i in sorted(data.class_of)]
    if order != sorted(order):
        data.findings.add("classes by name", first_of([short(c["name"]) for c in data.categories]))


def _alike(name: str, others: Sequence[str]) -> str:
    """The one of the ``others`` that differs from a name in nothing but spelling, with the same digits; "" if none does."""
    same = {plain(other): other for other in reversed(others) if re.findall(r"\d", other) == re.findall(r"\d", name)}
    close = difflib.get_close_matches(plain(name), same, 1, 0.8)
    return same[close[0]] if close else ""


class _Annotations:
    """Fills ``data.annotations`` with the entries that belong to its images and classes and have a box."""

    def __init__(self, data: Dataset, use: Use, entries: list[Any]):
        self.data, self.use, self.say = data, use, data.findings
        self.entries = [entry for entry in entries if type(entry) is dict]
        if len(self.entries) < len(entries):
            self.say.add_all("malformed annotation", [i for i, e in enumerate(entries) if type(e) is not dict], lambda i: f"entry {i}")
        self.kept = np.ones(len(self.entries), bool)

    def read(self, image_at: dict[Any, int], category_at: dict[Any, int], numbers: dict[Any, Any], left_out: dict[Any, bool]) -> None:
        entries, images, use = self.entries, self.data.images, self.use
        self.place = _look_up(entries, "image_id", image_at)
        category = _look_up(entries, "category_id", category_at)
        orphans = self.place == _NONE
        if orphans.any():
            lost, gone = np.zeros((2, len(entries)), bool)
            for i in np.flatnonzero(orphans):
                number = numbers.get(id_of(entries[i].get("image_id")))
                lost[i], gone[i] = left_out.get(number, False), number in left_out
            self._leave_out("object of such an image", lost)
            self.kept &= ~gone  # of images that are an error themselves, or of another part of the data
            self._leave_out("orphan annotation", orphans)
        self._leave_out("unknown category", category == _NONE)
        boxes, texts = _boxes(entries)
        changed = texts | (use.box_format == "xyxy")
        if use.box_format == "xyxy":
            boxes[:, 2:] -= boxes[:, :2]
        mended: dict[str, list[int]] = {"flat polygon": [], "short polygon": []}
        for i in np.flatnonzero(self.kept).tolist():
            if kind := objects.polygons(entries[i]):
                mended[kind].append(i)
        for kind, places in mended.items() if use.masks or use.whole else ():
            self.say.add_all(kind, places, self._name)
        self._undrawn(boxes, changed)
        with np.errstate(invalid="ignore"):
            self._leave_out("no box", ~(np.abs(boxes) <= _BIG).all(1))
            self.say.add_all("numbers as texts", np.flatnonzero(texts & self.kept), self._name)
            self._leave_out("empty box", (boxes[:, 2:] <= 0).any(1))
        # the last row is for annotations without an image
        sides = np.array([*((image["width"], image["height"]) for image in images), (1, 1)], float)[np.where(orphans, -1, self.place)]
        if not self._units(boxes[self.kept], sides[self.kept]):
            with np.errstate(invalid="ignore"):
                far = boxes[:, :2] + boxes[:, 2:]
                self._leave_out("box outside", (boxes[:, :2] >= sides).any(1) | (far <= 0).any(1))
                beyond = ((boxes[:, :2] < -1) | (far > sides + 1)).any(1) & self.kept
            if "boxes as corners" not in self.say.counts:  # which says it
                self.say.add_all("box beyond edge", np.flatnonzero(beyond), self._name)
            low, high = np.maximum(boxes[beyond, :2], 0), np.minimum(far[beyond], sides[beyond])
            boxes[beyond] = np.concatenate([low, high - low], 1)
            changed |= beyond
        # what differs from the file is written into its entries; the others stay as they are
        for i in np.flatnonzero(self.kept & changed):
            entries[i]["bbox"] = boxes[i].tolist()
        self._flags(category)

    def _name(self, i: int) -> str:
        image = self.data.images[self.place[i]]["file_name"] if self.place[i] != _NONE else f"image {short(self.entries[i].get('image_id'))}"
        return f"annotation {short(self.entries[i].get('id'))} of {image if self.place[i] == _NONE else short(image)}"

    def _leave_out(self, kind: str, which: Any) -> None:
        which = which & self.kept
        if which.any():
            self.say.add_all(kind, np.flatnonzero(which), self._name)
            self.kept &= ~which

    def _undrawn(self, boxes: np.ndarray, changed: np.ndarray) -> None:
        """Makes missing boxes from the visible keypoints, or from the mask."""
        places: dict[str, list[int]] = {"box of keypoints": [], "box of mask": []}
        for i in np.flatnonzero(self.kept & (~np.isfinite(boxes).any(1) | (boxes == 0).all(1))):
            entry, image = self.entries[i], self.data.images[self.place[i]]
            kind, box = "box of keypoints", objects.box_of_keypoints(entry.get("keypoints"))
            if box is None:
                kind, box = "box of mask", objects.box_of_mask(entry.get("segmentation"), image["height"], image["width"])
            if box is not None and min(box[2:]) > 0:
                boxes[i], changed[i] = box, True
                places[kind].append(i)
        for kind, found in places.items():
            self.say.add_all(kind, found, self._name)

    def _units(self, boxes: np.ndarray, sides: np.ndarray) -> bool:
        """Whether boxes are fractions of the image. Warns where they look like corners."""
        if not len(boxes):
            return False
        far = boxes[:, :2] + boxes[:, 2:]
        if far.max() <= 1.01 and sides.min() > 4:
            self.say.add("boxes as fractions", f"such as {[round(float(v), 3) for v in boxes[0]]}", len(boxes))
            return True
        corners = boxes.min() >= 0 and (boxes[:, 2:] > boxes[:, :2]).all() and (boxes[:, 2:] <= sides + 1).all()
        beyond = (far > sides + 1).any(1)
        if len(boxes) >= 4 and corners and beyond.mean() > 0.2:
            self.say.add("boxes as corners", f"{beyond.sum()} of {len(boxes)} reach beyond", int(beyond.sum()))
        return False

    def _flags(self, category: np.ndarray) -> None:
        """Ids, and whether an object is a crowd."""
        entries, order = self.entries, np.flatnonzero(self.kept)
        image_ids = [image["id"] for image in self.data.images]
        known: set = set()
        sound, odd, ignored, crowds = True, [], [], []
        for i, at, number in zip(order.tolist(), self.place[order].tolist(), category[order].tolist()):
            a = entries[i]
            a["image_id"], a["category_id"] = image_ids[at], number
            crowd = a.get("iscrowd")
            if type(crowd) is not int or crowd not in (0, 1):
                if crowd not in (0, 1, "0", "1"):
                    odd.append(i)
                crowd = a["iscrowd"] = int(crowd in (1, "1"))
            if a.get("ignore") not in (None, 0, "0", ""):
                ignored.append(i)
                a["iscrowd"], a["ignore"] = 1, 0
            elif crowd:
                crowds.append(i)
            if sound:
                key = a.get("id")
                sound = type(key) is int and key != 0 and is_plain(key) and key not in known
                known.add(key if sound else None)
        self.say.add_all("iscrowd", odd, self._name)
        self.say.add_all("ignored annotation", ignored, self._name)
        if crowds and self.use.crowds == "objects":
            self.say.add_all("crowds as objects", crowds, self._name)
            for i in crowds:
                entries[i]["iscrowd"] = 0
        elif crowds:
            alone = len(crowds) + len(ignored) == len(order) and self.data.source.training
            self.say.add("crowds alone" if alone else "crowds", f"{len(crowds)} of {counted(len(order), 'object')}", len(crowds))
        self.data.annotations = [entries[i] for i in order] if len(order) < len(entries) else entries
        if not sound:
            self.data.own_ids = [a.get("id") for a in self.data.annotations]
            self.say.add("annotation ids", count=len(order))
            for i, a in enumerate(self.data.annotations, 1):
                a["id"] = i


def _look_up(entries: list[dict], name: str, at: dict[Any, int]) -> np.ndarray:
    """What ``at`` has for that field of each entry, (N,) int64; `_NONE` where it has nothing."""
    try:
        found = np.fromiter((at.get(entry.get(name), _NONE) for entry in entries), np.int64, len(entries))
    except TypeError:  # a list or an object instead of an id
        found = np.full(len(entries), _NONE)
    for i in np.flatnonzero(found == _NONE):
        found[i] = at.get(id_of(entries[i].get(name)), _NONE)
    return found


def _boxes(entries: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) of the entries' numbers, NaN where there are none; and (N,) whether they are numbers written as strings."""
    raw = [entry.get("bbox") for entry in entries]
    texts = np.fromiter((type(box) is list and str in map(type, box) for box in raw), bool, len(raw))
    try:
        boxes = np.array(raw, float)
        if boxes.shape == (len(raw), 4):
            return boxes, texts
    except (ValueError, TypeError, OverflowError):
        pass
    boxes = np.full((len(raw), 4), np.nan)
    for i, box in enumerate(raw):
        if type(box) is list and len(box) == 4:
            try:
                boxes[i] = [float(v) for v in box]
            except (ValueError, TypeError, OverflowError):
                continue
    return boxes, texts
