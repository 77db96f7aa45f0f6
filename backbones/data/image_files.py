"""The image files of a data set: their paths, and what their headers and pixels show."""

import contextlib
import os
import warnings
from collections import defaultdict
from typing import Any, Iterator

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy

from ..errors import one_line
from .formats.building import composed, walk
from .images import DEEP, SWAPS_SIDES, UnusableImage, opened, orientation, pictures_in
from .sources import Use

_MOST = 2_000_000  # most files to list in a folder
# Pillow's modes -> kind
_MODES = {
    **dict.fromkeys(("1", "L"), "grey image"),
    **dict.fromkeys(("LA", "La", "PA", "RGBA", "RGBa"), "alpha image"),
    **dict.fromkeys(DEEP, "deep image"),
    "CMYK": "CMYK image",
    **dict.fromkeys(("P", "YCbCr", "LAB", "HSV", "RGBX"), "palette image"),
}


def _plain(name: str) -> str:
    return composed(name).lower()


class Files:
    """The files in a folder and in the folders in it. Each folder is listed once, which is faster than checking each file."""

    def __init__(self, root: str):
        self.root = root
        self._folders: dict[str, set[str]] = {}
        self._ends: dict[str, list[str]] = {}

    def find(self, name: str) -> tuple[str, str]:
        """(path within the folder, kind of `findings.KINDS`); the kind is "" if the file is where its name says.

        Otherwise it is the one file whose path agrees with ``name`` in most of its last parts, if there is one; upper and lower case and the
        encoding of accents do not matter. If the folder that it states is there, a file outside of it is another image of the same name.
        """
        if self._is_there(name):
            return name, ""
        plain = name.replace("\\", "/").lstrip("/")
        if self._is_there(plain):
            return plain, "file separators"
        if not self._ends:
            self._search()
        wanted = _plain(plain).split("/")
        agreeing = defaultdict(list)
        folder = os.path.normpath(os.path.dirname(plain))
        is_there = not folder.startswith(".") and os.path.isdir(os.path.join(self.root, folder))
        for path in self._ends.get(wanted[-1], ()):
            if is_there and not _plain(path).startswith(_plain(folder) + "/"):
                continue
            parts = _plain(path).split("/")
            same = next((i for i, (a, b) in enumerate(zip(parts[::-1], wanted[::-1])) if a != b), min(len(parts), len(wanted)))
            agreeing[same].append(path)
        if not agreeing:
            return name, "missing image"
        best = agreeing[max(agreeing)]
        best = [path for path in best if os.path.basename(path) == os.path.basename(plain)] or best
        if len(best) > 1:
            return name, "several files"
        return best[0], "file name in another case" if _plain(best[0]) == _plain(plain) else "file in another folder"

    def _is_there(self, name: str) -> bool:
        folder, _, base = name.rpartition("/")
        folder = folder or ("/" if name.startswith("/") else "")
        if folder not in self._folders:
            names: set[str] = set()
            with contextlib.suppress(OSError, ValueError), os.scandir(os.path.join(self.root, folder)) as entries:
                names = {entry.name for entry in entries}
            self._folders[folder] = names
        return base in self._folders[folder]

    def _search(self) -> None:
        self._ends, count = {"": []}, 0
        for folder, _, names in walk(self.root):
            inside = os.path.relpath(folder, self.root).replace(os.sep, "/")
            for name in names:
                self._ends.setdefault(_plain(name), []).append(name if inside == "." else f"{inside}/{name}")
            count += len(names)
            if count > _MOST:
                return


def evenly(items: Any, count: int | None) -> Any:
    """``count`` items of a list, or rows of an array, spread evenly over all; None, or fewer than that: all of them."""
    if count is None or len(items) <= count:
        return items
    chosen = np.linspace(0, len(items) - 1, count).astype(int)
    return items[chosen] if isinstance(items, np.ndarray) else [items[i] for i in chosen]


def look(path: str, stated: dict[str, Any], use: Use, pixels: bool = True) -> Iterator[tuple[str, str]]:
    """What is wrong with an image, by its header and, if ``pixels``, its pixels: (kind, details).

    ``stated`` has its "width" and "height", after the turn that its EXIF tag asks for unless ``use`` ignores it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with opened(path, use.max_pixels) as picture:
                mode, turn, plain = picture.mode, orientation(picture), picture.size
                transparent, pictures = "transparency" in picture.info, pictures_in(picture)
                if pixels:
                    picture.load()
                    if mode not in ("RGB", "L"):
                        convert_PIL_to_numpy(picture, use.format)
        except UnusableImage as error:
            yield "large image", f" ({error})"
            return
        except Exception as error:  # Pillow's decoders raise anything for a damaged file
            reason = one_line(error, 120)
            with contextlib.suppress(OSError, ValueError):
                if os.path.getsize(path) == 0:
                    yield "empty image", ""
                    return
            yield ("truncated image", "") if "truncated" in reason.lower() else ("unreadable image", f" ({reason})")
            return
    wanted, turned = (stated["width"], stated["height"]), plain[::-1] if turn in SWAPS_SIDES else plain
    if pictures > 1:
        yield "several pictures", f" ({pictures})"
    size = turned if use.exif == "turn" else plain
    if size != wanted:
        kind = "turned image" if turn in SWAPS_SIDES and wanted == plain else "image of other size"
        yield kind, f" ({size[0]}x{size[1]}, not {wanted[0]}x{wanted[1]})"
    elif turn in range(2, 9) and use.exif == "turn":
        yield "EXIF orientation", f" ({turn})"
    kind = "alpha image" if transparent and mode in ("P", "RGB", "L") else _MODES.get(mode, "")
    if kind and not (kind == "grey image" and use.format == "L") and not (kind == "deep image" and use.scaled):
        yield kind, f" ({mode})"
