"""Exports detectors, or backbone and FPN, to TorchScript, ONNX and OpenVINO. A file whose results differ is not written.

A detector's file takes one image of any size, resized and in the format that the file's description names. It returns what the detector
finds before scaling to the size of the original image; `Runner` does the rest, and so does `run_exported`, which is put next to the file and
needs nothing of this project. With a batch it takes that many images of one size, and returns all their objects and how many each image has.
A backbone's file takes a batch whose sides are multiples of the description's ``size_divisibility``, and returns the features. All subtract the
mean themselves. `contract` describes all of this, and is in the file.
"""

import importlib.util
import json
import logging
import os
import tempfile
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from PIL import Image
from torch import Tensor, nn

from ..detectors import InOrder
from ..errors import UserError, unknown
from .contract import contract, describe
from .names import names_of
from .optimize import optimize
from .preprocessing import check_preprocessing
from .runner import Runner, resized
from .saving import deliver, portable, save_onnx, save_openvino, trace_onnx, unsupported
from .traceable import Traceable, finding_more, tracing

FORMATS = {"torchscript": ".ts", "onnx": ".onnx", "openvino": ".xml"}
PARTS = ("detector", "backbone")


@dataclass(frozen=True)
class Tolerance:
    """How far an exported detector may differ from its original on boxes that both find: pixels, score, and the share of boxes that agree."""

    pixels: float
    score: float
    agreeing: float = 0.98
    features: float = 1e-4  # relative to a feature's largest value


# other runtimes add in a different order, so scores right at a threshold may fall on either side
TOLERANCES = {
    "torchscript": Tolerance(1e-2, 1e-3),
    "onnx": Tolerance(0.1, 1e-3, features=5e-4),
    "openvino": Tolerance(0.1, 1e-3, features=5e-4),
}


_REMEDY = (
    ": it is not written. Either the runtime computes something else (try another --format, or another version), or scores on "
    "the --image differ by less than rounding, as with random weights (use another image, or trained weights)"
)


def export(
    cfg: CfgNode,
    model: nn.Module,
    path: str,
    kind: str,
    image: np.ndarray,
    part: str = "detector",
    tolerance: Tolerance | None = None,
    names: Metadata | None = None,
    batch: int = 0,
    include_preprocessing: bool = False,
) -> dict[str, float]:
    """Writes ``model`` to ``path`` and returns how much the file's results differ from the model's, at two sizes of ``image``.

    With a batch, each image's results are compared with the model's for that image alone.

    Args:
        cfg: the config of the model.
        model: a detector of detectron2 or of this project, filled.
        path: ends in the suffix that FORMATS has for ``kind``.
        image: (H, W, 3) BGR uint8; a detector must find something in it.
        part: one of PARTS.
        names: class names to keep in the file; by default those of `names_of`.
        batch: how many images of one size a detector's file takes at once; 0: one, without a batch axis.
        include_preprocessing: the file takes images (H, W, 3) RGB uint8 of any size, and boxes are in their pixels.

    Raises UserError, and writes no file, if it would differ by more than the ``tolerance`` or the format's packages are missing.
    """
    check_target(kind, path)
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    check_batch(batch, part)
    tolerance = tolerance or TOLERANCES[kind]
    model = optimize(model.cpu(), memory_format="contiguous", roi_align=False)
    about = {**describe(cfg, model, part, names or names_of(cfg)[0]), "batch": batch}
    if include_preprocessing:
        check_preprocessing(about, kind, keypoints=cfg.MODEL.KEYPOINT_ON)
    traceable = Traceable(model, part, batch, about if include_preprocessing else None)
    about = {**about, "preprocessing": include_preprocessing}
    inputs = [_input(image, about, scale) for scale in (1.0, 0.7)]
    write = partial(_written, traceable, inputs, about, path, kind, tolerance)
    with torch.no_grad(), InOrder(), tracing():
        before = [traceable.alone(x) for x in inputs]
        empty = [x for x, each in zip(inputs, before) if not all(len(one["boxes"]) for one in each if "boxes" in one)]
        if not empty:
            differences = write(before)
        else:
            height, width = empty[0].shape[-3:-1] if include_preprocessing else empty[0].shape[-2:]
            said = f"the detector finds nothing in the image at {height}x{width} to check the export on"
            try:
                with finding_more(traceable, empty):
                    more = [traceable.alone(x) for x in inputs]
                    assert all(len(one["boxes"]) for each in more for one in each), "a threshold below the highest score keeps nothing"
                    differences = write(more, keep=False)
            except UserError as error:
                if error.code == "unsupported":  # whatever it finds
                    raise
                raise UserError(f"{said}: give another image, or trained weights", "data") from error
            logging.getLogger(__name__).warning(f"{said}: the file was checked with a lower score threshold")
            write(before)
    logging.getLogger(__name__).info(f"{path}: differs from the model by at most {differences}")
    return differences


def _input(image: np.ndarray, about: dict[str, Any], scale: float) -> Tensor:
    """The inputs to check a file on. The images of a batch differ, to reveal swapped ones: shifted, and every second mirrored."""
    batch = about["batch"]
    if about["preprocessing"] or not (about["min_size"] or about["crop"]):  # images come in their own size
        image = np.asarray(Image.fromarray(image).resize([max(int(side * scale), 1) for side in image.shape[1::-1]]))
    about = {**about, **{key: int(about[key] * scale) for key in ("min_size", "max_size")}}
    if not batch:
        return resized(image, about)
    moved = [np.roll(image, i * image.shape[1] // batch, axis=1) for i in range(batch)]
    return torch.stack([resized(view[:, :: -1 if i % 2 else 1], about) for i, view in enumerate(moved)])


def _written(
    traceable: Traceable,
    inputs: list[Tensor],
    about: dict[str, Any],
    path: str,
    kind: str,
    tolerance: Tolerance,
    before: list[list[dict[str, Tensor]]],
    keep: bool = True,
) -> dict[str, float]:
    """Writes a file, or only tries to, and compares it with what was found ``before`` in each image. Returns the largest differences by
    name."""
    about = {**about, "fields": list(traceable.fields)}
    about["contract"] = contract(about)
    place = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=place) as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        with unsupported(f"{type(traceable.model).__name__} cannot be exported to {kind}"):
            _WRITERS[kind](traceable, inputs[0], temporary, about)
            runner = Runner(temporary)
            found = [one for x in inputs for one in runner.each(x)]
        pairs = zip([one for each in before for one in each], found, strict=True)
        compared = [_compare(expected, found, about["part"], tolerance) for expected, found in pairs]
        if keep:
            deliver(folder, place)
    return {name: max(sizes[name] for sizes in compared) for name in compared[0]}


def check_target(kind: str, path: str) -> None:
    """Raises UserError if a file name does not fit the format, or the format's packages are not installed."""
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if not path.endswith(FORMATS[kind]):
        raise UserError(f"{path!r}: a file of format {kind} must end in {FORMATS[kind]}")
    needed = {"torchscript": (), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "onnxruntime", "openvino")}[kind]
    missing = " ".join(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        raise UserError(f"format {kind} needs a package that is not installed: pip install {missing}", "missing-package", "", missing)


def check_batch(batch: int, part: str) -> None:
    """Raises UserError for a batch that a file cannot take; 0: no batch."""
    if batch < 0 or batch and part == "backbone":
        said = "a backbone's file takes any number of images" if batch > 0 else "at least one image"
        raise UserError(f"--batch {batch}: {said}", "value", "--batch")


def _write_torchscript(traceable: Traceable, sample: Tensor, path: str, about: dict[str, Any]) -> None:
    traced = torch.jit.freeze(torch.jit.trace(traceable, (sample,), check_trace=False).eval())
    torch.jit.save(traced, path, _extra_files={"backbones.json": json.dumps(about)})


def _write_onnx(traceable: Traceable, sample: Tensor, path: str, about: dict[str, Any]) -> None:
    first = sample.dim() - (3 if about["preprocessing"] else 2)  # axis of the height; the width follows
    axes = {**({0: "images"} if about["part"] == "backbone" else {}), first: "height", first + 1: "width"}
    model = trace_onnx(traceable, sample, path, traceable.fields, axes)
    portable(model.graph)
    save_onnx(model, path, about)


def _write_openvino(traceable: Traceable, sample: Tensor, path: str, about: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = os.path.join(folder, "model.onnx")
        _write_onnx(traceable, sample, onnx_path, about)
        save_openvino(onnx_path, path, about)


_WRITERS = {"torchscript": _write_torchscript, "onnx": _write_onnx, "openvino": _write_openvino}


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], part: str, tolerance: Tolerance) -> dict[str, float]:
    """The largest differences, by name. Raises UserError if one exceeds the tolerance."""
    differences: dict[str, float] = {}
    objects = next((name for name in ("boxes", "proposals") if part == "detector" and name in expected), "")
    if not objects:
        limits = dict.fromkeys(expected, tolerance.features)
        for name, value in expected.items():
            if value.shape != found[name].shape:
                shapes = tuple(found[name].shape), tuple(value.shape)
                raise UserError(f"the exported {name} has shape {shapes[0]}, the model's {shapes[1]}: it is not written", "mismatch")
            differences[name] = _largest(value, found[name])
    else:
        pairs = match({**expected, "boxes": expected[objects]}, {**found, "boxes": found[objects]}, tolerance)
        own, others = len(expected[objects]), len(found[objects])
        if len(pairs) < tolerance.agreeing * max(own, others):
            raise UserError(f"only {len(pairs)} of the model's {own} and the file's {others} detections agree{_REMEDY}", "mismatch")
        ours, theirs = pairs.unbind(dim=1)
        limits = {"masks": 0.02, "heatmaps": 0.02, "sem_seg": 10 * tolerance.features, "objectness": tolerance.features}
        for name, value in expected.items():
            if not len(pairs) and name != "sem_seg":
                differences[name] = 0.0
            elif name in (objects, "scores"):  # which agree
                differences[name] = (value[ours] - found[name][theirs]).abs().max().item()
            elif name in ("masks", "heatmaps"):
                off = (value[ours] - found[name][theirs]).abs().flatten(1).mean(dim=1) / value.abs().max()
                differences[name] = off.quantile(tolerance.agreeing).item()
            elif name == "objectness":
                differences[name] = _largest(value[ours], found[name][theirs])
            elif name == "sem_seg":
                differences[name] = _largest(value, found[name])
    for name, most in limits.items():
        if not differences.get(name, 0.0) <= most:
            off_by = f"differs from the model's by {differences[name]:.3g}, more than the allowed {most:g}"
            raise UserError(f"the exported {name} {off_by}{_REMEDY}", "mismatch")
    return differences


def _largest(expected: Tensor, found: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def match(expected: dict[str, Tensor], found: dict[str, Tensor], tolerance: Tolerance) -> Tensor:
    """Pairs (K, 2) of indices of detections of the same class that agree within the tolerance, each in at most one pair."""
    close = (expected["boxes"][:, None] - found["boxes"][None]).abs().amax(dim=2) <= tolerance.pixels
    if "scores" in expected:
        close &= (expected["scores"][:, None] - found["scores"][None]).abs() <= tolerance.score
    if "classes" in expected:
        close &= expected["classes"][:, None] == found["classes"][None]
    pairs: list[tuple[int, int]] = []
    for i, row in enumerate(close):
        if row.any():
            pairs.append((i, int(row.int().argmax())))
            close[:, pairs[-1][1]] = False
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
