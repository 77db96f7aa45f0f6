"""COCO-format data from a config, and the checks before training."""

import contextlib
import json
import os
import re
import time

import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from PIL import Image
from small_data import voc_data

import backbones
from backbones import zoo
from backbones.config import merge_overrides
from backbones.data import check_datasets, follow, formats, register_from_config, register_held_out
from backbones.data.findings import KINDS, Findings, in_words
from backbones.data.image_files import Files
from backbones.data.keypoints import flip_pairs
from backbones.data.reader import read
from backbones.data.sources import Source, Use
from backbones.doctor.config import config as look_at_config
from backbones.doctor.examination import Examination
from backbones.engine import YamlFront
from backbones.evaluation.coco import evaluate
from backbones.evaluation.results import read_truth, truth_of
from backbones.tools import visualize


def config(*overrides):
    cfg = zoo.get_config("faster_rcnn_V_19_slim_dw_FPNLite_3x.yaml")
    merge_overrides(cfg, list(overrides))
    return cfg


@pytest.fixture
def own(tmp_path):
    """An annotation file and an image folder of a user's own: ids with gaps, out of order."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (10, 8)).save(tmp_path / "images" / "a.jpg")
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 8}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 1, 5, 5], "area": 25, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "cup"}, {"id": 3, "name": "plate"}],
    }
    (tmp_path / "own.json").write_text(json.dumps(content))
    return str(tmp_path / "own.json"), str(tmp_path / "images")


@pytest.fixture(autouse=True)
def clean_catalogues():
    before = set(DatasetCatalog)
    yield
    MetadataCatalog.pop("mine as detectron2 has it", None)
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_register_from_the_command_line(own):
    cfg = config("DATASETS.REGISTER", f"[['mine', '{own[0]}', '{own[1]}']]", "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('mine',)")
    register_from_config(cfg)
    register_from_config(cfg)  # as every process of a run does
    assert MetadataCatalog.get("mine").thing_classes == ["plate", "cup"]
    assert DatasetCatalog.get("mine")[0]["annotations"][0]["category_id"] == 1
    with pytest.raises(backbones.UserError, match="NUM_CLASSES is 80, but data set 'mine' has 2: set MODEL.ROI_HEADS.NUM_CLASSES 2"):
        check_datasets(cfg, training=True)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 2
    check_datasets(cfg, training=True)


@pytest.mark.parametrize(
    "entry, words",
    [
        ("['mine', 'x.json']", "must have the form"),
        ("'mine'", "must have the form"),
        ("['mine', 'nowhere.json', '{images}']", "'nowhere.json'"),
        ("['mine', '{json}', 'nowhere']", "'nowhere'"),
        ("['mine', '{broken}', '{images}']", "not JSON"),
        ("['mine', '{foreign}', '{images}']", "it has no categories"),
        ("['mine', '{list}', '{images}']", "not in COCO's format"),
        ("['mine', '{nameless}', '{images}']", "malformed category .*entry 0"),
        ("['coco_2017_val', '{json}', '{images}']", "is taken"),
    ],
)
def test_bad_entries(own, tmp_path, entry, words):
    files = {
        "broken": "{",
        "foreign": '{"images": []}',
        "list": "[]",
        "nameless": '{"images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 8}], "annotations": [], "categories": [{"id": 1}]}',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    entry = entry.format(json=own[0], images=own[1], **{name: tmp_path / name for name in files})
    with pytest.raises(backbones.UserError, match=words) as error:
        register_from_config(config("DATASETS.REGISTER", f"[{entry}]"))
    assert "\n" not in str(error.value)


def changed(own, change):
    with open(own[0]) as f:
        content = json.load(f)
    change(content)
    with open(own[0], "w") as f:
        json.dump(content, f)
    return config("DATASETS.REGISTER", f"[['mine', '{own[0]}', '{own[1]}']]", "MODEL.ROI_HEADS.NUM_CLASSES", "2", "DATASETS.TEST", "('mine',)")


def more(key, index, **values):
    return lambda c: c[key].append({**c[key][index], **values})


# what is refused, and the words that say so
REFUSED = {
    "'images' is not a list": lambda c: c.update(images=None),
    "'annotations' is not a list": lambda c: c.update(annotations={}),
    "'categories' is not a list": lambda c: c.update(categories={"cup": 7}),
    r"malformed category \(1\): .*: entry 0": lambda c: c.update(categories=["cup", {"id": 7, "name": "pot"}]),
    "'images' is empty": lambda c: c["images"].clear(),
    r"duplicate image id \(1\): .*: 1 \('b.jpg'\)": more("images", 0, file_name="b.jpg"),
    r"duplicate category id \(1\): .*: 7: 'cup' and 'pot'": more("categories", 0, name="pot"),
    r"missing image \(1\): .*: 'b.jpg', in '.*images' and the folders in it. To fix it: .*INPUT.UNREADABLE skip": lambda c: c["images"][
        0
    ].update(file_name="b.jpg"),
    r"image of other size \(1\): .*: 'a.jpg' \(10x8, not 8x10\)": lambda c: c["images"][0].update(width=8, height=10),
    r"address \(1\): .*: 's3://bucket/a.jpg'": lambda c: c["images"][0].update(file_name="s3://bucket/a.jpg"),
    r"boxes as fractions \(1\)": lambda c: c["annotations"][0].update(bbox=[0.1, 0.1, 0.5, 0.5]),
}


@pytest.mark.parametrize("words", REFUSED)
def test_refused_data(own, words):
    """What would end in a traceback after training has begun, or in a wrong figure."""
    with pytest.raises(backbones.UserError, match=words) as error:
        register_from_config(changed(own, REFUSED[words]))
    assert "own.json" in str(error.value) and "mine" in str(error.value) and "\n" not in str(error.value)
    assert "mine" not in DatasetCatalog


# what is repaired or left out: (kind, what is done to sound data with one object, objects that stay)
MENDED = [
    ("size of image", lambda c: c["images"][0].pop("height"), 1),
    ("size of image", lambda c: c["images"][0].update(width="10"), 1),
    ("size of image", lambda c: c["images"][0].update(width=10.0), 1),
    ("malformed image", lambda c: c["images"].append("b.jpg"), 1),
    ("repeated image entry", more("images", 0), 1),
    ("malformed annotation", lambda c: c["annotations"].append([1]), 1),
    ("no box", lambda c: c["annotations"][0].pop("bbox"), 0),
    ("no box", lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), 0),
    ("no box", lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), 0),
    ("no box", lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 1e300]), 0),
    ("no box", lambda c: c["annotations"][0].update(bbox=[1, 2, 3, "x"]), 0),
    ("no box", lambda c: c["annotations"][0].update(bbox=[1, 2, 3, 10**400]), 0),
    ("empty box", lambda c: c["annotations"][0].update(bbox=[1, 2, 0, 5]), 0),
    ("numbers as texts", lambda c: c["annotations"][0].update(bbox=["1", "1", "5", "5"]), 1),
    ("box of keypoints", lambda c: c["annotations"][0].update(bbox=None, keypoints=[1, 1, 2, 6, 6, 1, 9, 9, 0]), 1),
    ("box of mask", lambda c: c["annotations"][0].update(bbox=[0, 0, 0, 0], segmentation=[[1, 1, 6, 1, 6, 6, 1, 6]]), 1),
    ("box of mask", lambda c: c["annotations"][0].update(bbox=[], segmentation={"size": [8, 10], "counts": [9, 5, 66]}), 1),
    ("box outside", lambda c: c["annotations"][0].update(bbox=[20, 2, 5, 5]), 0),
    ("box beyond edge", lambda c: c["annotations"][0].update(bbox=[-4, 1, 10, 5]), 1),
    ("annotation ids", more("annotations", 0), 2),
    ("annotation ids", lambda c: c["annotations"][0].update(id=0), 1),
    ("annotation ids", lambda c: c["annotations"][0].pop("id"), 1),
    ("image ids", lambda c: [c["images"][0].update(id="img-1"), c["annotations"][0].update(image_id="img-1")], 1),
    ("category ids", lambda c: [c["categories"][0].update(id="7"), c["annotations"][0].update(category_id="7")], 1),
    ("category ids", lambda c: [c["categories"][0].update(id="cup"), c["annotations"][0].update(category_id="cup")], 1),
    ("image ids", lambda c: [c["images"][0].update(id="1")], 1),
    ("image ids", lambda c: [c["images"][0].update(id=-1), c["annotations"][0].update(image_id=-1)], 1),
    ("image ids", lambda c: [c["images"][0].update(id=1 << 70), c["annotations"][0].update(image_id=1 << 70)], 1),
    ("annotation ids", lambda c: c["annotations"][0].update(id=-1), 1),
    ("category ids", lambda c: [c["categories"][0].update(id=1 << 60), c["annotations"][0].update(category_id=1 << 60)], 1),
    ("duplicate category name", more("categories", 0, id=9), 1),
    ("group category", lambda c: [x.update(supercategory="set") for x in c["categories"]] + [more("categories", 0, id=0, name="set")(c)], 1),
    ("unknown category", lambda c: c["annotations"][0].update(category_id=9), 0),
    ("orphan annotation", lambda c: c["annotations"][0].update(image_id=2), 0),
    ("orphan annotation", lambda c: c["annotations"][0].update(image_id=[1]), 0),
    ("area", lambda c: c["annotations"][0].pop("area"), 1),
    ("area", lambda c: c["annotations"][0].update(area=float("inf")), 1),
    ("iscrowd", lambda c: c["annotations"][0].update(iscrowd=None), 1),
    ("iscrowd", lambda c: c["annotations"][0].update(iscrowd="no"), 1),
    ("ignored annotation", lambda c: c["annotations"][0].update(ignore=1), 0),
    ("crowds", lambda c: c["annotations"][0].update(iscrowd=True), 0),
    ("crowds", lambda c: c["annotations"][0].update(iscrowd=1.0), 0),
    ("file of address", lambda c: [c["images"][0].pop("file_name"), c["images"][0].update(coco_url="http://x/y/a.jpg")], 1),
    ("file in another folder", lambda c: c["images"][0].update(file_name="C:\\photos\\a.jpg"), 1),
    ("file separators", lambda c: c["images"][0].update(file_name="\\a.jpg"), 1),
    ("file name in another case", lambda c: c["images"][0].update(file_name="A.JPG"), 1),
]


@pytest.mark.parametrize("kind, change, objects", MENDED)
def test_mended_data(own, kind, change, objects):
    """One sensible meaning is taken, said, and nothing else is; what stays is what COCO's own evaluation gives AP 100."""
    register_from_config(changed(own, change))
    about = MetadataCatalog.get("mine")
    none = kind in ("group category", "crowds")  # which have no effect that the first line counts
    assert none or any(in_words(kind, n) in about.said[0] for n in (1, objects))
    assert kind != "crowds" or "crowds: 1" in about.said[0]
    assert any(line.startswith(f"mine: {kind} (") for line in about.said[1:]) and len(about.said) == 2, about.said
    truth, records = about.truth(), DatasetCatalog.get("mine")
    found = [a for a in truth["annotations"] if not a["iscrowd"]]
    assert len(found) == objects == sum(not a["iscrowd"] for r in records for a in r["annotations"])
    assert all(isinstance(a["id"], int) and a["id"] > 0 and a["area"] > 0 and a["iscrowd"] in (0, 1) for a in truth["annotations"])
    ids = about.thing_dataset_id_to_contiguous_id
    for a, kept in zip(found, (a for r in records for a in r["annotations"] if not a["iscrowd"])):
        x, y, w, h = a["bbox"]
        assert kept["bbox"] == a["bbox"] and -1 <= x and x + w <= 11 and w > 0 and y >= -1 and y + h <= 9
        assert about.thing_classes[ids[a["category_id"]]] == "cup" and kept["category_id"] == ids[a["category_id"]]
    for image in truth["images"]:
        assert (image["width"], image["height"]) == (10, 8) and os.path.isfile(os.path.join(own[1], image["file_name"]))
    if found:
        given = [{**{key: a[key] for key in ("image_id", "category_id", "bbox")}, "score": 1.0} for a in found]
        assert evaluate(truth, given, "bbox").stats[0] == pytest.approx(1.0, abs=1e-9)


def test_the_first_line_counts_in_words():
    """One and several of each kind that is left out or repaired."""
    several, one = Findings("mine"), Findings("mine")
    for kind, count in (("empty box", 2), ("no box", 1), ("file in another folder", 300), ("area", 1)):
        several.add(kind, count=count)
    assert several.effects() == (
        "left out: 3 (1 object without a box, 2 empty boxes); repaired: 301 (1 area computed, 300 images found in another folder)"
    )
    for kind, words in (
        ("object of such an image", "1 object of unused images"),
        ("image left out", "1 missing or unreadable image"),
        ("box as mask", "1 mask made from a box"),
        ("object without mask", "1 object without a mask"),
        ("crowds as objects", "1 crowd treated as objects"),
    ):
        assert in_words(kind, 1) == words
    for kind in (kind for kind, row in KINDS.items() if row.effect):
        one.add(kind)
        assert in_words(kind, 1) in one.effects() and in_words(kind, 1)[1:] != in_words(kind, 2)[1:]


@pytest.mark.parametrize(
    "change",
    [
        more("categories", 0, keypoints=["nose"]),  # the same class twice, in other words
        lambda c: c.update(notes="made by hand"),
        lambda c: c["annotations"][0].update(ignore="0", iscrowd=0),
    ],
)
def test_nothing_to_mend(own, change):
    register_from_config(changed(own, change))
    assert MetadataCatalog.get("mine").said == ["mine: 1 image, 1 object of 2 classes; left out: 0; crowds: 0"]


def test_numbers_of_images_are_those_of_their_places(own):
    """Results fit the file, whichever images a config leaves out, and a part of the data is the same by the numbers of its images."""
    cfg = changed(own, lambda c: [c["images"].insert(0, {**c["images"][0], "id": "x", "file_name": "gone.jpg"})])
    cfg.INPUT.UNREADABLE = "skip"
    register_from_config(cfg)
    assert [record["image_id"] for record in DatasetCatalog.get("mine")] == [2]
    assert [image["id"] for image in read(Source("mine", own[0], ""), Use(), files=False).images] == [1, 2]
    part = read(Source("mine", *own, image_ids=frozenset([2])), Use())
    assert [image["file_name"] for image in part.images] == ["a.jpg"] and len(part.annotations) == 1


def test_registered_twice(own, tmp_path):
    """By a program that registers before it trains: test data go by the classes of the training data both times."""
    (tmp_path / "test.json").write_text(json.dumps({**json.load(open(own[0])), "categories": [{"id": 7, "name": "cup"}]}))
    cfg = changed(own, lambda c: None)
    cfg.DATASETS.REGISTER.append(["test", str(tmp_path / "test.json"), own[1]])
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine",), ("test",)
    for _ in range(2):
        register_from_config(cfg)
        assert MetadataCatalog.get("test").thing_classes == ["plate", "cup"]


def test_evaluation_goes_by_the_classes_of_data_whose_images_are_gone(own, tmp_path):
    (tmp_path / "test.json").write_text(json.dumps({**json.load(open(own[0])), "categories": [{"id": 7, "name": "cup"}]}))
    cfg = config("DATASETS.REGISTER", f"[['mine', '{own[0]}', '{tmp_path}/gone'], ['test', '{tmp_path}/test.json', '{own[1]}']]")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("mine",), ("test",)
    register_from_config(cfg, ["test"])
    assert MetadataCatalog.get("test").thing_classes == ["plate", "cup"]


def test_sound_data_stay_as_they_are(own):
    """Record by record what detectron2's own loader gives."""
    register_from_config(changed(own, more("annotations", 0, id=5, bbox=[0.5, 0.25, 3, 7], category_id=3)))
    assert MetadataCatalog.get("mine").said == ["mine: 1 image, 2 objects of 2 classes; left out: 0; crowds: 0"]
    assert DatasetCatalog.get("mine") == load_coco_json(*own, "mine as detectron2 has it")


def test_images_that_are_none(own):
    with open(os.path.join(own[1], "a.jpg"), "w") as f:
        f.write("<html>gone</html>")
    with pytest.raises(backbones.UserError, match=r"unreadable image \(1\): .*'a.jpg'"):
        register_from_config(changed(own, lambda c: None))


@pytest.mark.parametrize("spoil", [os.remove, lambda path: open(path, "w").close()])
def test_images_that_are_left_out(own, spoil):
    """With INPUT.UNREADABLE skip; their objects go with them."""
    Image.new("RGB", (10, 8)).save(os.path.join(own[1], "b.jpg"))

    def change(c):
        more("images", 0, id=2, file_name="b.jpg")(c)
        more("annotations", 0, id=2, image_id=2)(c)

    cfg = changed(own, change)
    spoil(os.path.join(own[1], "a.jpg"))
    cfg.INPUT.UNREADABLE = "skip"
    register_from_config(cfg)
    counted = ", ".join(in_words(kind, 1) for kind in ("object of such an image", "image left out"))
    assert f"left out: 1 image and 1 object ({counted})" in MetadataCatalog.get("mine").said[0]
    assert [os.path.basename(record["file_name"]) for record in DatasetCatalog.get("mine")] == ["b.jpg"]


def test_two_files_fit(own):
    """An image's name fits files in two folders: neither is taken."""
    for folder in ("x", "y"):
        os.makedirs(os.path.join(own[1], folder))
        os.link(os.path.join(own[1], "a.jpg"), os.path.join(own[1], folder, "b.jpg"))
    with pytest.raises(backbones.UserError, match=r"several files \(1\): .*'z/b.jpg'"):
        register_from_config(changed(own, lambda c: c["images"][0].update(file_name="z/b.jpg")))
    register_from_config(changed(own, lambda c: c["images"][0].update(file_name="data/x/b.jpg")))
    assert DatasetCatalog.get("mine")[0]["file_name"] == os.path.join(own[1], "x", "b.jpg")


def test_a_missing_image_is_not_one_of_another_folder(own):
    """Folders number their images alike: where one lacks a file, that of another is not taken, and who names it exactly keeps it."""
    for folder in ("x", "y"):
        os.makedirs(os.path.join(own[1], folder))
    os.rename(os.path.join(own[1], "a.jpg"), os.path.join(own[1], "y/a.jpg"))
    cfg = changed(own, lambda c: [c["images"][0].update(file_name="y/a.jpg"), more("images", 0, id=2, file_name="x/a.jpg")(c)])
    with pytest.raises(backbones.UserError, match=r"missing image \(1\): .*'x/a.jpg'"):
        register_from_config(cfg)
    cfg.INPUT.UNREADABLE = "skip"
    register_from_config(cfg)
    assert [record["file_name"] for record in DatasetCatalog.get("mine")] == [os.path.join(own[1], "y/a.jpg")]


def test_accents_in_names(own):
    """macOS writes an accent as a character of its own."""
    os.rename(os.path.join(own[1], "a.jpg"), os.path.join(own[1], "Tu\u0308r.jpg"))
    register_from_config(changed(own, lambda c: c["images"][0].update(file_name="T\u00fcr.jpg")))
    assert DatasetCatalog.get("mine")[0]["file_name"] == os.path.join(own[1], "Tu\u0308r.jpg")
    assert any("file name in another case (1)" in line for line in MetadataCatalog.get("mine").said)


def test_two_names_for_one_file(own):
    """Two entries whose folders are not there would both take the one file of that name."""
    with pytest.raises(backbones.UserError, match=r"several files \(2\)"):
        register_from_config(
            changed(own, lambda c: [c["images"][0].update(file_name="1/a.jpg"), more("images", 0, id=2, file_name="2/a.jpg")(c)])
        )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings(own, encoding):
    cfg = changed(own, lambda c: c["categories"][0].update(name="Tässchen"))
    with open(own[0]) as f:
        content = f.read()
    with open(own[0], "w", encoding=encoding) as f:
        f.write(json.dumps(json.loads(content), ensure_ascii=False))
    register_from_config(cfg)
    assert MetadataCatalog.get("mine").thing_classes == ["plate", "Tässchen"]
    with open(own[0], "w", encoding="latin-1") as f:
        f.write(json.dumps(json.loads(content), ensure_ascii=False))
    with pytest.raises(backbones.UserError, match="not UTF-8 text .*: save it as UTF-8"):
        register_from_config(config("DATASETS.REGISTER", f"[['other', '{own[0]}', '{own[1]}']]"))


def orientation(turn):
    tag = Image.Exif()
    tag[274] = turn
    return tag


def exif(path, turn):
    Image.new("RGB", (8, 10)).save(path, exif=orientation(turn))


def test_turned_images(own):
    """detectron2 turns an image as its EXIF tag says; sizes are compared after that."""
    exif(os.path.join(own[1], "a.jpg"), 6)
    register_from_config(changed(own, lambda c: None))
    DatasetCatalog.remove("mine")
    MetadataCatalog.remove("mine")
    with pytest.raises(backbones.UserError, match="turned image .*unrotated image.*INPUT.EXIF"):
        register_from_config(changed(own, lambda c: c["images"][0].update(width=8, height=10)))


MASK, RUNS = [[1, 1, 6, 1, 6, 6]], {"size": [8, 10], "counts": [9, 5, 66]}


@pytest.mark.parametrize(
    "mask, words",
    [
        (None, "no masks"),
        ([[]], "no masks"),
        ([[1, 1, 5, 5]], "no masks"),
        ("1 5 9 3", "Kaggle's run lengths"),
        ("mask.png", "bad mask"),
        ([[1, 1, "5", 5, 9, 9]], "bad mask"),
        ({"size": [10, 8], "counts": [9, 5, 66]}, "mask of other size"),
        (MASK, ""),
        (MASK[0], "flat polygon"),
        ([*MASK, [1, 1, 2, 2]], "short polygon"),
        (RUNS, ""),
        ({**RUNS, "counts": "95R2"}, ""),
    ],
)
def test_masks(own, mask, words):
    """A mask model refuses what is no mask, in one line, unless a key says what becomes of such an object; a box model does not look at it."""
    cfg = changed(own, lambda c: c["annotations"][0].update(segmentation=mask))
    register_from_config(cfg)
    assert "segmentation" not in DatasetCatalog.get("mine")[0]["annotations"][0]
    cfg.MODEL.MASK_ON = True
    if words in ("", "flat polygon", "short polygon"):
        register_from_config(cfg)
        assert bool(words) == any(words in line for line in MetadataCatalog.get("mine").said[1:])
        kept = DatasetCatalog.get("mine")[0]["annotations"][0]["segmentation"]
        assert kept == MASK if isinstance(mask, list) else mask_util.area(kept) == 5
        assert MetadataCatalog.get("mine").mask_runs == int(isinstance(mask, dict))
        assert ("INPUT.MASK_FORMAT" in {key for key, *_ in follow(cfg, False)}) == isinstance(mask, dict)
        return
    with pytest.raises(backbones.UserError, match=rf"{words} \(1\): .*annotation 1 of 'a.jpg'"):
        register_from_config(cfg)
    cfg.DATASETS.NO_MASK = "box"
    register_from_config(cfg)
    assert in_words("box as mask", 1) in MetadataCatalog.get("mine").said[0]
    assert DatasetCatalog.get("mine")[0]["annotations"][0]["segmentation"] == [[1, 1, 6, 1, 6, 6, 1, 6]]
    cfg.DATASETS.NO_MASK = "skip"
    register_from_config(cfg)
    assert in_words("object without mask", 1) in MetadataCatalog.get("mine").said[0]
    assert DatasetCatalog.get("mine")[0]["annotations"] == []


def test_crowds_as_objects(own):
    cfg = changed(own, lambda c: c["annotations"][0].update(iscrowd=1))
    cfg.DATASETS.TRAIN = ("mine",)
    with pytest.raises(backbones.UserError, match="crowds alone .*: 1 of 1 object. .*DATASETS.CROWDS"):
        register_from_config(cfg)
    cfg.DATASETS.CROWDS = "objects"
    register_from_config(cfg)
    assert in_words("crowds as objects", 1) in MetadataCatalog.get("mine").said[0]
    assert DatasetCatalog.get("mine")[0]["annotations"][0]["iscrowd"] == 0


def test_boxes_as_corners(own):
    corners = [[1, 1, 9, 7], [4, 4, 9, 7], [5, 2, 9, 8], [0, 0, 3, 3]]
    cfg = changed(own, lambda c: c.update(annotations=[{**c["annotations"][0], "id": i, "bbox": box} for i, box in enumerate(corners, 1)]))
    register_from_config(cfg)
    assert any("boxes as corners (2)" in line for line in MetadataCatalog.get("mine").said)
    cfg.DATASETS.BOX_FORMAT = "xyxy"
    register_from_config(cfg)
    assert [a["bbox"] for a in DatasetCatalog.get("mine")[0]["annotations"]] == [[1, 1, 8, 6], [4, 4, 5, 3], [5, 2, 4, 6], [0, 0, 3, 3]]


def test_boxes_of_other_formats_are_no_corners(tmp_path):
    places = formats.splits(str(voc_data(tmp_path)))["train"]
    found = [read(Source("own_train", *places), Use(box_format=form)) for form in ("xywh", "xyxy")]
    assert found[0].annotations == found[1].annotations and [data.findings.counts.get("box format") for data in found] == [None, 1]


def test_no_image_is_left(own):
    with pytest.raises(backbones.UserError, match=r"no images \(1\)"):
        register_from_config(changed(own, lambda c: c["images"][0].pop("id")))


def test_classes_of_data_without_annotations(own):
    """Names that training does not have are of no concern where nothing is scored."""
    cfg = changed(own, lambda c: c.update(annotations=[], categories=[{"id": 1, "name": "object"}]))
    cfg.DATASETS.CLASSES = ["plate", "cup"]
    register_from_config(cfg)
    assert [c["name"] for c in MetadataCatalog.get("mine").truth()["categories"]] == ["plate", "cup"]


@pytest.mark.parametrize("width", [None, 10.0, "10"])
def test_sizes_without_images(own, width):
    """A comparison of results has no image files to look at."""
    changed(own, lambda c: c["images"][0].update(width=width))
    assert read_truth(own[0], "", "bbox")["images"][0]["width"] == (10 if width else 10**6 - 1)


def test_data_without_annotations(own):
    """To predict on; training says that there is nothing to learn."""
    cfg = changed(own, lambda c: c.pop("annotations"))
    register_from_config(cfg)
    assert MetadataCatalog.get("mine").said[0].startswith("mine: 1 image, no annotations: predictions only, no evaluation")
    assert "annotations" not in DatasetCatalog.get("mine")[0] and "annotations" not in MetadataCatalog.get("mine").truth()
    cfg.DATASETS.TRAIN = ("mine",)
    with pytest.raises(backbones.UserError, match="no annotations: there is nothing to train on"):
        register_from_config(cfg)


@pytest.mark.parametrize(
    "categories, objects, words",
    [
        ([{"id": 1, "name": "cup"}], 1, ""),
        ([{"id": 1, "name": "cup"}, {"id": 2, "name": "plate"}], 1, "classes by name"),
        ([{"id": 1, "name": "cup"}, {"id": 2, "name": "fork"}], 1, ""),
        ([{"id": 2, "name": "cup"}, {"id": 1, "name": "fork"}], 0, "class of other data (1): .*: 'fork' (1)"),
        ([{"id": 1, "name": "fork"}], None, "other classes"),
    ],
)
def test_classes_by_name(own, tmp_path, categories, objects, words):
    """Test data have a part of the classes, others, or other ids: names tell."""
    with open(own[0]) as f:
        content = json.load(f)
    content["annotations"][0]["category_id"] = 1
    (tmp_path / "test.json").write_text(json.dumps({**content, "categories": categories}))
    entries = f"[['mine', '{own[0]}', '{own[1]}'], ['test', '{tmp_path / 'test.json'}', '{own[1]}']]"
    cfg = config("DATASETS.REGISTER", entries, "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('test',)")
    if objects is None:
        with pytest.raises(backbones.UserError, match=words):
            register_from_config(cfg)
        return
    register_from_config(cfg)
    about = MetadataCatalog.get("test")
    assert about.thing_classes == ["plate", "cup"] and re.search(re.escape(words).replace(r"\.\*", ".*"), "\n".join(about.said))
    assert [a["category_id"] for a in DatasetCatalog.get("test")[0]["annotations"]] == [1] * objects
    # each class that may be predicted has an id of its own
    assert sorted(about.thing_dataset_id_to_contiguous_id.values()) == [0, 1]
    assert {c["name"] for c in about.truth()["categories"]} == {"plate", "cup"}


@pytest.mark.parametrize(
    "classes, said",
    [
        (["plat", "cup"], r"misspelt class \(1\): .*: 'plate' here, 'plat' there.* spell them alike"),
        (["Plate", "cup"], "'plate' here, 'Plate' there"),
        (["plate", "cupp", "cup"], ""),  # of which the data have the other spelling too
        (["plate 2", "cup"], ""),
        (["spoon", "cup"], ""),
    ],
)
def test_misspelt_classes_are_not_trained_without(own, classes, said):
    """Objects of a class that differs a little are lost otherwise; a class without objects is the user's choice."""
    cfg = changed(own, lambda c: c["annotations"].append({**c["annotations"][0], "id": 99, "category_id": 3}))
    cfg.DATASETS.CLASSES, cfg.DATASETS.TRAIN = classes, ("mine",)
    with pytest.raises(backbones.UserError, match=said) if said else contextlib.nullcontext():
        register_from_config(cfg)


@pytest.mark.parametrize(
    "names, pairs",
    [
        (["left_eye", "right_eye", "nose"], [("left_eye", "right_eye")]),
        (["l_eye", "r_eye"], [("l_eye", "r_eye")]),
        (["eye_L", "eye_R", "tail"], [("eye_L", "eye_R")]),
        (["Right Eye", "Left Eye"], [("Left Eye", "Right Eye")]),
        (["leftEye", "rightEye"], [("leftEye", "rightEye")]),
        (["LEye", "REye", "eyeL", "eyeR"], [("LEye", "REye"), ("eyeL", "eyeR")]),
        (["nose"], []),
        (["1", "2"], None),
        (["left_eye", "nose"], None),
        (["ball", "bright"], None),
    ],
)
def test_flip_pairs(names, pairs):
    """None: they are not known, and images are not flipped."""
    found, why = flip_pairs(names)
    assert (found, bool(why)) == (pairs or [], pairs is None)
    assert flip_pairs(names, [["1", "2"]]) == ([("1", "2")], "")


def test_flip_pairs_of_many():
    """Not each name with each other: a file may name thousands."""
    names = [f"left_{i}" for i in range(20_000)] + [f"right_{i}" for i in range(20_000)]
    started = time.process_time()
    assert len(flip_pairs(names)[0]) == 20_000
    assert time.process_time() - started < 20


def test_held_out_of_data_that_are_not_needed(own):
    """A run held images out of its data; other data are evaluated by its config."""
    cfg = changed(own, lambda c: None)
    cfg.DATASETS.HOLD_OUT = [["trained", 0.2]]
    register_from_config(cfg)
    register_held_out(cfg, training=False, names=["mine"])
    with pytest.raises(backbones.UserError, match="DATASETS.HOLD_OUT: 'trained'"):
        register_held_out(cfg, training=False, names=["trained_held_out"])


def test_a_part_of_data_without_annotations_is_predicted(own):
    cfg = changed(own, lambda c: (c.pop("annotations"), c["images"].append({**c["images"][0], "id": 2})))
    merge_overrides(cfg, ["DATASETS.CLASSES", "('cup', 'plate')", "DATASETS.HOLD_OUT", "[['mine', 1]]"])
    register_from_config(cfg)
    register_held_out(cfg, training=False, names=["mine_held_out"])
    truth = MetadataCatalog.get("mine_held_out").truth()
    assert len(truth["images"]) == 1 and "annotations" not in truth


def test_data_that_nothing_can_be_compared_by(own, tmp_path):
    register_from_config(merged(changed(own, lambda c: c.pop("annotations")), "INPUT.EXIF", "ignore"))
    with pytest.raises(backbones.UserError, match="'mine' has no annotations, so there is no ground truth"):
        truth_of("mine", "bbox")
    found = [{"image_id": 1, "category_id": 7, "bbox": [1, 1, 5, 5], "score": 0.9}]
    (tmp_path / "found.json").write_text(json.dumps(found))
    for turn, name in ((1, "plain.png"), (6, "ignored.png")):
        Image.new("RGB", (10, 8)).save(os.path.join(own[1], "a.jpg"), exif=orientation(turn))
        visualize.draw(str(tmp_path / "found.json"), "mine", str(tmp_path / name), worst=True, exif="ignore")
    assert Image.open(tmp_path / "plain.png").size == Image.open(tmp_path / "ignored.png").size


def test_keypoints_follow_the_data(own):
    points = {"keypoints": [1, 1, 2, 3, 3, 1], "num_keypoints": 9}
    cfg = changed(own, lambda c: [c["annotations"][0].update(points), more("annotations", 0, id=2, keypoints=None)(c)])
    merge_overrides(cfg, ["MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "('mine',)"])
    register_from_config(cfg)
    about = MetadataCatalog.get("mine")
    assert "1 object without keypoints, 1 num_keypoints value recounted, 1 list of keypoint names made" in about.said[0]
    assert about.keypoint_names == ["1", "2"] and about.keypoint_flip_map == []
    assert [a["num_keypoints"] for a in about.truth()["annotations"]] == [2, 0]
    followed = {key: value for key, value, _ in follow(cfg, True)}
    assert followed["MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS"] == 2 and followed["TEST.KEYPOINT_OKS_SIGMAS"] == [0.5, 0.5]
    assert followed["INPUT.RANDOM_FLIP"] == "none" and "INPUT.RANDOM_FLIP" not in {
        key for key, *_ in follow(changed(own, lambda c: None), True)
    }
    with pytest.raises(backbones.UserError, match="number of keypoints"):
        register_from_config(merged(changed(own, lambda c: c["annotations"][1].update(keypoints=[1, 1, 2])), "MODEL.KEYPOINT_ON", "True"))


def test_keypoints_by_name(own, tmp_path):
    """Points in another order get that of the training data; other names are refused, unless the config names all."""

    def named(names, points):
        return lambda c: [c["annotations"][0].update(keypoints=points), *(each.update(keypoints=names) for each in c["categories"])]

    cfg = changed(own, named(["nose", "left", "right"], [1, 1, 2, 2, 2, 2, 3, 3, 2]))
    (tmp_path / "other.json").write_text(open(own[0]).read())
    val = (str(tmp_path / "other.json"), own[1])
    merge_overrides(cfg, ["MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "('mine',)", "DATASETS.TEST", "('val',)"])
    changed(val, named(["left", "nose", "right"], [2, 2, 2, 1, 1, 2, 3, 3, 2]))
    cfg.DATASETS.REGISTER = [*cfg.DATASETS.REGISTER, ["val", *val]]
    register_from_config(cfg)
    one, other = (MetadataCatalog.get(name) for name in ("mine", "val"))
    assert one.truth()["annotations"] == other.truth()["annotations"] and one.keypoint_names == other.keypoint_names
    assert any("keypoints by name (1)" in line for line in other.said) and not any("by name" in line for line in one.said)
    changed(val, named(["l", "nose", "right"], [2, 2, 2, 1, 1, 2, 3, 3, 2]))
    DatasetCatalog.remove("val"), MetadataCatalog.remove("val")
    with pytest.raises(
        backbones.UserError, match="val: its keypoints are called otherwise than those of the training data: l here, left there"
    ):
        register_from_config(cfg)
    examination = Examination(YamlFront(cfg.clone()), processes=1)
    said = [finding.message for finding in look_at_config(examination) if finding.severity == "error"]
    assert examination.refused == {"val"} and "its keypoints are called otherwise" in said[0]  # by the doctor too
    changed(val, named(["left", "nose", "right"], [2, 2, 2, 1, 1, 2, 3, 3, 2]))
    for name in ("mine", "val"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name), MetadataCatalog.remove(name)
    register_from_config(cfg, ["val"])  # an evaluation alone: the order is still that of the training data
    assert MetadataCatalog.get("val").keypoint_names == ["nose", "left", "right"]
    changed(val, named(["l", "nose", "right"], [2, 2, 2, 1, 1, 2, 3, 3, 2]))
    cfg.DATASETS.KEYPOINTS = ["nose", "left", "right"]
    register_from_config(cfg)


def test_a_file_below_the_folder_that_its_name_states(tmp_path):
    for name in ("sub/train/a.jpg", "other/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    files = Files(str(tmp_path))
    assert files.find("sub/a.jpg") == ("sub/train/a.jpg", "file in another folder")
    assert files.find("sub/b.jpg") == ("sub/b.jpg", "missing image")


def test_keypoints_that_no_object_has(own):
    with pytest.raises(backbones.UserError, match=r"no keypoints \(1\)"):
        register_from_config(merged(changed(own, lambda c: None), "MODEL.KEYPOINT_ON", "True"))


def test_images_of_too_many_pixels(own):
    cfg = merged(changed(own, lambda c: None), "INPUT.MAX_PIXELS", "79")
    with pytest.raises(backbones.UserError, match=r"large image \(1\): .*10x8 pixels, more than INPUT.MAX_PIXELS 79"):
        register_from_config(cfg)


def test_an_image_with_a_damaged_tag_is_as_good_as_any(own):
    Image.new("RGB", (10, 8)).save(os.path.join(own[1], "a.png"), exif=b"no tag")
    register_from_config(changed(own, lambda c: c["images"][0].update(file_name="a.png")))
    assert MetadataCatalog.get("mine").said == ["mine: 1 image, 1 object of 2 classes; left out: 0; crowds: 0"]


@pytest.mark.parametrize("flips", [[["Left", "Right"]], [["1", "right"]], ["1", "2"], [["1", "2", "1"]], [3]])
def test_keypoint_flips_of_other_names(own, flips):
    """Ignored, they would leave left and right unswapped in flipped images."""
    points = {"keypoints": [1, 1, 2, 3, 3, 1], "num_keypoints": 2}
    cfg = changed(own, lambda c: c["annotations"][0].update(points))
    merge_overrides(cfg, ["MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "('mine',)", "DATASETS.KEYPOINT_FLIPS", str(flips)])
    with pytest.raises(backbones.UserError, match="DATASETS.KEYPOINT_FLIPS: .* must be two of the keypoints: 1, 2"):
        register_from_config(cfg)


def test_names_that_are_numbers(own):
    """YAML reads 1 as a number."""
    points = {"keypoints": [1, 1, 2, 3, 3, 1], "num_keypoints": 2}
    cfg = changed(own, lambda c: [c["annotations"][0].update(points), [each.update(name=str(each["id"])) for each in c["categories"]]])
    names = ["DATASETS.CLASSES", "[7, 3]", "DATASETS.KEYPOINTS", "[1, 2]", "DATASETS.KEYPOINT_FLIPS", "[[1, 2]]"]
    register_from_config(merged(cfg, "MODEL.KEYPOINT_ON", "True", "DATASETS.TRAIN", "('mine',)", *names))
    about = MetadataCatalog.get("mine")
    assert (about.thing_classes, about.keypoint_names, about.keypoint_flip_map) == (["7", "3"], ["1", "2"], [("1", "2")])


def test_nothing_is_left_to_train_on(own):
    cfg = merged(changed(own, lambda c: c["annotations"][0].update(bbox=None)), "DATASETS.TRAIN", "('mine',)")
    with pytest.raises(backbones.UserError, match="no objects .* of 1 image"):
        register_from_config(cfg)


def merged(cfg, *overrides):
    merge_overrides(cfg, list(overrides))
    return cfg


def test_semantic_labels_are_not_there(own):
    cfg = merged(changed(own, lambda c: None), "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "DATASETS.TRAIN", "('mine',)")
    register_from_config(cfg)
    with pytest.raises(backbones.UserError, match="needs semantic labels"):
        check_datasets(cfg, training=True)


def test_keypoint_sigmas():
    overrides = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_HEADS.NUM_CLASSES", "10", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4"]
    cfg = config(*overrides, "DATASETS.TEST", "('digits_val',)")
    with pytest.raises(backbones.UserError, match="OKS_SIGMAS has the default 17 values, but .*NUM_KEYPOINTS is 4"):
        check_datasets(cfg, training=False)
    merge_overrides(cfg, ["TEST.KEYPOINT_OKS_SIGMAS", "[0.1, 0.1, 0.1, 0.1]"])
    check_datasets(cfg, training=False)


def test_unknown_data_set():
    with pytest.raises(backbones.UserError, match="DATASETS.TRAIN: 'digit_train'. Did you mean 'digits_train'"):
        check_datasets(config("DATASETS.TRAIN", "('digit_train',)"), training=True)


def test_missing_files(tmp_path):
    with pytest.raises(backbones.UserError, match="'coco_2014_val': json_file .* DETECTRON2_DATASETS"):
        check_datasets(config("DATASETS.TEST", "('coco_2014_val',)"), training=False)


def test_empty_lists():
    with pytest.raises(backbones.UserError, match="DATASETS.TRAIN is empty"):
        check_datasets(config("DATASETS.TRAIN", "()"), training=True)
    with pytest.raises(backbones.UserError, match="DATASETS.TEST is empty"):
        check_datasets(config("DATASETS.TEST", "()"), training=False)


@pytest.mark.parametrize(
    "overrides, key, value",
    [
        ([], "MODEL.ROI_HEADS.NUM_CLASSES", 10),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], "MODEL.RETINANET.NUM_CLASSES", 10),
        (
            ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_HEADS.NUM_CLASSES", "10", "TEST.KEYPOINT_OKS_SIGMAS", "[0.1,0.1,0.1,0.1]"],
            "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS",
            4,
        ),
        (["MODEL.META_ARCHITECTURE", "SemanticSegmentor"], "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5),
    ],
)
def test_classes_of_model_and_data(overrides, key, value):
    name = "digits_val_panoptic_separated" if "SEM_SEG" in key else "digits_val"
    cfg = config(*overrides, "DATASETS.TEST", f"('{name}',)")
    with pytest.raises(backbones.UserError, match=f"set {key} {value}"):
        check_datasets(cfg, training=False)
    merge_overrides(cfg, [key, str(value)])
    check_datasets(cfg, training=False)
