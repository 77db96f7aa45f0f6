"""Whole detectors: the original's YAML by its name, its checkpoint keys, detectron2's own checkpointer, the same detections on real images."""

import glob
import os

import numpy as np
import pytest
import torch
from conftest import HERE, fill, load_record
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import pairwise_iou

from backbones import zoo
from backbones.checkpoint import GatedCheckpointer

RECORDS = sorted(os.path.basename(path) for path in glob.glob(os.path.join(HERE, "data", "detectors", "*.json")))


def released_checkpoint(record: dict) -> dict:
    weights = {key: fill(key, shape) for key, shape in record["keys"]}
    for key, factor in record["scales"].items():
        weights[key] *= factor
    return weights


@pytest.fixture(scope="module", params=RECORDS)
def detector(request, tmp_path_factory):
    record = load_record("detectors", request.param)
    cfg = zoo.get_config(record["config"])
    cfg.MODEL.DEVICE = "cpu"
    path = str(tmp_path_factory.mktemp("released") / "model_final.pth")
    torch.save({"model": released_checkpoint(record)}, path)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(path)
    return record, path, model


def sample_image(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)  # RGB


def matches(instances, expected) -> int:
    """Recorded boxes with a detection of the same label within 0.05 pixels and 1e-4 in score."""
    boxes, scores = torch.tensor(expected["boxes"]), torch.tensor(expected["scores"])
    labels = torch.tensor(expected["labels"])
    off = (instances.pred_boxes.tensor[None] - boxes[:, None]).abs().amax(-1)
    found = (off <= 0.05) & ((instances.scores[None] - scores[:, None]).abs() <= 1e-4) & (instances.pred_classes[None] == labels[:, None])
    return int(found.any(1).sum())


@pytest.mark.slow
@pytest.mark.parametrize("image", ["china.jpg", "flower.jpg"])
def test_same_detections(detector, image):
    record, _, model = detector
    assert model.input_format == "BGR"
    pixels = np.ascontiguousarray(sample_image(image)[:, :, ::-1].transpose(2, 0, 1))
    with torch.no_grad():
        instances = model([{"image": torch.as_tensor(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}])[0]["instances"]
    expected = record["images"][image]
    assert len(instances) == expected["n"]
    assert matches(instances, expected) >= 0.97 * expected["n"]
    # boxes that stand apart, so that the matching above means something
    assert (pairwise_iou(instances.pred_boxes, instances.pred_boxes) > 0.99).sum() < 2 * len(instances)


@pytest.mark.slow
def test_nothing_is_left_over(detector):
    """Every weight is filled and every entry used; our own checkpointer fills the same."""
    record, path, model = detector
    missing, unexpected = model.load_state_dict(released_checkpoint(record), strict=False)
    assert not unexpected and set(missing) <= {"pixel_mean", "pixel_std"}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    GatedCheckpointer(model, require="all").load(path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
