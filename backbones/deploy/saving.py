"""Writes exported files with what they say of themselves, and puts them where they are wanted once all of them are there."""

import contextlib
import json
import os
import shutil
from typing import Any, Iterator

from ..errors import UserError
from . import run_exported


@contextlib.contextmanager
def one_line(said: str) -> Iterator[None]:
    """What torch or a runtime raises, each its own kind, becomes a UserError that begins with what is ``said``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[-300:]
        raise UserError(f"{said}: {reason or type(error).__name__}", "unsupported") from error


def save_onnx(model: Any, path: str, about: dict[str, Any]) -> None:
    """An ONNX model with its description."""
    import onnx

    onnx.helper.set_model_props(model, {"backbones": json.dumps(about)})
    onnx.save(model, path)


def save_openvino(source: str, path: str, about: dict[str, Any]) -> None:
    """An ONNX file ``source`` as OpenVINO's two files, with its description; in float16 with weights of 16 bits."""
    import openvino

    converted = openvino.convert_model(source)
    converted.set_rt_info(json.dumps(about), "backbones")
    openvino.save_model(converted, path, compress_to_fp16=about["precision"] == "float16")


def deliver(folder: str, place: str) -> None:
    """Moves all that is in a folder to a place, and puts the runner beside it."""
    shutil.copyfile(run_exported.__file__, os.path.join(folder, "run_exported.py"))
    for name in os.listdir(folder):  # of OpenVINO two
        os.replace(os.path.join(folder, name), os.path.join(place, name))
