"""The images that an annotation file lists: their ids, files and sizes."""

import os
from typing import Any, Callable, Iterable

from ..errors import one_line
from .annotations import id_of, is_plain
from .dataset import Dataset
from .findings import short
from .image_files import Files, evenly, look
from .images import size
from .sources import Use

SAMPLED = 500  # images whose headers are read: enough to find a systematic mistake, in seconds on a slow disk
_BIG = 10**6  # pixels that no side of an image has
UNREADABLE = ("unreadable image", "truncated image", "empty image", "large image")
REFUSED = (*UNREADABLE, "image of other size", "turned image", "deep image")
TOLD = (*REFUSED, "several pictures")  # reported by the reader; only the doctor reports the others
_GUESSES = ("file name in another case", "file in another folder")
Progress = Callable[..., Iterable]


def read_images(
    data: Dataset, use: Use, entries: list[Any], count: int | None, progress: Progress, files: Files | None
) -> tuple[dict[Any, Any], dict[Any, bool]]:
    """Fills ``data.images`` with those whose files are there.

    Returns the number of each id in the file; and the numbers of the images left out, and whether their objects are to be counted.
    """
    say = data.findings.add
    numbers, left_out = image_numbers(data, entries), {}
    found: dict[Any, tuple[str, str]] = {}  # id -> name in the file, kind of the finding
    kept: list[dict] = []
    for i, entry in enumerate(entries):
        own = id_of(entry.get("id")) if isinstance(entry, dict) else None
        number = numbers.get(own)
        name = entry.get("file_name") if isinstance(entry, dict) else None
        kind = ""
        if not name and isinstance(entry, dict) and isinstance(entry.get("coco_url"), str):  # LVIS
            name, kind = entry["coco_url"].rpartition("/")[2], "file of address"
        if files is None and isinstance(entry, dict) and not isinstance(name, str):
            name = f"image {own}"
        if number is None or not isinstance(name, str) or not name:
            say("malformed image", f"entry {i}")
            left_out[number] = True
            continue
        if number in found:
            say("repeated image entry" if found[number][0] == name else "duplicate image id", f"{short(own)} ({short(name)})")
            continue
        if data.source.image_ids is not None and number not in data.source.image_ids:
            left_out[number] = False
            continue
        path, how = (name, "") if files is None else ("", "address") if "://" in name else files.find(name)
        found[number] = name, how or kind
        entry["id"], entry["file_name"] = number, path
        kept.append(entry)
    guessed = {image["file_name"] for image in kept if found[image["id"]][1] in _GUESSES}
    if guessed:  # entries must not share a file that is not exactly what they name
        times: dict[str, int] = {}
        for image in kept:
            times[image["file_name"]] = times.get(image["file_name"], 0) + 1
        guessed = {path for path in guessed if times[path] > 1}
    sound = []
    for image in kept:
        name, kind = found[image["id"]]
        if image["file_name"] in guessed and kind in _GUESSES:
            kind = "several files"
        if kind in ("missing image", "several files", "address"):
            left_out[image["id"]] = kind == "missing image" and use.skip
            say("image left out" if left_out[image["id"]] else kind, short(name))
            continue
        if kind:
            say(kind, f"{short(name)} is {short(image['file_name'])}" if name != image["file_name"] else short(name))
        sound.append(image)
    data.images = _headers(data, use, _sizes(data, use, sound, left_out, progress, files), left_out, count, progress)
    return numbers, left_out


def image_numbers(data: Dataset, entries: list[Any]) -> dict[Any, Any]:
    """The number of each id in the file. If one is not usable for evaluators and samplers, each image gets its position in the file.

    Not its position among the kept ones: results must fit the file, whatever was left out.
    """
    own = [id_of(entry.get("id")) if isinstance(entry, dict) else None for entry in entries]
    anew = any(number is not None and not is_plain(number) for number in own)
    odd = sum(number is not None and (anew or type(entry["id"]) is not int) for number, entry in zip(own, entries))
    if odd:
        data.findings.add("image ids", count=odd)
    if not anew:
        return {number: number for number in own if number is not None}
    return {number: i for i, number in reversed(list(enumerate(own, 1))) if number is not None}


def _sizes(data: Dataset, use: Use, images: list[dict], left_out: dict[Any, bool], progress: Progress, files: Files | None) -> list[dict]:
    """The images with a width and a height, from the annotation file or else from the header."""
    if files is None:
        for image in images:
            for key in ("width", "height"):
                side = id_of(image.get(key))
                image[key] = side if isinstance(side, int) and 0 < side < _BIG else _BIG - 1
    unknown = {
        image["id"]
        for image in images
        if not (type(image.get("width")) is type(image.get("height")) is int and 0 < image["width"] < _BIG and 0 < image["height"] < _BIG)
    }
    for image in progress([image for image in images if image["id"] in unknown], desc=f"{data.source.name}: sizes", unit="image"):
        try:
            image["width"], image["height"] = size(os.path.join(data.source.image_root, image["file_name"]), use.exif, use.max_pixels)
            data.findings.add("size of image", short(image["file_name"]))
        except Exception as error:  # Pillow raises anything for a damaged file
            reason = one_line(error, 120)
            data.findings.add("image left out" if use.skip else "unreadable image", f"{short(image['file_name'])} ({reason})")
            left_out[image["id"]] = use.skip
    return [image for image in images if image["id"] not in left_out] if unknown else images


def _headers(data: Dataset, use: Use, images: list[dict], left_out: dict[Any, bool], count: int | None, progress: Progress) -> list[dict]:
    """Compares some images with what the file says of them."""
    bad = set()
    for image in progress(evenly(images, count), desc=f"{data.source.name}: headers", unit="image"):
        path = os.path.join(data.source.image_root, image["file_name"])
        for kind, about in look(path, image, use, pixels=False):
            if kind in UNREADABLE and use.skip:
                kind = "image left out"
            if kind in TOLD or kind == "image left out":
                data.findings.add(kind, short(image["file_name"]) + about)
            if kind in (*UNREADABLE, "image left out"):
                bad.add(image["id"])
    left_out.update(dict.fromkeys(bad, use.skip))
    return [image for image in images if image["id"] not in bad] if bad else images
