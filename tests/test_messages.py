"""What users of comparable projects met as a traceback or as noise: one line, or nothing."""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import warnings

import pytest
import torch
from answers import full_marks
from conftest import ROOT, few_digits, warm
from detectron2.data import DatasetCatalog
from small_data import coco, picture, voc_object, voc_xml, write

import backbones
from backbones import zoo
from backbones.config import check_config, check_device, config_findings, idle_keys, merge_overrides
from backbones.data import dataset_findings, register_image_folders
from backbones.data.formats import load, other_splits
from backbones.data.sources import Use, trained_on
from backbones.deploy import Runner
from backbones.deploy.names import names_of
from backbones.engine import YamlFront, open_config
from backbones.evaluation import build_evaluator
from backbones.evaluation.figures import figures_of, is_better, metric_findings
from backbones.evaluation.results import config_of
from backbones.tools import compare, errors, export, visualize

CONFIG = "digits/faster_rcnn_digits.yaml"


def python(*args, **env):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT, **env}
    return subprocess.run([sys.executable, *args], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


def config(*overrides):
    cfg = zoo.get_config(CONFIG)
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *overrides])
    return cfg


def said(call, *args):
    with pytest.raises(backbones.UserError) as caught:
        call(*args)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    "overrides, words, suggestion",
    [
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN (160,200,240)", "must be two sides", (160, 240)),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN (240,160)", "the smaller first", (160, 240)),
        ("INPUT.MIN_SIZE_TRAIN ()", "one or more whole numbers", None),
        ("INPUT.MIN_SIZE_TRAIN ('a',)", "one or more whole numbers", None),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN ()", "one or more whole numbers", None),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING range INPUT.MIN_SIZE_TRAIN ('a','b')", "one or more whole numbers", None),
        ("INPUT.MIN_SIZE_TRAIN_SAMPLING ranges", "Did you mean 'range'", "range"),
        ("INPUT.RANDOM_FLIP both", "Allowed: 'none', 'horizontal', 'vertical'", None),
        ("INPUT.CROP.ENABLED True INPUT.CROP.SIZE (384,600)", "must be fractions of an image's height and width", None),
        ("INPUT.CROP.AROUND_OBJECTS True", "needs INPUT.CROP.ENABLED", False),
        ("INPUT.CROP.ENABLED True INPUT.CROP.TYPE absolute", "must be a height and a width in whole pixels", None),
        ("TEST.AUG.MIN_SIZES ()", "one or more whole numbers", None),
    ],
)
def test_lists_that_do_not_fit(overrides, words, suggestion):
    cfg = config(*overrides.split())
    Use.of(cfg)  # which is asked before the check
    error = said(check_config, cfg)
    assert words in str(error) and (suggestion is None or error.suggestion == suggestion)


def test_tasks_that_an_architecture_does_not_learn():
    cfg = zoo.get_config("digits/gfl_digits.yaml")
    merge_overrides(cfg, ["MODEL.MASK_ON", "True", "MODEL.DEVICE", "cpu"])
    (error,) = config_findings(cfg)
    assert error.key == "MODEL.MASK_ON" and "'GFL' learns boxes alone" in str(error)


def test_keys_that_change_nothing():
    """Which the command line sets: a base may keep values of what is off."""
    opts = "SOLVER.AMP.PRECISION bfloat16 MODEL.REGNET.NAME RegNetY-4.0GF MODEL.VOVNET.NORM BN MODEL_EMA.ENABLED True MODEL_EMA.DECAY 0.9"
    front = open_config("faster_rcnn_V_39_FPN_3x.yaml", opts.split())
    idle = {key: why for key, why in idle_keys(front.settings, front.name) if front.stated(key)}
    assert idle.keys() == {"SOLVER.AMP.PRECISION", "MODEL.REGNET.NAME"} and idle["SOLVER.AMP.PRECISION"] == "it needs SOLVER.AMP.ENABLED True"
    assert idle["MODEL.REGNET.NAME"].startswith("the backbone is build_vovnet_fpn_backbone")
    front = open_config("COCO-Detection/retinanet_R_50_FPN_1x.py", ["train.amp.precision=bfloat16"])
    assert [why for key, why in idle_keys(front.settings, front.name) if front.stated(key)] == ["it needs train.amp.enabled True"]
    for config, backbone, idle in (
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "", True),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "V-39-eSE", False),
        ("COCO-Detection/gfl_R_50_FPN_73e.yaml", "", False),
        ("faster_rcnn_V_39_FPN_3x.yaml", "", True),
    ):
        front = open_config(config, ["MODEL.FPN.P6_INPUT", "p5"], backbone)
        assert ("MODEL.FPN.P6_INPUT" in dict(idle_keys(front.settings))) == idle, config


def test_keys_of_own_data_where_there_are_none():
    cfg = zoo.get_config("digits/faster_rcnn_digits.yaml")
    assert not list(dataset_findings(cfg, True))
    merge_overrides(cfg, ["DATASETS.CLASSES", "['cup', 'plate']"])
    (error,) = dataset_findings(cfg, True)
    assert error.key == "DATASETS.CLASSES" and "not 'digits_train'" in str(error)
    assert names_of(cfg)[0].thing_classes == [str(i) for i in range(10)]  # not two names for ten classes


def test_one_side_from_python_is_no_range():
    cfg = config("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range")
    cfg.INPUT.MIN_SIZE_TRAIN = 160
    (error,) = config_findings(cfg)
    assert "must be two sides" in str(error) and error.suggestion == (160, 160)


def test_a_suggestion_is_a_value():
    """detectron2's keys have a default of their own, which is none of ours to suggest."""
    cfg = config("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "()", "TEST.AUG.MIN_SIZES", "()")
    assert [error.suggestion for error in config_findings(cfg)] == [None, None]


def test_a_suggested_range_is_taken():
    cfg = config("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", "INPUT.MIN_SIZE_TRAIN", "(96,128)")
    assert not list(config_findings(cfg))


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("TEST.PICTURES", "abc", "TEST.PICTURES is 'abc': it must be a whole number, such as 4"),
        ("SOLVER.AMP.ENABLED", "maybe", "it must be True or False"),
        ("DATASETS.TEST", "own_val", "DATASETS.TEST is 'own_val': it must be a list"),
    ],
)
def test_values_of_another_type(key, value, words, tmp_path):
    """On the command line and in a file."""
    assert re.search(words, str(said(config, key, value)))
    *nodes, leaf = key.split(".")
    text = "".join(f"{'  ' * i}{node}:\n" for i, node in enumerate(nodes)) + f"{'  ' * len(nodes)}{leaf}: {value}\n"
    path = tmp_path / "own.yaml"
    path.write_text(f'_BASE_: "{zoo.get_config_file(CONFIG)}"\n{text}')
    error = said(zoo.get_config, str(path))
    assert repr(str(path)) in str(error) and re.search(words, str(error))


def test_configs_that_are_not_there(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "mine.yaml").write_text("SEED: 1\n")
    assert "is a folder" in str(said(zoo.get_config_file, str(tmp_path / "folder.yaml")))
    error = said(zoo.get_config_file, str(tmp_path / "mien.yaml"))
    assert str(error).endswith(f"does not exist. Did you mean {str(tmp_path / 'mine.yaml')!r}?") and error.code == "missing-file"
    assert "and neither does its folder" in str(said(zoo.get_config_file, str(tmp_path / "none" / "mine.yaml")))
    assert "unknown config" in str(said(zoo.get_config_file, "COCO-Detection/faster_rcnn_V_39_FPN_4x"))


def test_a_name_of_the_zoo_that_is_a_folder_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faster_rcnn_V_39_FPN_3x").mkdir()  # as an OUTPUT_DIR may be called
    assert zoo.get_config_file("faster_rcnn_V_39_FPN_3x").endswith("faster_rcnn_V_39_FPN_3x.yaml")


def test_weights_that_are_a_folder(tmp_path):
    from backbones.checkpoint import GatedCheckpointer, read_checkpoint

    assert "is a folder" in str(said(read_checkpoint, str(tmp_path)))
    assert "is a folder" in str(said(GatedCheckpointer(backbones.create("V-19-slim-dw-eSE")).load, str(tmp_path)))


def test_keys_of_python_configs():
    error = said(open_config, "COCO-Detection/fcos_R_50_FPN_1x.py", ["model.backbon.x=3"])
    assert "unknown config key: 'model.backbon'. Did you mean 'model.backbone'?" in str(error) and error.suggestion == "model.backbone"


@pytest.mark.parametrize("wanted, suggestion", [("bbox/AP5O", "bbox/AP5"), ("ap50", "bbox/AP50"), ("segm/AP", "bbox/AP")])
def test_a_best_metric_that_nothing_gives(wanted, suggestion):
    (error,) = metric_findings(config("TEST.BEST_METRIC", wanted))
    assert error.suggestion.startswith(suggestion[:-1]) and "Allowed: 'bbox/AP'" in str(error)


@pytest.mark.parametrize("wanted", ["auto", "", "bbox/AP75", "digits_val/bbox/AP", "bbox/AP-7", "validation/total_loss"])
def test_best_metrics_that_are_given(wanted):
    assert not list(metric_findings(config("TEST.BEST_METRIC", wanted, "TEST.LOSS", "True")))


def test_a_best_metric_that_is_a_loss():
    (error,) = metric_findings(config("TEST.BEST_METRIC", "validation/total_loss"))
    assert "set TEST.LOSS True" in str(error) and (error.key, error.suggestion) == ("TEST.LOSS", True)
    several = ["DATASETS.TEST", "('digits_val', 'digits_train')", "TEST.LOSS", "True", "TEST.BEST_METRIC"]
    (error,) = metric_findings(config(*several, "validation/total_loss"))
    assert "'validation/digits_val/total_loss'" in str(error)
    assert not list(metric_findings(config(*several, "validation/digits_train/total_loss")))
    for name, lower in (("validation/a/total_loss", True), ("validation/loss_cls", True), ("validation/bbox/AP-blossom", False)):
        assert is_better(name, 1.0, 2.0) == lower and is_better(name, 2.0, 1.0) != lower  # a data set may be called validation


def test_figures_are_those_of_an_evaluation(tmp_path):
    cfg = config("OUTPUT_DIR", str(tmp_path))
    DatasetCatalog.get("digits_val")  # made where it is not there
    given = full_marks(build_evaluator(cfg, "digits_val"), "digits_val")
    assert set(figures_of(cfg, "digits_val")) == {f"bbox/{name}" for name in given["bbox"] if "-" not in name}


def test_a_voc_folder_of_annotations_alone(tmp_path):
    picture(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", voc_xml(voc_object("dog", 1, 1, 60, 60)))
    content = load(str(tmp_path / "Annotations"))
    assert [image["file_name"] for image in content["images"]] == ["a.jpg"] and content["images"][0]["width"] == 160


def test_a_file_where_images_are_wanted(tmp_path):
    picture(tmp_path / "JPEGImages/a.jpg")
    write(tmp_path / "Annotations/a.xml", voc_xml(voc_object("dog", 1, 1, 60, 60)))
    assert "is a file" in str(said(load, str(tmp_path), str(tmp_path / "JPEGImages/a.jpg")))


def test_compare_takes_the_config_of_the_run(tmp_path):
    """Of a file in its folder too; where there is none, it says what to name."""
    results = tmp_path / "inference" / "coco_instances_results.json"
    write(results, json.dumps([]))
    error = said(compare.dataset_of, None, "own_unknown")
    assert "--config-file" in str(error) and error.key == "--dataset"
    error = said(compare.dataset_of, None, "")
    assert str(error) == "the evaluated data are unknown: name them with --dataset" and error.code == "missing-argument"
    deep = tmp_path / "inference" / "a" / "b.json"
    write(deep, json.dumps([]))
    (tmp_path / "inference" / "config.yaml").write_text("name: of another program\n")
    (tmp_path / "config.yaml").write_text(zoo.get_config(CONFIG).dump())
    assert config_of(str(deep)) == str(tmp_path / "config.yaml") and config_of(str(tmp_path / "results" / "mine" / "a.json")) == ""
    front, name, file = compare.evaluated(str(results))
    assert compare.dataset_of(front, name) == "digits_val" and file == str(results)
    error = said(compare.dataset_of, front, "digits_vall")
    assert "unknown data set: 'digits_vall'. Did you mean 'digits_val'?" in str(error) and error.suggestion == "digits_val"


def test_the_nearest_of_a_runs_own_data(tmp_path, catalogue):
    """Also the part that was held out, though only what is named is registered."""
    path, _ = coco(tmp_path / "d")
    args = argparse.Namespace(train_json=path, train_images=str(tmp_path / "d/images"), val_json="", val_images="", val_split=0.5)
    front = YamlFront(zoo.get_config(CONFIG))
    front.apply_data_arguments(args, True)
    assert said(compare.dataset_of, front, "own_train_held").suggestion == "own_train_held_out"


def test_which_split_is_evaluated(tmp_path):
    for split in ("train", "valid", "test"):
        picture(tmp_path / split / "a.jpg")
        write(tmp_path / split / "_annotations.coco.json", json.dumps({"images": [], "categories": [], "annotations": []}))
    (line,) = other_splits(str(tmp_path))
    assert (
        line.startswith(f"{tmp_path}: its split 'val' is evaluated. Others: ")
        and f"--val {tmp_path / 'test' / '_annotations.coco.json'} (test)" in line
    )
    assert other_splits(str(tmp_path / "test")) == []


def test_weights_of_another_network_are_named_as_such(tmp_path):
    """Not as those for other images, which they are too."""
    cfg = config("MODEL.WEIGHTS", str(tmp_path / "other.pth"), "OUTPUT_DIR", str(tmp_path))
    weights = {"backbone.bottom_up.features.0.weight": torch.ones(8, 3, 3, 3)}
    torch.save(
        {"model": weights, "preprocessing": {"format": "RGB", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [1.0] * 3}}, tmp_path / "other.pth"
    )
    front = YamlFront(cfg, str(tmp_path / "config.yaml"))
    (tmp_path / "model_best.pth").touch()
    error = said(front.load_for_evaluation, front.build_model(), False, False)
    assert "does not fit" in str(error) and "another format" not in str(error)
    assert f"Name those of a trained model, such as {tmp_path / 'model_best.pth'}" in str(error)


def test_the_nearest_config_is_in_this_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "robo.yaml").touch()
    assert said(zoo.get_config_file, "robo.yml").suggestion == "robo.yaml"


def test_folders_of_runs_that_are_not_there(tmp_path, monkeypatch):
    (tmp_path / "test").mkdir()
    (tmp_path / "a.pth").touch()
    for tool, flags in ((visualize, ["--input"]), (errors, [])):
        monkeypatch.setattr(sys, "argv", ["tool", *flags, str(tmp_path / "tst"), "--output", "a.html" if tool is errors else "a.png"])
        assert said(tool.main).suggestion == str(tmp_path / "test")
    assert "is a checkpoint: name the folder of its run" in str(said(compare.evaluated, str(tmp_path / "a.pth")))


def test_the_nearest_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "detector.onnx").touch()
    args = argparse.Namespace(train_json="photo", train_images="", val_json="", val_images="", val_split=0)
    error = said(YamlFront(zoo.get_config(CONFIG)).apply_data_arguments, args, True)
    assert str(error) == "--train 'photo' does not exist. Did you mean 'photos'?" and error.suggestion == "photos"
    error = said(Runner, str(tmp_path / "detecter.onnx"))
    assert str(error).endswith(f"detecter.onnx' does not exist. Did you mean {str(tmp_path / 'detector.onnx')!r}?")
    assert said(Runner, str(tmp_path / "nowhere" / "a.onnx")).suggestion is None


@pytest.mark.slow
def test_importing_is_quiet_and_users_are_warned():
    """Of what they script themselves, where this torch warns at all."""
    result = python("-W", "default", "-c", "import backbones, torch\nprint('imported')\ntorch.jit.script(torch.nn.Identity())")
    assert result.stdout == "imported\n"
    assert len(re.findall("FutureWarning: `torch.jit.script`", result.stderr)) == _scripting_is_warned_of(), result.stderr


def _scripting_is_warned_of():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.jit.script(torch.nn.Identity())
    return any("deprecated" in str(warning.message) for warning in seen)


_THEIR_CODE = """
import logging, numpy as np, torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Keypoints
def main():
    DefaultAnchorGenerator(sizes=[[8]], aspect_ratios=[1.0], strides=[8])([torch.zeros(1, 1, 2, 2)])
    Keypoints([np.zeros((3, 3)), np.zeros((3, 3))])
    logging.getLogger("torch.fx._symbolic_trace").warning("is_fx_tracing will return true for both")
    logging.getLogger("torch.fx._symbolic_trace").warning("something else")
"""


@pytest.mark.slow
def test_what_torch_says_of_others_code_is_no_output_of_a_command():
    said = warm("-c", _THEIR_CODE + "main()").stderr
    assert all(words in said for words in ("torch.meshgrid", "extremely slow", "is_fx_tracing", "something else"))
    said = warm("-c", "from backbones.tools import run" + _THEIR_CODE + "run(main)").stderr
    assert said.count("\n") == 1 and "something else" in said


@pytest.mark.slow
@pytest.mark.parametrize("command", [["train_net.py"], ["-m", "backbones", "zoo", "list"], ["-m", "backbones.tools.demo"]])
def test_interrupted_in_the_first_second(command, tmp_path):
    # the first second goes into importing torch; here that never ends, however fast the machine
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(100)\n")
    variables = {**os.environ, "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=50)[1]
    assert process.returncode in (-signal.SIGINT, 130) and "Traceback" not in error, error


@pytest.mark.slow
def test_log_files_have_no_colours(tmp_path):
    code = f"""
import logging
from backbones.engine import set_up_logs
set_up_logs({str(tmp_path)!r})
for name in ("detectron2", "fvcore", "backbones"):
    logging.getLogger(name).warning("\\x1b[38;5;245m# a comment\\x1b[39m")
"""
    result = warm("-c", code, env={**os.environ, "FORCE_COLOR": "1"})
    for text in (result.stdout, (tmp_path / "log.txt").read_text()):
        assert text.count("# a comment") == 3 and "\x1b" not in text


@pytest.mark.parametrize(
    "device, words", [("cuda", "torch sees no GPU here"), ("meta", "torch cannot use it here"), ("gpu", "Allowed: 'cuda'")]
)
def test_devices(device, words, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert words in str(said(check_device, device))
    assert check_device("cpu") is None


def test_apple_gpus(monkeypatch):
    for built, words in ((True, "torch sees no Apple GPU here"), (False, "built without support for Apple GPUs")):
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda built=built: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        assert words in str(said(check_device, "mps"))
    monkeypatch.setattr(torch, "zeros", lambda *args, device: torch.ones(1))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert check_device("mps") is None


def test_a_gpu_that_is_not_among_those_here(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert check_device("cuda:1") is None
    assert "torch sees 2 GPUs, numbered from 0, here" in str(said(check_device, "cuda:2"))


@pytest.mark.slow
def test_training_without_what_linux_alone_has(tmp_path):
    """No fcntl, /proc, /dev/shm nor signals of POSIX's; workers begin as on macOS and Windows."""
    made = few_digits(tmp_path, {"train": 4, "val": 2})
    data = [text for split, paths in made.items() for text in (f"--{split}-json", paths[0], f"--{split}-images", paths[1])]
    options = (
        "SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 1 MODEL.DEVICE cpu INPUT.MIN_SIZE_TRAIN (64,) INPUT.MIN_SIZE_TEST 64"
    )
    common = ["--config-file", CONFIG, *data, "OUTPUT_DIR", str(tmp_path / "run"), *options.split()]
    result = python("tests/elsewhere.py", "train", *common)
    assert result.returncode == 0, result.stderr[-2000:]
    assert (tmp_path / "run" / "model_final.pth").is_file() and (tmp_path / "run" / "inference" / "coco_instances_results.json").is_file()


def test_memory_that_the_system_does_not_tell(monkeypatch):
    from backbones.doctor.environment import memory_of_machine

    assert memory_of_machine()[0] > 0
    monkeypatch.delattr("os.sysconf")
    assert memory_of_machine() == (0, 0)


@pytest.mark.slow
def test_a_folder_is_held_without_fcntl(tmp_path):
    """By portalocker: another process is refused, until the first lets go."""
    code = """
import os, sys
from backbones import UserError
from backbones.engine import lock, resume
resume.fcntl = None
def other():
    process = os.fork()
    if not process:
        try:
            with lock(sys.argv[1]):
                print("held", flush=True)
        except UserError as error:
            print(error.code, flush=True)
        os._exit(0)
    os.waitpid(process, 0)
with lock(sys.argv[1]):
    other()
other()
"""
    assert warm("-c", code, str(tmp_path)).stdout == "folder-in-use\nheld\n"


def test_a_folder_as_the_image_of_an_export(tmp_path):
    assert "is a folder: name one of its images" in str(said(export.sample, open_config(CONFIG, []), str(tmp_path)))


def test_what_is_tested_and_trained_on(tmp_path, catalogue):
    """By the files of own data; detectron2's own, which may not be here, by their names alone."""
    cfg = config("DATASETS.TRAIN", "('voc_2007_trainval', 'voc_2007_test')", "DATASETS.TEST", "('voc_2007_test', 'voc_2012_val')")
    assert [line.partition(":")[0] for line in trained_on(cfg)] == ["voc_2007_test"]
    for folder, count in (("a", 2), ("b", 3)):
        for i in range(count):
            picture(tmp_path / folder / "cup" / f"{i}.jpg")
    folders = [[name, str(tmp_path / place)] for name, place in (("one", "a"), ("other", "b"), ("same", "a"))]
    cfg = config("DATASETS.IMAGE_FOLDERS", repr(folders), "DATASETS.TRAIN", "('one',)", "DATASETS.TEST", "('other', 'same')")
    register_image_folders(cfg)
    (line,) = trained_on(cfg)
    assert line.startswith("same: 2 of 2 images are also trained on: ")
