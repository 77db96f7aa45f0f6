"""Opens image files: the only place where pixels are read, so that training, evaluation, the tools and exported files see the same ones."""

import contextlib
import os
import sys
from typing import Any, Iterator, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.data.detection_utils import SizeMismatchError, convert_image_to_rgb, convert_PIL_to_numpy
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import Transform
from PIL import Image

from ..errors import UserError
from ..upstream import turned

DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of more than 8 bits
_ORIENTATION = 0x0112  # the EXIF tag
SWAPS_SIDES = (5, 6, 7, 8)  # its values that swap width and height


class UnusableImage(UserError):
    """An image file that is intact but cannot be used as it is. The message names the file."""


# what reading raises for a file that is missing, damaged, no image, or of another size than stated
UNREADABLE = (OSError, SyntaxError, SizeMismatchError, UnusableImage)


def settings(cfg: CfgNode) -> dict[str, Any]:
    """How a config reads files, as the arguments of `read` except the format."""
    return {"exif": cfg.INPUT.EXIF, "value_range": list(cfg.INPUT.VALUE_RANGE), "max_pixels": cfg.INPUT.MAX_PIXELS}


@contextlib.contextmanager
def opened(path: str, max_pixels: int = 0) -> Iterator[Image.Image]:
    """A file as Pillow opens it: its header is read, its pixels are not. Errors of what is done with it are this function's too.

    Raises UnusableImage if it has more than ``max_pixels``, or with 0 than Pillow considers safe, and OSError or SyntaxError
    where it cannot be read.
    """
    limit = Image.MAX_IMAGE_PIXELS
    try:
        place = os.path.realpath(path) if f"{os.sep}..{os.sep}" in path and os.path.exists(path) else path
        with PathManager.open(place, "rb") as file:  # which shortens link/../a as text
            if max_pixels:  # Pillow's limit is one for the whole process
                Image.MAX_IMAGE_PIXELS = None
            try:
                image = Image.open(file)
            finally:
                Image.MAX_IMAGE_PIXELS = limit
            if max_pixels and image.width * image.height > max_pixels:
                said = f"image {path!r} has {image.width}x{image.height} pixels, more than INPUT.MAX_PIXELS {max_pixels}"
                raise UnusableImage(said, "resources", "INPUT.MAX_PIXELS", image.width * image.height)
            yield image
    except (UserError, OSError, SyntaxError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        width, height = size(path, "ignore", sys.maxsize)
        said = (
            f"image {path!r} has {width}x{height} pixels, more than Pillow considers safe: to allow it, set INPUT.MAX_PIXELS {width * height}"
        )
        raise UnusableImage(said, "resources", "INPUT.MAX_PIXELS", width * height) from error
    except Exception as error:  # Pillow's decoders raise anything for a damaged file
        raise OSError(f"{type(error).__name__}: {error}") from error


def size(path: str, exif: str = "turn", max_pixels: int = 0) -> tuple[int, int]:
    """Width and height of an image file as `read` gives it, from its header. Raises what `opened` raises."""
    with opened(path, max_pixels) as image:
        width, height = image.size
        swapped = exif == "turn" and orientation(image) in SWAPS_SIDES
    return (height, width) if swapped else (width, height)


def orientation(image: Image.Image) -> int:
    """The value of an opened file's EXIF tag; 1 is upright. Raises OSError for a PNG that is cut off: its tag may stand at the end."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except OSError:
        raise
    except Exception:  # of a damaged tag, by which detectron2 does not turn
        return 1


def pictures_in(image: Image.Image) -> int:
    """How many pictures an opened file holds, of which `read` gives the first: frames of an animation, or pages.

    A photo counts as one with the previews and depth maps that a phone stores in the same file.
    """
    if image.format == "MPO":
        return 1
    with contextlib.suppress(Exception):  # of a file that is damaged behind its first picture
        return getattr(image, "n_frames", 1)
    return 1


def is_turned(image: Image.Image) -> bool:
    """Whether an image's EXIF tag says to rotate or mirror it."""
    return orientation(image) in range(2, 9)


def upright(image: Image.Image, path: str, exif: str = "turn", value_range: Sequence[float] = ()) -> Image.Image:
    """An opened image with 8 bits per channel, rotated as its EXIF tag says, or not with "ignore".

    Values of more bits go from ``value_range``, a lowest and a highest one, to 0 and 255. Raises UserError if there is none.
    """
    if exif == "turn":
        image = turned(image)
    if image.mode not in DEEP:
        return image
    values = np.nan_to_num(np.asarray(image, np.float32))
    if not value_range:
        low, high = float(values.min()), float(values.max())
        fitting = [0, 65535] if 0 <= low and 1 < high <= 65535 else [low, high]
        raise UserError(
            f"image {path!r} has more than 8 bits (Pillow's mode {image.mode}, values from {low:g} to {high:g}): set the range that becomes "
            f'0 to 255, such as INPUT.VALUE_RANGE "{fitting}"',
            "data",
            "INPUT.VALUE_RANGE",
            fitting,
        )
    low, high = value_range
    return Image.fromarray(((values - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8))


def read(path: str, format: str, exif: str = "turn", value_range: Sequence[float] = (), max_pixels: int = 0) -> np.ndarray:
    """The pixels (H, W, C) of a file in INPUT.FORMAT ``format``: as detectron2's ``read_image`` gives them, bit by bit, where it is right.

    uint8; of "YUV-BT.601" float64. Raises what `opened` and `upright` raise.
    """
    with opened(path, max_pixels) as image:
        return convert_PIL_to_numpy(upright(image, path, exif, value_range), format)


def converted(image: np.ndarray, format: str) -> np.ndarray:
    """Pixels (H, W, 3) BGR uint8 in INPUT.FORMAT ``format``, as `read` gives those of a file: (H, W, C)."""
    if format == "BGR":
        return image
    return convert_PIL_to_numpy(Image.fromarray(np.ascontiguousarray(image[:, :, ::-1])), format)


def tensor(image: np.ndarray) -> torch.Tensor:
    """Pixels (H, W, C) as models take them, (C, H, W): uint8, or float32, where detectron2's mapper leaves float64 that no model takes."""
    pixels = image if image.dtype == np.uint8 else image.astype(np.float32)
    return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))


def shown(image: torch.Tensor, format: str) -> np.ndarray:
    """A model's image (C, H, W) in INPUT.FORMAT ``format``, as `tensor` gives it, for eyes: (H, W, 3) RGB uint8."""
    return convert_image_to_rgb(image.permute(1, 2, 0).cpu().numpy(), format).round().clip(0, 255).astype(np.uint8)


class Input(T.AugInput):
    """Pixels (H, W, C) that detectron2's augmentations transform. Resizing leaves each side a pixel at least, where rounding gives none."""

    def transform(self, tfm: Transform) -> None:
        self.keep_a_pixel(tfm)
        super().transform(tfm)

    def keep_a_pixel(self, tfm: Transform) -> None:
        if isinstance(tfm, T.ResizeTransform):
            tfm.new_h, tfm.new_w = max(tfm.new_h, 1), max(tfm.new_w, 1)
