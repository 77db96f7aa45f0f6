"""What was tried as a user tries things, and once ended in other words than what is wrong, or in none."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from backbones import UserError
from backbones.checkpoint import GatedCheckpointer
from backbones.data import images
from backbones.data.coco import register_from_config
from backbones.engine import open_config
from backbones.evaluation.coco import FastCOCOEvaluator
from backbones.search import zero_shot
from backbones.tools import demo, train
from backbones.tools.export import read_image

CONFIG = "digits/faster_rcnn_digits.yaml"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--config-file", CONFIG, "OUTPUT_DIR=out", "SOLVER.MAX_ITER=2"], "overrides of YAML configs use a space, as in OUTPUT_DIR out"),
        (["--config-file", CONFIG, "--num-gpus", "-1", "MODEL.DEVICE", "cpu"], "--num-gpus -1: it must be at least 1"),
        (["--config-file", CONFIG, "--num-machines", "0", "MODEL.DEVICE", "cpu"], "--num-machines 0: it must be at least 1"),
        (["--config-file", CONFIG, "--num-gpus", "2", "--dist-url", "here", "MODEL.DEVICE", "cpu"], "--dist-url 'here' is invalid"),
        (["--config-file", CONFIG, "INPUT.MAX_SIZE_TRAIN", "0", "MODEL.DEVICE", "cpu"], "INPUT.MAX_SIZE_TRAIN 0 must be at least 1"),
        (["--config-file", CONFIG, "TEST.AUG.MAX_SIZE", "0", "MODEL.DEVICE", "cpu"], "TEST.AUG.MAX_SIZE 0 must be at least 1"),
        (["--config-file", "weights.pth"], "is a file of weights: set MODEL.WEIGHTS to it"),
        (["--config-file", CONFIG, "--eval-only", "MODEL.DEVICE", "cpu"], "weights are needed: add MODEL.WEIGHTS"),
    ],
)
def test_before_anything_is_built(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save({}, "weights.pth")
    with pytest.raises(SystemExit, match="2"):
        train.command_line(arguments)
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and said.out == ""
    assert os.listdir(tmp_path) == ["weights.pth"]


@pytest.mark.parametrize("content, words", [(b"", "the file is empty"), (b"no picture", "it holds no image of a known kind")])
def test_files_that_are_no_images(content, words, tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.jpg' cannot be read: {words}$"):
        read_image(str(path))


def test_a_folder_gives_all_images_that_can_be_read(tmp_path):
    """Also those of kinds that OpenCV does not write, whose pictures are .png; nothing is left out without a word."""
    for name in ("a.gif", "b.png", "C.JPG"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    files, names, wrong = demo.images_of([str(tmp_path)])
    assert names == ["C.JPG", "a.gif", "b.png"] and not wrong
    targets = demo.targets_of(files, str(tmp_path / "out"), names)
    assert [os.path.basename(target) for target in targets] == ["C.JPG", "a.gif.png", "b.png"]
    assert all(images.read(file, "BGR").shape == (6, 8, 3) for file in files)


def test_no_bar_in_what_is_no_terminal(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    monkeypatch.setattr(demo, "load", lambda args: (lambda image, size: {}, None, {}))
    monkeypatch.setattr(demo, "Drawer", lambda *args: lambda image, predictions: image)
    monkeypatch.setattr(sys, "argv", ["demo", "--input", str(tmp_path), "--output", str(tmp_path / "out")])
    demo.main()
    said = capsys.readouterr()
    assert said.err == "" and said.out.count("out/") == 2


def test_a_class_twice():
    front = open_config(CONFIG, ["DATASETS.CLASSES", "('disc', 'bar', 'disc')"])
    with pytest.raises(UserError, match="DATASETS.CLASSES: the name 'disc' appears twice"):
        register_from_config(front.settings)


@pytest.mark.parametrize("named", ["", "model_0000099.pth"])
def test_a_last_checkpoint_that_is_not_there(named, tmp_path, caplog):
    """The newest that is there goes on, and that is said."""
    model = torch.nn.Linear(2, 1)
    checkpointer = GatedCheckpointer(model, str(tmp_path), require="all")
    for i, name in enumerate(("model_0000004", "model_0000009")):
        checkpointer.save(name, iteration=i)
        os.utime(tmp_path / f"{name}.pth", (i, i))
    (tmp_path / "last_checkpoint").write_text(named)
    assert checkpointer.resume_or_load("", resume=True)["iteration"] == 1
    assert "does not exist, although last_checkpoint names it: resuming from" in caplog.text


def test_a_run_of_another_model(tmp_path):
    GatedCheckpointer(torch.nn.Linear(2, 1), str(tmp_path)).save("model_final")
    with pytest.raises(UserError, match="A run resumes with the same model: its config is '.*config.yaml'"):
        GatedCheckpointer(torch.nn.Linear(3, 1), str(tmp_path)).resume_or_load("", resume=True)


def test_images_that_are_not_resized_have_no_longest_side():
    overrides = ["INPUT.MIN_SIZE_TRAIN", "(0,)", "INPUT.MAX_SIZE_TRAIN", "0", "INPUT.MIN_SIZE_TEST", "0", "INPUT.MAX_SIZE_TEST", "0"]
    assert not list(open_config(CONFIG, ["MODEL.DEVICE", "cpu", *overrides]).config_findings())


@pytest.mark.parametrize("flags, words", [(["--size", "0"], "--image-size 0 must be from 32"), (["--seed", "-1"], "--seed -1 must be from 0")])
def test_numbers_of_a_score(flags, words):
    with pytest.raises(UserError, match=words):
        zero_shot.main(["score", "MAE-DET-S", *flags])


def test_ids_of_images_that_are_numpys(tmp_path, catalogue):
    """As Python code that registers data gives them."""
    categories = [{"id": 1, "name": "cup"}]
    truth = [{"id": 1, "image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}]
    content = {"info": {}, "images": [{"id": 7, "height": 30, "width": 40}], "annotations": truth, "categories": categories}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    DatasetCatalog.register("of numpy", lambda: [])
    about = {"json_file": str(tmp_path / "truth.json"), "thing_classes": ["cup"], "thing_dataset_id_to_contiguous_id": {1: 0}}
    MetadataCatalog.get("of numpy").set(**about)
    evaluator = FastCOCOEvaluator("of numpy", output_dir=str(tmp_path))
    evaluator.reset()
    found = Instances((30, 40))
    found.pred_boxes, found.scores, found.pred_classes = Boxes(torch.tensor([[1.0, 1.0, 10.0, 10.0]])), torch.ones(1), torch.zeros(1).long()
    evaluator.process([{"image_id": np.int64(7)}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)
    assert json.loads((tmp_path / "coco_instances_results.json").read_text())[0]["image_id"] == 7
