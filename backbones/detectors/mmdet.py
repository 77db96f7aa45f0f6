"""RPN, RetinaNet and Cascade R-CNN as MMDetection computes them, for its trained detectors; Cai and Vasconcelos, "Cascade R-CNN", CVPR 2018.

MMDetection ranks boxes by probability, and single precision has few values near 1. The order of equal ones then depends on torch's
sort. The same calls are made here, so that the same boxes survive. Trained detectors are seldom that confident; random ones are, and they are
used to prove conversions.
"""

from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, PROPOSAL_GENERATOR_REGISTRY, ROI_HEADS_REGISTRY, build_mask_head
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.modeling.roi_heads.roi_heads import select_foreground_proposals
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import nms

from ..errors import UserError

STAGE_WEIGHTS = (1.0, 0.5, 0.25)  # of the losses of a cascade's stages


def highest(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The ``most`` largest of (N,) scores, in order, and their indices."""
    ranked, order = scores.sort(descending=True)
    return ranked[:most], order[:most]


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Indices of the (N, 4) boxes that survive NMS within their group at ``threshold``, best first."""
    order = scores.sort(descending=True)[1]
    largest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()  # also of no boxes, and in a trace
    apart = boxes + (groups.to(boxes) * (largest + 1))[:, None]  # groups moved apart do not suppress each other
    return order[nms(apart[order], scores[order], threshold)]


@PROPOSAL_GENERATOR_REGISTRY.register()
class MMDetRPN(RPN):
    """Differs from detectron2's `RPN` in inference: proposals are ranked by probability (see above), not by logit."""

    def predict_proposals(
        self, anchors: list[Boxes], pred_objectness_logits: list[Tensor], pred_anchor_deltas: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        if self.training:
            return super().predict_proposals(anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes)
        with torch.no_grad():
            images = []
            for i, size in enumerate(image_sizes):
                boxes = [self.box2box_transform.apply_deltas(deltas[i], level.tensor) for deltas, level in zip(pred_anchor_deltas, anchors)]
                images.append(self._of_image(boxes, [logits[i].sigmoid() for logits in pred_objectness_logits], size))
            return images

    def _of_image(self, boxes: list[Tensor], scores: list[Tensor], image_size: tuple[int, int]) -> Instances:
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


@META_ARCH_REGISTRY.register()
class MMDetRetinaNet(RetinaNet):
    """Differs from detectron2's `RetinaNet` in inference: boxes are clipped to the image before, not after, overlapping ones are removed.

    Equal scores are ranked as there too, see above: by place, then ratio, then size of the anchor. Weights stay in detectron2's order.
    """

    def inference_single_image(self, anchors, box_cls, box_delta, image_size) -> Instances:
        levels = [self._of_level(*level) for level in zip(anchors, box_cls, box_delta)]
        boxes, scores, classes = (torch.cat(parts) for parts in zip(*levels))
        found = Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        found.pred_boxes.clip(image_size)
        kept = batched_nms(found.pred_boxes.tensor, scores, classes, self.test_nms_thresh)
        return found[kept[: self.max_detections_per_image]]

    def _of_level(self, anchors: Boxes, scores: Tensor, deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
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


class StagedMaskHeads(nn.ModuleList):
    """A mask head for each stage of the cascade; in inference their masks are averaged, as probabilities."""

    def forward(self, x: Tensor, instances: list) -> list:
        masks = [0.0] * len(instances)
        for head in self:
            # a head writes its masks into the instances
            masks = [total + each.pred_masks / len(self) for total, each in zip(masks, head(x, instances))]
        for each, mean in zip(instances, masks):
            each.pred_masks = mean
        return instances


def _are_true(proposals: Instances, truth: Instances) -> Tensor:
    """Which of the N proposals are true boxes: (N,) bool."""
    return (proposals.proposal_boxes.tensor[:, None] == truth.gt_boxes.tensor).all(dim=2).any(dim=1)


@ROI_HEADS_REGISTRY.register()
class MMDetCascadeROIHeads(CascadeROIHeads):
    """Differs from detectron2's `CascadeROIHeads`: the stages' logits are averaged, not their probabilities, and each has a mask head.

    In training, boxes and masks of a stage learn with weights of 1, 0.5 and 0.25, from its own sample of the boxes of the stage before, to
    which the true boxes are added; the refined true boxes of the stage before are left out.
    """

    proposal_matcher: Any  # of the stage that is sampled for

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        if len(ious := cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS) != len(STAGE_WEIGHTS):
            said = f"{list(ious)}: it must be {len(STAGE_WEIGHTS)} numbers, as {cls.__name__} has that many stages"
            raise UserError(f"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is {said}", "value", "MODEL.ROI_BOX_CASCADE_HEAD.IOUS")
        return super().from_config(cfg, input_shape)

    @classmethod
    def _init_mask_head(cls, cfg, input_shape) -> dict:
        result = super()._init_mask_head(cfg, input_shape)
        if result:
            resolution = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
            channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
            pooled = ShapeSpec(channels=channels, width=resolution, height=resolution)
            result["mask_head"] = StagedMaskHeads([build_mask_head(cfg, pooled) for _ in STAGE_WEIGHTS])
        return result

    def _match_and_label_boxes(self, proposals, stage, targets):
        for found in proposals:  # without them none are added
            found.objectness_logits = found.proposal_boxes.tensor.new_zeros(len(found))
        first = self.proposal_matcher
        self.proposal_matcher = self.proposal_matchers[stage]
        try:
            with get_event_storage().name_scope(f"stage{stage}"):
                return self.label_and_sample_proposals(proposals, targets)
        finally:
            self.proposal_matcher = first

    def _run_stage(self, features, proposals, stage):
        pooled = self.box_pooler(features, [p.proposal_boxes for p in proposals])
        return self.box_predictor[stage](self.box_head[stage](pooled))

    def _losses(self, features, stage: int, outputs, proposals) -> dict[str, Tensor]:
        with get_event_storage().name_scope(f"stage{stage}"):
            losses = self.box_predictor[stage].losses(outputs, proposals)
        if self.mask_on:
            objects, _ = select_foreground_proposals(proposals, self.num_classes)
            pooled = self.mask_pooler([features[name] for name in self.mask_in_features], [each.proposal_boxes for each in objects])
            losses.update(self.mask_head[stage](pooled, objects))
        return {f"{key}_stage{stage}": STAGE_WEIGHTS[stage] * value for key, value in losses.items()}

    def _forward_mask(self, features, instances):
        return {} if self.training else super()._forward_mask(features, instances)  # a stage's losses are together

    def _forward_box(self, features, proposals, targets=None):
        levels = [features[name] for name in self.box_in_features]
        image_sizes = [p.image_size for p in proposals]
        logits: Any = 0.0
        boxes: list[Tensor] = []
        losses: dict[str, Tensor] = {}
        for stage, predictor in enumerate(self.box_predictor):
            if stage > 0:
                proposals = self._create_proposals_from_boxes(boxes, image_sizes)
                if self.training:
                    proposals = self._match_and_label_boxes(proposals, stage, targets)
            scores, deltas = self._run_stage(levels, proposals, stage)
            if self.training:
                losses.update(self._losses(features, stage, (scores, deltas), proposals))
            else:
                logits = logits + scores / self.num_cascade_stages
            boxes = predictor.predict_boxes((scores, deltas), proposals)
            if self.training:
                boxes = [each[~_are_true(p, truth)] for each, p, truth in zip(boxes, proposals, targets)]
        if self.training:
            return losses
        probabilities = F.softmax(logits, dim=-1).split([p.proposal_boxes.tensor.shape[0] for p in proposals])  # not len: for traces
        return fast_rcnn_inference(
            boxes, probabilities, image_sizes, predictor.test_score_thresh, predictor.test_nms_thresh, predictor.test_topk_per_image
        )[0]
