"""Tiny data sets in the format of each of detectron2's zoo, where it looks for the real ones: coloured rectangles, four images a set."""

import json
import os
import pickle
import shutil
import tempfile
from typing import NamedTuple

import numpy as np
from detectron2.data.datasets import builtin_meta
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as LVIS_V0_5
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as LVIS_V1
from detectron2.data.datasets.pascal_voc import CLASS_NAMES as VOC
from iopath.common.file_io import file_lock
from PIL import Image

HEIGHT, WIDTH, IMAGES = 96, 128, 4
FOLDERS = ("coco", "lvis", "cityscapes", "VOC2007", "VOC2012", "proposals")


class Thing(NamedTuple):
    """A rectangle from (x0, y0) to (x1, y1), and its number among all, which picks its class."""

    number: int
    x0: int
    y0: int
    x1: int
    y1: int

    def polygon(self) -> list[tuple[int, int]]:
        return [(self.x0, self.y0), (self.x1, self.y0), (self.x1, self.y1), (self.x0, self.y1)]

    def xywh(self) -> list[int]:
        return [self.x0, self.y0, self.x1 - self.x0, self.y1 - self.y0]

    def area(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def fill(self, canvas: np.ndarray, value) -> None:
        canvas[self.y0 : self.y1, self.x0 : self.x1] = value


def scene(image: int) -> tuple[np.ndarray, list[Thing]]:
    """Six rectangles, one in each cell of 42 x 48 pixels, on two grounds."""
    rng = np.random.default_rng(image)
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pixels[:, WIDTH // 2 :] = 160
    things = []
    for cell in range(6):
        x, y = 42 * (cell % 3) + int(rng.integers(2, 8)), 48 * (cell // 3) + int(rng.integers(2, 8))
        thing = Thing(6 * image + cell, x, y, x + int(rng.integers(24, 34)), y + int(rng.integers(24, 38)))
        thing.fill(pixels, rng.integers(0, 255, 3))
        things.append(thing)
    return pixels, things


def make(root: str) -> None:
    """Writes them all under ``root``, once."""
    os.makedirs(root, exist_ok=True)
    with file_lock(os.path.join(root, "zoo")):
        if all(os.path.isdir(os.path.join(root, name)) for name in FOLDERS):
            return
        with tempfile.TemporaryDirectory(dir=root) as partial:
            for write in (_coco, _lvis, _cityscapes, _voc):
                write(partial)
            for name in FOLDERS:
                shutil.rmtree(os.path.join(root, name), ignore_errors=True)
                os.rename(os.path.join(partial, name), os.path.join(root, name))


def _open(*path: str) -> str:
    os.makedirs(os.path.dirname(os.path.join(*path)), exist_ok=True)
    return os.path.join(*path)


def _json(content, *path: str) -> None:
    with open(_open(*path), "w") as f:
        json.dump(content, f)


def _coco(root: str) -> None:
    things = [c for c in builtin_meta.COCO_CATEGORIES if c["isthing"]]
    stuff = [c for c in builtin_meta.COCO_CATEGORIES if not c["isthing"]][:2]
    stuff_ids = builtin_meta._get_builtin_metadata("coco_panoptic_separated")["stuff_dataset_id_to_contiguous_id"]
    categories = [{"id": c["id"], "name": c["name"]} for c in things]
    images, instances, keypoints, panoptic = [], [], [], []
    proposals: dict[str, list] = {"ids": [], "boxes": [], "objectness_logits": []}
    for i in range(IMAGES):
        pixels, found = scene(i)
        name = f"{i + 1:012d}"
        for split in ("train2017", "val2017"):
            Image.fromarray(pixels).save(_open(root, "coco", split, f"{name}.jpg"))
        images.append({"id": i + 1, "file_name": f"{name}.jpg", "height": HEIGHT, "width": WIDTH})
        labels = np.zeros((HEIGHT, WIDTH), np.uint8)
        segments, infos = np.zeros((HEIGHT, WIDTH), np.uint8), []
        for part, category in enumerate(stuff):
            columns = slice(0, WIDTH // 2) if part == 0 else slice(WIDTH // 2, WIDTH)
            labels[:, columns], segments[:, columns] = stuff_ids[category["id"]], part + 1
            infos.append({"id": part + 1, "category_id": category["id"], "iscrowd": 0})
        for thing in found:
            shared = {"id": thing.number + 1, "image_id": i + 1, "bbox": thing.xywh(), "area": thing.area(), "iscrowd": 0}
            shared["segmentation"] = [[v for point in thing.polygon() for v in point]]
            category = things[thing.number % len(things)]["id"]
            instances.append({**shared, "category_id": category})
            points = [(thing.x0 + 1 + p, thing.y0 + 1 + p, 2) for p in range(17)]
            keypoints.append({**shared, "category_id": 1, "keypoints": [v for point in points for v in point], "num_keypoints": 17})
            thing.fill(labels, 0)
            thing.fill(segments, 10 + thing.number)
            infos.append({"id": 10 + thing.number, "category_id": category, "iscrowd": 0, "bbox": thing.xywh()})
        for info in infos:
            info["area"] = int((segments == info["id"]).sum())
        panoptic.append({"image_id": i + 1, "file_name": f"{name}.png", "segments_info": infos})
        for split in ("train2017", "val2017", "val2017_100"):
            Image.fromarray(labels).save(_open(root, "coco", f"panoptic_stuff_{split}", f"{name}.png"))
            colours = np.stack([segments, np.zeros_like(segments), np.zeros_like(segments)], axis=2)
            Image.fromarray(colours).save(_open(root, "coco", f"panoptic_{split}", f"{name}.png"))
        proposals["ids"].append(i + 1)
        proposals["boxes"].append(np.array([[t.x0, t.y0, t.x1, t.y1] for t in found], np.float32))
        proposals["objectness_logits"].append(np.linspace(1, 0, len(found), dtype=np.float32))
    person = {**categories[0], "keypoints": builtin_meta.COCO_PERSON_KEYPOINT_NAMES, "skeleton": []}
    for split in ("train2017", "val2017", "val2017_100"):
        shared = {"info": {}, "licenses": [], "images": images}
        annotations = (root, "coco", "annotations")
        _json({**shared, "categories": categories, "annotations": instances}, *annotations, f"instances_{split}.json")
        _json({**shared, "categories": [person], "annotations": keypoints}, *annotations, f"person_keypoints_{split}.json")
        everything = {**shared, "categories": builtin_meta.COCO_CATEGORIES, "annotations": panoptic}
        _json(everything, *annotations, f"panoptic_{split}.json")
    with open(_open(root, "proposals", "coco.pkl"), "wb") as f:
        pickle.dump(proposals, f)


def _lvis(root: str) -> None:
    for version, categories in (("v1", LVIS_V1), ("v0.5", LVIS_V0_5)):
        images, annotations = [], []
        for i in range(IMAGES):
            about = {"neg_category_ids": [], "not_exhaustive_category_ids": []}
            images.append({"id": i + 1, "height": HEIGHT, "width": WIDTH, "coco_url": f"http://example.com/val2017/{i + 1:012d}.jpg", **about})
            for thing in scene(i)[1]:
                annotations.append(
                    {
                        "id": thing.number + 1,
                        "image_id": i + 1,
                        "category_id": thing.number + 1,
                        "bbox": thing.xywh(),
                        "area": thing.area(),
                        "segmentation": [[v for point in thing.polygon() for v in point]],
                    }
                )
        content = {"info": {}, "licenses": [], "images": images, "annotations": annotations}
        content["categories"] = [{"frequency": "f", **category} for category in categories]
        for split in ("train", "val"):
            _json(content, root, "lvis", f"lvis_{version}_{split}.json")


# label: id, the id in training
_INSTANCES = {"person": (24, 11), "rider": (25, 12), "car": (26, 13), "truck": (27, 14)}
_INSTANCES.update({"bus": (28, 15), "train": (31, 16), "motorcycle": (32, 17), "bicycle": (33, 18)})
_GROUNDS = {"road": (7, 0), "building": (11, 2)}


def _cityscapes(root: str) -> None:
    names = list(_INSTANCES)
    for split in ("train", "val"):
        for i in range(IMAGES):
            pixels, things = scene(i)
            base = f"city_{i:06d}_000019"
            ids, training, objects = np.zeros((HEIGHT, WIDTH), np.uint16), np.zeros((HEIGHT, WIDTH), np.uint8), []
            for part, (label, (number, trained)) in enumerate(_GROUNDS.items()):
                x0, x1 = (0, WIDTH // 2) if part == 0 else (WIDTH // 2, WIDTH)
                ids[:, x0:x1], training[:, x0:x1] = number, trained
                objects.append({"label": label, "polygon": [(x0, 0), (x1, 0), (x1, HEIGHT), (x0, HEIGHT)]})
            labels = ids.copy()
            for thing in things:
                label = names[thing.number % len(names)]
                number, trained = _INSTANCES[label]
                thing.fill(ids, 1000 * number + thing.number)
                thing.fill(labels, number)
                thing.fill(training, trained)
                objects.append({"label": label, "polygon": thing.polygon()})
            Image.fromarray(pixels).save(_open(root, "cityscapes", "leftImg8bit", split, "city", f"{base}_leftImg8bit.png"))
            truth = (root, "cityscapes", "gtFine", split, "city")
            Image.fromarray(ids).save(_open(*truth, f"{base}_gtFine_instanceIds.png"))
            Image.fromarray(labels.astype(np.uint8)).save(_open(*truth, f"{base}_gtFine_labelIds.png"))
            Image.fromarray(training).save(_open(*truth, f"{base}_gtFine_labelTrainIds.png"))
            _json({"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}, *truth, f"{base}_gtFine_polygons.json")


def _voc(root: str) -> None:
    for year in ("VOC2007", "VOC2012"):
        for i in range(IMAGES):
            pixels, things = scene(i)
            Image.fromarray(pixels).save(_open(root, year, "JPEGImages", f"{i:06d}.jpg"))
            objects = "".join(
                f"<object><name>{VOC[t.number % len(VOC)]}</name><pose>x</pose><truncated>0</truncated><difficult>0</difficult>"
                f"<bndbox><xmin>{t.x0 + 1}</xmin><ymin>{t.y0 + 1}</ymin><xmax>{t.x1}</xmax><ymax>{t.y1}</ymax></bndbox></object>"
                for t in things
            )
            with open(_open(root, year, "Annotations", f"{i:06d}.xml"), "w") as f:
                f.write(f"<annotation><size><width>{WIDTH}</width><height>{HEIGHT}</height></size>{objects}</annotation>")
        for split in ("trainval", "test"):
            with open(_open(root, year, "ImageSets", "Main", f"{split}.txt"), "w") as f:
                f.write("".join(f"{i:06d}\n" for i in range(IMAGES)))
