"""The private names of torch and detectron2 that this package needs. No other file of it uses one, but for what subclasses override or read.

Seen in torch 2.3.1 and 2.14.1, detectron2 0.6 (commit a59f0563) and fvcore 0.1.5.
"""

from typing import Any, Callable

import torch
from detectron2.data import build, detection_utils, samplers
from torch import nn

# What pickles of torch call to build tensors. `torch.load(weights_only=True)` calls them too, but cannot ignore the objects of a package.
REBUILD: dict[str, Callable[..., Any]] = {
    f"torch._utils.{name}": getattr(torch._utils, name) for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
}

# The base classes of all norms with running statistics, and of all dropouts. Public names exist for each subclass alone, and new ones appear.
RunningNorm = nn.modules.batchnorm._NormBase
Dropout = nn.modules.dropout._DropoutNd

# The data set, sampler and mapper that a config asks for, as a dict. `build_detection_train_loader` only returns a loader of them.
train_loader_parts = build._train_loader_from_config

# Turns a Pillow image as its EXIF tag says. The public `read_image` does so only with a file that it opens, and converts to numpy.
turned = detection_utils._apply_exif_orientation

# (x, weight, bias, "none", [], "") -> what `torch.nn.functional.linear` computes, by oneDNN. No public name exists; None where torch lacks it.
onednn_linear: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def divide_by_batch(detector: Any, on: bool) -> None:
    """Makes a dense detector of detectron2 divide its losses by a batch's own positive anchors, or by their running mean again."""
    if not on:
        del detector._ema_update
        return

    def update(name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        setattr(detector, name, float(value))
        return getattr(detector, name)

    detector._ema_update = update


def set_seed(sampler: Any, seed: int, subset: int | None) -> None:
    """Gives a training sampler another seed; a random subset becomes that of the seed ``subset``, None keeps it.

    detectron2 sets random seeds when it makes the sampler, and offers no way to change them.
    """
    sampler._seed = seed
    if subset is not None and isinstance(sampler, samplers.RandomSubsetTrainingSampler):
        order = torch.randperm(sampler._size, generator=torch.Generator().manual_seed(subset))
        sampler._indexes_subset = order[: len(sampler._indexes_subset)]


def stop_workers(iterator: Any) -> None:
    """Ends the processes of a ``DataLoader``'s iterator now. By itself it ends them when it is collected, which a traceback can delay."""
    iterator._shutdown_workers()


def cpu_has_bfloat16() -> bool:
    """Whether this processor computes in bfloat16 fast. torch tells it by a private operator alone."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):
        return False
