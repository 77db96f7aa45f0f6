"""RetinaNet as MMDetection computes it, for its trained detectors."""

from typing import Tuple

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .ranking import batched_nms, highest


@META_ARCH_REGISTRY.register()
class MMDetRetinaNet(RetinaNet):
    """Differs from detectron2's `RetinaNet` in inference: boxes are clipped to the image before, not after, overlapping ones are removed.

    Equal scores are ranked as there too, see `ranking`: by place, then ratio, then size of the anchor. Weights stay in detectron2's order.
    """

    def inference_single_image(self, anchors, box_cls, box_delta, image_size) -> Instances:
        levels = [self._of_level(*level) for level in zip(anchors, box_cls, box_delta)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels))
        found = Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        found.pred_boxes.clip(image_size)
        kept = batched_nms(found.pred_boxes.tensor, scores, classes, self.test_nms_thresh)
        return found[kept[: self.max_detections_per_image]]

    def _of_level(self, anchors: Boxes, scores: Tensor, deltas: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        """(boxes, scores, classes) of a level's best from (R, classes) and (R, 4)."""
        order = self._by_ratio(scores.shape[0], scores.device)  # not len: a trace is to follow it
        scores, deltas, boxes = scores[order], deltas[order], anchors.tensor[order]
        passed = scores > self.test_score_thresh
        found, ranked = highest(scores[passed], self.test_topk_candidates)
        place, classes = torch.nonzero(passed)[ranked].unbind(dim=1)
        return self.box2box_transform.apply_deltas(deltas[place], boxes[place]), found, classes

    def _by_ratio(self, count: int, device: torch.device) -> Tensor:
        """Indices of one level's anchors, those of a place by ratio, then size, where detectron2 has them by size, then ratio."""
        cell = next(iter(self.anchor_generator.cell_anchors))
        ratios = ((cell[:, 3] - cell[:, 1]) / (cell[:, 2] - cell[:, 0])).mul(1000).round().unique().numel()
        return torch.arange(count, device=device).reshape(-1, len(cell) // ratios, ratios).transpose(1, 2).flatten()
