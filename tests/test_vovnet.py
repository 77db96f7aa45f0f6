"""VoVNetV2 and MobileNetV2 against recorded outputs of the original networks, and against its known faults."""

import glob
import itertools
import os

import pytest
import torch
from choices import cases, turns
from conftest import HERE, assert_features, fill, filled_input, load_record
from detectron2.layers import FrozenBatchNorm2d
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import backbones
from backbones.vovnet import EffectiveSqueezeExcite

RECORDS = sorted(os.path.basename(path) for path in glob.glob(os.path.join(HERE, "data", "vovnet", "*.json")))
WHOLE = [name for name in RECORDS if "odd" not in name]
PREFIXES = ("", "backbone.bottom_up.", "module.backbone.")
COMPLEXITY = load_record("complexity.json")
NETWORKS, SIZES = list(COMPLEXITY["gflops"]), ("800x1333", "800x1344")
SMALL = [name for name in NETWORKS if "V-19-" in name]
# entries of the state dict of each network with frozen norms
ENTRIES = {
    "V-19-slim-dw-eSE": 132,
    "V-19-slim-eSE": 103,
    "V-19-dw-eSE": 137,
    "V-19-eSE": 103,
    "V-39-eSE": 207,
    "V-57-eSE": 303,
    "V-99-eSE": 527,
    "MobileNetV2": 255,
}


def spec_name(variant: str) -> str:
    return variant if variant == "MobileNetV2" else variant + "-eSE"


def released(record: dict) -> dict:
    return {key: fill(key, shape) for key, shape in record["state_dict"]}


def with_stem(name: str, **kwargs):
    features = ("stem", "stage2", "stage3", "stage4", "stage5") if name.startswith("V-") else ("res2", "res3", "res4", "res5")
    return backbones.create(name, out_features=features, **kwargs)


@pytest.mark.parametrize("filename, prefix", cases(itertools.product(RECORDS, PREFIXES), tried=turns(RECORDS, PREFIXES)))
def test_released_weights_give_the_recorded_features(filename, prefix):
    record = load_record("vovnet", filename)
    net = with_stem(spec_name(record["variant"])).eval()
    net.load_state_dict({prefix + key: value for key, value in released(record).items()}, strict=True)
    with torch.no_grad():
        assert_features(net(filled_input(record["input_shape"])), record)
    assert {name: {"channels": s.channels, "stride": s.stride} for name, s in net.output_shape().items()} == record["declared_output_shape"]
    assert sum(p.numel() for p in net.parameters()) == record["param_count_nn_parameters"]
    assert sum(v.numel() for v in net.state_dict().values()) == record["state_dict_numel"]


@pytest.mark.parametrize("filename", cases(WHOLE, tried=WHOLE, daily=[name for name in WHOLE if "slim" in name or "dw" in name]))
def test_translate(filename):
    record = load_record("vovnet", filename)
    name, weights = spec_name(record["variant"]), released(record)
    detector = {"model": {**{"backbone.bottom_up." + k: v for k, v in weights.items()}, "roi_heads.x.weight": torch.zeros(1)}}
    ours = backbones.translate(name, weights)
    assert ours.keys() == backbones.translate(name, detector).keys() == backbones.create(name).state_dict().keys()
    # a second translation changes nothing
    assert backbones.translate(name, ours).keys() == ours.keys()
    # batch counters, which some released files have, do no harm, and neither do they to a network that keeps some
    counted = dict(weights, **{k.replace("running_var", "num_batches_tracked"): torch.tensor(3) for k in weights if k.endswith("running_var")})
    for norm in ("FrozenBN", "BN"):
        backbones.create(name, norm=norm).load_state_dict(counted, strict=True)
        backbones.create(name, norm=norm).load_state_dict(backbones.translate(name, weights), strict=norm == "FrozenBN")
    backbones.translate(name, counted)


def test_translate_refuses_other_networks():
    weights = released(load_record("vovnet", "V-39.json"))
    with pytest.raises(backbones.UserError, match="not a state dict of V-19-eSE"):
        backbones.translate("V-19-eSE", weights)
    missing = {k: v for k, v in weights.items() if "stage4.OSA4_2.ese.fc.bias" not in k}
    with pytest.raises(backbones.UserError, match="missing stage4.block2.ese.fc.bias"):
        backbones.translate("V-39-eSE", missing)
    shaped = dict(weights, **{"stem.stem_1/conv.weight": torch.zeros(64, 1, 3, 3)})
    with pytest.raises(backbones.UserError, match=r"stem.0.conv.weight is \(64, 1, 3, 3\)"):
        backbones.translate("V-39-eSE", shaped)
    twice = dict(weights, **{"stem.0.conv.weight": torch.zeros(64, 3, 3, 3)})
    with pytest.raises(backbones.UserError, match="twice"):
        backbones.translate("V-39-eSE", twice)


@pytest.mark.parametrize("name", ENTRIES)
def test_number_of_entries(name):
    with torch.device("meta"):
        assert len(backbones.create(name).state_dict()) == ENTRIES[name]


@pytest.mark.parametrize("name", cases(NETWORKS, tried=NETWORKS, daily=SMALL))
def test_gflops(name):
    """fvcore's count of all operators and of convolutions alone, against counts of the original network rounded to a hundredth."""
    net = backbones.create(name).eval()
    everything, convolutions = COMPLEXITY["gflops"][name]["224x224"]
    with torch.no_grad():  # frozen norms are one operator then
        count = FlopCountAnalysis(net, torch.rand(1, 3, 224, 224)).unsupported_ops_warnings(False)
        assert count.by_operator()["conv"] / 1e9 == pytest.approx(convolutions, abs=0.0051)
        assert count.total() / 1e9 == pytest.approx(everything, abs=0.0051)


@pytest.mark.parametrize("name, size", cases(itertools.product(NETWORKS, SIZES), tried=turns(NETWORKS, SIZES), daily=turns(SMALL, SIZES)))
def test_gflops_of_large_images(name, size):
    """torch's own count, which needs no computing, of convolutions; two of its operations are one multiply-add."""
    with torch.device("meta"):
        net, x = backbones.create(name).eval(), torch.empty(1, 3, *map(int, size.split("x")))
    with FlopCounterMode(display=False) as counter:
        net(x)
    assert counter.get_total_flops() / 2e9 == pytest.approx(COMPLEXITY["gflops"][name][size][1], abs=0.0051)


def test_gate_placement():
    """`ese`: a gate in every block, as the released weights have it, or in the last of each stage."""
    count = lambda **kw: sum(isinstance(m, EffectiveSqueezeExcite) for m in backbones.create("V-39-eSE", **kw).modules())
    assert (count(), count(ese="all"), count(ese="last")) == (6, 6, 4)


def test_every_block_behind_the_first_keeps_its_identity():
    net = backbones.create("V-57-eSE")
    assert [[block.identity for key, block in stage.named_children() if key != "pool"] for stage in (net.stage2, net.stage4)] == [
        [False],
        [False, True, True, True],
    ]


def test_freezing_the_stem_leaves_the_other_norms_alive():
    """The original froze all 19 norms of V-19 where the stem alone was meant."""
    net = backbones.create("V-19-eSE", norm="BN", freeze_at=1)
    assert sum(isinstance(m, FrozenBatchNorm2d) for m in net.modules()) == 3
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.modules()) == 16


@pytest.mark.parametrize("name", ["V-19-slim-eSE", "V-19-slim-dw-eSE"])
def test_group_norm_of_slim_widths(name):
    """80 and 112 channels, which 32 groups do not divide, take 16."""
    groups = {(m.num_channels, m.num_groups) for m in backbones.create(name, norm="GN").modules() if isinstance(m, nn.GroupNorm)}
    assert {(80, 16), (112, 16), (64, 32), (256, 32)} <= groups


def test_no_norm_runs():
    """The original put a None into a Sequential."""
    assert backbones.create("V-19-eSE", norm="")(torch.rand(1, 3, 64, 64))["stage5"].isfinite().all()


def test_initial_weights():
    """Kaiming, fan in, gain sqrt(2), for every convolution of VoVNet; norms start at 1 and 0."""
    net = backbones.create("V-39-eSE", norm="BN")
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            assert m.weight.std().item() == pytest.approx((2 / m.weight[0].numel()) ** 0.5, rel=0.05)
        if isinstance(m, nn.BatchNorm2d):
            assert m.weight.eq(1).all() and m.bias.eq(0).all()


def test_mobilenet_emits_what_it_declares():
    """The original returned four maps whatever was asked for, read three channels always, and knew frozen norms only."""
    net = backbones.create("MobileNetV2", out_features=["res3"], in_channels=1, norm="BN").train()
    outputs = net(torch.rand(2, 1, 64, 64))
    assert list(outputs) == ["res3"] == list(net.output_shape())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in net.modules())
