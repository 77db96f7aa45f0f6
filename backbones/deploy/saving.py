"""Writes exported files with their description, and moves them to their place once all are complete."""

import contextlib
import inspect
import json
import os
import shutil
from typing import Any, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from . import run_exported

OPSET = 17


@contextlib.contextmanager
def unsupported(said: str) -> Iterator[None]:
    """Turns any exception of torch or a runtime into a UserError that starts with ``said``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = one_line(error, 1 << 20)[-300:]  # exporters give the cause last
        raise UserError(f"{said}: {reason}", "unsupported") from error


def trace_onnx(module: nn.Module, sample: Tensor, path: str, outputs: Sequence[str], axes: Mapping[int, str] | None = None) -> Any:
    """The ONNX model of a trace, via a file at ``path``. Named ``axes`` of its input "image" may vary in size."""
    import onnx

    # the tracing exporter, which handles whole detectors; since torch 2.9 it is not the default
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    options.update(input_names=["image"], output_names=list(outputs), dynamic_axes={"image": dict(axes)} if axes else None)
    torch.onnx.export(module, (sample,), path, opset_version=OPSET, **options)
    return onnx.load(path)


def portable(graph: Any, known: Collection[str] = ()) -> None:
    """Makes explicit in an ONNX graph what torch's exporter leaves ambiguous, so that all runtimes agree.

    It and the graphs within its nodes are repaired in place; ``known`` are names of constants outside it.

    A constant without elements becomes a filled one: OpenVINO reads it as a scalar, and for an image without detections returns
    a box of the previous image. A 0 in a computed shape means 0, not "unchanged": ONNX Runtime may otherwise combine it with a -1, and fail.
    """
    from onnx import TensorProto, helper

    known = {*known, *(tensor.name for tensor in graph.initializer)}
    known.update(name for node in graph.node if node.op_type == "Constant" for name in node.output)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                portable(attribute.g, known)
        if node.op_type == "Reshape" and node.input[1] not in known:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("allowzero", 1))
        elif node.op_type == "Constant" and 0 in node.attribute[0].t.dims:
            empty, shape = node.attribute[0].t, f"{node.output[0]}_shape"
            graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [len(empty.dims)], list(empty.dims)))
            fill = helper.make_tensor("value", empty.data_type, [1], [0])
            del node.attribute[:]
            node.op_type = "ConstantOfShape"
            node.input.append(shape)
            node.attribute.append(helper.make_attribute("value", fill))


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
    """Moves everything in a folder to a place, with the runner. Raises UserError if it cannot be written there."""
    try:
        shutil.copyfile(run_exported.__file__, os.path.join(folder, "run_exported.py"))
        for name in os.listdir(folder):  # two for OpenVINO
            os.replace(os.path.join(folder, name), os.path.join(place, name))
    except OSError as error:
        raise UserError(f"{error.filename2 or place!r} cannot be written: {error.strerror}", "cannot-write") from error
