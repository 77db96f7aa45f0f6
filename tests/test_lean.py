"""What training keeps changes no output, no gradient and no statistics."""

import copy
import itertools

import pytest
import torch
from choices import SMALLEST, cases, turns
from torch import nn

from backbones import UserError, create, zoo
from backbones.benchmark import training
from backbones.doctor.examination import Examination
from backbones.engine import Trainer, open_config
from backbones.engine.step import Steps
from backbones.lean import ACTIVATIONS, keep_activations

PRODUCT = list(itertools.product(["V-19-slim-eSE", *SMALLEST], ["FrozenBN", "BN"]))


def trained(net: nn.Module, images: torch.Tensor):
    """(features, gradients, buffers) after a step."""
    features = net(images)
    sum(f.square().mean() for f in features.values()).backward()
    return features, {key: p.grad for key, p in net.named_parameters()}, dict(net.named_buffers())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, norm",
    cases(
        PRODUCT,
        tried=[("V-19-slim-eSE", "BN"), *turns(SMALLEST, ["FrozenBN", "BN"], start=1)],
        daily=[("V-19-slim-eSE", "BN"), ("MobileNetV2", "FrozenBN")],
    ),
)
def test_the_same_training(name, norm):
    """In double precision to 1e-11 of the largest value, which a graph of other order may differ by; freezing included."""
    torch.manual_seed(0)
    base = create(name, norm=norm, freeze_at=1).double().train()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results, kept_bytes = {}, {}
    for kept in ACTIVATIONS:
        net = copy.deepcopy(base)
        keep_activations(net, kept)
        kept_bytes[kept] = training.kept_bytes(copy.deepcopy(net), images)
        results[kept] = trained(net, images)
    features, gradients, buffers = results["all"]
    most = kept_bytes["all"]
    for kept in ("lean", "inputs"):
        others, theirs, stats = results[kept]
        for key, value in features.items():
            torch.testing.assert_close(others[key], value, rtol=0, atol=1e-11 * value.abs().max().item())
        largest = max(value.abs().max().item() for value in gradients.values() if value is not None)
        for key, value in gradients.items():
            assert (value is None) == (theirs[key] is None), key
            if value is not None:
                torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-11 * largest)
        for key, value in buffers.items():
            torch.testing.assert_close(stats[key], value, rtol=1e-11, atol=1e-11)
        assert kept_bytes[kept] <= most
    assert kept_bytes["inputs"] < 0.7 * most
    if name.startswith("V-"):  # with separable layers less is joined
        assert kept_bytes["lean"] < (0.85 if "dw" in name else 0.8) * most


@pytest.mark.parametrize("precision", [torch.bfloat16])
def test_under_autocast(precision):
    """Gradients within bfloat16's rounding of the plain network's, and in the weights' own precision."""
    torch.manual_seed(0)
    base = create("V-19-slim-eSE", norm="FrozenBN").train()
    images = torch.randn(1, 3, 64, 64)
    found = {}
    for kept in ("all", "lean"):
        net = copy.deepcopy(base)
        keep_activations(net, kept)
        with torch.autocast("cpu", precision):
            features = net(images)
        assert features["stage5"].dtype in (precision, torch.float32)
        sum(f.float().square().mean() for f in features.values()).backward()
        found[kept] = [p.grad for p in net.parameters()]
    for a, b in zip(found["lean"], found["all"]):
        assert a.dtype == torch.float32 and a.isfinite().all()
        assert (a - b).norm() <= 0.1 * b.norm() + 1e-12


def test_evaluation_scripts_and_copies_do_not_notice():
    net = create("V-19-slim-eSE", norm="FrozenBN").eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = net(images)["stage5"]
        keep_activations(net, "lean")
        assert torch.equal(net(images)["stage5"], expected)
        assert torch.equal(copy.deepcopy(net)(images)["stage5"], expected)
        torch.testing.assert_close(torch.jit.script(net)(images)["stage5"], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, features",
    [("V-19-slim-eSE", ("stage2", "stage3")), ("RegNetX-200MF", ("res2", "res3", "res4")), ("MobileNetV2", ("res2", "res3"))],
)
def test_compiled(name, features):
    """To 1e-4 of the largest value, in a network whose names stay; torch's compiler without its code generator, which takes a minute each."""
    torch.manual_seed(0)
    net, images = create(name, out_features=features).double().train(), torch.randn(2, 3, 64, 64, dtype=torch.float64)
    compiled = copy.deepcopy(net)
    compiled.compile(backend="aot_eager")
    expected, found = trained(net, images), trained(compiled, images)
    for a, b in zip(expected, found):
        for key, value in a.items():
            if value is not None:
                torch.testing.assert_close(b[key], value, rtol=1e-4, atol=1e-9)
    assert compiled.state_dict().keys() == net.state_dict().keys()


def test_the_backbone_is_what_compile_is_for(monkeypatch):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    monkeypatch.setattr(Trainer, "build_train_loader", classmethod(lambda cls, cfg: []))
    cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.COMPILE, cfg.MODEL.WEIGHTS = "cpu", True, ""
    assert compiled == [Trainer(cfg).model.backbone.bottom_up]


@pytest.mark.parametrize("net, acts", [(create("V-19-slim-eSE"), True), (nn.Conv2d(3, 4, 1), False)], ids=["ours", "another"])
@pytest.mark.parametrize("kept, half", [("all", False), ("lean", True)])
def test_advice_on_memory_is_what_has_an_effect(net, acts, kept, half):
    """Neither half precision nor lean activations where they are set, and no lean ones for networks that ignore them."""
    keep_activations(net, kept)
    examination = Examination(open_config("digits/faster_rcnn_digits.yaml", ["MODEL.ACTIVATIONS", kept, "SOLVER.AMP.ENABLED", str(half)]))
    examination.model = net
    steps = Steps(net, [], torch.optim.SGD(net.parameters(), 0.1), precision=torch.bfloat16 if half else None)
    steps.iter = 3
    for said in (examination.lower_memory("use smaller images"), str(steps._out_of_memory(8))):
        assert ("MODEL.ACTIVATIONS lean" in said, "SOLVER.AMP.ENABLED True" in said) == (acts and not half, not half), said
        assert "SOLVER.ACCUMULATE 2" in said
    assert examination.lower_memory("use smaller images").endswith(" or use smaller images")


def test_unknown():
    with pytest.raises(UserError, match="Did you mean 'lean'"):
        keep_activations(create("MobileNetV2"), "leen")
