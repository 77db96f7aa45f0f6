"""Folders of images, one for each class, for `ImageClassifier`: torchvision's ``ImageFolder``, in detectron2's catalogues and loaders."""

import functools
import os
from types import MappingProxyType
from typing import Any, Mapping

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from torchvision import transforms as T
from torchvision.datasets import ImageFolder
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import UserError, counted, one_line
from . import images
from .holdout import entries, is_registered


def register_image_folders(cfg: CfgNode) -> None:
    """Registers the data sets of ``cfg.DATASETS.IMAGE_FOLDERS``: [name, folder] each, whose subfolders are the classes.

    Raises UserError for a malformed entry, or a folder that does not exist or holds no images.
    """
    for name, folder in entries(cfg, "IMAGE_FOLDERS", {"'name'": str, "'folder'": str}):
        if is_registered(name, "dirname", folder, "IMAGE_FOLDERS"):
            continue
        classes, records, others = _read(name, folder)
        about: dict[str, Any] = {}
        read = len(records)
        if cfg.DATASETS.CLASSES and list(classes) != list(cfg.DATASETS.CLASSES):
            about = {"file_classes": classes}
            classes, records = _numbered(name, classes, records, tuple(cfg.DATASETS.CLASSES))
        left = {"of other classes": read - len(records), "that are no images": others}
        said = "".join(f"; left out: {counted(count, 'file')} {why}" for why, count in left.items() if count)
        about["said"] = [f"{name}: {counted(len(records), 'image')} of {counted(len(classes), 'class')}{said}"]
        DatasetCatalog.register(name, lambda records=records: [dict(record) for record in records])
        MetadataCatalog.get(name).set(evaluator_type="classification", dirname=folder, classes=classes, **about)


def _numbered(name: str, classes: tuple[str, ...], records: tuple[dict[str, Any], ...], wanted: tuple[str, ...]) -> tuple[Any, Any]:
    """``wanted``, and the records of these classes with their numbers there. Raises UserError if none is left."""
    number = {each: i for i, each in enumerate(wanted)}
    kept = tuple({**record, "label": number[classes[record["label"]]]} for record in records if classes[record["label"]] in number)
    if not kept:
        said = f"data set {name!r}: none of its classes, such as {classes[0]!r}, is in DATASETS.CLASSES, which has {wanted[0]!r} and others"
        raise UserError(said, "classes", "DATASETS.CLASSES")
    return wanted, kept


class _Folders(ImageFolder):
    """Without hidden folders, such as Jupyter's ``.ipynb_checkpoints``."""

    def find_classes(self, directory: str) -> tuple[list[str], dict[str, int]]:
        names = [name for name in super().find_classes(directory)[0] if not name.startswith(".")]
        if not names:
            raise FileNotFoundError(f"Couldn't find any class folder in {directory}.")
        return names, {name: i for i, name in enumerate(names)}


@functools.lru_cache(maxsize=8)
def _read(name: str, folder: str) -> tuple[tuple[str, ...], tuple[dict[str, Any], ...], int]:
    """Classes, records, and the number of other files."""
    if not os.path.isdir(folder):
        raise UserError(f"DATASETS.IMAGE_FOLDERS: folder {folder!r} of {name!r} does not exist", "missing-file", "DATASETS.IMAGE_FOLDERS")
    try:
        found = _Folders(
            folder, is_valid_file=lambda path: path.lower().endswith(IMG_EXTENSIONS) and not os.path.basename(path).startswith(".")
        )
    except FileNotFoundError as error:  # no classes, or one without images
        said = f"DATASETS.IMAGE_FOLDERS: {folder!r} of {name!r}: {one_line(error)}"
        raise UserError(said, "data", "DATASETS.IMAGE_FOLDERS") from error
    records = tuple({"file_name": path, "image_id": path, "label": label} for path, label in found.samples)
    files = sum(not file.startswith(".") for kind in found.classes for _, _, inside in os.walk(os.path.join(folder, kind)) for file in inside)
    return tuple(found.classes), records, max(files - len(records), 0)


class ClassificationMapper:
    """What a data loader gives of each image, or of its part "crop": "image" (3, S, S) uint8 in ``image_format``, and "label".

    Training: a random part of the image, scaled to ``size``, colours changed, perhaps mirrored; else the shorter side to ``resize``, then the
    middle. ``reading`` is of `images.settings`. Raises what `images.read` raises.
    """

    def __init__(
        self,
        is_train: bool,
        size: int,
        resize: int,
        scale: tuple[float, float],
        color_jitter: float,
        flip: str,
        image_format: str,
        reading: Mapping[str, Any] = MappingProxyType({}),
    ):
        if is_train:
            steps: list[Any] = [T.RandomResizedCrop(size, scale=tuple(scale))]
            steps += [T.ColorJitter(color_jitter, color_jitter, color_jitter)] if color_jitter else []
            flips = {"horizontal": [T.RandomHorizontalFlip()], "vertical": [T.RandomVerticalFlip()]}
            steps += flips.get(flip, [])
        else:
            steps = [T.Resize(resize), T.CenterCrop(size)]
        self.transform = T.Compose(steps)
        self.image_format, self.reading = image_format, dict(reading)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, is_train: bool) -> "ClassificationMapper":
        node = cfg.INPUT.CLASSIFICATION
        flip, reading = cfg.INPUT.RANDOM_FLIP, images.settings(cfg)
        return cls(is_train, node.SIZE, node.RESIZE, node.SCALE, node.COLOR_JITTER, flip, cfg.INPUT.FORMAT, reading)

    def __call__(self, record: dict[str, Any]) -> dict[str, Any]:
        picture = Image.fromarray(images.read(record["file_name"], "RGB", **self.reading))
        pixels = np.asarray(self.transform(picture.crop(record["crop"]) if "crop" in record else picture))
        image = images.tensor(images.converted(pixels[:, :, ::-1], self.image_format))
        return {**record, "image": image, "height": image.shape[1], "width": image.shape[2]}
