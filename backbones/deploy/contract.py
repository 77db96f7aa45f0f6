"""The description in an exported file: its inputs and outputs, as data for `run_exported` and in words for people who write their own code."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.modeling import PanopticFPN

from ..data import images
from ..detectors import ImageClassifier

# by name of output; N objects of one image, in the order of their scores
OUTPUTS = {
    "boxes": "float32 (N, 4): left, top, right, bottom, in pixels of the resized image",
    "scores": "float32 (N,), 0 to 1; for a classifier (1, classes)",
    "classes": "int64 (N,): indices in the list `classes`",
    "masks": "float32 (N, 1, M, M): stretched onto its box, values of 0.5 and more are the object",
    "heatmaps": "float32 (N, keypoints, M, M): stretched onto its box by bicubic interpolation, a keypoint is at the maximum",
    "sem_seg": "float32 (classes of `stuff`, H, W), of the resized image, perhaps padded: a pixel's class has the largest value",
    "proposals": "float32 (N, 4): boxes that may contain an object, in the format of boxes",
    "objectness": "float32 (N,): logits of proposals",
    "counts": "int64 ({batch},): how many objects each image has; all other outputs are concatenated, image by image",
}
_IMAGE = (
    "image: float32 {shape}, channels first, {format}, 0 to 255, neither normalized nor padded: the file does both. {number} per call, of any "
    "size; the model was evaluated on images resized by Pillow's bilinear filter so that the shorter side is {min_size}, but the longer one "
    "at most {max_size}, both rounded half up"
)
_BATCH = (
    "image: float32 (images, {channels}, H, W), channels first, {format}, 0 to 255, not normalized: the file does it. H and W are multiples of "
    "{size_divisibility}: pad with zeros on the right and at the bottom"
)
_CROP = (
    "image: float32 {shape}, channels first, {format}, 0 to 255, not normalized: the file does it. Resized by Pillow's bilinear "
    "filter so that the shorter side is {resize}, then cropped at the center"
)
_WHOLE = "image: uint8 {shape}, RGB, {number} per call, of any size: the file resizes and normalizes. Boxes are in pixels of this image"
FEATURES = "float32 (images, channels, H / stride, W / stride)"


def describe(cfg: CfgNode, model: Any, part: str, names: Metadata) -> dict[str, Any]:
    """What a user of the file needs to know, with ``names`` of classes. `contract` adds what is known after a run."""
    from .. import __version__

    panoptic = isinstance(model, PanopticFPN) and part == "detector"
    sides = cfg.INPUT.CLASSIFICATION if isinstance(model, ImageClassifier) else {}
    return {
        "backbones": __version__,
        "part": part,
        "input_format": cfg.INPUT.FORMAT,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "resize": sides.get("RESIZE", 0),
        "crop": sides.get("SIZE", 0),
        "size_divisibility": model.backbone.size_divisibility,
        "precision": "float32",
        "classes": list(names.get("thing_classes") or names.get("classes") or ()),
        "stuff": list(names.get("stuff_classes") or ()),
        "keypoints": list(names.get("keypoint_names") or ()),
        "reading": images.settings(cfg),
        "panoptic": ([model.combine_overlap_thresh, model.combine_stuff_area_thresh, model.combine_instances_score_thresh] if panoptic else []),
    }


def contract(about: dict[str, Any]) -> list[str]:
    """Describes in words the input, each of ``about["fields"]`` in order, and which files belong together."""
    image = _CROP if about["crop"] else _BATCH if about["part"] == "backbone" else _IMAGE
    if not about["min_size"] and image is _IMAGE:
        image = _IMAGE.partition("; the model")[0] + "; the model was evaluated on images in their original size"
    batch, whole_image = about.get("batch", 0), about.get("preprocessing", False)
    image = _WHOLE if whole_image else image
    channels = 1 if about["input_format"] == "L" else 3
    axes = ["H", "W", 3] if whole_image else [channels, about["crop"] or "H", about["crop"] or "W"]
    shape = f"({', '.join(map(str, [*([batch] if batch else []), *axes]))})"
    number = f"{batch} images of one size" if batch > 1 else "One image"
    whole = {name for name in about["fields"] if batch and (name == "sem_seg" or "counts" not in about["fields"])}
    return [
        image.format(**{**about, "format": about["input_format"], "shape": shape, "number": number, "channels": channels}),
        *(f"{name}: {'for each image, ' * (name in whole)}{OUTPUTS.get(name, FEATURES).format(batch=batch)}" for name in about["fields"]),
        "files: the .bin next to an .xml belongs to it. run_exported.py does all of this with numpy and Pillow",
    ]
