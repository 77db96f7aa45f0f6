"""Reading checkpoint files without running what is in them."""

import os
import pickle
from typing import Any, Dict

import numpy as np
import torch

from ..errors import UserError

# all that files of detectron2's and Detectron's zoos are made of, beside the builtin containers
_PICKLE_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("_codecs", "encode"),
}


class _NumpyUnpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if (module, name) not in _PICKLE_GLOBALS:
            raise pickle.UnpicklingError(f"it holds code: {module}.{name}")
        if module.startswith("numpy._core") and not hasattr(np, "_core"):  # written by numpy 2, read by numpy 1
            module = module.replace("numpy._core", "numpy.core")
        return super().find_class(module, name)


def read_checkpoint(path: str) -> Dict[str, Any]:
    """The contents of a local ``.pth``, ``.pyth`` or ``.pkl`` file, on the CPU.

    Tensors, arrays and plain containers only: nothing in the file is executed. Raises UserError for a file that is missing, damaged, no
    checkpoint, or holds anything else.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path!r} is not there")
    try:
        with open(path, "rb") as f:
            if f.read(512).lstrip()[:1] == b"<":
                raise UserError(f"checkpoint {path!r} is a web page, not a checkpoint: the download went wrong")
        if path.endswith(".pkl"):
            with open(path, "rb") as f:
                data = _NumpyUnpickler(f, encoding="latin1").load()
        else:
            data = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch and pickle answer damaged files with errors of every kind
        reason = " ".join(str(error).split())
        if "weights_only" in reason or "Unsupported" in reason:  # torch answers so to anything that is no file of tensors
            reason = "it is damaged, of another format, or holds Python objects, which are not loaded, as that can run any code: " + reason
        raise UserError(f"checkpoint {path!r} cannot be read ({os.path.getsize(path)} bytes): {reason[:300]}") from error
    if not isinstance(data, dict):
        raise UserError(f"checkpoint {path!r} holds a {type(data).__name__}, not a state dict")
    return data
