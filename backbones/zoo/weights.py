"""``backbones://NAME`` in MODEL.WEIGHTS: a backbone's weights by its name, converted or as released."""

import functools
import os
from typing import Any

from detectron2.utils.file_io import PathManager
from iopath.common.file_io import PathHandler

from ..checkpoint import fetch, read_checkpoint
from ..documents import read_json
from ..errors import UserError, unknown

PREFIX = "backbones://"
_ENDINGS = ("", ".safetensors", ".pth")


def folder() -> str:
    """Where converted files are looked for: the variable BACKBONES_WEIGHTS, by default ``weights``."""
    return os.path.expanduser(os.getenv("BACKBONES_WEIGHTS", "weights"))


@functools.cache
def _data() -> dict[str, Any]:
    return read_json(os.path.join(os.path.dirname(os.path.abspath(__file__)), "weights.json"))


def released(name: str) -> dict[str, Any] | None:
    """Of the weights released for a network: ``url``, ``source``, ``licence``, ``preprocessing``; None where there are none."""
    row = _data()["weights"].get(name)
    return {**_data()["sources"][row["source"]], **row} if row else None


def local(name: str) -> str:
    """The path of those weights in `folder`, or "". Raises UserError where there are two."""
    there = [path for ending in _ENDINGS for path in [os.path.join(folder(), name + ending)] if os.path.isfile(path)]
    if len(there) > 1:
        raise UserError(f"{PREFIX}{name} could be any of {', '.join(there)}: remove or rename all but one", "conflict")
    return there[0] if there else ""


def about(name: str) -> dict[str, Any]:
    """What a network's weights ask of a config: ``preprocessing``, and ``overrides`` (KEY, VALUE, ...) of its structure; empty if unknown.

    As the file in `folder` says, else the released one.
    """
    path = local(name)
    contents = read_checkpoint(path) if path else {}
    images = contents.get("preprocessing")
    if not isinstance(images, dict) or not {"format", "pixel_mean", "pixel_std"} <= set(images):
        return released(name) or {}
    provenance = contents.get("provenance")
    overrides = provenance.get("overrides", []) if isinstance(provenance, dict) else []
    return {"preprocessing": images, "overrides": overrides if isinstance(overrides, list) else []}


def find(name: str) -> str:
    """The local path of those weights: ``<folder>/<name>.safetensors`` or ``.pth`` where it is there, else the released file, downloaded.

    Raises UserError for a name that has neither.
    """
    path, row = local(name), released(name)
    if path:
        return path
    if row is None:
        there = [os.path.splitext(file)[0] for file in sorted(os.listdir(folder()) if os.path.isdir(folder()) else [])]
        raise unknown(f"weights, neither released nor in {folder()!r}", name, [*there, *_data()["weights"]], "MODEL.WEIGHTS", "missing-weights")
    try:
        return fetch(row["url"], PathManager)
    except UserError as error:
        where = os.path.join(folder(), name + ".pth")
        said = f"{error}. A file of yours, as it is or converted by `python -m convert`, is found as {where!r}"
        raise UserError(said, error.code, "MODEL.WEIGHTS") from error


class Handler(PathHandler):
    """Makes those addresses known to detectron2."""

    def _get_supported_prefixes(self):
        return [PREFIX]

    def _get_local_path(self, path, **kwargs):
        return find(path[len(PREFIX) :])

    def _open(self, path, mode="r", **kwargs):
        return PathManager.open(self._get_local_path(path), mode, **kwargs)

    def _isfile(self, path, **kwargs):
        return os.path.isfile(self._get_local_path(path))

    _exists = _isfile


PathManager.register_handler(Handler(), allow_override=True)
