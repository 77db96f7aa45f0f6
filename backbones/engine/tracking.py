"""Logs training to Weights & Biases and MLflow, if installed and requested."""

import importlib
import math
import os
import re
from typing import Any, Callable, Iterator

from detectron2.config import CfgNode
from detectron2.engine.hooks import PeriodicWriter
from detectron2.utils.events import CommonMetricPrinter, EventWriter, get_event_storage

from ..config import flat, get
from ..errors import UserError, raised
from .hooks import Evaluate, Evaluation
from .job import Job


class _Tracker(EventWriter):
    """Sends every metric once.

    ``begun``: run ids by tracker. Checkpoints hold them, so a resumed training continues in the same run.
    """

    def __init__(self, job: Job, begun: dict[str, str]):
        self.job, self.begun, self._last = job, begun, -1

    def begin(self) -> None:
        raise NotImplementedError

    def write(self) -> None:
        storage = get_event_storage()
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._last and math.isfinite(value):
                by_iteration.setdefault(iteration, {})[name] = float(value)
        for iteration in sorted(by_iteration):
            self.log(by_iteration[iteration], iteration)
            self._last = max(self._last, iteration)

    def log(self, figures: dict[str, float], iteration: int) -> None:
        raise NotImplementedError


class WandbWriter(_Tracker):
    """A run in a project, with the config of the training. WANDB_RUN_ID in the environment prevails over the id in a checkpoint."""

    def begin(self) -> None:
        wandb = _module("wandb", self.job.name("TRACKING.WANDB"))
        known = os.environ.get("WANDB_RUN_ID") or self.begun.get("wandb")
        self.run = wandb.init(project=self.job.wandb, dir=self.job.output_dir, config=self.job.config, id=known, resume="allow")
        self.begun["wandb"] = str(self.run.id)

    def log(self, figures: dict[str, float], iteration: int) -> None:
        self.run.log(figures, step=iteration)

    def close(self) -> None:
        self.run.finish()


class MLflowWriter(_Tracker):
    """A run in an experiment; its parameters are the config's keys."""

    def begin(self) -> None:
        self.mlflow = _module("mlflow", self.job.name("TRACKING.MLFLOW"))
        self.mlflow.set_experiment(self.job.mlflow)
        self.names: dict[str, str] = {}  # by figure
        known = self.begun.get("mlflow")
        self.begun["mlflow"] = str(self.mlflow.start_run(run_id=known).info.run_id)
        parameters = {key: str(value)[:500] for key, value in flat(self.job.config).items()} if not known else {}  # parameters cannot change
        keys = sorted(parameters)
        for i in range(0, len(keys), 100):  # the server accepts so many at once
            self.mlflow.log_params({key: parameters[key] for key in keys[i : i + 100]})

    def log(self, figures: dict[str, float], iteration: int) -> None:
        for figure in figures:
            if figure not in self.names:
                name = re.sub(r"[^/\w.\- ]", "_", figure.replace("@", "_at_"))  # the server refuses other characters
                while name in self.names.values():
                    name += "_"
                self.names[figure] = name
        self.mlflow.log_metrics({self.names[figure]: value for figure, value in figures.items()}, step=iteration)

    def close(self) -> None:
        self.mlflow.end_run()


def trackers(job: Job, begun: dict[str, str]) -> list[_Tracker]:
    """The writers that a run requests."""
    return [writer(job, begun) for writer, wanted in ((WandbWriter, job.wandb), (MLflowWriter, job.mlflow)) if wanted]


class Writers(PeriodicWriter):
    """detectron2's hook, which also writes after each ``evaluation``: the next one's figures replace those not yet written.

    Trackers start with the training, once it is known whether that resumes a run.
    """

    def __init__(self, writers: list[EventWriter], trackers: list[_Tracker], period: int, evaluation: Evaluate):
        self.writers, self.period = [*writers, *trackers], period
        super().__init__(self.writers, period=period)
        self.trackers, self.evaluation = trackers, evaluation
        self.seen: Evaluation | None = None

    def before_train(self) -> None:
        for tracker in self.trackers:
            tracker.begin()
        self._write_evaluation()

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period and self.trainer.iter != self.trainer.max_iter - 1:
            self._write_evaluation()
        else:
            super().after_step()
        self.seen = self.evaluation.last

    def _write_evaluation(self) -> None:
        if self.evaluation.last is not self.seen:
            for writer in self.writers:
                if not isinstance(writer, CommonMetricPrinter):  # it divides by the iterations since its last line
                    writer.write()
        self.seen = self.evaluation.last


def tracker_findings(cfg: CfgNode, name: Callable[[str], str] = str) -> Iterator[UserError]:
    """The trackers a config requests that are not installed; ``name`` gives the user's name of a key."""
    for key, package in (("TRACKING.WANDB", "wandb"), ("TRACKING.MLFLOW", "mlflow")):
        if get(cfg, key):
            yield from raised(_module, package, name(key))


def _module(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        message = f"{key} needs a package that is not installed: pip install {package}"
        raise UserError(message, code="missing-package", key=key, suggestion=package) from error
