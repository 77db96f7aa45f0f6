"""One word swaps the backbone, in any config of detectron2's zoo and of ours."""

import re

import pytest
import torch
from choices import QUICK, cases, share
from conftest import fill, load_record
from detectron2.config import LazyCall, get_cfg, instantiate
from detectron2.modeling import ROI_HEADS_REGISTRY, build_model
from detectron2.modeling.roi_heads import Res5ROIHeads

import backbones
from backbones import use_backbone, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.config import check_config
from backbones.engine import open_config
from backbones.meta import on_meta
from backbones.registry import FAMILIES, family_of
from backbones.zoo import weights

THEIRS = [name for name in zoo.list_detectron2_configs() if name.endswith(".yaml")]
OURS = [name for name in zoo.list_configs() if name not in THEIRS]
PYTHON = [name for name in zoo.list_detectron2_configs() if name.endswith(".py")]
# of which no network of ours can be a part
OTHERS = {"Misc/mmdet_mask_rcnn_R_50_FPN_1x.py", "Misc/torchvision_imagenet_R_50.py"}
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
ONE_OF_EACH = ["V-19-slim-dw-eSE", "MobileNetV2", "RegNetY-400MF", "MAE-DET-S", "DetNAS-300M"]


def swapped(config, name):
    cfg = zoo.get_config(config)
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.ENABLED = False  # which is refused on the CPU
    use_backbone(cfg, name)
    return cfg


def test_every_family_is_tried():
    assert {family_of(name).name for name in ONE_OF_EACH} == {
        family.name for family in FAMILIES.values() if not family.prefix
    }  # timm's in test_timm.py


def swaps():
    """Each of detectron2's configs and every third of ours with a network, another for the next one; detectron2's with the others as well."""
    every = [*THEIRS, *OURS]
    product = [
        (config, names)
        for i, config in enumerate(every)
        for one in [ONE_OF_EACH[i % len(ONE_OF_EACH)]]
        for names in ([one], [name for name in ONE_OF_EACH if name != one])
    ]
    tried = [(config, names) for config, names in product if len(names) == 1 and config in {*THEIRS, *share(OURS, 0, of=3)}]
    return cases(product, tried, daily=[(config, names) for config, names in tried if config in DAILY])


@pytest.mark.parametrize("config, names", swaps())
def test_any_config_takes_any_backbone(config, names):
    """Model and solver build, C4 and DC5 too."""
    for name in names:
        before = zoo.get_config(config)
        cfg = swapped(config, name)
        check_config(cfg, training=True)
        assert family_of(name).name in cfg.MODEL.BACKBONE.NAME
        assert ("retinanet" in cfg.MODEL.BACKBONE.NAME, "fpn" in cfg.MODEL.BACKBONE.NAME) == (
            "retinanet" in before.MODEL.BACKBONE.NAME,
            "fpn" in before.MODEL.BACKBONE.NAME or "p6p7" in before.MODEL.BACKBONE.NAME,
        )
        node = cfg.MODEL[family_of(name).name.upper()]
        assert node.RES5_DILATION == before.MODEL.RESNETS.RES5_DILATION or config in zoo.list_configs()
        if before.MODEL.WEIGHTS and (node.NORM == "GN" or not weights.released(name)):  # of which no weights are
            assert node.NORM not in ("FrozenBN", "EvalBN")
            assert cfg.MODEL.WEIGHTS == "" and cfg.MODEL.BACKBONE.FREEZE_AT == 0
            continue
        assert cfg.MODEL.WEIGHTS == (f"backbones://{name}" if before.MODEL.WEIGHTS else "")
        assert cfg.MODEL.BACKBONE.FREEZE_AT == before.MODEL.BACKBONE.FREEZE_AT


def test_the_zoo_is_whole():
    assert len(THEIRS) == 92 and len(PYTHON) == 23 and OTHERS < set(PYTHON)


def test_python_configs_without_proposals():
    front = open_config("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py")
    del front.cfg.model.proposal_generator
    with pytest.raises(backbones.UserError, match="its network cannot be replaced"):
        use_backbone(front.cfg, "MobileNetV2")


def test_python_configs_of_ones_own():
    """Proposals without features of the FPN, a loader that a mapper still refers to, a norm that overrides replace; grey images stay grey."""
    front = open_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py", ["train.device=cpu"])
    front.cfg.model.proposal_generator = LazyCall(torch.nn.Identity)(features=["p2"])
    front.cfg.dataloader.train = LazyCall(torch.nn.Identity)()
    front.cfg.model.backbone.bottom_up.stages.norm = torch.nn.BatchNorm2d
    use_backbone(front.cfg, "RegNetX-200MF")
    assert (
        front.cfg.model.backbone.bottom_up.name == "RegNetX-200MF"
        and front.cfg.dataloader.test.mapper.image_format == front.cfg.model.input_format
    )
    cfg = open_config("COCO-Detection/retinanet_R_50_FPN_1x.py", ["train.device=cpu", "train.init_checkpoint=''"]).cfg
    cfg.model.input_format, cfg.model.pixel_mean, cfg.model.pixel_std = "L", [120.0], [60.0]
    use_backbone(cfg, "RegNetX-200MF")
    assert cfg.model.input_format == "L" and cfg.model.pixel_mean == [120.0]
    with on_meta():
        assert next(instantiate(cfg.model).backbone.bottom_up.stem.parameters()).shape[1] == 1


def test_a_python_config_of_dc5():
    """The heads read the network itself: each has its features and their width."""
    cfg = open_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.py", ["train.device=cpu"]).cfg
    model, heads = cfg.model, cfg.model.roi_heads
    model.backbone = model.backbone.bottom_up
    model.backbone.out_features = model.proposal_generator.in_features = heads.box_in_features = heads.mask_in_features = ["res5"]
    model.proposal_generator.anchor_generator.update(sizes=[[32, 64, 128]], strides=[32])
    model.proposal_generator.head.num_anchors = 9
    heads.box_pooler.scales = heads.mask_pooler.scales = [1 / 32]
    use_backbone(cfg, "V-39-eSE")
    with torch.no_grad():
        image = {"image": torch.rand(3, 70, 90) * 255, "height": 70, "width": 90}
        assert "instances" in instantiate(model).eval()([image])[0]
    assert heads.box_in_features == ["stage5"] and heads.mask_head.input_shape.channels == 1024


@pytest.mark.parametrize("config", cases(PYTHON, tried={re.sub(r"\d+ep", "", name): name for name in PYTHON}.values(), daily=[]))
def test_python_configs_too(config):
    for name in ONE_OF_EACH:
        cfg = open_config(config, ["train.device=cpu"]).cfg
        if config in OTHERS:
            with pytest.raises(backbones.UserError, match="its network cannot be replaced"):
                use_backbone(cfg, name)
            continue
        before = cfg.model.backbone
        fpn = "bottom_up" in before
        use_backbone(cfg, name)
        with on_meta():
            model = instantiate(cfg.model)
        bottom_up = model.backbone.bottom_up if fpn else model.backbone
        assert type(bottom_up) is family_of(name).network
        assert cfg.train.init_checkpoint in ("", f"backbones://{name}")


@pytest.mark.slow
def test_a_python_config_runs():
    """RetinaNet and C4, whose heads know the widths of the network before."""
    for config in ("COCO-Detection/retinanet_R_50_FPN_1x.py", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py"):
        front = open_config(config, ["train.device=cpu"], "RegNetY-400MF")
        with torch.no_grad():
            assert "instances" in front.build_model().eval()([{"image": torch.rand(3, 70, 90) * 255, "height": 70, "width": 90}])[0]


def test_as_the_config_of_that_network():
    """The one word gives what our own YAML of that network gives."""
    ours, cfg = zoo.get_config("faster_rcnn_V_39_FPN_3x.yaml"), swapped("faster_rcnn_V_99_FPN_3x.yaml", "V-39-eSE")
    for key in ("VOVNET", "FPN", "BACKBONE", "RPN", "ROI_HEADS"):
        assert cfg.MODEL[key] == ours.MODEL[key], key
    assert cfg.INPUT.NORMALIZATION == ours.INPUT.NORMALIZATION == "weights"
    ours, cfg = zoo.get_config("faster_rcnn_RegNetX_800MF_FPN_3x.yaml"), swapped("faster_rcnn_RegNetX_400MF_FPN_3x.yaml", "RegNetX-800MF")
    for key in ("REGNET", "FPN", "PIXEL_MEAN", "PIXEL_STD", "BACKBONE", "WEIGHTS"):
        assert cfg.MODEL[key] == ours.MODEL[key], key


def test_preprocessing_belongs_to_the_weights():
    cfg = swapped("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "RegNetX-400MF")
    assert cfg.MODEL.PIXEL_STD == [57.375, 57.12, 58.395] and cfg.INPUT.FORMAT == "BGR"
    use_backbone(cfg, "V-57-eSE")
    assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5, 127.5, 127.5] and cfg.INPUT.NORMALIZATION == "weights"
    for config, from_scratch in (("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", False), ("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", True)):
        for address in ("", "grey.pth"):
            cfg = zoo.get_config(config)
            cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD, cfg.MODEL.WEIGHTS = "L", [128.0], [50.0], address
            use_backbone(cfg, "RegNetX-400MF")
            assert (cfg.INPUT.FORMAT, len(cfg.MODEL.PIXEL_MEAN)) == (("BGR", 3) if address and not from_scratch else ("L", 1))


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
    for wrong, near in {"RegNetX-3.2G": "RegNetX-3.2GF", "regnetx-400mf": "RegNetX-400MF"}.items():
        with pytest.raises(backbones.UserError, match=f"Did you mean '{near}'"):
            use_backbone(get_cfg(), wrong)
    with pytest.raises(backbones.UserError, match="unknown backbone"):
        use_backbone(get_cfg(), ["RegNetX-400MF"])
    cfg = get_cfg()
    cfg.freeze()
    with pytest.raises(backbones.UserError, match="defrost"):
        use_backbone(cfg, "RegNetX-400MF")


def test_nothing_of_another_network_stays():
    cfg = swapped("faster_rcnn_RegNetX_400MF_FPN_3x.yaml", "RegNetX-400MF")
    cfg.MODEL.REGNET.merge_from_list(["NAME", "", "DEPTH", 13, "W0", 24, "WA", 36.44, "WM", 2.49, "GROUP_WIDTH", 8])
    cfg.MODEL.REGNET.ROUNDING, cfg.MODEL.VOVNET.ESE, cfg.MODEL.REGNET.NORM = "torchvision", "last", "EvalBN"
    use_backbone(cfg, "RegNetX-800MF")
    check_config(cfg)
    assert (cfg.MODEL.REGNET.ROUNDING, cfg.MODEL.REGNET.NORM) == ("pycls", "EvalBN")
    use_backbone(cfg, "V-39-eSE")
    assert (cfg.MODEL.VOVNET.ESE, cfg.MODEL.VOVNET.NORM) == ("all", "EvalBN")


@pytest.mark.slow
def test_weights_of_other_norms_are_refused(tmp_path):
    """Batch norm's weights in a group norm would train, and mean nothing."""
    torch.save(backbones.create("RegNetX-400MF", norm="BN").state_dict(), tmp_path / "x.pth")
    cfg = swapped("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml", "RegNetX-400MF")
    with pytest.raises(backbones.UserError, match="belongs to a network with batch norms"):
        GatedCheckpointer(build_model(cfg)).load(str(tmp_path / "x.pth"))
    cfg.MODEL.REGNET.NORM = "BN"
    GatedCheckpointer(build_model(cfg)).load(str(tmp_path / "x.pth"))


def test_yaml_python_config_and_plain_python_are_one_network():
    """The same keys and shapes, so that one checkpoint fits all three."""
    lazy_model = open_config("lazy/retinanet_V_39_FPN_1x.py", ["train.device=cpu"]).cfg
    swapped_model = open_config("COCO-Detection/retinanet_R_50_FPN_1x.py", ["train.device=cpu"], "V-39-eSE").cfg
    assert lazy_model.model.backbone.top_block == swapped_model.model.backbone.top_block
    cfg = swapped("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "V-39-eSE")
    cfg.MODEL.DEVICE = "meta"
    with on_meta():
        models = [instantiate(lazy_model.model), instantiate(swapped_model.model), build_model(cfg)]
        bare = backbones.create("V-39-eSE", out_features=("stage3", "stage4", "stage5"), freeze_at=2)
    shapes = [{key: tuple(value.shape) for key, value in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1] == shapes[2]
    prefix = "backbone.bottom_up."
    assert {key[len(prefix) :]: s for key, s in shapes[0].items() if key.startswith(prefix)} == {
        key: tuple(value.shape) for key, value in bare.state_dict().items()
    }
    trainable = [{key for key, p in model.named_parameters() if p.requires_grad} for model in models]
    assert trainable[0] == trainable[1] == trainable[2]


def test_our_python_configs_load():
    names = [name for name in zoo.list_configs(python=True) if name.endswith(".py")]
    assert len(names) == 3
    for name in names:
        cfg = open_config(name, ["train.device=cpu"]).cfg
        assert set(cfg) == {"dataloader", "lr_multiplier", "model", "optimizer", "train"}
        assert cfg.train.init_checkpoint == ("" if "MAE_DET" in name else f"backbones://{cfg.model.backbone.bottom_up.name}")
        with on_meta():
            instantiate(cfg.model)


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.DEVICE", "cpu"], "is a Python config, whose overrides are key.key=value"),
        (["train.device=gpu"], "unknown train.device: 'gpu'"),
        (["train.device=cuda"], "To run on the CPU, add: train.device=cpu"),
        (["model.=3"], "unknown config key: 'model.'"),
        (["train.max_itr=3"], "unknown config key: 'train.max_itr'.*Did you mean 'train.max_iter'"),
        (["nosuch.key=3"], "unknown config key: 'nosuch'"),
        (["model.num_classesx=3"], "Did you mean 'model.num_classes'"),
        (["dataloader.train.mapper.augmentations.7.x=3"], "unknown config key"),
        (["train=3"], "'train' must be a section"),
        (["train.amp=True"], "train.amp must be a section, whose values are set as in train.amp.enabled=..."),
        (["train.device=null"], "train.device is None: it must be text"),
        (["train.device=cpu", "train.max_iter=abc"], "train.max_iter is 'abc': it must be a whole number"),
        (["train.device=cpu", "train.max_iter=0"], "train.max_iter is 0: it must be at least 1"),
        (["train.device=cpu", "train.output_dir=/etc/passwd/x"], "train.output_dir '/etc/passwd/x' cannot be created"),
    ],
)
def test_mistakes_in_python_configs(opts, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(backbones.UserError, match=words) as error:
        for problem in open_config("lazy/retinanet_V_39_FPN_1x.py", opts).findings(training=True, processes=1):
            raise problem
    assert "\n" not in str(error.value)


def test_new_arguments_of_what_is_called():
    """An override may name an argument that the config leaves to its default."""
    path = zoo.get_config_file("lazy/retinanet_V_39_FPN_1x.py")
    cfg = open_config(path, ["train.device=cpu", "model.backbone.bottom_up.ese=last", "model.max_detections_per_image=7"]).cfg
    assert cfg.model.backbone.bottom_up.ese == "last" and cfg.model.max_detections_per_image == 7


def test_classes_of_python_configs():
    names = [f"dataloader.{split}.dataset.names=digits_val" for split in ("train", "test")]
    front = open_config("lazy/retinanet_V_39_FPN_1x.py", ["train.device=cpu", "model.num_classes=5", *names])
    (problem,) = {str(problem): problem for problem in front.findings(training=True, processes=1)}.values()
    assert str(problem) == "model.num_classes is 5, but data set 'digits_val' has 10: set model.num_classes=10"
    assert (problem.code, problem.key, problem.suggestion) == ("classes", "model.num_classes", 10)


def test_python_configs_take_what_weights_and_norms_need(tmp_path, monkeypatch):
    monkeypatch.setenv("BACKBONES_WEIGHTS", str(tmp_path))
    about = {"preprocessing": {"format": "BGR", "pixel_mean": [1.0, 2.0, 3.0], "pixel_std": [4.0, 5.0, 6.0]}}
    about["provenance"] = {"overrides": ["MODEL.REGNET.ROUNDING", "torchvision"]}
    torch.save({"model": {}, **about}, tmp_path / "RegNetX-400MF.pth")
    name = zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py")
    cfg = open_config(name, ["train.device=cpu"], "RegNetX-400MF").cfg
    assert cfg.model.backbone.rounding == cfg.model.roi_heads.res5.rounding == "torchvision" and list(cfg.model.pixel_mean) == [1, 2, 3]
    widths = {key: shape.channels for key, shape in backbones.create("RegNetX-400MF", rounding="torchvision").output_shape().items()}
    assert widths["res5"] != backbones.create("RegNetX-400MF").output_shape()["res5"].channels
    for folder, source in ((tmp_path, ""), (tmp_path / "none", str(tmp_path / "RegNetX-400MF.pth"))):
        monkeypatch.setenv("BACKBONES_WEIGHTS", str(folder))
        for config in ("COCO-Detection/retinanet_R_50_FPN_1x.py", name):
            front = open_config(config, ["train.device=cpu"], "RegNetX-400MF", source)
            front.follow_weights()
            model = front.cfg.model
            if config == name:
                assert model.proposal_generator.head.in_channels == widths["res4"] and model.roi_heads.res5.rounding == "torchvision"
                assert model.roi_heads.box_predictor.input_shape.channels == model.roi_heads.mask_head.input_shape.channels == widths["res5"]
            else:
                assert model.backbone.top_block.in_channels == widths["res5"]
    cfg = open_config(name, ["train.device=cpu"]).cfg
    cfg.model.backbone.stages.norm = "GN"
    use_backbone(cfg, "RegNetX-800MF")
    assert cfg.train.init_checkpoint == "" and cfg.model.backbone.freeze_at == 0


def test_builders_and_heads_of_the_users_own():
    """A builder named as it likes: whether there is an FPN is seen by the features. Heads that run ResNet's last stage are refused."""
    cfg = zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.IN_FEATURES = "my_own_pyramid", []
    use_backbone(cfg, "RegNetX-200MF")
    assert cfg.MODEL.BACKBONE.NAME == "build_regnet_fpn_backbone" and cfg.MODEL.FPN.IN_FEATURES == ["res2", "res3", "res4", "res5"]
    cfg = zoo.get_config("COCO-Detection/rpn_R_50_C4_1x.yaml")
    cfg.MODEL.BACKBONE.NAME = "build_retinanet_my_backbone"
    use_backbone(cfg, "RegNetX-200MF")
    assert cfg.MODEL.BACKBONE.NAME == "build_regnet_backbone"

    @ROI_HEADS_REGISTRY.register()
    class MyRes5Heads(Res5ROIHeads):
        pass

    cfg = zoo.get_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    cfg.MODEL.ROI_HEADS.NAME = "MyRes5Heads"
    with pytest.raises(backbones.UserError, match="derive its class from backbones.detectors.LastStageROIHeads"):
        use_backbone(cfg, "RegNetX-200MF")


def test_python_configs_that_are_none(tmp_path):
    for text, words in (
        ("x = (", "config file"),
        ("import nowhere_at_all", "pip install nowhere_at_all"),
        ("train = dict()", "'model' must be a section"),
    ):
        (tmp_path / "x.py").write_text(text)
        with pytest.raises(backbones.UserError, match=words):
            open_config(str(tmp_path / "x.py"), [])


@pytest.mark.parametrize("prefix", ["", "backbone.bottom_up.", "module.backbone.bottom_up."])
@pytest.mark.parametrize("name", cases(ONE_OF_EACH, tried=ONE_OF_EACH, daily=QUICK))
def test_weights_of_the_last_stage_go_into_the_heads(name, prefix, tmp_path):
    """C4: a file of the whole network fills both its parts; one that lacks the last stage is refused."""
    net = backbones.create(name, norm="BN")
    torch.save({"model": {prefix + key: value for key, value in net.state_dict().items()}}, tmp_path / "net.pth")
    cfg = swapped("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", name)
    model = build_model(cfg)
    checkpointer = GatedCheckpointer(model)
    checkpointer.load(str(tmp_path / "net.pth"))
    assert not checkpointer.report.unused
    stage = model.roi_heads.stage
    for key, value in getattr(net, stage).state_dict().items():
        if not key.endswith("num_batches_tracked"):
            assert torch.equal(model.roi_heads.res5.state_dict()[key], value), key
    torch.save({prefix + key: value for key, value in net.state_dict().items() if not key.startswith(stage)}, tmp_path / "half.pth")
    with pytest.raises(backbones.UserError, match="weights of the backbone would keep their initial values, the first is roi_heads.res5"):
        GatedCheckpointer(model).load(str(tmp_path / "half.pth"))
    torch.save({"model": model.state_dict()}, tmp_path / "detector.pth")
    GatedCheckpointer(build_model(cfg), require="all").load(str(tmp_path / "detector.pth"))


@pytest.mark.parametrize("config", ["COCO-Detection/faster_rcnn_V_39_C4_1x.yaml", "crowd/faster_rcnn_c4_crowd.yaml"])
def test_c4_configs_with_idle_keys_of_an_fpn(config, tmp_path):
    """What a base config says of an FPN gives a backbone without one no second last stage, which no file would fill."""
    cfg = swapped(config, "RegNetX-200MF")
    assert cfg.MODEL.REGNET.OUT_FEATURES == ["res4"]
    torch.save(backbones.create("RegNetX-200MF", norm="BN").state_dict(), tmp_path / "net.pth")
    GatedCheckpointer(build_model(cfg)).load(str(tmp_path / "net.pth"))


def test_released_vovnet_in_c4(tmp_path):
    """The original's own key names."""
    record = load_record("vovnet", "V-19-slim-dw.json")
    released = {key: fill(key, shape) for key, shape in record["state_dict"]}
    torch.save(released, tmp_path / "released.pth")
    cfg = zoo.get_config("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml")
    cfg.MODEL.DEVICE = "cpu"
    use_backbone(cfg, "V-19-slim-dw-eSE", own_weights=True)
    model = build_model(cfg)
    GatedCheckpointer(model).load(str(tmp_path / "released.pth"))
    net = backbones.create("V-19-slim-dw-eSE")
    net.load_state_dict(released, strict=False)
    assert all(torch.equal(a, b) for a, b in zip(model.roi_heads.res5.state_dict().values(), net.stage5.state_dict().values()))
    assert torch.equal(model.backbone.stage4.block1.concat.conv.weight, net.stage4.block1.concat.conv.weight)
