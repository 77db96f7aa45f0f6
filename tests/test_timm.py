"""Networks of timm: the same features, in every part of this project that takes a backbone; and those that are refused."""

import itertools
import sys

import numpy as np
import pytest
import torch
from choices import cases, share
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn

import backbones
from backbones import UserError, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.config import check_config
from backbones.deploy import Runner, optimize
from backbones.deploy.export import export
from backbones.engine import open_config
from backbones.layers import STAGES, EvalBatchNorm2d
from backbones.meta import on_meta
from backbones.tools import zoo as zoo_tool

timm = pytest.importorskip("timm", minversion="1.0.24")

NETWORKS = """
    caformer_s18 convnext_atto.d2_in1k convnextv2_atto cs3darknet_m darknet17 davit_tiny densenet121 dla34 dpn48b eca_nfnet_l0 edgenext_xx_small
    efficientnet_b0 efficientvit_b0 ese_vovnet19b_dw fastvit_t8 fasternet_t0 focalnet_tiny_srf ghostnet_050 hgnetv2_b0 inception_next_atto
    lcnet_035 legacy_seresnet18 mambaout_femto mnasnet_small mobilenetv2_100 mobilenetv3_small_100 mobilevit_xxs nextvit_small poolformer_s12
    pvt_v2_b0 regnetx_002 repghostnet_050 repvgg_a0 repvit_m0_9 res2next50 resnest14d resnet18 resnet50.a1_in1k resnetv2_18 rexnet_100
    skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window16_256 tf_efficientnet_lite0 tresnet_m vgg11_bn
""".split()
# of every kind of block that needs care: activations inside norms, (N, H, W, C), a chain without a stem's feature, classes of timm's own
DAILY = ["convnext_atto.d2_in1k", "mambaout_femto", "mobilenetv3_small_100", "resnet18"]
ALSO = "densenet121 ese_vovnet19b_dw fastvit_t8 pvt_v2_b0 regnetx_002 repvgg_a0 swin_tiny_patch4_window7_224 tf_efficientnet_lite0 vgg11_bn"
DOZEN = [*DAILY, *ALSO.split()]
EVERY = cases(NETWORKS, tried=DOZEN, daily=DAILY)
YAMLS = [name for name in (*zoo.list_configs(), *zoo.list_detectron2_configs()) if name.endswith(".yaml")]
CONFIGS = ["COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", "COCO-Detection/retinanet_R_50_FPN_1x.yaml"]


def architecture(name):
    return timm.models.model_entrypoint(name.partition(".")[0]).__module__


def swapped(config, name):
    cfg = zoo.get_config(config)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    # heads are not what is tried
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE, cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16, 20, 64
    backbones.use_backbone(cfg, f"timm/{name}")
    return cfg


def drawn(name, **options):
    """timm's whole network, whose norms have statistics and weights that tell them apart."""
    model = timm.create_model(name, **options)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


def theirs(name, whole, **options):
    """timm's own ``features_only`` model with the weights of its whole network ``whole``, at the strides 4 to 32."""
    net = timm.create_model(name, features_only=True, **options).eval()
    names = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    net.load_state_dict({key: names[key.replace(".", "_")] for key in net.state_dict()})
    last = getattr(net, "output_fmt", "NCHW") == "NHWC"

    def features(x):
        pairs = zip(net.feature_info.reduction(), net(x))
        return [f.permute(0, 3, 1, 2) if last else f for stride, f in pairs if stride >= 4]

    return features


def sizes_of(name):
    return {"strict_img_size": False} if name.startswith("swin") else {}


def test_enough_are_tried():
    assert len(NETWORKS) >= 40 and len({architecture(name) for name in NETWORKS}) >= 25 and len(DOZEN) >= 12
    assert {*DAILY, *DOZEN} <= set(NETWORKS)


@pytest.mark.parametrize("name", EVERY)
@torch.no_grad()
def test_the_same_features_bit_by_bit(name, tmp_path):
    """timm's file goes through the gate; only its classifier is left out."""
    whole = drawn(name, **sizes_of(name))
    torch.save(whole.state_dict(), tmp_path / "theirs.pth")
    net = backbones.create(f"timm/{name}").eval()
    checkpointer = GatedCheckpointer(net, require="all")
    checkpointer.load(str(tmp_path / "theirs.pth"))
    x = torch.randn(2, 3, 96, 160)
    expected, outputs = theirs(name, whole, **sizes_of(name))(x), net(x)
    assert list(outputs) == list(STAGES[1:]) and len(expected) == 4
    for (key, shape), value, original in zip(net.output_shape().items(), outputs.values(), expected):
        assert torch.equal(value, original), key
        assert value.shape == (2, shape.channels, 96 // shape.stride, 160 // shape.stride)
    assert all(net.classifier.match(key) for key in checkpointer.report.unused)
    assert len({key.split(".")[0] for key in checkpointer.report.unused}) <= 4
    translated = backbones.translate(f"timm/{name}", whole.state_dict())
    assert all(torch.equal(translated[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", cases(NETWORKS, tried=DOZEN, daily=DAILY[:2]))
def test_without_memory(name):
    with on_meta():
        net = backbones.create(f"timm/{name}")
    assert all(p.is_meta for p in net.parameters())
    assert [shape.stride for shape in net.output_shape().values()] == [4, 8, 16, 32] and net.size_divisibility == 32
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())


@pytest.mark.parametrize("name", cases(NETWORKS, tried=DOZEN[::2], daily=DAILY[:1]))
def test_trains_and_finds(name):
    """A step changes every part that is not frozen; then images of odd sizes."""
    cfg = swapped(CONFIGS[len(name) % 2], name)
    cfg.MODEL.TIMM.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0
    torch.manual_seed(1)
    model = build_model(cfg).train()
    inputs = []
    for size in ((97, 131), (65, 160)):
        boxes = Boxes(torch.tensor([[5.0, 5.0, 60.0, 50.0], [30.0, 10.0, 90.0, 60.0]]))
        inputs.append({"image": torch.rand(3, *size) * 255, "instances": Instances(size, gt_boxes=boxes, gt_classes=torch.tensor([1, 2]))})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    bottom_up = model.backbone.bottom_up
    without = [key for key, p in bottom_up.named_parameters() if p.grad is None]
    assert all(value.isfinite() for value in losses.values()) and not without
    before = {key: p.detach().clone() for key, p in bottom_up.named_parameters()}
    optimizer.step()
    changed = {key.split(".")[0] for key, p in bottom_up.named_parameters() if not torch.equal(before[key], p)}
    assert changed == {key.split(".")[0] for key in before} and {"res3", "res4"} <= changed  # VGG's res5 is a pooling alone
    with torch.no_grad():
        for size in ((1, 1), (70, 91), (131, 65)):
            found = model.eval()([{"image": torch.rand(3, *size) * 255, "height": size[0], "width": size[1]}])[0]["instances"]
            assert found.pred_boxes.tensor.isfinite().all()


REFUSED = {
    "vit_tiny_patch16_224": "features at strides 16, 16, 16: detectors need 4, 8, 16 and 32",
    "levit_128s": "features at strides 16, 32, 64",
    "nest_tiny": "features at strides 4, 8, 16: ",
    "maxvit_tiny_tf_224": "does not accept images of any size: height .64. must be divisible by window .7.",
    "coatnet_0_224": "does not accept images of any size",
    "hrnet_w18": "is not a chain of stages: timm extracts its features with HighResolutionNetFeatures",
    "mvitv2_tiny": "is not a chain of stages: timm extracts its features with FeatureGetterNet",
    "inception_v4": "does not accept images of any size: for 256x320 its stage",
    "selecsls42": "for 256x320 its stage res2 returns list",
    "resnet51": "unknown backbone: 'timm/resnet51'. Did you mean 'timm/resnet51q'",
    "resnet50.a1_in1": "unknown backbone: 'timm/resnet50.a1_in1'. Did you mean 'timm/resnet50.a1_in1k'",
    "hf-hub:timm/resnet50": "unknown backbone",  # would be downloaded
}


@pytest.mark.parametrize("name", cases(REFUSED, tried=REFUSED, daily=["vit_tiny_patch16_224", "hrnet_w18", "selecsls42", "resnet51"]))
def test_what_cannot_be_a_backbone_is_refused(name):
    with pytest.raises(UserError, match=REFUSED[name]) as error:
        backbones.create(f"timm/{name}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"deform_on_per_stage": (False, True, True, True)}, "no deformable stages"),
        ({"norm": "BNN"}, "Did you mean 'BN'"),
        ({"out_features": ("res6",)}, "unknown feature"),
        ({"freeze_at": 6}, "exceeds the number of stages, 5"),
        ({"drop_pat": 0.1}, "Did you mean 'drop_path'"),
    ],
)
def test_mistakes(options, words):
    with pytest.raises(UserError, match=words):
        backbones.create("timm/resnet18", **options)


@pytest.mark.slow
def test_what_only_some_networks_have():
    with pytest.raises(UserError, match="timm cannot build timm/vgg11 with drop_path_rate 0.1"):
        backbones.create("timm/vgg11", drop_path=0.1)
    with pytest.raises(UserError, match="timm cannot build timm/swin_tiny_patch4_window7_224 with .*output_stride 16"):
        backbones.create("timm/swin_tiny_patch4_window7_224", res5_dilation=2)
    with pytest.raises(UserError, match="no feature 'stem'"):
        backbones.create("timm/pvt_v2_b0", out_features=("stem", "res5"))


def test_keys_of_a_config():
    cfg = swapped(CONFIGS[0], "resnet18")
    check_config(cfg)
    cfg.MODEL.TIMM.NAME = "resnet18"
    with pytest.raises(UserError, match="MODEL.TIMM.NAME is 'resnet18': it must begin with timm/"):
        check_config(cfg)
    cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.DROP_PATH = "timm/resnet18", 1.0
    with pytest.raises(UserError, match="MODEL.TIMM.DROP_PATH is 1.0: it must be below 1"):
        check_config(cfg)


def test_without_timm(monkeypatch):
    """Importing this project needs no timm; its networks say how to get it."""
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(backbones.UserError, match=r"pip install 'backbones\[timm\]'") as error:
        backbones.create("timm/resnet18")
    assert error.value.code == "missing-package"
    with pytest.raises(backbones.UserError, match="pip install"):
        backbones.list_backbones("timm/*")
    assert backbones.list_backbones("V-39*") == ["V-39-eSE"] and len(zoo_tool.entries("*")) > 100


def test_a_timm_that_is_too_old(monkeypatch):
    monkeypatch.setattr(timm, "__version__", "1.0.9")
    with pytest.raises(UserError, match="timm 1.0.9 is too old: version 1.0.24 or newer is required"):
        backbones.create("timm/resnet18")


def test_what_timm_says_of_its_weights():
    about = backbones.timm.pretrained("timm/tf_efficientnet_lite0")
    assert about["name"] == "timm/tf_efficientnet_lite0.in1k" and about["hub"] == "timm/tf_efficientnet_lite0.in1k"
    assert about["licence"] == "apache-2.0" and about["classes"] == 1000
    assert about["preprocessing"] == {"format": "RGB", "pixel_mean": [127.5] * 3, "pixel_std": [127.5] * 3}
    assert backbones.timm.pretrained("timm/convnext_tiny.fb_in22k")["classes"] == 21841
    assert backbones.timm.pretrained("timm/swinv2_cr_tiny_224") is None  # of which there are none
    with pytest.raises(UserError, match="unknown backbone"):
        backbones.timm.pretrained("timm/resnet18.nobodys")


def test_lists():
    assert not [name for name in backbones.list_backbones() if name.startswith("timm/")]
    found = backbones.list_backbones("timm/*convnext*")
    assert "timm/convnext_tiny.fb_in22k" in found and all("convnext" in name for name in found)
    assert "timm/convnext_tiny.fb_in22k" in zoo_tool.list_entries("timm/*convnext*")
    assert "timm/convnext_tiny.fb_in22k" in zoo_tool.entries("timm/convnext")
    assert "--backbone timm/convnext_tiny" in zoo_tool.show("timm/convnext_tiny")


@pytest.mark.parametrize("name, freeze_at", [("mobilenetv3_small_100", 1), ("resnet18", 3), ("convnext_atto", 3)])
def test_freezes_exactly_the_named_stages(name, freeze_at):
    net = backbones.create(f"timm/{name}", norm="BN", freeze_at=freeze_at)
    other = backbones.create(f"timm/{name}", norm="BN")
    other.load_state_dict(net.state_dict(), strict=False)
    for stage in STAGES:
        module, frozen = getattr(net, stage), stage in STAGES[:freeze_at]
        assert all(p.requires_grad != frozen for p in module.parameters())
        assert not frozen or not any(isinstance(m, nn.BatchNorm2d) for m in module.modules())
    assert any(p.requires_grad is False for p in net.parameters())
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for a, b in zip(net.eval()(x).values(), other.eval()(x).values()):
            assert torch.equal(a, b)


@pytest.mark.parametrize("norm, freeze_at, moving, trained", [("FrozenBN", 0, 0, 0), ("EvalBN", 0, 0, 3), ("BN", 3, 2, 2), ("BN", 0, 3, 3)])
def test_norms_of_sequences(norm, freeze_at, moving, trained):
    """Three, one in each stage behind res2: held where norms are, and in frozen stages."""
    with on_meta():
        net = backbones.create("timm/nextvit_small", norm=norm, freeze_at=freeze_at)
    norms = [m for m in net.train().modules() if isinstance(m, nn.BatchNorm1d)]
    assert len(norms) == 3 and sum(m.training for m in norms) == moving and sum(m.weight.requires_grad for m in norms) == trained


@pytest.mark.slow
@pytest.mark.parametrize(
    "norm, kind", [("FrozenBN", FrozenBatchNorm2d), ("BN", nn.BatchNorm2d), ("EvalBN", EvalBatchNorm2d), ("GN", nn.GroupNorm)]
)
def test_norms(norm, kind):
    """As many as timm's network has, of the same epsilon; those of TensorFlow's networks are 0.001."""
    original = [m for m in timm.create_model("tf_efficientnet_lite0", features_only=True).modules() if isinstance(m, nn.BatchNorm2d)]
    net = backbones.create("timm/tf_efficientnet_lite0", norm=norm)
    norms = [m for m in net.modules() if type(m) is kind]
    assert len(norms) == len(original) and [m.eps for m in norms] == [m.eps for m in original] and norms[0].eps == 1e-3
    assert all(value.isfinite().all() for value in net.train()(torch.randn(2, 3, 64, 64)).values())
    layers = backbones.create("timm/convnext_atto", norm=norm)
    assert not any(type(m) is kind for m in layers.modules())


@torch.no_grad()
def test_torchscript():
    for name in ("resnet18", "convnext_atto"):
        net, x = backbones.create(f"timm/{name}").eval(), torch.rand(1, 3, 64, 96)
        for a, b in zip(torch.jit.script(net)(x).values(), net(x).values()):
            torch.testing.assert_close(a, b)


def test_norms_without_effect_are_said(caplog):
    for network, norm, said in (("convnext_atto", "GN", True), ("convnext_atto", "FrozenBN", False), ("resnet18", "GN", False)):
        caplog.clear()
        cfg = swapped(CONFIGS[0], network)
        cfg.MODEL.TIMM.NORM = norm
        with on_meta():
            build_backbone(cfg)
        assert any(f"MODEL.TIMM.NORM {norm} has no effect: timm/{network}" in line for line in caplog.messages) == said


def test_a_config_with_group_norms_keeps_the_weights_of_networks_without_batch_norms(caplog):
    for network, fits in (("convnext_atto", True), ("resnet50_gn", True), ("resnet18", False)):
        cfg = zoo.get_config("Misc/mask_rcnn_R_50_FPN_3x_gn.yaml")
        backbones.use_backbone(cfg, f"timm/{network}")
        assert cfg.MODEL.WEIGHTS == (f"backbones://timm/{network}" if fits else "")
        assert ("is trained from scratch" in caplog.text) != fits


@pytest.mark.slow
def test_a_file_of_another_network_is_refused(tmp_path):
    """A deeper one has all of a shallower one's weights; a file for RGB images is not taken for BGR."""
    torch.save(timm.create_model("resnet34", num_classes=3).state_dict(), tmp_path / "34.pth")
    net = backbones.create("timm/resnet18")
    with pytest.raises(UserError, match="no place for .* entries of the file, such as layer1.2.conv1.weight: it belongs to another network"):
        GatedCheckpointer(net).load(str(tmp_path / "34.pth"))
    cfg = swapped(CONFIGS[0], "resnet18")
    assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    model = build_model(cfg)
    weights = timm.create_model("resnet18", num_classes=3).state_dict()
    for contents in (weights, {"model": weights}):
        torch.save(contents, tmp_path / "18.pth")
        checkpointer = GatedCheckpointer(model)
        checkpointer.load(str(tmp_path / "18.pth"))
        assert checkpointer.report.unused == ["fc.weight", "fc.bias"] and "fc.weight, fc.bias" in checkpointer.report.table()
    model.input_format = "BGR"
    for contents in (weights, timm.create_model("resnet18", features_only=True).state_dict()):
        torch.save(contents, tmp_path / "18.pth")
        with pytest.raises(UserError, match="for RGB images, but INPUT.FORMAT is 'BGR': set it and the means in that order. "):
            GatedCheckpointer(model).load(str(tmp_path / "18.pth"))
    torch.save(model.state_dict(), tmp_path / "own.pth")
    GatedCheckpointer(model, require="all").load(str(tmp_path / "own.pth"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_own_checkpoints(name, tmp_path):
    """What a detector saved fills it again; the last stage of C4 takes its part of timm's file."""
    model = build_model(swapped(CONFIGS[0], name))
    torch.save({"model": model.state_dict()}, tmp_path / "own.pth")
    GatedCheckpointer(build_model(swapped(CONFIGS[0], name)), require="all").load(str(tmp_path / "own.pth"))
    whole = timm.create_model(name)
    torch.save(whole.state_dict(), tmp_path / "theirs.pth")
    c4 = build_model(swapped("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", name))
    checkpointer = GatedCheckpointer(c4)
    checkpointer.load(str(tmp_path / "theirs.pth"))
    last = {key for key in checkpointer.report.total if key.startswith("roi_heads.res5.")}
    assert last and not last & set(checkpointer.report.new)
    with torch.no_grad():
        assert "instances" in c4.eval()([{"image": torch.rand(3, 70, 90) * 255}])[0]


@pytest.mark.slow
def test_a_dilated_last_stage():
    """DC5: the same weights, stride 16."""
    cfg = swapped("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", "resnet18")
    assert cfg.MODEL.TIMM.RES5_DILATION == 2
    dilated, plain = build_model(cfg).backbone.eval(), backbones.create("timm/resnet18").eval()
    plain.load_state_dict(dilated.state_dict(), strict=True)
    (name, shape), *_ = dilated.output_shape().items()
    image = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        assert (name, shape.stride) == ("res5", 16) and dilated(image)["res5"].shape[2:] == (8, 10) and plain(image)["res5"].shape[2:] == (4, 5)


PARTS = [("resnet18", 2), ("convnext_atto.d2_in1k", 5)]


@pytest.mark.parametrize("name, number", cases(itertools.product(dict(PARTS), range(10)), tried=PARTS, daily=[]))
def test_any_config(name, number):
    """Every YAML of ours and of detectron2's zoo builds with both, but those with deformable stages; Python configs too."""
    for config in share(YAMLS, number + (name == "resnet18"), 10):
        cfg = swapped(config, name)
        if any(cfg.MODEL.TIMM.DEFORM_ON_PER_STAGE):
            with pytest.raises(UserError, match="no deformable stages"):
                check_config(cfg)
            continue
        cfg.MODEL.DEVICE = "meta"
        with on_meta():
            model = build_model(cfg)
        assert sum(isinstance(module, backbones.timm.TimmNetwork) for module in model.modules()) == 1
    for config in ("COCO-Detection/retinanet_R_50_FPN_1x.py", "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.py"):
        cfg = open_config(config, ["train.device=cpu"], f"timm/{name}").cfg
        with on_meta():
            model = instantiate(cfg.model)
        assert type(getattr(model.backbone, "bottom_up", model.backbone)) is backbones.timm.TimmNetwork
    assert backbones.create(f"timm/{name}", in_channels=1)(torch.rand(1, 1, 64, 64))["res5"].isfinite().all()


def test_masks_of_an_image_without_objects():
    """C4: a network that could not reshape the features of no region."""
    cfg = swapped("COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x.yaml", "pvt_v2_b0")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    with torch.no_grad():
        found = build_model(cfg).eval()([{"image": torch.rand(3, 64, 96) * 255}])[0]["instances"]
    assert found.pred_masks.shape == (0, 64, 96)


def test_no_region_counts_in_no_norm():
    """In training too: C4's last stage is then called with zeros."""
    cfg = swapped("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "resnet18")
    cfg.MODEL.TIMM.NORM = "BN"
    heads = build_model(cfg).train().roi_heads
    before = {key: value.clone() for key, value in heads.res5.state_dict().items()}
    assert any(key.endswith("running_var") for key in before)
    found = heads._shared_roi_transform([torch.rand(1, 256, 4, 4)], [Boxes(torch.zeros(0, 4))])
    assert len(found) == 0 and all(module.training for module in heads.res5.modules())
    assert all(torch.equal(value, before[key]) for key, value in heads.res5.state_dict().items())


@pytest.mark.parametrize(
    "name, kind",
    cases(
        itertools.product(("resnet18", "convnext_atto.d2_in1k"), ("torchscript", "onnx")),
        tried=[("convnext_atto.d2_in1k", "onnx")],
        daily=[],
    ),
)
def test_optimized_and_exported(name, kind, tmp_path):
    """`export` itself compares the file with the model, at two sizes."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    cfg = swapped(CONFIGS[0], name)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST, cfg.TEST.DETECTIONS_PER_IMAGE, cfg.INPUT.MIN_SIZE_TEST = 0.0, 20, 160
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 64  # heads are not what is tried
    model = build_model(cfg).eval()
    image = np.random.default_rng(0).integers(0, 255, (160, 224, 3), np.uint8)
    x = torch.rand(1, 3, 128, 160)
    with torch.no_grad():
        plain, faster = model.backbone(x), optimize(model, size=(128, 160)).backbone(x)
        for key in plain:
            torch.testing.assert_close(faster[key], plain[key], rtol=0, atol=1e-4 * plain[key].abs().max().item())
    path = str(tmp_path / ("detector.ts" if kind == "torchscript" else "detector.onnx"))
    export(cfg, model, path, kind, image)
    assert Runner(path)
