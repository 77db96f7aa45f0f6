"""Untrained detectors with a trained one's workload: norms fit the images, and scores are spread."""

from typing import Any, Callable

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from fvcore.nn.precise_bn import update_bn_stats
from torch import Tensor, nn

from .. import zoo
from ..registry import FAMILIES
from ..swap import use_backbone

# networks to compare: name, and config of the Faster R-CNN
FASTER = {
    "V-19-slim-dw-eSE": "faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml",
    "MobileNetV2": "faster_rcnn_Mv2_FPNLite_3x.yaml",
    "RegNetX-3.2GF": "faster_rcnn_RegNetX_3.2GF_FPN_3x.yaml",
    "V-39-eSE": "faster_rcnn_V_39_FPN_3x.yaml",
    "R-50": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml",
    "R-101": "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
}
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x.yaml"
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"
# detectors to deploy in every way
DEPLOYED = {
    **{name: FASTER[name] for name in ("V-19-slim-dw-eSE", "V-39-eSE", "R-50")},
    "mask_R-50": MASK,
    "retinanet_R-50": RETINANET,
    "gfl_R-50": "COCO-Detection/gfl_R_50_FPN_73e.yaml",
}


def config(name: str, norm: str = "BN", device: str = "cpu") -> CfgNode:
    cfg = zoo.get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT = device, "", 0
    cfg.MODEL.RPN.NMS_THRESH = 1.0  # suppresses nothing: all have 1000 proposals
    for node in ("RESNETS", *map(str.upper, FAMILIES)):
        cfg.MODEL[node].NORM = norm
    return cfg


def detector(name: str, device: str = "cpu", norm: str = "BN") -> Any:
    """The model of a config, in evaluation mode."""
    torch.manual_seed(0)
    model = build_model(config(name, norm, device))
    return _ready(model, model, device)


def _ready(model: Any, call: Callable[[list[dict[str, Any]]], object], device: str) -> Any:
    """Prepares the model in evaluation mode. ``call`` runs it on images in detectron2's format."""
    # set every batch norm to the statistics of noise, so that features neither vanish nor explode
    model.backbone.train()
    with torch.no_grad():
        if any(isinstance(m, nn.BatchNorm2d) for m in model.backbone.modules()):
            update_bn_stats(model.backbone, [torch.randn(2, 3, 256, 320, device=device) * 60 for _ in range(2)], 2)
    model.eval()
    # spread scores like a trained detector's, so that all detectors have equally much to suppress and draw
    for name, module in model.named_modules():
        if not name.endswith(("box_predictor.cls_score", "classification_head.cls_logits", "head.cls_score")):
            continue
        seen: list[Tensor] = []
        hook = module.register_forward_hook(lambda m, args, output: seen.append(output.flatten()))
        with torch.no_grad():
            call(image_for((320, 320), device))
            hook.remove()
            module.weight.mul_(3.0 / torch.cat(seen).std().clamp(min=1e-6))
    return model


def image_for(size: tuple[int, int], device: str = "cpu") -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return [{"image": (torch.rand(3, *size, generator=generator) * 255).to(device), "height": size[0], "width": size[1]}]


def with_timm(config_name: str, timm_name: str, device: str = "cpu") -> Any:
    """A config's detector with a backbone of timm."""
    torch.manual_seed(0)
    cfg = config(config_name, device=device)
    use_backbone(cfg, f"timm/{timm_name}")
    model = build_model(cfg)
    return _ready(model, model, device)


def of_torchvision(kind: str, size: tuple[int, int], device: str = "cpu") -> Callable[[list[dict[str, Any]]], object]:
    """torchvision's detector of ``kind``, called like detectron2's, without resizing."""
    from torchvision.models import detection, regnet_x_3_2gf
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    torch.manual_seed(0)
    options = {"min_size": min(size), "max_size": max(size), **({"rpn_nms_thresh": 1.0} if "rcnn" in kind else {"detections_per_img": 100})}
    if kind == "fasterrcnn_regnet_x_3_2gf_fpn":
        body = regnet_x_3_2gf(weights=None)
        trunk = nn.Sequential(body.stem, *body.trunk_output)
        layers, channels = {"1": "0", "2": "1", "3": "2", "4": "3"}, [96, 192, 432, 1008]
        model = detection.FasterRCNN(BackboneWithFPN(trunk, layers, channels, 256, LastLevelMaxPool()), 81, **options)
    else:
        classes = 81 if "rcnn" in kind else 80
        model = getattr(detection, kind)(weights=None, weights_backbone=None, num_classes=classes, **options)
    model = model.to(device)

    def call(inputs: list[dict[str, Any]]) -> object:
        return model([x["image"] / 255 for x in inputs])

    _ready(model, call, device)
    return call
