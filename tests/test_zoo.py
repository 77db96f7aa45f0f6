"""Every row of detectron2's model zoo page: its own config, and the same with a backbone of ours, take a step and are evaluated."""

import gc
import os
import re

import pytest
import torch
import zoo_data
from answers import full_marks
from choices import SMALLEST, cases
from detectron2.data import MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d

from backbones import UserError, use_backbone, zoo
from backbones.config import check_config, merge_overrides
from backbones.data import check_datasets, check_packages
from backbones.documents import read_json
from backbones.engine import PythonFront, Trainer, YamlFront
from backbones.evaluation import build_evaluator
from backbones.meta import on_meta
from backbones.registry import BUILDERS
from backbones.zoo import weights
from convert.__main__ import SOURCES

# config -> its rows on the page
ROWS = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x": (1,),
    "COCO-Detection/faster_rcnn_R_50_DC5_1x": (2,),
    "COCO-Detection/faster_rcnn_R_50_FPN_1x": (3,),
    "COCO-Detection/faster_rcnn_R_50_C4_3x": (4,),
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": (5,),
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": (6,),
    "COCO-Detection/faster_rcnn_R_101_C4_3x": (7,),
    "COCO-Detection/faster_rcnn_R_101_DC5_3x": (8,),
    "COCO-Detection/faster_rcnn_R_101_FPN_3x": (9,),
    "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x": (10,),
    "COCO-Detection/retinanet_R_50_FPN_1x": (11,),
    "COCO-Detection/retinanet_R_50_FPN_3x": (12,),
    "COCO-Detection/retinanet_R_101_FPN_3x": (13,),
    "COCO-Detection/rpn_R_50_C4_1x": (14,),
    "COCO-Detection/rpn_R_50_FPN_1x": (15,),
    "COCO-Detection/fast_rcnn_R_50_FPN_1x": (16,),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": (17,),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x": (18,),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (19, 39),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x": (20,),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x": (21,),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": (22, 42, 45),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_C4_3x": (23,),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_DC5_3x": (24,),
    "COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x": (25,),
    "COCO-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_3x": (26,),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x": (27,),
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x": (28,),
    "COCO-Keypoints/keypoint_rcnn_R_101_FPN_3x": (29,),
    "COCO-Keypoints/keypoint_rcnn_X_101_32x8d_FPN_3x": (30,),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": (31,),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x": (32,),
    "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x": (33,),
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (34,),
    "LVISv0.5-InstanceSegmentation/mask_rcnn_R_101_FPN_1x": (35,),
    "LVISv0.5-InstanceSegmentation/mask_rcnn_X_101_32x8d_FPN_1x": (36,),
    "Cityscapes/mask_rcnn_R_50_FPN": (37,),
    "PascalVOC-Detection/faster_rcnn_R_50_C4": (38,),
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5": (40,),
    "Misc/cascade_mask_rcnn_R_50_FPN_1x": (41,),
    "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5": (43,),
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": (44,),
    "Misc/mask_rcnn_R_50_FPN_3x_gn": (46,),
    "Misc/mask_rcnn_R_50_FPN_3x_syncbn": (47,),
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": (48,),
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_gn": (49,),
    "Misc/scratch_mask_rcnn_R_50_FPN_9x_syncbn": (50,),
    "Misc/panoptic_fpn_R_101_dconv_cascade_gn_3x": (51,),
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv": (52,),
}
AUGMENTED = {"Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv": (53,)}  # the same with test-time augmentation
# beside the page: the newest LVIS, and semantic segmentation alone
BESIDE = ["LVISv1-InstanceSegmentation/mask_rcnn_R_50_FPN_1x", "Misc/semantic_R_50_FPN_1x"]
# rows of different kinds, for every day
DAILY = ["COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x", "COCO-Detection/rpn_R_50_FPN_1x"]


@pytest.fixture(autouse=True, scope="module")
def data():
    zoo_data.make(os.environ["DETECTRON2_DATASETS"])
    gc.freeze()  # what is there already is not to be looked through after each test
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # Cityscapes' evaluation writes into the folder it runs in


@pytest.fixture
def memory():
    """A trainer and its hooks hold each other: large ones are not to pile up."""
    yield
    gc.collect()


def test_the_page_is_whole():
    rows = [row for numbers in (*ROWS.values(), *AUGMENTED.values()) for row in numbers]
    assert sorted(rows) == list(range(1, 54)) and len(ROWS) == 49


def test_released_files_have_addresses():
    """Every row of MMDetection's, with the digits of its sha256 that its name ends with; what needs converting loads by its config's name."""
    rows = {name: zoo.published(name) for name in zoo.list_configs() if not name.startswith("reproduce/") and zoo.published(name)}
    theirs = {name: row for name, row in rows.items() if row["source"] == "mmdetection"}
    assert len(theirs) == len({row["checkpoint"] for row in theirs.values()}) == 26  # of 27: one stands there twice
    for name, row in theirs.items():
        assert row["checkpoint"].endswith(f"-{row['sha256']}.pth") and re.fullmatch("[0-9a-f]{8}", row["sha256"])
        words = (
            part.lower().replace("4.0gf", "4gf").replace("8.0gf", "8gf")
            for part in re.findall(r"^\w+?rcnn|^retinanet|[\d.]+[MG]F", os.path.basename(name))
        )
        assert all(word in row["checkpoint"].lower() for word in words), (name, row["checkpoint"])
    data = read_json(os.path.join(os.path.dirname(zoo.__file__), "models.json"))
    hashed = [row for row in data["models"] if "sha256" in row]
    assert len(hashed) == 26 + 12 and all(row["checkpoint"].endswith(f"-{row['sha256']}.pth") for row in hashed)
    assert [name for name, source in data["sources"].items() if source.get("restricted")] == ["vovnet-detectron2"]
    for name, row in rows.items():
        converter = row["about"].get("converter")
        assert converter is None or converter in SOURCES, converter
        if "checkpoint" in row:
            expected = f"backbones://{name.removesuffix('.yaml')}" if converter else row["checkpoint"]
            assert zoo.get_checkpoint_url(name) == zoo.get_config(name, trained=True).MODEL.WEIGHTS == expected


def skip_without_packages(name: str) -> None:
    try:
        check_packages(name, evaluating=True)
    except UserError as error:  # an environment of the user's own
        assert error.code == "missing-package"
        pytest.skip(str(error))


def row_config(name: str, backbone: str, tmp_path, *opts):
    """The row's config, on small images, few regions and one core. Of the model, only widths are smaller: of heads and ResNets."""
    cfg = zoo.get_config(f"{name}.yaml")
    if backbone:
        use_backbone(cfg, backbone)
    proposals = f"('{os.environ['DETECTRON2_DATASETS']}/proposals/coco.pkl',)"
    overrides = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": "",  # which cannot be had here
        "OUTPUT_DIR": str(tmp_path),
        "INPUT.MIN_SIZE_TRAIN": "(64,)",
        "INPUT.MIN_SIZE_TRAIN_SAMPLING": "choice",
        "INPUT.MIN_SIZE_TEST": "64",
        "INPUT.CROP.ENABLED": "False",
        "SOLVER.IMS_PER_BATCH": "2",
        "DATALOADER.NUM_WORKERS": "0",
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": "16",
        "MODEL.ROI_BOX_HEAD.FC_DIM": "64",
        "MODEL.ROI_BOX_HEAD.CONV_DIM": "64",
        "MODEL.ROI_MASK_HEAD.CONV_DIM": "32",
        "MODEL.RPN.CONV_DIMS": "[64]",
        "MODEL.RPN.POST_NMS_TOPK_TEST": "20",
        "TEST.DETECTIONS_PER_IMAGE": "10",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "-1.0",  # evaluators ask for a detection at least
        "MODEL.RETINANET.SCORE_THRESH_TEST": "-1.0",
        "TEST.AUG.MIN_SIZES": "(64,)",
        "TEST.PRECISE_BN.NUM_ITER": "1",
    }
    if not backbone and cfg.MODEL.RESNETS.NUM_GROUPS == 1:
        widths = {"STEM_OUT_CHANNELS": "32", "WIDTH_PER_GROUP": "32", "RES2_OUT_CHANNELS": "128"}
        overrides.update({f"MODEL.RESNETS.{key}": value for key, value in widths.items()})
    if cfg.MODEL.LOAD_PROPOSALS:
        overrides.update({"DATASETS.PROPOSAL_FILES_TRAIN": proposals, "DATASETS.PROPOSAL_FILES_TEST": proposals})
    merge_overrides(cfg, [item for pair in overrides.items() for item in pair] + list(opts))
    skip_without_packages(cfg.DATASETS.TEST[0])
    check_config(cfg, training=True)
    check_datasets(cfg, training=True)
    return cfg


def calm(model: torch.nn.Module) -> None:
    """Gives frozen norms the statistics of an image, as those of pretrained weights are: without any, deep networks blow up."""

    def measure(norm, inputs):
        x = inputs[0]
        norm.running_mean.copy_(x.mean((0, 2, 3)))
        norm.running_var.copy_(x.var((0, 2, 3)) + 1e-3)

    hooks = [m.register_forward_pre_hook(measure) for m in model.modules() if isinstance(m, FrozenBatchNorm2d)]
    with torch.no_grad():
        features = model.backbone((torch.rand(1, 3, 128, 128) * 255 - model.pixel_mean) / model.pixel_std)
        if hasattr(getattr(model, "roi_heads", None), "res5"):
            model.roi_heads.res5(list(features.values())[-1])
    for hook in hooks:
        hook.remove()
    for name, norm in model.named_modules():
        if name.endswith("conv3.norm") and isinstance(norm, FrozenBatchNorm2d):  # the end of a ResNet's branch
            norm.weight.mul_(0.1)


class Bare(Trainer):
    """Without checkpoints, which are large, and an evaluation at its end."""

    def build_hooks(self):
        return []


def step_and_evaluate(cfg) -> dict:
    trainer = Bare(cfg)
    calm(trainer.model)
    trainer.max_iter = 1
    trainer.train()
    losses = {key: value[0] for key, value in trainer.storage.latest().items() if "loss" in key}
    assert losses and all(value == value and abs(value) < float("inf") for value in losses.values()), losses
    results = Trainer.test(cfg, trainer.model)
    if cfg.TEST.AUG.ENABLED:
        results.update(Trainer.test_with_TTA(cfg, trainer.model))
    return results


def expected_results(cfg) -> set:
    kind = MetadataCatalog.get(cfg.DATASETS.TEST[0]).evaluator_type
    if cfg.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        return {"box_proposals"}
    if kind == "coco_panoptic_seg":
        return {"bbox", "segm", "sem_seg", "panoptic_seg"}
    if kind == "sem_seg":
        return {"sem_seg"}
    tasks = {"bbox"} if kind != "cityscapes_instance" else set()
    tasks |= {"segm"} if cfg.MODEL.MASK_ON else set()
    return tasks | ({"keypoints"} if cfg.MODEL.KEYPOINT_ON else set())


def rows():
    """Each row with a network of ours and with its own.

    Of those that differ in ResNet's depth or the schedule alone the first counts. Half of these are tried with ours, half of the others with
    their own.
    With augmentation, which `test_the_row_with_augmentation` tries, comes without.
    """
    every = [*ROWS, *BESIDE]
    kinds = {re.sub(r"_(R_50|R_101|X_101_32x8d|[139]x)(?=_|$)", "", name): name for name in reversed(every)}
    firsts = [name for name in every if name in kinds.values()]
    ours = {name: SMALLEST[i % len(SMALLEST)] for i, name in enumerate(every)}
    tried = {*((name, ours[name]) for name in firsts[1::2]), *((name, "") for name in firsts[::4])}
    tried = {(name, backbone) for name, backbone in tried if name not in AUGMENTED} | {(name, ours[name]) for name in DAILY}
    assert {backbone for _, backbone in tried} == {*SMALLEST, ""}
    product = [(name, backbone) for name in every for backbone in ("", ours[name])]
    return cases(product, tried, daily=[(name, ours[name]) for name in DAILY])


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("name, backbone", rows())
def test_a_row(name, backbone, tmp_path):
    cfg = row_config(name, backbone, tmp_path)
    results = step_and_evaluate(cfg)
    assert set(results) == expected_results(cfg), results
    network = BUILDERS.get(cfg.MODEL.BACKBONE.NAME)
    assert (network is not None) == bool(backbone)


@pytest.mark.slow
@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize("backbone", cases(["", SMALLEST[0]], tried=[SMALLEST[0]]))
def test_the_row_with_augmentation(backbone, tmp_path):
    (name,) = AUGMENTED
    cfg = row_config(name, backbone, tmp_path, "TEST.AUG.ENABLED", "True")
    assert set(step_and_evaluate(cfg)) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.list_detectron2_configs())
def test_every_config_builds(name):
    """All 115, unmodified but for the device: model and solver of the YAML ones, the model of the Python ones."""
    if name.endswith(".yaml"):
        cfg = zoo.get_config(name)
        cfg.MODEL.DEVICE = "cpu"
        check_config(cfg, training=True)
        return
    front = PythonFront.read(zoo.get_config_file(name), ["train.device=meta"])
    if "mmdet" in name:
        with pytest.raises(UserError, match="needs a package that is not installed: pip install mm"):
            front.build_model()
        return
    with on_meta():
        assert isinstance(front.build_model(), torch.nn.Module)


@pytest.mark.parametrize(
    "name, marks",
    {
        "coco_2017_val": {"bbox": ["AP"], "segm": ["AP"]},
        "keypoints_coco_2017_val": {"bbox": ["AP"], "keypoints": ["AP"]},
        "coco_2017_val_panoptic_separated": {"bbox": ["AP"], "segm": ["AP"], "sem_seg": ["mIoU"], "panoptic_seg": ["PQ"]},
        "coco_2017_val_panoptic_stuffonly": {"sem_seg": ["mIoU"]},
        "lvis_v0.5_val": {"bbox": ["AP"], "segm": ["AP"]},
        "lvis_v1_val": {"bbox": ["AP"], "segm": ["AP"]},
        "cityscapes_fine_instance_seg_val": {"segm": ["AP"]},
        "cityscapes_fine_sem_seg_val": {"sem_seg": ["IoU"]},
        "voc_2007_test": {"bbox": ["AP", "AP50"]},
    }.items(),
)
def test_the_truth_gets_full_marks(name, marks, tmp_path):
    cfg = zoo.get_config("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml")
    cfg.OUTPUT_DIR = str(tmp_path)
    skip_without_packages(name)
    results = full_marks(build_evaluator(cfg, name), name, keypoints="keypoints" in marks)
    for task, metrics in marks.items():
        for metric in metrics:
            assert results[task][metric] == pytest.approx(100, abs=1e-6), (task, metric)


def test_true_proposals_are_all_recalled(tmp_path):
    cfg = zoo.get_config("COCO-Detection/rpn_R_50_FPN_1x.yaml")
    cfg.OUTPUT_DIR = str(tmp_path)
    results = full_marks(build_evaluator(cfg, "coco_2017_val"), "coco_2017_val", proposals=True)
    assert results["box_proposals"]["AR@100"] == pytest.approx(100, abs=1e-6)


@pytest.mark.parametrize(
    "opts, words",
    [
        (["DATASETS.PROPOSAL_FILES_TRAIN", "()"], "PROPOSAL_FILES_TRAIN has 0, DATASETS.TRAIN 1"),
        (["DATASETS.PROPOSAL_FILES_TEST", "('nowhere.pkl',)"], "proposal file 'nowhere.pkl' does not exist"),
        (["DATASETS.PROPOSAL_FILES_TEST", "('{bad}',)"], "needs 'ids', 'boxes' and 'objectness_logits'"),
        (["DATASETS.PROPOSAL_FILES_TEST", "('{few}',)"], "has no proposals for 3 images of data set 'coco_2017_val', such as 2"),
        (["DATASETS.PROPOSAL_FILES_TEST", "('{code}',)"], "it holds code"),
        (["TEST.AUG.ENABLED", "True"], "not MODEL.LOAD_PROPOSALS"),
    ],
)
def test_proposals_are_checked(opts, words, tmp_path):
    import pickle

    import numpy as np

    files = {"bad": {"ids": [1]}, "code": os.getcwd}
    files["few"] = {"ids": [1], "boxes": [np.zeros((1, 4), np.float32)], "objectness_logits": [np.zeros(1, np.float32)]}
    for name, content in files.items():
        (tmp_path / f"{name}.pkl").write_bytes(pickle.dumps(content))
    opts = [item.format(**{name: tmp_path / f"{name}.pkl" for name in files}) for item in opts]
    with pytest.raises(UserError, match=words):
        row_config("COCO-Detection/fast_rcnn_R_50_FPN_1x", "", tmp_path, *opts)


@pytest.mark.slow
def test_losses_and_pictures_of_given_proposals(tmp_path):
    cfg = row_config("COCO-Detection/fast_rcnn_R_50_FPN_1x", SMALLEST[0], tmp_path, "TEST.PICTURES", "1")
    front = YamlFront(cfg)
    model = front.build_model()
    assert set(front.validate(model)["validation"]) == {"total_loss", "loss_cls", "loss_box_reg"} and len(front.draw(model)) == 1


def test_frozen_norms_stay_frozen(tmp_path):
    """The calm of these tests reaches ResNets alone, and FREEZE_AT counts stages of any network."""
    cfg = row_config("COCO-Detection/faster_rcnn_R_50_FPN_1x", next(name for name in SMALLEST if weights.released(name)), tmp_path)
    model = Trainer.build_model(cfg)
    stages = list(model.backbone.bottom_up.children())
    assert cfg.MODEL.BACKBONE.FREEZE_AT == 2
    assert not any(p.requires_grad for stage in stages[:2] for p in stage.parameters())
    assert all(p.requires_grad for stage in stages[2:] for p in stage.parameters())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
