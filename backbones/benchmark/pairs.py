"""Paired timings, and the rows that they make."""

import platform
import statistics
from typing import Any, Iterator

import torch

from ..timing import interleaved  # noqa: F401  the suites take it from here


def processor() -> str:
    """The CPU's name, or where the system does not tell it, its kind."""
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def about(device: str = "cpu", precision: str = "float32") -> dict[str, Any]:
    """What figures depend on: the machine, its threads, the versions."""
    import detectron2
    import torchvision

    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, detectron2)}
    versions = {"python": platform.python_version(), **versions}
    return {"machine": where, "threads": torch.get_num_threads(), "precision": precision, "versions": versions}


def rows_of(prefix: str, times: dict[str, list[float]], against: str, **more: Any) -> Iterator[dict[str, Any]]:
    """A row for each but ``against``: how many times as fast as that it is, as the median, lowest and highest ratio of a round."""
    for name, values in times.items():
        if name == against:
            continue
        ratios = [b / a for a, b in zip(values, times[against])]
        yield {
            "name": f"{prefix}/{name}_vs_{against}",
            "median": round(statistics.median(ratios), 4),
            "low": round(min(ratios), 4),
            "high": round(max(ratios), 4),
            "pairs": len(ratios),
            "unit": "times as fast",
            "seconds": [round(statistics.median(values), 6), round(statistics.median(times[against]), 6)],
            **more,
        }
