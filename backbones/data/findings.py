"""What can be odd or wrong about a data set: one row for each kind, and the list in which the reader and the doctor count findings."""

import os
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np

from ..errors import SEVERITIES, Finding, UserError, counted


class Kind(NamedTuple):
    """A ``severity`` of "error" stops training, if the reader finds it. ``effect``: what happens to such an entry."""

    severity: str
    message: str
    advice: str
    effect: str = ""
    key: str = ""  # the config key that changes what is done


_LEFT, _PART, _MENDED = "left out", "read in part", "repaired"
_SKIP = "add the files, remove their entries, or leave them out with INPUT.UNREADABLE skip"
_NO_MASK = 'draw them, or set DATASETS.NO_MASK: "box" uses the box as the mask, "skip" leaves the object out'
KINDS: dict[str, Kind] = {
    # files
    "missing file": Kind("error", "the annotation file or the image folder does not exist", "create it, or correct the path"),
    "unreadable file": Kind("error", "the annotation file cannot be used", "save it again in COCO's format"),
    # entries
    "malformed image": Kind("warning", "entries of 'images' have no id or no file name", "complete or remove them", _LEFT),
    "malformed category": Kind("error", "entries of 'categories' have no id or no name", "complete or remove them"),
    "malformed annotation": Kind("warning", "entries of 'annotations' are not JSON objects", "remove them", _LEFT),
    "duplicate image id": Kind("error", "different images share an id, so their objects cannot be told apart", "give each its own id"),
    "repeated image entry": Kind("note", "images are listed twice with the same id", "nothing", _MENDED),
    "duplicate category id": Kind("error", "different categories share an id", "give each its own id"),
    "duplicate category name": Kind("note", "categories share a name: they are merged into one class", "nothing", _MENDED),
    "group category": Kind("note", "the category is the parent of all others and has no objects: it is not used as a class", "nothing"),
    "image ids": Kind(
        "note",
        "image ids are strings, fractions or out of range: they are read as whole numbers or, if that is impossible, numbered 1, 2, 3 ...",
        "nothing",
        _MENDED,
    ),
    "category ids": Kind("note", "category ids are strings, fractions or out of range: they are replaced by whole numbers", "nothing", _MENDED),
    "annotation ids": Kind(
        "note", "annotation ids are missing, duplicate, 0 or no whole numbers: all are renumbered from 1", "nothing", _MENDED
    ),
    "orphan annotation": Kind(
        "warning", "annotations refer to images that the file does not list", "list the images, or remove the annotations", _LEFT
    ),
    "object of such an image": Kind("note", "objects belong to images that are left out", "nothing", _LEFT),
    "unknown category": Kind("warning", "annotations refer to categories that the file does not list", "list the categories", _LEFT),
    "class of other data": Kind("warning", "objects belong to classes that the model does not have", "rename them, or train on them", _LEFT),
    "other classes": Kind(
        "error", "no class has the same name as a class of the model (from its weights or training data)", "give classes the same names"
    ),
    "misspelt class": Kind(
        "error",
        "objects to train on have class names that differ a little from those of the model (of DATASETS.CLASSES or other training data)",
        "spell them alike",
    ),
    "classes by name": Kind("note", "class ids differ from the model's: classes are matched by name", "nothing"),
    # boxes
    "no box": Kind("warning", "objects have no box [x, y, width, height] of finite numbers", "draw or remove them", _LEFT),
    "empty box": Kind("warning", "boxes have no area or a negative side", "redraw them as x, y, width, height", _LEFT),
    "box outside": Kind("warning", "boxes lie completely outside their image", "check which corner they are measured from", _LEFT),
    "box beyond edge": Kind("note", "boxes extend more than a pixel beyond their image: they are clipped", "nothing", _MENDED),
    "box of keypoints": Kind("note", "objects without a box get the box around their visible keypoints", "nothing", _MENDED),
    "box of mask": Kind("note", "objects without a box get the box around their mask", "nothing", _MENDED),
    "numbers as texts": Kind("note", "boxes are numbers written as strings", "nothing", _MENDED),
    "boxes as fractions": Kind("error", "boxes are fractions of the image, but COCO's format uses pixels", "multiply them by width and height"),
    "boxes as corners": Kind(
        "warning",
        "boxes look like corners x0, y0, x1, y1: read as x, y, width, height they extend beyond their image and are clipped",
        'if they are, set DATASETS.BOX_FORMAT "xyxy"',
        _MENDED,
        "DATASETS.BOX_FORMAT",
    ),
    "box format": Kind(
        "note", "DATASETS.BOX_FORMAT is for files in COCO's format only: boxes are read as their own format has them", "nothing"
    ),
    "area": Kind("note", "the area is missing or not a number: it is computed from the mask, or from the box", "nothing", _MENDED),
    "iscrowd": Kind("note", "iscrowd is missing or neither 0 nor 1: it is set to 0", "nothing", _MENDED),
    "ignored annotation": Kind("note", "annotations have a non-zero 'ignore': they are ignored regions, like crowds", "nothing", _MENDED),
    # crowds
    "crowds": Kind(
        "note",
        "objects are marked as crowds, which training ignores",
        'if a tool marked single objects this way, set DATASETS.CROWDS "objects"',
        key="DATASETS.CROWDS",
    ),
    "crowds alone": Kind(
        "error",
        "every object is marked as a crowd (iscrowd 1), which training ignores",
        'some tools mark every brushed mask this way; to train on them as objects, set DATASETS.CROWDS "objects"',
        key="DATASETS.CROWDS",
    ),
    "crowds as objects": Kind("note", "crowds are treated as objects", "nothing", _MENDED),
    "no objects": Kind("error", "there are no objects to train on", "annotate some"),
    # masks
    "no mask": Kind("error", "objects have no mask, but the model learns masks", _NO_MASK, key="DATASETS.NO_MASK"),
    "no masks": Kind("error", "no object has a mask, but the model learns masks", _NO_MASK, key="DATASETS.NO_MASK"),
    "bad mask": Kind("error", "masks are neither polygons inside their image nor run-length encodings (RLE)", _NO_MASK, key="DATASETS.NO_MASK"),
    "mask of other size": Kind("error", "RLE masks differ in size from their image", _NO_MASK, key="DATASETS.NO_MASK"),
    "Kaggle's run lengths": Kind("error", "masks are Kaggle's RLE strings of starts and lengths, not COCO's RLE", "convert them to COCO's RLE"),
    "short polygon": Kind("warning", "polygons have fewer than 3 points or an odd number of values", "redraw them", _LEFT),
    "flat polygon": Kind("note", "masks are a single list of numbers: each is read as one polygon", "nothing", _MENDED),
    "box as mask": Kind("note", "objects without a mask use their box as the mask", "nothing", _MENDED),
    "object without mask": Kind("note", "objects without a usable mask are left out", "nothing", _LEFT),
    # keypoints
    "no keypoints": Kind("error", "no object has keypoints, but the model learns keypoints", "annotate them (zeros where unknown)"),
    "keypoints absent": Kind("note", "objects have no keypoints: all their keypoints count as unknown", "nothing", _MENDED),
    "number of keypoints": Kind("error", "keypoints are not x, y, visibility for each point", "complete them with zeros"),
    "keypoint visibility": Kind("warning", "keypoints have a visibility that is not 0, 1 or 2", "0: unknown, 1: hidden, 2: seen"),
    "count of keypoints": Kind("note", "num_keypoints is not the number of labelled keypoints: it is recounted", "nothing", _MENDED),
    "keypoint names": Kind("note", "keypoints have no names: they are numbered", "nothing", _MENDED),
    "keypoints by name": Kind("note", "keypoints are in another order than the model's: they are matched by name", "nothing"),
    # images
    "no images": Kind("error", "none of the images can be used", "see the other findings about them"),
    "file separators": Kind(
        "note", "names contain backslashes or begin with a slash: they are read as paths in the image folder", "nothing", _MENDED
    ),
    "file in another folder": Kind(
        "note", "images were found in a different folder from the one stated, by the end of their path", "nothing", _MENDED
    ),
    "file name in another case": Kind(
        "note", "images were found under a name that differs in upper and lower case or in the encoding of accents", "nothing", _MENDED
    ),
    "file of address": Kind("note", "images without file_name are found by the end of coco_url", "nothing", _MENDED),
    "several files": Kind("error", "several image files match the name", "name the folder that holds the right ones"),
    "address": Kind("error", "file names are URLs, but images must be on this disk", "download them, and write their paths instead"),
    "missing image": Kind("error", "image files do not exist", _SKIP, key="INPUT.UNREADABLE"),
    "empty image": Kind(
        "error", "image files are empty (0 bytes)", "copy them again, or leave them out with INPUT.UNREADABLE skip", key="INPUT.UNREADABLE"
    ),
    "unreadable image": Kind(
        "error",
        "image files cannot be read",
        "copy or convert them again, or leave them out with INPUT.UNREADABLE skip",
        key="INPUT.UNREADABLE",
    ),
    "truncated image": Kind(
        "error", "image files are truncated", "copy them again, or leave them out with INPUT.UNREADABLE skip", key="INPUT.UNREADABLE"
    ),
    "large image": Kind(
        "error",
        "images have more pixels than allowed",
        "set INPUT.MAX_PIXELS, or leave them out with INPUT.UNREADABLE skip",
        key="INPUT.MAX_PIXELS",
    ),
    "image left out": Kind("warning", "images are missing or cannot be read", "copy them again", _LEFT),
    "size of image": Kind("note", "sizes are missing or not whole numbers: they are read from the image files", "nothing", _MENDED),
    "image of other size": Kind(
        "error", "image sizes differ from those that the annotations state", "annotate these images, or correct width and height"
    ),
    "turned image": Kind(
        "error",
        "images have an EXIF rotation, but the annotations fit the unrotated image",
        'set INPUT.EXIF "ignore" to read images without their rotation',
        key="INPUT.EXIF",
    ),
    "deep image": Kind(
        "error",
        "images have 16 or more bits, but networks expect 0 to 255",
        'name the values that become 0 and 255: INPUT.VALUE_RANGE "[0, 65535]"',
        key="INPUT.VALUE_RANGE",
    ),
    "several pictures": Kind(
        "note", "files hold several pictures, as animations and documents do: only the first is used", "save each in its own file", _PART
    ),
    # only the doctor looks for these
    "category gaps": Kind(
        "note", "category ids have gaps: classes are numbered in their order", "nothing, unless another tool uses the ids as classes"
    ),
    "unused category": Kind("warning", "categories have no objects, so they are neither learnt nor evaluated", "remove them, or annotate some"),
    "imbalance": Kind("warning", "classes have less than a hundredth of the objects of the largest class", "try RepeatFactorTrainingSampler"),
    "tiny box": Kind(
        "note", "boxes are under 8 pixels (square root of the area) at the network's input: hard to learn", "train on larger images"
    ),
    "duplicate annotation": Kind("warning", "annotations duplicate another's box and category", "remove them"),
    "image without objects": Kind(
        "note", "images have no annotations", "nothing: skipped unless FILTER_EMPTY_ANNOTATIONS (filter_empty) is False"
    ),
    "crowds only": Kind("note", "images have only crowds, which training ignores", "nothing: training leaves them out"),
    "repeated file": Kind("warning", "image files are listed under several ids", "list each once, with all its annotations"),
    "EXIF orientation": Kind("note", "images are rotated as their EXIF tag says", "check that the annotations fit the rotated images"),
    "grey image": Kind("note", "images are greyscale: they get three equal channels", "nothing"),
    "alpha image": Kind("warning", "images are transparent: alpha is dropped, so hidden colours show", "save them over a background"),
    "CMYK image": Kind("warning", "images are CMYK: they are converted without their colour profile, so colours change", "save them as RGB"),
    "palette image": Kind("note", "images use a palette or another colour space: they are converted to RGB", "nothing"),
    "duplicate image": Kind("warning", "image files have the same content as another in the data set", "keep one of each"),
    "train and test": Kind(
        "error", "image files of the test data are also in the training data", "remove them from one of the two, or figures will be too good"
    ),
}
# kind with an effect -> how the summary counts it; "(s)" is for more than one
_COUNTED = {
    "malformed image": "malformed image(s)",
    "malformed annotation": "malformed annotation(s)",
    "repeated image entry": "image(s) listed twice",
    "duplicate category name": "duplicate class name(s)",
    "image ids": "image id(s) replaced",
    "category ids": "category id(s) replaced",
    "annotation ids": "annotation id(s) renumbered",
    "orphan annotation": "annotation(s) without an image",
    "object of such an image": "object(s) of unused images",
    "unknown category": "object(s) of an unknown category",
    "class of other data": "object(s) of a class unknown to the model",
    "no box": "object(s) without a box",
    "empty box": "empty box(es)",
    "box outside": "box(es) outside the image",
    "box beyond edge": "box(es) clipped at the edge",
    "box of keypoints": "box(es) around keypoints",
    "box of mask": "box(es) around a mask",
    "numbers as texts": "box(es) with numbers as strings",
    "boxes as corners": "box(es) that may be corners",
    "area": "area(s) computed",
    "iscrowd": "iscrowd value(s) set to 0",
    "ignored annotation": "annotation(s) with ignore set",
    "crowds as objects": "crowd(s) treated as objects",
    "short polygon": "short polygon(s)",
    "flat polygon": "mask(s) given as one list",
    "box as mask": "mask(s) made from a box",
    "object without mask": "object(s) without a mask",
    "keypoints absent": "object(s) without keypoints",
    "keypoint names": "list(s) of keypoint names made",
    "count of keypoints": "num_keypoints value(s) recounted",
    "file separators": "file name(s) with separators changed",
    "file in another folder": "image(s) found in another folder",
    "file name in another case": "image(s) found by name in another case",
    "file of address": "image(s) found by coco_url",
    "image left out": "missing or unreadable image(s)",
    "size of image": "image size(s) read from the file",
    "several pictures": "file(s) with several pictures",
}
_IMAGES = ("malformed image", "image left out")  # whole images left out; the others are parts of images
SHOWN = 5  # names kept for each kind: there may be millions


@dataclass
class Findings:
    """What was found in the data set ``dataset``: how many of each kind, and the names of the first."""

    dataset: str
    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    described: set[str] = field(default_factory=set)
    notes: dict[str, int] = field(default_factory=dict)  # what was left out or guessed if the data are not in COCO's format
    lost: dict[str, int] = field(default_factory=dict)  # how many of what, such as "line", of these notes were left out

    def add(self, kind: str, name: str = "", count: int = 1) -> None:
        """Counts a finding. ``name`` names one entry; with a ``count`` above 1 it describes them all."""
        assert kind in KINDS, kind
        self.counts[kind] = self.counts.get(kind, 0) + count
        shown = self.names.setdefault(kind, [])
        if name and len(shown) < SHOWN:
            shown.append(name)
        if name and count > 1:
            self.described.add(kind)

    def add_all(self, kind: str, places: Sequence[int] | np.ndarray, name: Callable[[int], str]) -> None:
        """Counts a kind at some positions of a list; ``name`` gives a position's name, and is called only for the first of them."""
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
        """The first kind that stops training, as an error. Its message begins with what the data are ``called``."""
        kind = next((kind for kind in KINDS if kind in self.counts and KINDS[kind].severity == "error"), None)
        if kind is None:
            return None
        where = f", in {image_root!r} and the folders in it" if kind == "missing image" else ""
        said = f"{called}{os.path.basename(json_file)!r}: {self.sentence(kind)}{where}. To fix it: {KINDS[kind].advice}"
        return UserError(said, "missing-file" if kind == "missing file" else "data", KINDS[kind].key)

    def effects(self) -> str:
        """ "left out: 3 (2 empty boxes, 1 object without a box); repaired: 1 (1 area computed)"; other effects only where they occurred."""
        parts = []
        for effect in (_LEFT, _PART, _MENDED):
            kinds = [kind for kind in KINDS if kind in self.counts and KINDS[kind].effect == effect]
            lost = self.lost if effect == _LEFT else {}
            words = [*(in_words(kind, self.counts[kind]) for kind in kinds), *(counted(count, what) for what, count in lost.items())]
            listed = f" ({', '.join(words)})" if words else ""
            if kinds or effect == _LEFT:
                images = sum(self.counts[kind] for kind in kinds if kind in _IMAGES) + lost.get("image", 0)
                others = sum(self.counts[kind] for kind in kinds) + sum(lost.values()) - images
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


def in_words(kind: str, count: int) -> str:
    """A number of findings of a kind that has an effect: "1 empty box", "3 images listed twice"."""
    return f"{count} " + re.sub(r"\((e?s)\)", "" if count == 1 else r"\1", _COUNTED[kind])


def short(value: Any) -> str:
    """A value as Python writes it, shortened to at most 120 characters."""
    text = repr(value)
    return text if len(text) < 120 else f"{text[:70]}...{text[-40:]}"
