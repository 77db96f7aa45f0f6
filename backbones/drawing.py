"""Draws pictures for people: small images are enlarged first, and labels are placed beside the objects, not on them."""

import logging
import os
import string
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 480  # least pixels of the shorter side, as far as `_MOST` allows
_MOST = 8  # times an image is enlarged
LONGEST = 1400
# Okabe and Ito's colours, which the colour-blind tell apart, less black and yellow; each stands out from light and dark
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (213, 94, 0), (204, 121, 167), (0, 114, 178))
RIGHT, ASIDE, WRONG = (0, 158, 115), (230, 159, 0), (213, 50, 40)


@dataclass
class Mark:
    """What is drawn of an object: its box (x0, y0, x1, y1) in the image's pixels, a label, and what else there is."""

    box: Sequence[float]
    label: str = ""
    colour: tuple[int, int, int] = COLOURS[0]
    mask: np.ndarray | None = None  # (H, W) bool
    points: np.ndarray | None = None  # (K, 3) x, y, and whether there is one


def colour(number: int) -> tuple[int, int, int]:
    return COLOURS[number % len(COLOURS)]


def scale_of(image: np.ndarray, wanted: float, longest: int = 1600) -> float:
    """``wanted``, or less if an image (H, W, ...) would become longer than ``longest``; each side keeps at least a pixel."""
    sides = image.shape[:2]
    return max(min(wanted, longest / max(sides)), 1 / min(sides))


def draw(image: np.ndarray, marks: Sequence[Mark], size: int = 15) -> np.ndarray:
    """The RGB ``image`` (H, W, 3), enlarged where it is small, with ``marks``, in a margin that has room for labels.

    Boxes have a dark line outside their coloured one, to show on any background. A label goes to the place beside its box that
    covers the least of other boxes and labels.
    """
    height, width = image.shape[:2]
    scale = min(max(SIDE / min(height, width), 1.0), _MOST, max(LONGEST / max(height, width), 1e-3))
    shown = (max(round(width * scale), 1), max(round(height * scale), 1))
    canvas = Image.fromarray(np.ascontiguousarray(image)).convert("RGB").resize(shown, Image.Resampling.LANCZOS)
    for mark in marks:
        if mark.mask is not None:
            filter_ = Image.fromarray(np.asarray(mark.mask, np.uint8) * 100).resize(shown, Image.Resampling.NEAREST)
            canvas.paste(mark.colour, (0, 0, *shown), filter_)
    margin = size + 8
    page = Image.new("RGB", (shown[0] + 2 * margin, shown[1] + 2 * margin), (128, 128, 128))
    page.paste(canvas, (margin, margin))
    pen = ImageDraw.Draw(page)
    boxes = [_within(np.asarray(mark.box, float) * scale + margin, page.size) for mark in marks]
    for mark, (x0, y0, x1, y1) in zip(marks, boxes):
        pen.rectangle((x0 - 3, y0 - 3, x1 + 3, y1 + 3), outline=(20, 20, 20))
        pen.rectangle((x0 - 2, y0 - 2, x1 + 2, y1 + 2), outline=mark.colour, width=2)
        for x, y, there in () if mark.points is None else np.asarray(mark.points, float):
            if there > 0:
                x, y = x * scale + margin, y * scale + margin
                pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=mark.colour, outline=(20, 20, 20))
    taken = np.array(boxes, float).reshape(-1, 4)
    for mark, (x0, y0, x1, y1) in zip(marks, boxes):
        if not mark.label:
            continue
        font = _font(size, mark.label)
        w, h = pen.textlength(mark.label, font=font) + 6, size + 5
        above, under = y0 - h - 4, y1 + 4
        beside = [(x0 - 3, above), (x0 - 3, under), (x1 + 5, y0 - 3), (x0 - w - 5, y0 - 3), (x1 - w + 3, above), (x1 - w + 3, under)]
        places = [_moved_in(x, y, w, h, page.size) for x, y in beside]
        place = min(places, key=lambda place: _covered(place, taken))
        taken = np.vstack([taken, place])
        pen.rectangle(tuple(place), fill=mark.colour)
        dark = np.dot(mark.colour, (0.299, 0.587, 0.114)) > 130
        pen.text((place[0] + 3, place[1] + 1), mark.label, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)
    return np.asarray(page)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture (H, W, 3) with its title above, cut where the picture ends."""
    page = Image.new("RGB", (picture.shape[1], picture.shape[0] + 26), (255, 255, 255))
    page.paste(Image.fromarray(picture), (0, 26))
    ImageDraw.Draw(page).text((4, 3), title, fill=(0, 0, 0), font=_font(16, title))
    return np.asarray(page)


def beside(left: np.ndarray, right: np.ndarray, titles: Sequence[str] = ("truth", "found")) -> np.ndarray:
    """Two pictures of the same height side by side, with their titles above."""
    left, right = titled(left, titles[0]), titled(right, titles[1])
    return np.hstack([left, np.full((len(left), 6, 3), 255, np.uint8), right])


def mask_of(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Polygons or RLE as pixels, (H, W) bool."""
    from pycocotools import mask as coding

    if isinstance(segmentation, dict) and not isinstance(segmentation["counts"], list):
        return coding.decode(segmentation).astype(bool)
    runs = coding.frPyObjects(segmentation, height, width)
    return coding.decode(coding.merge(runs) if isinstance(runs, list) else runs).astype(bool)


def _font(size: int, text: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file("".join(sorted(letter for letter in set(text) if not letter.isascii()))), size)


@lru_cache
def _font_file(letters: str) -> str:
    """A font with ASCII and these letters: matplotlib's own, or one that is installed. If none has them, the log says so, once."""
    import matplotlib

    own = os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    if not letters or _has(own, letters):
        return own
    from matplotlib.font_manager import fontManager  # slow: it looks for all that are installed

    files = [font.fname for font in fontManager.ttflist]
    # a font of the last resort claims all letters, and shows a box for each
    needed = string.ascii_letters + string.digits + letters
    found = next((file for file in files if not os.path.basename(file).startswith("LastResort") and _has(file, needed)), None)
    if found is None:
        said = f"no installed font has all letters of {letters!r}: pictures show boxes in their place. Install one, such as Noto Sans CJK"
        logging.getLogger(__name__).warning(said)
    return found or own


def _has(font: str, letters: str) -> bool:
    from matplotlib.ft2font import FT2Font

    try:
        face = FT2Font(font)
    except (OSError, RuntimeError):  # removed, or of no kind that can be drawn
        return False
    return all(face.get_char_index(ord(letter)) for letter in letters)


def _within(box: np.ndarray, size: tuple[int, int]) -> list[float]:
    x, y = np.sort(np.clip(box[[0, 2]], 0, size[0])), np.sort(np.clip(box[[1, 3]], 0, size[1]))
    return [float(v) for v in (x[0], y[0], x[1], y[1])]


def _moved_in(x: float, y: float, w: float, h: float, size: tuple[int, int]) -> list[float]:
    x, y = max(min(x, size[0] - w), 0.0), max(min(y, size[1] - h), 0.0)
    return [x, y, x + w, y + h]


def _covered(place: Sequence[float], boxes: np.ndarray) -> float:
    sides = np.minimum(boxes[:, 2:], place[2:]) - np.maximum(boxes[:, :2], place[:2])
    return float(np.clip(sides, 0, None).prod(1).sum())
