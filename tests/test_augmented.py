"""Test-time augmentation: of one view the plain results, and of mirrored images mirrored ones, whatever the head."""

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from backbones import UserError, zoo
from backbones.config import merge_overrides
from backbones.data import follow
from backbones.engine import open_config
from backbones.evaluation import augmented
from backbones.evaluation.augmented import DenseWithTTA, Views
from backbones.meta import on_meta

CONFIGS = {
    "RetinaNet": ("digits/retinanet_digits.yaml", ["MODEL.RETINANET.SCORE_THRESH_TEST", "0.0"]),
    "GFL": ("digits/gfl_digits.yaml", ["MODEL.GFL.SCORE_THRESH_TEST", "0.0"]),
    "masks": ("digits/mask_rcnn_digits.yaml", ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]),
    "keypoints": ("digits/keypoint_rcnn_digits.yaml", ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.0"]),
}
WIDTH = 96
IMAGE = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, WIDTH), dtype=np.uint8))


@pytest.fixture(scope="module")
def detectors():
    """Random ones: config and model by kind."""
    result = {}
    for kind, (path, overrides) in CONFIGS.items():
        cfg = zoo.get_config(path)
        merge_overrides(
            cfg, [*overrides, "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "TEST.DETECTIONS_PER_IMAGE", "8", "TEST.AUG.MAX_SIZE", "128"]
        )
        torch.manual_seed(0)
        model = build_model(cfg).eval()
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_score.weight", "score_lowres.weight")):  # so that rounding does not change which score is higher
                nn.init.normal_(parameter, std=3e-4 if "roi_heads" in name else 0.05)
            if name.endswith(("anchor_deltas.weight", "bbox_pred.weight")):  # boxes of no width or height are left out: rounding decides
                nn.init.normal_(parameter, std=1e-4)
        result[kind] = cfg, model
    return result


def found(model, image):
    """What is found, as tensors by field; the image was twice as high and wide before it was resized."""
    with torch.no_grad():
        (output,) = model([{"image": image, "height": 128, "width": 2 * WIDTH}])
    fields = output["instances"].get_fields()
    assert len(output["instances"]) > 1
    return {name: value.tensor if name == "pred_boxes" else value for name, value in fields.items()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_one_view_gives_the_plain_results(kind, detectors):
    cfg, model = detectors[kind]
    cfg = cfg.clone()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (64,), False
    plain, views = found(model, IMAGE), found(augmented(cfg, model), IMAGE)
    for name, value in plain.items():
        assert torch.equal(value, views[name]), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_mirrored_images_have_mirrored_results(kind, detectors):
    """An image and its mirror image have the same views. Boxes and keypoints to a hundredth of a pixel; left and right change places."""
    cfg, model = detectors[kind]
    cfg = cfg.clone()
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.FLIP = (64,), True
    model = augmented(cfg, model)
    one, other = found(model, IMAGE), found(model, IMAGE.flip(2))
    torch.testing.assert_close(one["scores"], other["scores"], rtol=0, atol=1e-5)
    assert torch.equal(one["pred_classes"], other["pred_classes"])
    torch.testing.assert_close(one["pred_boxes"][:, [0, 2]], 2 * WIDTH - other["pred_boxes"][:, [2, 0]], rtol=0, atol=1e-2)
    torch.testing.assert_close(one["pred_boxes"][:, [1, 3]], other["pred_boxes"][:, [1, 3]], rtol=0, atol=1e-2)
    if kind == "masks":
        differ = (one["pred_masks"] != other["pred_masks"].flip(2)).float().mean()
        assert one["pred_masks"].any() and differ < 0.01
    if kind == "keypoints":
        # in boxes thinner than a pixel detectron2 counts from the left
        large = (one["pred_boxes"][:, 2:] - one["pred_boxes"][:, :2]).min(dim=1).values > 1
        points, mirrored = one["pred_keypoints"][large], other["pred_keypoints"][large][:, model.flip_indices]
        assert len(points) and model.flip_indices != list(range(4))
        torch.testing.assert_close(points[:, :, 0], 2 * WIDTH - mirrored[:, :, 0], rtol=0, atol=1e-2)
        torch.testing.assert_close(points[:, :, 1:], mirrored[:, :, 1:], rtol=0, atol=1e-2)


class OneEyed(nn.Module):
    """Finds what is bright in the left half of an image, as a detector with these two options would."""

    test_nms_thresh, max_detections_per_image = 0.5, 3

    def forward(self, examples):
        results = []
        for example in examples:
            scale = example["width"] / example["image"].shape[2]
            columns = [x for x in example["image"][0, 5].nonzero().flatten().tolist() if x < example["image"].shape[2] / 2]
            boxes = torch.tensor([[x * scale, 4.0, (x + 1) * scale, 6.0] for x in columns]).reshape(-1, 4)
            instances = Instances((example["height"], example["width"]), pred_boxes=Boxes(boxes))
            instances.scores, instances.pred_classes = torch.linspace(0.5, 0.9, len(boxes)), torch.zeros(len(boxes), dtype=torch.long)
            results.append({"instances": instances})
        return results


def test_a_mirrored_view_finds_what_the_other_misses():
    cfg = zoo.get_config("digits/retinanet_digits.yaml")
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE = (10, 10), 100
    image = torch.zeros(3, 10, 20, dtype=torch.uint8)
    image[:, 5, [1, 9, 16]] = 255
    seen = {}
    for cfg.TEST.AUG.FLIP in (False, True):
        (output,) = DenseWithTTA(OneEyed(), Views(cfg))([{"image": image, "height": 10, "width": 20}])
        seen[cfg.TEST.AUG.FLIP] = sorted(output["instances"].pred_boxes.tensor[:, 0].tolist())
    assert seen == {False: [1, 9], True: [1, 9, 16]}


def test_views_of_a_thin_image():
    cfg = zoo.get_config("digits/retinanet_digits.yaml")
    cfg.TEST.AUG.MIN_SIZES, cfg.TEST.AUG.MAX_SIZE, cfg.TEST.AUG.FLIP = (32,), 64, True
    for channels in (1, 3):
        views = Views(cfg)({"image": torch.ones(channels, 1, 640, dtype=torch.uint8), "height": 1, "width": 3000})
        assert [tuple(view["image"].shape) for view in views] == [(channels, 1, 64)] * 2


def test_what_has_no_views(detectors):
    cfg, _ = detectors["keypoints"]
    with pytest.raises(UserError, match="TEST.AUG supports R-CNNs, RetinaNet and GFL, not Linear"):
        augmented(cfg, nn.Linear(1, 1))
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ("coco_2017_val",)
    with pytest.raises(UserError, match="TEST.AUG.FLIP mirrors images.*set it to False"):
        augmented(cfg, detectors["keypoints"][1])


def test_python_configs_have_views_too():
    for path in ("lazy/retinanet_V_39_FPN_1x.py", "lazy/gfl_MAE_DET_S_FPN_3x.py"):
        front = open_config(path, ["train.augmented_test.min_sizes=[32,64]", "train.augmented_test.flip=False", "train.device=meta"])
        with on_meta():
            model = augmented(front.settings, front.build_model())
        assert type(model) is DenseWithTTA and len(model.views({"image": torch.ones(3, 9, 9), "height": 9, "width": 9})) == 2


def test_keypoints_without_sides_are_not_mirrored(tmp_path):
    import json

    from detectron2.data import DatasetCatalog, MetadataCatalog
    from PIL import Image

    from backbones.data import register_from_config

    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    box = {
        "id": 1,
        "image_id": 1,
        "category_id": 1,
        "bbox": [1, 1, 9, 9],
        "area": 81,
        "iscrowd": 0,
        "keypoints": [2, 2, 2, 5, 5, 2],
        "num_keypoints": 2,
    }
    content = {"images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}], "annotations": [box]}
    (tmp_path / "a.json").write_text(
        json.dumps({**content, "categories": [{"id": 1, "name": "fish", "keypoints": ["mouth", "tail"], "skeleton": []}]})
    )
    cfg = zoo.get_config("digits/keypoint_rcnn_digits.yaml")
    cfg.DATASETS.REGISTER, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = [["fish", str(tmp_path / "a.json"), str(tmp_path)]], (), ("fish",)
    cfg.TEST.AUG.ENABLED = True
    try:
        register_from_config(cfg)
        said = {key: (value, reason) for key, value, reason in follow(cfg, replaced=True)}
        assert said["TEST.AUG.FLIP"][0] is False and "no keypoint has left or right" in said["TEST.AUG.FLIP"][1]
    finally:
        for catalogue in (DatasetCatalog, MetadataCatalog):
            catalogue.remove("fish")
