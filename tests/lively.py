"""Untrained detectors that find things: their norms know the images, and their predictions spread as trained ones' do."""

import copy
import functools

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from fvcore.nn.precise_bn import update_bn_stats
from test_matrix import KINDS
from torch import nn

from backbones import use_backbone, zoo

# the deviation that the outputs of a detector's last layers are brought to, by their names
DEVIATIONS = {
    "objectness_logits": 2.0,
    "anchor_deltas": 0.3,
    "cls_score": 3.0,
    "bbox_pred": 0.3,
    "gfl_cls": 3.0,
    "mask_head.predictor": 3.0,
    "score_lowres": 3.0,
    "sem_seg_head.predictor": 3.0,
}


def lively_model(cfg: CfgNode, image: torch.Tensor) -> nn.Module:
    """The model of ``cfg``, in evaluation mode, brought to life on an image (3, H, W)."""
    torch.manual_seed(0)
    model = build_model(cfg)
    inputs = [{"image": image, "height": image.shape[1], "width": image.shape[2]}]
    images = ImageList.from_tensors([(image - model.pixel_mean) / model.pixel_std], model.backbone.size_divisibility).tensor
    model.backbone.train()
    with torch.no_grad():
        if any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules()):
            update_bn_stats(model.backbone, [images] * 2, 2)
    model.eval()
    with torch.no_grad():
        for name, module in model.named_modules():
            wanted = next((value for key, value in DEVIATIONS.items() if name.endswith(key)), None)
            if wanted is None or not hasattr(module, "weight"):
                continue
            seen = []
            hook = module.register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.flatten()))
            model(inputs)
            hook.remove()
            deviation = torch.cat(seen).std() if seen else torch.tensor(0.0)
            if deviation > 0:
                module.weight.mul_(wanted / deviation)
            if name.endswith("head.cls_score") and module.bias is not None:
                module.bias.fill_(-4.0)
    return model


MORE_KINDS = {
    **KINDS,
    "RPN": "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "MMDetRetinaNet": "retinanet_RegNetX_800MF_FPN_1x.yaml",
    "MMDetRPN": "faster_rcnn_RegNetX_3.2GF_FPN_1x.yaml",
}
WIDTH = 64


def photo() -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return np.ascontiguousarray(load_sample_image("china.jpg")[::2, ::2, ::-1])


def small_config(kind: str, backbone: str = "V-19-slim-dw-eSE"):
    cfg = zoo.get_config(MORE_KINDS[kind])
    use_backbone(cfg, backbone, own_weights=True)
    cfg.MODEL.VOVNET.NORM = cfg.MODEL.MOBILENETV2.NORM = cfg.MODEL.REGNET.NORM = "BN"
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_STD = "cpu", "", [1.0, 1.0, 1.0]
    if not kind.startswith("MMDet"):  # heads are the same code however wide they are; of those, random weights make more near ties then
        cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = WIDTH
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = (WIDTH, WIDTH), 4 * WIDTH
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 60, 30
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 160, 320
    return cfg


def alive(kind: str, backbone: str = "V-19-slim-dw-eSE"):
    """(config, image, model, and what it finds), to change as one likes"""
    return copy.deepcopy(_alive(kind, backbone))


@functools.lru_cache(maxsize=8)
def _alive(kind: str, backbone: str):
    cfg, image = small_config(kind, backbone), photo()
    x = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    model = lively_model(cfg, x)
    return cfg, image, model, [{"image": x, "height": x.shape[1], "width": x.shape[2]}]


def boxes_of(result) -> dict:
    found = result["instances"] if "instances" in result else result["proposals"]
    names = {"pred_boxes": "boxes", "proposal_boxes": "boxes", "scores": "scores", "pred_classes": "classes"}
    fields = {names[k]: v for k, v in found.get_fields().items() if k in names}
    return {k: v if isinstance(v, torch.Tensor) else v.tensor for k, v in fields.items()}
