"""Equal scores in the order of their places.

Torch's ``topk`` and ``sort`` leave open which of equal values comes first, and flat areas of images have many scores that are exactly equal.
Which boxes survive is then another choice on every processor, and in every runtime. In ONNX it is defined: the first of equal values wins.
Here detectors choose so too, also those of detectron2: what it does in inference is wrapped when this package is imported. Where scores differ,
results are what they were; training is not touched.
"""

import functools
from typing import Any, Callable

import torch
from detectron2.modeling.meta_arch import FCOS, RetinaNet
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from torch import Tensor
from torch.overrides import TorchFunctionMode


def top(x: Tensor, count: Any) -> tuple[Tensor, Tensor]:
    """The ``count`` largest of (N,) values, in order, and their places. Much faster than a stable sort of them all."""
    least = x.topk(count)[0][-1:]
    places = (~(x < least)).nonzero()[:, 0]  # NaN too, which topk takes for the largest
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
    """Within it ``topk`` and ``sort`` put equal values in the order of their places."""

    _OWN: dict[Any, Callable[..., Any]] = {torch.topk: _topk, Tensor.topk: _topk, torch.sort: _sort, Tensor.sort: _sort}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        # ONNX's operators do so themselves
        return (func if torch.onnx.is_in_onnx_export() else self._OWN.get(func, func))(*args, **(kwargs or {}))


def in_order(method: Callable[..., Any]) -> Callable[..., Any]:
    """A module's method as it is, but that out of training equal values are in the order of their places."""

    @functools.wraps(method)
    def ordered(self, *args, **kwargs):
        if self.training:
            return method(self, *args, **kwargs)
        with InOrder():
            return method(self, *args, **kwargs)

    return ordered


for _class, _name in (
    (RPN, "predict_proposals"),
    (FastRCNNOutputLayers, "inference"),
    (RetinaNet, "inference_single_image"),
    (FCOS, "inference_single_image"),
):
    setattr(_class, _name, in_order(getattr(_class, _name)))
