"""Which key of Python configs corresponds to which YAML key: one row per key."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

# YAML key -> key of Python configs; those under "train." may be missing in a config: the default of the YAML key then applies
KEYS = {
    "OUTPUT_DIR": "train.output_dir",
    "SEED": "train.seed",
    "MODEL.DEVICE": "train.device",
    "MODEL.WEIGHTS": "train.init_checkpoint",
    "MODEL.WEIGHTS_CLASSES": "train.weights_classes",
    "MODEL.ACTIVATIONS": "train.activations",
    "MODEL.COMPILE": "train.compile",
    "MODEL.MEMORY_FORMAT": "train.memory_format",
    "MODEL_EMA.ENABLED": "train.model_ema.enabled",
    "MODEL_EMA.DECAY": "train.model_ema.decay",
    "SOLVER.MAX_ITER": "train.max_iter",
    "SOLVER.ACCUMULATE": "train.accumulate",
    "SOLVER.REFERENCE_BATCH": "train.reference_batch",
    "SOLVER.AMP.ENABLED": "train.amp.enabled",
    "SOLVER.AMP.PRECISION": "train.amp.precision",
    "SOLVER.CHECKPOINT_PERIOD": "train.checkpointer.period",
    "TEST.EVAL_PERIOD": "train.eval_period",
    "TEST.BEST_METRIC": "train.best_metric",
    "TEST.PATIENCE": "train.patience",
    "TEST.LOSS": "train.validation_loss",
    "TEST.PICTURES": "train.pictures",
    "TEST.COCO_EVALUATOR": "train.coco_evaluator",
    "TEST.PRECISE_BN.ENABLED": "train.precise_bn.enabled",
    "TEST.PRECISE_BN.NUM_ITER": "train.precise_bn.num_iter",
    "TEST.AUG.ENABLED": "train.augmented_test.enabled",
    "TEST.AUG.MIN_SIZES": "train.augmented_test.min_sizes",
    "TEST.AUG.MAX_SIZE": "train.augmented_test.max_size",
    "TEST.AUG.FLIP": "train.augmented_test.flip",
    "TRACKING.WANDB": "train.tracking.wandb",
    "TRACKING.MLFLOW": "train.tracking.mlflow",
    "INPUT.NORMALIZATION": "train.normalization",
    "INPUT.UNREADABLE": "train.unreadable",
    "INPUT.EXIF": "train.exif",
    "INPUT.VALUE_RANGE": "train.value_range",
    "INPUT.MAX_PIXELS": "train.max_pixels",
    "DATASETS.REGISTER": "train.register",
    "DATASETS.HOLD_OUT": "train.hold_out",
    "DATASETS.CLASSES": "train.classes",
    "DATASETS.CROWDS": "train.crowds",
    "DATASETS.NO_MASK": "train.no_mask",
    "DATASETS.BOX_FORMAT": "train.box_format",
    "DATASETS.KEYPOINTS": "train.keypoints",
    "DATASETS.KEYPOINT_FLIPS": "train.keypoint_flips",
    "DATASETS.TRAIN": "dataloader.train.dataset.names",
    "DATASETS.TEST": "dataloader.test.dataset.names",
    "DATALOADER.NUM_WORKERS": "dataloader.train.num_workers",
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": "dataloader.train.dataset.filter_empty",
    "MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE": "dataloader.train.dataset.min_keypoints",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "model.roi_heads.keypoint_head.num_keypoints",
    "INPUT.MASK_FORMAT": "dataloader.train.mapper.instance_mask_format",
    "SOLVER.IMS_PER_BATCH": "dataloader.train.total_batch_size",
    "SOLVER.BASE_LR": "optimizer.lr",
    "SOLVER.MOMENTUM": "optimizer.momentum",
    "SOLVER.WEIGHT_DECAY": "optimizer.weight_decay",
    "SOLVER.WARMUP_ITERS": "lr_multiplier.warmup_length",
    "TEST.KEYPOINT_OKS_SIGMAS": "dataloader.evaluator.kpt_oks_sigmas",
    "INPUT.FORMAT": "model.input_format",
    "MODEL.PIXEL_MEAN": "model.pixel_mean",
    "MODEL.PIXEL_STD": "model.pixel_std",
    "MODEL.ROI_HEADS.NUM_CLASSES": "model.roi_heads.num_classes",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "model.roi_heads.box_predictor.test_score_thresh",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "model.roi_heads.box_predictor.test_nms_thresh",
    "TEST.DETECTIONS_PER_IMAGE": "model.roi_heads.box_predictor.test_topk_per_image",
    "MODEL.RETINANET.NUM_CLASSES": "model.num_classes",
    "MODEL.GFL.NUM_CLASSES": "model.num_classes",
    "MODEL.RETINANET.SCORE_THRESH_TEST": "model.test_score_thresh",
    "MODEL.GFL.SCORE_THRESH_TEST": "model.test_score_thresh",
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": "model.sem_seg_head.num_classes",
    "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH": "model.combine_instances_score_thresh",
}
# what `train` may have: these, their sections, and what detectron2 reads
TRAIN = {place.removeprefix("train.") for place in KEYS.values() if place.startswith("train.")}
TRAIN |= {"checkpointer.max_to_keep", "cudnn_benchmark", "ddp", "float32_precision", "log_period"}
SECTIONS = {name.partition(".")[0] for name in TRAIN if "." in name}
# values whose type is not that of the YAML key
FRACTIONS, NAMES = ("SOLVER.WARMUP_ITERS",), ("DATASETS.TRAIN", "DATASETS.TEST")
LISTS = (*NAMES, "INPUT.MIN_SIZE_TRAIN")


def places(cfg: DictConfig) -> dict[str, str]:
    """`KEYS` for a config: with the sizes that images are resized to, with the keys of its kind of head, and with the mapper's order of
    channels if the model states none.
    """
    sizes = {
        f"INPUT.{side}_SIZE_{split.upper()}": f"dataloader.{split}.mapper.augmentations.{i}.{argument}"
        for split in ("train", "test")
        for i, node in enumerate(OmegaConf.select(cfg, f"dataloader.{split}.mapper.augmentations") or ())
        if isinstance(node, DictConfig) and "short_edge_length" in node
        for side, argument in (("MIN", "short_edge_length"), ("MAX", "max_size"))
    }
    heads: Any = cfg.model.get("roi_heads")
    found = {} if heads is not None else {"TEST.DETECTIONS_PER_IMAGE": "model.max_detections_per_image"}
    if isinstance(heads, DictConfig) and heads.get("box_predictors"):  # those of Cascade R-CNN, whose last one decides
        last = f"box_predictors.{len(heads.box_predictors) - 1}."
        found = {key: place.replace("box_predictor.", last) for key, place in KEYS.items() if ".box_predictor." in place}
    stated = "input_format" in cfg.model and cfg.model.input_format is not None
    return {**KEYS, **sizes, **found, **({} if stated else {"INPUT.FORMAT": "dataloader.test.mapper.image_format"})}
