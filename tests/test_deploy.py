"""What is optimized or exported computes what the model computes."""

import copy
import itertools
import json
import os

import numpy as np
import pytest
import torch
from choices import SMALLEST, cases, turns
from lively import lively_model
from test_matrix import KINDS
from torchvision import ops

from backbones import UserError, create, use_backbone, zoo
from backbones.deploy import Runner, optimize
from backbones.deploy.export import FORMATS, TOLERANCES, Tolerance, export, match
from backbones.deploy.low_precision import check_precision, lower
from backbones.deploy.optimize import fold_norms
from backbones.deploy.predictor import Predictor
from backbones.deploy.roi_align import CPUPooler, roi_align
from backbones.detectors import InOrder
from backbones.tools import demo

MORE_KINDS = {
    **KINDS,
    "RPN": "COCO-Detection/rpn_R_50_FPN_1x.yaml",
    "MMDetRetinaNet": "retinanet_RegNetX_800MF_FPN_1x.yaml",
    "MMDetRPN": "faster_rcnn_RegNetX_3.2GF_FPN_1x.yaml",
}
MEMORY_FORMATS = ("channels_last", "contiguous")
WIDTH = 64


def photo() -> np.ndarray:
    from sklearn.datasets import load_sample_image

    return np.ascontiguousarray(load_sample_image("china.jpg")[::2, ::2, ::-1])


def small_config(kind: str, backbone: str = "V-19-slim-dw-eSE"):
    cfg = zoo.get_config(MORE_KINDS[kind])
    use_backbone(cfg, backbone, own_weights=True)
    cfg.MODEL.VOVNET.NORM = cfg.MODEL.MOBILENETV2.NORM = cfg.MODEL.REGNET.NORM = "BN"
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.PIXEL_STD = "cpu", "", [1.0, 1.0, 1.0]
    if not kind.startswith("MMDet"):  # heads are the same code however wide they are; of those, random weights make more near ties then
        cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = WIDTH
        cfg.MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS, cfg.MODEL.ROI_BOX_HEAD.FC_DIM = (WIDTH, WIDTH), 4 * WIDTH
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.TEST.DETECTIONS_PER_IMAGE = 60, 30
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 160, 320
    return cfg


def alive(kind: str, backbone: str = "V-19-slim-dw-eSE"):
    """(config, image, model, and what it finds)"""
    cfg, image = small_config(kind, backbone), photo()
    x = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1))).float()
    model = lively_model(cfg, x)
    return cfg, image, model, [{"image": x, "height": x.shape[1], "width": x.shape[2]}]


def boxes_of(result) -> dict:
    found = result["instances"] if "instances" in result else result["proposals"]
    names = {"pred_boxes": "boxes", "proposal_boxes": "boxes", "scores": "scores", "pred_classes": "classes"}
    fields = {names[k]: v for k, v in found.get_fields().items() if k in names}
    return {k: v if isinstance(v, torch.Tensor) else v.tensor for k, v in fields.items()}


@pytest.mark.parametrize("sampling_ratio, aligned", itertools.product((0, 1, 2), (True, False)))
def test_roi_align(sampling_ratio, aligned):
    """torchvision's, to 2e-6: regions inside, outside, empty, inverted, of every size, of two images."""
    for trial in range(25):
        torch.manual_seed(trial)
        height, width = torch.randint(1, 60, (2,)).tolist()
        x = torch.randn(2, 5, height, width)
        center = (torch.rand(30, 2) * 1.4 - 0.2) * torch.tensor([width, height]) * 4
        size = torch.exp(torch.randn(30, 2) * 1.5) * 20
        size[:3], size[3:5] = 0, -size[3:5]
        rois = torch.cat([torch.randint(0, 2, (30, 1)).float(), center - size / 2, center + size / 2], dim=1)
        for memory_format in (torch.contiguous_format, torch.channels_last):
            found = roi_align(x.to(memory_format=memory_format), rois, (7, 5), 0.25, sampling_ratio, aligned)
            torch.testing.assert_close(found, ops.roi_align(x, rois, (7, 5), 0.25, sampling_ratio, aligned), rtol=0, atol=2e-6)


def test_roi_align_of_nothing_and_far_away():
    x = torch.randn(1, 3, 8, 8)
    assert roi_align(x, torch.zeros(0, 5), (7, 7), 0.25).shape == (0, 3, 7, 7)
    far = torch.tensor([[0, 1.0, 1.0, 9.0, 2e5]])  # more samples than memory is given to
    torch.testing.assert_close(roi_align(x, far, (7, 7), 0.25), ops.roi_align(x, far, (7, 7), 0.25, 0, True))
    with torch.enable_grad():  # what trains pools as before
        from detectron2.modeling.poolers import ROIPooler
        from detectron2.structures import Boxes

        pooler = ROIPooler(7, [0.25], 0, "ROIAlignV2")
        x.requires_grad_(True)
        boxes = [Boxes(torch.tensor([[0, 0, 20.0, 20.0]]))]
        ours, theirs = (torch.autograd.grad(pool([x], boxes).sum(), x)[0] for pool in (CPUPooler(pooler), pooler))
        assert theirs.any() and torch.equal(ours, theirs)


@pytest.mark.parametrize("norm", ["BN", "FrozenBN", "EvalBN"])
@pytest.mark.parametrize("name", SMALLEST)
def test_folded_norms(name, norm):
    """Every norm goes, and the features stay, to 1e-4 of their largest value."""
    net = create(name, norm=norm).eval()
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_()
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net(image)
        count = fold_norms(net)
        after = net(image)
    assert count > 10 and not any(hasattr(module, "running_var") for module in net.modules())
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-4 * value.abs().max().item())


def test_norms_in_training_are_not_folded():
    assert fold_norms(create("MobileNetV2", norm="BN").train()) == 0
    assert fold_norms(create("MobileNetV2", norm="GN").eval()) == 0


@pytest.mark.parametrize(
    "kind, memory_format",
    cases(itertools.product(MORE_KINDS, MEMORY_FORMATS), tried=turns(list(MORE_KINDS), MEMORY_FORMATS), daily=[("Faster", MEMORY_FORMATS[0])]),
)
def test_same_boxes(kind, memory_format):
    """Within 1e-3 pixels and 1e-4 of score; the model itself is not touched."""
    _, _, model, inputs = alive(kind)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = boxes_of(model(inputs)[0])
    assert len(expected["boxes"]) >= 10
    # without an FPN, what random weights make is larger, and so is its rounding
    tolerance = Tolerance(1e-2, 1e-3) if kind in ("C4", "DC5") else Tolerance(1e-3, 1e-4)
    faster = optimize(model, memory_format=memory_format)
    with torch.no_grad():
        found = boxes_of(faster(inputs)[0])
    # RetinaNet's scores of random weights are 1 but for their last digit, by which non-maximum suppression orders
    agreeing = 0.85 if kind == "RetinaNet" else 0.98
    assert len(match(expected, found, tolerance)) >= agreeing * max(len(expected["boxes"]), len(found["boxes"]))
    poolers = [module for module in faster.modules() if isinstance(module, CPUPooler)]
    assert bool(poolers) == hasattr(model, "roi_heads")
    assert not model.training and all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    with torch.no_grad():
        again = boxes_of(model(inputs)[0])
    assert all(torch.equal(again[key], value) for key, value in expected.items())


@pytest.mark.parametrize("kind", cases(("Faster", "RetinaNet", "GFLV2", "Cascade"), tried=("Faster", "GFLV2"), daily=["GFLV2"]))
def test_bfloat16(kind):
    """Computes in bfloat16 and answers in float32, near what it answered."""
    _, _, model, inputs = alive(kind)
    faster = optimize(model, precision="bfloat16", memory_format="channels_last")
    seen = []
    conv = next(m for m in faster.backbone.modules() if isinstance(m, torch.nn.Conv2d))
    conv.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.no_grad():
        found, expected = faster(inputs)[0]["instances"], model(inputs)[0]["instances"]
    assert seen == [torch.bfloat16]
    assert found.pred_boxes.tensor.dtype == found.scores.dtype == torch.float32 and found.scores.isfinite().all()
    overlaps = ops.box_iou(expected.pred_boxes.tensor, found.pred_boxes.tensor)
    assert (overlaps.max(dim=1).values > 0.7).float().mean() > 0.4  # of random weights, many stand on an edge


def test_measured_memory_format():
    net = create("MobileNetV2", norm="BN").eval()
    faster = optimize(net, size=(64, 64))
    formats = {
        conv.weight.is_contiguous(memory_format=torch.channels_last)
        for conv in faster.modules()
        if isinstance(conv, torch.nn.Conv2d) and conv.weight.shape[1] > 1 and conv.kernel_size != (1, 1)
    }
    assert len(formats) == 1
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(faster(image)["res5"], net(image)["res5"], rtol=0, atol=1e-4 * net(image)["res5"].abs().max().item())


@pytest.mark.parametrize("options", [{"memory_format": "channel_last"}, {"precision": "float16"}, {"size": (0, 10)}])
def test_unknown_options(options):
    with pytest.raises(UserError, match="memory format|precision|size"):
        optimize(create("MobileNetV2"), **options)


# every kind of detector in one format; OpenVINO's files are made of ONNX's, so that they prove those too
EXPORTS = {
    "onnx": ("Faster", "Keypoint", "C4", "DC5", "RPN", "MMDetRetinaNet", "MMDetRPN", "RetinaNet"),
    "torchscript": ("GFLV2", "Mask", "Cascade"),
    "openvino": ("Panoptic",),
}
TRIED = [(kind, form) for form, kinds in EXPORTS.items() for kind in kinds]


@pytest.mark.parametrize("kind, form", cases(itertools.product(MORE_KINDS, FORMATS), TRIED, daily=[("RPN", "onnx"), ("GFLV2", "torchscript")]))
def test_exported_detectors(kind, form, tmp_path):
    """The file, called as a predictor, gives what the predictor of the model gives, on an image of another shape than it was traced on too."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    path = str(tmp_path / f"detector{FORMATS[form]}")
    differences = export(cfg, model, path, form, image)
    assert max(differences.get("boxes", 0), differences.get("proposals", 0)) <= TOLERANCES[form].pixels
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor, runner = Predictor(cfg), Runner(path)
    assert runner.about["part"] == "detector" and runner.about["size_divisibility"] == model.backbone.size_divisibility
    for view in (image, np.ascontiguousarray(image[:, :150])):
        expected, found = predictor(view), runner(view)
        assert set(found) == set(expected)
        ours, theirs = boxes_of(expected), boxes_of(found)
        pairs = match(ours, theirs, Tolerance(2 * TOLERANCES[form].pixels, TOLERANCES[form].score))
        assert len(ours["boxes"]) and len(pairs) >= 0.9 * max(len(ours["boxes"]), len(theirs["boxes"]))
        a, b = (r["instances" if "instances" in r else "proposals"] for r in (expected, found))
        assert a.image_size == b.image_size == view.shape[:2]
        if a.has("pred_masks"):
            same = (a.pred_masks[pairs[:, 0]] == b.pred_masks[pairs[:, 1]]).float().mean()
            assert same > 0.999
        if a.has("pred_keypoints"):
            off = (a.pred_keypoints[pairs[:, 0]] - b.pred_keypoints[pairs[:, 1]])[..., :2].abs().amax(-1)
            assert off.median() < 0.1
        if "sem_seg" in expected:
            assert (expected["sem_seg"].argmax(0) == found["sem_seg"].argmax(0)).float().mean() > 0.999
            assert (expected["panoptic_seg"][0] == found["panoptic_seg"][0]).float().mean() > 0.95


@pytest.mark.parametrize(
    "name, form",
    cases(
        itertools.product(SMALLEST, FORMATS),
        tried={*turns(SMALLEST, list(FORMATS)), *itertools.product(["MobileNetV2"], FORMATS)},
        daily=[("MobileNetV2", form) for form in FORMATS],
    ),
)
def test_exported_backbones(name, form, tmp_path):
    cfg, image, model, _ = alive("RetinaNet", name)
    path = str(tmp_path / f"backbone{FORMATS[form]}")
    differences = export(cfg, model, path, form, image, part="backbone")
    assert set(differences) == {"p3", "p4", "p5", "p6", "p7"} and max(differences.values()) <= TOLERANCES[form].features
    features = Runner(path).features(image[:100])
    assert {key: value.shape[1] for key, value in features.items()} == {f"p{i}": WIDTH for i in range(3, 8)}


def test_exported_classifier(tmp_path):
    cfg = zoo.get_config("digits/classification_digits.yaml")
    cfg.MODEL.DEVICE = "cpu"
    from detectron2.modeling import build_model

    from backbones.data.classification import ClassificationMapper

    model = build_model(cfg).eval()
    image = photo()
    path = str(tmp_path / "classifier.onnx")
    export(cfg, model, path, "onnx", image)
    import cv2

    cv2.imwrite(str(tmp_path / "photo.png"), image)
    record = ClassificationMapper.from_cfg(cfg, is_train=False)({"file_name": str(tmp_path / "photo.png")})
    with torch.no_grad():
        expected = model([{"image": record["image"].float()}])[0]["scores"]
    torch.testing.assert_close(Runner(path)(image)["scores"], expected, rtol=0, atol=2e-3)


class OtherInTraces(torch.nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        logits, deltas = self.head(features)
        return logits, ([x + 0.5 for x in deltas] if torch.jit.is_tracing() else deltas)


def test_an_export_that_differs_is_refused(tmp_path):
    """A file whose detections are not the model's is not written: here the model answers otherwise in a trace."""
    cfg, image, model, _ = alive("RetinaNet")
    model.head = OtherInTraces(model.head)
    with pytest.raises(UserError, match="agree: it is not written"):
        export(cfg, model, str(tmp_path / "a.ts"), "torchscript", image)
    with pytest.raises(UserError, match="finds nothing"):
        model.test_score_thresh = 2.0
        export(cfg, model, str(tmp_path / "a.ts"), "torchscript", image)
    assert os.listdir(tmp_path) == []


def test_an_export_of_a_detector_that_finds_nothing(tmp_path, caplog):
    """It is checked with a lower threshold, and keeps its own."""
    cfg, image, model, inputs = alive("RetinaNet")
    model.test_score_thresh = 2.0
    with torch.no_grad():
        assert not len(model(inputs)[0]["instances"])
    assert export(cfg, model, str(tmp_path / "a.ts"), "torchscript", image)["scores"] <= TOLERANCES["torchscript"].score
    assert "checked with a lower threshold" in caplog.text and model.test_score_thresh == 2.0
    assert not len(Runner(str(tmp_path / "a.ts"))(image)["instances"])


def test_backbone_that_differs_is_refused(tmp_path):
    cfg, image, model, _ = alive("Faster")
    with pytest.raises(UserError, match="differs from the model's by .* more than is allowed"):
        export(cfg, model, str(tmp_path / "a.onnx"), "onnx", image, "backbone", Tolerance(0, 0, features=1e-12))
    assert os.listdir(tmp_path) == []


def test_files_that_are_none(tmp_path):
    for name in ("a.ts", "a.onnx", "a.xml"):
        path = str(tmp_path / name)
        with pytest.raises(UserError, match="is not there"):
            Runner(path)
        for content in (b"", b"nonsense" * 100, json.dumps({"fields": []}).encode()):
            with open(path, "wb") as f:
                f.write(content)
            with pytest.raises(UserError, match="is no file that backbones exported") as error:
                Runner(path)
            assert "\n" not in str(error.value)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match="kind of exported file"):
        Runner(str(tmp_path / "a.pth"))
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1)), str(tmp_path / "foreign.ts"))
    with pytest.raises(UserError, match="is no file that backbones exported"):
        Runner(str(tmp_path / "foreign.ts"))


def test_equal_scores_are_ranked_by_place():
    """As a stable sort does, whatever the number of equal ones; NaN first, as ``topk`` has it. Out of training alone."""
    torch.manual_seed(0)
    for x in (torch.randn(5000).round(), torch.zeros(700), torch.randn(30), torch.tensor([1.0, float("nan"), 1.0, float("nan"), 2.0])):
        for count in (1, 3, min(1000, len(x)), len(x)):
            with InOrder():
                values, places = x.topk(count)
                rows = torch.stack((x, x.flip(0))).topk(count, dim=1)
                ranked = x.sort(descending=True)[1]
            expected = x.sort(descending=True, stable=True)
            torch.testing.assert_close(values, expected[0][:count], rtol=0, atol=0, equal_nan=True)
            assert torch.equal(places, expected[1][:count]) and torch.equal(rows.indices[0], places) and torch.equal(ranked, expected[1])
            torch.testing.assert_close(rows.values[0], rows.values[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("kind", cases(("Faster", "RetinaNet", "GFLV2", "MMDetRPN"), tried=("Faster", "RetinaNet"), daily=[]))
def test_exports_of_flat_images(kind, tmp_path):
    """Nearly all scores are exactly equal there; the check holds, and so does the file on another such image."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    flat = np.full((200, 260, 3), 120, np.uint8)
    flat[60:100, 60:140] = image[60:100, 60:140]
    path = str(tmp_path / "a.onnx")
    export(cfg, model, path, "onnx", flat)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    blank = np.full((160, 200, 3), 90, np.uint8)
    expected, found = boxes_of(Predictor(cfg)(blank)), boxes_of(Runner(path)(blank))
    assert len(expected["boxes"]) == len(found["boxes"]) == len(match(expected, found, Tolerance(0.1, 1e-3)))


ALONE = (
    "import runpy, sys; sys.modules.update(dict.fromkeys({blocked}, None)); sys.argv = {argv}; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.parametrize(
    "kind, form", cases((("Mask", "onnx"), ("Keypoint", "onnx"), ("Mask", "torchscript")), tried=(("Keypoint", "onnx"),), daily=[])
)
def test_the_file_beside_an_export_runs_it_alone(kind, form, tmp_path):
    """Boxes to 0.1 pixels, masks but for a pixel in a thousand, keypoints to 0.1 pixels, without torch where the runtime is not torch."""
    import subprocess
    import sys

    from PIL import Image

    from backbones.deploy import run_exported

    cfg, image, model, _ = alive(kind, "MobileNetV2")
    path = str(tmp_path / f"detector{FORMATS[form]}")
    export(cfg, model, path, form, image)
    beside = tmp_path / "run_exported.py"
    with open(run_exported.__file__) as ours:
        assert beside.read_text() == ours.read()
    Image.fromarray(image[:, :, ::-1]).save(tmp_path / "a.png")
    blocked = ["backbones", "detectron2", "cv2", *(["torch", "torchvision"] if form == "onnx" else [])]
    argv = [str(beside), path, str(tmp_path / "a.png"), "--threshold", "0", "--draw", str(tmp_path / "drawn")]
    ran = subprocess.run([sys.executable, "-c", ALONE.format(blocked=blocked, argv=argv)], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (objects,) = [json.loads(line)["objects"] for line in ran.stdout.splitlines()]
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    expected = Predictor(cfg)(image)["instances"]
    found = {
        "boxes": torch.tensor([one["box"] for one in objects]),
        "scores": torch.tensor([one["score"] for one in objects]),
        "classes": torch.tensor(
            [
                int(one["class"]) if one["class"].isdigit() else run_exported.Detector(path).about["classes"].index(one["class"])
                for one in objects
            ]
        ),
    }
    pairs = match(boxes_of({"instances": expected}), found, Tolerance(0.1, 1e-3)).tolist()
    assert len(expected) >= 10 and len(pairs) >= 0.98 * max(len(expected), len(objects))
    for i, j in pairs:
        if kind == "Mask":
            ends = np.cumsum(objects[j]["mask"]["counts"])
            mask = (np.searchsorted(ends, np.arange(image.shape[0] * image.shape[1]), side="right") % 2).reshape(image.shape[1], -1).T
            assert (mask != expected.pred_masks[i].numpy()).mean() < 1e-3
    if kind == "Keypoint":
        off = [np.abs(np.array(objects[j]["keypoints"])[:, :2] - expected.pred_keypoints[i, :, :2].numpy()).max(axis=1) for i, j in pairs]
        assert np.median(np.concatenate(off)) < 0.1
    assert np.abs(np.asarray(Image.open(tmp_path / "drawn" / "a.png")).astype(int) - image[:, :, ::-1]).max() > 30
    contract = run_exported.Detector(path).about["contract"]
    assert contract[0].startswith("image: float32 (3, H, W)") and [line.partition(":")[0] for line in contract[1:-1]] == Runner(path).fields


@pytest.mark.slow
@pytest.mark.parametrize("kind, form", cases((("GFLV2", "onnx"), ("Faster", "openvino")), tried=(("GFLV2", "onnx"),), daily=[]))
def test_int8(kind, form, tmp_path):
    """The file is smaller than half, its scores are near, it says how it was made, and too much loss is refused."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    source, path = str(tmp_path / "a.onnx"), str(tmp_path / "small" / f"b{FORMATS[form]}")
    os.makedirs(tmp_path / "small")
    export(cfg, model, source, "onnx", image)
    given = {"images": [image, image[:, ::-1]], "said": "a photograph"}
    aps = iter((50.0, 49.0, 50.0, 49.9))
    evaluate = lambda runner: {"bbox": {"AP": next(aps)}}
    with pytest.raises(UserError, match=r"more than --max-drop 0.5 allows \(bbox/AP 50.00 -> 49.00\): it is not written"):
        lower(source, path, form, "int8", evaluate=evaluate, **given)
    assert os.listdir(tmp_path / "small") == []
    assert lower(source, path, form, "int8", evaluate=evaluate, **given) == {"bbox/AP": (50.0, 49.9)}
    about = Runner(path).about
    assert about["precision"] == "int8" and about["calibration"] == {"images": 2, "of": "a photograph", "method": "MinMax"}
    assert about["AP"] == {"bbox/AP": [50.0, 49.9]}
    files = [name for name in os.listdir(tmp_path / "small") if name.startswith("b.")]
    assert sum(os.path.getsize(tmp_path / "small" / name) for name in files) < 0.5 * os.path.getsize(source)
    expected, found = (runner(image)["instances"].scores for runner in (Runner(source), Runner(path)))
    assert len(found) and abs(float(expected[:10].mean() - found[:10].mean())) < 0.1


@pytest.mark.parametrize(
    "kind, precision, calibrated, said",
    [
        ("torchscript", "int8", True, "precision of format torchscript"),
        ("onnx", "bfloat16", False, "precision of format onnx"),
        ("onnx", "int8", False, "--calibrate"),
    ],
)
def test_precisions_that_are_none(kind, precision, calibrated, said):
    with pytest.raises(UserError, match=said):
        check_precision(kind, precision, calibrated)


@pytest.mark.slow
def test_tools(tmp_path, monkeypatch, capsys):
    """Export and demo as commands: the picture of the exported file's detections is that of the model's."""
    import cv2

    from backbones.tools import export as tool

    cfg, image, model, _ = alive("Mask")
    cfg.OUTPUT_DIR = str(tmp_path)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    for name in ("in/a.png", "in/b.png"):
        os.makedirs(tmp_path / "in", exist_ok=True)
        cv2.imwrite(str(tmp_path / name), image)
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]
    common = ["--config-file", str(tmp_path / "config.yaml")]
    exported = str(tmp_path / "detector.onnx")
    one = str(tmp_path / "in" / "a.png")
    monkeypatch.setattr("sys.argv", ["export", *common, "--format", "onnx", "--output", exported, "--image", one, *weights])
    tool.main()
    assert "boxes" in capsys.readouterr().out
    pictures = {}
    for name, options in {
        "model": [*common, *weights],
        "faster": [*common, "--optimize", *weights],
        "exported": ["--exported", exported],
    }.items():
        out = str(tmp_path / name)
        monkeypatch.setattr("sys.argv", ["demo", "--input", str(tmp_path / "in"), "--output", out, "--confidence-threshold", "0.6", *options])
        np.random.seed(0)  # of the colours
        demo.main()
        assert sorted(os.listdir(out)) == ["a.png", "b.png"]
        pictures[name] = cv2.imread(os.path.join(out, "a.png")).astype(int)
        assert pictures[name].shape == image.shape and (np.abs(pictures[name] - image) > 30).mean() > 0.01
    for name in ("faster", "exported"):  # the same boxes in the same colours, but for a pixel here and there
        assert (np.abs(pictures[name] - pictures["model"]) > 30).mean() < 0.01
    video = str(tmp_path / "in.avi")
    writer = cv2.VideoWriter(video, cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (image.shape[1], image.shape[0]))
    for _ in range(3):
        writer.write(image)
    writer.release()
    monkeypatch.setattr("sys.argv", ["demo", "--exported", exported, "--video-input", video, "--output", str(tmp_path / "out.mp4")])
    demo.main()
    assert "3 frames" in capsys.readouterr().out
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--input", "nowhere.jpg", "--exported", "a.onnx"], "'nowhere.jpg' is not there"),
        (["--input", __file__], "name what is to predict"),
        (["--video-input", "nowhere.mp4", "--exported", "nowhere.onnx"], "'nowhere.onnx' is not there"),
        (["--input", __file__, "--exported", "a.onnx", "--optimize"], "do not go with it"),
        (["--input", __file__, "--exported", "a.onnx", "--confidence-threshold", "2"], "must be from 0 to 1"),
        (["--input", __file__, __file__, "--exported", "a.onnx", "--output", "a.png"], "name a folder"),
        (["--input", os.path.dirname(__file__), "--exported", "a.onnx"], "holds no image"),
    ],
)
def test_mistakes_in_demo(arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo", *arguments])
    with pytest.raises(UserError, match=said):
        demo.main()
    assert os.listdir(tmp_path) == []


def test_no_input_is_written_over(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(UserError, match="would write over"):
        demo.targets_of([str(file)], str(tmp_path))


def test_copies_stay_independent():
    """An optimized copy of an optimized model is one too."""
    net = create("MobileNetV2", norm="BN").eval()
    once = optimize(net, memory_format="contiguous")
    twice = optimize(copy.deepcopy(once), memory_format="channels_last")
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(twice(image)["res5"], once(image)["res5"], rtol=1e-3, atol=1e-4)
