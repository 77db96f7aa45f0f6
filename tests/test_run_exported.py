"""What stands beside an exported file runs it alone, and the demo runs it with this package."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from choices import cases
from detectron2.config import instantiate
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Boxes, Instances
from lively import alive, boxes_of

from backbones import UserError, drawing
from backbones.deploy import Runner, run_exported
from backbones.deploy.export import FORMATS, Tolerance, export, match
from backbones.deploy.predictor import Predictor
from backbones.deploy.saving import save_onnx
from backbones.tools import demo

ALONE = (
    "import runpy, sys; sys.modules.update(dict.fromkeys({blocked}, None)); sys.argv = {argv}; runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.parametrize(
    "kind, form", cases((("Mask", "onnx"), ("Keypoint", "onnx"), ("Mask", "torchscript")), tried=(("Keypoint", "onnx"),), daily=[])
)
def test_the_file_beside_an_export_runs_it_alone(kind, form, tmp_path, monkeypatch, capsys):
    """Boxes to 0.1 pixels, masks but for a pixel in a thousand, keypoints to 0.1 pixels, without torch where the runtime is not torch."""
    from PIL import Image

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
    assert "no objects with a score" not in ran.stderr
    monkeypatch.setattr("sys.argv", [*argv[:3], "--threshold", "1"])  # which no score reaches
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run_exported.main()
    high = capsys.readouterr()
    assert stop.value.code == 0 and json.loads(high.out)["objects"] == []
    assert "a.png: no objects with a score of 1 (--confidence-threshold), the highest is " in high.err
    (objects,) = [json.loads(line)["objects"] for line in ran.stdout.splitlines()]
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    expected = Predictor(cfg)(image)["instances"]
    about = run_exported.Detector(path).about
    found = {
        "boxes": torch.tensor([one["box"] for one in objects]),
        "scores": torch.tensor([one["score"] for one in objects]),
        "classes": torch.tensor([int(one["class"]) if one["class"].isdigit() else about["classes"].index(one["class"]) for one in objects]),
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
    contract = about["contract"]
    assert contract[0].startswith("image: float32 (3, H, W)") and [line.partition(":")[0] for line in contract[1:-1]] == Runner(path).fields


def test_images_of_more_than_8_bits(tmp_path):
    """The file beside an export guesses no range: the model's, or one that is given, or a line that says which values there are."""
    from PIL import Image

    Image.fromarray((np.arange(600, dtype=np.uint16) * 100).reshape(20, 30)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="from 0 to 59900: give the range that becomes 0 to 255, such as --value-range 0 65535"):
        run_exported.read(str(tmp_path / "deep.png"), {"reading": {"value_range": []}})
    pixels = run_exported.read(str(tmp_path / "deep.png"), {"reading": {"value_range": [100, 25600]}})
    assert pixels.shape == (20, 30, 3) and pixels[0, :4, 0].tolist() == [0, 0, 1, 2] and pixels.max() == 255


def test_a_range_that_fits_fractions(tmp_path):
    from PIL import Image

    Image.fromarray(np.linspace(0.25, 0.75, 12, dtype=np.float32).reshape(3, 4)).save(tmp_path / "fractions.tif")
    with pytest.raises(ValueError, match="such as --value-range 0.25 0.75"):
        run_exported.read(str(tmp_path / "fractions.tif"), {})


def test_masks_below_the_threshold_are_not_made():
    """Objects below it are left out, but for the best, whose score is named; proposals stay."""
    boxes = np.array([[0, 0, 4, 4], [2, 2, 8, 8], [5, 5, 5, 9], [1, 1, 6, 6]], np.float32)
    found = {"boxes": boxes, "scores": np.float32([0.3, 0.6, 0.9, 0.2]), "masks": np.ones((4, 1, 28, 28), np.float32)}
    for threshold, kept in ((0.0, [0, 1, 3]), (0.25, [0, 1]), (0.8, [1])):  # the third box has no area
        result = run_exported.finished(found, (10, 10), (20, 20), threshold)
        assert result["scores"].tolist() == found["scores"][kept].tolist() and result["masks"].shape == (len(kept), 20, 20)
    proposals = {"proposals": boxes, "scores": found["scores"]}
    assert len(run_exported.finished(proposals, (10, 10), (20, 20), 0.8)["proposals"]) == 3


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
    pictures, blank = {}, drawing.draw(image, [])  # which enlarges it
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
        assert pictures[name].shape == blank.shape and (np.abs(pictures[name] - blank) > 30).mean() > 0.01
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
        (["--input", "nowhere.jpg", "--exported", "a.onnx"], "'nowhere.jpg' does not exist"),
        (["--input", __file__], "name a detector"),
        (["--video-input", "nowhere.mp4", "--exported", "nowhere.onnx"], "'nowhere.onnx' does not exist"),
        (["--input", __file__, "--exported", "a.onnx", "--optimize"], "--exported cannot be combined with --optimize"),
        (["--input", __file__, "--exported", "a.onnx", "--backbone", "V-39-eSE"], "--exported cannot be combined with --backbone"),
        (["--input", __file__, "--config-file", "a.yaml", "--precision", "bfloat16"], "--precision needs --optimize"),
        (["--input", __file__, __file__, "--exported", "a.onnx", "--output", "a.png"], "name a folder"),
        (["--input", os.path.dirname(__file__), "--exported", "a.onnx"], "holds no image"),
        (["--input", __file__, "--exported", "a.onnx", "INPUT.FORMAT", "RGB"], "overrides other than INPUT.VALUE_RANGE or INPUT.MAX_PIXELS"),
        (["--input", __file__, "--exported", "a.onnx", "INPUT.VALUE_RANGE", "[5, 3]"], r"INPUT.VALUE_RANGE is \[5, 3\]: it must be"),
        (["--video-input", "a.mp4", "--exported", "a.onnx", "--output", "nowhere/a.doc"], "must end in .mp4"),
        (["--video-input", "a.mp4", "--exported", "a.onnx", "--output", f"{__file__}/a.mp4"], "is a file"),
    ],
)
def test_mistakes_in_demo(arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo", *arguments])
    with pytest.raises(UserError, match=said):
        demo.main()
    assert os.listdir(tmp_path) == []


ARGUMENTS = {"exported": "a.ts", "config_file": "", "backbone": "", "weights": "", "optimize": False, "precision": "float32"}
ARGUMENTS |= {"confidence_threshold": 0.9, "accept_licence": []}


class Panoptic:
    """What the demo takes for a panoptic file that holds no names: a thing of score 0.6 on the left, pixels of a class on the right."""

    about = {"part": "detector", "classes": [], "stuff": [], "reading": {"exif": "ignore", "value_range": [], "max_pixels": 0}}

    def __init__(self, path=""):
        self.about = {**self.about, "panoptic": [0.5, 0, 0.5]}

    def __call__(self, image, size=None):
        height, width = image.shape[:2]
        found, pixels = Instances((height, width)), torch.zeros(3, height, width)
        pixels[2] = 1
        mask = torch.zeros(1, height, width, dtype=torch.bool)
        mask[:, :, : width // 2] = True
        for name, value in {"scores": [0.6], "pred_classes": [7]}.items():
            found.set(name, torch.tensor(value))
        found.pred_masks, found.pred_boxes = mask, Boxes(torch.tensor([[0.0, 0, width // 2, height]]))
        panoptic = combine_semantic_and_instance_outputs(found, pixels.argmax(dim=0), *self.about["panoptic"])
        return {"instances": found, "sem_seg": pixels, "panoptic_seg": panoptic}


def test_panoptic_files_without_names(tmp_path, monkeypatch):
    """Are drawn, as pictures and as a film, with numbers and from the flag's score on; deep images take their range from an override."""
    from PIL import Image

    monkeypatch.setattr("backbones.deploy.runner.Runner", Panoptic)
    Image.fromarray((np.arange(6400, dtype=np.uint16) * 10).reshape(80, 80)).save(tmp_path / "deep.png")
    written = []
    monkeypatch.setattr("detectron2.utils.visualizer.Visualizer.draw_text", lambda self, text, *args, **options: written.append(text))
    for score, texts in (("0.5", ["7 60%", "2"]), ("0.9", ["2"])):
        written.clear()
        arguments = ["--exported", "a.ts", "--input", str(tmp_path / "deep.png"), "--output", str(tmp_path / "out"), "--threshold", score]
        monkeypatch.setattr("sys.argv", ["demo", *arguments, "INPUT.VALUE_RANGE", "[0, 65535]"])
        demo.main()
        assert sorted(written) == sorted(texts)
    assert (tmp_path / "out" / "deep.png").is_file()
    predict, metadata, reading = demo.load(demo.argparse.Namespace(**ARGUMENTS, opts=["INPUT.MAX_PIXELS", "9"]))
    assert reading == {"exif": "ignore", "value_range": [], "max_pixels": 9}
    frame = np.zeros((40, 40, 3), np.uint8)
    assert demo.Drawer(metadata, 0.5, video=True)(frame, predict(frame)).any()


def test_what_is_not_there_is_said(tmp_path, monkeypatch, capsys):
    """Of the file and of an image; a file of another kind is told from one that is missing."""
    (tmp_path / "a.txt").write_text("")
    for file, words in (("none.onnx", "does not exist"), ("a.txt", "does not end in .onnx")):
        monkeypatch.setattr("sys.argv", ["run_exported.py", str(tmp_path / file), "none.jpg"])
        with pytest.raises(SystemExit, match=words):
            run_exported.main()
    (tmp_path / "a.onnx").write_text("")
    monkeypatch.setattr(run_exported, "Detector", lambda *args: SimpleNamespace(about={}, batch=0, all=lambda images, threshold: []))
    monkeypatch.setattr("sys.argv", ["run_exported.py", str(tmp_path / "a.onnx"), "none.jpg"])
    with pytest.raises(SystemExit):
        run_exported.main()
    assert "error: 'none.jpg' does not exist\n" in capsys.readouterr().err


def test_small_pictures_can_be_read():
    """They are enlarged, with a colour for each class; frames of a video keep their size."""
    from detectron2.data.catalog import Metadata

    image, names = np.full((80, 100, 3), 90, np.uint8), Metadata().set(thing_classes=["cup"], keypoint_names=["a"])
    found = Instances((80, 100), pred_boxes=Boxes(torch.tensor([[10.0, 10, 40, 40]])), scores=torch.tensor([0.9]))
    found.pred_classes = torch.tensor([0])
    drawer = demo.Drawer(names, 0.5)
    picture = drawer(image, {"instances": found})
    box = [drawing.Mark((10, 10, 40, 40), "cup 90%", drawing.colour(0))]
    assert (picture[:, :, ::-1] == drawing.draw(image, box)).all() and min(picture.shape[:2]) > drawing.SIDE
    assert demo.Drawer(names, 0.5, video=True)(image, {"instances": found}).shape == image.shape
    found.pred_keypoints = torch.tensor([[[20.0, 20, 1]]])
    assert drawer(image, {"instances": found}).shape[:2] == (480, 600)
    assert drawer(np.zeros((500, 600, 3), np.uint8), {"instances": found}).shape == (500, 600, 3)


@pytest.mark.parametrize("config", ["COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.py", "COCO-Detection/retinanet_R_50_FPN_1x.py"])
def test_the_threshold_reaches_python_configs(config, monkeypatch):
    """Which do not spell it out, so that no key of theirs sets it."""

    class Empty:
        reading, metadata, said = {}, None, ""

        def __init__(self, front, precision):
            with torch.device("meta"):
                self.model = instantiate(front.cfg.model)

    monkeypatch.setattr("backbones.deploy.predictor.Predictor", Empty)
    own = {"exported": "", "config_file": config, "confidence_threshold": 0.01, "opts": ["train.device=cpu"]}
    model = demo.load(demo.argparse.Namespace(**{**ARGUMENTS, **own}))[0].model
    assert {m.test_score_thresh for m in model.modules() if hasattr(m, "test_score_thresh")} == {0.01}
    assert getattr(model, "combine_instances_score_thresh", 0.01) == 0.01


@pytest.mark.parametrize("source", ["film.mp4", 0])
@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_a_film_that_is_stopped(source, stop, tmp_path, monkeypatch, capsys):
    """Leaves the film of an earlier run as it was, and its own frames beside it; a camera's film ends so."""
    frame = np.zeros((48, 64, 3), np.uint8)
    monkeypatch.setattr(demo, "frames_of", lambda source: (iter([frame] * 9), 9, 25.0, (64, 48)))
    output = demo.video_target(source, str(tmp_path / "new" / "out.avi"))
    with open(output, "w") as f:
        f.write("earlier")
    seen = []

    def predict(frame):
        seen.append(frame)
        if len(seen) > 3:
            raise stop
        return {}

    with pytest.raises(stop):
        demo._video(source, output, predict, lambda frame, predictions: frame)
    partial, said = tmp_path / "new" / "out.partial.avi", capsys.readouterr().err
    if source == 0 and stop is KeyboardInterrupt:
        assert not partial.exists() and os.path.getsize(output) > 100
    else:
        assert open(output).read() == "earlier" and partial.stat().st_size > 100
        assert f"{partial}: 3 frames, then it was stopped; {output} is not written" in said
    seen += [frame] * 9
    with pytest.raises(stop):  # before its first frame is written
        demo._video(source, output, predict, lambda frame, predictions: frame)
    assert not partial.exists()


def test_no_input_is_written_over(tmp_path):
    file = tmp_path / "a.png"
    file.touch()
    with pytest.raises(UserError, match="would overwrite"):
        demo.targets_of([str(file)], str(tmp_path))


def stand_alone(path, *arguments):
    """Runs the file beside an exported one as a program: (exit code, lines of errors). A traceback is none."""
    command = [sys.executable, "-c", ALONE.format(blocked=arguments[0], argv=[run_exported.__file__, path, *arguments[1:]])]
    ran = subprocess.run(command, capture_output=True, text=True)
    return ran.returncode, ran.stderr.splitlines()


def small_onnx(path, **about):
    """A graph that takes a pair of images alone, and says of itself what is given."""
    import onnx

    graph = onnx.parser.parse_graph("g (float[2, 3, 8, 8] image) => (float[2, 3, 8, 8] scores) { scores = Relu (image) }")
    save_onnx(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path, about)


def test_files_and_inputs_that_cannot_be_used(tmp_path):
    """A package that is missing, a broken file, one that says too little, an input of another size: a line each, here and beside the file."""
    from PIL import Image

    path, image = str(tmp_path / "a.onnx"), str(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(image)
    small_onnx(path, fields=["scores"], part="detector")
    with pytest.raises(UserError, match="does not say input_format"):
        Runner(path)
    about = {"fields": ["scores"], "part": "detector", "input_format": "RGB", "crop": 0, "min_size": 0, "max_size": 8, "classes": ["x"]}
    small_onnx(path, **about)
    with pytest.raises(UserError, match=r"a.onnx' cannot be run on an input of \(3, 8, 8\): .*[Ii]nvalid") as error:
        Runner(path).run(torch.zeros(3, 8, 8))
    assert error.value.code == "unsupported"
    code, lines = stand_alone(path, [], image)
    assert code == 1 and len(lines) == 1 and "a.png: " in lines[0] and "cannot be run on an input of (3, 8, 8)" in lines[0]
    code, lines = stand_alone(path, ["onnxruntime"], image)
    assert code == 1 and len(lines) == 1 and "needs a package that is not installed, pip install onnxruntime" in lines[0]
    code, lines = stand_alone(path, [], image, "--output", str(tmp_path))
    assert code == 1 and lines == [f"error: --output '{tmp_path}' would overwrite '{image}': name another folder"]
    with open(path, "wb") as f:
        f.write(b"nonsense")
    code, lines = stand_alone(path, [], image)
    assert code == 1 and len(lines) == 1 and "was not exported by backbones, or needs another version" in lines[0]


def test_pictures_of_one_stem_and_a_closed_pipe(tmp_path):
    """a.jpg and a.png become a.jpg.png and a.png.png; whoever stops reading the lines of JSON, such as `head`, stops the program quietly."""
    from PIL import Image

    path, images = str(tmp_path / "a.onnx"), [str(tmp_path / name) for name in ("a.jpg", "a.png", "b.png")]
    for image in images:
        Image.new("RGB", (8, 8)).save(image)
    about = {"fields": ["scores"], "part": "detector", "input_format": "RGB", "crop": 0, "min_size": 0, "max_size": 8, "classes": ["x"]}
    small_onnx(path, **{**about, "classes": ["犬"]}, batch=2)
    code, lines = stand_alone(path, [], *images, "--output", str(tmp_path / "drawn"))
    assert (code, lines) == (0, ["pictures show ? for letters of class names that Pillow's font lacks: the JSON has the names"])
    assert sorted(os.listdir(tmp_path / "drawn")) == ["a.jpg.png", "a.png.png", "b.png"]
    ran = subprocess.Popen([sys.executable, run_exported.__file__, path, *images], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ran.stdout.close()
    assert ran.communicate()[1] == "" and ran.returncode == 141


def test_names_that_a_font_lacks(monkeypatch):
    """An old Pillow's own font has Latin letters alone. That pictures show others as ? is said once."""
    from PIL import ImageDraw, ImageFont

    old = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)()
    monkeypatch.setattr(ImageDraw.ImageDraw, "font", old)

    class Detector:
        name = staticmethod(lambda label: "犬")

    image, found = np.full((40, 64, 3), 128, np.uint8), {"scores": np.array([[0.1, 0.9]])}
    assert (np.asarray(run_exported.drawn(image, found, Detector, 0.5)) != image).any()
    assert [run_exported.as_drawn(name, old) for name in ("犬 0.90", "Möwe")] == ["? 0.90", "Möwe"]
    assert run_exported.as_drawn("犬 dog 0.90", ImageFont.load_default()) == "? dog 0.90"


def test_a_runtime_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    (tmp_path / "a.xml").touch()
    with pytest.raises(UserError, match="pip install openvino") as error:
        Runner(str(tmp_path / "a.xml"))
    assert error.value.code == "missing-package" and error.value.suggestion == "openvino"


@pytest.mark.parametrize(
    "found, drawn",
    [
        ({"scores": np.array([[0.1, 0.9]])}, (slice(0, 20), slice(0, 50))),
        ({"proposals": np.array([[8.0, 20.0, 30.0, 39.0]])}, (slice(20, 40), slice(8, 31))),
        ({"sem_seg": np.eye(2)[:, :1, None] * np.ones((2, 40, 64))}, (slice(0, 40), slice(0, 64))),
    ],
    ids=["classifier", "proposals", "semantic segmentation"],
)
def test_pictures_of_all_kinds(found, drawn, monkeypatch, tmp_path):
    """What a file gives is drawn where it belongs; a backbone's features cannot be."""

    class Detector:
        about = {"part": "backbone"}
        name = staticmethod(str)

    image = np.full((40, 64, 3), 128, np.uint8)
    changed = (np.asarray(run_exported.drawn(image, found, Detector, 0.5)) != image).any(2)
    assert changed[drawn].any() and changed.sum() == changed[drawn].sum()
    (tmp_path / "a.onnx").write_text("")
    monkeypatch.setattr(run_exported, "Detector", lambda path: Detector)
    monkeypatch.setattr("sys.argv", ["run_exported.py", str(tmp_path / "a.onnx"), "a.png", "--output", str(tmp_path / "d")])
    with pytest.raises(SystemExit, match="is a backbone, which gives features: leave --output out"):
        run_exported.main()
    assert not (tmp_path / "d").exists()
