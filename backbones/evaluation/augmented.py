"""Test-time augmentation: the model sees an image at several sizes, and mirrored; the detections in these views are merged.

detectron2 has it for boxes and masks of R-CNNs. This adds dense detectors, and keypoints, whose heatmaps are averaged as in Detectron's
``im_detect_keypoints_aug``. A single view gives the same result as the model alone.
"""

import copy
from typing import Any, Callable

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.detection_utils import create_keypoint_hflip_indices
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN, GeneralizedRCNNWithTTA
from detectron2.modeling.meta_arch import PanopticFPN
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.structures.keypoints import heatmaps_to_keypoints
from fvcore.transforms.transform import HFlipTransform
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data import images
from ..errors import UserError


def augmented(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """``model`` with the views of ``cfg.TEST.AUG``. Raises UserError for a model whose results cannot be merged."""
    model = model.module if isinstance(model, DistributedDataParallel) else model
    check_augmented(cfg, type(model))
    return DenseWithTTA(model, Views(cfg)) if isinstance(model, DenseDetector) else RCNNWithTTA(cfg, model)


def check_augmented(cfg: CfgNode, kind: type, name: Callable[[str], str] = str) -> None:
    """Raises UserError if the results of a class of models cannot be merged; ``name`` gives the user's name for a key."""
    rcnn = issubclass(kind, GeneralizedRCNN) and not issubclass(kind, PanopticFPN) and not cfg.MODEL.LOAD_PROPOSALS
    if not rcnn and not issubclass(kind, DenseDetector):
        key = name("TEST.AUG.ENABLED")
        said = f"{key.removesuffix('.ENABLED')} supports R-CNNs, RetinaNet and GFL, not {kind.__name__}: set {key} False"
        raise UserError(said, "conflict", key, False)


class Views(DatasetMapperTTA):
    """detectron2's mapper, but each side of a view has at least a pixel, however thin the image."""

    def __call__(self, example: dict[str, Any]) -> list[dict[str, Any]]:
        pixels = example["image"].permute(1, 2, 0).numpy()
        before = T.ResizeTransform(example["height"], example["width"], *pixels.shape[:2])
        result = []
        for size in self.min_sizes:
            for flips in ([], [T.RandomFlip(1.0)])[: 1 + self.flip]:
                view = images.Input(pixels.copy())
                transforms = T.AugmentationList([T.ResizeShortestEdge(size, self.max_size), *flips])(view)
                result.append({**copy.copy(example), "image": images.tensor(view.image), "transforms": before + transforms})
        return result


def flip_indices(cfg: CfgNode) -> list[int]:
    """For each keypoint, the index of its counterpart in the mirrored image. Raises UserError if the data do not say."""
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    about = next((MetadataCatalog.get(name) for name in names if MetadataCatalog.get(name).get("keypoint_names")), None)
    if about is None or about.get("keypoint_flip_map") is None:
        said = "TEST.AUG.FLIP mirrors images, but no data set says which keypoints swap: set it to False"
        raise UserError(said, "conflict", "TEST.AUG.FLIP", False)
    return create_keypoint_hflip_indices(about.name)


def is_mirrored(transforms: T.TransformList) -> bool:
    return any(isinstance(transform, HFlipTransform) for transform in transforms.transforms)


class DenseWithTTA(nn.Module):
    """A dense detector of detectron2's kind, called as it is; the boxes of all views go through its own NMS once more.

    Args:
        model: has ``test_nms_thresh`` and ``max_detections_per_image``, as RetinaNet, FCOS and GFL have.
        views: makes the views of an example, each with its "transforms".
    """

    def __init__(self, model: Any, views: Callable[[dict[str, Any]], list[dict[str, Any]]]):
        super().__init__()
        self.model, self.views = model, views

    def forward(self, batched_inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        return [{"instances": self.find(example)} for example in batched_inputs]

    def find(self, example: dict[str, Any]) -> Instances:
        """The detections in one image, in pixels of its own size."""
        found = []
        for view in self.views(example):
            transforms = view.pop("transforms")
            instances = self.model([view])[0]["instances"]
            if is_mirrored(transforms):
                x0, y0, x1, y1 = instances.pred_boxes.tensor.unbind(dim=1)
                instances.pred_boxes = Boxes(torch.stack((example["width"] - x1, y0, example["width"] - x0, y1), dim=1))
            found.append(instances)
        if len(found) == 1:
            return found[0]
        every = Instances.cat(found)
        kept = batched_nms(every.pred_boxes.tensor, every.scores, every.pred_classes, self.model.test_nms_thresh)
        return every[kept[: self.model.max_detections_per_image]]


class RCNNWithTTA(GeneralizedRCNNWithTTA):
    """detectron2's, with keypoints too: each view gives heatmaps for the merged boxes of all views."""

    def __init__(self, cfg: CfgNode, model: GeneralizedRCNN):
        without = cfg.clone()
        without.defrost()
        without.MODEL.KEYPOINT_ON = False  # which it refuses
        super().__init__(without, model, Views(cfg))
        self.keypoints, self.flip_indices = cfg.MODEL.KEYPOINT_ON, []
        if self.keypoints and cfg.TEST.AUG.FLIP:
            self.flip_indices = flip_indices(cfg)

    def _inference_one_image(self, input: dict[str, Any]) -> dict[str, Instances]:
        views, transforms = self._get_augmented_inputs(input)
        if len(views) == 1:
            return self.model.inference(views)[0]
        size = input["height"], input["width"]
        with self._turn_off_roi_heads(["mask_on", "keypoint_on"]):
            merged = self._merge_detections(*self._get_augmented_boxes(views, transforms), size)
        if not self.cfg.MODEL.MASK_ON and not self.keypoints:
            return {"instances": merged}
        outputs = self._batch_inference(views, self._rescale_detected_boxes(views, merged, transforms))
        if self.cfg.MODEL.MASK_ON:
            merged.pred_masks = self._reduce_pred_masks(outputs, transforms)
        if self.keypoints:
            heatmaps = self.heatmaps(outputs, transforms)
            merged.pred_keypoints = heatmaps_to_keypoints(heatmaps, merged.pred_boxes.tensor)[:, :, [0, 1, 3]]
        return {"instances": detector_postprocess(merged, *size)}

    def heatmaps(self, outputs: list[Instances], transforms: list[T.TransformList]) -> Tensor:
        """The mean (N, K, S, S) of the views' heatmaps; in mirrored views left and right are swapped."""
        maps = [output.pred_keypoint_heatmaps for output in outputs]
        turned = [each.flip(dims=[3])[:, self.flip_indices] if is_mirrored(transform) else each for each, transform in zip(maps, transforms)]
        return torch.stack(turned).mean(dim=0)
