"""Pre- and postprocessing in files that take images as they are: Pillow's resizing, and boxes in the image's pixels.

It is made of products of matrices: ONNX Runtime's antialiased Resize differs from Pillow's by up to 20 of 255.
"""

from typing import Any

import torch
from detectron2.layers import shapes_to_tensor
from detectron2.structures import Boxes
from torch import Tensor

from ..errors import UserError

BLOCK = 64  # more blocks take more memory for indices, fewer more multiplications by 0
FLAG = "--include-preprocessing"


def check_preprocessing(about: dict[str, Any], kind: str, keypoints: bool) -> None:
    """Raises UserError if a file in a format, for the model that `describe` tells ``about``, cannot take images as they are."""
    reasons = {
        "features of a backbone belong to the resized image": about["part"] != "detector",
        "a classifier's image is cropped, not only resized": about["crop"],
        f"INPUT.FORMAT {about['input_format']} needs more than resizing": about["input_format"] not in ("RGB", "BGR"),
        "keypoints are found in boxes of the resized image": keypoints,
        "semantic maps belong to the resized image": about["panoptic"],
        "OpenVINO resizes in single precision, so pixels differ from Pillow's": kind == "openvino",
    }
    for reason in (reason for reason, holds in reasons.items() if holds):
        raise UserError(f"{FLAG} is not possible here: {reason}. Without it, run_exported.py does the same", "unsupported", FLAG)


def _sides(old: Tensor, min_size: int, max_size: int) -> Tensor:
    """The resized (height, width), for (2,) sides: see `run_exported.sides`."""
    if not min_size:
        return old
    # divide tensors with one element: an ONNX exporter computes with scalars in single precision
    least, most = (torch.tensor([float(side)], dtype=torch.float64) for side in (min_size, max_size))
    shorter = old.double().amin(dim=0, keepdim=True)
    new = torch.where(old == shorter, least, old.double() * (least / shorter))
    return (new * (most / new.amax(dim=0, keepdim=True)).clamp(max=1) + 0.5).floor().clamp(min=1).long()


def _scaled(x: Tensor, new: Any) -> Tensor:
    """Resizes the rows of images (N, C, H, W) to ``new`` (1,) cells, exactly as Pillow's bilinear filter does.

    Blocks of new cells are products of nearby old cells and their weights.
    """
    old = shapes_to_tensor(x.shape[-1:])
    scale = old.double() / new.double()
    reach = scale.clamp(min=1)
    first = torch.arange(new[0])[::BLOCK].double()[:, None] * scale
    length: Any = ((BLOCK * scale + 2 * reach).ceil() + 2).long()[0]
    near = (first - reach).floor().long() + torch.arange(length)  # (blocks, old cells)
    at = first + (torch.arange(BLOCK).double() + 0.5) * scale  # (blocks, BLOCK)
    share = (1 - (near.double()[:, :, None] + 0.5 - at[:, None]).abs() / reach).clamp(min=0)
    share = share * ((near >= 0) & (near < old))[:, :, None]
    share = (share / share.sum(dim=1, keepdim=True) * 2**22 + 0.5).floor() / 2**22
    cells = x[:, :, :, near.clamp(min=0).minimum(old - 1)].permute(3, 0, 1, 2, 4)
    return ((cells @ share[:, None, None]).permute(1, 2, 3, 0, 4).flatten(3)[:, :, :, : new[0]] + 0.5).floor()


def prepared(images: Tensor, about: dict[str, Any]) -> Tensor:
    """Converts images (N, H, W, 3) RGB uint8 to the detector's input, (N, 3, H', W') float32 in its "input_format"."""
    new = _sides(shapes_to_tensor(images.shape[1:3]), about["min_size"], about["max_size"])
    x = _scaled(images.permute(0, 3, 1, 2).double(), new[1:])  # Pillow rounds after each direction; tall images start with the other
    x = _scaled(x.transpose(2, 3), new[:1]).transpose(2, 3).float()
    return x.flip(1) if about["input_format"] == "BGR" else x


def in_pixels(found: dict[str, Tensor], seen: Any, size: Any) -> dict[str, Tensor]:
    """Scales the boxes of results from the image as ``seen``, (height, width), to the image of ``size``."""
    name = "boxes" if "boxes" in found else "proposals"
    height, width = size
    scale = shapes_to_tensor([width, height]) / shapes_to_tensor([seen[1], seen[0]])
    boxes = Boxes(found[name] * scale.float().repeat(2))
    boxes.clip((height, width))
    kept = boxes.nonempty()
    return {**{key: value[kept] for key, value in found.items()}, name: boxes.tensor[kept]}
