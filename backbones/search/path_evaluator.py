"""Evaluates a path of a trained supernet: takes its weights, recalibrates its norms, and runs it on held-out images."""

import contextlib
import copy
import io
import math
import random
import time
from functools import partial
from typing import Any, Callable

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats
from torch import nn

from ..checkpoint import GatedCheckpointer
from ..config import plain_norms
from ..data.loader import evaluation_loader, share
from ..data.mapper import Mapper
from ..deploy import optimize
from ..errors import UserError
from ..evaluation.build import coco_evaluator
from ..meta import on_meta
from ..shufflenetv2 import supernets
from .paths import Path, subnet_of


class PathEvaluator:
    """Scores paths of a trained supernet; a path always gets the same score, whatever was evaluated before.

    Args:
        cfg: the supernet's config.
        output: folder for the evaluator's files.
    """

    def __init__(self, cfg: CfgNode, output: str):
        self.cfg = plain_norms(cfg, "SyncBN")  # which would wait for other processes, but they evaluate other paths
        self.cfg.freeze()
        model = build_model(self.cfg).eval()
        GatedCheckpointer(model, require="all", hint="").load(self.cfg.MODEL.WEIGHTS)
        self.supernet = supernets(model)[0]
        self.place = "backbone.bottom_up" if hasattr(model.backbone, "bottom_up") else "backbone"
        self._put(model, nn.Identity())  # paths are put here
        self.template = model
        one_shot = self.cfg.ONE_SHOT
        # whole training steps calibrate everything, but only norms outside the backbone need them
        self.whole = any(isinstance(m, nn.BatchNorm2d) for key, m in model.named_modules() if not key.startswith("backbone."))
        records = [record for name in self.cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
        chosen = random.Random("calibration").sample(range(len(records)), min(one_shot.CALIBRATION_IMAGES, len(records)))
        plain = Mapper(self.cfg, is_train=False)
        mapper = Mapper(self.cfg, is_train=True, augmentations=plain.augmentations.augs) if self.whole else plain
        self.calibration = _Cached(self._loader([records[i] for i in chosen], mapper, one_shot.CALIBRATION_BATCH))
        self.images = _Cached(self._loader(DatasetCatalog.get(one_shot.DATASET), plain, 1))
        self.evaluator = coco_evaluator(self.cfg, one_shot.DATASET, output, distributed=False, allow_cached_coco=False)

    def _loader(self, records: list[dict], mapper: Callable, batch: int):
        # its own sampler would give each process a part; here each process sees all
        sampler = torch.utils.data.SequentialSampler(records)
        options: dict[str, Any] = dict(batch_size=batch, num_workers=self.cfg.DATALOADER.NUM_WORKERS, collate_fn=share)
        build = partial(build_detection_test_loader, records, sampler=sampler, **options)
        return evaluation_loader(build, mapper, None, None)

    def _put(self, model: nn.Module, net: nn.Module) -> None:
        outer, _, name = self.place.rpartition(".")
        setattr(model.get_submodule(outer), name, net)

    def extract(self, path: Path) -> nn.Module:
        """The detector of a path, with its own weights and statistics."""
        model = copy.deepcopy(self.template)
        with on_meta():
            net = subnet_of(self.cfg, path)
        net.load_state_dict({key: value.clone() for key, value in self.supernet.subnet_state_dict(path).items()}, strict=True, assign=True)
        net.to(self.cfg.MODEL.DEVICE)
        self._put(model, net)
        return model.eval()

    def recalibrate(self, model: Any) -> None:
        """Sets every batch norm to the statistics of the calibration images."""
        module, batches = model, iter(self.calibration)
        if not self.whole:
            module, batches = model.backbone, (model.preprocess_image(batch).tensor for batch in self.calibration)
        module.train()
        # training steps sample anchors and proposals: make them the same for every path and process
        with torch.no_grad(), EventStorage(), torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                update_bn_stats(module, batches, len(self.calibration))
            except AssertionError as error:  # fvcore's: norms shared by several levels have no statistics of their own
                raise UserError(f"the paths' norms cannot be recalibrated: {error}") from error
        model.eval()

    def __call__(self, path: Path) -> tuple[float, dict[str, float]]:
        """(score, seconds of each part)."""
        times = [time.perf_counter()]
        model = self.extract(path)
        times.append(time.perf_counter())
        self.recalibrate(model)
        times.append(time.perf_counter())
        # a fixed memory format, not a measured one, so that scores are equal in all processes
        model = optimize(model, memory_format="channels_last" if self.cfg.MODEL.DEVICE == "cpu" else "contiguous")
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its table
            results = inference_on_dataset(model, self.images, self.evaluator)
        times.append(time.perf_counter())
        kind, _, name = self.cfg.ONE_SHOT.METRIC.partition("/")
        score = float(results[kind][name])
        parts = dict(zip(("extraction", "recalibration", "inference"), (b - a for a, b in zip(times, times[1:]))))
        return (score if math.isfinite(score) else 0.0), parts


class _Cached:
    """A loader that keeps its batches after the first pass, if they take at most ``most`` bytes."""

    def __init__(self, loader, most: int = 1 << 30):
        self.loader, self.most = loader, most
        self.batches: list | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        if self.batches is not None:
            yield from self.batches
            return
        batches, size = [], 0
        for batch in self.loader:
            size += sum(x["image"].nbytes for x in batch)
            if size <= self.most:
                batches.append(batch)
            else:
                self.most, batches = 0, []  # too large: not in later passes either
            yield batch
        if size <= self.most:
            self.batches = batches
