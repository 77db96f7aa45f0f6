"""Every YAML of ours merges, is valid and builds; names resolve; what is wrong with a config is said in one line."""

import functools
import glob
import itertools
import math
import os
import re

import pytest
import torch
import yaml
from choices import cases
from conftest import ROOT, load_record
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import backbones
from backbones import UserError, zoo
from backbones.config import KEYS, add_backbones_config, all_keys, check_config, flat, merge_file, merge_overrides, written
from backbones.engine import open_config
from backbones.meta import on_meta
from backbones.registry import FAMILIES
from backbones.shufflenetv2 import SPECS
from backbones.zoo import weights

CONFIGS = zoo.list_configs()
_REFERENCE = load_record("vovnet_configs.json")["configs"]
RELEASED = [name for name in CONFIGS if os.path.basename(name) in _REFERENCE and name.startswith("COCO-")]
REGNET = [name for name in CONFIGS if "RegNet" in name and name.startswith("COCO-")]


def own(name):
    """(content, bases) of a config's own file."""
    with open(zoo.get_config_file(name)) as f:
        content = yaml.safe_load(f)
    bases = content.pop("_BASE_", [])
    return content, [bases] if isinstance(bases, str) else bases


def _detector(name):
    """What the configs of one detector and family have in common: their bases without the schedule."""
    return name.split("/")[0] == "reproduce" or tuple(base for base in own(name)[1] if "/3x" not in base) or name


# one for each detector and family
KINDS = list({_detector(name): name for name in CONFIGS}.values())
PARAMETERS = load_record("complexity.json")["parameters"]


def on_cpu(name):
    cfg = zoo.get_config(name)
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def built_on_meta(cfg):
    """The model without memory or time."""
    cfg.MODEL.DEVICE = "meta"
    with on_meta():
        return build_model(cfg)


def numel(module, buffers):
    """Parameters; with ``buffers``, the affine part of frozen norms too."""
    frozen = [b for key, b in module.named_buffers() if re.search(r"(norm)\.(weight|bias)$", key)] if buffers else []
    return sum(t.numel() for t in [*module.parameters(), *frozen])


@pytest.mark.parametrize("name", cases(CONFIGS, tried=KINDS))
def test_builds(name):
    """Nearly all others are built for model_zoo.md too, see test_tools.py."""
    cfg = on_cpu(name)
    assert type(built_on_meta(cfg)).__name__ == cfg.MODEL.META_ARCHITECTURE


@pytest.mark.parametrize("name", cases(CONFIGS, tried=CONFIGS, daily=KINDS))
def test_valid(name):
    cfg = on_cpu(name)
    check_config(cfg)
    assert cfg.MODEL.BACKBONE.FREEZE_AT == (2 if "RegNet" in name and cfg.MODEL.WEIGHTS else 0)
    assert cfg.OUTPUT_DIR.startswith(("output/", "checkpoints/"))


def test_the_reference_configs_are_all_there():
    assert len(RELEASED) == 16
    bases = [f for f in os.listdir(zoo.config_root()) if f.startswith("Base-")]
    assert {"Base-RCNN-VoVNet-FPN.yaml", "Base-RCNN-MobileNet-FPN.yaml", "Base-Panoptic-FPN.yaml"} <= set(bases)


@pytest.mark.parametrize("flat", [name for name in PARAMETERS if "V_" in name or "Mv2" in name])
def test_parameter_counts(flat):
    """Exactly the original's, in every column; configs are found by their flat names."""
    model = built_on_meta(on_cpu(flat))
    net = model.backbone.bottom_up
    counts = [numel(net, False), numel(net, True), numel(model.backbone, True), numel(model, False), numel(model, True)]
    assert counts == PARAMETERS[flat]


@pytest.mark.parametrize("name", RELEASED)
def test_values_of_the_reference(name):
    cfg = on_cpu(name)
    expected = _REFERENCE[os.path.basename(name)]
    body = cfg.MODEL.VOVNET.CONV_BODY if "vovnet" in cfg.MODEL.BACKBONE.NAME else "MobileNetV2"
    actual = {"conv_body": body, "fpn_channels": cfg.MODEL.FPN.OUT_CHANNELS, "mask": cfg.MODEL.MASK_ON}
    actual.update(output_dir=cfg.OUTPUT_DIR, base=os.path.basename(own(name)[1][0]))
    assert actual == {key: value for key, value in expected.items() if key != "weights"}
    assert cfg.MODEL.WEIGHTS == f"backbones://{body}"  # by name: the host of its own weights is gone
    assert cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    assert (cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == ((210000, 250000), 270000)
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.BASE_LR) == (16, 0.02)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (640, 672, 704, 736, 768, 800)
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675] and cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0] and cfg.INPUT.FORMAT == "BGR"
    assert zoo.get_checkpoint_url(name).startswith("https://")


def test_no_config_asks_a_host_that_is_gone():
    paths = [path for path in glob.glob(os.path.join(zoo.config_root(), "**", "*"), recursive=True) if os.path.isfile(path)]
    assert len(paths) > 250
    for path in paths:
        with open(path) as f:
            assert "dropbox" not in f.read(), path


@pytest.mark.slow
def test_no_config_begins_with_weights_that_are_gone():
    """Each one's first source is not known to be dead, or it has none at all, and the error says how to begin without."""
    names, without = zoo.list_configs(python=True), set()
    gone = {release.url for name in weights.data()["weights"] for release in weights.releases(name) if release.gone}
    for name in names:
        address = open_config(name).settings.MODEL.WEIGHTS
        own = weights.parsed(address) if address and not name.startswith("reproduce") else None
        release = own and weights.released(own[0])
        if own and not release:
            without.add(own[0])
        elif own:
            assert release.free and release.place.startswith(("https://", "hub:")), (name, release)
        else:
            assert address not in gone, name
    assert len(names) > 230 and len(gone) >= 7 and without == {"V-19-eSE", "V-19-slim-eSE", "V-19-slim-dw-eSE", "V-99-eSE"}
    for name in without:
        with pytest.raises(UserError, match=f"is on a file-sharing host.*'weights/{name}.pth'; from scratch: set MODEL.WEIGHTS ''"):
            weights.find(weights.PREFIX + name)


def test_configs_say_only_what_differs():
    """From their bases and from all defaults."""
    defaults = get_cfg()
    add_backbones_config(defaults)
    load = functools.lru_cache(maxsize=None)(CfgNode.load_yaml_with_base)
    repeated = {}
    for path in glob.glob(os.path.join(zoo.config_root(), "**", "*.yaml"), recursive=True):
        content, bases = own(path)
        bases = [CfgNode(load(os.path.normpath(os.path.join(os.path.dirname(path), base)))) for base in bases]
        if not any("META_ARCHITECTURE" in base.get("MODEL", {}) for base in bases):
            continue  # not a detector by itself: bases like these go over one
        base = defaults.clone()
        for other in bases:
            base.merge_from_other_cfg(other)
        leaf = base.clone()
        leaf.merge_from_other_cfg(CfgNode(content))
        before, after = flat(base), flat(leaf)
        repeated[path] = {key for key in flat(content) if before[key] == after[key]}
    assert len(repeated) > 230
    # but each may say which network it is
    named = {"MODEL.VOVNET.CONV_BODY", "MODEL.REGNET.NAME", "MODEL.MAEDET.NAME", "MODEL.SHUFFLENETV2.NAME", "MODEL.WEIGHTS"}
    assert not {path: keys - named for path, keys in repeated.items() if keys - named}


# MMDetection's table: network -> schedules, of each kind of detector
MMDET = {
    "faster_rcnn": {"400MF": "3x", "800MF": "3x", "1.6GF": "3x", "3.2GF": "1x 2x 3x", "4.0GF": "3x"},
    "mask_rcnn": {
        "3.2GF": "1x 1x_dconv_c3-c5 3x",
        "4.0GF": "1x 3x",
        "6.4GF": "1x",
        "8.0GF": "1x",
        "12GF": "1x",
        "400MF": "3x",
        "800MF": "3x",
        "1.6GF": "3x",
    },
    "cascade_mask_rcnn": {"400MF": "3x", "800MF": "3x", "1.6GF": "3x", "3.2GF": "3x", "4.0GF": "3x"},
    "retinanet": {"800MF": "1x", "1.6GF": "1x", "3.2GF": "1x"},
}


def test_every_row_of_mmdetections_table_has_a_config():
    names = [f"{kind}_RegNetX_{n}_FPN_{s}.yaml" for kind, rows in MMDET.items() for n, schedules in rows.items() for s in schedules.split()]
    assert len(names) == 26
    there = {os.path.basename(name) for name in REGNET}
    assert set(names) <= there
    # and what it has not
    for kind in ("faster_rcnn_RegNetY", "mask_rcnn_RegNetY", "keypoint_rcnn_RegNetX", "keypoint_rcnn_RegNetY", "panoptic_fpn_RegNetX"):
        assert any(name.startswith(kind) for name in there), kind


@pytest.mark.parametrize("name", REGNET)
def test_recipe_of_mmdetection(name):
    cfg = on_cpu(name)
    kind, schedule = os.path.basename(name), re.search(r"_(\dx)", name)[1]
    spec = re.search(r"RegNet[XY]_[\d.]+[MG]F", kind)[0].replace("_", "-")
    assert cfg.MODEL.REGNET.NAME == spec and cfg.MODEL.WEIGHTS == f"backbones://{spec}"
    assert (cfg.MODEL.REGNET.NORM, cfg.MODEL.BACKBONE.FREEZE_AT) == ("EvalBN", 2)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MOMENTUM) == (0.02, 16, 0.9)
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_NORM == 5e-5 and cfg.SOLVER.WEIGHT_DECAY_BIAS in (None, 5e-5)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (500, 0.001)
    assert cfg.MODEL.PIXEL_MEAN == [103.53, 116.28, 123.675] and cfg.MODEL.PIXEL_STD == [57.375, 57.12, 58.395] and cfg.INPUT.FORMAT == "BGR"
    assert cfg.SOLVER.MAX_ITER == {"1x": 90000, "2x": 180000, "3x": 270000}[schedule]
    clipped = kind.startswith("retinanet") or (kind.startswith("mask") and schedule == "3x")
    clip = cfg.SOLVER.CLIP_GRADIENTS
    assert clip.ENABLED == clipped and (not clipped or (clip.CLIP_TYPE, clip.CLIP_VALUE) == ("full_model", 35.0))
    if schedule == "3x" and not kind.startswith(("keypoint", "mask_rcnn_RegNetX_3.2GF")):
        assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ((640, 800), "range")
        assert cfg.SOLVER.STEPS == (202500, 247500)
    with open(zoo.get_config_file(name)) as f:
        assert "IN_CHANNELS" not in f.read()  # widths are derived


@pytest.mark.parametrize("step", ["mmrazor_2_supernet_faster_rcnn", "faster_rcnn_DetNAS_MMRazor", "faster_rcnn_DetNAS_MMRazor_300M"])
def test_recipe_of_mmrazor_for_coco(step):
    cfg = on_cpu(f"DetNAS/{step}_FPN_1x.yaml")
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_ITER) == (0.02, 16, (60000, 80000), 90000)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR) == (500, 0.001)
    assert cfg.SOLVER.WEIGHT_DECAY == cfg.SOLVER.WEIGHT_DECAY_NORM == 1e-4 and cfg.SOLVER.WEIGHT_DECAY_BIAS in (None, 1e-4)
    assert cfg.INPUT.MIN_SIZE_TRAIN == (800,) and cfg.INPUT.MIN_SIZE_TEST == 800 and cfg.DATASETS.TEST == ("coco_2017_val",)
    head = cfg.MODEL.ROI_BOX_HEAD
    assert (head.NUM_CONV, head.CONV_DIM, head.NUM_FC, head.FC_DIM, head.POOLER_SAMPLING_RATIO, head.SMOOTH_L1_BETA) == (
        4,
        256,
        1,
        1024,
        0,
        0.0,
    )
    assert {head.NORM, cfg.MODEL.FPN.NORM, cfg.MODEL.SHUFFLENETV2.NORM} == {"SyncBN"} and cfg.MODEL.BACKBONE.FREEZE_AT == 0
    net = built_on_meta(cfg).backbone.bottom_up
    assert (net.split, net.shuffle) == ("halves", "after") and cfg.MODEL.SHUFFLENETV2.SUPERNET == ("supernet" in step)
    assert tuple(net.choices) == SPECS["DetNAS-300M" if "300M" in step else "DetNAS-MMRazor"].choices
    if "supernet" in step:
        assert (cfg.ONE_SHOT.GENERATIONS, cfg.ONE_SHOT.POPULATION, cfg.ONE_SHOT.PARENTS, cfg.ONE_SHOT.MAX_COST) == (20, 50, 10, 3.3e8)


@pytest.mark.parametrize("step", ["mmrazor_1_supernet_imagenet", "mmrazor_4_subnet_imagenet"])
def test_recipe_of_mmrazor_for_imagenet(step):
    cfg = on_cpu(f"DetNAS/{step}.yaml")
    solver = cfg.SOLVER
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.WEIGHT_DECAY, solver.LR_SCHEDULER_NAME) == (0.5, 1024, 4e-5, "WarmupLinearLR")
    assert solver.MAX_ITER == 300 * math.ceil(1281167 / 1024) and solver.WEIGHT_DECAY_NORM == solver.WEIGHT_DECAY_BIAS == 0
    assert (cfg.MODEL.CLASSIFIER.LABEL_SMOOTHING, cfg.MODEL.CLASSIFIER.DROPOUT, cfg.MODEL.CLASSIFIER.CHANNELS) == (0.1, 0, 1024)
    assert cfg.MODEL.PIXEL_STD == [57.375, 57.12, 58.395] and cfg.MODEL.SHUFFLENETV2.SUPERNET == ("supernet" in step)
    if "subnet" in step:
        assert numel(built_on_meta(cfg), False) == 3348600  # the whole classifier, as published


@pytest.mark.parametrize(
    "name, ending",
    [
        ("faster_rcnn_V_39_FPN_3x.yaml", "configs/COCO-Detection/faster_rcnn_V_39_FPN_3x.yaml"),
        ("faster_rcnn_V_39_FPN_3x", "configs/COCO-Detection/faster_rcnn_V_39_FPN_3x.yaml"),
        ("configs/mask_rcnn_V_19_FPN_3x.yaml", "configs/COCO-InstanceSegmentation/mask_rcnn_V_19_FPN_3x.yaml"),
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
        ("retinanet_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"),
    ],
)
def test_names_resolve(name, ending, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = zoo.get_config_file(name)
    assert os.path.isfile(path) and path.endswith(ending)


def test_a_path_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faster_rcnn_V_39_FPN_3x.yaml").write_text("MODEL: {MASK_ON: True}\n")
    assert zoo.get_config_file("faster_rcnn_V_39_FPN_3x.yaml") == str(tmp_path / "faster_rcnn_V_39_FPN_3x.yaml")


def test_unknown_names():
    with pytest.raises(backbones.UserError, match="Did you mean 'faster_rcnn_V_39_FPN_3x.yaml'"):
        zoo.get_config_file("faster_rcnn_V39_FPN_3x.yaml")
    with pytest.raises(backbones.UserError, match="released model"):
        zoo.get_checkpoint_url("quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml")


def test_old_code_adds_its_keys():
    """vovnet-detectron2's entry point, and all keys it knew."""
    cfg = get_cfg()
    backbones.add_vovnet_config(cfg)
    node = cfg.MODEL.VOVNET
    assert (node.CONV_BODY, node.NORM, node.OUT_CHANNELS, node.BACKBONE_OUT_CHANNELS) == ("V-39-eSE", "FrozenBN", 256, 256)
    assert node.OUT_FEATURES == ["stage2", "stage3", "stage4", "stage5"]
    node.NORM = "GN"
    add_backbones_config(cfg)
    assert cfg.MODEL.VOVNET.NORM == "GN"


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_builders(family):
    """Bare, FPN and RetinaNet builders of every family, and the names of old."""
    cfg = get_cfg()
    add_backbones_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    stages = list(family.stages)
    cfg.MODEL.RESNETS.OUT_FEATURES = stages[1:]
    cfg.MODEL.FPN.IN_FEATURES = stages[1:]
    cfg.MODEL.BACKBONE.NAME = f"build_{family.name}_backbone"
    assert list(build_backbone(cfg).output_shape()) == stages[1:]
    cfg.MODEL.BACKBONE.NAME = f"build_{family.name}_fpn_backbone"
    fpn = build_backbone(cfg).eval()
    assert {k: s.stride for k, s in fpn.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    assert fpn.size_divisibility == 32
    with torch.no_grad():
        assert [v.shape[2] for v in fpn(torch.rand(1, 3, 128, 128)).values()] == [32, 16, 8, 4, 2]
    # without the last stage, the extra level follows the last there is
    cfg.MODEL.FPN.IN_FEATURES = stages[1:4]
    with torch.no_grad():
        assert list(build_backbone(cfg).eval()(torch.rand(1, 3, 64, 64))) == ["p2", "p3", "p4", "p5"]
    cfg.MODEL.BACKBONE.NAME = f"build_retinanet_{family.name}_fpn_backbone"
    cfg.MODEL.FPN.IN_FEATURES = stages[2:]
    cfg.MODEL.FPN.OUT_CHANNELS = 128
    fpn = build_backbone(cfg).eval()
    assert {k: (s.channels, s.stride) for k, s in fpn.output_shape().items()} == {f"p{i}": (128, 2**i) for i in range(3, 8)}
    assert fpn.top_block.p6.in_channels == fpn.bottom_up.output_shape()[stages[-1]].channels
    with torch.no_grad():
        assert [v.shape[2] for v in fpn(torch.rand(1, 3, 128, 128)).values()] == [16, 8, 4, 2, 1]
    # the extra levels follow the FPN's last, whatever the backbone returns beside
    cfg.MODEL.FPN.IN_FEATURES = stages[2:4]
    fpn = build_backbone(cfg).eval()
    with torch.no_grad():
        assert [128 // v.shape[2] for v in fpn(torch.rand(1, 3, 128, 128)).values()] == [shape.stride for shape in fpn.output_shape().values()]


def test_builder_names_of_old():
    for name in ("build_vovnet_backbone", "build_vovnet_fpn_backbone", "build_mnv2_backbone", "build_mobilenetv2_fpn_backbone"):
        assert name in BACKBONE_REGISTRY


def test_retinanet_trains_a_step():
    cfg = zoo.get_config("COCO-Detection/retinanet_R_50_FPN_1x.yaml")
    overrides = [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.BACKBONE.NAME",
        "build_retinanet_vovnet_fpn_backbone",
        "MODEL.VOVNET.CONV_BODY",
        "V-19-slim-dw-eSE",
    ]
    merge_overrides(
        cfg, overrides + ["MODEL.VOVNET.NORM", "BN", "MODEL.FPN.IN_FEATURES", "['stage3','stage4','stage5']", "MODEL.BACKBONE.FREEZE_AT", "0"]
    )
    check_config(cfg)
    instances = Instances((64, 64), gt_boxes=Boxes(torch.tensor([[4.0, 4, 40, 50]])), gt_classes=torch.tensor([3]))
    with EventStorage():
        losses = build_model(cfg).train()([{"image": torch.rand(3, 64, 64) * 255, "instances": instances}] * 2)
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())


MISTAKES = [
    (["MODEL.FPN.NOMR", "BN"], ["'MODEL.FPN.NOMR'", "Did you mean 'MODEL.FPN.NORM'", "MODEL.FPN.OUT_CHANNELS"]),
    (["MODEL.VOVNETT.NORM", "BN"], ["'MODEL.VOVNETT.NORM'", "Did you mean 'MODEL.VOVNET.NORM'"]),
    (["MODEL.FPN.OUT_CHANNELS"], ["pairs"]),
    (["MODEL.FPN.OUT_CHANNELS", "wide"], ["MODEL.FPN.OUT_CHANNELS", "wide"]),
    (["MODEL.BACKBONE.NAME", "build_vovnet_fnp_backbone"], ["Did you mean 'build_vovnet_fpn_backbone'? Allowed: ", " names, such as 'build_"]),
    (["MODEL.META_ARCHITECTURE", "FasterRCNN"], ["'FasterRCNN'", "'GeneralizedRCNN'"]),
    (["MODEL.VOVNET.CONV_BODY", "V-40-eSE"], ["MODEL.VOVNET.CONV_BODY", "'V-40-eSE'", "'V-39-eSE'"]),
    (["MODEL.VOVNET.NORM", "BNN"], ["MODEL.VOVNET.NORM", "Did you mean 'BN'", "'GN'"]),
    (["MODEL.FPN.NORM", "bn"], ["MODEL.FPN.NORM", "Did you mean 'BN'"]),
    (["MODEL.VOVNET.OUT_FEATURES", "['stage2','stage6']"], ["'stage6'", "'stage5'"]),
    (["MODEL.FPN.IN_FEATURES", "['res2','stage3']"], ["'res2'", "'stage2'"]),
    (["MODEL.FPN.IN_FEATURES", "['stage2','stage4']"], ["strides [4, 16]"]),
    (["MODEL.FPN.IN_FEATURES", "[]"], ["MODEL.FPN.IN_FEATURES is empty"]),
    (["MODEL.FPN.FUSE_TYPE", "mean"], ["'mean'", "'avg'"]),
    (["MODEL.RPN.IN_FEATURES", "['p2','p9']"], ["MODEL.RPN.IN_FEATURES", "'p9'", "'p6'"]),
    (["MODEL.BACKBONE.FREEZE_AT", "7"], ["FREEZE_AT 7"]),
    (["MODEL.ROI_HEADS.NAME", "StandardRoIHeads"], ["MODEL.ROI_HEADS.NAME", "Did you mean 'StandardROIHeads'"]),
    (["MODEL.PROPOSAL_GENERATOR.NAME", "rpn"], ["'rpn'", "Did you mean 'RPN'", "'PrecomputedProposals'"]),
    (["SOLVER.LR_SCHEDULER_NAME", "WarmupCosine"], ["Did you mean 'WarmupCosineLR'"]),
    (["INPUT.FORMAT", "GRAY"], ["'GRAY'", "'BGR'", "'RGB'"]),
    (["OUTPUT_DIR", os.path.join(ROOT, "setup.py", "run")], ["OUTPUT_DIR", "is a file"]),
    (["MODEL.DEVICE", "gpu"], ["'gpu'", "'cuda'"]),
    (["SOLVER.IMS_PER_BATCH", "0"], ["SOLVER.IMS_PER_BATCH is 0", "at least 1"]),
    (["SOLVER.IMS_PER_BATCH", "7"], ["7", "2 processes"]),
    (["SOLVER.REFERENCE_WORLD_SIZE", "3"], ["16", "SOLVER.REFERENCE_WORLD_SIZE 3"]),
    (["SOLVER.MAX_ITER", "0"], ["SOLVER.MAX_ITER is 0"]),
    (["SOLVER.BASE_LR", "-1"], ["SOLVER.BASE_LR is -1.0"]),
    (["SOLVER.MOMENTUM", "-1"], ["momentum", "-1.0"]),
    (["SOLVER.STEPS", "(5,3)"], ["milestone=3"]),
    (["SOLVER.AMP.ENABLED", "True"], ["SOLVER.AMP.ENABLED", "'cpu'"]),
    (["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "vlaue"], ["Did you mean 'value'"]),
    (["DATALOADER.SAMPLER_TRAIN", "Sampler"], ["Did you mean 'TrainingSampler'"]),
    (["MODEL.ROI_BOX_HEAD.POOLER_TYPE", "RoIAlign"], ["Did you mean 'ROIAlign'"]),
    (["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "iou"], ["Did you mean 'giou'"]),
    (["MODEL.ANCHOR_GENERATOR.SIZES", "[[32],[64]]"], ["sizes of length 2", "5"]),
    (["MODEL.FPN.OUT_CHANNELS", "0"], ["MODEL.FPN.OUT_CHANNELS is 0"]),
    (["MODEL.PIXEL_STD", "['a', 'b', 'c']"], ["MODEL.PIXEL_STD ['a', 'b', 'c'] must be 3 numbers"]),
    (["MODEL.PIXEL_MEAN", "[1.0]"], ["MODEL.PIXEL_MEAN has 1", "'BGR'", "3 channels"]),
    (["MODEL.VOVNET.NORM", "SyncBN"], ["SyncBN", "naiveSyncBN"]),
    (["INPUT.CROP.ENABLED", "True", "INPUT.CROP.SIZE", "['a', 'b']"], ["INPUT.CROP.SIZE", "must be fractions"]),
]


@pytest.mark.parametrize("overrides, words", MISTAKES, ids=[" ".join(o) for o, _ in MISTAKES])
def test_mistakes(overrides, words):
    cfg = on_cpu("faster_rcnn_V_39_FPN_3x.yaml")
    with pytest.raises(backbones.UserError) as error:
        merge_overrides(cfg, overrides)
        check_config(cfg, training=True, processes=2)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_whole_numbers_are_numbers():
    cfg = on_cpu("faster_rcnn_V_39_FPN_3x.yaml")
    merge_overrides(cfg, ["SOLVER.BASE_LR", "1", "SOLVER.WEIGHT_DECAY", "0"])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY) == (1.0, 0.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_gpu():
    with pytest.raises(backbones.UserError, match="MODEL.DEVICE cpu"):
        check_config(zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml"))


@pytest.mark.parametrize(
    "text, words",
    [
        ("MODEL:\n  FPN:\n    NOMR: BN\n", "Did you mean 'MODEL.FPN.NORM'"),
        ("MODEL: [1\n", "config file"),
        ("_BASE_: nowhere.yaml\n", "nowhere.yaml"),
        ("SOLVER: {BASE_LR: 1}\n", "SOLVER.BASE_LR is 1: write it as a decimal, 1.0"),
        ("MODEL:\n  MASK_ON: 3\n", "config file"),
        ("- a\n- b\n", "holds no KEY: VALUE pairs"),
        ("", "holds no KEY: VALUE pairs"),
        ("# only words\n", "holds no KEY: VALUE pairs"),
        ("_BASE_: broken.yaml\n", "refers back to itself"),
        ("_BASE_: [3]\n", "_BASE_ is [3]: it must be a path, or a list of paths"),
        ("_BASE_:\n", "_BASE_ is None: it must be a path, or a list of paths"),
        ("SOLVER:\n  MAX_ITER: 9\nSOLVER: {BASE_LR: 0.1}\n", "has SOLVER twice, on lines 1 and 3"),
        ("MODEL:\n  RPN: {NMS_THRESH: 0.5,\n    NMS_THRESH: 0.7}\n", "has MODEL.RPN.NMS_THRESH twice, on lines 2 and 3"),
        ("SOLVER: {1: 2}\n", "the key 1 is not text to YAML, but int"),
        ("MODEL: &a {RPN: *a}\n", "broken.yaml"),
        ("MODEL: {WEIGHTS: !!python/object/apply:eval ['1/0']}\n", "division by zero"),
        pytest.param("MODEL: " + "[" * 100_000, "nested too deeply", id="deep"),
    ],
)
def test_broken_files(text, words, tmp_path):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    cfg = get_cfg()
    add_backbones_config(cfg)
    with pytest.raises(backbones.UserError) as error:
        merge_file(cfg, str(path))
    assert words in str(error.value) and "\n" not in str(error.value)


HEADS = ["Cascade", "Keypoint", "Panoptic", "Cityscapes", "LVIS", "PascalVOC"]
FAMILY_BASES = sorted(os.path.basename(path)[:-5] for path in glob.glob(os.path.join(zoo.config_root(), "Base-RCNN-*-FPN.yaml")))


@pytest.mark.parametrize("head, family", zip(itertools.cycle(HEADS), FAMILY_BASES * -(-len(HEADS) // len(FAMILY_BASES))))
def test_heads_go_over_every_family(head, family, tmp_path):
    """Of a list of bases, each relative to its own file, the later wins; the config itself comes last."""
    (tmp_path / "configs").symlink_to(zoo.config_root())
    bases = [f"configs/{family}.yaml", f"configs/bases/{head}.yaml", "configs/bases/3x.yaml"]
    (tmp_path / "own.yaml").write_text(f"_BASE_: {bases}\nOUTPUT_DIR: {tmp_path}/own\nMODEL: {{DEVICE: cpu}}\n")
    cfg, alone = on_cpu(str(tmp_path / "own.yaml")), zoo.get_config(f"bases/{head}.yaml")
    check_config(cfg)
    assert cfg.SOLVER.STEPS == (210000, 250000) and cfg.MODEL.FPN.IN_FEATURES == zoo.get_config(f"{family}.yaml").MODEL.FPN.IN_FEATURES
    assert alone.DATASETS.TRAIN in ((), cfg.DATASETS.TRAIN)
    assert type(built_on_meta(cfg)).__name__ == ("PanopticFPN" if head == "Panoptic" else "GeneralizedRCNN")


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_files_beside_the_later_base(order, tmp_path):
    for folder in order:
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "structure.txt").write_text("")
        (tmp_path / folder / "base.yaml").write_text("MODEL: {MAEDET: {STRUCTURE: structure.txt}}\nVERSION: 2\n")
    (tmp_path / "own.yaml").write_text(f"_BASE_: {[f'{folder}/base.yaml' for folder in order]}\n")
    assert zoo.get_config(str(tmp_path / "own.yaml")).MODEL.MAEDET.STRUCTURE == str(tmp_path / order[-1] / "structure.txt")


def test_configs_of_version_1_are_upgraded(tmp_path):
    """As detectron2 does: the keys of its first release."""
    (tmp_path / "old.yaml").write_text("MODEL:\n  WEIGHT: old.pth\n")
    cfg = get_cfg()
    add_backbones_config(cfg)
    merge_file(cfg, str(tmp_path / "old.yaml"))
    assert cfg.MODEL.WEIGHTS == "old.pth"


def test_a_builder_of_the_users_own():
    """One that cannot be built on the meta device is left to speak for itself."""

    def build_own_test_backbone(cfg, input_shape):
        return torch.ones(1).sum().item()

    BACKBONE_REGISTRY.register(build_own_test_backbone)
    cfg = on_cpu("faster_rcnn_V_39_FPN_3x.yaml")
    cfg.MODEL.BACKBONE.NAME = "build_own_test_backbone"
    check_config(cfg)


def test_every_key_of_ours_is_documented():
    """In the table of keys, where README sends people: each key once, in a few words."""
    cfg = get_cfg()
    known = set(all_keys(cfg))
    add_backbones_config(cfg)
    names = [key.name for key in KEYS]
    assert set(all_keys(cfg)) - known <= set(names) <= set(all_keys(cfg)) and len(names) == len(set(names))
    assert all(key.text and "\n" not in key.text for key in KEYS)


def test_every_published_row_can_be_verified():
    """A leaf for each of ours, whose expectations are the figures of the data file; detectron2's by `tools.zoo show`."""
    metrics = {"box": ("bbox", "AP"), "mask": ("segm", "AP"), "pq": ("panoptic_seg", "PQ")}
    rows = {os.path.basename(name): zoo.published(name) for name in CONFIGS if not name.startswith("reproduce/") and zoo.published(name)}
    assert len(rows) == 53
    assert {name for name in CONFIGS if name.startswith("reproduce/")} == {f"reproduce/{name}" for name in rows}
    for name, row in rows.items():
        cfg = zoo.get_config(f"reproduce/{name}")
        assert cfg.TEST.EXPECTED_RESULTS == [[*metrics[kind], value, 0.1] for kind, value in row["published_ap"].items()]
        assert cfg.MODEL.WEIGHTS == f"backbones://{name[:-5]}"
        assert (cfg.MODEL.ROI_HEADS.NAME == "MMDetCascadeROIHeads") == name.startswith("cascade")


def test_a_name_of_several_data_sets_means_coco():
    assert zoo.get_config_file("mask_rcnn_V_39_FPN_1x.yaml").endswith("COCO-InstanceSegmentation/mask_rcnn_V_39_FPN_1x.yaml")
    assert zoo.get_config_file("LVISv1-InstanceSegmentation/mask_rcnn_V_39_FPN_1x.yaml").endswith(
        "LVISv1-InstanceSegmentation/mask_rcnn_V_39_FPN_1x.yaml"
    )
    with pytest.raises(backbones.UserError, match="is ambiguous: LVISv0.5.*, LVISv1"):
        zoo.get_config_file("mask_rcnn_X_101_32x8d_FPN_1x.yaml")


GFL = ("MAE_DET_S", "MAE_DET_M", "MAE_DET_L", "R_50", "R_101")


def test_sensible_rows_of_every_family():
    """Each task at 1x and 3x, and detectron2's ablations and other data sets."""
    names = [name for name in CONFIGS if not name.startswith(("quickstart", "digits", "reproduce"))]
    for family in ("_V_", "_RegNet", "_Mv2_"):
        for task in ("faster_rcnn", "mask_rcnn", "keypoint_rcnn", "panoptic_fpn", "retinanet"):
            for schedule in ("1x", "3x"):
                assert any(re.search(f"^COCO.*/{task}{family}.*_{schedule}", name) for name in names), (family, task, schedule)
        assert any(f"Cityscapes/mask_rcnn{family}" in name for name in names) and any(
            f"VOC-Detection/faster_rcnn{family}" in name for name in names
        )
    assert {f"COCO-Detection/gfl_{net}_FPN_{schedule}.yaml" for net in GFL for schedule in ("73e", "3x")} <= set(names)
    for family in ("V_39", "RegNetX_3.2GF"):
        for row in (f"cascade_mask_rcnn_{family}", f"mask_rcnn_{family}_FPN_3x_syncbn", f"scratch_mask_rcnn_{family}_FPN_3x_gn"):
            assert any(row in name for name in names), row
        for row in (
            f"mask_rcnn_{family}_FPN_1x_dconv",
            f"mask_rcnn_{family}_C4_1x",
            f"faster_rcnn_{family}_DC5_1x",
            f"v1-.*{family}",
            f"v0.5-.*{family}",
        ):
            assert any(re.search(row, name) for name in names), row


def test_what_is_written_is_read(tmp_path):
    """Texts in lists too, whatever is in them."""
    cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.PROPOSAL_FILES_TEST = ("it's", 'a "b" #c: d'), (), ("C:\\new\\p.pkl",)
    (tmp_path / "own.yaml").write_text(written(cfg, "head", {}, lambda key: "why"))
    assert flat(zoo.get_config(str(tmp_path / "own.yaml"))) == flat(cfg)
