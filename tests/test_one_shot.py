"""The one-shot search: costs, proposals, evaluation of paths, and that it can be killed at any moment."""

import contextlib
import dataclasses
import json
import math
import os
import random
import re
import signal
import time
import types

import pytest
import torch
from conftest import alive, load_record, warm
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from hypothesis import given
from hypothesis import settings as settings_
from hypothesis import strategies as st
from torch import nn

from backbones import UserError, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.choices import path_at, read_choices
from backbones.config import merge_overrides
from backbones.data import digits, register_digits, register_from_config, register_held_out
from backbones.engine import Trainer
from backbones.search import one_shot
from backbones.search.path_evaluator import PathEvaluator
from backbones.search.paths import METHODS, CostTable, Evaluated, PathSampler, cost_table, identity_of, load_archive, pareto
from backbones.search.runtimes import seconds
from backbones.shufflenetv2 import SPECS, ShuffleNetV2, supernets
from backbones.tools import train

pytestmark = pytest.mark.slow

CONFIG = "digits/detnas_supernet_digits.yaml"


def config(*overrides):
    cfg = zoo.get_config(CONFIG)
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *map(str, overrides)])
    return cfg


@pytest.mark.parametrize("filename, name", [("block_table_mmrazor.json", "DetNAS-MMRazor"), ("block_table_authors300M.json", "DetNAS-300M")])
def test_cost_tables(filename, name):
    """Exactly the recorded ones, and those of whole networks."""
    recorded = load_record("detnas", filename)
    cfg = config("MODEL.SHUFFLENETV2.NAME", name, "MODEL.SHUFFLENETV2.WIDTH", 1.0, "MODEL.SHUFFLENETV2.SHUFFLE", "")
    table = cost_table(cfg, "macs", (224, 224))
    assert [list(row) for row in table.blocks] == recorded["macs"] and table.base == recorded["stem"]
    path = SPECS[name].choices
    with torch.device("meta"):
        net = ShuffleNetV2(**vars(SPECS[name]), norm="BN")
    assert cost_table(cfg, "parameters", (224, 224)).cost(path) == sum(p.numel() for p in net.parameters())


def test_weights_that_cannot_be_written(tmp_path, monkeypatch):
    """A disk that is full at the end of a search ends in one line, and leaves no half file."""

    def full(data, file):
        file.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:603] . unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", full)
    evaluator = types.SimpleNamespace(
        extract=lambda path: torch.nn.Linear(1, 1), recalibrate=lambda model: None, supernet=types.SimpleNamespace(conventions={})
    )
    with pytest.raises(UserError, match="best.pth' cannot be written: .*unexpected pos") as error:
        one_shot.write_weights(evaluator, types.SimpleNamespace(path=()), str(tmp_path / "best.pth"))
    assert error.value.code == "cannot-write" and not list(tmp_path.iterdir())


@pytest.mark.slow
def test_latency_is_a_cost_too(monkeypatch):
    monkeypatch.setattr("backbones.search.paths.seconds", lambda run, enough: seconds(run, 1e-3))  # for long enough to be a time at all
    table = cost_table(config("MODEL.SHUFFLENETV2.WIDTH", 0.125), "latency", (32, 32))
    assert len(table.blocks) == 20 and all(0 < cost < 1 for row in table.blocks for cost in row)


def settings(**changes):
    node = config().ONE_SHOT.clone()
    node.defrost()
    node.update(GENERATIONS=3, POPULATION=12, PARENTS=4, MUTATIONS=5, CROSSOVERS=4, MIN_COST=0.0, MAX_COST=30.0)
    node.update(changes)
    return node


TABLE = CostTable("macs", 2.0, tuple((1.0, 2.0, 3.0, 1.5) for _ in range(20)))


def run(sampler, generations=3):
    archive = []
    for generation in range(generations):
        for path in sampler.propose(generation, archive):
            archive.append(Evaluated(path, TABLE.cost(path), -abs(TABLE.cost(path) - 28.0), generation, {}))
    return archive


@settings_(max_examples=30)
@given(seed=st.integers(0, 1000), high=st.floats(23.0, 60.0), low=st.floats(0.0, 22.5))
def test_proposals(seed, high, low):
    """Within the limits, however tight; none twice; the same from the same seed."""
    sampler = PathSampler(settings(MAX_COST=high, MIN_COST=low), TABLE, "evolution", seed)
    archive = run(sampler)
    paths = [e.path for e in archive]
    assert len(set(paths)) == len(paths) and all(low <= e.cost <= high for e in archive)
    assert paths == [e.path for e in run(sampler)]
    assert len(paths) == 36 or high < 25  # where few paths are, there may be fewer


def test_evolution_learns_and_random_does_not():
    best = {}
    for method in METHODS:
        runs = [run(PathSampler(settings(MAX_COST=60.0, POPULATION=20, MUTATIONS=8, CROSSOVERS=8), TABLE, method, s), 8) for s in range(5)]
        best[method] = sum(sum(e.score for e in archive[-20:]) / 20 for archive in runs) / 5
    assert best["evolution"] > best["random"] + 1


def test_impossible_limits():
    for changes, words in (
        ({"MAX_COST": 21.0}, "allow no path: macs of the backbone range from 22 to 62"),
        ({"MIN_COST": 70.0, "MAX_COST": 80.0}, "allow no path"),
        ({"MIN_COST": 40.0, "MAX_COST": 30.0}, "allow no path"),
        ({"MIN_COST": 22.6, "MAX_COST": 22.9}, "no path was found between"),
    ):
        with pytest.raises(UserError, match=words):
            PathSampler(settings(**changes), TABLE, "evolution", 0).check()


def test_pareto():
    archive = [Evaluated((i,), cost, score, 0, {}) for i, (cost, score) in enumerate([(3, 5), (1, 1), (2, 4), (2, 3), (4, 5), (5, 6)])]
    assert [e.path[0] for e in pareto(archive)] == [1, 2, 0, 5]


def test_held_out_images_are_nobody_elses():
    cfg = config("DATASETS.HOLD_OUT", "[['digits_train', 150]]")
    register_held_out(cfg)
    kept, held_out, every = ({r["file_name"] for r in DatasetCatalog.get("digits_train" + s)} for s in ("_kept", "_held_out", ""))
    assert len(held_out) == 150 and not kept & held_out and kept | held_out == every
    assert not held_out & {r["file_name"] for r in DatasetCatalog.get("digits_val")}
    for entry, words in (
        (["digits_train"], "must have the form"),
        (["digit_train", 3], "Did you mean 'digits_train'"),
        (["digits_val", 0], "1 image or more"),
        (["digits_val", True], "must have the form"),
        (["digits_val", math.inf], "1 image or more"),
        (["digits_val", math.nan], "1 image or more"),
    ):
        cfg.DATASETS.HOLD_OUT = [entry]
        with pytest.raises(UserError, match=words):
            register_held_out(cfg)
    cfg.DATASETS.HOLD_OUT = [["digits_val", 5], ["digits_val", 6]]
    with pytest.raises(UserError, match="appears twice, with 5 and with 6 images"):
        register_held_out(cfg)
    cfg.DATASETS.HOLD_OUT = [["digits_val", 250]]
    register_held_out(cfg)
    with pytest.raises(UserError, match="would leave no image"):
        DatasetCatalog.get("digits_val_kept")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A supernet of random weights, and a few digits to look at: what the search takes on the command line."""
    folder = tmp_path_factory.mktemp("one_shot")
    paths = digits._paths(digits.generate(), "train")
    with open(paths["instances"]) as f:
        content = json.load(f)
    content["images"] = content["images"][:14]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
    (folder / "train.json").write_text(json.dumps(content))
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.SHUFFLENETV2.WIDTH", "0.25", "INPUT.MIN_SIZE_TEST", "64", "MODEL.FPN.OUT_CHANNELS", "32"]
    overrides += ["DATASETS.REGISTER", str([["tiny_search", str(folder / "train.json"), os.path.abspath(paths["images"])]])]
    overrides += ["DATASETS.HOLD_OUT", "[['tiny_search', 4]]", "DATASETS.TRAIN", "('tiny_search_kept',)"]
    overrides += [
        "ONE_SHOT.CALIBRATION_IMAGES",
        "6",
        "ONE_SHOT.CALIBRATION_BATCH",
        "3",
        "ONE_SHOT.GENERATIONS",
        "2",
        "ONE_SHOT.POPULATION",
        "4",
    ]
    # a score that random weights have: many boxes of any score
    overrides += ["ONE_SHOT.METRIC", "bbox/AP50", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "ONE_SHOT.MAX_COST", "40e+6"]
    cfg = config(*overrides)
    torch.manual_seed(0)
    GatedCheckpointer(build_model(cfg), str(folder)).save("supernet")
    return [*overrides, "MODEL.WEIGHTS", str(folder / "supernet.pth")]


@pytest.fixture(scope="module")
def evaluator(tiny, tmp_path_factory):
    cfg = config(*tiny, "ONE_SHOT.DATASET", "tiny_search_held_out")
    register_from_config(cfg)
    register_held_out(cfg)
    return PathEvaluator(cfg, str(tmp_path_factory.mktemp("inference")))


def test_extraction(evaluator):
    """The supernet's own computation on that path, bit for bit."""
    path = tuple(i % 4 for i in range(20))
    subnet, x = evaluator.extract(path), torch.rand(1, 3, 64, 64)
    evaluator.supernet.eval().set_path(path)
    with torch.no_grad():
        for a, b in zip(subnet.backbone.bottom_up(x).values(), evaluator.supernet(x).values()):
            assert torch.equal(a, b)
    assert subnet.backbone.bottom_up.choices == path


def test_recalibration(evaluator):
    """Every norm has the mean and the variance of all calibration images, here by hand; the supernet's stay as they are."""
    before = {key: value.clone() for key, value in evaluator.supernet.state_dict().items()}
    model = evaluator.extract((1,) * 20)
    norms = [m for m in model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    old = [m.running_var.clone() for m in norms]
    evaluator.recalibrate(model)
    assert not model.training and all(not torch.equal(m.running_var, v) and (m.running_var > 0).all() for m, v in zip(norms, old))
    # the stem sees the images alone
    images = torch.cat([model.preprocess_image(batch).tensor for batch in evaluator.calibration])
    with torch.no_grad():
        values = model.backbone.bottom_up.stem.conv(images)
    stem = model.backbone.bottom_up.stem.norm
    torch.testing.assert_close(stem.running_mean, values.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(stem.running_var, values.var(dim=(0, 2, 3)), rtol=1e-2, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in evaluator.supernet.state_dict().items())


def test_a_paths_score_is_its_own(evaluator):
    first, other = (1,) * 20, (2,) * 20
    score, seconds = evaluator(first)
    evaluator(other)
    assert evaluator(first)[0] == score and set(seconds) == {"extraction", "recalibration", "inference"}


def command(tiny, output, *flags):
    return ["-m", "backbones.search.one_shot", "--config-file", CONFIG, *flags, *tiny, "OUTPUT_DIR", str(output)]


def finished(tiny, output, *flags):
    return warm(*command(tiny, output, *flags))


def archive(output):
    with open(os.path.join(output, "search.json")) as f:
        return [{key: value for key, value in entry.items() if key != "seconds"} for entry in json.load(f)["archive"]]


@pytest.mark.slow
def test_killed_and_resumed(tiny, tmp_path):
    """kill -9 at random moments, in one process and in two: the same archive, order and winner as of a search that was left alone."""
    whole = finished(tiny, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected = archive(tmp_path / "whole")
    assert len(expected) == 8 and len({entry["score"] for entry in expected}) > 3
    rng = random.Random(3)
    for processes in (1, 2):
        output, kills = tmp_path / f"killed{processes}", 0
        for _ in range(20):
            process = warm.start(*command(tiny, output, "--resume", "--num-gpus", str(processes), "--dist-url", "auto"), timeout=300)
            if kills == 3 - processes:
                assert warm.wait() == 0
                break
            state = output / "search.json"
            before, until = state.stat().st_mtime_ns if state.exists() else 0, time.monotonic() + 120
            while alive(process) and time.monotonic() < until and (not state.exists() or state.stat().st_mtime_ns == before):
                time.sleep(0.01)
            time.sleep(rng.random())
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
                kills += 1
            warm.wait()
        assert archive(output) == expected
        assert (output / "best_subnet.yaml").read_text() == (tmp_path / "whole" / "best_subnet.yaml").read_text()
    cfg = zoo.get_config(str(tmp_path / "whole" / "detector.yaml"))
    best = max(expected, key=lambda entry: entry["score"])
    assert list(read_choices(cfg.MODEL.SHUFFLENETV2.SUBNET, (4, 4, 8, 4))) == best["path"] and not cfg.MODEL.SHUFFLENETV2.SUPERNET
    for picture in ("search.png", "path.png"):
        assert (tmp_path / "whole" / picture).stat().st_size > 5000
    again = finished(tiny, tmp_path / "whole")
    assert again.returncode == 2 and "continue it with --resume" in again.stderr.splitlines()[-1]
    other = finished(tiny, tmp_path / "whole", "--resume", "--seed", "5")
    assert other.returncode == 2 and "has a different seed" in other.stderr.splitlines()[-1]
    other = finished([*tiny, "INPUT.MIN_SIZE_TEST", "72"], tmp_path / "whole", "--resume")
    assert other.returncode == 2 and "has a different INPUT.MIN_SIZE_TEST" in other.stderr.splitlines()[-1]
    # the found network, as it was scored
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu"])
    assert cfg.MODEL.SHUFFLENETV2.WIDTH == 0.25 and cfg.MODEL.FPN.OUT_CHANNELS == 32 and cfg.DATASETS.TRAIN == ("tiny_search",)
    model = build_model(cfg).eval()
    GatedCheckpointer(model, require="all").load(str(tmp_path / "whole" / "best_subnet.pth"))
    assert list(model.backbone.bottom_up.choices) == best["path"]


def test_the_configs_own_path_is_no_result():
    """A supernet's config may name the path that its evaluations show."""
    own = one_shot._own_config(config("MODEL.SHUFFLENETV2.CHOICES", [0] * 20))
    assert own.MODEL.SHUFFLENETV2.CHOICES == [] and own.MODEL.SHUFFLENETV2.SUBNET == "best_subnet.yaml"


def test_seconds_are_of_one_place(tiny, tmp_path, monkeypatch):
    """A search by latency does not resume on another device; one by multiply-adds does."""
    args = one_shot.argument_parser().parse_args(command(tiny, tmp_path)[2:])
    cfg = one_shot.prepare(one_shot.open_supernet(args), args).cfg
    path = tmp_path / "search.json"
    for kind in ("latency", "macs"):
        sampler = PathSampler(cfg.ONE_SHOT, dataclasses.replace(TABLE, kind=kind), "evolution", 0)
        before = identity_of(cfg, sampler)
        path.write_text(json.dumps({"search": before, "archive": []}))
        with monkeypatch.context() as patch:
            patch.setattr("backbones.timing.about", lambda device: {"machine": "another", "threads": 7})
            now = identity_of(cfg, sampler)
        with pytest.raises(UserError, match="has a different place") if kind == "latency" else contextlib.nullcontext():
            assert load_archive(str(path), now) == []
        path.write_text(json.dumps({"search": {key: before[key] for key in before if key != "place"}, "archive": []}))
        assert load_archive(str(path), now) == []  # of an earlier version


def test_damaged_states(tiny, tmp_path):
    """A state file that no search has written is refused in one line."""
    args = one_shot.argument_parser().parse_args(command(tiny, tmp_path)[2:])
    cfg = one_shot.prepare(one_shot.open_supernet(args), args).cfg
    sampler = PathSampler(cfg.ONE_SHOT, TABLE, "evolution", 0)
    identity = identity_of(cfg, sampler)
    good = {"path": [0] * 20, "cost": 1.0, "score": 2.0, "generation": 0, "seconds": {"inference": 1.0}}
    path = str(tmp_path / "search.json")

    def load(entry):
        with open(path, "w") as f:
            json.dump({"search": identity, "archive": [entry]}, f)
        return load_archive(path, identity)

    assert load(good) == [Evaluated((0,) * 20, 1.0, 2.0, 0, {"inference": 1.0})]
    for key, words in (("BRANCH_WIDTHS", ""), ("WIDTH", "has a different MODEL.SHUFFLENETV2.WIDTH")):  # a state of before there was that key
        config_then = {name: value for name, value in identity["config"].items() if name != f"MODEL.SHUFFLENETV2.{key}"}
        with open(path, "w") as f:
            json.dump({"search": {**identity, "config": config_then}, "archive": [good]}, f)
        with pytest.raises(UserError, match=words) if words else contextlib.nullcontext():  # the default is this config's value, or not
            assert len(load_archive(path, identity)) == 1
    changes = [("score", None), ("score", "x"), ("score", float("nan")), ("generation", "a"), ("path", [0, 1]), ("path", [9] * 20), ("path", 3)]
    for key, value in [*changes, ("cost", []), ("seconds", {"inference": "a"}), ("seconds", 3), ("more", 1)]:
        with pytest.raises(UserError, match="is no state of a search") as error:
            load({**good, key: value})
        assert "\n" not in str(error.value)
    for content in ("", "[]", "{}", '{"search": 3, "archive": []}', "[" * 5000):
        with open(path, "w") as f:
            f.write(content)
        with pytest.raises(UserError, match="is no state of a search"):
            load_archive(path, identity)


def test_children_of_parents():
    """A crossover has of each parent about half, a mutation differs from its parent in about 0.075 of the blocks."""
    first, second = Evaluated((0,) * 20, 22.0, 2.0, 0, {}), Evaluated((2,) * 20, 62.0, 1.0, 0, {})
    node = settings(MAX_COST=62.0, MUTATIONS=0, CROSSOVERS=200, POPULATION=200, PARENTS=2)
    crossed = [p for p in PathSampler(node, TABLE, "evolution", 0).propose(1, [first, second]) if set(p) <= {0, 2}]
    assert len(crossed) > 80 and abs(sum(c == 2 for p in crossed for c in p) / (20 * len(crossed)) - 0.5) < 0.08
    node = settings(MAX_COST=62.0, MUTATIONS=200, CROSSOVERS=0, POPULATION=200, PARENTS=1)
    mutated = PathSampler(node, TABLE, "evolution", 0).propose(1, [first])[:150]
    changed = [sum(c != 0 for c in p) for p in mutated]
    assert min(changed) >= 1 and 1.3 < sum(changed) / len(changed) < 2.6  # 1.5 without the unchanged, which were there before


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_norms_beyond_the_backbone(tiny, tmp_path, norm):
    """They are recalibrated too, by training steps whose draws are the same every time; norms of many processes become those of one."""
    more = [
        "MODEL.ROI_BOX_HEAD.NUM_CONV",
        "1",
        "MODEL.ROI_BOX_HEAD.NORM",
        norm,
        "MODEL.ROI_BOX_HEAD.CONV_DIM",
        "16",
        "ONE_SHOT.DATASET",
        "tiny_search_held_out",
    ]
    cfg = config(*tiny, *more)
    register_from_config(cfg)
    register_held_out(cfg)
    torch.manual_seed(0)
    GatedCheckpointer(build_model(cfg), str(tmp_path)).save("supernet")
    cfg.MODEL.WEIGHTS = str(tmp_path / "supernet.pth")
    evaluator = PathEvaluator(cfg, str(tmp_path))
    assert evaluator.whole
    norms = []
    for _ in range(2):
        torch.rand(3)
        model = evaluator.extract((1,) * 20)
        evaluator.recalibrate(model)
        norms.append(model.roi_heads.box_head.conv1.norm)
    assert isinstance(norms[0], nn.BatchNorm2d) and not isinstance(norms[0], nn.SyncBatchNorm)
    assert torch.equal(norms[0].running_mean, norms[1].running_mean) and norms[0].running_mean.abs().max() > 0


@pytest.mark.parametrize(
    "name, classifier, words", [("", "", ""), ("DetNAS-1.3G", "", "allow no path: macs of the .* range from"), ("DetNAS-1.3G", "classes_", "")]
)
def test_limits_are_checked_before_a_supernet_trains(name, classifier, words, tiny, tmp_path):
    chosen = ["MODEL.SHUFFLENETV2.NAME", name] if name else []
    given = ["--config-file", f"digits/detnas_supernet_{classifier}digits.yaml", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *chosen]
    args = train.argument_parser().parse_args(given)
    said = [line for line in train.prepare(args, train.read_config(args)).said if "the search would be refused" in line]
    assert len(said) == bool(words) and re.search(words, "".join(said))


@pytest.mark.slow
def test_forty_blocks_of_three_widths(tiny, tmp_path):
    """What a search finds in the largest space is a detector that has the score's weights."""
    wide = [*tiny, "MODEL.SHUFFLENETV2.NAME", "DetNAS-1.3G", "MODEL.SHUFFLENETV2.BRANCH_WIDTHS", "[0.5, 1.0, 1.5]", "ONE_SHOT.MAX_COST", "1e+8"]
    torch.manual_seed(0)
    GatedCheckpointer(build_model(config(*wide)), str(tmp_path)).save("supernet")
    wide += ["MODEL.WEIGHTS", str(tmp_path / "supernet.pth"), "ONE_SHOT.GENERATIONS", "1", "ONE_SHOT.POPULATION", "3"]
    ended = finished(wide, tmp_path / "found")
    assert ended.returncode == 0, ended.stderr[-2000:]
    best = max(archive(tmp_path / "found"), key=lambda entry: entry["score"])["path"]
    assert len(best) == 40 and max(best) > 3
    cfg = zoo.get_config(str(tmp_path / "found" / "detector.yaml"))
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    GatedCheckpointer(model, require="all").load(str(tmp_path / "found" / "best_subnet.pth"))
    assert list(model.backbone.bottom_up.choices) == best
    cfg.MODEL.SHUFFLENETV2.BRANCH_WIDTHS = [1.0]
    with pytest.raises(UserError, match="has branch_widths .*: set MODEL.SHUFFLENETV2.BRANCH_WIDTHS"):
        build_model(cfg)


@pytest.mark.slow
def test_precise_norms_are_those_of_the_path_that_is_evaluated(tmp_path):
    """Of the config's path, in every evaluation; the norms of other choices stay as training left them. Statistics to 1e-5."""
    cfg = config(
        "TEST.PRECISE_BN.ENABLED",
        True,
        "TEST.PRECISE_BN.NUM_ITER",
        2,
        "SOLVER.MAX_ITER",
        3,
        "TEST.EVAL_PERIOD",
        2,
        "INPUT.MIN_SIZE_TRAIN",
        "(64,)",
    )
    merge_overrides(cfg, ["OUTPUT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", "2", "DATASETS.TRAIN", "('digits_train',)", "SEED", "3"])
    merge_overrides(cfg, ["DATASETS.HOLD_OUT", "[]"])
    register_digits()
    seen = []

    class Looking(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            (net,) = supernets(model)
            statistics = {key: value.clone() for key, value in net.state_dict().items() if key.endswith("running_var")}
            seen.append((net.choices, statistics))
            return {}

    trainer = Looking(cfg)
    trainer.resume_or_load(resume=False)
    (net,) = supernets(trainer.model)
    trainer.train()
    first = tuple(SPECS["DetNAS-300M"].choices)
    assert [path for path, _ in seen] == [first, first] and net.given == first
    trained = [path_at(20, 3, step, cfg.MODEL.SHUFFLENETV2.SAMPLING) for step in range(3)]
    for name, value in seen[-1][1].items():
        found = re.match(r"res\d\.block\d+\.(\d)\.", name)
        index = net._released.index(name.split(f".{found[1]}.")[0]) if found else 0
        if not found or int(found[1]) == first[index]:
            assert not torch.equal(value, torch.ones_like(value)), name
        elif all(path[index] != int(found[1]) for path in trained):
            assert torch.equal(value, torch.ones_like(value)), name  # as it was initialized: neither trained nor set to zero


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides, words",
    [
        (["ONE_SHOT.MAX_COST", "1e+6"], "allow no path"),
        (["MODEL.SHUFFLENETV2.SUPERNET", "False"], "is not a supernet"),
        (["MODEL.WEIGHTS", ""], "needs a trained supernet"),
        (["MODEL.WEIGHTS", "nowhere.pth"], "nowhere.pth' does not exist"),
        (["MODEL.SHUFFLENETV2.SPLIT", "halves"], "does not fit"),
        (["ONE_SHOT.DATASET", "digits_val"], "and 'digits_val' of DATASETS.TEST share 250 images"),
        (["ONE_SHOT.DATASET", "tiny_search"], "and 'tiny_search_kept' of DATASETS.TRAIN share 10 images"),
        (["ONE_SHOT.DATASET", "tiny_search_held_ou"], "Did you mean 'tiny_search_held_out'"),
        (["DATASETS.TRAIN", "('tiny_search',)"], "would be trained on: set DATASETS.TRAIN to 'tiny_search_kept'"),
        (["DATASETS.TRAIN", "()"], "DATASETS.TRAIN is empty"),
        (["ONE_SHOT.COST_SIZE", "[0, 8]"], "ONE_SHOT.COST_SIZE is"),
        (["ONE_SHOT.MUTATION_PROB", "5.0"], "must be at most 1"),
        (["ONE_SHOT.COST", "parameters"], "exclude nothing"),
        (["MODEL.META_ARCHITECTURE", "ImageClassifier"], "is a classifier's"),
        (["MODEL.SHUFFLENETV2.SHUFFLE", "alternate"], "was trained with MODEL.SHUFFLENETV2.SHUFFLE 'before'"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "3"], "MODEL.ROI_HEADS.NUM_CLASSES is 3, but .*: set MODEL.ROI_HEADS.NUM_CLASSES 10"),
        (["ONE_SHOT.METRIC", "bbox/AP5"], "'bbox/AP5'. Did you mean 'bbox/AP"),
        (["ONE_SHOT.METRIC", "segm/AP"], "ONE_SHOT.METRIC: 'segm/AP'"),
    ],
)
def test_mistakes(tiny, tmp_path, overrides, words):
    args = one_shot.argument_parser().parse_args([*command(tiny, tmp_path / "s")[2:], *overrides])
    with pytest.raises(UserError, match=words) as error:
        one_shot.search(args, one_shot.prepare(one_shot.open_supernet(args), args))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "s" / "search.json").exists()


def test_a_search_evaluates_nothing_else():
    with pytest.raises(UserError, match="has no --eval-only"):
        one_shot.main(["--eval-only"])


def test_a_supernet_by_its_address(tiny, tmp_path, monkeypatch):
    """It is known by its file."""
    args = one_shot.argument_parser().parse_args(command(tiny, tmp_path / "s")[2:])
    front, asked = one_shot.open_supernet(args), []
    file = front.cfg.MODEL.WEIGHTS
    monkeypatch.setattr(front, "follow_weights", lambda: front.set("MODEL.WEIGHTS", "https://a.org/supernet.pth"))
    monkeypatch.setattr(one_shot, "fetch", lambda address, manager: asked.append(address) or file)
    assert one_shot.prepare(front, args).cfg.MODEL.WEIGHTS == file and asked == ["https://a.org/supernet.pth"]


@pytest.mark.slow
def test_a_mistake_on_the_command_line(tiny, tmp_path):
    result = finished([*tiny, "ONE_SHOT.MAX_COST", "1e+6"], tmp_path / "s")
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr[-2000:]
    assert "allow no path" in result.stderr.strip().splitlines()[-1]
