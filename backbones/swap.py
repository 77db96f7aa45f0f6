"""Puts a backbone into any config, detectron2's or a user's own, by its name."""

import logging
import re
from typing import Any, Collection, Sequence

import yaml
from detectron2.config import CfgNode, LazyCall
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from omegaconf import DictConfig, OmegaConf

from .config import ARCHITECTURES, add_backbones_config, architecture, defaults, get, merge_overrides, put
from .detectors import LastStageROIHeads, last_stage
from .errors import UserError
from .fpn import COMMON_KEYS
from .meta import on_meta
from .registry import BUILDERS, Family, create, family_of, is_network
from .zoo import weights

# keys that may name features of the backbone itself
_FEATURE_KEYS = dict.fromkeys(("MODEL.FPN.IN_FEATURES", *(key for row in ARCHITECTURES.values() for key in row.features or ())))


def use_backbone(cfg: CfgNode | DictConfig, name: str, own_weights: bool = False, accepted: Collection[str] = ()) -> None:
    """Replaces the backbone of ``cfg`` by the network ``name``.

    Sets its builder (bare, FPN or RetinaNet's FPN, as before), variant, features and all keys that name them, channel order, mean, deviation
    and weights: converted ones of that name, with what they state about their images and structure, or released ones. Norm, deformable stages,
    FREEZE_AT, and whether training is from scratch stay as in the config, and so do grey images if it is. Training is from scratch, though, if
    there are no weights: with GN or LN in place of batch norms, and for networks without any, where SyncBN replaces frozen norms. A detector
    that runs the last stage in its heads (C4) or dilates it (DC5) does so with this network's. Python configs (detectron2's LazyConfig) with
    an FPN over a ``bottom_up``, or a bare backbone, are changed likewise. With ``own_weights`` the caller will set other weights: missing
    released weights do not lead to training from scratch.
    ``accepted``: restrictive licences of weights that may be used.

    Raises UserError for an unknown name, a frozen config, a user's own heads that run ResNet's last stage, or a Python config
    with another structure.
    """
    family = family_of(name)
    if isinstance(cfg, DictConfig):
        return _use_in_lazy(cfg, name, family, own_weights, accepted)
    if cfg.is_frozen():
        raise UserError("the config is frozen: call cfg.defrost() before use_backbone", "unsupported")
    add_backbones_config(cfg)
    before = cfg.MODEL.BACKBONE.NAME
    old = BUILDERS.get(before)
    source = cfg.MODEL[old.name.upper() if old else "RESNETS"]
    kept = {key: source[key] for key in COMMON_KEYS}
    # remove every setting of another network's structure
    node = cfg.MODEL[family.name.upper()] = defaults().MODEL[family.name.upper()]
    node.update(kept)
    if family.variant_key:
        put(cfg, family.variant_key, name)
    # a user's own builder may have any name
    row = architecture(cfg)
    keys = _FEATURE_KEYS if row.features is None else row.features
    pyramid = "fpn" in before or any(re.fullmatch(r"p\d", feature) for key in keys for feature in get(cfg, key))
    retinanet = pyramid and ("retinanet" in before or row.dense)
    cfg.MODEL.BACKBONE.NAME = f"build_{'retinanet_' * retinanet}{family.name}{'_fpn' * pyramid}_backbone"
    if pyramid and not cfg.MODEL.FPN.IN_FEATURES:
        cfg.MODEL.FPN.IN_FEATURES = list(family.stages[2 if retinanet else 1 :])
    _set_last_stage_heads(cfg)
    used: set[str] = set()
    for key in _FEATURE_KEYS:
        features = [_feature(feature, family) for feature in get(cfg, key)]
        put(cfg, key, features)
        used.update(feature for feature in features if feature in family.stages and (key == "MODEL.FPN.IN_FEATURES") == pyramid)
    node.OUT_FEATURES = [stage for stage in family.stages if stage in used] or list(family.stages[1:])
    images, overrides = weights.about(name, accepted)
    for key in overrides[::2]:
        if not key.startswith(f"MODEL.{family.name.upper()}."):
            raise UserError(f"the weights {weights.local(name)!r} need {key}, which is not an option of {name}", "unknown-key", key)
    merge_overrides(cfg, overrides)
    cfg.INPUT.NORMALIZATION = "weights"
    if cfg.MODEL.WEIGHTS and not own_weights:
        cfg.MODEL.WEIGHTS, norm = _weights(name, node.NORM, accepted, "MODEL.WEIGHTS '', MODEL.BACKBONE.FREEZE_AT 0")
        if norm:
            cfg.MODEL.BACKBONE.FREEZE_AT, node.NORM = 0, norm
    if cfg.MODEL.WEIGHTS or own_weights or cfg.INPUT.FORMAT != "L":  # from scratch, grey images stay grey
        for key, value in weights.settings(images).items():
            put(cfg, key, value)


def _set_last_stage_heads(cfg: CfgNode) -> None:
    name = cfg.MODEL.ROI_HEADS.NAME
    heads = ROI_HEADS_REGISTRY.get(name) if name in ROI_HEADS_REGISTRY else None
    if name == "Res5ROIHeads":
        cfg.MODEL.ROI_HEADS.NAME = "LastStageROIHeads"
    elif isinstance(heads, type) and issubclass(heads, Res5ROIHeads) and not issubclass(heads, LastStageROIHeads):
        said = f"MODEL.ROI_HEADS.NAME {name!r} runs ResNet's last stage: derive its class from backbones.detectors.LastStageROIHeads"
        raise UserError(said, "unsupported", "MODEL.ROI_HEADS.NAME")


def _feature(feature: str, family: Family) -> str:
    """res4 or stage4 under the family's own name; other features (p2 to p7) unchanged."""
    match = re.fullmatch(r"(?:res|stage)([2-5])|s([1-4])", feature)
    return family.stages[int(match[1]) - 1 if match[1] else int(match[2])] if match else feature


def _use_in_lazy(cfg: DictConfig, name: str, family: Family, own_weights: bool, accepted: Collection[str]) -> None:
    model = cfg.model
    outer = model.get("backbone")
    old = outer if outer is None or "bottom_up" not in outer else outer.bottom_up
    bare = old is outer and model.get("proposal_generator") is None
    if old is None or bare or ("out_features" not in old and "in_features" not in outer):
        said = (
            "the model of this Python config has neither an FPN over a bottom_up nor a bare backbone with out_features and a proposal_generator"
        )
        raise UserError(f"{said}, so its network cannot be replaced", "unsupported")
    features = [_feature(feature, family) for feature in (outer.in_features if old is not outer else old.out_features)]
    options = {"norm": old.get("stages", old).get("norm", "FrozenBN")}
    options.update({key: old[key] for key in ("freeze_at", *(key.lower() for key in COMMON_KEYS[1:])) if key in old})
    images, overrides = weights.about(name, accepted)
    options.update(_arguments(overrides))
    if cfg.get("train", {}).get("init_checkpoint") and not own_weights:
        cfg.train.init_checkpoint, norm = _weights(name, options["norm"], accepted, "train.init_checkpoint='', freeze_at 0")
        if norm:
            options["freeze_at"], options["norm"] = 0, norm
    grey = model.get("input_format") == "L" and not own_weights and not cfg.get("train", {}).get("init_checkpoint")
    if grey:  # from scratch, grey images stay grey
        options["in_channels"] = 1
    network = LazyCall(create)(name=name, out_features=features, **options)
    if old is not outer:
        outer.bottom_up, outer.in_features = network, features
    else:
        model.backbone = network
        heads = model.get("roi_heads")
        model.proposal_generator.in_features = features
        for key in [key for key in heads or () if str(key).endswith("in_features")]:
            heads[key] = [_feature(feature, family) for feature in heads[key]]
        if heads is not None and "res5" in heads:
            heads._target_, heads.stage = LastStageROIHeads, family.stages[-1]
            heads.res5 = LazyCall(last_stage)(name=name, **{key: value for key, value in options.items() if key != "freeze_at"})
    _fit_widths(model)
    if "train" in cfg:
        OmegaConf.update(cfg, "train.normalization", "weights", force_add=True)
    if images and not grey:
        model.pixel_mean, model.pixel_std = list(images["pixel_mean"]), list(images["pixel_std"])
        for place, key in (("model", "input_format"), ("dataloader.train.mapper", "image_format"), ("dataloader.test.mapper", "image_format")):
            node = OmegaConf.select(cfg, place)
            if isinstance(node, DictConfig) and key in node.keys():  # `in node` would follow what it refers to, which may be gone
                node[key] = images["format"]


def _fit_widths(model: DictConfig) -> None:
    """Gives the top block or the heads of a Python config the widths of its network, one of this project's."""
    outer, heads, proposals = model.backbone, model.get("roi_heads"), model.get("proposal_generator")
    options: Any = OmegaConf.to_container(outer.get("bottom_up", outer), resolve=True)
    family = family_of(options["name"])
    with on_meta():
        shapes = create(
            **{key: value for key, value in options.items() if key not in ("_target_", "out_features", "freeze_at", "norm")}
        ).output_shape()
    top = outer.get("top_block")
    if top is not None and "in_channels" in top:
        top.in_feature = _feature(top.get("in_feature", "res5"), family)
        if top.in_feature in shapes:
            top.in_channels = shapes[top.in_feature].channels
    features = proposals.get("in_features") if proposals is not None else None
    if features and features[-1] in shapes and "head" in proposals:
        proposals.head.in_channels = shapes[features[-1]].channels
    for part in ("box", "mask", "keypoint") if heads is not None else ():
        features = heads.get(f"{part}_in_features")
        if features and features[-1] in shapes and heads.get(f"{part}_head") is not None:
            heads[f"{part}_head"].input_shape.channels = shapes[features[-1]].channels
    if heads is not None and "res5" in heads:
        for part in ("box_predictor", "mask_head"):
            if heads.get(part) is not None:
                heads[part].input_shape.channels = shapes[family.stages[-1]].channels


def _arguments(overrides: Sequence[str]) -> dict[str, Any]:
    """Turns keys of YAML configs into a network's arguments: their last parts."""
    return {key.rpartition(".")[2].lower(): yaml.safe_load(value) for key, value in zip(overrides[::2], overrides[1::2])}


def use_weights(cfg: CfgNode | DictConfig, source: str) -> None:
    """Makes ``cfg`` start from other weights, which then determine channel order, mean and standard deviation of images.

    ``source``: a path or address, or one of a network's own sources, as in "timm" or "pycls:RegNetX-3.2GF".
    """
    if source.partition(":")[0] in weights.data()["sources"] and "://" not in source:
        source = f"{weights.PREFIX}{network_of(cfg)}@{source}"
    weights.parsed(source)
    if isinstance(cfg, DictConfig):
        cfg.train.init_checkpoint = source
        OmegaConf.update(cfg, "train.normalization", "weights", force_add=True)
    else:
        cfg.MODEL.WEIGHTS, cfg.INPUT.NORMALIZATION = source, "weights"


def network_of(cfg: CfgNode | DictConfig) -> str:
    """The name of the network in a config. Raises UserError if it is not one of this project's."""
    if isinstance(cfg, DictConfig):
        node = cfg.model.get("backbone") or {}
        name = node.get("bottom_up", node).get("name", "")
    else:
        family = BUILDERS.get(cfg.MODEL.BACKBONE.NAME)
        name = "" if family is None else get(cfg, family.variant_key) if family.variant_key else next(iter(family.specs))
    if not name:
        said = "the config's network is none of this project's, so it has no named sources: give --weights a file or an address"
        raise UserError(f"{said}, or add --backbone", "unsupported", "--weights")
    family_of(name)
    return str(name)


def use_structure(cfg: CfgNode | DictConfig, overrides: Sequence[str]) -> None:
    """Sets the network structure that weights need: KEY, VALUE, ... as in YAML configs."""
    if isinstance(cfg, CfgNode):
        merge_overrides(cfg, list(overrides))
    elif overrides:
        model, arguments = cfg.model, _arguments(overrides)
        node, heads = model.backbone.get("bottom_up", model.backbone), model.get("roi_heads")
        node.update(arguments)
        if is_network(node.get("name", "")):
            if heads is not None and "res5" in heads:
                heads.res5.update(arguments)
            _fit_widths(model)


def _keys(name: str, norm: str) -> set[str]:
    with on_meta():
        return set(create(name, norm=norm).state_dict())


def _weights(name: str, norm: str, accepted: Collection[str], scratch: str) -> tuple[str, str]:
    """The address of a network's weights, and ""; or "", and the norm to train without: a warning says so, and that ``scratch`` is then set."""
    if norm in ("GN", "LN") and _keys(name, norm) != _keys(name, "BN"):  # not a network of timm that keeps its own norms
        reason = f" with this config's norm {norm}; to use the released weights, set the norm to FrozenBN"
    elif weights.released(name, accepted) or weights.local(name):
        return weights.PREFIX + name, ""
    else:
        norm = "SyncBN" if norm in ("FrozenBN", "EvalBN") else norm  # frozen statistics would not fit any data
        releases = weights.releases(name)
        known = [f"{release.spec}: {release.gone or release.restricted}" for release in releases]
        reason = f", released or in {weights.folder()!r}" if not known else f" that can be downloaded freely ({'; '.join(known)})"
        if alive := [release.spec for release in releases if not release.gone]:
            reason += f". To accept the licence of one, add --accept-licence with its name, or --weights {alive[0]}"
    logging.getLogger(__name__).warning(f"{name} is trained from scratch ({scratch}, norm {norm}): it has no weights{reason}")
    return "", norm
