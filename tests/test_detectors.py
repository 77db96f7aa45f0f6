"""Whole detectors give the same detections as the original's on real images.

vovnet-detectron2's by its YAML's name, its checkpoint keys, detectron2's own checkpointer; MMDetection's converted from its keys.
"""

import glob
import itertools
import os
import re

import numpy as np
import pytest
import torch
from choices import cases, turns
from conftest import HERE, fill, load_record
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks, pairwise_iou
from detectron2.utils.events import EventStorage

from backbones import UserError, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.config import merge_overrides
from backbones.detectors import MMDetCascadeROIHeads
from convert import __main__ as cli

ALL = sorted(os.path.basename(path) for path in glob.glob(os.path.join(HERE, "data", "detectors", "*.json")))
RECORDS = [name for name in ALL if load_record("detectors", name).get("source", "").startswith("vovnet")]
MMDET = [name for name in ALL if load_record("detectors", name).get("source", "").startswith("mmdet")]
# detectors that differ from another of the list in their network alone
LIKE_OTHERS = {"faster-rcnn_regnetx-3.2GF_fpn_1x.json", "mask-rcnn_regnetx-3.2GF_fpn_1x.json", "retinanet_r50_fpn_1x.json"}
IMAGES = ("china.jpg", "flower.jpg")
# those that this project has a config for
CONFIGS = {
    "faster-rcnn_regnetx-3.2GF_fpn_1x.json": "faster_rcnn_RegNetX_3.2GF_FPN_1x.yaml",
    "mask-rcnn_regnetx-3.2GF_fpn_1x.json": "mask_rcnn_RegNetX_3.2GF_FPN_1x.yaml",
    "mask-rcnn_regnetx-3.2GF-mdconv-c3-c5_fpn_1x.json": "mask_rcnn_RegNetX_3.2GF_FPN_1x_dconv_c3-c5.yaml",
    "mask-rcnn_regnetx-400MF_fpn_ms-poly-3x.json": "mask_rcnn_RegNetX_400MF_FPN_3x.yaml",
    "cascade-mask-rcnn_regnetx-400MF_fpn_ms-3x.json": "reproduce/cascade_mask_rcnn_RegNetX_400MF_FPN_3x.yaml",
    "retinanet_regnetx-800MF_fpn_1x.json": "retinanet_RegNetX_800MF_FPN_1x.yaml",
}


def released_checkpoint(record: dict) -> dict:
    weights = {key: fill(key, shape) for key, shape in record["keys"]}
    for key, factor in record["scales"].items():
        weights[key] = weights[key] * factor
    return weights


@pytest.fixture(scope="module", params=RECORDS)
def detector(request, tmp_path_factory):
    record = load_record("detectors", request.param)
    cfg = zoo.get_config(record["config"])
    cfg.MODEL.DEVICE = "cpu"
    path = str(tmp_path_factory.mktemp("released") / "model_final.pth")
    torch.save({"model": released_checkpoint(record)}, path)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(path)
    return record, path, model


def sample_image(name: str) -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)  # RGB


def matches(instances, expected, pixels=0.05, score=1e-4) -> int:
    """Recorded boxes with a detection of the same label within so many ``pixels`` and so much in ``score``."""
    boxes, scores = torch.tensor(expected["boxes"]), torch.tensor(expected["scores"])
    labels = torch.tensor(expected["labels"])
    off = (instances.pred_boxes.tensor[None] - boxes[:, None]).abs().amax(-1)
    found = (off <= pixels) & ((instances.scores[None] - scores[:, None]).abs() <= score) & (instances.pred_classes[None] == labels[:, None])
    return int(found.any(1).sum())


@pytest.mark.slow
@pytest.mark.parametrize("image", IMAGES)
def test_same_detections(detector, image):
    record, _, model = detector
    assert model.input_format == "BGR"
    pixels = np.ascontiguousarray(sample_image(image)[:, :, ::-1].transpose(2, 0, 1))
    inputs = [{"image": torch.as_tensor(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}]
    with torch.no_grad():
        instances = model(inputs)[0]["instances"]
    expected = record["images"][image]
    assert len(instances) == expected["n"]
    if matches(instances, expected) < 0.97 * expected["n"]:
        # random weights can be so near a tie that rounding decides: then this machine's other kernels differ as much from its first ones
        with torch.no_grad(), torch.backends.mkldnn.flags(enabled=False):
            other = model(inputs)[0]["instances"]
        again = {"boxes": other.pred_boxes.tensor.tolist(), "scores": other.scores.tolist(), "labels": other.pred_classes.tolist()}
        assert matches(instances, again) < 0.97 * expected["n"]
        assert matches(instances, expected, pixels=0.1, score=2e-3) >= 0.97 * expected["n"]
    # boxes that stand apart, so that the matching above means something
    assert (pairwise_iou(instances.pred_boxes, instances.pred_boxes) > 0.99).sum() < 2 * len(instances)


@pytest.mark.slow
def test_nothing_is_left_over(detector):
    """Every weight is filled and every entry used; our own checkpointer fills the same."""
    record, path, model = detector
    missing, unexpected = model.load_state_dict(released_checkpoint(record), strict=False)
    assert not unexpected and set(missing) <= {"pixel_mean", "pixel_std"}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    GatedCheckpointer(model, require="all").load(path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("filename, image", cases(itertools.product(MMDET, IMAGES), tried=turns(sorted({*MMDET} - LIKE_OTHERS), IMAGES)))
def test_detectors_of_mmdetection(filename, image, tmp_path):
    """Converted by the command, loaded by both checkpointers: boxes, scores, labels and mask areas."""
    record = load_record("detectors", filename)
    torch.save({"meta": {"mmdet_version": "3.3.0"}, "state_dict": released_checkpoint(record)}, tmp_path / "theirs.pth")
    images = ["--channels", record["channel_order"], "--pixel-mean", *record["pixel_mean"], "--pixel-std", *record["pixel_std"]]
    arguments = cli.argument_parser().parse_intermixed_args(
        ["mmdet", str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth"), *map(str, images)]
    )
    result = cli.convert(arguments)
    cli.write(result, arguments.dst)
    about, expects = result.provenance, result.preprocessing
    cfg = zoo.get_config(CONFIGS.get(filename, about["config"]))
    overrides = [] if filename in CONFIGS else about["overrides"]
    overrides = [
        *overrides,
        "INPUT.FORMAT",
        expects.format,
        "MODEL.PIXEL_MEAN",
        list(expects.pixel_mean),
        "MODEL.PIXEL_STD",
        list(expects.pixel_std),
    ]
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *map(str, overrides)])
    model, other = build_model(cfg).eval(), build_model(cfg).eval()
    GatedCheckpointer(model, require="all").load(arguments.dst)
    DetectionCheckpointer(other).load(arguments.dst)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
    expected = record["images"][image]
    pixels = np.ascontiguousarray(sample_image(image)[:, :, ::-1].transpose(2, 0, 1))  # BGR, whatever the source takes
    with torch.no_grad():
        instances = model([{"image": torch.as_tensor(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}])[0]["instances"]
    assert len(instances) == expected["n"]
    assert matches(instances, expected) >= 0.97 * expected["n"]
    if "mask_areas" in expected:
        off = (instances.pred_boxes.tensor[None] - torch.tensor(expected["boxes"])[:, None]).abs().amax(-1)
        areas = instances.pred_masks.sum((1, 2))[off.argmin(1)]
        near = (areas - torch.tensor(expected["mask_areas"])).abs() <= torch.tensor(expected["mask_areas"]) * 0.01 + 2
        assert near.float().mean() >= 0.97


def test_detectors_of_both_projects_are_recorded():
    assert all(set(load_record("detectors", name)["images"]) == set(IMAGES) for name in (*RECORDS, *MMDET))
    assert len(RECORDS) == 2 and len(MMDET) >= 8 and set(CONFIGS) <= set(MMDET)


@pytest.mark.parametrize("ious", [[0.5, 0.6], [0.5, 0.6, 0.7, 0.8]])
def test_a_cascade_of_mmdetection_has_three_stages(ious):
    cfg = zoo.get_config("reproduce/cascade_mask_rcnn_RegNetX_400MF_FPN_3x.yaml")
    cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS = ious
    cfg.MODEL.DEVICE = "meta"
    with pytest.raises(UserError, match=r"MODEL.ROI_BOX_CASCADE_HEAD.IOUS is .*: it must be 3 numbers"):
        build_model(cfg)


@pytest.mark.slow
def test_a_cascade_learns_in_stages(monkeypatch):
    """Each stage's losses have its weight, and are of a sample of its own, to which the true boxes are added.

    The first stage's are detectron2's own, of the same proposals.
    """
    cfg = zoo.get_config("reproduce/cascade_mask_rcnn_RegNetX_400MF_FPN_3x.yaml")
    merge_overrides(
        cfg, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "64", "MODEL.BACKBONE.FREEZE_AT", "0"]
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    merge_overrides(cfg, ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads"])
    plain = build_model(cfg)
    weights = model.state_dict()
    plain.load_state_dict({key.replace("mask_head.0.", "mask_head."): weights[key] for key in weights if not re.search("mask_head.[12]", key)})
    truth = Instances((128, 160))
    corners = torch.tensor([[10.0, 20, 70, 90], [60, 30, 150, 110]])
    truth.gt_boxes, truth.gt_classes = Boxes(corners), torch.tensor([3, 7])
    truth.gt_masks = PolygonMasks([[np.array([x0, y0, x1, y0, x1, y1])] for x0, y0, x1, y1 in corners.tolist()])
    image = {"image": torch.randint(0, 256, (3, 128, 160), dtype=torch.uint8), "instances": truth, "height": 128, "width": 160}
    losses, samples, own = [], {}, MMDetCascadeROIHeads._losses

    def seen(self, features, stage, outputs, proposals):
        samples[stage] = proposals[0], self.box_predictor[stage].losses(outputs, proposals)
        return own(self, features, stage, outputs, proposals)

    monkeypatch.setattr(MMDetCascadeROIHeads, "_losses", seen)
    for each in (model, plain):
        torch.manual_seed(1)
        with EventStorage():
            losses.append(each.train()([image]))
    mine, theirs = losses
    names = {f"loss_{what}_stage{stage}" for what in ("cls", "box_reg", "mask") for stage in range(3)}
    assert set(mine) == {*names, "loss_rpn_cls", "loss_rpn_loc"}
    for stage, (weight, least) in enumerate(((1.0, 0.5), (0.5, 0.6), (0.25, 0.7))):
        sample, unweighted = samples[stage]
        for what in ("cls", "box_reg"):
            assert mine[f"loss_{what}_stage{stage}"].item() == pytest.approx(weight * unweighted[f"loss_{what}"].item(), rel=1e-5)
        objects = sample.gt_classes < 80
        overlap = pairwise_iou(sample.proposal_boxes, truth.gt_boxes).max(dim=1).values
        assert len(sample) <= 64 and objects.sum() <= 16 and torch.equal(objects, overlap >= least) and sample.has("gt_masks")
        assert (overlap == 1).sum() == len(truth), "the true boxes, and not again what became of them in the stage before"
    for what in ("cls", "box_reg"):
        key = f"loss_{what}_stage0"
        assert mine[key].item() == pytest.approx(theirs[key].item(), rel=1e-5)
    assert mine["loss_mask_stage0"].item() == pytest.approx(theirs["loss_mask"].item(), rel=1e-5) and mine["loss_mask_stage0"] > 0
    sum(mine.values()).backward()
    for stage in range(3):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.roi_heads.mask_head[stage].predictor.parameters())
