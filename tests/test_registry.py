"""What every backbone must do, whatever its family: these tests enumerate the registry."""

import copy
import dataclasses
import functools
import itertools
import pickle
import re

import pytest
import torch
from choices import QUICK, SMALLEST, cases, share, turns
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from fvcore.nn import FlopCountAnalysis
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn

import backbones
from backbones.layers import NORMS, DeformConv2d
from backbones.meta import ShapesAlone, on_meta
from backbones.registry import FAMILIES, family_of


@functools.lru_cache(maxsize=len(SMALLEST))
def shapes_of(name):
    """The network without memory."""
    with on_meta():
        return backbones.create(name)


NETWORKS = backbones.list_backbones()
EVERY = cases(NETWORKS, tried=NETWORKS, daily=QUICK)
FREEZE_AT = range(-1, 6)
SOME = cases(SMALLEST, tried=SMALLEST, daily=QUICK)


# the smallest of every kind of block
KINDS = [*SMALLEST, "RegNetY-200MF", "V-19-slim-eSE"]


def networks(number):
    """Each kind's smallest, and a few larger ones, which are others for each number; the largest take long for their size alone."""
    larger = [name for name in NETWORKS if name not in KINDS and not re.search(r"-(8\.0|12|16|32)GF$|MAE-DET-L", name)]
    return cases(NETWORKS, tried={*KINDS, *share(larger, number, of=20)}, daily=QUICK)


def close(actual, expected, tolerance=1e-5):
    assert actual.keys() == expected.keys()
    for name in expected:
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=tolerance * max(scale, 1e-6))


@torch.no_grad()
@pytest.mark.parametrize("name", networks(0))
def test_forward_fits_output_shape(name):
    net = backbones.create(name, norm="BN").eval()
    x = torch.rand(2, 3, 64, 96)
    outputs, shapes = net(x), net.output_shape()
    assert list(outputs) == list(shapes)
    for key, shape in shapes.items():
        assert tuple(outputs[key].shape) == (2, shape.channels, 64 // shape.stride, 96 // shape.stride)
        assert outputs[key].isfinite().all()
    close(net(x), outputs, 0)
    for size in ((1, 1), (33, 97)):
        assert all(value.isfinite().all() for value in net(torch.rand(1, 3, *size)).values())


@pytest.mark.parametrize("name", EVERY)
def test_any_image_size(name):
    """A feature's sides are rounded up, or where the network states a divisibility, in either direction; without a cause it states none."""
    net, all_up = shapes_of(name), True
    for size in ((1, 1), (1, 200), (200, 1), (31, 65), (33, 97), (130, 157)):
        with torch.no_grad(), ShapesAlone():
            outputs = net(torch.empty(1, 3, *size, device="meta"))
        for key, shape in net.output_shape().items():
            for got, side in zip(outputs[key].shape[2:], size):
                up = -(-side // shape.stride)
                all_up = all_up and got == up
                assert got == up or (net.size_divisibility and max(side // shape.stride, 1) <= got <= up)
    assert all_up == (net.size_divisibility == 0)


@settings(max_examples=25, deadline=None)
@given(height=st.integers(1, 400), width=st.integers(1, 400), name=st.sampled_from(SMALLEST))
def test_feature_sizes_of_any_image(height, width, name):
    """Sizes along the chain: the next feature is half of the last, rounded up, or rounded down where a divisibility is stated."""
    net = shapes_of(name)
    strides = {key: shape.stride for key, shape in net.output_shape().items()}
    with torch.no_grad(), ShapesAlone():
        features = net(torch.empty(1, 3, height, width, device="meta"))
    first = next(iter(strides))
    for axis, side in ((2, height), (3, width)):
        size = -(-side // strides[first])
        assert features[first].shape[axis] == size
        for key in list(strides)[1:]:
            size = max(size // 2, 1) if net.size_divisibility else -(-size // 2)
            assert features[key].shape[axis] == size


@pytest.mark.parametrize("name", networks(1))
def test_every_parameter_gets_a_gradient(name):
    net = backbones.create(name, norm="BN")
    outputs = net(torch.rand(2, 3, 64, 64))
    sum(output.square().mean() for output in outputs.values()).backward()
    without = [key for key, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not without


@pytest.mark.parametrize("name", SOME)
def test_without_memory(name):
    """Nothing but the values is missing; outside, they are drawn."""
    net, other = backbones.create(name), shapes_of(name)
    described = [{key: (value.shape, value.dtype) for key, value in each.state_dict().items()} for each in (net, other)]
    assert described[0] == described[1] and all(value.is_meta for value in other.state_dict().values())
    assert all(p.std() > 0 for p in net.parameters() if p.dim() == 4)


@pytest.mark.parametrize("name", EVERY)
def test_spec_gives_the_structure(name):
    """The class called with the row's fields, the function `create` and the builder of a config make the same network."""
    family = family_of(name)
    spec = backbones.get_spec(name)
    cfg = get_cfg()
    backbones.add_backbones_config(cfg)
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.RESNETS.OUT_FEATURES = list(family.stages)
    if family.variant_key:
        cfg.merge_from_list([family.variant_key, name])
    with on_meta():
        direct = family.network(**{f.name: getattr(spec, f.name) for f in dataclasses.fields(spec)})
        built = BACKBONE_REGISTRY.get(f"build_{family.name}_backbone")(cfg, ShapeSpec(channels=3))
    shapes = [{key: value.shape for key, value in net.state_dict().items()} for net in (direct, built, shapes_of(name))]
    assert shapes[0] == shapes[1] == shapes[2]
    assert not [key for key, _ in direct.named_modules() if "/" in key]  # a slash breaks fvcore's count and TorchScript


@pytest.mark.parametrize(
    "norm, name", cases(itertools.product(NORMS, SMALLEST), tried=turns(NORMS, SMALLEST, times=2), daily=turns(NORMS, QUICK))
)
def test_norms(norm, name):
    """Every norm builds and runs in both modes, and two networks of different norms live side by side."""
    other = backbones.create(name, norm="BN")
    net = backbones.create(name, norm=norm)
    count = lambda net, *kinds: sum(type(m) in kinds for m in net.modules())
    kinds = {
        "": (nn.Conv2d,),
        "FrozenBN": (FrozenBatchNorm2d,),
        "GN": (nn.GroupNorm,),
        "SyncBN": (nn.SyncBatchNorm,),
        "nnSyncBN": (nn.SyncBatchNorm,),
    }
    norms = (nn.BatchNorm2d, FrozenBatchNorm2d, nn.GroupNorm, nn.SyncBatchNorm)
    if norm in kinds:
        unwanted = [k for k in norms if k not in kinds[norm]]
        assert count(net, *kinds[norm]) > 0 and count(net, *unwanted) == 0
    expected = count(other, type(next(m for m in other.modules() if isinstance(m, nn.BatchNorm2d))))
    if norm and norm in kinds:
        assert count(net, *kinds[norm]) == expected
    biased = [next(m for m in n.modules() if isinstance(m, nn.Conv2d)).bias is not None for n in (net, other)]
    assert biased[0] == (norm == "" or biased[1])
    x = torch.rand(2, 3, 64, 64)
    for mode in (True, False):
        for n in (net, other):
            assert all(v.isfinite().all() for v in n.train(mode)(x).values())


@pytest.mark.parametrize(
    "freeze_at, name", cases(itertools.product(FREEZE_AT, SMALLEST), tried=turns(FREEZE_AT, SMALLEST, times=2), daily=turns(FREEZE_AT, QUICK))
)
def test_freezes_exactly_the_named_stages(freeze_at, name):
    stages = family_of(name).stages
    net = backbones.create(name, norm="BN", out_features=[stages[-1]], freeze_at=freeze_at).train()
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss = sum(v.square().sum() for v in net(torch.rand(2, 3, 64, 64)).values())
    if freeze_at < len(stages):
        loss.backward()
        optimizer.step()
    frozen = stages[: max(freeze_at, 0)]
    for stage in stages:
        module = getattr(net, stage)
        is_frozen = stage in frozen
        assert all(p.requires_grad != is_frozen for p in module.parameters())
        assert any(isinstance(m, FrozenBatchNorm2d) for m in module.modules()) == is_frozen
        assert any(isinstance(m, nn.BatchNorm2d) for m in module.modules()) != is_frozen
    changed = {key.split(".")[0] for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(stages) - set(frozen)


@pytest.mark.parametrize("name", SOME)
def test_frozen_stages_of_other_norms(name):
    net = backbones.create(name, norm="GN", freeze_at=2)
    stages = family_of(name).stages
    assert all(not p.requires_grad for stage in stages[:2] for p in getattr(net, stage).parameters())
    assert all(p.requires_grad for stage in stages[2:] for p in getattr(net, stage).parameters())


@pytest.mark.parametrize("name", SOME)
def test_out_features(name):
    """Any subset comes back in order of depth; stages behind the deepest are not built; the stem may be asked for."""
    stages = family_of(name).stages
    net = backbones.create(name, out_features=[stages[2], stages[0]])
    assert list(net(torch.rand(1, 3, 64, 64))) == [stages[0], stages[2]] == list(net.output_shape())
    assert [child for child, _ in net.named_children()] == list(stages[:3])


@pytest.mark.parametrize("name", SOME)
def test_in_channels(name):
    assert all(v.isfinite().all() for v in backbones.create(name, in_channels=5)(torch.rand(1, 5, 64, 64)).values())


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_stages(name, modulated):
    """Only the stages asked for; v1 starts as the plain network of the same weights; gradients reach the offsets."""
    plain = backbones.create(name, norm="BN").eval()
    net = backbones.create(name, norm="BN", deform_on_per_stage=[False, False, True, True], deform_modulated=modulated).eval()
    stages = family_of(name).stages
    assert {key.split(".")[0] for key, m in net.named_modules() if isinstance(m, DeformConv2d)} == set(stages[3:])
    missing = net.load_state_dict(plain.state_dict(), strict=False)
    assert not missing.unexpected_keys and missing.missing_keys and all(".offset." in key for key in missing.missing_keys)
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        outputs = net(x)
        if modulated:  # masks start at one half
            assert all(v.isfinite().all() for v in outputs.values())
        else:
            close(outputs, plain(x), 1e-4)
    sum(v.square().sum() for v in net(x).values()).backward()
    assert all(m.offset.weight.grad.any() for m in net.modules() if isinstance(m, DeformConv2d))


@pytest.mark.parametrize("name", networks(2))
def test_torchscript(name, tmp_path):
    net = backbones.create(name).eval()
    scripted = torch.jit.script(net)
    with torch.no_grad():
        for size in ((64, 96), (1, 1)):
            x = torch.rand(1, 3, *size)
            close(scripted(x), net(x))


@torch.no_grad()
@pytest.mark.parametrize("name", SOME)
def test_symbolic_tracing(name):
    """torch.fx, as for `torchvision.models.feature_extraction`."""
    net = backbones.create(name, norm="BN").eval()
    traced, x = fx.symbolic_trace(net), torch.rand(1, 3, 64, 64)
    close(traced(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", networks(3))
def test_tracing(name):
    net = backbones.create(name).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        # strict=False only for the dictionary at the end; torch checks the graph itself
        traced = torch.jit.trace(net, x, strict=False)
        other = torch.rand(2, 3, 96, 64)
        close(traced(other), net(other))


@pytest.mark.slow
@pytest.mark.parametrize("name", [param for param in networks(4) if param.values[0] not in SMALLEST] + cases(SMALLEST, tried=[]))
def test_torch_export(name):
    """The smallest are exported by `test_torch_export_of_any_size`."""
    net = backbones.create(name).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        exported = torch.export.export(net, (x,))
        close(exported.module()(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("name", SOME)
def test_torch_export_of_any_size(name):
    net = backbones.create(name).eval()
    side = torch.export.Dim("height_32", min=2, max=64), torch.export.Dim("width_32", min=2, max=64)
    with torch.no_grad():
        exported = torch.export.export(net, (torch.rand(1, 3, 64, 96),), dynamic_shapes={"x": {2: 32 * side[0], 3: 32 * side[1]}})
        x = torch.rand(1, 3, 128, 160)
        close(exported.module()(x), net(x))


@pytest.mark.parametrize("name", networks(0))
def test_flop_count(name):
    """fvcore counts every convolution; two counts agree."""
    net, x = backbones.create(name).eval(), torch.rand(1, 3, 64, 64)
    count = FlopCountAnalysis(net, x).unsupported_ops_warnings(False)
    assert count.by_operator()["conv"] == sum(count.by_module_and_operator()[stage]["conv"] for stage, _ in net.named_children())
    by_hand = 0

    def add(module, _, output):
        nonlocal by_hand
        by_hand += output.numel() * module.weight[0].numel()

    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            m.register_forward_hook(add)
    net(x)
    assert count.by_operator()["conv"] == by_hand


@pytest.mark.parametrize("name", SOME)
def test_copies_and_files(name, tmp_path):
    net = backbones.create(name, norm="BN").eval()
    x = torch.rand(1, 3, 64, 64)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = backbones.create(name, norm="BN").eval()
    loaded.load_state_dict(torch.load(tmp_path / "net.pth", weights_only=True))
    with torch.no_grad():
        expected = net(x)
        for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), loaded, net.to(memory_format=torch.channels_last)):
            close(other(x), expected)


@pytest.mark.parametrize("name", SOME)
def test_autocast_gives_half_precision(name):
    net = backbones.create(name, norm="BN")
    with torch.autocast("cpu", torch.bfloat16):
        outputs = net(torch.rand(2, 3, 64, 64))
    assert all(v.dtype == torch.bfloat16 and v.isfinite().all() for v in outputs.values())


def test_list_backbones():
    assert backbones.list_backbones("*39*") == ["V-39-eSE"]
    assert set(backbones.list_backbones()) == {name for family in FAMILIES.values() if not family.prefix for name in family.specs}


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda: backbones.create("V-39"),
            ["'V-39'", "did you mean 'v-39-ese'? allowed: 40 names, such as", "to see all: backbones zoo list."],
        ),
        (lambda: backbones.create("V-39-eSE", nrom="BN"), ["'nrom'", "did you mean 'norm'"]),
        (lambda: backbones.create("V-39-eSE", norm="BNN"), ["'bnn'", "did you mean 'bn'", "'frozenbn'"]),
        (lambda: backbones.create("V-39-eSE", out_features=["stage6"]), ["'stage6'", "'stem'", "'stage5'"]),
        (lambda: backbones.create("V-39-eSE", out_features=[]), ["empty", "stage2"]),
        (lambda: backbones.create("V-39-eSE", freeze_at=6), ["6", "number of stages, 5"]),
        (lambda: backbones.create("V-39-eSE", ese="some"), ["'some'", "'last'"]),
        (lambda: backbones.create("V-39-eSE", deform_on_per_stage=[True]), ["4 values"]),
        (lambda: backbones.create("MobileNetV2", deform_on_per_stage=[True]), ["4 values"]),
        (lambda: backbones.create("V-39-eSE", deform_on_per_stage=[True] * 4, deform_num_groups=3), ["3 does not divide"]),
        (lambda: backbones.get_spec("R-50"), ["'R-50'"]),
    ],
)
def test_mistakes_are_explained_in_one_line(call, words):
    with pytest.raises(backbones.UserError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word.lower() in message.lower()


@pytest.mark.parametrize("name", SOME)
def test_a_dilated_last_stage_computes_the_same(name):
    """At every second pixel of DC5 stands what the network without dilation gives, gates apart, which see other means."""
    with_gates = backbones.create(name, norm="BN"), backbones.create(name, norm="BN", res5_dilation=2)
    plain, dilated = (open_gates(net).eval() for net in with_gates)
    dilated.load_state_dict(plain.state_dict())
    last = plain.output_shape()[list(plain.output_shape())[-1]]
    wide = dilated.output_shape()[list(dilated.output_shape())[-1]]
    assert (last.stride, wide.stride) == (32, 16) and last.channels == wide.channels
    image = torch.randn(1, 3, 160, 128)
    with torch.no_grad():
        a, b = list(plain(image).values())[-1], list(dilated(image).values())[-1]
    assert b.shape[2:] == (10, 8)
    torch.testing.assert_close(b[..., ::2, ::2], a, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def open_gates(net):
    for module in net.modules():
        for name, child in module.named_children():
            if type(child).__name__ in ("EffectiveSqueezeExcite", "SqueezeExcitation"):
                setattr(module, name, torch.nn.Identity())
    return net


def test_lists_of_python_configs():
    """detectron2 gives them to a class as its own kind of list."""
    for options in ({"choices": [3] * 20}, {"branch_widths": [0.5, 1.0], "choices": [7] * 20}, {"out_features": ["res3", "res4"]}):
        net = instantiate(LazyCall(backbones.create)(name="DetNAS-300M", **options))
        assert net.state_dict().keys() == backbones.create("DetNAS-300M", **options).state_dict().keys()


def test_dilation_is_1_or_2():
    with pytest.raises(backbones.UserError, match="RES5_DILATION.*3.*Allowed: '1', '2'"):
        backbones.create(SMALLEST[0], res5_dilation=3)
