"""Memory that is short is said before the system ends a run, and nothing of a run that was killed stays behind."""

import os
import signal
import sys
import time

import pytest
from conftest import alive, warm

from backbones.data import digits
from backbones.doctor import memory
from backbones.doctor.environment import limits_of_memory
from backbones.doctor.examination import Examination
from backbones.engine import open_config

GIB = 2**30


def groups(root, files):
    for name, value in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{value}\n")


def test_limits_of_containers_and_jobs(tmp_path):
    """Of both versions of control groups: a group's own limit, those above it, and files in the cache that the system can drop."""
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    step = {"job/step/memory.max": "max", "job/step/memory.current": 5, "job/step/memory.stat": "inactive_file 1"}
    job = {"job/memory.max": 1000, "job/memory.current": 700, "job/memory.stat": "anon 400\ninactive_file 300"}
    groups(tmp_path / "two", {**step, **job})
    assert list(limits_of_memory(str(tmp_path / "two"), str(own))) == [(1000, 600)]
    own.write_text("5:cpu:/docker/abc\n4:memory:/docker/abc\n")  # the path is the host's
    limit = {"memory/memory.limit_in_bytes": 800, "memory/memory.usage_in_bytes": 900, "memory/memory.stat": "total_inactive_file 50"}
    groups(tmp_path / "one", limit)
    assert list(limits_of_memory(str(tmp_path / "one"), str(own))) == [(800, 0)]
    assert list(limits_of_memory(str(tmp_path), str(tmp_path / "none"))) == []


@pytest.mark.slow
def test_too_little_memory_is_said(monkeypatch):
    """With keys to set, the number of parts that fit among them; where there is enough nothing is even built."""
    digits.generate()
    overrides = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SOLVER.IMS_PER_BATCH", "32"]
    front = open_config("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml", overrides)
    examination = Examination(front)
    whole = memory.estimate(examination, 0).peak
    for share, words in ((0.4, "SOLVER.ACCUMULATE 4 "), (0.8, "SOLVER.ACCUMULATE 2 ")):
        monkeypatch.setattr(memory, "memory_of_machine", lambda share=share: (64 * GIB, int(share * whole)))
        (found,) = memory.too_much_for_cpu(examination)
        assert "32 images of " in found.message and words in found.advice and "SOLVER.IMS_PER_BATCH" in found.advice, found
    monkeypatch.setattr(memory, "memory_of_machine", lambda: (64 * GIB, 64 * GIB))
    examination = Examination(front)
    assert not list(memory.too_much_for_cpu(examination)) and "model" not in vars(examination)


ORPHANS = """
import time
import numpy as np
from backbones.data.loader import train_loader

records = [{"width": 4, "height": 3}] * 50
batches = iter(train_loader(records, lambda record: {"polygons": np.zeros(20000)}, total_batch_size=4, num_workers=2))
next(batches)
print("ready", flush=True)
time.sleep(100)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_workers_end_with_a_run_that_is_killed(tmp_path):
    """Also those that wait for room in the pipe to it, where torch's own watch leaves them for ever."""
    said, until = tmp_path / "said.txt", time.monotonic() + 60
    said.touch()
    process = warm.start("-c", ORPHANS, out=str(said), timeout=120)
    while said.read_text() != "ready\n" and time.monotonic() < until:
        time.sleep(0.05)
    begun = said.read_text()
    time.sleep(1)  # the pipe fills
    os.kill(process, signal.SIGKILL)
    assert warm.wait() == -signal.SIGKILL and begun == "ready\n"
    until = time.monotonic() + 30
    while alive(process) and time.monotonic() < until:
        time.sleep(0.2)
    left = alive(process)
    if left:
        os.killpg(process, signal.SIGKILL)
    assert not left
