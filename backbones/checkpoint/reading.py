"""Reads checkpoint files without running code in them."""

import json
import os
import pickle
import re
import types
import zipfile
from collections import OrderedDict
from typing import Any, Sequence

import numpy as np
import torch

from ..errors import UserError
from ..files import not_there
from ..upstream import REBUILD

HEURISTICS = "matching_heuristics=True"  # what detectron2 takes behind the ? of a checkpoint's address
_NUMERIC = re.compile(r"[biufc]\d{1,2}")


class _DType:
    """Replaces ``numpy.dtype`` in a pickle, for numbers alone. numpy's own accepts any state from a file, and may crash."""

    def __init__(self, name: Any, *_: Any):
        name = name.decode("latin1") if isinstance(name, bytes) else name
        if not (isinstance(name, str) and _NUMERIC.fullmatch(name)):
            raise pickle.UnpicklingError(f"it holds an array of {name!r}, not of numbers")
        self.name, self.order = name, "="

    def __setstate__(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise pickle.UnpicklingError(f"unknown byte order {state[1]!r}")
        self.order = state[1]

    def numpy(self) -> "np.dtype[Any]":
        return np.dtype(self.order + self.name)


class _Array:
    """Replaces numpy's ``_reconstruct``, and holds the array once its state has been read."""

    def __init__(self, *_: Any):
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _read_array(_bytes(data), dtype, shape, "F" if fortran else "C")


def _read_array(data: bytes, dtype: _DType, shape: Any, order: Any) -> Any:
    array = np.frombuffer(data, dtype.numpy()).reshape(shape, order=order)
    return np.array(
        array, dtype=array.dtype.newbyteorder("="), order=order
    )  # a copy: the original is read-only, and torch supports one byte order


def _bytes(data: str | bytes) -> bytes:
    return data.encode("latin1") if isinstance(data, str) else data  # Python 2 wrote bytes as strings


# all that the files of detectron2's and Detectron's zoos hold, apart from builtin containers
_STAND_INS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "numpy.ndarray": _Array,
    "numpy.dtype": _DType,
    "numpy.core.multiarray._reconstruct": _Array,
    "numpy.core.multiarray.scalar": lambda dtype, data: np.frombuffer(_bytes(data), dtype.numpy())[0],
    "numpy.core.numeric._frombuffer": _read_array,
    # how Python 3 writes bytes, and no bytes, in older protocols
    "_codecs.encode": lambda text, encoding="latin1": text.encode("latin1"),
    "__builtin__.bytes": lambda *_: b"",
}


def _unpickler(known: dict[str, Any], inert: Sequence[str] = ()) -> type[pickle._Unpickler]:
    """An unpickler for ``known`` names only; it turns objects of the ``inert`` packages into `_Inert`."""

    class Unpickler(pickle._Unpickler):  # in Python: the one in C allocates as many objects as a file claims
        def find_class(self, module: str, name: str) -> Any:
            full = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # numpy 2's name for the same
            if full in known or module.split(".")[0] in inert:
                return known.get(full, _Inert)
            raise pickle.UnpicklingError(
                f"it holds code: {module}.{name}, but only files of tensors, such as a model's state_dict(), can be read"
            )

    return Unpickler


def _arrays(data: Any, known: dict[int, Any]) -> Any:
    """The same containers, with arrays in place of each `_Array`. ``known`` keeps containers that occur several times identical."""
    if isinstance(data, _Array):
        return data.value
    if id(data) not in known:
        if isinstance(data, dict):
            known[id(data)] = {key: _arrays(value, known) for key, value in data.items()}
        elif isinstance(data, (list, tuple)):
            known[id(data)] = type(data)(_arrays(value, known) for value in data)
        else:
            return data
    return known[id(data)]


# first bytes of files that are mistaken for checkpoints
_OTHER = {
    b"version https://git-lfs": "a Git LFS pointer (git lfs pull fetches the file)",
    b"\x89HDF": "an HDF5 file, as Keras writes",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"{": "JSON or other text",
    b"[": "JSON or other text",
    b"\x1f\x8b": "a gzip archive, which must be unpacked first",
}


class _Inert:
    """Replaces the objects of a package whose files are read only for their tensors. It accepts everything and does nothing."""

    def _take(self, *args: Any, **kwargs: Any) -> None:
        pass

    __init__ = __setstate__ = __setitem__ = append = extend = _take


# what torch's own files are made of
_TORCH_GLOBALS: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    **REBUILD,
    **{f"{module}.{kind.__name__}": kind for module in ("builtins", "__builtin__") for kind in (set, frozenset, list, dict, int, float, str)},
    "torch.Size": torch.Size,
    "torch.device": torch.device,
    **{f"torch.{name}": getattr(torch, name) for name in dir(torch) if name.endswith("Storage")},
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
}


def _pickle_module(inert: Sequence[str]) -> types.SimpleNamespace:
    """A ``pickle`` module for `torch.load` that reads tensors, and ignores objects of the ``inert`` packages."""
    Unpickler = _unpickler(_TORCH_GLOBALS, inert)
    return types.SimpleNamespace(
        Unpickler=Unpickler, UnpicklingError=pickle.UnpicklingError, load=lambda f, **kwargs: Unpickler(f, **kwargs).load(), __name__="inert"
    )


def is_safetensors(start: bytes) -> bool:
    """Whether a file begins as safetensors do: eight bytes of a number, which may be any, and JSON."""
    return start[8:10] == b'{"'


def is_page(start: bytes) -> bool:
    """Whether a file begins as a web page does."""
    return start.lstrip()[:1] == b"<" and not is_safetensors(start)


def read_checkpoint(path: str, inert: Sequence[str] = (), kind: str = "checkpoint", lazy: bool = False) -> dict[str, Any]:
    """The contents of a local ``.pth``, ``.pyth``, ``.pkl`` or ``.safetensors`` file, on the CPU.

    It may hold tensors, arrays and plain containers; nothing in it is executed. Objects of the ``inert`` packages are ignored. ``lazy``: for
    readers of the other entries: a torch file's tensors are read only when used, those of safetensors are left out. Raises
    UserError, which calls the file a ``kind``, if it is missing, damaged, not a checkpoint, or holds any other object.
    """
    if not os.path.isfile(path):
        raise UserError(f"{kind} {path!r} is a folder: name a file in it", "missing-file") if os.path.isdir(path) else not_there(kind, path)
    try:
        with open(path, "rb") as f:
            start = f.read(512)
        tensors = is_safetensors(start)
        if is_page(start):
            raise UserError(f"{kind} {path!r} is a web page, not a {kind}: the download went wrong", "download")
        other = "" if tensors else next((what for magic, what in _OTHER.items() if start.startswith(magic)), "")
        if other:
            raise UserError(f"{kind} {path!r} is {other}, not a {kind}", "bad-file")
        if path.endswith(".pkl"):
            with open(path, "rb") as f:
                data = _arrays(_unpickler(_STAND_INS)(f, encoding="latin1").load(), {})
        elif path.endswith(".safetensors") or tensors:
            data = _read_safetensors(path, lazy)
        else:
            try:
                data = torch.load(path, map_location="cpu", weights_only=True, mmap=lazy and start[:2] == b"PK")
            except pickle.UnpicklingError:
                if not inert:
                    raise
                data = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_pickle_module(inert))
    except UserError:
        raise
    except Exception as error:  # torch and pickle answer damaged files with errors of every kind
        reason = " ".join(str(error).split())
        if "TorchScript" in reason:
            reason = "it is a TorchScript archive, which holds code: save the model's state_dict() instead"
        elif "weights_only" in reason or "Unsupported" in reason:  # torch's answer to any file that does not hold tensors
            reason = "it is damaged, of another format, or holds Python objects, which are not loaded because they can run code: " + reason
        elif not reason.startswith("it holds"):
            reason = f"it is damaged or of another format: {reason or 'empty'}"
        raise UserError(f"{kind} {path!r} cannot be read ({os.path.getsize(path)} bytes): {reason[:300]}", "bad-file") from error
    if not isinstance(data, dict):
        found = "Python object" if isinstance(data, _Inert) else type(data).__name__
        raise UserError(f"{kind} {path!r} holds a {found}, not a dict", "bad-file")
    return data


def _read_safetensors(path: str, lazy: bool) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        model = {} if lazy else {key: file.get_tensor(key) for key in file.keys()}
        about = (file.metadata() or {}).get("backbones")
    return {"model": model, **(json.loads(about) if about else {})}


def is_whole(path: str) -> bool:
    """Whether a torch file is complete. For torch's older format, only its beginning can be checked."""
    try:
        with open(path, "rb") as f:
            start = f.read(2)
    except OSError:
        return False
    return zipfile.is_zipfile(path) if start == b"PK" else start[:1] == b"\x80"
