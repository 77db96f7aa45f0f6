"""Every config key this project adds, and the check of a whole config before anything heavy starts."""

import os
import re
import sysconfig
import traceback
from typing import Any, Dict, Iterable, List, Optional

import detectron2
import torch
import yaml
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.config.compat import guess_version
from detectron2.modeling import build_backbone, build_model
from torch import nn

from .errors import UserError, unknown
from .layers import COMMON_NORMS, NORMS
from .lean import ACTIVATIONS
from .registry import FAMILIES
from .solver import CLIP_TYPES, LR_SCHEDULERS, build_lr_scheduler, build_optimizer


def add_backbones_config(cfg: CfgNode) -> None:
    """Adds this project's keys with their defaults to a detectron2 config; keys that are there already keep their values."""
    vovnet = _node(cfg.MODEL, "VOVNET")
    _default(vovnet, "CONV_BODY", "V-39-eSE")  # any of list_backbones("V-*")
    _default(vovnet, "OUT_FEATURES", ["stage2", "stage3", "stage4", "stage5"])  # among stem, stage2 to stage5
    _default(vovnet, "NORM", "FrozenBN")  # any of layers.NORMS; "" is none
    _default(vovnet, "ESE", "all")  # gates in "all" blocks (the released weights) or the "last" of each stage (timm)
    _stage_options(vovnet)
    # of vovnet-detectron2, where they do nothing either: MODEL.FPN.OUT_CHANNELS sets the FPN's width
    _default(vovnet, "OUT_CHANNELS", 256)
    _default(vovnet, "BACKBONE_OUT_CHANNELS", 256)

    mobilenet = _node(cfg.MODEL, "MOBILENETV2")
    _default(mobilenet, "OUT_FEATURES", [])  # among stem, res2 to res5; empty: as MODEL.RESNETS.OUT_FEATURES says
    _default(mobilenet, "NORM", "FrozenBN")
    _stage_options(mobilenet)

    regnet = _node(cfg.MODEL, "REGNET")
    _default(regnet, "NAME", "RegNetX-3.2GF")  # any of list_backbones("RegNet*"), or "" for the one of the numbers below
    _default(regnet, "DEPTH", 0)  # number of blocks
    _default(regnet, "W0", 0)  # first width
    _default(regnet, "WA", 0.0)  # its growth a block
    _default(regnet, "WM", 0.0)  # ratio of neighbouring stages' widths
    _default(regnet, "GROUP_WIDTH", 0)  # channels a group
    _default(regnet, "SE_RATIO", 0.0)  # width of squeeze-excitation in widths of the block's input; 0 is none
    _default(regnet, "ROUNDING", "pycls")  # of widths to whole groups; "torchvision" for its X-400MF, Y-800MF and Y-8.0GF
    _default(regnet, "OUT_FEATURES", ["res2", "res3", "res4", "res5"])  # among stem, res2 to res5
    _default(regnet, "NORM", "FrozenBN")  # any of layers.NORMS; "EvalBN" fixes the statistics and trains the rest
    _stage_options(regnet)

    maedet = _node(cfg.MODEL, "MAEDET")
    _default(maedet, "NAME", "MAE-DET-M")  # any of list_backbones("MAE-DET-*")
    _default(maedet, "STRUCTURE", "")  # a structure file, in whose place NAME is not looked at; in a config, relative to it or to where one is
    _default(maedet, "WIDTH", 1.0)  # factor of all widths, which are rounded to multiples of 8
    _default(maedet, "OUT_FEATURES", ["res2", "res3", "res4", "res5"])  # among stem, res2 to res5
    _default(maedet, "NORM", "FrozenBN")
    _stage_options(maedet)

    shufflenet = _node(cfg.MODEL, "SHUFFLENETV2")
    _default(shufflenet, "NAME", "DetNAS-300M")  # any of list_backbones("DetNAS-*")
    _default(shufflenet, "CHOICES", [])  # of every block, 0 to 3 (shufflenetv2.CHOICES), in the place of those of NAME
    _default(shufflenet, "SUBNET", "")  # a file of them, ours, MMRazor's or a list; in a config, relative to it or to where one is
    _default(shufflenet, "SUPERNET", False)  # all choices at once
    # conventions that differ between the released networks (shufflenetv2.SPLITS and SHUFFLES); "": as those of NAME
    _default(shufflenet, "SPLIT", "")
    _default(shufflenet, "SHUFFLE", "")
    _default(shufflenet, "WIDTH", 1.0)  # factor of all widths, which are rounded to multiples of 4
    _default(shufflenet, "OUT_FEATURES", ["res2", "res3", "res4", "res5"])  # among stem, res2 to res5
    _default(shufflenet, "NORM", "FrozenBN")
    _stage_options(shufflenet)

    gfl = _node(cfg.MODEL, "GFL")
    # of the meta-architecture GFL, named as detectron2 names them for RetinaNet; here, its classes and the levels it looks at
    _default(gfl, "NUM_CLASSES", 80)
    _default(gfl, "IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"])
    _default(gfl, "NUM_CONVS", 4)  # of each tower
    _default(gfl, "NORM", "GN")  # of the towers
    _default(gfl, "REG_MAX", 16)  # the largest distance to a side of the box, in strides; of its distribution there are so many bins and one
    _default(gfl, "QUALITY", True)  # GFLV2: a score is what the class says times what the distributions' shape says; False: plain GFL
    _default(gfl, "QUALITY_TOPK", 4)  # so many largest bins of each side, and their mean, say it
    _default(gfl, "QUALITY_CHANNELS", 64)  # width of what says it
    _default(gfl, "ANCHOR_SIZE", 8.0)  # side of the one square anchor at each place, in strides
    _default(gfl, "ATSS_TOPK", 9)  # candidates of each object on each level
    _default(gfl, "PRIOR_PROB", 0.01)  # what the class scores begin with
    # factors of the three losses
    _default(gfl, "CLS_LOSS_WEIGHT", 1.0)
    _default(gfl, "BBOX_LOSS_WEIGHT", 2.0)
    _default(gfl, "DFL_LOSS_WEIGHT", 0.25)
    # in inference: the lowest score, the places taken of each level, by their best class, and the largest overlap within a class
    _default(gfl, "SCORE_THRESH_TEST", 0.05)
    _default(gfl, "TOPK_CANDIDATES_TEST", 1000)
    _default(gfl, "NMS_THRESH_TEST", 0.6)

    one_shot = _node(cfg, "ONE_SHOT")
    # of search.one_shot: rounds of evolution, paths in each, the best that others are made of, and how many by mutation and by crossover
    _default(one_shot, "GENERATIONS", 20)
    _default(one_shot, "POPULATION", 50)
    _default(one_shot, "PARENTS", 10)
    _default(one_shot, "MUTATIONS", 20)
    _default(one_shot, "CROSSOVERS", 20)
    _default(one_shot, "MUTATION_PROB", 0.1)  # of each block
    _default(one_shot, "COST", "macs")  # of the backbone, what is limited: "macs", "parameters" or "latency" (seconds, on MODEL.DEVICE)
    _default(one_shot, "COST_SIZE", [224, 224])  # of the image that macs and latency are of
    _default(one_shot, "MIN_COST", 0.0)
    _default(one_shot, "MAX_COST", 3.0e8)
    _default(one_shot, "DATASET", "")  # what paths are evaluated on: NAME_held_out
    _default(one_shot, "METRIC", "bbox/AP")  # what they are ranked by
    _default(one_shot, "CALIBRATION_IMAGES", 4000)  # of DATASETS.TRAIN, which each path's batch norms see first
    _default(one_shot, "CALIBRATION_BATCH", 8)

    classifier = _node(cfg.MODEL, "CLASSIFIER")
    # of the meta-architecture ImageClassifier; CHANNELS: width of a 1x1 convolution behind the backbone, 0 for none
    _default(classifier, "NUM_CLASSES", 1000)
    _default(classifier, "CHANNELS", 0)
    _default(classifier, "NORM", "BN")
    _default(classifier, "DROPOUT", 0.0)
    _default(classifier, "LABEL_SMOOTHING", 0.0)

    images = _node(cfg.INPUT, "CLASSIFICATION")
    # sides of its images in pixels, and in evaluation of the shorter one before the middle is taken; least and most part of an image's area
    # that is taken in training; how far colours change
    _default(images, "SIZE", 224)
    _default(images, "RESIZE", 256)
    _default(images, "SCALE", [0.08, 1.0])
    _default(images, "COLOR_JITTER", 0.4)

    _default(cfg.MODEL.FPN, "P6_INPUT", "c5")  # what P6 is made of: "c5", the backbone's last feature, or "p5", the FPN's output
    # a ReLU between P6 and P7, as detectron2's RetinaNet has it; MMDetection's has none
    _default(cfg.MODEL.FPN, "P6_RELU", True)

    # what training keeps of this project's networks for the backward pass: "all", "lean" (no concatenations, no frozen norms' inputs: the same
    # gradients in less memory) or "inputs" (of blocks, which are computed again: less memory still, more time)
    _default(cfg.MODEL, "ACTIVATIONS", "all")
    _default(cfg.MODEL, "MEMORY_FORMAT", "contiguous")  # or "channels_last", which most CPUs, and GPUs under AMP, prefer
    _default(cfg.MODEL, "COMPILE", False)  # the backbone, in training, by torch.compile
    _default(cfg.SOLVER.AMP, "PRECISION", "float16")  # or "bfloat16"
    _default(cfg.SOLVER, "FUSED", False)  # the optimizer's step as one kernel, which rounds in another order
    _default(cfg.SOLVER, "ACCUMULATE", 1)  # parts that the images of an iteration are worked on in, one after the other
    # images an iteration that BASE_LR is for: with another IMS_PER_BATCH it is scaled in proportion; 0 leaves it as it is
    _default(cfg.SOLVER, "REFERENCE_BATCH", 0)
    ema = _node(cfg, "MODEL_EMA")
    # an average of the weights over training, which evaluations then look at: whether there is one, and how much of it stays in an iteration
    _default(ema, "ENABLED", False)
    _default(ema, "DECAY", 0.9998)
    ddp = _node(cfg.SOLVER, "DDP")
    # of torch's DistributedDataParallel
    _default(ddp, "STATIC_GRAPH", False)
    _default(ddp, "GRADIENT_AS_BUCKET_VIEW", False)
    _default(ddp, "FP16_COMPRESSION", False)

    # "fastest": faster-coco-eval where it is installed, whose numbers are the same; "detectron2": its own
    _default(cfg.TEST, "COCO_EVALUATOR", "fastest")
    # figure whose best checkpoint is kept as model_best.pth: such as "bbox/AP"; "auto": the first AP, PQ, mIoU or top-1 that there is; "": none
    _default(cfg.TEST, "BEST_METRIC", "auto")
    _default(cfg.TEST, "PATIENCE", 0)  # evaluations without a better value after which training ends; 0: it does not
    _default(cfg.TEST, "LOSS", False)  # each evaluation during training: the losses on the test data too
    _default(cfg.TEST, "PICTURES", 4)  # each evaluation during training: so many test images with what is found in them, in OUTPUT_DIR/pictures
    _default(cfg.INPUT, "UNREADABLE", "stop")  # images that cannot be read in training: "stop" at the first, or "skip" and count them
    tracking = _node(cfg, "TRACKING")
    _default(tracking, "WANDB", "")  # project of Weights & Biases that figures go to
    _default(tracking, "MLFLOW", "")  # experiment of MLflow that figures go to
    # what makes a training example of an image: "detectron2", the same in less time ("exact"), or with pixels that differ by one level ("fast")
    _default(cfg.INPUT, "MAPPER", "detectron2")

    # COCO-format data to register, no code needed: [name, annotation file, image folder] each; names go into DATASETS.TRAIN and TEST
    _default(cfg.DATASETS, "REGISTER", [])
    # parts of data sets to register: [name, number of images] gives name_held_out, those, and name_kept, the others
    _default(cfg.DATASETS, "HOLD_OUT", [])
    # folders of images to register, whose own folders are the classes: [name, folder] each
    _default(cfg.DATASETS, "IMAGE_FOLDERS", [])


add_vovnet_config = add_backbones_config  # what vovnet-detectron2's users call


def _node(parent: CfgNode, name: str) -> CfgNode:
    if name not in parent:
        parent[name] = CfgNode()
    return parent[name]


def _default(node: CfgNode, key: str, value) -> None:
    if key not in node:
        node[key] = value


def _stage_options(node: CfgNode) -> None:
    # named as detectron2 names them for ResNet
    _default(node, "DEFORM_ON_PER_STAGE", [False, False, False, False])  # the stages behind the stem, at strides 4, 8, 16, 32
    _default(node, "DEFORM_MODULATED", False)  # v2: a learned weight for each sampling point
    _default(node, "DEFORM_NUM_GROUPS", 1)
    _default(node, "RES5_DILATION", 1)  # 2: the last stage at stride 16, its convolutions dilated (DC5)


def flat(node: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Nested dicts, a config's too, as one of dotted keys."""
    result = {}
    for key, value in node.items():
        result.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return result


def all_keys(cfg: CfgNode) -> List[str]:
    """Every key of a config, in the dotted form of the command line."""
    return list(flat(cfg))


def merge_file(cfg: CfgNode, path: str) -> None:
    """``cfg.merge_from_file``, with what is wrong in the file said in one line.

    As in detectron2, a config may hold Python expressions (its RetinaNet's does): configs of strangers are to be read before use.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} is not there")
    try:
        with open(path) as f:
            if not isinstance(yaml.compose(f), yaml.MappingNode):
                raise UserError(f"config file {path!r} holds no KEY: VALUE pairs")
        content = CfgNode(cfg.load_yaml_with_base(path, allow_unsafe=True))
        if (content.get("VERSION", None) or guess_version(content, path)) == cfg.VERSION:  # detectron2 upgrades older ones
            known = set(all_keys(cfg))
            for key in all_keys(content):
                _check_key(cfg, key, known, path)
        cfg.merge_from_file(path, allow_unsafe=True)
        _find_beside(cfg, path)
    except UserError:
        raise
    except RecursionError:
        raise UserError(f"config file {path!r}: its _BASE_ leads back to itself") from None
    except Exception as error:  # a Python expression in it may raise anything
        raise UserError(f"config file {path!r}: {_one_line(error)}") from error


def _find_beside(cfg: CfgNode, path: str) -> None:
    """A structure file that a config names relatively lies beside the config that names it, wherever that is used from."""
    for family, key in (("MAEDET", "STRUCTURE"), ("SHUFFLENETV2", "SUBNET")):
        name = cfg.MODEL[family][key] if family in cfg.MODEL else ""
        folder = _folder_of(path, family, key) if isinstance(name, str) and name and not os.path.isabs(name) else None
        if folder and os.path.isfile(os.path.join(folder, name)):
            cfg.MODEL[family][key] = os.path.join(folder, name)


def _folder_of(path: str, family: str, key: str) -> Optional[str]:
    """The folder of the config, ``path`` or the nearest it is based on, that sets a key of a family."""
    with open(path) as f:
        content = yaml.unsafe_load(f) or {}  # as it was when it was merged
    node = content.get("MODEL", {}).get(family, {})
    if isinstance(node, dict) and node.get(key):
        return os.path.dirname(os.path.abspath(path))
    bases = content.get("_BASE_", [])
    for base in reversed([bases] if isinstance(bases, str) else bases):
        base = os.path.join(os.path.dirname(path), os.path.expanduser(base))
        found = _folder_of(base, family, key) if os.path.isfile(base) else None
        if found:
            return found
    return None


def merge_overrides(cfg: CfgNode, opts: List[str]) -> None:
    """``cfg.merge_from_list`` of command-line overrides, with what is wrong in them said in one line."""
    flag = next((item for item in opts[::2] if item.startswith("--")), None)
    if flag:
        raise UserError(f"{flag} stands behind an override: flags come before all KEY VALUE pairs")
    if len(opts) % 2:
        raise UserError(f"overrides are pairs of KEY VALUE, but their number is odd: {' '.join(opts)}")
    known = set(all_keys(cfg))
    for key, value in zip(opts[::2], opts[1::2]):
        _check_key(cfg, key, known, "the command line")
        if key in known and isinstance(get(cfg, key), float) and re.fullmatch(r"[-+]?\d+", value):
            value += ".0"  # 1 is a number where 0.02 is one, which detectron2 denies
        try:
            cfg.merge_from_list([key, value])
        except (
            KeyError,
            ValueError,
            AssertionError,
            AttributeError,
            TypeError,
            SyntaxError,
            RecursionError,
            MemoryError,
            OverflowError,
        ) as error:
            raise UserError(f"{key} {value}: {_one_line(error)}") from error


def _check_key(cfg: CfgNode, key: str, known: Iterable[str], where: str) -> None:
    # keys that detectron2 renamed or removed are its own to deal with
    if key in known or cfg.key_is_renamed(key) or cfg.key_is_deprecated(key):
        return
    from difflib import get_close_matches

    close = get_close_matches(key, known, n=1, cutoff=0.4)
    siblings = [k for k in known if k.rpartition(".")[0] == (close[0] if close else key).rpartition(".")[0]]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise UserError(f"unknown config key: {key!r} in {where}.{hint} Allowed beside it: {', '.join(sorted(siblings))}.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error.args[0] if isinstance(error, KeyError) and error.args else error).split())


def check_config(cfg: CfgNode, training: bool = False, processes: int = 1) -> None:
    """Raises UserError for a config whose model, or in ``training`` whose solver, cannot be built, or whose output folder cannot be.

    Both are built on the meta device, which costs no memory, so that their own checks speak. ``processes`` is how many will train.
    """
    check_device(cfg.MODEL.DEVICE)
    check_output_dir(cfg.OUTPUT_DIR)
    own = [family.upper() for family in FAMILIES]
    for key in all_keys(cfg):
        if key.endswith(".NORM"):
            value = get(cfg, key)
            allowed = NORMS if key.split(".")[1] in own else COMMON_NORMS
            if isinstance(value, str) and value not in allowed:
                raise unknown(key, value, allowed)
    for key, allowed in _CHOICES.items():
        if get(cfg, key) not in allowed:
            raise unknown(key, get(cfg, key), allowed)
    for key, (registry, *others) in REGISTERED.items():
        if get(cfg, key) not in registry and get(cfg, key) not in others:
            raise unknown(key, get(cfg, key), [*sorted(name for name, _ in registry), *others])
    for key, least in _LEAST.items():
        if get(cfg, key) < least:
            raise UserError(f"{key} is {get(cfg, key)}: it must be at least {least}")
    if not 0 < cfg.MODEL.GFL.PRIOR_PROB < 1:
        raise UserError(f"MODEL.GFL.PRIOR_PROB is {cfg.MODEL.GFL.PRIOR_PROB}: it must be above 0 and below 1")
    if cfg.ONE_SHOT.MUTATION_PROB > 1:
        raise UserError(f"ONE_SHOT.MUTATION_PROB is {cfg.ONE_SHOT.MUTATION_PROB}: it must be at most 1")
    if not 0 <= cfg.MODEL_EMA.DECAY < 1:
        raise UserError(f"MODEL_EMA.DECAY is {cfg.MODEL_EMA.DECAY}: it must be at least 0 and below 1")
    size = cfg.ONE_SHOT.COST_SIZE
    if not (len(size) == 2 and all(type(side) is int and side >= 1 for side in size)):
        raise UserError(f"ONE_SHOT.COST_SIZE is {list(size)}: it must be a height and a width in pixels")
    if cfg.MODEL.SHUFFLENETV2.SUPERNET and (cfg.MODEL.COMPILE or cfg.SOLVER.DDP.STATIC_GRAPH):
        raise UserError("MODEL.COMPILE and SOLVER.DDP.STATIC_GRAPH are for networks that stay the same, not for MODEL.SHUFFLENETV2.SUPERNET")
    if cfg.SOLVER.DDP.STATIC_GRAPH and cfg.SOLVER.ACCUMULATE > 1:
        raise UserError(f"SOLVER.DDP.STATIC_GRAPH is for steps that are all alike, not for SOLVER.ACCUMULATE {cfg.SOLVER.ACCUMULATE}")
    if cfg.MODEL.SHUFFLENETV2.SUPERNET and cfg.TEST.PRECISE_BN.ENABLED:
        raise UserError("TEST.PRECISE_BN would set the norms of all choices that do not run to zero: it is not for MODEL.SHUFFLENETV2.SUPERNET")
    images = cfg.INPUT.CLASSIFICATION
    if images.RESIZE < images.SIZE:
        raise UserError(f"INPUT.CLASSIFICATION.RESIZE {images.RESIZE} must be at least SIZE {images.SIZE}, the middle that is taken of it")
    low, high = images.SCALE if len(images.SCALE) == 2 and all(isinstance(s, (int, float)) for s in images.SCALE) else (0, 0)
    if not 0 < low <= high <= 1:
        raise UserError(f"INPUT.CLASSIFICATION.SCALE is {list(images.SCALE)}: it must be the least and the most part of an image, from 0 to 1")
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if len(get(cfg, key)) != channels:
            raise UserError(f"{key} has {len(get(cfg, key))} values, but images in INPUT.FORMAT {cfg.INPUT.FORMAT!r} have {channels} channels")
    if cfg.TEST.AUG.ENABLED:
        unfit = cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN" and f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}"
        unfit = unfit or next((f"MODEL.{key}" for key in ("KEYPOINT_ON", "LOAD_PROPOSALS") if cfg.MODEL[key]), None)
        if unfit:
            raise UserError(f"TEST.AUG is for boxes and masks of R-CNNs, not with {unfit}: set TEST.AUG.ENABLED False")
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if training:
        _check_batch(cfg, processes)
        if cfg.TEST.PATIENCE and not (cfg.TEST.EVAL_PERIOD and cfg.TEST.BEST_METRIC and cfg.DATASETS.TEST):
            raise UserError(f"TEST.PATIENCE {cfg.TEST.PATIENCE} needs evaluations in training: TEST.EVAL_PERIOD, BEST_METRIC and DATASETS.TEST")
        if cfg.SOLVER.AMP.ENABLED and not on_gpu and cfg.SOLVER.AMP.PRECISION != "bfloat16":
            raise UserError(
                f"SOLVER.AMP.ENABLED needs a GPU, but MODEL.DEVICE is {cfg.MODEL.DEVICE!r}: set SOLVER.AMP.ENABLED False or AMP.PRECISION bfloat16"
            )
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"
    try:
        with torch.device("meta"):
            _check_features(cfg, build_backbone(cfg).output_shape())  # first, as it says it best
            model = build_model(cfg)
            if training:
                build_lr_scheduler(cfg, build_optimizer(cfg, model))
    except UserError:
        raise
    except Exception as error:
        if "meta" in str(error) or not from_libraries(error):
            return  # code of the user's own that cannot be tried without memory, or that is to speak with a traceback
        reason = _one_line(error) or traceback.extract_tb(error.__traceback__)[-1].line  # an assertion without words
        raise UserError(f"the config cannot be built: {type(error).__name__}: {reason}") from error
    if training and processes > 1 and not on_gpu and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        raise UserError("torch's SyncBN synchronizes GPUs only: on CPU processes use BN or naiveSyncBN")


def _check_batch(cfg: CfgNode, processes: int) -> None:
    batch, reference, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.ACCUMULATE
    if batch % ((reference or processes) * parts):
        among = f"SOLVER.REFERENCE_WORLD_SIZE {reference}" if reference else f"{processes} processes"
        among += f" times SOLVER.ACCUMULATE {parts}" if parts > 1 else ""
        raise UserError(f"SOLVER.IMS_PER_BATCH {batch} cannot be shared evenly among {among}")


def _check_features(cfg: CfgNode, features: Iterable[str]) -> None:
    for key in FEATURE_KEYS.get(cfg.MODEL.META_ARCHITECTURE, ()):
        if not get(cfg, key):
            raise UserError(f"{key} is empty. Allowed: {', '.join(features)}.")
        for name in get(cfg, key):
            if name not in features:
                raise unknown(f"feature in {key}", name, features)


def from_libraries(error: Exception) -> bool:
    """Whether the error came of installed packages, detectron2 and this project alone, not of code that a user is writing."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    paths += [os.path.dirname(os.path.abspath(module)) for module in (detectron2.__file__, __file__)]
    return all(frame.filename.startswith((*paths, "<")) for frame in traceback.extract_tb(error.__traceback__))


_BOX_LOSSES = ("smooth_l1", "giou", "diou", "ciou")
_POOLERS = ("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
_CHOICES = {
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "MODEL.FPN.P6_INPUT": ("c5", "p5"),
    "TEST.COCO_EVALUATOR": ("fastest", "detectron2"),
    "MODEL.ACTIVATIONS": ACTIVATIONS,
    "MODEL.MEMORY_FORMAT": ("contiguous", "channels_last"),
    "SOLVER.AMP.PRECISION": ("float16", "bfloat16"),
    "INPUT.UNREADABLE": ("stop", "skip"),
    "INPUT.MAPPER": ("detectron2", "exact", "fast"),
    "ONE_SHOT.COST": ("macs", "parameters", "latency"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "SOLVER.LR_SCHEDULER_NAME": LR_SCHEDULERS,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": CLIP_TYPES,
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "DATALOADER.SAMPLER_TRAIN": (
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLERS,
    "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE": _POOLERS,
}
_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.BASE_LR": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "MODEL.FPN.OUT_CHANNELS": 1,
    "MODEL.ROI_HEADS.NUM_CLASSES": 1,
    "MODEL.RETINANET.NUM_CLASSES": 1,
    "MODEL.GFL.NUM_CLASSES": 1,
    "ONE_SHOT.GENERATIONS": 1,
    "ONE_SHOT.POPULATION": 1,
    "ONE_SHOT.PARENTS": 1,
    "ONE_SHOT.MUTATIONS": 0,
    "ONE_SHOT.CROSSOVERS": 0,
    "ONE_SHOT.CALIBRATION_IMAGES": 1,
    "ONE_SHOT.CALIBRATION_BATCH": 1,
    "MODEL.CLASSIFIER.NUM_CLASSES": 1,
    "MODEL.CLASSIFIER.CHANNELS": 0,
    "INPUT.CLASSIFICATION.SIZE": 1,
    "INPUT.CLASSIFICATION.COLOR_JITTER": 0,
    "ONE_SHOT.MUTATION_PROB": 0,
    "MODEL.GFL.NUM_CONVS": 0,
    "MODEL.GFL.REG_MAX": 1,
    "MODEL.GFL.ATSS_TOPK": 1,
    "MODEL.GFL.QUALITY_TOPK": 1,
    "MODEL.GFL.QUALITY_CHANNELS": 1,
    "MODEL.GFL.ANCHOR_SIZE": 0.1,
    "MODEL.GFL.TOPK_CANDIDATES_TEST": 1,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 1,
    "TEST.DETECTIONS_PER_IMAGE": 1,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.ACCUMULATE": 1,
    "SOLVER.REFERENCE_BATCH": 0,
    "TEST.PATIENCE": 0,
    "TEST.PICTURES": 0,
    "TEST.EVAL_PERIOD": 0,
}
# keys that name something registered, and the names that detectron2 takes beside those
REGISTERED = {
    "MODEL.META_ARCHITECTURE": (modeling.META_ARCH_REGISTRY,),
    "MODEL.BACKBONE.NAME": (modeling.BACKBONE_REGISTRY,),
    "MODEL.ANCHOR_GENERATOR.NAME": (modeling.ANCHOR_GENERATOR_REGISTRY,),
    "MODEL.PROPOSAL_GENERATOR.NAME": (modeling.PROPOSAL_GENERATOR_REGISTRY, "PrecomputedProposals"),
    "MODEL.RPN.HEAD_NAME": (modeling.RPN_HEAD_REGISTRY,),
    "MODEL.ROI_HEADS.NAME": (modeling.ROI_HEADS_REGISTRY,),
    "MODEL.ROI_BOX_HEAD.NAME": (modeling.ROI_BOX_HEAD_REGISTRY, ""),
    "MODEL.ROI_MASK_HEAD.NAME": (modeling.ROI_MASK_HEAD_REGISTRY,),
    "MODEL.ROI_KEYPOINT_HEAD.NAME": (modeling.ROI_KEYPOINT_HEAD_REGISTRY,),
    "MODEL.SEM_SEG_HEAD.NAME": (modeling.SEM_SEG_HEADS_REGISTRY,),
}
# which keys name features of the backbone, for each of detectron2's meta-architectures
FEATURE_KEYS = {
    "GeneralizedRCNN": ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"),
    "PanopticFPN": ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES", "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
    "ProposalNetwork": ("MODEL.RPN.IN_FEATURES",),
    "RetinaNet": ("MODEL.RETINANET.IN_FEATURES",),
    "MMDetRetinaNet": ("MODEL.RETINANET.IN_FEATURES",),
    "GFL": ("MODEL.GFL.IN_FEATURES",),
    "ImageClassifier": (),
    "SemanticSegmentor": ("MODEL.SEM_SEG_HEAD.IN_FEATURES",),
}


def add_data_arguments(parser) -> None:
    """The flags ``--train-json``, ``--train-images``, ``--val-json`` and ``--val-images`` of an argparse parser."""
    group = parser.add_argument_group("own data, in COCO's format, in the place of the config's; the number of classes and their names follow")
    for split, what in (("train", "to train on"), ("val", "to evaluate on")):
        group.add_argument(f"--{split}-json", default="", metavar="FILE", help=f"annotations {what}")
        group.add_argument(f"--{split}-images", default="", metavar="DIR", help="the folder of their images")


def make_files_absolute(cfg: CfgNode) -> None:
    """Structure and subnet files that are found from here are to be found from anywhere by the config.yaml that a run leaves."""
    for family, key in (("MAEDET", "STRUCTURE"), ("SHUFFLENETV2", "SUBNET")):
        if os.path.isfile(cfg.MODEL[family][key]):
            cfg.MODEL[family][key] = os.path.abspath(cfg.MODEL[family][key])


def apply_data_arguments(cfg: CfgNode, args, training: bool = True) -> None:
    """Puts the data of `add_data_arguments` into ``cfg``, and their classes; to be called before overrides, which then prevail.

    Raises UserError for a flag without its fellow, for files that are none of COCO's, and for two sets with other classes.
    """
    from .data.coco import read_categories

    entries, classes = [], {}
    for split in ("train", "val"):
        file, folder = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if bool(file) != bool(folder):
            raise UserError(f"--{split}-json and --{split}-images go together: --{split}-{'images' if file else 'json'} is missing")
        if file:
            entries.append([f"own_{split}", os.path.abspath(file), os.path.abspath(folder)])
            classes[split] = read_categories(f"own_{split}", file)
    if not entries:
        return
    if training and "train" not in classes:
        raise UserError("--val-json is there without --train-json: to evaluate alone, add --eval-only; to train, name what to train on")
    if not training and "val" not in classes:
        raise UserError("--train-json is there without --val-json, which --eval-only needs")
    if len(classes) == 2 and classes["train"] != classes["val"]:
        odd = next((a, b) for a, b in zip([*classes["train"], None], [*classes["val"], None]) if a != b)
        raise UserError(
            f"--train-json and --val-json have other categories (id, name): {odd[0]} in the one stands where the other has {odd[1]}"
        )
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, *entries]
    cfg.DATASETS.TRAIN = ("own_train",) if "train" in classes else ()
    cfg.DATASETS.TEST = ("own_val",) if "val" in classes else ()
    cfg.DATASETS.PROPOSAL_FILES_TRAIN, cfg.DATASETS.PROPOSAL_FILES_TEST = (), ()
    for key in ("ROI_HEADS", "RETINANET", "GFL"):
        cfg.MODEL[key].NUM_CLASSES = len(next(iter(classes.values())))


def get(cfg: CfgNode, key: str):
    """The value of a dotted key."""
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def check_output_dir(path: str, key: str = "OUTPUT_DIR") -> None:
    """Raises UserError where the folder ``path``, the value of ``key``, neither is there to be written into nor can be made."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"{key} {path!r} cannot be made: {existing!r} is a file")
    if not os.access(existing, os.W_OK):
        raise UserError(f"{key} {path!r} cannot be written: no permission for {existing!r}")


def check_device(device: str, key: str = "MODEL.DEVICE", form: str = "{} {}") -> None:
    """Raises UserError where torch cannot use ``device``, the value of ``key``; ``form`` is how an override is written."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise unknown(key, device, ("cuda", "cpu", "mps")) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"{key} is {device!r}, but torch sees no GPU here. To run on the CPU, add: {form.format(key, 'cpu')}")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"{key} is {device!r}, but torch sees no Apple GPU here. To run on the CPU, add: {form.format(key, 'cpu')}")
