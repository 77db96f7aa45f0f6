"""The data sets of a config: their files, their contents, and what the config does with them."""

import os
from dataclasses import dataclass
from typing import Iterable, Iterator

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import learns
from ..errors import UserError, counted, unknown


def unknown_data_set(what: str, name: str, key: str = "", others: Iterable[str] = ()) -> UserError:
    """The error for a data set that is neither registered nor among the ``others``; ``what`` says where it is named."""
    names = sorted({*DatasetCatalog.keys(), *others})
    return unknown(what, name, names, key, listed="DatasetCatalog.list() of detectron2.data, in Python")


@dataclass(frozen=True)
class Use:
    """What a config does with its data. ``shortest`` and ``longest`` are the sides in pixels that images are resized to; 0: not resized."""

    masks: bool = False
    keypoints: bool = False
    whole: bool = False  # masks are of interest too though no model learns them
    crowds: str = "ignore"  # the next four have the values of the keys of DATASETS
    no_mask: str = "stop"
    box_format: str = "xywh"
    classes: tuple[str, ...] = ()
    points: tuple[str, ...] = ()  # names of keypoints in the model's order
    skip: bool = False  # leave out images that cannot be read
    exif: str = "turn"
    scaled: bool = False  # 16-bit images are converted to 8 bits
    max_pixels: int = 0  # of an image; 0: as many as Pillow allows
    format: str = "BGR"
    shortest: float = 800.0
    longest: float = 1333.0

    @classmethod
    def of(cls, cfg: CfgNode) -> "Use":
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        sides = [v for v in (sizes if isinstance(sizes, (list, tuple)) else [sizes]) if isinstance(v, (int, float))]  # others are refused later
        return cls(
            masks=learns(cfg, "masks"),
            keypoints=learns(cfg, "keypoints"),
            crowds=cfg.DATASETS.CROWDS,
            no_mask=cfg.DATASETS.NO_MASK,
            box_format=cfg.DATASETS.BOX_FORMAT,
            classes=tuple(map(str, cfg.DATASETS.CLASSES)),
            points=tuple(map(str, cfg.DATASETS.KEYPOINTS)) if learns(cfg, "keypoints") else (),
            skip=cfg.INPUT.UNREADABLE == "skip",
            exif=cfg.INPUT.EXIF,
            scaled=bool(cfg.INPUT.VALUE_RANGE),
            max_pixels=cfg.INPUT.MAX_PIXELS,
            format=cfg.INPUT.FORMAT,
            shortest=float(np.median(sides or [800.0])),
            longest=float(cfg.INPUT.MAX_SIZE_TRAIN),
        )

    def scale(self, width: int, height: int) -> float:
        """The factor by which an image is resized for the network, at the median of the training sizes."""
        return min(self.shortest / min(width, height), self.longest / max(width, height)) if self.shortest else 1.0


@dataclass(frozen=True)
class Source:
    """A data set: its annotation file and image folder, its purpose, and its ``image_ids`` if it is a part of the file."""

    name: str
    json_file: str
    image_root: str
    training: bool = True
    testing: bool = False
    image_ids: frozenset | None = None

    @property
    def called(self) -> str:
        """How errors about the data begin: with their purpose if flags named them, else with their name."""
        name = {"own_train": "training data", "own_val": "test data"}.get(self.name, self.name)
        return f"{name}: " if name else ""


def _files(cfg: CfgNode, name: str) -> set[str]:
    """The image files of own data. None of detectron2's, and none of parts of one data set, which share no image."""
    if name not in DatasetCatalog:
        return set()
    if reader := MetadataCatalog.get(name).get("reader"):
        root = os.path.realpath(reader.source.image_root)
        return {os.path.normpath(os.path.join(root, image["file_name"])) for image in reader.dataset().images}
    folders = {entry[0] for entry in cfg.DATASETS.IMAGE_FOLDERS}
    return {record["file_name"] for record in DatasetCatalog.get(name)} if name in folders else set()


def trained_on(cfg: CfgNode) -> Iterator[str]:
    """A line for each data set to test on whose image files are also in data to train on; the doctor compares their contents too."""
    trained = {path for name in cfg.DATASETS.TRAIN for path in _files(cfg, name)}
    for name in cfg.DATASETS.TEST:
        files = _files(cfg, name)
        both = len(files & trained)
        if both or name in cfg.DATASETS.TRAIN:
            some = f"{both} of {counted(len(files), 'image')}" if both else "all images"
            yield f"{name}: {some} are also trained on: figures are too good, and choose model_best.pth -> test on others"


def sources(cfg: CfgNode) -> tuple[list[Source], list[str]]:
    """The COCO-format data sets of DATASETS.TRAIN and TEST, even if their registration was refused; and the names of all others."""
    entries = {e[0]: e for e in cfg.DATASETS.REGISTER if isinstance(e, (list, tuple)) and len(e) == 3 and all(isinstance(p, str) for p in e)}
    found: list[Source] = []
    others: list[str] = []
    for name in dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        ids = None
        if name in entries:
            json_file, image_root = entries[name][1:]
        elif name in DatasetCatalog:
            metadata = MetadataCatalog.get(name)
            if metadata.get("held_out"):
                ids = frozenset(record["image_id"] for record in DatasetCatalog.get(name))
                metadata = MetadataCatalog.get(metadata.part_of)
            elif metadata.get("generated") and metadata.get("json_file"):
                DatasetCatalog.get(name)  # the first use makes the files
            json_file, image_root = metadata.get("json_file"), metadata.get("image_root")
        else:
            continue  # another check reports it
        if json_file and image_root:
            found.append(Source(name, json_file, image_root, name in cfg.DATASETS.TRAIN, name in cfg.DATASETS.TEST, ids))
        else:
            others.append(name)
    return found, others
