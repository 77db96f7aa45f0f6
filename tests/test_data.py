"""COCO-format data from a config, and the checks before training."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

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
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 10, "height": 10}],
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
        ("['mine', '{nameless}', '{images}']", "no integer id or no name"),
        ("['coco_2017_val', '{json}', '{images}']", "is taken"),
    ],
)
def test_bad_entries(own, tmp_path, entry, words):
    files = {
        "broken": "{",
        "foreign": '{"images": []}',
        "list": "[]",
        "nameless": '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    entry = entry.format(json=own[0], images=own[1], **{name: tmp_path / name for name in files})
    with pytest.raises(backbones.UserError, match=words) as error:
        register_from_config(config("DATASETS.REGISTER", f"[{entry}]"))
    assert "\n" not in str(error.value)


def test_unknown_data_set():
    with pytest.raises(backbones.UserError, match="DATASETS.TRAIN: 'digit_train'. Did you mean 'digits_train'"):
        check_datasets(config("DATASETS.TRAIN", "('digit_train',)"), training=True)


def test_missing_files(tmp_path):
    with pytest.raises(backbones.UserError, match="'coco_2017_val': json_file .* DETECTRON2_DATASETS"):
        check_datasets(config(), training=False)


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
        (["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_HEADS.NUM_CLASSES", "10"], "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", 4),
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
