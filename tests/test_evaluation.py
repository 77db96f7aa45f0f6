"""Every task finds what it needs in the digits: a step of training, and full marks for perfect answers."""

import pytest
from answers import full_marks
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import backbones
from backbones import zoo
from backbones.config import check_config, merge_overrides
from backbones.data import check_datasets
from backbones.evaluation import build_evaluator

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
