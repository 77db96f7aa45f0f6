"""Flags that mean the same have the same name in all tools, and those of old users still do."""

import importlib
import re
import sys

import pytest

FLAGS = {
    "backbones.deploy.run_exported": ["--confidence-threshold --conf-threshold --threshold", "--output --draw"],
    "backbones.search.zero_shot search": ["--config-file --config"],
    "backbones.search.zero_shot exact": ["--config-file --config"],
    "backbones.search.zero_shot benchmark": ["--config-file --config"],
    "backbones.search.zero_shot score": ["--image-size --size"],
    "backbones.search.zero_shot latency": ["--image-size --size"],
    "backbones.tools.analyze": ["--image-size --size"],
    "backbones.tools.benchmark": ["--num --images"],
    "backbones.tools.demo": ["--confidence-threshold --conf-threshold --threshold"],
    "backbones.tools.doctor": ["--num --images", "--output --report"],
    "backbones.tools.errors": ["--confidence-threshold --conf-threshold --threshold"],
    "backbones.tools.export": ["--num --images", "--image --input"],
    "backbones.tools.recipe": ["--num-gpus --gpus", "--train --train-json"],
    "backbones.tools.train": ["--train --train-json", "--val --val-json"],
    "backbones.tools.visualize": ["--confidence-threshold --conf-threshold --threshold"],
    "backbones.tools.zoo check": ["--workers --jobs"],
}


@pytest.mark.parametrize("tool", FLAGS)
def test_one_name_and_those_of_old(tool, monkeypatch, capsys):
    name, *verb = tool.split()
    monkeypatch.setattr(sys, "argv", ["tool", *verb, "--help"])
    module = importlib.import_module(name)
    with pytest.raises(SystemExit, match="0"):
        getattr(module, "command_line" if name.endswith("train") else "main")()
    lines = [re.findall(r"--[a-z-]+", line.split("  ")[1] if line.startswith("  -") else "") for line in capsys.readouterr().out.splitlines()]
    for flags in FLAGS[tool]:
        assert flags.split() in lines


@pytest.mark.parametrize("task, words", [("masks", "segm"), ("segm", "segm"), ("boxes", "bbox"), ("mask", "mask")])
def test_tasks_by_either_name(task, words, tmp_path, monkeypatch, capsys):
    """A recipe calls them boxes and masks, COCO's evaluation bbox and segm."""
    from backbones import UserError
    from backbones.tools import compare, recipe

    (tmp_path / "a.json").write_text('[{"image_id": 1, "category_id": 1, "score": 0.5}]')
    (tmp_path / "truth.json").write_text(
        '{"images": [{"id": 1, "file_name": "a.png", "width": 9, "height": 9}], "categories": [{"id": 1, "name": "a"}], "annotations": '
        '[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5]]}]}'
    )
    file, truth = str(tmp_path / "a.json"), str(tmp_path / "truth.json")
    monkeypatch.setattr(sys, "argv", ["compare", file, file, "--annotations", truth, "--task", task])
    with pytest.raises(UserError, match=f"of task '{words}'|{words!r} is not known|{words!r}"):
        compare.main()
    parser = recipe.argument_parser()
    if task == "mask":
        with pytest.raises(SystemExit):
            parser.parse_args(["--output", "a.yaml", "--task", task])
    else:
        assert parser.parse_args(["--output", "a.yaml", "--task", task]).task == {"segm": "masks", "bbox": "boxes"}[words]


@pytest.mark.parametrize("value", ["2", "-0.1", "nan"])
def test_scores_of_exported_files(value, tmp_path, monkeypatch):
    from backbones.deploy import run_exported

    (tmp_path / "a.onnx").touch()
    monkeypatch.setattr(sys, "argv", ["run_exported", str(tmp_path / "a.onnx"), "a.png", f"--threshold={value}"])
    with pytest.raises(SystemExit, match=f"error: --confidence-threshold {value} must be from 0 to 1"):
        run_exported.main()


def test_pictures_of_one_name_do_not_replace_each_other(tmp_path, monkeypatch):
    from backbones.deploy import run_exported

    (tmp_path / "a.onnx").touch()
    monkeypatch.setattr(sys, "argv", ["run_exported", str(tmp_path / "a.onnx"), "here/a.png", "there/a.png", "--output", str(tmp_path)])
    with pytest.raises(SystemExit, match="two of the images have one name"):
        run_exported.main()


@pytest.mark.parametrize("scores, words", [([0.1, 0.29], "the highest is 0.29"), ([0.1, 0.6], ""), ([], "")])
def test_a_threshold_that_hides_everything_says_so(scores, words):
    from backbones.tools import nothing_shown

    assert nothing_shown(scores, 0.5).endswith(words) and bool(nothing_shown(scores, 0.5)) == bool(words)


def test_networks_of_timm_without_their_prefix():
    from backbones import UserError, create
    from backbones.tools import zoo

    for call in (create, zoo.show):
        with pytest.raises(UserError, match="'resnet50'. Did you mean 'timm/resnet50'") as error:
            call("resnet50")
        assert error.value.suggestion == "timm/resnet50"
        with pytest.raises(UserError, match="'V-38-eSE'. Did you mean 'V-39-eSE'"):
            call("V-38-eSE")
    for name in ("R-50", "R_50", "ResNet-50", "ResNet50"):  # of detectron2, whose own is no backbone of the registry
        with pytest.raises(UserError, match=f"'{name}'. Did you mean 'timm/resnet50'"):
            create(name)
