"""Runs exported files, called as detectron2's ``DefaultPredictor`` is. Needs neither the model's config nor its code."""

import json
import os
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess, sem_seg_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.structures.keypoints import heatmaps_to_keypoints
from PIL import Image
from torch import Tensor
from torchvision import transforms

from ..data import images
from ..errors import UserError, unknown

# names of an exported detector's outputs, and of the fields of ``Instances`` that they are
FIELDS = {
    "boxes": "pred_boxes",
    "scores": "scores",
    "classes": "pred_classes",
    "masks": "pred_masks",
    "heatmaps": "pred_keypoint_heatmaps",
    "proposals": "proposal_boxes",
    "objectness": "objectness_logits",
}


def resized(image: np.ndarray, about: dict[str, Any]) -> Tensor:
    """Makes of an image (H, W, 3) BGR what a file expects: in its format and resized, (C, H', W') float32; for a backbone padded,
    (1, C, H', W')."""
    if about["crop"]:  # of a classifier, as its data loader has it
        steps = transforms.Compose([transforms.Resize(about["resize"]), transforms.CenterCrop(about["crop"])])
        image = images.converted(np.asarray(steps(Image.fromarray(image))), about["input_format"])
    else:
        sized = images.Input(images.converted(image, about["input_format"]))
        T.ResizeShortestEdge(about["min_size"], about["max_size"])(sized)
        image = sized.image
    x = images.tensor(image).float()
    if about["part"] == "detector":
        return x
    step = max(about["size_divisibility"], 1)
    return torch.nn.functional.pad(x, [0, -x.shape[2] % step, 0, -x.shape[1] % step])[None]


class Runner:
    """An exported file.

    Args:
        path: ends in .ts, .onnx or .xml.
        threads: of ONNX Runtime and OpenVINO; 0: as many as torch uses.

    Raises UserError for a file that this project did not export.
    """

    def __init__(self, path: str, threads: int = 0):
        if not os.path.isfile(path):
            raise UserError(f"exported file {path!r} is not there", "missing-file")
        kind = os.path.splitext(path)[1]
        if kind not in _LOADERS:
            raise unknown(f"kind of exported file, of {path!r}", kind, _LOADERS)
        try:
            self._call, about = _LOADERS[kind](path, threads or torch.get_num_threads())
            self.about: dict[str, Any] = json.loads(about)
            self.fields: list[str] = self.about["fields"]
        except ImportError as error:
            message = f"{path!r} needs a package that is not installed: pip install {error.name}"
            raise UserError(message, "missing-package", suggestion=error.name) from error
        except Exception as error:  # each runtime raises its own
            raise UserError(f"{path!r} is no file that backbones exported: {' '.join(str(error).split())[:200]}", "bad-file") from error

    def run(self, image: Tensor) -> dict[str, Tensor]:
        """What the file gives for its own kind of input, float32 (3, H, W), or of a backbone (N, 3, H, W)."""
        return dict(zip(self.fields, self._call(image)))

    def features(self, image: np.ndarray) -> dict[str, Tensor]:
        """The features of an image (H, W, 3) BGR uint8, padded to the sizes that the backbone takes."""
        return self.run(resized(image, self.about))

    def __call__(self, image: np.ndarray, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Predictions for an image (H, W, 3) BGR uint8, of its size or of another (height, width), as ``DefaultPredictor`` gives them:
        "instances", and of what has them "sem_seg" and "panoptic_seg"; of a classifier "scores"."""
        if self.about["part"] != "detector":
            raise UserError("this file is of a backbone: call features(image)", "unsupported")
        height, width = size or image.shape[:2]
        x = resized(image, self.about)
        found = self.run(x)
        if "boxes" not in found and "proposals" not in found:
            return found
        instances = Instances(tuple(x.shape[1:]))
        for name, value in found.items():
            if name in FIELDS:
                instances.set(FIELDS[name], Boxes(value.clone()) if name in ("boxes", "proposals") else value)
        if "heatmaps" in found:
            instances.pred_keypoints = heatmaps_to_keypoints(found["heatmaps"], found["boxes"])[:, :, [0, 1, 3]]
        instances = detector_postprocess(instances, height, width)
        if "proposals" in found:
            return {"proposals": instances}
        if "sem_seg" not in found:
            return {"instances": instances}
        sem_seg = sem_seg_postprocess(found["sem_seg"], tuple(x.shape[1:]), height, width)
        panoptic = combine_semantic_and_instance_outputs(instances, sem_seg.argmax(dim=0), *self.about["panoptic"])
        return {"instances": instances, "sem_seg": sem_seg, "panoptic_seg": panoptic}


def _torchscript(path: str, threads: int):
    import torchvision  # noqa: F401  its operators are in the file

    files = {"backbones.json": ""}
    module = torch.jit.load(path, map_location="cpu", _extra_files=files)
    return torch.no_grad()(partial(module)), files["backbones.json"]


def _onnx(path: str, threads: int):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    about = session.get_modelmeta().custom_metadata_map["backbones"]
    return lambda x: [torch.from_numpy(value) for value in session.run(None, {"image": x.numpy()})], about


def _openvino(path: str, threads: int):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    about = model.get_rt_info("backbones").astype(str)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
    # its memory is used again by the next call
    return lambda x: [torch.from_numpy(np.array(value)) for value in compiled([x.numpy()]).values()], about


_LOADERS = {".ts": _torchscript, ".onnx": _onnx, ".xml": _openvino}
