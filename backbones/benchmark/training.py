"""Time and memory of a training step of backbones, compared with the plain implementation; on a GPU also of whole detectors."""

import copy
import itertools
import os
from typing import Any, Callable, Iterator

import torch
from torch import nn

from .. import registry, timing
from ..lean import keep_activations

NAMES = ("V-39-eSE", "V-19-slim-dw-eSE", "RegNetX-3.2GF")
# variants compared with plain: (kept activations, memory format)
WAYS = {
    "lean": ("lean", torch.contiguous_format),
    "lean_channels_last": ("lean", torch.channels_last),
    "channels_last": ("all", torch.channels_last),
    "inputs_channels_last": ("inputs", torch.channels_last),
    "plain": ("all", torch.contiguous_format),
}


def kept_bytes(network: nn.Module, images: Any) -> int:
    """Bytes kept for the backward pass of a step, without weights."""
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in [*network.parameters(), *network.buffers()]}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        features = network(images)  # alive while counting, so that no storage is reused
    count = sum(kept.values())
    del features
    return count


def peak_bytes(run: Callable[[], object], device: str = "cpu") -> int:
    """Peak bytes that torch allocates for ``run``, beyond those before."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes to the terminal, bypassing Python
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events: Any = (event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]")
    changes = sorted((event.start_ns() if hasattr(event, "start_ns") else event.start_us(), event.nbytes()) for event in events)
    return max(itertools.accumulate(count for _, count in changes), default=0)


def _step(network: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        network.zero_grad()
        sum(feature.square().mean() for feature in network(images).values()).backward()

    return run


# kinds of operators, by torch's names
_KINDS = {
    "convolutions": ("conv",),
    "norms": ("norm", "mul", "add"),
    "activations": ("relu", "threshold", "clamp"),
    "joining": ("cat", "copy", "slice"),
}


def parts(run: Callable[[], None], rounds: int = 3) -> dict[str, float]:
    """The share of each kind of operator in several calls of ``run``, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    run()
    gpu = torch.cuda.is_initialized()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as profiled:
        for _ in range(rounds):
            run()
    taken: dict[str, float] = {}
    for event in profiled.key_averages():
        kind = next((kind for kind, words in _KINDS.items() if any(word in event.key.lower() for word in words)), "rest")
        value = getattr(event, "self_device_time_total", event.self_cpu_time_total) if gpu else event.self_cpu_time_total
        taken[kind] = taken.get(kind, 0.0) + value
    total = sum(taken.values())
    return {kind: round(taken.get(kind, 0.0) / total, 4) for kind in (*_KINDS, "rest")}


def suite(count: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Yields every row as it is measured: backbones with frozen norms, two images of 320x320, or on a GPU 800x1088."""
    size = (800, 1088) if device.startswith("cuda") else (320, 320)
    about: dict[str, Any] = timing.about(device)
    images = torch.randn(2, 3, *size, device=device)
    for name in NAMES:
        torch.manual_seed(0)
        base = registry.create(name, norm="FrozenBN").to(device).train()
        networks = {}
        for way, (kept, memory_format) in WAYS.items():
            networks[way] = copy.deepcopy(base).to(memory_format=memory_format)
            keep_activations(networks[way], kept)
        times = timing.interleaved({way: _step(network, images) for way, network in networks.items()}, count)
        where = f"training/{name}/2x{size[0]}x{size[1]}"
        yield from timing.rows_of(where, times, "plain", **about)
        for way in ("plain", "lean_channels_last"):
            yield {"name": f"{where}/parts_{way}", "parts": parts(_step(networks[way], images)), **about}
        most = kept_bytes(networks["plain"], images)
        for way in ("lean", "inputs_channels_last"):
            held = kept_bytes(networks[way], images)
            ratio = dict.fromkeys(("median", "low", "high"), round(held / most, 4))  # the same in every round
            about_kept = {"pairs": 1, "unit": "of the bytes kept", "values": [held, most], **about}
            yield {"name": f"{where}/kept_{way}_vs_plain", **ratio, **about_kept}
