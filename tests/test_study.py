"""`backbones study`: which networks, which figures, and that its rows are of the configs as they are."""

import json
import logging
import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

import backbones
from backbones import zoo
from backbones.benchmark.tables import FIGURES, recorded
from backbones.config import merge_overrides
from backbones.search import evidence, study
from backbones.search.structure_config import load_structure_config, problem_of
from backbones.tools import study as tool


def test_random_structures_are_of_the_space_and_the_budget():
    problem, start = problem_of(load_structure_config(study.BUDGET))
    drawn = [network.structure for network in study.structures() if network.group == "random"]
    assert len(set(drawn)) == study.COUNT == 24
    costs = [problem.meter.measure(structure) for structure in drawn]
    assert all(0.97 * problem.budget["flops"] <= cost.flops <= problem.budget["flops"] and problem.fits(cost) for cost in costs)
    assert not any(problem.outside(structure) for structure in drawn)
    # of many shapes
    assert min(cost.layers for cost in costs) < 30 and max(cost.layers for cost in costs) > 55
    assert max(cost.score for cost in costs) > 2 * min(cost.score for cost in costs)
    assert drawn[0] == problem.random(start, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", study.SUPERNETS)
def test_random_paths_cost_the_same(name):
    networks = study.STUDIES[name]()
    paths = [network.options[study.PATH] for network in networks if network.group == "random"]
    assert len({*map(tuple, paths)}) == study.COUNT
    cfg, table = zoo.get_config(study.SUPERNETS[name]), study.path_costs(name)
    most = cfg.ONE_SHOT.MAX_COST
    assert all(0.97 * most <= table.cost(path) <= most for path in paths)
    found = [network for network in networks if network.group == "found"]
    assert len(found) == (name in study.FOUND_PATHS) and all(table.cost(network.options[study.PATH]) <= most for network in found)
    ends = ((0, 4), (4, 8), (8, 16), (16, 20))
    assert name.startswith("stages") == all(len({*path[first:last]}) == 1 for path in paths for first, last in ends)
    # trained as the network that the supernet has
    network = networks[0]
    trained = zoo.get_config(network.config)
    merge_overrides(trained, [str(part) for pair in network.options.items() for part in pair])
    for key in ("BRANCH_WIDTHS", "WIDTH", "SHUFFLE", "NAME", "SPLIT"):
        assert trained.MODEL.SHUFFLENETV2[key] == cfg.MODEL.SHUFFLENETV2[key], key


@pytest.mark.slow
def test_names_are_unique_and_configs_exist():
    every = {name: networks() for name, networks in study.STUDIES.items()}
    for name, networks in every.items():
        assert len({network.name for network in networks}) == len(networks) > 20, name
    together = [network for networks in every.values() for network in networks]
    for backbone in {network.backbone for network in together} - {""}:
        backbones.create(backbone)
    configs = {config: zoo.get_config(config) for config in {network.config for network in together}}
    for network in together:  # keys that there are
        merge_overrides(configs[network.config].clone(), [part for key, value in network.options.items() for part in (key, str(value))])


def test_every_family_in_every_detector():
    names = {network.name for network in study.detectors()}
    for detector in ("faster_rcnn", "faster_rcnn_c4", "retinanet", "deformable", "GN"):
        assert {f"{family} in {detector}" for family in study.FAMILIES} < names
    beside = {"faster_rcnn", "deformable", "faster_rcnn_c4", "faster_rcnn_dc5"}
    assert {name for name in names if name.startswith("R-50")} == {f"{study.OWN} in {detector}" for detector in beside}
    assert {backbones.registry.family_of(name).name for name in study.FAMILIES} == set(backbones.registry.FAMILIES) - {"timm"}


def test_correlation():
    """Spearman's, with an interval that holds the truth: far from 0 for related figures, around 0 for others."""
    rng = np.random.default_rng(3)
    a = rng.normal(size=24)
    for b in (a + 0.3 * rng.normal(size=24), rng.normal(size=24), np.round(a), -a):
        found = evidence.correlation(a, b)
        assert found.value == pytest.approx(spearmanr(a, b).statistic, abs=1e-9)
        assert -1 - 1e-9 <= found.low <= found.value <= found.high <= 1 + 1e-9 and found.count == 24
    assert evidence.correlation(a, a + 0.3 * rng.normal(size=24)).low > 0.7
    unrelated = evidence.correlation(a, rng.normal(size=24))
    assert unrelated.low < 0 < unrelated.high


def rows_of(reached, study_name="structures", group="random"):
    return [
        {"study": study_name, "network": name, "seed": seed, "ap": ap, "group": group}
        for name, by_seed in reached.items()
        for seed, ap in by_seed.items()
    ]


def test_reliability_and_spread():
    found = evidence.by_network(rows_of({f"structure {i}": {1: 30.0 + i, 2: 31.0 + i} for i in range(8)}), "structures")
    assert evidence.reliability(found).value == pytest.approx(1)
    assert evidence.spread(found) == pytest.approx(np.std([0, 1], ddof=1))
    assert "ap" in FIGURES  # what rows of trainings call it
    few = {"structure 0": {1: 30.0}, "structure 1": {1: 31.0, 2: 3.0}}
    assert evidence.reliability(few) is None and np.isnan(evidence.spread({"structure 0": {1: 30.0}}))


def test_what_rows_say():
    """Of structures that reach what entropy predicts, and paths that a supernet ranks the wrong way round."""
    drawn = [network for network in study.structures() if network.group == "random"][:8]
    entropy = {network.name: evidence.predictors(network.structure, 480)["entropy"] / 50 for network in drawn}
    rows = rows_of({name: {1: value, 2: value + 0.1} for name, value in entropy.items()})
    rows += rows_of({"found by entropy": {1: 40.0, 2: 42.0}}, group="found")
    paths = {f"path {i}": {1: 50.0 + i} for i in range(8)}
    rows += rows_of(paths, "paths") + rows_of({name: {1: -by[1]} for name, by in paths.items()}, "paths supernet")
    rows += rows_of({"found path": {1: 99.0}}, "paths", "found") + rows_of({"found path": {1: 99.0}}, "paths supernet", "found")
    rows += rows_of({name: {1: -value} for name, value in entropy.items()}, "short")
    rows += rows_of({"MobileNetV2 in gfl": {1: 50.0, 2: 52.0}}, "detectors", "gfl")
    said = " ".join(evidence.summary(rows).split())
    assert "| entropy | 1.00 [1.00, 1.00] |" in said and "| found by entropy | 41.00 | 40.00 42.00 |" in said
    assert (
        "6,000 iterations. Rank" in said
        and "2,000 iterations. " in said
        and "long training (group random): -1.00 [-1.00, -1.00], 8 networks." in said
    )
    assert "supernet's scores with AP: -1.00 [-1.00, -1.00], 8 random paths." in said
    assert "training images: 8 random paths, -57.00 to -50.00, -53.50 on average; found path 99.00." in said
    assert "51.0 ± 1.4" in said
    assert evidence.summary([]) == "no rows yet" and "one seed so far" in evidence.summary(rows_of({"path 0": {1: 50.0}}, "paths"))


def trained(monkeypatch, fail=""):
    """Trainings that end at once: (config, options) of each."""
    calls = []

    def train(config, output, opts, backbone="", data=(), log=""):
        calls.append((config, dict(zip(opts[::2], opts[1::2])), backbone))
        if fail and fail in output:
            raise backbones.UserError("training ended with exit code 1")
        return {"config": config, "ap": 50.0, "iterations": 9, "minutes": 0.1, "machine": "a", "seed": int(calls[-1][1]["SEED"])}

    monkeypatch.setattr(tool, "train", train)
    monkeypatch.setattr(tool, "make", lambda **_: "")
    return calls


def call(monkeypatch, *args):
    monkeypatch.setattr("sys.argv", ["backbones study", *map(str, args)])
    tool.main()


def test_each_training_is_a_row_and_none_is_done_twice(tmp_path, monkeypatch, capsys):
    calls, where = trained(monkeypatch), tmp_path / "study.json"
    own = ["structures", "--json", where, "--output", tmp_path / "runs", "--jobs", 2, "--networks", "structure 3", "MobileNetV2"]
    call(monkeypatch, *own)
    rows = json.loads(where.read_text())["runs"]
    assert [(row["study"], row["seed"]) for row in rows] == [("structures", 1), ("structures", 1), ("structures", 2), ("structures", 2)]
    of = next(row for row in rows if row["network"] == "structure 3")
    assert of["group"] == "random" and len(of["structure"]) == 5 and of["setting"] == zoo.digest("crowd/gfl_crowd.yaml")
    assert of["command"] == "backbones study structures --networks 'structure 3' --seeds 1"
    structure = next(options["MODEL.MAEDET.STRUCTURE"] for _, options, backbone in calls if not backbone)
    cfg = zoo.get_config("crowd/gfl_crowd.yaml")
    cfg.merge_from_list(["MODEL.MAEDET.STRUCTURE", structure, "MODEL.MAEDET.WIDTH", 1.0])
    net = backbones.registry.BUILDERS[cfg.MODEL.BACKBONE.NAME]
    assert net.name == "maedet" and os.path.isfile(structure)
    call(monkeypatch, *own, "--seeds", 1, 2, 3, 3)
    assert len(calls) == 6 and "2 networks to train, 4 rows" in capsys.readouterr().out


def test_several_trainings_on_a_gpu_need_mps(tmp_path, monkeypatch, capsys):
    trained(monkeypatch)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for place, jobs, said in ((tmp_path / "none", 2, True), (tmp_path / "none", 1, False), (tmp_path, 2, False)):
        monkeypatch.setenv("CUDA_MPS_PIPE_DIRECTORY", str(place))
        call(monkeypatch, "short", "--networks", "MobileNetV2", "--json", tmp_path / "a.json", "--output", tmp_path, "--jobs", jobs)
        assert ("on a GPU without MPS" in capsys.readouterr().out) == said


def test_a_training_that_fails_leaves_the_other_rows(tmp_path, monkeypatch):
    trained(monkeypatch, fail="MobileNetV2")
    with pytest.raises(backbones.UserError, match="exit code 1"):
        call(
            monkeypatch, "structures", "--json", tmp_path / "a.json", "--output", tmp_path / "runs", "--networks", "structure 3", "MobileNetV2"
        )
    assert {row["network"] for row in json.loads((tmp_path / "a.json").read_text())["runs"]} == {"structure 3"}


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["structurs"], "Did you mean 'structures'"),
        (["paths", "--networks", "path 99"], "unknown --networks: 'path 99'. Did you mean"),
        (["--jobs", "0"], "at least 1"),
        (["--show", "--networks", "path 1"], "--show shows all rows: it cannot be combined with --networks"),
        (["short", "--show"], "it cannot be combined with STUDY"),
        (["--show", "--json", "nowhere.json"], "--json 'nowhere.json' is not a file"),
        (["short", "--plot", "a.png"], "--plot draws what --show prints: add --show"),
        (["--supernet", "a.pth"], "name paths, wide, stages or stages_gn alone"),
        (["paths", "short", "--supernet", "a.pth"], "name paths, wide, stages or stages_gn alone"),
        (["paths", "--networks", "path 1", "--supernet", "a.pth"], "cannot be combined with --networks"),
        (["paths", "--supernet", "a.pth", "--seeds", "1", "2"], "--supernet is trained with one seed"),
        (["paths", "paths", "--supernet", "a.pth"], "--supernet 'a.pth' is not a file"),
        (["short", "--json", "/proc/nowhere/a.json"], "cannot be written"),
    ],
)
def test_mistakes(arguments, words, monkeypatch):
    trained(monkeypatch)
    with pytest.raises(backbones.UserError, match=words):
        call(monkeypatch, *arguments)


@pytest.mark.parametrize("change", [{"setting": "0" * 12}, {"options": {study.PATH: [0] * 20}}])
def test_rows_of_another_version_are_refused(change, tmp_path, monkeypatch, capsys):
    """Whatever seeds are asked for; where rows are shown, they are left out, and counted."""
    trained(monkeypatch)
    about = study.identities(["paths"])["paths", "path 0"]
    rows = [{"study": "paths", "network": "path 0", "seed": seed, "ap": 40.0 + seed, "group": "random", **about} for seed in (1, 2)]
    rows[1].update(change)
    (tmp_path / "a.json").write_text(json.dumps({"runs": rows}))
    with pytest.raises(backbones.UserError, match="'path 0', seed 2, is of another version of that network or its config: name another file"):
        call(monkeypatch, "paths", "--json", tmp_path / "a.json", "--seeds", 1)
    call(monkeypatch, "--show", "--json", tmp_path / "a.json")
    said = capsys.readouterr().out
    assert "1 row left out" in said and "| 41.00 |" in " ".join(said.split()) and "41.50" not in said


def test_interrupted(tmp_path, monkeypatch):
    """Ctrl-C ends the running training, and begins no other."""
    calls = trained(monkeypatch)
    ended = tool.train

    def train(*args, **more):
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        time.sleep(1)
        return ended(*args, **more)

    monkeypatch.setattr(tool, "train", train)
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, "short", "--json", tmp_path / "a.json", "--output", tmp_path, "--networks", "MobileNetV2", "RegNetX-400MF")
    assert len(calls) == 1


def test_only_seeds_that_all_have_are_compared():
    """A second supernet whose scores are higher changes no order while it has scored half of the paths."""
    paths = {f"path {i}": {1: 40.0 + i} for i in range(8)}
    scored = {name: {1: by[1] - 10, **({2: by[1] + 10} if i < 4 else {})} for i, (name, by) in enumerate(paths.items())}
    assert evidence.means(scored, scored) == {name: by[1] - 10 for name, by in paths.items()}
    said = evidence.summary(rows_of(paths, "paths") + rows_of(scored, "paths supernet"))
    assert "scores with AP: 1.00 [1.00, 1.00], 8 random paths" in said
    assert evidence.means({"a": {1: 1.0}, "b": {2: 1.0}}, ["a", "b"]) == evidence.means({}, []) == {}
    assert "| 43.50 (of 8)" not in said and "| random: mean of 8 | 43.50 | 43.50 " in " ".join(said.split())
    paths["path 0"][2] = 30.0
    found = rows_of({"found path": {1: 41.0, 2: 99.0}}, "paths", "found") + rows_of({"another": {3: 42.0}}, "paths", "found")
    said = " ".join(evidence.summary(rows_of(paths, "paths") + found).split())
    assert "| network | AP, seed 1 | of each seed |" in said and "| random: mean of 8 | 43.50 | 43.50 30.00 (of 1) |" in said
    assert "| found path | 41.00 | 41.00 99.00 |" in said and "| another | 42.00 (other seeds) | 42.00 |" in said


def test_scores_are_of_one_supernet(tmp_path, monkeypatch, capsys):
    """A stopped scoring goes on; another supernet needs another seed, or another file."""
    trained(monkeypatch)
    scored = []
    monkeypatch.setattr(tool, "prepare", lambda front, args: front)
    monkeypatch.setattr(tool, "PathEvaluator", lambda cfg, folder: lambda path: (scored.append(path), (40.0, {}))[1])
    for name in ("a.pth", "b.pth"):
        torch.save({"name": name}, tmp_path / name)
    own = ["paths", "--json", tmp_path / "a.json", "--supernet"]
    try:
        call(monkeypatch, *own, tmp_path / "a.pth", "--seeds", 1)
        rows = json.loads((tmp_path / "a.json").read_text())["runs"]
        assert len(scored) == len(rows) == study.COUNT + 1 and rows[0]["options"][study.PATH] == list(scored[0])
        (tmp_path / "a.json").write_text(json.dumps({"runs": rows[:-2]}))
        call(monkeypatch, *own, tmp_path / "a.pth", "--seeds", 1)
        assert len(scored) == study.COUNT + 3 and f"2 paths to score, {study.COUNT - 1} scored before" in capsys.readouterr().out
        with pytest.raises(backbones.UserError, match="has scores of another supernet with seed 1"):
            call(monkeypatch, *own, tmp_path / "b.pth", "--seeds", 1)
        call(monkeypatch, *own, tmp_path / "b.pth", "--seeds", 2)
    finally:
        logging.disable(logging.NOTSET)
    assert len(scored) == 2 * study.COUNT + 4


@pytest.mark.parametrize("change", [{"study": "studies"}, {"network": 3}, {"seed": 1.5}, {"ap": float("nan")}, {"ap": "x"}, {"setting": None}])
def test_files_of_others(change, tmp_path, monkeypatch):
    """One line and no traceback, whether rows are shown or continued."""
    row = {"study": "paths", "network": "path 0", "group": "random", "setting": "0" * 12, "seed": 1, "ap": 50.0}
    trained(monkeypatch)
    for content in ({"runs": [{**row, **change}]}, {"runs": [{key: row[key] for key in row if key not in change}]}, {"rows": []}):
        (tmp_path / "a.json").write_text(json.dumps(content))
        for flags in (["--show"], ["paths"]):
            with pytest.raises(backbones.UserError, match="is not a file of `backbones study`"):
                call(monkeypatch, *flags, "--json", tmp_path / "a.json")


def test_picture(tmp_path, monkeypatch):
    """What is random is points, what was found a star, hand-made networks are lines; each looks the same in all panels and in the legend."""
    figures = []
    save = evidence.Figure.savefig
    monkeypatch.setattr(evidence.Figure, "savefig", lambda figure, *args, **more: (figures.append(figure), save(figure, *args, **more)))
    drawn = [network for network in study.structures() if network.group == "random"][:5]
    rows = rows_of({network.name: {1: 40.0 + i, 2: 41.0 + i} for i, network in enumerate(drawn)})
    for name in ("structures", "short"):
        rows += rows_of({"MobileNetV2": {1: 44.0}}, name, "hand-made") + rows_of({"found by entropy": {1: 45.0}}, name, "found")
    rows += rows_of({"RegNetX-400MF": {1: 43.0}}, "short", "hand-made") + rows_of({network.name: {1: 30.0} for network in drawn}, "short")
    rows += rows_of({f"wide {i}": {1: 40.0 + i} for i in range(5)}, "wide")
    rows += rows_of({f"wide {i}": {1: 20.0} for i in range(3)}, "wide supernet")
    evidence.plot(rows, str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 10_000
    short, long, wide = figures[0].axes
    looks = {}
    for axes in figures[0].axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            line = handle[0] if hasattr(handle, "lines") else handle
            looks.setdefault(label, set()).add((line.get_color(), line.get_linestyle(), line.get_marker()))
    assert all(len(ways) == 1 for ways in looks.values()) and len({*map(str, looks.values())}) == len(looks)
    assert looks.keys() == {"random", "found by entropy", "MobileNetV2", "RegNetX-400MF"}
    points = [len(axes.containers[0][0].get_xdata()) for axes in (long, wide)]
    assert points == [5, 3] and wide.get_title().endswith(", 2 paths not scored yet") and long.get_title().endswith("iterations")
    assert [text.get_text() for text in figures[0].legends[0].get_texts()].count("random") == 1


@pytest.mark.slow
def test_rows_are_of_the_configs_as_they_are():
    """What model_zoo.md shows was trained with today's settings, by networks that the studies still have."""
    known = study.identities(study.STUDIES)
    for row in recorded("study.json")["runs"]:
        about = known[row["study"], row["network"]]
        assert {key: row.get(key) for key in about} == about, row["command"]
        if row["study"] in study.STUDIES:
            assert row["iterations"] == about["options"].get("SOLVER.MAX_ITER", zoo.get_config(row["config"]).SOLVER.MAX_ITER), row["network"]
        assert row["seed"] > 0 and row["machine"] and row["command"].startswith("backbones study"), row
