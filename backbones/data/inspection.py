"""Finds everything that is wrong, or odd, in COCO-format data. Checks every annotation, and a sample of the images or all.

`register_from_config` stops at the first mistake, and so does training; this lists all.
"""

import math
import os
import reprlib
from collections import Counter
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Set

from ..errors import UserError
from . import annotations as coco
from .findings import KINDS, SEVERITIES, Finding, Flaw, summarize
from .images import copies, images_of
from .sources import Source, Use, sources

__all__ = ["KINDS", "SEVERITIES", "Finding", "Flaw", "Source", "Use", "inspect", "sources", "summarize"]


def inspect(
    datasets: Sequence[Source], use: Use = Use(), images: Optional[int] = 500, progress: Callable[..., Iterable] = lambda items, **_: items
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
        differ = [repr(own.get(i, first.get(i))) for i in sorted(set(first) | set(own)) if first.get(i) != own.get(i)]
        for name in differ:
            yield Flaw("other categories", source.name, f"{name} (not as in {whole[0].name})")
    yield from copies(datasets, images, progress)


# what makes an entry malformed; values of boxes, and keypoints, have flaws of their own
_FIELDS = {
    **coco.FIELDS,
    "annotations": {
        **{name: field for name, field in coco.FIELDS["annotations"].items() if name != "keypoints"},
        "bbox": (
            "[x, y, width, height] in numbers",
            lambda value: isinstance(value, list) and [type(v) in (int, float) for v in value] == [True] * 4,
        ),
    },
}


def _structure(source: Source, content: Dict[str, List[Any]]) -> Iterator[Flaw]:
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
    for name, count in Counter(c["name"] for c in categories).items():
        if count > 1:
            yield Flaw("duplicate category name", source.name, reprlib.repr(name))
    counts = source.classes()
    for name, count in counts.items():
        if count == 0:
            yield Flaw("unused category", source.name, reprlib.repr(name))
        elif source.training and count * 100 < max(counts.values()):
            yield Flaw("imbalance", source.name, f"{reprlib.repr(name)} {count} (of at most {max(counts.values())})")


def _annotations(source: Source, use: Use, progress: Callable) -> Iterator[Flaw]:
    images = {image["id"]: image for image in source.content["images"]}
    categories = {category["id"]: category for category in source.content["categories"]}
    sound, seen = [], set()
    objects: Set[int] = set()  # ids of the images that have some
    crowds: Set[int] = set()
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
        finite = coco.numbers(a["bbox"])
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
            yield Flaw(kind, source.name, where)
        if image is not None and category is not None and finite:
            sound.append(a)
    source.content["annotations"] = sound
    for key, image in images.items():
        if key not in objects:
            yield Flaw("crowds only" if key in crowds else "image without objects", source.name, repr(image["file_name"]))


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
    kind = coco.mask_fault(mask, image["height"], image["width"])
    needed = use.masks and not crowd
    if not kind and isinstance(mask, dict) and use.polygons and needed:
        return ["mask as run lengths"]
    return [kind] if kind and (kind != "no mask" or needed) else []


def _keypoint_kinds(a: dict, category: dict, use: Use, crowd: bool) -> List[str]:
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
