"""Untrained detectors that find things: their norms know the images, and their predictions spread as trained ones' do."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

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
