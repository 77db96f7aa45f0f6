"""One word puts a backbone into any config of detectron2's, or of a user's own."""

import re

from detectron2.config import CfgNode

from .config import add_backbones_config
from .errors import UserError
from .registry import FAMILIES, Family, family_of
from .zoo import weights

# keys that may name features of the backbone itself
_FEATURE_KEYS = ("FPN.IN_FEATURES", "RPN.IN_FEATURES", "ROI_HEADS.IN_FEATURES", "RETINANET.IN_FEATURES", "SEM_SEG_HEAD.IN_FEATURES")


def use_backbone(cfg: CfgNode, name: str) -> None:
    """Puts the network ``name`` into ``cfg``, in the place of the backbone that is there.

    Sets its builder (bare, FPN or RetinaNet's FPN, as before), variant, features and all keys that name them, channel order, mean, deviation
    and weights (converted ones of that name, or those released). Norm, deformable stages, FREEZE_AT, and whether training is from scratch
    stay as the config has them. Raises UserError for a name that does not exist, or a config whose detector runs the last stage in its
    heads (C4) or dilates it (DC5).
    """
    family = family_of(name)
    add_backbones_config(cfg)
    before = cfg.MODEL.BACKBONE.NAME
    _refuse_what_is_not_there(cfg, before)
    old = next((f for f in FAMILIES.values() if f"_{f.name}_" in before), None)
    node, source = cfg.MODEL[family.name.upper()], cfg.MODEL[old.name.upper()] if old else cfg.MODEL.RESNETS
    kept = {key: source[key] for key in ("NORM", "DEFORM_ON_PER_STAGE", "DEFORM_MODULATED", "DEFORM_NUM_GROUPS")}
    if family.variant_key:
        _set(cfg, family.variant_key, name)
    for key, value in kept.items():
        node[key] = value
    if "retinanet" in before:
        cfg.MODEL.BACKBONE.NAME = f"build_retinanet_{family.name}_fpn_backbone"
    else:
        cfg.MODEL.BACKBONE.NAME = f"build_{family.name}_fpn_backbone" if "fpn" in before else f"build_{family.name}_backbone"
    used = set()
    for key in _FEATURE_KEYS:
        group, leaf = key.split(".")
        features = [_feature(feature, family) for feature in cfg.MODEL[group][leaf]]
        cfg.MODEL[group][leaf] = features
        used.update(feature for feature in features if feature in family.stages and ("fpn" not in before or group == "FPN"))
    node.OUT_FEATURES = [stage for stage in family.stages if stage in used] or list(family.stages[1:])
    row = weights.released(name)
    if row:
        images = row["preprocessing"]
        cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = images["format"], list(images["pixel_mean"]), list(images["pixel_std"])
    if cfg.MODEL.WEIGHTS:
        cfg.MODEL.WEIGHTS = weights.PREFIX + name


def _refuse_what_is_not_there(cfg: CfgNode, before: str) -> None:
    if "fpn" in before:
        return
    if "Res5ROIHeads" in cfg.MODEL.ROI_HEADS.NAME and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        raise UserError(
            f"MODEL.ROI_HEADS.NAME {cfg.MODEL.ROI_HEADS.NAME!r} runs ResNet's own last stage (C4): take the FPN config of the same detector"
        )
    if cfg.MODEL.RESNETS.RES5_DILATION != 1:
        raise UserError("this config dilates ResNet's last stage (DC5): take the FPN config of the same detector")


def _feature(feature: str, family: Family) -> str:
    """res4, or stage4, by the family's own name; what is no stage of a backbone's (p2 to p7) as it is."""
    match = re.fullmatch(r"(?:res|stage)([2-5])", feature)
    return family.stages[int(match[1]) - 1] if match else feature


def _set(cfg: CfgNode, key: str, value) -> None:
    *path, leaf = key.split(".")
    for part in path:
        cfg = cfg[part]
    cfg[leaf] = value
