"""The wheel alone, in an environment of its own, outside any checkout: the command trains, evaluates, converts, searches and exports."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
import torch
import torchvision
from conftest import HERE, ROOT, Warm, few_digits

SMALL = ["MODEL.DEVICE", "cpu", "INPUT.MIN_SIZE_TEST", "96", "DATALOADER.NUM_WORKERS", "0"]


ENV = {**{key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}, "OMP_NUM_THREADS": "1"}


def run(*command, folder):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=folder, env=ENV, timeout=300)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(folder of the scripts, site-packages) of a venv that has the project's wheel, and sees what else this Python has."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"  # a build leaves files behind, and takes up what an older one has left
    for name in ("backbones", "configs", "convert"):
        shutil.copytree(os.path.join(ROOT, name), source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(os.path.join(ROOT, name), source)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    made = run(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source, folder=folder)
    assert made.returncode == 0, made.stderr
    shutil.rmtree(source)
    python = folder / "venv" / "bin" / "python"
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", folder=folder).returncode == 0
    made = run(*pip, "--python", python, "install", *offline, *folder.glob("*.whl"), folder=folder)
    assert made.returncode == 0, made.stderr
    site = next((folder / "venv").glob("lib/python*/site-packages"))
    names = {path.name for path in site.iterdir()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"backbones"}, "and nothing else, at the top level"
    # a path alone: .pth files in it, such as an editable install's, are not read
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent, site


@pytest.mark.slow
def test_the_wheel_has_all_that_is_in_the_checkout(installed):
    _, site = installed
    for here, there, endings in (
        ("backbones", "", (".py", ".json", ".typed")),
        ("configs", "configs", (".yaml", ".py", ".txt")),
        ("convert", "convert", (".py",)),
    ):
        for parent, _, names in os.walk(os.path.join(ROOT, here)):
            for name in names:
                path = os.path.relpath(os.path.join(parent, name), os.path.join(ROOT, here))
                if name.endswith(endings):
                    assert (site / "backbones" / there / path).is_file(), path


@pytest.mark.slow
def test_console_command(installed, tmp_path):
    scripts, site = installed
    warm = Warm(scripts / "python", ENV)  # runs the script that was installed, in copies of a process of the venv's Python

    def backbones(*arguments, code=0, fresh=False):
        command = scripts / "backbones", *arguments
        result = run(*command, folder=tmp_path) if fresh else warm(*command, cwd=tmp_path, env=ENV)
        assert result.returncode == code, f"{arguments}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
        assert HERE not in result.stderr and "Traceback" not in result.stderr
        return result

    (tmp_path / "where.py").write_text("import backbones; print(backbones.__file__)")
    assert warm(tmp_path / "where.py", cwd=tmp_path, env=ENV).stdout.strip() == str(site / "backbones" / "__init__.py")
    made = few_digits(tmp_path, {"train": 8, "val": 4})
    data = [word for split, (file, images) in made.items() for word in (f"--{split}-json", file, f"--{split}-images", images)]
    config = ["--config-file", "digits/faster_rcnn_digits.yaml"]
    score = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.001"]

    backbones(
        "train", *config, *data, *SMALL, *score, *("SOLVER.MAX_ITER 4 SOLVER.IMS_PER_BATCH 2 INPUT.MIN_SIZE_TRAIN (96,) OUTPUT_DIR run".split())
    )
    weights = ["MODEL.WEIGHTS", "run/model_final.pth"]
    backbones("train", *config, *data, "--eval-only", *SMALL, *score, *weights, "OUTPUT_DIR", "again")
    trained, again = (json.loads((tmp_path / name / "inference" / "coco_instances_results.json").read_text()) for name in ("run", "again"))
    assert trained and trained == again

    torch.save(torchvision.models.regnet_y_800mf().state_dict(), tmp_path / "theirs.pth")
    done = backbones("convert", "torchvision", "theirs.pth", "weights/RegNetY-800MF.pth")
    assert "proof against torchvision" in done.stdout and (tmp_path / "weights" / "RegNetY-800MF.pth").is_file()
    assert warm("-m", "backbones.convert", "--help", cwd=tmp_path, env=ENV).returncode == 0

    found = ["--config", "configs/search/digits_budget.yaml", "--output", "found", "--candidates", "500", "--workers", "1"]
    backbones("search", "search", *found)
    assert (tmp_path / "found" / "best_structure.txt").stat().st_size

    image = os.path.join(made["val"][1], sorted(os.listdir(made["val"][1]))[0])
    backbones("export", *config, "--format", "torchscript", "--image", image, "--output", "detector.ts", *SMALL[2:4], *weights)
    backbones("demo", "--exported", "detector.ts", "--input", image, "--output", "seen.png")
    assert (tmp_path / "seen.png").is_file()

    wrong = backbones("train", "--config-file", "nowhere.yaml", code=2, fresh=True)
    assert "error: unknown config" in wrong.stderr.splitlines()[-1]
    wrong = backbones("convertt", code=2)
    assert "'convert'" in wrong.stderr


@pytest.mark.slow
def test_import_explains_a_missing_opencv():
    result = run(sys.executable, "-c", "import sys; sys.modules['cv2'] = None; import backbones", folder=ROOT)
    last = result.stderr.splitlines()[-1]
    assert result.returncode == 1 and "`pip install opencv-python`" in last and "opencv-python-headless" in last
