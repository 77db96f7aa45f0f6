"""What recipes are worth: a measurement that goes on where it stopped, and its table."""

import json
import os
import sys

import pytest

from backbones import UserError
from backbones.benchmark import tables
from backbones.tools import recipes


def test_recipes_go_on_where_they_stopped(tmp_path, monkeypatch, capsys):
    """Rows of the same config, seed and minutes are not trained again; those of other rules or minutes are."""
    trained, worked_out = [], []

    def way(name, *others):
        worked_out.append(name)
        return recipes.Way(name, "digits/faster_rcnn_digits.yaml", ["SOLVER.MAX_ITER", "9"])

    def fake(config, output, opts, backbone, data):
        trained.append(opts[opts.index("SEED") + 1])
        os.makedirs(output, exist_ok=True)
        with open(os.path.join(output, "log.txt"), "w") as f:
            f.write("Overall training speed: 7 iterations in 0:01:30 (1.3 s / it)")
        return {"config": config, "ap": 50.0, "iterations": 9, "minutes": 0.1, "seed": int(trained[-1])}

    monkeypatch.setattr(recipes, "_worked_out", way)
    monkeypatch.setattr(recipes, "_in_a_process", lambda call, *args: call(*args))
    monkeypatch.setattr(recipes, "train", fake)
    monkeypatch.setattr(recipes, "make", lambda name, folder: os.makedirs(folder, exist_ok=True) or {})

    def start(*more):
        flags = ["--sets", "keypoints", "--ways", "recipe", "--json", str(tmp_path / "rows.json"), "--output", str(tmp_path / "runs"), *more]
        monkeypatch.setattr(sys, "argv", ["recipes", *flags])
        recipes.main()

    start("--seeds", "1")
    start("--seeds", "1", "2")
    assert trained == ["1", "2"] and worked_out == ["recipe"] and "keypoints, recipe, seed 1: in" in capsys.readouterr().out
    start("--seeds", "1", "2", "--minutes", "4")
    assert trained == ["1", "2"] * 2 and len(worked_out) == 2
    monkeypatch.setattr(recipes, "_rules", lambda: "others")
    start("--seeds", "1", "--minutes", "4")  # worked out anew; the config is the same, and so are its rows
    assert len(worked_out) == 3 and len(trained) == 4
    rows = json.loads((tmp_path / "rows.json").read_text())["runs"]
    assert [(row["seed"], row["training_minutes"]) for row in rows] == [(1, 1.5), (2, 1.5)]


def test_a_way_that_diverges_is_a_row(tmp_path, monkeypatch):
    """With an AP of 0; whatever else ends a training ends the measurement."""
    said = ["training diverged at iteration 22"]

    def fake(config, output, *rest):
        os.makedirs(output, exist_ok=True)
        with open(os.path.join(output, "log.txt"), "w") as f:
            f.write(said[0])
        raise UserError("ended with exit code 2")

    monkeypatch.setattr(
        recipes, "_worked_out", lambda name, *others: recipes.Way(name, "digits/mask_rcnn_digits.yaml", ["SOLVER.MAX_ITER", "9"])
    )
    monkeypatch.setattr(recipes, "_in_a_process", lambda call, *args: call(*args))
    monkeypatch.setattr(recipes, "train", fake)
    monkeypatch.setattr(recipes, "make", lambda name, folder: os.makedirs(folder, exist_ok=True) or {})
    flags = [
        "--sets",
        "masks, a rare class",
        "--ways",
        "3x by hand",
        "--seeds",
        "1",
        "--output",
        str(tmp_path),
        "--json",
        str(tmp_path / "rows.json"),
    ]
    monkeypatch.setattr(sys, "argv", ["recipes", *flags])
    recipes.main()
    (row,) = json.loads((tmp_path / "rows.json").read_text())["runs"]
    assert row["diverged"] and row["ap"] == row["mask_ap"] == 0
    said[0] = "out of memory"
    monkeypatch.setattr(sys, "argv", ["recipes", *flags, "--minutes", "3"])
    with pytest.raises(UserError, match="exit code 2"):
        recipes.main()


def test_table_of_recipes(tmp_path, monkeypatch):
    """No file, no table; of a file that is not complete, what is there."""
    monkeypatch.setattr(tables, "path", lambda name: str(tmp_path / name))
    assert tables.recipes() == ""
    usual = {
        "set": "a",
        "iterations": 100,
        "minutes": 4.0,
        "asked_minutes": 3.0,
        "processor_minutes": 3.0,
        "machine": "one",
        "command": "make recipes",
    }
    rows = [
        {**usual, "way": "recipe", "seed": 1, "ap": 50.0},
        {**usual, "way": "recipe", "seed": 2, "ap": 54.0},
        {**usual, "way": "3x by hand", "seed": 1, "ap": 20.0, "mask_ap": 10.0},
    ]
    (tmp_path / "recipes.json").write_text(json.dumps({"runs": rows}))
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.recipes().splitlines() if line.startswith("| ")]
    assert cells[0] == ["set", "way", "box AP", "mask AP", "iterations", "minutes", "runs"]
    assert cells[1] == ["a", "recipe", "52.0 (50.0 to 54.0)", "", "100", "3.0", "2"]
    assert cells[2] == ["a", "3x by hand", "20.0 (20.0 to 20.0)", "10.0 (10.0 to 10.0)", "100", "3.0", "1"]
