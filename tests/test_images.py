"""Pixels are the same everywhere: in the reader, the mappers, predictors and exported files."""

import functools
import json
import struct
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from detectron2.structures import BoxMode
from PIL import Image

from backbones import UserError, zoo
from backbones.config import merge_overrides
from backbones.data import images
from backbones.data.classification import ClassificationMapper
from backbones.data.loader import NamesFiles, Readable, evaluation_loader
from backbones.data.mapper import FasterMapper, Mapper
from backbones.data.reader import read as read_data
from backbones.data.sources import Source, Use
from backbones.deploy import Runner, run_exported
from backbones.deploy.export import export
from backbones.deploy.names import names_of
from backbones.deploy.predictor import Predictor
from backbones.deploy.runner import resized
from backbones.engine import YamlFront, open_config
from backbones.tools import demo

FORMATS = ("BGR", "RGB", "L", "YUV-BT.601")
CONFIG = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"


def config(*overrides, format="BGR"):
    cfg = zoo.get_config(CONFIG)
    channels = [0.5] if format == "L" else [0.5] * 3
    small = ["INPUT.MIN_SIZE_TRAIN", "(64,)", "INPUT.MIN_SIZE_TEST", "64", "INPUT.MAX_SIZE_TEST", "128", "INPUT.MAX_SIZE_TRAIN", "128"]
    small += ["INPUT.FORMAT", format, "MODEL.PIXEL_MEAN", str(channels), "MODEL.PIXEL_STD", str(channels), "MODEL.DEVICE", "cpu"]
    merge_overrides(cfg, [*small, *map(str, overrides)])
    return cfg


def pixels(height=50, width=70, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write(folder, kind, height=50, width=70):
    """A file of one of Pillow's modes, or with an EXIF tag that asks for a turn."""
    image = Image.fromarray(pixels(height, width))
    path = str(folder / f"{kind}.{'tif' if kind == 'CMYK' else 'jpg' if kind == 'exif' else 'png'}")
    exif = Image.Exif()
    if kind == "exif":
        exif[0x0112] = 6
        image.save(path, exif=exif)
    else:
        image.convert(kind).save(path)
    return path


def deep(folder, mode, values):
    """A file of more than 8 bits."""
    kind = {"I;16": np.uint16, "I;16B": ">u2", "I": np.int32, "F": np.float32}[mode]
    path = str(folder / ("deep.png" if mode == "I;16" else "deep.tif"))
    if mode == "I;16B":
        Image.frombytes("I;16B", values.shape[::-1], values.astype(kind).tobytes()).save(path)
    else:
        Image.fromarray(values.astype(kind)).save(path)
    return path


@pytest.mark.parametrize("kind", ["RGB", "L", "RGBA", "LA", "P", "CMYK", "1", "exif"])
def test_read_as_detectron2_does(kind, tmp_path):
    """Bit by bit; and so does what makes another format of what was read in BGR."""
    path = write(tmp_path, kind)
    for format in FORMATS:
        expected, found = read_image(path, format), images.read(path, format)
        assert found.dtype == expected.dtype and np.array_equal(found, expected)
        again = images.converted(images.read(path, "BGR"), format)
        assert again.dtype == expected.dtype and np.array_equal(again, expected)
    assert images.size(path) == read_image(path, "BGR").shape[1::-1]


def test_turns_that_are_ignored(tmp_path):
    path = write(tmp_path, "exif")
    assert images.size(path) == (50, 70) and images.size(path, "ignore") == (70, 50)
    turned, plain = images.read(path, "RGB"), images.read(path, "RGB", exif="ignore")
    assert plain.shape == (50, 70, 3) and np.array_equal(np.rot90(plain, -1), turned)
    record = {"file_name": path, "width": 70, "height": 50}
    for mapper in ("detectron2", "exact", "fast"):
        kind = Mapper if mapper == "detectron2" else FasterMapper
        assert kind(config("INPUT.MAPPER", mapper, "INPUT.EXIF", "ignore"), False)(record)["image"].shape == (3, 64, 90)
        with pytest.raises(ValueError, match="Mismatched image shape"):
            kind(config("INPUT.MAPPER", mapper), False)(record)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F"])
def test_more_than_8_bits(mode, tmp_path):
    """Scaled from the range that is given, to the nearest level; without one it is refused with the file's name and the key."""
    values = np.linspace(0, 60000, 35).reshape(5, 7)
    path = deep(tmp_path, mode, values)
    stored = values.astype(np.float32) if mode == "F" else np.floor(values)
    for low, high in ((0, 65535), (100, 5000), (0.0, 60000.0)):
        expected = np.clip((stored - low) / (high - low) * 255, 0, 255)
        found = images.read(path, "BGR", value_range=(low, high))
        assert found.shape == (5, 7, 3) and found.dtype == np.uint8 and (np.abs(found - expected[:, :, None]) <= 0.501).all()
        assert np.array_equal(images.read(path, "L", value_range=(low, high)), found[:, :, :1])
    with pytest.raises(UserError, match=r'deep\.\w+. has more than 8 bits .* from 0 to 60000.*INPUT.VALUE_RANGE "\[0, 65535\]"') as error:
        images.read(path, "BGR")
    assert error.value.key == "INPUT.VALUE_RANGE" and error.value.suggestion == [0, 65535]


def test_range_of_values_in_a_config():
    for value in ("[0]", "[5, 5]", "['a', 'b']"):
        with pytest.raises(UserError, match="INPUT.VALUE_RANGE is .* it must be"):
            front = open_config(CONFIG, ["INPUT.VALUE_RANGE", value, "MODEL.DEVICE", "cpu"])
            front.check_model()
    found = images.settings(config("INPUT.VALUE_RANGE", "[0, 4095.5]", "INPUT.MAX_PIXELS", 7, "INPUT.EXIF", "ignore"))
    assert found == {"exif": "ignore", "value_range": [0, 4095.5], "max_pixels": 7}


def test_limit_of_pixels(tmp_path, monkeypatch):
    path = write(tmp_path, "RGB")
    with pytest.raises(images.UnusableImage, match="RGB.png' has 70x50 pixels, more than INPUT.MAX_PIXELS 3499"):
        images.read(path, "BGR", max_pixels=3499)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for call in (images.size, lambda path: images.read(path, "BGR")):
        with pytest.raises(images.UnusableImage, match="RGB.png' has 70x50 pixels, .*to allow it, set INPUT.MAX_PIXELS 3500") as error:
            call(path)
        assert error.value.suggestion == 3500
    assert np.array_equal(images.read(path, "RGB", max_pixels=3500), pixels())
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_the_file_beside_an_export_reads_likewise(tmp_path, monkeypatch):
    """With the config's limit of pixels instead of Pillow's, and without a turn where the EXIF tag is damaged."""
    path = write(tmp_path, "RGB")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        run_exported.read(path, {"reading": {"max_pixels": 0}})
    with pytest.raises(ValueError, match="it has 70x50 pixels, more than INPUT.MAX_PIXELS 3499"):
        run_exported.read(path, {"reading": {"max_pixels": 3499}})
    assert np.array_equal(run_exported.read(path, {"reading": {"max_pixels": 3500}}), pixels())
    Image.fromarray(pixels()).save(tmp_path / "tag.png", exif=b"no tag")
    for found in (run_exported.read(str(tmp_path / "tag.png"), {}), images.read(str(tmp_path / "tag.png"), "RGB", max_pixels=3500)):
        assert np.array_equal(found, pixels())


def test_a_turn_beside_a_damaged_tag(tmp_path):
    """An ImageWidth that is text: Pillow reads the tag of the turn, but cannot write the others anew."""
    entries = struct.pack("<HHI4s", 0x0100, 2, 4, b"400\0") + struct.pack("<HHIHxx", 0x0112, 3, 1, 6)
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4))
    for found in (run_exported.read(str(tmp_path / "a.png"), {}), images.read(str(tmp_path / "a.png"), "RGB")):
        assert np.array_equal(found, np.rot90(pixels(), -1))


@pytest.mark.parametrize("turn", range(1, 10))
def test_every_turn_beside_an_export(turn, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(pixels()).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(run_exported.read(str(tmp_path / "a.png"), {}), images.read(str(tmp_path / "a.png"), "RGB"))


def test_damage_behind_the_first_picture(tmp_path):
    """Of a file with several pages: the first is read, in training and beside an exported file."""
    path = album(tmp_path / "a.tif", 3)
    with open(path, "rb") as f:
        content = f.read()
    with open(path, "wb") as f:
        f.write(content[: len(content) // 2])
    assert np.array_equal(run_exported.read(path, {}), pixels(20, 30))
    assert np.array_equal(images.read(path, "RGB"), pixels(20, 30))


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n" + bytes(60), b"GIF89a\x05\x00\x05\x00", b"BM" + bytes(30)])
def test_damaged_files(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(images.UNREADABLE):
        images.read(str(tmp_path / "a.png"), "BGR")


def about(cfg):
    return {
        "crop": 0,
        "min_size": cfg.INPUT.MIN_SIZE_TEST,
        "max_size": cfg.INPUT.MAX_SIZE_TEST,
        "input_format": cfg.INPUT.FORMAT,
        "part": "detector",
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("mapper", ["detectron2", "exact"])
def test_same_pixels_in_training_and_in_use(format, mapper, tmp_path):
    """What a network sees of a file: of the mapper of training and of evaluation, of Runner, and of Predictor; exactly, YUV to 1e-6."""
    cfg = config("INPUT.MAPPER", mapper, "INPUT.RANDOM_FLIP", "none", "INPUT.VALUE_RANGE", "[0, 65535]", format=format)
    seen = []
    predictor = Predictor.__new__(Predictor)
    predictor.model = lambda inputs: seen.append(inputs[0]["image"]) or inputs
    predictor.resize, predictor.format = T.ResizeShortestEdge(64, 128), format
    for path in (
        write(tmp_path, "RGB"),
        write(tmp_path, "L"),
        write(tmp_path, "exif"),
        deep(tmp_path, "I;16", np.linspace(0, 65535, 600).reshape(20, 30)),
    ):
        record, bgr = {"file_name": path}, images.read(path, "BGR", value_range=(0, 65535))
        expected = (Mapper if mapper == "detectron2" else FasterMapper)(cfg, False)(record)["image"]
        assert expected.shape[0] == (1 if format == "L" else 3) and expected.float().std() > 0
        assert expected.dtype == (torch.float32 if format.startswith("YUV") else torch.uint8)
        trained = (Mapper if mapper == "detectron2" else FasterMapper)(cfg, True)(record)["image"]
        predictor(bgr)
        for found in (trained, seen[-1]):
            assert torch.equal(found.float(), expected.float())
        rounding = 1e-6 if format.startswith("YUV") else 0  # whose values are no integers
        torch.testing.assert_close(resized(bgr, about(cfg)), expected.float(), rtol=0, atol=rounding)


@pytest.mark.parametrize("format", FORMATS)
def test_pictures_of_what_a_network_sees(format, tmp_path):
    """In any format as the file is, but for grey ones; to two levels."""
    path = write(tmp_path, "RGB")
    found = images.shown(images.tensor(images.read(path, format)), format)
    expected = images.read(path, "RGB") if format != "L" else np.repeat(images.read(path, "L"), 3, axis=2)
    assert found.dtype == np.uint8 and np.abs(found.astype(int) - expected).max() <= 2


def test_classifiers_see_grey_images_too(tmp_path):
    mapper = ClassificationMapper(False, 32, 40, (0.08, 1.0), 0.0, "none", "L", {"value_range": (0, 65535)})
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    image = mapper({"file_name": deep(tmp_path, "I;16", values), "label": 0})["image"]
    assert image.shape == (1, 32, 32) and abs(image.float().mean() - 127.5) < 1
    bgr = images.read(write(tmp_path, "RGB"), "BGR")
    expected = mapper({"file_name": write(tmp_path, "RGB"), "label": 0})["image"].float()
    found = resized(bgr, {"crop": 32, "resize": 40, "input_format": "L", "part": "detector"})
    assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
@pytest.mark.parametrize("mapper", ["detectron2", "exact", "fast"])
def test_images_thinner_than_a_pixel(mapper, size, tmp_path):
    """Their thin side is a pixel, alike in training and in use; objects and their masks stay within it."""
    path, cfg = write(tmp_path, "RGB", *size), config("INPUT.MAPPER", mapper)
    kind, record = Mapper if mapper == "detectron2" else FasterMapper, {"file_name": path}
    expected = (1, 128) if size[0] == 1 else (128, 1)
    record = {**record, "height": size[0], "width": size[1]}
    assert kind(cfg, False)(record)["image"].shape[1:] == expected
    assert resized(images.read(path, "BGR"), about(cfg)).shape[1:] == expected
    long = [0.0, 0.0, 1500.0, 1.0] if size[0] == 1 else [0.0, 0.0, 1.0, 1500.0]
    x0, y0, x1, y1 = long
    polygon = [[x0, y0, x1, y0, x1, y1, x0, y1]]
    record["annotations"] = [{"bbox": long, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "segmentation": polygon, "iscrowd": 0}]
    cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.INPUT.RANDOM_FLIP = True, "bitmask", "none"
    example = kind(cfg, True)(record)
    assert example["image"].shape[1:] == expected
    (box,), (mask,) = example["instances"].gt_boxes.tensor.tolist(), example["instances"].gt_masks.tensor
    assert box == [0, 0, 64, 1] if size[0] == 1 else box == [0, 0, 1, 64]
    assert mask.shape == expected and mask.sum() == 64


def test_evaluation_goes_on_without_what_cannot_be_read(tmp_path, caplog):
    good, large = write(tmp_path, "L", 20, 20), write(tmp_path, "RGB")
    (tmp_path / "text.png").write_text("text")
    records = [{"file_name": path} for path in (good, large, str(tmp_path / "text.png"), str(tmp_path / "gone.png"))]
    mapper = FasterMapper(config("INPUT.MAX_PIXELS", 1000), False)
    loader = Readable([[NamesFiles(mapper, skip=True)(record)] for record in records], ", so their objects count as missed")
    assert [example["file_name"] for (example,) in loader] == [good] and len(loader) == 4
    (said,) = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert said.startswith("images left out of this evaluation, so their objects count as missed: 3: ") and "gone.png" in said
    with pytest.raises(UserError, match="text.png' cannot be read.*INPUT.UNREADABLE skip"):
        NamesFiles(mapper)(records[2])


def opencv_threads(record):
    return {"threads": cv2.getNumThreads()}


@pytest.mark.parametrize("skip", [False, True])
def test_workers_that_evaluate_have_one_thread(skip):
    """OpenCV's threads are not in a fork, which would wait for them."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(2)
    try:
        for workers, threads in ((1, 1), (0, 2)):
            build = functools.partial(build_detection_test_loader, [{}], num_workers=workers)
            loader = evaluation_loader(build, opencv_threads, skip, "coco")
            assert list(loader) == [[{"threads": threads}]]
    finally:
        cv2.setNumThreads(before)


def test_python_configs_read_files_likewise():
    front = open_config("lazy/retinanet_V_39_FPN_1x.py", ["train.exif=ignore", "train.value_range=[0,4095]", "train.max_pixels=5"])
    expected = {"exif": "ignore", "value_range": [0, 4095], "max_pixels": 5}
    for mapper in (front.mapper(True), front.mapper(False), front.mapper(False, annotated=True)):
        assert type(mapper) is Mapper and mapper.reading == expected
    assert front.settings.INPUT.VALUE_RANGE == [0, 4095]


def album(path, count, **how):
    """A file of several pictures."""
    first, *others = (Image.fromarray(pixels(20, 30, seed)) for seed in range(count))
    first.save(path, save_all=True, append_images=others, **how)
    return str(path)


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.tif", "a.webp"])
@pytest.mark.parametrize("count", [1, 3])
def test_files_of_several_pictures_say_so(name, count, tmp_path, capsys):
    """Where training and evaluation read their data, in the tools and beside an exported file: the first is taken, and one line says it."""
    path, said = album(tmp_path / name, count), f"using the first of {count} pictures in it"
    content = {
        "images": [{"id": 1, "file_name": name, "width": 30, "height": 20}],
        "categories": [{"id": 1, "name": "cup"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": 0}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    data = read_data(Source("cups", str(tmp_path / "a.json"), str(tmp_path)), Use())
    assert not data.error() and ("several pictures" in data.findings.counts) == (count > 1)
    assert ("read in part: 1 (1 file with several pictures)" in data.summary()) == (count > 1)
    first = demo.read_image(path)
    assert (said in capsys.readouterr().err) == (count > 1)
    assert np.array_equal(run_exported.read(path, {})[:, :, ::-1], first)
    assert (said in capsys.readouterr().err) == (count > 1)


def test_a_photo_and_its_previews_are_one_picture(tmp_path, capsys):
    demo.read_image(album(tmp_path / "a.jpg", 2, format="MPO"))
    assert not capsys.readouterr().err


def test_a_film_that_is_cut_off(tmp_path, monkeypatch, capsys):
    frames = iter([pixels()] * 3)
    monkeypatch.setattr(demo, "frames_of", lambda source: (frames, 9, 25.0, (70, 50)))
    demo._video("film.mp4", str(tmp_path / "out.avi"), lambda frame: {}, lambda frame, predictions: frame)
    assert "3 frames; 'film.mp4' states 9: it is truncated or damaged" in capsys.readouterr().out


# inference without data


@pytest.fixture
def deployed(tmp_path):
    """A run's config.yaml, whose data are not here, and its weights with the names of classes."""
    cfg = config("MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATASETS.TRAIN", "('far_train',)", "DATASETS.TEST", "('far_val',)", format="L")
    cfg.DATASETS.REGISTER = [[f"far_{split}", f"/nowhere/{split}.json", "/nowhere"] for split in ("train", "val")]
    cfg.OUTPUT_DIR = str(tmp_path)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    torch.save({"model": build_model(cfg).state_dict(), "run": {"classes": ["cup", "plate"]}}, tmp_path / "model.pth")
    return str(tmp_path / "config.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "model.pth")]


def test_a_list_of_files_goes_on_after_a_bad_one(deployed, tmp_path, monkeypatch, capsys):
    """Of a grey model, whose data are not here; one line a bad file, and their number at the end."""
    path, weights = deployed
    (tmp_path / "in").mkdir()
    for i, size in enumerate(((40, 60), (1, 3000), (3000, 1))):
        Image.fromarray(pixels(*size)).save(tmp_path / "in" / f"a{i}.png")
    (tmp_path / "in" / "a.png").write_text("no image")
    deep(tmp_path / "in", "I;16", np.ones((5, 5)))
    arguments = ["demo", "--config-file", path, "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), *weights]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(UserError, match="^2 of 5 images cannot be read$"):
        demo.main()
    printed = capsys.readouterr()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a0.png", "a1.png", "a2.png"]
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "a.png' cannot be read" in errors[0] and "deep.png" in errors[1] and "INPUT.VALUE_RANGE" in errors[1]
    assert "class names come from the checkpoint" in printed.out
    monkeypatch.setattr(sys, "argv", [*arguments, "INPUT.VALUE_RANGE", "[0, 1]", "INPUT.MAX_PIXELS", "2400"])
    monkeypatch.setattr(demo, "_MOST_DRAWN", 600)
    with pytest.raises(UserError, match="^3 of 5 images"):
        demo.main()
    assert "60x40 pixels, drawn at 30x20" in capsys.readouterr().out and Image.open(tmp_path / "out" / "a0.png").size == (30, 20)


def test_folders_in_folders(deployed, tmp_path, monkeypatch, capsys):
    """Without --recursive they are counted; with it pictures keep their places. What is hidden, or the output itself, is no input."""
    path, weights = deployed
    for name in ("in/a.png", "in/deep/a.png", "in/deep/er/b.JPG", "in/deep/.thumbs/c.png", "in/._a.png", "in/out/old.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(20, 30)).save(tmp_path / name)
    Image.fromarray(pixels(20, 30)).save(tmp_path / "in" / "plain", "GIF")
    folder, out = str(tmp_path / "in"), str(tmp_path / "in" / "out")
    arguments = ["demo", "--config-file", path, "--input", folder, str(tmp_path / "in" / "plain"), "--output", out]
    monkeypatch.setattr(sys, "argv", [*arguments, *weights])
    demo.main()
    assert f"{folder}: 1 image; 2 more in subfolders are left out; --recursive includes them" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "in" / "out").iterdir()) == ["a.png", "old.png", "plain.png"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--recursive", *weights])
    demo.main()
    written = sorted(str(p.relative_to(out)) for p in (tmp_path / "in" / "out").rglob("*") if p.is_file())
    assert written == ["a.png", "deep/a.png", "deep/er/b.JPG", "old.png", "plain.png"] and "left out" not in capsys.readouterr().out
    with pytest.raises(UserError, match="holds no image.*; 1 are in its subfolders: add --recursive"):
        (tmp_path / "in" / "deep" / "a.png").unlink()
        demo.images_of([str(tmp_path / "in" / "deep")])


def test_a_list_goes_on_without_memory_for_one(deployed, tmp_path, monkeypatch, capsys):
    path, weights = deployed
    for name in ("a.png", "b.png"):
        Image.fromarray(pixels(20, 30)).save(tmp_path / name)
    read = demo.read_image

    def short_of_memory(file, **reading):
        if file.endswith("a.png"):
            raise MemoryError
        return read(file, **reading)

    monkeypatch.setattr(demo, "read_image", short_of_memory)
    files = [str(tmp_path / name) for name in ("a.png", "b.png")]
    monkeypatch.setattr(sys, "argv", ["demo", "--config-file", path, "--input", *files, "--output", str(tmp_path / "out"), *weights])
    with pytest.raises(UserError, match="^1 of 2 images cannot be read$"):
        demo.main()
    assert "a.png' needs more memory than there is" in capsys.readouterr().err and (tmp_path / "out" / "b.png").is_file()


def test_grey_file_gives_what_its_model_gives(deployed, tmp_path):
    """A backbone in TorchScript, to 1e-4 of the largest value; the file knows names, and how images are to be read."""
    path, weights = deployed
    front = open_config(path, [*weights, "INPUT.EXIF", "ignore"])
    predictor = Predictor(front)
    assert list(predictor.metadata.thing_classes) == ["cup", "plate"]
    image = pixels(64, 96)  # needs neither resizing nor padding
    export(front.settings, predictor.model, str(tmp_path / "a.ts"), "torchscript", image, "backbone", names=predictor.metadata)
    runner = Runner(str(tmp_path / "a.ts"))
    assert runner.about["classes"] == ["cup", "plate"] and runner.about["reading"]["exif"] == "ignore"
    Image.fromarray(image[:, :, ::-1]).save(tmp_path / "a.png")
    x = FasterMapper(front.settings, False)({"file_name": str(tmp_path / "a.png")})["image"]
    with torch.no_grad():
        expected = predictor.model.backbone(predictor.model.preprocess_image([{"image": x}]).tensor)
    for name, value in runner.features(image).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4 * float(expected[name].abs().max()))


def test_where_names_come_from(tmp_path):
    cfg = config("MODEL.ROI_HEADS.NUM_CLASSES", 2, "DATASETS.TEST", "('names_far_kept',)", "DATASETS.TRAIN", "()")
    assert names_of(cfg)[1].startswith("class names are unknown") and not names_of(cfg)[0].get("thing_classes")
    categories = [{"id": 7, "name": "cup"}, {"id": 3, "name": "plate"}]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories}))
    cfg.DATASETS.REGISTER = [["names_far", str(tmp_path / "a.json"), "/nowhere"]]
    assert names_of(cfg)[0].thing_classes == ["plate", "cup"] and "a.json" in names_of(cfg)[1]
    assert names_of(cfg, ["a", "b"])[0].thing_classes == ["a", "b"]
    (tmp_path / "a.json").write_text(json.dumps({"categories": categories[:1]}))  # of another model
    assert not names_of(cfg)[0].get("thing_classes")
    cfg.DATASETS.TEST = ("coco_2017_val",)
    assert names_of(cfg, ["a", "b"])[0].thing_classes == ["a", "b"] and names_of(cfg, ["a", "b"])[1].endswith("the checkpoint")
    assert names_of(cfg)[1].startswith("class names are unknown") and not names_of(cfg)[0].get("thing_classes")  # 80 are of another model
    cfg.DATASETS.CLASSES = ["x", "y"]
    assert names_of(cfg, ["a", "b"])[0].thing_classes == ["x", "y"] and not names_of(cfg)[0].get("thing_colors")
    cfg.DATASETS.CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = [], 80
    own = [f"own {i}" for i in range(80)]
    assert names_of(cfg, own)[0].thing_classes == own and not names_of(cfg, own)[0].get("thing_colors")
    assert names_of(cfg)[0].thing_classes == MetadataCatalog.get("coco_2017_val").thing_classes
    assert names_of(cfg)[0].get("thing_colors") and names_of(cfg)[1] == "class names come from data set 'coco_2017_val'"


@pytest.mark.parametrize("kind", ["Panoptic", "Semantic"])
def test_names_of_pixels(kind, tmp_path):
    """From the checkpoint, or the catalogue if they are as many; otherwise numbers, since detectron2 does not draw pixels without names."""
    cfg = zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    if kind == "Semantic":
        cfg.MODEL.META_ARCHITECTURE = "SemanticSegmentor"
    catalogue, numbers = names_of(cfg)[0], [str(i) for i in range(54)]
    assert len(catalogue.stuff_classes) == 54 and len(catalogue.stuff_colors) == 54
    cfg.DATASETS.TEST, cfg.DATASETS.TRAIN = ("far_val",), ()
    assert names_of(cfg)[0].stuff_classes == numbers and "numbers are shown" in names_of(cfg)[1]
    own = [f"pixel {i}" for i in range(54)]
    if kind == "Semantic":
        assert names_of(cfg, own)[0].stuff_classes == own
        return
    assert names_of(cfg)[0].thing_classes == [str(i) for i in range(80)]
    things = [f"own {i}" for i in range(80)]
    about, said = names_of(cfg, things)
    assert about.thing_classes == things and about.stuff_classes == numbers
    assert said == "class names come from the checkpoint; those of stuff are unknown, numbers are shown"
    cfg.DATASETS.TEST = ("coco_2017_val_panoptic_separated",)
    about, said = names_of(cfg, list(catalogue.thing_classes), own)
    assert about.stuff_classes == own and not about.get("stuff_colors") and about.get("thing_colors")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3  # of other pixels
    about, said = names_of(cfg)
    assert about.thing_classes == catalogue.thing_classes and about.stuff_classes == ["0", "1", "2"] and not about.get("stuff_colors")


def test_predictors_know_the_names_of_pixels(tmp_path, monkeypatch):
    """From the checkpoint, beside those of objects."""
    cfg = zoo.get_config("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml")
    names = {"classes": [f"own {i}" for i in range(80)], "stuff": [f"pixel {i}" for i in range(54)]}
    model = torch.nn.Linear(1, 1)
    torch.save({"model": model.state_dict(), "run": names}, tmp_path / "a.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "a.pth")
    monkeypatch.setattr(YamlFront, "build_model", lambda self: model)
    predictor = Predictor(cfg)
    assert predictor.metadata.thing_classes == names["classes"] and predictor.metadata.stuff_classes == names["stuff"]
