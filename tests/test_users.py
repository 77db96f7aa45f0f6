"""What users stumbled over: flags by another tool's name, one bad input among good ones, words that are not true."""

import json
import logging
import math
import os
import sys
from types import SimpleNamespace

import pytest
from PIL import Image

from backbones import UserError
from backbones.data import formats
from backbones.engine import open_config
from backbones.engine.hooks import Evaluation, KeepBest
from backbones.engine.resume import Run
from backbones.errors import counted
from backbones.tools import demo, errors, recipe, visualize


@pytest.mark.parametrize("flag", ["--confidence-threshold", "--conf-threshold", "--threshold"])
@pytest.mark.parametrize(
    "tool, rest", [(demo, ["--input", "a.jpg"]), (errors, ["run"]), (visualize, ["--input", "a", "--dataset", "b", "--output", "c"])]
)
def test_scores_go_by_one_name_and_those_of_old(tool, rest, flag, monkeypatch, capsys):
    for value in ("2", "half"):
        monkeypatch.setattr(sys, "argv", ["tool", *rest, flag, value])
        with pytest.raises(SystemExit, match="2"):
            tool.main()
        said = capsys.readouterr().err.splitlines()[-1]
        assert "--confidence-threshold" in said and f"{value!r} must be from 0 to 1" in said


def test_counts_of_one():
    assert [counted(n, "class") for n in (0, 1, 2)] == ["0 classes", "1 class", "2 classes"]
    assert [counted(n, "box") for n in (1, 3)] == ["1 box", "3 boxes"] and counted(1, "image") == "1 image"


class _Nothing:
    threshold = 0.5

    def __init__(self, *args):
        pass

    def __call__(self, image, predictions):
        return image


def test_one_bad_input_ends_no_list(tmp_path, monkeypatch, capsys):
    """What is not there, what is empty and what cannot be read are said by name; the others are done, and the end is not 0."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.png").write_bytes(b"no picture")
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 6)).save(tmp_path / name)
    monkeypatch.setattr(demo, "load", lambda args: (lambda image, size: {}, None, {}))
    monkeypatch.setattr(demo, "Drawer", _Nothing)
    monkeypatch.setattr(sys, "argv", ["demo", "--input", "gone.png", "a.png", "empty", "bad.png", "b.png", "--output", "out"])
    with pytest.raises(UserError, match="2 of 5 inputs gave no image; 1 of 3 images cannot be read"):
        demo.main()
    said = capsys.readouterr().err
    for words in ("--input 'gone.png' does not exist", "folder 'empty' holds no image", "'bad.png'"):
        assert words in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    monkeypatch.setattr(sys, "argv", ["demo", "--input", "gone.png", "empty", "--output", "none"])
    with pytest.raises(UserError, match="'gone.png' does not exist; folder 'empty' holds no image"):
        demo.main()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("text, minutes", [("30", 30), ("1.5", 1.5), ("90m", 90), ("90 min", 90), ("2h", 120), ("1h30m", 90), ("1h 30", 90)])
def test_times_as_people_write_them(text, minutes):
    assert recipe.argument_parser().parse_args(["--minutes", text, "--output", "a.yaml"]).minutes == minutes


@pytest.mark.parametrize("text", ["soon", "2d", "h", "", "1:30"])
def test_times_that_are_none(text, capsys):
    with pytest.raises(SystemExit):
        recipe.argument_parser().parse_args(["--minutes", text, "--output", "a.yaml"])
    assert "such as 90m, 2h or 1h30m" in capsys.readouterr().err


def _coco(path, name):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(path.parent / "a.png")
    path.parent.joinpath(name).write_text("{}")


@pytest.mark.parametrize("name", ["_annotations.coco.json", "annotations.json", "instances_all.json"])
def test_a_folder_stands_for_the_annotations_in_it(name, tmp_path):
    """By the names that tools give the file, or where it is the only one; the folders of splits too. Of several, all are named."""
    for folder in ("all", "both/train", "both/valid"):
        _coco(tmp_path / folder / "a.png", name)
    whole, both = str(tmp_path / "all"), str(tmp_path / "both")
    assert formats.splits(whole) == {"": (os.path.join(whole, name), whole)}
    found = {split: os.path.join(both, folder) for split, folder in (("train", "train"), ("val", "valid"))}
    assert formats.splits(both) == {split: (os.path.join(folder, name), folder) for split, folder in found.items()}
    (tmp_path / "all" / name).rename(tmp_path / "all" / "one.json")
    (tmp_path / "all" / "other.json").write_text("{}")
    with pytest.raises(UserError, match="Name one of these annotation files: .*one.json', '.*other.json'"):
        formats.load(whole)


def test_a_figure_without_a_value(tmp_path, caplog):
    """A first evaluation that has none, as where a model finds nothing, keeps no checkpoint and says why; the next one does."""
    caplog.set_level(logging.INFO, "backbones")
    saved = []
    checkpointer = SimpleNamespace(save=lambda name, **more: saved.append(more["best"]))
    evaluation = SimpleNamespace(last=None)
    hook = KeepBest(checkpointer, evaluation, "auto")
    for number, value in enumerate((math.nan, 0.2, math.nan)):
        evaluation.last = Evaluation(number, {"bbox/AP": value})
        hook.after_step()
    assert saved == [{"bbox/AP": 0.2}]
    first, _, last = caplog.messages
    assert first.startswith("no model_best.pth yet: bbox/AP has no value, because there are no predictions")
    assert last.startswith("model_best.pth stays as it is: bbox/AP has no value")


def test_a_loss_is_better_if_it_is_lower(caplog):
    """And the best value of one metric is not compared with another's, as after a resume with another TEST.BEST_METRIC."""
    saved, ended = [], []
    evaluation = SimpleNamespace(last=None)

    def seen(metric, values, state=None):
        hook = KeepBest(SimpleNamespace(save=lambda name, **more: saved.append(more["best"])), evaluation, metric, patience=2)
        hook.trainer = SimpleNamespace(done=0, max_iter=9, finish=lambda: ended.append(metric), job=SimpleNamespace(name=str))
        hook.load_state_dict(state or {})
        for number, value in enumerate(values):
            evaluation.last = Evaluation(number, {"validation/total_loss": value, "bbox/AP": 90 - value})
            hook.after_step()
        return hook.state_dict()

    state = seen("validation/total_loss", [3.0, 2.0, 1.0, math.nan])
    assert saved == [{"validation/total_loss": value} for value in (3.0, 2.0, 1.0)] and not ended
    saved.clear()
    seen("bbox/AP", [60.0, 50.0, 55.0, 55.0], state)
    assert saved == [{"bbox/AP": 30.0}, {"bbox/AP": 40.0}] and ended == ["bbox/AP"]
    assert sum("the best validation/total_loss so far, 1.0000, says nothing about bbox/AP" in line for line in caplog.messages) == 1


@pytest.mark.parametrize(
    "key, value, others",
    [
        ("SOLVER.MAX_ITER", 9, False),
        ("DATASETS.TEST", ["b"], True),
        ("DATASETS.HOLD_OUT", [["a", 0.3]], True),
        ("DATASETS.REGISTER", [["a", "moved/a.json", "moved/images"], ["b", "new/other.json", "images"]], False),
        ("DATASETS.REGISTER", [["a", "data/new.json", "data/images"]], True),
    ],
)
def test_a_resumed_run_knows_other_test_data(key, value, others):
    """By their names and files; a folder may have another name now."""

    def run(**changed):
        register = [["a", "data/a.json", "data/images"], ["b", "data/b.json", "data/images"]]
        data = {"TEST": ["a_held_out"], "HOLD_OUT": [["a", 0.2]], "REGISTER": register}
        config = {**{f"DATASETS.{name}": entry for name, entry in data.items()}, "SOLVER.MAX_ITER": 8, **changed}
        return Run(SimpleNamespace(config=config, name=str, seed=1, batch=2, accumulate=1, dataset=None, loader=[], output_dir="run"))

    resumed = run(**{key: value})
    resumed.load_state_dict(run().state_dict())
    resumed.go_on(3)
    assert resumed.tests_others is others


@pytest.mark.parametrize("other, words", [("Cup ", "'Cup ' (1, there spelt 'cup')"), ("fork", "'fork' (1)")])
def test_classes_of_two_data_sets_that_differ_in_spelling(other, words, tmp_path, catalogue):
    """What is evaluated on has a class of almost the training data's name: that is said, where its objects are left out."""
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    register = []
    for name, classes in (("spelt_train", ["cup", "plate"]), ("spelt_val", [other, "plate"])):
        objects = [{"id": i, "image_id": 1, "category_id": i, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0} for i in (1, 2)]
        categories = [{"id": i, "name": each} for i, each in enumerate(classes, 1)]
        images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
        (tmp_path / f"{name}.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": categories}))
        register.append([name, str(tmp_path / f"{name}.json"), str(tmp_path)])
    front = open_config("digits/faster_rcnn_digits.yaml", ["DATASETS.TRAIN", "('spelt_train',)", "DATASETS.TEST", "('spelt_val',)"])
    front.cfg.DATASETS.REGISTER = register
    front.register(True)
    (line,) = [line for line in front.said if ": class of other data" in line]
    assert words in line and "classes that the model does not have" in line
