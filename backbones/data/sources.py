"""The data sets of a config: where their files are, what they hold, and what the config does with them."""

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..config import learns


@dataclass(frozen=True)
class Use:
    """What a config does with its data. ``shortest`` and ``longest`` are the sides in pixels that images are resized to; 0: not at all."""

    masks: bool = False
    polygons: bool = True
    keypoints: bool = False
    shortest: float = 800.0
    longest: float = 1333.0
    format: str = "BGR"

    @classmethod
    def of(cls, cfg: CfgNode) -> "Use":
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        return cls(
            masks=learns(cfg, "masks"),
            polygons=cfg.INPUT.MASK_FORMAT == "polygon",
            keypoints=learns(cfg, "keypoints"),
            shortest=float(np.median(sizes if isinstance(sizes, (list, tuple)) else [sizes])),
            longest=float(cfg.INPUT.MAX_SIZE_TRAIN),
            format=cfg.INPUT.FORMAT,
        )

    def scale(self, width: int, height: int) -> float:
        """The factor by which an image is resized for the network, at the median of the training sizes."""
        return min(self.shortest / min(width, height), self.longest / max(width, height)) if self.shortest else 1.0


@dataclass
class Source:
    """A data set: its annotation file and image folder, what it is for, and its ``image_ids`` if it is a part of the file."""

    name: str
    json_file: str
    image_root: str
    training: bool = True
    testing: bool = False
    image_ids: frozenset | None = None
    content: dict[str, list[dict]] = field(default_factory=dict)  # its sound entries, after `inspect`

    def path(self, image: dict) -> str:
        return os.path.join(self.image_root, image["file_name"])

    def classes(self) -> dict[str, int]:
        """The number of objects of each category, in the order of the classes; crowds are not counted."""
        names = {c["id"]: c["name"] for c in sorted(self.content["categories"], key=lambda c: c["id"])}
        counts = Counter(a["category_id"] for a in self.content["annotations"] if not a.get("iscrowd"))
        result: Counter = Counter()
        for key, name in names.items():
            result[name] += counts[key]
        return result

    def boxes(self, use: Use) -> np.ndarray:
        """The boxes (N, 4) x0, y0, x1, y1 of all objects with an area, as the network sees them."""
        images = {image["id"]: use.scale(image["width"], image["height"]) for image in self.content["images"]}
        rows = [
            [v * images[a["image_id"]] for v in a["bbox"]]
            for a in self.content["annotations"]
            if not a.get("iscrowd") and a["image_id"] in images and min(a["bbox"][2:]) > 0
        ]
        boxes = np.array(rows, float).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


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
