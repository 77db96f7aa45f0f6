"""detectron2's default trainer, with the load gate, an evaluator for every data set, and several processes on CPU too."""

import logging
import os
import signal
import sys
import time
import weakref
from typing import Any, Callable, Dict, List, Optional

import torch
import torch.distributed as dist
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, build_detection_test_loader, get_detection_dataset_dicts
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from fvcore.nn.precise_bn import get_bn_modules
from PIL import Image
from torch import nn

from ..checkpoint import GatedCheckpointer
from ..data.classification import ClassificationMapper
from ..data.loader import NamesFiles, build_train_loader, share
from ..data.mapper import FasterMapper
from ..errors import UserError
from ..evaluation import build_evaluator
from ..lean import keep_activations
from ..solver import build_lr_scheduler, build_optimizer, scale_learning_rate
from .hooks import EMA, Evaluate, EvaluateAtTheEnd, KeepBest, PreciseBN, Progress, draw_predictions, validation_losses
from .resume import Run
from .signals import Interrupted, Signals, exit_code
from .step import Steps
from .supernet import SamplePath, supernets
from .tracking import trackers


def broadcast_buffers(model: nn.Module) -> None:
    """Each process has its own batch norm statistics; those of the first are saved, so those are evaluated."""
    if comm.get_world_size() > 1:
        with torch.no_grad():
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


def warn_of_resuming(resume: bool, checkpointer: GatedCheckpointer, folder: str) -> None:
    if resume and not checkpointer.has_checkpoint():
        logging.getLogger(__name__).warning(f"--resume: no checkpoint in {folder!r}, training starts anew")


def check_not_done(start: int, most: int, checkpointer: GatedCheckpointer, key: str, weights: str) -> None:
    """Raises UserError where a run has no iteration left; ``key`` and ``weights`` are how its config names what to change."""
    if start >= most:
        raise UserError(
            f"--resume: the run in {checkpointer.save_dir!r} has done {start} iterations of {key} {most}: "
            f"raise {key}, or evaluate with --eval-only {weights}{checkpointer.get_checkpoint_file()}"
        )


def warn_of_frozen_norms(weights: str, model: nn.Module) -> None:
    if not weights and any(isinstance(m, FrozenBatchNorm2d) for m in model.modules()):
        logging.getLogger(__name__).warning(
            "training from scratch with frozen batch norms, whose statistics are of no data: it will most likely diverge or learn nothing. "
            "Set the backbone's norm to BN and its FREEZE_AT to 0, or name weights"
        )


def leave(steps: Steps, checkpointer: GatedCheckpointer, iteration: int, number: int) -> None:
    """Ends this process after signal ``number``, with a checkpoint of what follows ``iteration``; others than the first wait for that."""
    steps.close()  # workers that end by themselves would be said in the middle of the checkpoint
    name = f"model_{iteration:07d}"
    if comm.is_main_process():
        checkpointer.save(name, iteration=iteration)
        logging.getLogger(__name__).warning(
            f"ended by {signal.Signals(number).name} after {iteration + 1} iterations: {name}.pth is saved, --resume goes on from it"
        )
    else:
        # the end of this process may be the end of the first in the middle of its checkpoint; but one that does not begin may wait for this one
        begun = time.monotonic()
        while not checkpointer.is_last(name) and time.monotonic() < begun + (120 if checkpointer.is_writing(name) else 5):
            time.sleep(0.05)
    sys.exit(exit_code(number))


def check_processes_agree(model: nn.Module, start: int) -> None:
    """Raises UserError, in all processes, where they have not loaded the same weights or do not begin at the same iteration."""
    if comm.get_world_size() == 1:
        return
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    # sums of bit patterns, which have no order
    bits = sum(int(p.detach().view(kinds[p.element_size()]).sum(dtype=torch.int64)) for p in model.parameters() if p.numel())
    all_have = comm.all_gather((start, bits))
    other = next((rank for rank, has in enumerate(all_have) if has != all_have[0]), None)
    if other is not None:
        what = f"begins at iteration {all_have[other][0]}" if all_have[other][0] != all_have[0][0] else "has other weights"
        raise UserError(
            f"process {other} {what}, process 0 begins at {all_have[0][0]}: all machines must see the same checkpoints and weights, "
            "in a folder that they share"
        )


def _no_mistakes(record: logging.LogRecord) -> bool:
    """Leaves out tracebacks of what is said in a line."""
    return not (record.exc_info and isinstance(record.exc_info[1], UserError))


class _Finish(BaseException):
    """Training has come to its end before MAX_ITER."""


class Trainer(DefaultTrainer):
    """As `DefaultTrainer`; differs in what it loads, see `GatedCheckpointer`, in how it evaluates, and in that a run that is continued, after
    whatever ended it, has the losses and weights that it would have had (see `data.loader`).

    Args:
        cfg: a full config.
        allow_partial_weights: train from a file that fills only part of the backbone.
    """

    def __init__(self, cfg: CfgNode, allow_partial_weights: bool = False):
        # DefaultTrainer's own constructor places every process on a GPU
        TrainerBase.__init__(self)
        for name in ("detectron2", "backbones"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        cfg = scale_learning_rate(cfg)
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self.run = Run(
            data_loader,
            cfg.SEED,
            cfg.SOLVER.IMS_PER_BATCH,
            cfg.SOLVER.ACCUMULATE,
            next(iter(cfg.DATASETS.TRAIN), None),
            cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
        )
        self.ema = EMA(model, cfg.MODEL_EMA.DECAY) if cfg.MODEL_EMA.ENABLED else None
        placed = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        sampled = supernets(model)
        keep_activations(model, cfg.MODEL.ACTIVATIONS)
        if cfg.MODEL.COMPILE:
            getattr(model.backbone, "bottom_up", model.backbone).compile()
        flags = {name.lower(): True for name, on in cfg.SOLVER.DDP.items() if on}
        model = create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=bool(sampled), **flags, **placed)
        precision = getattr(torch, cfg.SOLVER.AMP.PRECISION) if cfg.SOLVER.AMP.ENABLED else None
        self._trainer = Steps(model, data_loader, optimizer, cfg.SOLVER.ACCUMULATE, precision, seed=self.run.seed)
        self.signals = Signals(self._trainer.note)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GatedCheckpointer(
            model,
            cfg.OUTPUT_DIR,
            require="nothing" if allow_partial_weights else "backbone",
            trainer=weakref.proxy(self),
            run=self.run,
            **({"ema": self.ema.average} if self.ema else {}),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.evaluation = Evaluate(cfg.TEST.EVAL_PERIOD, self._evaluate, self.signals.waiting)
        self.register_hooks(self.build_hooks())
        if sampled:
            averaged = supernets(self.ema.average) if self.ema else []
            self.register_hooks([SamplePath([*sampled, *averaged], cfg.SEED)])
            logging.getLogger(__name__).info(
                "a supernet: what evaluations during its training show is its last path's, with norms that all paths have moved"
            )

    def build_hooks(self) -> List[Optional[HookBase]]:
        """detectron2's, in its order: what changes the model, the checkpoint, the evaluation, and last the writers."""
        cfg, model, main = self.cfg, self._trainer.model, comm.is_main_process()
        precise = None
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(model):
            alone = cfg.clone()
            alone.defrost()
            alone.DATALOADER.NUM_WORKERS = 0
            loader = self.build_train_loader(alone)
            precise = PreciseBN(lambda: self.run.seed, cfg.TEST.EVAL_PERIOD, self._evaluated_model(), loader, cfg.TEST.PRECISE_BN.NUM_ITER)
        built = [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            self.ema,
            precise,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD) if main else None,
            self.evaluation,
            (
                KeepBest(self.checkpointer, self.evaluation, cfg.TEST.BEST_METRIC, cfg.TEST.PATIENCE)
                if cfg.DATASETS.TEST and cfg.TEST.BEST_METRIC
                else None
            ),
            (
                EvaluateAtTheEnd(0, lambda: self.test_with_TTA(cfg, self._evaluated_model()), self.signals.waiting)
                if cfg.TEST.AUG.ENABLED
                else None
            ),
            Progress() if Progress.is_wanted() else None,
            hooks.PeriodicWriter([*self.build_writers(), *trackers(cfg)], period=20) if main else None,
        ]
        return [hook for hook in built if hook is not None]

    def resume_or_load(self, resume: bool = True) -> None:
        warn_of_resuming(resume, self.checkpointer, self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        warn_of_frozen_norms(self.cfg.MODEL.WEIGHTS, self.checkpointer.model)
        if not (self.start_iter == self.max_iter and self.evaluation.pending):
            check_not_done(self.start_iter, self.max_iter, self.checkpointer, "SOLVER.MAX_ITER", "MODEL.WEIGHTS ")
        check_processes_agree(self.checkpointer.model, self.start_iter)
        if self.ema:
            self.ema.begin()
        self._trainer.seed = self.run.go_on(self.start_iter)

    def train(self):
        """Trains from ``start_iter`` on; SIGTERM and SIGINT end it after the iteration, with a checkpoint and exit code 143 or 130."""
        if comm.is_main_process() and not self.start_iter:
            self.checkpointer.forget_last_checkpoint()
        log = logging.getLogger("detectron2.engine.train_loop")
        log.addFilter(_no_mistakes)
        try:
            with self.signals:
                try:
                    return super().train()
                except _Finish:
                    return None
                except Interrupted as asked:  # in an evaluation
                    self.iter = min(self.iter, self.max_iter - 1)
                    leave(self._trainer, self.checkpointer, self.iter, asked.number)
        finally:
            log.removeFilter(_no_mistakes)
            self._trainer.close()

    def after_train(self) -> None:
        self.iter = min(self.iter, self.max_iter)  # one more, where all that was left of a run was its last evaluation
        super().after_train()
        if self.evaluation.done == self.max_iter - 1 and self.cfg.DATASETS.TEST and comm.is_main_process():  # which the file is to know
            self.iter = self.max_iter - 1
            self.checkpointer.save("model_final", iteration=self.iter)

    @property
    def stop(self) -> int:
        """The number of a signal by which the run ends after this iteration, or 0."""
        return self._trainer.stop

    def finish(self) -> None:
        """Makes this iteration the last one. For hooks, after its evaluation."""
        self.max_iter = self.iter + 1
        self.iter += 1
        raise _Finish

    def after_step(self) -> None:
        super().after_step()
        if self.stop:
            leave(self._trainer, self.checkpointer, self.iter, self.stop)

    def _evaluated_model(self) -> nn.Module:
        return self.ema.average.module if self.ema else self.model

    def _evaluate(self) -> Dict[str, Any]:
        """An evaluation during training or at its end, and what goes with it."""
        cfg, model = self.cfg, self._evaluated_model()
        self._last_eval_results = self.test(cfg, model)
        results = dict(self._last_eval_results or {})
        if cfg.TEST.LOSS:
            broadcast_buffers(self.checkpointer.model)
            for name in cfg.DATASETS.TEST:
                records = get_detection_dataset_dicts([name], filter_empty=False)
                losses = validation_losses(self.checkpointer.model, records, self._loss_mapper(cfg), cfg.DATALOADER.NUM_WORKERS)
                results[f"validation/{name}" if len(cfg.DATASETS.TEST) > 1 else "validation"] = losses
        if cfg.TEST.PICTURES and comm.is_main_process() and cfg.DATASETS.TEST:
            self._draw(model)
        return results

    def _draw(self, model: nn.Module) -> None:
        folder = os.path.join(self.cfg.OUTPUT_DIR, "pictures", f"{min(self.iter + 1, self.max_iter):07d}")
        model.eval()
        name = self.cfg.DATASETS.TEST[0]
        records = get_detection_dataset_dicts([name], filter_empty=False)[: self.cfg.TEST.PICTURES]
        mapper = self.build_mapper(self.cfg, is_train=False)
        pictures = draw_predictions(self.cfg, model, ([mapper(record)] for record in records), name, self.cfg.TEST.PICTURES)
        model.train()
        for i, (record, picture) in enumerate(zip(records, pictures)):
            os.makedirs(folder, exist_ok=True)
            stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
            Image.fromarray(picture).save(os.path.join(folder, f"{i}_{stem}.jpg"))
            self.storage.put_image(f"predictions/{i}", picture.transpose(2, 0, 1))

    @staticmethod
    def _loss_mapper(cfg: CfgNode):
        """Test images as in evaluation, with their annotations."""
        if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            return ClassificationMapper.from_cfg(cfg, False)
        options = DatasetMapper.from_config(cfg, True)
        return DatasetMapper(**{**options, "augmentations": build_augmentation(cfg, False), "recompute_boxes": False})

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return model.to(memory_format=torch.channels_last) if cfg.MODEL.MEMORY_FORMAT == "channels_last" else model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg, cls.build_mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        mapper = NamesFiles(cls.build_mapper(cfg, is_train=False))
        return build_detection_test_loader(cfg, dataset_name, mapper=mapper, collate_fn=share)

    @staticmethod
    def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[Dict[str, Any]], Dict[str, Any]]:
        """What makes an example of a record of a data set."""
        if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            return ClassificationMapper.from_cfg(cfg, is_train)
        return (DatasetMapper if cfg.INPUT.MAPPER == "detectron2" else FasterMapper)(cfg, is_train)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None):
        broadcast_buffers(model)
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, dict]:
        """The results of `test` with test-time augmentation as ``cfg.TEST.AUG`` says; their names end in ``_TTA``."""
        logging.getLogger(__name__).info("Evaluating with test-time augmentation ...")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, GeneralizedRCNNWithTTA(cfg, model), evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}


def load_for_evaluation(cfg: CfgNode, model: nn.Module, resume: bool = False, allow_partial_weights: bool = False) -> None:
    """Fills ``model`` from ``cfg.MODEL.WEIGHTS``, or with ``resume`` from the last checkpoint in ``cfg.OUTPUT_DIR``.

    Raises UserError where there is nothing to load, or where any weight would keep its initial value.
    """
    fill(model, cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR, "MODEL.WEIGHTS ", resume, allow_partial_weights)


def fill(model: nn.Module, weights: str, folder: str, key: str, resume: bool, allow_partial_weights: bool) -> None:
    """`load_for_evaluation` of any config; ``key`` is how an override of its ``weights`` begins."""
    checkpointer = GatedCheckpointer(model, folder, require="nothing" if allow_partial_weights else "all")
    if not weights and not (resume and checkpointer.has_checkpoint()):
        final = os.path.join(folder, "model_final.pth")
        hint = f", such as {final}" if os.path.isfile(final) else ""
        raise UserError(f"weights are needed: add {key}/path/to/model_final.pth{hint}")
    checkpointer.resume_or_load(weights, resume=resume)
