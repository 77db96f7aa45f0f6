"""DetNAS's networks and supernets against recorded outputs of both projects' own, their published sizes, and subnet files of every dialect."""

import glob
import os
import re

import numpy as np
import pytest
import torch
from conftest import HERE, fill, filled_input, load_record
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from torch.utils.flop_counter import FlopCounterMode

import backbones
from backbones import UserError, shufflenetv2
from backbones.choices import CHOICES, SAMPLINGS, path_at, read_choices
from backbones.config import check_config
from backbones.layers import DeformConv2d
from backbones.shufflenetv2 import SPECS, ShuffleNetV2, ShuffleNetV2Supernet

FILES = sorted(os.path.basename(path) for path in glob.glob(os.path.join(HERE, "data", "detnas", "*_*.json")))
RECORDS = [name for name in FILES if name.startswith(("authors", "mmrazor")) and "lastlayer" not in name]
BLOCKS = (4, 4, 8, 4)


def arguments(record):
    spec = dict(vars(SPECS["DetNAS-MMRazor" if record["name"].startswith("mmrazor") else "DetNAS-300M"]), choices=record["choices"])
    if record["name"].endswith("shuffle1"):
        spec["shuffle"] = "before"
    return spec


def network(record, **options):
    kind = ShuffleNetV2Supernet if "supernet" in record["name"] else ShuffleNetV2
    return kind(**arguments(record), **options)


def released(record):
    return {key: fill(key, shape) for key, shape in record["keys"]}


def assert_recorded(outputs, record):
    """1e-5 of each stage's largest value."""
    for value, expected in zip(outputs.values(), record["stages"]):
        assert list(value.shape) == expected["shape"]
        tolerance = 1e-5 * expected["absmax"]
        torch.testing.assert_close(value.flatten()[expected["indices"]], torch.tensor(expected["values"]), rtol=0, atol=tolerance)
        assert value.mean().item() == pytest.approx(expected["mean"], abs=tolerance)


@pytest.mark.parametrize("filename", RECORDS)
def test_released_weights_give_the_recorded_features(filename):
    record = load_record("detnas", filename)
    net = network(record, norm="BN").eval()
    assert sum(p.numel() for p in net.parameters()) == record["param_count"]
    net.load_state_dict(released(record), strict=True)
    with torch.no_grad():
        assert_recorded(net(filled_input(record["input"]["shape"])), record)


@pytest.mark.slow
@pytest.mark.parametrize("filename", ["mmrazor_subnet_mmrazor_searched.json", "mmrazor_supernet_path_mmrazor_searched.json"])
@pytest.mark.parametrize("prefix", ["architecture.backbone.", "architecture.model.backbone.", "module.backbone.", "backbone.body."])
@pytest.mark.parametrize("name", ["_candidates", "_candidate_ops", "choices"])
def test_every_prefix_and_name_of_old(filename, prefix, name):
    record = load_record("detnas", filename)
    weights = {prefix + key.replace("_candidates", name): value for key, value in released(record).items()}
    network(record, norm="BN").load_state_dict(weights, strict=True)


def test_translate():
    """The files of found networks, with the classifier's layers left out; another network's are refused."""
    record = load_record("detnas", "mmrazor_subnet_mmrazor_searched_lastlayer.json")
    detector = {"architecture.backbone." + key: value for key, value in released(record).items()}
    detector["architecture.neck.lateral_convs.0.conv.weight"] = torch.zeros(1)
    ours = backbones.translate("DetNAS-MMRazor", {key: value for key, value in detector.items() if ".neck." not in key})
    backbones.create("DetNAS-MMRazor", norm="BN").load_state_dict(ours, strict=True)
    backbones.translate("DetNAS-MMRazor", detector)
    record = load_record("detnas", "authors_COCO-FPN-300M_shuffle2.json")
    backbones.create("DetNAS-300M", norm="BN").load_state_dict(backbones.translate("DetNAS-300M", released(record)), strict=True)
    with pytest.raises(UserError, match="not a state dict of DetNAS-RetinaNet-300M"):
        backbones.translate("DetNAS-RetinaNet-300M", released(record))


@pytest.mark.parametrize("kind", ["authors_COCO-FPN-300M_shuffle1", "authors_COCO-FPN-300M_shuffle2", "mmrazor_subnet_alt0123"])
def test_a_subnet_is_the_supernet_on_its_path(kind):
    """Bit for bit, whichever path ran before, and whatever the norms' statistics."""
    spec = arguments(load_record("detnas", f"{kind}.json"))
    supernet = ShuffleNetV2Supernet(**spec, norm="BN")
    for norm in (m for m in supernet.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        torch.nn.init.uniform_(norm.running_mean)
        torch.nn.init.uniform_(norm.running_var, 0.5, 1.5)
    supernet.eval()
    path = [(3 * i + 1) % 4 for i in range(20)]
    supernet.set_path(path)
    subnet = ShuffleNetV2(**{**spec, "choices": path}, norm="BN").eval()
    subnet.load_state_dict(supernet.subnet_state_dict(path), strict=True)
    inherits = ShuffleNetV2(**{**spec, "choices": path}, norm="BN").eval()
    assert not inherits.load_state_dict(supernet.state_dict(), strict=False).missing_keys  # of a supernet's own checkpoint
    x = torch.rand(1, 3, 96, 64)
    with torch.no_grad():
        for a, b, c in zip(supernet(x).values(), subnet(x).values(), inherits(x).values()):
            assert torch.equal(a, b) and torch.equal(a, c)
        supernet.set_path([0] * 20)
        assert not torch.equal(supernet(x)["res5"], b)


def macs(net) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net.eval()(torch.empty(1, 3, 224, 224))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(
    "name, parameters, millions",
    [
        ("DetNAS-300M", 1849680, 288.08),
        ("DetNAS-RetinaNet-300M", None, 291.21),
        ("DetNAS-1.3G", 8415216, 1269.2),
        ("DetNAS-3.8G", 26724428, 3937.8),
        ("DetNAS-MMRazor", 1666192, 291.78),
    ],
)
def test_sizes(name, parameters, millions):
    """Parameters, and multiply-adds of the convolutions at 224x224, of the body alone; the authors' count leaves out nothing else."""
    with torch.device("meta"):
        net = backbones.create(name, norm="BN")
    count = sum(p.numel() for p in net.parameters())
    assert count == parameters if parameters else round(count / 1e6, 3) == 2.042
    assert macs(net) / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.slow
def test_size_of_the_large_supernet():
    with torch.device("meta"):
        net = ShuffleNetV2Supernet(**vars(SPECS["DetNAS-1.3G"]), norm="BN")
    assert sum(p.numel() for p in net.parameters()) == 28642008


@pytest.mark.slow
@pytest.mark.parametrize("filename", ["block_table_mmrazor.json", "block_table_authors300M.json"])
def test_cost_of_every_choice(filename):
    """Every block with every choice: exactly the tables."""
    table = load_record("detnas", filename)
    spec = vars(SPECS["DetNAS-MMRazor" if "mmrazor" in filename else "DetNAS-300M"])
    nets = []
    for choice in range(4):
        with torch.device("meta"):
            nets.append(ShuffleNetV2(**{**spec, "choices": [choice] * 20}, norm="BN"))
    for choice, net in enumerate(nets):
        assert macs(net) == table["stem"] + sum(row[choice] for row in table["macs"])
        if "params" in table:
            blocks = [block for name in ("res2", "res3", "res4", "res5") for block in getattr(net, name)]
            assert [sum(p.numel() for p in block.parameters()) for block in blocks] == [row[choice] for row in table["params"]]


SEARCHED = SPECS["DetNAS-MMRazor"].choices


def dialects():
    places = [(stage, block) for stage, count in enumerate(BLOCKS) for block in range(count)]
    names = [CHOICES[c] for c in SEARCHED]
    yield "1.x", "".join(f"backbone.layers.{s}.{b}:\n  chosen: {n}\n" for (s, b), n in zip(places, names))
    yield "as its search writes it", "".join(f"architecture.backbone.layers.{s}.{b}: {{chosen: {n}}}\n" for (s, b), n in zip(places, names))
    yield "0.x", "".join(f"stage_{s}_block_{b}:\n  chosen: [{n}]\n" for (s, b), n in zip(places, names))
    yield "the authors'", str(SEARCHED)
    yield "a list", str(list(SEARCHED))
    yield "ours", f"choices: {list(SEARCHED)}\nscore: 0.5\n"


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in dialects()])
def test_subnet_files(text, tmp_path):
    (tmp_path / "subnet.yaml").write_text(text)
    path = str(tmp_path / "subnet.yaml")
    assert read_choices(path, BLOCKS) == SEARCHED
    if "chosen" in text:  # MMRazor's branches have full width, wherever that is
        assert read_choices(path, BLOCKS, {"branch_widths": [0.5, 1.0]}, 8) == tuple(4 + choice for choice in SEARCHED)
        with pytest.raises(UserError, match=r"of branches of full width, but MODEL.SHUFFLENETV2.BRANCH_WIDTHS is \[0.5\]: add 1.0 to it"):
            read_choices(path, BLOCKS, {"branch_widths": [0.5]})


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_paths_of_a_training(sampling):
    """They follow from seed and step alone; "fair" has each choice once in four, in every block, and blocks that do not move together."""
    paths = [path_at(20, 3, step, sampling) for step in range(400)]
    assert paths == [path_at(20, 3, step, sampling) for step in range(400)] and paths != [path_at(20, 4, step, sampling) for step in range(400)]
    fours = [{path[block] for path in paths[i : i + 4]} for i in range(0, 400, 4) for block in range(20)]
    assert all(len(four) == 4 for four in fours) == (sampling == "fair")
    assert len(set(paths)) > 390
    twelve = [path_at(20, 3, step, sampling, 12) for step in range(12)]
    assert all({path[block] for path in twelve} == set(range(12)) for block in range(20)) == (sampling == "fair")
    together = np.mean([a == b for path in paths for a, b in zip(path, path[1:])])
    assert abs(together - 0.25) < 0.03  # 7600 pairs: a deviation of 0.005


@pytest.mark.parametrize("shuffle, split", [("before", "input"), ("after", "halves"), ("alternate", "input")])
def test_all_choices_start_from_one(shuffle, split):
    """Iterations before ``one_path_iters`` train the 3x3 path; then kernels of 5 and 7 compute the same, and the chain has its weights."""
    torch.manual_seed(0)
    sizes = dict(stem_channels=8, channels=(16, 24, 32, 40), blocks=(2, 1, 1, 2), choices=(0,) * 6)
    net = ShuffleNetV2Supernet(**sizes, split=split, shuffle=shuffle, norm="BN", one_path_iters=3)
    for weight in net.parameters():
        weight.data.copy_(torch.rand_like(weight) + 0.1)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    kept = [key for key in before if re.search(r"block\d\.0\.|stem", key)]
    for step in range(3):
        net.train_path(1, step)
        assert net.choices == (0,) * 6
    after = net.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    net.train_path(1, 3)
    assert net.choices == path_at(6, 1, 3)
    assert kept and all(torch.equal(before[key], after[key]) for key in kept)
    x = torch.rand(2, 3, 64, 64)
    outs = {}
    for path in ((0,) * 6, (1, 2, 1, 2, 0, 1), (2, 0, 2, 1, 1, 2), (3,) * 6):
        net.set_path(path)
        outs[path] = net(x)
    first, *others, chain = outs.values()
    for other in others:  # the same sums, rounded in another order
        for name, value in first.items():
            torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(value).all() for value in chain.values()) and not torch.allclose(chain["res5"], first["res5"])
    block = net.res2.block1
    assert torch.equal(block[3].main[5].conv.weight, block[0].main[2].conv.weight)
    chain = {key: value.clone() for key, value in net.state_dict().items()}
    net.train_path(1, 4)
    assert all(torch.equal(chain[key], value) for key, value in net.state_dict().items())


WIDE = dict(stem_channels=8, channels=(16, 24, 32, 40), blocks=(2, 1, 1, 2), choices=(0, 11, 5, 8, 3, 7), branch_widths=(1.0, 1.5, 0.5))


@pytest.mark.parametrize("shuffle, split, deformable", [("before", "input", False), ("after", "halves", True)])
def test_branch_widths(shuffle, split, deformable):
    """A path of a space with three widths is the supernet on it, bit for bit; from one path, wider branches start as what it computes."""
    common = dict(split=split, shuffle=shuffle, norm="BN", deform_on_per_stage=(False, deformable, deformable, False))
    net = ShuffleNetV2Supernet(**WIDE, **common, one_path_iters=1)
    assert net.choice_count == 12 and [len(block) for block in net.modules() if isinstance(block, shufflenetv2.Choices)] == [12] * 6
    block = net.res2.block2  # of 8 channels within
    assert [block[choice].main[0].conv.weight.shape[0] for choice in (0, 4, 8)] == [8, 12, 4]
    subnet = ShuffleNetV2(**WIDE, **common)
    subnet.load_state_dict(net.subnet_state_dict(WIDE["choices"]), strict=True)
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(net.eval()(x).values(), subnet.eval()(x).values()):
            assert torch.equal(a, b)
    for predicts in (module.offset for module in net.modules() if isinstance(module, DeformConv2d)):
        torch.nn.init.normal_(predicts.weight, std=0.1)  # as if trained
    for step in (0, 1):
        net.train().train_path(1, step)
    assert net.choices == path_at(6, 1, 1, count=12)
    outs = {}
    same = (4,) * 6 if deformable else (4, 5, 6, 4, 5, 6)  # a larger deformable kernel has points of its own
    for path in ((0,) * 6, same, (8, 9, 10, 11, 7, 3)):
        net.set_path(path)
        outs[path] = net(x)
    first, wider, other = outs.values()
    for name, value in first.items():
        torch.testing.assert_close(wider[name], value, rtol=1e-4, atol=1e-4)
    assert all(torch.isfinite(value).all() for value in other.values()) and not torch.allclose(other["res5"], first["res5"])
    wider["res5"].sum().backward()
    assert net.res2.block2[same[1]].main[2].conv.weight.grad[:, 8:].abs().max() > 0  # what is wider learns


@pytest.mark.parametrize(
    "text, words",
    [
        ("backbone.layers.0.0: {chosen: shuffle_9x9}", "choice of 'backbone.layers.0.0' in .*'shuffle_9x9'.*Did you mean 'shuffle_"),
        ("backbone.layers.0.9: {chosen: shuffle_3x3}", "'backbone.layers.0.9' does not exist: the stages have 4, 4, 8, 4 blocks"),
        ("neck.0: {chosen: shuffle_3x3}", "'neck.0' is not a block"),
        ("backbone.layers.0.0: {chosen: shuffle_3x3}", "lacks block 1, and 18 more"),
        ("[0, 1, 2]", "holds 3 choices, but the network has 20 blocks"),
        (str([0] * 19 + [4]), "choice of block 19 in .*: 4"),
        (str([True] * 20), "choice of block 0 in .*: True"),
        ("", "holds a NoneType"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
        ("__import__('os')", "cannot be read"),
        *((text, "cannot be read") for text in ("'({[1]: 2})'", "!!bool abc", "!!timestamp abc", "!!int ''")),
    ],
)
def test_broken_subnet_files(text, words, tmp_path):
    (tmp_path / "subnet.yaml").write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_choices(str(tmp_path / "subnet.yaml"), BLOCKS)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"choices": [0] * 19}, "the path holds 19 choices, but the network has 20 blocks"),
        ({"choices": [0] * 19 + [7]}, "choice of block 19 in the path: 7"),
        ({"split": "half"}, "Did you mean 'halves'"),
        ({"shuffle": "befor"}, "Did you mean 'before'"),
        ({"width": 0}, "width is 0"),
        (
            {"choices": [0] * 19 + [8], "branch_widths": (1.0, 0.5)},
            "choice of block 19 in the path: 8. Allowed: 0 to 7; BRANCH_WIDTHS gives more",
        ),
        *(
            ({"branch_widths": widths}, "BRANCH_WIDTHS is .*must be a list of different numbers above 0, and at most 4")
            for widths in ((), (1.0, 1.0), (0.0,), (5.0, 1.0), 0.5, None, "1", (True, 2.0), ("0.5", 1.0), ((1.0,),))
        ),
    ],
)
def test_mistakes(changes, words):
    with pytest.raises(UserError, match=words):
        backbones.create("DetNAS-300M", **changes)


def test_config(tmp_path):
    """A subnet file beside nothing, a list, a supernet; both at once are refused."""
    cfg = get_cfg()
    backbones.add_backbones_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_shufflenetv2_backbone"
    node = cfg.MODEL.SHUFFLENETV2
    with torch.device("meta"):
        assert build_backbone(cfg).choices == SPECS["DetNAS-300M"].choices
        node.CHOICES = [0] * 20
        assert build_backbone(cfg).choices == (0,) * 20
        node.SUPERNET, node.WIDTH, node.SPLIT, node.SHUFFLE = True, 0.5, "halves", "before"
        net = build_backbone(cfg)
        assert isinstance(net, ShuffleNetV2Supernet) and net.output_shape()["res5"].channels == 320 and net.shuffle == "before"
        node.BRANCH_WIDTHS, cfg.MODEL.DEVICE = ["wide"], "cpu"
        with pytest.raises(UserError, match="MODEL.SHUFFLENETV2.BRANCH_WIDTHS is .*different numbers above 0"):
            check_config(cfg)
        node.BRANCH_WIDTHS, node.CHOICES, node.SUPERNET = [0.5], [], False
        (tmp_path / "narrow.yaml").write_text(f"choices: {[0] * 20}\n")  # of before there were widths
        node.SUBNET = str(tmp_path / "narrow.yaml")
        with pytest.raises(UserError, match=r"has branch_widths \[1.0\], but the config has \[0.5\]: .*or write the line into the file"):
            build_backbone(cfg)
        node.CHOICES, node.SUBNET = [0] * 20, "x.yaml"
        with pytest.raises(UserError, match="CHOICES and SUBNET exclude each other"):
            build_backbone(cfg)
    assert shufflenetv2.STAGES == ("stem", *net.output_shape())
