"""Data in YOLO's, Pascal VOC's and labelme's forms, and what other files are called."""

import base64
import io
import json
import math
import os
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import (
    EXAMPLES,
    SIZE,
    boxes,
    damaged,
    labelme_file,
    picture,
    shape,
    voc_object,
    voc_xml,
    write,
)

from backbones.data import formats, reader
from backbones.data.formats import yolo as yolo_format
from backbones.data.sources import Source, Use
from backbones.errors import UserError


def noted(content, words):
    """How often a note that has these words was counted."""
    return sum(count for text, count in content["notes"].items() if words in text)


def test_yolo(yolo):
    places = formats.splits(str(yolo / "data.yaml"))
    assert places == {name: (str(yolo / "data.yaml"), str(yolo / "images" / name)) for name in ("train", "val")}  # test is not there
    assert formats.splits(str(yolo)) == places
    content = formats.load(*places["train"])
    assert [c["name"] for c in content["categories"]] == ["cup", "plate"] and [c["id"] for c in content["categories"]] == [1, 2]
    assert [(i["file_name"], i["width"], i["height"]) for i in content["images"]] == [(f"{n}.jpg", *SIZE) for n in ("a", "b", "bare", "empty")]
    assert boxes(content) == [("a.jpg", "cup", [60, 30, 40, 60]), ("a.jpg", "plate", [32, 24, 16, 12]), ("b.jpg", "plate", [0, 0, 160, 120])]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3] and {a["iscrowd"] for a in content["annotations"]} == {0}
    assert content["annotations"][0]["area"] == pytest.approx(2400) and "segmentation" not in content["annotations"][0]
    assert content["notes"] == {"images without a label file, which count as images without objects, the first 'bare.jpg'": 1}
    assert formats.load(str(yolo / "data.yaml")) == content  # the first split
    assert boxes(formats.load(*places["val"])) == [("c.jpg", "cup", [8, 6, 16, 12])]


def test_yolo_beside_other_yaml(yolo):
    """A file of names comes before a yaml that only happens to have names."""
    (yolo / "data.yaml").unlink()
    write(yolo / "compose.yaml", "names: web\n")
    write(yolo / "classes.txt", "cup\nplate\n")
    assert [c["name"] for c in formats.load(str(yolo / "images/train"))["categories"]] == ["cup", "plate"]


def test_accents_in_names(voc):
    """macOS writes an accent as a character of its own."""
    shutil.rmtree(voc / "ImageSets")
    os.rename(voc / "JPEGImages/d.jpg", voc / "JPEGImages/e\u0301.jpg")
    write(voc / "Annotations/\u00e9.xml", voc_xml(voc_object("dog", 1, 1, 160, 120), name="\u00e9.jpg"))
    content = formats.load(str(voc))
    assert [image["file_name"] for image in content["images"]][-1] == "e\u0301.jpg" and not noted(content, "no .xml file")


def test_yolo_without_a_yaml(yolo):
    """Folders of images or of labels, lists of images; names from classes.txt, or numbers."""
    (yolo / "data.yaml").unlink()
    images = str(yolo / "images/train")
    bare = formats.load(images)
    assert [c["name"] for c in bare["categories"]] == ["0", "1"] and noted(bare, "classes without names") == 2
    write(yolo / "labels/classes.txt", "cup\nplate\nspoon\n")
    for path, folder in ((images, ""), (images, images), (str(yolo / "labels/train"), ""), (str(yolo / "labels/train"), images)):
        content = formats.load(path, folder)
        assert len(content["annotations"]) == 3 and len(content["images"]) == 4, path
        assert [c["name"] for c in content["categories"]] == ["cup", "plate", "spoon"] and noted(content, "class names, read from") == 3
    places = {name: (str(yolo / "images" / name),) * 2 for name in ("train", "val")}
    assert formats.splits(str(yolo)) == places
    write(yolo / "train.txt", "./images/train/a.jpg\n\nother/machine/images/train/b.jpg\n")
    content = formats.load(str(yolo / "train.txt"))
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "b.jpg"] and len(content["annotations"]) == 3


def test_yolo_labels_beside_the_images(tmp_path):
    picture(tmp_path / "flat/a.png")
    write(tmp_path / "flat/a.txt", "999999 0.5 0.5 0.5 0.5")  # not as many classes
    write(tmp_path / "flat/README.txt", "exported by a tool")
    write(tmp_path / "flat/._a.png", "of another system")
    content = formats.load(str(tmp_path / "flat"))
    assert boxes(content) == [("a.png", "999999", [40, 30, 80, 60])] and len(content["categories"]) == 1
    assert noted(content, "have no image") == 1


def test_yolo_exif(tmp_path):
    """The size is that of the turned image, which detectron2 and Ultralytics read."""
    exif = Image.Exif()
    exif[274] = 6
    picture(tmp_path / "images/a.jpg", exif=exif)
    write(tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    content = formats.load(str(tmp_path))
    assert (content["images"][0]["width"], content["images"][0]["height"]) == SIZE[::-1]
    assert boxes(content)[0][2] == [30, 40, 60, 80]


def test_yolo_large_images_and_damaged_tags(tmp_path, monkeypatch):
    """Images that training can read keep their objects: above Pillow's limit, and with an EXIF tag that cannot be read."""
    picture(tmp_path / "images/a.png", exif=b"no tag")
    write(tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.5")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert boxes(formats.load(str(tmp_path)))[0][2] == [40, 30, 80, 60]


def test_yolo_label_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    write(tmp_path / "b.txt", "0 0.5 0.5 0.5 0.5")
    assert yolo_format.has_labels(str(tmp_path))


def test_yolo_paths(yolo, monkeypatch, tmp_path):
    """Where Ultralytics looks: `path` from where one is, or in the folder of data sets; and beside the yaml, as exports mean it."""
    names = "names: {1: plate, 0: cup}\n"
    for text in (
        "path: /no/such/machine\ntrain: images/train\n",
        "train: ../images/train\n",
        "path: cups\ntrain: [images/train, images/val]\n",
    ):
        write(yolo / "data.yaml", text + names)
        monkeypatch.chdir(tmp_path)
        folder, count = ("images", 4) if "[" in text else ("images/train", 3)
        for path in ("cups/data.yaml", "cups"):
            assert formats.splits(path) == {"train": ("cups/data.yaml", f"cups/{folder}")}
            assert len(formats.load(path)["annotations"]) == count
    write(yolo / "other.yaml", "path: cups\ntrain: images/train\nnc: 2\n")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.chdir(yolo)
    content = formats.load("other.yaml")
    assert [c["name"] for c in content["categories"]] == ["0", "1"] and noted(content, "classes without names") == 2


def test_yolo_of_windows_and_of_names_alone(yolo):
    write(yolo / "data.yaml", "path: C:\\cups\ntrain: images\\train\nval: images\\val\nnames: [cup, plate]\n")
    assert list(formats.splits(str(yolo))) == ["train", "val"]
    write(yolo / "data.yaml", "names: [cup, plate]\n")
    assert [c["name"] for c in formats.load(str(yolo / "images/train"))["categories"]] == ["cup", "plate"]


def test_yolo_lists(yolo):
    """Splits that are lists of one folder are told apart by their lists."""
    for name, images in (("train", "ab"), ("val", "e")):
        write(yolo / f"{name}.txt", "".join(f"images/train/{i}.jpg\n" for i in images.replace("e", "") or ["empty", "bare"]))
    write(yolo / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cup, plate]\n")
    places = formats.splits(str(yolo / "data.yaml"))
    assert {name: os.path.basename(path) for name, (path, _) in places.items()} == {"train": "train.txt", "val": "val.txt"}
    assert [i["file_name"] for i in formats.load(*places["train"])["images"]] == ["a.jpg", "b.jpg"]
    assert [i["file_name"] for i in formats.load(*places["val"])["images"]] == ["empty.jpg", "bare.jpg"]
    with pytest.raises(UserError, match="several splits have their images in"):
        formats.load(str(yolo / "data.yaml"), str(yolo / "images/train"))
    write(yolo / "data.yaml", "train: [images/train, images/val]\nval: [images/val, images/train/..]\nnames: [cup, plate]\n")
    with pytest.raises(UserError, match="are mixed with those of other splits"):
        formats.splits(str(yolo / "data.yaml"))


def test_yolo_lists_of_folders(yolo):
    """Splits that are lists, of a folder each, need no other path than the yaml."""
    for name in ("train", "val"):
        write(yolo / f"{name}.txt", f"{yolo}/images/{name}/{'a' if name == 'train' else 'c'}.jpg\n")
    write(yolo / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cup, plate]\n")
    places = formats.splits(str(yolo))
    assert places == {name: (str(yolo / "data.yaml"), str(yolo / "images" / name)) for name in ("train", "val")}
    assert [[i["file_name"] for i in formats.load(*place)["images"]] for place in places.values()] == [["a.jpg"], ["c.jpg"]]


@pytest.mark.parametrize("tool", ["CVAT", "Label Studio"])
def test_yolo_of_tools(tmp_path, tool):
    """CVAT's older form has labels beside the images and a list of foreign paths; Label Studio's a classes.txt."""
    images, labels, names = ("obj_train_data", "obj_train_data", "obj.names") if tool == "CVAT" else ("images", "labels", "classes.txt")
    picture(tmp_path / images / "a b.jpg")
    write(tmp_path / labels / "a b.txt", "1 0.5 0.5 0.5 0.5\n")
    write(tmp_path / names, "cup\nplate\n")
    write(tmp_path / "notes.json", "{}")
    write(tmp_path / "train.txt", "data/obj_train_data/a b.jpg\n" if tool == "CVAT" else "images/a b.jpg\n")
    for path in (tmp_path, tmp_path / "train.txt"):
        ((name, kind, box),) = boxes(formats.load(str(path)))
        assert os.path.basename(name) == "a b.jpg" and (kind, box) == ("plate", [40, 30, 80, 60])


def test_splits_of_cvat(voc, tmp_path):
    """Its lists of subsets are called as its users call those: Train, or Validation."""
    for split, name in (("train", "obj_train_data/a"), ("valid", "obj_valid_data/b")):
        picture(tmp_path / f"cvat/{name}.jpg")
        write(tmp_path / f"cvat/{name}.txt", "0 0.5 0.5 0.5 0.5\n")
        write(tmp_path / f"cvat/{split}.txt", f"data/{name}.jpg\n")
    write(tmp_path / "cvat/obj.names", "cup\n")
    for old, new in (("train", "Train"), ("val", "Validation")):
        os.rename(voc / f"ImageSets/Main/{old}.txt", voc / f"ImageSets/Main/{new}.txt")
    for root, images in ((tmp_path / "cvat", [["a.jpg"], ["b.jpg"]]), (voc, [["a.jpg", "c.jpg"], ["b.jpg"]])):
        found = formats.splits(str(root))
        assert list(found) == ["train", "val"]
        assert [[i["file_name"] for i in formats.load(*place)["images"]] for place in found.values()] == images


def test_yolo_outlines(yolo):
    write(yolo / "labels/train/a.txt", "0 0.25 0.25 0.75 0.25 0.75 0.75\n1 0.5 0.5 0.5 0.5\n0 .1 .1 .2 .1 .2 .2 .1 .2\n")
    content = formats.load(str(yolo))
    triangle, box, square, _ = content["annotations"]
    assert triangle["segmentation"] == [[40, 30, 120, 30, 120, 90]] and triangle["bbox"] == [40, 30, 80, 60]
    assert triangle["area"] == pytest.approx(2400) and "segmentation" not in box
    assert square["area"] == pytest.approx(16 * 12)


@pytest.mark.parametrize("shape", [2, 3])
def test_yolo_keypoints(yolo, shape):
    about = yaml.safe_load((yolo / "data.yaml").read_text())
    write(yolo / "data.yaml", yaml.safe_dump({**about, "kpt_shape": [2, shape], "flip_idx": [1, 0]}))
    points = "0.25 0.5 2 0 0 0" if shape == 3 else "0.25 0.5 0 0"
    write(yolo / "labels/train/a.txt", f"0 0.5 0.5 0.5 0.5 {points}")
    write(yolo / "labels/train/b.txt", "1 0.5 0.5 1 1")
    content = formats.load(str(yolo))
    first, other = content["annotations"]
    assert first["keypoints"] == [40, 60, 2, 0, 0, 0] and first["num_keypoints"] == 1 and "keypoints" not in other
    assert all(c["keypoints"] == ["1", "2"] and c["flip_idx"] == [1, 0] for c in content["categories"])
    assert noted(content, "keypoints without names") == 2
    write(yolo / "data.yaml", yaml.safe_dump({**about, "kpt_shape": [2, shape], "kpt_names": {0: ["left", "right"]}, "flip_idx": [0, 5]}))
    content = formats.load(str(yolo))
    assert content["categories"][0]["keypoints"] == ["left", "right"] and "flip_idx" not in content["categories"][0]


def test_yolo_left_out(yolo):
    """What is no label, or of no image, is counted, and its place told."""
    write(
        yolo / "labels/train/a.txt",
        "0 0.5 0.5 0.5 0.5 0.93\n0 0.5 0.5 nan 0.5\ncup 0.5 0.5 0.1 0.1\n0 0.5 0.5\n0 .1 .1 .1 .1 .1 .1 .1\n0 80 60 40 30\n",
    )
    write(yolo / "labels/train/b.txt", "1 0.5 0.5 0 0.3\n-1 0.5 0.5 0.1 0.1\n1.5 .1 .1 .1 .1\n1e400 .1 .1 .1 .1\n")
    write(yolo / "labels/train/gone.txt", "0 0.5 0.5 0.5 0.5\n")
    (yolo / "images/train/bare.jpg").write_bytes(b"no image")
    write(yolo / "labels/train/bare.txt", "0 0.5 0.5 0.5 0.5\n0 0.5 0.5 0.5 0.5\n")
    content = formats.load(str(yolo))
    assert boxes(content) == [("a.jpg", "cup", [40, 30, 80, 60])]
    label = str(yolo / "labels/train/a.txt")
    assert content["notes"] == {
        f"sixth values of lines left out because they are confidences of detections, the first {label!r} line 1": 1,
        f"lines left out because they are not labels, the first {label!r} line 2: 'nan' is not a number of pixels": 8,
        f"objects left out because their box has no area, the first {label.replace('a.txt', 'b.txt')!r} line 1": 1,
        "objects left out because their image cannot be read, so its size is unknown, the first 'bare.jpg'": 2,
        f"label files left out because they have no image, the first {label.replace('a.txt', 'gone.txt')!r}": 1,
    }
    assert {i["file_name"] for i in content["images"] if "width" not in i} == {"bare.jpg"}


def test_what_the_reader_makes_of_yolo(yolo):
    """Images are not turned if a key says so. The first line counts what is left out."""
    picture(yolo / "images/train/a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")
    write(yolo / "labels/train/b.txt", "0 0.5 0.5 0.5 0.5\n1 80 60 40 30\n")
    for exif, size in (("ignore", SIZE), ("turn", SIZE[::-1])):
        data = reader.read(Source("own_train", *formats.splits(str(yolo))["train"]), Use(exif=exif))
        assert data.error() is None and (data.images[0]["width"], data.images[0]["height"]) == size
    assert "left out: 1 (1 line); " in data.summary()


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("data.yaml", "train: [\n", "is not a YOLO data.yaml"),
        ("data.yaml", "train: images/train\nval: images/val\n", "'names' must be a list of class names"),
        ("data.yaml", "train: images/train\nnames: {a: cup}\n", "'names' must be a list of class names"),
        ("data.yaml", "train: images/train\nnames: [cup, cup]\n", "two classes have the name 'cup'"),
        ("data.yaml", "train: images/trian\nnames: [cup, plate]\n", r"the images of 'train' do not exist: '.*images/trian'"),
        ("data.yaml", "train: {}\nval: {a: b}\nnames: [cup, plate]\n", "'val' is not the name of a folder"),
        ("data.yaml", "names: [cup, plate]\n", "none of 'train', 'val' and 'test'"),
        ("data.yaml", "train: images/train\nnames: [cup, plate]\nkpt_shape: [17]\n", "kpt_shape must be"),
        ("data.yaml", "train: labels/train\nnames: [cup, plate]\n", "there are no images"),
        ("labels/train/a.txt", "2 0.5 0.5 0.5 0.5", r"a.txt' line 1: class 2 has no name: '.*data.yaml' has 2 names, numbered from 0"),
        ("labels/train/a.txt", "0 0.5 0.5 0.5 0.5\n\n9 0.5 0.5 0.5 0.5", r"a.txt' line 3: class 9 has no name"),
    ],
)
def test_yolo_refused(yolo, name, text, words):
    write(yolo / name, text)
    with pytest.raises(UserError, match=words) as error:
        formats.load(str(yolo / "data.yaml"))
    assert "\n" not in str(error.value)


def test_yolo_labels_of_pixels_or_bytes(yolo):
    for name in "ab":
        write(yolo / f"labels/train/{name}.txt", "0 80 60 40 30")
    with pytest.raises(UserError, match=r"none of 2 lines is a YOLO label; the first, '.*a.txt' line 1: 80 is not a fraction of the image"):
        formats.load(str(yolo))
    (yolo / "labels/train/a.txt").write_bytes(b"0 0.5 0.5 \xff\xff 1")
    with pytest.raises(UserError, match=r"a.txt' is not a label file: 'utf-8' codec"):
        formats.load(str(yolo))
    (yolo / "labels/train/a.txt").write_bytes("0 0.5 0.5 0.5 0.5".encode("utf-16"))
    write(yolo / "labels/train/b.txt", "")
    assert len(formats.load(str(yolo))["annotations"]) == 1


def test_voc(voc):
    images = str(voc / "JPEGImages")
    places = formats.splits(str(voc))
    assert places == {name: (str(voc / f"ImageSets/Main/{name}.txt"), images) for name in ("train", "val")}
    content = formats.load(*places["train"])
    # 1, 1, 160, 120 is the whole image: pixels count from 1, the last one is in the box
    assert boxes(content) == [("a.jpg", "dog", [0, 0, 160, 120]), ("a.jpg", "cat", [10, 20, 30, 40.5])]
    assert [i["file_name"] for i in content["images"]] == ["a.jpg", "c.jpg"] and content["notes"] == {}
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    held = formats.load(*places["val"])
    assert held["annotations"][0]["ignore"] == 1 and noted(held, "'difficult'") == 1
    every = formats.load(str(voc), images)
    assert len(every["images"]) == 3 and len(every["annotations"]) == 3 and noted(every, "they have no .xml file") == 1
    picture(voc / "JPEGImages/e f.jpg")
    write(voc / "Annotations/e f.xml", voc_xml(voc_object("dog", 1, 1, 9, 9), name="e f.jpg"))
    write(voc / "ImageSets/Main/train.txt", "e f\na -1\n")
    assert [i["file_name"] for i in formats.load(str(voc))["images"]] == ["e f.jpg", "a.jpg"]
    xml = voc_xml(
        voc_object("L\u00f6ffel", 1, 1, 9, 9, more="<difficult>False</difficult>"), head='<?xml version="1.0" encoding="ISO-8859-1"?>'
    )
    (voc / "Annotations/a.xml").write_bytes(xml.encode("latin-1"))
    content = formats.load(str(voc))
    assert boxes(content)[1][1] == "L\u00f6ffel" and content["annotations"][1]["ignore"] == 0
    os.rename(voc / "ImageSets/Main/train.txt", voc / "ImageSets/Main/trainval.txt")
    assert formats.splits(str(voc))["train"][0].endswith("trainval.txt")


def test_voc_is_what_detectron2_reads(voc):
    from detectron2.data.datasets.pascal_voc import load_voc_instances
    from detectron2.structures import BoxMode

    theirs = load_voc_instances(str(voc), "train", ("cat", "dog"))
    ours = formats.load(str(voc / "ImageSets/Main/train.txt"))
    expected = [(a["category_id"] + 1, BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS)) for r in theirs for a in r["annotations"]]
    assert [(a["category_id"], a["bbox"]) for a in ours["annotations"]] == expected


def test_voc_in_plain_folders(tmp_path):
    """As Roboflow, LabelImg and CVAT write it: beside the images, or in folders of the splits; with names that do not fit."""
    for part, name in (("train", "a"), ("valid", "b")):
        picture(tmp_path / part / f"{name}.png")
        write(tmp_path / part / f"{name}.xml", voc_xml(voc_object("dog", 1, 1, 20, 20), None, name="C:\\photos\\old.jpg"))
    assert formats.splits(str(tmp_path)) == {
        "train": (str(tmp_path / "train"), str(tmp_path / "train")),
        "val": (str(tmp_path / "valid"), str(tmp_path / "valid")),
    }
    content = formats.load(str(tmp_path / "train"))
    assert [(i["file_name"], i["width"]) for i in content["images"]] == [("a.png", 160)]
    assert noted(content, "'filename' entries that name another file") == 1 and noted(content, "image sizes read from the image files") == 1
    picture(tmp_path / "pictures/old.jpg")
    assert [i["file_name"] for i in formats.load(str(tmp_path / "train"), str(tmp_path / "pictures"))["images"]] == ["old.jpg"]
    os.remove(tmp_path / "train/a.png")  # which COCO's reader then says
    assert "width" not in formats.load(str(tmp_path / "train"))["images"][0]


@pytest.mark.parametrize("kind", ["voc", "labelme"])
def test_names_with_dots(kind, tmp_path):
    """``a.edit`` is another image than ``a``, whose name it would have if ``edit`` were an extension."""
    for name in ("a", "a.edit"):
        picture(tmp_path / f"images/{name}.jpg")
        if kind == "voc":
            write(tmp_path / f"images/{name}.xml", voc_xml(voc_object(name, 1, 1, 9, 9), name=name))
        else:
            write(tmp_path / f"images/{name}.json", json.dumps(labelme_file([shape(name, [[1, 1], [9, 9]], "rectangle")], f"C:\\{name}.jpeg")))
    assert sorted((image, label) for image, label, _ in boxes(formats.load(str(tmp_path)))) == [("a.edit.jpg", "a.edit"), ("a.jpg", "a")]


def test_voc_left_out(voc):
    faulty = voc_object("dog", 9, 9, 5, 5) + "<object><name>dog</name></object>" + voc_object("", 1, 2, 3, 4) + voc_object("dog", 0, 0, 9, 9)
    outline = voc_object("cat", 1, 1, 9, 9, more="<polygon><x1>1</x1><y1>1</y1></polygon>")
    write(voc / "Annotations/a.xml", voc_xml(faulty + outline))
    content = formats.load(str(voc))
    assert boxes(content) == [("a.jpg", "dog", [0, 0, 9, 9]), ("a.jpg", "cat", [0, 0, 9, 9])]
    for words, count in (("no area", 1), ("no name or no box", 2), ("before the first pixel", 1), ("polygons left out", 1)):
        assert noted(content, words) == count, words


ENTITIES = "".join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10 if i else "ha" * 100}">' for i in range(9))


@pytest.mark.parametrize(
    "text, words",
    [
        ("<annotation><size>", "is not a Pascal VOC annotation: no element found"),
        ("0 0.5 0.5 0.1 0.1", "is not a Pascal VOC annotation: syntax error"),
        ("<html></html>", "its root element is 'html'"),
        (voc_xml(voc_object("dog", 1, 2, "x", 4)), "'x' is not a number of pixels"),
        (voc_xml(voc_object("dog", 1, 2, "nan", 4)), "'nan' is not a number of pixels"),
        (voc_xml(voc_object("dog", 1, 2, 1e30, 4)), "'1e[+]30' is not a number of pixels"),
        (voc_xml(voc_object("dog", 1, 2, 3)), "'' is not a number of pixels"),
        (voc_xml(size=("a", 2)), "'a' is not a number of pixels"),
        (voc_xml("&e8;", head=f"<!DOCTYPE a [{ENTITIES}]>"), "it has a DOCTYPE"),
        (voc_xml("&e;", head='<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'), "it has a DOCTYPE"),
        ("\0\0\0", "it is not text"),
        ('<?xml version="1.0" encoding="foo"?><annotation></annotation>', "unknown encoding: foo"),
    ],
)
def test_voc_refused(voc, text, words):
    write(voc / "Annotations/a.xml", text)
    with pytest.raises(UserError, match=rf"a\.xml' is not a Pascal VOC annotation: .*{words.partition(': ')[2] or words}"):
        formats.load(str(voc))


def test_voc_lists_refused(voc):
    write(voc / "ImageSets/Main/train.txt", "a\n\nzebra\n")
    with pytest.raises(UserError, match=r"train.txt' line 3: 'zebra' has no '.*zebra.xml'"):
        formats.load(str(voc))
    write(voc / "ImageSets/Main/train.txt", "\n")
    with pytest.raises(UserError, match="has no images"):
        formats.load(str(voc))
    write(voc / "ImageSets/Main/train.txt", "c\n")
    with pytest.raises(UserError, match="has no objects, and therefore no classes"):
        formats.load(str(voc))


def test_labelme(labelme):
    assert formats.splits(str(labelme)) == {"": (str(labelme), str(labelme))}
    content = formats.load(str(labelme))
    assert boxes(content) == [("a.jpg", "dog", [10, 10, 40, 20]), ("a.jpg", "cat", [70, 60, 20, 20])]
    assert [c["name"] for c in content["categories"]] == ["cat", "dog"]
    assert [a["area"] for a in content["annotations"]] == [400, 400]
    assert content["annotations"][0]["segmentation"] == [[10, 10, 50, 10, 50, 30]]
    assert content["annotations"][1]["segmentation"] == [[90, 80, 70, 80, 70, 60, 90, 60]]
    assert content["notes"] == {"images left out because they have no .json file": 1}


def test_labelme_shapes(labelme):
    kinds = [
        shape("ball", [[50, 50], [50, 60]], "circle"),
        shape("dog", [[1, 1], [9, 1], [9, 9]], group_id=3),
        shape("dog", [[21, 1], [29, 1], [29, 9]], group_id=3),
        shape("cat", [[31, 1], [39, 1], [39, 9]], group_id=3),
        shape("nose", [[5, 5]], "point"),
        shape("edge", [[5, 5], [9, 9]], "line"),
        shape("edge", [[5, 5], [9, 9]]),
        shape("flat", [[5, 5], [9, 5], [7, 5]]),
    ]
    write(labelme / "a.json", json.dumps(labelme_file(kinds)))
    write(labelme / "settings.json", "{}")
    content = formats.load(str(labelme))
    ball, dog, cat = content["annotations"]
    assert ball["area"] == pytest.approx(math.pi * 100, rel=0.05) and ball["bbox"] == pytest.approx([40, 40, 20, 20], abs=0.3)
    assert dog["bbox"] == [1, 1, 28, 8] and len(dog["segmentation"]) == 2 and dog["area"] == 64
    assert cat["bbox"] == [31, 1, 8, 8]
    for words, count in (
        ("merged", 1),
        ("'point' of 1", 1),
        ("'line' of 2", 1),
        ("'polygon' of 2", 1),
        ("no area, the first", 4),
        ("not labelme's", 1),
    ):
        assert noted(content, words) == count, words


@pytest.mark.parametrize("kind", ["oriented_rectangle", "rotation"])
def test_labelme_rotated_boxes(labelme, kind):
    write(labelme / "a.json", json.dumps(labelme_file([shape("dog", [[50, 20], [80, 50], [50, 80], [20, 50]], kind)])))
    content = formats.load(str(labelme))
    (dog,) = content["annotations"]
    assert dog["bbox"] == [20, 20, 60, 60] and dog["area"] == 1800 and dog["segmentation"] == [[50, 20, 80, 50, 50, 80, 20, 50]]
    assert [count for text, count in content["notes"].items() if text.startswith("rotated boxes read as outlines")] == [1]


def test_labelme_masks(labelme):
    inside = np.zeros((8, 11), np.uint8)
    inside[2:5, 3:9] = 255
    buffer = io.BytesIO()
    Image.fromarray(inside).save(buffer, "png")
    mask = shape("dog", [[20, 30], [30, 37]], "mask", mask=base64.b64encode(buffer.getvalue()).decode())
    write(labelme / "a.json", json.dumps(labelme_file([mask])))
    (annotation,) = formats.load(str(labelme))["annotations"]
    assert annotation["bbox"] == [23, 32, 6, 3] and annotation["area"] == 18
    whole = np.zeros(SIZE[::-1], np.uint8)
    whole[32:35, 23:29] = 1
    assert (mask_util.decode(annotation["segmentation"]) == whole).all()
    for points, data in (([[20, 30], [31, 37]], mask["mask"]), ([[150, 30], [160, 37]], mask["mask"]), ([[20, 30], [30, 37]], "AAAA")):
        write(labelme / "a.json", json.dumps(labelme_file([{**mask, "points": points, "mask": data}])))
        with pytest.raises(UserError, match="a.json' is not a valid labelme file: .* shape 1: its mask"):
            formats.load(str(labelme))


@pytest.mark.parametrize(
    "content, words",
    [
        (labelme_file([shape("dog", [[1, "x"], [2, 2], [3, 9]])]), "'x' is not a number of pixels"),
        (labelme_file([shape("dog", [[1, 2, 3]])]), "too many values"),
        (labelme_file([{}]), "'label'"),
        (labelme_file([7]), "not subscriptable"),
        (labelme_file([shape("dog", None)]), "not iterable"),
        (labelme_file([], size=(1e9, 4)), "not a number of pixels"),
    ],
)
def test_labelme_refused(labelme, content, words):
    write(labelme / "a.json", json.dumps(content))
    with pytest.raises(UserError, match=f"a.json' is not a valid labelme file: .*{words}"):
        formats.load(str(labelme))


@pytest.mark.parametrize(
    "file, images",
    [
        ("annotations/person_keypoints_default.json", "images/default"),  # CVAT's
        ("annotations/instances_default.json", "images"),  # CVAT's of old
        ("annotations/instances_train2017.json", "train2017"),  # COCO's own
        ("annotations/labels.json", "annotations"),
        ("labels.json", ""),
    ],
)
def test_where_the_images_of_coco_files_are(file, images, tmp_path):
    """By the file, and where it is alone by its folder, and by that above."""
    for name in (file, f"{images}/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text('{"images": [], "categories": [], "annotations": []}')
    Image.new("RGB", (8, 6)).save(tmp_path / images / "a.png")
    for named in (file, os.path.dirname(file), "."):
        ((found, folder),) = formats.splits(str(tmp_path / named)).values()
        assert os.path.samefile(found, tmp_path / file) and os.path.samefile(folder, tmp_path / images)


@pytest.mark.parametrize("layout", ["{split}/annotations/instances_default.json", "annotations/instances_{split}2017.json"])
def test_parts_of_coco_files(layout, tmp_path):
    for split in ("train", "val"):
        path = tmp_path / layout.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    found = formats.splits(str(tmp_path))
    assert {split: os.path.relpath(file, tmp_path) for split, (file, _) in found.items()} == {
        s: layout.format(split=s) for s in ("train", "val")
    }
    (tmp_path / "annotations").mkdir(exist_ok=True)
    (tmp_path / "annotations" / "captions_val2017.json").write_text("{}")
    if layout.startswith("ann"):  # which one of two it is, nobody knows
        with pytest.raises(UserError, match="Name one of these annotation files: .*captions_val2017.json.*instances_train2017.json"):
            formats.load(str(tmp_path))


def test_left_to_the_reader_of_coco(tmp_path, yolo):
    coco = {"images": [], "categories": [], "annotations": []}
    for part in ("train", "valid"):
        write(tmp_path / "robo" / part / "_annotations.coco.json", json.dumps(coco))
        write(tmp_path / "robo/README.roboflow.txt", "cups")
    places = {
        n: (str(tmp_path / "robo" / p / "_annotations.coco.json"), str(tmp_path / "robo" / p))
        for n, p in (("train", "train"), ("val", "valid"))
    }
    assert formats.splits(str(tmp_path / "robo")) == places
    assert formats.load(*places["train"]) is None and formats.load(places["val"][0]) is None
    assert formats.load(str(tmp_path / "none.json")) is None and formats.load(str(tmp_path / "nowhere")) is None
    assert formats.splits(places["train"][0]) == {"": places["train"]}
    (tmp_path / "hollow").mkdir()
    with pytest.raises(UserError, match="has no readable annotations. Allowed: COCO's JSON file, a YOLO"):
        formats.load(str(tmp_path / "hollow"))
    with pytest.raises(UserError, match="image folder '.*elsewhere' does not exist"):
        formats.load(str(yolo / "data.yaml"), str(tmp_path / "elsewhere"))


FOREIGN = [
    (labelme_file([]), "labelme", "folder"),
    ({"_via_settings": {}, "_via_img_metadata": {}}, "VIA", "COCO"),
    ({"project": {}, "config": {}, "attribute": {}, "file": {}, "metadata": {}, "view": {}}, "VIA", "COCO"),
    ({"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": [], "file_attributes": {}}}, "VIA", "COCO"),
    ({"info": {}, "categories": {"label": {}}, "items": []}, "Datumaro", "datum"),
    ({"version": "2.0", "item": {}, "annotations": []}, "V7", "COCO"),
    ({"description": "", "tags": [], "size": {"height": 1, "width": 2}, "objects": []}, "Supervisely", "COCO"),
    ([{"data_row": {}, "media_attributes": {}, "projects": {}}], "Labelbox", "COCO"),
    ([{"id": 1, "annotations": [{"result": []}], "data": {"image": "/x"}}], "Label Studio", "COCO"),
    ([{"image": "/x", "label": [], "annotation_id": 2}], "Label Studio", "COCO"),
    ([{"image": "a.jpg", "annotations": [{"label": "x", "coordinates": {}}]}], "CreateML", "COCO"),
    ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}], "results", "annotations"),
    ({"images": [{}], "annotations": [{"image_id": 1, "id": 1, "caption": "a dog"}]}, "captions", "instances"),
    ({"images": [{}], "categories": [], "annotations": [{"segments_info": []}]}, "panoptic", "instances"),
    ([{"name": "a.jpg", "labels": [{"box2d": {}}]}], "BDD100K", "to_coco"),
    (b"0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n", "YOLO", "data.yaml"),
    (voc_xml().encode(), "Pascal VOC", "folder"),
    (b'<?xml version="1.0"?>\n<annotations><version>1.1</version></annotations>', "CVAT", "COCO"),
    (b"PK\x03\x04\x14\x00", "archive", "unpack"),
    (b"\x1f\x8b\x08", "archive", "unpack"),
    (b'{"ID": "2,c", "gtboxes": [{"fbox": [1, 2, 3, 4]}]}\n{"ID": "3", "gtboxes": []}\n', "odgt", "crowdhuman"),
    (b'{"ID": "2,c", "gtboxes": [{"fbox": [1, 2, 3, 4], "tag": "per', None, None),  # cut off, and no line ends: not known to be odgt
    (b'{"source-ref": "s3://b/a.jpg", "boxes": {}}\n{"source-ref": "s3://b/b.jpg"}\n', "SageMaker", "COCO"),
    (b'{"a": 1}\n{"a": 2}\n', "one JSON object per line", "COCO"),
    (b"ImageId,EncodedPixels\n000.jpg,1 3 10 5\n", "Kaggle", "RLE"),
    (b"filename,width,height,class,xmin,ymin,xmax,ymax\na.jpg,1,2,3,4,5,6,7\n", "CSV", "COCO"),
    ("\ufefffilename,w\na,1\n".encode("utf-16"), None, None),
    ({"images": [{}], "categories": [{}], "annotations": [{"bbox": []}]}, None, None),
    ({}, None, None),
    ([], None, None),
    ([7], None, None),
    ("text", None, None),
    (b"", None, None),
    (b"\xff\xd8\xff\xe0", None, None),
]


@pytest.mark.parametrize("content, name, way", FOREIGN)
def test_foreign(content, name, way):
    found = formats.foreign(content, "annotations.txt")
    if name is None:
        assert found is None
    else:
        assert name in found[0] and way in found[1]


def test_foreign_by_its_ending():
    assert "CSV" in formats.foreign(b"a,b\n1,2\n", "x.csv")[0]


@pytest.mark.parametrize(
    "kind, name",
    [
        ("yolo", "labels/train/a.txt"),
        ("yolo", "data.yaml"),
        ("voc", "Annotations/a.xml"),
        ("voc", "ImageSets/Main/train.txt"),
        ("labelme", "a.json"),
    ],
)
def test_damaged_files_end_in_clear_errors(kind, name, request):
    """A damaged file is read, or refused in one line; what is read has whole boxes of known images and classes."""
    root = request.getfixturevalue(kind)
    original = (root / name).read_bytes()
    seen = {"read": 0, "refused": 0}

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(damaged(original))
    def attempt(content):
        (root / name).write_bytes(content)
        try:
            made = formats.load(str(root))
        except UserError as error:
            assert len(str(error)) < 1000 and "\n" not in str(error)
            seen["refused"] += 1
            return
        seen["read"] += 1
        images, categories = {i["id"] for i in made["images"]}, {c["id"] for c in made["categories"]}
        for a in made["annotations"]:
            assert a["image_id"] in images and a["category_id"] in categories
            assert all(map(math.isfinite, a["bbox"])) and min(a["bbox"][2:]) > 0 and math.isfinite(a["area"])
        json.dumps(made, allow_nan=False)

    attempt()
    assert seen["read"] and seen["refused"]


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda x: st.lists(x)
            | st.dictionaries(st.sampled_from(["images", "annotations", "size", "objects", "data", "shapes", "imagePath"]), x),
            max_leaves=8,
        ),
    )
)
def test_naming_never_fails(content):
    found = formats.foreign(content, "x")
    assert found is None or len(found) == 2 and all(isinstance(text, str) for text in found)
