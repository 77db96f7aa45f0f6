"""Timings of functions that run in turn, and the rows that they make."""

import platform
import statistics
import time
from typing import Any, Callable, Iterator, Mapping

import torch


def now() -> float:
    """The time in seconds, once a GPU has finished all its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(functions: Mapping[str, Callable[[], object]], pairs: int) -> dict[str, list[float]]:
    """The seconds of each function in each round. Every round runs all functions, in alternating order."""
    names = list(functions)
    for name in names:  # to warm up
        functions[name]()
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(pairs):
        for name in names if i % 2 else names[::-1]:
            begun = now()
            functions[name]()
            times[name].append(now() - begun)
    return times


def processor() -> str:
    """The CPU's name or, if the system does not state it, its type."""
    try:
        with open("/proc/cpuinfo") as f:
            return next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def about(device: str = "cpu", precision: str = "float32") -> dict[str, Any]:
    """What the figures depend on: the machine, its threads, the versions."""
    import detectron2
    import torchvision

    where = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    versions = {module.__name__: module.__version__ for module in (torch, torchvision, detectron2)}
    versions = {"python": platform.python_version(), **versions}
    return {"machine": where, "threads": torch.get_num_threads(), "precision": precision, "versions": versions}


def rows_of(prefix: str, times: dict[str, list[float]], against: str, **more: Any) -> Iterator[dict[str, Any]]:
    """A row for each function but ``against``: its speed relative to that one, as the median, lowest and highest ratio of a round."""
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
