"""What can be odd or wrong about a data set: one row a kind, and the list in which the reader and the doctor count what they find."""

import os
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence

import numpy as np

from ..errors import SEVERITIES, Finding, UserError


class Kind(NamedTuple):
    """``severity`` "error": training refuses the data, where the reader finds it. ``effect``: what becomes of such an entry."""

    severity: str
    message: str
    advice: str
    effect: str = ""
    key: str = ""  # the config key that changes what is done


_LEFT, _PART, _MENDED = "left out", "read in part", "repaired"
_SKIP = "put them there, remove their entries, or leave them out: INPUT.UNREADABLE skip"
_NO_MASK = 'draw them; or set DATASETS.NO_MASK: "box" takes the box as the mask, "skip" leaves the object out'
KINDS: dict[str, Kind] = {
    # files
    "missing file": Kind("error", "the annotation file or the image folder is not there", "put it there, or correct the path"),
    "unreadable file": Kind("error", "the annotation file cannot be used", "write it again in COCO's format"),
    # entries
    "malformed image": Kind("warning", "entries of 'images' have no id or no file name", "complete or remove them", _LEFT),
    "malformed category": Kind("error", "entries of 'categories' have no id or no name", "complete or remove them"),
    "malformed annotation": Kind("warning", "entries of 'annotations' are no objects", "remove them", _LEFT),
    "duplicate image id": Kind("error", "different images share an id, so it is not known whose objects are whose", "give each its own id"),
    "repeated image entry": Kind("note", "images are listed twice with one id", "nothing", _MENDED),
    "duplicate category id": Kind("error", "different categories share an id", "give each its own id"),
    "duplicate category name": Kind("note", "categories share a name: they are one class", "nothing", _MENDED),
    "group category": Kind("note", "the category is the group of all others and has no objects: it is no class", "nothing"),
    "image ids": Kind(
        "note",
        "image ids are texts, fractions or out of range: they count as whole numbers, or where that cannot be all as 1, 2, 3 ...",
        "nothing",
        _MENDED,
    ),
    "category ids": Kind("note", "category ids are texts, fractions or out of range: they count as whole numbers", "nothing", _MENDED),
    "annotation ids": Kind("note", "annotation ids are repeated, missing or no numbers from 1 on: all are numbered from 1", "nothing", _MENDED),
    "orphan annotation": Kind("warning", "annotations are of images that the file does not list", "list the images, or remove them", _LEFT),
    "object of such an image": Kind("note", "objects are of images that are left out", "nothing", _LEFT),
    "unknown category": Kind("warning", "annotations are of categories that the file does not list", "list the categories", _LEFT),
    "class of other data": Kind("warning", "objects are of classes that the model does not have", "rename them, or train on them", _LEFT),
    "other classes": Kind(
        "error", "no class has the name of one of the model's (those of its weights or training data)", "give classes the same names"
    ),
    "classes by name": Kind("note", "the classes have other ids than the model's: they are matched by name", "nothing"),
    # boxes
    "no box": Kind("warning", "objects have no box [x, y, width, height] of finite numbers", "draw or remove them", _LEFT),
    "empty box": Kind("warning", "boxes have no area or a negative side", "redraw them as x, y, width, height", _LEFT),
    "box outside": Kind("warning", "boxes lie wholly outside their image", "check from which corner they are measured", _LEFT),
    "box beyond edge": Kind("note", "boxes reach more than a pixel beyond their image: they are clipped", "nothing", _MENDED),
    "box of keypoints": Kind("note", "objects without a box have that of their visible keypoints", "nothing", _MENDED),
    "box of mask": Kind("note", "objects without a box have that of their mask", "nothing", _MENDED),
    "numbers as texts": Kind("note", "boxes are texts that hold numbers", "nothing", _MENDED),
    "boxes as fractions": Kind("error", "boxes are fractions of the image, but COCO's format has pixels", "multiply them by width and height"),
    "boxes as corners": Kind(
        "warning",
        "boxes look like corners x0, y0, x1, y1: as x, y, width, height they reach beyond their image, and are clipped",
        'if they are, set DATASETS.BOX_FORMAT "xyxy"',
        _MENDED,
        "DATASETS.BOX_FORMAT",
    ),
    "area": Kind("note", "the area is missing or no number: it is that of the mask, or of the box", "nothing", _MENDED),
    "iscrowd": Kind("note", "iscrowd is missing or neither 0 nor 1: it is 0", "nothing", _MENDED),
    "ignored annotation": Kind("note", "annotations have a non-zero 'ignore': regions to ignore, as crowds are", "nothing", _MENDED),
    # crowds
    "crowds": Kind(
        "note",
        "objects are marked as crowds, of which nothing is learnt",
        'if a tool marked single objects so, set DATASETS.CROWDS "objects"',
        key="DATASETS.CROWDS",
    ),
    "crowds alone": Kind(
        "error",
        "every object is marked as a crowd (iscrowd 1), of which nothing is learnt",
        'some tools mark each mask that was brushed so; to learn from them as objects set DATASETS.CROWDS "objects"',
        key="DATASETS.CROWDS",
    ),
    "crowds as objects": Kind("note", "crowds are taken as objects", "nothing", _MENDED),
    "no objects": Kind("error", "there is no object to train on", "annotate some"),
    # masks
    "no mask": Kind("error", "objects have no mask, but the model learns masks", _NO_MASK, key="DATASETS.NO_MASK"),
    "no masks": Kind("error", "no object has a mask, but the model learns masks", _NO_MASK, key="DATASETS.NO_MASK"),
    "bad mask": Kind("error", "masks are neither polygons in their image nor run lengths", _NO_MASK, key="DATASETS.NO_MASK"),
    "mask of other size": Kind("error", "run lengths are of another size than their image", _NO_MASK, key="DATASETS.NO_MASK"),
    "Kaggle's run lengths": Kind(
        "error", "masks are Kaggle's texts of starts and lengths, not COCO's form", "convert them to COCO's run lengths"
    ),
    "short polygon": Kind("warning", "polygons have fewer than 3 points or an odd number of values", "redraw them", _LEFT),
    "flat polygon": Kind("note", "masks are a single list of numbers: they are taken as one polygon", "nothing", _MENDED),
    "box as mask": Kind("note", "objects without a mask have their box as one", "nothing", _MENDED),
    "object without mask": Kind("note", "objects without a mask that can be used are no objects here", "nothing", _LEFT),
    # keypoints
    "no keypoints": Kind("error", "no object has keypoints, but the model learns keypoints", "annotate them (zeros where unknown)"),
    "keypoints absent": Kind("note", "objects have no keypoints: all theirs count as unknown", "nothing", _MENDED),
    "number of keypoints": Kind("error", "keypoints are not x, y, visibility of each", "complete them with zeros"),
    "keypoint visibility": Kind("warning", "keypoints have a visibility other than 0, 1 and 2", "0: unknown, 1: hidden, 2: seen"),
    "count of keypoints": Kind("note", "num_keypoints is not the number of labelled keypoints: it is counted anew", "nothing", _MENDED),
    "keypoint names": Kind("note", "keypoints have no names: they are numbered", "nothing", _MENDED),
    # images
    "no images": Kind("error", "none of the images can be used", "see what is reported of them"),
    "file separators": Kind("note", "names have backslashes, or begin with a slash: they are paths in the image folder", "nothing", _MENDED),
    "file by its end": Kind("note", "images were found in another folder than the file says, by the end of their path", "nothing", _MENDED),
    "file by case": Kind("note", "images were found by a name of other upper and lower case", "nothing", _MENDED),
    "file of address": Kind("note", "images without file_name are found by the end of coco_url", "nothing", _MENDED),
    "several files": Kind("error", "several image files fit the name", "name the folder that holds the right ones"),
    "address": Kind("error", "file names are addresses, but images must be on this disk", "download them, and write their paths"),
    "missing image": Kind("error", "image files are not there", _SKIP, key="INPUT.UNREADABLE"),
    "empty image": Kind(
        "error", "image files are of zero bytes", "copy them again, or leave them out: INPUT.UNREADABLE skip", key="INPUT.UNREADABLE"
    ),
    "unreadable image": Kind(
        "error", "image files cannot be read", "copy or convert them again, or leave them out: INPUT.UNREADABLE skip", key="INPUT.UNREADABLE"
    ),
    "truncated image": Kind(
        "error", "image files end too early", "copy them again, or leave them out: INPUT.UNREADABLE skip", key="INPUT.UNREADABLE"
    ),
    "large image": Kind(
        "error",
        "images have more pixels than are allowed",
        "set INPUT.MAX_PIXELS, or leave them out: INPUT.UNREADABLE skip",
        key="INPUT.MAX_PIXELS",
    ),
    "image left out": Kind("warning", "images are missing or cannot be read", "copy them again", _LEFT),
    "size of image": Kind("note", "sizes are missing or no whole numbers: they are read from the image files", "nothing", _MENDED),
    "image of other size": Kind(
        "error", "images have another size than the annotations say", "annotate these images, or correct width and height"
    ),
    "turned image": Kind(
        "error",
        "images carry an EXIF turn, and the annotations are of the unturned image",
        'to read images unturned set INPUT.EXIF "ignore"',
        key="INPUT.EXIF",
    ),
    "deep image": Kind(
        "error",
        "images have 16 or more bits, but networks take 0 to 255",
        'name the values that become 0 and 255: INPUT.VALUE_RANGE "[0, 65535]"',
        key="INPUT.VALUE_RANGE",
    ),
    "several pictures": Kind(
        "note", "files hold several pictures, as animations and documents do: the first is the image", "save each in its own file", _PART
    ),
    # what only the doctor looks for
    "category gaps": Kind(
        "note", "category ids have gaps: classes are numbered in their order", "nothing, if no other tool takes ids for classes"
    ),
    "unused category": Kind("warning", "categories have no object, so nothing is learnt or measured of them", "remove them, or annotate some"),
    "imbalance": Kind("warning", "classes have less than a hundredth of the objects of the largest", "try RepeatFactorTrainingSampler"),
    "tiny box": Kind("note", "boxes are under 8 pixels (root of the area) for the network: hardly learnt", "let training enlarge the images"),
    "duplicate annotation": Kind("warning", "annotations repeat another's box and category", "remove them"),
    "image without objects": Kind(
        "note", "images have no annotations", "nothing: skipped unless FILTER_EMPTY_ANNOTATIONS (filter_empty) is False"
    ),
    "crowds only": Kind("note", "images have crowds alone, of which nothing is learnt", "nothing: training leaves them out"),
    "repeated file": Kind("warning", "image files are listed under several ids", "list each once, with all its annotations"),
    "EXIF orientation": Kind("note", "images are turned as their EXIF tag says", "check that the annotations are of the turned images"),
    "grey image": Kind("note", "images are grey: they get three equal channels", "nothing"),
    "alpha image": Kind("warning", "images are transparent: alpha is dropped, so that hidden colours show", "save them over a background"),
    "CMYK image": Kind("warning", "images are CMYK: they are converted without their profile, colours change", "save them as RGB"),
    "palette image": Kind("note", "images are of palettes or another colour space: they are converted to RGB", "nothing"),
    "duplicate image": Kind("warning", "image files have the same content as another of the data set", "keep one of each"),
    "train and test": Kind(
        "error", "image files of the test data are trained on", "remove them from one of the two: figures would be too good"
    ),
}
_IMAGES = ("malformed image", "image left out")  # what is left out whole; the others are parts of images
SHOWN = 5  # names that are kept of each kind: there may be millions


@dataclass
class Findings:
    """What was found in the data set ``dataset``: for each kind how many, and the first by name."""

    dataset: str
    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    described: set[str] = field(default_factory=set)
    notes: dict[str, int] = field(default_factory=dict)  # what was left out or guessed where the data are not in COCO's form

    def add(self, kind: str, name: str = "", count: int = 1) -> None:
        """``name`` is of one; with a ``count`` above 1 it describes them all."""
        assert kind in KINDS, kind
        self.counts[kind] = self.counts.get(kind, 0) + count
        shown = self.names.setdefault(kind, [])
        if name and len(shown) < SHOWN:
            shown.append(name)
        if name and count > 1:
            self.described.add(kind)

    def add_all(self, kind: str, places: Sequence[int] | np.ndarray, name: Callable[[int], str]) -> None:
        """Counts a kind at some places of a list; ``name`` gives a place's name, and is called for the first of them alone."""
        for i in places[:SHOWN]:
            self.add(kind, name(int(i)))
        if len(places) > SHOWN:
            self.add(kind, count=len(places) - SHOWN)

    def update(self, other: "Findings") -> None:
        for kind, count in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + count
            self.names[kind] = (self.names.get(kind, []) + other.names[kind])[:SHOWN]
        self.described |= other.described

    def sentence(self, kind: str) -> str:
        count, names = self.counts[kind], self.names[kind]
        more = f" and {count - len(names)} more" if names and count > len(names) and kind not in self.described else ""
        listed = f": {', '.join(names)}{more}" if names else ""
        return f"{kind} ({count}): {KINDS[kind].message}{listed}"

    def error(self, called: str, json_file: str, image_root: str) -> UserError | None:
        """The first kind for which training refuses the data, as an error, which begins by what the data are ``called``."""
        kind = next((kind for kind in KINDS if kind in self.counts and KINDS[kind].severity == "error"), None)
        if kind is None:
            return None
        where = f", in {image_root!r} and the folders in it" if kind == "missing image" else ""
        said = f"{called}{os.path.basename(json_file)!r}: {self.sentence(kind)}{where}. To mend it: {KINDS[kind].advice}"
        return UserError(said, "missing-file" if kind == "missing file" else "data", KINDS[kind].key)

    def effects(self) -> str:
        """ "left out: 3 (2 empty box, 1 no box); repaired: 4 (4 area)", images apart; what did not happen is not listed."""
        parts = []
        for effect in (_LEFT, _PART, _MENDED):
            kinds = [kind for kind in KINDS if kind in self.counts and KINDS[kind].effect == effect]
            listed = f" ({', '.join(f'{self.counts[kind]} {kind}' for kind in kinds)})" if kinds else ""
            if kinds or effect == _LEFT:
                images, others = (sum(self.counts[kind] for kind in kinds if (kind in _IMAGES) == of) for of in (True, False))
                total = f"{images} image{'s'[: images != 1]} and {others} object{'s'[: others != 1]}" if images and others else images + others
                parts.append(f"{effect}: {total}{listed}")
        return "; ".join(parts)

    def lines(self) -> Iterator[Finding]:
        """A line for each kind, errors first."""
        for text, count in self.notes.items():
            yield Finding("note", f"{self.dataset}: {count} {text}")
        for severity in SEVERITIES:
            for kind in self.counts:
                row = KINDS[kind]
                if row.severity == severity:
                    advice = "" if row.advice == "nothing" else row.advice
                    code = "data" if severity == "error" else ""
                    yield Finding(severity, f"{self.dataset}: {self.sentence(kind)}", advice, code, row.key)


def short(value: Any) -> str:
    """A value in quotes, as Python writes it, in no more than 120 characters."""
    text = repr(value)
    return text if len(text) < 120 else f"{text[:70]}...{text[-40:]}"


def listed(names: Iterable[Any]) -> str:
    """The first six of some values, and how many more there are."""
    every = [short(name) for name in names]
    return ", ".join(every[:6]) + (f" and {len(every) - 6} more" if len(every) > 6 else "")
