"""RegNet against recorded outputs of pycls's networks, its published sizes, and the rule that makes its widths."""

import glob
import itertools
import os

import pytest
import torch
from choices import cases, share, turns
from conftest import HERE, fill, filled_input, load_record
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import backbones
from backbones import zoo
from backbones.config import merge_overrides
from backbones.layers import EvalBatchNorm2d
from backbones.meta import ShapesAlone, on_meta
from backbones.regnet import SqueezeExcitation, round_to_groups, stage_widths

RECORDS = sorted(os.path.basename(path) for path in glob.glob(os.path.join(HERE, "data", "regnet", "*.json")))
PREFIXES = ("", "backbone.bottom_up.", "module.backbone.")
TRIED, DAILY = turns(RECORDS, PREFIXES), ("RegNetX-400MF.json", "RegNetY-800MF.json")
MODELS = load_record("regnet_complexity.json")["models"]


def released(record):
    return {key: fill(key, shape) for key, shape in record["state_dict"]}


def assert_recorded(outputs, record):
    """Shapes, means and 64 values of the stem and every stage; outputs grow, so the tolerance is 2e-4 of each stage's deviation."""
    for name, expected in zip(("stem", "res2", "res3", "res4", "res5"), [record["stem"], *record["stages"]]):
        value = outputs[name]
        assert list(value.shape) == expected["shape"]
        tolerance = 2e-4 * expected["std"]
        torch.testing.assert_close(value.flatten()[expected["indices"]], torch.tensor(expected["values"]), rtol=0, atol=tolerance)
        assert value.mean().item() == pytest.approx(expected["mean"], abs=tolerance)


@pytest.mark.parametrize(
    "filename, prefix", cases(itertools.product(RECORDS, PREFIXES), tried=TRIED, daily=[case for case in TRIED if case[0] in DAILY])
)
def test_released_weights_give_the_recorded_features(filename, prefix):
    record = load_record("regnet", filename)
    net = backbones.create(record["variant"], out_features=("stem", "res2", "res3", "res4", "res5")).eval()
    net.load_state_dict({prefix + key: value for key, value in released(record).items() if not key.startswith("head.")}, strict=True)
    with torch.no_grad():
        assert_recorded(net(filled_input((1, 3, 128, 160))), record)


@pytest.mark.parametrize("filename", cases(RECORDS, tried=RECORDS, daily=DAILY))
def test_translate(filename):
    """The whole file, its classifier left out."""
    record = load_record("regnet", filename)
    net = backbones.create(record["variant"], norm="BN")
    net.load_state_dict(backbones.translate(record["variant"], released(record)), strict=True)
    torch.testing.assert_close(
        net.res5.block1.shortcut.norm.running_var, fill("s4.b1.bn.running_var", net.res5.block1.shortcut.norm.bias.shape)
    )


def test_every_model_is_there():
    assert set(backbones.list_backbones("RegNet*")) == set(MODELS) and len(MODELS) == 24


@pytest.mark.parametrize("name", cases(MODELS, tried=MODELS, daily=share(MODELS, 0, of=6)))
def test_sizes(name):
    """Widths, depths, groups, parameters and multiply-adds: pycls's own figures, exactly."""
    expected = MODELS[name]
    with on_meta():
        net = backbones.create(name, norm="BN").eval()
        assert sum(p.numel() for p in net.parameters()) == expected["parameters"]
        assert [shape.channels for shape in net.output_shape().values()] == expected["widths"]
        assert [len(stage) for stage in (net.res2, net.res3, net.res4, net.res5)] == expected["depths"]
        assert [stage[0].conv2.conv.groups for stage in (net.res2, net.res3, net.res4, net.res5)] == expected["groups"]
        with torch.no_grad(), ShapesAlone(), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, 224, 224))
    # pycls counts the biases of squeeze-excitation too, one addition a channel
    biases = sum(m.fc1.out_channels + m.fc2.out_channels for m in net.modules() if isinstance(m, SqueezeExcitation))
    assert counter.get_total_flops() // 2 + biases == expected["flops"]


@pytest.mark.parametrize(
    "width, group, pycls, torchvision",
    [
        (392, 16, 384, 400),  # exact halves: to the even multiple, and up
        (136, 16, 128, 144),
        (776, 16, 768, 784),
        (24, 16, 32, 32),
        (152, 16, 160, 160),
        (56, 16, 64, 64),
        (664, 16, 672, 672),
        (80, 24, 72, 72),
        (96, 40, 80, 120),  # less than nine tenths
        (192, 56, 168, 224),
        (80, 120, 80, 80),  # one group
    ],
)
def test_rounding(width, group, pycls, torchvision):
    assert round_to_groups(width, group) == pycls
    assert round_to_groups(width, group, "torchvision") == torchvision


@given(width=st.integers(1, 500).map(lambda n: 8 * n), group=st.integers(1, 300))
def test_rounding_of_any_width(width, group):
    """By the definition in floating point: the nearest multiple, Python's round for halves."""
    expected = width if width < group else group * round(width / group)
    assert round_to_groups(width, group) == expected
    up = width if width < group else max(group, int(width + group / 2) // group * group)
    assert round_to_groups(width, group, "torchvision") == (up + group if up < 0.9 * width else up)


@settings(max_examples=20, deadline=None)
@given(
    depth=st.integers(4, 30),
    w0=st.integers(1, 30).map(lambda n: 8 * n),
    wa=st.floats(1, 200),
    wm=st.floats(1.5, 3),
    group=st.sampled_from([8, 16, 24, 48, 112]),
)
def test_any_numbers(depth, w0, wa, wm, group):
    """Whatever four-stage RegNet the numbers describe can be built, and says its shapes."""
    stages = stage_widths(depth, w0, wa, wm, group)
    assert sum(blocks for _, blocks, _ in stages) == depth and all(width % groups == 0 for width, _, groups in stages)
    assume(len(stages) == 4 and stages[-1][0] < 5000)
    with torch.device("meta"):
        net = backbones.create("RegNetX-200MF", depth=depth, w0=w0, wa=wa, wm=wm, group_width=group)
    assert [shape.channels for shape in net.output_shape().values()] == [width for width, _, _ in stages]


@pytest.mark.parametrize(
    "numbers, words",
    [
        ({"w0": 25}, "w0 is 25: it must be a positive multiple of 8"),
        ({"wm": 1.0}, "wm is 1.0"),
        ({"wa": -1.0}, "wa is -1.0"),
        ({"depth": 0}, "depth is 0"),
        ({"depth": 2}, "2 stages"),
        ({"wa": float("nan")}, "wa is nan"),
        ({"group_width": 0}, "group_width is 0"),
        ({"se_ratio": 2.0}, "se_ratio is 2.0"),
        ({"rounding": "up"}, "'up'.*'torchvision'"),
    ],
)
def test_impossible_numbers(numbers, words):
    with pytest.raises(backbones.UserError, match=words):
        backbones.create("RegNetX-400MF", **numbers)


def config(*overrides):
    cfg = zoo.get_config("faster_rcnn_RegNetX_3.2GF_FPN_1x.yaml")
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *overrides])
    return cfg


def test_free_numbers_in_a_config():
    numbers = ["DEPTH", "13", "W0", "24", "WA", "36.44", "WM", "2.49", "GROUP_WIDTH", "8", "SE_RATIO", "0.25"]
    overrides = [item for key, value in zip(numbers[::2], numbers[1::2]) for item in (f"MODEL.REGNET.{key}", value)]
    net = build_backbone(config("MODEL.REGNET.NAME", "", *overrides)).bottom_up
    named = backbones.create("RegNetY-200MF", norm="EvalBN", freeze_at=2)
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in named.state_dict().items()}
    with pytest.raises(backbones.UserError, match="'RegNetX-3.2GF' and DEPTH exclude each other"):
        build_backbone(config("MODEL.REGNET.DEPTH", "13"))
    with pytest.raises(backbones.UserError, match="Did you mean 'RegNetX-"):
        build_backbone(config("MODEL.REGNET.NAME", "RegNetX-3GF"))


def test_evaluation_norm():
    """Statistics stay as they are and do not depend on the batch; weight and bias are trained; frozen stages have neither."""
    net = build_backbone(config("MODEL.REGNET.NAME", "RegNetX-200MF")).bottom_up.train()
    norm = net.res4.block1.conv1.norm
    assert isinstance(norm, EvalBatchNorm2d) and isinstance(net.stem.norm, FrozenBatchNorm2d)
    assert isinstance(net.res2.block1.conv1.norm, FrozenBatchNorm2d) and isinstance(net.res3.block1.conv1.norm, EvalBatchNorm2d)
    with torch.no_grad():
        norm.running_mean.normal_()
    before = norm.running_mean.clone()
    x = torch.rand(2, 3, 64, 64)
    outputs = net(x)
    sum(value.square().mean() for value in outputs.values()).backward()
    assert torch.equal(norm.running_mean, before) and not norm.training and norm.num_batches_tracked == 0
    assert norm.weight.grad.any() and norm.bias.grad.any()
    torch.testing.assert_close(net(x[:1])["res5"], outputs["res5"][:1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.eval()(x)["res5"], outputs["res5"])


@pytest.mark.parametrize("relu", [True, False])
def test_the_choice_between_p6_and_p7(relu):
    cfg = zoo.get_config("retinanet_RegNetX_800MF_FPN_1x.yaml")
    assert not cfg.MODEL.FPN.P6_RELU
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "MODEL.FPN.P6_RELU", str(relu)])
    fpn = build_backbone(cfg).eval()
    assert fpn.top_block.p6.in_channels == 672  # of C5, not of P5
    with torch.no_grad():
        out = fpn(torch.rand(1, 3, 128, 128))
        p6 = out["p6"]
        assert (p6 < 0).any()
        torch.testing.assert_close(out["p7"], fpn.top_block.p7(p6.relu() if relu else p6))


def test_deformable_row():
    net = build_backbone(zoo.get_config("mask_rcnn_RegNetX_3.2GF_FPN_1x_dconv_c3-c5.yaml")).bottom_up
    assert type(net.res2.block1.conv2.conv) is nn.Conv2d
    for stage in (net.res3, net.res4, net.res5):
        for block in stage:
            assert block.conv2.conv.offset.out_channels == 27 and block.conv2.conv.weight.shape[1] == 48
