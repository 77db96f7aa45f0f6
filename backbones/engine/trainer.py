"""The YAML front end, and `Trainer`: detectron2's default trainer over `Fit`, for subclassing."""

import logging
import shlex
from collections import OrderedDict
from functools import partial
from typing import Any, Callable, Collection, Iterator

import detectron2.data.transforms as T
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.data.detection_utils import build_augmentation
from detectron2.engine import DefaultTrainer
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format, verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger
from torch import nn

from ..config import (
    apply_data_arguments,
    config_findings,
    defaults,
    learns,
    make_files_absolute,
    merge_file,
    merge_overrides,
    put,
)
from ..data.classification import ClassificationMapper
from ..data.loader import build_train_loader, evaluation_loader, share
from ..data.mapper import FasterMapper, Mapper
from ..detectors import ranked
from ..errors import UserError
from ..evaluation import augmented, build_evaluator
from ..solver import build_lr_scheduler, build_optimizer, scale_learning_rate
from ..swap import use_backbone, use_weights
from .fit import Fit, broadcast_buffers
from .front import Front, arranged
from .launch import once_a_machine


class Trainer(Fit, DefaultTrainer):
    """As `DefaultTrainer`, with ``build_*`` and ``test`` to override; it differs in loading (see `GatedCheckpointer`), in
    evaluation, and in that a resumed run has the losses and weights that it would have had without the interruption.

    Args:
        cfg: a full config.
        allow_partial_weights: accept a file that fills only part of the backbone.
    """

    def __init__(self, cfg: CfgNode, allow_partial_weights: bool = False):
        for name in ("detectron2", "backbones"):
            if not logging.getLogger(name).isEnabledFor(logging.INFO):
                setup_logger(name=name)
        if cfg.INPUT.NORMALIZATION == "weights":
            front = YamlFront(cfg.clone())
            front.follow_weights()
            cfg = front.cfg
        cfg = scale_learning_rate(self.auto_scale_workers(cfg, comm.get_world_size()), base=cfg.SOLVER.BASE_LR)
        self.cfg = cfg
        super().__init__(YamlFront(cfg, trainer=type(self)).job(), allow_partial_weights)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        model = super().build_model(cfg)
        return arranged(ranked(model), cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode):
        return build_train_loader(cfg, cls.build_mapper(cfg, is_train=True), once_a_machine if comm.get_local_size() > 1 else None)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        build = partial(build_detection_test_loader, cfg, dataset_name, collate_fn=share)
        mapper, kind = cls.build_mapper(cfg, is_train=False), MetadataCatalog.get(dataset_name).get("evaluator_type")
        return evaluation_loader(build, mapper, cfg.INPUT.UNREADABLE == "skip", kind)

    @staticmethod
    def build_mapper(cfg: CfgNode, is_train: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
        """The mapper from records of a data set to examples."""
        if learns(cfg, "class"):
            return ClassificationMapper.from_cfg(cfg, is_train)
        return (Mapper if cfg.INPUT.MAPPER == "detectron2" else FasterMapper)(cfg, is_train)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: str | None = None) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name, output_folder)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators=None):
        """As detectron2's, but without the empty heading for data that have no annotations."""
        broadcast_buffers(model)
        given = [evaluators] if isinstance(evaluators, DatasetEvaluator) else evaluators
        results = OrderedDict()
        for i, name in enumerate(cfg.DATASETS.TEST):
            evaluator = given[i] if given else cls.build_evaluator(cfg, name)
            results[name] = inference_on_dataset(model, cls.build_test_loader(cfg, name), evaluator)
            if results[name] and comm.is_main_process():
                logging.getLogger(__name__).info(f"Evaluation results for {name} in csv format:")
                print_csv_format(results[name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg: CfgNode, model: nn.Module) -> dict[str, dict]:
        """Runs `test` with test-time augmentation as in ``cfg.TEST.AUG``; names of results end in ``_TTA``."""
        logging.getLogger(__name__).info("Evaluating with test-time augmentation ...")
        folder = f"{cfg.OUTPUT_DIR}/inference_TTA"
        evaluators = [cls.build_evaluator(cfg, name, folder) for name in cfg.DATASETS.TEST]
        results = cls.test(cfg, augmented(cfg, model), evaluators)
        return {f"{name}_TTA": value for name, value in results.items()}


class YamlFront(Front):
    """A YAML config; it builds everything with the builders of a ``trainer``."""

    def __init__(self, cfg: CfgNode, path: str = "", opts: list[str] | None = None, trainer: type[Trainer] = Trainer):
        super().__init__(path)
        self.cfg = self.settings = cfg
        self.opts, self.trainer = opts or [], trainer

    @classmethod
    def read(cls, path: str, opts: list[str], backbone: str = "", weights: str = "", accepted: Collection[str] = ()) -> "YamlFront":
        """Reads a config file ("": the defaults) and applies overrides KEY VALUE, another backbone and other weights.

        ``accepted``: restrictive licences of weights that the user accepts. Raises UserError.
        """
        cfg = defaults()
        if path:
            merge_file(cfg, path)
        if backbone:
            use_backbone(cfg, backbone, own_weights=bool(weights or dict(zip(opts[::2], opts[1::2])).get("MODEL.WEIGHTS")), accepted=accepted)
        if weights:
            use_weights(cfg, weights)
        merge_overrides(cfg, opts)
        make_files_absolute(cfg)
        return cls(cfg, path, opts)

    def name(self, key: str) -> str:
        return key

    def override(self, key: str, value: Any) -> str:
        return f"{key} {shlex.quote(str(value))}"

    def set(self, key: str, value: Any) -> None:
        self.cfg.defrost()
        put(self.cfg, key, value)

    def apply_data_arguments(self, args: Any, training: bool) -> bool:
        self.cfg.defrost()
        replaced = apply_data_arguments(self.cfg, args, training)
        self.merge(self.opts)
        return replaced

    def merge(self, opts: list[str]) -> None:
        merge_overrides(self.cfg, opts)

    def config_findings(self, training: bool = False, processes: int = 1) -> Iterator[UserError]:
        return config_findings(self.cfg, training, processes)

    def clone(self, *pairs: Any) -> "YamlFront":
        front = YamlFront(self.cfg.clone(), self.path, self.opts, self.trainer)
        front.accepted = list(self.accepted)
        for key, value in zip(pairs[::2], pairs[1::2]):
            front.set(key, value)
        return front

    def fit(self, allow_partial_weights: bool = False) -> Trainer:
        return self.trainer(self.cfg, allow_partial_weights)

    def build_model(self) -> nn.Module:
        return self.trainer.build_model(self.cfg)

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return self.trainer.build_optimizer(self.cfg, model)

    def build_scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return self.trainer.build_lr_scheduler(self.cfg, optimizer)

    def build_train_loader(self, workers: int | None = None) -> Any:
        cfg = self.cfg
        if workers is not None:
            cfg = cfg.clone()
            cfg.defrost()
            cfg.DATALOADER.NUM_WORKERS = workers
        return self.trainer.build_train_loader(cfg)

    def mapper(self, training: bool, annotated: bool = False) -> Callable[[dict[str, Any]], dict[str, Any]]:
        if not annotated or learns(self.cfg, "class"):
            return self.trainer.build_mapper(self.cfg, is_train=training)
        options = Mapper.from_config(self.cfg, True)
        return Mapper(**{**options, "augmentations": build_augmentation(self.cfg, False), "recompute_boxes": False})

    @property
    def skips(self) -> bool | None:
        return self.cfg.INPUT.UNREADABLE == "skip"

    def resize(self) -> T.Augmentation:
        return T.ResizeShortestEdge(self.cfg.INPUT.MIN_SIZE_TEST, self.cfg.INPUT.MAX_SIZE_TEST)

    def evaluate(self, model: nn.Module) -> dict[str, Any]:
        return self.trainer.test(self.cfg, model)

    def evaluate_augmented(self, model: nn.Module) -> dict[str, Any]:
        return self.trainer.test_with_TTA(self.cfg, model)

    def verify(self, results: dict[str, Any]) -> None:
        if self.cfg.TEST.EXPECTED_RESULTS:
            verify_results(self.cfg, results)

    def plain(self) -> dict[str, Any]:
        return yaml.safe_load(self.cfg.dump())
