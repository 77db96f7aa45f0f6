"""A run as one plain value. The front ends build it from a config, YAML or Python; `fit.Fit` trains it."""

import dataclasses
from typing import Any, Callable, Iterable

import torch
from torch import nn


@dataclasses.dataclass
class Job:
    """All that training has to know. The names of its fields are those of `train.*` in Python configs, where those have them.

    ``evaluate(model)``, ``evaluate_augmented(model)`` and ``validate(model)`` give nested dicts of numbers in the first process;
    ``draw(model)`` gives a picture (H, W, 3) RGB by file name. ``name(key)`` is what the user's config calls a key of YAML configs.
    """

    model: nn.Module  # on its device
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler
    loader: Iterable  # of batches, without end
    output_dir: str
    max_iter: int
    name: Callable[[str], str]
    init_checkpoint: str = ""
    init_classes: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # what they are called, where the file does not say: `classes`
    seed: int = -1  # below 0: a random one
    batch: int = 0  # images an iteration, over all processes
    accumulate: int = 1  # batches of the loader that an iteration takes
    dataset: str | None = None  # whose classes the model learns
    config: dict[str, Any] = dataclasses.field(default_factory=dict)  # all keys, as a tracker and a resume are to see them
    precision: torch.dtype | None = None  # of autocast
    activations: str = "all"  # what the backward pass keeps, one of layers.ACTIVATIONS
    compile: bool = False  # the backbone
    ddp: dict[str, Any] = dataclasses.field(default_factory=dict)  # arguments of DistributedDataParallel
    ema_decay: float | None = None  # of an average of the weights, which is then evaluated
    precise_bn: Callable[[], Iterable] | None = None  # a loader of the images from which norms are computed anew before evaluations
    precise_bn_batches: int = 0
    checkpoint_period: int = 5000
    checkpoints_kept: int | None = None  # None: all
    eval_period: int = 0  # 0: at the end only
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None  # None: there is nothing to evaluate
    evaluate_augmented: Callable[[nn.Module], dict[str, Any]] | None = None  # once, at the end
    validate: Callable[[nn.Module], dict[str, Any]] | None = None  # losses on the test data
    draw: Callable[[nn.Module], dict[str, Any]] | None = None
    best_metric: str = ""  # "": no checkpoint is kept as the best
    patience: int = 0  # evaluations without a better one after which training ends; 0: it does not
    log_period: int = 20
    wandb: str = ""
    mlflow: str = ""
    check: Callable[[dict[str, Any]], None] = lambda results: None  # of the last evaluation's results
    hooks: list[Any] = dataclasses.field(default_factory=list)  # more of the user's own
