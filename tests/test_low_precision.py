"""Exports in int8 and in 16 bits."""

import json
import os
import shutil

import numpy as np
import pytest
import zoo_data
from choices import cases
from lively import alive, small_config
from PIL import Image

from backbones import UserError
from backbones.deploy import Runner, low_precision
from backbones.deploy.export import FORMATS, export
from backbones.deploy.low_precision import averages, check_precision, lower
from backbones.deploy.saving import save_onnx
from backbones.engine import YamlFront
from backbones.tools import export as exporting
from backbones.tools.export import calibration, evaluator


@pytest.mark.slow
@pytest.mark.parametrize("kind, form", cases((("GFLV2", "onnx"), ("Faster", "openvino")), tried=(("GFLV2", "onnx"),), daily=[]))
def test_int8(kind, form, tmp_path, monkeypatch):
    """The file is smaller than half, its scores are near, it says how it was made, and too much loss is refused."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    source, path = str(tmp_path / "a.onnx"), str(tmp_path / "small" / f"b{FORMATS[form]}")
    os.makedirs(tmp_path / "small")
    export(cfg, model, source, "onnx", image)
    given = {"images": [image, image[:, ::-1]], "said": "a photograph"}
    made, quantize = str(tmp_path / "q.onnx"), low_precision.quantize

    def once(source, path, inputs):
        """The same file on the same images: the second time it is a copy, for which the images are counted."""
        if os.path.exists(made):
            assert [x.shape for x in inputs] == [x.shape for x in seen]
        else:
            seen.extend(inputs)
            quantize(source, made, iter(seen))
        shutil.copy(made, path)

    seen = []
    monkeypatch.setattr(low_precision, "quantize", once)
    aps = iter((50.0, 49.0, 50.0, 49.9))
    evaluate = lambda runner: {"bbox": {"AP": next(aps)}}
    refused = r"more than --max-drop 0.5 allows \(bbox/AP 50.00 -> 49.00\): the file is not written; use other --calibrate images, or raise"
    with pytest.raises(UserError, match=refused):
        lower(source, path, form, "int8", evaluate=evaluate, **given)
    assert os.listdir(tmp_path / "small") == []
    assert lower(source, path, form, "int8", evaluate=evaluate, **given) == {"bbox/AP": (50.0, 49.9)}
    about = Runner(path).about
    assert about["precision"] == "int8" and about["calibration"] == {"images": 2, "of": "a photograph", "method": "MinMax"}
    assert about["AP"] == {"bbox/AP": [50.0, 49.9]}
    files = [name for name in os.listdir(tmp_path / "small") if name.startswith("b.")]
    assert sum(os.path.getsize(tmp_path / "small" / name) for name in files) < 0.5 * os.path.getsize(source)
    expected, found = (runner(image)["instances"].scores for runner in (Runner(source), Runner(path)))
    assert len(found) and abs(float(expected[:10].mean() - found[:10].mean())) < 0.1


def test_the_results_of_the_run_stay(tmp_path, monkeypatch, capsys):
    """What a file finds is written into no folder that outlives the export; the images that are measured on are counted."""
    zoo_data.make(os.environ["DETECTRON2_DATASETS"])
    front = YamlFront(small_config("Faster", "MobileNetV2"))
    front.set("OUTPUT_DIR", str(tmp_path))
    seen = []
    monkeypatch.setattr(YamlFront, "evaluate", lambda self, model: seen.append(self.settings.OUTPUT_DIR))
    exporting.evaluator(front)(None)
    assert f"on {zoo_data.IMAGES} images of 'coco_2017_val'\n" in capsys.readouterr().out
    assert front.settings.OUTPUT_DIR == str(tmp_path) and seen != [str(tmp_path)] and not os.path.exists(seen[0])


def test_test_data_without_annotations(tmp_path, capsys, catalogue):
    """Nothing is measured, and that is said."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    content = {"images": [{"id": 1, "file_name": "a.png", "height": 30, "width": 40}], "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    front = YamlFront(small_config("Faster", "MobileNetV2"))
    front.set("DATASETS.REGISTER", [["unlabelled", str(tmp_path / "a.json"), str(tmp_path)]])
    front.set("DATASETS.TEST", ("unlabelled",))
    assert exporting.evaluator(front) is None
    assert "AP is not measured, and --max-drop is not checked: unlabelled has no annotations\n" in capsys.readouterr().out


def test_test_data_without_names(capsys, monkeypatch):
    """Those of a Python config that are in no catalogue are measured on."""
    front = YamlFront(small_config("Faster", "MobileNetV2"))
    front.set("DATASETS.TEST", ())
    monkeypatch.setattr(YamlFront, "evaluates", True)
    assert exporting.evaluator(front) is not None
    assert "in --precision, on the test data\n" in capsys.readouterr().out


def test_a_graph_that_cannot_be_lowered(tmp_path):
    """No images to calibrate on, and a graph that does not take the sample, are one line, and there is no file."""
    import onnx

    about = {"fields": ["scores"], "part": "detector", "input_format": "RGB", "crop": 0, "min_size": 0, "max_size": 8}
    graph = onnx.parser.parse_graph("g (float[3, 8, 8] image) => (float[3, 8, 8] scores) { scores = Relu (image) }")
    source = str(tmp_path / "a.onnx")
    save_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), source, about)
    for form in ("onnx", "openvino"):
        with pytest.raises(UserError, match="this model cannot be converted to int8: .") as error:
            lower(source, str(tmp_path / f"b{FORMATS[form]}"), form, "int8", [])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="cannot be run on an input of"):
        lower(source, str(tmp_path / "b.xml"), "openvino", "bfloat16", sample=np.zeros((8, 16, 3), np.uint8))
    assert os.listdir(tmp_path) == ["a.onnx"]


@pytest.mark.parametrize(
    "kind, precision, calibrated, said",
    [
        ("torchscript", "int8", True, "precision of format torchscript"),
        ("onnx", "bfloat16", False, "precision of format onnx"),
        ("onnx", "int8", False, "--calibrate"),
    ],
)
def test_precisions_that_are_none(kind, precision, calibrated, said):
    with pytest.raises(UserError, match=said):
        check_precision(kind, precision, calibrated)


def test_images_to_calibrate_on(tmp_path, capsys):
    """Evenly from a folder and those in it; how many there are is said."""
    for i in range(9):
        os.makedirs(tmp_path / str(i % 2), exist_ok=True)
        Image.new("RGB", (40, 30), (i, i, i)).save(tmp_path / str(i % 2) / f"{i}.png")
    front = YamlFront(small_config("Faster", "MobileNetV2"))
    chosen = [int(image[0, 0, 0]) for image in calibration(front, str(tmp_path), 3)]
    assert chosen == [0, 8, 7]  # of 0 2 4 6 8 1 3 5 7
    assert capsys.readouterr().out == f"calibrating on 3 of 9 images in {str(tmp_path)!r}\n"
    assert len(list(calibration(front, str(tmp_path), 100))) == 9
    (tmp_path / "0" / "8.png").write_bytes(b"no picture")
    assert [int(image[0, 0, 0]) for image in calibration(front, str(tmp_path), 3)] == [0, 7]
    said = capsys.readouterr().err
    assert said.startswith("left out: ") and "8.png' cannot be read: it holds no image" in said and said.count("\n") == 1
    with pytest.raises(UserError, match="no data set and no folder. Did you mean '.*/0'?") as error:
        calibration(front, str(tmp_path / "00"), 3)
    assert error.value.suggestion == str(tmp_path / "0")
    with pytest.raises(UserError, match="data set or folder, of --calibrate"):
        calibration(front, str(tmp_path / "none"), 3)


def test_what_accuracy_is_measured_on(capsys):
    front = YamlFront(small_config("Faster", "MobileNetV2"))
    front.set("DATASETS.TEST", ("digits_val",))
    assert evaluator(front) is not None
    assert capsys.readouterr().out == "accuracy is measured twice, in float32 and in --precision, on 250 images of 'digits_val'\n"
    front.set("DATASETS.TEST", ())
    assert evaluator(front) is None and "DATASETS.TEST is empty" in capsys.readouterr().out


def test_figures_that_may_not_drop():
    """One of each task, and none of single classes."""
    results = {
        "panoptic_seg": {"PQ": 40.0, "SQ": 70.0},
        "sem_seg": {"mIoU": 50.0, "mACC": 60.0},
        "bbox": {"AP": 30.0, "AP-one": 1.0},
        "classification": {"top1": 90.0, "top5": 99.0},
    }
    assert averages(results) == {"panoptic_seg/PQ": 40.0, "sem_seg/mIoU": 50.0, "bbox/AP": 30.0, "classification/top1": 90.0}
    assert averages({"a": {"bbox": {"AP": 30.0}}, "b": {"bbox": {"AP": float("nan")}}}) == {"a/bbox/AP": 30.0, "b/bbox/AP": 0.0}
    assert averages({"bbox": {}}) == averages({}) == {}
