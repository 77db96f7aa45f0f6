"""Runs exported files, called like detectron2's ``DefaultPredictor``. Needs neither the model's config nor its code.

`run_exported`, which is also written next to each file, handles inputs and outputs; here its results become detectron2's.
"""

import os
from typing import Any, Sequence

import numpy as np
import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ..errors import UserError, unknown
from ..files import not_there
from . import run_exported

# outputs of an exported detector -> fields of ``Instances``
FIELDS = {
    "boxes": "pred_boxes",
    "scores": "scores",
    "classes": "pred_classes",
    "masks": "pred_masks",
    "heatmaps": "pred_keypoint_heatmaps",
    "keypoints": "pred_keypoints",
    "proposals": "proposal_boxes",
    "objectness": "objectness_logits",
}


def resized(image: np.ndarray, about: dict[str, Any]) -> Tensor:
    """Converts an image (H, W, 3) BGR to a file's input: in its format and resized, (C, H', W') float32; for a backbone padded,
    (1, C, H', W'); with preprocessing the image itself, RGB uint8."""
    return torch.from_numpy(run_exported.prepared(image[:, :, ::-1], about))


class Runner:
    """An exported file.

    Args:
        path: ends in .ts, .onnx or .xml.
        threads: for ONNX Runtime and OpenVINO; 0: as many as torch uses.

    Raises UserError for a file that this project did not export, and for an input that it cannot run on.
    """

    def __init__(self, path: str, threads: int = 0):
        if not os.path.isfile(path):
            raise not_there("exported file", path)
        kind = os.path.splitext(path)[1]
        if kind not in run_exported.LOADERS:
            raise unknown(f"kind of exported file, of {path!r}", kind, run_exported.LOADERS)
        try:
            self._run, self.about = run_exported.load(path, threads or torch.get_num_threads())
        except run_exported.Unusable as error:
            raise UserError(error, "missing-package" if error.package else "bad-file", suggestion=error.package or None) from error
        self.fields: list[str] = self.about["fields"]

    def _call(self, x: np.ndarray) -> list[np.ndarray]:
        try:
            return self._run(x)
        except run_exported.Unusable as error:
            raise UserError(error, "unsupported") from error

    def run(self, image: Tensor) -> dict[str, Tensor]:
        """The file's outputs for its own kind of input, float32 (3, H, W), or for a backbone or a batch (N, 3, H, W)."""
        return {name: torch.from_numpy(value) for name, value in zip(self.fields, self._call(image.numpy()))}

    def each(self, image: Tensor) -> list[dict[str, Tensor]]:
        """The outputs of `run` for each image of a batch; everything for a file without one."""
        outputs = dict(zip(self.fields, self._call(image.numpy())))
        each = run_exported.separated(outputs, self.about.get("batch", 0))
        return [{name: torch.from_numpy(value) for name, value in one.items()} for one in each]

    def features(self, image: np.ndarray) -> dict[str, Tensor]:
        """The features of an image (H, W, 3) BGR uint8, padded to sizes that the backbone accepts."""
        return self.run(resized(image, self.about))

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Predictions for an image (H, W, 3) BGR uint8, of its size or of another (height, width), as ``DefaultPredictor`` gives them:
        "instances", if the model has them "sem_seg" and "panoptic_seg"; for a classifier "scores"."""
        if self.about["part"] != "detector":
            raise UserError("this file holds a backbone: call features(image)", "unsupported")
        return self.predict(resized(image, self.about), size or image.shape[:2])

    def predict(self, x: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        """Predictions for an already resized image, (C, H, W) float32 in the file's format; ``size`` is the original's."""
        return self.predict_all([x], [size])[0]

    def predict_all(self, inputs: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """As `predict`, for several images. A file with a batch gets images of one size together."""
        found = run_exported.results(self._call, self.about, [x.numpy() for x in inputs])
        return [self._finished(one, x, size) for one, x, size in zip(found, inputs, sizes)]

    def _finished(self, outputs: dict[str, np.ndarray], x: Tensor, size: tuple[int, int]) -> dict[str, Any]:
        found = {
            name: torch.from_numpy(value)
            for name, value in run_exported.finished(outputs, run_exported.seen(x.numpy(), self.about), size).items()
        }
        if "boxes" not in found and "proposals" not in found:
            return found
        instances = Instances(tuple(size))
        for name, value in found.items():
            if name in FIELDS:
                instances.set(FIELDS[name], Boxes(value) if name in ("boxes", "proposals") else value)
        if "proposals" in found:
            return {"proposals": instances}
        if "sem_seg" not in found:
            return {"instances": instances}
        panoptic = combine_semantic_and_instance_outputs(instances, found["sem_seg"].argmax(dim=0), *self.about["panoptic"])
        return {"instances": instances, "sem_seg": found["sem_seg"], "panoptic_seg": panoptic}


class RunnerModel(nn.Module):
    """A `Runner` that stands in for a model in evaluation: maps detectron2's list of dicts, on any device, to a list of predictions."""

    def __init__(self, runner: Runner):
        super().__init__()
        self.runner = runner

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return self.runner.predict_all([x["image"].float().cpu() for x in inputs], [(x["height"], x["width"]) for x in inputs])
