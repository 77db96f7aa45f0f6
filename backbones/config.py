"""Every config key this project adds, and the check of a whole config before anything heavy starts."""

import os
from typing import Iterable, List

import torch
import yaml
from detectron2 import modeling
from detectron2.config import CfgNode
from detectron2.config.compat import guess_version
from detectron2.modeling import build_backbone

from .errors import UserError, unknown
from .layers import NORMS


def add_backbones_config(cfg: CfgNode) -> None:
    """Adds this project's keys with their defaults to a detectron2 config; keys that are there already keep their values."""
    vovnet = _node(cfg.MODEL, "VOVNET")
    _default(vovnet, "CONV_BODY", "V-39-eSE")  # any of list_backbones("V-*")
    _default(vovnet, "OUT_FEATURES", ["stage2", "stage3", "stage4", "stage5"])  # among stem, stage2 to stage5
    _default(vovnet, "NORM", "FrozenBN")  # any of layers.NORMS; "" is none
    _default(vovnet, "ESE", "all")  # gates in "all" blocks (the released weights) or the "last" of each stage (timm)
    _deformable(vovnet)
    # of vovnet-detectron2, where they do nothing either: MODEL.FPN.OUT_CHANNELS sets the FPN's width
    _default(vovnet, "OUT_CHANNELS", 256)
    _default(vovnet, "BACKBONE_OUT_CHANNELS", 256)

    mobilenet = _node(cfg.MODEL, "MOBILENETV2")
    _default(mobilenet, "OUT_FEATURES", [])  # among stem, res2 to res5; empty: as MODEL.RESNETS.OUT_FEATURES says
    _default(mobilenet, "NORM", "FrozenBN")
    _deformable(mobilenet)

    # COCO-format data to register, no code needed: [name, annotation file, image folder] each; names go into DATASETS.TRAIN and TEST
    _default(cfg.DATASETS, "REGISTER", [])


add_vovnet_config = add_backbones_config  # what vovnet-detectron2's users call


def _node(parent: CfgNode, name: str) -> CfgNode:
    if name not in parent:
        parent[name] = CfgNode()
    return parent[name]


def _default(node: CfgNode, key: str, value) -> None:
    if key not in node:
        node[key] = value


def _deformable(node: CfgNode) -> None:
    # named as detectron2 names them for ResNet
    _default(node, "DEFORM_ON_PER_STAGE", [False, False, False, False])  # the stages behind the stem, at strides 4, 8, 16, 32
    _default(node, "DEFORM_MODULATED", False)  # v2: a learned weight for each sampling point
    _default(node, "DEFORM_NUM_GROUPS", 1)


def all_keys(cfg: CfgNode, prefix: str = "") -> List[str]:
    """Every key of a config, in the dotted form of the command line."""
    keys: List[str] = []
    for key, value in cfg.items():
        keys += all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def merge_file(cfg: CfgNode, path: str) -> None:
    """``cfg.merge_from_file``, with what is wrong in the file said in one line.

    As in detectron2, a config may hold Python expressions (its RetinaNet's does): configs of strangers are to be read before use.
    """
    if not os.path.isfile(path):
        raise UserError(f"config file {path!r} is not there")
    try:
        content = CfgNode(cfg.load_yaml_with_base(path, allow_unsafe=True))
        if (content.get("VERSION", None) or guess_version(content, path)) == cfg.VERSION:  # detectron2 upgrades older ones
            known = set(all_keys(cfg))
            for key in all_keys(content):
                _check_key(cfg, key, known, path)
        cfg.merge_from_file(path, allow_unsafe=True)
    except UserError:
        raise
    except (yaml.YAMLError, KeyError, ValueError, AssertionError, AttributeError, OSError, TypeError) as error:
        raise UserError(f"config file {path!r}: {_one_line(error)}") from error


def merge_overrides(cfg: CfgNode, opts: List[str]) -> None:
    """``cfg.merge_from_list`` of command-line overrides, with what is wrong in them said in one line."""
    if len(opts) % 2:
        raise UserError(f"overrides are pairs of KEY VALUE, but their number is odd: {' '.join(opts)}")
    known = set(all_keys(cfg))
    for key, value in zip(opts[::2], opts[1::2]):
        _check_key(cfg, key, known, "the command line")
        try:
            cfg.merge_from_list([key, value])
        except (KeyError, ValueError, AssertionError, AttributeError, TypeError, SyntaxError) as error:
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


def check_config(cfg: CfgNode) -> None:
    """Raises UserError for a backbone, variant, norm, feature, meta-architecture, device or output folder that cannot be.

    The backbone is built on the meta device, which costs no memory, so that its own checks speak.
    """
    check_device(cfg.MODEL.DEVICE)
    _check_output_dir(cfg.OUTPUT_DIR)
    for key in all_keys(cfg):
        if key.endswith(".NORM"):
            value = _get(cfg, key)
            if isinstance(value, str) and value not in NORMS:
                raise unknown(key, value, NORMS)
    for key, allowed in _CHOICES.items():
        if _get(cfg, key) not in allowed:
            raise unknown(key, _get(cfg, key), allowed)
    for key, (registry, *others) in _REGISTERED.items():
        if _get(cfg, key) not in registry and _get(cfg, key) not in others:
            raise unknown(key, _get(cfg, key), [*sorted(name for name, _ in registry), *others])
    try:
        with torch.device("meta"):
            features = build_backbone(cfg).output_shape()
    except UserError:
        raise
    except (KeyError, AssertionError, ValueError, ImportError) as error:  # how detectron2's own backbones refuse a config, or lack _C
        raise UserError(f"MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME}: {type(error).__name__}: {_one_line(error)}") from error
    except (NotImplementedError, RuntimeError):  # a builder of the user's own that cannot be tried without memory
        return
    for key in _FEATURE_KEYS.get(cfg.MODEL.META_ARCHITECTURE, ()):
        for name in _get(cfg, key):
            if name not in features:
                raise unknown(f"feature in {key}", name, features)


_CHOICES = {
    "INPUT.FORMAT": ("BGR", "RGB", "L", "YUV-BT.601"),
    "INPUT.MASK_FORMAT": ("polygon", "bitmask"),
    "SOLVER.LR_SCHEDULER_NAME": ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
}
# keys that name something registered, and the names that detectron2 takes beside those
_REGISTERED = {
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
_FEATURE_KEYS = {
    "GeneralizedRCNN": ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"),
    "PanopticFPN": ("MODEL.RPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES", "MODEL.SEM_SEG_HEAD.IN_FEATURES"),
    "ProposalNetwork": ("MODEL.RPN.IN_FEATURES",),
    "RetinaNet": ("MODEL.RETINANET.IN_FEATURES",),
    "SemanticSegmentor": ("MODEL.SEM_SEG_HEAD.IN_FEATURES",),
}


def _get(cfg: CfgNode, key: str):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _check_output_dir(path: str) -> None:
    existing = os.path.abspath(path)
    while not os.path.lexists(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise UserError(f"OUTPUT_DIR {path!r} cannot be made: {existing!r} is a file")
    if not os.access(existing, os.W_OK):
        raise UserError(f"OUTPUT_DIR {path!r} cannot be written: no permission for {existing!r}")


def check_device(device: str) -> None:
    """Raises UserError where torch cannot use ``device``."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise unknown("MODEL.DEVICE", device, ("cuda", "cpu", "mps")) from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"MODEL.DEVICE is {device!r}, but torch sees no GPU here. To run on the CPU, add: MODEL.DEVICE cpu")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"MODEL.DEVICE is {device!r}, but torch sees no Apple GPU here. To run on the CPU, add: MODEL.DEVICE cpu")
