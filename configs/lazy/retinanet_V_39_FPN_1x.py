# RetinaNet with V-39 as a Python config, written out. Any network of `backbones.list_backbones()` is `L(create)(name=...)`, with the options
# of its class
from detectron2.config import LazyCall as L

from backbones import create, zoo

base = zoo.get_lazy_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
dataloader, lr_multiplier, model, optimizer, train = (base[key] for key in ("dataloader", "lr_multiplier", "model", "optimizer", "train"))
del base

model.backbone.bottom_up = L(create)(name="V-39-eSE", out_features=("stage3", "stage4", "stage5"), norm="FrozenBN", freeze_at=2)
model.backbone.in_features = ["stage3", "stage4", "stage5"]
model.backbone.top_block.in_feature, model.backbone.top_block.in_channels = "stage5", 1024
train.init_checkpoint, train.normalization = "backbones://V-39-eSE", "weights"
train.output_dir = "output/lazy_retinanet_V_39_FPN_1x"
