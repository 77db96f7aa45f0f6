"""Fixtures for all tests: quiet threads, a place for the digits, and the fill rule of the reference networks' recorded outputs."""

import atexit
import gc
import hashlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from small_data import labelme_data, voc_data, yolo_data

# the same examples in every run, so that a run says something of the change before it
settings.register_profile("tests", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
settings.load_profile("tests")

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)

# data sets as the code at hand makes them, shared by the workers of a run and by the commands that tests start
_makers = hashlib.sha256()
for _path in (os.path.join(ROOT, "backbones", "data", "digits.py"), os.path.join(HERE, "zoo_data.py")):
    with open(_path, "rb") as f:
        _makers.update(f.read())
os.environ["DETECTRON2_DATASETS"] = os.path.join(ROOT, "build", "test-datasets-" + _makers.hexdigest()[:12])
if os.environ.get("PYTEST_XDIST_WORKER"):
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _generator(text: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big"))


def fill(key: str, shape) -> torch.Tensor:
    """The value of the reference's parameter or buffer ``key``, by the rule under which the recorded outputs were made."""
    rng, leaf = _generator(key), key.rpartition(".")[2]
    if leaf == "num_batches_tracked":
        return torch.zeros((), dtype=torch.long)
    if leaf == "running_var":
        value = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("running_mean", "bias"):
        value = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        value = rng.uniform(0.8, 1.2, shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.as_tensor(value.astype(np.float32))


def filled_input(shape) -> torch.Tensor:
    return torch.as_tensor(_generator("input").standard_normal(shape).astype(np.float32))


def load_record(*path: str) -> dict:
    with open(os.path.join(HERE, "data", *path)) as f:
        return json.load(f)


def assert_features(outputs, record, tolerance=1e-4):
    """Every recorded feature: its shape, mean, deviation and 64 values; the tolerance is relative to the feature's largest value."""
    for name, expected in record["outputs"].items():
        value = outputs[name]
        assert list(value.shape) == expected["shape"], name
        scale = expected["absmax"]
        flat = value.flatten()
        torch.testing.assert_close(flat[expected["indices"]], torch.tensor(expected["values"]), rtol=0, atol=tolerance * scale)
        assert flat.mean().item() == pytest.approx(expected["mean"], abs=tolerance * scale), name
        assert flat.std(correction=0).item() == pytest.approx(expected["std"], abs=tolerance * scale), name


class Warm:
    """Runs commands of a Python, as ``subprocess.run`` would, in copies of a process that has done its imports: saves 4 seconds each.

    Those of this Python and of the checkout, or of another ``python`` in its environment ``env``.
    """

    def __init__(self, python: Any = sys.executable, env: dict[str, str] | None = None):
        self.python, self.env = str(python), env or {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"}
        self._process: subprocess.Popen | None = None

    def __call__(self, *argv: Any, **options: Any) -> subprocess.CompletedProcess:
        with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
            self.start(*argv, out=out.name, err=err.name, **options)
            return subprocess.CompletedProcess([*map(str, argv)], self.wait(), out.read(), err.read())

    def start(
        self,
        *argv: Any,
        cwd: Any = ROOT,
        env: dict[str, str] | None = None,
        timeout: float = 500,
        out: str = os.devnull,
        err: str = os.devnull,
    ) -> int:
        """Starts a command. Returns its process, the leader of a group of its own; `wait` for it before the next."""
        if self._process is None:
            command = [self.python, os.path.join(HERE, "warm.py")]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.env)
            atexit.register(self._process.communicate)
        request = {"argv": list(map(str, argv)), "cwd": str(cwd), "env": dict(env or os.environ), "timeout": timeout, "out": out, "err": err}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def wait(self) -> int:
        """The exit code of what was started."""
        return int(self._process.stdout.readline())


def alive(group: int) -> bool:
    """Whether a process of the group runs; one that nobody has waited for does not."""
    for process in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{process}/stat") as f:
                state, _, own = f.read().rpartition(")")[2].split()[:3]
        except OSError:  # it is gone
            continue
        if int(own) == group and state != "Z":
            return True
    return False


warm = Warm()


def pytest_collection_finish():
    if "detectron2.engine" in sys.modules:  # or no test of those chosen trains
        import quick  # noqa: F401

    gc.freeze()  # what was imported stays: the collector need not look at it again and again


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def catalogue():
    """Data sets that a test registers go with it."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def own_logs():
    """What a run in this process adds to the loggers goes with the test, whose output is closed then."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "backbones")]
    before = [list(logger.handlers) for logger in loggers]
    yield
    for logger, handlers in zip(loggers, before):
        logger.handlers = handlers


@pytest.fixture
def yolo(tmp_path):
    return yolo_data(tmp_path / "cups")


@pytest.fixture
def voc(tmp_path):
    return voc_data(tmp_path / "VOC2007")


@pytest.fixture
def labelme(tmp_path):
    return labelme_data(tmp_path / "labelme")


def few_digits(folder, counts):
    """The first so many images of each split of digits, as annotation files in ``folder``: split -> (annotations, images), paths."""
    from detectron2.data import MetadataCatalog

    from backbones.data import digits

    digits.generate()
    made = {}
    for split, count in counts.items():
        metadata = MetadataCatalog.get(f"digits_{split}")
        with open(metadata.json_file) as f:
            content = json.load(f)
        content["images"] = content["images"][:count]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in kept]
        (folder / f"{split}.json").write_text(json.dumps(content))
        made[split] = (str(folder / f"{split}.json"), os.path.abspath(metadata.image_root))
    return made
