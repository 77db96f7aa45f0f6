"""Everything that is wrong, or odd, in COCO-format data: every annotation, and a sample or all of the images, read as training reads them.

`register_from_config` stops at the first mistake, so that training does; here all of them are listed.
"""

import json
import math
import os
import re
import warnings
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, UnidentifiedImageError

from ..config import learns
from ..errors import SEVERITIES, Finding, UserError
from ..files import sha256
from .holdout import HELD_OUT, KEPT
from .mapper import run_lengths

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
    "category gaps": ("note", "category ids have gaps: classes are numbered in their order", "nothing, if no other tool takes the ids for classes"),
    "unused category": ("warning", "categories have no object, so nothing is learnt or measured of them", "remove them, or annotate some"),
    "imbalance": ("warning", "classes have less than a hundredth of the objects of the largest", "try DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler"),
    "other categories": ("error", "categories are not those of the first data set", "give all data sets the same categories, with the same ids"),
    "box not finite": ("error", "boxes hold NaN, infinity or numbers beyond any image", "remove or redraw them"),
    "empty box": ("warning", "boxes have no area, or a negative side: training drops them", "redraw them: COCO's boxes are x, y, width, height"),
    "box outside": ("error", "boxes lie wholly outside their image", "check which corner and which image they are measured from"),
    "box beyond edge": ("warning", "boxes reach over the edge of their image by more than a pixel, and are cut there", "check that boxes are x, y, width, height"),
    "tiny box": ("note", "boxes are under 8 pixels (the root of their area) as the network sees them: they are hardly learnt", "raise INPUT.MIN_SIZE_TRAIN"),
    "duplicate annotation": ("warning", "annotations repeat another's box and category", "remove them"),
    "ignored annotation": ("error", "annotations have a non-zero 'ignore', which detectron2 refuses", "remove them, or set iscrowd 1"),
    "short polygon": ("warning", "polygons have fewer than 3 points or an odd number of values: detectron2 drops them", "redraw them"),
    "bad mask": ("error", "masks are neither polygons in their image nor run lengths", "write polygons [[x, y, ...]] or {size, counts}"),
    "mask of other size": ("error", "run lengths are of another size than their image", "make them anew from masks of the image's height and width"),
    "mask as run lengths": ("error", "masks are run lengths, which polygons cannot be made of", "set INPUT.MASK_FORMAT bitmask"),
    "no mask": ("error", "objects have no mask, but MODEL.MASK_ON is set", "annotate them, or set MODEL.MASK_ON False"),
    "no keypoints": ("error", "objects have no keypoints, but MODEL.KEYPOINT_ON is set", "annotate them (zeros where unknown)"),
    "number of keypoints": ("error", "keypoints are not x, y, visibility of each that their category names", "complete them with zeros"),
    "keypoint visibility": ("warning", "keypoints have a visibility other than 0, 1 and 2", "0: unknown, 1: hidden, 2: seen"),
    "count of keypoints": ("warning", "num_keypoints is not the number of labelled keypoints, and evaluation goes by it", "count them anew"),
    "image without objects": ("note", "images have no annotations", "nothing: training leaves them out; DATALOADER.FILTER_EMPTY_ANNOTATIONS False keeps them"),
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


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_ID = ("an integer id", _integer)
_SIZE = ("width and height in pixels", lambda value: _integer(value) and 0 < value < 10**6)
# of every entry: field -> (in words, test)
_FIELDS: Dict[str, Dict[str, Tuple[str, Callable[[Any], bool]]]] = {
    "images": {"id": _ID, "file_name": ("a file_name", lambda v: isinstance(v, str) and v != ""), "width": _SIZE, "height": _SIZE},
    "categories": {"id": _ID, "name": ("a name", lambda value: isinstance(value, str))},
    "annotations": {
        "id": _ID,
        "image_id": ("an integer image_id", _integer),
        "category_id": ("an integer category_id", _integer),
        "bbox": ("a bbox [x, y, width, height] of numbers", lambda v: isinstance(v, list) and len(v) == 4 and all(map(_number, v))),
    },
}
# of those that have it
_OPTIONAL: Dict[str, Dict[str, Tuple[str, Callable[[Any], bool]]]] = {
    "images": {},
    "categories": {"keypoints": ("a list of names", lambda v: isinstance(v, list) and all(isinstance(name, str) for name in v))},
    "annotations": {
        "iscrowd": ("0 or 1", lambda value: value in (0, 1)),
        "area": ("a number of pixels", lambda value: _number(value) and 0 <= value < 10**12),
        "num_keypoints": ("a number", _integer),
    },
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: of ``kind``, a key of `KINDS`, in the data set ``dataset``; ``name`` says which file or id."""

    kind: str
    dataset: str
    name: str

    @property
    def severity(self) -> str:
        return KINDS[self.kind][0]


def summarize(problems: Iterable[Problem], shown: int = 5) -> List[Finding]:
    """A line for each kind of problem in each data set, errors first: their number, and the first ``shown`` by name."""
    names: Dict[Tuple[str, str], List[str]] = defaultdict(list)
    counts: Counter = Counter()
    for problem in problems:
        key = (problem.kind, problem.dataset)
        counts[key] += 1
        if counts[key] <= shown:
            names[key].append(problem.name)
    findings = []
    for (kind, dataset), count in counts.items():
        severity, message, advice = KINDS[kind]
        more = f" and {count - shown} more" if count > shown else ""
        findings.append(Finding(severity, f"{dataset}: {kind} ({count}): {message}: {', '.join(names[kind, dataset])}{more}", advice))
    return sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))


@dataclass(frozen=True)
class Use:
    """What a config does with its data. Sides are those that images are resized to, in pixels; 0: they stay as they are."""

    masks: bool = False
    polygons: bool = True
    keypoints: bool = False
    shortest: float = 800.0
    longest: float = 1333.0
    format: str = "BGR"

    @classmethod
    def of(cls, cfg: CfgNode) -> "Use":
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        return cls(
            masks=learns(cfg, "masks"),
            polygons=cfg.INPUT.MASK_FORMAT == "polygon",
            keypoints=learns(cfg, "keypoints"),
            shortest=float(np.median(sizes if isinstance(sizes, (list, tuple)) else [sizes])),
            longest=float(cfg.INPUT.MAX_SIZE_TRAIN),
            format=cfg.INPUT.FORMAT,
        )

    def scale(self, width: int, height: int) -> float:
        """How much larger the network sees an image, with the middle one of the sizes that it is resized to."""
        return min(self.shortest / min(width, height), self.longest / max(width, height)) if self.shortest else 1.0


@dataclass
class Source:
    """A data set's annotation file and image folder, what it is for, and, of a part of the file, which ``image_ids`` it has."""

    name: str
    json_file: str
    image_root: str
    training: bool = True
    testing: bool = False
    image_ids: Optional[frozenset] = None
    content: Dict[str, List[dict]] = field(default_factory=dict)  # what is sound of it, once `inspect` read it

    def path(self, image: dict) -> str:
        return os.path.join(self.image_root, image["file_name"])

    def classes(self) -> Dict[str, int]:
        """The number of objects of each category, in the order of the classes; crowds are not counted."""
        names = {c["id"]: c["name"] for c in sorted(self.content["categories"], key=lambda c: c["id"])}
        counts = Counter(a["category_id"] for a in self.content["annotations"] if not a.get("iscrowd"))
        result: Dict[str, int] = {}
        for key, name in names.items():
            result[name] = result.get(name, 0) + counts[key]
        return result

    def boxes(self, use: Use) -> np.ndarray:
        """The boxes (N, 4) x0, y0, x1, y1 of all objects with an area, as the network sees them."""
        images = {image["id"]: use.scale(image["width"], image["height"]) for image in self.content["images"]}
        rows = [
            [v * images[a["image_id"]] for v in a["bbox"]]
            for a in self.content["annotations"]
            if not a.get("iscrowd") and a["image_id"] in images and min(a["bbox"][2:]) > 0
        ]
        boxes = np.array(rows, float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


def sources(cfg: CfgNode) -> Tuple[List[Source], List[str]]:
    """The COCO-format data sets of DATASETS.TRAIN and TEST, whether their registration was refused or not, and the names of all others."""
    entries = {e[0]: e for e in cfg.DATASETS.REGISTER if isinstance(e, (list, tuple)) and len(e) == 3 and all(isinstance(p, str) for p in e)}
    found, others = [], []
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            same = next((source for source in found if source.name == name), None)
            if same:
                same.testing |= key == "TEST"
                continue
            base, ids = name, None
            part = next((suffix for suffix in (KEPT, HELD_OUT) if name.endswith(suffix)), None)
            if name in entries:
                paths = entries[name][1:]
            elif name in DatasetCatalog:
                if part and MetadataCatalog.get(name).get("held_out"):
                    base = name[: -len(part)]
                    ids = frozenset(record["image_id"] for record in DatasetCatalog.get(name))
                elif MetadataCatalog.get(name).get("generated") and MetadataCatalog.get(name).get("json_file"):
                    DatasetCatalog.get(name)  # made when first read
                paths = MetadataCatalog.get(base).get("json_file"), MetadataCatalog.get(base).get("image_root")
            else:
                continue  # which another check says
            if all(paths):
                found.append(Source(name, *paths, key == "TRAIN", key == "TEST", ids))
            else:
                others.append(name)
    return found, list(dict.fromkeys(others))


def inspect(
    datasets: Sequence[Source], use: Use = Use(), images: Optional[int] = 500, progress: Callable[..., Iterable] = lambda items, **_: items
) -> Iterator[Problem]:
    """Every problem of the data sets, as it is found; afterwards their ``content`` holds what is sound.

    Args:
        datasets: those to look at; the first one's categories are those that all must have.
        use: what the data are for.
        images: how many of each data set's images are read, evenly chosen; None: all. That they are there is checked of all.
        progress: wraps what is gone through, called like ``tqdm``.
    """
    for source in datasets:
        gone = next((p for p, there in ((source.json_file, os.path.isfile), (source.image_root, os.path.isdir)) if not there(p)), None)
        try:
            content = _read(source) if gone is None else None
        except UserError as error:
            yield Problem("unreadable file", source.name, str(error))
            content = None
        if gone is not None:
            yield Problem("missing file", source.name, repr(gone))
        if content is None:
            source.content = {key: [] for key in _FIELDS}
            continue
        yield from _structure(source, content)
        yield from _categories(source)
        yield from _annotations(source, use, progress)
        yield from _images(source, use, images, progress)
    whole = [source for source in datasets if source.content["categories"]]
    for source in whole[1:]:
        first, own = ({c["id"]: c["name"] for c in s.content["categories"]} for s in (whole[0], source))
        differ = [repr(own.get(i, first.get(i))) for i in sorted(set(first) | set(own)) if first.get(i) != own.get(i)]
        for name in differ:
            yield Problem("other categories", source.name, f"{name} (not as in {whole[0].name})")
    yield from _duplicates(datasets, images, progress)


def _read(source: Source) -> Dict[str, List[dict]]:
    path = source.json_file
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path!r}: {getattr(error, 'strerror', None) or f'not JSON: {error}'}") from error
    for key in _FIELDS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"{path!r} has no list of {key!r}")
    for key in ("images", "categories"):
        if not content[key]:
            raise UserError(f"{path!r}: {key!r} is empty")
    if source.image_ids is not None:
        for key, own in (("images", "id"), ("annotations", "image_id")):
            content[key] = [e for e in content[key] if isinstance(e, dict) and _hashable(e.get(own)) and e.get(own) in source.image_ids]
    return content


def _hashable(value: Any) -> bool:
    return not isinstance(value, (list, dict))


def _structure(source: Source, content: Dict[str, List[dict]]) -> Iterator[Problem]:
    """Keeps the entries that the rest can be checked of."""
    for key, fields in _FIELDS.items():
        sound, seen = [], set()
        for i, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                yield Problem("malformed", source.name, f"entry {i} of {key!r} is no object")
                continue
            wrong = [f"no {name}: it must have {kind}" for name, (kind, _) in fields.items() if name not in entry]
            more = {name: test for name, test in _OPTIONAL[key].items() if entry.get(name) is not None}
            for name, (kind, fits) in {**fields, **more}.items():
                if name in entry and not fits(entry[name]):
                    wrong.append(f"{name} {_short(entry[name])}: it must be {kind}")
            if wrong:
                yield Problem("malformed", source.name, f"entry {i} of {key!r} has {wrong[0]}")
            elif entry["id"] in seen:
                yield Problem(f"duplicate {'category' if key == 'categories' else key[:-1]} id", source.name, str(entry["id"]))
                if key == "annotations":
                    sound.append(entry)
            else:
                seen.add(entry["id"])
                sound.append(entry)
        source.content[key] = sound


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _categories(source: Source) -> Iterator[Problem]:
    categories = source.content["categories"]
    ids = sorted(c["id"] for c in categories)
    if ids and ids != list(range(ids[0], ids[0] + len(ids))):
        yield Problem("category gaps", source.name, f"{len(ids)} ids from {ids[0]} to {ids[-1]}")
    for name, count in Counter(c["name"] for c in categories).items():
        if count > 1:
            yield Problem("duplicate category name", source.name, _short(name))
    counts = source.classes()
    for name, count in counts.items():
        if count == 0:
            yield Problem("unused category", source.name, _short(name))
        elif source.training and count * 100 < max(counts.values()):
            yield Problem("imbalance", source.name, f"{_short(name)} {count} (of at most {max(counts.values())})")


def _annotations(source: Source, use: Use, progress: Callable) -> Iterator[Problem]:
    images = {image["id"]: image for image in source.content["images"]}
    categories = {category["id"]: category for category in source.content["categories"]}
    sound, seen, objects, crowds = [], set(), set(), set()
    for a in progress(source.content["annotations"], desc=f"{source.name}: annotations", unit="annotation"):
        kinds = []
        if a["id"] == 0:
            kinds.append("annotation id 0")
        image, category = images.get(a["image_id"]), categories.get(a["category_id"])
        if image is None:
            kinds.append("orphan annotation")
        if category is None:
            kinds.append("unknown category")
        if a.get("ignore"):
            kinds.append("ignored annotation")
        finite = all(abs(v) < 1e6 for v in a["bbox"])  # of NaN it is False
        if not finite:
            kinds.append("box not finite")
        crowd = bool(a.get("iscrowd"))
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
            yield Problem(kind, source.name, where)
        if image is not None and category is not None and finite:
            sound.append(a)
    source.content["annotations"] = sound
    for key, image in images.items():
        if key not in objects:
            yield Problem("crowds only" if key in crowds else "image without objects", source.name, repr(image["file_name"]))


def _box_kinds(box: List[float], image: dict, use: Use) -> List[str]:
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


def _mask_kinds(mask: Any, image: dict, use: Use, crowd: bool) -> List[str]:
    if mask is None or (isinstance(mask, (list, dict)) and not mask):
        return ["no mask"] if use.masks and not crowd else []
    if isinstance(mask, dict):
        size, counts = mask.get("size"), mask.get("counts")
        try:
            # not by pycocotools, which trusts what it is given
            if isinstance(counts, str) and not re.fullmatch("([P-o]{0,6}[0-O])+", counts):
                return ["bad mask"]
            lengths = run_lengths(counts.encode()) if isinstance(counts, str) else np.array(counts, np.int64)
            whole = lengths.ndim == 1 and len(lengths) > 0 and not (lengths < 0).any()
        except (ValueError, TypeError, IndexError, OverflowError):
            whole = False
        if not whole or not isinstance(size, list) or len(size) != 2:
            return ["bad mask"]
        if size != [image["height"], image["width"]] or int(lengths.sum()) != size[0] * size[1]:
            return ["mask of other size"]
        return ["mask as run lengths"] if use.masks and use.polygons and not crowd else []
    if not isinstance(mask, list) or not all(isinstance(p, list) for p in mask):
        return ["bad mask"]
    try:
        most = 2 * max(image["width"], image["height"])  # beyond which pycocotools' C code would go wrong
        near = all(_number(v) and -most <= v <= most for polygon in mask for v in polygon)
    except (TypeError, OverflowError):
        near = False
    if not near:
        return ["bad mask"]
    return ["short polygon"] if any(len(p) < 6 or len(p) % 2 for p in mask) else []


def _keypoint_kinds(a: dict, category: dict, use: Use, crowd: bool) -> List[str]:
    names, keypoints = category.get("keypoints"), a.get("keypoints")
    if not keypoints:
        return ["no keypoints"] if use.keypoints and not crowd else []
    expected = len(names) if isinstance(names, list) and names else None
    if (
        not isinstance(keypoints, list)
        or not all(_number(v) and abs(v) < 1e6 for v in keypoints)
        or len(keypoints) % 3
        or (expected is not None and len(keypoints) != 3 * expected)
    ):
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


def _images(source: Source, use: Use, count: Optional[int], progress: Callable) -> Iterator[Problem]:
    entries = source.content["images"]
    there = []
    for image in progress(entries, desc=f"{source.name}: files", unit="file"):
        path = source.path(image)
        try:
            size = os.path.getsize(path) if os.path.isfile(path) else None
        except (OSError, ValueError):  # a null byte in its name
            size = None
        if size is None:
            yield Problem("missing image", source.name, repr(image["file_name"]))
        elif size == 0:
            yield Problem("empty image", source.name, repr(image["file_name"]))
        else:
            there.append(image)
    for name, times in Counter(image["file_name"] for image in entries).items():
        if times > 1:
            yield Problem("repeated file", source.name, f"{name!r} ({times} times)")
    for image in progress(_sample(there, count), desc=f"{source.name}: images", unit="image"):
        for kind, about in _look(source.path(image), image, use):
            yield Problem(kind, source.name, repr(image["file_name"]) + about)


def _sample(items: List[Any], count: Optional[int]) -> List[Any]:
    if count is None or len(items) <= count:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


def _look(path: str, stated: dict, use: Use) -> Iterator[Tuple[str, str]]:
    """What an image's pixels and head say: (kind, a word on it)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large pictures and odd tags
        try:
            with Image.open(path) as picture:
                mode, turn = picture.mode, picture.getexif().get(274, 1)
                size = picture.size[::-1] if turn in (5, 6, 7, 8) else picture.size  # a quarter turn, which detectron2 applies
                transparent = "transparency" in picture.info
                picture.load()
                if mode not in ("RGB", "L"):
                    convert_PIL_to_numpy(picture, use.format)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, UnidentifiedImageError, MemoryError) as error:
            reason = " ".join(str(error).split())[:120]
            yield ("truncated image", "") if "truncated" in reason else ("unreadable image", f" ({reason})")
            return
        except Exception as error:  # of a damaged file, Pillow's decoders raise what they come upon
            yield "unreadable image", f" ({type(error).__name__})"
            return
    if size != (stated["width"], stated["height"]):
        yield "image of other size", f" ({size[0]}x{size[1]}, not {stated['width']}x{stated['height']})"
    if turn in range(2, 9):
        yield "EXIF orientation", f" ({turn})"
    kind = "alpha image" if transparent and mode in ("P", "RGB", "L") else _MODES.get(mode)
    if kind and not (kind == "grey image" and use.format == "L"):
        yield kind, f" ({mode})"


def _duplicates(datasets: Sequence[Source], count: Optional[int], progress: Callable) -> Iterator[Problem]:
    """Files of one content, within a data set and between those trained on and others.

    Where a file can be compared with all others in little time, it is; of larger data the sample alone.
    """
    most = None if count is None else 20 * count
    by_size: Dict[int, List[Tuple[Source, str]]] = defaultdict(list)
    for source in datasets:
        if source.training and source.testing:
            yield Problem("train and test", source.name, "all of them")
        paths = [path for path in map(source.path, source.content["images"]) if os.path.isfile(path)]
        there = sorted({os.path.realpath(path) for path in paths if os.path.getsize(path)})
        for path in there if most is None or len(there) <= most else _sample(there, count):
            by_size[os.path.getsize(path)].append((source, path))
    candidates = [item for group in by_size.values() if len(group) > 1 for item in group]
    contents = defaultdict(list)
    for source, path in progress(candidates, desc="files of one size", unit="file"):
        try:
            contents[sha256(path)].append((source, path))
        except OSError:
            continue  # said already
    for group in contents.values():
        first: Dict[str, str] = {}  # of each data set
        trained = next(((s, p) for s, p in group if s.training), None)
        for source, path in group:
            name = repr(os.path.relpath(path, os.path.realpath(source.image_root)))
            if source.name in first and first[source.name] != path:
                yield Problem("duplicate image", source.name, f"{name} is {os.path.basename(first[source.name])!r}")
            first.setdefault(source.name, path)
            if trained and source.testing and not source.training:
                yield Problem("train and test", source.name, f"{name} is {os.path.basename(trained[1])!r} of {trained[0].name}")
