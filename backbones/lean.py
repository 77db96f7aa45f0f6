"""Training that keeps less for the backward pass: a convolution and its frozen norm are one operation on pieces that are joined only for it.

Torch keeps what a convolution was given until its gradient is computed. Where that is a concatenation, every piece is kept twice, as the
layers that made the pieces keep them too. Here only the pieces are kept, and joined again later. A frozen norm's scale goes into the
weight, so that no pass over the feature is needed for it. The gradients are those of the plain network.
"""

import contextlib
from typing import Iterator, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .errors import unknown

ACTIVATIONS = ("all", "lean", "inputs")  # what training keeps of each block, see `keep_activations`


class _Conv(torch.autograd.Function):
    """conv2d of the joined ``pieces`` by ``weight * scale``, plus ``shift``; scale and shift are constants, or None."""

    @staticmethod
    def forward(ctx, weight, scale, shift, stride, padding, dilation, groups, *pieces):
        ctx.save_for_backward(weight, scale, *pieces)
        ctx.options = (stride, padding, dilation, groups)
        return F.conv2d(_joined(pieces), weight if scale is None else weight * scale, shift, *ctx.options)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        weight, scale, *pieces = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.options
        wanted = [any(ctx.needs_input_grad[7:]), ctx.needs_input_grad[0], False]
        # under autocast the convolution was computed in the gradient's precision
        factors = [factor.to(gradient.dtype) for factor in (_joined(pieces), weight if scale is None else weight * scale)]
        options = [None, *map(list, (stride, padding, dilation)), False, [0, 0], groups]
        of_input, of_weight, _ = torch.ops.aten.convolution_backward(gradient, *factors, *options, wanted)
        if of_weight is not None and scale is not None:
            of_weight = of_weight.to(weight.dtype) * scale
        of_pieces: Sequence[Tensor | None] = [None] * len(pieces)
        if of_input is not None:
            of_pieces = of_input.split([piece.shape[1] for piece in pieces], dim=1)
        return (of_weight, None, None, None, None, None, None, *of_pieces)


def _joined(pieces: Sequence[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(tuple(pieces), dim=1)


def fits(conv: nn.Module) -> bool:
    return type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


def conv_norm(conv: nn.Module, norm: nn.Module, pieces: Sequence[Tensor]) -> Tensor:
    """``norm(conv(torch.cat(pieces, 1)))``; the concatenation is not kept, and a frozen norm is part of the convolution."""
    options: tuple = (conv.stride, conv.padding, conv.dilation, conv.groups)
    if isinstance(norm, FrozenBatchNorm2d) and conv.bias is None:
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        return _Conv.apply(conv.weight, scale.reshape(-1, 1, 1, 1), shift, *options, *pieces)
    if conv.bias is not None:
        return norm(conv(_joined(pieces)))
    return norm(_Conv.apply(conv.weight, None, None, *options, *pieces))


def checkpointed(stage: nn.Module, x: Tensor) -> Tensor:
    """``stage(x)``, but the backward pass computes each block again from its input; batch norms count the batch once."""
    for block in stage if isinstance(stage, nn.Sequential) else (stage,):
        x = _checkpointed(block, x) if any(p.requires_grad for p in block.parameters()) else block(x)
    return x


def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    return checkpoint(block, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), _counted_already(block)))


@contextlib.contextmanager
def _counted_already(block: nn.Module) -> Iterator[None]:
    norms = [m for m in block.modules() if isinstance(m, (nn.BatchNorm2d, nn.SyncBatchNorm)) and m.training]
    before = [(m, m.momentum, m.num_batches_tracked, m.num_batches_tracked.clone()) for m in norms if m.num_batches_tracked is not None]
    for m, *_ in before:
        m.momentum = 0.0
    try:
        yield
    finally:
        for m, momentum, counter, count in before:
            m.momentum = momentum
            counter.copy_(count)


class KeepsActivations(nn.Module):
    """A module that acts on what `keep_activations` asks for."""

    activations: str = "all"

    @torch.jit.unused
    def computes_again(self) -> bool:
        """Whether a backward pass will follow that computes its blocks again."""
        return self.activations == "inputs" and self.training and torch.is_grad_enabled()


def keep_activations(model: nn.Module, kept: str) -> int:
    """What training keeps for the backward pass of this project's networks in ``model``, which computes the same in any case.

    Returns how many modules act on it: none of detectron2's own networks.

    "all": what torch keeps. "lean": no concatenation, and no frozen norm's input. "inputs": of each block its input alone, from which it is
    computed again (activation checkpointing): less memory, a third more time.
    """
    if kept not in ACTIVATIONS:
        raise unknown("what training keeps", kept, ACTIVATIONS)
    modules = [module for module in model.modules() if isinstance(module, KeepsActivations)]
    for module in modules:
        module.activations = kept
    return len(modules)


def can_keep_less(model: nn.Module | None) -> bool:
    """Whether a network acts on `keep_activations`, and still keeps all."""
    return model is not None and any(isinstance(module, KeepsActivations) and module.activations == "all" for module in model.modules())
