"""Equal scores are in the order of their places, in models as in what is exported of them."""

import copy

import numpy as np
import pytest
import torch
from choices import cases
from lively import alive, boxes_of

from backbones.deploy import Runner
from backbones.deploy.export import Tolerance, export, match
from backbones.deploy.predictor import Predictor
from backbones.detectors import InOrder, ranked


def test_equal_scores_are_ranked_by_place():
    """As a stable sort does, whatever the number of equal ones; NaN first, as ``topk`` has it."""
    torch.manual_seed(0)
    for x in (torch.randn(5000).round(), torch.zeros(700), torch.randn(30), torch.tensor([1.0, float("nan"), 1.0, float("nan"), 2.0])):
        for count in (1, 3, min(1000, len(x)), len(x)):
            with InOrder():
                values, places = x.topk(count)
                rows = torch.stack((x, x.flip(0))).topk(count, dim=1)
                ranked = x.sort(descending=True)[1]
            expected = x.sort(descending=True, stable=True)
            torch.testing.assert_close(values, expected[0][:count], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(places, expected[1][:count]) and torch.equal(rows.indices[0], places) and torch.equal(ranked, expected[1])
            torch.testing.assert_close(rows.values[0], rows.values[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", cases(("Faster", "RetinaNet", "Cascade", "MMDetRPN"), tried=("Faster", "Cascade"), daily=["Faster"]))
def test_ranked_models(kind):
    """They and their copies rank as all does within `InOrder`; a model that is not ranked stays as detectron2 made it."""
    _, _, model, inputs = alive(kind, "MobileNetV2")
    inputs[0]["image"] = torch.full((3, 160, 200), 90.0)
    before = {key: type(module) for key, module in model.named_modules()}
    first = ranked(copy.deepcopy(model))
    after = {key: type(module) for key, module in first.named_modules()}
    copies = first, ranked(first), copy.deepcopy(first)
    assert before == {key: type(module) for key, module in model.named_modules()}
    assert {key: kind.__name__ for key, kind in before.items()} == {key: kind.__name__ for key, kind in after.items()}
    with torch.no_grad():
        with InOrder():
            expected = boxes_of(model(inputs)[0])
        for one in copies:
            assert after == {key: type(module) for key, module in one.named_modules()}
            found = boxes_of(one(inputs)[0])
            assert len(expected["boxes"]) and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("kind", cases(("Faster", "RetinaNet", "GFLV2", "MMDetRPN"), tried=("Faster", "RetinaNet"), daily=[]))
def test_exports_of_flat_images(kind, tmp_path):
    """Nearly all scores are exactly equal there; the check holds, and so does the file on another such image."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    flat = np.full((200, 260, 3), 120, np.uint8)
    flat[60:100, 60:140] = image[60:100, 60:140]
    path = str(tmp_path / "a.onnx")
    export(cfg, model, path, "onnx", flat)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    blank = np.full((160, 200, 3), 90, np.uint8)
    expected, found = boxes_of(Predictor(cfg)(blank)), boxes_of(Runner(path)(blank))
    assert len(expected["boxes"]) == len(found["boxes"]) == len(match(expected, found, Tolerance(0.1, 1e-3)))
