"""GFL and GFLV2: one-stage detectors whose boxes are distributions.

Li et al., "Generalized Focal Loss", NeurIPS 2020, and "Generalized Focal Loss V2: Learning Reliable Localization Quality Estimation for Dense
Object Detection", CVPR 2021; anchors are assigned by ATSS (Zhang et al., CVPR 2020).

Worth knowing:
- In V2 a score is a probability, class times quality, not a logit: the loss uses it directly, in single precision.
- Anchors' centres are the corners of their cells (offset 0), as in detectron2's RetinaNet, but not in MMDetection's newer heads.
- The 1000 best locations of a level go to NMS with all their classes above the threshold; RetinaNet keeps the 1000 best pairs of both.
- Where no anchor of a batch is positive, the losses of the boxes are 0; the original divides 0 by 0 there.
"""

import math
from typing import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec, batched_nms, get_norm
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.meta_arch.dense_detector import DenseDetector, permute_to_N_HWA_K
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.structures.boxes import matched_pairwise_iou
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torchvision.ops import box_iou, generalized_box_iou_loss

from ..errors import UserError

# images are padded to it; in a batch of larger images, anchors beyond an image's own padding are neither object nor background
PADDING = 32


def quality_focal_loss(prediction: Tensor, labels: Tensor, quality: Tensor, logits: bool = False, beta: float = 2.0) -> Tensor:
    """Each anchor's loss (N,): cross entropy with its ``quality`` (N,) at its class and 0 elsewhere, times |quality - probability|^beta.

    ``prediction`` (N, classes) are probabilities, or ``logits``; ``labels`` (N,) are classes, or their number for background.
    """
    target = torch.zeros_like(prediction)
    positive = (labels < prediction.shape[1]).nonzero().squeeze(1)
    target[positive, labels[positive]] = quality[positive]
    probability = prediction.sigmoid() if logits else prediction
    cross_entropy = F.binary_cross_entropy_with_logits if logits else F.binary_cross_entropy
    return (cross_entropy(prediction, target, reduction="none") * (target - probability).abs().pow(beta)).sum(dim=1)


def distribution_focal_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Each distance's loss (N,): cross entropy of its logits (N, bins) with the two bins beside ``target`` (N,), by nearness."""
    left = target.long()
    below = F.cross_entropy(prediction, left, reduction="none") * (left + 1 - target)
    return below + F.cross_entropy(prediction, left + 1, reduction="none") * (target - left)


def expected_distance(distribution: Tensor) -> Tensor:
    """The mean of distributions over 0, 1, 2, ..., given by their logits (..., bins)."""
    bins = torch.arange(distribution.shape[-1], device=distribution.device, dtype=distribution.dtype)
    return (distribution.softmax(dim=-1) * bins).sum(dim=-1)


def boxes_around(centers: Tensor, distances: Tensor) -> Tensor:
    """(N, 4) boxes from (N, 2) points in them and (N, 4) distances to left, top, right and bottom."""
    return torch.cat((centers - distances[:, :2], centers + distances[:, 2:]), dim=1)


@torch.no_grad()
def atss(anchors: Tensor, per_level: Sequence[int], boxes: Tensor, topk: int) -> Tensor:
    """For each of (R, 4) anchors (``per_level`` on each level, in order), the index of its object among (M, 4) ``boxes``, or -1.

    Candidates of an object are the ``topk`` anchors of each level whose centres are nearest to its own. A candidate is positive if its IoU is
    at least the mean plus standard deviation over all candidates, and its centre lies in the object; of several objects the highest IoU wins.
    """
    if not len(boxes) or not len(anchors):
        return torch.full((len(anchors),), -1, dtype=torch.long, device=anchors.device)
    iou = box_iou(anchors, boxes)
    centers, objects = ((b[:, :2] + b[:, 2:]) / 2 for b in (anchors, boxes))
    distance = (centers[:, None] - objects[None]).pow(2).sum(dim=-1).sqrt()
    candidates, start = [], 0
    for count in per_level:
        nearest = distance[start : start + count].topk(min(topk, count), dim=0, largest=False).indices
        candidates.append(nearest + start)
        start += count
    chosen = torch.cat(candidates)  # (candidates, M)
    overlap = iou.gather(0, chosen)
    threshold = overlap.mean(dim=0) + overlap.std(dim=0)
    inside = torch.cat((centers[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - centers[:, None]), dim=-1).min(dim=-1).values > 0.01
    positive = (overlap >= threshold) & inside.gather(0, chosen)
    claimed = torch.full_like(iou, -math.inf)
    claimed.scatter_(0, chosen, torch.where(positive, overlap, -math.inf))
    best, matched = claimed.max(dim=1)
    return torch.where(best > -math.inf, matched, -1)


class Scale(nn.Module):
    """Multiplies by a learned number, which starts at 1."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class GFLHead(nn.Module):
    """Two towers shared by all levels, one for the classes, one for the distances to a box's sides.

    Args:
        in_channels: of every level, kept by the towers.
        num_levels, num_classes: how many there are.
        num_convs, norm: of each tower; ``norm`` is detectron2's.
        reg_max: the largest distance, in strides; each is a distribution over 0 to it.
        quality: the V2 head, which rates a box by the ``quality_topk`` largest bins of each side, and their mean.
        quality_channels: its width.
        prior_prob: initial class score.
    """

    def __init__(
        self,
        in_channels: int,
        num_levels: int,
        num_classes: int,
        num_convs: int = 4,
        norm: str = "GN",
        reg_max: int = 16,
        quality: bool = True,
        quality_topk: int = 4,
        quality_channels: int = 64,
        prior_prob: float = 0.01,
    ):
        super().__init__()
        self.bins, self.quality_topk = reg_max + 1, quality_topk
        self.cls_subnet, self.bbox_subnet = (self._tower(in_channels, num_convs, norm) for _ in range(2))
        self.cls_score = nn.Conv2d(in_channels, num_classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(in_channels, 4 * self.bins, 3, padding=1)
        self.scales = nn.ModuleList([Scale() for _ in range(num_levels)])
        self.quality = None
        if quality:
            statistics = 4 * (quality_topk + 1)
            self.quality = nn.Sequential(nn.Conv2d(statistics, quality_channels, 1), nn.ReLU(), nn.Conv2d(quality_channels, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        assert self.cls_score.bias is not None
        nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))

    @staticmethod
    def _tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
        layers: list[nn.Module] = []
        for _ in range(num_convs):
            layers.append(nn.Conv2d(channels, channels, 3, padding=1, bias=not norm))
            if norm:
                # of two channels or more a group, so that a level of one pixel has a deviation
                groups = math.gcd(32, max(channels // 2, 1))
                layers.append(nn.GroupNorm(groups, channels) if norm == "GN" else get_norm(norm, channels))
            layers.append(nn.ReLU())
        return nn.Sequential(*layers)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps levels (N, C, H, W) to class scores (N, classes, H, W) and distributions (N, 4 * bins, H, W), as logits, in single precision.

        Scores are probabilities in V2, and logits without a quality head.
        """
        scores: list[Tensor] = []
        distributions: list[Tensor] = []
        for level, scale in enumerate(self.scales):
            x = features[level]
            score = self.cls_score(self.cls_subnet(x)).float()
            distribution = scale(self.bbox_pred(self.bbox_subnet(x)).float())
            if self.quality is not None:
                score = score.sigmoid() * self.quality(self.statistics(distribution)).float().sigmoid()
            scores.append(score)
            distributions.append(distribution)
        return scores, distributions

    def statistics(self, distribution: Tensor) -> Tensor:
        """The largest bins of each side, and their mean: (N, 4 * (quality_topk + 1), H, W)."""
        n, _, h, w = distribution.shape
        top = distribution.reshape(n, 4, self.bins, h, w).softmax(dim=2).topk(self.quality_topk, dim=2)[0]
        return torch.cat((top, top.mean(dim=2, keepdim=True)), dim=2).reshape(n, 4 * (self.quality_topk + 1), h, w)


@META_ARCH_REGISTRY.register()
class GFL(DenseDetector):
    """GFLV2, or with ``cfg.MODEL.GFL.QUALITY`` False plain GFL; its inputs and outputs are those of detectron2's `RetinaNet`.

    Args:
        backbone: with the features ``head_in_features``, all of one width.
        head: `GFLHead`, or one that gives the same.
        head_in_features: from fine to coarse.
        num_classes: as the head's.
        anchor_size: side of the anchor at each place, in strides.
        atss_topk: see `atss`.
        loss_weights: of "loss_cls", "loss_box_reg" and "loss_dfl".
        test_score_thresh, test_topk_candidates, test_nms_thresh, max_detections_per_image: lowest score, places a level, largest overlap,
            boxes an image.
        pixel_mean, pixel_std: of the images, in the order of their channels.
        input_format: that order, for drawing.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: list[str],
        num_classes: int,
        anchor_size: float = 8.0,
        atss_topk: int = 9,
        loss_weights: Sequence[float] = (1.0, 2.0, 0.25),
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Sequence[float] = (123.675, 116.28, 103.53),
        pixel_std: Sequence[float] = (58.395, 57.12, 57.375),
        input_format: str = "RGB",
    ):
        super().__init__(backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std)
        shapes = backbone.output_shape()
        self.strides = [int(shapes[name].stride) for name in head_in_features]
        self.anchor_generator = DefaultAnchorGenerator(
            sizes=[[anchor_size * stride] for stride in self.strides], aspect_ratios=[1.0], strides=self.strides, offset=0.0
        )
        self.num_classes, self.atss_topk, self.loss_weights = num_classes, atss_topk, list(loss_weights)
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh, self.max_detections_per_image = test_nms_thresh, max_detections_per_image
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg) -> dict:
        node = cfg.MODEL.GFL
        backbone = build_backbone(cfg)
        shapes: list[ShapeSpec] = [backbone.output_shape()[name] for name in node.IN_FEATURES]
        if len({shape.channels for shape in shapes}) > 1:
            widths = ", ".join(f"{name} {shape.channels}" for name, shape in zip(node.IN_FEATURES, shapes))
            raise UserError(f"MODEL.GFL.IN_FEATURES must have the same width, as an FPN's have, but they have {widths} channels")
        own = ("num_classes", "num_convs", "norm", "reg_max", "quality", "quality_channels", "prior_prob")
        options = {key: node[key.upper()] for key in own}
        head = GFLHead(shapes[0].channels, len(shapes), quality_topk=min(node.QUALITY_TOPK, node.REG_MAX + 1), **options)
        return {
            "backbone": backbone,
            "head": head,
            "head_in_features": list(node.IN_FEATURES),
            "num_classes": node.NUM_CLASSES,
            "anchor_size": node.ANCHOR_SIZE,
            "atss_topk": node.ATSS_TOPK,
            "loss_weights": (node.CLS_LOSS_WEIGHT, node.BBOX_LOSS_WEIGHT, node.DFL_LOSS_WEIGHT),
            "test_score_thresh": node.SCORE_THRESH_TEST,
            "test_topk_candidates": node.TOPK_CANDIDATES_TEST,
            "test_nms_thresh": node.NMS_THRESH_TEST,
            "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def forward_training(self, images, features, predictions, gt_instances) -> dict[str, Tensor]:
        scores, distributions = self._by_place(predictions)
        sizes = [(feature.shape[-2], feature.shape[-1]) for feature in features]
        anchors = self.anchor_generator(features)
        labels, boxes = self.label_anchors(anchors, sizes, images.image_sizes, gt_instances)
        return self.losses(anchors, torch.cat(scores, dim=1), torch.cat(distributions, dim=1), labels, boxes)

    @torch.no_grad()
    def label_anchors(
        self, anchors: list[Boxes], sizes: Sequence[tuple[int, int]], image_sizes: Sequence[tuple[int, int]], gt_instances: list[Instances]
    ) -> tuple[Tensor, Tensor]:
        """The class (N, R) of each of R anchors in N images, and its object's box (N, R, 4).

        The number of classes means background, -1 a location beyond the image's own padding. ``sizes`` are those of the levels.
        """
        every = Boxes.cat(anchors).tensor
        labels, matched = [], []
        for (height, width), instances in zip(image_sizes, gt_instances):
            inside, per_level = [], []
            for (h, w), stride in zip(sizes, self.strides):
                rows, columns = (math.ceil(math.ceil(side / PADDING) * PADDING / stride) for side in (height, width))
                valid = torch.zeros(h, w, dtype=torch.bool, device=every.device)
                valid[:rows, :columns] = True
                inside.append(valid.flatten())
                per_level.append(min(rows, h) * min(columns, w))
            valid = torch.cat(inside)
            truth = instances.gt_boxes.tensor
            index = torch.full((len(every),), -1, dtype=torch.long, device=every.device)
            index[valid] = atss(every[valid], per_level, truth, self.atss_topk)
            label = torch.where(valid, self.num_classes, -1)
            box = torch.zeros_like(every)
            positive = index >= 0
            label[positive] = instances.gt_classes[index[positive]]
            box[positive] = truth[index[positive]].to(box)
            labels.append(label)
            matched.append(box)
        return torch.stack(labels), torch.stack(matched)

    def losses(self, anchors: list[Boxes], scores: Tensor, distributions: Tensor, labels: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """The losses, in single precision, from (N, R, classes) scores, (N, R, 4 * bins) distributions and what `label_anchors` gives."""
        with torch.autocast(scores.device.type, enabled=False):
            positive = (labels >= 0) & (labels < self.num_classes)
            counts = positive.sum(dim=1)
            get_event_storage().put_scalar("num_pos_anchors", counts.sum().item() / len(labels))
            every = Boxes.cat(anchors).tensor
            stride = torch.cat([every.new_full((len(level),), s) for level, s in zip(anchors, self.strides)])
            centers = (every[:, :2] + every[:, 2:]) / 2 / stride[:, None]

            image, place = positive.nonzero().unbind(dim=1)
            distribution = distributions[image, place].float().reshape(-1, 4, self.head.bins)
            center, truth = centers[place], boxes[image, place] / stride[place, None]
            predicted = boxes_around(center, expected_distance(distribution))
            quality = torch.zeros_like(labels, dtype=torch.float32)
            quality[image, place] = matched_pairwise_iou(Boxes(predicted.detach()), Boxes(truth)).nan_to_num()  # 0 for two empty boxes

            logits = self.head.quality is None
            valid = labels >= 0
            scores = scores.float()
            loss_cls = quality_focal_loss(scores[valid], labels[valid], quality[valid], logits).sum()
            found = scores[image, place].detach()
            weight = (found.sigmoid() if logits else found).max(dim=1).values
            loss_box = (generalized_box_iou_loss(predicted, truth) * weight).sum()
            sides = torch.cat((center - truth[:, :2], truth[:, 2:] - center), dim=1).clamp(min=0, max=self.head.bins - 1 - 0.1)
            loss_dfl = distribution_focal_loss(distribution.flatten(0, 1), sides.flatten()).reshape(-1, 4).mean(dim=1)
            loss_dfl = (loss_dfl * weight).sum()

            sums = torch.stack((counts.clamp(min=1).sum().float(), weight.sum()))
            if torch.is_grad_enabled():  # only in training, where processes share gradients; a loss on test data covers its own images
                sums = differentiable_all_reduce(sums) / comm.get_world_size()
            total, weights = sums
            weights = torch.where(weights > 0, weights, torch.ones_like(weights))  # a lower bound would change the start of training
            return {
                "loss_cls": loss_cls / total.clamp(min=1) * self.loss_weights[0],
                "loss_box_reg": loss_box / weights * self.loss_weights[1],
                "loss_dfl": loss_dfl / weights * self.loss_weights[2],
            }

    def _by_place(self, predictions: list[list[Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
        """The (N, R, classes) scores and (N, R, 4 * bins) distributions of each level, from the head's maps."""
        scores = [permute_to_N_HWA_K(x, self.num_classes) for x in predictions[0]]
        return scores, [permute_to_N_HWA_K(x, 4 * self.head.bins) for x in predictions[1]]

    def forward_inference(self, images: ImageList, features: list[Tensor], predictions: list[list[Tensor]]) -> list[Instances]:
        scores, distributions = self._by_place(predictions)
        anchors = self.anchor_generator(features)
        results: list[Instances] = []
        for i, image_size in enumerate(images.image_sizes):
            results.append(self.inference_single_image(anchors, [x[i] for x in scores], [x[i] for x in distributions], image_size))
        return results

    def inference_single_image(
        self, anchors: list[Boxes], scores: list[Tensor], distributions: list[Tensor], image_size: tuple[int, int]
    ) -> Instances:
        """One image's detections from the (R, classes) and (R, 4 * bins) of each level."""
        boxes: list[Tensor] = []
        kept_scores: list[Tensor] = []
        classes: list[Tensor] = []
        for level, stride in enumerate(self.strides):
            box, score, label = self.decode(anchors[level].tensor, scores[level], distributions[level], float(stride), image_size)
            boxes.append(box)
            kept_scores.append(score)
            classes.append(label)
        found = Instances(image_size, pred_boxes=Boxes(torch.cat(boxes)), scores=torch.cat(kept_scores), pred_classes=torch.cat(classes))
        keep = batched_nms(found.pred_boxes.tensor, found.scores, found.pred_classes, self.test_nms_thresh)
        return found[keep[: self.max_detections_per_image]]

    def decode(
        self, anchors: Tensor, scores: Tensor, distributions: Tensor, stride: float, image_size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(boxes, scores, classes) of a level's best places, clipped to the image, separately for every class above the threshold."""
        scores = scores.float()
        if self.head.quality is None:
            scores = scores.sigmoid()
        places = scores.shape[0]
        # a tensor when traced
        most = torch.clamp(places, max=self.test_topk_candidates) if isinstance(places, Tensor) else min(places, self.test_topk_candidates)
        best = scores.max(dim=1)[0].topk(most)[1]
        scores, anchors = scores[best], anchors[best]
        distance = expected_distance(distributions[best].float().reshape(-1, 4, self.head.bins)) * stride
        boxes = Boxes(boxes_around((anchors[:, :2] + anchors[:, 2:]) / 2, distance))
        boxes.clip(image_size)
        place, label = torch.nonzero(scores > self.test_score_thresh).unbind(dim=1)
        return boxes.tensor[place], scores[place, label], label
