"""What is wrong, or odd, with image files: each by itself, and copies among them."""

import os
import warnings
from collections import Counter, defaultdict
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image

from ..files import sha256
from .findings import Flaw
from .sources import Source, Use

# Pillow's modes -> kind
_MODES = {
    **dict.fromkeys(("1", "L"), "grey image"),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "alpha image"),
    **dict.fromkeys(("I", "F", "I;16", "I;16B", "I;16L", "I;16N"), "deep image"),
    "CMYK": "CMYK image",
    **dict.fromkeys(("P", "YCbCr", "LAB", "HSV", "RGBX"), "palette image"),
}


def evenly(items: List[Any], count: Optional[int]) -> List[Any]:
    """``count`` items, spread evenly over all; None, or fewer items than that: all of them."""
    if count is None or len(items) <= count:
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, count).astype(int)]


def look(path: str, stated: Dict[str, Any], format: str = "BGR", pixels: bool = True) -> Iterator[Tuple[str, str]]:
    """What is wrong with an image, from its header and, if ``pixels``, its pixels: (kind, details).

    Args:
        stated: its "width" and "height", after the turn that its EXIF tag asks for, as detectron2 does it.
        format: INPUT.FORMAT, to which pixels are converted.
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


def images_of(source: Source, use: Use, count: Optional[int], progress: Callable) -> Iterator[Flaw]:
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
    for name, times in Counter(image["file_name"] for image in entries).items():
        if times > 1:
            yield Flaw("repeated file", source.name, f"{name!r} ({times} times)")
    for image in progress(evenly(there, count), desc=f"{source.name}: images", unit="image"):
        for kind, about in look(source.path(image), image, use.format):
            yield Flaw(kind, source.name, repr(image["file_name"]) + about)


def copies(datasets: Sequence[Source], count: Optional[int], progress: Callable) -> Iterator[Flaw]:
    """Files with the same content, within a data set, and between data to train and to test on.

    Compares all files of a small data set, and a sample of a large one.
    """
    most = None if count is None else 20 * count
    by_size: Dict[int, List[Tuple[Source, str]]] = defaultdict(list)
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
        first: Dict[str, str] = {}  # data set -> its first file of this content
        trained = next(((s, p) for s, p in group if s.training), None)
        for source, path in group:
            name = repr(os.path.relpath(path, os.path.realpath(source.image_root)))
            if source.name in first and first[source.name] != path:
                yield Flaw("duplicate image", source.name, f"{name} is {os.path.basename(first[source.name])!r}")
            first.setdefault(source.name, path)
            if trained and source.testing and not source.training:
                yield Flaw("train and test", source.name, f"{name} is {os.path.basename(trained[1])!r} of {trained[0].name}")
