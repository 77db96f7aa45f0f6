"""The load gate: what is reported, what is refused, and that nothing in a file is run."""

import logging
import os
import pickle
import re
import threading
from collections import OrderedDict
from http.server import HTTPServer, SimpleHTTPRequestHandler

import numpy as np
import pytest
import torch
from conftest import fill, load_record
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

import backbones
from backbones import UserError, zoo
from backbones.checkpoint import GatedCheckpointer, read_checkpoint
from backbones.engine import open_config


def build(*overrides):
    cfg = zoo.get_config("faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_list(list(overrides))
    return build_model(cfg)


@pytest.fixture(scope="module")
def model():
    return build()


@pytest.fixture(scope="module")
def released():
    """The backbone's entries in a released ImageNet file: prefixed, no wrapper, and batch counters, as the depthwise files have."""
    weights = {key: fill(key, shape) for key, shape in load_record("vovnet", "V-19-slim-dw.json")["state_dict"]}
    weights.update({k.replace("running_var", "num_batches_tracked"): torch.tensor(7) for k in list(weights) if k.endswith("running_var")})
    return weights


def saved(tmp_path, content, name="file.pth"):
    torch.save(content, tmp_path / name)
    return str(tmp_path / name)


def first_conv(model):
    return model.backbone.bottom_up.stem[0].conv.weight


def reset(model):
    with torch.no_grad():
        first_conv(model).zero_()


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "module.backbone.bottom_up.", "_orig_mod.backbone.bottom_up.", "", "module."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_backbone_files_load(model, released, tmp_path, caplog, prefix, wrapped):
    reset(model)
    content = {prefix + key: value for key, value in released.items()}
    path = saved(tmp_path, {"model": content} if wrapped else content)
    with caplog.at_level(logging.INFO, "backbones.checkpoint.gate"):
        GatedCheckpointer(model).load(path)
    assert torch.equal(first_conv(model), released["stem.stem_1/conv.weight"])
    table = caplog.text
    assert path in table and "| backbone" in table and "132/132" in table and "0/16" in table and "0/6" in table
    assert table.count("unused") == 1  # the column's head


@pytest.mark.parametrize("prefix", ["backbone.bottom_up.", "module.backbone.bottom_up."])
def test_detectron2_loads_backbone_files(model, released, tmp_path, prefix):
    reset(model)
    DetectionCheckpointer(model).load(saved(tmp_path, {prefix + key: value for key, value in released.items()}))
    assert torch.equal(first_conv(model), released["stem.stem_1/conv.weight"])


def test_round_trip(model, tmp_path):
    """What detectron2 saves of our model, both checkpointers load; a detector's file fills everything."""
    DetectionCheckpointer(model, str(tmp_path)).save("model_final")
    path = str(tmp_path / "model_final.pth")
    other = build()
    GatedCheckpointer(other, require="all").load(path)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_partial_backbone_is_refused(model, released, tmp_path):
    part = {"backbone.bottom_up." + key: value for key, value in released.items() if "stage5" not in key}
    path = saved(tmp_path, part)
    with pytest.raises(UserError, match=r"\d+ of 132 weights of the backbone .* --allow-partial-weights") as error:
        GatedCheckpointer(model).load(path)
    assert path in str(error.value) and "\n" not in str(error.value)
    GatedCheckpointer(model, require="nothing").load(path)


def test_foreign_file_is_refused(model, tmp_path):
    path = saved(tmp_path, {"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)})
    with pytest.raises(UserError, match="132 of 132 weights of the backbone"):
        GatedCheckpointer(model).load(path)


def test_a_model_without_a_backbone_needs_something(tmp_path):
    """Any part of a user's own may be new, but a file that fills none is another's."""
    own = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "decoder": torch.nn.Linear(2, 2)})
    with pytest.raises(UserError, match="4 of 4 weights of the model would keep"):
        GatedCheckpointer(own).load(saved(tmp_path, {"unrelated": torch.zeros(3)}))
    GatedCheckpointer(own).load(saved(tmp_path, {"encoder.bias": torch.ones(2)}))
    assert own["encoder"].bias.tolist() == [1, 1]


def test_an_average_of_other_names_is_not_one_of_ours(tmp_path):
    """The weights beside it are taken."""
    net = torch.nn.Linear(2, 2)
    given = {"weight": torch.ones(2, 2), "bias": torch.ones(2)}
    GatedCheckpointer(net, require="all").load(saved(tmp_path, {"model": given, "ema": {"weight": torch.zeros(2, 2)}}))
    assert net.weight.sum() == 4


def test_other_variant_is_refused(tmp_path):
    """V-19 and V-19-slim have the same names in other widths."""
    path = saved(tmp_path, {"backbone.bottom_up." + k: v for k, v in backbones.create("V-19-slim-eSE").state_dict().items()})
    wide = build("MODEL.VOVNET.CONV_BODY", "V-19-eSE")
    with pytest.raises(UserError, match=r"the first is .* \(file \(.*\), model \(.*\)\)"):
        GatedCheckpointer(wide).load(path)
    report_only = GatedCheckpointer(wide, require="nothing")
    report_only.load(path)
    assert wide.backbone.bottom_up.stage5.block1.concat.conv.weight.shape[0] == 1024


def test_evaluation_needs_everything(model, released, tmp_path):
    path = saved(tmp_path, {"backbone.bottom_up." + key: value for key, value in released.items()})
    with pytest.raises(UserError, match="weights of the model would keep their initial values"):
        GatedCheckpointer(model, require="all").load(path)
    whole = {**model.state_dict()}
    del whole["roi_heads.box_predictor.cls_score.bias"]
    with pytest.raises(UserError, match="1 of .* the first is roi_heads.box_predictor.cls_score.bias"):
        GatedCheckpointer(model, require="all").load(saved(tmp_path, {"model": whole}))


def test_deformable_stages_take_plain_weights(released, tmp_path):
    deformable = build("MODEL.VOVNET.DEFORM_ON_PER_STAGE", "[False,True,True,True]")
    GatedCheckpointer(deformable).load(saved(tmp_path, released))
    assert not deformable.backbone.bottom_up.stage3.block1.layers[0].depthwise.offset.weight.any()


def test_zoo_pickles(tmp_path):
    """Files of detectron2's and Detectron's zoos: pickled arrays."""
    model = build()
    arrays = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": OrderedDict(arrays), "__author__": "someone"}))
    reset(model)
    GatedCheckpointer(model, require="all").load(str(path))
    assert np.array_equal(first_conv(model).detach().numpy(), arrays["backbone.bottom_up.stem.0.conv.weight"])


class Trap:
    def __reduce__(self):
        return (os.mkdir, (os.environ["BACKBONES_TRAP"],))


@pytest.mark.parametrize("name", ["trap.pkl", "trap.pth", "trap.pyth"])
def test_nothing_in_a_file_is_run(model, tmp_path, monkeypatch, name):
    monkeypatch.setenv("BACKBONES_TRAP", str(tmp_path / "sprung"))
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": Trap()}))
    else:
        torch.save({"model": Trap()}, path)
    with pytest.raises(UserError, match="cannot be read"):
        GatedCheckpointer(model).load(str(path))
    assert not (tmp_path / "sprung").exists()


class Pickled:
    """Pickles as a call of numpy's, followed by a state, as an attacker would write it."""

    def __init__(self, function, arguments, state):
        self.value = (function, arguments, state)

    def __reduce__(self):
        return self.value


def _dtype(name, state):
    return Pickled(np.dtype, (name, False, True), state)


@pytest.mark.parametrize(
    "value, words",
    [
        (np.array([1, "a", None], dtype=object), "not of numbers"),
        (np.array(["text"]), "not of numbers"),
        (np.zeros(2, dtype=[("a", "f4"), ("b", "i4")]), "not of numbers"),
        # a dtype that claims to be wider than it is, fields that numpy reads without a look: states that crash numpy's own
        (_dtype("V8", (3, "|", None, ("f0",), {"f0": (np.dtype("O"), 0)}, 8, 1, 63)), "not of numbers"),
        (_dtype("O8", (3, "|", None, None, None, -1, -1, 63)), "not of numbers"),
        (Pickled(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1 << 40,), np.dtype("f4"), False, b"1234")), "reshape"),
        (Pickled(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, b"12345678")), "not of numbers"),
        (Pickled(np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1,), 3, False, b"12345678")), "numpy"),
    ],
)
def test_crafted_arrays(tmp_path, value, words):
    path = tmp_path / "crafted.pkl"
    path.write_bytes(pickle.dumps({"model": {"a": value}}, protocol=2))
    with pytest.raises(UserError, match=f"cannot be read.*{words}"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_honest_arrays(tmp_path, protocol):
    """Of every kind, order and protocol, and scalars beside them."""
    arrays = {name: (np.arange(12) % 2).reshape(3, 4).astype(name) for name in ("f2", "f4", ">f4", "f8", "i8", ">i4", "u1", "?", "c8")}
    arrays["fortran"] = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    arrays["empty"], arrays["none"] = np.zeros((0, 3), np.float32), np.zeros((), np.float32)
    path = tmp_path / "honest.pkl"
    path.write_bytes(pickle.dumps({"model": OrderedDict(arrays), "lr": np.float64(0.5), "names": ["a", ("b", b"c")]}, protocol=protocol))
    content = read_checkpoint(str(path))
    for name, array in arrays.items():
        read = content["model"][name]
        assert np.array_equal(read, array) and read.dtype == array.dtype.newbyteorder("="), name
        torch.as_tensor(read)
    assert content["lr"] == 0.5 and content["names"] == ["a", ("b", b"c")]


def test_a_name_with_every_character(model, released, tmp_path):
    reset(model)
    GatedCheckpointer(model).load(saved(tmp_path, released, "run #3 (50%).pth"))
    assert torch.equal(first_conv(model), released["stem.stem_1/conv.weight"])


@pytest.mark.parametrize("url", ["detectron2://nowhere/a.pkl", "s3://nowhere/a.pth", "http://127.0.0.1:9/a.pth", "nothing://a.pth"])
def test_addresses_that_lead_nowhere(model, tmp_path, monkeypatch, url):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="cannot be downloaded") as error:
        GatedCheckpointer(model).load(url)
    assert url in str(error.value) and "\n" not in str(error.value)


def damaged_files(tmp_path):
    whole = saved(tmp_path, {"a": torch.zeros(1000)}, "whole.pth")
    content = open(whole, "rb").read()
    for name, data in {
        "truncated.pth": content[: len(content) // 2],
        "empty.pth": b"",
        "page.pth": b"<!DOCTYPE html><html>gone</html>",
        "noise.pth": bytes(range(256)) * 8,
        "truncated.pkl": pickle.dumps({"a": np.zeros(100)})[:50],
        "text.pkl": b"hello",
    }.items():
        (tmp_path / name).write_bytes(data)
        yield str(tmp_path / name)
    yield saved(tmp_path, [1, 2], "list.pth")
    yield saved(tmp_path, {"model": 3}, "number.pth")
    yield saved(tmp_path, {"state_dict": {"a": torch.zeros(1)}}, "foreign_layout.pth")
    yield saved(tmp_path, {"model": {"a": "text"}}, "text.pth")
    yield saved(tmp_path, {1: torch.zeros(1)}, "numbered.pth")
    yield str(tmp_path / "missing.pth")
    yield str(tmp_path)


def test_damaged_files(model, tmp_path):
    count = 0
    for path in damaged_files(tmp_path):
        with pytest.raises(UserError) as error:
            GatedCheckpointer(model).load(path)
        assert path in str(error.value) and "\n" not in str(error.value), path
        count += 1
    assert count == 13


def test_loading_twice_after_a_failure(model, released, tmp_path):
    """detectron2's checkpointer cannot be used again once a load has failed."""
    checkpointer = GatedCheckpointer(model)
    with pytest.raises(UserError):
        checkpointer.load(str(tmp_path / "missing.pth"))
    with pytest.raises(UserError):
        checkpointer.load(saved(tmp_path, {"x": torch.zeros(1)}))
    checkpointer.load(saved(tmp_path, released))


def test_a_wrong_query_leaves_the_cached_file(model, released, tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    (tmp_path / "detectron2" / "a").mkdir(parents=True)
    path = saved(tmp_path, {"backbone.bottom_up." + key: value for key, value in released.items()}, "detectron2/a/m.pth")
    with pytest.raises(UserError, match="unknown query"):
        GatedCheckpointer(model).load("detectron2://a/m.pth?matching_heuristic=True")
    GatedCheckpointer(model).load("detectron2://a/m.pth")
    with open(path, "wb") as f:
        f.write(b"PK")
    with pytest.raises(UserError, match="downloaded from detectron2://a/m.pth"):
        GatedCheckpointer(model).load("detectron2://a/m.pth")
    assert not (tmp_path / "detectron2" / "a" / "m.pth").exists()


def test_read_checkpoint(tmp_path):
    content = read_checkpoint(saved(tmp_path, {"model": {"x": torch.arange(3)}, "iteration": 5}))
    assert content["iteration"] == 5 and content["model"]["x"].tolist() == [0, 1, 2]


def test_download_keeps_the_servers_query(model, released, tmp_path, monkeypatch):
    """The released files' addresses end in ?dl=1; without it the host answers with a page."""
    served = tmp_path / "served"
    served.mkdir()
    saved(served, {"backbone.bottom_up." + key: value for key, value in released.items()}, "net.pth")
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/net.pth?dl=1"
        for _ in range(2):
            reset(model)
            GatedCheckpointer(model).load(url)
            assert torch.equal(first_conv(model), released["stem.stem_1/conv.weight"])
        (served / "page.pth").write_text("<html>busy</html>")
        page = url.replace("net.pth", "page.pth")
        with pytest.raises(UserError, match=f"{re.escape(page)}.*a web page"):
            GatedCheckpointer(model).load(page)
        saved(served, {"backbone.bottom_up." + key: value for key, value in released.items()}, "page.pth")
        GatedCheckpointer(model).load(page)  # what was refused is not kept
        with pytest.raises(UserError, match="cannot be downloaded"):
            GatedCheckpointer(model).load(f"http://127.0.0.1:{server.server_port}/gone.pth?dl=1")
    finally:
        server.shutdown()
    assert asked == ["/net.pth?dl=1", "/page.pth?dl=1", "/page.pth?dl=1", "/gone.pth?dl=1"]


@pytest.mark.slow
@pytest.mark.parametrize("outer", ["", "backbone.", "backbone.body.", "architecture.backbone.", "module."])
def test_a_backbone_wherever_another_model_has_it(outer, tmp_path):
    """Under FPN here, bare or right under "backbone." in the file: a classifier's, DetNAS's, MMRazor's, MAE-DET's."""
    cfg = zoo.get_config("gfl_MAE_DET_S_FPN_73e.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.MAEDET.WIDTH = "cpu", 0.125
    model = build_model(cfg)
    source = backbones.create("MAE-DET-S", width=0.125, norm="BN", out_features=("res3", "res4", "res5"))
    head = {"bbox_head.gfl_cls.bias": torch.zeros(80), "head.fc.weight": torch.zeros(3)}
    torch.save({"model": {**{outer + key: value for key, value in source.state_dict().items()}, **head}}, tmp_path / "x.pth")
    checkpointer = GatedCheckpointer(model, require="backbone")
    checkpointer.load(str(tmp_path / "x.pth"))
    assert not checkpointer.report.unfilled("backbone")
    assert all(torch.equal(value, model.backbone.bottom_up.state_dict()[key]) for key, value in source.state_dict().items())


def test_advice_is_of_the_command(tmp_path):
    """Weights of a backbone alone are no detector to draw with; only training and its evaluation have a flag to load a part."""
    path = str(tmp_path / "backbone.pth")
    front = open_config("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", path])
    model = front.build_model()
    torch.save({"model": {key: value for key, value in model.state_dict().items() if key.startswith("backbone.")}}, path)
    for flag, hint in ((None, "Name those of a trained model, such as model_final.pth of its run"), (False, "--allow-partial-weights")):
        with pytest.raises(UserError, match="weights of the model would keep their initial values.*" + hint) as error:
            front.load_for_evaluation(model, allow_partial_weights=flag)
        assert ("--allow-partial-weights" in str(error.value)) == (flag is False)
