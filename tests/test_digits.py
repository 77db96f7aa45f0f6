"""The digits: deterministic, atomic, disjoint handwriting, annotations that agree with each other and with the pixels."""

import dataclasses
import filecmp
import json
import os

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from sklearn import datasets

import backbones
from backbones.data import digits

SPLITS = digits.SETS["digits"].splits


@pytest.fixture(scope="module")
def folder():
    return digits.generate()


@pytest.fixture(scope="module")
def val(folder):
    return COCO(os.path.join(folder, "annotations", "instances_val.json"))


def panoptic(folder, split):
    with open(os.path.join(folder, f"panoptic_{split}.json")) as f:
        return json.load(f)


def ids_of(folder, split, file_name):
    rgb = np.asarray(Image.open(os.path.join(folder, f"panoptic_{split}", file_name))).astype(int)
    return rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]


def few(monkeypatch, which="digits", **splits):
    scenes = dataclasses.replace(digits.SETS[which], splits=splits or {"train": 6, "val": 3})
    monkeypatch.setitem(digits.SETS, which, scenes)


def test_registered_and_loadable(folder):
    for split, count in SPLITS.items():
        for suffix in ("", "_panoptic_separated", "_panoptic_stuffonly"):
            name = f"digits_{split}{suffix}"
            dicts = DatasetCatalog.get(name)
            assert len(dicts) == count
            assert all(os.path.isfile(d["file_name"]) for d in dicts)
            assert ("annotations" in dicts[0]) == (suffix != "_panoptic_stuffonly")
            assert ("sem_seg_file_name" in dicts[0]) == bool(suffix)
    metadata = MetadataCatalog.get("digits_val")
    assert metadata.thing_classes == digits.CLASSES and metadata.evaluator_type == "coco"
    assert len(get_detection_dataset_dicts("digits_train", filter_empty=True)) > 0.99 * SPLITS["train"]


def test_same_scenes_every_time(tmp_path, monkeypatch, folder):
    few(monkeypatch)
    a, b = (digits.generate(str(tmp_path / name / "digits")) for name in "ab")
    files = [os.path.relpath(os.path.join(root, f), a) for root, _, names in os.walk(a) for f in names]
    assert len(files) == 3 * 9 + 5
    assert filecmp.cmpfiles(a, b, files, shallow=False) == (files, [], [])
    # a scene does not depend on how many there are
    for kind in ("val", "panoptic_val", "stuff_val"):
        name = "000002" + (".jpg" if kind == "val" else ".png")
        assert filecmp.cmp(os.path.join(a, kind, name), os.path.join(folder, kind, name), shallow=False)


def test_handwriting_is_disjoint(monkeypatch, tmp_path):
    """No digit is drawn into scenes of both splits: neither by place in the collection, nor by its pixels."""
    collection = datasets.load_digits()
    split = len(collection.images) - 450
    train, val = collection.images[:split], collection.images[split:]
    assert not {d.tobytes() for d in train} & {d.tobytes() for d in val}
    assert set(collection.target[:split]) == set(collection.target[split:]) == set(range(10))
    few(monkeypatch)
    collection.target = np.where(np.arange(len(collection.images)) < split, 0, 9)  # which shows in the scenes where a digit stood
    monkeypatch.setattr(datasets, "load_digits", lambda: collection)
    folder = digits.generate(str(tmp_path / "digits"))
    for name, category in (("train", 1), ("val", 10)):
        with open(os.path.join(folder, "annotations", f"instances_{name}.json")) as f:
            assert {a["category_id"] for a in json.load(f)["annotations"]} == {category}


def test_every_class_is_there(val):
    counts = np.bincount([a["category_id"] for a in val.anns.values()], minlength=11)[1:]
    assert counts.min() > 40 and counts.sum() > 3 * SPLITS["val"]


def test_boxes_masks_and_keypoints_agree(val, size=digits.SETS["digits"].size, smallest=4, holes=False):
    for annotation in val.anns.values():
        x, y, w, h = annotation["bbox"]
        assert 0 <= x and 0 <= y and x + w <= size and y + h <= size and min(w, h) >= smallest
        mask = val.annToMask(annotation)
        excess, tolerance = int(mask.sum()) - annotation["area"], 0.08 * annotation["area"] + 2
        assert -tolerance <= excess and (holes or excess <= tolerance)
        box = mask_util.toBbox(mask_util.encode(np.asfortranarray(mask)))
        assert np.abs(box - annotation["bbox"]).max() <= 1
        points = np.array(annotation["keypoints"]).reshape(4, 3)
        assert (points[:, 2] == 2).all()
        top, bottom, left, right = points[:, :2]
        assert (top[1], bottom[1], left[0], right[0]) == (y, y + h - 1, x, x + w - 1)


def test_panoptic_agrees_with_instances_and_stuff(folder, val):
    content = panoptic(folder, "val")
    things = {c["id"] for c in content["categories"] if c["isthing"]}
    stuff = {c["id"]: i + 1 for i, c in enumerate(c for c in content["categories"] if not c["isthing"])}
    assert len(things) == 10 and len(stuff) == len(digits.STUFF)
    for entry in content["annotations"][:60]:
        ids = ids_of(folder, "val", entry["file_name"])
        semantic = np.asarray(Image.open(os.path.join(folder, "stuff_val", entry["file_name"])))
        assert {s["id"] for s in entry["segments_info"]} == set(np.unique(ids))
        instances = val.imgToAnns[entry["image_id"]]
        segments = [s for s in entry["segments_info"] if s["category_id"] in things]
        assert sorted((s["category_id"], s["area"]) for s in segments) == sorted((a["category_id"], a["area"]) for a in instances)
        for segment in entry["segments_info"]:
            region = ids == segment["id"]
            assert region.sum() == segment["area"]
            assert (semantic[region] == stuff.get(segment["category_id"], 0)).all()


def test_ink_stands_out(folder, val):
    """Digits differ from what surrounds them, on average and nearly always."""
    contrast = []
    for image in list(val.imgs.values())[:60]:
        pixels = np.asarray(Image.open(os.path.join(folder, "val", image["file_name"])).convert("L")).astype(float)
        for a in val.imgToAnns[image["id"]]:
            x, y, w, h = a["bbox"]
            mask = val.annToMask(a)[y : y + h, x : x + w].astype(bool)
            window = pixels[y : y + h, x : x + w]
            if (~mask).sum() > 10:
                contrast.append(abs(window[mask].mean() - window[~mask].mean()))
    assert np.median(contrast) > 40


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    few(monkeypatch)

    def fail(scenes):
        for i in scenes:
            if i == 3:
                raise KeyboardInterrupt
            yield i

    with pytest.raises(KeyboardInterrupt):
        digits.generate(str(tmp_path / "digits"), fail)
    assert os.listdir(tmp_path) == []


def test_does_nothing_the_second_time(tmp_path, monkeypatch):
    few(monkeypatch)
    folder = digits.generate(str(tmp_path / "digits"))
    before = os.stat(folder).st_ino, os.stat(folder).st_mtime_ns
    assert digits.generate(str(tmp_path / "digits"), lambda scenes: pytest.fail("made anew")) == folder
    assert (os.stat(folder).st_ino, os.stat(folder).st_mtime_ns) == before


def test_an_older_version_is_replaced(tmp_path, monkeypatch):
    few(monkeypatch)
    folder = digits.generate(str(tmp_path / "digits"))
    few(monkeypatch, train=2, val=1)
    digits.generate(folder)
    assert len(os.listdir(os.path.join(folder, "train"))) == 2


def test_what_others_made_is_left_alone(tmp_path):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "mine.txt").write_text("precious")
    with pytest.raises(backbones.UserError, match="this project did not create it"):
        digits.generate(str(tmp_path / "digits"))
    assert (tmp_path / "digits" / "mine.txt").read_text() == "precious"


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(backbones.UserError, match="DETECTRON2_DATASETS"):
        digits.generate(str(tmp_path / "file" / "digits"))


def test_scikit_learn_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(backbones.UserError, match="pip install scikit-learn"):
        digits.generate(str(tmp_path / "digits"))
    assert os.listdir(tmp_path) == []


def test_crowds(tmp_path, monkeypatch):
    """Digits of all sizes that hide parts of each other, never more than is said; annotations are of what is seen."""
    few(monkeypatch, "digits_crowd", train=1, val=60)
    look = digits.SETS["digits_crowd"]
    folder = digits.generate(str(tmp_path / "digits_crowd"), which="digits_crowd")
    val = COCO(os.path.join(folder, "annotations", "instances_val.json"))
    test_boxes_masks_and_keypoints_agree(
        val, look.size, smallest=1, holes=True
    )  # polygons have no holes: what another digit hides within is filled
    test_panoptic_agrees_with_instances_and_stuff(folder, val)
    sides = [max(a["bbox"][2:]) for a in val.anns.values()]
    assert min(sides) < 16 and max(sides) > 38 and len(sides) > 3 * 60
    parts = []
    for seed in range(20):
        scene = digits.Scene(np.random.default_rng(seed), *digits.handwriting(), **{k: getattr(look, k) for k in digits.LOOK})
        parts += [a["area"] / area for a, area in zip(scene.annotations, scene._areas)]
    assert 1 - look.overlap <= min(parts) < 0.8 and sum(part < 1 for part in parts) > 0.1 * len(parts)


def test_clutter_is_no_object():
    """Half digits are drawn, and are in no annotation."""
    look = {"size": 128, "sides": (40, 41), "count": (0, 1), "clutter": (4, 5)}
    scene = digits.Scene(np.random.default_rng(1), *digits.handwriting(), **look)
    plain = digits.Scene(np.random.default_rng(1), *digits.handwriting(), **{**look, "clutter": (0, 1)})
    assert scene.annotations == plain.annotations == [] and (scene.stuff == plain.stuff).all()
    assert (scene.image != plain.image).any(-1).sum() > 4 * 50
