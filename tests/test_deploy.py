"""What is optimized computes what the model computes."""

import copy
import importlib
import itertools
import logging

import pytest
import torch
from choices import SMALLEST, cases, turns
from lively import MORE_KINDS, alive, boxes_of
from torchvision import ops

from backbones import UserError, create
from backbones.deploy import optimize, predictor
from backbones.deploy.export import Tolerance, match
from backbones.deploy.optimize import OneDNNLinear, fold_norms, replace_linears
from backbones.deploy.roi_align import CPUPooler, roi_align
from backbones.upstream import onednn_linear

MEMORY_FORMATS = ("channels_last", "contiguous")


@pytest.mark.parametrize("sampling_ratio, aligned", itertools.product((0, 1, 2), (True, False)))
def test_roi_align(sampling_ratio, aligned):
    """torchvision's, to 2e-6: regions inside, outside, empty, inverted, of every size, of two images."""
    for trial in range(25):
        torch.manual_seed(trial)
        height, width = torch.randint(1, 60, (2,)).tolist()
        x = torch.randn(2, 5, height, width)
        center = (torch.rand(30, 2) * 1.4 - 0.2) * torch.tensor([width, height]) * 4
        size = torch.exp(torch.randn(30, 2) * 1.5) * 20
        size[:3], size[3:5] = 0, -size[3:5]
        rois = torch.cat([torch.randint(0, 2, (30, 1)).float(), center - size / 2, center + size / 2], dim=1)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            found = roi_align(x.to(memory_format=memory_format), rois, (7, 5), 0.25, sampling_ratio, aligned)
            torch.testing.assert_close(found, ops.roi_align(x, rois, (7, 5), 0.25, sampling_ratio, aligned), rtol=0, atol=2e-6)


def test_roi_align_of_nothing_and_far_away():
    x = torch.randn(1, 3, 8, 8)
    assert roi_align(x, torch.zeros(0, 5), (7, 7), 0.25).shape == (0, 3, 7, 7)
    far = torch.tensor([[0, 1.0, 1.0, 9.0, 2e5]])  # more samples than memory is given to
    torch.testing.assert_close(roi_align(x, far, (7, 7), 0.25), ops.roi_align(x, far, (7, 7), 0.25, 0, True))
    with torch.enable_grad():  # what trains pools as before
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.structures import Boxes

        pooler = ROIPooler(7, [0.25], 0, "ROIAlignV2")
        x.requires_grad_(True)
        boxes = [Boxes(torch.tensor([[0, 0, 20.0, 20.0]]))]
        ours, theirs = (torch.autograd.grad(pool([x], boxes).sum(), x)[0] for pool in (CPUPooler(pooler), pooler))
        assert theirs.any() and torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "EvalBN"])
@pytest.mark.parametrize("name", SMALLEST)
def test_folded_norms(name, norm):
    """Every norm goes, and the features stay, to 1e-4 of their largest value."""
    net = create(name, norm=norm).eval()
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_()
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net(image)
        norms = sum(hasattr(module, "running_var") for module in net.modules())
        count = fold_norms(net)
        after = net(image)
    assert count == norms > 0 and not any(hasattr(module, "running_var") for module in net.modules())
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-4 * value.abs().max().item())


def test_norms_in_training_are_not_folded():
    assert fold_norms(create("MobileNetV2", norm="BN").train()) == 0
    assert fold_norms(create("MobileNetV2", norm="GN").eval()) == 0


@pytest.mark.parametrize(
    "kind, memory_format",
    cases(itertools.product(MORE_KINDS, MEMORY_FORMATS), tried=turns(list(MORE_KINDS), MEMORY_FORMATS), daily=[("Faster", MEMORY_FORMATS[0])]),
)
def test_same_boxes(kind, memory_format):
    """Within 1e-3 pixels and 1e-4 of score; the model itself is not touched."""
    _, _, model, inputs = alive(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = boxes_of(model(inputs)[0])
    assert len(expected["boxes"]) >= 10
    # without an FPN, what random weights make is larger, and so is its rounding
    tolerance = Tolerance(1e-2, 1e-3) if kind in ("C4", "DC5") else Tolerance(1e-3, 1e-4)
    faster = optimize(model, memory_format=memory_format)
    with torch.no_grad():
        found = boxes_of(faster(inputs)[0])
    # RetinaNet's scores of random weights are 1 but for their last digit, by which non-maximum suppression orders
    agreeing = 0.85 if kind == "RetinaNet" else 0.98
    assert len(match(expected, found, tolerance)) >= agreeing * max(len(expected["boxes"]), len(found["boxes"]))
    poolers = [module for module in faster.modules() if isinstance(module, CPUPooler)]
    assert bool(poolers) == hasattr(model, "roi_heads")
    assert not model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        again = boxes_of(model(inputs)[0])
    assert all(torch.equal(again[key], value) for key, value in expected.items())


@pytest.mark.parametrize(
    "kind", cases(("Faster", "Mask", "RetinaNet", "GFLV2", "Cascade", "Panoptic"), tried=("Mask", "GFLV2"), daily=["GFLV2"])
)
def test_bfloat16(kind):
    """Computes in bfloat16 and answers in float32, near what it answered."""
    _, _, model, inputs = alive(kind)
    faster = optimize(model, precision="bfloat16", memory_format="channels_last")
    seen = []
    conv = next(m for m in faster.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    conv.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.no_grad():
        found, expected = faster(inputs)[0]["instances"], model(inputs)[0]["instances"]
    assert seen == [torch.bfloat16]
    masks = found.get("pred_masks") if found.has("pred_masks") else torch.zeros(1)
    assert masks.dtype in (torch.float32, torch.bool) and (
        kind != "Mask" or next(faster.roi_heads.mask_head.parameters()).dtype == torch.bfloat16
    )
    assert found.pred_boxes.tensor.dtype == found.scores.dtype == torch.float32 and found.scores.isfinite().all()
    overlaps = ops.box_iou(expected.pred_boxes.tensor, found.pred_boxes.tensor)
    assert (overlaps.max(dim=1).values > 0.7).float().mean() > 0.4  # of random weights, many stand on an edge


@pytest.mark.skipif(onednn_linear is None, reason="this torch has no oneDNN")
def test_fully_connected_layers(monkeypatch):
    """By oneDNN the same results to 1e-5, of no rows and of several dimensions too; with gradients it is torch's own layer. As measured."""
    monkeypatch.setattr(importlib.import_module("backbones.deploy.optimize"), "_faster", lambda usual, other, x: True)
    net = torch.nn.Sequential(torch.nn.Linear(70, 30), torch.nn.ReLU(), torch.nn.Linear(30, 9, bias=False))
    other = copy.deepcopy(net)
    replace_linears(other)
    assert [type(module) for module in other] == [OneDNNLinear, torch.nn.ReLU, OneDNNLinear] and type(net[0]) is torch.nn.Linear
    for shape in ((40, 70), (0, 70), (2, 3, 70)):
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(other(x), net(x), rtol=1e-5, atol=1e-5)
    other(torch.randn(4, 70)).sum().backward()
    assert other[0].weight.grad.shape == (30, 70)
    monkeypatch.setattr(importlib.import_module("backbones.deploy.optimize"), "_faster", lambda usual, other, x: False)
    replace_linears(net)
    assert type(net[0]) is torch.nn.Linear


def test_measured_memory_format():
    net = create("MobileNetV2", norm="BN").eval()
    faster = optimize(net, size=(64, 64))
    formats = {
        conv.weight.is_contiguous(memory_format=torch.channels_last)
        for conv in faster.modules()
        if isinstance(conv, torch.nn.Conv2d) and conv.weight.shape[1] > 1 and conv.kernel_size != (1, 1)
    }
    assert len(formats) == 1
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(faster(image)["res5"], net(image)["res5"], rtol=0, atol=1e-4 * net(image)["res5"].abs().max().item())


@pytest.mark.parametrize("options", [{"memory_format": "channel_last"}, {"precision": "float8"}, {"precision": "bfloat16"}, {"size": (0, 10)}])
def test_unknown_options(options):
    with pytest.raises(UserError, match="memory format|precision|no backbone|size"):
        optimize(create("MobileNetV2"), **options)


def test_copies_stay_independent():
    """An optimized copy of an optimized model is one too."""
    net = create("MobileNetV2", norm="BN").eval()
    once = optimize(net, memory_format="contiguous")
    twice = optimize(copy.deepcopy(once), memory_format="channels_last")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(twice(image)["res5"], once(image)["res5"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sets", [1, 2])
def test_what_16_bits_cost_is_said(sets, monkeypatch, caplog):
    """Also of several data sets, whose results are one level deeper."""

    def evaluate(model):
        of_one = {"bbox": {"AP": 40.0 + model, "AP-cup": 3.0}, "segm": {"AP": 30.0}}
        return of_one if sets == 1 else {"first": of_one, "my-data": of_one, "unlabelled": {}}

    monkeypatch.setattr(predictor, "optimize", lambda model, **options: model - 2)
    with caplog.at_level(logging.INFO):
        assert predictor.evaluate_optimized(0, "bfloat16", evaluate) == evaluate(-2)
    (said,) = (record.getMessage() for record in caplog.records if "costs" in record.getMessage())
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines()[3:]]
    names = ["bbox/AP", "segm/AP"] if sets == 1 else ["first/bbox/AP", "first/segm/AP", "my-data/bbox/AP", "my-data/segm/AP"]
    assert rows == [[name, *(["40.000", "38.000", "-2.000"] if "bbox" in name else ["30.000", "30.000", "0.000"])] for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("kind, parts", [("Faster", 3), ("Cascade", 6), ("Mask", 4), ("RetinaNet", 2)])
def test_compiled_parts(kind, parts, monkeypatch):
    """Backbone and heads, also those in bfloat16, each box head of a cascade; where torch.compile fails, one line says why."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compiled.append(type(module).__name__))
    _, _, model, _ = alive(kind)
    optimize(model, memory_format="contiguous", compile=True)
    assert len(compiled) == parts
    optimize(model, memory_format="contiguous", precision="bfloat16", compile=True)
    assert compiled[parts:] == compiled[:parts] and "Half" not in compiled

    def fails(function, **options):
        raise RuntimeError("no C++ compiler\nfound")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(UserError, match="torch.compile does not work on this machine: no C.. compiler found"):
        optimize(model, memory_format="contiguous", compile=True)


@pytest.mark.slow
@pytest.mark.whole
def test_compiled():
    """Compiled for real, the same boxes, within 1e-2 pixels and 1e-3 of score, in images of three sizes."""
    _, _, model, inputs = alive("Faster")
    faster = optimize(model, memory_format="channels_last", compile=True)
    for scale in (1.0, 0.8, 1.3):
        image = torch.nn.functional.interpolate(inputs[0]["image"][None].float(), scale_factor=scale)[0]
        resized = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
        with torch.no_grad():
            expected, found = boxes_of(model(resized)[0]), boxes_of(faster(resized)[0])
        assert len(expected["boxes"]) >= 5
        assert len(match(expected, found, Tolerance(1e-2, 1e-3))) >= 0.98 * max(len(expected["boxes"]), len(found["boxes"]))
