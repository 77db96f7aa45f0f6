"""Exported files in int8 and in 16 bits, made from a float32 ONNX file that has been compared with its model.

int8: convolutions and matrix products of the whole detector, weights per channel, activations in their ranges on calibration
images. The same quantized graph serves ONNX Runtime and OpenVINO. If there are test data, the loss of AP is measured.
"""

import importlib.util
import itertools
import os
import tempfile
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import torch
from detectron2.evaluation.testing import flatten_results_dict

from ..errors import UserError, unknown
from ..evaluation.figures import headline
from . import run_exported
from .runner import Runner
from .saving import deliver, save_onnx, save_openvino, unsupported

# ONNX Runtime has no bfloat16 convolutions on CPUs, and a trace keeps its model's precision
PRECISIONS = {"torchscript": (), "onnx": ("int8",), "openvino": ("int8", "bfloat16", "float16")}
QUANTIZED = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def check_precision(kind: str, precision: str, calibrated: bool) -> None:
    """Raises UserError if a format does not have the precision, or something it needs is missing."""
    if precision == "float32":
        return
    if precision not in PRECISIONS[kind]:
        raise unknown(f"precision of format {kind}", precision, ("float32", *PRECISIONS[kind]))
    if precision == "int8" and not calibrated:
        raise UserError("int8 needs images to find ranges: name a data set or a folder with --calibrate", "missing-argument", "--calibrate")
    if importlib.util.find_spec("onnxruntime") is None:
        raise UserError(
            "low precision needs a package that is not installed: pip install onnx onnxruntime", "missing-package", "", "onnxruntime"
        )


def lower(
    source: str,
    path: str,
    kind: str,
    precision: str,
    images: Iterable[np.ndarray] = (),
    said: str = "",
    evaluate: Callable[[Runner], dict[str, Any]] | None = None,
    max_drop: float = 0.5,
    sample: np.ndarray | None = None,
) -> dict[str, tuple[float, float]]:
    """Converts the float32 ONNX file ``source`` to another precision at ``path``; returns each metric before and after.

    Args:
        images: (H, W, 3) BGR uint8, to calibrate on, read one at a time; ``said`` names their origin.
        evaluate: returns the results of a file; without it the loss is not measured.
        max_drop: points that each of `averages` may lose.
        sample: (H, W, 3) BGR uint8, an image that the file must run on.

    Raises UserError, and writes no file, if more is lost or the runtimes cannot make or run the file.
    """
    about = Runner(source).about
    place = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=place) as folder, tempfile.TemporaryDirectory(dir=place) as scratch:
        temporary, lowered = os.path.join(folder, os.path.basename(path)), source
        about["precision"] = precision
        with unsupported(f"this model cannot be converted to {precision}"):
            if precision == "int8":
                lowered = os.path.join(scratch, "quantized.onnx")
                about["calibration"] = {"images": 0, "of": said, "method": "MinMax"}
                quantize(source, lowered, _calibration(images, about))
            _write(lowered, temporary, kind, about)
            runner, views = Runner(temporary), [] if sample is None else [run_exported.prepared(sample[:, :, ::-1], about)]
            for _, x in run_exported.stacked(views, about.get("batch", 0)):
                runner.run(torch.from_numpy(x))
        figures: dict[str, tuple[float, float]] = {}
        if evaluate:
            before, after = (averages(evaluate(Runner(file))) for file in (source, temporary))
            figures = {name: (value, after.get(name, 0.0)) for name, value in before.items()}
            lost = max((first - second for first, second in figures.values()), default=0.0)
            if not lost <= max_drop:
                words = ", ".join(f"{name} {first:.2f} -> {second:.2f}" for name, (first, second) in figures.items())
                ways = "use other --calibrate images, or raise --max-drop" if precision == "int8" else "raise --max-drop"
                said = f"{precision} loses more than --max-drop {max_drop:g} allows ({words}): the file is not written; {ways}"
                raise UserError(said, "mismatch", "--max-drop", max_drop)
            about["AP"] = figures
            _write(lowered, temporary, kind, about)
        deliver(folder, place)
    return figures


def averages(results: dict[str, Any]) -> dict[str, float]:
    """The main metric of each task and data set in an evaluation's results: AP, PQ, mIoU, recall or top-1; 0 if nothing was found."""
    flat = flatten_results_dict(results)
    return {name: float(np.nan_to_num(value)) for name, value in flat.items() if headline([name])}


def quantize(source: str, path: str, inputs: Iterator[np.ndarray]) -> None:
    """Writes the float32 ONNX file ``source`` to ``path`` with its QUANTIZED operators in int8, calibrated on ``inputs``."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"image": x} for x in inputs), None)

    sound = f"{path}.sound.onnx"
    quant_pre_process(source, sound, skip_symbolic_shape=True)  # folds constants; the shapes of detections are unknown
    quantize_static(
        sound,
        path,
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        op_types_to_quantize=list(QUANTIZED),
    )


def _calibration(images: Iterable[np.ndarray], about: dict[str, Any]) -> Iterator[np.ndarray]:
    """Images in the format that the file takes. ``about["calibration"]["images"]`` counts them."""
    source, batch = iter(images), about.get("batch", 0)
    while some := list(itertools.islice(source, batch or 1)):
        about["calibration"]["images"] += len(some)
        inputs = [run_exported.prepared(image[:, :, ::-1], about) for image in some]
        yield from (x for _, x in run_exported.stacked(inputs, batch))


def _write(source: str, path: str, kind: str, about: dict[str, Any]) -> None:
    """Writes a graph with its description, in a format."""
    if kind == "onnx":
        import onnx

        save_onnx(onnx.load(source), path, about)
    else:
        save_openvino(source, path, about)
