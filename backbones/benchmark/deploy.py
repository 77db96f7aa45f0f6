"""Whole detectors in every way to deploy them, compared with the eager model: on one image, from pixels to boxes and masks.

Eager, optimized, in bfloat16, compiled, and exported to ONNX Runtime and OpenVINO in float32, 16 bits and int8. The rows also have each one's
share of the processor's peak, which is that of a large convolution, measured here.
"""

import logging
import os
import tempfile
from typing import Any, Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import timing
from ..deploy import Runner, optimize
from ..deploy.export import Tolerance, check_target, export
from ..deploy.low_precision import lower
from ..deploy.runner import RunnerModel
from ..errors import UserError, raised
from . import detectors
from .inference import SIZES, call

# in torch: the arguments of `optimize`
TORCH: dict[str, dict[str, Any]] = {
    "optimized": {},
    "compiled": {"compile": True},
    "bfloat16": {"precision": "bfloat16"},
    "bfloat16_compiled": {"precision": "bfloat16", "compile": True},
    "float16": {"precision": "float16"},
    "float16_compiled": {"precision": "float16", "compile": True},
}
# in other runtimes: format, precision, and whether it runs on a GPU
EXPORTED = {
    "onnx": ("onnx", "float32", True),
    "onnx_int8": ("onnx", "int8", False),
    "openvino": ("openvino", "float32", False),
    "openvino_bfloat16": ("openvino", "bfloat16", False),
    "openvino_int8": ("openvino", "int8", False),
}
CALIBRATION = 8  # images of noise, which is enough for speed
# scores of random weights are closer together than a trained detector's: files are compared with their model, but not refused
_LOOSE = Tolerance(2.0, 0.05, agreeing=0.5, features=1e-2)


def suite(count: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Yields every row as it is measured. ``count``: rounds of each."""
    about = timing.about(device)
    reached = peak(device)
    yield {"name": "deploy/peak", "gflops": reached, **about}
    for name, config in detectors.DEPLOYED.items():
        eager = detectors.detector(config, device)
        with tempfile.TemporaryDirectory() as folder:
            files = _export(config, folder, device)
            for size in SIZES:
                torch.compiler.reset()  # it limits how often a function is compiled, over all models
                inputs = detectors.image_for(size, device)
                work = operations(eager, inputs)
                models: dict[str, nn.Module] = {"eager": eager, **{key: RunnerModel(Runner(path)) for key, path in files.items()}}
                warm_up = {}
                for method, options in TORCH.items():
                    try:
                        models[method] = optimize(eager, size=size, **options)
                    except UserError as error:  # no compiler on this machine, or the device does not support the precision
                        _left_out(method, error)
                        continue
                    begun = timing.now()
                    call(models[method], inputs)()
                    warm_up[method] = round(timing.now() - begun, 2)
                times = timing.interleaved({key: call(model, inputs) for key, model in models.items()}, count)
                for row in timing.rows_of(f"deploy/{name}/{size[0]}x{size[1]}", times, "eager", **about):
                    method = row["name"].rpartition("/")[2].removesuffix("_vs_eager")
                    row["shares_of_peak"] = [round(work / seconds / reached["float32"], 4) for seconds in row["seconds"]]
                    yield {**row, **({"warm_up_seconds": warm_up[method]} if method in warm_up else {})}


def _left_out(method: str, reason: object) -> None:
    logging.getLogger(__name__).warning(f"{method} is left out: {reason}")


def operations(model: nn.Module, inputs: Any) -> float:
    """10^9 floating-point operations of the convolutions and matrix products, two per multiply-add."""
    with FlopCounterMode(display=False) as counter:
        call(model, inputs)()
    return counter.get_total_flops() / 1e9


def peak(device: str = "cpu", rounds: int = 8) -> dict[str, float]:
    """10^9 operations per second of a 3x3 convolution of 256 channels, by precision: the most that a detector could reach."""
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        layer = nn.Conv2d(256, 256, 3, padding=1).to(device, kind).to(memory_format=torch.channels_last)
        x = torch.rand(1, 256, 64, 96, dtype=kind, device=device).contiguous(memory_format=torch.channels_last)
        times = timing.interleaved({"": call(layer, x)}, rounds)[""]
        found[str(kind).rpartition(".")[2]] = round(2 * 64 * 96 * 9 * 256**2 / min(times) / 1e9, 1)
    return found


def _export(config: str, folder: str, device: str) -> dict[str, str]:
    """Exports a detector, by method, for the installed runtimes; on a GPU only for those that can use it."""
    cfg, model, image = detectors.config(config), detectors.detector(config), _noise(0)
    exact, files = os.path.join(folder, "float32.onnx"), {}
    for method, (kind, precision, on_gpu) in EXPORTED.items():
        path = os.path.join(folder, f"{method}{'.onnx' if kind == 'onnx' else '.xml'}")
        if not on_gpu and device != "cpu":
            continue
        if missing := raised(check_target, kind, path):
            _left_out(method, missing[0])
            continue
        if not os.path.isfile(exact):
            export(cfg, model, exact, "onnx", image, tolerance=_LOOSE)
        if precision != "float32":
            lower(exact, path, kind, precision, map(_noise, range(CALIBRATION)))
        elif kind == "onnx":
            path = exact
        else:
            export(cfg, model, path, kind, image, tolerance=_LOOSE)
        files[method] = path
    return files


def _noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (480, 640, 3), np.uint8)
