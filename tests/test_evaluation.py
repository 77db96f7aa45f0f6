"""Every task finds what it needs in the digits: a step of training, and full marks for perfect answers."""

import json

import numpy as np
import pytest
import torch
from answers import full_marks
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.events import EventStorage
from PIL import Image

import backbones
from backbones import zoo
from backbones.config import check_config, merge_overrides
from backbones.data import check_datasets, register_held_out
from backbones.engine import open_config
from backbones.evaluation import build_evaluator
from backbones.evaluation.build import coco_evaluator
from backbones.evaluation.coco import FastCOCOEvaluator

QUICKSTART = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"
KEYPOINTS = ["MODEL.KEYPOINT_ON", "True", "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS", "4", "TEST.KEYPOINT_OKS_SIGMAS", "[0.05,0.05,0.05,0.05]"]
PANOPTIC = ["MODEL.META_ARCHITECTURE", "PanopticFPN", "MODEL.MASK_ON", "True", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"]
PANOPTIC += ["DATASETS.TRAIN", "('digits_train_panoptic_separated',)", "DATASETS.TEST", "('digits_val_panoptic_separated',)"]
SEMANTIC = ["MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "5"]
SEMANTIC += ["DATASETS.TRAIN", "('digits_train_panoptic_stuffonly',)", "DATASETS.TEST", "('digits_val_panoptic_stuffonly',)"]
TASKS = {"boxes": [], "masks": ["MODEL.MASK_ON", "True"], "keypoints": KEYPOINTS, "panoptic": PANOPTIC, "semantic": SEMANTIC}


def config(task, tmp_path):
    cfg = zoo.get_config(QUICKSTART)
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), "SOLVER.IMS_PER_BATCH", "2", *TASKS[task]])
    check_config(cfg)
    check_datasets(cfg, training=True)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_a_training_step(task, tmp_path):
    cfg = config(task, tmp_path)
    model = build_model(cfg).train()
    with EventStorage():
        losses = model(next(iter(build_detection_train_loader(cfg))))
    sum(losses.values()).backward()
    assert all(v.isfinite() for v in losses.values())
    expected = {
        "masks": "loss_mask",
        "keypoints": "loss_keypoint",
        "panoptic": "loss_sem_seg",
        "semantic": "loss_sem_seg",
        "boxes": "loss_box_reg",
    }
    assert expected[task] in losses
    for name, p in model.backbone.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_perfect_answers_get_full_marks(task, tmp_path):
    cfg = config(task, tmp_path)
    name = cfg.DATASETS.TEST[0]
    results = full_marks(build_evaluator(cfg, name), name, keypoints=task == "keypoints")
    marks = {
        "boxes": [("bbox", "AP")],
        "masks": [("bbox", "AP"), ("segm", "AP")],
        "keypoints": [("bbox", "AP"), ("keypoints", "AP")],
        "panoptic": [("segm", "AP"), ("sem_seg", "mIoU"), ("panoptic_seg", "PQ")],
        "semantic": [("sem_seg", "mIoU")],
    }
    for kind, metric in marks[task]:
        assert results[kind][metric] == pytest.approx(100, abs=1e-6), (kind, metric)


def test_a_part_of_panoptic_data(tmp_path, catalogue):
    """What is held out is evaluated alone, as often as one likes, though the file of segments is of all images."""
    cfg = config("panoptic", tmp_path)
    cfg.DATASETS.HOLD_OUT = [["digits_val_panoptic_separated", 3]]
    register_held_out(cfg)
    name = "digits_val_panoptic_separated_held_out"
    for output in (tmp_path / "a", tmp_path / "b"):
        results = full_marks(build_evaluator(cfg, name, str(output)), name)
        assert results["panoptic_seg"]["PQ"] == pytest.approx(100) and results["segm"]["AP"] == pytest.approx(100)
        assert len(json.loads((output / f"{name}_truth.json").read_text())["images"]) == 3


@pytest.mark.parametrize(
    "kind, module, words",
    [
        ("coco_panoptic_seg", "panopticapi", "pip install panopticapi-lite"),
        ("lvis", "lvis", "pip install --no-deps lvis"),
        ("cityscapes_instance", "cityscapesscripts", "pip install cityscapesScripts"),
        ("coco_boxes", None, "Did you mean 'coco'"),
        (None, None, "Allowed: 'coco'"),
    ],
)
def test_what_cannot_be_evaluated(kind, module, words, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == module else find(name, *a))
    name = f"test_evaluator_{kind}"
    if kind:
        MetadataCatalog.get(name).set(evaluator_type=kind)
    try:
        with pytest.raises(backbones.UserError, match=words):
            build_evaluator(zoo.get_config(QUICKSTART), name)
    finally:
        if kind:
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("masks", [False, True])
def test_the_fast_evaluator_is_the_slow_one(masks, tmp_path):
    """Results, per class too, and files: those of detectron2's own evaluator, on detections that are near the truth."""
    cfg = zoo.get_config("digits/mask_rcnn_digits.yaml")
    records = DatasetCatalog.get("digits_val")[:20]
    found = {}
    for kind in ("fastest", "detectron2"):
        cfg.TEST.COCO_EVALUATOR = kind
        evaluator = coco_evaluator(cfg, "digits_val", str(tmp_path / kind), distributed=False)
        assert isinstance(evaluator, FastCOCOEvaluator) == (kind == "fastest")
        evaluator.reset()
        rng = np.random.default_rng(0)
        for record in records:
            instances = Instances((record["height"], record["width"]))
            boxes = np.array([BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in record["annotations"]])
            instances.pred_boxes = Boxes(torch.as_tensor(boxes + rng.normal(0, 2, boxes.shape)).float())
            instances.scores = torch.as_tensor(rng.random(len(boxes))).float()
            classes = [a["category_id"] if rng.random() < 0.8 else int(rng.integers(10)) for a in record["annotations"]]
            instances.pred_classes = torch.tensor(classes)
            if masks:
                drawn = torch.zeros(len(boxes), record["height"], record["width"], dtype=torch.bool)
                for mask, box in zip(drawn, instances.pred_boxes.tensor.clamp(min=0).int().tolist()):
                    mask[box[1] : box[3], box[0] : box[2]] = True
                instances.pred_masks = drawn
            evaluator.process([record], [{"instances": instances}])
        found[kind] = evaluator.evaluate(img_ids=[r["image_id"] for r in records])
    assert set(found["fastest"]) == set(found["detectron2"]) == ({"bbox", "segm"} if masks else {"bbox"})
    for task, figures in found["detectron2"].items():
        assert figures["AP"] > 5
        for name, value in figures.items():
            assert found["fastest"][task][name] == pytest.approx(value, abs=1e-10, nan_ok=True), (task, name)
    files = [(tmp_path / kind / "coco_instances_results.json").read_text() for kind in found]
    assert files[0] == files[1]


@pytest.mark.parametrize("kind", ["fastest", "detectron2"])
def test_figures_of_classes_have_their_names(kind, tmp_path, catalogue):
    """Whatever the order of the model's classes, and of the categories in the file, which may lack some."""
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    objects = [{"id": i, "image_id": 1, "category_id": i, "bbox": [10, 10, 30, 30], "area": 900, "iscrowd": 0} for i in (1, 2)]
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "annotations": objects,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    front = open_config("digits/faster_rcnn_digits.yaml", ["DATASETS.TEST", "('named_val',)", "TEST.COCO_EVALUATOR", kind])
    front.cfg.DATASETS.REGISTER = [["named_val", str(tmp_path / "a.json"), str(tmp_path)]]
    front.cfg.DATASETS.CLASSES = ["cat", "bird", "dog"]
    front.register()
    evaluator = coco_evaluator(front.cfg, "named_val", str(tmp_path), distributed=False)
    evaluator.reset()
    found = Instances((100, 100), pred_boxes=Boxes(torch.tensor([[10.0, 10, 40, 40]])), scores=torch.ones(1), pred_classes=torch.tensor([2]))
    evaluator.process([{"image_id": 1, "height": 100, "width": 100}], [{"instances": found}])
    figures = evaluator.evaluate()["bbox"]
    assert (figures["AP-dog"], figures["AP-cat"]) == (pytest.approx(100), 0) and np.isnan(figures["AP-bird"])
