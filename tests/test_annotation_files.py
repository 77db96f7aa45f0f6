"""Small data sets as annotation tools write them: what is taken, what is refused, and what is said of them."""

import argparse
import json
import os
import re

import numpy as np
import pytest
from conftest import HERE, warm
from detectron2.data import MetadataCatalog
from PIL import Image

import backbones
from backbones.data.inspection import inspect
from backbones.data.sources import Use, sources
from backbones.engine.opening import open_config
from backbones.evaluation.coco import evaluate

SETS = os.path.join(HERE, "data", "annotation_files")
with open(os.path.join(SETS, "sets.json")) as f:
    ABOUT = json.load(f)
# what is said, beside the count of images and objects: of those that are refused in the error, of others on a line of training
SAID = {
    "roboflow_boxes": "group category .1.: .*'kitchen-things'",
    "roboflow_masks_same_name": "6 images, 12 objects of 1 class",
    "cvat_boxes": "12 objects of 2 classes; left out: 0; crowds: 0$",
    "cvat_brush_masks": "every object is marked as a crowd .*: 12 of 12 objects. .*DATASETS.CROWDS",
    "labelstudio_boxes": "12 annotation ids",
    "labelstudio_windows": "12 objects",
    "labelstudio_null_size": "size of image .1.: .*my photo 6.jpg",
    "labelme2coco_pip": "file in another folder .6.: .*'data/train/train_000.jpg' is 'train_000.jpg'",
    "labelme2coco_mixed": "no mask .4.: .*: annotation 1 of 'train_000.jpg', .*DATASETS.NO_MASK",
    "labelme2coco_orders": "own_val: classes by name",
    "via_2_0_11": "no box .1.",
    "fiftyone_before": "12 iscrowd values set to 0",
    "pylabel_old": "12 annotation ids renumbered, 12 iscrowd values set to 0",
    "scalabel_bdd": "INPUT.MASK_FORMAT is set to bitmask",
    "coco_annotator_keypoints": "box of keypoints .12.",
    "sahi_slices": "empty box .1.",
    "lvis_v1": "file of address .6.",
    "crowdhuman": "box beyond edge .12.: .*clipped",
    "crowdhuman_odgt": "odgt, one JSON object per line: convert",
    "wholebody": "12 objects of 1 class",
    "camera_traps": "image ids .6.",
    "taco": "12 objects of 3 classes; left out: 0; crowds: 0$",
    "dota_converted": "box beyond edge .1.: .*clipped",
    "exif_unturned_sizes": "EXIF rotation, .*unrotated.*INPUT.EXIF",
    "kaggle_rle_string": "Kaggle's RLE strings of starts and lengths",
    "q_bom": "12 objects",
    "q_utf16": "12 objects",
    "q_latin1": "not UTF-8 text .*save it as UTF-8",
    "q_nan_area": "1 area computed",
    "q_xyxy": "boxes as corners .8.: .*DATASETS.BOX_FORMAT",
    "q_normalised": "boxes are fractions of the image",
    "q_string_ids": "12 objects",
    "q_float_ids": "12 objects",
    "q_no_sizes": "6 image sizes read from the file",
    "q_no_area_iscrowd": "12 areas computed, 12 iscrowd values set to 0",
    "q_upper_suffix": "file name in another case .6.: .*'train_000.jpg' is 'train_000.JPG'",
    "q_basename_wrong_folder": "file in another folder .6.: .*'images/train_000.jpg'",
    "q_url": "file names are URLs, but images must be on this disk",
    "q_orphans": "orphan annotation .1.",
    "q_16bit_png": "16 or more bits.*INPUT.VALUE_RANGE",
    "q_val_fewer": "own_val: 3 images, 3 objects of 1 of 2 classes",
    "q_one_bad_box": "no box .1.: .*annotation 2 of 'train_000.jpg'",
    "q_empty_val_ann": "own_val: 3 images, no annotations: predictions only, no evaluation",
    "q_unlabelled_no_annotations_key": "own_val: 3 images, no annotations: predictions only, no evaluation",
    "m_keypoints_no_names": "INPUT.RANDOM_FLIP is set to none: no keypoint has left or right in its name.*DATASETS.KEYPOINT_FLIPS",
    "m_keypoints_first_other": "12 objects",
    "m_seg_empty_polygon": "no object has a mask",
    "m_flat_seg_boxes": "12 objects of 2 classes; left out: 0; crowds: 0$",
}
# the same with the key that the refusal, or the warning, names
MENDED = {
    "cvat_brush_masks": ["DATASETS.CROWDS", "objects"],
    "labelme2coco_mixed": ["DATASETS.NO_MASK", "skip"],
    "m_seg_empty_polygon": ["DATASETS.NO_MASK", "box"],
    "exif_unturned_sizes": ["INPUT.EXIF", "ignore"],
    "q_16bit_png": ["INPUT.VALUE_RANGE", "[0, 65535]"],
    "q_xyxy": ["DATASETS.BOX_FORMAT", "xyxy"],
    "m_keypoints_no_names": ["DATASETS.KEYPOINT_FLIPS", "[['1', '2']]", "INPUT.RANDOM_FLIP", "horizontal"],
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """The sets with pictures of 160x120 for their images: data set -> folder."""
    root = tmp_path_factory.mktemp("annotation_files")
    pixels = np.random.default_rng(0).integers(0, 255, (120, 160, 3), np.uint8)
    for name, about in ABOUT.items():
        for file, kind in about["images"].items():
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            if kind.startswith("turned"):
                exif[274] = 6
            deep = Image.fromarray(np.full((120, 160), 32768, np.uint16))
            plain = Image.fromarray(pixels.transpose(1, 0, 2) if kind == "turned and tall" else pixels)
            (deep if kind == "16 bits" else plain).save(path, **({"exif": exif} if kind.startswith("turned") else {}))
        for folder, _, files in os.walk(os.path.join(SETS, name)):
            for file in files:
                inside = os.path.relpath(folder, SETS)
                (root / inside).mkdir(parents=True, exist_ok=True)
                with open(os.path.join(folder, file), "rb") as f:
                    (root / inside / file).write_bytes(f.read())
    return root


pytestmark = pytest.mark.usefixtures("catalogue")


def flags(folder):
    places = {}
    for split in ("train", "val"):
        places[split] = folder / f"{split}.json" if (folder / f"{split}.json").exists() else folder / split / "_annotations.coco.json"
    return [str(part) for split, path in places.items() for part in (f"--{split}", path, f"--{split}-images", folder / split)]


def prepared(folder, config, overrides=()):
    """The front of a training, checked as before its first step."""
    front = open_config(config, ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "SOLVER.IMS_PER_BATCH", "2", *overrides])
    parser = argparse.ArgumentParser()
    backbones.config.add_data_arguments(parser)
    args = parser.parse_args(flags(folder))
    args.eval_only = False
    return front.prepare(args, 1)


def seen_by_the_doctor(front):
    """The lines of the doctor on the data."""
    return [line.message for source in sources(front.settings)[0] for line in inspect(source, Use.of(front.settings)).findings.lines()]


def test_all_sets_are_here():
    assert set(SAID) == set(ABOUT) and all(os.path.isdir(os.path.join(SETS, name)) for name in ABOUT)


@pytest.mark.parametrize("name", SAID)
def test_set(name, folders):
    """Accepted, or refused in one line; the doctor says the same. What is read gives training batches, and the truth as detections AP 100."""
    about = ABOUT[name]
    if about["result"] == "refuse":
        with pytest.raises(backbones.UserError, match=SAID[name]) as error:
            prepared(folders / name, about["config"])
        assert "\n" not in str(error.value)
        return
    flipped = ["INPUT.RANDOM_FLIP", "horizontal"] if "KEYPOINT_FLIPS" in SAID[name] else []
    front = prepared(folders / name, about["config"], flipped)
    assert re.search(SAID[name], "\n".join(front.said), re.M), front.said
    said = {line.partition(" -> ")[0] for line in front.said if re.match(r"own_\w+: [\w ']+ \(\d+\): ", line)}
    assert said <= set(seen_by_the_doctor(front))
    used(front)


@pytest.mark.parametrize("name", MENDED)
def test_set_with_the_key(name, folders):
    front = prepared(folders / name, ABOUT[name]["config"], MENDED[name])
    used(front)
    if name == "q_16bit_png":
        assert abs(int(next(iter(front.build_train_loader()))[0]["image"].float().mean()) - 127.5) < 1
    if name == "m_keypoints_no_names":
        assert front.settings.INPUT.RANDOM_FLIP == "horizontal"
    if name == "q_xyxy":
        assert not any("corners" in line for line in front.said)


def used(front):
    batch = next(iter(front.build_train_loader()))
    objects = [example["instances"] for example in batch]
    assert len(batch) == 2 and all(len(o) and o.gt_boxes.area().min() > 0 for o in objects)
    assert all(o.gt_classes.max() < len(front.settings.DATASETS.CLASSES) for o in objects)
    assert front.settings.MODEL.ROI_HEADS.NUM_CLASSES == len(front.settings.DATASETS.CLASSES)
    about = MetadataCatalog.get("own_val")
    truth = about.truth()
    if not about.labelled:
        assert "annotations" not in truth
        return
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    tasks = ["bbox", *(["segm"] if front.settings.MODEL.MASK_ON else []), *(["keypoints"] if front.settings.MODEL.KEYPOINT_ON else [])]
    for task in tasks if objects else ():
        found = [{**{k: a[k] for k in ("image_id", "category_id", FIELD[task])}, "score": 1.0} for a in objects]
        if task == "segm":
            found = [{**row, "segmentation": as_runs(row["segmentation"], truth["images"], row["image_id"])} for row in found]
        sigmas = front.settings.TEST.KEYPOINT_OKS_SIGMAS if task == "keypoints" else ()
        assert evaluate(truth, found, task, sigmas).stats[0] == pytest.approx(1.0, abs=1e-9), task


FIELD = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}


def as_runs(mask, images, number):
    import pycocotools.mask as mask_util

    size = next((image["height"], image["width"]) for image in images if image["id"] == number)
    runs = mask_util.frPyObjects(mask, *size) if isinstance(mask, list) or isinstance(mask["counts"], list) else mask
    runs = mask_util.merge(runs) if isinstance(runs, list) else runs
    return {"size": list(size), "counts": runs["counts"].decode() if isinstance(runs["counts"], bytes) else runs["counts"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["camera_traps", "scalabel_bdd", "m_keypoints_no_names", "q_unlabelled_no_annotations_key", "q_url"])
def test_command(name, folders, tmp_path):
    """Training and evaluation as a user starts them: exit code 0, or 2 and one line."""
    options = "MODEL.DEVICE cpu SOLVER.MAX_ITER 2 SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (64,)".split()
    options += "TEST.EVAL_PERIOD 1 TEST.LOSS True TEST.PICTURES 1 OUTPUT_DIR".split()
    command = ["-m", "backbones", "train", "--config-file", ABOUT[name]["config"], *flags(folders / name), *options, tmp_path / "run"]
    done = warm(*command)
    assert done.returncode == (2 if ABOUT[name]["result"] == "refuse" else 0), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    if done.returncode == 2:
        assert sum("error: " in line for line in done.stderr.splitlines()) == 1
        return
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "own_train: 6 images, " in log and "own_val: 3 images, " in log
    results = tmp_path / "run" / "inference" / "coco_instances_results.json"
    assert isinstance(json.loads(results.read_text()), list)
    if "unlabelled" in name:
        assert f"own_val has no annotations: predictions are in {results}, without evaluation" in log
