"""A pretend accelerator: tensors that claim to be on a device of their own and are computed on the CPU. Needs torch 2.9 or newer.

python pretend.py COMMANDS

COMMANDS: a JSON list of commands of Python programs, lists of words, which run one after the other on the device ``pretend:0``.

What mixes its tensors with the CPU's fails as on a GPU. What needs the value of one (``item``, ``tolist``, a copy to the CPU) waits on it, and
is counted. It has no kernels of its own: autocast casts nothing.
"""

import json
import runpy
import sys
from typing import Any, Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

aten = torch.ops.aten
DEVICE = torch.device("cpu")  # until `setup`
waits: list[str] = []
# of tensors on the device these take indices of the CPU
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


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

    def __getitem__(self, index):  # torch makes room for the numbers of lists in kernels of the device alone
        places = [torch.tensor(one) if isinstance(one, list) else one for one in (index if isinstance(index, tuple) else [index])]
        return super().__getitem__(tuple(places) if isinstance(index, tuple) else places[0])

    def __reduce_ex__(self, protocol):  # in files they are tensors of the CPU
        return self.inner.__reduce_ex__(protocol)

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
    elsewhere = [tuple(t.shape) for t in tensors if t.dim() and not isinstance(t, _Tensor)] if there else []
    if elsewhere and not (function in INDEXED and isinstance(args[0], _Tensor)):
        raise RuntimeError(f"{function}: all tensors must be on one device, but of shapes {elsewhere} some are on the CPU")
    rest = {**kwargs, **({"device": torch.device("cpu")} if wanted is not None else {})}
    result = function(*tree_map(_unwrap, args), **tree_map(_unwrap, rest))
    if not (_is_device(wanted) if wanted is not None else there):
        return result
    if function._schema.is_mutable and args and isinstance(args[0], _Tensor) and result is args[0].inner:
        return args[0]
    return tree_map(_wrap, result)


class OnDevice(TorchDispatchMode):
    """Around all that runs on the device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def main() -> None:
    setup()
    for command in json.loads(sys.argv[1]):
        sys.argv, before = command, len(waits)
        try:
            with OnDevice():
                (
                    runpy.run_path(command[0], run_name="__main__")
                    if command[0].endswith(".py")
                    else runpy.run_module(command[0], run_name="__main__")
                )
        except SystemExit as ended:
            if ended.code:
                sys.exit(f"{command}: {ended.code}")
        if "pretend:0" in command and len(waits) == before:
            sys.exit(f"{command}: nothing ran on the device")


if __name__ == "__main__":
    sys.modules["pretend"] = sys.modules["__main__"]
    main()
