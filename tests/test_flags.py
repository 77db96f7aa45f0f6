"""Flags that mean the same have the same name in all tools, and those of old users still do."""

import importlib
import re
import sys

import pytest

from backbones import cli
from backbones.tools import parser_of

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


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("recipe --trian photos", "unknown flag: '--trian'. Did you mean '--train'? Allowed: "),  # rather than that --output is missing
        ("train --confg-file a.yaml MODEL.DEVICE cpu", "unknown flag: '--confg-file'. Did you mean '--config-file'? Allowed: "),
        ("demo --input a.jpg --optimise MODEL.WEIGHTS a.pth", "unknown flag: '--optimise'. Did you mean '--optimize'? Allowed: "),
        ("dataset show a.json --outptu=a.png", "dataset show: error: unknown flag: '--outptu'. Did you mean '--output'? Allowed: "),
        ("dataset shwo a.json", "argument VERB: unknown value: 'shwo'. Did you mean 'show'? Allowed: 'convert', 'split', 'merge', 'show'."),
        ("train --precision fp16", "argument --precision: unknown value: 'fp16'. Did you mean 'float16'? Allowed: "),
        ("zoo list -k", "unknown flag: '-k'. "),
        ("convert pycls a.pyth b.pth --nme x", "unknown flag: '--nme'. Did you mean '--name'? Allowed: "),
        ("convert pycls a.pyth", "the following arguments are required: DST. To see all flags: backbones convert --help"),
        ("recipe", "the following arguments are required: --output. To see all flags: backbones recipe --help"),
        ("recipe --train photos --minutes long --output a", "'long': must be minutes such as 30"),
    ],
)
def test_misspelt_flags_are_one_line(arguments, said, monkeypatch, capsys):
    """With the nearest; a flag that is missing because it was misspelt is not what is said."""
    monkeypatch.setattr(sys, "argv", [])
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments.split())
    verb = arguments.split()[0]
    line = capsys.readouterr().err
    assert line.startswith(f"backbones {verb}") and said in line and line.count("\n") == 1


def test_overrides_may_be_negative(monkeypatch):
    """They are no flags; an abbreviated flag is one."""
    parser = parser_of("tool", "Does something.")
    parser.add_argument("--config-file")
    assert parser.parse_known_args(["--config", "a", "KEY", "-5", "OTHER", "-.5"])[1] == ["KEY", "-5", "OTHER", "-.5"]


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
