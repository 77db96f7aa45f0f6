"""Exported detectors that take several images a call give of each what the model finds in it alone."""

import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from choices import cases
from lively import MORE_KINDS, alive, boxes_of

from backbones import UserError
from backbones.deploy import Runner, run_exported
from backbones.deploy.export import FORMATS, TOLERANCES, Tolerance, export, match
from backbones.deploy.low_precision import lower
from backbones.deploy.predictor import Predictor

TRIED = [("RetinaNet", "onnx"), ("GFLV2", "torchscript"), ("GFLV2", "openvino"), ("Mask", "onnx")]


def predictor_of(cfg, model, folder):
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    return Predictor(cfg)


@pytest.fixture(scope="module")
def retinanet(tmp_path_factory):
    """The ONNX file of a RetinaNet that takes two images, which two tests run, and what its export says of the differences."""
    cfg, image, model, _ = alive("RetinaNet", "MobileNetV2")
    path = str(tmp_path_factory.mktemp("retinanet") / "detector.onnx")
    return path, export(cfg, model, path, "onnx", image, batch=2)


def agree(ours: dict, theirs: dict, tolerance: Tolerance) -> bool:
    """Whether nine of ten detections do: of random weights some scores differ by less than rounding."""
    return len(match(ours, theirs, tolerance)) >= 0.9 * max(len(ours["boxes"]), len(theirs["boxes"]))


@pytest.mark.parametrize("kind, form", cases(itertools.product(MORE_KINDS, FORMATS), TRIED, daily=[]))
def test_batches(kind, form, tmp_path, request):
    """Boxes to twice what `export` allows, of images of two sizes, more than a batch, and one in which nothing is to be found."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    if (kind, form) == ("RetinaNet", "onnx"):
        path, differences = request.getfixturevalue("retinanet")
    else:
        path = str(tmp_path / f"detector{FORMATS[form]}")
        differences = export(cfg, model, path, form, image, batch=2)
    assert max(differences.get("boxes", 0), differences.get("proposals", 0)) <= TOLERANCES[form].pixels
    predictor, runner = predictor_of(cfg, model, tmp_path), Runner(path)
    views = [image, image[:, ::-1], image[:, :150], np.full_like(image, 90), image[::-1]]
    views = [np.ascontiguousarray(view) for view in views]
    inputs = [run_exported.prepared(view[:, :, ::-1], runner.about) for view in views]
    assert runner.about["batch"] == 2 and len({x.shape for x in inputs}) == 2
    found = runner.predict_all([torch.from_numpy(x) for x in inputs], [view.shape[:2] for view in views])
    tolerance = Tolerance(2 * TOLERANCES[form].pixels, TOLERANCES[form].score)
    expected = [predictor(view) for view in views]
    for ours, theirs in zip(expected, found, strict=True):
        assert set(ours) == set(theirs) and agree(boxes_of(ours), boxes_of(theirs), tolerance)
        if "sem_seg" in ours:
            assert (ours["sem_seg"].argmax(0) == theirs["sem_seg"].argmax(0)).float().mean() > 0.999
    first, second = (boxes_of(expected[i]) for i in (0, 1))
    assert len(first["boxes"]) >= 10 and not agree(first, boxes_of(found[1]), tolerance), "the views are too alike to tell them apart"
    assert agree(second, boxes_of(runner(views[1])), tolerance)  # one image alone


@pytest.mark.slow
def test_the_file_beside_a_batch_runs_it_alone(retinanet, tmp_path):
    """It takes as many image files as there are, in their order; one that cannot be read is said. Its contract tells of the batch."""
    from PIL import Image

    cfg, image, model, _ = alive("RetinaNet", "MobileNetV2")
    path, _ = retinanet
    views = {"a": image, "b": image[:, ::-1], "c": image[:, :150], "e": image}
    for name, view in views.items():
        Image.fromarray(np.ascontiguousarray(view[:, :, ::-1])).save(tmp_path / f"{name}.png")
    (tmp_path / "d.png").write_bytes(b"nothing")
    command = [
        sys.executable,
        os.path.join(os.path.dirname(path), "run_exported.py"),
        path,
        *(str(tmp_path / f"{name}.png") for name in "abcde"),
        "--threshold",
        "0",
    ]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 1 and len(ran.stderr.splitlines()) == 1 and "d.png' cannot be read" in ran.stderr
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [line["file"][-5] for line in lines] == list(views)
    predictor = predictor_of(cfg, model, tmp_path)
    for line, view in zip(lines, views.values()):
        boxes, ours = torch.tensor([one["box"] for one in line["objects"]]), boxes_of(predictor(np.ascontiguousarray(view)))
        assert agree({"boxes": ours["boxes"]}, {"boxes": boxes}, Tolerance(0.2, 1.0))
    contract = run_exported.Detector(path).about["contract"]
    assert contract[0].startswith("image: float32 (2, 3, H, W)") and "2 images of one size per call" in contract[0]
    assert contract[-2].startswith("counts: int64 (2,)")


@pytest.mark.slow
def test_batches_in_int8(tmp_path):
    """Calibrated on three images of two sizes; the scores stay near."""
    cfg, image, model, _ = alive("GFLV2", "MobileNetV2")
    source, path = str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx")
    export(cfg, model, source, "onnx", image, batch=2)
    lower(source, path, "onnx", "int8", [image, image[:, ::-1], image[:, :150]], "photographs")
    about = Runner(path).about
    assert about["batch"] == 2 and about["calibration"]["images"] == 3
    for view in (image, image[:, :150]):
        expected, found = (Runner(file)(np.ascontiguousarray(view))["instances"].scores for file in (source, path))
        assert len(found) and abs(float(expected[:10].mean() - found[:10].mean())) < 0.1


def test_batches_that_are_none(tmp_path):
    cfg, image, model, _ = alive("RetinaNet", "MobileNetV2")
    for batch, part, said in ((-1, "detector", "at least one image"), (2, "backbone", "takes any number of images")):
        with pytest.raises(UserError, match=said):
            export(cfg, model, str(tmp_path / "a.ts"), "torchscript", image, part, batch=batch)


def test_what_is_stacked_is_separated():
    """Each input is in one batch of inputs of its shape; what lacks is the last again, and is left out of what comes back."""
    inputs = [np.full((3, 2 + i % 2, 4), i) for i in range(5)]
    calls = list(run_exported.stacked(inputs, 2))
    assert [places for places, _ in calls] == [[0, 2], [4], [1, 3]] and all(x.shape == (2, *inputs[p[0]].shape) for p, x in calls)
    assert calls[1][1][:, 0, 0, 0].tolist() == [4, 4]

    def call(x):  # as many boxes as the image's number says
        counts = x[:, 0, 0, 0]
        return [np.repeat(counts, counts), x[:, :1], counts]

    found = run_exported.results(call, {"batch": 2, "fields": ["boxes", "sem_seg", "counts"]}, inputs)
    assert [one["boxes"].tolist() for one in found] == [[], [1], [2, 2], [3, 3, 3], [4, 4, 4, 4]]
    assert all(np.array_equal(one["sem_seg"], x[:1]) and set(one) == {"boxes", "sem_seg"} for one, x in zip(found, inputs))
