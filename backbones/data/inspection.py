"""Finds everything that is wrong, or odd, in COCO-format data. Checks every annotation, and a sample of the images or all.

`register_from_config` stops at the first mistake, and so does training; this lists all.
"""

import math
import os
import reprlib
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Iterator, Sequence

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..errors import SEVERITIES, Finding, UserError
from ..files import sha256
from . import annotations as coco
from .sources import Source, Use, sources

__all__ = ["KINDS", "Flaw", "Source", "Use", "inspect", "sources", "summarize"]

# kind -> (severity, what is wrong, what to do)
KINDS = {
    "missing file": ("error", "the annotation file or the image folder is not there", "put it there, or correct the path"),
    "unreadable file": ("error", "the annotation file cannot be used", "write it again in COCO's format"),
    "malformed": ("error", "entries lack what COCO's format asks for", "complete or remove them"),
    "duplicate image id": ("error", "images share an id", "number images from 1, each once"),
    "duplicate annotation id": ("error", "annotations share an id", "number annotations from 1, each once"),
    "duplicate category id": ("error", "categories share an id", "give each its own"),
    "duplicate category name": ("warning", "categories share a name", "join them, or rename one"),
    "annotation id 0": ("warning", "has the id 0, whose detection pycocotools always counts as wrong", "number annotations from 1"),
    "orphan annotation": ("error", "annotations are of images that the file does not list", "remove them, or list the images"),
    "unknown category": ("error", "annotations are of categories that the file does not list", "remove them, or list the categories"),
    "category gaps": ("note", "category ids have gaps: classes are numbered in their order", "nothing, if no other tool takes ids for classes"),
    "unused category": ("warning", "categories have no object, so nothing is learnt or measured of them", "remove them, or annotate some"),
    "imbalance": ("warning", "classes have less than a hundredth of the objects of the largest", "try RepeatFactorTrainingSampler"),
    "other categories": ("error", "categories are not those of the first data set", "give all data sets the same categories and ids"),
    "box not finite": ("error", "boxes hold NaN, infinity or numbers beyond any image", "remove or redraw them"),
    "empty box": ("warning", "boxes have no area or a negative side: training drops them", "redraw them as x, y, width, height"),
    "box outside": ("error", "boxes lie wholly outside their image", "check which corner and which image they are measured from"),
    "box beyond edge": ("warning", "boxes reach more than a pixel beyond their image, and are cut", "check that boxes are x, y, width, height"),
    "tiny box": ("note", "boxes are under 8 pixels (root of the area) for the network: hardly learnt", "let training enlarge the images"),
    "duplicate annotation": ("warning", "annotations repeat another's box and category", "remove them"),
    "ignored annotation": ("error", "annotations have a non-zero 'ignore', which detectron2 refuses", "remove them, or set iscrowd 1"),
    "short polygon": ("warning", "polygons have fewer than 3 points or an odd number of values: detectron2 drops them", "redraw them"),
    "bad mask": ("error", "masks are neither polygons in their image nor run lengths", "write polygons [[x, y, ...]] or {size, counts}"),
    "mask of other size": ("error", "run lengths are of another size than their image", "make them anew from masks of the image's size"),
    "mask as run lengths": ("error", "masks are run lengths, not polygons", "set INPUT.MASK_FORMAT (instance_mask_format) to bitmask"),
    "no mask": ("error", "objects have no mask, but the model learns masks", "annotate them, or train without masks"),
    "no keypoints": ("error", "objects have no keypoints, but the model learns keypoints", "annotate them (zeros where unknown)"),
    "number of keypoints": ("error", "keypoints are not x, y, visibility of each that their category names", "complete them with zeros"),
    "keypoint visibility": ("warning", "keypoints have a visibility other than 0, 1 and 2", "0: unknown, 1: hidden, 2: seen"),
    "count of keypoints": ("warning", "num_keypoints is not the number of labelled keypoints, and evaluation goes by it", "count them anew"),
    "image without objects": ("note", "images have no annotations", "nothing: skipped unless FILTER_EMPTY_ANNOTATIONS (filter_empty) is False"),
    "crowds only": ("note", "images have crowds alone, of which nothing is learnt", "nothing: training leaves them out"),
    "repeated file": ("warning", "image files are listed under several ids", "list each once, with all its annotations"),
    "missing image": ("error", "image files are not there", "put them there, or remove their entries"),
    "empty image": ("error", "image files are of zero bytes", "copy them again"),
    "unreadable image": ("error", "image files cannot be read", "copy or convert them again"),
    "truncated image": ("error", "image files end too early", "copy them again"),
    "image of other size": ("error", "images have another size than the annotations say", "annotate these images, or correct width and height"),
    "EXIF orientation": ("note", "images are turned as their EXIF tag says", "check that the annotations are of the turned images"),
    "grey image": ("note", "images are grey: detectron2 gives them three equal channels", "nothing"),
    "alpha image": ("warning", "images are transparent: detectron2 drops alpha, so that hidden colours show", "save them over a background"),
    "CMYK image": ("warning", "images are CMYK: detectron2 converts them without their profile, colours change", "save them as RGB"),
    "deep image": ("error", "images have 16 or more bits: detectron2 cuts values at 255, most pixels become white", "scale them to 8 bits"),
    "palette image": ("note", "images are of palettes or another colour space: detectron2 converts them to RGB", "nothing"),
    "duplicate image": ("warning", "image files have the same content as another of the data set", "keep one of each"),
    "train and test": ("error", "image files of the test data are trained on", "remove them from one of the two: figures would be too good"),
}  # fmt: skip
_USUAL = Use()


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong: of ``kind``, a key of `KINDS`, in the data set ``dataset``; ``name`` says which file or id."""

    kind: str
    dataset: str
    name: str


def summarize(problems: Iterable[Flaw], shown: int = 5) -> list[Finding]:
    """A line for each kind of problem in each data set, errors first: their number, and the first ``shown`` by name."""
    names: dict[tuple[str, str], list[str]] = defaultdict(list)
    counts: Counter = Counter()
    for problem in problems:
        key = (problem.kind, problem.dataset)
        counts[key] += 1
        if counts[key] <= shown:  # there may be millions
            names[key].append(problem.name)
    findings = []
    for (kind, dataset), count in counts.items():
        severity, message, advice = KINDS[kind]
        more = f" and {count - shown} more" if count > shown else ""
        findings.append(Finding(severity, f"{dataset}: {kind} ({count}): {message}: {', '.join(names[kind, dataset])}{more}", advice))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


def inspect(
    datasets: Sequence[Source], use: Use = _USUAL, images: int | None = 500, progress: Callable[..., Iterable] = lambda items, **_: items
) -> Iterator[Flaw]:
    """Yields every flaw of the data sets as it is found. Afterwards their ``content`` holds the sound entries.

    Args:
        datasets: all must have the categories of the first.
        use: what the config does with the data.
        images: how many images of each data set are read; None: all. Whether the files exist is always checked for all.
        progress: wraps each loop, called like ``tqdm``.
    """
    for source in datasets:
        source.content = {key: [] for key in coco.FIELDS}
        gone = next((p for p, there in ((source.json_file, os.path.isfile), (source.image_root, os.path.isdir)) if not there(p)), None)
        if gone is not None:
            yield Flaw("missing file", source.name, repr(gone))
            continue
        try:
            content = coco.read(source.json_file)
        except UserError as error:
            yield Flaw("unreadable file", source.name, str(error))
            continue
        yield from _structure(source, content)
        yield from _categories(source)
        yield from _annotations(source, use, progress)
        yield from images_of(source, use, images, progress)
    whole = [source for source in datasets if source.content["categories"]]
    for source in whole[1:]:
        first, own = ({c["id"]: c["name"] for c in s.content["categories"]} for s in (whole[0], source))
        for i in sorted(set(first) | set(own)):
            if first.get(i) != own.get(i):
                yield Flaw("other categories", source.name, f"{own.get(i, first.get(i))!r} (not as in {whole[0].name})")
    yield from copies(datasets, images, progress)


# what makes an entry malformed; values of boxes, and keypoints, have flaws of their own
_FIELDS = {
    **coco.FIELDS,
    "annotations": {
        **{name: field for name, field in coco.FIELDS["annotations"].items() if name != "keypoints"},
        "bbox": ("[x, y, width, height] in numbers", lambda v: isinstance(v, list) and len(v) == 4 and set(map(type, v)) <= {int, float}),
    },
}


def _structure(source: Source, content: dict[str, list[Any]]) -> Iterator[Flaw]:
    """Keeps the entries that are sound enough for the other checks, and belong to the data set's images."""
    for key, of_image in (("images", "id"), ("categories", ""), ("annotations", "image_id")):
        sound, seen = [], set()
        for i, entry in enumerate(content[key]):
            wrong = next(coco.faults(entry, _FIELDS[key]), None)
            if wrong:
                yield Flaw("malformed", source.name, f"entry {i} of {key!r} {wrong}")
                continue
            if of_image and source.image_ids is not None and entry[of_image] not in source.image_ids:
                continue
            if entry["id"] in seen:
                yield Flaw(f"duplicate {'category' if key == 'categories' else key[:-1]} id", source.name, str(entry["id"]))
            if entry["id"] not in seen or key == "annotations":
                sound.append(entry)
            seen.add(entry["id"])
        source.content[key] = sound


def _categories(source: Source) -> Iterator[Flaw]:
    categories = source.content["categories"]
    ids = sorted(c["id"] for c in categories)
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        yield Flaw("category gaps", source.name, f"{len(ids)} ids from {ids[0]} to {ids[-1]}")
    for name, _ in _repeated(c["name"] for c in categories):
        yield Flaw("duplicate category name", source.name, reprlib.repr(name))
    counts = source.classes()
    for name, count in counts.items():
        if count == 0:
            yield Flaw("unused category", source.name, reprlib.repr(name))
        elif source.training and count * 100 < max(counts.values()):
            yield Flaw("imbalance", source.name, f"{reprlib.repr(name)} {count} (of at most {max(counts.values())})")


def _repeated(names: Iterable[str]) -> list[tuple[str, int]]:
    return [(name, times) for name, times in Counter(names).items() if times > 1]


def _annotations(source: Source, use: Use, progress: Callable) -> Iterator[Flaw]:
    images = {image["id"]: image for image in source.content["images"]}
    categories = {category["id"]: category for category in source.content["categories"]}
    sound, seen = [], set()
    objects: set[int] = set()  # ids of the images that have some
    crowds: set[int] = set()
    for a in progress(source.content["annotations"], desc=f"{source.name}: annotations", unit="annotation"):
        image, category = images.get(a["image_id"]), categories.get(a["category_id"])
        finite, crowd = coco.numbers(a["bbox"]), bool(a.get("iscrowd"))
        found = {
            "annotation id 0": a["id"] == 0,
            "orphan annotation": image is None,
            "unknown category": category is None,
            "ignored annotation": a.get("ignore"),
            "box not finite": not finite,
        }
        kinds = [kind for kind, present in found.items() if present]
        (crowds if crowd else objects).add(a["image_id"])
        if image is not None and finite:
            kinds += _box_kinds(a["bbox"], image, use)
            key = (a["image_id"], a["category_id"], *a["bbox"])
            if key in seen:
                kinds.append("duplicate annotation")
            seen.add(key)
        if image is not None:
            kinds += _mask_kinds(a.get("segmentation"), image, use, crowd)
        if category is not None:
            kinds += _keypoint_kinds(a, category, use, crowd)
        where = f"annotation {a['id']} of {image['file_name']!r}" if image is not None else f"annotation {a['id']} of image {a['image_id']}"
        for kind in dict.fromkeys(kinds):
            yield Flaw(kind, source.name, where)
        if image is not None and category is not None and finite:
            sound.append(a)
    source.content["annotations"] = sound
    for key, image in images.items():
        if key not in objects:
            yield Flaw("crowds only" if key in crowds else "image without objects", source.name, repr(image["file_name"]))


def _box_kinds(box: list[float], image: dict, use: Use) -> list[str]:
    x, y, w, h = box
    width, height = image["width"], image["height"]
    if w <= 0 or h <= 0:
        return ["empty box"]
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return ["box outside"]
    kinds = ["box beyond edge"] if x < -1 or y < -1 or x + w > width + 1 or y + h > height + 1 else []
    if math.sqrt(w) * math.sqrt(h) * use.scale(width, height) < 8:
        kinds.append("tiny box")
    return kinds


def _mask_kinds(mask: Any, image: dict, use: Use, crowd: bool) -> list[str]:
    kind = coco.mask_fault(mask, image["height"], image["width"])
    needed = use.masks and not crowd
    if not kind and isinstance(mask, dict) and use.polygons and needed:
        return ["mask as run lengths"]
    return [kind] if kind and (kind != "no mask" or needed) else []


def _keypoint_kinds(a: dict, category: dict, use: Use, crowd: bool) -> list[str]:
    names, keypoints = category.get("keypoints"), a.get("keypoints")
    if not keypoints:
        return ["no keypoints"] if use.keypoints and not crowd else []
    if not coco.numbers(keypoints, 3 * len(names) if names else None) or len(keypoints) % 3:
        return ["number of keypoints"]
    flags = keypoints[2::3]
    kinds = [] if set(flags) <= {0, 1, 2} else ["keypoint visibility"]
    if "num_keypoints" in a and a["num_keypoints"] != sum(v > 0 for v in flags):
        kinds.append("count of keypoints")
    return kinds


# Pillow's modes -> kind
_MODES = {
    **dict.fromkeys(("1", "L"), "grey image"),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "alpha image"),
    **dict.fromkeys(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"), "deep image"),
    "CMYK": "CMYK image",
    **dict.fromkeys(("P", "YCbCr", "LAB", "HSV", "RGBX"), "palette image"),
}


def evenly(items: Any, count: int | None) -> Any:
    """``count`` items of a list, or rows of an array, spread evenly over all; None, or fewer than that: all of them."""
    if count is None or len(items) <= count:
        return items
    chosen = np.linspace(0, len(items) - 1, count).astype(int)
    return items[chosen] if isinstance(items, np.ndarray) else [items[i] for i in chosen]


def look(path: str, stated: dict[str, Any], format: str = "BGR", pixels: bool = True) -> Iterator[tuple[str, str]]:
    """What is wrong with an image, from its header and, if ``pixels``, its pixels in INPUT.FORMAT ``format``: (kind, details).

    ``stated`` has its "width" and "height", after the turn that its EXIF tag asks for, as detectron2 does it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and odd tags
        try:
            with Image.open(path) as picture:
                mode, turn = picture.mode, picture.getexif().get(274, 1)
                size = picture.size[::-1] if turn in (5, 6, 7, 8) else picture.size
                transparent = "transparency" in picture.info
                if pixels:
                    picture.load()
                    if mode not in ("RGB", "L"):
                        convert_PIL_to_numpy(picture, format)
        except Exception as error:  # Pillow's decoders raise anything for a damaged file
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            yield ("truncated image", "") if pixels and "truncated" in reason else ("unreadable image", f" ({reason})")
            return
    if size != (stated["width"], stated["height"]):
        yield "image of other size", f" ({size[0]}x{size[1]}, not {stated['width']}x{stated['height']})"
    if turn in range(2, 9):
        yield "EXIF orientation", f" ({turn})"
    kind = "alpha image" if transparent and mode in ("P", "RGB", "L") else _MODES.get(mode)
    if kind and not (kind == "grey image" and format == "L"):
        yield kind, f" ({mode})"


def images_of(source: Source, use: Use, count: int | None, progress: Callable) -> Iterator[Flaw]:
    """The flaws of one data set's images: files that are missing or empty, and what `look` finds in ``count`` of them."""
    entries = source.content["images"]
    there = []
    for image in progress(entries, desc=f"{source.name}: files", unit="file"):
        path = source.path(image)
        size = os.path.getsize(path) if os.path.isfile(path) else None
        if size:
            there.append(image)
        else:
            yield Flaw("missing image" if size is None else "empty image", source.name, repr(image["file_name"]))
    for name, times in _repeated(image["file_name"] for image in entries):
        yield Flaw("repeated file", source.name, f"{name!r} ({times} times)")
    for image in progress(evenly(there, count), desc=f"{source.name}: images", unit="image"):
        for kind, about in look(source.path(image), image, use.format):
            yield Flaw(kind, source.name, repr(image["file_name"]) + about)


def copies(datasets: Sequence[Source], count: int | None, progress: Callable) -> Iterator[Flaw]:
    """Files with the same content, within a data set, and between data to train and to test on.

    Compares all files of a small data set, and a sample of a large one.
    """
    most = None if count is None else 20 * count
    by_size: dict[int, list[tuple[Source, str]]] = defaultdict(list)
    for source in datasets:
        if source.training and source.testing:
            yield Flaw("train and test", source.name, "all of them")
        paths = [path for path in map(source.path, source.content["images"]) if os.path.isfile(path)]
        there = sorted({os.path.realpath(path) for path in paths if os.path.getsize(path)})
        for path in there if most is None or len(there) <= most else evenly(there, count):
            by_size[os.path.getsize(path)].append((source, path))
    candidates = [item for group in by_size.values() if len(group) > 1 for item in group]
    contents = defaultdict(list)
    for source, path in progress(candidates, desc="files of one size", unit="file"):
        try:
            contents[sha256(path)].append((source, path))
        except OSError:
            continue  # reported already
    for group in contents.values():
        first: dict[str, str] = {}  # data set -> its first file of this content
        trained = next(((s, p) for s, p in group if s.training), None)
        for source, path in group:
            name = repr(os.path.relpath(path, os.path.realpath(source.image_root)))
            if source.name in first and first[source.name] != path:
                yield Flaw("duplicate image", source.name, f"{name} is {os.path.basename(first[source.name])!r}")
            first.setdefault(source.name, path)
            if trained and source.testing and not source.training:
                yield Flaw("train and test", source.name, f"{name} is {os.path.basename(trained[1])!r} of {trained[0].name}")
