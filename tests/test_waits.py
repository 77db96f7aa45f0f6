"""A training step waits for its device no more often than detectron2's own does."""

import pytest
import torch
from conftest import HERE, warm

CONFIGS = {
    "faster": "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml",
    "mask": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
    "retinanet": "COCO-Detection/retinanet_R_50_FPN_1x.yaml",
    "gfl": "COCO-Detection/gfl_R_50_FPN_3x.yaml",
}
SCRIPT = """
import sys
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
import pretend
from backbones import use_backbone, zoo
from backbones.engine.step import Steps

device = pretend.setup()
objects = Instances((96, 128))
objects.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 60.0, 70.0], [40.0, 20.0, 120.0, 90.0]]))
objects.gt_classes = torch.tensor([1, 2])
objects.gt_masks = PolygonMasks([[[10.0, 10.0, 60.0, 10.0, 60.0, 70.0]], [[40.0, 20.0, 120.0, 20.0, 120.0, 90.0]]])
batch = [{"image": torch.zeros(3, 96, 128, dtype=torch.uint8), "instances": objects}]
for name in sys.argv[1:]:
    cfg = zoo.get_config(name)
    use_backbone(cfg, "RegNetX-200MF")
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 64
    cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.REGNET.NORM, cfg.MODEL.DEVICE = "", 0, "BN", str(device)
    with pretend.OnDevice():
        model, counts = build_model(cfg), []
        for kind in (SimpleTrainer, Steps):
            trainer = kind(model, [batch], torch.optim.SGD(model.parameters(), lr=1e-9))
            trainer.iter = 1
            with EventStorage(1):
                torch.manual_seed(0)
                pretend.waits.clear()
                trainer.run_step()
            counts.append(len(pretend.waits))
    print(*counts)
"""


@pytest.mark.slow
@pytest.mark.skipif(tuple(map(int, torch.__version__.split(".")[:2])) < (2, 9), reason="torch's devices written in Python are of 2.9 and newer")
def test_waits():
    """Counted in one step of each, of the same model, image and random numbers."""
    result = warm("-c", SCRIPT, *CONFIGS.values(), cwd=HERE)
    assert result.returncode == 0, result.stderr[-3000:]
    for name, line in zip(CONFIGS, result.stdout.splitlines(), strict=True):
        theirs, ours = map(int, line.split())
        print(f"{name}: detectron2 {theirs}, ours {ours}")
        assert 0 < ours <= theirs, name
