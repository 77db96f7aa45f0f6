"""The three builders that every family has, written once: bare, with FPN (P2-P6), and with RetinaNet's FPN (P3-P7).

FPNLite is the FPN with ``MODEL.FPN.OUT_CHANNELS 128``.
"""

import math
from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import Tensor, nn

from .errors import UserError, unknown
from .layers import COMMON_NORMS
from .registry import BUILDERS, FAMILIES, Family

# options that a family's own node of the config has under the same names as RESNETS
COMMON_KEYS = ("NORM", "DEFORM_ON_PER_STAGE", "DEFORM_MODULATED", "DEFORM_NUM_GROUPS", "RES5_DILATION")


def common_options(cfg: CfgNode, node: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
    """The `layers.Options` that ``cfg`` and the family's own ``node`` set."""
    own = {key.lower(): node[key] for key in ("OUT_FEATURES", *COMMON_KEYS)}
    return {"in_channels": input_shape.channels, "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT, **own}


def _in_shapes(cfg: CfgNode, bottom_up: Backbone) -> list[ShapeSpec]:
    shapes = bottom_up.output_shape()
    names = list(cfg.MODEL.FPN.IN_FEATURES)
    if not names:
        raise UserError(f"MODEL.FPN.IN_FEATURES is empty. Allowed: {', '.join(shapes)}.")
    for name in names:
        if name not in shapes:
            raise unknown("feature in MODEL.FPN.IN_FEATURES", name, shapes)
    return [shapes[name] for name in names]


def build_fpn(cfg: CfgNode, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    """detectron2's FPN over ``bottom_up`` as ``cfg.MODEL.FPN`` says; raises UserError for unsuitable features."""
    names = list(cfg.MODEL.FPN.IN_FEATURES)
    strides = [shape.stride for shape in _in_shapes(cfg, bottom_up)]
    if any(b != 2 * a for a, b in zip(strides, strides[1:])):
        raise UserError(f"MODEL.FPN.IN_FEATURES {names} have strides {strides}: each must be twice the previous one")
    if cfg.MODEL.FPN.NORM not in COMMON_NORMS:
        raise unknown("MODEL.FPN.NORM", cfg.MODEL.FPN.NORM, COMMON_NORMS)
    if cfg.MODEL.FPN.FUSE_TYPE not in ("sum", "avg"):
        raise unknown("MODEL.FPN.FUSE_TYPE", cfg.MODEL.FPN.FUSE_TYPE, ("sum", "avg"))
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


class P6P7(LastLevelP6P7):
    """RetinaNet's two extra levels, by convolutions of stride 2: P6 from ``in_feature``, P7 from P6, through a ReLU or not."""

    def __init__(self, in_channels: int, out_channels: int, in_feature: str, relu: bool):
        super().__init__(in_channels, out_channels, in_feature)
        self.relu = relu

    def forward(self, x: Tensor) -> list[Tensor]:
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6) if self.relu else p6)]


def build_retinanet_fpn(cfg: CfgNode, bottom_up: Backbone) -> FPN:
    """RetinaNet's FPN: P3 to P5 as ``cfg.MODEL.FPN`` says, P6 from C5, the deepest of its features (or from P5), and P7."""
    deepest = _in_shapes(cfg, bottom_up)[-1]  # of the FPN's, not of the backbone's, or the strides of P6 and P7 would be others
    width, relu = cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.FPN.P6_RELU
    if cfg.MODEL.FPN.P6_INPUT == "p5":
        return build_fpn(cfg, bottom_up, P6P7(width, width, _deepest_level(cfg, bottom_up), relu))
    return build_fpn(cfg, bottom_up, P6P7(deepest.channels, width, cfg.MODEL.FPN.IN_FEATURES[-1], relu))


def _deepest_level(cfg: CfgNode, bottom_up: Backbone) -> str:
    """The FPN's last level, which is p5 unless the config leaves the last stage out."""
    return f"p{max(int(math.log2(shape.stride)) for shape in _in_shapes(cfg, bottom_up))}"


def register(*fields: Any, bare_alias: str = "", **more: Any) -> Family:
    """Adds the family with these ``fields``, and its builders to detectron2's ``BACKBONE_REGISTRY``; ``bare_alias`` also names the bare one."""
    family = Family(*fields, **more)

    def bare(cfg: CfgNode, input_shape: ShapeSpec) -> Backbone:
        return family.build(cfg, input_shape)

    def fpn(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
        bottom_up = family.build(cfg, input_shape)
        pool = LastLevelMaxPool()
        pool.in_feature = _deepest_level(cfg, bottom_up)
        return build_fpn(cfg, bottom_up, pool)

    def retinanet_fpn(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
        return build_retinanet_fpn(cfg, family.build(cfg, input_shape))

    network = family.network.__name__
    builders = {
        f"build_{family.name}_backbone": (bare, f"bare {network}: {', '.join(family.stages)}"),
        f"build_{family.name}_fpn_backbone": (fpn, f"{network} with FPN: p2 to p6"),
        f"build_retinanet_{family.name}_fpn_backbone": (retinanet_fpn, f"{network} with RetinaNet's FPN: p3 to p7"),
    }
    if bare_alias:
        builders[bare_alias] = (lambda cfg, input_shape: bare(cfg, input_shape), f"bare {network}")
    for name, (function, doc) in builders.items():
        function.__name__ = function.__qualname__ = name
        function.__doc__ = f"Builds the {doc}, as ``cfg`` says."
        BACKBONE_REGISTRY.register(function)
        BUILDERS[name] = family
    FAMILIES[family.name] = family
    return family
