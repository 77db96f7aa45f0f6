"""Every config key of this project, and those of detectron2's whose values are checked: one row a key."""

import copy
import math
from typing import Any, Callable, Collection, Iterator, NamedTuple

from detectron2 import modeling
from detectron2.config import CfgNode
from fvcore.common.registry import Registry

from ..errors import UserError, unknown
from ..lean import ACTIVATIONS
from ..solver import CLIP_TYPES, LR_SCHEDULERS

THEIRS = object()  # in place of a default: the key is detectron2's, with a default of its own


class Key(NamedTuple):
    """One config key: its dotted name, default, meaning, and which values it takes."""

    name: str
    default: Any
    text: str
    allowed: Collection[Any] | Callable[[], Collection[Any]] = ()  # empty: not from a list
    least: float | None = None
    test: tuple[Callable[[Any], bool], str] | None = None  # of a value, and what it must be in words

    def error(self, value: Any) -> UserError | None:
        """What is wrong with a value, or None."""
        allowed = self.allowed() if callable(self.allowed) else self.allowed
        if allowed and value not in allowed:
            return unknown(self.name, value, allowed, self.name)
        if self.least is not None and value < self.least:
            return UserError(f"{self.name} is {value}: it must be at least {self.least}", "value", self.name, self.least)
        if self.test and not self.test[0](value):
            return UserError(f"{self.name} is {value}: it must be {self.test[1]}", "value", self.name, self.default)
        return None


def _shared(node: str, features: list[str]) -> Iterator[Key]:
    """The options that all families of backbones have; named as detectron2 names them for ResNet."""
    yield Key(f"{node}.OUT_FEATURES", features, "stages that give features; stem can too")
    yield Key(f"{node}.NORM", "FrozenBN", 'any of layers.NORMS; "" is none; "EvalBN" fixes the statistics and trains the rest')
    yield Key(f"{node}.DEFORM_ON_PER_STAGE", [False] * 4, "deformable convolutions in the stages at strides 4, 8, 16, 32")
    yield Key(f"{node}.DEFORM_MODULATED", False, "version 2 of them: a learned weight for each sampling point")
    yield Key(f"{node}.DEFORM_NUM_GROUPS", 1, "groups of their offsets")
    yield Key(f"{node}.RES5_DILATION", 1, "2: the last stage has stride 16 and dilated convolutions (DC5)")


def _registered(registry: Registry, *others: str) -> Callable[[], list[str]]:
    return lambda: [*sorted(name for name, _ in registry), *others]


def _is_part(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(part, (int, float)) for part in value) and 0 < value[0] <= value[1] <= 1


def _is_range(value: Any) -> bool:
    return len(value) == 2 and all(type(part) in (int, float) for part in value) and -math.inf < value[0] < value[1] < math.inf


_SIZE = (lambda v: len(v) == 2 and all(type(side) is int and side >= 1 for side in v), "a height and a width in pixels")
_RANGE = (lambda v: not v or _is_range(v), "[] or a lowest and a higher value")
_PART = (_is_part, "the least and the most part of an image, from 0 to 1")
_SIDES = (lambda v: isinstance(v, int) or len(v) > 0 and all(type(s) is int and s >= 0 for s in v), "one or more whole numbers of pixels")
_NO_MASK = ("stop", "box", "skip")
_MAPPERS = ("detectron2", "exact", "fast")
_RES = ["res2", "res3", "res4", "res5"]
_DDP = ("STATIC_GRAPH", "GRADIENT_AS_BUCKET_VIEW", "FP16_COMPRESSION")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
_SAMPLERS = ("", "RepeatFactor", "RandomSubset", "Weighted", "WeightedCategory")

KEYS: tuple[Key, ...] = (
    Key("MODEL.VOVNET.CONV_BODY", "V-39-eSE", 'any of list_backbones("V-*")'),
    Key("MODEL.VOVNET.ESE", "all", 'blocks with an eSE gate: "all" (the released weights) or the "last" of each stage (timm)'),
    Key("MODEL.VOVNET.OUT_CHANNELS", 256, "of vovnet-detectron2, without effect there and here: MODEL.FPN.OUT_CHANNELS sets the width"),
    Key("MODEL.VOVNET.BACKBONE_OUT_CHANNELS", 256, "likewise"),
    *_shared("MODEL.VOVNET", ["stage2", "stage3", "stage4", "stage5"]),
    *_shared("MODEL.MOBILENETV2", []),  # none: as MODEL.RESNETS.OUT_FEATURES says
    Key("MODEL.REGNET.NAME", "RegNetX-3.2GF", 'any of list_backbones("RegNet*"), or "" for the network of the numbers below'),
    Key("MODEL.REGNET.DEPTH", 0, "number of blocks"),
    Key("MODEL.REGNET.W0", 0, "width of the first block"),
    Key("MODEL.REGNET.WA", 0.0, "growth of the width from block to block"),
    Key("MODEL.REGNET.WM", 0.0, "ratio of the widths of neighbouring stages"),
    Key("MODEL.REGNET.GROUP_WIDTH", 0, "channels of a group"),
    Key("MODEL.REGNET.SE_RATIO", 0.0, "width of squeeze-excitation, as a part of the block's input width; 0: none"),
    Key("MODEL.REGNET.ROUNDING", "pycls", 'of widths to whole groups; "torchvision" for its X-400MF, Y-800MF and Y-8.0GF'),
    *_shared("MODEL.REGNET", _RES),
    Key("MODEL.MAEDET.NAME", "MAE-DET-M", 'any of list_backbones("MAE-DET-*")'),
    Key("MODEL.MAEDET.STRUCTURE", "", "a structure file, used instead of NAME; a relative path in a config starts at the config or here"),
    Key("MODEL.MAEDET.WIDTH", 1.0, "factor of all widths, which are rounded to multiples of 8"),
    *_shared("MODEL.MAEDET", _RES),
    Key("MODEL.SHUFFLENETV2.NAME", "DetNAS-300M", 'any of list_backbones("DetNAS-*")'),
    Key("MODEL.SHUFFLENETV2.CHOICES", [], "0 to 3 for every block (shufflenetv2.CHOICES), used instead of those of NAME"),
    Key("MODEL.SHUFFLENETV2.SUBNET", "", "a file of choices: ours, MMRazor's or a list; relative paths as for MODEL.MAEDET.STRUCTURE"),
    Key("MODEL.SHUFFLENETV2.SUPERNET", False, "all choices at once, to be trained for a search"),
    Key(
        "MODEL.SHUFFLENETV2.SAMPLING",
        "uniform",
        "of a supernet's paths; fair: of four, each choice of a block once",
        ("uniform", "fair"),
    ),
    Key("MODEL.SHUFFLENETV2.SPLIT", "", 'how blocks split channels, one of shufflenetv2.SPLITS; "": as the released network of NAME'),
    Key("MODEL.SHUFFLENETV2.SHUFFLE", "", 'how blocks shuffle channels, one of shufflenetv2.SHUFFLES; "": as the network of NAME'),
    Key("MODEL.SHUFFLENETV2.WIDTH", 1.0, "factor of all widths, which are rounded to multiples of 4"),
    *_shared("MODEL.SHUFFLENETV2", _RES),
    Key("MODEL.TIMM.NAME", "timm/resnet50", 'any of list_backbones("timm/*"), with or without the tag of its weights'),
    Key("MODEL.TIMM.DROP_PATH", 0.0, "rate of stochastic depth in training", (), 0, (lambda v: v < 1, "below 1")),
    *_shared("MODEL.TIMM", _RES),
    # the meta-architecture GFL; keys that RetinaNet has too are named as detectron2 names RetinaNet's
    Key("MODEL.GFL.NUM_CLASSES", 80, "number of classes", least=1),
    Key("MODEL.GFL.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], "features that the head looks at"),
    Key("MODEL.GFL.NUM_CONVS", 4, "convolutions of each tower", least=0),
    Key("MODEL.GFL.NORM", "GN", "norm of the towers"),
    Key("MODEL.GFL.REG_MAX", 16, "largest distance to a side of the box, in strides; its distribution has one bin more than that", least=1),
    Key("MODEL.GFL.QUALITY", True, "True (GFLV2): the shape of the distributions scales the scores; False: plain GFL"),
    Key("MODEL.GFL.QUALITY_TOPK", 4, "largest bins of each side, beside their mean, that describe the shape", least=1),
    Key("MODEL.GFL.QUALITY_CHANNELS", 64, "width of the layers that judge the shape", least=1),
    Key("MODEL.GFL.ANCHOR_SIZE", 8.0, "side of the one square anchor at each place, in strides", least=0.1),
    Key("MODEL.GFL.ATSS_TOPK", 9, "candidates for each object on each level", least=1),
    Key("MODEL.GFL.PRIOR_PROB", 0.01, "class scores at the start", test=(lambda v: 0 < v < 1, "above 0 and below 1")),
    Key("MODEL.GFL.CLS_LOSS_WEIGHT", 1.0, "factor of the classes' loss"),
    Key("MODEL.GFL.BBOX_LOSS_WEIGHT", 2.0, "factor of the boxes' loss"),
    Key("MODEL.GFL.DFL_LOSS_WEIGHT", 0.25, "factor of the distributions' loss"),
    Key("MODEL.GFL.SCORE_THRESH_TEST", 0.05, "lowest score of a detection"),
    Key("MODEL.GFL.TOPK_CANDIDATES_TEST", 1000, "places of each level that are looked at in inference, those of the best scores", least=1),
    Key("MODEL.GFL.NMS_THRESH_TEST", 0.6, "largest overlap of two detections of a class"),
    # search.one_shot
    Key("ONE_SHOT.GENERATIONS", 20, "rounds of evolution", least=1),
    Key("ONE_SHOT.POPULATION", 50, "paths in each round", least=1),
    Key("ONE_SHOT.PARENTS", 10, "the best paths, of which others are made", least=1),
    Key("ONE_SHOT.MUTATIONS", 20, "paths of a round that are made by mutation", least=0),
    Key("ONE_SHOT.CROSSOVERS", 20, "paths of a round that are made by crossover", least=0),
    Key("ONE_SHOT.MUTATION_PROB", 0.1, "probability that a block is mutated", (), 0, (lambda v: v <= 1, "at most 1")),
    Key("ONE_SHOT.COST", "macs", "of the backbone, what is limited; latency in seconds on MODEL.DEVICE", ("macs", "parameters", "latency")),
    Key("ONE_SHOT.RUNTIME", "eager", "how a path is to run, for its latency: any of search.runtimes.RUNTIMES"),
    Key("ONE_SHOT.COST_SIZE", [224, 224], "image for macs and latency", test=_SIZE),
    Key("ONE_SHOT.MIN_COST", 0.0, "least cost of a path"),
    Key("ONE_SHOT.MAX_COST", 3.0e8, "highest cost of a path"),
    Key("ONE_SHOT.DATASET", "", "data set that paths are evaluated on, such as NAME_held_out"),
    Key("ONE_SHOT.METRIC", "bbox/AP", "figure that paths are ranked by"),
    Key("ONE_SHOT.CALIBRATION_IMAGES", 4000, "images of DATASETS.TRAIN that the batch norms of each path see first", least=1),
    Key("ONE_SHOT.CALIBRATION_BATCH", 8, "so many of them at once", least=1),
    # the meta-architecture ImageClassifier
    Key("MODEL.CLASSIFIER.NUM_CLASSES", 1000, "number of classes", least=1),
    Key("MODEL.CLASSIFIER.CHANNELS", 0, "width of a 1x1 convolution behind the backbone; 0: none", least=0),
    Key("MODEL.CLASSIFIER.NORM", "BN", "norm of that convolution"),
    Key("MODEL.CLASSIFIER.DROPOUT", 0.0, "part of the features that is dropped in training"),
    Key("MODEL.CLASSIFIER.LABEL_SMOOTHING", 0.0, "part of each label that is spread over all classes"),
    Key("INPUT.CLASSIFICATION.SIZE", 224, "sides of its images in pixels", least=1),
    Key("INPUT.CLASSIFICATION.RESIZE", 256, "shorter side in evaluation, before the middle is taken"),
    Key("INPUT.CLASSIFICATION.SCALE", [0.08, 1.0], "part of an image's area that is taken in training", test=_PART),
    Key("INPUT.CLASSIFICATION.COLOR_JITTER", 0.4, "how far colours change in training", least=0),
    # features and memory
    Key("MODEL.FPN.P6_INPUT", "c5", 'what P6 is made of: "c5", the backbone\'s last feature, or "p5", the FPN\'s output', ("c5", "p5")),
    Key("MODEL.FPN.P6_RELU", True, "a ReLU between P6 and P7, which detectron2's RetinaNet has and MMDetection's has not"),
    # "lean" keeps no concatenations nor inputs of frozen norms: the same gradients; "inputs" keeps those of blocks, which are computed again
    Key("MODEL.ACTIVATIONS", "all", 'kept for the backward pass; "lean" takes less memory; "inputs" still less, and more time', ACTIVATIONS),
    Key("MODEL.MEMORY_FORMAT", "contiguous", "channels_last is faster on most CPUs, and on GPUs with AMP", ("contiguous", "channels_last")),
    Key("MODEL.COMPILE", False, "the backbone is compiled in training, by torch.compile; with --optimize backbone and heads"),
    # training
    Key(
        "MODEL.WEIGHTS_CLASSES", "", "classes of MODEL.WEIGHTS, if the file does not name them: a data set's name, or names with commas between"
    ),
    Key("SOLVER.AMP.PRECISION", "float16", "of the fast operations under AMP", ("float16", "bfloat16")),
    Key("SOLVER.FUSED", False, "the optimizer's step as one kernel, which rounds in another order"),
    Key("SOLVER.ACCUMULATE", 1, "parts that the images of a step are split into, worked on one after the other", least=1),
    Key("SOLVER.REFERENCE_BATCH", 0, "IMS_PER_BATCH that BASE_LR is for: with another it is scaled in proportion; 0: never", least=0),
    Key("MODEL_EMA.ENABLED", False, "an average of the weights over training, which evaluations then use"),
    Key("MODEL_EMA.DECAY", 0.9998, "how much of it stays in a step", test=(lambda v: 0 <= v < 1, "at least 0 and below 1")),
    *(Key(f"SOLVER.DDP.{option}", False, "option of torch's DistributedDataParallel") for option in _DDP),
    Key("TEST.COCO_EVALUATOR", "fastest", "faster-coco-eval where installed, or detectron2's: the same figures", ("fastest", "detectron2")),
    Key(
        "TEST.BEST_METRIC",
        "auto",
        'figure, as "bbox/AP", whose best checkpoint is kept; "auto": AP of masks, else keypoints, else boxes; PQ, mIoU, top-1; "": none',
    ),
    Key("TEST.PATIENCE", 0, "evaluations without a better figure after which training ends; 0: it does not", least=0),
    Key("TEST.LOSS", False, "each evaluation in training also gives the losses on the test data"),
    Key("TEST.PICTURES", 4, "test images with detections that each evaluation in training draws, in OUTPUT_DIR/pictures", least=0),
    Key("TRACKING.WANDB", "", "project of Weights & Biases that figures go to"),
    Key("TRACKING.MLFLOW", "", "experiment of MLflow that figures go to"),
    # data
    Key(
        "INPUT.NORMALIZATION",
        "config",
        'whose INPUT.FORMAT, MODEL.PIXEL_MEAN and PIXEL_STD count: the "config", or the "weights" if they say; setting one means "config"',
        ("config", "weights"),
    ),
    Key("INPUT.UNREADABLE", "stop", 'images that cannot be read: "stop" at the first, or "skip", and count and name them', ("stop", "skip")),
    Key("INPUT.EXIF", "turn", 'EXIF tags that ask for a turn: "ignore" them if annotations are of the unturned pixels', ("turn", "ignore")),
    Key("INPUT.VALUE_RANGE", [], "[low, high]: values of 16-bit grey images that become 0 and 255; []: such images are refused", test=_RANGE),
    Key("INPUT.MAX_PIXELS", 0, "most pixels of an image, for larger ones than Pillow takes for safe; 0: Pillow's limit", least=0),
    Key("INPUT.MAPPER", "detectron2", 'maker of examples; "exact": the same faster; "fast": pixels differ by one level', _MAPPERS),
    Key("DATASETS.REGISTER", [], "own data, [name, annotations, image folder] each; DATASETS.TRAIN and TEST then name them"),
    Key("DATASETS.CLASSES", [], "names of the model's classes, by which own data match theirs; []: those of the first data to train on"),
    Key("DATASETS.CROWDS", "ignore", 'own objects marked as crowds: "ignore", or "objects" that are learnt', ("ignore", "objects")),
    Key(
        "DATASETS.NO_MASK", "stop", "own objects without a mask where masks are learnt: an error, their box as the mask, or left out", _NO_MASK
    ),
    Key("DATASETS.BOX_FORMAT", "xywh", 'of own boxes: COCO\'s x, y, width, height, or "xyxy", corners', ("xywh", "xyxy")),
    Key("DATASETS.KEYPOINTS", [], "names of the model's keypoints; []: those of the data"),
    Key("DATASETS.KEYPOINT_FLIPS", [], "[left, right] each: keypoints that change places in a flipped image; []: found by their names"),
    Key(
        "DATASETS.HOLD_OUT",
        [],
        "[name, number of images, or below 1 a part] each: gives NAME_held_out, so many of them, and NAME_kept, the others",
    ),
    Key("DATASETS.IMAGE_FOLDERS", [], "for classification, [name, folder] each; the folder's own folders are the classes"),
    # detectron2's own
    Key("INPUT.FORMAT", THEIRS, "channel order of images", ("BGR", "RGB", "L", "YUV-BT.601")),
    Key("INPUT.MIN_SIZE_TRAIN", THEIRS, "shorter sides that training images are resized to", test=_SIDES),
    Key("INPUT.MIN_SIZE_TRAIN_SAMPLING", THEIRS, "one of those sides, or any between two", ("choice", "range")),
    Key("INPUT.RANDOM_FLIP", THEIRS, "how training images are mirrored", ("none", "horizontal", "vertical")),
    Key("INPUT.CROP.TYPE", THEIRS, "what INPUT.CROP.SIZE is", ("relative_range", "relative", "absolute", "absolute_range")),
    Key("TEST.AUG.MIN_SIZES", THEIRS, "shorter sides of test-time augmentation", test=_SIDES),
    Key("INPUT.MASK_FORMAT", THEIRS, "what masks are kept as", ("polygon", "bitmask")),
    Key("SOLVER.LR_SCHEDULER_NAME", THEIRS, "schedule of the learning rate", LR_SCHEDULERS),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", THEIRS, "what of gradients is clipped", CLIP_TYPES),
    *(Key(f"MODEL.{node}.BBOX_REG_LOSS_TYPE", THEIRS, "loss of boxes", _BOX_LOSSES) for node in ("RPN", "ROI_BOX_HEAD", "RETINANET")),
    Key("DATALOADER.SAMPLER_TRAIN", THEIRS, "how training images are drawn", tuple(f"{name}TrainingSampler" for name in _SAMPLERS)),
    *(Key(f"MODEL.ROI_{part}_HEAD.POOLER_TYPE", THEIRS, "pooling of features", _POOLERS) for part in ("BOX", "MASK", "KEYPOINT")),
    Key("MODEL.META_ARCHITECTURE", THEIRS, "the detector's class", _registered(modeling.META_ARCH_REGISTRY)),
    Key("MODEL.BACKBONE.NAME", THEIRS, "builder of the backbone", _registered(modeling.BACKBONE_REGISTRY)),
    Key("MODEL.ANCHOR_GENERATOR.NAME", THEIRS, "class", _registered(modeling.ANCHOR_GENERATOR_REGISTRY)),
    Key("MODEL.PROPOSAL_GENERATOR.NAME", THEIRS, "class", _registered(modeling.PROPOSAL_GENERATOR_REGISTRY, "PrecomputedProposals")),
    Key("MODEL.RPN.HEAD_NAME", THEIRS, "class", _registered(modeling.RPN_HEAD_REGISTRY)),
    Key("MODEL.ROI_HEADS.NAME", THEIRS, "class", _registered(modeling.ROI_HEADS_REGISTRY)),
    Key("MODEL.ROI_BOX_HEAD.NAME", THEIRS, "class", _registered(modeling.ROI_BOX_HEAD_REGISTRY, "")),
    Key("MODEL.ROI_MASK_HEAD.NAME", THEIRS, "class", _registered(modeling.ROI_MASK_HEAD_REGISTRY)),
    Key("MODEL.ROI_KEYPOINT_HEAD.NAME", THEIRS, "class", _registered(modeling.ROI_KEYPOINT_HEAD_REGISTRY)),
    Key("MODEL.SEM_SEG_HEAD.NAME", THEIRS, "class", _registered(modeling.SEM_SEG_HEADS_REGISTRY)),
    Key("SOLVER.IMS_PER_BATCH", THEIRS, "images of a step, over all processes", least=1),
    Key("SOLVER.MAX_ITER", THEIRS, "steps of training", least=1),
    Key("SOLVER.CHECKPOINT_PERIOD", THEIRS, "steps between checkpoints", least=1),
    Key("SOLVER.BASE_LR", THEIRS, "learning rate after warm-up", least=0),
    Key("SOLVER.WEIGHT_DECAY", THEIRS, "decay of weights", least=0),
    Key("MODEL.FPN.OUT_CHANNELS", THEIRS, "width of the FPN", least=1),
    *(Key(f"MODEL.{node}.NUM_CLASSES", THEIRS, "number of classes", least=1) for node in ("ROI_HEADS", "RETINANET", "SEM_SEG_HEAD")),
    Key("TEST.DETECTIONS_PER_IMAGE", THEIRS, "most detections of an image", least=1),
    Key("TEST.EVAL_PERIOD", THEIRS, "steps between evaluations; 0: at the end alone", least=0),
    Key("DATALOADER.NUM_WORKERS", THEIRS, "processes that read images, for each process of the run", least=0),
)


def add_backbones_config(cfg: CfgNode) -> None:
    """Adds this project's keys with their defaults to a detectron2 config, in place; keys that are there already keep their values."""
    for key in KEYS:
        if key.default is THEIRS:
            continue
        *path, leaf = key.name.split(".")
        node = cfg
        for part in path:
            if part not in node:
                node[part] = CfgNode()
            node = node[part]
        if leaf not in node:
            node[leaf] = copy.deepcopy(key.default)


add_vovnet_config = add_backbones_config  # what vovnet-detectron2's users call


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts, a config's too, as one of dotted keys."""
    result = {}
    for key, value in node.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return result


def all_keys(cfg: CfgNode) -> list[str]:
    """Every key of a config, in the dotted form of the command line."""
    return list(flat(cfg))


def get(cfg: CfgNode, key: str) -> Any:
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def put(cfg: CfgNode, key: str, value: Any) -> None:
    """Sets a dotted key that is there, as it is: no type is checked."""
    node, _, leaf = key.rpartition(".")
    (get(cfg, node) if node else cfg)[leaf] = value
