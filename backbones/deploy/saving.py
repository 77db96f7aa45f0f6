"""Writes exported files with their description, and moves them to their place once all are complete."""

import contextlib
import inspect
import json
import os
import shutil
from typing import Any, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError
from . import run_exported

OPSET = 17


@contextlib.contextmanager
def one_line(said: str) -> Iterator[None]:
    """Turns any exception of torch or a runtime into a UserError that starts with ``said``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"{said}: {reason or type(error).__name__}", "unsupported") from error


def trace_onnx(module: nn.Module, sample: Tensor, path: str, outputs: Sequence[str], axes: Mapping[int, str] | None = None) -> Any:
    """The ONNX model of a trace, via a file at ``path``. Named ``axes`` of its input "image" may vary in size."""
    import onnx

    # the tracing exporter, which handles whole detectors; since torch 2.9 it is not the default
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    options.update(input_names=["image"], output_names=list(outputs), dynamic_axes={"image": dict(axes)} if axes else None)
    torch.onnx.export(module, (sample,), path, opset_version=OPSET, **options)
    return onnx.load(path)


def save_onnx(model: Any, path: str, about: dict[str, Any]) -> None:
    """An ONNX model with its description."""
    import onnx

    onnx.helper.set_model_props(model, {"backbones": json.dumps(about)})
    onnx.save(model, path)


def save_openvino(source: str, path: str, about: dict[str, Any]) -> None:
    """An ONNX file ``source`` as OpenVINO's two files, with its description; in float16 with weights of 16 bits."""
    import openvino

    converted = openvino.Core().read_model(source)
    converted.set_rt_info(json.dumps(about), "backbones")
    openvino.save_model(converted, path, compress_to_fp16=about["precision"] == "float16")


def deliver(folder: str, place: str) -> None:
    """Moves everything in a folder to a place, with the runner."""
    shutil.copyfile(run_exported.__file__, os.path.join(folder, "run_exported.py"))
    for name in os.listdir(folder):  # two for OpenVINO
        os.replace(os.path.join(folder, name), os.path.join(place, name))
