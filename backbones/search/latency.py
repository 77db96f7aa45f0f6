"""Seconds of a structure on this device: the sum over its convolutions, from a table that is measured once.

The sum leaves out what is between convolutions. A search measures its results, and corrects the table by a factor.
"""

import dataclasses
import json
import math
from typing import Any, Sequence

import torch

from .. import timing
from ..config import check_device
from ..documents import read_json, reading
from ..errors import UserError
from ..files import write_whole
from ..layers import ConvNormAct
from ..maedet import MAEDET, Block
from . import progress
from .runtimes import check_runtime, prepared, seconds

_CHANNELS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_WIDEST = 1_000_000  # channels that a table may hold
_MOST_MACS = 8e9  # for one image: larger convolutions are extrapolated from smaller ones


@dataclasses.dataclass(frozen=True)
class LatencyTable:
    """Seconds of convolutions with norm and ReLU, for widths that are powers of two.

    ``entries`` by "kernel/stride/side": rows of (in, out, seconds). Between rows seconds are interpolated in logarithms; outside they
    grow with the multiply-adds of the nearest row. ``about``: the device and everything else they depend on. ``factor``: how many times as long
    whole networks take as their convolutions; all seconds returned include it.
    """

    image_size: int
    entries: dict[str, dict[tuple[int, int], float]]
    about: dict[str, Any]
    factor: float = 1.0

    def conv(self, in_channels: int, out_channels: int, kernel: int, stride: int, side: int) -> float:
        """Seconds of one convolution on (side, side) pixels. Raises UserError for a kernel, stride and side that were not measured."""
        key = f"{kernel}/{stride}/{side}"
        measured = self.entries.get(key)
        if not measured:
            raise UserError(
                f"the latency table has no convolutions of kernel/stride/side {key}: it has {', '.join(self.entries)}. Measure it again"
            )
        rows = sorted({i for i, _ in measured})
        low, high = _around(in_channels, rows)
        values = []
        for row in (low, high):
            a, b = _around(out_channels, sorted(o for i, o in measured if i == row))
            values.append(_between(out_channels, a, b, measured[row, a], measured[row, b]))
        return self.factor * _between(in_channels, low, high, *values)

    def save(self, path: str) -> None:
        """Writes it as JSON, completely or not at all."""
        entries = {key: [[*widths, seconds] for widths, seconds in rows.items()] for key, rows in self.entries.items()}
        write_whole(path, json.dumps({"about": self.about, "image_size": self.image_size, "entries": entries}, indent=1) + "\n")


def load_table(path: str) -> LatencyTable:
    """Reads a table from a file. Raises UserError for anything else."""
    with reading(f"{path!r} is not a latency table"):
        data = read_json(path)
        entries = {}
        for key, rows in data["entries"].items():
            if not rows or not all(
                type(i) is type(o) is int and 0 < i <= _WIDEST and 0 < o <= _WIDEST and 0 < s < math.inf for i, o, s in rows
            ):
                raise ValueError(f"{key} holds values that are not widths and seconds")
            entries[key] = {(i, o): float(seconds) for i, o, seconds in rows}
        if type(data["image_size"]) is not int:
            raise ValueError(f"its image_size is {data['image_size']!r}")
        return LatencyTable(data["image_size"], entries, dict(data["about"]))


def _around(value: int, known: Sequence[int]) -> tuple[int, int]:
    """The two of ``known`` around ``value``, or the outermost one twice."""
    low = max((k for k in known if k <= value), default=known[0])
    return low, min((k for k in known if k >= value), default=low) if value >= known[0] else low


def _between(value: int, low: int, high: int, at_low: float, at_high: float) -> float:
    if low == high:
        return at_low * value / low
    part = math.log(value / low) / math.log(high / low)
    return math.exp((1 - part) * math.log(at_low) + part * math.log(at_high))


def build_table(
    image_size: int, device: str, kernels: Sequence[int], max_channels: int, batch: int, enough: float, runtime: str = "eager"
) -> LatencyTable:
    """Measures on ``device`` and in ``runtime``, each convolution for about ``enough`` seconds; times are per image of a ``batch``."""
    widths = [c for c in _CHANNELS if c <= max_channels]
    stem = [c for c in widths if c <= 128]
    jobs = [(3, out, k, 2, image_size) for k in (3, 5, 7) for out in stem]
    for side in (-(-image_size // stride) for stride in (2, 4, 8, 16, 32)):
        jobs += [(i, o, 1, 1, side) for i in widths for o in widths]
        jobs += [(w, w, k, stride, side) for k in sorted({1, *kernels}) for stride in (1, 2) for w in widths if k * stride > 1]
    entries: dict[str, dict[tuple[int, int], float]] = {}
    jobs = [job for job in jobs if job[0] * job[1] * job[2] ** 2 * (job[4] / job[3]) ** 2 <= _MOST_MACS]
    for i, o, k, stride, side in progress(iterable=jobs, unit="convolution"):
        run = prepared(ConvNormAct(i, o, k, stride, norm="BN").to(device).eval(), _images(batch, i, side, device), runtime, "channels_last")
        entries.setdefault(f"{k}/{stride}/{side}", {})[i, o] = seconds(run, enough) / batch
    return LatencyTable(image_size, entries, {**_about(device), "on": device, "runtime": runtime, "batch": batch})


def _about(device: str) -> dict[str, Any]:
    """What seconds depend on, besides the runtime."""
    about = timing.about(device)
    return {"device": about["machine"], "threads": about["threads"], "torch": torch.__version__}


def _images(batch: int, channels: int, side: int, device: str) -> torch.Tensor:
    return torch.rand(batch, channels, side, side, device=device)


def check_here(table: LatencyTable) -> None:
    """Raises UserError if this is not the device, with as many threads and the runtime, that ``table`` was measured on."""
    about, device = table.about, str(table.about.get("on", "cpu"))
    check_runtime(str(about.get("runtime", "eager")), device, "the latency table's runtime")
    check_device(device, "the latency table's device")
    here = _about(device)
    for what in ("device", "threads"):
        if about.get(what) != here[what]:
            raise UserError(f"the latency table was measured with {what} {about.get(what)!r}, but here it is {here[what]!r}: measure it again")


def measured(structure: Sequence[tuple[int, int, int, int, int]], table: LatencyTable, enough: float = 0.5) -> float:
    """Measures the seconds of a whole structure for one image, on the device and in the runtime of the ``table``.

    Raises UserError where `check_here` does.
    """
    check_here(table)
    about = table.about
    device, runtime, batch = str(about.get("on", "cpu")), str(about.get("runtime", "eager")), int(about.get("batch", 1))
    net = MAEDET([Block(*block) for block in structure], norm="BN").to(device).eval()
    return seconds(prepared(net, _images(batch, 3, table.image_size, device), runtime), enough) / batch
