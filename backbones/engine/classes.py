"""The class names of weights and of data, so that they can be matched by name."""

import contextlib
import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..checkpoint import Match, chosen, names_in, read_checkpoint
from ..errors import UserError, unknown

KEY = "MODEL.WEIGHTS_CLASSES"


def names_of(metadata: Any) -> dict[str, list[str]]:
    """The class names of a data set: "classes" for objects, if it has any, and "stuff" for pixels."""
    things, stuff = (list(map(str, metadata.get(field) or ())) for field in ("thing_classes", "stuff_classes"))
    first = things or list(map(str, metadata.get("classes") or ())) or stuff
    return {kind: names for kind, names in (("classes", first), ("stuff", stuff if things else [])) if names}


def stated(cfg: CfgNode) -> dict[str, list[str]]:
    """The class names in MODEL.WEIGHTS_CLASSES: those of the data set it names, or a comma-separated list. Raises UserError for neither."""
    value = cfg.MODEL.WEIGHTS_CLASSES
    if not value:
        return {}
    known = [name for name in MetadataCatalog if names_of(MetadataCatalog.get(name))]
    if value in known:
        return names_of(MetadataCatalog.get(value))
    names = [name.strip() for name in value.split(",")]
    if len(names) == 1:
        raise unknown(f"data set in {KEY}, which takes a data set or comma-separated class names", value, sorted(known), KEY)
    twice = next((name for name in names if not name or names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{KEY} {value!r}: the name {twice!r} is empty or appears twice", "value", KEY)
    return {"classes": names}


def of_weights(cfg: CfgNode, path: str) -> tuple[dict[str, list[str]], str]:
    """The class names of the weights at ``path``, and what to say of them: see `checkpoint.chosen`. The file's, if it is on this machine."""
    own: dict[str, list[str]] = {}
    if path.endswith(".pth") and os.path.isfile(path):
        with contextlib.suppress(UserError):  # loading reports the error
            own = names_in(read_checkpoint(path, lazy=True))
    return chosen(stated(cfg), own)


def of_files(names: list[str], classes: list[str]) -> list[str]:
    """A table for each named data set whose classes in its files differ from the model's ``classes``."""
    tables = []
    for name in names:
        match = Match(classes, list(MetadataCatalog.get(name).get("file_classes") or classes))
        if match.ours_alone or match.theirs_alone:
            what = "evaluated", "in the data only: their objects are left out", "in the model only: ignored"
            tables.append(f"{name}:\n{match.table(*what)}")
    return tables
