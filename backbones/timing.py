"""The time of functions that run in turn."""

import time
from typing import Callable, Mapping

import torch


def now() -> float:
    """The time in seconds, when a GPU has done all that it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(functions: Mapping[str, Callable[[], object]], pairs: int) -> dict[str, list[float]]:
    """The seconds of each function in so many rounds, in each of which all run, forth in one and back in the next."""
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
