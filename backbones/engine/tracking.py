"""Figures of training for Weights & Biases and MLflow, each where it is installed and asked for."""

import importlib
import math
from typing import Any, Dict, List

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import flat
from ..errors import UserError


class _Tracker(EventWriter):
    """Passes on every figure once, and at each evaluation its pictures."""

    def __init__(self) -> None:
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        by_iteration: Dict[int, Dict[str, float]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._last and math.isfinite(value):
                by_iteration.setdefault(iteration, {})[name] = float(value)
        for iteration in sorted(by_iteration):
            self.log(by_iteration[iteration], iteration)
            self._last = max(self._last, iteration)

    def log(self, figures: Dict[str, float], iteration: int) -> None:
        raise NotImplementedError


class WandbWriter(_Tracker):
    """A run in a project; its config is the run's own. With WANDB_RUN_ID in the environment, a resumed training goes on in the same run."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        wandb = _module("wandb", "TRACKING.WANDB")
        self.run = wandb.init(project=cfg.TRACKING.WANDB, dir=cfg.OUTPUT_DIR, config=_plain(cfg), resume="allow")

    def log(self, figures: Dict[str, float], iteration: int) -> None:
        self.run.log(figures, step=iteration)

    def close(self) -> None:
        self.run.finish()


class MLflowWriter(_Tracker):
    """A run in an experiment; its parameters are the config's keys."""

    def __init__(self, cfg: CfgNode):
        super().__init__()
        self.mlflow = _module("mlflow", "TRACKING.MLFLOW")
        self.mlflow.set_experiment(cfg.TRACKING.MLFLOW)
        self.mlflow.start_run()
        parameters = {key: str(value)[:500] for key, value in flat(cfg).items()}
        keys = sorted(parameters)
        for i in range(0, len(keys), 100):  # so many at once, as its server takes them
            self.mlflow.log_params({key: parameters[key] for key in keys[i : i + 100]})

    def log(self, figures: Dict[str, float], iteration: int) -> None:
        self.mlflow.log_metrics({name.replace("@", "_at_"): value for name, value in figures.items()}, step=iteration)

    def close(self) -> None:
        self.mlflow.end_run()


def trackers(cfg: CfgNode) -> List[EventWriter]:
    """The writers that a config asks for."""
    return [writer(cfg) for writer, key in ((WandbWriter, "WANDB"), (MLflowWriter, "MLFLOW")) if cfg.TRACKING[key]]


def check_trackers(cfg: CfgNode) -> None:
    """Raises UserError where one that a config asks for is not installed."""
    for key, name in (("WANDB", "wandb"), ("MLFLOW", "mlflow")):
        if cfg.TRACKING[key]:
            _module(name, f"TRACKING.{key}")


def _module(name: str, key: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"{key} needs a package that is not installed: pip install {name}") from error


def _plain(node: Any) -> Any:
    return {key: _plain(value) for key, value in node.items()} if isinstance(node, dict) else node
