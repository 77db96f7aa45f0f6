"""Measurements: training steps and inference on some of the data."""

import argparse
import contextlib
import math
import statistics
import tempfile
from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import nn

from ..config import add_data_arguments, plain_norms
from ..doctor.dry_run import in_small, train_some
from ..doctor.examination import Examination, quiet
from ..engine import Front, YamlFront, open_config
from ..timing import now

SHARE = 0.15  # of the training time: whole steps are measured only while measuring has taken less
EVALUATION = 0.15  # of that time, the most that evaluations may take, except one
_CALIBRATION = 256  # pixels of a side: norms need more than one value at every stride
_SLOW = 5.0  # seconds: images that take longer together are measured no more
LEAST = 20  # steps, even if the time is too short for them


@dataclass(frozen=True)
class Pace:
    """Seconds of a step per image: a constant part, and a part per pixel."""

    image: float
    pixel: float

    def of(self, pixels: float) -> float:
        return self.image + self.pixel * pixels


def pace(front: Front, sides: tuple[int, int], ratio: float, seconds: float = math.inf, batch: int = 2) -> Pace:
    """Measures steps at two small image sizes with the aspect ``ratio``, in about ``seconds``."""
    points = []
    for side in sides:
        more = {"INPUT.MIN_SIZE_TRAIN": (side,), "INPUT.MAX_SIZE_TRAIN": math.ceil(side * ratio) + 32, "SOLVER.IMS_PER_BATCH": batch}
        points.append((ratio * side**2, min(steps(front, more, 4, seconds / 2)[0]) / batch))
    (small, few), (large, many) = points
    # other work on the machine may slow one down: attribute at least half of the larger's time to its pixels
    pixel = min(max((many - few) / (large - small), 0.5 * many / large), many / large)
    return Pace(many - pixel * large, pixel)


def steps(front: Front, more: dict[str, Any], count: int = 4, seconds: float = math.inf) -> tuple[list[float], list[float]]:
    """(seconds of each step after the first, losses) of a few steps of a config with ``more`` keys set, on some of its images.

    From the second step on, the one that exceeds ``seconds`` is the last.
    """
    alone = {
        "SOLVER.MAX_ITER": count, "SOLVER.WARMUP_ITERS": 0, "SOLVER.BASE_LR": 0.001, "SEED": 1, "MODEL.WEIGHTS": "", "MODEL_EMA.ENABLED": False,
        "DATALOADER.NUM_WORKERS": 0, "DATALOADER.SAMPLER_TRAIN": "TrainingSampler", **more,
    }  # fmt: skip
    batch = more.get("SOLVER.IMS_PER_BATCH", front.settings.SOLVER.IMS_PER_BATCH)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recipe-"))
        stack.enter_context(quiet())
        pairs = [item for pair in alone.items() for item in pair]
        times, losses = train_some(in_small(Examination(front), folder, stack, count * batch, *pairs), False, seconds)
    return times[1:], losses


def latency(cfg: CfgNode, ratio: float, count: int = 3) -> float:
    """Seconds of inference for an image, the fastest of ``count`` after a warm-up, fewer if they are slow."""
    cfg = plain_norms(cfg, "SyncBN", "FrozenBN")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0  # as many detections as possible: heads for masks and keypoints process each
    model: Any = YamlFront(cfg).build_model().eval()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def noise(size: int) -> list[dict[str, torch.Tensor]]:
        """A plain image would give heads fewer proposals than they accept."""
        values = np.random.default_rng(0).integers(0, 255, (3, size, round(size * ratio)))
        return [{"image": torch.as_tensor(values, dtype=torch.float32, device=cfg.MODEL.DEVICE)}]

    size, times = cfg.INPUT.MIN_SIZE_TEST, []
    with torch.no_grad():
        # random weights without norms of the image make numbers so large that proposals vanish, and detectron2's keypoints fail
        for norm in norms:
            norm.train().momentum = 1.0
        model(noise(max(size, _CALIBRATION)))
        for norm in norms:
            norm.eval()
        image = noise(size)
        for _ in range(count + 1):
            begun = now()
            model(image)
            times.append(now() - begun)
            if len(times) > 1 and sum(times) > _SLOW:
                break
    return min(times[1:])


def length(minutes: float, step: float, evaluation: float) -> tuple[int, int]:
    """(iterations, evaluations) that ``minutes`` allow, from the seconds of each: at least `LEAST`, and ten if they are cheap."""
    evaluations = min(max(int(60 * minutes * EVALUATION / evaluation), 1), 10) if evaluation else 10
    return max(int((60 * minutes - evaluations * evaluation) / step), LEAST), evaluations


def iterations_of(config: str, opts: list[str], backbone: str, data: Sequence[str], minutes: float) -> int:
    """Iterations that ``minutes`` allow a config on the data of the flags ``data``, for training only: evaluation comes on top."""
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    front = open_config(config, ["MODEL.DEVICE", "cpu", *opts], backbone)
    front.apply_data_arguments(parser.parse_args(data), True)
    front.register(True, [*front.settings.DATASETS.TRAIN], replaced=True)
    return length(minutes, statistics.mean(steps(front, {})[0]), 0.0)[0]
