"""The faster mappers against detectron2's: the same tensors, or pixels that differ by one level at most."""

import copy
import itertools
import sys

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from fvcore.transforms.transform import CropTransform, HFlipTransform, VFlipTransform
from PIL import Image

from backbones import zoo
from backbones.config import merge_overrides
from backbones.data import mapper as module
from backbones.data.mapper import FasterMapper, Mapper

CONFIG = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml"


def config(*overrides, mapper="exact"):
    cfg = zoo.get_config(CONFIG)
    small = ["INPUT.MIN_SIZE_TRAIN", "(96, 131, 160)", "INPUT.MAX_SIZE_TRAIN", "200", "INPUT.MIN_SIZE_TEST", "120"]
    merge_overrides(cfg, [*small, "INPUT.MAPPER", mapper, *map(str, overrides)])
    return cfg


def record(folder, kind="jpg", rle=False, seed=0):
    """An image with objects inside, across the border and beyond it, a crowd, and one of several polygons."""
    rng = np.random.default_rng(seed)
    height, width = 101, 140
    pixels = Image.fromarray(rng.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    name = str(folder / f"{kind}{seed}.{'png' if kind in ('grey', 'rgba') else 'jpg'}")
    options = {}
    if kind == "exif":
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {"exif": exif}
        height, width = width, height
    pixels.convert({"grey": "L", "rgba": "RGBA"}.get(kind, "RGB")).save(name, **options)
    annotations = []
    for i in range(6):
        center, radius = rng.uniform((0, 0), (width, height)), rng.uniform(2, 40)
        if i == 5:
            center = np.array([-60.0, -60.0])
        angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
        polygon = np.stack([center[0] + radius * np.cos(angles), center[1] + radius * np.sin(angles)], axis=1).round(2)
        polygons = [polygon.flatten().tolist()] + ([(polygon.flatten() * 0.5).tolist()] if i == 1 else [])
        segmentation = mask_util.merge(mask_util.frPyObjects(polygons, height, width)) if rle else polygons
        x, y = (center - radius).tolist()
        annotations.append(
            {
                "bbox": [x, y, 2 * radius, 2 * radius],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": i,
                "iscrowd": int(i == 2),
                "segmentation": segmentation,
                "keypoints": rng.uniform(0, 100, (17, 3)).round().flatten().tolist(),
            }
        )
    return {"file_name": name, "height": height, "width": width, "image_id": seed, "annotations": annotations}


def assert_same(expected, found, levels=0):
    assert set(expected) == set(found)
    assert expected["image"].shape == found["image"].shape and expected["image"].dtype == found["image"].dtype
    assert (expected["image"].int() - found["image"].int()).abs().max() <= levels
    if "sem_seg" in expected:
        assert torch.equal(expected["sem_seg"], found["sem_seg"])
    if "instances" not in expected:
        return
    a, b = expected["instances"], found["instances"]
    assert set(a.get_fields()) == set(b.get_fields()) and a.image_size == b.image_size
    assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor) and torch.equal(a.gt_classes, b.gt_classes)
    if a.has("gt_masks") and hasattr(a.gt_masks, "polygons"):
        pairs = [(p, q) for x, y in zip(a.gt_masks.polygons, b.gt_masks.polygons) for p, q in zip(x, y)]
        assert all(np.array_equal(p, q) for p, q in pairs)
    elif a.has("gt_masks"):
        assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
    if a.has("gt_keypoints"):
        assert torch.equal(a.gt_keypoints.tensor, b.gt_keypoints.tensor)


def compare(cfg, data, levels=0, training=True, draws=4):
    theirs, ours = DatasetMapper(cfg, training), FasterMapper(cfg, training)
    assert ours.blind
    before = copy.deepcopy(data)
    for seed in range(draws):
        results = []
        for mapper in (theirs, ours):
            np.random.seed(seed)
            results.append(mapper(data))
        assert_same(*results, levels)
    assert str(before) == str(data)


@pytest.mark.parametrize("mapper, levels", [("exact", 0), ("fast", 1)])
@pytest.mark.parametrize("kind", ["jpg", "grey", "rgba", "exif"])
def test_files(kind, mapper, levels, tmp_path):
    for order, training in itertools.product(("BGR", "RGB"), (True, False)):
        compare(config("INPUT.FORMAT", order, mapper=mapper), record(tmp_path, kind), levels, training)


@pytest.mark.parametrize("flip", ["horizontal", "vertical", "none"])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("form, rle", [("polygon", False), ("bitmask", False), ("bitmask", True)])
def test_augmentations(form, rle, crop, flip, tmp_path):
    cfg = config("INPUT.MASK_FORMAT", form, "INPUT.RANDOM_FLIP", flip, "INPUT.CROP.ENABLED", crop)
    for seed in range(3):
        compare(cfg, record(tmp_path, rle=rle, seed=seed))


def test_crops_around_objects(tmp_path):
    """Each contains an object's centre, every object's in its turn; the fast mapper draws the same ones. Without objects any part will do."""
    crop = ("INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute", "INPUT.CROP.SIZE", [20, 30], "INPUT.RANDOM_FLIP", "none")
    cfg = config(*crop, "INPUT.CROP.AROUND_OBJECTS", True, "MODEL.MASK_ON", False)
    data = record(tmp_path)
    boxes = [BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYXY_ABS) for a in data["annotations"] if not a["iscrowd"]]
    boxes = np.clip(boxes, 0, (140, 101, 140, 101))  # the last one is beyond the image
    centres = (boxes[:-1, :2] + boxes[:-1, 2:]) / 2
    mappers = [module.Mapper(cfg, True), FasterMapper(cfg, True)]
    seen = set()
    for seed in range(60):
        found = []
        for mapper in mappers:
            np.random.seed(seed)
            _, transforms = mapper.transformed(mapper.copied(data), None)
            found.append(next(t for t in transforms.transforms if isinstance(t, CropTransform)))
        part, other = found
        assert (part.x0, part.y0, part.w, part.h) == (other.x0, other.y0, other.w, other.h) and (part.h, part.w) == (20, 30)
        x, y = centres[:, 0] - part.x0, centres[:, 1] - part.y0
        inside = np.flatnonzero((x >= -1) & (x <= 31) & (y >= -1) & (y <= 21))  # the centre may lie on the part's edge
        assert len(inside)
        seen |= set(inside)
    assert seen == set(range(len(centres))) and len(centres) > 2
    for annotations in ([], data["annotations"][-1:]):
        part = mappers[0]({**copy.deepcopy(data), "annotations": annotations})
        assert not len(part["instances"])


def test_boxes_alone_and_no_objects(tmp_path):
    compare(config("MODEL.MASK_ON", False), record(tmp_path))
    for form in ("polygon", "bitmask"):
        compare(config("INPUT.MASK_FORMAT", form), {**record(tmp_path), "annotations": []})
    data = record(tmp_path)
    data.pop("annotations")
    compare(config(), data)


@pytest.mark.parametrize("kind", ["integers", "mixed", "modes"])
def test_boxes_of_other_kinds(kind, tmp_path):
    """detectron2 cuts whole numbers to whole numbers."""
    data = record(tmp_path)
    for i, annotation in enumerate(data["annotations"]):
        box = [round(v) for v in annotation["bbox"]]
        if kind == "integers" or (kind == "mixed" and i % 2):
            annotation["bbox"] = box
        elif kind == "mixed":
            annotation["bbox"] = [float(box[0]), *box[1:]]
        elif i % 2:
            x, y, w, h = annotation["bbox"]
            annotation["bbox"], annotation["bbox_mode"] = [x, y, x + w, y + h], BoxMode.XYXY_ABS
    for form in ("polygon", "bitmask"):
        compare(config("INPUT.MASK_FORMAT", form), data)


def test_keypoints_and_labels(tmp_path):
    MetadataCatalog.get("mapper_keypoints").set(
        thing_classes=["a"], keypoint_names=[str(i) for i in range(17)], keypoint_flip_map=[("1", "2"), ("3", "4")]
    )
    cfg = config("MODEL.KEYPOINT_ON", True, "INPUT.MASK_FORMAT", "bitmask", "DATASETS.TRAIN", "('mapper_keypoints',)")
    data = record(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 5, (101, 140), dtype=np.uint8)).save(tmp_path / "labels.png")
    compare(cfg, {**data, "sem_seg_file_name": str(tmp_path / "labels.png")})
    cfg.DATASETS.TRAIN = ("of_another_machine",)  # an evaluation needs no training data
    assert Mapper.from_config(cfg, False)["use_keypoint"]


def test_proposals(tmp_path):
    cfg = config("MODEL.LOAD_PROPOSALS", True)
    boxes = np.random.default_rng(0).uniform(0, 90, (20, 4))
    boxes[:, 2:] += boxes[:, :2]
    data = {**record(tmp_path), "proposal_boxes": boxes, "proposal_objectness_logits": np.arange(20.0), "proposal_bbox_mode": BoxMode.XYXY_ABS}
    theirs, ours = DatasetMapper(cfg, True), FasterMapper(cfg, True)
    np.random.seed(0)
    expected = theirs(data)
    np.random.seed(0)
    found = ours(data)
    assert torch.equal(expected["proposals"].proposal_boxes.tensor, found["proposals"].proposal_boxes.tensor)
    assert torch.equal(expected["proposals"].objectness_logits, found["proposals"].objectness_logits)


def test_what_looks_at_pixels_is_left_to_detectron2(tmp_path):
    cfg = config()
    augmentations = [T.RandomContrast(0.5, 1.5), T.ResizeShortestEdge((96, 96), 200)]
    options = {**FasterMapper.from_config(cfg, True), "augmentations": augmentations}
    ours = FasterMapper(**options)
    theirs = DatasetMapper(**{key: value for key, value in options.items() if key not in ("fast", "reading")})
    assert not ours.blind
    data = record(tmp_path)
    np.random.seed(0)
    expected = theirs(data)
    np.random.seed(0)
    assert_same(expected, ours(data))


def test_without_the_jpeg_decoder(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    compare(config(mapper="fast"), record(tmp_path), levels=1)


def test_damaged_files_are_said(tmp_path):
    data = record(tmp_path)
    with open(data["file_name"], "rb") as f:
        content = f.read()
    with open(data["file_name"], "wb") as f:
        f.write(content[: len(content) // 3])
    for mapper in ("exact", "fast"):
        with pytest.raises(OSError):
            FasterMapper(config(mapper=mapper), True)(data)
    data["height"] += 1
    with open(data["file_name"], "wb") as f:
        f.write(content)
    for mapper in ("exact", "fast"):
        with pytest.raises(Exception, match="Mismatched image shape"):
            FasterMapper(config(mapper=mapper), True)(data)


def test_polygons_of_every_kind():
    """COCO's own masks, bit by bit: polygons inside, outside and across, rounded and not, one or two."""
    rng = np.random.default_rng(0)
    for i in range(400):
        height, width = rng.integers(3, 200, 2)
        polygons = [rng.uniform(-0.3, 1.3, (rng.integers(3, 9), 2)) * (width, height) * rng.choice([1, 0.1]) for _ in range(rng.integers(1, 3))]
        polygons = [p.round() if i % 3 == 0 else p for p in polygons]
        runs = mask_util.merge(mask_util.frPyObjects([p.reshape(-1).tolist() for p in polygons], int(height), int(width)))
        expected, row = mask_util.decode(runs), np.zeros((height, width), np.uint8)
        assert module._fill(polygons, row) == bool(expected.any())
        assert np.array_equal(row, expected)
        assert module.run_lengths(runs["counts"]).sum() == height * width


def test_run_lengths_of_every_kind():
    """What detectron2 makes of masks, bit by bit: empty, full, speckled and solid ones, resized, turned and cut."""
    rng = np.random.default_rng(0)
    for i in range(300):
        height, width = (int(v) for v in rng.integers(1, 90, 2))
        mask = np.zeros((height, width), np.uint8)
        top, left = rng.integers(0, height), rng.integers(0, width)
        mask[top : top + rng.integers(0, 60), left : left + rng.integers(0, 60)] = 1
        mask = (mask * (rng.random(mask.shape) < 0.7), mask, mask * 0, mask * 0 + 1)[i % 4].astype(np.uint8)
        runs = mask_util.encode(np.asfortranarray(mask))
        tall, wide = (int(v) for v in rng.integers(1, 150, 2))
        y, x = int(rng.integers(0, tall)), int(rng.integers(0, wide))
        transforms = [T.ResizeTransform(height, width, tall, wide), HFlipTransform(wide), VFlipTransform(tall), T.NoOpTransform()]
        transforms = T.TransformList([t for t in transforms if rng.random() < 0.6 or isinstance(t, T.ResizeTransform)])
        transforms = transforms + T.TransformList([T.CropTransform(x, y, 40, 40)])
        expected = transforms.apply_segmentation(mask)
        row = np.zeros(expected.shape, np.uint8)
        assert module._pick({**runs, "counts": runs["counts"].decode()} if i % 5 else runs, transforms, row) == bool(expected.any())
        assert np.array_equal(row, expected)
