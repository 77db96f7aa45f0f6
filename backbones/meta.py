"""Networks without memory: they give shapes, counts and errors, but no values."""

import contextlib
from typing import Any, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_DRAWS = ("normal_", "uniform_", "kaiming_uniform_")
_ALIKE = ("batch_norm", "relu", "relu_", "hardtanh", "silu", "sigmoid")


class _WithoutDraws(TorchFunctionMode):
    """Skips the random initial values: on the meta device they change nothing, but take half the time of making a network."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(function, "__name__", "") in _DRAWS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **(kwargs or {}))


class ShapesAlone(TorchFunctionMode):
    """Skips norms and activations, which leave shapes as they are, but take half the time of a forward pass on the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0] if getattr(function, "__name__", "") in _ALIKE else function(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Within, modules are made on the meta device."""
    with torch.device("meta"), _WithoutDraws():
        yield


def conv_counts(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """(multiply-adds, values) that a network's convolutions, deformable ones too, compute of ``x`` and give."""
    macs, values, hooks = [], [], []

    def count(module: Any, inputs: Any, out: Tensor) -> None:
        macs.append(out.numel() * module.weight[0].numel())
        values.append(out.numel())

    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 4:
            hooks.append(module.register_forward_hook(count))
    with torch.no_grad(), ShapesAlone():  # with gradients frozen norms compute
        network(x)
    for hook in hooks:
        hook.remove()
    return sum(macs), sum(values)
