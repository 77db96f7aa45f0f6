"""Training and evaluation from Python configs (detectron2's LazyConfig), with the same load gate as from YAML."""

import inspect
import logging
import weakref
from typing import Any, Dict, List

import torch
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.engine import HookBase, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import inference_on_dataset, print_csv_format
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from .. import config
from ..checkpoint import GatedCheckpointer
from ..config import add_backbones_config, check_device, check_output_dir, from_libraries
from ..data import check_packages, check_paths, register_from_config
from ..data.loader import train_loader
from ..errors import UserError, unknown
from ..swap import use_backbone
from .hooks import EMA, Evaluate, KeepBest
from .resume import Run
from .signals import Interrupted, Signals
from .step import Steps
from .trainer import broadcast_buffers, check_not_done, check_processes_agree, fill, leave, warn_of_frozen_norms, warn_of_resuming


def is_lazy(path: str) -> bool:
    return path.endswith(".py")


def load_config(path: str, opts: List[str], backbone: str = "") -> DictConfig:
    """The config of a file with the command line's ``key.key=value`` overrides; raises UserError for what cannot be."""
    try:
        cfg = LazyConfig.load(path)
    except ModuleNotFoundError as error:
        raise _missing(error, path) from error
    except (SyntaxError, AssertionError, ImportError, OmegaConfBaseException) as error:
        raise UserError(f"config file {path!r}: {' '.join(str(error).split())}") from error
    for key in ("model", "train", "optimizer", "lr_multiplier", "dataloader"):
        if key not in cfg:
            raise UserError(f"config file {path!r} has no {key!r}, which Python configs are to have")
    if backbone:
        use_backbone(cfg, backbone)
    for key, value in _TRAIN.items():
        if isinstance(cfg.train, DictConfig) and OmegaConf.select(cfg, key) is None:
            OmegaConf.update(cfg, key, value, force_add=True)
    for item in opts:
        if "=" not in item:
            raise UserError(f"{path!r} is a Python config, whose overrides are key.key=value, such as train.device=cpu, not {item!r}")
        _check_key(cfg, item.partition("=")[0].lstrip("+~"))
    try:
        cfg = LazyConfig.apply_overrides(cfg, list(opts))
    except Exception as error:  # hydra's grammar and omegaconf have many of their own
        raise UserError(f"{' '.join(opts)}: {' '.join(str(error).split())}") from error
    train = cfg.train
    wanted = {"device": str, "output_dir": str, "max_iter": int, "eval_period": int, "log_period": int}
    for key, kind in wanted.items():
        value = train.get(key) if isinstance(train, DictConfig) else None
        if not isinstance(value, kind) or (kind is int and value < (key == "max_iter")):
            raise UserError(
                f"train.{key} is {value!r}: it must be {'a whole number' if kind is int else 'text'}{', 1 or more' * (key == 'max_iter')}"
            )
    decay = train.model_ema.decay
    if not isinstance(decay, (int, float)) or not 0 < decay < 1:
        raise UserError(f"train.model_ema.decay is {decay!r}: it must be between 0 and 1")
    check_device(train.device, key="train.device", form="{}={}")
    check_output_dir(train.output_dir, key="train.output_dir")
    return cfg


# what detectron2's own Python configs may lack
_TRAIN = {"train.seed": -1, "train.model_ema.enabled": False, "train.model_ema.decay": 0.9998}
# what a resume looks at, whether it is as it was
_COMPARED = ("train.seed", "train.amp.enabled", "train.model_ema.enabled", "train.model_ema.decay", "dataloader.train.total_batch_size")
_COMPARED += ("optimizer.lr", "optimizer.weight_decay", "optimizer.momentum")


def _check_key(cfg: DictConfig, key: str) -> None:
    """Raises UserError for an override of what is neither there nor an argument of what is to be called there."""
    node: Any = cfg
    for part in key.split("."):
        if isinstance(node, DictConfig) and part in node:
            node = node._get_node(part)
        elif isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
            node = node._get_node(int(part))
        else:
            allowed = list(node) if isinstance(node, DictConfig) else []
            if "_target_" in allowed:
                target = node._target_
                parameters = inspect.signature(locate(target) if isinstance(target, str) else target).parameters
                if part in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                    return
                allowed = [*allowed, *parameters]
            raise unknown(f"config key {key!r}, of whose parts", part, sorted(set(map(str, allowed)) - {"_target_", "self"}))


def apply_data_arguments(cfg: DictConfig, args, training: bool) -> None:
    """As `config.apply_data_arguments`, for data sets of which the config names one each."""
    own = get_cfg()
    add_backbones_config(own)
    config.apply_data_arguments(own, args, training)
    if not own.DATASETS.REGISTER:
        return
    register_from_config(own)
    for key, names in (("train", own.DATASETS.TRAIN), ("test", own.DATASETS.TEST)):
        place = f"dataloader.{key}.dataset.names"
        if names and OmegaConf.select(cfg, place) is None:
            raise UserError(f"--train-json and --val-json set {place}, which this Python config has not")
        if names:
            OmegaConf.update(cfg, place, names[0])
    for place in ("model.roi_heads.num_classes", "model.num_classes"):
        if OmegaConf.select(cfg, place) is not None:
            OmegaConf.update(cfg, place, own.MODEL.ROI_HEADS.NUM_CLASSES)


def check_data(cfg: DictConfig, training: bool) -> None:
    """Raises UserError where a data set of detectron2's catalogue that the config names is not there."""
    for key in ("train", "test") if training else ("test",):
        names = OmegaConf.select(cfg, f"dataloader.{key}.dataset.names")
        for name in [names] if isinstance(names, str) else names or ():
            if name not in DatasetCatalog:
                raise unknown(f"data set in dataloader.{key}.dataset.names", name, sorted(DatasetCatalog.keys()))
            check_paths(name)
            check_packages(name, evaluating=key == "test")
            things = MetadataCatalog.get(name).get("thing_classes")
            for place in ("model.roi_heads.num_classes", "model.num_classes"):
                classes = OmegaConf.select(cfg, place)
                if things and classes is not None and classes != len(things):
                    raise UserError(f"{place} is {classes}, but data set {name!r} has {len(things)}: set {place}={len(things)}")


def build_model(cfg: DictConfig) -> nn.Module:
    return _instantiate(cfg, "model").to(cfg.train.device)


def evaluate(cfg: DictConfig, model: nn.Module) -> Dict[str, Any]:
    """The results of the config's own evaluator on its test data; empty where it has none."""
    if "evaluator" not in cfg.dataloader:
        return {}
    broadcast_buffers(model)
    results = inference_on_dataset(model, _instantiate(cfg, "dataloader.test"), _instantiate(cfg, "dataloader.evaluator"))
    if comm.is_main_process():
        print_csv_format(results)
    return results


def load_for_evaluation(cfg: DictConfig, model: nn.Module, resume: bool = False, allow_partial_weights: bool = False) -> None:
    """As the YAML configs': fills ``model`` from train.init_checkpoint, or with ``resume`` from the last checkpoint."""
    fill(model, cfg.train.init_checkpoint, cfg.train.output_dir, "train.init_checkpoint=", resume, allow_partial_weights)


def train(cfg: DictConfig, resume: bool = False, allow_partial_weights: bool = False) -> None:
    """Trains what the config says, evaluates every ``train.eval_period`` iterations and at the end, and keeps the best checkpoint.

    A run that is continued has the losses and weights that it would have had, where the config's loader is detectron2's.
    """
    model = build_model(cfg)
    logging.getLogger(__name__).info(f"Model:\n{model}")
    cfg.optimizer.params.model = model
    optimizer = _instantiate(cfg, "optimizer")
    loader = _train_loader(cfg)
    batch = OmegaConf.select(cfg, "dataloader.train.total_batch_size") or 0
    name = OmegaConf.select(cfg, "dataloader.train.dataset.names")
    name = name if isinstance(name, str) else next(iter(name or ()), None)
    run = Run(loader, cfg.train.seed, batch, 1, name, cfg.train.output_dir, {key: OmegaConf.select(cfg, key) for key in _COMPARED})
    ema = EMA(model, cfg.train.model_ema.decay) if cfg.train.model_ema.enabled else None
    placed = {} if str(cfg.train.device).startswith("cuda") else {"device_ids": None}
    model = create_ddp_model(model, **{**cfg.train.get("ddp", {}), **placed})
    amp = cfg.train.amp.enabled
    if amp and not str(cfg.train.device).startswith("cuda"):
        raise UserError(f"train.amp needs a GPU, but train.device is {cfg.train.device!r}: set train.amp.enabled=False")
    trainer = Steps(model, loader, optimizer, precision=torch.float16 if amp else None)
    checkpointer = GatedCheckpointer(
        model,
        cfg.train.output_dir,
        require="nothing" if allow_partial_weights else "backbone",
        trainer=weakref.proxy(trainer),
        run=run,
        **({"ema": ema.average} if ema else {}),
    )
    main = comm.is_main_process()
    signals = Signals(trainer.note)
    evaluation = Evaluate(cfg.train.eval_period, lambda: evaluate(cfg, ema.average.module if ema else model), signals.waiting)
    trainer.register_hooks(
        [
            hooks.IterationTimer(),
            hooks.LRScheduler(scheduler=_instantiate(cfg, "lr_multiplier")),
            ema,
            hooks.PeriodicCheckpointer(checkpointer, **cfg.train.checkpointer) if main else None,
            evaluation,
            KeepBest(checkpointer, evaluation) if "evaluator" in cfg.dataloader else None,
            hooks.PeriodicWriter(default_writers(cfg.train.output_dir, cfg.train.max_iter), period=cfg.train.log_period) if main else None,
        ]
    )
    warn_of_resuming(resume, checkpointer, cfg.train.output_dir)
    checkpointer.resume_or_load(cfg.train.init_checkpoint or "", resume=resume)
    warn_of_frozen_norms(cfg.train.init_checkpoint, model)
    start = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    if not (start == cfg.train.max_iter and evaluation.pending):
        check_not_done(start, cfg.train.max_iter, checkpointer, "train.max_iter", "train.init_checkpoint=")
    check_processes_agree(checkpointer.model, start)
    if ema:
        ema.begin()
    trainer.seed = run.go_on(start)
    if main and not start:
        checkpointer.forget_last_checkpoint()
    trainer.register_hooks([_LeaveAfterSignals(checkpointer)])
    try:
        with signals:
            try:
                trainer.train(start, cfg.train.max_iter)
            except Interrupted as asked:  # in an evaluation
                trainer.iter = min(trainer.iter, cfg.train.max_iter - 1)
                leave(trainer, checkpointer, trainer.iter, asked.number)
        if main:  # a last time, which knows of the last evaluation
            trainer.iter = cfg.train.max_iter - 1
            checkpointer.save("model_final", iteration=trainer.iter)
    finally:
        trainer.close()


def _train_loader(cfg: DictConfig) -> Any:
    """The config's own; where that is detectron2's, one of the same parts that a run can go on with."""
    node = cfg.dataloader.train
    target = locate(node._target_) if isinstance(node.get("_target_"), str) else node.get("_target_")
    known = inspect.signature(train_loader).parameters.keys() - {"skip"}
    parts = set(node) - {"_target_"}
    if target is not build_detection_train_loader or not {"dataset", "mapper", "total_batch_size"} <= parts <= known:
        return _instantiate(cfg, "dataloader.train")
    if cfg.dataloader.train.total_batch_size % comm.get_world_size():
        raise UserError(
            f"dataloader.train.total_batch_size {cfg.dataloader.train.total_batch_size} cannot be shared evenly among "
            f"{comm.get_world_size()} processes"
        )
    built = {key: _instantiate(cfg, f"dataloader.train.{key}") for key in parts}
    return train_loader(**built) if isinstance(built["dataset"], list) else _instantiate(cfg, "dataloader.train")


class _LeaveAfterSignals(HookBase):
    def __init__(self, checkpointer: GatedCheckpointer):
        self.checkpointer = checkpointer

    def after_step(self) -> None:
        if self.trainer.stop:
            leave(self.trainer, self.checkpointer, self.trainer.iter, self.trainer.stop)


def _instantiate(cfg: DictConfig, key: str) -> Any:
    node = OmegaConf.select(cfg, key)
    try:
        return instantiate(node)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        raise _missing(error, key) from error
    except Exception as error:
        if not from_libraries(error):  # code of the user's own, which is to speak with a traceback
            raise
        raise UserError(f"{key} of the config cannot be built: {type(error).__name__}: {' '.join(str(error).split())}") from error


def _missing(error: ModuleNotFoundError, what: str) -> UserError:
    package = {"pkg_resources": "'setuptools<82'", "lvis": "--no-deps lvis", "panopticapi": "panopticapi-lite"}.get(error.name, error.name)
    return UserError(f"{what!r} needs a package that is not installed: pip install {package}")
