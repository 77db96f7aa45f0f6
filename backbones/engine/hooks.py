"""Training hooks: evaluations, the best checkpoint, the average of weights, supernet paths, losses, progress."""

import dataclasses
import logging
import math
import os
import re
import sys
from typing import Any, Callable, Sequence

import torch
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

from .. import upstream
from ..checkpoint import GatedCheckpointer
from ..data.loader import Examples, TrainLoader, begin_worker, seed_random_numbers, share
from ..errors import counted
from ..evaluation.figures import headline, is_better
from ..shufflenetv2 import ShuffleNetV2Supernet, supernets
from .step import moving_values, own_normalizers, set_moving_values


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The metrics of one evaluation, by name such as "bbox/AP", in the first process; other processes have none."""

    iteration: int  # the last one that the weights were trained on
    figures: dict[str, float]


class Evaluate(HookBase):
    """As detectron2's ``EvalHook``; an evaluation that was interrupted is repeated when the run resumes.

    Args:
        period: iterations between evaluations; 0: only at the end.
        evaluate: returns the results, nested dicts of numbers, in the first process.
        waiting: a context in which a signal acts at once.

    ``last`` is the last `Evaluation`.
    """

    def __init__(self, period: int, evaluate: Callable[[], dict[str, Any]], waiting: Callable):
        self.period, self.evaluate, self.waiting = period, evaluate, waiting
        self.pending = False
        self.last: Evaluation | None = None

    def state_dict(self) -> dict[str, Any]:
        done = self.trainer.done
        due = self.period > 0 and done % self.period == 0 or done == self.trainer.max_iter
        return {"pending": self.pending or (due and not self._is_done())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.pending = bool(state_dict["pending"])

    def _is_done(self) -> bool:
        return self.last is not None and self.last.iteration == self.trainer.done - 1

    def before_train(self) -> None:
        if self.pending:
            self._run(self.trainer.done - 1)

    def after_step(self) -> None:
        done = self.trainer.done
        if self.period > 0 and done % self.period == 0 and done != self.trainer.max_iter and not self.trainer.stop:
            self._run(self.trainer.iter)

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter and not self._is_done():  # true only when training has reached its end
            self._run(self.trainer.iter)

    def _run(self, written_at: int) -> None:
        with self.waiting():
            results = self.evaluate()
        self.pending = False
        self.last = Evaluation(self.trainer.done - 1, {name: float(value) for name, value in flatten_results_dict(results or {}).items()})
        self.trainer.storage.put_scalars(smoothing_hint=False, cur_iter=written_at, **self.last.figures)
        comm.synchronize()


class EvaluateAtTheEnd(Evaluate):
    """Only for a run that reaches its end."""

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state if state["pending"] else {}  # a run without it that goes on would miss the hook of a state

    def before_train(self) -> None:
        if self.trainer.done >= self.trainer.max_iter:  # not if the run is to be longer now
            super().before_train()


class PreciseBN(hooks.PreciseBN):
    """As detectron2's, on images that depend only on ``seed()`` and the iteration. For a supernet, the config's path gets
    norm statistics of its own and is then evaluated; those of choices that do not run stay as they are.

    Args:
        loader: a separate one; only loaders of `data.loader` give reproducible images.
        others: arguments of detectron2's hook.
    """

    def __init__(self, seed: Callable[[], int], period: int, model: nn.Module, loader: Any, count: int):
        super().__init__(period, model, loader, count)
        self.seed, self.loader, self.network = seed, loader, model

    def update_stats(self) -> None:
        if isinstance(self.loader, TrainLoader):
            self.loader.go_to(self.seed(), 0, 1 + self.trainer.iter)
        self._data_iter = None
        values, nets = moving_values(self.trainer.model), supernets(self.network)
        for net in nets:
            net.set_path(net.given)
        resting = [module for net in nets for choice in net.idle() for module in choice.modules() if module.training]
        for module in resting:
            module.training = False
        super().update_stats()
        for module in resting:
            module.training = True
        set_moving_values(self.trainer.model, values)  # its batches are not training


class KeepBest(HookBase):
    """Saves model_best.pth whenever a metric is better than in all earlier evaluations; the best value survives a resume.

    Args:
        evaluation: the hook whose metrics are used.
        metric: a metric such as "bbox/AP", or a loss on the test data, where lower is better; see `headline`.
        patience: evaluations without improvement after which ``trainer.finish()`` is called; 0: never.

    Must come after `Evaluate` among the hooks, in every process.
    """

    def __init__(self, checkpointer: GatedCheckpointer, evaluation: Evaluate, metric: str = "auto", patience: int = 0):
        self.checkpointer, self.evaluation, self.metric, self.patience = checkpointer, evaluation, metric, patience
        self.best, self.best_iteration, self.without = -math.inf, -1, 0  # no value yet
        self.name = ""  # of the metric whose best value it is
        self.looked: Evaluation | None = None

    def forget(self, why: str) -> None:
        """The next value will be the best so far."""
        if self.best_iteration >= 0:
            logging.getLogger(__name__).warning(f"the best {self.name} so far, {self.best:.4f}, {why}: the best value counts from here")
        self.best_iteration, self.without = -1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_iteration": self.best_iteration, "without": self.without, "name": self.name}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for key, value in state_dict.items():
            setattr(self, key, value)

    def before_train(self) -> None:
        self.after_step()

    def after_train(self) -> None:
        self.after_step()
        if self.best_iteration >= 0 and comm.is_main_process():
            logging.getLogger(__name__).info(f"best: {self.best:.4f} after {counted(self.best_iteration + 1, 'iteration')}, in model_best.pth")

    def after_step(self) -> None:
        evaluation = self.evaluation.last
        if evaluation is None or evaluation is self.looked:
            return
        self.looked = evaluation
        finish = False
        if comm.is_main_process():
            name = headline(evaluation.figures, self.metric)
            if name is not None:
                finish = self._compare(name, evaluation.figures[name], evaluation.iteration)
            elif evaluation.figures or self.metric != "auto":  # data without annotations have none
                there = ", ".join(evaluation.figures) or "none"
                key = self.trainer.job.name("TEST.BEST_METRIC")
                logging.getLogger(__name__).warning(f"{key} {self.metric!r} is not among the metrics of the evaluation: {there}")
        if self.patience and comm.get_world_size() > 1:
            finish = comm.all_gather(finish)[0]
        if finish and self.trainer.done < self.trainer.max_iter:
            self.trainer.finish()

    def _compare(self, name: str, value: float, iteration: int) -> bool:
        logger = logging.getLogger(__name__)
        if self.name and self.name != name:
            self.forget(f"says nothing about {name}")
        if math.isfinite(value) if self.best_iteration < 0 else is_better(name, value, self.best):
            self.best, self.best_iteration, self.without, self.name = value, iteration, 0, name
            # a run resumes from its last checkpoint, not its best
            self.checkpointer.save("model_best", tag=False, iteration=iteration, best={name: value})
            logger.info(f"{name} {value:.4f} is the best so far: model_best.pth")
            return False
        self.without += 1
        stays = "model_best.pth stays as it is" if self.best_iteration >= 0 else "no model_best.pth yet"
        if math.isnan(value):
            logger.warning(f"{stays}: {name} has no value, because there are no predictions or no ground truth")
        else:
            logger.info(f"{stays}: {name} {value:.4f} is not better than {self.best:.4f} after {self.best_iteration + 1} iterations")
        if self.patience and self.without >= self.patience:
            logger.info(f"no improvement in {self.without} evaluations ({self.trainer.job.name('TEST.PATIENCE')}): training ends here")
            return True
        return False


class Learned(HookBase):
    """Warns at the end of a run if it did no better than guessing.

    Args:
        evaluation: the hook whose metrics are used.
        classes: the number of classes, for a classifier.
    """

    def __init__(self, evaluation: Evaluate, classes: int):
        self.evaluation, self.classes = evaluation, classes

    def after_train(self) -> None:
        figures = self.evaluation.last.figures if self.evaluation.last is not None else {}
        name = headline(figures)
        if name is None or self.trainer.done < self.trainer.max_iter:
            return
        value, found = figures[name], "the model finds next to nothing"
        if name.endswith("top1"):
            if self.classes < 2:
                return
            chance = 100 / self.classes
            found, above = f"guessing among {self.classes} classes reaches {chance:.1f}", min(0.6 * chance, 0.1 * (100 - chance))
        else:
            chance, above = 0.0, 1.0
        if not value >= chance + above:  # also true for NaN
            rate, length = map(self.trainer.job.name, ("SOLVER.BASE_LR", "SOLVER.MAX_ITER"))
            logging.getLogger(__name__).warning(
                f"nothing was learned: {name} is {value:.1f}, and {found}. Change {rate}, raise {length}, or start from weights"
            )


class EMA(HookBase):
    """An exponential moving average of weights and buffers, by torch's ``AveragedModel``; evaluations use it.

    Args:
        decay: share of the average that each iteration keeps; at first (1 + t) / (10 + t), if that is less.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model = model
        self.average = AveragedModel(model, multi_avg_fn=self._mix, use_buffers=True)
        self.decay = decay
        for parameter in self.average.parameters():
            parameter.requires_grad_(False)

    def _mix(self, averaged: Any, current: Any, count: Any) -> None:
        count = int(count)
        get_ema_multi_avg_fn(min(self.decay, (1 + count) / (10 + count)))(averaged, current, count)

    def begin(self) -> None:
        """Call it when the weights are loaded: before the first iteration the average equals the weights."""
        if not int(self.average.n_averaged):
            self.average.module.load_state_dict(self.model.state_dict())

    def after_step(self) -> None:
        self.average.update_parameters(self.model)


class SamplePath(HookBase):
    """Sets the path of each iteration: the same in every process and after a resume.

    Gradients of the other choices stay None, so that neither decay nor momentum moves them.
    """

    def __init__(self, nets: Sequence[ShuffleNetV2Supernet], seed: int):
        self.nets, self.seed = nets, seed

    def before_train(self) -> None:
        alone, all_of_them = max(net.one_path_iters for net in self.nets), self.trainer.max_iter
        if alone:
            logger = logging.getLogger(__name__)
            logger.info(f"supernet: the first {counted(alone, 'iteration')} of {all_of_them} train one path, from which all choices then start")
            if alone >= all_of_them:
                logger.warning("supernet: the other choices are never trained: MODEL.SHUFFLENETV2.ONE_PATH_ITERS must be below SOLVER.MAX_ITER")

    def before_step(self) -> None:
        for net in self.nets:
            net.train_path(self.seed, self.trainer.iter)


def validation_losses(model: nn.Module, records: Any, mapper: Callable, workers: int, skip: bool | None = None) -> dict[str, float]:
    """The mean of each loss over ``records``, shared among processes, with norms and dropout as in evaluation. No weight changes.

    Losses of detectron2's dense detectors are sums over images, divided by the positive anchors of all.
    Heads sample proposals with the same random numbers for an image every time. ``skip``: leave out images that cannot be read.
    """
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module in model.modules():
        if isinstance(module, (upstream.RunningNorm, upstream.Dropout)) or _drops_paths(module):
            module.eval()
    sums: dict[str, float] = {}
    count = 0.0
    world = comm.get_world_size()
    # every process needs as many, since some losses wait for each other; repeated images do not count
    mine = range(comm.get_rank(), -(-len(records) // world) * world, world)
    order = [i % len(records) for i in mine]
    options: dict[str, Any] = dict(num_workers=workers, collate_fn=share, worker_init_fn=begin_worker)
    loader = DataLoader(Examples(records, mapper, skip), batch_size=1, sampler=order, **options)
    try:
        # the losses of an image depend on no other image, for any number of processes
        with torch.no_grad(), EventStorage(), own_normalizers(model) as normalizer:
            for number, batch in zip(mine, loader):
                seed_random_numbers(number)
                losses = model(batch)
                if number < len(records) and "unreadable" not in batch[0]:  # else a different image came in its place
                    weight = normalizer()
                    for name, value in losses.items():
                        sums[name] = sums.get(name, 0.0) + weight * float(value)
                    count += weight
    finally:
        for module, mode in modes:
            module.training = mode
    gathered = comm.gather((sums, count))
    if not comm.is_main_process():
        return {}
    total = sum(n for _, n in gathered)
    names = sorted({name for each, _ in gathered for name in each})
    result = {name: sum(each.get(name, 0.0) for each, _ in gathered) / max(total, 1.0) for name in names}
    return {"total_loss": sum(result.values()), **result}


def _drops_paths(module: nn.Module) -> bool:
    """Whether it is timm's DropPath, torchvision's StochasticDepth or the like, which have no base class."""
    return re.search("Drop|StochasticDepth", type(module).__name__) is not None and next(module.parameters(), None) is None


class Progress(HookBase):
    """A progress bar on the terminal instead of the lines of losses, which still go to log.txt."""

    def __init__(self) -> None:
        self.bar: Any = None
        self._quiet: list[logging.Handler] = []

    def before_train(self) -> None:
        self.bar = tqdm(total=self.trainer.max_iter, initial=self.trainer.start_iter, unit="it", dynamic_ncols=True, smoothing=0.05)
        for name in ("detectron2", "fvcore", "backbones", ""):
            for handler in logging.getLogger(name).handlers:
                if isinstance(handler, logging.StreamHandler) and getattr(handler, "stream", None) in (sys.stdout, sys.stderr):
                    handler.addFilter(_no_figures)
                    self._quiet.append(handler)

    def after_step(self) -> None:
        self.bar.update()
        if (self.trainer.iter + 1) % 20 == 0:
            latest = self.trainer.storage.latest()
            shown = {"loss": "total_loss", "lr": "lr"}
            self.bar.set_postfix({label: f"{latest[name][0]:.4g}" for label, name in shown.items() if name in latest}, refresh=False)

    def after_train(self) -> None:
        if self.bar is not None:
            self.bar.close()
        for handler in self._quiet:
            handler.removeFilter(_no_figures)

    @staticmethod
    def is_wanted() -> bool:
        return comm.is_main_process() and sys.stderr.isatty() and "TQDM_DISABLE" not in os.environ


def _no_figures(record: logging.LogRecord) -> bool:
    return record.name != "detectron2.utils.events"
