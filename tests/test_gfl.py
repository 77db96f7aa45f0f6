"""GFL and GFLV2 against recorded numbers of the original: every piece, the whole head, its losses, gradients, assignment and decoding."""

import hashlib
import os

import numpy as np
import pytest
import torch
from conftest import HERE, load_record
from detectron2.config import instantiate
from detectron2.export import TracingAdapter, scripting_with_instances
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torchvision.ops import generalized_box_iou_loss

from backbones import UserError, zoo
from backbones.config import check_config, merge_overrides
from backbones.detectors import gfl
from convert import mmdet

RECORD = load_record("maedet", "gflv2_pieces.json")
ARRAYS = np.load(os.path.join(HERE, "data", "maedet", "gflv2_pieces.npz"))
LEVELS = [f"p{i}" for i in range(3, 8)]


def recorded(name: str) -> torch.Tensor:
    return torch.as_tensor(ARRAYS[name])


def close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def fill_head(key: str, shape) -> torch.Tensor:
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"gfl.{key}".encode()).digest()[:8], "big"))
    if key.endswith(".scale") or (len(shape) == 1 and key.endswith("weight")):
        value = rng.uniform(0.8, 1.2, shape)
    elif key.endswith("bias"):
        value = -2 * (key == "gfl_cls.bias") + 0.1 * rng.standard_normal(shape)
    else:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    return torch.as_tensor(np.asarray(value, dtype=np.float32))


class Pyramid(nn.Module):
    """In the place of a backbone: the features are recorded."""

    size_divisibility = 32
    padding_constraints = {}

    def output_shape(self):
        return {name: ShapeSpec(channels=64, stride=8 * 2**i) for i, name in enumerate(LEVELS)}


class Images:
    image_sizes = [tuple(meta["img_shape"][:2]) for meta in RECORD["metas"]]


@pytest.fixture
def model():
    head = gfl.GFLHead(64, 5, num_classes=5, num_convs=2)
    weights = {key: fill_head(key, shape) for key, shape in RECORD["state_dict_keys"] if key != "integral.project"}
    head.load_state_dict({mmdet.head_key(f"bbox_head.{key}", "GFLV2")[len("head.") :]: value for key, value in weights.items()}, strict=True)
    return gfl.GFL(backbone=Pyramid(), head=head, head_in_features=LEVELS, num_classes=5)


def features():
    return [recorded(f"head_feat{i}") for i in range(5)]


def truth(rows: slice) -> Instances:
    boxes, labels = torch.tensor(RECORD["gt"])[rows], torch.tensor(RECORD["gt_labels"])[rows]
    return Instances((128, 160), gt_boxes=Boxes(boxes), gt_classes=labels)


@pytest.mark.parametrize("kind", ["prob", "logit"])
def test_quality_focal_loss(kind):
    loss = gfl.quality_focal_loss(recorded(f"qfl_in_{kind}"), recorded("qfl_label"), recorded("qfl_score"), logits=kind == "logit")
    close(loss, recorded(f"qfl_none_{kind}"))
    close((loss * recorded("qfl_weight")).sum() / 7, recorded(f"qfl_weighted_avg7_{kind}"))


def test_distribution_focal_loss():
    loss = gfl.distribution_focal_loss(recorded("dfl_pred"), recorded("dfl_label"))
    close(loss, recorded("dfl_none"))
    close(0.25 * (loss * recorded("dfl_weight")).sum() / 4, recorded("dfl_w025_avg4"))


def test_boxes():
    close(gfl.expected_distance(recorded("integral_in").reshape(6, 4, 17)), recorded("integral_out"))
    boxes = recorded("dist_boxes")
    points = recorded("dist_pts")
    distances = torch.cat((points - boxes[:, :2], boxes[:, 2:] - points), dim=1)
    close(distances.clamp(0, 16 - 0.1), recorded("dist_out_max16"))
    close(gfl.boxes_around(points, distances), boxes)
    close(gfl.matched_pairwise_iou(Boxes(recorded("giou_a")), Boxes(recorded("giou_b"))), recorded("iou_aligned"))
    close(generalized_box_iou_loss(recorded("giou_a"), recorded("giou_b")), recorded("giou_loss"))


def test_anchors_and_their_objects(model):
    anchors = model.anchor_generator(features())
    assert torch.equal(Boxes.cat(anchors).tensor, recorded("anchors"))
    counts = [len(level) for level in anchors]
    boxes = recorded("atss_gt")
    index = gfl.atss(recorded("anchors"), counts, boxes, 9)
    assert torch.equal(index + 1, recorded("atss_gt_inds"))  # there 0 is background
    assert (index >= 0).sum() > 20 and not (index == 4).any()  # an object of 6x7 pixels gets none
    assert torch.equal(gfl.atss(recorded("anchors"), counts, boxes[:0], 9) + 1, recorded("atss_empty_gt_inds"))


@pytest.mark.parametrize("level", range(5))
def test_head(model, level):
    scores, distributions = model.head(features())
    close(scores[level], recorded(f"head_cls{level}"))
    close(distributions[level], recorded(f"head_reg{level}"))
    if level == 0:
        close(model.head.statistics(distributions[0]), recorded("dgqp_stat0"))
        close(model.head.quality(recorded("dgqp_stat0")).sigmoid(), recorded("dgqp_quality0"))


@pytest.mark.parametrize("case, second", [("losses", slice(2, 4)), ("losses_second_image_empty", slice(0, 0))])
def test_losses(model, case, second):
    with EventStorage():
        losses = model.forward_training(Images, features(), model.head(features()), [truth(slice(0, 6)), truth(second)])
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box_reg", "loss_bbox"), ("loss_dfl", "loss_dfl")):
        assert losses[ours].item() == pytest.approx(sum(RECORD[case][theirs]), rel=1e-5)


@pytest.mark.parametrize("level", range(5))
def test_losses_of_each_level(model, level):
    """The others' anchors taken out, and the original's denominators, which are of all levels, put back."""
    inputs = features()
    with EventStorage(), torch.no_grad():
        scores, distributions = model._transpose_dense_predictions(model.head(inputs), [5, 68])
        anchors = model.anchor_generator(inputs)
        labels, boxes = model.label_anchors(
            anchors, [x.shape[-2:] for x in inputs], Images.image_sizes, [truth(slice(0, 6)), truth(slice(2, 4))]
        )
        start = sum(len(a) for a in anchors[:level])
        own = torch.zeros(labels.shape[1], dtype=torch.bool)
        own[start : start + len(anchors[level])] = True
        scores, distributions = torch.cat(scores, dim=1), torch.cat(distributions, dim=1)
        losses = model.losses(anchors, scores, distributions, torch.where(own, labels, -1), boxes)
    positive = (labels >= 0) & (labels < 5)
    weight = scores.max(dim=2).values
    counts = [(mask.sum(1).clamp(min=1).sum(), (weight * mask).sum()) for mask in (positive, positive & own)]
    (all_count, all_weight), (own_count, own_weight) = counts
    assert losses["loss_cls"].item() * own_count / all_count == pytest.approx(RECORD["losses"]["loss_cls"][level], rel=1e-4)
    for ours, theirs in (("loss_box_reg", "loss_bbox"), ("loss_dfl", "loss_dfl")):
        assert losses[ours].item() * own_weight / all_weight == pytest.approx(abs(RECORD["losses"][theirs][level]), rel=1e-4)


def test_gradients(model):
    with EventStorage():
        losses = model.forward_training(Images, features(), model.head(features()), [truth(slice(0, 6)), truth(slice(2, 4))])
    sum(losses.values()).backward()
    gradients = {key: p.grad for key, p in model.head.named_parameters()}
    assert len(gradients) == len(RECORD["grad_sum_and_norm"])
    for key, (total, norm) in RECORD["grad_sum_and_norm"].items():
        gradient = gradients[mmdet.head_key(f"bbox_head.{key}", "GFLV2")[len("head.") :]]
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-4), key
        assert gradient.sum().item() == pytest.approx(total, abs=1e-4 * norm * gradient.numel() ** 0.5), key


@pytest.mark.parametrize("image", [0, 1])
def test_decoding(model, image):
    """Before NMS, the best 100 places of each level with all their classes."""
    model.test_topk_candidates, model.test_score_thresh = 100, -1.0
    scores, distributions = model._transpose_dense_predictions(model.head(features()), [5, 68])
    boxes, values = [], []
    for i, anchors in enumerate(model.anchor_generator(features())):
        box, score, _ = model.decode(anchors.tensor, scores[i][image], distributions[i][image], model.strides[i], Images.image_sizes[image])
        boxes.append(box.reshape(-1, 5, 4)[:, 0])
        values.append(score.reshape(-1, 5))
    boxes, values = torch.cat(boxes), torch.cat(values)
    expected, expected_values = recorded(f"decode_boxes{image}"), recorded(f"decode_scores{image}")[:, :5]
    assert len(boxes) == len(expected)
    nearest = torch.cdist(expected_values, values).argmin(dim=1)  # the original keeps places in their order
    assert len(nearest.unique()) == len(boxes)
    close(values[nearest], expected_values)
    torch.testing.assert_close(boxes[nearest], expected, rtol=0, atol=1e-3)


def small(*overrides):
    cfg = zoo.get_config("gfl_MAE_DET_S_FPN_73e.yaml")
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "MODEL.MAEDET.WIDTH", "0.25", "MODEL.MAEDET.NORM", "BN", *map(str, overrides)])
    check_config(cfg)
    return cfg


def an_image(height=75, width=101, boxes=()):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_classes=torch.zeros(len(boxes), dtype=torch.long))
    return {"image": torch.rand(3, height, width) * 255, "height": height, "width": width, "instances": instances}


@pytest.mark.parametrize("quality", [True, False])
@pytest.mark.parametrize("autocast", [False, True])
def test_without_any_object(quality, autocast):
    """Losses and gradients are finite, of the whole batch as of one image, and in mixed precision; every parameter is part of them."""
    model = build_model(small("MODEL.GFL.QUALITY", quality)).train()
    for batch in ([an_image(), an_image(64, 64)], [an_image(boxes=[[5, 5, 60, 50]]), an_image(64, 64)]):
        model.zero_grad()
        with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            losses = model(batch)
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    assert losses["loss_box_reg"] > 0 and losses["loss_dfl"] > 0


def test_what_lies_beyond_an_images_own_padding(model):
    """Of images of several sizes, the smaller ones' empty cells are neither object nor background, and take no part in the loss."""

    class Sizes:
        image_sizes = [(128, 160), (60, 90)]

    inputs = features()
    with EventStorage(), torch.no_grad():
        sizes = [x.shape[-2:] for x in inputs]
        labels, _ = model.label_anchors(model.anchor_generator(inputs), sizes, Sizes.image_sizes, [truth(slice(0, 1)), truth(slice(0, 1))])
    cells = labels[1].split([h * w for h, w in sizes])
    for label, (h, w), stride in zip(cells, sizes, model.strides):
        inside = torch.zeros(h, w, dtype=torch.bool)
        inside[: -(-64 // stride), : -(-96 // stride)] = True  # 60x90, padded to 64x96
        assert torch.equal((label >= 0).reshape(h, w), inside)
    assert (labels[0] >= 0).all()
    scores = torch.rand(2, labels.shape[1], 5)
    distributions, boxes = torch.randn(2, labels.shape[1], 68), torch.zeros(2, labels.shape[1], 4)
    anchors = model.anchor_generator(inputs)
    with EventStorage():
        loss = model.losses(anchors, scores, distributions, labels.clamp(max=5), boxes)["loss_cls"]
        scores[1, labels[1] < 0] = 0.999
        assert model.losses(anchors, scores, distributions, labels.clamp(max=5), boxes)["loss_cls"] == loss


def test_nms(model):
    """Within a class only, from an overlap above the threshold, and so many boxes at most."""
    anchors = model.anchor_generator(features())
    empty = [(torch.zeros(len(a), 5), torch.zeros(len(a), 68)) for a in anchors]
    scores, distributions = ([x[i] for x in empty] for i in range(2))
    distributions[0][:, [2, 17 + 2, 34 + 2, 51 + 2]] = 50.0  # every box reaches two strides to each side: 32x32
    place = 20 * 8 + 10  # in the middle of 16x20 places; it and the next overlap by 24/40 = 0.6
    scores[0][place, 1], scores[0][place + 1, 1], scores[0][place, 2] = 0.9, 0.8, 0.7
    size = (128, 160)

    def found():
        return model.inference_single_image(anchors, scores, distributions, size)

    model.test_nms_thresh = 0.65
    assert found().scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    model.test_nms_thresh = 0.55
    assert found().scores.tolist() == pytest.approx([0.9, 0.7]) and found().pred_classes.tolist() == [1, 2]
    model.max_detections_per_image = 1
    assert len(found()) == 1
    model.max_detections_per_image, model.test_score_thresh = 100, 0.7
    assert found().scores.tolist() == pytest.approx([0.9])  # strictly above


def test_settings_reach_the_detector():
    keys = {"ATSS_TOPK": 5, "NUM_CONVS": 2, "NMS_THRESH_TEST": 0.5, "TOPK_CANDIDATES_TEST": 50, "SCORE_THRESH_TEST": 0.1, "ANCHOR_SIZE": 6.0}
    weights = {"CLS_LOSS_WEIGHT": 3.0, "BBOX_LOSS_WEIGHT": 4.0, "DFL_LOSS_WEIGHT": 5.0}
    model = build_model(small(*(part for key, value in {**keys, **weights}.items() for part in (f"MODEL.GFL.{key}", value))))
    assert (model.atss_topk, model.test_nms_thresh, model.test_topk_candidates, model.test_score_thresh) == (5, 0.5, 50, 0.1)
    assert model.loss_weights == [3.0, 4.0, 5.0] and len(model.head.cls_subnet) == 6
    assert next(iter(model.anchor_generator.cell_anchors)).tolist() == [[-24.0, -24.0, 24.0, 24.0]]
    assert 0.008 < model.head.bbox_pred.weight.std() < 0.012 and zoo.get_config("gfl_R_50_FPN_73e.yaml").SOLVER.BASE_LR == 0.01


def test_plain_gfl():
    """Without the quality head scores are sigmoids of logits."""
    model = build_model(small("MODEL.GFL.QUALITY", False)).eval()
    assert not any("quality" in key for key in model.state_dict())
    with torch.no_grad():
        scores, _ = model.head([torch.rand(1, 192, 8, 8)] * 5)
        assert scores[0].max() < -2  # about -log(99), where training begins
        model.test_score_thresh = 0.0
        assert model([an_image()])[0]["instances"].scores.max() < 0.1


def test_sizes_of_the_detectors():
    """The published ones of head, pyramid and whole detectors."""
    expected = {"S": (2914586, 2302464, 26450170), "M": (5065242, 4024320, 34933098), "L": (5065242, 4210688, 53155482)}
    for name, sizes in expected.items():
        cfg = zoo.get_config(f"gfl_MAE_DET_{name}_FPN_73e.yaml")
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            model = build_model(cfg)
        fpn = [p.numel() for key, p in model.backbone.named_parameters() if not key.startswith("bottom_up.")]
        assert (sum(p.numel() for p in model.head.parameters()), sum(fpn), sum(p.numel() for p in model.parameters())) == sizes


def test_the_recipe():
    cfg = zoo.get_config("gfl_MAE_DET_M_FPN_73e.yaml")
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MOMENTUM) == (16, 0.02, 0.9)
    assert solver.WEIGHT_DECAY == solver.WEIGHT_DECAY_NORM == 1e-4 and solver.WEIGHT_DECAY_BIAS in (None, 1e-4)
    epoch = 7330
    assert (solver.STEPS, solver.MAX_ITER) == ((65 * epoch, 71 * epoch), 73 * epoch)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.CLIP_GRADIENTS.ENABLED) == (epoch, 0.1, False)
    assert (cfg.INPUT.FORMAT, cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == ("RGB", (480, 960), "range")
    assert (cfg.MODEL.WEIGHTS, cfg.MODEL.MAEDET.NORM, cfg.MODEL.BACKBONE.FREEZE_AT) == ("", "SyncBN", 0)


def test_yaml_and_python_config_are_one_detector():
    cfg = zoo.get_config("gfl_MAE_DET_S_FPN_3x.yaml")
    cfg.MODEL.DEVICE = "meta"
    python = zoo.get_lazy_config("lazy/gfl_MAE_DET_S_FPN_3x.py")
    with torch.device("meta"):
        ours, theirs = build_model(cfg), instantiate(python.model)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    for name in ("strides", "num_classes", "atss_topk", "loss_weights", "test_score_thresh", "test_topk_candidates", "test_nms_thresh"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.input_format == theirs.input_format == python.dataloader.train.mapper.image_format
    assert python.train.max_iter == cfg.SOLVER.MAX_ITER and python.optimizer.lr == cfg.SOLVER.BASE_LR


def test_p7_follows_p6_of_p5():
    cfg = small()
    fpn = build_model(cfg).backbone.eval()
    with torch.no_grad():
        out = fpn(torch.rand(1, 3, 128, 128))
        p6 = fpn.top_block.p6(out["p5"])
        assert torch.equal(out["p6"], p6) and torch.equal(out["p7"], fpn.top_block.p7(p6)) and (p6 < 0).any()


@pytest.mark.slow
def test_exports():
    """Scripted and traced like detectron2's detectors; a trace takes images of another size."""
    model = build_model(small("MODEL.GFL.SCORE_THRESH_TEST", 1e-4)).eval()
    image, other = torch.rand(3, 96, 130) * 255, torch.rand(3, 160, 100) * 255
    with torch.no_grad():
        scripted = scripting_with_instances(model, {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor})
        traced = torch.jit.trace(
            TracingAdapter(model, image, lambda m, x: m([{"image": x}]), allow_non_tensor=True), (image,), check_trace=False
        )
        for x in (image, other):
            expected = model([{"image": x}])[0]["instances"]
            assert len(expected) > 10
            found = scripted([{"image": x}])[0]
            close(found.pred_boxes.tensor, expected.pred_boxes.tensor)
            close(found.scores, expected.scores)
            boxes, classes, scores, _ = traced(x)
            close(boxes, expected.pred_boxes.tensor)
            assert torch.equal(classes, expected.pred_classes)


def test_mistakes():
    for overrides, words in (
        (["MODEL.GFL.IN_FEATURES", "['p2','p3']"], "MODEL.GFL.IN_FEATURES: 'p2'"),
        (["MODEL.GFL.IN_FEATURES", "[]"], "MODEL.GFL.IN_FEATURES is empty"),
        (["MODEL.GFL.QUALITY_TOPK", "0"], "MODEL.GFL.QUALITY_TOPK is 0"),
        (["MODEL.GFL.ANCHOR_SIZE", "-8"], "MODEL.GFL.ANCHOR_SIZE is -8.0"),
        (["MODEL.GFL.PRIOR_PROB", "1"], "MODEL.GFL.PRIOR_PROB is 1.0"),
        (
            ["MODEL.BACKBONE.NAME", "build_maedet_backbone", "MODEL.GFL.IN_FEATURES", "['res3','res4','res5']"],
            "MODEL.GFL.IN_FEATURES must have the same width.*res3 72",
        ),
        (["MODEL.GFL.NUM_CLASSES", "0"], "MODEL.GFL.NUM_CLASSES is 0"),
        (["MODEL.FPN.P6_INPUT", "p4"], "MODEL.FPN.P6_INPUT: 'p4'"),
        (["MODEL.GFL.NORM", "gn"], "MODEL.GFL.NORM: 'gn'. Did you mean 'GN'"),
    ):
        with pytest.raises(UserError, match=words.replace("[", r"\[")):
            small(*overrides)
