"""Everything runs on a device of its own, whose tensors do not mix with the CPU's, and computes there what it computes on the CPU."""

import json
import math
import os

import pytest
import torch
from choices import cases
from conftest import HERE, few_digits, warm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="torch's devices written in Python are of 2.9 and newer"
    ),
]
# kind of detector -> config, and what makes it that kind
DETECTORS = {
    "Faster": ("faster_rcnn",),
    "Mask": ("mask_rcnn",),
    "Keypoint": ("keypoint_rcnn",),
    "Cascade": ("mask_rcnn", "MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"),
    "RPN": ("faster_rcnn", "MODEL.META_ARCHITECTURE", "ProposalNetwork"),
    "RetinaNet": ("retinanet",),
    "GFL": ("gfl",),
    "Panoptic": ("panoptic_fpn",),
    "Semantic": ("panoptic_fpn", "MODEL.META_ARCHITECTURE", "SemanticSegmentor", "MODEL.MASK_ON", "False"),
    "Classifier": ("classification",),
}
# 3 images to test on; a panoptic quality would be of all images, so a Panoptic FPN is tested by its semantic maps
STUFF = ["DATASETS.HOLD_OUT", "[['digits_val_panoptic_stuffonly', 3]]", "DATASETS.TEST", "('digits_val_panoptic_stuffonly_held_out',)"]
OWN_DATA = {
    "Panoptic": ["DATASETS.TRAIN", "('digits_train_panoptic_separated',)", *STUFF],
    "Semantic": ["DATASETS.TRAIN", "('digits_train_panoptic_stuffonly',)", *STUFF],
    "Classifier": ["DATASETS.HOLD_OUT", "[['digits_classes_val', 3]]", "DATASETS.TEST", "('digits_classes_val_held_out',)"],
}
OWN_DATA["Classifier"] += ["DATASETS.TRAIN", "('digits_classes_train',)"]
EVERYTHING = ["MODEL_EMA.ENABLED", "True", "SOLVER.ACCUMULATE", "2", "TEST.PRECISE_BN.ENABLED", "True", "TEST.PRECISE_BN.NUM_ITER", "2"]
# random weights find something only where every score counts
LOOSE = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0", "MODEL.RETINANET.SCORE_THRESH_TEST", "0.0", "MODEL.GFL.SCORE_THRESH_TEST", "0.0"]
SMALL = ["SOLVER.IMS_PER_BATCH", "2", "INPUT.MIN_SIZE_TRAIN", "(96,)", "INPUT.MIN_SIZE_TEST", "96", "TEST.DETECTIONS_PER_IMAGE", "10"]
SMALL += ["DATALOADER.NUM_WORKERS", "0", "SOLVER.WARMUP_ITERS", "0", "VIS_PERIOD", "0", "TEST.PICTURES", "1"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Overrides for a few digits to train and to test on."""
    made = few_digits(tmp_path_factory.mktemp("few"), {"train": 6, "val": 3})
    entries = [[f"few_{split}", *paths] for split, paths in made.items()]
    return ["DATASETS.REGISTER", str(entries), "DATASETS.TRAIN", "('few_train',)", "DATASETS.TEST", "('few_val',)"]


def perform(*commands):
    """Runs programs one after the other in one process, in which there is the device."""
    result = warm(os.path.join(HERE, "pretend.py"), json.dumps(commands), timeout=580)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def metrics(folder):
    """The figures of each line that a run wrote, without times."""
    with open(os.path.join(folder, "metrics.json")) as f:
        lines = [json.loads(line) for line in f]
    return [{key: value for key, value in line.items() if "time" not in key and "eta" not in key} for line in lines]


def test_tensors_of_the_device_and_the_cpu_do_not_mix(tmp_path):
    """But numbers and indices of the CPU are taken; what runs on the CPU alone is seen."""
    (tmp_path / "mix.py").write_text(
        "import sys, torch\n"
        "x = torch.ones(3, device=sys.argv[1])\n"
        "assert x.device.type == 'pretend' and (x + torch.tensor(1.0)).sum().item() == 6 and x[torch.tensor([0])].tolist() == [1]\n"
        "for mixed in (lambda: x + torch.ones(3), lambda: torch.ones(3)[x.long()], lambda: torch.stack((x, torch.ones(3)))):\n"
        "    try:\n"
        "        mixed()\n"
        "    except RuntimeError as error:\n"
        "        assert 'on one device' in str(error)\n"
        "    else:\n"
        "        sys.exit('mixed')\n"
    )
    perform([str(tmp_path / "mix.py"), "pretend:0"])
    (tmp_path / "cpu.py").write_text("import torch\ntorch.ones(3).sum().item()\n")
    with pytest.raises(AssertionError, match="nothing ran on the device"):
        perform([str(tmp_path / "cpu.py"), "pretend:0"])


@pytest.mark.parametrize("kind", cases(DETECTORS, tried=("GFL",)))
def test_detectors(kind, digits, tmp_path):
    """Training, its evaluation, a run that goes on, and an optimized evaluation; the first losses and figures to 1e-3 of those on the CPU."""
    config, *changes = DETECTORS[kind]
    more = [] if kind in ("RPN", "Semantic", "Classifier") else LOOSE
    settings = ["--config-file", f"digits/{config}_digits.yaml", *SMALL, *digits, *OWN_DATA.get(kind, []), *more, *changes, *EVERYTHING]
    there, here = (["MODEL.DEVICE", device, "OUTPUT_DIR", str(tmp_path / device[:3])] for device in ("pretend:0", "cpu"))
    weights = ["OUTPUT_DIR", str(tmp_path / "optimized"), "MODEL.WEIGHTS", str(tmp_path / "pre" / "model_final.pth")]
    perform(
        ["train_net.py", *settings, *there, "SOLVER.MAX_ITER", "2"],
        ["train_net.py", "--resume", "--new-schedule", *settings, *there, "SOLVER.MAX_ITER", "3"],
        ["train_net.py", "--eval-only", "--optimize", *settings, *there, *weights],
        ["train_net.py", *settings, *here, "SOLVER.MAX_ITER", "2"],
    )
    found, expected = metrics(tmp_path / "pre"), metrics(tmp_path / "cpu")
    assert [line["iteration"] for line in found] == [1, 2, 2, 3] and [line["iteration"] for line in expected] == [1, 2]
    for ours, theirs in zip(found, expected):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-3, nan_ok=True)
    assert all(math.isfinite(line["total_loss"]) for line in found if "total_loss" in line)


@pytest.mark.whole
def test_search(tmp_path):
    """A supernet is trained, and searched by evolution; the best path is written."""
    data = ["DATASETS.HOLD_OUT", "[['digits_train', 6]]", "DATASETS.TRAIN", "('digits_train_kept',)"]
    run = [*SMALL, *data, "MODEL.DEVICE", "pretend:0", "OUTPUT_DIR", str(tmp_path), "MODEL.SHUFFLENETV2.WIDTH", "0.25"]
    config = ["--config-file", "digits/detnas_supernet_digits.yaml"]
    search = ["ONE_SHOT.GENERATIONS", "2", "ONE_SHOT.POPULATION", "2", "ONE_SHOT.CALIBRATION_IMAGES", "4"]
    search += ["ONE_SHOT.DATASET", "digits_train_held_out", "ONE_SHOT.MAX_COST", "4e+7"]
    search += ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth"), "ONE_SHOT.METRIC", "bbox/AP50", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]
    perform(
        ["train_net.py", *config, *run, "SOLVER.MAX_ITER", "1", "DATASETS.TEST", "()"],
        ["backbones.search.one_shot", *config, *run, *search],
    )
    with open(tmp_path / "search.json") as f:
        assert len(json.load(f)["archive"]) >= 2
    assert (tmp_path / "best_subnet.yaml").stat().st_size
