"""Every family in every kind of detector: builds, trains every weight, and takes images of odd sizes."""

import itertools

import pytest
import torch
from choices import SMALLEST, cases, turns
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints
from detectron2.utils.events import EventStorage

from backbones import use_backbone, zoo
from backbones.registry import FAMILIES

KINDS = {
    "Faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "Mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "Keypoint": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "Panoptic": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "RetinaNet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "GFLV2": "COCO-Detection/gfl_R_50_FPN_73e.yaml",
    "Cascade": "Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml",
    "C4": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml",
    "DC5": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x.yaml",
}
# each kind with a network, each network with a kind or two, and all of them where the network's last stage is the detector's head
TRIED = {*turns(list(KINDS), SMALLEST), *itertools.product(["C4"], SMALLEST)}


def image(height: int, width: int, **targets) -> dict:
    return {"image": torch.rand(3, height, width) * 255, "height": height, "width": width, **targets}


def with_truth(height: int, width: int, boxes) -> dict:
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes)
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.long)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = [(columns >= b[0]) & (columns < b[2]) & (rows >= b[1]) & (rows < b[3]) for b in boxes]
    instances.gt_masks = BitMasks(torch.stack(inside) if inside else torch.zeros(0, height, width))
    points = torch.stack([(boxes[:, 0::2].mean(1)), boxes[:, 1::2].mean(1), torch.full((len(boxes),), 2.0)], dim=1)
    instances.gt_keypoints = Keypoints(points[:, None].repeat(1, 17, 1))
    return image(height, width, instances=instances, sem_seg=torch.randint(0, 54, (height, width)))


@pytest.mark.slow
@pytest.mark.parametrize("kind, name", cases(itertools.product(KINDS, SMALLEST), TRIED))
def test_every_weight_is_trained(kind, name):
    cfg = zoo.get_config(KINDS[kind])
    use_backbone(cfg, name)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL[next(f for f in FAMILIES.values() if name in f.specs).name.upper()].NORM = "BN"
    cfg.INPUT.MASK_FORMAT = "bitmask"
    # few regions and a thin box head, as heads take most of the time
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 64
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 8, 20, 5
    model = build_model(cfg).train()
    batch = [with_truth(75, 101, [[5, 5, 60, 50], [40, 20, 95, 70]]), with_truth(64, 90, [[10, 10, 40, 60]]), with_truth(70, 64, [])]
    with EventStorage():
        losses = model(batch)
    total = sum(losses.values())
    assert total.isfinite(), losses
    total.backward()
    untouched = [key for key, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())]
    assert not untouched
    backbone = [p.grad.abs().max() for key, p in model.named_parameters() if key.startswith(("backbone.", "roi_heads.res5."))]
    assert all(largest > 0 for largest in backbone)
    model.eval()
    for height, width in ((61, 97), (33, 130)):
        with torch.no_grad():
            result = model([image(height, width)])[0]
        instances = result["instances"]
        assert instances.image_size == (height, width) and instances.scores.isfinite().all()
        if kind == "Panoptic":
            assert result["sem_seg"].shape[1:] == result["panoptic_seg"][0].shape == (height, width)
