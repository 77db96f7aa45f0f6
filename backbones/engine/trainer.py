"""detectron2's default trainer, with the load gate, an evaluator for every data set, and several processes on CPU too."""

import logging
import os
import weakref
from typing import Dict

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader, build_detection_train_loader
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, TrainerBase, create_ddp_model
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..checkpoint import GatedCheckpointer
from ..data.classification import ClassificationMapper
from ..data.mapper import FasterMapper
from ..errors import UserError
from ..evaluation import build_evaluator
from ..layers import keep_activations
from ..solver import build_lr_scheduler, build_optimizer
from .supernet import SamplePath, supernets


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


class Trainer(DefaultTrainer):
    """As `DefaultTrainer`; differs in what it loads, see `GatedCheckpointer`, and in how it evaluates.

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
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        placed = {} if cfg.MODEL.DEVICE.startswith("cuda") else {"device_ids": None}
        sampled = supernets(model)
        keep_activations(model, cfg.MODEL.ACTIVATIONS)
        if cfg.MODEL.COMPILE:
            getattr(model.backbone, "bottom_up", model.backbone).compile()
        flags = {name.lower(): True for name, on in cfg.SOLVER.DDP.items() if on}
        model = create_ddp_model(model, broadcast_buffers=False, find_unused_parameters=bool(sampled), **flags, **placed)
        if cfg.SOLVER.AMP.ENABLED:
            self._trainer = AMPTrainer(model, data_loader, optimizer, precision=getattr(torch, cfg.SOLVER.AMP.PRECISION))
        else:
            self._trainer = SimpleTrainer(model, data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = GatedCheckpointer(
            model, cfg.OUTPUT_DIR, require="nothing" if allow_partial_weights else "backbone", trainer=weakref.proxy(self)
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.cfg = cfg
        self.register_hooks(self.build_hooks())
        if sampled:
            self.register_hooks([SamplePath(sampled, cfg.SEED)])
            logging.getLogger(__name__).info(
                "a supernet: what evaluations during its training show is its last path's, with norms that all paths have moved"
            )
        if cfg.TEST.AUG.ENABLED:
            self.register_hooks([EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.model))])

    def resume_or_load(self, resume: bool = True) -> None:
        warn_of_resuming(resume, self.checkpointer, self.cfg.OUTPUT_DIR)
        super().resume_or_load(resume)
        warn_of_frozen_norms(self.cfg.MODEL.WEIGHTS, self.checkpointer.model)
        check_not_done(self.start_iter, self.max_iter, self.checkpointer, "SOLVER.MAX_ITER", "MODEL.WEIGHTS ")

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
        return build_detection_train_loader(cfg, **cls._mapper(cfg, is_train=True))

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        return build_detection_test_loader(cfg, dataset_name, **cls._mapper(cfg, is_train=False))

    @staticmethod
    def _mapper(cfg: CfgNode, is_train: bool) -> dict:
        if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            return {"mapper": ClassificationMapper.from_cfg(cfg, is_train)}
        if cfg.INPUT.MAPPER == "detectron2":
            return {}  # the loader's own
        return {"mapper": FasterMapper(cfg, is_train)}

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None):
        broadcast_buffers(model)
        return super().test(cfg, model, evaluators)

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> Dict[str, dict]:
        """The results of `test` with test-time augmentation as ``cfg.TEST.AUG`` says; their names end in ``_TTA``."""
        logging.getLogger(__name__).info("Evaluating with test-time augmentation ...")
        folder = os.path.join(cfg.OUTPUT_DIR, "inference_TTA")
        evaluators = [build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
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
        raise UserError(f"--eval-only needs weights: add {key}/path/to/model_final.pth{hint}")
    checkpointer.resume_or_load(weights, resume=resume)
