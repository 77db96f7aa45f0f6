"""Shared by the sections of an examination: the config, its model, the records, and helpers for findings."""

import contextlib
import dataclasses
import functools
import io
import logging
import math
import os
import traceback
import warnings
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from torch import nn

from ..config import learns
from ..data.dataset import Dataset
from ..data.image_files import evenly
from ..data.sources import Use
from ..engine.front import Front
from ..errors import SEVERITIES, Finding, UserError, either
from ..lean import can_keep_less

_GIB = 2**30


def size_in_words(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.0f} MiB"


error, warning, note = (functools.partial(Finding, severity) for severity in SEVERITIES)


def words(problem: BaseException) -> str:
    """An exception in one line, with its place unless it is a user's mistake."""
    text = " ".join(str(problem).split())[:400]
    if isinstance(problem, UserError):
        return text
    frames = traceback.extract_tb(problem.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {text or 'no message'}{place}"


def listed(errors: Iterable[UserError]) -> Iterator[Finding]:
    """The errors as findings; also an exception from the user's own code."""
    try:
        yield from map(Finding.of, errors)
    except Exception as problem:
        yield error(words(problem))


@dataclasses.dataclass
class Examination:
    """One config, and what earlier sections have found out for later ones.

    Args:
        front: the config; only keys that follow from its data are set.
        processes: how many processes will train.
        gpus: how many of them on this machine.
        images: as for `inspect`.
        download: whether weights may be downloaded.
        resume: whether training resumes from the last checkpoint in OUTPUT_DIR.
        partial: whether weights may fill only part of the backbone.
        progress: as for `inspect`.
        replaced: whether flags replaced the config's data.
    """

    front: Front
    processes: int = 1
    gpus: int = 1
    images: int | None = 500
    download: bool = False
    resume: bool = False
    partial: bool = False
    progress: Callable = lambda items, **_: items
    replaced: bool = False

    def __post_init__(self):
        self.cfg: CfgNode = self.front.settings
        self.use = Use.of(self.cfg)
        self.data: list[Dataset] = []
        self.refused: set = set()  # data sets that cannot be read through detectron2
        self.sound = True  # whether the config can be built
        self.usable = True  # whether its device is here
        self.weights = ""  # weights that can be loaded
        self.text: dict[str, str] = {}  # text of sections besides their findings

    @functools.cached_property
    def model(self) -> nn.Module | None:
        """The model on the CPU, or None if it cannot be built."""
        with contextlib.suppress(Exception):
            return self.build()
        return None

    def build(self) -> nn.Module:
        return self.front.clone("MODEL.DEVICE", "cpu").build_model()

    @functools.cached_property
    def records(self) -> list[dict]:
        """The images that training would use, as detectron2 reads them. Raises whatever that raises."""
        cfg = self.cfg
        names = [name for name in cfg.DATASETS.TRAIN if name not in self.refused]
        if not names:
            key = self.front.name("DATASETS.TRAIN")
            raise UserError(f"none of the data sets in {key} can be read", "data", key)
        keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
        files = [f for n, f in zip(cfg.DATASETS.TRAIN, cfg.DATASETS.PROPOSAL_FILES_TRAIN) if n in names] if cfg.MODEL.LOAD_PROPOSALS else None
        return get_detection_dataset_dicts(names, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, keypoints, files)

    def some_records(self, count: int) -> list[dict]:
        return evenly(self.records, count)

    def per_process(self) -> int:
        """Images per step in one process."""
        return max(self.cfg.SOLVER.IMS_PER_BATCH // (self.cfg.SOLVER.REFERENCE_WORLD_SIZE or self.processes), 1)

    def largest(self) -> tuple[int, int]:
        """(shorter, longer) side in pixels of the largest training image, padded as by the network."""
        cfg = self.cfg.INPUT
        short, most = max(sizes_of(cfg.MIN_SIZE_TRAIN)), cfg.MAX_SIZE_TRAIN
        images = [i for data in self.data if data.source.training for i in data.images]
        read = [] if images else self.__dict__.get("records", [])  # if nothing else has read the data
        sizes = [(i["width"], i["height"]) for i in (*images, *read) if "width" in i and "height" in i]
        if learns(self.cfg, "class"):
            sides = (self.cfg.INPUT.CLASSIFICATION.SIZE,) * 2
        elif sizes:
            found = np.array(sorted(map(sorted, set(sizes))), float)
            scale = np.minimum(short / found[:, 0], most / found[:, 1])[:, None] if short else 1.0
            sides = max((found * scale).tolist(), key=math.prod)
        else:
            sides = (short or 800, most)
        step = self.divisibility()
        return tuple(math.ceil(round(side) / step) * step for side in sorted(sides))

    def lower_memory(self, *more: str, parts: int = 2) -> str:
        """Advice to use less memory, or what ``more`` says; ``parts``: the least number of parts to divide a batch into."""
        name, override = self.front.name, self.front.override
        now, batch = self.cfg.SOLVER.ACCUMULATE, self.per_process()
        fitting = next((n for n in range(parts * now, batch + 1) if batch % n == 0), None)
        same = f"set {override('SOLVER.ACCUMULATE', fitting)} (the same batch in more parts), " if fitting else ""
        ways = [f"{same}lower {name('SOLVER.IMS_PER_BATCH')} with {name('SOLVER.BASE_LR')}"]
        if not self.cfg.SOLVER.AMP.ENABLED:
            ways.append(f"set {override('SOLVER.AMP.ENABLED', True)}")
        if self.can_keep_less():
            ways.append(f"set {override('MODEL.ACTIVATIONS', 'lean')}")
        return either([*ways, *more])

    def can_keep_less(self) -> bool:
        """Whether MODEL.ACTIVATIONS would have an effect that it does not have yet."""
        return self.cfg.MODEL.ACTIVATIONS == "all" and can_keep_less(self.model)

    @functools.cached_property
    def states(self) -> float | None:
        """How many values the optimizer keeps for each trained weight: SGD one (momentum), Adam two. None if one layer does not tell."""
        layer = nn.Linear(8, 8)
        try:
            optimizer = self.front.build_optimizer(layer)
            for parameter in layer.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
        except Exception:  # a user's own optimizer may need the whole model
            return None
        kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value) and value.dim()]
        return sum(map(torch.numel, kept)) / sum(map(torch.numel, layer.parameters()))

    def divisibility(self) -> int:
        return max(getattr(getattr(self.model, "backbone", None), "size_divisibility", 0) or 1, 1)


def sizes_of(value: Any) -> list[int]:
    return list(value) if isinstance(value, (list, tuple)) and value else [value or 0]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps loggers, warnings and output of libraries off the terminal."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "backbones", "fvcore", "iopath", "torch.fx")]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        # enabled, so that a trainer does not set them up
        logger.handlers, logger.propagate = [logging.NullHandler()], False
        logger.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, (level, handlers, propagate) in zip(loggers, before):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)
