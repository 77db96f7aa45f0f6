"""The region proposal network as MMDetection computes it, for its trained detectors."""

from typing import List, Tuple

import torch
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .ranking import batched_nms, highest


@PROPOSAL_GENERATOR_REGISTRY.register()
class MMDetRPN(RPN):
    """Differs from detectron2's `RPN` in inference: proposals are ranked by probability (see `ranking`), not by logit."""

    def predict_proposals(
        self, anchors: List[Boxes], pred_objectness_logits: List[Tensor], pred_anchor_deltas: List[Tensor], image_sizes: List[Tuple[int, int]]
    ) -> List[Instances]:
        if self.training:
            return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        with torch.no_grad():
            images = []
            for i, size in enumerate(image_sizes):
                boxes = [self.box2box_transform.apply_deltas(deltas[i], level.tensor) for deltas, level in zip(pred_anchor_deltas, anchors)]
                images.append(self._of_image(boxes, [logits[i].sigmoid() for logits in pred_objectness_logits], size))
            return images

    def _of_image(self, boxes: List[Tensor], scores: List[Tensor], image_size: Tuple[int, int]) -> Instances:
        """One image's proposals from the (boxes, 4) and (boxes,) of all levels."""
        most = self.pre_nms_topk[False]
        for i, score in enumerate(scores):
            if torch.jit.is_tracing() or len(score) > most:  # a trace serves images of other sizes
                scores[i], order = highest(score, most)
                boxes[i] = boxes[i][order]
        level = torch.cat([torch.full_like(score, i) for i, score in enumerate(scores)])
        found, score = Boxes(torch.cat(boxes)), torch.cat(scores)
        found.clip(image_size)
        kept = found.nonempty(threshold=self.min_box_size) & found.tensor.isfinite().all(dim=1)
        found, score, level = found[kept], score[kept], level[kept]
        kept = batched_nms(found.tensor, score, level, self.nms_thresh)[: self.post_nms_topk[False]]
        return Instances(image_size, proposal_boxes=found[kept], objectness_logits=score[kept])
