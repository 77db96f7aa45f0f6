"""The benchmark's arithmetic and files; its timings are no tests."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from backbones import UserError, create, timing
from backbones.benchmark import deploy, detectors, evaluation, gpu, reading, speed, tables, training
from backbones.evaluation import coco
from backbones.lean import keep_activations
from backbones.tools import benchmark

ABOUT = {"machine": "m", "threads": 2, "precision": "float32", "versions": {"python": "3", "torch": "2", "torchvision": "0", "detectron2": "0"}}


def test_ratios_are_of_rounds():
    times = {"new": [1.0, 2.0, 4.0], "old": [2.0, 2.0, 12.0]}
    (row,) = timing.rows_of("suite/net/size", times, "old", **ABOUT)
    assert row["name"] == "suite/net/size/new_vs_old" and row["unit"] == "times as fast" and row["pairs"] == 3
    assert (row["median"], row["low"], row["high"], row["seconds"]) == (2.0, 1.0, 3.0, [2.0, 2.0])
    assert {"machine", "threads", "precision", "versions"} <= set(timing.about())


def test_all_run_in_every_round():
    order = []
    times = timing.interleaved({name: (lambda name=name: order.append(name)) for name in "abc"}, pairs=2)
    assert order == [*"abc", *"cba", *"abc"] and all(len(values) == 2 for values in times.values())


def test_share_of_peak():
    assert gpu.share_of_peak(494.5e12, 2.0, "NVIDIA H100 80GB HBM3", torch.float32) == 0.5
    assert gpu.share_of_peak(67e12, 2.0, "NVIDIA H100 80GB HBM3", torch.bfloat16) == pytest.approx(0.0339, abs=1e-4)
    assert gpu.share_of_peak(8.1e12, 2.0, "Tesla T4", torch.float32) == 0.5
    for other in ("another card", "NVIDIA L40S", "NVIDIA T400"):
        assert gpu.share_of_peak(1.0, 1.0, other, torch.float32) is None


def test_table_of_gpus():
    """One for each machine, threads and versions; rows of a suite that was stopped have empty cells."""

    def row(kind, way, median, share=0.5, **more):
        versions = {"python": "3.12.3", "torch": "2.11.0"}
        about = {
            "machine": "H100",
            "precision": way.partition("_")[0],
            "threads": 1,
            "versions": versions,
            "low": 0.9,
            "high": 1.1,
            "seconds": [0.01, 0.02],
            "share_of_peak": share,
        }
        return {"name": f"gpu/{kind}/4x64x96/R-50/{way}_vs_detectron2_R-50", "median": median, **about, **more}

    text = tables._gpus(
        [
            row("inference", "float16_channels_last", 1.5),
            row("training", "float16_channels_last", 1.25),
            row("inference", "compile", 1.75, share=None),
            row("inference", "compile", 9.0, threads=16),
        ]
    )
    assert text.count("### H100") == 2 and "CPU threads: 16" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    cells = "| R-50 | float16, channels last | 1.50 (0.90 to 1.10) | 10.0 | 50.0 % | 1.25 (0.90 to 1.10) | 10.0 | 50.0 % |"
    assert cells in lines and "| R-50 | compile | 1.75 (0.90 to 1.10) | 10.0 | | | | |" in lines
    assert "| R-50 | compile | 9.00 (0.90 to 1.10) | 10.0 | 50.0 % |" in lines


def test_rows_replace_their_like(tmp_path):
    path = str(tmp_path / "speed.json")
    for value, threads in ((1, 2), (2, 2), (3, 1)):
        benchmark.record({"name": "a", "machine": "m", "threads": threads, "median": value}, path, ("name", "machine", "threads"))
    assert [row["median"] for row in speed.read(path)] == [2, 3]


def test_rows_of_two_processes(tmp_path):
    """Written to one file at once: all stay."""
    code = (
        "import sys; from backbones.tools.benchmark import record\n"
        "for i in range(20): record({'name': f'{sys.argv[1]}{i}'}, sys.argv[2], ('name',))"
    )
    path = str(tmp_path / "speed.json")
    processes = [subprocess.Popen([sys.executable, "-c", code, name, path], cwd=ROOT) for name in "ab"]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert sorted(row["name"] for row in speed.read(path)) == sorted(f"{name}{i}" for name in "ab" for i in range(20))


@pytest.mark.parametrize("task", ["bbox", "segm", "keypoints"])
def test_evaluators_agree(task):
    """Every figure and every precision, to 1e-12."""
    dataset, results = evaluation.made_up(12, 40, task)
    fast, slow = coco.evaluate(dataset, results, task), evaluation.official(dataset, results, task)
    np.testing.assert_allclose(np.asarray(fast.stats)[: len(slow.stats)], slow.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(fast.eval["precision"], slow.eval["precision"], rtol=0, atol=1e-12)
    assert slow.stats[0] > 0.01
    half = [image["id"] for image in dataset["images"][:6]]
    part = {**dataset, "images": dataset["images"][:6], "annotations": [a for a in dataset["annotations"] if a["image_id"] in half]}
    alone = coco.evaluate(part, [r for r in results if r["image_id"] in half], task)
    np.testing.assert_allclose(coco.evaluate(dataset, results, task, image_ids=half).stats[:5], alone.stats[:5], rtol=0, atol=1e-12)


def test_reading_is_measured(tmp_path):
    """In small, and in this process: both ways give the same records, and the rows have what the tables need."""
    path, root = reading.write(str(tmp_path), 30)
    ours, theirs = (reading.records(way, path, root) for way in ("polygons", "detectron2"))
    assert [r["image_id"] for r in ours] == list(range(1, 31)) and sum(len(r["annotations"]) for r in ours) > 60
    for record in theirs:  # detectron2 keeps the file's ids of categories, where the data have no name
        record["annotations"] = [{**a, "category_id": a["category_id"] - 1} for a in record["annotations"]]
    assert theirs == ours
    *read, boxes, polygons = reading.rows(path, root, 30, 3, run=lambda function, *args: function(*args))
    assert [row["name"] for row in read] == [f"data/reading/30_images/{way}_vs_detectron2" for way in ("boxes", "polygons")]
    for row in read:
        assert row["pairs"] == 3 and row["median"] > 0 and min(row["bytes"]) > 1e7
    assert [row["name"] for row in (boxes, polygons)] == [f"data/packed/30_images/{way}" for way in ("boxes", "polygons")]
    assert boxes["bytes_of"]["image"] == polygons["bytes_of"]["image"] > 50
    assert polygons["bytes_of"]["object"] > boxes["bytes_of"]["object"] + 28 * 8  # numbers of eight bytes
    others = {reading.alone(os.getpid) for _ in range(2)}
    assert len(others) == 2 and os.getpid() not in others


def test_kept_bytes():
    net, images = create("V-19-slim-eSE", norm="FrozenBN").train(), torch.randn(1, 3, 64, 64)
    most = training.kept_bytes(net, images)
    keep_activations(net, "lean")
    assert 0.3 * most < training.kept_bytes(net, images) < 0.8 * most
    shares = training.parts(lambda: sum(value.square().mean() for value in net(images).values()).backward(), rounds=1)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3) and shares["convolutions"] > 0.2


def _deployed(names, seconds):
    return [
        {**row, "shares_of_peak": [0.5, 0.25], "warm_up_seconds": 9.0}
        for name, eager in zip(names, seconds)
        for row in timing.rows_of(
            f"deploy/{name}/480x640", {"eager": [eager], "optimized": [eager / 2], "openvino_int8": [eager / 5]}, "eager", **ABOUT
        )
    ]


def test_picture(tmp_path):
    """A line for each way; what anything faster beats is no part of the front."""
    rows = _deployed(("V-19-slim-dw-eSE", "V-39-eSE", "retinanet_R-50"), (0.4, 1.0, 1.1))
    assert list(speed.deployed(rows)["480x640"]) == ["eager", "optimized", "openvino_int8"]
    assert speed.front([(2, 30, "b"), (1, 20, "a"), (3, 30, "c"), (4, 29, "d"), (5, 31, "e"), (1, 19, "f")]) == [
        (1, 20, "a"),
        (2, 30, "b"),
        (5, 31, "e"),
    ]
    (tmp_path / "speed.json").write_text(json.dumps({"runs": rows}))
    speed.plot(str(tmp_path / "speed.json"), str(tmp_path / "a.png"))
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert picture.shape == (660, 935, 3)
    for colour in ((127, 127, 127), (31, 119, 180), (255, 127, 14)):
        assert (picture == colour).all(-1).sum() > 100
    more = [{**row, "machine": "another", "name": row["name"].replace("480x640", size)} for row in rows for size in ("480x640", "800x800")]
    (tmp_path / "speed.json").write_text(json.dumps({"runs": more + rows}))
    widths = []
    for machine in (ABOUT["machine"], "another", "a third"):
        speed.plot(str(tmp_path / "speed.json"), str(tmp_path / "a.png"), machine)
        widths.append(Image.open(tmp_path / "a.png").width)
    assert widths == [935, 1650, 1650]
    for written, words in ({}, "is not a file of the benchmark"), ({"runs": []}, "no rows of --suite deploy"):
        (tmp_path / "speed.json").write_text(json.dumps(written))
        with pytest.raises(UserError, match=words):
            speed.plot(str(tmp_path / "speed.json"), str(tmp_path / "b.png"))


def test_table_of_deployment():
    rows = [{"name": "deploy/peak", "gflops": {"float32": 100.0, "bfloat16": 200.0}, **ABOUT}, *_deployed(("V-39-eSE",), (1.0,))]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables._deployed(rows).splitlines() if "V-39" in line]
    assert cells == [["V-39-eSE", "480x640", "(1000)", "2.00 (500)", "5.00 (200)"], ["V-39-eSE", "480x640", "25 %", "50 %", "50 %"]]
    assert "shares" not in tables._deployed(rows[1:]) and "2.00 (500)" in tables._deployed(rows[1:])  # the peak was not measured


@pytest.mark.slow
@pytest.mark.whole
def test_deployed_in_every_way(monkeypatch):
    """In small: a row for each way that is installed here, with its share of what a large convolution reaches."""
    monkeypatch.setattr(detectors, "DEPLOYED", {"V-19-slim-dw-eSE": detectors.FASTER["V-19-slim-dw-eSE"]})
    monkeypatch.setattr(deploy, "SIZES", ((96, 128),))
    ways = {way: options for way, options in deploy.TORCH.items() if "compile" not in options}
    monkeypatch.setattr(deploy, "TORCH", ways)
    first, *rows = deploy.suite(3)
    assert first["name"] == "deploy/peak" and min(first["gflops"].values()) > 1
    expected = [
        way for way in (*ways, *deploy.EXPORTED) if way != "float16" and importlib.util.find_spec("openvino" if "openvino" in way else "torch")
    ]
    assert sorted(row["name"].split("/")[3] for row in rows) == sorted(f"{way}_vs_eager" for way in expected)
    for row in rows:
        assert row["median"] > 0 and all(0 < share < 10 for share in row["shares_of_peak"])
        assert ("warm_up_seconds" in row) == (row["name"].split("/")[3].removesuffix("_vs_eager") in ways)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--suite", "data", "--pairs", "1"], "at least 3"),
        (["--device", "cuda"], "--device needs --suite"),
        (["--suite", "training", "--num", "9"], "--num needs --suite data"),
        (["quickstart/gfl.yaml", "--suite", "data"], "cannot be combined with configs"),
        (["--suite", "data", "--device", "gpu"], "--device"),
        (["--suite", "gpu", "--device", "cpu"], "needs a GPU"),
        (["--suite", "data", "--plot", "a.doc"], "--plot 'a.doc' must end in"),
        (["--suite", "data", "--json", "/proc/nowhere/a.json"], "cannot be"),
        (["--suite", "data", "--json", "notes.json"], "'notes.json' is not a file of the benchmark"),
        (["quickstart/gfl_V_19_slim_dw_FPNLite_digits.yaml", "--json", "notes.json"], "'notes.json' is not a file of the benchmark"),
        (["untested.yaml"], r"untested.yaml: a row is of one data set, but DATASETS.TEST names \[\]"),
        (["--suite", "data", "--json", "new.json", "--plot", "a.png"], "--plot 'a.png' needs rows of --suite deploy, but 'new.json' has none"),
    ],
)
def test_mistakes(arguments, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.json").write_text('{"a": 1}')
    (tmp_path / "untested.yaml").write_text("VERSION: 2\nDATASETS:\n  TRAIN: ('digits_train',)\n")
    monkeypatch.setattr("sys.argv", ["benchmark", *arguments])
    with pytest.raises(UserError, match=words):
        benchmark.main()


def test_runs_of_configs_of_one_name(tmp_path):
    """Go to folders of their own."""
    paths = [str(tmp_path / name) for name in ("x/a.yaml", "y/a.yaml", "y/a.py", "y/b.yaml")]
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "w").close()
    assert list(benchmark.folders_of(paths).values()) == ["x_a.yaml", "y_a.yaml", "y_a.py", "b"]
    assert list(benchmark.folders_of(paths[:1]).values()) == ["a"]


@pytest.mark.slow
def test_whole_detectors_in_other_precisions(monkeypatch):
    """What a GPU runs, on a CPU and in small."""
    name, way, size = "V-19-slim-dw-eSE", "bfloat16_channels_last_lean", (64, 96)
    monkeypatch.setattr(gpu, "NAMES", (name,))
    plain = detectors.config

    def narrow(*args, **options):  # heads, which take most of the time on a CPU
        cfg = plain(*args, **options)
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 100
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
        return cfg

    monkeypatch.setattr(detectors, "config", narrow)
    monkeypatch.setattr(gpu, "share_of_peak", lambda operations, seconds, machine, dtype: operations)  # a CPU's peak is not in the table
    rows = list(gpu.rows(3, "cpu", size, 1, ways=(way,)))
    assert [row["name"] for row in rows] == [f"gpu/{kind}/1x64x96/{name}/{way}_vs_detectron2_R-50" for kind in ("inference", "training")]
    assert [row["precision"] for row in rows] == ["bfloat16"] * 2
    for row, training_too in zip(rows, (False, True)):
        model = gpu.as_asked(name, way, "cpu", training_too, size)
        with FlopCounterMode(display=False) as counter:
            gpu.step(model, gpu.batch(size, "cpu", 1, training_too), gpu.WAYS[way][0], training_too)()
        assert row["share_of_peak"] == pytest.approx(counter.get_total_flops(), rel=0.02)  # regions are drawn by chance
    images = gpu.batch((64, 96), "cpu", 2, training=True)
    model, seen = gpu.as_asked(name, "plain", "cpu", True, (64, 96)), []
    model.backbone.register_forward_hook(lambda module, inputs, output: seen.append(output["p3"].detach()))
    for dtype in (torch.float32, torch.bfloat16):
        gpu.step(model, images, dtype, training=True)()
        kept = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        assert seen[-1].dtype == dtype and kept.isfinite().all() and kept.norm() > 0
    assert len(seen) == 2
    cosine = torch.nn.functional.cosine_similarity(*(features.double().flatten() for features in seen), dim=0)
    assert 0.3 < cosine < 0.999999  # other roundings; of features, since gradients also depend on which proposals are drawn
