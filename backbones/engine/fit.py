"""The one loop that trains every run, from any kind of config: detectron2's ``TrainerBase``, with the hooks that a `Job` asks for."""

import logging
import os
import signal
import sys
import time
import weakref
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules
from PIL import Image
from torch import nn

from ..checkpoint import GatedCheckpointer
from ..data.loader import say_left_out
from ..errors import UserError, counted
from ..lean import keep_activations
from ..shufflenetv2 import supernets
from .hooks import EMA, Evaluate, EvaluateAtTheEnd, KeepBest, Learned, PreciseBN, Progress, SamplePath
from .job import Job
from .resume import Run, keep_schedule
from .signals import Interrupted, Signals, exit_code
from .step import Steps
from .tracking import Writers, trackers

logger = logging.getLogger(__name__)


class Fit(TrainerBase):
    """Trains ``job`` in this process, one of a run's: ``fit = Fit(job); fit.resume_or_load(resume); fit.train()``.

    A resumed run has the losses and weights that it would have had without the interruption (see `data.loader`).

    Args:
        allow_partial_weights: accept a file that fills only part of the backbone.
    """

    def __init__(self, job: Job, allow_partial_weights: bool = False):
        TrainerBase.__init__(self)  # not super(): DefaultTrainer's constructor builds all of it from a YAML config
        self.job = job
        self.run = Run(job)
        model: Any = job.model
        self.ema = EMA(model, job.ema_decay) if job.ema_decay is not None else None
        sampled = supernets(model)
        if not keep_activations(model, job.activations) and job.activations != "all":
            logger.warning(f"{job.name('MODEL.ACTIVATIONS')} {job.activations} has no effect on this network")
        if job.compile:
            getattr(model.backbone, "bottom_up", model.backbone).compile()
        placed = {} if next(model.parameters()).is_cuda else {"device_ids": None}
        unused = {"find_unused_parameters": True} if sampled else {}
        model = create_ddp_model(model, **{"broadcast_buffers": False, **job.ddp, **unused, **placed})
        self._trainer = Steps(model, job.loader, job.optimizer, job.accumulate, job.precision, self.run.seed, job.name)
        self.scheduler = job.scheduler
        self.signals = Signals(self._trainer.note)
        state: dict[str, Any] = {"trainer": weakref.proxy(self), "run": self.run, **({"ema": self.ema.average} if self.ema else {})}
        named, require = (self.run.names(), job.init_classes), "nothing" if allow_partial_weights else "backbone"
        self.checkpointer = GatedCheckpointer(model, job.output_dir, require=require, classes=named, **state)
        self.start_iter, self.max_iter = 0, job.max_iter
        self.done = 0  # iterations
        self.left = False  # whether a signal has ended the run
        self.evaluation = Evaluate(job.eval_period, self._evaluate, self.signals.waiting)
        self.built = self.build_hooks()
        self.register_hooks(self.built)
        if sampled:
            averaged = supernets(self.ema.average) if self.ema else []
            self.register_hooks([SamplePath([*sampled, *averaged], job.seed)])
            said = "the path that the config names, with its own norm statistics"
            if not job.precise_bn:
                said = (
                    f"its last path, with norm statistics of all paths; {job.name('TEST.PRECISE_BN.ENABLED')} True computes them for this path"
                )
            logger.info(f"supernet: evaluations during training use {said}")

    model = property(lambda self: self._trainer.model)
    optimizer = property(lambda self: self._trainer.optimizer)
    data_loader = property(lambda self: self._trainer.data_loader)
    stop = property(lambda self: self._trainer.stop, doc="The number of the signal that ends the run after this iteration, or 0.")

    def build_hooks(self) -> list[HookBase | None]:
        """Build the hooks in detectron2's order: those that change the model, the checkpoint, the evaluation, then the writers."""
        job, main = self.job, comm.is_main_process()
        precise = augmented = None
        if job.precise_bn and get_bn_modules(self.model):
            precise = PreciseBN(lambda: self.run.seed, job.eval_period, self.evaluated_model, job.precise_bn(), job.precise_bn_batches)
        elif job.precise_bn:
            logger.warning(f"{job.name('TEST.PRECISE_BN.ENABLED')} True has no effect: this network has no batch norms that learn statistics")
        evaluate_augmented = job.evaluate_augmented
        if evaluate_augmented:
            augmented = EvaluateAtTheEnd(0, lambda: evaluate_augmented(self.evaluated_model), self.signals.waiting)
        built = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self.ema,
            precise,
            hooks.PeriodicCheckpointer(self.checkpointer, job.checkpoint_period, max_to_keep=job.checkpoints_kept) if main else None,
            self.evaluation,
            KeepBest(self.checkpointer, self.evaluation, job.best_metric, job.patience) if job.best_metric and job.evaluate else None,
            augmented,
            Learned(self.evaluation, len(self.run.names().get("classes", ()))) if main and job.evaluate else None,
            Progress() if Progress.is_wanted() else None,
            Writers(self.build_writers(), trackers(job, self.run.tracked), self._log_period(), self.evaluation) if main else None,
        ]
        return [hook for hook in built if hook is not None]

    def _log_period(self) -> int:
        """A short run logs more often, so that it has a curve; the shortest are trials."""
        job = self.job
        return min(job.log_period, job.max_iter // 5) if 10 <= job.max_iter < 100 else job.log_period

    def build_writers(self) -> list[EventWriter]:
        return default_writers(self.job.output_dir, self.max_iter)

    def resume_or_load(self, resume: bool = True, new_schedule: bool = False) -> None:
        """Resumes from the last checkpoint in the run's folder, or starts from the job's ``init_checkpoint``.

        ``new_schedule``: take learning rate, weight decay, momentum and schedule from the config; otherwise the checkpoint's are kept.
        Raises UserError if nothing is left to do, or if the learning rate would jump.
        """
        job, fresh = self.job, [dict(group) for group in self.optimizer.param_groups]
        if resume and not self.checkpointer.has_checkpoint():
            logger.warning(f"--resume: no checkpoint in {job.output_dir!r}, training starts from the beginning")
            resume = False
        self.checkpointer.resume_or_load(job.init_checkpoint, resume=resume)
        self.start_iter = self.iter + 1 if resume else 0  # a checkpoint holds the last iteration that was done
        if not job.init_checkpoint and any(isinstance(m, FrozenBatchNorm2d) for m in self.model.modules()):
            logger.warning(
                "training from scratch with frozen batch norms, whose statistics come from no data: it will probably diverge or learn nothing. "
                "Set the backbone's norm to BN and its FREEZE_AT to 0, or start from weights"
            )
        evaluates = any((job.evaluate, job.validate, job.draw))
        pending = evaluates and any(isinstance(hook, Evaluate) and hook.pending for hook in self.built)
        if self.start_iter > self.max_iter or self.start_iter == self.max_iter and not pending:
            key = job.name("SOLVER.MAX_ITER")
            raise UserError(
                f"--resume: the run in {job.output_dir!r} has done {self.start_iter} iterations, and {key} is {self.max_iter}: raise {key} "
                "(with --new-schedule if the learning rate depends on it), or evaluate "
                f"{self.checkpointer.get_checkpoint_file()!r} with --eval-only",
                code="resume",
                key=key,
            )
        self._trainer.seed = self.run.go_on(self.start_iter)
        for hook in self.built if self.run.tests_others else ():
            if isinstance(hook, KeepBest):
                hook.forget("is of other test data")
        if resume:
            for group, own in zip(self.optimizer.param_groups, fresh):  # how the step is made is the config's to say
                group.update({key: own[key] for key in ("fused", "foreach", "nesterov") if key in own})
            keep_schedule(self.optimizer, self.scheduler, self.start_iter, fresh if new_schedule else None)
        check_processes_agree(self.model, self.start_iter)
        if self.ema:
            self.ema.begin()

    def train(self) -> Any:
        """Trains from ``start_iter`` to ``max_iter``, which `finish` may lower, and returns the results of the last evaluation.

        SIGTERM and SIGINT end it after the current iteration, with a checkpoint and exit code 143 or 130.
        """
        if comm.is_main_process() and not self.start_iter:
            self.checkpointer.forget_last_checkpoint()
        logger.info(f"Starting training from iteration {self.start_iter}")
        self._last_eval_results: dict[str, Any] = {}
        self.iter = self.done = self.start_iter
        try:
            with self.signals, EventStorage(self.start_iter) as self.storage:
                try:
                    self._iterate()
                except Interrupted as asked:  # in an evaluation
                    self._leave(asked.number)
        finally:
            self._trainer.close()
        if comm.is_main_process():
            self.job.check(self._last_eval_results)
        return self._last_eval_results

    def _iterate(self) -> None:
        try:
            self.before_train()
            while self.iter < self.max_iter and not self.stop:
                self.before_step()
                self.run_step()
                self.done += 1
                self.after_step()
                self.iter += 1
            if self.stop:
                self._leave(self.stop)
            say_left_out(list(self._trainer.skipped), "training")
        except UserError:
            raise
        except Exception:
            logger.exception("Exception during training:")
            raise
        finally:
            self.after_train()

    def finish(self) -> None:
        """Makes this iteration the last one. Hooks call it after the evaluation."""
        self.max_iter = self.done

    def run_step(self) -> None:
        self._trainer.iter = self.iter
        self._trainer.run_step()

    def after_train(self) -> None:
        super().after_train()
        last = self.evaluation.last
        # again, so that the checkpoint holds the results
        if last and last.iteration == self.max_iter - 1 and self.job.evaluate and comm.is_main_process():
            self.checkpointer.save("model_final", iteration=self.done - 1)

    def state_dict(self) -> dict[str, Any]:
        return {**TrainerBase.state_dict(self), "iteration": self.done - 1, "_trainer": self._trainer.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        TrainerBase.load_state_dict(self, state_dict)
        self._trainer.load_state_dict(state_dict.get("_trainer", state_dict))  # earlier runs of Python configs saved nothing else

    @property
    def evaluated_model(self) -> nn.Module:
        return self.ema.average.module if self.ema else self.model

    def _evaluate(self) -> dict[str, Any]:
        """An evaluation during training or at its end, and what goes with it."""
        job, model = self.job, self.evaluated_model
        self._last_eval_results = job.evaluate(model) if job.evaluate else {}
        results = dict(self._last_eval_results or {})
        if job.validate:
            broadcast_buffers(model)
            results.update(job.validate(model))
        if job.draw and comm.is_main_process():
            folder = os.path.join(job.output_dir, "pictures", f"{self.done:07d}")
            for i, (name, picture) in enumerate(job.draw(model).items()):
                os.makedirs(folder, exist_ok=True)
                Image.fromarray(picture).save(os.path.join(folder, f"{name}.jpg"))
                self.storage.put_image(f"predictions/{i}", picture.transpose(2, 0, 1))
        return results

    def _leave(self, number: int) -> None:
        """Ends this process after signal ``number``, with a checkpoint; all processes but the first wait until it is saved."""
        if self.left:  # a signal at the end also interrupts the evaluation after the training
            sys.exit(exit_code(number))
        self.left = True
        self._trainer.close()  # otherwise workers that end by themselves are reported while the checkpoint is being written
        name = f"model_{self.done - 1:07d}"
        if comm.is_main_process():
            self.checkpointer.save(name, iteration=self.done - 1)
            logger.warning(
                f"ended by {signal.Signals(number).name} after {counted(self.done, 'iteration')}: {name}.pth is saved, --resume continues"
            )
        else:
            # the end of this process may kill the first one while it writes; but a first one that does not start writing may wait for this one
            begun = time.monotonic()
            while not self.checkpointer.is_last(name) and time.monotonic() < begun + (120 if self.checkpointer.is_writing(name) else 5):
                time.sleep(0.05)
        sys.exit(exit_code(number))


def broadcast_buffers(model: nn.Module) -> None:
    """Gives all processes the batch norm statistics of the first, since those are saved and evaluated."""
    if comm.get_world_size() > 1:
        with torch.no_grad():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def check_processes_agree(model: nn.Module, start: int) -> None:
    """Raises UserError, in all processes, unless all have loaded the same weights and start at the same iteration."""
    if comm.get_world_size() == 1:
        return
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    # sums of bit patterns do not depend on the order
    bits = sum(int(p.detach().view(kinds[p.element_size()]).sum(dtype=torch.int64)) for p in model.parameters() if p.numel())
    all_have = comm.all_gather((start, bits))
    other = next((rank for rank, has in enumerate(all_have) if has != all_have[0]), None)
    if other is not None:
        what = f"starts at iteration {all_have[other][0]}" if all_have[other][0] != all_have[0][0] else "has different weights"
        raise UserError(
            f"process {other} {what}, process 0 starts at {all_have[0][0]}: all machines must see the same checkpoints and weights, "
            "in a shared folder"
        )
