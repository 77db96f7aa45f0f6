"""One word swaps the backbone, in any config of detectron2's zoo and of ours."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

import backbones
from backbones import use_backbone, zoo
from backbones.config import check_config
from backbones.registry import FAMILIES, family_of

THEIRS = [name for name in zoo._names(zoo._detectron2_root()) if not name.rpartition("/")[2].startswith("Base")]
DAILY = [
    "COCO-Detection/faster_rcnn_R_50_C4_1x.yaml",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml",
    "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "COCO-Detection/rpn_R_50_C4_1x.yaml",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml",
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn.yaml",
    "Misc/semantic_R_50_FPN_1x.yaml",
]
ONE_OF_EACH = ["V-19-slim-dw-eSE", "MobileNetV2", "RegNetY-400MF"]


def swapped(config, name):
    cfg = zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED = False  # which is refused on the CPU
    use_backbone(cfg, name)
    return cfg


def test_every_family_is_tried():
    assert {family_of(name).name for name in ONE_OF_EACH} == set(FAMILIES)


@pytest.mark.parametrize(
    "config", [*DAILY, *(pytest.param(n, marks=pytest.mark.slow) for n in [*THEIRS, *zoo.list_configs()] if n not in DAILY)]
)
def test_any_config_takes_any_backbone(config):
    """Model and solver build; C4 and DC5 are refused with the reason."""
    for name in ONE_OF_EACH:
        before = zoo.get_config(config)
        try:
            cfg = swapped(config, name)
        except backbones.UserError as error:
            assert ("C4" in str(error) and "Res5" in before.MODEL.ROI_HEADS.NAME) or (
                "DC5" in str(error) and before.MODEL.RESNETS.RES5_DILATION == 2
            )
            continue
        check_config(cfg, training=True)
        assert family_of(name).name in cfg.MODEL.BACKBONE.NAME
        assert ("retinanet" in cfg.MODEL.BACKBONE.NAME, "fpn" in cfg.MODEL.BACKBONE.NAME) == (
            "retinanet" in before.MODEL.BACKBONE.NAME,
            "fpn" in before.MODEL.BACKBONE.NAME,
        )
        assert cfg.MODEL.WEIGHTS == (f"backbones://{name}" if before.MODEL.WEIGHTS else "")
        assert cfg.MODEL.BACKBONE.FREEZE_AT == before.MODEL.BACKBONE.FREEZE_AT


def test_as_the_config_of_that_network():
    """The one word gives what our own YAML of that network gives."""
    ours, cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml"), swapped("faster_rcnn_V_99_FPN_3x.yaml", "V-39-eSE")
    for key in ("VOVNET", "FPN", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE", "RPN", "ROI_HEADS"):
        assert cfg.MODEL[key] == ours.MODEL[key], key
    ours, cfg = zoo.get_config("faster_rcnn_RegNetX_800MF_FPN_3x.yaml"), swapped("faster_rcnn_RegNetX_400MF_FPN_3x.yaml", "RegNetX-800MF")
    for key in ("REGNET", "FPN", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE", "WEIGHTS"):
        assert cfg.MODEL[key] == ours.MODEL[key], key


def test_preprocessing_belongs_to_the_weights():
    cfg = swapped("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "RegNetX-400MF")
    assert cfg.MODEL.PIXEL_STD == [57.375, 57.12, 58.395] and cfg.INPUT.FORMAT == "BGR"
    use_backbone(cfg, "V-39-eSE")
    assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]


def test_norm_and_deformable_stages_stay():
    cfg = swapped("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", "RegNetX-400MF")
    assert cfg.MODEL.REGNET.NORM == "GN"
    cfg = swapped("Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5.yaml", "V-39-eSE")
    assert cfg.MODEL.VOVNET.DEFORM_ON_PER_STAGE == [False, True, True, True]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_runs(name):
    cfg = swapped("COCO-Detection/retinanet_R_50_FPN_1x.yaml", name)
    with torch.no_grad():
        assert "instances" in build_model(cfg).eval()([{"image": torch.rand(3, 70, 90) * 255}])[0]


def test_a_config_without_our_keys():
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    use_backbone(cfg, "V-39-eSE")
    assert cfg.MODEL.FPN.IN_FEATURES == cfg.MODEL.VOVNET.OUT_FEATURES == ["stage2", "stage3", "stage4", "stage5"]


def test_mistakes():
    with pytest.raises(backbones.UserError, match="Did you mean 'RegNetX-3.2GF'"):
        use_backbone(get_cfg(), "RegNetX-3.2G")
