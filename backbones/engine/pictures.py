"""What a model finds in some images, drawn beside the ground truth."""

import os
from typing import Any, Callable, Iterable

import numpy as np
import torch
from detectron2.structures import BoxMode
from PIL import Image
from torch import nn

from ..data import images
from ..drawing import Mark, beside, colour, draw, mask_of


def draw_predictions(
    model: nn.Module, records: Iterable[dict[str, Any]], mapper: Callable, metadata: Any, image_format: str
) -> dict[str, np.ndarray]:
    """The predictions of ``model`` on the images of ``records``, next to their ground truth if any: a picture (H, W, 3) RGB by number and name.

    Models that are not detectors give none.
    """
    training, pictures = model.training, {}
    model.eval()
    for i, record in enumerate(records):
        example = mapper(record)
        if "unreadable" in example:
            continue
        with torch.no_grad():  # without the original size, predictions are in pixels of the network's input
            output = model([{key: value for key, value in example.items() if key not in ("height", "width")}])[0]
        if not isinstance(output, dict) or "instances" not in output:
            break
        found = output["instances"].to("cpu")
        best = float(found.scores.max()) if len(found) else 0.0
        pixels = images.shown(example["image"], image_format)
        marks = marks_of(found[found.scores >= min(0.5, best * 0.999)], metadata)
        picture = draw(pixels, marks)
        if "annotations" in record:
            truth = _truth(record, _size(record, example), metadata, pixels.shape[:2], found.has("pred_masks"))
            picture = beside(draw(pixels, truth), picture)
        pictures[f"{i}_{os.path.splitext(os.path.basename(record['file_name']))[0]}"] = picture
    model.train(training)
    return pictures


def _name(metadata: Any, number: int) -> str:
    names = metadata.get("thing_classes") or ()
    return str(names[number]) if number < len(names) else str(number)


def marks_of(found: Any, metadata: Any, unit: str = "") -> list[Mark]:
    """What is drawn of detectron2's ``Instances`` on the CPU; ``unit`` follows each score, in percent."""
    fields = found.get_fields()
    boxes = found.pred_boxes.tensor.tolist() if "pred_boxes" in fields else []
    marks = []
    for i, box in enumerate(boxes):
        number = int(found.pred_classes[i]) if "pred_classes" in fields else 0
        label = f"{_name(metadata, number)} {100 * float(found.scores[i]):.0f}{unit}"
        mask = found.pred_masks[i].numpy() if "pred_masks" in fields else None
        points = found.pred_keypoints[i].numpy() if "pred_keypoints" in fields else None
        marks.append(Mark(box, label, colour(number), mask, points))
    return marks


def _size(record: dict[str, Any], example: dict[str, Any]) -> tuple[int, int]:
    """Height and width of the image file, which a record need not state: detectron2's mapper adds them."""
    known = next((each for each in (record, example) if "height" in each and "width" in each), None)
    return (known["height"], known["width"]) if known else images.size(record["file_name"])[::-1]


def _truth(record: dict[str, Any], size: tuple[int, int], metadata: Any, shape: tuple[int, int], masks: bool) -> list[Mark]:
    """The objects in an image of ``size`` resized to ``shape``; with ``masks`` only if the model predicts masks, as they hide the image."""
    marks = []
    sy, sx = (new / old for new, old in zip(shape, size))
    for a in record["annotations"]:
        box = np.array(BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYXY_ABS)) * (sx, sy, sx, sy)
        mask = points = None
        if masks and a.get("segmentation"):
            whole = Image.fromarray(mask_of(a["segmentation"], *size))
            mask = np.asarray(whole.resize(shape[::-1], Image.Resampling.NEAREST))
        if a.get("keypoints"):
            points = np.array(a["keypoints"], float).reshape(-1, 3) * (sx, sy, 1)
        marks.append(Mark(box.tolist(), _name(metadata, a["category_id"]), colour(a["category_id"]), mask, points))
    return marks
