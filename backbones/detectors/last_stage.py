"""RoI heads that run the backbone's own last stage (C4): detectron2's `Res5ROIHeads` for every family here."""

from typing import Any

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from detectron2.structures import Boxes
from torch import Tensor, nn

from ..errors import UserError
from ..registry import BUILDERS, create, family_of


def last_stage(name: str, **overrides: Any) -> nn.Module:
    """The last stage of a network alone, for `LastStageROIHeads` in Python configs; ``overrides`` as `registry.create`'s."""
    stage = family_of(name).stages[-1]
    return getattr(create(name, **{**overrides, "out_features": (stage,)}), stage)


@ROI_HEADS_REGISTRY.register()
class LastStageROIHeads(Res5ROIHeads):
    """The last stage of ``cfg``'s backbone runs on each region, and its mean feeds the predictors; with masks, its map feeds their head.

    The backbone ends one stage earlier (stride 16). With ResNet it is `Res5ROIHeads`. ``stage`` is the last stage's name, and with it the
    prefix of its weights in a file of the whole network; here the prefix is ``res5``.
    """

    @classmethod
    def from_config(cls, cfg, input_shape) -> dict:
        family = BUILDERS.get(cfg.MODEL.BACKBONE.NAME)
        wanted = [family.stages[-2] if family else "res4"]
        given = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        if given != wanted:
            message = f"MODEL.ROI_HEADS.IN_FEATURES is {given}: {cls.__name__} runs the last stage, which needs {wanted}"
            raise UserError(message, "value", "MODEL.ROI_HEADS.IN_FEATURES", wanted)
        if cfg.MODEL.KEYPOINT_ON:
            raise UserError(f"{cls.__name__} has no keypoint head: use an FPN config for keypoints")
        return {**super().from_config(cfg, input_shape), "stage": family.stages[-1] if family else "res5"}

    @configurable
    def __init__(self, *, stage: str = "res5", **kwargs):
        super().__init__(**kwargs)
        self.stage = stage

    def _shared_roi_transform(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        x = self.pooler(features, boxes)
        if len(x) == 0:  # some networks of timm cannot reshape nothing
            training = self.res5.training
            empty = self.res5.eval()(x.new_zeros([1] + list(x.shape[1:])))[:0]  # zeros are not to count in norms
            self.res5.train(training)
            return empty
        return self.res5(x)

    @classmethod
    def _build_res5_block(cls, cfg) -> tuple[nn.Module, int]:
        family = BUILDERS.get(cfg.MODEL.BACKBONE.NAME)
        if family is None:
            return super()._build_res5_block(cfg)
        name = family.stages[-1]
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL[family.name.upper()].OUT_FEATURES = [name]
        cfg.MODEL.BACKBONE.FREEZE_AT = 0
        network = family.build(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
        return getattr(network, name), network.output_shape()[name].channels
