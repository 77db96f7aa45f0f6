"""The values in COCO's files: numbers, masks, run lengths. Files are not trusted."""

import math
import os
import re
import reprlib
from typing import Any, Callable, Iterator, Mapping

import numpy as np

from ..documents import read_json
from ..errors import UserError
from ..files import not_there

_RUNS = re.compile("([P-o]{0,6}[0-O])+")  # compressed run lengths: numbers of up to seven characters, all but their last from P on
Fields = Mapping[str, tuple[str, Callable[[Any], bool]]]  # name -> (what its value must be, in words; a test for it)


def integer(value: Any) -> bool:
    """Whether a value is a whole number that fits 64 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def numbers(value: Any, count: int | None = None) -> bool:
    """Whether a value is a list of (``count``) numbers between minus a million and a million."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float} or len(value) != (len(value) if count is None else count):
        return False
    return not value or (min(value) >= -1e6 and max(value) <= 1e6 and not math.isnan(sum(value)))


def is_plain(number: int | str) -> bool:
    """Whether evaluators keep an id exact: they allow no negative ones, and some store them as 64-bit floats."""
    return isinstance(number, int) and 0 <= number < 1 << 53


def id_of(value: Any) -> int | str | None:
    """An id as a whole number if it is one, also as a string or a float; another string unchanged; None for anything else."""
    if type(value) is int:
        return value
    if type(value) is float:
        return int(value) if math.isfinite(value) and value == int(value) and abs(value) < 1 << 53 else None
    if isinstance(value, str) and value.strip():
        digits = value.strip().removeprefix("-")
        return int(value) if digits.isascii() and digits.isdigit() and len(digits) < 19 and str(int(digits)) == digits else value.strip()
    return None


# the fields of detections and annotations
FIELDS: Fields = {
    "image_id": ("an integer", integer),
    "category_id": ("an integer", integer),
    "bbox": ("[x, y, width, height] in numbers", lambda value: numbers(value, 4)),
    "keypoints": ("x, y and visibility of each, in numbers", lambda value: numbers(value) and len(value) % 3 == 0),
}


def parse(path: str, what: str) -> Any:
    """The content of a JSON file. Raises UserError, which calls the file ``what``, if it cannot be read."""
    if not os.path.isfile(path):
        raise not_there(what, path)
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"{what} {path!r} is not JSON: {error}", "bad-file") from error


def faults(entry: Any, fields: Fields) -> Iterator[str]:
    """What is wrong with an entry, as the end of a sentence that starts with its name: missing fields, and wrong values."""
    if not isinstance(entry, dict):
        yield f"is {reprlib.repr(entry)}, not an object"
        return
    for name, (kind, fits) in fields.items():
        if name not in entry:
            yield f"has no {name}: it must be {kind}"
        elif not fits(entry[name]):
            yield f"has {name} {reprlib.repr(entry[name])}: it must be {kind}"


def mask_fault(mask: Any, height: int, width: int) -> str:
    """What is wrong with an object's mask in an image of this size: a key of `findings.KINDS`, or "" if nothing is.

    pycocotools checks nothing: a mask that does not fit makes it access memory outside its own, or never end.
    """
    if mask is None or mask in ([], {}, "", [[]]):
        return "no mask"
    if isinstance(mask, str):
        return "Kaggle's run lengths" if re.fullmatch(r"[0-9 ]+", mask) else "bad mask"
    pixels = height * width
    if pixels >= 1 << 32:  # pycocotools counts them in 32 bits
        return "bad mask"
    if isinstance(mask, dict):
        counts, size = mask.get("counts"), mask.get("size")
        if isinstance(counts, str) and _RUNS.fullmatch(counts):
            lengths = run_lengths(counts.encode())
        elif isinstance(counts, list) and counts and all(map(integer, counts)):
            lengths = np.array(counts)
        else:
            return "bad mask"
        if lengths.min() < 0 or not isinstance(size, list) or len(size) != 2:
            return "bad mask"
        return "" if size == [height, width] and lengths.max() <= pixels and lengths.sum() == pixels else "mask of other size"
    side = max(height, width)
    if not isinstance(mask, list) or not all(
        numbers(polygon) and -side <= min(polygon, default=0) <= max(polygon, default=0) <= 2 * side for polygon in mask
    ):
        return "bad mask"
    return "short polygon" if any(len(polygon) < 6 or len(polygon) % 2 for polygon in mask) else ""


def run_lengths(counts: bytes) -> np.ndarray:
    """Decodes COCO's compressed run lengths, of zeros, ones, zeros, ...

    Each is a few groups of five bits. From the fourth on, they are differences to the last but one.
    """
    units = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(units & 0x20 == 0)  # of each number
    first = np.concatenate(([0], last[:-1] + 1))
    place = np.arange(len(units)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((units & 0x1F) << (5 * place), first)
    values -= np.where(units[last] & 0x10, 1 << (5 * (last - first + 1)), 0)  # negative ones
    result = values.copy()
    result[1::2] = np.cumsum(values[1::2])
    result[2::2] = np.cumsum(values[2::2])  # the first is not a difference
    return result
