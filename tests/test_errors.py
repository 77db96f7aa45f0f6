"""Errors carry a code, the key and a suggestion."""

import ast
import glob
import importlib.util
import os
import pickle
import signal

import numpy as np
import pytest
import torch
from conftest import ROOT
from detectron2.modeling import build_model
from detectron2.solver import LRMultiplier
from detectron2.utils.events import EventStorage
from fvcore.common.param_scheduler import MultiStepParamScheduler
from torch.utils.data import DataLoader

import backbones
from backbones import zoo
from backbones.checkpoint import GatedCheckpointer, read_checkpoint
from backbones.config import all_keys, architecture, check_config, check_device, check_output_dir, config_findings, get, merge_overrides, put
from backbones.data import check_datasets, check_packages, dataset_findings
from backbones.data.annotations import parse
from backbones.data.loader import train_loader
from backbones.deploy.export import Tolerance, export
from backbones.engine import clear
from backbones.engine.resume import keep_schedule
from backbones.engine.step import Steps
from backbones.errors import CODES, Finding, UserError, unknown


def test_fields_survive_copies():
    error = UserError("SOLVER.MAX_ITER is 0:\nit must be at least 1", "value", "SOLVER.MAX_ITER", 1)
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert str(copy) == "SOLVER.MAX_ITER is 0: it must be at least 1"
        assert (copy.code, copy.key, copy.suggestion) == ("value", "SOLVER.MAX_ITER", 1)
    assert Finding.of(error) == Finding("error", str(error), "", "value", "SOLVER.MAX_ITER")
    assert UserError("a message alone").code == "value"
    with pytest.raises(AssertionError):
        UserError("x", "no-such-code")


def test_nearest_name_is_suggested():
    for value, suggestion in (("CPU", "cpu"), ("cuba", "cuda"), ("zzzzzz", None)):
        error = unknown("MODEL.DEVICE", value, ("cpu", "cuda"), "MODEL.DEVICE")
        assert (error.code, error.key, error.suggestion) == ("unknown-name", "MODEL.DEVICE", suggestion)
    assert unknown("number", "11", (1, 12)).suggestion == 1


def test_long_lists_are_counted():
    """A short list is shown whole. Of a long one: the nearest names, how many there are, and what lists them."""
    short, long = [f"net-{i}" for i in range(12)], [f"net-{i}" for i in range(13)]
    assert str(unknown("network", "net_3", short)).endswith("Allowed: " + ", ".join(map(repr, short)) + ".")
    error = unknown("network", "NET-12", long, listed="backbones zoo list")
    assert error.suggestion == "net-12" and str(error).startswith(
        "unknown network: 'NET-12'. Did you mean 'net-12'? Allowed: 13 names, such as"
    )
    assert str(error).endswith(". To see all: backbones zoo list.") and str(error).count("'net-") == 3
    far = unknown("network", "zzzzzz", long)
    assert (str(far), far.suggestion) == ("unknown network: 'zzzzzz'. Allowed: 13 names, such as 'net-0', 'net-1', 'net-2'.", None)


class Unreadable:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise UserError("image 'a.png' cannot be read", "bad-file")


def test_errors_of_workers_keep_their_line():
    with pytest.raises(UserError) as caught:
        list(DataLoader(Unreadable(), num_workers=1))
    assert str(caught.value) == "image 'a.png' cannot be read" and caught.value.code in CODES


def at(cfg_pairs, check, *arguments, base="digits/faster_rcnn_digits.yaml"):
    """Checks the quickstart's config with some keys changed, as a training does."""

    def provoke(folder):
        cfg = zoo.get_config(base)
        merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder), *cfg_pairs])
        check(cfg, *arguments)

    return provoke


def of_data(*pairs):
    return at(pairs, check_datasets, True)


def with_file(text, read):
    def provoke(folder):
        (folder / "file.txt").write_text(text)
        read(str(folder / "file.txt"))

    return provoke


def frozen(folder):
    cfg = zoo.get_config("digits/faster_rcnn_digits.yaml")
    cfg.freeze()
    backbones.use_backbone(cfg, "V-39-eSE")


def misfit(folder):
    torch.save({"other.weight": torch.zeros(1)}, folder / "other.pth")
    GatedCheckpointer(torch.nn.Linear(1, 1), require="all").load(str(folder / "other.pth"), checkpointables=[])


def another_run(folder):
    (folder / "model_final.pth").write_bytes(b"")
    clear(str(folder), overwrite=False, weights="")


def test_a_link_among_a_runs_files_is_removed_alone(tmp_path):
    """With --overwrite; what it leads to stays."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_bytes(b"")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "inference").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "run" / "model_final.pth").write_bytes(b"")
    clear(str(tmp_path / "run"), overwrite=True, weights="")
    assert not list((tmp_path / "run").iterdir()) and (tmp_path / "elsewhere" / "kept").exists()


def jump(folder):
    """A run of 10 iterations at a constant rate is resumed in the middle, at a tenth of it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = MultiStepParamScheduler([1.0, 0.1], num_updates=10, milestones=[5])
    keep_schedule(optimizer, LRMultiplier(optimizer, schedule, 10), 7, None)


class Diverges(torch.nn.Linear):
    def forward(self, x):
        return {"loss": super().forward(x).sum() / 0}


def diverge(folder):
    model = Diverges(2, 1)
    with EventStorage():
        Steps(model, [torch.ones(1, 2)], torch.optim.SGD(model.parameters(), lr=0.1)).run_step()


def die(record):
    os.kill(os.getpid(), signal.SIGKILL)


def other_numbers(folder):
    cfg = zoo.get_config("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml")
    cfg.MODEL.DEVICE = "cpu"
    image = np.zeros((64, 64, 3), np.uint8)
    nothing = Tolerance(0, 0, features=-1.0)  # which no file can keep
    export(cfg, build_model(cfg).eval(), str(folder / "b.ts"), "torchscript", image, "backbone", nothing)


# code -> (what a user does, the key that is named, what is suggested)
PROVOKED = {
    "value": (at(["SOLVER.MAX_ITER", "0"], check_config), "SOLVER.MAX_ITER", 1),
    "unknown-name": (
        at(["MODEL.BACKBONE.NAME", "build_vovnet_fnp_backbone"], check_config),
        "MODEL.BACKBONE.NAME",
        "build_vovnet_fpn_backbone",
    ),
    "unknown-key": (at(["MODEL.FPN.NOMR", "BN"], check_config), "MODEL.FPN.NOMR", "MODEL.FPN.NORM"),
    "syntax": (at(["MODEL.FPN.OUT_CHANNELS", "wide"], check_config), "MODEL.FPN.OUT_CHANNELS", None),
    "missing-argument": (of_data("DATASETS.TRAIN", "()"), "DATASETS.TRAIN", None),
    "conflict": (at(["TEST.PATIENCE", "2", "TEST.EVAL_PERIOD", "0"], check_config, True), "TEST.PATIENCE", 0),
    "build": (at(["MODEL.ANCHOR_GENERATOR.SIZES", "[[32],[64]]"], check_config), "", None),
    "unsupported": (frozen, "", None),
    "device": (lambda _: check_device("cuda"), "MODEL.DEVICE", "cpu"),
    "batch": (at(["SOLVER.IMS_PER_BATCH", "7"], check_config, True, 2), "SOLVER.IMS_PER_BATCH", 6),
    "missing-package": (lambda _: check_packages("lvis_v1_val", True, "DATASETS.TEST"), "DATASETS.TEST", "--no-deps lvis"),
    "missing-file": (of_data("DATASETS.TRAIN", "('coco_2014_train',)"), "DATASETS.TRAIN", None),
    "bad-file": (
        with_file("{", lambda path: parse(path, "results")),
        "",
        None,
    ),
    "cannot-write": (with_file("", lambda path: check_output_dir(os.path.join(path, "run"))), "OUTPUT_DIR", None),
    "data": (of_data("MODEL.META_ARCHITECTURE", "ImageClassifier"), "DATASETS.TRAIN", None),
    "missing-weights": (lambda _: zoo.weights.find("backbones://V-39-eSEE"), "MODEL.WEIGHTS", "V-39-eSE"),
    "classes": (of_data("MODEL.ROI_HEADS.NUM_CLASSES", "80"), "MODEL.ROI_HEADS.NUM_CLASSES", 10),
    "download": (with_file("<html>", read_checkpoint), "", None),
    "misfit-weights": (misfit, "", None),
    "folder-in-use": (another_run, "--overwrite", None),
    "resume": (jump, "--new-schedule", None),
    "diverged": (diverge, "", None),
    "resources": (lambda _: next(iter(train_loader([{}], die, total_batch_size=1, num_workers=1))), "", None),
    "mismatch": (other_numbers, "", None),
}


def test_every_code_is_provoked():
    assert set(PROVOKED) == set(CODES)


@pytest.mark.parametrize("code", PROVOKED)
def test_each_code(code, tmp_path, monkeypatch):
    provoke, key, suggestion = PROVOKED[code]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if code == "missing-package":
        monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError) as caught:
        provoke(tmp_path)
    assert (caught.value.code, caught.value.key, caught.value.suggestion) == (code, key, suggestion)


def test_keys_without_a_value(tmp_path):
    """YAML's null, or nothing behind the colon: one line that names the key; but no weights are none."""
    config = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"
    cfg = zoo.get_config(config)
    merge_overrides(cfg, ["SOLVER.WEIGHT_DECAY_BIAS", "None", "MODEL.WEIGHTS", "None"])
    assert cfg.SOLVER.WEIGHT_DECAY_BIAS is None and cfg.MODEL.WEIGHTS == ""
    for key in set(all_keys(cfg)) - {"SOLVER.WEIGHT_DECAY_BIAS", "MODEL.WEIGHTS"}:
        with pytest.raises(UserError) as error:
            merge_overrides(cfg.clone(), [key, "None"])
        assert f"{key} has no value: give it one" in str(error.value)
    for text, key in (("DATASETS:\n  TRAIN:\n", "DATASETS.TRAIN"), ("MODEL:\n  DEVICE: null\n", "MODEL.DEVICE")):
        (tmp_path / "a.yaml").write_text(f"_BASE_: {zoo.get_config_file(config)}\n{text}")
        with pytest.raises(UserError, match=f"a.yaml': {key} has no value") as error:
            zoo.get_config(str(tmp_path / "a.yaml"))
        assert "\n" not in str(error.value)
    for text in ("MODEL:\n", "MODEL: 3\n", "MODEL:\n  FPN:\n"):
        (tmp_path / "a.yaml").write_text(f"_BASE_: {zoo.get_config_file(config)}\n{text}")
        with pytest.raises(UserError, match=r"'MODEL(.FPN)?' in .*a.yaml is a group of keys: give it keys of its own, such as MODEL\."):
            zoo.get_config(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("VERSION: 2\nMODEL:\n  WEIGHTS:\n")
    assert zoo.get_config(str(tmp_path / "a.yaml")).MODEL.WEIGHTS == ""


def test_following_all_suggestions_mends_a_config(tmp_path):
    """Each mistake is found at once, with its key, and a program that follows the suggestions needs no sentence."""
    cfg = zoo.get_config("digits/faster_rcnn_digits.yaml")
    wrong = {
        "SOLVER.MAX_ITER": "0",
        "INPUT.FORMAT": "BRG",
        "MODEL.FPN.NORM": "bn",
        "MODEL.GFL.PRIOR_PROB": "2.0",
        "SOLVER.IMS_PER_BATCH": "7",
        "INPUT.CLASSIFICATION.RESIZE": "8",
        "MODEL.RPN.IN_FEATURES": "['p2', 'p33', 'p4', 'p5', 'p6']",
        "MODEL.ROI_HEADS.IN_FEATURES": "['p2', 'p3', 'p4', 'p55']",
        "MODEL.ROI_HEADS.NUM_CLASSES": "80",
    }
    pairs = [part for pair in wrong.items() for part in pair]
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *pairs])
    found = [*config_findings(cfg, training=True, processes=2), *dataset_findings(cfg, training=True)]
    assert {error.key for error in found} == set(wrong) and len({str(error) for error in found}) == len(found)
    for error in found:
        if not isinstance(get(cfg, error.key), list):
            put(cfg, error.key, error.suggestion)
    left = [*config_findings(cfg, training=True, processes=2), *dataset_findings(cfg, training=True)]
    assert {error.key: error.suggestion for error in left} == {"MODEL.RPN.IN_FEATURES": "p3", "MODEL.ROI_HEADS.IN_FEATURES": "p5"}


def test_own_architectures_are_left_alone():
    cfg = zoo.get_config("digits/faster_rcnn_digits.yaml")
    for name, dense, classes in (("OwnDetector", False, ()), ("OwnRetinaNet", True, ("MODEL.RETINANET.NUM_CLASSES",))):
        cfg.MODEL.META_ARCHITECTURE = name
        row = architecture(cfg)
        assert (row.features, row.dense, tuple(row.classes)) == (None, dense, classes) and not row.augmented


def matches_on_words(tree):
    """Places where code decides by the words of a caught UserError, or of a finding's message: (line, code)."""
    caught = {
        part
        for handler in ast.walk(tree)
        if isinstance(handler, ast.ExceptHandler) and handler.name and "UserError" in ast.unparse(handler.type)
        for node in handler.body
        for part in ast.walk(node)
        if isinstance(part, ast.Name) and part.id == handler.name
    }
    of_caught = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in ("code", "key", "suggestion")}
    texts = {part for part in caught if id(part) not in of_caught}
    texts |= {node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "message" and node.value not in texts}

    for node in ast.walk(tree):
        parts = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if ast.unparse(node.func.value) == "re":
                parts = node.args
            elif node.func.attr in ("startswith", "endswith", "find", "index", "count", "partition", "rpartition"):
                parts = [node.func.value]
        if any(inner in texts for part in parts for inner in ast.walk(part)):
            yield node.lineno, ast.unparse(node)


def test_no_code_reads_a_sentence():
    """No decision hangs on the words of a UserError or a finding: a message can be reworded and nothing changes."""
    found = []
    for path in [*glob.glob(os.path.join(ROOT, "backbones", "**", "*.py"), recursive=True), *glob.glob(os.path.join(ROOT, "convert", "*.py"))]:
        with open(path) as f:
            found += [(os.path.relpath(path, ROOT), *place) for place in matches_on_words(ast.parse(f.read()))]
    assert not found


@pytest.mark.parametrize(
    "body",
    [
        "'not there' in str(error)",
        "error.args[0] == 'x'",
        "re.search('x', str(error))",
        "str(error).startswith('x')",
        "any('x' in f.message for f in found)",
    ],
)
def test_reading_a_sentence_is_noticed(body):
    assert list(matches_on_words(ast.parse(f"def f(found):\n  try:\n    g()\n  except UserError as error:\n    return {body}")))
