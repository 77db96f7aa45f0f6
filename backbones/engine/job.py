"""A training run as plain data. The front ends build it from a YAML or Python config; `fit.Fit` trains it."""

import dataclasses
from typing import Any, Callable, Iterable

import torch
from torch import nn


@dataclasses.dataclass
class Job:
    """Everything that training needs. Fields are named like `train.*` of Python configs if those have them.

    ``evaluate(model)``, ``evaluate_augmented(model)`` and ``validate(model)`` return nested dicts of numbers in the first process;
    ``draw(model)`` returns pictures (H, W, 3) RGB by file name. ``name(key)`` is the name of a YAML key in the user's config.
    """

    model: nn.Module  # on its device
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    loader: Iterable  # of batches, endless
    output_dir: str
    max_iter: int
    name: Callable[[str], str]
    init_checkpoint: str = ""
    init_classes: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # their class names as the config states them: `classes`
    seed: int = -1  # below 0: a random one
    batch: int = 0  # images per iteration, over all processes
    accumulate: int = 1  # batches of the loader per iteration
    dataset: str | None = None  # whose classes the model learns
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # all keys, for trackers and for comparison on resume
    precision: torch.dtype | None = None  # of autocast
    activations: str = "all"  # what the backward pass keeps, one of lean.ACTIVATIONS
    compile: bool = False  # the backbone
    ddp: dict[str, Any] = dataclasses.field(default_factory=dict)  # arguments of DistributedDataParallel
    ema_decay: float | None = None  # of an average of the weights, which then is what is evaluated
    precise_bn: Callable[[], Iterable] | None = None  # a loader of images to recompute norm statistics from before evaluations
    precise_bn_batches: int = 0
    checkpoint_period: int = 5000
    checkpoints_kept: int | None = None  # None: all
    eval_period: int = 0  # 0: only at the end
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None  # None: there is nothing to evaluate
    evaluate_augmented: Callable[[nn.Module], dict[str, Any]] | None = None  # once, at the end
    validate: Callable[[nn.Module], dict[str, Any]] | None = None  # losses on the test data
    draw: Callable[[nn.Module], dict[str, Any]] | None = None
    best_metric: str = ""  # "": no checkpoint is kept as the best
    patience: int = 0  # evaluations without improvement after which training ends; 0: never
    log_period: int = 20
    wandb: str = ""
    mlflow: str = ""
    check: Callable[[dict[str, Any]], None] = lambda results: None  # of the last evaluation's results
