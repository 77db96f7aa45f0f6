"""Exported detectors that take images as they are resize them as the model's own reading does."""

import os

import numpy as np
import pytest
import torch
from choices import cases
from lively import alive, boxes_of
from test_export_batches import agree, predictor_of

from backbones import UserError
from backbones.deploy import Runner, run_exported
from backbones.deploy.export import FORMATS, TOLERANCES, Tolerance, export
from backbones.deploy.preprocessing import prepared

ABOUT = {"input_format": "BGR", "crop": 0, "part": "detector"}


@pytest.mark.parametrize("min_size, max_size", [(160, 320), (97, 500), (0, 0)])
@pytest.mark.parametrize("height, width", [(100, 237), (213, 320), (160, 160), (200, 150), (60, 600), (1, 9)])
def test_resized_as_pillow_does(height, width, min_size, max_size):
    """To the last bit, larger and smaller."""
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    about = {**ABOUT, "min_size": min_size, "max_size": max_size}
    found = prepared(torch.from_numpy(image)[None], about)
    assert np.array_equal(found[0].numpy(), run_exported.prepared(image, about))


def test_tall_images_are_resized_nearly_as_pillow_does():
    """It may resize their height first, and rounds between; one of 255."""
    image = np.random.default_rng(0).integers(0, 256, (1000, 33, 3), np.uint8)
    about = {**ABOUT, "min_size": 97, "max_size": 500}
    found, expected = prepared(torch.from_numpy(image)[None], about)[0].numpy(), run_exported.prepared(image, about)
    assert found.shape == expected.shape == (3, 500, 17) and np.abs(found - expected).max() <= 1


@pytest.mark.parametrize(
    "kind, form, batch", cases((("GFLV2", "onnx", 0), ("Mask", "torchscript", 2), ("Mask", "onnx", 0)), tried=(("GFLV2", "onnx", 0),), daily=[])
)
def test_files_that_take_images_as_they_are(kind, form, batch, tmp_path):
    """Boxes to twice what `export` allows, in the images' pixels, of images of three sizes; masks but for a pixel in a thousand."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    path = str(tmp_path / f"detector{FORMATS[form]}")
    export(cfg, model, path, form, image, batch=batch, include_preprocessing=True)
    predictor, runner = predictor_of(cfg, model, tmp_path), Runner(path)
    assert runner.about["contract"][0].startswith(f"image: uint8 ({'2, ' * bool(batch)}H, W, 3), RGB")
    larger = np.repeat(np.repeat(image, 3, axis=0), 2, axis=1)
    for view in (image, image[:, :150], larger):
        view = np.ascontiguousarray(view)
        expected, found = predictor(view)["instances"], runner(view)["instances"]
        assert len(expected) >= 5 and found.image_size == view.shape[:2]
        scale = max(min(view.shape[:2]) / cfg.INPUT.MIN_SIZE_TEST, 1)
        tolerance = Tolerance(2 * scale * TOLERANCES[form].pixels, TOLERANCES[form].score)
        assert agree(boxes_of({"instances": expected}), boxes_of({"instances": found}), tolerance)
        alone = run_exported.Detector(path)(view[:, :, ::-1])
        np.testing.assert_allclose(alone["boxes"], found.pred_boxes.tensor.numpy(), atol=1e-4)
        if kind == "Mask":
            assert (expected.pred_masks[:3] != found.pred_masks[:3]).float().mean() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, form, part, changes, said",
    [
        ("Keypoint", "onnx", "detector", {}, "keypoints are found in boxes of the resized image"),
        ("Panoptic", "onnx", "detector", {}, "semantic maps"),
        ("GFLV2", "openvino", "detector", {}, "OpenVINO resizes in single precision"),
        ("GFLV2", "onnx", "backbone", {}, "features of a backbone"),
        ("GFLV2", "onnx", "detector", {"INPUT.FORMAT": "L"}, "INPUT.FORMAT L needs more than resizing"),
    ],
)
def test_what_cannot_take_images_as_they_are(kind, form, part, changes, said, tmp_path):
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    with pytest.raises(UserError, match=said) as error:
        export(cfg, model, str(tmp_path / f"a{FORMATS[form]}"), form, image, part, include_preprocessing=True)
    assert error.value.key == "--include-preprocessing" and os.listdir(tmp_path) == []
