"""The command line, as its users run it: training, evaluation, resuming, several processes, and mistakes."""

import json
import os
import random
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
import zoo_data
from conftest import ROOT, few_digits, fill, load_record, warm

from backbones.choices import random_path

pytestmark = pytest.mark.slow

QUICKSTART = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"


def command(*args, torchrun=0, script="train_net.py", cwd=ROOT, **env):
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"] if torchrun else []
    return warm(*launcher, os.path.join(ROOT, script), *args, cwd=cwd, env={**os.environ, **env})


def succeed(*args, **kwargs) -> str:
    result = command(*args, **kwargs)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout + result.stderr


def figures(output: str) -> str:
    """The box AP line that detectron2 prints for copying."""
    return re.findall(r"copypaste: (\d.*|nan.*)", output)[-1]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Overrides for a run of seconds, on a few digits registered from the command line."""
    made = few_digits(tmp_path_factory.mktemp("tiny"), {"train": 12, "val": 6})
    entries = [[f"tiny_{split}", *paths] for split, paths in made.items()]
    data = ["DATASETS.REGISTER", entries, "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)"]
    speed = ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 4, "INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", 64]
    return ["MODEL.DEVICE", "cpu", "TEST.PICTURES", 0, *data, *speed]


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    output = str(tmp_path_factory.mktemp("trained"))
    return output, succeed("--config-file", QUICKSTART, *tiny, "OUTPUT_DIR", output)


def last_metrics(output):
    with open(os.path.join(output, "metrics.json")) as f:
        return json.loads(f.readlines()[-1])


def test_training_writes_what_detectron2_writes(trained):
    output, log = trained
    assert {"model_final.pth", "last_checkpoint", "metrics.json", "log.txt", "config.yaml", "inference"} <= set(os.listdir(output))
    assert last_metrics(output)["iteration"] == 4
    assert "Copying" not in log and "Traceback" not in log


def test_training_says_what_to_do_next(trained, tmp_path):
    """As a command that draws, once IMAGES are named."""
    said = re.findall(r"next, draw what it finds in your images: python (.*)", trained[1])[-1]
    images, found = (tmp_path / name for name in ("in", "found"))
    images.mkdir()
    cv2.imwrite(str(images / "a.png"), np.zeros((64, 64, 3), np.uint8))
    words = [{"IMAGES": str(images), "found": str(found)}.get(word, word) for word in shlex.split(said)]
    subprocess.run([sys.executable, *words], check=True, cwd=ROOT)
    assert os.listdir(found) == ["a.png"]


def test_evaluation_gives_the_same_figures(trained, tiny):
    output, log = trained
    again = succeed(
        "--config-file", QUICKSTART, "--eval-only", *tiny, "MODEL.WEIGHTS", f"{output}/model_final.pth", "OUTPUT_DIR", f"{output}/eval"
    )
    assert figures(again) == figures(log)
    assert "| backbone" in again and "| RPN" in again  # the load table
    # the written config is a config, and --resume finds the last checkpoint without being told
    resumed = succeed("--config-file", f"{output}/config.yaml", "--eval-only", "--resume")
    assert figures(resumed) == figures(log)


def test_an_evaluation_leaves_the_runs_config(trained, tmp_path):
    """Although it has other weights; in a copied folder its results go there, not into the folder of the config's OUTPUT_DIR."""
    before = os.stat(os.path.join(trained[0], "log.txt")).st_mtime_ns
    copied = shutil.copytree(trained[0], tmp_path / "copied")
    content = (copied / "config.yaml").read_text()
    shutil.rmtree(copied / "inference")
    log = succeed("--config-file", copied / "config.yaml", "--eval-only", "MODEL.WEIGHTS", copied / "model_final.pth")
    assert f"was moved: its results go in '{copied}'" in log and (copied / "inference").is_dir()
    assert (copied / "config.yaml").read_text() == content and os.stat(os.path.join(trained[0], "log.txt")).st_mtime_ns == before


def test_resume(trained, tiny, tmp_path):
    output = shutil.copytree(trained[0], tmp_path / "resumed")  # the other tests' run stays as it is
    arguments = ["--config-file", QUICKSTART, "--resume", *tiny, "OUTPUT_DIR", output]
    done = command(*arguments)
    assert done.returncode == 2 and "raise SOLVER.MAX_ITER" in done.stderr.splitlines()[-1]
    jump = command(*arguments, "SOLVER.MAX_ITER", 6)  # the rate follows a cosine, which a longer run stretches
    assert jump.returncode == 2 and "the learning rate would jump" in jump.stderr.splitlines()[-1]
    log = succeed("--new-schedule", *arguments, "SOLVER.MAX_ITER", 6, "TEST.BEST_METRIC", "auto")
    assert "Starting training from iteration 4" in log and last_metrics(output)["iteration"] == 6
    more = ["SOLVER.MAX_ITER", 7, "TEST.BEST_METRIC", "auto", "DATASETS.TEST", "('tiny_train',)"]
    assert log.count("best so far: model_best.pth") == 1 and "other test data" not in log
    log = succeed("--new-schedule", *arguments, *more)
    assert log.count("is of other test data: the best value counts from here") == 1 and log.count("best so far: model_best.pth") == 1


@pytest.mark.parametrize("torchrun", [0, 2], ids=["num-gpus", "torchrun"])
def test_two_processes_train_in_step(tiny, tmp_path, torchrun):
    """Here, and nowhere else in this file, they are not copies of a process that has its imports, but started as users' are."""
    processes = [] if torchrun else ["--num-gpus", 2, "--dist-url", "auto"]
    short = ["SOLVER.MAX_ITER", 2, "DATASETS.TEST", "()", "OUTPUT_DIR", tmp_path]
    succeed("--config-file", QUICKSTART, *processes, *tiny, *short, script="tests/in_step.py", torchrun=torchrun, FRESH="1")
    first, second = (torch.load(tmp_path / f"rank{i}.pth", weights_only=True) for i in range(2))
    assert first["processes"] == second["processes"] == 2
    initial = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    assert first["weights"].keys() == second["weights"].keys()
    for name, value in first["weights"].items():
        assert torch.equal(value, second["weights"][name]), name
        assert torch.equal(value, initial[name]), name
    if not torchrun:  # it is done, though nothing was evaluated
        done = command("--config-file", QUICKSTART, "--resume", *tiny, *short)
        assert done.returncode == 2 and "raise SOLVER.MAX_ITER" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("kind", ["retinanet", "gfl"])
def test_dense_detectors_in_several_processes(kind, tiny, tmp_path):
    """A run that is continued has the weights, bit by bit, and the normalizer of one that is not; test losses are those of one process."""

    def run(name, processes, *more):
        arguments = ["--config-file", f"digits/{kind}_digits.yaml", "--num-gpus", processes, "--dist-url", "auto", *tiny, "MODEL.WEIGHTS", ""]
        succeed(*more[:2], *arguments, "OUTPUT_DIR", tmp_path / name, *more[2:], script="tests/in_step.py")
        state = torch.load(tmp_path / name / "model_final.pth", weights_only=True)["trainer"]["_trainer"]["moving_values"]
        return state, torch.load(tmp_path / name / "rank0.pth", weights_only=True)

    if kind == "retinanet":
        arguments = "--resume", "--new-schedule", "SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2, "SEED", 1
        whole, first = run("whole", 2, *arguments)
        (tmp_path / "parts").mkdir()
        shutil.copy(tmp_path / "whole/model_0000001.pth", tmp_path / "parts")
        (tmp_path / "parts/last_checkpoint").write_text("model_0000001.pth")
        parts, again = run("parts", 2, *arguments)
        assert whole == parts and list(whole) == [""] and whole[""] != 100
        assert all(torch.equal(value, again["weights"][name]) for name, value in first["weights"].items())
    seen = []
    for processes in (1, 2):  # of five images, so that one process has one more
        weights = ["SOLVER.MAX_ITER", 1, "TEST.LOSS", "True", "SEED", 1]
        seen.append(run(f"validated{processes}", processes, "--resume", "--new-schedule", *weights)[1]["validated"]["validation"])
    assert seen[0].keys() == seen[1].keys() and seen[0]["total_loss"] > 0
    for name, value in seen[0].items():
        assert value == pytest.approx(seen[1][name], rel=1e-5), name


SUPERNET = ["MODEL.SHUFFLENETV2.SUPERNET", "True", "MODEL.SHUFFLENETV2.WIDTH", "0.25", "MODEL.SHUFFLENETV2.NORM", "BN"]


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.whole), 2])
def test_a_supernets_paths(tiny, tmp_path, processes):
    """The same in all processes and after a resume; what no path went through is not moved, by weight decay and momentum neither."""
    arguments = ["--config-file", "digits/faster_rcnn_digits.yaml", "--backbone", "DetNAS-300M", "--num-gpus", processes, "--dist-url", "auto"]
    arguments += [*tiny, *SUPERNET, "SOLVER.WEIGHT_DECAY", "0.1", "SOLVER.WEIGHT_DECAY_NORM", "0.1", "OUTPUT_DIR", tmp_path]
    succeed(*arguments, "SOLVER.MAX_ITER", 1, script="tests/in_step.py")
    begun = torch.load(tmp_path / "rank0.pth", weights_only=True)
    succeed("--resume", "--new-schedule", *arguments, "SOLVER.MAX_ITER", 4, script="tests/in_step.py")
    ranks = [torch.load(tmp_path / f"rank{i}.pth", weights_only=True) for i in range(processes)]
    paths = [path for (path,) in ranks[0]["paths"]]
    assert paths == [random_path(20, random.Random(f"1/{i}")) for i in (1, 2, 3)] and len(set(paths)) == 3
    assert begun["paths"] == [[random_path(20, random.Random("1/0"))]]
    used, moved, still = [set(choices) for choices in zip(*paths)], 0, 0
    blocks = [f"res{stage + 2}.block{i + 1}" for stage, count in enumerate((4, 4, 8, 4)) for i in range(count)]
    for key, value in ranks[0]["weights"].items():
        assert all(torch.equal(value, rank["weights"][key]) for rank in ranks), key
        match = re.match(r"backbone\.bottom_up\.(res\d\.block\d+)\.(\d)\.", key)
        if match and int(match[2]) not in used[blocks.index(match[1])]:
            assert torch.equal(value, begun["weights"][key]), key
            still += 1
        elif match:
            moved += not torch.equal(value, begun["weights"][key])
    assert still > 100 and moved > 100


@pytest.mark.parametrize("torchrun", [pytest.param(0, marks=pytest.mark.whole), 2], ids=["num-gpus", "torchrun"])
def test_two_processes_evaluate_as_one(trained, tiny, tmp_path, torchrun):
    output, log = trained
    processes = [] if torchrun else ["--num-gpus", 2, "--dist-url", "auto"]
    arguments = [
        "--config-file",
        QUICKSTART,
        "--eval-only",
        *processes,
        *tiny,
        "MODEL.WEIGHTS",
        f"{output}/model_final.pth",
        "OUTPUT_DIR",
        tmp_path,
    ]
    results = []
    for run in (succeed(*arguments, torchrun=torchrun), succeed(*[a for a in arguments if a not in processes or a == QUICKSTART])):
        results.append((figures(run), json.loads((tmp_path / "inference" / "coco_instances_results.json").read_text())))
    assert results[0][0] == results[1][0]
    order = lambda found: sorted((r["image_id"], -r["score"], r["category_id"], r["bbox"]) for r in found)
    assert order(results[0][1]) == order(results[1][1])


def test_two_processes_report_a_mistake_once(tiny, tmp_path):
    (tmp_path / "foreign.pth").write_bytes(b"nothing")
    for torchrun in (0, 2):
        processes = [] if torchrun else ["--num-gpus", 2, "--dist-url", "auto"]
        weights = ["MODEL.WEIGHTS", tmp_path / "foreign.pth"]
        result = command("--config-file", QUICKSTART, *processes, *tiny, *weights, "OUTPUT_DIR", tmp_path / "out", torchrun=torchrun)
        assert result.returncode != 0
        assert result.stderr.count("train_net.py: error:") == 1
        # found by the config's check, before the processes know of each other
        result = command("--config-file", QUICKSTART, *processes, *tiny, "SOLVER.IMS_PER_BATCH", 3, torchrun=torchrun)
        assert result.returncode != 0 and "Traceback" not in result.stdout.replace("Traceback (most recent call last)", "", torchrun // 2)
        assert result.stderr.count("train_net.py: error: SOLVER.IMS_PER_BATCH 3 cannot be divided evenly among 2 processes") == 1


@pytest.mark.whole
def test_two_runs_at_once(tiny, tmp_path):
    """Of two processes each, on one machine: they meet at ports of their own."""
    command = [sys.executable, os.path.join(ROOT, "train_net.py"), "--config-file", QUICKSTART, "--num-gpus", "2", *map(str, tiny)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    outputs = [["SOLVER.MAX_ITER", "1", "OUTPUT_DIR", str(tmp_path / name)] for name in "ab"]
    runs = [subprocess.Popen([*command, *output], cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for output in outputs]
    for run in runs:
        assert run.wait(400) == 0, run.stderr.read()[-2000:]
    assert all((tmp_path / name / "model_final.pth").is_file() for name in "ab")


def test_machines_are_named(tiny):
    result = command("--config-file", QUICKSTART, "--num-machines", 2, "--dist-url", "auto", *tiny)
    assert result.returncode == 2 and "--dist-url auto" in result.stderr.splitlines()[-1] and "Traceback" not in result.stderr


def test_scratch_with_frozen_norms_is_warned_of(tiny, tmp_path):
    overrides = ["MODEL.VOVNET.NORM", "FrozenBN", "SOLVER.MAX_ITER", 1, "OUTPUT_DIR", tmp_path]
    log = command("--config-file", QUICKSTART, *tiny, *overrides)
    assert "frozen batch norms, whose statistics come from no data" in log.stdout + log.stderr


def test_another_folder(trained, tiny, tmp_path):
    """The command works from anywhere."""
    output, log = trained
    weights = ["MODEL.WEIGHTS", f"{output}/model_final.pth", "OUTPUT_DIR", tmp_path / "out"]
    assert figures(succeed("--config-file", QUICKSTART, "--eval-only", *tiny, *weights, cwd=tmp_path)) == figures(log)


def test_one_word_swaps_the_backbone(tiny, tmp_path):
    words = [
        "--config-file",
        QUICKSTART,
        "--backbone",
        "RegNetX-200MF",
        *tiny,
        "SOLVER.MAX_ITER",
        1,
        "MODEL.WEIGHTS",
        "",
        "OUTPUT_DIR",
        tmp_path,
    ]
    succeed(*words)
    assert "build_regnet_fpn_backbone" in (tmp_path / "config.yaml").read_text()
    wrong = command("--config-file", QUICKSTART, "--backbone", "RegNet", *tiny)
    assert wrong.returncode == 2 and "unknown backbone: 'RegNet'" in wrong.stderr.splitlines()[-1]


def test_help():
    output = succeed("--help")
    for flag in (
        "--config-file",
        "--num-gpus",
        "--num-machines",
        "--resume",
        "--eval-only",
        "--allow-partial-weights",
        "--backbone",
        "torchrun",
    ):
        assert flag in output


def mistakes(folder):
    """(arguments behind the tiny run's, words of the message)"""
    backbone = {"backbone.bottom_up." + k: fill(k, s) for k, s in load_record("vovnet", "V-19-slim-dw.json")["state_dict"]}
    torch.save(backbone, folder / "backbone.pth")
    torch.save({k: v for k, v in backbone.items() if "stage5" not in k}, folder / "part.pth")
    torch.save({"fc.weight": torch.zeros(3)}, folder / "foreign.pth")
    (folder / "truncated.pth").write_bytes((folder / "backbone.pth").read_bytes()[:5000])
    train, evaluate = ["--config-file", QUICKSTART], ["--config-file", QUICKSTART, "--eval-only"]
    yield ["--config-file", "quickstart/faster_rcnn.yaml"], [], ["'quickstart/faster_rcnn.yaml'", "Did you mean"]
    yield train, ["train.max_iter=2"], ["'train.max_iter=2' is an override for Python configs"]
    yield train, ["MODEL.FPN.NOMR", "BN"], ["'MODEL.FPN.NOMR'", "Did you mean 'MODEL.FPN.NORM'"]
    yield train, ["MODEL.BACKBONE.NAME", "build_vovnet"], ["'build_vovnet'", "Did you mean 'build_vovnet_backbone'"]
    yield train, ["MODEL.VOVNET.CONV_BODY", "V-39"], ["'V-39'", "Did you mean 'V-39-eSE'"]
    yield train, ["MODEL.VOVNET.NORM", "BNN"], ["'BNN'", "Did you mean 'BN'"]
    yield train, ["MODEL.FPN.IN_FEATURES", "['stage9']"], ["'stage9'", "'stage5'"]
    yield train, ["MODEL.ROI_HEADS.NUM_CLASSES", "80"], [
        "80",
        "MODEL.ROI_HEADS.NUM_CLASSES is 80",
        "has 10: set MODEL.ROI_HEADS.NUM_CLASSES 10",
    ]
    yield train, ["DATASETS.TRAIN", "('tiny_trian',)"], ["'tiny_trian'", "Did you mean 'tiny_train'"]
    yield train, ["DATASETS.REGISTER", "[['x', 'nowhere.json', '.']]", "DATASETS.TRAIN", "('x',)"], ["'nowhere.json'", "does not exist"]
    yield train, ["DATASETS.TRAIN", "('coco_2014_train',)"], ["'coco_2014_train'", "does not exist"]
    yield train, ["MODEL.WEIGHTS", folder / "missing.pth"], ["missing.pth", "does not exist"]
    yield train, ["MODEL.WEIGHTS", folder / "truncated.pth"], ["truncated.pth", "cannot be read"]
    yield train, ["MODEL.WEIGHTS", folder / "foreign.pth"], ["foreign.pth", "of the backbone", "--allow-partial-weights"]
    yield train, ["MODEL.WEIGHTS", folder / "part.pth"], ["part.pth", "of the backbone", "--allow-partial-weights"]
    yield evaluate, [], ["weights are needed: add MODEL.WEIGHTS"]
    yield evaluate, ["MODEL.WEIGHTS", folder / "backbone.pth"], ["backbone.pth", "of the model"]
    if not torch.cuda.is_available():
        yield train, ["MODEL.DEVICE", "cuda"], ["'cuda'", "MODEL.DEVICE cpu"]


def test_mistakes_are_one_line(tiny, tmp_path):
    count = 0
    for flags, overrides, words in mistakes(tmp_path):
        output = tmp_path / f"out{count}"
        result = command(*flags, *tiny, "OUTPUT_DIR", output, *overrides)
        assert result.returncode == 2, (overrides, result.stdout[-2000:] + result.stderr[-2000:])
        assert "Traceback" not in result.stdout + result.stderr, overrides
        said = [line for line in result.stderr.splitlines() if "error:" in line]
        assert len(said) == 1 and said[0].startswith("train_net.py: error: "), (overrides, said)
        for word in words:
            assert word in said[0], (overrides, said[0])
        assert not output.exists() or not any(name.endswith(".pth") for name in os.listdir(output))
        count += 1
    assert count >= 16


def test_partial_weights_by_flag(tiny, tmp_path):
    weights = {"backbone.bottom_up." + k: fill(k, s) for k, s in load_record("vovnet", "V-19-slim-dw.json")["state_dict"] if "stage5" not in k}
    torch.save(weights, tmp_path / "part.pth")
    arguments = ["--config-file", QUICKSTART, "--allow-partial-weights", *tiny, "SOLVER.MAX_ITER", 1]
    assert "| backbone" in succeed(*arguments, "MODEL.WEIGHTS", tmp_path / "part.pth", "OUTPUT_DIR", tmp_path / "out")


def test_python_configs(tmp_path):
    """detectron2's LazyConfig, with a network of ours: training, the gate, evaluation, resuming."""
    zoo_data.make(os.environ["DETECTRON2_DATASETS"])
    short = "mapper.augmentations.0.short_edge_length"
    shared = ["--config-file", "COCO-Detection/retinanet_R_50_FPN_1x.py", "--backbone", "RegNetX-200MF"]
    opts = ["train.device=cpu", f"train.output_dir={tmp_path}", "train.log_period=1", "model.backbone.bottom_up.norm=BN"]
    opts += ["dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0", "dataloader.test.num_workers=0"]
    opts += [f"dataloader.train.{short}=[64]", f"dataloader.test.{short}=64", "model.backbone.bottom_up.freeze_at=0"]
    opts += ["model.head.conv_dims=[32]", "train.pictures=0"]  # which take most of the time
    succeed(*shared, *opts, "train.init_checkpoint=''", "train.max_iter=2")
    final = f"train.init_checkpoint={tmp_path}/model_final.pth"
    assert figures(succeed(*shared, "--eval-only", *opts, final))
    assert "Starting training from iteration 2" in succeed(
        *shared, "--resume", "--new-schedule", *opts, "train.init_checkpoint=''", "train.max_iter=3"
    )
    result = command(*shared, "--resume", *opts, "train.init_checkpoint=''", "train.max_iter=3")
    assert result.returncode == 2 and "has done 3 iterations, and train.max_iter is 3" in result.stderr and "Traceback" not in result.stderr
    for bad, words in (
        ([], "weights/RegNetX-200MF.pth"),
        ([final, "model.backbone.bottom_up.name=RegNetX-400MF"], "does not fit"),
        ([final, "model.num_classesx=3"], "Did you mean 'model.num_classes'"),
    ):
        result = command(*shared, "--eval-only", *opts, *bad)
        assert result.returncode == 2 and "Traceback" not in result.stderr and words in result.stderr


def test_python_configs_go_on(tmp_path):
    """From the checkpoint of a run that was lost: the same weights, average and best value; with another number of workers."""
    zoo_data.make(os.environ["DETECTRON2_DATASETS"])
    opts = ["--config-file", "COCO-Detection/retinanet_R_50_FPN_1x.py", "--backbone", "RegNetX-200MF", "--resume"]
    opts += ["train.device=cpu", "train.seed=3", "model.backbone.bottom_up.norm=BN", "model.backbone.bottom_up.freeze_at=0"]
    opts += [
        "train.init_checkpoint=''",
        "train.max_iter=5",
        "train.eval_period=2",
        "train.checkpointer.period=2",
        "train.model_ema.enabled=True",
    ]
    opts += [
        f"dataloader.{key}" for key in ("train.total_batch_size=2", "test.num_workers=0", "test.mapper.augmentations.0.short_edge_length=64")
    ]
    opts += ["dataloader.train.mapper.augmentations.0.short_edge_length=[64,80,96]", "dataloader.train.mapper.augmentations.0.max_size=200"]
    opts += ["model.head.conv_dims=[32]", "train.pictures=0"]  # which take most of the time
    succeed(*opts, "dataloader.train.num_workers=2", f"train.output_dir={tmp_path}/whole")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "last_checkpoint").write_text("model_0000001.pth")
    shutil.copy(tmp_path / "whole" / "model_0000001.pth", tmp_path / "lost")
    output = succeed(*opts, "dataloader.train.num_workers=0", f"train.output_dir={tmp_path}/lost", "optimizer.weight_decay=0.01")
    assert (
        "Starting training from iteration 2" in output
        and "optimizer.weight_decay 0.0001 -> 0.01" in output
        and "stay those of the checkpoint" in output
    )
    states = [torch.load(tmp_path / folder / "model_final.pth", weights_only=True) for folder in ("whole", "lost")]
    for part in ("model", "ema"):
        assert all(torch.equal(value, states[1][part][key]) for key, value in states[0][part].items())
    assert any(not torch.equal(value, states[0]["ema"][f"module.{key}"]) for key, value in states[0]["model"].items())
    assert states[0]["trainer"]["hooks"]["Evaluate"] == states[1]["trainer"]["hooks"]["Evaluate"] == {"pending": False}
    assert states[0]["trainer"]["_trainer"]["moving_values"] == states[1]["trainer"]["_trainer"]["moving_values"] != {}
    assert states[0]["trainer"]["hooks"]["KeepBest"] == states[1]["trainer"]["hooks"]["KeepBest"]


def test_augmentation(tmp_path, tiny):
    """--eval-only with TEST.AUG evaluates without, then with."""
    run = ["--config-file", QUICKSTART, *tiny, "OUTPUT_DIR", tmp_path]
    succeed(*run)
    aug = ["TEST.AUG.ENABLED", "True", "TEST.AUG.MIN_SIZES", "(96,)", "TEST.AUG.FLIP", "False"]
    output = succeed(*run[:2], "--eval-only", *run[2:], "MODEL.WEIGHTS", f"{tmp_path}/model_final.pth", *aug)
    assert "Evaluating with test-time augmentation" in output and len(re.findall(r"Task: bbox", output)) == 2
    assert (tmp_path / "inference_TTA").is_dir()
    result = command(*run, *aug, "MODEL.META_ARCHITECTURE", "PanopticFPN")
    assert result.returncode == 2 and "TEST.AUG supports R-CNNs, RetinaNet and GFL" in result.stderr
