"""The robustness matrix: what goes wrong around training, a test a row.

Wanted everywhere: one line that names the thing, exit code 2, or training goes on.

Rows that other files hold: killed runs, SIGTERM and lost processes in test_resume.py; hostile, damaged and foreign files in test_checkpoint.py;
random inputs in test_fuzz.py; configs in test_configs.py.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import pathlib
import re
import resource
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from choices import cases, turns
from conftest import ROOT, warm
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import train_net
from backbones import zoo
from backbones.engine import Trainer, step, trainer
from backbones.engine.launch import _meet
from backbones.tools import train

# each row is quick, but there are many; data sets and handlers of a run go with its test
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("catalogue", "own_logs")]

CONFIG = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"
SMALL = """MODEL.DEVICE cpu SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 SOLVER.CHECKPOINT_PERIOD 100 MODEL.ROI_BOX_HEAD.FC_DIM 32
INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64
DATALOADER.NUM_WORKERS 0 TEST.PICTURES 0 DATASETS.TEST () TEST.EVAL_PERIOD 0 SOLVER.LR_SCHEDULER_NAME WarmupMultiStepLR SOLVER.STEPS ()
SOLVER.WARMUP_ITERS 0 SOLVER.BASE_LR 0.0001""".split()


class Data:
    """A made-up data set of six images in COCO's format, to be spoilt."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "images").mkdir()
        rng = np.random.default_rng(0)
        self.content = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "width": 80, "height": 60} for i in range(1, 7)],
            "categories": [{"id": 1, "name": "cup"}, {"id": 4, "name": "plate"}],
            "annotations": [],
        }
        for image in self.content["images"]:
            Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(self.path(image["id"]))
            for k in range(2):
                self.add(image["id"], [5.0 + 20 * k, 5.0, 30.0, 40.0], (1, 4)[k])

    def path(self, number):
        return str(self.folder / "images" / f"{number}.jpg")

    def add(self, image, box, category=1, **more):
        number = len(self.content["annotations"]) + 1
        entry = {"id": number, "image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": 0, **more}
        self.content["annotations"].append(entry)

    def flags(self, split="train"):
        (self.folder / f"{split}.json").write_text(json.dumps(self.content))
        return [f"--{split}-json", str(self.folder / f"{split}.json"), f"--{split}-images", str(self.folder / "images")]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return Data(tmp_path / "data")


@pytest.fixture
def run(tmp_path, capfd):
    """Runs train_net.py in this process; gives its exit code and what it printed to stderr."""

    def run(data, *overrides, flags=(), output="run", config=CONFIG):
        arguments = ["--config-file", config, *data.flags(), *flags, *SMALL, *map(str, overrides), "OUTPUT_DIR", str(tmp_path / output)]
        capfd.readouterr()
        for name in {"own_train", "own_val"} & set(DatasetCatalog):
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        try:
            train_net.command_line(arguments)
            code = 0
        except SystemExit as error:
            code = error.code
        printed = capfd.readouterr()
        return code, printed.err + printed.out

    return run


def refused(result, *words):
    code, error = result
    lines = [line for line in error.splitlines() if ": error: " in line]
    assert code == 2 and len(lines) == 1, error
    assert "Traceback" not in error
    for word in words:
        assert word in lines[0], lines[0]


def losses(tmp_path, output="run"):
    with open(tmp_path / output / "metrics.json") as f:
        return [entry["total_loss"] for entry in map(json.loads, f) if "total_loss" in entry]


def trained(result, tmp_path, output="run"):
    assert result[0] == 0, result[1]
    assert (tmp_path / output / "model_final.pth").is_file()
    assert losses(tmp_path, output) and np.isfinite(losses(tmp_path, output)).all()


# configs


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["MODEL.FPN.NOMR", "BN"], "Did you mean 'MODEL.FPN.NORM'?"),
        (["MODEL.BACKBONE.NAME", "build_vovnet_fpn_backbon"], "Did you mean 'build_vovnet_fpn_backbone'?"),
        (["MODEL.VOVNET.CONV_BODY", "V-39-eSEE"], "Did you mean 'V-39-eSE'?"),
        (["MODEL.FPN.NORM", "BNN"], "Did you mean 'BN'?"),
        (["MODEL.VOVNET.OUT_FEATURES", "['stage2','stage6']"], "stage6"),
        (["MODEL.RPN.IN_FEATURES", "['p2','p9']"], "p9"),
        (["INPUT.UNREADABLE", "skp"], "Did you mean 'skip'?"),
        (["MODEL_EMA.DECAY", "1.0"], "MODEL_EMA.DECAY is 1.0"),
        (["SOLVER.DDP.STATIC_GRAPH", "True", "SOLVER.ACCUMULATE", "2"], "conflicts with SOLVER.ACCUMULATE 2"),
        (["SOLVER.ACCUMULATE", "3"], "SOLVER.ACCUMULATE 3"),
        (["TRACKING.WANDB", "project"], "pip install wandb"),
        (["TRACKING.MLFLOW", "experiment"], "pip install mlflow"),
    ],
)
def test_configs(overrides, words, run, data, tmp_path, monkeypatch):
    for name in ("wandb", "mlflow"):
        monkeypatch.setitem(sys.modules, name, None)
    refused(run(data, *overrides), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("features", ["['p5','p2']", "['p2','p5']", "['p3','p4','p5']"])
def test_features_out_of_order_or_with_gaps(features, run, data, tmp_path):
    """Either is said, or it trains: what it may not is to fail in the middle."""
    sizes = str([[32]] * features.count("p"))
    code, error = result = run(
        data, "MODEL.RPN.IN_FEATURES", features, "MODEL.ROI_HEADS.IN_FEATURES", features, "MODEL.ANCHOR_GENERATOR.SIZES", sizes
    )
    if code:
        refused(result, "IN_FEATURES" if "IN_FEATURES" in error else "cannot be built")
    else:
        trained(result, tmp_path)


def test_no_gpu(run, data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(run(data, "MODEL.DEVICE", "cuda"), "torch sees no GPU", "MODEL.DEVICE cpu")


# own data from the command line


def test_flags_of_own_data(run, data, tmp_path, capfd):
    flags = data.flags()
    val = [flag.replace("train-", "val-") for flag in flags]
    for arguments, words in (
        (flags[2:], "--train-images is given without --train"),
        (val, "--val is given without --train"),
        (["--train", "nowhere.json", "--train-images", "."], "does not exist"),
        (["--eval-only", *flags, "MODEL.WEIGHTS", CONFIG], "--train is given without --val"),
        ([*flags, "--val-split", "1.5"], "--val-split 1.5 must be a fraction of the images, between 0 and 1"),
    ):
        with pytest.raises(SystemExit) as stop:
            train_net.command_line(["--config-file", CONFIG, *arguments, *SMALL, "OUTPUT_DIR", str(tmp_path / "none")])
        assert stop.value.code == 2 and words in capfd.readouterr().err
    data.content["categories"][0]["name"] = "mug"
    refused(run(data, flags=["--val-json", str(tmp_path / "data" / "other.json"), "--val-images", str(data.folder)]), "does not exist")
    (tmp_path / "data" / "other.json").write_text(json.dumps({**data.content, "categories": [{"id": 1, "name": "cup"}]}))
    flags = ["--val-json", str(tmp_path / "data" / "other.json"), "--val-images", str(data.folder)]
    refused(run(data, "DATASETS.TEST", "('own_val',)", flags=flags), "other classes", "'cup' here, 'mug', 'plate' there")


def test_a_part_is_held_out(run, data, tmp_path):
    """To evaluate on, where there is one set alone."""
    trained(run(data, "DATASETS.TEST", "('own_train_held_out',)", flags=["--val-split", "0.34"]), tmp_path)
    saved = zoo.get_config(str(tmp_path / "run" / "config.yaml"))
    assert saved.DATASETS.TRAIN == ("own_train_kept",) and saved.DATASETS.TEST == ("own_train_held_out",)
    with open(tmp_path / "run" / "inference" / "coco_instances_results.json") as f:
        assert len({found["image_id"] for found in json.load(f)}) == 2


def test_own_data_trains_and_evaluates(run, data, tmp_path):
    result = run(data, "DATASETS.TEST", "('own_val',)", "TEST.PICTURES", 2, "TEST.LOSS", True, flags=data.flags("val"))
    trained(result, tmp_path)
    assert len(list((tmp_path / "run" / "pictures" / "0000002").iterdir())) == 2
    saved = zoo.get_config(str(tmp_path / "run" / "config.yaml"))
    assert saved.MODEL.ROI_HEADS.NUM_CLASSES == 2 and len(saved.DATASETS.REGISTER) == 2
    with open(tmp_path / "run" / "metrics.json") as f:
        last = json.loads(f.readlines()[-1])
    assert np.isfinite(last["validation/total_loss"]) and "bbox/AP-cup" in last
    state = torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)
    assert state["run"]["classes"] == ["cup", "plate"] and list(state["best"]) == ["bbox/AP"]


# annotations


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda c: c["images"][2].update(id=1), "duplicate image id"),
        (lambda c: c["images"][2].update(file_name="gone.jpg"), "gone.jpg"),
        (lambda c: c["images"][0].update(width=81), "80x60"),
        (lambda c: c.update(annotations=[]), "training data: annotation file"),
        (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], "crowds alone"),
    ],
)
def test_wrong_annotations(spoil, words, run, data):
    spoil(data.content)
    refused(run(data), words)


def test_classes_that_are_not_the_models(run, data):
    refused(run(data, "MODEL.ROI_HEADS.NUM_CLASSES", 3), "NUM_CLASSES is 3, but data set 'own_train' has 2")


@pytest.mark.parametrize("kind", ["image", "batch", "all but one", "degenerate", "outside", "huge", "crowds"])
def test_odd_annotations(kind, run, data, tmp_path):
    """Trains on, with finite losses."""
    annotations = data.content["annotations"]
    left = {"image": 5, "batch": 2, "all but one": 1}.get(kind)
    if left:
        annotations[:] = [a for a in annotations if a["image_id"] <= left]
    for a in annotations[1:]:
        x, y, w, h = a["bbox"]
        a["bbox"] = {"degenerate": [x, y, 0.0, -3.0], "outside": [500.0, 500.0, w, h], "huge": [-1e3, -1e3, 3e3, 3e3]}.get(kind, a["bbox"])
        a["iscrowd"] = int(kind == "crowds")
    trained(run(data, "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False), tmp_path)


def test_keypoints_that_are_not_there(run, data):
    config = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml"
    refused(run(data, "MODEL.WEIGHTS", "", config=config), "keypoints")


# images


def spoil_image(kind, path):
    with open(path, "rb") as f:
        content = f.read()
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "0 bytes":
        content = b""
    elif kind == "text":
        content = b"<html>404</html>"
    elif kind == "zeros":
        content = bytes(len(content))
    with open(path, "wb") as f:
        f.write(content)


def left_out(folder, what):
    """The numbers of images that a run says it went without, each time it says so; their names follow."""
    log = (folder / "log.txt").read_text()
    return [int(number) for number, _ in re.findall(f"images left out of {what}: ([0-9]+): image '([^']+\\.jpg)'", log)]


def later(monkeypatch, spoil):
    """Calls ``spoil`` after the data have been looked at, and before they are trained on."""

    def run(args, front, begin=train.run):
        spoil()
        begin(args, front)

    monkeypatch.setattr(train, "run", run)


@pytest.mark.parametrize("kind", ["truncated", "0 bytes", "text", "zeros"])
def test_unreadable_images_at_the_first_look(kind, run, data, tmp_path):
    """They are named, or with INPUT.UNREADABLE skip left out and counted."""
    for number in (1, 2, 3):
        spoil_image(kind, data.path(number))
    if kind == "truncated":  # headers are sound
        return
    refused(run(data), "image (3)", "'1.jpg'", "INPUT.UNREADABLE skip")
    trained(run(data, "INPUT.UNREADABLE", "skip", output="skipped"), tmp_path, "skipped")
    assert "3 missing or unreadable images" in (tmp_path / "skipped" / "log.txt").read_text()


KINDS, MAPPERS = ["truncated", "0 bytes", "text", "zeros"], ["detectron2", "fast"]


@pytest.mark.parametrize("kind, mapper", cases(itertools.product(KINDS, MAPPERS), tried=turns(KINDS, MAPPERS)))
def test_unreadable_images(kind, mapper, run, data, tmp_path, monkeypatch):
    """The file is named; with INPUT.UNREADABLE skip others take its place, and they are counted."""
    before = {number: pathlib.Path(data.path(number)).read_bytes() for number in range(1, 7)}
    spoilt = [1, 2, 3, 4, 5]
    later(monkeypatch, lambda: [spoil_image(kind, data.path(number)) for number in spoilt])
    refused(run(data, "INPUT.MAPPER", mapper), ".jpg' cannot be read", "INPUT.UNREADABLE skip")
    for number, content in before.items():
        pathlib.Path(data.path(number)).write_bytes(content)
    trained(run(data, "INPUT.MAPPER", mapper, "INPUT.UNREADABLE", "skip", output="skipped"), tmp_path, "skipped")
    with open(tmp_path / "skipped" / "metrics.json") as f:
        assert json.loads(f.readlines()[-1])["unreadable_images"] >= 1
    for number, content in before.items():
        pathlib.Path(data.path(number)).write_bytes(content)
    spoilt.append(6)
    refused(run(data, "INPUT.MAPPER", mapper, "INPUT.UNREADABLE", "skip", output="none"), "20 images in a row")


def test_unreadable_images_in_workers(run, data):
    for number in range(1, 7):
        spoil_image("truncated", data.path(number))
    refused(run(data, "DATALOADER.NUM_WORKERS", 2), ".jpg' cannot be read")


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_in_evaluation(workers, run, data, tmp_path):
    """The file is named; with INPUT.UNREADABLE skip figures, losses and pictures go without it, which is said."""
    flags = data.flags("val")
    data.content["images"] = data.content["images"][:5]
    data.content["annotations"] = [a for a in data.content["annotations"] if a["image_id"] < 6]
    spoil_image("truncated", data.path(6))
    options = ["DATASETS.TEST", "('own_val',)", "DATALOADER.NUM_WORKERS", workers]
    refused(run(data, *options, flags=flags), "6.jpg' cannot be read", "INPUT.UNREADABLE skip")
    options += ["INPUT.UNREADABLE", "skip", "TEST.LOSS", True, "TEST.PICTURES", 6]
    trained(run(data, *options, flags=flags, output="skipped"), tmp_path, "skipped")
    assert left_out(tmp_path / "skipped", "this evaluation, so their objects count as missed") == [1]
    assert len(list((tmp_path / "skipped" / "pictures" / "0000002").iterdir())) == 5
    with open(tmp_path / "skipped" / "metrics.json") as f:
        assert np.isfinite(json.loads(f.readlines()[-1])["validation/total_loss"])


@pytest.mark.parametrize("mapper", ["detectron2", "exact"])
def test_images_of_too_many_pixels(mapper, run, data, tmp_path):
    """As unreadable ones: named, or left out and counted, as the first look finds them."""
    options = ["INPUT.MAPPER", mapper, "INPUT.MAX_PIXELS", 4799, "SOLVER.MAX_ITER", 6]
    for i in range(2, 7):
        data.content["images"][i - 1].update(width=40, height=30)
        Image.new("RGB", (40, 30)).save(data.path(i))
    refused(run(data, *options), "1.jpg", "has 80x60 pixels, more than INPUT.MAX_PIXELS 4799", "INPUT.UNREADABLE skip")
    trained(run(data, *options, "INPUT.UNREADABLE", "skip", output="skipped"), tmp_path, "skipped")
    assert "1 missing or unreadable image" in (tmp_path / "skipped" / "log.txt").read_text()


@pytest.mark.parametrize("mapper", ["detectron2", "exact"])
def test_images_thinner_than_a_pixel(mapper, run, data, tmp_path):
    """They are trained on as all others are."""
    for number, size in ((1, (3000, 1)), (2, (1, 3000))):
        data.content["images"][number - 1].update(width=size[0], height=size[1])
        Image.new("RGB", size).save(data.path(number))
        for a in data.content["annotations"]:
            if a["image_id"] == number:
                a["bbox"] = [10.0, 0.0, 100.0, 1.0] if number == 1 else [0.0, 10.0, 1.0, 100.0]
    trained(run(data, "INPUT.MAPPER", mapper, "SOLVER.MAX_ITER", 6, "INPUT.MAX_SIZE_TRAIN", 256), tmp_path)


def test_images_that_are_gone_when_they_are_read(run, data, monkeypatch):
    later(monkeypatch, lambda: [os.remove(data.path(number)) for number in range(1, 7)])
    refused(run(data), "cannot be read", "No such file")


MODES, READERS = ["L", "RGBA", "CMYK", "I;16", "P", "exif"], ["detectron2", "exact"]


@pytest.mark.parametrize("mode, mapper", cases(itertools.product(MODES, READERS), tried=turns(MODES, READERS)))
def test_modes_of_images(mode, mapper, run, data, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    for image in data.content["images"]:
        name = image["file_name"] = f"{image['id']}.{'tif' if mode in ('CMYK', 'I;16') else 'jpg' if mode == 'exif' else 'png'}"
        if mode == "exif":
            exif = Image.Exif()
            exif[0x0112] = 6
            Image.fromarray(pixels.transpose(1, 0, 2)).save(data.folder / "images" / name, exif=exif)
        elif mode == "I;16":
            Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 200).save(data.folder / "images" / name)
        else:
            Image.fromarray(pixels).convert(mode).save(data.folder / "images" / name)
    if mode == "I;16":
        refused(run(data, "INPUT.MAPPER", mapper), "16 or more bits", 'INPUT.VALUE_RANGE "[0, 65535]"')
    trained(run(data, "INPUT.MAPPER", mapper, "INPUT.VALUE_RANGE", "[0, 65535]", output="scaled"), tmp_path, "scaled")


def test_sizes_of_images(run, data, tmp_path):
    """Single pixels, 1:200 and sizes that no stride divides, beside an image as usual: of twelve that are read, each is two."""
    for image, (height, width) in zip(data.content["images"], [(1, 1), (1, 600), (600, 1), (31, 65), (10, 2000)]):
        image.update(width=width, height=height)
        Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(data.path(image["id"]))
        for a in data.content["annotations"]:
            if a["image_id"] == image["id"]:
                a["bbox"] = [0.0, 0.0, float(width), float(height)]
    trained(run(data, "INPUT.MAX_SIZE_TRAIN", 512, "SOLVER.MAX_ITER", 6), tmp_path)


def test_a_very_large_image(run, data, tmp_path):
    """8000 x 8000, in a batch with a small one: memory is for its pixels, not for a network on them."""
    image = data.content["images"][0]
    image.update(width=8000, height=8000)
    Image.new("L", (8000, 8000)).save(data.path(image["id"]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trained(run(data), tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


# losses


def with_loss(monkeypatch, value, at=1):
    forward = step.Steps.run_step
    from detectron2.modeling import GeneralizedRCNN

    inner = GeneralizedRCNN.forward

    def spoilt(self, inputs):
        found = inner(self, inputs)
        if self.training and calls[0] == at:
            found["loss_box_reg"] = found["loss_box_reg"] * value
        return found

    calls = [-1]

    def counted(self):
        calls[0] += 1
        forward(self)

    monkeypatch.setattr(GeneralizedRCNN, "forward", spoilt)
    monkeypatch.setattr(step.Steps, "run_step", counted)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_no_numbers(value, run, data, tmp_path, monkeypatch):
    """The loss is named, and the last checkpoint stays: of the iteration before, and with weights that are numbers."""
    with_loss(monkeypatch, value)
    refused(run(data, "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 1), "diverged at iteration 1", "loss_box_reg is")
    state = torch.load(tmp_path / "run" / "model_0000000.pth", weights_only=True)
    assert all(torch.isfinite(v).all() for v in state["model"].values()) and state["iteration"] == 0
    assert not (tmp_path / "run" / "model_final.pth").exists()


def test_a_learning_rate_far_too_high(run, data):
    refused(run(data, "SOLVER.BASE_LR", 1e30, "SOLVER.WARMUP_ITERS", 0, "SOLVER.MAX_ITER", 20), "diverged at iteration", "SOLVER.BASE_LR")


def test_gradients_that_no_scale_saves():
    """A scaler that has gone below 1e-4 stops the run."""

    class Model(torch.nn.Linear):
        def forward(self, x):
            return {"loss": super().forward(x).sum()}

    class Scaler:
        scale = staticmethod(lambda loss: loss)
        get_scale = staticmethod(lambda: 1e-5)

    model = Model(2, 1)
    before = model.weight.detach().clone()
    steps = step.Steps(model, [torch.ones(1, 2)], torch.optim.SGD(model.parameters(), lr=0.1))
    steps.grad_scaler = Scaler()
    with pytest.raises(step.Diverged, match="bfloat16") as caught:
        steps.run_step()
    assert caught.value.code == "diverged" and torch.equal(model.weight, before)


_OTHER = {  # what is another in the second of two processes, and the words by which both end
    "loss": ("if second: found['loss_cls'] = found['loss_cls'] * float('nan')", "", "diverged at iteration 0"),
    "data": ("", "raise UserError('no such image')", "no such image"),
    "weights": ("", "", "process 1 has different weights"),
    "checkpoint": ("", "", "process 1 starts at iteration 1"),
}


@pytest.mark.parametrize("what", _OTHER)
def test_all_processes_stop(what, data, tmp_path):
    """Both end within a minute, also where the model itself exchanges something, and it is said once."""
    loss, example, words = _OTHER[what]
    script = tmp_path / "other.py"
    script.write_text(f"""
import os, sys
sys.path.insert(0, {ROOT!r})
import torch, train_net
from backbones.data.loader import Examples
from backbones.errors import UserError
from backbones.engine import fit
from detectron2.modeling import GeneralizedRCNN

second, what = os.environ["RANK"] == "1", {what!r}
inner, get, agree = GeneralizedRCNN.forward, Examples.__getitem__, fit.check_processes_agree

def forward(self, inputs):
    torch.distributed.all_reduce(torch.ones(()))
    found = inner(self, inputs)
    {loss or "pass"}
    return found

def getitem(self, code):
    if second:
        {example or "pass"}
    return get(self, code)

def check(model, start):
    if second and what == "weights":
        next(model.parameters()).data[0] += 1e-4
    agree(model, 1 if second and what == "checkpoint" else start)

GeneralizedRCNN.forward, Examples.__getitem__, fit.check_processes_agree = forward, getitem, check
train_net.command_line()
""")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, "--config-file", CONFIG]
    result = warm(*command, *data.flags(), *SMALL, "SOLVER.MAX_ITER", 50, "OUTPUT_DIR", tmp_path / "run", timeout=120)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "other.py: error:" in line]
    assert len(said) == 1 and words in said[0], result.stderr[-3000:]


def test_processes_meet():
    """Under one name, whatever a start before has left in the store; a second start is known as one."""
    store, names = torch.distributed.HashStore(), []
    store.set("ask/1", "gone")
    store.set("ask/2", "gone")
    for start in range(2):
        with ThreadPoolExecutor(3) as pool:
            met = [each.result(60) for each in [pool.submit(_meet, store, rank, 3) for rank in (2, 0, 1)]]
        assert len({name for name, _ in met}) == 1 and max(number for _, number in met) == start
        names.append(met[0][0])
    assert names[0] != names[1]


# signals, in the middle of an iteration and of an evaluation


SIGNALS = [(signal.SIGTERM, 143, "training"), (signal.SIGINT, 130, "evaluation")]
OTHERS = [(signal.SIGINT, 130, "training"), (signal.SIGTERM, 143, "evaluation")]


@pytest.mark.parametrize("number, code, during", cases([*SIGNALS, *OTHERS], tried=SIGNALS))
def test_signals(number, code, during, run, data, tmp_path, monkeypatch):
    test, evaluated = Trainer.test, []
    if during == "training":
        inner = step.Steps.run_step

        def run_step(self):
            inner(self)
            if self.iter == 1:
                os.kill(os.getpid(), number)
                time.sleep(0.01)

        monkeypatch.setattr(step.Steps, "run_step", run_step)
    else:
        monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, *args: (os.kill(os.getpid(), number), time.sleep(30), test(*args))))
    options = ["SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 100, "TEST.EVAL_PERIOD", 2, "DATASETS.TEST", "('own_val',)"]
    begun = time.monotonic()
    assert run(data, *options, flags=data.flags("val"))[0] == code
    assert time.monotonic() - begun < 25
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    state = torch.load(tmp_path / "run" / "model_0000001.pth", weights_only=True)
    assert state["iteration"] == 1 and state["trainer"]["hooks"]["Evaluate"]["pending"]
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, *args: (evaluated.append(1), test(*args))[1]))
    trained(run(data, *options, flags=[*data.flags("val"), "--resume"]), tmp_path)
    assert len(evaluated) == 3  # the one that was missed, too


def test_a_signal_in_the_last_iteration_is_said_once(run, data, tmp_path, monkeypatch):
    """It ends the training, and would end the evaluation after it."""
    inner = step.Steps.run_step
    monkeypatch.setattr(step.Steps, "run_step", lambda self: (inner(self), self.iter == 1 and os.kill(os.getpid(), signal.SIGTERM)))
    options = ["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "('own_val',)"]
    code, log = run(data, *options, flags=data.flags("val"))
    assert code == 143 and log.count("ended by SIGTERM") == 1
    monkeypatch.undo()
    trained(run(data, *options, flags=[*data.flags("val"), "--resume"]), tmp_path)


def test_a_signal_in_the_last_evaluation(run, data, tmp_path, monkeypatch):
    """With augmented images, once the plain one is done: what is said there, that --resume continues, is so."""
    evaluated, draw = [], trainer.augmented
    monkeypatch.setattr(trainer, "augmented", lambda *args: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(30), draw(*args))[2])
    options = ["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "('own_val',)", "TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(64,)"]
    assert run(data, *options, flags=data.flags("val"))[0] == 143
    monkeypatch.setattr(trainer, "augmented", lambda *args: (evaluated.append(1), draw(*args))[1])
    trained(run(data, *options, flags=[*data.flags("val"), "--resume"]), tmp_path)
    assert evaluated == [1]
    with open(tmp_path / "run" / "metrics.json") as f:
        assert any("bbox_TTA/AP" in json.loads(line) for line in f)
    refused(run(data, *options, flags=[*data.flags("val"), "--resume"]), "has done 2 iterations")


# the folder


def test_another_run_in_the_folder(run, data, tmp_path):
    from backbones.engine.resume import lock

    context = multiprocessing.get_context("fork")
    held, end = context.Event(), context.Event()

    def other():
        with lock(str(tmp_path / "run")):
            held.set()
            end.wait()

    process = context.Process(target=other)
    process.start()
    try:
        assert held.wait(60)
        refused(run(data), "another run is training in OUTPUT_DIR")
    finally:
        end.set()
        process.join()
    trained(run(data), tmp_path)


def test_a_full_disk(run, data, tmp_path):
    """A limit on files' sizes stands for it: the checkpoint is said, and no half of it is left."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, limits[1]))
    try:
        result = run(data, "SOLVER.CHECKPOINT_PERIOD", 1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    refused(result, "model_0000000.pth' cannot be written")
    assert not [name for name in os.listdir(tmp_path / "run") if ".pth" in name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(run, data, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    refused(run(data), "cannot be written")


def test_a_folder_that_cannot_be(run, data):
    refused(run(data, output="data/images/1.jpg/run"), "is a file")


# going on


def test_a_checkpoint_that_was_not_written_to_its_end(run, data, tmp_path):
    """The last whole one is taken, and it is said."""
    trained(run(data, "SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1), tmp_path)
    folder = tmp_path / "run"
    for name in ("model_final.pth", "model_0000002.pth"):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-5000] if name != "model_final.pth" else b"")
    code, error = run(data, "SOLVER.MAX_ITER", 4, flags=["--resume"])
    assert code == 0, error
    with open(folder / "log.txt") as f:
        log = f.read()
    assert "is incomplete: resuming from" in log and "model_0000001.pth" in log
    assert torch.load(folder / "model_final.pth", weights_only=True)["iteration"] == 3


def test_going_on_with_other_things(run, data, tmp_path):
    trained(run(data), tmp_path)
    refused(run(data, "SOLVER.MAX_ITER", 4, flags=["--resume", "--backbone", "RegNetX-200MF"]), "does not fit")
    data.content["categories"][0]["name"] = "mug"
    refused(run(data, "SOLVER.MAX_ITER", 4, flags=["--resume"]), "the first difference is 'cup', now 'mug'")
    data.content["categories"][0]["name"] = "cup"
    trained(run(data, "SOLVER.MAX_ITER", 4, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.BASE_LR", 0.001, flags=["--resume"]), tmp_path)
    with open(tmp_path / "run" / "log.txt") as f:
        log = f.read()
    assert "had 1 processes and 2 images per batch in 1 parts, now 1, 4 and 1" in log
    assert "the config has changed" in log and "SOLVER.BASE_LR" in log
    # what cannot go on leaves the run's config as it is
    config = (tmp_path / "run" / "config.yaml").read_text()
    others = run(data, "SOLVER.MAX_ITER", 6, "SOLVER.BIAS_LR_FACTOR", 2.0, flags=["--resume"])
    refused(others, "the config trains other parameters, or groups of them, than the checkpoint's")
    assert (tmp_path / "run" / "config.yaml").read_text() == config


def test_going_on_from_weights_alone(run, data, tmp_path):
    trained(run(data), tmp_path)
    final = tmp_path / "run" / "model_final.pth"
    torch.save({"model": torch.load(final, weights_only=True)["model"]}, final)
    refused(run(data, "SOLVER.MAX_ITER", 4, flags=["--resume"]), "holds weights but no training state")


def test_prefixes(run, data, tmp_path):
    """Of DDP, torch.compile and an average's file, in an evaluation that asks for every weight."""
    trained(run(data, "MODEL_EMA.ENABLED", True), tmp_path)
    state = torch.load(tmp_path / "run" / "model_final.pth", weights_only=True)
    flags = ["--eval-only", *data.flags("val")]
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "ema"):
        weights = {"ema": state["ema"]} if prefix == "ema" else {"model": {prefix + key: value for key, value in state["model"].items()}}
        torch.save(weights, tmp_path / "other.pth")
        code, error = run(data, "MODEL.WEIGHTS", tmp_path / "other.pth", "DATASETS.TEST", "('own_val',)", flags=flags)
        assert code == 0, (prefix, error)


# processes


def test_a_worker_that_fails(run, data, monkeypatch):
    """A fault of code speaks with its traceback, and does not hang."""

    def broken(*args):
        raise RuntimeError("a fault in the mapper")

    monkeypatch.setattr("backbones.data.mapper.Mapper.__call__", broken)
    with pytest.raises(RuntimeError, match="a fault in the mapper"):
        run(data, "DATALOADER.NUM_WORKERS", 2)


def test_a_worker_that_is_killed(run, data, monkeypatch):
    monkeypatch.setattr("backbones.data.mapper.Mapper.__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    refused(run(data, "DATALOADER.NUM_WORKERS", 2), "a process that reads images was killed")


@pytest.mark.parametrize(
    "problem, words",
    [
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "shared memory, /dev/shm, is too small"),
        ("unable to open shared memory object </torch_1> in read-write mode: Too many open files (24)", "too many files open"),
    ],
)
def test_too_little_shared_memory(problem, words, run, data, monkeypatch):
    """torch alone prints a traceback, loses the batch and waits for it."""

    def full(self):
        raise RuntimeError(problem)

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    refused(run(data, "DATALOADER.NUM_WORKERS", 2), words)


# what is kept and what ends a run


def test_early_stopping(run, data, tmp_path, monkeypatch):
    """The best of the values is kept, across a resume too, and the run ends when its patience does."""
    values = iter([0.2, 0.5, 0.4, 0.3, 0.1])
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, *args: {"bbox": {"AP": next(values)}}))
    options = ["TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 3, "DATASETS.TEST", "('own_val',)"]
    trained(run(data, *options, "SOLVER.MAX_ITER", 3, flags=data.flags("val")), tmp_path)
    assert torch.load(tmp_path / "run" / "model_best.pth", weights_only=True)["best"] == {"bbox/AP": 0.5}
    trained(run(data, *options, "SOLVER.MAX_ITER", 20, flags=[*data.flags("val"), "--resume"]), tmp_path)
    best, final = (torch.load(tmp_path / "run" / f"model_{name}.pth", weights_only=True) for name in ("best", "final"))
    assert best["iteration"] == 1 and final["iteration"] == 4


def test_accumulated_gradients_are_of_the_whole_batch(tmp_path):
    """Two halves give the gradient of the whole, to 1e-6, where the loss is a mean over images."""
    gradients = []
    for parts in (1, 2):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        inputs = torch.arange(12.0).reshape(4, 3)
        batches = iter([inputs] if parts == 1 else [inputs[:2], inputs[2:]])
        module = type("Model", (torch.nn.Module,), {"forward": lambda self, x: {"loss": self.inner(x).square().mean()}})()
        module.inner = model
        steps = step.Steps(module, batches, torch.optim.SGD(module.parameters(), lr=0.0), accumulate=parts)
        with step_storage():
            steps.run_step()
        gradients.append(model.weight.grad.clone())
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-6)


@contextlib.contextmanager
def step_storage():
    from detectron2.utils.events import EventStorage

    with EventStorage():
        yield


def test_learning_rate_follows_the_batch(run, data, tmp_path):
    options = ["SOLVER.REFERENCE_BATCH", 8, "SOLVER.WARMUP_ITERS", 0, "SOLVER.LR_SCHEDULER_NAME", "WarmupMultiStepLR"]
    trained(run(data, *options, "SOLVER.BASE_LR", 0.004), tmp_path)
    with open(tmp_path / "run" / "metrics.json") as f:
        assert json.loads(f.readline())["lr"] == pytest.approx(0.001)
    with open(tmp_path / "run" / "log.txt") as f:
        assert "SOLVER.BASE_LR 0.004 is for 8 images per iteration: with 2, 0.001 is used" in f.read()


def test_signals_outside_of_the_main_thread(run, data, tmp_path):
    """Notebooks and servers train in threads, where there are no handlers."""
    results = []
    thread = threading.Thread(target=lambda: results.append(run(data)))
    thread.start()
    thread.join(60)
    trained(results[0], tmp_path)
