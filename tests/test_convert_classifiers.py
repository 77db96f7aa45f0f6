"""Classifiers that users trained: any number of classes, headless, features alone, and what training scripts write around the weights."""

import argparse
import collections
import gzip
import os
import pathlib
import re
import types
import zipfile

import numpy as np
import pytest
import torch
import torchvision
from conftest import warm
from safetensors.torch import save_file
from test_convert import randomize, run
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from backbones.errors import UserError
from convert import __main__ as cli
from convert import core

torchvision_models = torchvision.models


def timm_model(name="ese_vovnet19b_slim_dw", **options):
    model = pytest.importorskip("timm").create_model(name, **options).eval()
    randomize(model)
    return model


def torchvision_model(name="regnet_x_400mf", **options):
    model = getattr(torchvision_models, name)(**options).eval()
    randomize(model)
    return model


def with_head(model, **heads):
    """The model with other modules in the place of its classifier."""
    for name, head in heads.items():
        setattr(model, name, head)
    return model


def mlp(width):
    return nn.Sequential(nn.Dropout(0.1), nn.Linear(width, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))


# name -> (source, the network here, the model, how many of its tensors lie behind the last feature)
LAYOUTS = {
    "5 classes": ("timm", "V-19-slim-dw-eSE", lambda: timm_model(num_classes=5), 2),
    "5 classes, gates in two blocks": ("timm", "V-39-eSE", lambda: timm_model("ese_vovnet39b", num_classes=5), 2),
    "RegNetY of 5": ("timm", "RegNetY-400MF", lambda: timm_model("regnety_004", num_classes=5), 2),
    "headless": ("timm", "V-19-slim-dw-eSE", lambda: timm_model(num_classes=0), 0),
    "headless RegNet": ("timm", "RegNetX-400MF", lambda: timm_model("regnetx_004", num_classes=0), 0),
    "features_only": ("timm", "V-19-slim-dw-eSE", lambda: timm_model(features_only=True), 0),
    "features_only of the last stages": (
        "timm",
        "V-19-dw-eSE",
        lambda: timm_model("ese_vovnet19b_dw", features_only=True, out_indices=(2, 4)),
        0,
    ),
    "features_only of a RegNet": ("timm", "RegNetY-400MF", lambda: timm_model("regnety_004", features_only=True), 0),
    "features_only by a getter": ("timm", "RegNetY-400MF", lambda: timm_model("regnety_004", features_only=True, feature_cls="getter"), 0),
    "another head": (
        "timm",
        "RegNetX-400MF",
        lambda: with_head(timm_model("regnetx_004", num_classes=0), head=with_head(nn.Module(), fc=mlp(400))),
        9,
    ),
    "7 classes": ("torchvision", "RegNetX-400MF", lambda: torchvision_model(num_classes=7), 2),
    "7 classes of MobileNetV2": ("torchvision", "MobileNetV2", lambda: torchvision_model("mobilenet_v2", num_classes=7), 8),
    "a head of layers": ("torchvision", "RegNetY-400MF", lambda: with_head(torchvision_model("regnet_y_400mf"), fc=mlp(440)), 9),
    "MobileNetV2's head of layers": (
        "torchvision",
        "MobileNetV2",
        lambda: with_head(torchvision_model("mobilenet_v2"), classifier=mlp(1280)),
        15,
    ),
    "no fc": ("torchvision", "RegNetX-400MF", lambda: with_head(torchvision_model(), fc=nn.Identity()), 0),
    "an extractor": ("torchvision", "RegNetX-400MF", lambda: create_feature_extractor(torchvision_model(), ["trunk_output.block4"]), 0),
    "MobileNetV2's extractor": (
        "torchvision",
        "MobileNetV2",
        lambda: create_feature_extractor(torchvision_model("mobilenet_v2"), ["features.17"]),
        0,
    ),
}


def check(result, network):
    proof = result.provenance["proof"]
    assert result.provenance["network"] == network and proof["run"]
    assert len(proof["largest_relative_difference"]) == 4 and max(proof["largest_relative_difference"].values()) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    source, network, build, behind = LAYOUTS[layout]
    torch.save(build().state_dict(), tmp_path / "theirs.pth")
    result = run(source, tmp_path / "theirs.pth", tmp_path / "ours.pth")
    check(result, network)
    taken = result.provenance["taken"]
    assert taken.startswith("the file, which is one state dict; left out: ")
    assert f"{behind} tensors outside the backbone" in taken if behind else taken.endswith("left out: nothing")


@pytest.fixture(scope="module")
def weights():
    """A classifier's, and a moving average of them whose first convolution differs."""
    plain = timm_model(num_classes=5).state_dict()
    return plain, {key: value * 0.5 if key == FIRST else value for key, value in plain.items()}


FIRST = "stem.0.conv.weight"
OBJECTS = {
    "args": argparse.Namespace(lr=0.1, output=pathlib.Path("run"), classes={"cup"}, device=torch.device("cpu"), dtype=torch.float16),
    "best": np.float64(0.9),
    "history": np.arange(3),
    "counts": collections.Counter("abc"),
    "lists": collections.defaultdict(list, {1: [2]}),
    "options": types.SimpleNamespace(epochs=3),
}


def put_before(prefix, state_dict):
    return {prefix + key: value for key, value in state_dict.items()}


# what a file holds -> (the entry that is taken, whether the average is, what the line says beside it); `--key` where it is given
FILES = {
    "timm's training": (
        lambda plain, average: {"epoch": 3, "arch": "x", "state_dict": plain, "optimizer": {}, **OBJECTS, "state_dict_ema": average},
        ["state_dict; ", "state_dict_ema (--key state_dict_ema takes it)", "epoch (int)", "optimizer (dict)", "args (object, unread)"],
        False,
    ),
    "torchvision's training": (
        lambda plain, average: {"model": plain, "model_ema": {"n_averaged": torch.tensor(9), **put_before("module.", average)}, **OBJECTS},
        ["model; ", "model_ema (--key model_ema takes it)", "lists (object, unread)"],
        False,
    ),
    "--key model_ema": (
        lambda plain, average: {"model": plain, "model_ema": {"n_averaged": torch.tensor(9), **put_before("module.", average)}},
        ["model_ema; ", "model (--key model takes it)"],
        True,
    ),
    "--key teacher": (lambda plain, average: {"student": plain, "teacher": average}, ["teacher; ", "student (--key student takes it)"], True),
    "the average alone": (lambda plain, average: {"ema": average, "epoch": 1}, ["ema; ", "epoch (int)"], True),
    "compiled and parallel": (lambda plain, average: {"state_dict": put_before("_orig_mod.module.", plain)}, ["state_dict; "], False),
    "Lightning's": (
        lambda plain, average: {"state_dict": put_before("model.", plain), "hyper_parameters": OBJECTS["args"]},
        ["state_dict; "],
        False,
    ),
    "Lightning's with a loss of its own": (
        lambda plain, average: {"state_dict": {**put_before("model.", plain), "criterion.weight": torch.ones(10)}},
        ["state_dict; ", "criterion.weight"],
        False,
    ),
    "features_only in Lightning's": (
        lambda plain, average: {
            "state_dict": put_before("model.backbone.", {re.sub(r"^(stem|stages)\.", r"\1_", key): value for key, value in plain.items()})
        },
        ["state_dict; "],
        False,
    ),
    "part of a detector": (lambda plain, average: {**put_before("backbone.", plain), "roi.weight": torch.zeros(2)}, ["roi.weight"], False),
    "half precision": (
        lambda plain, average: {k: v.half() if v.is_floating_point() else v for k, v in plain.items()},
        ["one state dict; "],
        False,
    ),
    "odd names": (lambda plain, average: {"state_dict": plain, "a\nb": 1, 3: 4, ("x",): 5}, ["a b (int), 3 (int), ('x',) (int)"], False),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_training_files(kind, weights, tmp_path):
    build, words, is_average = FILES[kind]
    torch.save(build(*weights), tmp_path / "theirs.pth")
    result = run("timm", tmp_path / "theirs.pth", tmp_path / "ours.pth", *(kind.split() if kind.startswith("--key") else ()))
    check(result, "V-19-slim-dw-eSE")
    taken = result.provenance["taken"]
    assert all(word in taken for word in words) and "\n" not in taken and "head.fc.weight" in taken
    expected = weights[is_average][FIRST].flip(1)
    torch.testing.assert_close(result.model["backbone.bottom_up.stem.0.conv.weight"].float(), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("options", [{"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_files_with_objects_of_other_protocols(options, weights, tmp_path):
    torch.save({"state_dict": weights[0], **OBJECTS}, tmp_path / "theirs.pth", **options)
    check(run("timm", tmp_path / "theirs.pth", tmp_path / "ours.pth"), "V-19-slim-dw-eSE")


def test_safetensors_by_any_name(weights, tmp_path):
    save_file({key: value.clone() for key, value in weights[0].items()}, str(tmp_path / "theirs.pth"))
    check(run("timm", tmp_path / "theirs.pth", tmp_path / "ours.safetensors"), "V-19-slim-dw-eSE")


def saved(build):
    return lambda path, plain: torch.save(build(plain), path)


def write_zip(path, plain):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "x")


def cut(path, plain):
    torch.save(plain, path)
    path.write_bytes(path.read_bytes()[:100_000])


def changed(**changes):
    return saved(lambda plain: {**plain, **{key.replace("__", "."): change(plain) for key, change in changes.items()}})


# what lies there -> (how it is made, options, what the line says)
OTHERS = {
    "two": (saved(lambda w: {"student": w, "teacher": w}), [], "holds several state dicts: student, teacher. Choose one with --key"),
    "misspelt": (saved(lambda w: {"model": w, "model_ema": w}), ["--key", "modelema"], "unknown state dict .*Did you mean 'model_ema'"),
    "nothing to choose": (saved(lambda w: w), ["--key", "model"], "--key model does not apply"),
    "optimizer": (
        saved(lambda w: {"optimizer": {"state": {}}, "epoch": 1}),
        [],
        r"does not contain one: it has optimizer \(dict\), epoch \(int\)",
    ),
    "optimizer alone": (
        saved(lambda w: torch.optim.SGD([nn.Parameter(torch.ones(1))]).state_dict()),
        [],
        r"state \(dict\), param_groups \(list\)",
    ),
    "arrays unread": (saved(lambda w: {"state_dict": {"x": np.zeros(3)}}), [], "'x' is of type object, unread, not a tensor"),
    "whole model": (saved(lambda w: nn.Linear(1, 1)), [], "holds code: torch.nn.modules.linear.Linear, but only files of tensors"),
    "whole model inside": (saved(lambda w: {"model": nn.Linear(1, 1)}), [], "holds code: torch.nn.modules.linear.Linear"),
    "options": (saved(lambda w: argparse.Namespace(a=1)), [], "holds a Python object, not a dict"),
    "list": (saved(lambda w: [w]), [], "holds a list, not a dict"),
    "empty": (saved(lambda w: {}), [], "not a state dict: it is empty"),
    "empty inside": (saved(lambda w: {"state_dict": {}}), [], "the file's state_dict is not a state dict: it is empty"),
    "none inside": (saved(lambda w: {"state_dict": None, "model": 3}), [], "the file's state_dict is not a state dict: it is of type NoneType"),
    "another network": (saved(lambda w: torchvision_models.resnet18().state_dict()), [], "holds 122 tensors of conv1, bn1, layer1, .*, fc$"),
    "torchvision's": (
        saved(lambda w: torchvision_models.regnet_x_400mf().state_dict()),
        [],
        "not from timm: it holds RegNetX-400MF .* torchvision$",
    ),
    "detector": (
        saved(lambda w: {**w, "rpn.weight": torch.zeros(1)}),
        [],
        "V-19-slim-dw-eSE, the nearest, 1 entries differ: unknown rpn.weight",
    ),
    "grey": (changed(stem__0__conv__weight=lambda w: w[FIRST][:, :1]), [], r"stem.0.conv.weight is \(64, 1, 3, 3\), not \(64, 3, 3, 3\)"),
    "number": (changed(stem__0__conv__weight=lambda w: torch.zeros(())), [], r"stem.0.conv.weight is \(\), not"),
    "NaN": (changed(stem__0__conv__weight=lambda w: w[FIRST] * float("nan")), [], "infinite numbers or NaN"),
    "two names": (changed(stem_0__conv__weight=lambda w: w[FIRST]), [], "holds 1 tensors twice"),
    "missing": (saved(lambda w: {k: v for k, v in w.items() if k != FIRST}), [], "1 entries differ: missing stem.0.conv.weight"),
    "script": (lambda path, w: torch.jit.script(nn.Linear(1, 1)).save(str(path)), [], "TorchScript archive"),
    "pointer": (lambda path, w: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d\n"), [], "Git LFS pointer"),
    "gzip": (lambda path, w: path.write_bytes(gzip.compress(b"x")), [], "gzip archive, which must be unpacked"),
    "HDF5": (lambda path, w: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), [], "HDF5 file"),
    "text": (lambda path, w: path.write_text("hello"), [], "damaged or of another format"),
    "no bytes": (lambda path, w: path.write_bytes(b""), [], "0 bytes.: it is damaged or of another format: empty"),
    "zip": (write_zip, [], "damaged or of another format"),
    "cut": (cut, [], "damaged or of another format"),
    "folder": (lambda path, w: path.mkdir(), [], "is a folder: name a file in it"),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_end_in_one_line(kind, weights, tmp_path):
    build, options, words = OTHERS[kind]
    build(tmp_path / "theirs.pth", weights[0])
    with pytest.raises(UserError, match=words) as error:
        run("timm", tmp_path / "theirs.pth", tmp_path / "ours.pth", *options)
    assert "\n" not in str(error.value) and os.listdir(tmp_path) == ["theirs.pth"]


@pytest.mark.slow
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_is_refused_in_one_line(zipped, weights, tmp_path):
    path, generator = tmp_path / "theirs.pth", np.random.default_rng(0)
    part = {key: weights[0][key] for key in list(weights[0])[:20]}  # no network: where a change does no harm, this is refused
    torch.save({"state_dict": part, **OBJECTS}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for _ in range(25):
        damaged = bytearray(whole[: generator.integers(1, len(whole))] if generator.random() < 0.3 else whole)
        for position in generator.integers(0, min(len(damaged), 4000), 3):
            damaged[position] = generator.integers(0, 256)
        path.write_bytes(damaged)
        with pytest.raises(UserError) as error:
            run("timm", path, tmp_path / "ours.pth")
        assert "\n" not in str(error.value)


def test_a_library_of_another_version(weights, tmp_path, monkeypatch):
    """Whose network has other shapes."""
    torch.save(weights[0], tmp_path / "theirs.pth")
    other = core.Network(timm_model("ese_vovnet19b_dw", num_classes=0), lambda image: [])
    source = cli.SOURCES["timm"]
    monkeypatch.setitem(cli.SOURCES, "timm", core.dataclasses.replace(source, network=lambda name, options: (other, "timm 9")))
    with pytest.raises(UserError, match="timm 9 itself rejects this file: .*size mismatch"):
        run("timm", tmp_path / "theirs.pth", tmp_path / "ours.pth")


def test_key_belongs_to_bare_networks(tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="--key model does not apply to files of detectron2 with a config"):
        run(
            "detectron2",
            tmp_path / "theirs.pth",
            tmp_path / "o.pth",
            "--key",
            "model",
            "--config-file",
            "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
        )


@pytest.mark.slow
def test_command_line(tmp_path):
    model = torchvision_model("regnet_y_400mf", num_classes=3)
    average = put_before("module.", model.state_dict())
    torch.save({"model": model.state_dict(), "model_ema": average, "epoch": 1, "args": argparse.Namespace(lr=1)}, tmp_path / "theirs.pth")
    result = warm("-m", "convert", "torchvision", tmp_path / "theirs.pth", tmp_path / "ours.pth", "--key", "model_ema")
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if line.startswith("taken: "))
    assert line == (
        "taken: model_ema; left out: 2 tensors outside the backbone (fc.weight, fc.bias), model (--key model takes it), "
        "epoch (int), args (object, unread)"
    )
