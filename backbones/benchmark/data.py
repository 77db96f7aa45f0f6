"""The mappers, on one photo of 640x480 that becomes 800x1067, with seven objects; and the reading of annotation files."""

import contextlib
import os
import tempfile
from functools import partial
from typing import Any, Iterator

import numpy as np
import torch
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode

from .. import timing, zoo
from ..data.mapper import FasterMapper
from . import reading


def _record(folder: str, rle: bool) -> dict[str, Any]:
    import pycocotools.mask as mask_util
    from PIL import Image
    from sklearn.datasets import load_sample_image

    path = os.path.join(folder, "photo.jpg")
    Image.fromarray(load_sample_image("china.jpg")).resize((640, 480)).save(path, quality=90)
    rng, annotations = np.random.default_rng(0), []
    for i in range(7):
        x, y, radius = rng.uniform(100, 540), rng.uniform(100, 380), rng.uniform(20, 100)
        angles = np.sort(rng.uniform(0, 2 * np.pi, 40))
        polygon = np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], axis=1).flatten().tolist()
        annotations.append(
            {
                "bbox": [x - radius, y - radius, 2 * radius, 2 * radius],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": i,
                "iscrowd": 0,
                "segmentation": mask_util.merge(mask_util.frPyObjects([polygon], 480, 640)) if rle else [polygon],
            }
        )
    return {"file_name": path, "height": 480, "width": 640, "image_id": 1, "annotations": annotations}


def suite(count: int, device: str = "cpu", images: int = 5000) -> Iterator[dict[str, Any]]:
    """Yields every row as it is measured, for one worker with one thread, as in torch. ``images``: in the annotation file; 0: none is read."""
    with contextlib.ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        about, folder = timing.about(), stack.enter_context(tempfile.TemporaryDirectory())
        for task, masks, form, rle in (
            ("boxes", False, "polygon", False),
            ("polygons", True, "polygon", False),
            ("bitmasks_of_polygons", True, "bitmask", False),
            ("bitmasks_of_run_lengths", True, "bitmask", True),
        ):
            cfg = zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
            cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.INPUT.MIN_SIZE_TRAIN = masks, form, (800,)
            record = _record(folder, rle)
            mappers = {"detectron2": DatasetMapper(cfg, is_train=True)}
            for kind in ("exact", "fast"):
                cfg.INPUT.MAPPER = kind
                mappers[kind] = FasterMapper(cfg, is_train=True)
            times = timing.interleaved({kind: partial(mapper, record) for kind, mapper in mappers.items()}, 4 * count)
            yield from timing.rows_of(f"data/{task}/800x1067", times, "detectron2", **about)
        if images:
            yield from reading.rows(*reading.write(folder, images), images, count)
