"""One iteration of training: accumulated gradients, mixed precision, and losses that are not numbers stop every process.

A GPU's results are read once per iteration, after the backward pass, where detectron2 reads the losses too.
"""

import contextlib
import logging
import time
from collections import Counter
from typing import Any, Callable, Iterable, Iterator

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .. import upstream
from ..data.loader import seed_random_numbers
from ..errors import UserError, counted, either, one_line
from ..lean import can_keep_less

_LEAST_SCALE = 1e-4  # reached from 65536 after thirty iterations with overflowing gradients


_NO_MEMORY = "out of memory"


class OutOfMemory(UserError):
    """An iteration needs more memory than the device has."""


class Diverged(UserError, FloatingPointError):
    """Losses are infinite or not a number."""


def _dense(model: nn.Module) -> dict[str, Any]:
    """The dense detectors in a model, by names that do not depend on the number of processes."""
    whole = model.module if isinstance(model, DistributedDataParallel) else model
    return {name: module for name, module in whole.named_modules() if isinstance(module, DenseDetector)}


def moving_values(model: nn.Module) -> dict[str, float]:
    """State that dense detectors of detectron2 keep besides their weights, by module: the mean number of positive anchors."""
    return {name: module.loss_normalizer for name, module in _dense(model).items() if hasattr(module, "loss_normalizer")}


def set_moving_values(model: nn.Module, values: dict[str, Any]) -> None:
    """Restores what `moving_values` returned; modules without a value start afresh."""
    values = {name.removeprefix("module").removeprefix("."): value for name, value in values.items()}  # names of earlier versions
    for name, module in _dense(model).items():
        if name in values:
            module.loss_normalizer = values[name]
        elif hasattr(module, "loss_normalizer"):
            del module.loss_normalizer


@contextlib.contextmanager
def own_normalizers(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Inside, dense detectors of detectron2 divide losses by their batch's positive anchors, not by a running mean of them.

    Yields what returns that number for the last batch, 1 for other models. Afterwards the running means are as before.
    """
    detectors, before = list(_dense(model).values()), moving_values(model)
    for detector in detectors:
        upstream.divide_by_batch(detector, True)
    try:
        yield lambda: next((detector.loss_normalizer for detector in detectors if hasattr(detector, "loss_normalizer")), 1.0)
    finally:
        for detector in detectors:
            upstream.divide_by_batch(detector, False)
        set_moving_values(model, before)


class Steps(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` and ``AMPTrainer`` in one.

    Args:
        accumulate: batches whose gradients an iteration averages.
        precision: data type of autocast; None: everything in the type of the weights.
        seed: with the iteration and the process it sets the random numbers that the model draws; None leaves them as they are.
        name: gives the name of a YAML key in the user's config.

    ``stop`` is the number of the signal that asked a process to end (see `signals.Signals`), equal in all processes after each iteration.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable,
        optimizer: torch.optim.Optimizer,
        accumulate: int = 1,
        precision: torch.dtype | None = None,
        seed: int | None = None,
        name: Callable[[str], str] = str,
    ):
        super().__init__(model, data_loader, optimizer)
        self.accumulate, self.precision, self.seed, self.name = accumulate, precision, seed, name
        self.device = next(model.parameters()).device
        self.grad_scaler = torch.amp.GradScaler(self.device.type) if precision == torch.float16 else None
        self.asked, self.stop = 0, 0
        self.skipped: Counter[str] = Counter()  # reasons for images that were left out
        # messages between processes about data and signals do not wait for GPUs
        self.group: Any = dist.new_group(backend="gloo") if comm.get_world_size() > 1 and dist.get_backend() != "gloo" else None

    def run_step(self) -> None:
        assert self.model.training, "the model was left in evaluation mode"
        self.optimizer.zero_grad()
        losses: dict[str, torch.Tensor] = {}
        data_time = 0.0
        for part in range(self.accumulate):
            begun = time.perf_counter()
            batch = self._next_batch()
            data_time += time.perf_counter() - begun
            self._count_skipped(batch)
            if self.seed is not None:  # after the batch, since this process may have made it
                seed_random_numbers(self.seed, comm.get_rank(), self.iter, part)
            last = part == self.accumulate - 1
            with contextlib.nullcontext() if last or not hasattr(self.model, "no_sync") else self.model.no_sync():
                found = self._forward(batch)
                total: Any = sum(found.values()) / self.accumulate
                try:
                    (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
                except torch.cuda.OutOfMemoryError:
                    raise self._out_of_memory(len(batch)) from None  # else the exception would keep the graph in memory
            for name, value in found.items():
                losses[name] = losses.get(name, 0) + value.detach() / self.accumulate
        self._share_moving_values()
        self.after_backward()
        self._write_metrics(self._read(losses), data_time)
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()

    def _next_batch(self) -> list[dict[str, Any]]:
        """Raises UserError in all processes if one has no data: the others would wait for it, perhaps inside the model."""
        error: UserError | None = None
        batch: list[dict[str, Any]] = []
        try:
            batch = next(self._data_loader_iter)
        except UserError as problem:
            error = problem
        failed = self._agree(str(error or ""))
        if failed:
            raise error or UserError(failed)
        return batch

    def _forward(self, batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The losses. Raises Diverged in all processes, before gradients are exchanged, if the model of one cannot compute any."""
        cast = contextlib.nullcontext() if self.precision is None else torch.autocast(self.device.type, self.precision)
        failed, found = "", {}
        try:
            # scripted losses are recompiled after their first calls and then round differently: a resumed run would differ
            with cast, torch.jit.optimized_execution(False):
                found = self.model(batch)
        except FloatingPointError as error:  # detectron2's own check of proposals
            failed = str(error)
        except torch.cuda.OutOfMemoryError:
            failed = _NO_MEMORY
        failed = self._agree(failed)
        if failed == _NO_MEMORY:
            raise self._out_of_memory(len(batch))
        if failed:
            raise self._diverged(failed)
        return {"total_loss": found} if isinstance(found, torch.Tensor) else found

    def _agree(self, failed: str) -> str:
        """What failed in this process, else in another, else ""; it also tells all whether one was asked to end."""
        self.stop = self.asked
        if comm.get_world_size() > 1:
            flags = torch.tensor([int(bool(failed)), self.asked])
            dist.all_reduce(flags, dist.ReduceOp.MAX, self.group)
            any_failed, self.stop = flags.tolist()
            if any_failed:
                said = comm.all_gather(failed)
                failed = failed or next(filter(None, said))
        return failed

    def _share_moving_values(self) -> None:
        """Averages them over all processes, as for one batch of all images, so that the checkpoint of the first process is complete."""
        values = moving_values(self.model)
        if values and comm.get_world_size() > 1:
            mean = torch.tensor(list(values.values()), dtype=torch.float64)
            dist.all_reduce(mean, group=self.group)
            set_moving_values(self.model, dict(zip(values, (mean / comm.get_world_size()).tolist())))

    def note(self, number: int) -> None:
        """Notes that this process got a signal."""
        self.asked = number

    def _read(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The losses on the CPU. Raises Diverged in all processes if a loss of one is not finite, before any weight changes."""
        values = torch.stack([value.float().reshape(()) for value in losses.values()])
        bad = (~values.isfinite()).any().float()
        if comm.get_world_size() > 1:  # on the device, without waiting for it
            dist.all_reduce(bad, dist.ReduceOp.MAX)
        *read, bad = torch.cat((values, bad[None])).cpu().unbind()
        result = dict(zip(losses, read))
        if bad:
            names = ", ".join(f"{name} is {value.item()}" for name, value in result.items() if not value.isfinite())
            raise self._diverged(names or "a loss of another process is not finite")
        if self.grad_scaler is not None and self.iter % 20 == 0 and self.grad_scaler.get_scale() < _LEAST_SCALE:
            raise Diverged(
                f"gradients overflow float16 at iteration {self.iter} at any loss scale: use {self.name('SOLVER.AMP.PRECISION')} bfloat16",
                code="diverged",
            )
        return result

    def _diverged(self, names: str) -> "Diverged":
        rate, warmup, clip = map(self.name, ("SOLVER.BASE_LR", "SOLVER.WARMUP_ITERS", "SOLVER.CLIP_GRADIENTS.ENABLED"))
        return Diverged(
            f"training diverged at iteration {self.iter}: {names}. The last checkpoint is still good. Lower the learning rate ({rate}), "
            f"lengthen its warm-up ({warmup}), or clip gradients ({clip})",
            code="diverged",
        )

    def _out_of_memory(self, images: int) -> "OutOfMemory":
        key, amp, kept = map(self.name, ("SOLVER.ACCUMULATE", "SOLVER.AMP.ENABLED", "MODEL.ACTIVATIONS"))
        parts = 2 * self.accumulate
        ways = [f"set {key} {parts}, which splits the same batch into more parts"]
        ways += [f"{amp} True"] * (self.precision is None) + [f"{kept} lean"] * can_keep_less(self.model)
        said = f"the device has not enough memory for {counted(images, 'image')} at once, at iteration {self.iter}"
        return OutOfMemory(f"{said}: {either(ways)}", "resources", key, parts)

    def _count_skipped(self, batch: list[dict[str, Any]]) -> None:
        problems = [problem for example in batch if isinstance(example, dict) for problem in example.pop("unreadable", ())]
        for problem in problems:
            if problem not in self.skipped:
                logging.getLogger(__name__).warning(f"left out: {problem}")
            self.skipped[problem] += 1
        if self.skipped:
            get_event_storage().put_scalar("unreadable_images", self.skipped.total(), smoothing_hint=False)

    def close(self) -> None:
        """Stops the workers of the loader."""
        close = getattr(vars(self).get("_data_loader_iter_obj"), "close", None)
        if close is not None:
            close()
            self._data_loader_iter_obj = None

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["moving_values"] = moving_values(self.model)
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:  # torch's optimizer
            said = f"--resume: the config trains other parameters, or groups of them, than the checkpoint's: {one_line(error)}"
            raise UserError(f"{said}. Restore the config, or start a new run from this run's weights", "resume", "--resume") from error
        set_moving_values(self.model, state_dict.get("moving_values", {}))
        if self.grad_scaler is not None and "grad_scaler" in state_dict:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
