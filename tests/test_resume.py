"""Runs that are killed, ended or lose a process, and go on: what they come to is what they would have come to, bit by bit."""

import json
import os

import pytest
import torch
from choices import cases
from conftest import few_digits, warm

pytestmark = pytest.mark.slow

CONFIG = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"
# everything that a run has to remember: several sizes, flips, workers, schedule in its steps, averages, parts of batches, evaluations
OVERRIDES = (
    """MODEL.DEVICE cpu SEED -1 SOLVER.MAX_ITER 10 SOLVER.IMS_PER_BATCH 4 SOLVER.ACCUMULATE 2 SOLVER.CHECKPOINT_PERIOD 2 SOLVER.STEPS (4,8)
SOLVER.BASE_LR 0.01 SOLVER.WARMUP_ITERS 3 INPUT.MIN_SIZE_TRAIN (64,80,96) INPUT.MIN_SIZE_TEST 64 INPUT.RANDOM_FLIP horizontal TEST.EVAL_PERIOD 3
TEST.PICTURES 0 MODEL_EMA.ENABLED True MODEL_EMA.DECAY 0.9""".split()
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    made = few_digits(tmp_path_factory.mktemp("few"), {"train": 30, "val": 4})
    return [text for split, paths in made.items() for text in (f"--{split}-json", paths[0], f"--{split}-images", paths[1])]


def run(*command):
    result = warm(*command, timeout=560)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def state(folder, name="model_final.pth"):
    return torch.load(os.path.join(folder, name), weights_only=True)


def assert_equal(a, b):
    """Weights, their average, momentum, schedule, what dense detectors keep, best value and evaluations."""
    assert a["iteration"] == b["iteration"] and a["run"]["seed"] == b["run"]["seed"]
    for part in ("model", "ema"):
        assert a[part].keys() == b[part].keys()
        for key in a[part]:
            assert torch.equal(a[part][key], b[part][key]), key
    inner, other = (state["trainer"]["_trainer"] for state in (a, b))
    momenta = inner["optimizer"]["state"], other["optimizer"]["state"]
    assert all(torch.equal(momenta[0][i]["momentum_buffer"], momenta[1][i]["momentum_buffer"]) for i in momenta[0])
    assert inner["moving_values"] == other["moving_values"]
    for hook in ("LRScheduler", "KeepBest", "Evaluate"):
        assert a["trainer"]["hooks"][hook] == b["trainer"]["hooks"][hook], hook


# norms are estimated anew; the second keeps a value beside its weights
NORMS = "TEST.PRECISE_BN.ENABLED True TEST.PRECISE_BN.NUM_ITER 3 TEST.LOSS True".split()
CONFIGS = {CONFIG: ["DATALOADER.NUM_WORKERS", 2, *NORMS], "quickstart/retinanet_RegNetX_400MF_FPN_digits.yaml": NORMS}


@pytest.mark.parametrize("config", cases(CONFIGS, tried=[CONFIG]))
def test_killed_again_and_again(config, data, tmp_path):
    """KILLS times (default 5): at random moments, in the middle of a checkpoint's file, in evaluations, and by SIGTERM."""
    kills = int(os.environ.get("KILLS", 5))
    options = ["--config-file", config, *data, *OVERRIDES, "SEED", 5, "SOLVER.MAX_ITER", max(10, 2 * kills)]
    # that the number of workers and the losses of the test data are another is not to matter
    run("train_net.py", *options, *CONFIGS[config], "DATALOADER.NUM_WORKERS", 0, "TEST.LOSS", False, "OUTPUT_DIR", tmp_path / "whole")
    printed = run("tests/killed.py", tmp_path / "run", kills, 0, *options, *CONFIGS[config])
    assert sum(json.loads(printed.splitlines()[-1])["kills"].values()) == kills
    for name in ("model_final.pth", "model_best.pth"):
        assert (tmp_path / "run" / name).is_file() == (tmp_path / "whole" / name).is_file()
        if not (tmp_path / "run" / name).is_file():  # AP is no number where nothing is found
            continue
        killed, whole = (state(tmp_path / folder, name) for folder in ("run", "whole"))
        assert_equal(killed, whole)
        assert killed.get("best") == whole.get("best")


def test_a_lost_process(data, tmp_path):
    """One of two is killed; torchrun starts both anew, and they go on by themselves."""
    options = ["--config-file", CONFIG, *data, *OVERRIDES, "SEED", 5, "MODEL.VOVNET.NORM", "FrozenBN"]
    options += ["SOLVER.MAX_ITER", 7, "SOLVER.STEPS", "(4,6)", "TEST.EVAL_PERIOD", 4]  # it is lost in iteration 5
    # the other rendezvous of torch 2.3 does not survive a restart, whatever it is that runs
    nodes = ["--nnodes=1", "--master-port=29655"] if torch.__version__.startswith("2.3.") else ["--standalone"]
    for name in ("whole", "lost"):
        command = ["-m", "torch.distributed.run", *nodes, "--nproc-per-node=2", "--max-restarts=2", "tests/lost.py", name]
        run(*command, *options, "OUTPUT_DIR", tmp_path / name)
    assert (tmp_path / "lost" / "was_lost").is_file() and not (tmp_path / "whole" / "was_lost").exists()
    assert_equal(state(tmp_path / "lost"), state(tmp_path / "whole"))
