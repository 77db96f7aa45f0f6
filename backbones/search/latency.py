"""Seconds of a structure on the device at hand: the sum over its convolutions, from a table that is measured once."""

import dataclasses
import json
import math
import platform
from typing import Any, Sequence

import torch
from torch.utils.benchmark import Timer

from ..documents import read_json, reading
from ..errors import UserError
from ..files import write_whole
from ..maedet import MAEDET, Block
from . import progress

_CHANNELS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_MOST_MACS = 8e9  # of one image: larger convolutions are reckoned from smaller ones


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Seconds of convolutions with ReLU, at each power of two of their widths.

    ``entries`` by "kernel/stride/side": rows of (in, out, seconds); between them seconds are a straight line in logarithms, and outside they
    grow like the multiply-adds of the nearest. ``about``: the device, and all else they depend on.
    """

    image_size: int
    entries: dict[str, dict[tuple[int, int], float]]
    about: dict[str, Any]

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int, side: int) -> float:
        """Seconds of one convolution of (side, side) pixels. Raises UserError for a kernel, stride and side that were not measured."""
        key = f"{kernel}/{stride}/{side}"
        measured = self.entries.get(key)
        if not measured:
            raise UserError(
                f"the latency table has no convolutions of kernel/stride/side {key}: it has {', '.join(self.entries)}. Build it anew"
            )
        rows = sorted({i for i, _ in measured})
        low, high = _around(in_channels, rows)
        values = []
        for row in (low, high):
            a, b = _around(out_channels, sorted(o for i, o in measured if i == row))
            values.append(_between(out_channels, a, b, measured[row, a], measured[row, b]))
        return _between(in_channels, low, high, *values)

    def save(self, path: str) -> None:
        """Writes it as JSON, whole or not at all."""
        entries = {key: [[*widths, seconds] for widths, seconds in rows.items()] for key, rows in self.entries.items()}
        write_whole(path, json.dumps({"about": self.about, "image_size": self.image_size, "entries": entries}, indent=1) + "\n")


def load_table(path: str) -> LatencyTable:
    """The table in a file. Raises UserError for anything else."""
    with reading(f"{path!r} is no latency table"):
        data = read_json(path)
        entries = {}
        for key, rows in data["entries"].items():
            if not rows or not all(type(i) is type(o) is int and i > 0 and o > 0 and 0 < s < math.inf for i, o, s in rows):
                raise ValueError(f"{key} holds what are no widths and seconds")
            entries[key] = {(i, o): float(seconds) for i, o, seconds in rows}
        if type(data["image_size"]) is not int:
            raise ValueError(f"its image_size is {data['image_size']!r}")
        return LatencyTable(data["image_size"], entries, dict(data["about"]))


def _around(value: int, known: Sequence[int]) -> tuple[int, int]:
    """The two of ``known`` that ``value`` lies between, or the outermost twice."""
    low = max((k for k in known if k <= value), default=known[0])
    return low, min((k for k in known if k >= value), default=low) if value >= known[0] else low


def _between(value: int, low: int, high: int, at_low: float, at_high: float) -> float:
    if low == high:
        return at_low * value / low
    part = math.log(value / low) / math.log(high / low)
    return math.exp((1 - part) * math.log(at_low) + part * math.log(at_high))


def build_table(image_size: int, device: str, kernels: Sequence[int], max_channels: int, batch: int, seconds: float) -> LatencyTable:
    """Measures on ``device``, each convolution for about so many ``seconds``; times are of one image of a ``batch``."""
    widths = [c for c in _CHANNELS if c <= max_channels]
    stem = [c for c in widths if c <= 128]
    jobs = [(3, out, k, 2, image_size) for k in (3, 5, 7) for out in stem]
    for side in (-(-image_size // stride) for stride in (2, 4, 8, 16, 32)):
        jobs += [(i, o, 1, 1, side) for i in widths for o in widths]
        jobs += [(w, w, k, stride, side) for k in sorted({1, *kernels}) for stride in (1, 2) for w in widths if k * stride > 1]
    entries: dict[str, dict[tuple[int, int], float]] = {}
    with torch.no_grad():
        jobs = [job for job in jobs if job[0] * job[1] * job[2] ** 2 * (job[4] / job[3]) ** 2 <= _MOST_MACS]
        for i, o, k, stride, side in progress(iterable=jobs, unit="convolution"):
            module = torch.nn.Sequential(torch.nn.Conv2d(i, o, k, stride, k // 2), torch.nn.ReLU(inplace=True)).to(device).eval()
            entries.setdefault(f"{k}/{stride}/{side}", {})[i, o] = median_seconds(
                module, torch.rand(batch, i, side, side, device=device), seconds
            )
    cuda = torch.device(device).type == "cuda"
    about = {
        "device": torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "batch": batch,
        "precision": "fp32",
    }
    return LatencyTable(image_size, entries, about)


def median_seconds(module: torch.nn.Module, x: torch.Tensor, enough: float) -> float:
    """Median time of one image of the batch ``x``, of about ``enough`` seconds of runs."""
    module(x)
    timer = Timer("module(x)", globals={"module": module, "x": x}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=enough).median / len(x)


def measured(structure: Sequence[tuple[int, int, int, int, int]], table: LatencyTable, device: str, seconds: float = 0.5) -> float:
    """Seconds of a whole structure as the ``table`` was measured: its network, with batch norms folded into its convolutions."""
    net = MAEDET([Block(*block) for block in structure], norm="").to(device).eval()
    with torch.no_grad():
        return median_seconds(net, torch.rand(table.about.get("batch", 1), 3, table.image_size, table.image_size, device=device), seconds)
