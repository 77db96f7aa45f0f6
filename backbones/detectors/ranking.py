"""Ranks equal scores by their positions.

Torch's ``topk`` and ``sort`` do not define the order of equal values, and flat areas of images have many exactly equal scores.
Which boxes survive then differs between processors and runtimes. ONNX defines the order: the first of equal values wins.
Models that this project builds, optimizes or exports do the same outside training. detectron2's classes do not change, nor do models
that others build from them: use `ranked` for those.
"""

import functools
from typing import Any, Callable

import torch
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import CascadeROIHeads, FastRCNNOutputLayers
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .gfl import GFL


def top(x: Tensor, count: Any) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of (N,) values, in order, and their places. Much faster than a stable sort of them all."""
    least = x.topk(count)[0][-1:]
    places = (~(x < least)).nonzero()[:, 0]  # NaN too, which topk treats as the largest
    values, order = x[places].sort(descending=True, stable=True)
    return values[:count], places[order[:count]]


def _topk(x: Tensor, k: Any, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not largest or dim not in (-1, x.dim() - 1) or x.dim() not in (1, 2):
        return x.topk(k, dim, largest, sorted)
    if x.dim() == 1:
        return torch.return_types.topk(top(x, k))
    rows = [top(row, k) for row in x]
    return torch.return_types.topk((torch.stack([values for values, _ in rows]), torch.stack([places for _, places in rows])))


def _sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = True) -> Any:
    return x.sort(dim=dim, descending=descending, stable=True)


class InOrder(TorchFunctionMode):
    """A mode in which ``topk`` and ``sort`` keep equal values in the order of their positions."""

    _OWN: dict[Any, Callable[..., Any]] = {torch.topk: _topk, Tensor.topk: _topk, torch.sort: _sort, Tensor.sort: _sort}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # ONNX's operators do so themselves
        return (func if torch.onnx.is_in_onnx_export() else self._OWN.get(func, func))(*args, **(kwargs or {}))


def in_order(method: Callable[..., Any]) -> Callable[..., Any]:
    """A module's method, except that outside training equal values keep the order of their positions."""

    @functools.wraps(method)
    def ordered(self, *args, **kwargs):
        if self.training:
            return method(self, *args, **kwargs)
        with InOrder():
            return method(self, *args, **kwargs)

    return ordered


# what ranks boxes in detectron2's modules; a mode around a whole model would cost a tenth of its time
_RANKING = (
    (RPN, "predict_proposals"),
    (FastRCNNOutputLayers, "inference"),
    (CascadeROIHeads, "forward"),
    (RetinaNet, "inference_single_image"),
    (FCOS, "inference_single_image"),
    (GFL, "inference_single_image"),
)


class _Ranked:
    """Marks what `ranked` has changed."""


def ranked(model: nn.Module) -> nn.Module:
    """Changes the model so that equal scores keep the order of their positions, and returns it. Results for different scores stay the same.

    Only modules that rank boxes change: each becomes an instance of a subclass, which can be traced, but not scripted.
    """
    for module in model.modules():
        for base, name in _RANKING:
            if isinstance(module, base) and not isinstance(module, _Ranked):
                kind = type(module)
                module.__class__ = type(kind.__name__, (_Ranked, kind), {"__module__": kind.__module__, name: in_order(getattr(kind, name))})
    return model
