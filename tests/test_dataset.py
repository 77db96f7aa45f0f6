"""`backbones dataset`: convert, split, merge and show."""

import json
import os
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_data import EXAMPLES, SIZE, boxes, coco, damaged, picture, voc_object, voc_xml, write

from backbones import cli
from backbones.data import formats, split
from backbones.data.formats import building
from backbones.errors import UserError, counted
from backbones.tools import dataset, run

ROUNDING = 1e-4  # pixels: 8 decimals of an image of 160 pixels are 1e-6


def places(path):
    """[(real path of the image, class, box)] of a file that names its images from its own folder."""
    content = json.loads(open(path).read())
    return sorted((os.path.realpath(os.path.join(os.path.dirname(path), name)), kind, box) for name, kind, box in boxes(content))


def assert_same(one, other, tolerance=ROUNDING):
    assert [row[:2] for row in one] == [row[:2] for row in other]
    for a, b in zip(one, other):
        assert a[2] == pytest.approx(b[2], abs=tolerance)


@pytest.mark.parametrize("masks", [True, False])
def test_to_yolo_and_back(tmp_path, masks):
    """No box moves by more than the rounding to 8 decimals, and no area; images without objects stay."""
    path, content = coco(tmp_path / "d")
    if not masks:
        content["annotations"] = [{key: value for key, value in a.items() if key != "segmentation"} for a in content["annotations"]]
        write(tmp_path / "d/coco.json", json.dumps(content))
    out = tmp_path / "out" / "yolo"
    lines = list(dataset.convert(path, str(out), str(tmp_path / "d/images"), "yolo"))
    assert lines[0] == f"{out}/labels/train: 6 images, 6 objects of 2 classes" and "Ultralytics requires" in lines[-1]
    assert sorted(os.listdir(out)) == ["data.yaml", "images", "labels"] and not os.path.exists(f"{out}.partial")
    back = str(tmp_path / "back.json")
    assert list(dataset.convert(str(out / "data.yaml"), back)) == [f"{back}: 6 images, 6 objects of 2 classes"]
    expected = sorted((os.path.realpath(tmp_path / "d/images" / name), kind, box) for name, kind, box in boxes(content))
    assert_same(places(back), expected)
    again = json.loads(open(back).read())
    assert len(again["images"]) == 6 and "notes" not in again
    for a, b in zip(content["annotations"], again["annotations"]):
        assert b["area"] == pytest.approx(a["area"], rel=1e-5) and ("segmentation" in b) == masks
    with pytest.raises(UserError, match="already exists"):
        list(dataset.convert(path, str(out), str(tmp_path / "d/images"), "yolo"))


def test_to_yolo_of_names_with_images(tmp_path):
    """Label Studio's file names the folder images, whose second one would hide the labels."""
    path, content = coco(tmp_path / "d")
    for image in content["images"]:
        image["file_name"] = "images/" + image["file_name"]
    write(tmp_path / "d/coco.json", json.dumps(content))
    list(dataset.convert(path, str(tmp_path / "y"), to="yolo"))
    assert len(dataset.read(str(tmp_path / "y"), str(tmp_path / "y/images/train"))["annotations"]) == 6


def test_to_yolo_of_parts_crowds_and_runs(tmp_path):
    path, content = coco(tmp_path / "d")
    first, second, third, fourth, *_ = content["annotations"]
    x, y, w, h = first["bbox"]
    # three parts, one the other way round, within the box's corners
    first["segmentation"] = [[x, y, x + 5, y, x + 5, y + 5], [x + w, y + h, x + w, y + 9, x + 9, y + h], [x + 9, y, x + 12, y, x + 12, y + 3]]
    second["iscrowd"] = 1
    third["segmentation"] = mask_util.encode(np.asfortranarray(np.ones(SIZE[::-1], np.uint8)))
    third["segmentation"]["counts"] = third["segmentation"]["counts"].decode()
    fourth["segmentation"] = [[-3, 0, 9, 0, 9, 9]]
    write(tmp_path / "d/coco.json", json.dumps(content))
    lines = list(dataset.convert(path, str(tmp_path / "y"), str(tmp_path / "d/images"), "yolo"))
    for words in ("1 crowds", "1 objects without a polygon", "1 boxes that differ from their polygon"):
        assert any(words in line for line in lines), lines
    back = formats.load(str(tmp_path / "y"))
    # objects are in the order of their images, as here
    assert back["annotations"][0]["bbox"] == pytest.approx(first["bbox"], abs=ROUNDING)
    lines = [open(file.path).read().split() for file in os.scandir(tmp_path / "y/labels/train")]
    assert all(0 <= float(word) <= 1 for words in lines for word in words) and "path" not in yaml.safe_load(
        (tmp_path / "y/data.yaml").read_text()
    )
    areas = [12.5, (w - 9) * (h - 9) / 2, 4.5]
    assert back["annotations"][0]["area"] == pytest.approx(sum(areas), rel=1e-5)
    assert back["annotations"][1]["bbox"] == pytest.approx(third["bbox"], abs=ROUNDING)


def test_to_yolo_of_keypoints(yolo, tmp_path):
    about = yaml.safe_load((yolo / "data.yaml").read_text())
    write(yolo / "data.yaml", yaml.safe_dump({**about, "kpt_shape": [2, 3], "kpt_names": {0: ["l", "r"]}, "flip_idx": [1, 0]}))
    write(yolo / "labels/train/a.txt", "0 0.5 0.5 0.5 0.5 0.25 0.5 2 0.3 0.4 1")
    list(dataset.convert(str(yolo), str(tmp_path / "again"), "", "yolo"))
    for part in ("train", "val"):
        one, other = (formats.load(*formats.splits(str(root))[part]) for root in (yolo, tmp_path / "again"))
        assert one["categories"] == other["categories"] and len(one["images"]) == len(other["images"])
        for a, b in zip(one["annotations"], other["annotations"]):
            # keypoints that were not there are not labelled
            assert b["keypoints"] == pytest.approx(a.get("keypoints", [0] * 6), abs=ROUNDING) and b["bbox"] == pytest.approx(
                a["bbox"], abs=ROUNDING
            )


@pytest.mark.parametrize("kind", ["yolo", "voc", "labelme"])
def test_convert_to_coco(kind, request, tmp_path):
    """What is written is what was read; images are found from the file's folder; each split has its file."""
    root = request.getfixturevalue(kind)
    lines = list(dataset.convert(str(root), str(tmp_path / "made/x.json")))
    for name, (path, images) in formats.splits(str(root)).items():
        file = str(tmp_path / "made" / (f"x_{name}.json" if name else "x.json"))
        content = formats.load(path, images)
        assert (
            f"{file}: {counted(len(content['images']), 'image')}, {counted(len(content['annotations']), 'object')} "
            f"of {counted(len(content['categories']), 'class')}" in lines
        )
        assert all(any(text in line for line in lines) for text in content["notes"])
        assert_same(places(file), sorted((os.path.realpath(os.path.join(images, i)), k, b) for i, k, b in boxes(content)), 0)
        assert dataset.read(file, os.path.dirname(file))["annotations"] == json.loads(open(file).read())["annotations"]


def test_written_coco_is_what_coco_tools_read(labelme, tmp_path):
    from pycocotools.coco import COCO

    list(dataset.convert(str(labelme), str(tmp_path / "x.json")))
    read = COCO(str(tmp_path / "x.json"))
    assert [read.annToMask(a).sum() for a in read.loadAnns(read.getAnnIds())] == [pytest.approx(400, rel=0.1)] * 2


def test_converted_splits_share_their_classes(tmp_path, monkeypatch):
    """Pascal VOC's classes are numbered by what a split has; those of what is written are the same in all splits."""
    for part, names in (("train", ["dog"]), ("val", ["cat", "dog"])):
        picture(tmp_path / f"d/{part}/{part}.jpg")
        objects = "".join(voc_object(name, 1, 1, 9 * i, 9) for i, name in enumerate(names, 1))
        write(tmp_path / f"d/{part}/{part}.xml", voc_xml(objects, name=f"{part}.jpg"))
    list(dataset.convert(str(tmp_path / "d"), str(tmp_path / "x.json")))
    train, val = (json.loads((tmp_path / f"x_{part}.json").read_text()) for part in ("train", "val"))
    assert [{c["name"]: c["id"] for c in content["categories"]} for content in (train, val)] == [{"dog": 1}, {"cat": 2, "dog": 1}]
    assert [a["category_id"] for a in train["annotations"] + val["annotations"]] == [1, 2, 1]
    list(dataset.convert(str(tmp_path / "d"), str(tmp_path / "y"), to="yolo"))
    assert [open(tmp_path / f"y/labels/{part}/{part}.txt").read()[0] for part in ("train", "val")] == ["0", "1"]
    seen = set()  # a class has one colour in all splits
    monkeypatch.setattr(dataset, "draw", lambda pixels, marks: seen.update((mark.label, mark.colour) for mark in marks) or pixels)
    list(dataset.show(str(tmp_path / "d"), str(tmp_path / "shown.png")))
    assert sorted(label for label, _ in seen) == ["cat", "dog"]


def test_yolo_has_no_word_for_unturned_images(tmp_path):
    """Its readers turn them, and it states no sizes: labels of the file's pixels would be wrong without a trace."""
    path, _ = coco(tmp_path / "d", count=3)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "d/images/1.jpg", exif=exif)
    use = dataset._use(["INPUT.EXIF", "ignore"])
    with pytest.raises(UserError, match="1.jpg' has an EXIF rotation, .* or convert to COCO"):
        list(dataset.convert(path, str(tmp_path / "y"), str(tmp_path / "d/images"), "yolo", use))
    assert not (tmp_path / "y").exists()
    assert list(dataset.convert(path, str(tmp_path / "c.json"), str(tmp_path / "d/images"), use=use))
    picture(tmp_path / "d/images/1.jpg")
    assert list(dataset.convert(path, str(tmp_path / "y"), str(tmp_path / "d/images"), "yolo", use))


def test_linked_folders(labelme, tmp_path):
    """What is written to a linked folder finds its images; data in a linked folder are read, once, even where links go round."""
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "lnk").symlink_to(tmp_path / "far/away")
    list(dataset.convert(str(labelme), str(tmp_path / "lnk/x.json")))
    ((file, folder),) = formats.splits(str(tmp_path / "lnk")).values()
    assert len(dataset.read(file, folder)["images"]) == 1
    for name, to in (("data", labelme), ("round", tmp_path / "all"), ("again", labelme)):
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / name).symlink_to(to)
    assert [image["file_name"] for image in formats.load(str(tmp_path / "all"))["images"]] == ["again/a.jpg"]
    for name in ("pool/x/b.jpg", "pool/y/c.jpg"):
        picture(tmp_path / name)
    for name, to in (("some/.cache", "pool"), ("some/a_x", "pool/x"), ("some/b_all", "pool")):
        (tmp_path / "some").mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(tmp_path / to)
    found = [os.path.relpath(path, tmp_path / "some") for path in building.files(str(tmp_path / "some"), (".jpg",))]
    assert found == ["a_x/b.jpg", "b_all/y/c.jpg"]
    write(tmp_path / "all.json", json.dumps({**json.loads((tmp_path / "lnk/x.json").read_text()), "images": [{"id": 1, "file_name": "a.jpg"}]}))
    assert dataset.read(str(tmp_path / "all.json"), str(tmp_path / "all"))["images"][0]["file_name"] == "again/a.jpg"


def test_a_folder_of_annotations_with_images_elsewhere(tmp_path):
    path, _ = coco(tmp_path / "d")
    write(tmp_path / "notes.json", "{}")
    os.rename(tmp_path / "d/images", tmp_path / "pictures")
    assert len(dataset.read(str(tmp_path / "d"), str(tmp_path / "pictures"))["images"]) == 6
    write(tmp_path / "d/more.json", "{}")
    with pytest.raises(UserError, match="Name one of these annotation files: '[^ ]*coco.json', '[^ ]*more.json'[.]$"):
        dataset.read(str(tmp_path / "d"), str(tmp_path / "pictures"))


def classes_of(content):
    names = {c["id"]: c["name"] for c in content["categories"]}
    return {name: len({a["image_id"] for a in content["annotations"] if names[a["category_id"]] == name}) for name in names.values()}


def test_split(tmp_path):
    path, content = coco(tmp_path / "d", count=30)
    lines = list(dataset.divide(path, str(tmp_path / "parts"), str(tmp_path / "d/images")))
    parts = {name: json.loads((tmp_path / f"parts/{name}.json").read_text()) for name in ("train", "val")}
    assert lines == [f"{tmp_path}/parts/{name}.json: {dataset._summary(parts[name])}" for name in parts]
    assert [len(parts[name]["images"]) for name in parts] == [24, 6]
    names = [{image["file_name"] for image in part["images"]} for part in parts.values()]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 30
    assert sum(len(part["annotations"]) for part in parts.values()) == len(content["annotations"])
    assert classes_of(parts["val"]) == {"cup": 4, "plate": 2} and classes_of(parts["train"]) == {"cup": 16, "plate": 8}
    # the folder holds both splits, and names images from itself
    assert formats.splits(str(tmp_path / "parts")) == {name: (str(tmp_path / f"parts/{name}.json"), str(tmp_path / "parts")) for name in parts}
    assert all(os.path.isfile(tmp_path / "parts" / name) for name in names[0] | names[1])
    before = (tmp_path / "parts/val.json").read_bytes()
    list(dataset.divide(path, str(tmp_path / "parts"), str(tmp_path / "d/images")))
    assert (tmp_path / "parts/val.json").read_bytes() == before
    list(dataset.divide(path, str(tmp_path / "parts"), str(tmp_path / "d/images"), seed=1))
    assert (tmp_path / "parts/val.json").read_bytes() != before


@pytest.mark.parametrize("seed", range(8))
def test_split_by_class(seed):
    """Of rare and frequent classes that come together: each is in both parts, in about its share."""
    generator = np.random.default_rng(seed)
    rates = [0.5, 0.2, 0.05, 0.02, 0.005]
    classes = [{i for i, rate in enumerate(rates) if generator.random() < rate} for _ in range(400)]
    classes[0] |= {"rare"}
    classes[1] |= {"rare", 0}
    held = split.held_out(classes, 0.25, seed)
    assert held == split.held_out(classes, 0.25, seed) and abs(sum(held) - 100) <= 2
    for name in [*range(len(rates)), "rare"]:
        its = [i for i, names in enumerate(classes) if name in names]
        part = sum(held[i] for i in its)
        if len(its) >= 2:
            assert 1 <= part < len(its) and abs(part - 0.25 * len(its)) <= max(2, 0.03 * len(its)), (name, part, len(its))
    assert split.alone(held, classes) == []


@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(st.lists(st.sets(st.integers(0, 5), max_size=3), min_size=2, max_size=12), st.floats(0.05, 0.95))
def test_split_of_few(classes, share):
    """Both parts have images, and a class is in one part alone only if no one image could change that without harm."""
    count = round(share * len(classes))
    if not 0 < count < len(classes):
        with pytest.raises(UserError, match="leaves one of the two parts empty"):
            split.held_out(classes, share)
        return
    held = split.held_out(classes, share)
    assert 0 < sum(held) < len(classes)
    alone = split.alone(held, classes)
    for i in range(len(classes)):
        other = [part != (k == i) for k, part in enumerate(held)]
        if 0 < sum(other) < len(classes) and classes[i] & set(alone):
            assert len(split.alone(other, classes)) >= len(alone)


def test_split_says_what_cannot_be(tmp_path):
    """Three images, each two of three classes: one class is always on one side."""
    path, content = coco(tmp_path / "d", count=3, classes=("a", "b", "c"))
    pairs = [(0, 5), (0, 6), (1, 6), (1, 7), (2, 5), (2, 7)]
    content["annotations"] = [{"id": i, "image_id": 10 + k, "category_id": c, "bbox": [1, 1, 5, 5]} for i, (k, c) in enumerate(pairs, 1)]
    write(tmp_path / "d/coco.json", json.dumps(content))
    lines = list(dataset.divide(path, str(tmp_path / "parts"), str(tmp_path / "d/images"), 0.34))
    assert lines[-1].startswith("  in one part only, because of the other classes in their images: 1 class, ")


def test_merge(tmp_path):
    one, first = coco(tmp_path / "one")
    two, second = coco(tmp_path / "two", classes=("spoon", "cup"))
    out = str(tmp_path / "out/all.json")
    roots = [str(tmp_path / name / "images") for name in ("one", "two")]
    lines = list(dataset.merge([one, two], out, roots))
    assert lines[-2:] == [f"{out}: 12 images, 12 objects of 3 classes", "  cup 6, spoon 4, plate 2"]
    content = json.loads(open(out).read())
    assert [(c["id"], c["name"]) for c in content["categories"]] == [(1, "cup"), (2, "plate"), (3, "spoon")]
    assert [a["id"] for a in content["annotations"]] == list(range(1, 13)) and [i["id"] for i in content["images"]] == list(range(1, 13))
    expected = [(os.path.realpath(os.path.join(root, i)), k, b) for root, part in zip(roots, (first, second)) for i, k, b in boxes(part)]
    assert_same(places(out), sorted(expected), 0)
    assert all(os.path.isfile(path) for path, *_ in places(out))
    lines = list(dataset.merge([one, one], out, [roots[0]] * 2))
    joined = "  6 images in more than one data set: their objects are joined"
    assert lines[-3:] == [f"{out}: 6 images, 12 objects of 2 classes", joined, "  cup 8, plate 4"]
    three, _ = coco(tmp_path / "three", classes=("Cup", "plate"))
    lines = list(dataset.merge([one, three], out, [roots[0], str(tmp_path / "three/images")]))
    assert lines[-1].startswith("  WARNING: 'cup' and 'Cup' are different classes: ")
    with pytest.raises(UserError, match="--images names 1 folders for 2 data sets"):
        list(dataset.merge([one, two], out, roots[:1]))
    second["categories"][1]["keypoints"] = ["a"]
    write(tmp_path / "two/coco.json", json.dumps(second))
    with pytest.raises(UserError, match="class 'cup' has different keypoints"):
        list(dataset.merge([one, two], out, roots))


def test_what_split_writes_becomes_yolo(tmp_path):
    """Its images are not in its own folder, and none is named; their common folder is taken, and nothing else is written beside the output."""
    path, content = coco(tmp_path / "d")
    for i, image in enumerate(content["images"]):  # in two folders
        folder = tmp_path / "d" / "images" / str(i % 2)
        folder.mkdir(exist_ok=True)
        shutil.move(tmp_path / "d" / "images" / image["file_name"], folder)
        image["file_name"] = f"{i % 2}/{image['file_name']}"
    write(tmp_path / "d" / "coco.json", json.dumps(content))
    list(dataset.divide(path, str(tmp_path / "parts"), str(tmp_path / "d" / "images"), 0.4))
    before = set(os.listdir(tmp_path))
    train, back = str(tmp_path / "parts" / "train.json"), str(tmp_path / "back" / "back.json")
    list(dataset.convert(train, str(tmp_path / "yolo"), to="yolo"))
    assert set(os.listdir(tmp_path)) == before | {"yolo"}
    list(dataset.convert(str(tmp_path / "yolo"), back))
    assert len(places(train)) > 1
    assert_same(places(back), places(train))
    with open(train) as f:
        damaged = json.load(f)
    damaged["annotations"][0]["bbox"] = [5, 5, 0, 5]
    write(tmp_path / "parts" / "train.json", json.dumps(damaged))
    assert any(line.startswith("  empty box (1): ") for line in dataset.convert(train, back))


def test_shares_of_splits():
    """As equal as can be, and none is left while another has more."""
    assert dataset._shares(12, [100, 26, 25]) == [4, 4, 4] and dataset._shares(200, [100, 26, 25]) == [100, 26, 25]
    assert dataset._shares(60, [100, 5, 25]) == [30, 5, 25] and dataset._shares(2, [3, 3, 3]) == [1, 1, 0]


def test_show_keeps_the_photos(tmp_path):
    path, content = coco(tmp_path / "d")
    photo = tmp_path / "d" / "images" / content["images"][0]["file_name"]
    before = photo.read_bytes()
    with pytest.raises(UserError, match="is read, and would be overwritten"):
        list(dataset.show(path, str(photo), str(tmp_path / "d" / "images")))
    assert photo.read_bytes() == before


@pytest.mark.parametrize("count", [1, 5])
def test_show(tmp_path, count, capsys):
    path, _ = coco(tmp_path / "d")
    output = str(tmp_path / f"pictures/{count}.png")
    lines = list(dataset.show(path, output, str(tmp_path / "d/images"), count))
    assert lines[0].startswith(f"{output}: {counted(count, 'image')}, ")
    drawn = np.asarray(Image.open(output))
    assert drawn.shape[0] > 240 and len(np.unique(drawn.reshape(-1, 3), axis=0)) > 3
    plain = (np.abs(drawn.astype(int) - (90, 120, 60)).max(2) < 4).mean()  # of the images, without an annotation
    assert plain > 0.3
    os.remove(tmp_path / "d/images/0.jpg")
    with pytest.raises(UserError, match="missing image .*0.jpg"):
        list(dataset.show(path, output, str(tmp_path / "d/images"), count))
    write(tmp_path / "d/images/0.jpg", "no image")
    if count == 1:
        with pytest.raises(UserError, match="none of the chosen images can be read"):
            list(dataset.show(path, output, str(tmp_path / "d/images"), count))
    else:
        assert list(dataset.show(path, output, str(tmp_path / "d/images"), count))[0].startswith(f"{output}: 4 images, ")
    assert "left out: image" in (said := capsys.readouterr().err) and "0.jpg' cannot be read" in said


def test_show_all_splits(tmp_path):
    """As a download from Roboflow has them; the run says which it leaves alone."""
    for name, count in (("train", 3), ("valid", 2), ("test", 1)):
        path, _ = coco(tmp_path / "d", count=count)
        shutil.move(tmp_path / "d/images", tmp_path / "r" / name)
        shutil.move(path, tmp_path / "r" / name / "_annotations.coco.json")
    lines = list(dataset.show(str(tmp_path / "r"), str(tmp_path / "a.png")))
    assert lines[0].startswith(f"{tmp_path / 'a.png'}: 6 images, ") and lines[-1] == "  3 of train, 2 of val, 1 of test"
    assert list(dataset.show(str(tmp_path / "r"), str(tmp_path / "a.png"), num=4))[-1] == "  2 of train, 1 of val, 1 of test"
    (line,) = formats.unused(str(tmp_path / "r"))
    assert line.endswith(f"--eval-only --val {tmp_path / 'r/test/_annotations.coco.json'}") and "'test' is not used" in line
    for name in ("train", "test"):
        shutil.copytree(tmp_path / "r" / name, tmp_path / "my photos" / name)
    assert f"--val '{tmp_path / 'my photos/test/_annotations.coco.json'}'" in formats.unused(str(tmp_path / "my photos"))[0]
    assert not formats.unused("") and not formats.unused(str(tmp_path / "r/train"))
    assert not formats.unused(str(tmp_path / "r"), other=str(tmp_path / "r/test"))  # which may be it


def test_a_test_list_of_a_yaml(yolo, tmp_path):
    """Its folder would be other images, and other classes: the yaml is named too."""
    path = os.path.join(str(yolo), "data.yaml") if os.path.isdir(yolo) else str(yolo)
    with open(path) as f:
        content = yaml.safe_load(f)
    for value, said in ((content["val"], []), (content["train"], ["backbones train --eval-only --val "])):
        with open(path, "w") as f:
            yaml.safe_dump({**content, "test": value}, f)
        lines = formats.unused(path)
        assert [line.partition("training: ")[2].startswith(said[0] + path + " --val-images ") for line in lines] == [True] * len(said)


def test_show_thin_and_deep_images(tmp_path):
    """A picture of bounded size, however thin its images."""
    path, content = coco(tmp_path / "d", count=3)
    for i, pixels in enumerate((np.zeros((1, 600, 3), np.uint8), np.zeros((600, 1, 3), np.uint8), np.full((40, 50), 40000, np.uint16))):
        name = content["images"][i]["file_name"] = f"{i}.png"
        content["images"][i].update(height=pixels.shape[0], width=pixels.shape[1])
        Image.fromarray(pixels).save(tmp_path / "d/images" / name)
    write(tmp_path / "d/coco.json", json.dumps({**content, "annotations": []}))
    (line,) = list(dataset.show(path, str(tmp_path / "a.png"), str(tmp_path / "d/images")))[:1]
    drawn = np.asarray(Image.open(tmp_path / "a.png"))
    assert ": 3 images" in line and max(drawn.shape) < 5000 and (drawn == 156).any()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda c: c.pop("images"), "is not in COCO's format: it has no images"),
        (lambda c: c.update(categories=[]), "'categories' is empty"),
        (lambda c: c["images"][1].update(id=10), "duplicate image id"),
        (lambda c: c["images"][1].update(width=None, file_name="gone.jpg"), "missing image .*'gone.jpg'"),
        (lambda c: c["categories"][0].update(id=None), "malformed category"),
        (lambda c: c["annotations"][0].update(keypoints=[1]), "keypoints that are not triples of x, y"),
    ],
)
def test_coco_refused(tmp_path, change, words):
    path, content = coco(tmp_path / "d")
    change(content)
    write(tmp_path / "d/coco.json", json.dumps(content))
    with pytest.raises(UserError, match=words):
        dataset.read(path, str(tmp_path / "d/images"))


def test_coco_repaired(tmp_path):
    path, content = coco(tmp_path / "d")
    content["images"][0].update(width=None)
    content["annotations"][0].update(image_id=999)
    content["annotations"][1].update(bbox=[1, 2, 0, 4])
    content["annotations"][2].update(segmentation=[[1, 2]], area=None, iscrowd=None)
    write(tmp_path / "d/coco.json", json.dumps(content))
    read = dataset.read(path, str(tmp_path / "d/images"))
    assert read["images"][0]["width"] == SIZE[0] and len(read["annotations"]) == 4 and sum(read["notes"].values()) == 6
    assert read["annotations"][0]["area"] == pytest.approx(20.125 * 15.375) and "segmentation" not in read["annotations"][0]


def test_polygons_are_mended(tmp_path):
    """A mask that is one list of numbers is a polygon, which gives a box too; a short polygon is dropped alone."""
    path, content = coco(tmp_path / "d")
    flat, boxless, short, *_ = content["annotations"]
    good = short["segmentation"][0]
    flat["segmentation"], short["segmentation"] = flat["segmentation"][0], [good, [1, 1, 2, 2]]
    boxless.update(segmentation=boxless["segmentation"][0], bbox=[])
    write(tmp_path / "d/coco.json", json.dumps(content))
    read = dataset.read(path, str(tmp_path / "d/images"))
    kinds = {text.partition(":")[0]: count for text, count in read["notes"].items()}
    assert kinds == {"flat polygon": 2, "short polygon": 1, "box of mask": 1}
    assert len(read["annotations"]) == 6 and all(len(a["segmentation"]) == 1 for a in read["annotations"])


def test_unusable_outputs(tmp_path, yolo):
    write(tmp_path / "file", "")
    path, content = coco(tmp_path / "d")
    images = str(tmp_path / "d/images")
    for verb in (
        lambda: dataset.convert(path, str(tmp_path / "file/x.json"), images),
        lambda: dataset.convert(path, str(tmp_path / "file/x"), images, "yolo"),
        lambda: dataset.divide(path, str(tmp_path / "file"), images),
        lambda: dataset.merge([path], str(tmp_path / "file/x.json"), [images]),
    ):
        with pytest.raises(UserError, match="cannot be written"):
            list(verb())
    for change, words in (
        (lambda c: c["images"][0].update(file_name="../1.jpg"), "several image files match"),
        (lambda c: c["images"][0].update(file_name="1.jpg"), "two images are named '1'"),
        (lambda c: c["images"][0].update(file_name="gone.jpg"), "missing image .*gone.jpg"),
        (lambda c: c["categories"][0].update(keypoints=["a"]), "the same number of keypoints"),
    ):
        path, content = coco(tmp_path / "d")
        change(content)
        write(tmp_path / "d/coco.json", json.dumps(content))
        with pytest.raises(UserError, match=words):
            list(dataset.convert(path, str(tmp_path / "half"), images, "yolo"))
        assert not [name for name in os.listdir(tmp_path) if name.startswith("half")]
    with pytest.raises(UserError, match=r"has several splits: name one of .*images/train"):
        list(dataset.divide(str(yolo), str(tmp_path / "parts")))


def test_what_is_read_is_not_overwritten(tmp_path):
    path, _ = coco(tmp_path / "d")
    images, before = str(tmp_path / "d/images"), (tmp_path / "d/coco.json").read_text()
    (tmp_path / "d/train.json").symlink_to(path)
    folder = tmp_path / "folder"
    (folder / "annotations").mkdir(parents=True)
    (folder / "annotations/instances_train.json").write_text(before)
    (folder / "train").symlink_to(images)
    for verb in (
        lambda: dataset.convert(path, path, images),
        lambda: dataset.merge([path], path, [images]),
        lambda: dataset.divide(path, str(tmp_path / "d"), images),
        lambda: dataset.merge([str(folder)], str(folder / "annotations/instances_train.json")),  # of a folder, which is read by its files
        lambda: dataset.convert(str(folder), str(folder / "annotations/instances_train.json")),
    ):
        with pytest.raises(UserError, match="is read, and would be overwritten: name another --output"):
            list(verb())
    assert (tmp_path / "d/coco.json").read_text() == before and not (tmp_path / "d/val.json").exists()


def test_command_line(yolo, tmp_path, monkeypatch, capsys):
    """Each verb, from the data to a picture; a mistake is one line and exit code 2."""

    def call(*args):
        monkeypatch.setattr("sys.argv", ["backbones dataset", *args])
        try:
            run(dataset.main)
        except SystemExit as stop:
            return stop.code, capsys.readouterr().err
        return 0, capsys.readouterr().out

    coco(tmp_path / "er")
    turned = Image.Exif()
    turned[0x0112] = 6
    picture(tmp_path / "er/images/1.jpg", exif=turned)
    monkeypatch.chdir(tmp_path)
    for args, words in (
        (
            "convert cups/data.yaml --images cups/images/train --output cups.json",
            "cups.json: 4 images, 3 objects of 2 classes\n  1 images without",
        ),
        ("split cups.json --val 0.5 --seed 3 --output parts", "parts/train.json: 2 images"),
        ("merge parts/train.json parts/val.json --output all.json", "all.json: 4 images, 3 objects of 2 classes"),
        ("merge parts/val.json parts/train.json --output all.json --overwrite", "all.json: 4 images, 3 objects of 2 classes"),
        ("convert all.json --images . --to yolo --output again", "again/labels/train: 4 images"),
        ("show again --num 2 --output seen.png", "seen.png: 2 images"),
        (
            "show er/coco.json --images er/images --num 6 --output er.png",
            "er.png: 6 images, 6 objects of 2 classes\n  1 images of another size",
        ),
        ("convert er/coco.json --images er/images --output er.json INPUT.EXIF ignore", "er.json: 6 images, 6 objects of 2 classes"),
        ("show er/coco.json --images er/images --num 6 --output er.png INPUT.EXIF ignore", "er.png: 6 images, 6 objects of 2 classes\n"),
    ):
        code, output = call(*args.split())
        assert code == 0 and words in output, output
    for args, words in (
        ("convert nowhere.json --output x.json", "annotation file 'nowhere.json' does not exist"),
        ("split cups.json --val 2 --output x", "a share of 2 of 4 images"),
        ("convert all.json --output cups.json", "'cups.json' exists: name another --output, or add --overwrite"),
        ("merge all.json cups.json --output cups.json --overwrite", "'cups.json' is read, and would be overwritten"),
        ("convert er/coco.json --images er/images --to yolo --output x", "turned image (1): images have an EXIF rotation"),
        ("convert er/coco.json --output x.json INPUT.EXIF turned", "INPUT.EXIF"),
        ("convert er/coco.json --output x.json INPUT.FORMAT L", "INPUT.FORMAT: only keys of how data are read may follow: DATASETS.BOX"),
        ("show cups.json --num 0 --output x.png", "--num 0: draw at least one image"),
        ("show cups.json --output x.txt", "--output 'x.txt' must end in .png, .jpg or .jpeg"),
        ("convert cups/labels/train/a.txt --output x.json", "a.txt' is the YOLO labels of one image: give the data.yaml"),
    ):
        code, output = call(*args.split())
        assert code == 2 and words in output and output.count("\n") == 1, output


def test_verb_of_backbones(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["backbones"])  # which the console command changes
    with pytest.raises(SystemExit) as stop:
        cli.main(["dataset", "--help"])
    assert stop.value.code in (0, None) and "usage: backbones dataset" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, words", [(b"PK\x03\x04", "archive"), (b"{]", "not JSON"), (b'[{"image": "a", "annotations": []}]', "CreateML")]
)
def test_other_files_are_named(tmp_path, content, words):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=f"x.json' is .*{words}"):
        dataset.read(str(tmp_path / "x.json"), "")


def test_damaged_coco_files_end_in_clear_errors(tmp_path):
    """A damaged file is converted to both forms, or refused in one line; nothing half-written stays."""
    path, content = coco(tmp_path / "d", count=3)
    original = json.dumps({key: content[key] for key in ("annotations", "categories", "images")}).encode()
    seen = {"read": 0, "refused": 0}

    @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, database=None)
    @given(damaged(original), st.sampled_from(["coco", "yolo"]))
    def attempt(changed, to):
        with open(path, "wb") as f:
            f.write(changed)
        shutil.rmtree(tmp_path / "made", ignore_errors=True)
        try:
            list(dataset.convert(path, str(tmp_path / "made" / "x"), str(tmp_path / "d/images"), to))
            seen["read"] += 1
        except UserError as error:
            assert len(str(error)) < 1000 and "\n" not in str(error)
            assert not os.path.isdir(tmp_path / "made") or not os.listdir(tmp_path / "made")
            seen["refused"] += 1

    attempt()
    assert seen["read"] and seen["refused"]
