"""What users stumbled over: flags by another tool's name, one bad input among good ones, words that are not true."""

import sys

import pytest
from PIL import Image

from backbones import UserError
from backbones.errors import counted
from backbones.tools import demo, errors, visualize


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
    for words in ("--input 'gone.png' is not there", "folder 'empty' holds no image", "'bad.png'"):
        assert words in said
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "b.png"]
    monkeypatch.setattr(sys, "argv", ["demo", "--input", "gone.png", "empty", "--output", "none"])
    with pytest.raises(UserError, match="'gone.png' is not there; folder 'empty' holds no image"):
        demo.main()
    assert not (tmp_path / "none").exists()
