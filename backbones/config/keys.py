"""Every config key of this project, and detectron2's keys whose values are checked: one row each."""

import copy
import math
from typing import Any, Callable, Collection, Iterator, NamedTuple

from detectron2 import modeling
from detectron2.config import CfgNode, get_cfg
from fvcore.common.registry import Registry

from ..choices import are_branch_widths
from ..errors import UserError, unknown
from ..layers import COMMON_NORMS
from ..lean import ACTIVATIONS
from ..solver import CLIP_TYPES, LR_SCHEDULERS

THEIRS = object()  # instead of a default: the key is detectron2's and has a default there


class Key(NamedTuple):
    """One config key: its dotted name, default, meaning and allowed values."""

    name: str
    default: Any
    text: str
    allowed: Collection[Any] | Callable[[], Collection[Any]] = ()  # empty: any value
    least: float | None = None
    test: tuple[Callable[[Any], bool], str] | None = None  # a test of the value, and what it must be, in words

    def error(self, value: Any) -> UserError | None:
        """What is wrong with a value, or None."""
        allowed = self.allowed() if callable(self.allowed) else self.allowed
        if allowed and value not in allowed:
            return unknown(self.name, value, allowed, self.name)
        if self.least is not None and value < self.least:
            return UserError(f"{self.name} is {value}: it must be at least {self.least}", "value", self.name, self.least)
        if self.test and not self.test[0](value):
            return UserError(
                f"{self.name} is {value}: it must be {self.test[1]}", "value", self.name, None if self.default is THEIRS else self.default
            )
        return None


def _shared(node: str, features: list[str]) -> Iterator[Key]:
    """The options that all families of backbones have; named as detectron2 names them for ResNet."""
    yield Key(f"{node}.OUT_FEATURES", features, "stages whose features are returned; stem is possible too")
    yield Key(f"{node}.NORM", "FrozenBN", 'any of layers.NORMS; "" means none; "EvalBN" fixes the statistics and trains the rest')
    yield Key(f"{node}.DEFORM_ON_PER_STAGE", [False] * 4, "deformable convolutions in the stages at strides 4, 8, 16, 32")
    yield Key(f"{node}.DEFORM_MODULATED", False, "deformable convolutions v2: a learned weight for each sampling point")
    yield Key(f"{node}.DEFORM_NUM_GROUPS", 1, "groups of offsets in deformable convolutions")
    yield Key(f"{node}.RES5_DILATION", 1, "2: the last stage has stride 16 and dilated convolutions (DC5)")


def _registered(registry: Registry, *others: str) -> Callable[[], list[str]]:
    return lambda: [*sorted(name for name, _ in registry), *others]


def _is_part(value: Any) -> bool:
    return len(value) == 2 and all(isinstance(part, (int, float)) for part in value) and 0 < value[0] <= value[1] <= 1


def _is_range(value: Any) -> bool:
    return len(value) == 2 and all(type(part) in (int, float) for part in value) and -math.inf < value[0] < value[1] < math.inf


_SIZE = (lambda v: len(v) == 2 and all(type(side) is int and side >= 1 for side in v), "a height and a width in pixels")
_RANGE = (lambda v: not v or _is_range(v), "[] or [low, high]")
_PART = (_is_part, "the smallest and largest fraction of an image, from 0 to 1")
_SIDES = (lambda v: isinstance(v, int) or len(v) > 0 and all(type(s) is int and s >= 0 for s in v), "one or more whole numbers of pixels")
_NO_MASK = ("stop", "box", "skip")
_MAPPERS = ("detectron2", "exact", "fast")
_RES = ["res2", "res3", "res4", "res5"]
_DDP = ("STATIC_GRAPH", "GRADIENT_AS_BUCKET_VIEW", "FP16_COMPRESSION")
_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
_SAMPLERS = ("", "RepeatFactor", "RandomSubset", "Weighted", "WeightedCategory")

READING = (  # how own data are read; a recipe depends on it
    *(f"DATASETS.{key}" for key in ("BOX_FORMAT", "CLASSES", "CROWDS", "KEYPOINTS", "KEYPOINT_FLIPS", "NO_MASK")),
    *(f"INPUT.{key}" for key in ("EXIF", "MAX_PIXELS", "UNREADABLE", "VALUE_RANGE")),
)
KEYS: tuple[Key, ...] = (
    Key("MODEL.VOVNET.CONV_BODY", "V-39-eSE", 'any of list_backbones("V-*")'),
    Key("MODEL.VOVNET.ESE", "all", 'blocks with an eSE gate: "all" (the released weights) or the "last" of each stage (timm)'),
    Key("MODEL.VOVNET.OUT_CHANNELS", 256, "a key of vovnet-detectron2 without effect there or here: MODEL.FPN.OUT_CHANNELS sets the width"),
    Key("MODEL.VOVNET.BACKBONE_OUT_CHANNELS", 256, "likewise"),
    *_shared("MODEL.VOVNET", ["stage2", "stage3", "stage4", "stage5"]),
    *_shared("MODEL.MOBILENETV2", []),  # none: as MODEL.RESNETS.OUT_FEATURES says
    Key("MODEL.REGNET.NAME", "RegNetX-3.2GF", 'any of list_backbones("RegNet*"), or "" for a network defined by the numbers below'),
    Key("MODEL.REGNET.DEPTH", 0, "number of blocks"),
    Key("MODEL.REGNET.W0", 0, "width of the first block"),
    Key("MODEL.REGNET.WA", 0.0, "growth of the width from block to block"),
    Key("MODEL.REGNET.WM", 0.0, "ratio of the widths of neighbouring stages"),
    Key("MODEL.REGNET.GROUP_WIDTH", 0, "channels of a group"),
    Key("MODEL.REGNET.SE_RATIO", 0.0, "width of squeeze-excitation, as a fraction of the block's input width; 0: none"),
    Key("MODEL.REGNET.ROUNDING", "pycls", 'how widths are rounded to whole groups; "torchvision" for its X-400MF, Y-800MF and Y-8.0GF'),
    *_shared("MODEL.REGNET", _RES),
    Key("MODEL.MAEDET.NAME", "MAE-DET-M", 'any of list_backbones("MAE-DET-*")'),
    Key("MODEL.MAEDET.STRUCTURE", "", "a structure file, used instead of NAME; a path may be relative to the config or the current folder"),
    Key("MODEL.MAEDET.WIDTH", 1.0, "factor of all widths, which are rounded to multiples of 8"),
    *_shared("MODEL.MAEDET", _RES),
    Key("MODEL.SHUFFLENETV2.NAME", "DetNAS-300M", 'any of list_backbones("DetNAS-*")'),
    Key("MODEL.SHUFFLENETV2.CHOICES", [], "0 to 3 for every block (choices.CHOICES), more with BRANCH_WIDTHS; used instead of NAME's"),
    Key("MODEL.SHUFFLENETV2.SUBNET", "", "a file of choices: ours, MMRazor's or a list; relative paths as for MODEL.MAEDET.STRUCTURE"),
    Key("MODEL.SHUFFLENETV2.SUPERNET", False, "build all choices at once, to train a supernet for a search"),
    Key(
        "MODEL.SHUFFLENETV2.SAMPLING",
        "uniform",
        'how paths of a supernet are drawn; "fair": each choice of a block once in a round of paths',
        ("uniform", "fair"),
    ),
    Key(
        "MODEL.SHUFFLENETV2.ONE_PATH_ITERS",
        0,
        "a supernet's training starts with that many iterations of its 3x3 path; then every choice starts from that path's weights",
        least=0,
    ),
    Key("MODEL.SHUFFLENETV2.SPLIT", "", 'how blocks split channels, one of shuffle_block.SPLITS; "": as in the released network NAME'),
    Key("MODEL.SHUFFLENETV2.SHUFFLE", "", 'how blocks shuffle channels, one of shuffle_block.SHUFFLES; "": as in the network NAME'),
    Key("MODEL.SHUFFLENETV2.WIDTH", 1.0, "factor of all widths, which are rounded to multiples of 4"),
    Key(
        "MODEL.SHUFFLENETV2.BRANCH_WIDTHS",
        [1.0],
        "factors of the width within a block's branch; a search chooses among them: choice i + 4 k is choice i with the k-th factor",
        test=(are_branch_widths, "a list of different numbers above 0, and at most 4"),
    ),
    *_shared("MODEL.SHUFFLENETV2", _RES),
    Key("MODEL.TIMM.NAME", "timm/resnet50", 'any of list_backbones("timm/*"), with or without the tag of its weights'),
    Key("MODEL.TIMM.DROP_PATH", 0.0, "rate of stochastic depth in training", (), 0, (lambda v: v < 1, "below 1")),
    *_shared("MODEL.TIMM", _RES),
    # the meta-architecture GFL; keys that RetinaNet has too are named as detectron2 names RetinaNet's
    Key("MODEL.GFL.NUM_CLASSES", 80, "number of classes", least=1),
    Key("MODEL.GFL.IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], "input features of the head"),
    Key("MODEL.GFL.NUM_CONVS", 4, "convolutions of each tower", least=0),
    Key("MODEL.GFL.NORM", "GN", "norm of the towers"),
    Key("MODEL.GFL.REG_MAX", 16, "largest distance to a side of the box, in strides; its distribution has one bin more", least=1),
    Key("MODEL.GFL.QUALITY", True, "True (GFLV2): the shape of the distributions scales the scores; False: plain GFL"),
    Key("MODEL.GFL.QUALITY_TOPK", 4, "number of largest bins of each side that describe the shape, in addition to their mean", least=1),
    Key("MODEL.GFL.QUALITY_CHANNELS", 64, "width of the layers that rate the shape", least=1),
    Key("MODEL.GFL.ANCHOR_SIZE", 8.0, "side of the single square anchor at each location, in strides", least=0.1),
    Key("MODEL.GFL.ATSS_TOPK", 9, "candidate anchors for each object on each level", least=1),
    Key("MODEL.GFL.PRIOR_PROB", 0.01, "initial class scores", test=(lambda v: 0 < v < 1, "above 0 and below 1")),
    Key("MODEL.GFL.CLS_LOSS_WEIGHT", 1.0, "weight of the classification loss"),
    Key("MODEL.GFL.BBOX_LOSS_WEIGHT", 2.0, "weight of the box loss"),
    Key("MODEL.GFL.DFL_LOSS_WEIGHT", 0.25, "weight of the distribution loss"),
    Key("MODEL.GFL.SCORE_THRESH_TEST", 0.05, "lowest score of a detection"),
    Key("MODEL.GFL.TOPK_CANDIDATES_TEST", 1000, "locations with the best scores that inference keeps on each level", least=1),
    Key("MODEL.GFL.NMS_THRESH_TEST", 0.6, "largest IoU of two detections of a class"),
    # search.one_shot
    Key("ONE_SHOT.GENERATIONS", 20, "rounds of evolution", least=1),
    Key("ONE_SHOT.POPULATION", 50, "paths in each round", least=1),
    Key("ONE_SHOT.PARENTS", 10, "best paths, from which new ones are made", least=1),
    Key("ONE_SHOT.MUTATIONS", 20, "paths made by mutation in each round", least=0),
    Key("ONE_SHOT.CROSSOVERS", 20, "paths made by crossover in each round", least=0),
    Key("ONE_SHOT.MUTATION_PROB", 0.1, "probability that a block is mutated", (), 0, (lambda v: v <= 1, "at most 1")),
    Key("ONE_SHOT.COST", "macs", "cost of the backbone to limit; latency in seconds on MODEL.DEVICE", ("macs", "parameters", "latency")),
    Key("ONE_SHOT.RUNTIME", "eager", "runtime for measuring a path's latency: any of search.runtimes.RUNTIMES"),
    Key("ONE_SHOT.COST_SIZE", [224, 224], "image size for macs and latency", test=_SIZE),
    Key("ONE_SHOT.MIN_COST", 0.0, "lowest cost of a path"),
    Key("ONE_SHOT.MAX_COST", 3.0e8, "highest cost of a path"),
    Key("ONE_SHOT.DATASET", "", "data set that paths are evaluated on, such as NAME_held_out"),
    Key("ONE_SHOT.METRIC", "bbox/AP", "figure that paths are ranked by"),
    Key("ONE_SHOT.CALIBRATION_IMAGES", 4000, "images of DATASETS.TRAIN that calibrate the batch norms of each path first", least=1),
    Key("ONE_SHOT.CALIBRATION_BATCH", 8, "batch size of that calibration", least=1),
    # the meta-architecture ImageClassifier
    Key("MODEL.CLASSIFIER.NUM_CLASSES", 1000, "number of classes", least=1),
    Key("MODEL.CLASSIFIER.CHANNELS", 0, "width of a 1x1 convolution after the backbone; 0: none", least=0),
    Key("MODEL.CLASSIFIER.NORM", "BN", "norm of that convolution"),
    Key("MODEL.CLASSIFIER.DROPOUT", 0.0, "fraction of the features that is dropped in training"),
    Key("MODEL.CLASSIFIER.LABEL_SMOOTHING", 0.0, "fraction of each label that is spread over all classes"),
    Key("INPUT.CLASSIFICATION.SIZE", 224, "side of the square input images in pixels", least=1),
    Key("INPUT.CLASSIFICATION.RESIZE", 256, "shorter side in evaluation, before the centre crop"),
    Key("INPUT.CLASSIFICATION.SCALE", [0.08, 1.0], "[least, most] fraction of an image's area that a training crop covers", test=_PART),
    Key("INPUT.CLASSIFICATION.COLOR_JITTER", 0.4, "strength of colour jitter in training", least=0),
    # features and memory
    Key("MODEL.FPN.P6_INPUT", "c5", 'input of P6: "c5", the last of IN_FEATURES, or "p5", the FPN\'s output', ("c5", "p5")),
    Key("MODEL.FPN.P6_RELU", True, "a ReLU between P6 and P7; detectron2's RetinaNet has it, MMDetection's does not"),
    # "lean" keeps no concatenations nor inputs of frozen norms: the same gradients; "inputs" keeps those of blocks, which are computed again
    Key(
        "MODEL.ACTIVATIONS",
        "all",
        'what is kept for the backward pass; "lean" needs less memory; "inputs" needs even less, but more time',
        ACTIVATIONS,
    ),
    Key("MODEL.MEMORY_FORMAT", "contiguous", "channels_last is faster on most CPUs, and on GPUs with AMP", ("contiguous", "channels_last")),
    Key("MODEL.COMPILE", False, "compile the backbone in training with torch.compile; with --optimize, backbone and heads"),
    # training
    Key(
        "MODEL.WEIGHTS_CLASSES",
        "",
        "classes of MODEL.WEIGHTS, unless the file names more, fewer or reordered ones: a data set's name, or names separated by commas",
    ),
    Key("SOLVER.AMP.PRECISION", "float16", "precision of AMP's fast operations", ("float16", "bfloat16")),
    Key("SOLVER.FUSED", False, "run the optimizer as one fused kernel, which rounds in a different order"),
    Key(
        "SOLVER.OFFSET_LR_FACTOR",
        1.0,
        "factor of the learning rate for sampling offsets of deformable convolutions, as MMDetection's dcn_offset_lr_mult",
        least=0,
    ),
    Key("SOLVER.ACCUMULATE", 1, "gradient accumulation: parts of a batch, processed one after the other", least=1),
    Key("SOLVER.REFERENCE_BATCH", 0, "IMS_PER_BATCH that BASE_LR is for; with another, BASE_LR is scaled in proportion; 0: never", least=0),
    Key("MODEL_EMA.ENABLED", False, "keep a moving average of the weights, and evaluate with it"),
    Key("MODEL_EMA.DECAY", 0.9998, "fraction of the average kept in each iteration", test=(lambda v: 0 <= v < 1, "at least 0 and below 1")),
    *(Key(f"SOLVER.DDP.{option}", False, "option of torch's DistributedDataParallel") for option in _DDP),
    Key("TEST.COCO_EVALUATOR", "fastest", '"fastest": faster-coco-eval if installed; figures are the same', ("fastest", "detectron2")),
    Key(
        "TEST.BEST_METRIC",
        "auto",
        'figure such as "bbox/AP" that picks the best checkpoint; "auto": AP of masks, else keypoints, else boxes; PQ, mIoU, top-1; "": none',
    ),
    Key("TEST.PATIENCE", 0, "stop training after this many evaluations without improvement; 0: never", least=0),
    Key("TEST.LOSS", False, "also compute the losses on the test data in each evaluation during training"),
    Key("TEST.PICTURES", 4, "number of test images drawn with detections in each evaluation in training, in OUTPUT_DIR/pictures", least=0),
    Key("TRACKING.WANDB", "", "Weights & Biases project for the figures"),
    Key("TRACKING.MLFLOW", "", "MLflow experiment for the figures"),
    # data
    Key(
        "INPUT.NORMALIZATION",
        "config",
        'source of INPUT.FORMAT, MODEL.PIXEL_MEAN and PIXEL_STD: "config", or "weights" if they state them; setting one means "config"',
        ("config", "weights"),
    ),
    Key("INPUT.UNREADABLE", "stop", 'for unreadable images: "stop" at the first, or "skip" them and log how many', ("stop", "skip")),
    Key("INPUT.EXIF", "turn", 'EXIF rotation: "turn" images, or "ignore" it if annotations fit the unrotated pixels', ("turn", "ignore")),
    Key("INPUT.VALUE_RANGE", [], "[low, high]: values of 16-bit greyscale images that become 0 and 255; []: refuse such images", test=_RANGE),
    Key("INPUT.MAX_PIXELS", 0, "most pixels of an image, to allow more than Pillow considers safe; 0: Pillow's limit", least=0),
    Key("INPUT.MAPPER", "detectron2", 'data set mapper; "exact": same results, faster; "fast": pixels may differ by one level', _MAPPERS),
    Key("DATASETS.REGISTER", [], "own data sets, [name, annotations, image folder] each, for DATASETS.TRAIN and TEST"),
    Key("DATASETS.CLASSES", [], "class names of the model, to which own data are matched; []: those of the first training data"),
    Key("DATASETS.CROWDS", "ignore", 'objects marked as crowds in own data: "ignore" them, or use them as "objects"', ("ignore", "objects")),
    Key("DATASETS.NO_MASK", "stop", "own objects without a mask if masks are learnt: an error, their box as the mask, or left out", _NO_MASK),
    Key("DATASETS.BOX_FORMAT", "xywh", 'boxes in own data: "xywh", COCO\'s x, y, width, height, or "xyxy", corners', ("xywh", "xyxy")),
    Key("DATASETS.KEYPOINTS", [], "names of the model's keypoints; []: those in the data"),
    Key("DATASETS.KEYPOINT_FLIPS", [], "[left, right] each: keypoints that swap in a flipped image; []: found by their names"),
    Key(
        "DATASETS.HOLD_OUT",
        [],
        "[name, number of images or a fraction below 1] each: NAME_held_out has that many images, NAME_kept the rest",
    ),
    Key("INPUT.CROP.AROUND_OBJECTS", False, "each training crop contains the centre of an object, if the image has any"),
    Key("DATASETS.IMAGE_FOLDERS", [], "for classification, [name, folder] each; its subfolders are the classes"),
    # detectron2's own
    Key("INPUT.FORMAT", THEIRS, "channel order of images", ("BGR", "RGB", "L", "YUV-BT.601")),
    Key("INPUT.MIN_SIZE_TRAIN", THEIRS, "shorter sides that training images are resized to", test=_SIDES),
    Key("INPUT.MIN_SIZE_TRAIN_SAMPLING", THEIRS, '"choice": one of those sides; "range": any side between two', ("choice", "range")),
    Key("INPUT.RANDOM_FLIP", THEIRS, "how training images are mirrored", ("none", "horizontal", "vertical")),
    Key("INPUT.CROP.TYPE", THEIRS, "how INPUT.CROP.SIZE is read", ("relative_range", "relative", "absolute", "absolute_range")),
    Key("TEST.AUG.MIN_SIZES", THEIRS, "shorter sides in test-time augmentation", test=_SIDES),
    Key("INPUT.MASK_FORMAT", THEIRS, "how masks are stored", ("polygon", "bitmask")),
    Key("SOLVER.LR_SCHEDULER_NAME", THEIRS, "learning rate schedule", LR_SCHEDULERS),
    Key("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", THEIRS, "how gradients are clipped", CLIP_TYPES),
    *(Key(f"MODEL.{node}.BBOX_REG_LOSS_TYPE", THEIRS, "loss of boxes", _BOX_LOSSES) for node in ("RPN", "ROI_BOX_HEAD", "RETINANET")),
    Key("DATALOADER.SAMPLER_TRAIN", THEIRS, "how training images are sampled", tuple(f"{name}TrainingSampler" for name in _SAMPLERS)),
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
    Key("SOLVER.IMS_PER_BATCH", THEIRS, "batch size over all processes", least=1),
    Key("SOLVER.MAX_ITER", THEIRS, "iterations of training", least=1),
    Key("SOLVER.CHECKPOINT_PERIOD", THEIRS, "iterations between checkpoints", least=1),
    Key("SOLVER.BASE_LR", THEIRS, "learning rate after warm-up", least=0),
    Key("SOLVER.WEIGHT_DECAY", THEIRS, "weight decay", least=0),
    Key("MODEL.FPN.OUT_CHANNELS", THEIRS, "width of the FPN", least=1),
    *(Key(f"MODEL.{node}.NUM_CLASSES", THEIRS, "number of classes", least=1) for node in ("ROI_HEADS", "RETINANET", "SEM_SEG_HEAD")),
    Key("TEST.DETECTIONS_PER_IMAGE", THEIRS, "maximum number of detections per image", least=1),
    Key("TEST.EVAL_PERIOD", THEIRS, "iterations between evaluations; 0: only at the end", least=0),
    Key("DATALOADER.NUM_WORKERS", THEIRS, "data loading workers of each process", least=0),
)


def add_backbones_config(cfg: CfgNode) -> None:
    """Adds this project's keys with their defaults to a detectron2 config, in place; existing keys keep their values."""
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


add_vovnet_config = add_backbones_config  # the name in vovnet-detectron2


def defaults() -> CfgNode:
    """A config with all keys, detectron2's and this project's, at their defaults."""
    cfg = get_cfg()
    add_backbones_config(cfg)
    return cfg


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested dicts, such as a config, into one with dotted keys."""
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
    """Sets an existing dotted key without checking types."""
    node, _, leaf = key.rpartition(".")
    (get(cfg, node) if node else cfg)[leaf] = value


def plain_norms(cfg: CfgNode, *kinds: str) -> CfgNode:
    """A copy in which BN, which has the same weights, stands for the norms that detectron2 names with one of ``kinds``, such as "SyncBN"."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in all_keys(cfg):
        value = get(cfg, key)
        if key.endswith(".NORM") and value in COMMON_NORMS and any(kind in value for kind in kinds):
            put(cfg, key, "BN")
    return cfg
