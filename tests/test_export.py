"""What is exported computes what the model computes; what does not is refused."""

import itertools
import json
import os

import numpy as np
import pytest
import torch
from choices import SMALLEST, cases, turns
from lively import MORE_KINDS, WIDTH, alive, boxes_of, photo

from backbones import UserError, zoo
from backbones.deploy import Runner
from backbones.deploy import export as deploy_export
from backbones.deploy.export import FORMATS, TOLERANCES, Tolerance, export, match
from backbones.deploy.predictor import Predictor
from backbones.deploy.runner import RunnerModel
from backbones.deploy.saving import deliver
from backbones.tools import export as tool

# every kind of detector in one format. OpenVINO's files are made of ONNX's: other tests try two of them
EXPORTS = {
    "onnx": ("Faster", "Keypoint", "C4", "DC5", "RPN", "MMDetRetinaNet", "MMDetRPN", "RetinaNet", "Panoptic"),
    "torchscript": ("GFLV2", "Mask", "Cascade"),
}
TRIED = [(kind, form) for form, kinds in EXPORTS.items() for kind in kinds]


@pytest.mark.parametrize("kind, form", cases(itertools.product(MORE_KINDS, FORMATS), TRIED, daily=[("RPN", "onnx")]))
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
        daily=[("MobileNetV2", "torchscript")],
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_export_of_a_detector_that_finds_nothing(tmp_path, caplog):
    """It is checked with a lower threshold, and keeps its own."""
    cfg, image, model, inputs = alive("RetinaNet")
    model.test_score_thresh = 2.0
    with torch.no_grad():
        assert not len(model(inputs)[0]["instances"])
    assert export(cfg, model, str(tmp_path / "a.ts"), "torchscript", image)["scores"] <= TOLERANCES["torchscript"].score
    assert "checked with a lower score threshold" in caplog.text and model.test_score_thresh == 2.0
    assert not len(Runner(str(tmp_path / "a.ts"))(image)["instances"])


def test_why_an_export_fails_is_said_whatever_is_found(tmp_path, monkeypatch):
    cfg, image, model, _ = alive("RetinaNet")
    model.test_score_thresh = 2.0

    def fails(*_):
        raise RuntimeError("no operator 'aten::foo'")

    monkeypatch.setitem(deploy_export._WRITERS, "torchscript", fails)
    with pytest.raises(UserError, match="cannot be exported to torchscript: no operator 'aten::foo'"):
        export(cfg, model, str(tmp_path / "a.ts"), "torchscript", image)


def test_a_file_is_checked_at_two_sizes():
    """Also if images come in their own size."""
    about = {"part": "detector", "batch": 0, "preprocessing": False, "min_size": 0, "max_size": 0, "crop": 0, "input_format": "BGR"}
    image = np.zeros((50, 60, 3), np.uint8)
    assert [deploy_export._input(image, about, scale).shape[-2:] for scale in (1.0, 0.7)] == [(50, 60), (35, 42)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, form", cases((("Faster", "onnx"), ("Faster", "openvino"), ("RetinaNet", "openvino")), tried=(("Faster", "openvino"),))
)
def test_exported_files_find_nothing_where_there_is_nothing(kind, form, tmp_path):
    """Also after an image in which they found something."""
    cfg, image, model, _ = alive(kind, "MobileNetV2")
    modules = [module for module in model.modules() if hasattr(module, "test_score_thresh")]
    blank = np.full((160, 200, 3), 90, np.uint8)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    predictor = Predictor(cfg)
    highest, other = (predictor(view)["instances"].scores.max().item() for view in (image, blank))
    assert highest > other
    for module in modules:
        module.test_score_thresh = (highest + other) / 2
    export(cfg, model, str(tmp_path / f"few{FORMATS[form]}"), form, image)
    runner = Runner(str(tmp_path / f"few{FORMATS[form]}"))
    assert [bool(len(runner(view)["instances"])) for view in (image, blank, image, blank)] == [True, False, True, False]


def test_graphs_leave_nothing_to_guess():
    """A computed shape's 0 means 0, one in a constant shape what it meant; a constant without elements is filled, in branches too."""
    onnx = pytest.importorskip("onnx")
    from backbones.deploy.saving import portable

    branch = onnx.parser.parse_graph("b () => (int64[0] e) { e = Constant <value = int64[0] {}> () }")
    graph = onnx.parser.parse_graph(
        "g (float[N, 1, 4] x, int64[2] s) => (float[A, 4] y, float[C, 4] z) { c = Constant <value = int64[2] {0, 4}> () "
        "y = Reshape (x, s) z = Reshape (x, c) }"
    )
    portable(branch)
    portable(graph)
    assert [node.op_type for node in branch.node] == ["ConstantOfShape"] and list(branch.node[0].output) == ["e"]
    assert onnx.numpy_helper.to_array(branch.initializer[0]).tolist() == [0]
    assert [[a.i for a in node.attribute] for node in graph.node if node.op_type == "Reshape"] == [[1], []]


def test_backbone_that_differs_is_refused(tmp_path):
    cfg, image, model, _ = alive("Faster")
    with pytest.raises(UserError, match="differs from the model's by .* more than the allowed"):
        export(cfg, model, str(tmp_path / "a.onnx"), "onnx", image, "backbone", Tolerance(0, 0, features=1e-12))
    assert os.listdir(tmp_path) == []


def test_images_on_a_gpu():
    """As evaluation gives them to an exported file, whose runtime takes arrays of the CPU."""

    class OnGPU(torch.Tensor):
        def numpy(self):
            raise TypeError("can't convert cuda:0 device type tensor to numpy")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    class File:
        @staticmethod
        def predict_all(images, sizes):
            return [(image.numpy().sum(), size) for image, size in zip(images, sizes)]

    inputs = [{"image": torch.ones(3, 2, 2).as_subclass(OnGPU), "height": 4, "width": 5}]
    assert RunnerModel(File)(inputs) == [(12, (4, 5))]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--output", "{}"], "--output .* is not a file name"),
        (
            ["--output", "{}/a.onnx", "--part", "backbone", "--precision", "int8", "--calibrate", ".", "--max-drop", "1"],
            "--max-drop needs --part detector",
        ),
    ],
)
def test_mistakes_in_export(arguments, said, tmp_path, monkeypatch):
    """Before anything is built or read."""
    folder = tmp_path / "folder.onnx"
    folder.mkdir()
    monkeypatch.setattr("sys.argv", ["export", "--config-file", "none", "--format", "onnx", *[word.format(folder) for word in arguments]])
    with pytest.raises(UserError, match=said):
        tool.main()


def test_a_place_that_cannot_be_written(tmp_path):
    for folder in ("made", "folder.onnx"):
        (tmp_path / folder).mkdir()
    (tmp_path / "made" / "folder.onnx").write_text("")
    with pytest.raises(UserError, match="folder.onnx' cannot be written") as error:
        deliver(str(tmp_path / "made"), str(tmp_path))
    assert error.value.code == "cannot-write"


def test_a_backbone_has_no_ap(capsys):
    assert tool.evaluator(None, "backbone") is None and capsys.readouterr().out == "AP is not measured: a backbone has none\n"


def test_files_that_are_none(tmp_path):
    for name in ("a.ts", "a.onnx", "a.xml"):
        path = str(tmp_path / name)
        with pytest.raises(UserError, match="does not exist"):
            Runner(path)
        for content in (b"", b"nonsense" * 100, json.dumps({"fields": []}).encode()):
            with open(path, "wb") as f:
                f.write(content)
            with pytest.raises(UserError, match="was not exported by backbones") as error:
                Runner(path)
            assert "\n" not in str(error.value)
    (tmp_path / "a.pth").touch()
    with pytest.raises(UserError, match="kind of exported file"):
        Runner(str(tmp_path / "a.pth"))
    torch.jit.save(torch.jit.trace(torch.nn.Identity(), torch.ones(1)), str(tmp_path / "foreign.ts"))
    with pytest.raises(UserError, match="was not exported by backbones"):
        Runner(str(tmp_path / "foreign.ts"))
