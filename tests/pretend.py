"""Counts how often a training step waits for its device, on a pretend accelerator: tensors that claim to be on one and are computed on the CPU.

What needs the value of a tensor of the device (``item``, ``tolist``, a copy to the CPU) is a wait. Needs torch 2.9 or newer.
"""

from typing import Any, Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
DEVICE = torch.device("cpu")  # until `setup`
waits: list[str] = []


class _Module:
    """What torch asks of a device's module."""

    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    is_available = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 1)
    current_device = staticmethod(lambda: 0)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_rng_state = staticmethod(lambda device=None: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, device=None: torch.set_rng_state(state))
    synchronize = staticmethod(lambda device=None: None)


def setup() -> torch.device:
    """Makes the device known, once a process, before models are built."""
    global DEVICE
    if DEVICE.type == "cpu":
        _setup_privateuseone_for_python_backend("pretend", _Module())
        DEVICE = torch.device("pretend", 0)
        for name in ("tensor", "as_tensor"):
            setattr(torch, name, _moved(getattr(torch, name)))
    return DEVICE


def _moved(make: Callable) -> Callable:
    def moved(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if _is_device(device):
            return make(data, *args, **kwargs).to(device)
        return make(data, *args, **kwargs) if device is None else make(data, *args, device=device, **kwargs)

    return moved


def _is_device(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type != "cpu"


class _Tensor(torch.Tensor):
    @staticmethod
    def __new__(cls, inner: torch.Tensor):
        about = {"strides": inner.stride(), "storage_offset": inner.storage_offset(), "dtype": inner.dtype, "layout": inner.layout}
        made = torch.Tensor._make_wrapper_subclass(cls, inner.size(), device=DEVICE, **about)
        made.inner = inner
        return made

    def tolist(self):
        waits.append("tolist")
        return self.inner.tolist()

    def unsqueeze_(self, dim):
        return self.unsqueeze(dim)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _wrap(value: Any) -> Any:
    return _Tensor(value) if isinstance(value, torch.Tensor) and not isinstance(value, _Tensor) else value


def _unwrap(value: Any) -> Any:
    return value.inner if isinstance(value, _Tensor) else value


def _run(function: Any, args: tuple, kwargs: dict) -> Any:
    tensors: list[torch.Tensor] = []
    tree_map(lambda value: tensors.append(value) if isinstance(value, torch.Tensor) else None, (args, kwargs))
    there, wanted = any(isinstance(t, _Tensor) for t in tensors), kwargs.get("device")
    if function in (aten._to_copy.default, aten.to.device, aten.to.dtype_layout):
        rest = {key: value for key, value in kwargs.items() if key not in ("device", "pin_memory")}
        result = function(_unwrap(args[0]), **rest)
        if there and wanted is not None and not _is_device(wanted):
            waits.append("to the CPU")
        return _wrap(result) if (_is_device(wanted) if wanted is not None else there) else result
    if function is aten.copy_.default:
        if there and not isinstance(args[0], _Tensor):
            waits.append("to the CPU")
        function(_unwrap(args[0]), _unwrap(args[1]), *args[2:], **kwargs)
        return args[0]
    if function is aten._local_scalar_dense.default and there:
        waits.append("item")
    rest = {**kwargs, **({"device": torch.device("cpu")} if wanted is not None else {})}
    result = function(*tree_map(_unwrap, args), **tree_map(_unwrap, rest))
    if not (_is_device(wanted) if wanted is not None else there):
        return result
    if function._schema.is_mutable and args and isinstance(args[0], _Tensor) and result is args[0].inner:
        return args[0]
    return tree_map(_wrap, result)


class Counting(TorchDispatchMode):
    """Around all that runs on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})
