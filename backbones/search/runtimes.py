"""Runtimes in which the seconds of a budget are measured."""

import contextlib
import os
import tempfile
from functools import partial
from typing import Callable, Iterator

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from ..deploy import optimize, run_exported
from ..deploy.export import check_target
from ..deploy.low_precision import quantize
from ..deploy.optimize import Half
from ..deploy.saving import save_onnx, save_openvino, trace_onnx, unsupported
from ..errors import UserError, unknown

# (format of the exported file, "" for torch; precision)
RUNTIMES: dict[str, tuple[str, str]] = {
    "eager": ("", "float32"),
    "optimized": ("", "float32"),
    "bfloat16": ("", "bfloat16"),
    "onnx": ("onnx", "float32"),
    "onnx_int8": ("onnx", "int8"),
    "openvino": ("openvino", "float32"),
    "openvino_bfloat16": ("openvino", "bfloat16"),
    "openvino_int8": ("openvino", "int8"),
}


def check_runtime(runtime: str, device: str, key: str) -> None:
    """Raises UserError for a runtime that is unknown, not installed, or not for ``device``. ``key`` is the flag or config key that names it."""
    if runtime not in RUNTIMES:
        raise unknown(key, runtime, RUNTIMES, key)
    kind = RUNTIMES[runtime][0]
    if kind and torch.device(device).type != "cpu":
        raise UserError(f"{key} {runtime} runs on the CPU, not on {device}: use eager or optimized", "conflict", key, "optimized")
    if kind:
        check_target(kind, "network.onnx" if kind == "onnx" else "network.xml")
        if RUNTIMES[runtime][1] == "int8":
            check_target("onnx", "network.onnx")


class _Features(nn.Module):
    """Returns a network's features as a tuple, as exporters require."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.network(x)
        return tuple(y.values()) if isinstance(y, dict) else (y,)


def prepared(network: nn.Module, x: Tensor, runtime: str, memory_format: str = "auto") -> Callable[[], object]:
    """A function that runs ``network``, on its device and in evaluation mode, on ``x`` in a runtime.

    ``memory_format``: as for `optimize`. Raises UserError if the runtime cannot run it.
    """
    kind, precision = RUNTIMES[runtime]
    if runtime == "eager":
        return _call(network, x)
    fast = optimize(network, memory_format="contiguous" if kind else memory_format, size=(x.shape[-2], x.shape[-1]))
    if not kind:
        x = x.contiguous(memory_format=torch.channels_last) if memory_format == "channels_last" else x
        return _call(fast if precision == "float32" else Half(fast, torch.bfloat16), x)
    with tempfile.TemporaryDirectory() as folder, unsupported(f"{runtime} cannot run this network"), torch.no_grad():
        return partial(_exported(_Features(fast), x, kind, precision, folder), x.numpy())


def _call(network: nn.Module, x: Tensor) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad():
            return network(x)

    return run


def _exported(network: nn.Module, x: Tensor, kind: str, precision: str, folder: str) -> Callable[[np.ndarray], object]:
    source, path = (os.path.join(folder, f"{name}.onnx") for name in ("exact", "network"))
    names = [f"feature{i}" for i in range(len(network(x)))]
    about = {"precision": precision, "fields": names, "part": "backbone", "input_format": "RGB"}
    model = trace_onnx(network, x, source, names)
    save_onnx(model, source, about)
    if precision == "int8":
        quantize(source, path, iter([x.numpy()]))
        import onnx

        save_onnx(onnx.load(path), path, about)
    else:
        path = source
    if kind == "openvino":
        save_openvino(path, os.path.join(folder, "network.xml"), about)
        path = os.path.join(folder, "network.xml")
    return run_exported.load(path, torch.get_num_threads())[0]


@contextlib.contextmanager
def all_threads() -> Iterator[None]:
    """The threads that a process has alone: `launch` divides them among processes, but a found network runs alone."""
    before = torch.get_num_threads()
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(before * comm.get_local_size())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def seconds(run: Callable[[], object], enough: float) -> float:
    """Median time of ``run`` over about ``enough`` seconds of runs."""
    run()
    return Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads()).blocked_autorange(min_run_time=enough).median
