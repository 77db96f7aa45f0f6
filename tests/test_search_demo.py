"""The demo of DetNAS's steps, and the comparison of what it finds with random paths: which commands run, and what is refused."""

import argparse
import json
import logging
import os
import random
import subprocess

import pytest
import torch

from backbones import zoo
from backbones.benchmark import tables
from backbones.errors import UserError
from backbones.search import rank_correlation
from backbones.search.paths import CostTable
from backbones.tools import search_demo

OPTS = ["SOLVER.MAX_ITER", "10"]


@pytest.fixture
def calls(monkeypatch):
    """``found``: the commands of the steps, each of which leaves what the next needs; ``fail``: folders whose step fails."""
    seen = argparse.Namespace(found=[], fail=set())

    def call(command, **_):
        output = value(command, "OUTPUT_DIR")
        seen.found.append(command[1:])
        if os.path.basename(output) in seen.fail:
            return 1
        os.makedirs(output, exist_ok=True)
        for name in ("best_subnet.pth", "best_subnet.yaml") if "search-paths" in command else ("model_final.pth",):
            with open(os.path.join(output, name), "w") as f:
                f.write("1")
        with open(os.path.join(output, "metrics.json"), "w") as f:
            f.write(json.dumps({"iteration": 9, "bbox/AP": 50.0}) + "\n")
        return 0

    monkeypatch.setattr(subprocess, "call", call)
    monkeypatch.setattr(search_demo, "make", lambda which: which)
    return seen


def demo(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["search_demo", *map(str, arguments)])
    search_demo.main()


def value(command, key):
    return command[command.index(key) + 1]


def test_steps(calls, tmp_path, monkeypatch, capsys):
    """Each step starts from the one before, with the seed and the overrides."""
    demo(monkeypatch, "--output", tmp_path / "d", "--seed", 3, *OPTS)
    assert [os.path.basename(value(c, "OUTPUT_DIR")) for c in calls.found] == "supernet search subnet".split()
    for command in calls.found:
        zoo.get_config_file(value(command, "--config-file"))
        assert command[-2:] == OPTS and value(command, "--seed" if "search-paths" in command else "SEED") == "3"
    starts = [os.path.basename(os.path.dirname(value(c, "MODEL.WEIGHTS"))) if "MODEL.WEIGHTS" in c else "" for c in calls.found]
    assert starts == ["", "supernet", "supernet"]
    if (cores := os.cpu_count()) > 1 and value(calls.found[1], "MODEL.DEVICE") == "cpu":
        assert value(calls.found[1], "--num-gpus") == str(min(cores, 4))
    assert value(calls.found[2], "MODEL.SHUFFLENETV2.SUBNET") == str(tmp_path / "d" / "search" / "best_subnet.yaml")
    rows = [row for row in rank_correlation.compared(tables.path("one_shot.json")) if row["config"] == search_demo.SUBNET]
    said = capsys.readouterr().out
    assert rows and f"in {rank_correlation.ahead(rows)} of {len(rows)} seeds" in said and "no download: digits_crowd" in said


def test_a_stopped_demo_goes_on(calls, tmp_path, monkeypatch, capsys):
    """With the step that failed; another seed or other overrides need another folder."""
    calls.fail.add("comparison")
    own = ["--output", tmp_path / "d", "--proof", 3]
    with pytest.raises(UserError, match="step 3 ended with exit code 1"):
        demo(monkeypatch, *own, *OPTS)
    assert len(calls.found) == 3
    command = calls.found[-1]
    assert command[1] == "backbones.search.rank_correlation" and "--inherit" in command and value(command, "--paths") == "3"
    assert value(command, "--train-opts") == OPTS[0] and value(command, "--json") == str(tmp_path / "d" / "proof.json")
    with pytest.raises(UserError, match="step 3"):
        demo(monkeypatch, *own, *OPTS)
    assert calls.found[3:] == [command] and capsys.readouterr().out.count("done before") == 2
    for other in ([*own, "--seed", 2, *OPTS], own):
        with pytest.raises(UserError, match="holds another run"):
            demo(monkeypatch, *other)
    monkeypatch.setattr(zoo, "digest", lambda config: "0" * 12)  # of a version with other configs
    with pytest.raises(UserError, match="holds another run"):
        demo(monkeypatch, *own, *OPTS)
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds another run"):
        demo(monkeypatch, "--output", tmp_path / "e")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--json", "a.json"], "--json is for the comparison: it needs --proof"),
        (["--proof", "1"], "1 random paths are too few"),
        (["SEED", "2"], "SEED cannot be set for all steps: give --seed"),
        (["SOLVER.MAX_ITER", "4", "OUTPUT_DIR", "x"], "OUTPUT_DIR cannot be set for all steps: give --output"),
        (["MODEL.WEIGHTS", "a.pth"], "MODEL.WEIGHTS cannot be set for all steps"),
        (["--proof", "2", "--json", "/dev/null/a.json"], "cannot be"),
    ],
)
def test_mistakes(arguments, words, calls, tmp_path, monkeypatch):
    """All before the first step."""
    with pytest.raises(UserError, match=words):
        demo(monkeypatch, "--output", tmp_path / "d", *arguments)
    assert not calls.found and not (tmp_path / "d").exists()


def test_files_of_others(calls, tmp_path, monkeypatch):
    """A comparison of before there were rows, or no comparison, is refused before the first step."""
    for content in ({"paths": [], "seed": 1}, {"runs": [{"paths": [], "random_paths": "x"}]}, []):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(UserError, match="is not a file of comparisons"):
            demo(monkeypatch, "--output", tmp_path / "d", "--proof", 2, "--json", tmp_path / "a.json")
    assert not calls.found


def test_a_demo_folder_of_others(calls, tmp_path, monkeypatch):
    for content in ("{", "[" * 3000, "\xff"):
        (tmp_path / "demo.json").write_text(content)
        with pytest.raises(UserError, match="holds (a demo.json that no search_demo wrote|another run)"):
            demo(monkeypatch, "--output", tmp_path)


def test_paths_are_trained_with_yaml_configs(tmp_path, monkeypatch):
    monkeypatch.setattr(rank_correlation, "prepare", lambda front, args: front)
    (tmp_path / "a.py").write_text("train = {}")
    command = ["rank", "--config-file", search_demo.SUPERNET, "--subnet", "s.yaml", "--train", str(tmp_path / "a.py"), "--json", "a.json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(UserError, match="--train .*a.py' is a Python config: paths are trained with YAML configs"):
        rank_correlation.main()


def test_budgets_are_of_all_threads(monkeypatch):
    """A process among several has a part of them."""
    from backbones.search import runtimes

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtimes.comm, "get_local_size", lambda: 2)
    monkeypatch.setattr(runtimes.torch.cuda, "is_available", lambda: False)
    before = torch.get_num_threads()
    with runtimes.all_threads():
        assert torch.get_num_threads() == 2 * before
    assert torch.get_num_threads() == before


def compare(monkeypatch, tmp_path, trained, *opts):
    """A comparison of the config's path with two others, by costs in seconds that differ in each measurement; returns its row."""
    monkeypatch.setattr(rank_correlation, "prepare", lambda front, args: front)
    monkeypatch.setattr(rank_correlation, "PathEvaluator", lambda cfg, folder: lambda path: (float(sum(path)), {"inference": 1.0}))
    monkeypatch.setattr(rank_correlation, "train_path", lambda *args: trained.pop(0))
    noise = random.Random(str(trained))

    def cost_table(cfg, kind, size):
        return CostTable(kind, 0.0, tuple(tuple(1 + noise.random() / 5 for _ in range(12)) for _ in range(20)))

    monkeypatch.setattr(rank_correlation, "cost_table", cost_table)
    for name, text in (("s.pth", "1"), ("subnet.yaml", str([1] * 20))):
        (tmp_path / name).write_text(text)
    where = ["--json", tmp_path / "a.json", "--train", search_demo.SUBNET, "--paths", 2, "--window", 0.1]
    command = ["rank", "--config-file", search_demo.SUPERNET, "--subnet", tmp_path / "subnet.yaml", *where]
    command += ["MODEL.WEIGHTS", tmp_path / "s.pth", "ONE_SHOT.COST", "latency", *opts]
    monkeypatch.setattr("sys.argv", [*map(str, command)])
    try:
        rank_correlation.main()
    finally:
        logging.disable(logging.NOTSET)
    return json.loads((tmp_path / "a.json").read_text())["runs"]


def test_a_stopped_comparison_goes_on(tmp_path, monkeypatch):
    """With the paths and costs of before, though seconds are never measured the same twice."""
    with pytest.raises(IndexError):
        compare(monkeypatch, tmp_path, [50.0])
    before = json.loads((tmp_path / "a.json").read_text())["runs"][0]
    (row,) = compare(monkeypatch, tmp_path, [51.0, 52.0])
    assert row["table"] == before["table"] and row["paths"][0] == before["paths"][0] and row["others_mean"] == 51.5
    assert row["settings"] == [zoo.digest(search_demo.SUBNET)]
    monkeypatch.setattr(zoo, "digest", lambda config: "0" * 12)  # of a config that was changed meanwhile
    assert len(compare(monkeypatch, tmp_path, [50.0, 51.0, 52.0])) == 2


def test_a_path_that_finds_nothing(calls, tmp_path, monkeypatch):
    """Its AP is 0, not NaN, which would make all figures NaN."""
    cfg = zoo.get_config(search_demo.SUPERNET)
    args = argparse.Namespace(seed=4, inherit=False, pretrain="", train=search_demo.SUBNET, train_opts=[])
    monkeypatch.setattr(rank_correlation.plot, "read_metrics", lambda folder: [{"bbox/AP": float("nan")}])
    assert rank_correlation.train_path([1] * 20, args, "bbox/AP", cfg, str(tmp_path)) == 0.0


def test_what_a_path_starts_from(calls, tmp_path):
    cfg = zoo.get_config(search_demo.SUPERNET)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", "s.pth"
    args = argparse.Namespace(seed=4, inherit=True, pretrain="", train=search_demo.SUBNET, train_opts=OPTS)
    assert rank_correlation.train_path([1] * 20, args, "bbox/AP", cfg, str(tmp_path)) == 50.0
    (command,) = calls.found
    assert value(command, "MODEL.WEIGHTS") == os.path.abspath("s.pth")
    assert value(command, "SEED") == "4" and value(command, "SOLVER.MAX_ITER") == "10"
    assert (
        value(command, "MODEL.SHUFFLENETV2.CHOICES") == str([1] * 20)
        and value(command, "MODEL.SHUFFLENETV2.BRANCH_WIDTHS") == "[1.0, 0.5, 1.5]"
    )
    args.inherit = False
    rank_correlation.train_path([1] * 20, args, "bbox/AP", cfg, str(tmp_path))
    assert "MODEL.WEIGHTS" not in calls.found[1]
    args.pretrain = "digits/detnas_subnet_classes_digits.yaml"
    rank_correlation.train_path([1] * 20, args, "bbox/AP", cfg, str(tmp_path))
    assert [os.path.basename(value(c, "--config-file")) for c in calls.found[2:]] == [
        os.path.basename(args.pretrain),
        os.path.basename(args.train),
    ]
    with pytest.raises(UserError, match="segm/AP is not among the metrics of training: bbox/AP"):
        rank_correlation.train_path([1] * 20, args, "segm/AP", cfg, str(tmp_path))
