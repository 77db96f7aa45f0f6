"""RetinaNet as MMDetection computes it, for its trained detectors."""

import torch
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .ranking import batched_nms, best


@META_ARCH_REGISTRY.register()
class MMDetRetinaNet(RetinaNet):
    """Differs from detectron2's `RetinaNet` in inference: boxes are clipped to the image before, not after, overlapping ones are removed.

    Equal scores are ranked as there too, see `ranking`: by place, then ratio, then size of the anchor. Weights stay in detectron2's order.
    """

    def inference_single_image(self, anchors, box_cls, box_delta, image_size) -> Instances:
        found = self._decode_multi_level_predictions(anchors, box_cls, box_delta, self.test_score_thresh, self.test_topk_candidates, image_size)
        found.pred_boxes.clip(image_size)
        kept = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[kept[: self.max_detections_per_image]]

    def _decode_per_level_predictions(self, anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size) -> Instances:
        order = self._by_ratio(pred_scores.shape[0], pred_scores.device)  # not len: a trace is to follow it
        pred_scores, pred_deltas, boxes = pred_scores[order], pred_deltas[order], anchors.tensor[order]
        passed = pred_scores > score_thresh
        scores, ranked = best(pred_scores[passed], topk_candidates)
        place, classes = torch.nonzero(passed)[ranked].unbind(dim=1)
        decoded = self.box2box_transform.apply_deltas(pred_deltas[place], boxes[place])
        return Instances(image_size, pred_boxes=Boxes(decoded), scores=scores, pred_classes=classes)

    def _by_ratio(self, count: int, device: torch.device) -> Tensor:
        """Indices of one level's anchors, those of a place by ratio, then size, where detectron2 has them by size, then ratio."""
        cell = next(iter(self.anchor_generator.cell_anchors))
        ratios = ((cell[:, 3] - cell[:, 1]) / (cell[:, 2] - cell[:, 0])).mul(1000).round().unique().numel()
        return torch.arange(count, device=device).reshape(-1, len(cell) // ratios, ratios).transpose(1, 2).flatten()
