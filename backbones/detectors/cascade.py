"""Cascade R-CNN as MMDetection computes it (Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018), for its trained detectors."""

from typing import Any, Dict, List

from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_mask_head
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from torch import Tensor, nn
from torch.nn import functional as F

STAGE_WEIGHTS = (1.0, 0.5, 0.25)  # of the mask heads' losses


class StagedMaskHeads(nn.ModuleList):
    """A mask head for each stage of the cascade; their masks are averaged, as probabilities."""

    def forward(self, x: Tensor, instances: List):
        if self.training:
            losses = {}
            for stage, (head, weight) in enumerate(zip(self, STAGE_WEIGHTS)):
                losses.update({f"{key}_stage{stage}": weight * value for key, value in head(x, instances).items()})
            return losses
        masks = [0.0] * len(instances)
        for head in self:
            # a head writes its masks into the instances
            masks = [total + each.pred_masks / len(self) for total, each in zip(masks, head(x, instances))]
        for each, mean in zip(instances, masks):
            each.pred_masks = mean
        return instances


@ROI_HEADS_REGISTRY.register()
class MMDetCascadeROIHeads(CascadeROIHeads):
    """Differs from detectron2's `CascadeROIHeads`: the stages' logits are averaged, not their probabilities, and each has a mask head.

    In training all mask heads see the proposals of detectron2's one head, with the stage weights 1, 0.5 and 0.25.
    """

    @classmethod
    def _init_mask_head(cls, cfg, input_shape) -> Dict:
        result = super()._init_mask_head(cfg, input_shape)
        if result:
            resolution = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
            channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
            pooled = ShapeSpec(channels=channels, width=resolution, height=resolution)
            result["mask_head"] = StagedMaskHeads([build_mask_head(cfg, pooled) for _ in STAGE_WEIGHTS])
        return result

    def _forward_box(self, features, proposals, targets=None):
        if self.training:
            return super()._forward_box(features, proposals, targets)
        features = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        logits: Any = 0.0
        boxes: List[Tensor] = []
        for stage in range(self.num_cascade_stages):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
            scores, deltas = self._run_stage(features, proposals, stage)
            logits = logits + scores / self.num_cascade_stages
            predictor = self.box_predictor[stage]
            boxes = predictor.predict_boxes((scores, deltas), proposals)
        probabilities = F.softmax(logits, dim=-1).split([p.proposal_boxes.tensor.shape[0] for p in proposals])  # not len: for traces
        return fast_rcnn_inference(
            boxes, probabilities, image_sizes, predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        )[0]
