"""Exports detectors, or backbone and FPN, to TorchScript, ONNX and OpenVINO. A file that computes something else is not written.

A detector's file takes one image of any size, resized and in the format that the file's description names, and gives what the detector
finds before it is brought to the original image's size; `Runner` does the rest, and so does `run_exported`, which is put beside the file and
needs nothing of this project. A backbone's file takes a batch whose sides the description's ``size_divisibility`` divides, and gives the
features. Both subtract the mean themselves. `contract` says all of it, and is in the file.
"""

import contextlib
import importlib.util
import inspect
import io
import json
import logging
import os
import tempfile
import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.catalog import Metadata
from detectron2.modeling import GeneralizedRCNN, PanopticFPN, ProposalNetwork
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.roi_heads import BaseKeypointRCNNHead
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from ..detectors import ImageClassifier, InOrder
from ..errors import UserError, unknown
from .contract import contract, describe
from .names import names_of
from .onnx_graph import portable
from .optimize import optimize
from .runner import FIELDS, Runner, resized
from .saving import deliver, save_onnx, save_openvino

FORMATS = {"torchscript": ".ts", "onnx": ".onnx", "openvino": ".xml"}
PARTS = ("detector", "backbone")
OPSET = 17


@dataclass(frozen=True)
class Tolerance:
    """How far an exported detector may be from its original, on boxes that both find: pixels, score, and the part of boxes that agree."""

    pixels: float
    score: float
    agreeing: float = 0.98
    features: float = 1e-4  # of a feature's largest value


# another runtime adds in another order; what stands on the edge of a threshold may then fall to either side
TOLERANCES = {
    "torchscript": Tolerance(1e-2, 1e-3),
    "onnx": Tolerance(0.1, 1e-3, features=5e-4),
    "openvino": Tolerance(0.1, 1e-3, features=5e-4),
}


_REMEDY = (
    ": it is not written. Either the runtime computes something else (another --format, or version of it, may not), or scores of "
    "the --image differ by less than rounding, as those of random weights do (another image, or trained weights)"
)


class Heatmaps(nn.Module):
    """A keypoint head that leaves its maps to `Runner`: other runtimes cannot search for peaks region by region."""

    def __init__(self, head: BaseKeypointRCNNHead):
        super().__init__()
        self.head: Any = head

    def forward(self, x: Tensor, instances: list[Instances]) -> list[Instances]:
        instances[0].pred_keypoint_heatmaps = self.head.layers(x)  # of the one image
        return instances


class Traceable(nn.Module):
    """Maps an image (3, H, W) to a detector's results, or images (N, 3, H, W) to its backbone's features; ``fields`` names them."""

    def __init__(self, model: Any, part: str):
        super().__init__()
        self.model, self.part = model, part
        head = getattr(getattr(model, "roi_heads", None), "keypoint_head", None)
        if isinstance(head, BaseKeypointRCNNHead):
            model.roi_heads.keypoint_head = Heatmaps(head)
        self.fields: tuple[str, ...] = tuple(model.backbone.output_shape()) if part == "backbone" else ()

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        if self.part == "backbone":
            features = self.model.backbone((image - self.model.pixel_mean) / self.model.pixel_std)
            return tuple(features[name] for name in self.fields)
        found = _found(self.model, image)
        self.fields = tuple(found)
        return tuple(found.values())


def _found(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What a detector finds in an image, before it is scaled to the original size."""
    inputs = [{"image": image}]
    extra: dict[str, Tensor] = {}
    if isinstance(model, ImageClassifier):
        return {"scores": model(inputs)[0]["scores"]}
    if isinstance(model, PanopticFPN):
        (instances,), sem_seg = model.inference(inputs, do_postprocess=False)
        extra = {"sem_seg": sem_seg[0]}
    elif isinstance(model, GeneralizedRCNN):
        instances = model.inference(inputs, do_postprocess=False)[0]
    elif isinstance(model, DenseDetector):
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        features = [features[name] for name in model.head_in_features]
        instances = model.forward_inference(images, features, model.head(features))[0]
    elif isinstance(model, ProposalNetwork):
        images = ImageList.from_tensors([(image - model.pixel_mean) / model.pixel_std], model.backbone.size_divisibility)
        instances = model.proposal_generator(images, model.backbone(images.tensor), None)[0][0]
    else:
        message = f"{type(model).__name__} cannot be exported as a whole: take its backbone, --part backbone"
        raise UserError(message, "unsupported", "--part", "backbone")
    found = {name: instances.get(field) for name, field in FIELDS.items() if instances.has(field)}
    return {**{name: value if isinstance(value, Tensor) else value.tensor for name, value in found.items()}, **extra}


@contextlib.contextmanager
def _tracing() -> Iterator[None]:
    """Traces ``len`` of tensors in detectron2's modules too. Hides warnings about branches on types and lengths: parity is checked."""
    from detectron2.export.torchscript_patch import patch_builtin_len

    with patch_builtin_len(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def export(
    cfg: CfgNode,
    model: nn.Module,
    path: str,
    kind: str,
    image: np.ndarray,
    part: str = "detector",
    tolerance: Tolerance | None = None,
    names: Metadata | None = None,
) -> dict[str, float]:
    """Writes ``model`` to ``path`` and returns by how much the file's results differ from the model's own, at two sizes of ``image``.

    Args:
        cfg, model: a detector of detectron2 or of this project, filled.
        path: ends in what FORMATS has for ``kind``, one of it.
        image: (H, W, 3) BGR uint8; a detector must find something in it.
        part: one of PARTS.
        names: of classes, which the file keeps; by default what `names_of` finds.

    Raises UserError where the file would differ by more than the ``tolerance``, or the format's packages are missing; then there is no file.
    """
    check_target(kind, path)
    if part not in PARTS:
        raise unknown("part", part, PARTS)
    tolerance = tolerance or TOLERANCES[kind]
    model = optimize(model.cpu(), memory_format="contiguous", roi_align=False)
    traceable = Traceable(model, part)
    about = describe(cfg, model, part, names or names_of(cfg)[0])
    inputs = [resized(image, {**about, **{key: int(about[key] * scale) for key in ("min_size", "max_size")}}) for scale in (1.0, 0.7)]
    write = partial(_written, traceable, inputs, about, path, kind, tolerance)
    with torch.no_grad(), InOrder(), _tracing():
        before = [traceable(x) for x in inputs]
        empty = [x for x, found in zip(inputs, before) if part == "detector" and "boxes" in traceable.fields and not len(found[0])]
        if not empty:
            differences = write(before)
        else:
            said = f"the detector finds nothing in the image at {empty[0].shape[-2]}x{empty[0].shape[-1]} that an export could be checked on"
            try:
                with _finding_more(model, empty):
                    more = [traceable(x) for x in inputs]
                    assert all(len(found[0]) for found in more), "a threshold below the highest score lets nothing through"
                    differences = write(more, keep=False)
            except UserError as error:
                raise UserError(f"{said}: give another, or weights", "data") from error
            logging.getLogger(__name__).warning(f"{said}: the file was checked with a lower threshold of scores")
            write(before)
    logging.getLogger(__name__).info(f"{path}: differs from the model by at most {differences}")
    return differences


def _written(
    traceable: Traceable,
    inputs: list[Tensor],
    about: dict[str, Any],
    path: str,
    kind: str,
    tolerance: Tolerance,
    before: list,
    keep: bool = True,
) -> dict[str, float]:
    """Writes a file that gives what was found ``before`` in the inputs, or only tries to. Returns its largest differences, by name."""
    about = {**about, "fields": list(traceable.fields)}
    about["contract"] = contract(about)
    place = os.path.dirname(os.path.abspath(path))
    with tempfile.TemporaryDirectory(dir=place) as folder:
        temporary = os.path.join(folder, os.path.basename(path))
        try:
            _WRITERS[kind](traceable, inputs[0], temporary, about)
        except (RuntimeError, ValueError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
            reason = " ".join(str(error).split())[-300:]
            raise UserError(f"{type(traceable.model).__name__} cannot be exported to {kind}: {reason}", "unsupported") from error
        runner = Runner(temporary)
        found = [runner.run(x) for x in inputs]
        compared = [_compare(dict(zip(traceable.fields, b)), f, about["part"], tolerance) for b, f in zip(before, found)]
        if keep:
            deliver(folder, place)
    return {name: max(sizes[name] for sizes in compared) for name in compared[0]}


def _edge(scores: Tensor, count: int) -> float:
    """A threshold that about ``count`` scores exceed, in the widest gap there, which rounding does not cross."""
    if not len(scores):
        raise UserError("it finds nothing at all", "data")
    best = scores.sort(descending=True).values[: 2 * count]
    gaps = best[:-1] - best[1:]
    if not gaps.any():  # all are alike
        return float(best[0]) / 2
    place = int(gaps.argmax())
    return float(best[place : place + 2].mean())


@contextlib.contextmanager
def _finding_more(model: nn.Module, inputs: list[Tensor], count: int = 10) -> Iterator[None]:
    """Lowers a detector's threshold of scores so that it finds something in each input. Raises UserError where that cannot be."""
    modules: list[Any] = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    thresholds = [module.test_score_thresh for module in modules]
    try:
        for module in modules:
            module.test_score_thresh = 0.0
        lowered = min(_edge(_found(model, x)["scores"], count) for x in inputs)
        for module in modules:
            module.test_score_thresh = lowered
        yield
    finally:
        for module, threshold in zip(modules, thresholds):
            module.test_score_thresh = threshold


def check_target(kind: str, path: str) -> None:
    """Raises UserError where a file cannot be of a format, or the format's packages are not installed."""
    if kind not in FORMATS:
        raise unknown("format", kind, FORMATS)
    if not path.endswith(FORMATS[kind]):
        raise UserError(f"{path!r}: a file of format {kind} ends in {FORMATS[kind]}")
    needed = {"torchscript": (), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "onnxruntime", "openvino")}[kind]
    missing = " ".join(name for name in needed if importlib.util.find_spec(name) is None)
    if missing:
        raise UserError(f"format {kind} needs a package that is not installed: pip install {missing}", "missing-package", "", missing)


def _write_torchscript(traceable: Traceable, sample: Tensor, path: str, about: dict[str, Any]) -> None:
    traced = torch.jit.freeze(torch.jit.trace(traceable, (sample,), check_trace=False).eval())
    torch.jit.save(traced, path, _extra_files={"backbones.json": json.dumps(about)})


def _write_onnx(traceable: Traceable, sample: Tensor, path: str, about: dict[str, Any]) -> None:
    import onnx

    axes = {0: "images", 2: "height", 3: "width"} if about["part"] == "backbone" else {1: "height", 2: "width"}
    # the exporter by trace, which takes whole detectors; since torch 2.9 it is not the default
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    options.update(input_names=["image"], output_names=list(traceable.fields), dynamic_axes={"image": axes})
    torch.onnx.export(traceable, (sample,), path, opset_version=OPSET, **options)
    model = onnx.load(path)
    portable(model.graph)
    save_onnx(model, path, about)


def _write_openvino(traceable: Traceable, sample: Tensor, path: str, about: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = os.path.join(folder, "model.onnx")
        _write_onnx(traceable, sample, onnx_path, about)
        save_openvino(onnx_path, path, about)


_WRITERS = {"torchscript": _write_torchscript, "onnx": _write_onnx, "openvino": _write_openvino}


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], part: str, tolerance: Tolerance) -> dict[str, float]:
    """The largest differences, by name. Raises UserError where one is beyond the tolerance."""
    differences: dict[str, float] = {}
    if part == "backbone" or "boxes" not in expected:
        limits = dict.fromkeys(expected, tolerance.features)
        for name, value in expected.items():
            if value.shape != found[name].shape:
                shapes = tuple(found[name].shape), tuple(value.shape)
                raise UserError(f"the exported {name} is {shapes[0]}, and the model's {shapes[1]}: it is not written", "mismatch")
            differences[name] = _largest(value, found[name])
    else:
        pairs = match(expected, found, tolerance)
        own, others = len(expected["boxes"]), len(found["boxes"])
        if len(pairs) < tolerance.agreeing * max(own, others):
            raise UserError(f"of {own} detections and the file's {others} only {len(pairs)} agree{_REMEDY}", "mismatch")
        ours, theirs = pairs.unbind(dim=1)
        limits = {"masks": 0.02, "heatmaps": 0.02, "sem_seg": 10 * tolerance.features}
        for name, value in expected.items():
            if not len(pairs) and name != "sem_seg":
                differences[name] = 0.0
            elif name in ("boxes", "scores"):  # which agree
                differences[name] = (value[ours] - found[name][theirs]).abs().max().item()
            elif name in ("masks", "heatmaps"):
                off = (value[ours] - found[name][theirs]).abs().flatten(1).mean(dim=1) / value.abs().max()
                differences[name] = off.quantile(tolerance.agreeing).item()
            elif name == "sem_seg":
                differences[name] = _largest(value, found[name])
    for name, most in limits.items():
        if not differences.get(name, 0.0) <= most:
            off_by = f"differs from the model's by {differences[name]:.3g}, more than is allowed, {most:g}"
            raise UserError(f"the exported {name} {off_by}{_REMEDY}", "mismatch")
    return differences


def _largest(expected: Tensor, found: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return ((expected - found).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def match(expected: dict[str, Tensor], found: dict[str, Tensor], tolerance: Tolerance) -> Tensor:
    """Pairs (K, 2) of indices of detections of the same class that agree within the tolerance, each in one pair at most."""
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
