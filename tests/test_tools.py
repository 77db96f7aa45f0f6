"""The tools, the package's import, and the set-up script."""

import io
import json
import os
import pkgutil
import re
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
import torch
from choices import cases
from conftest import ROOT, few_digits, load_record, warm
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from matplotlib import font_manager, ft2font
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import backbones
from backbones import UserError, drawing, zoo
from backbones.cli import VERBS
from backbones.cli import main as cli
from backbones.config import check_output_file, merge_overrides
from backbones.config.keys import KEYS
from backbones.data import digits, register_digits
from backbones.data.findings import KINDS
from backbones.deploy import optimize
from backbones.errors import CODES
from backbones.files import is_stream, save_figure, write_whole
from backbones.tools import analyze, benchmark, plot, run, visualize
from backbones.tools import zoo as zoo_tool
from backbones.tools.docs import figures, reference
from backbones.tools.docs.__main__ import written

PARAMETERS = load_record("complexity.json")["parameters"]
TOOLS = [
    "analyze",
    "benchmark",
    "compare",
    "dataset",
    "demo",
    "digits",
    "docs",
    "doctor",
    "errors",
    "export",
    "plot",
    "quickstart",
    "recipe",
    "recipes",
    "search_demo",
    "study",
    "train",
    "transfer",
    "visualize",
    "zoo",
]


def tool(name, *args, code=0):
    result = warm("-m", f"backbones.tools.{name}", *args)
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout if code == 0 else result.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_help(name, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [name, "--help"])
    for module in (f"backbones.tools.{name}", f"backbones.tools.{name}.__main__"):
        monkeypatch.delitem(sys.modules, module, raising=False)  # which runpy would warn of
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(f"backbones.tools.{name}", run_name="__main__", alter_sys=True)
    assert stop.value.code in (0, None) and "usage: python -m backbones.tools." + name in capsys.readouterr().out


def test_all_tools_are_tested():
    found = {module.name for module in pkgutil.iter_modules([os.path.join(ROOT, "backbones", "tools")])}
    assert found == set(TOOLS)


@pytest.fixture
def run_folder(tmp_path):
    """The metrics of a run that was resumed once and cut off while writing."""
    rows = [{"iteration": i, "total_loss": 3.0 / (i + 1), "loss_cls": 1.0 / (i + 1), "lr": 0.02} for i in (0, 19, 39, 19, 39, 59)]
    rows.append({"iteration": 60, "bbox/AP": 41.5})
    (tmp_path / "metrics.json").write_text("\n".join(json.dumps(row) for row in rows) + '\n{"iteration": 7')
    return tmp_path


def test_plot(run_folder):
    rows = plot.read_metrics(str(run_folder))
    assert [row["iteration"] for row in rows] == [0, 19, 39, 59, 60]
    assert plot.series(rows, "bbox/AP") == ([60], [41.5])
    plot.plot(str(run_folder), str(run_folder / "new" / "curve.png"))
    picture = np.asarray(Image.open(run_folder / "new" / "curve.png").convert("L"))
    assert min(picture.shape) > 500 and (picture < 100).mean() > 0.002  # ink, not an empty page


def test_two_runs_in_one_folder(tmp_path):
    """What the first wrote beyond the second is not the second's; detectron2 appends to the file where it starts anew."""
    rows = [{"iteration": i, "total_loss": 9.0} for i in (19, 39, 59)] + [{"iteration": 60, "bbox/AP": 38.6}]
    rows += [{"iteration": i, "total_loss": 1.0} for i in (19, 39)]
    (tmp_path / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    assert [(row["iteration"], row["total_loss"]) for row in plot.read_metrics(str(tmp_path))] == [(19, 1.0), (39, 1.0)]


def test_names_that_matplotlib_would_read(tmp_path, monkeypatch):
    """A formula to it, and a label that it leaves out."""
    folders = [tmp_path / name for name in ("$5_vs_$6", "$x", "_hidden")]
    for folder in folders:
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps({"iteration": 1, "total_loss": 1.0, "lr": 0.1, "_a$/bbox/AP": 3.0}))
        plot.plot(str(folder), str(folder / "one.png"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plot, "save_figure", lambda figure, output: shown.append(figure.axes[0].get_legend().get_texts()))
    shown = []
    plot.plot_several([folder.name for folder in folders], str(tmp_path / "all.png"))
    assert [text.get_text() for text in shown[0]] == [r"\$5_vs_\$6", r"\$x", " _hidden"]


def test_values_at_the_ends_of_lines():
    """Each stands at the height of its line, unless another is there."""
    assert plot._apart([10.0, 50.0, 80.0]) == [10.0, 50.0, 80.0]
    assert plot._apart([float("nan"), 30.0, 31.0]) == [0.0, 30.0, 39.0]
    high = plot._apart([94.0, 95.0, 99.0, 99.5])
    assert high[-1] < 100 and all(b - a >= 9.0 - 1e-9 for a, b in zip(high, high[1:])) and high[0] > 60


def test_lines_that_are_no_figures_are_counted(tmp_path, caplog):
    """Other than the last line, which a kill cuts off."""
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "total_loss": 2.0}\nx\n\n{"iteration": 3, "total_loss": 1.0}\n{"iterat')
    assert [row["iteration"] for row in plot.read_metrics(str(tmp_path))] == [1, 3]
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}/metrics.json: 2 lines left out: not figures of an iteration"]


def test_plot_mistakes_in_the_output(run_folder):
    for output, words in (("curve.txt", "curve.txt' must end in .png, "), ("metrics.json/curve.png", "cannot be created")):
        with pytest.raises(backbones.UserError, match=words):
            plot.plot(str(run_folder), str(run_folder / output))


def test_plot_mistakes(tmp_path):
    with pytest.raises(backbones.UserError, match="no metrics.json"):
        plot.read_metrics(str(tmp_path))
    (tmp_path / "metrics.json").write_text("nothing\n")
    with pytest.raises(backbones.UserError, match="holds no metrics"):
        plot.read_metrics(str(tmp_path))


def detections(tmp_path, masks):
    """The truth of the first images of digits_val, as results of an evaluation."""
    digits.generate()
    with open(MetadataCatalog.get("digits_val").json_file) as f:
        annotations = json.load(f)["annotations"]
    keys = ["image_id", "category_id", "bbox"]
    results = [{**{key: a[key] for key in keys}, "score": 0.9} for a in annotations]
    if masks:
        from pycocotools import mask as mask_util

        for r, a in zip(results, annotations):
            rle = mask_util.merge(mask_util.frPyObjects(a["segmentation"], *2 * [digits.SETS["digits"].size]))
            r["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    (tmp_path / "results.json").write_text(json.dumps(results))
    return str(tmp_path / "results.json")


def test_mistakes_of_an_image():
    boxes = [[0, 0, 10, 10], [20, 20, 40, 40], [50, 50, 60, 60]]
    truth = [{"bbox": box, "bbox_mode": 0, "category_id": i, "iscrowd": int(i == 2)} for i, box in enumerate(boxes)]

    def found(box, category, score=0.9):
        return {"image_id": 3, "bbox": box, "category_id": category, "score": score}

    def count(detections, annotations=truth):
        return visualize.mistakes([{"image_id": 3, "annotations": annotations}], {3: detections}, {1: 0, 2: 1})

    assert count([]) == [2]
    assert count([found([0, 0, 10, 10], 1), found([21, 21, 20, 20], 2)]) == [0]
    assert count([found([0, 0, 10, 10], 2), found([21, 21, 20, 20], 2)]) == [1]  # the wrong class
    assert count([found([0, 0, 10, 10], 1), found([0, 0, 9, 10], 1), found([21, 21, 20, 20], 2, 0.4)]) == [2]  # twice; not sure enough
    assert count([found([50, 50, 10, 10], 1)]) == [2]  # in a crowd
    assert count([found([0, 0, 9, 9], 1)], []) == [1]


@pytest.mark.parametrize("key, value", [("image_id", "another"), ("category_id", 0)])
def test_results_of_other_data_are_not_drawn(key, value, tmp_path):
    register_digits()
    found = {"image_id": DatasetCatalog.get("digits_val")[0]["image_id"], "category_id": 1, "bbox": [1, 1, 9, 9], "score": 1.0}
    (tmp_path / "results.json").write_text(json.dumps([found, {**found, key: value}]))
    with pytest.raises(UserError, match=f"have {key} {value!r}, which data set 'digits_val' does not have: name .* with --dataset"):
        visualize.draw(str(tmp_path / "results.json"), "digits_val", str(tmp_path / "a.png"))


def test_worst_first(tmp_path):
    register_digits()
    records = DatasetCatalog.get("digits_val")
    perfect = [
        {"image_id": r["image_id"], "category_id": a["category_id"] + 1, "bbox": a["bbox"], "score": 1.0}
        for r in records
        for a in r["annotations"]
        if r["image_id"] != records[7]["image_id"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(perfect))
    sizes = []
    for worst in (True, False):
        visualize.draw(str(tmp_path / "results.json"), "digits_val", str(tmp_path / "a.png"), count=1, worst=worst)
        sizes.append(np.asarray(Image.open(tmp_path / "a.png")))
    visualize.draw(str(tmp_path / "results.json"), "digits_val", str(tmp_path / "b.png"), count=len(records) and 8)
    halves = np.split(sizes[0][26:, : sizes[0].shape[1] // 2 * 2], 2, axis=1)
    assert sizes[0].shape != sizes[1].shape or (sizes[0] != sizes[1]).any()  # another image than the first
    assert (halves[0] != halves[1]).mean() > 0.01  # of which nothing was found


def test_plot_of_several_runs(tmp_path):
    for name, start in (("a", 3.0), ("b", 2.0)):
        (tmp_path / name).mkdir()
        rows = [
            {"iteration": i, "total_loss": start / (i + 1), "lr": 0.1, **({"bbox/AP": 10.0 * i * start} if i % 2 else {})} for i in range(4)
        ]
        (tmp_path / name / "metrics.json").write_text("\n".join(map(json.dumps, rows)))
    plot.plot_several([str(tmp_path / "a"), str(tmp_path / "b")], str(tmp_path / "both.png"))
    picture = np.asarray(Image.open(tmp_path / "both.png").convert("RGB"))
    assert picture.shape == (770, 990, 3)
    for half in (picture[:500], picture[500:]):  # losses and AP: a line of each run's colour
        assert all((half == colour).all(-1).sum() > 100 for colour in ((31, 119, 180), (255, 127, 14)))
    with pytest.raises(UserError, match="no metrics.json"):
        plot.plot_several([str(tmp_path / "a"), str(tmp_path)], str(tmp_path / "none.png"))
    assert not (tmp_path / "none.png").exists()


def test_plot_of_several_data_sets(tmp_path, monkeypatch):
    """Each one's AP and loss is drawn under its name; the AP of a class is no loss, whatever the class is named."""
    row = {"total_loss": 2.0, "lr": 0.1, "a/bbox/AP": 30.0, "b/bbox/AP": 40.0, "validation/b/total_loss": 3.0, "a/bbox/AP-blossom": 9.0}
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("".join(json.dumps({"iteration": i, **row}) + "\n" for i in range(3)))
    drawn = []
    monkeypatch.setattr(plot, "save_figure", lambda figure, output: drawn.append([ax.get_legend_handles_labels()[1] for ax in figure.axes]))
    plot.plot(str(tmp_path / "x"), str(tmp_path / "a.png"))
    assert drawn[0] == [["total_loss", "total_loss of b"], [], ["a/bbox/AP (leads)", "b/bbox/AP"]]
    monkeypatch.setattr(plot, "save_figure", lambda figure, output: drawn.append(figure.axes[1].get_ylabel()))
    plot.plot_several([str(tmp_path / "x"), str(tmp_path / "y")], str(tmp_path / "a.png"))
    assert drawn[1] == "a/bbox/AP"


@pytest.mark.parametrize("masks", [False, True])
def test_visualize(tmp_path, masks):
    """Perfect detections look like the truth; none look like the bare image."""
    visualize.draw(detections(tmp_path, masks), "digits_val", str(tmp_path / "out" / "all.png"), count=2)
    visualize.draw(detections(tmp_path, masks), "digits_val", str(tmp_path / "none.png"), count=2, threshold=0.95)
    drawn, bare = (np.asarray(Image.open(p).convert("RGB")).astype(int) for p in (tmp_path / "out" / "all.png", tmp_path / "none.png"))
    assert drawn.shape == bare.shape
    half = drawn.shape[1] // 2
    assert (drawn[:, : half - 10] == bare[:, : half - 10]).mean() > 0.99  # the truth, left
    assert (drawn[:, half + 10 :] != bare[:, half + 10 :]).mean() > 0.01  # detections, right


def test_visualize_keypoints(tmp_path):
    """Those of the truth too, if detections have some; damaged ones are refused."""
    path = detections(tmp_path, False)
    visualize.draw(path, "digits_val", str(tmp_path / "boxes.png"), count=1)
    with open(path) as f:
        found = json.load(f)
    for points, differ in ([4.5, 4.5, 0.9, 20.5, 30.5, 0.7], True), ([4.5, 4.5], False), ("4.5", False):
        with open(path, "w") as f:
            json.dump([{**result, "keypoints": points} for result in found], f)
        if not differ:
            with pytest.raises(backbones.UserError, match="the keypoints of a detection in image 1 are not x, y and score of each"):
                visualize.draw(path, "digits_val", str(tmp_path / "none.png"), count=1)
            continue
        visualize.draw(path, "digits_val", str(tmp_path / "points.png"), count=1)
        with_points, boxes = (np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB")).astype(int) for name in ("points", "boxes"))
        half = boxes.shape[1] // 2
        assert (with_points != boxes)[:, :half].any() and (with_points != boxes)[:, half:].any()


def test_visualize_refuses_masks_of_other_images(tmp_path):
    """pycocotools would read outside its memory."""
    path = detections(tmp_path, True)
    with open(path) as f:
        found = json.load(f)
    for result in found:
        result["segmentation"]["size"] = [4000, 4000]
    with open(path, "w") as f:
        json.dump(found, f)
    with pytest.raises(backbones.UserError, match="has a mask that is damaged or not of the image's size"):
        visualize.draw(path, "digits_val", str(tmp_path / "x.png"))
    assert not (tmp_path / "x.png").exists()


def test_visualize_of_other_data(tmp_path, monkeypatch):
    with pytest.raises(backbones.UserError, match="'coco_2014_val': json_file .* does not exist"):
        visualize.draw("x.json", "coco_2014_val", "x.png")
    with pytest.raises(backbones.UserError, match="no objects to draw"):
        visualize.draw(detections(tmp_path, False), "digits_val_panoptic_stuffonly", str(tmp_path / "x.png"))


def test_visualize_mistakes(tmp_path):
    with pytest.raises(backbones.UserError, match="Did you mean 'digits_val'"):
        visualize.draw("x.json", "digits_vall", "x.png")
    with pytest.raises(backbones.UserError, match="'x.json' do not exist"):
        visualize.draw("x.json", "digits_val", "x.png")
    (tmp_path / "bad.json").write_text('[{"image": 3}]')
    with pytest.raises(backbones.UserError, match="not in COCO's format: entry 0 has no image_id"):
        visualize.draw(str(tmp_path / "bad.json"), "digits_val", "x.png")
    for output in ("picture", "picture.gif"):
        with pytest.raises(backbones.UserError, match="must end in .png, .jpg or .jpeg"):
            visualize.draw(detections(tmp_path, False), "digits_val", str(tmp_path / output))


def test_a_run_without_evaluation_is_not_drawn(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr("sys.argv", ["visualize", "--input", str(tmp_path), "--output", str(tmp_path / "a.png")])
    with pytest.raises(backbones.UserError, match="holds no evaluation: run `backbones train --eval-only` to write"):
        visualize.main()


def test_the_help_and_a_verb_that_is_none(capsys):
    cli(["--help"])
    said = capsys.readouterr().out
    assert said.startswith("usage: backbones VERB") and "--version" in said and "``" not in said
    for verb, hint in (("trian", "Did you mean 'train'?"), ("nosuch", "unknown verb: 'nosuch'. Allowed: ")):
        with pytest.raises(SystemExit):
            cli([verb])
        assert hint in capsys.readouterr().err


def test_analyze():
    result = analyze.analyze("faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml", False, (224, 224))
    expected = PARAMETERS["faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml"]
    counts = [result["backbone"][k] for k in ("parameters", "with_affine")] + [result["backbone and FPN"]["with_affine"]]
    assert counts + [result["detector"][k] for k in ("parameters", "with_affine")] == expected
    assert result["backbone"]["gmacs_conv"] == pytest.approx(0.40, abs=0.0051)
    assert result["backbone and FPN"]["gmacs_conv"] > result["backbone"]["gmacs_conv"]


@pytest.mark.slow
def test_analyze_without_an_fpn():
    assert list(analyze.analyze("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", False, (64, 64)))[:2] == ["backbone", "proposal_generator"]


@pytest.mark.slow
def test_analyze_pads_for_the_fpn():
    """As the detector does; the backbone alone takes the image as it is."""
    odd, padded = (analyze.analyze("faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml", False, size) for size in ((100, 133), (128, 160)))
    assert odd["backbone"]["size"] == [100, 133] and odd["backbone and FPN"]["size"] == [128, 160]
    assert odd["backbone and FPN"] == padded["backbone and FPN"] and odd["backbone"]["gmacs_conv"] < padded["backbone"]["gmacs_conv"]


@pytest.mark.slow
@pytest.mark.parametrize("modulated", ["False", "True"])
def test_deformable_convolutions_are_counted(modulated):
    """By both counters: the plain convolutions' work, and that of predicting the offsets."""
    name, offsets = "faster_rcnn_RegNetX_400MF_FPN_3x.yaml", 27 if modulated == "True" else 18
    # offsets come from 3x3 convolutions of all channels, at stride 4
    more = sum(block.conv2.conv.in_channels for block in backbones.create("RegNetX-400MF").res2) * 9 * offsets / 4**2
    opts = ["MODEL.REGNET.DEFORM_ON_PER_STAGE", "[True,False,False,False]", "MODEL.REGNET.DEFORM_MODULATED", modulated]
    before, after = (analyze.analyze(name, False, (128, 128), o)["backbone"]["gmacs_conv"] for o in ([], opts))
    assert 1e9 * (after - before) == pytest.approx(more * 128 * 128)
    with torch.device("meta"):
        nets = [
            backbones.create("RegNetX-400MF", deform_on_per_stage=(on, False, False, False), deform_modulated=modulated == "True")
            for on in (False, True)
        ]
    assert 1e9 * (figures.conv_gmacs(nets[1]) - figures.conv_gmacs(nets[0])) == pytest.approx(more * 800 * 1344)


@pytest.mark.slow
def test_quickstart_keeps_to_its_data():
    for key in ("OUTPUT_DIR", "DATASETS.TEST"):
        assert f"the quickstart sets {key} itself" in tool("quickstart", key, "x", code=2)


@pytest.mark.parametrize(
    "words, said",
    [
        ("OUTPUT_DIR x", "--opts cannot set OUTPUT_DIR: --output says where"),
        ("SEED=1 train.output_dir=x", "--opts cannot set train.output_dir: "),
        ("DATASETS.TEST ()", r"a row is of one data set, but DATASETS.TEST names \[\]"),
        ("SEED 1 DATASETS.TEST ('digits_val','digits_train')", r"a row is of one data set, but DATASETS.TEST names \['digits_val', 'digits_t"),
    ],
)
def test_benchmark_keeps_to_its_folders_and_data(words, said, monkeypatch, tmp_path):
    """Before a run, not after it."""
    monkeypatch.setattr("sys.argv", ["benchmark", "--json", str(tmp_path / "a.json"), "--opts", *words.split()])
    with pytest.raises(UserError, match=said):
        benchmark.main()


def test_benchmark_keeps_a_row_a_machine(tmp_path):
    path = str(tmp_path / "measured.json")
    for config, machine, ap in (("a", "here", 1.0), ("a", "there", 2.0), ("b", "here", 3.0), ("a", "here", 4.0)):
        benchmark.record({"config": config, "machine": machine, "ap": ap}, path)
    with open(path) as f:
        assert [(row["config"], row["machine"], row["ap"]) for row in json.load(f)["runs"]] == [
            ("a", "here", 4.0),
            ("a", "there", 2.0),
            ("b", "here", 3.0),
        ]
    assert "torch" in benchmark.machine()


@pytest.mark.slow
@pytest.mark.parametrize("data", cases(["few", "digits_val"], tried=["few"]))
def test_benchmark_trains(data, catalogue, tmp_path, monkeypatch):
    """A run of two iterations, from the command to the row, whose figures are those of its detections; minutes on the config's own data."""
    opts = [
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "TEST.EVAL_PERIOD",
        "0",
        "MODEL.RPN.POST_NMS_TOPK_TEST",
        "5",
        "TEST.PICTURES",
        "0",
    ]
    truth = MetadataCatalog.get("digits_val").json_file
    if data == "few":
        truth, images = few_digits(tmp_path, {"val": 5})["val"]
        opts += ["DATASETS.REGISTER", f"[['few', '{truth}', '{images}']]", "DATASETS.TEST", "('few',)", "INPUT.MIN_SIZE_TEST", "64"]
    config = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"
    monkeypatch.setattr("subprocess.call", lambda command, **streams: warm(*command[1:]).returncode)  # with its imports done
    written = ["--output", str(tmp_path / "runs"), "--json", str(tmp_path / "measured.json")]
    monkeypatch.setattr("sys.argv", ["benchmark", config, *written, "--opts", *opts])
    benchmark.main()
    with open(tmp_path / "measured.json") as f:
        (row,) = json.load(f)["runs"]
    run = tmp_path / "runs" / os.path.basename(config)[:-5]
    evaluation = COCOeval(COCO(truth), COCO(truth).loadRes(str(run / "inference" / "coco_instances_results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert (row["ap"], row["ap50"]) == pytest.approx(tuple(100 * evaluation.stats[:2]), abs=1e-4)
    assert (row["config"], row["data"], row["iterations"], row["seed"]) == (config, data, 2, 1)
    assert Image.open(run / "training.png").size == (990, 770)
    assert "Did you mean" in tool("benchmark", "quickstart/faster_rcn.yaml", code=2)


@pytest.mark.slow
def test_analyze_mistakes():
    error = tool("analyze", "--backbone", "V-20-eSE", code=2)
    assert "Traceback" not in error and error.splitlines()[-1].startswith("error: ") and "Did you mean 'V-" in error.splitlines()[-1]
    assert "at least 1" in tool("analyze", "--backbone", "V-19-eSE", "--size", "0", "5", code=2)


@pytest.mark.parametrize("page", reference.PAGES)
def test_generated_pages_are_up_to_date(page, monkeypatch):
    """`python -m backbones.tools.docs` writes what is there."""
    monkeypatch.chdir(ROOT)
    with open(page, encoding="utf-8") as f:
        assert f.read() == reference.PAGES[page]()


def test_the_reference_is_whole():
    """Every key, code and finding has its row, every verb its section, and every flag of a verb's help stands in it."""
    rows = lambda text: [line.split("|")[1].strip(" `\\*") for line in text.splitlines() if line.startswith("| ")]
    assert {key.name for key in KEYS} <= set(rows(reference.config()))
    assert set(CODES) <= set(rows(reference.errors()))
    assert sorted(row for row in rows(reference.findings()) if row != "kind") == sorted(KINDS)
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", reference.commands(), re.M | re.S))
    assert {f"backbones {verb}" for verb in VERBS} <= set(sections)
    for name, flags in {
        "export": ["--calibrate", "--max-drop"],
        "dataset": ["--val", "--seed"],
        "search": ["--workers"],
        "demo": ["--webcam"],
    }.items():
        assert all(f"`{flag}`" in sections[f"backbones {name}"] for flag in flags), name


@pytest.mark.slow
def test_all_that_is_written_is_up_to_date(monkeypatch):
    """`python -m backbones.tools.docs` changes nothing: model_zoo.md, tables of figures, and the pages above."""
    monkeypatch.chdir(ROOT)
    pages = written()
    assert {"model_zoo.md", "README.md", *reference.PAGES} <= set(pages)
    for page, text in pages.items():
        with open(page, encoding="utf-8") as f:
            assert f.read() == text, page


def test_docs_are_written_in_a_checkout_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'README.md' does not exist here"):
        written()


@pytest.mark.parametrize("page, cells", [("README.md", ["V-39-eSE", "42.7"]), ("docs/deploy.md", ["GFL, digits, bbox/AP", "34.18"])])
def test_tables_of_pages_are_up_to_date(page, cells):
    """`python -m backbones.tools.docs` writes what is there; README is no longer than a reader stays."""
    with open(os.path.join(ROOT, page)) as f:
        text = f.read()
    assert text == figures.filled(page, text)
    assert cells in [[cell.strip() for cell in line.split("|")[1:3]] for line in text.splitlines()]
    assert page != "README.md" or len(text.splitlines()) <= 150


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)


@pytest.mark.slow
def test_import_explains_a_missing_detectron2():
    result = python("import sys; sys.modules['detectron2'] = None; import backbones")
    assert result.returncode == 1 and "backbones extends detectron2, which this Python does not have" in result.stderr.splitlines()[-1]


@pytest.mark.slow
def test_import_needs_no_optional_package():
    """Nor does the import of `train_net`, and a network, then."""
    blocked = "timm faster_coco_eval simplejpeg onnx onnxruntime openvino wandb mlflow lvis panopticapi pkg_resources sklearn".split()
    blocked += ["cityscapesscripts", "detectron2._C"]
    code = f"import sys\nfor name in {blocked}: sys.modules[name] = None\nimport backbones"
    code += "\nprint(len(backbones.list_backbones()), 'detectron2.model_zoo' in sys.modules, flush=True)"
    result = python(f"{code}\nimport train_net\nbackbones.create('V-19-slim-eSE')")
    assert result.returncode == 0 and result.stdout.split() == [str(len(backbones.list_backbones())), "False"], result.stderr


def set_up(*args, **env):
    script = os.path.join(ROOT, "requirements", "setup.sh")
    return subprocess.run(["sh", script, *args], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, timeout=60)


@pytest.mark.parametrize("stack, needed", [("auto", "3.10 to 3.13"), ("current", "3.11 to 3.13"), ("compiled", "CPython 3.10 with")])
def test_set_up_without_a_fitting_python(stack, needed, tmp_path):
    result = set_up(stack, BASE_PYTHON="/bin/false", BACKBONES_VENV=str(tmp_path / "venv"))
    assert result.returncode == 1 and result.stdout == "" and not (tmp_path / "venv").exists()
    assert result.stderr.count("\n") == 1 and needed in result.stderr and "pyenv install" in result.stderr


def test_set_up_of_an_unknown_stack():
    result = set_up("newest")
    assert result.returncode == 2 and "allowed: current, compiled, auto" in result.stderr


def test_set_up_leaves_foreign_folders_alone(tmp_path):
    (tmp_path / "work.txt").write_text("mine")
    result = set_up("auto", BACKBONES_VENV=str(tmp_path))
    assert result.returncode == 1 and "stays untouched" in result.stderr and result.stderr.count("\n") == 1
    assert (tmp_path / "work.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "built, arguments, shell, expected",
    [
        (None, ["PYTHON=/some/python"], {}, ["/some/python -m backbones.tools.quickstart"]),
        (None, [], {"PYTHON": "/of/the/shell"}, ["sh requirements/setup.sh auto", ".venv/bin/python -m backbones.tools.quickstart"]),
        ("current", [], {}, [".venv/bin/python -m backbones.tools.quickstart"]),
        ("current", ["STACK=current"], {}, [".venv/bin/python -m backbones.tools.quickstart"]),
        ("current", ["STACK=compiled"], {}, ["sh requirements/setup.sh compiled", ".venv/bin/python -m backbones.tools.quickstart"]),
    ],
)
def test_make(tmp_path, built, arguments, shell, expected):
    """What is set up, and when: an own Python is left as it is, an environment that is there is used, unless another stack is asked for."""
    (tmp_path / "requirements").mkdir()
    for name in ("Makefile", "setup.py", "requirements/setup.sh"):
        shutil.copy(os.path.join(ROOT, name), tmp_path / name)
    if built:
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / ".installed").write_text(built + "\n")
    env = {key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL", "PYTHON", "STACK")}  # `make test` sets them
    result = subprocess.run(["make", "-n", "quickstart", *arguments], capture_output=True, text=True, cwd=tmp_path, env={**env, **shell})
    assert result.stdout.splitlines() == expected, result.stderr


def test_locks_are_pinned_and_hashed():
    folder = os.path.join(ROOT, "requirements")
    locks = [f for f in os.listdir(folder) if f.endswith(".txt")]
    assert set(locks) == {"build.txt", "compiled.txt", "current.txt", "detectron2.txt", "docs.txt"}
    for lock in locks:
        with open(os.path.join(folder, lock)) as f:
            entries = f.read().replace("\\\n", " ").splitlines()
        for entry in (e for e in entries if e.strip() and not e.startswith("#")):
            assert "==" in entry and "--hash=sha256:" in entry, entry


class TestZoo:
    """`python -m backbones.tools.zoo`"""

    def test_list(self):
        everything = zoo_tool.list_entries("*")
        for name in ("COCO-Detection/faster_rcnn_V_39_FPN_3x.yaml", "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "RegNetX-3.2GF"):
            assert f"| {name} " in everything
        assert everything.count("\n") > 300
        found = zoo_tool.list_entries("mask_rcnn_V_39").splitlines()[2:]
        assert len(found) >= 8 and all("mask_rcnn_V_39" in line for line in found)
        (row,) = [line for line in found if "COCO-InstanceSegmentation/mask_rcnn_V_39_FPN_3x" in line]
        assert "box 43.8, mask 39.3" in row and "vovnet-detectron2:mask_V_39" in row and "CC-BY-NC-4.0" in row and "gone" in row
        with pytest.raises(UserError, match="nothing in the zoo matches 'no such'"):
            zoo_tool.list_entries("no such")

    def test_show(self):
        text = zoo_tool.show("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
        assert "box 37.9" in text and "MODEL.WEIGHTS https://dl.fbaipublicfiles.com/detectron2/COCO-Detection/" in text
        assert "TEST.EXPECTED_RESULTS \"[['bbox', 'AP', 37.9, 0.1]]\"" in text
        text = zoo_tool.show("mask_rcnn_RegNetX_3.2GF_FPN_1x.yaml")
        assert (
            "163141-2a9d1814.pth" in text and "licence of the weights: Apache-2.0; its text: https://spdx.org/licenses/Apache-2.0.html" in text
        )
        assert "MODEL.WEIGHTS backbones://COCO-InstanceSegmentation/mask_rcnn_RegNetX_3.2GF_FPN_1x TEST" in text
        text = zoo_tool.show("V-39-eSE")
        assert "--backbone V-39-eSE" in text and "CC-BY-NC-4.0" in text and "mean [103.53, 116.28, 123.675]" in text
        assert text.index("timm:ese_vovnet39b.ra_in1k") < text.index("vovnet-detectron2:") and "Apache-2.0, top-1 79.3 %" in text
        gone = zoo_tool.show("faster_rcnn_V_39_FPN_3x.yaml")
        assert "gone" in gone and "check the published figures" not in gone  # with what cannot be downloaded
        text = zoo_tool.show("reproduce/mask_rcnn_V_39_FPN_3x.yaml")
        assert "--eval-only" in text and "box 43.8" in text and "gone" in text
        licence = [line for line in text.splitlines() if line.startswith("licence of the weights: ")]
        assert licence == [
            "licence of the weights: CC-BY-NC-4.0, not for commercial use; its text: https://spdx.org/licenses/CC-BY-NC-4.0.html"
        ]
        assert "    used only with --accept-licence CC-BY-NC-4.0 or this full address: not for commercial use; its text: " in text
        assert "lazy/retinanet_V_39_FPN_1x.py" in zoo_tool.list_entries("lazy")
        with pytest.raises(UserError, match="Did you mean"):
            zoo_tool.show("faster_rcnn_V_38_FPN_3x.yaml")
        with pytest.raises(UserError, match="Did you mean 'V-"):
            zoo_tool.show("V-40")
        with pytest.raises(UserError, match="'R-101' is a network of detectron2's own and has no entry. Its configs: .* list R_101"):
            zoo_tool.show("R-101")
        assert "faster_rcnn_R_101_FPN_3x.yaml" in zoo_tool.list_entries("R_101")

    def test_verification_is_a_config_that_merges(self):
        """Of every published row with a file: the keys and values that the command gives are ones."""
        import shlex

        for name in zoo.list_detectron2_configs():
            if name.endswith(".yaml") and "checkpoint" in zoo.published(name):
                words = shlex.split(zoo_tool.verification(name))
                cfg = zoo.get_config(words[words.index("--config-file") + 1])
                merge_overrides(cfg, words[words.index("--eval-only") + 1 :])
                assert cfg.MODEL.WEIGHTS == zoo.get_checkpoint_url(name) and len(cfg.TEST.EXPECTED_RESULTS) >= 1

    def test_download(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
        (tmp_path / "RegNetX-400MF.pth").write_bytes(b"x")
        assert zoo_tool.download("RegNetX-400MF") == str(tmp_path / "RegNetX-400MF.pth")
        with pytest.raises(UserError, match="unknown released model"):
            zoo_tool.download("digits/faster_rcnn_digits.yaml")

    @pytest.mark.slow
    def test_command(self):
        assert "| published" in tool("zoo", "list", "*V_99*")
        assert "error: unknown config" in tool("zoo", "show", "nix", code=2)
        assert "download" in tool("zoo", "--help")


def test_a_file_that_is_a_link_or_a_stream(tmp_path):
    """What a link leads to is written, and what is no file stays what it is."""
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    write_whole(str(tmp_path / "link.json"), "a")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "a"
    os.mkfifo(tmp_path / "pipe.png")
    reader = os.open(tmp_path / "pipe.png", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(str(tmp_path / "pipe.png"), "b")
    assert os.read(reader, 9) == b"b"
    os.close(reader)
    with pytest.raises(UserError, match="pipe.png' cannot be written: it is not a file"):
        save_figure(None, str(tmp_path / "pipe.png"))
    write_whole("/dev/null", "c")
    for stream in ("/dev/null", tmp_path / "pipe.png"):
        assert is_stream(str(stream)) and os.path.exists(stream) and not os.path.isfile(stream)
    check_output_file("/dev/stdout", "--json")
    assert not is_stream("/dev/shm")  # a folder in memory
    assert is_stream("/dev/stdout") and not is_stream(str(tmp_path / "real.json")) and not is_stream(str(tmp_path / "new.json"))


def test_a_terminal_that_lacks_letters(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr("sys.stdout", terminal)
    run(lambda: print("\u732b Ü"))
    assert terminal.buffer.getvalue() == "\\u732b Ü\n".encode("latin-1")


def test_version(capsys):
    cli(["--version"])
    assert capsys.readouterr().out == f"backbones {backbones.__version__}\n"


def test_letters_that_the_own_font_lacks(tmp_path, monkeypatch, caplog):
    """An installed font that has them draws them, but not one of the last resort; if there is none, that is said once."""
    folder = os.path.join(matplotlib.get_data_path(), "fonts", "ttf")
    own, other = (os.path.join(folder, name) for name in ("DejaVuSans.ttf", "STIXGeneral.ttf"))
    letter = next(chr(code) for code in sorted(ft2font.FT2Font(other).get_charmap()) if not drawing._has(own, chr(code)))
    boxes = shutil.copy(other, tmp_path / "LastResortHE-Regular.ttf")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [SimpleNamespace(fname=name) for name in ("gone.ttf", boxes, own, other)])
    drawing._font_file.cache_clear()
    assert drawing._font(15, "cup é").path == own and drawing._font(15, f"cup {letter}").path == other
    for score in (87, 9):
        page = drawing.draw(np.zeros((64, 64, 3), np.uint8), [drawing.Mark((8, 8, 40, 40), f"{letter} \U0010ffff {score}%")])
    assert page.any() and [record.getMessage()[:32] for record in caplog.records] == ["no installed font has all letter"]
    drawing._font_file.cache_clear()


def test_a_picture_is_whole_or_not_there(tmp_path):
    from matplotlib.figure import Figure

    save_figure(Figure(), str(tmp_path / "a.png"))
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png.partial").symlink_to("/dev/full")
    with pytest.raises(UserError, match="a.png' cannot be written: No space left"):
        save_figure(Figure(), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes() == before


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
def test_a_reader_that_has_enough(tmp_path):
    """As `| head` does: no traceback."""
    code = "from backbones.tools import run; run(lambda: print('x' * 1_000_000))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert b"Traceback" not in process.stderr.read() and process.wait() == 141


@pytest.mark.slow
def test_grey_images():
    """Of one channel, in counts and in the choice of a memory format."""
    grey = ["INPUT.FORMAT", "L", "MODEL.PIXEL_MEAN", "[100.0]", "MODEL.PIXEL_STD", "[1.0]", "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
    config = "faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml"
    ours, usual = analyze.analyze(config, False, (64, 64), grey), analyze.analyze(config, False, (64, 64))
    assert 0 < usual["backbone"]["gmacs_conv"] - ours["backbone"]["gmacs_conv"] < 0.1 * usual["backbone"]["gmacs_conv"]
    cfg = zoo.get_config(config)
    merge_overrides(cfg, grey)
    optimize(build_model(cfg).eval(), size=(64, 64))
