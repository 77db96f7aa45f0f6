"""Image classification in the same trainer: folders of images, the model, its schedule and figures, and its weights in a detector."""

import os
import shutil

import numpy as np
import pytest
import torch
from conftest import warm
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from backbones import UserError, add_backbones_config, use_backbone, zoo
from backbones.checkpoint import GatedCheckpointer
from backbones.config import check_config, merge_overrides
from backbones.data import check_datasets
from backbones.data.classification import ClassificationMapper, register_image_folders
from backbones.data.loader import NamesFiles
from backbones.engine import Trainer
from backbones.evaluation.build import ClassificationEvaluator
from backbones.registry import family_of
from backbones.solver import build_lr_scheduler

pytestmark = pytest.mark.slow


def config(*overrides):
    cfg = zoo.get_config("digits/classification_digits.yaml")
    merge_overrides(cfg, ["MODEL.DEVICE", "cpu", *map(str, overrides)])
    return cfg


@pytest.fixture
def folder(tmp_path):
    """Two classes: red and blue pictures of several sizes, one of them grey in the file."""
    rng = np.random.default_rng(0)
    for label, colour in enumerate(((200, 30, 30), (30, 30, 200))):
        os.makedirs(tmp_path / "images" / f"class{label}")
        for i in range(6):
            noise = rng.integers(-20, 20, (40 + 7 * i, 60, 3))
            Image.fromarray((np.array(colour) + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / "images" / f"class{label}" / f"{i}.png")
    return str(tmp_path / "images")


def registered(folder, name, *classes):
    cfg = get_cfg()
    add_backbones_config(cfg)
    cfg.DATASETS.CLASSES = list(classes)
    cfg.DATASETS.IMAGE_FOLDERS = [[name, folder]]
    register_image_folders(cfg)
    return DatasetCatalog.get(name)


def test_folders(folder):
    records = registered(folder, "red_and_blue")
    assert [r["label"] for r in records] == [0] * 6 + [1] * 6 and MetadataCatalog.get("red_and_blue").classes == ("class0", "class1")
    registered(folder, "red_and_blue")  # once more is no other
    assert MetadataCatalog.get("red_and_blue").said == ["red_and_blue: 12 images of 2 classes"]
    with pytest.raises(UserError, match="'red_and_blue' is taken"):
        registered(os.path.dirname(folder), "red_and_blue")
    for entry, words in (
        (["x"], "must have the form"),
        (["x", "/nowhere"], "'/nowhere' of 'x' does not exist"),
        (["x", f"{folder}/class0"], "class"),
    ):
        cfg = get_cfg()
        add_backbones_config(cfg)
        cfg.DATASETS.IMAGE_FOLDERS = [entry]
        with pytest.raises(UserError, match=words) as error:
            register_image_folders(cfg)
        assert "\n" not in str(error.value)


def test_what_is_left_out_of_folders_is_counted(folder):
    os.makedirs(os.path.join(folder, ".ipynb_checkpoints"))
    for name in ("class0/notes.gif", "class1/.hidden", "class1/list.txt", "class0/._0.png", ".ipynb_checkpoints/0.png"):
        with open(os.path.join(folder, name), "w") as f:
            f.write("no image")
    assert len(registered(folder, "red alone", "class0")) == 6
    left = "left out: 6 files of other classes; left out: 2 files that are no images"
    assert MetadataCatalog.get("red alone").said == [f"red alone: 6 images of 1 class; {left}"]


@pytest.mark.parametrize("order, red", [("RGB", 0), ("BGR", 2)])
def test_mapper(folder, order, red):
    """Sizes, and the order of the channels, which a picture without noise shows."""
    record = registered(folder, f"images_{order}")[0]
    for training in (True, False):
        image = ClassificationMapper(training, 32, 40, (0.08, 1.0), 0.0, "horizontal", order)(record)["image"]
        assert image.dtype == torch.uint8 and image.shape == (3, 32, 32)
        assert image[red].float().mean() > 150 > image[2 - red].float().mean()
    (open(f"{folder}/broken.png", "w")).write("no image")
    with pytest.raises(UserError, match="broken.png' cannot be read"):
        NamesFiles(ClassificationMapper(False, 32, 40, (0.08, 1.0), 0.0, "horizontal", order))(
            {"file_name": f"{folder}/broken.png", "label": 0}
        )


def test_figures():
    evaluator = ClassificationEvaluator()
    evaluator.reset()
    scores = torch.arange(10.0)
    for label in (9, 8, 5, 4):  # the best, the second, the fifth and the sixth
        evaluator.process([{"label": label, "image_id": label}], [{"scores": scores}])
    evaluator.process([{"label": 9, "image_id": 9}], [{"scores": scores}])  # seen again
    assert evaluator.evaluate() == {"classification": {"top1": 25.0, "top5": 75.0}}
    evaluator.reset()  # of what tells nothing apart, nothing is right
    for i, scores in enumerate((torch.zeros(10), torch.full((10,), float("nan")))):
        evaluator.process([{"label": 3, "image_id": i}], [{"scores": scores}])
    assert evaluator.evaluate() == {"classification": {"top1": 0.0, "top5": 0.0}}


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["INPUT.CLASSIFICATION.RESIZE", "8"], "must be at least SIZE"),
        (["INPUT.CLASSIFICATION.SCALE", "[1.0]"], "smallest and largest fraction"),
        (["INPUT.CLASSIFICATION.SCALE", "[-1.0, 0.5]"], "smallest and largest fraction"),
        (["INPUT.CLASSIFICATION.COLOR_JITTER", "-1.0"], "at least 0"),
        (["DATASETS.TRAIN", "('digits_train',)"], "has no images with a class each"),
    ],
)
def test_mistakes_in_configs(overrides, words):
    cfg = config(*overrides)
    with pytest.raises(UserError, match=words):
        check_config(cfg, training=True)
        check_datasets(cfg, training=True)


def test_the_same_classes_everywhere(folder, tmp_path):
    """Folders of other classes in training and evaluation, which numbers alone would not tell apart."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    names = sorted(name for name in os.listdir(other) if os.path.isdir(other / name))
    os.rename(other / names[0], other / "another")
    cfg = config("MODEL.CLASSIFIER.NUM_CLASSES", 2)
    cfg.DATASETS.IMAGE_FOLDERS = [["these", folder], ["others", str(other)]]
    register_image_folders(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("these",), ("others",)
    with pytest.raises(UserError, match="'these' and 'others' have different classes"):
        check_datasets(cfg, training=True)


def test_model():
    """The loss falls on one batch; every weight is trained; the last convolution and smoothing are part of it."""
    cfg = config("MODEL.CLASSIFIER.CHANNELS", 32)
    check_config(cfg, training=True)
    model = build_model(cfg).train()
    batch = [{"image": torch.full((3, 64, 64), 60 * i, dtype=torch.uint8), "label": i} for i in range(4)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(12):
        loss = model(batch)["loss_cls"]
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(np.log(10), abs=0.3) and losses[-1] < losses[0] - 0.5
    smooth = -0.1 * np.log(0.01) - 0.9 * np.log(0.91)
    assert losses[-1] > 0.5 * smooth  # below which a smoothed loss does not come
    scores = model.eval()(batch)[0]["scores"]
    assert scores.shape == (10,) and scores.sum().item() == pytest.approx(1, abs=1e-5)
    assert model.last_conv.conv.out_channels == 32


def test_linear_schedule():
    cfg = config("SOLVER.MAX_ITER", 100, "SOLVER.WARMUP_ITERS", 0, "SOLVER.BASE_LR", 0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = build_lr_scheduler(cfg, optimizer)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    np.testing.assert_allclose(rates, 0.5 * (1 - np.arange(100) / 100), atol=1e-9)


def test_its_weights_begin_a_detector(tmp_path):
    """The backbone alone is taken, and all of it; a classifier of another network is refused."""
    cfg = config()
    source = build_model(cfg)
    torch.save({"model": source.state_dict()}, tmp_path / "classifier.pth")
    detector = zoo.get_config("digits/faster_rcnn_digits.yaml")
    detector.MODEL.DEVICE = "cpu"
    model = build_model(detector)
    checkpointer = GatedCheckpointer(model, require="backbone")
    checkpointer.load(str(tmp_path / "classifier.pth"))
    weights = model.backbone.bottom_up.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in source.backbone.state_dict().items())
    use_backbone(detector, "MobileNetV2")
    with pytest.raises(UserError, match="does not fit"):
        GatedCheckpointer(build_model(detector), require="backbone").load(str(tmp_path / "classifier.pth"))


def test_every_backbone_classifies():
    for name in ("MobileNetV2", "RegNetX-200MF", "MAE-DET-S", "DetNAS-300M"):
        cfg = config()
        use_backbone(cfg, name)
        model = Trainer.build_model(cfg).eval()
        assert isinstance(model.backbone, family_of(name).network)
        with torch.no_grad():
            assert model([{"image": torch.zeros(3, 64, 64)}])[0]["scores"].shape == (10,)


@pytest.mark.slow
def test_from_the_command_line(folder, tmp_path):
    data = ["DATASETS.IMAGE_FOLDERS", f"[['own', '{folder}']]", "DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"]
    command = ["train_net.py", "--config-file", "digits/classification_digits.yaml", "MODEL.DEVICE", "cpu", *data]
    command += ["MODEL.CLASSIFIER.NUM_CLASSES", "2", "SOLVER.MAX_ITER", "60", "SOLVER.IMS_PER_BATCH", "8", "SOLVER.WARMUP_ITERS", "0"]
    command += ["INPUT.CLASSIFICATION.SIZE", "32", "INPUT.CLASSIFICATION.RESIZE", "32", "INPUT.CLASSIFICATION.COLOR_JITTER", "0.0"]
    command += ["SOLVER.BASE_LR", "0.05", "OUTPUT_DIR", str(tmp_path / "out")]
    result = warm(*command)
    assert result.returncode == 0, result.stderr[-2000:]
    top1 = float(result.stdout.rpartition("copypaste: ")[2].split(",")[0])
    assert top1 == 100.0
    wrong = warm(*command, "MODEL.CLASSIFIER.NUM_CLASSES", "3")
    assert wrong.returncode == 2 and "has 2: set MODEL.CLASSIFIER.NUM_CLASSES 2" in wrong.stderr.splitlines()[-1]
