# GFLV2 as a Python config, written out; any network fits. The settings are those of COCO-Detection/gfl_MAE_DET_S_FPN_3x.yaml
from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import FPN
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

from backbones import create, zoo
from backbones.detectors.gfl import GFL, GFLHead
from backbones.fpn import P6P7

base = zoo.get_lazy_config("COCO-Detection/retinanet_R_50_FPN_1x.py")
dataloader, optimizer, train = (base[key] for key in ("dataloader", "optimizer", "train"))
del base

model = L(GFL)(
    backbone=L(FPN)(
        bottom_up=L(create)(name="MAE-DET-S", out_features=("res3", "res4", "res5"), norm="SyncBN"),
        in_features=["res3", "res4", "res5"],
        out_channels=192,
        top_block=L(P6P7)(in_channels="${..out_channels}", out_channels="${..out_channels}", in_feature="p5", relu=False),
    ),
    head=L(GFLHead)(in_channels="${..backbone.out_channels}", num_levels=5, num_classes="${..num_classes}"),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    num_classes=80,
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.use_instance_mask = False
resize = dataloader.train.mapper.augmentations[0]
resize.short_edge_length, resize.sample_style = (480, 960), "range"
del resize

optimizer.lr = 0.02
optimizer.params.weight_decay_norm = 0.0001
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(values=[1.0, 0.1, 0.01], milestones=[210000, 250000, 270000]),
    warmup_length=7330 / 270000,
    warmup_factor=0.1,
)
train.max_iter = 270000
train.init_checkpoint = ""
train.output_dir = "output/lazy_gfl_MAE_DET_S_FPN_3x"
