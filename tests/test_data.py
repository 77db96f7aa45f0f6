"""COCO-format data from a config, and the checks before training."""

import json
import os

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import backbones
from backbones import zoo
from backbones.config import merge_overrides
from backbones.data import check_datasets, register_from_config


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
        ("['mine', 'x.json']", "is not of the form"),
        ("'mine'", "is not of the form"),
        ("['mine', 'nowhere.json', '{images}']", "'nowhere.json'"),
        ("['mine', '{json}', 'nowhere']", "'nowhere'"),
        ("['mine', '{broken}', '{images}']", "not JSON"),
        ("['mine', '{foreign}', '{images}']", "no annotations, categories"),
        ("['mine', '{list}', '{images}']", "not in COCO's format"),
        ("['mine', '{nameless}', '{images}']", "entry 0 of 'categories' has no name"),
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


BROKEN = {
    "'images' is not a list": lambda c: c.update(images=None),
    "'annotations' is not a list": lambda c: c.update(annotations={}),
    "'categories' is not a list": lambda c: c.update(categories={"cup": 7}),
    "entry 0 of 'categories' is 'cup', not an object": lambda c: c.update(categories=["cup"]),
    "'images' is empty": lambda c: c["images"].clear(),
    "entry 0 of 'images' has no height": lambda c: c["images"][0].pop("height"),
    "entry 0 of 'images' has width '10'": lambda c: c["images"][0].update(width="10"),
    "entry 0 of 'annotations' has no bbox": lambda c: c["annotations"][0].pop("bbox"),
    "entry 0 of 'annotations' has bbox .*must be .x, y, width, height.": lambda c: c["annotations"][0].update(bbox=[1, 2, 3]),
    "bbox .*nan": lambda c: c["annotations"][0].update(bbox=[1, 2, 3, float("nan")]),
    "the id 1 stands twice in 'annotations'": lambda c: c["annotations"].append(c["annotations"][0]),
    "the id 7 stands twice in 'categories'": lambda c: c["categories"].append({"id": 7, "name": "pot"}),
    "category_id 9, which is not among the 'categories'": lambda c: c["annotations"][0].update(category_id=9),
    "image_id 2, which is not among the 'images'": lambda c: c["annotations"][0].update(image_id=2),
    "image 'b.jpg' is not in": lambda c: c["images"][0].update(file_name="b.jpg"),
    "image 'a.jpg' is 10x8, not 8x10": lambda c: c["images"][0].update(width=8, height=10),
}


@pytest.mark.parametrize("words", BROKEN)
def test_broken_annotations(own, words):
    """What would end in a traceback after training has begun, or in a wrong figure."""
    with pytest.raises(backbones.UserError, match=words) as error:
        register_from_config(changed(own, BROKEN[words]))
    assert own[0] in str(error.value) and "\n" not in str(error.value)
    assert "mine" not in DatasetCatalog


def test_images_that_are_none(own):
    with open(os.path.join(own[1], "a.jpg"), "w") as f:
        f.write("<html>gone</html>")
    with pytest.raises(backbones.UserError, match="'a.jpg' cannot be read"):
        register_from_config(changed(own, lambda c: None))


def test_turned_images(own):
    """detectron2 turns an image as its EXIF tag says; sizes are compared after that."""
    exif = Image.Exif()
    exif[274] = 6
    Image.new("RGB", (8, 10)).save(os.path.join(own[1], "a.jpg"), exif=exif)
    register_from_config(changed(own, lambda c: None))


@pytest.mark.parametrize(
    "overrides, change, words",
    [
        (["MODEL.MASK_ON", "True"], lambda c: None, "MODEL.MASK_ON needs 'segmentation'"),
        (["MODEL.KEYPOINT_ON", "True"], lambda c: None, "MODEL.KEYPOINT_ON needs 'keypoints'"),
        ([], lambda c: c["annotations"][0].pop("area"), "COCO's evaluation needs 'area'"),
        ([], lambda c: c["annotations"][0].pop("iscrowd"), "COCO's evaluation needs 'iscrowd'"),
        ([], lambda c: c["annotations"].clear(), "training needs 'bbox'"),
    ],
)
def test_annotations_fit_the_task(own, overrides, change, words):
    cfg = changed(own, change)
    merge_overrides(cfg, ["DATASETS.TRAIN", "('mine',)", *overrides])
    register_from_config(cfg)
    with pytest.raises(backbones.UserError, match=words):
        check_datasets(cfg, training=True)


def test_an_id_that_is_always_wrong(own, caplog):
    register_from_config(changed(own, lambda c: c["annotations"][0].update(id=0)))
    assert "number from 1" in caplog.text


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
