"""Files of whole detectors in MMDetection's and MMRazor's layouts: every part computes what the names of its weights say.

Their backbones are torchvision's ResNets, whose names they share, or recorded; the rest is computed here from the file, layer by layer.
"""

import os
import re

import pytest
import torch
from conftest import fill, load_record
from detectron2.modeling import build_model
from test_convert import randomize, run
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

import backbones
from backbones import UserError, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.config import merge_overrides
from convert import mmdet, mmrazor

RNG = torch.Generator().manual_seed(0)
CLASSES = 5


def conv(name: str, outputs: int, inputs: int, size: int, norm: str = "", bias: bool = True) -> dict[str, Tensor]:
    """The weights of one of mmcv's units, or of a plain layer where ``name`` says so by ending with a dot."""
    layer = name if name.endswith(".") else f"{name}.conv."
    shape = (outputs, inputs, size, size) if size else (outputs, inputs)
    weights = {f"{layer}weight": torch.randn(shape, generator=RNG) * (2 / (inputs * max(size, 1) ** 2)) ** 0.5}
    if norm:
        weights.update({f"{name}.{norm}.{key}": torch.rand(outputs, generator=RNG) + 0.5 for key in ("weight", "bias")})
    elif bias:
        weights[f"{layer}bias"] = 0.1 * torch.randn(outputs, generator=RNG)
    if norm == "bn":
        weights.update({f"{name}.bn.running_{key}": torch.rand(outputs, generator=RNG) + 0.5 for key in ("mean", "var")})
        weights[f"{name}.bn.num_batches_tracked"] = torch.tensor(7)
    return weights


def unit(weights: dict[str, Tensor], name: str, x: Tensor, **options) -> Tensor:
    """What `conv` stands for, without an activation."""
    layer = name if name.endswith(".") else f"{name}.conv."
    y = F.conv2d(x, weights[f"{layer}weight"], weights.get(f"{layer}bias"), **options)
    if f"{name}.gn.weight" in weights:
        y = F.group_norm(y, 32, weights[f"{name}.gn.weight"], weights[f"{name}.gn.bias"])
    if f"{name}.bn.weight" in weights:
        y = F.batch_norm(y, *(weights[f"{name}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))
    return y


def neck(channels, one_stage: bool, extra: int = 256, norm: str = "") -> dict[str, Tensor]:
    channels = channels[one_stage:]
    weights = {}
    for i, width in enumerate(channels):
        weights.update(conv(f"neck.lateral_convs.{i}", 256, width, 1, norm))
        weights.update(conv(f"neck.fpn_convs.{i}", 256, 256, 3, norm))
    for i, width in enumerate((extra, 256)) if one_stage else ():
        weights.update(conv(f"neck.fpn_convs.{3 + i}", 256, width, 3, norm))
    return weights


def levels(weights, features: list[Tensor], kind: str) -> list[Tensor]:
    """MMDetection's FPN."""
    source = features[-1]
    features = features if "R-CNN" in kind else features[1:]
    merged = [unit(weights, f"neck.lateral_convs.{i}", x) for i, x in enumerate(features)]
    for i in range(len(merged) - 1, 0, -1):
        merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[2:], mode="nearest")
    out = [unit(weights, f"neck.fpn_convs.{i}", x, padding=1) for i, x in enumerate(merged)]
    if "R-CNN" in kind:
        return [*out, F.max_pool2d(out[-1], 1, stride=2)]
    out.append(unit(weights, "neck.fpn_convs.3", source if kind == "RetinaNet" else out[-1], padding=1, stride=2))
    return [*out, unit(weights, "neck.fpn_convs.4", out[-1], padding=1, stride=2)]


def tower(weights, which: str, x: Tensor) -> Tensor:
    for i in range(4):
        x = unit(weights, f"bbox_head.{which}_convs.{i}", x, padding=1).relu()
    return x


def heads(kind: str, norm: str = "") -> dict[str, Tensor]:
    weights = {}
    if "R-CNN" not in kind:
        for which in ("cls", "reg"):
            for i in range(4):
                weights.update(conv(f"bbox_head.{which}_convs.{i}", 256, 256, 3, "gn" if "GFL" in kind else ""))
        name, anchors, sides = ("gfl", 1, 68) if "GFL" in kind else ("retina", 9, 4)
        weights.update(conv(f"bbox_head.{name}_cls.", anchors * CLASSES, 256, 3))
        weights.update(conv(f"bbox_head.{name}_reg.", anchors * sides, 256, 3))
        if "GFL" in kind:
            weights.update({f"bbox_head.scales.{i}.scale": torch.tensor(1.0 + i / 8) for i in range(5)})
            weights["bbox_head.integral.project"] = torch.arange(17.0)
        if kind == "GFLV2":
            weights.update({**conv("bbox_head.reg_conf.0.", 64, 20, 1), **conv("bbox_head.reg_conf.2.", 1, 64, 1)})
        return weights
    for name, outputs in (("conv", 256), ("cls", 3), ("reg", 12)):
        weights.update(conv(f"rpn_head.rpn_{name}.", outputs, 256, 3 if name == "conv" else 1))
    if norm:
        for i in range(4):
            weights.update(conv(f"roi_head.bbox_head.shared_convs.{i}", 256, 256, 3, norm))
    for i, inputs in enumerate((256 * 49,) if norm else (256 * 49, 1024)):
        weights.update(conv(f"roi_head.bbox_head.shared_fcs.{i}.", 1024, inputs, 0))
    weights.update(conv("roi_head.bbox_head.fc_cls.", CLASSES + 1, 1024, 0))
    weights.update(conv("roi_head.bbox_head.fc_reg.", 4 * CLASSES, 1024, 0))
    if kind == "Mask R-CNN":
        for i in range(4):
            weights.update(conv(f"roi_head.mask_head.convs.{i}", 256, 256, 3))
        weights.update(conv("roi_head.mask_head.upsample.", 256, 256, 2))
        weights.update(conv("roi_head.mask_head.conv_logits.", CLASSES, 256, 1))
    return weights


def close(actual: Tensor, expected: Tensor) -> None:
    """1e-4 of the largest value, which single precision leaves after some dozens of layers."""
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4 * expected.abs().max().item())


def agree(model, kind: str, weights, features, image: Tensor) -> None:
    """The model of a converted file computes what the file says, of an RGB image whose four ``features`` are known."""
    expected = levels(weights, features, kind)
    actual = list(model.backbone(image.flip(1)).values())
    assert len(actual) == len(expected) == 5
    for a, b in zip(actual, expected):
        close(a, b)
    if "R-CNN" not in kind:
        scores, boxes = model.head(expected)
        name = "gfl" if "GFL" in kind else "retina"
        for i, x in enumerate(expected):
            cls = unit(weights, f"bbox_head.{name}_cls.", tower(weights, "cls", x), padding=1)
            reg = unit(weights, f"bbox_head.{name}_reg.", tower(weights, "reg", x), padding=1)
            if kind == "RetinaNet":  # anchors by ratio and size there, by size and ratio here
                cls, reg = (y.reshape(1, 3, 3, -1, *y.shape[2:]).transpose(1, 2).reshape(y.shape) for y in (cls, reg))
            else:
                reg = reg * weights[f"bbox_head.scales.{i}.scale"]
            if kind == "GFLV2":
                top = reg.reshape(1, 4, 17, *reg.shape[2:]).softmax(2).topk(4, dim=2)[0]
                top = torch.cat((top, top.mean(2, keepdim=True)), 2).reshape(1, 20, *reg.shape[2:])
                quality = unit(weights, "bbox_head.reg_conf.2.", unit(weights, "bbox_head.reg_conf.0.", top).relu()).sigmoid()
                cls = cls.sigmoid() * quality
            close(scores[i], cls)
            close(boxes[i], reg)
        return
    objectness, deltas = model.proposal_generator.rpn_head(expected)
    for x, a, b in zip(expected, objectness, deltas):
        x = unit(weights, "rpn_head.rpn_conv.", x, padding=1).relu()
        close(a, unit(weights, "rpn_head.rpn_cls.", x))
        close(b, unit(weights, "rpn_head.rpn_reg.", x))
    regions = x = torch.randn(3, 256, 7, 7, generator=RNG)

    def linear(name, x):
        return F.linear(x, weights[f"roi_head.bbox_head.{name}.weight"], weights[f"roi_head.bbox_head.{name}.bias"])

    for i in range(sum(".shared_convs." in key and key.endswith(".conv.weight") for key in weights)):
        x = unit(weights, f"roi_head.bbox_head.shared_convs.{i}", x, padding=1).relu()
    x = x.flatten(1)
    for i in range(sum(".shared_fcs." in key and key.endswith(".weight") for key in weights)):
        x = linear(f"shared_fcs.{i}", x).relu()
    hidden = model.roi_heads.box_head(regions)
    close(hidden, x)
    for a, name in zip(model.roi_heads.box_predictor(hidden), ("fc_cls", "fc_reg")):
        close(a, linear(name, x))
    if kind == "Mask R-CNN":
        x = regions
        for i in range(4):
            x = unit(weights, f"roi_head.mask_head.convs.{i}", x, padding=1).relu()
        upsample = (weights[f"roi_head.mask_head.upsample.{key}"] for key in ("weight", "bias"))
        x = F.conv_transpose2d(x, *upsample, stride=2).relu()
        close(model.roi_heads.mask_head.layers(regions), unit(weights, "roi_head.mask_head.conv_logits.", x))


def converted(source: str, weights, tmp_path, meta=None):
    """(what `convert` says, the model of the written file), loaded through the gate by the config and overrides that stand in it."""
    torch.save({"meta": meta or {"epoch": 12}, "state_dict": weights}, tmp_path / "theirs.pth")
    result = run(source, tmp_path / "theirs.pth", tmp_path / "ours.pth")
    about, images = result.provenance, result.preprocessing
    cfg = zoo.get_config(about["config"])
    images = ["INPUT.FORMAT", images.format, "MODEL.PIXEL_MEAN", str(list(images.pixel_mean)), "MODEL.PIXEL_STD", str(list(images.pixel_std))]
    norms = ["MODEL.SHUFFLENETV2.NORM", "BN", "MODEL.FPN.NORM", "BN", "MODEL.ROI_BOX_HEAD.NORM", "BN"] if source == "mmrazor" else []
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *about["overrides"], *images, *norms])
    model = build_model(cfg).eval()
    GatedCheckpointer(model, require="all").load(str(tmp_path / "ours.pth"))
    for name in ("theirs.pth", "ours.pth"):
        os.remove(tmp_path / name)
    return about, model


BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
slow, whole = pytest.mark.slow, pytest.mark.whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, depth, groups",
    [
        ("GFL", 50, 1),
        ("Faster R-CNN", 50, 1),
        ("RetinaNet", 50, 1),
        pytest.param("Mask R-CNN", 101, 32, marks=slow),
        pytest.param("GFL", 101, 1, marks=whole),
        pytest.param("GFLV2", 50, 1, marks=slow),
        pytest.param("Faster R-CNN", 101, 1, marks=whole),
        pytest.param("Faster R-CNN", 101, 32, marks=whole),
        pytest.param("Mask R-CNN", 50, 1, marks=whole),
        pytest.param("Mask R-CNN", 101, 1, marks=whole),
        pytest.param("RetinaNet", 101, 1, marks=whole),
        pytest.param("RetinaNet", 101, 32, marks=whole),
    ],
)
@torch.no_grad()
def test_resnets_of_mmdetection(kind, depth, groups, tmp_path):
    net = ResNet(Bottleneck, list(BLOCKS[depth]), groups=groups, width_per_group=64 if groups == 1 else 4).eval()
    weights = {f"backbone.{key}": value for key, value in randomize(net).items() if not key.startswith("fc.")}
    weights.update(neck((256, 512, 1024, 2048), "R-CNN" not in kind, extra=2048 if kind == "RetinaNet" else 256))
    weights.update(heads(kind))
    about, model = converted("mmdet", weights, tmp_path)
    assert (about["detector"], about["network"]) == (kind, f"R-{depth}") and "turned from RGB" in about["channel_order"]
    image = torch.randn(1, 3, 64, 96, generator=RNG)
    x, features = net.maxpool(net.relu(net.bn1(net.conv1(image)))), []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        features.append(x)
    agree(model, kind, weights, features, image)
    assert "instances" in model([{"image": torch.rand(3, 70, 90) * 255}])[0]


def of_mmrazor(name: str = "mmrazor_subnet_mmrazor_searched") -> tuple[list, dict[str, Tensor]]:
    """(choices, weights without a prefix) of a Faster R-CNN."""
    record = load_record("detnas", f"{name}.json")
    weights = {f"backbone.{key}": fill(key, shape) for key, shape in record["keys"]}
    return record["choices"], {**weights, **neck((64, 160, 320, 640), False, norm="bn"), **heads("Faster R-CNN", norm="bn")}


@pytest.mark.parametrize(
    "name, prefix, candidates",
    [
        ("mmrazor_subnet_mmrazor_searched", "architecture.", "_candidates"),
        pytest.param("mmrazor_subnet_alt0123", "architecture.model.", "choices", marks=slow),
    ],
)
@torch.no_grad()
def test_mmrazor(name, prefix, candidates, tmp_path):
    """Files of both versions, and of a network of other choices, whose list goes into the overrides."""
    choices, weights = of_mmrazor(name)
    files = {prefix + key.replace("._candidates.", f".{candidates}."): value for key, value in weights.items()}
    about, model = converted("mmrazor", files, tmp_path, {"epoch": 12, "mmdet_version": "2.19.0"})
    assert (about["source"], about["detector"], about["network"]) == ("MMRazor", "Faster R-CNN", "DetNAS-MMRazor")
    assert about["config"] == "DetNAS/faster_rcnn_DetNAS_MMRazor_FPN_1x.yaml" and "MMRazor" in about["proof"]["why"]
    assert (f"MODEL.SHUFFLENETV2.CHOICES {list(choices)}" in " ".join(about["overrides"])) == ("alt" in name)
    net = backbones.create("DetNAS-MMRazor", choices=choices, norm="BN").eval()
    net.load_state_dict({key[len("backbone.") :]: value for key, value in weights.items() if key.startswith("backbone.")}, strict=True)
    image = torch.rand(1, 3, 64, 96, generator=RNG)
    agree(model, "Faster R-CNN", weights, list(net(image).values()), image)  # the recorded features: test_shufflenetv2.py


def test_backbone_of_mmrazor(tmp_path):
    """The classifier of step 4, in its file of either version."""
    record = load_record("detnas", "mmrazor_subnet_mmrazor_searched_lastlayer.json")
    weights = {f"architecture.backbone.{key}": fill(key, shape) for key, shape in record["keys"]}
    weights.update({"architecture.head.fc.weight": torch.zeros(1000, 1024), "architecture.head.fc.bias": torch.zeros(1000)})
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "theirs.pth")
    result = run("mmrazor", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    assert result.provenance["network"] == "DetNAS-MMRazor" and result.preprocessing.format == "BGR"
    assert re.search(r"left out: \d+ tensors outside the backbone \(head\.fc\.weight", result.provenance["taken"])
    first = weights["architecture.backbone.conv1.conv.weight"]
    assert torch.equal(result.model["backbone.bottom_up.stem.conv.weight"], first.flip(1))


def drop(weights, part: str) -> None:
    for key in [key for key in weights if part in key]:
        del weights[key]


def test_backbone_of_detnas(tmp_path):
    record = load_record("detnas", "authors_COCO-FPN-300M_shuffle2.json")
    weights = {key: fill(key, shape) for key, shape in record["keys"]}
    torch.save({"state_dict": {**weights, "fc.fc.weight": torch.zeros(1000, 1024)}}, tmp_path / "theirs.pth")
    result = run("detnas", tmp_path / "theirs.pth", tmp_path / "ours.pth")
    assert result.provenance["network"] == "DetNAS-300M" and result.preprocessing.pixel_mean == (0.0, 0.0, 0.0)
    assert torch.equal(result.model["backbone.bottom_up.stem.conv.bias"], weights["first_conv.conv.bias"])


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop("neck.fpn_convs.2.bn.bias"), "missing backbone.fpn_output4.norm.bias"),
        (
            lambda w: w.update({"roi_head.bbox_head.shared_convs.4.conv.weight": torch.zeros(1, 1, 1, 1)}),
            "unknown roi_heads.box_head.conv5.weight",
        ),
        (lambda w: w.update({"neck.lateral_convs.4.conv.weight": torch.zeros(1, 1, 1, 1)}), "unknown backbone.fpn_lateral6.weight"),
        (lambda w: drop(w, "layers.1.2."), "names 19 choices for 20 blocks"),
        (
            lambda w: w.update({"backbone.conv1.conv.weight": torch.zeros(8, 3, 3, 3)}),
            r"stem.conv.weight is \(8, 3, 3, 3\), not \(16, 3, 3, 3\)",
        ),
    ],
)
def test_what_is_not_whole_is_refused(change, words):
    _, weights = of_mmrazor()
    change(weights)
    with pytest.raises(UserError, match=words) as error:
        mmrazor.convert_detector({"state_dict": weights})
    assert "\n" not in str(error.value)


@slow
def test_another_projects_files_are_named():
    _, weights = of_mmrazor()
    with pytest.raises(UserError, match="not from MMDetection: it holds DetNAS-MMRazor with the key names of mmrazor"):
        mmdet.convert_detector({"state_dict": weights})
    record = load_record("detectors", "faster-rcnn_regnetx-3.2GF_fpn_1x.json")
    with pytest.raises(UserError, match="not from MMRazor: it holds RegNetX-3.2GF with the key names of mmdet"):
        mmrazor.convert_detector({"state_dict": {key: torch.zeros(shape) for key, shape in record["keys"]}})
