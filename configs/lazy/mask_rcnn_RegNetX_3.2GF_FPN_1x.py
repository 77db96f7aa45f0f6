# A Python config of detectron2 with another network
from backbones import use_backbone, zoo

cfg = zoo.get_lazy_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py")
use_backbone(cfg, "RegNetX-3.2GF")
dataloader, lr_multiplier, model, optimizer, train = (cfg[key] for key in ("dataloader", "lr_multiplier", "model", "optimizer", "train"))
del cfg

optimizer.weight_decay = 5e-5
train.output_dir = "output/lazy_mask_rcnn_RegNetX_3.2GF_FPN_1x"
