"""What the classes of weights are called, and of data, so that they can be matched by name."""

import os
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..checkpoint import Match, names_in, read_checkpoint
from ..errors import UserError, unknown

KEY = "MODEL.WEIGHTS_CLASSES"


def names_of(metadata: Any) -> dict[str, list[str]]:
    """The names of a data set's classes: "classes", those of objects where it has some, and beside them "stuff", those of pixels."""
    things, stuff = (list(map(str, metadata.get(field) or ())) for field in ("thing_classes", "stuff_classes"))
    first = things or list(map(str, metadata.get("classes") or ())) or stuff
    return {kind: names for kind, names in (("classes", first), ("stuff", stuff if things else [])) if names}


def stated(cfg: CfgNode) -> dict[str, list[str]]:
    """What MODEL.WEIGHTS_CLASSES says: the names of a data set's classes, or names with commas between them. Raises UserError for neither."""
    value = cfg.MODEL.WEIGHTS_CLASSES
    if not value:
        return {}
    known = [name for name in MetadataCatalog if names_of(MetadataCatalog.get(name))]
    if value in known:
        return names_of(MetadataCatalog.get(value))
    names = [name.strip() for name in value.split(",")]
    if len(names) == 1:
        raise unknown(f"data set in {KEY}, which takes one, or names with commas between them", value, sorted(known), KEY)
    twice = next((name for name in names if not name or names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{KEY} {value!r}: the name {twice!r} is empty or stands there twice", "value", KEY)
    return {"classes": names}


def of_weights(cfg: CfgNode, path: str) -> dict[str, list[str]]:
    """The names of the classes of the weights at ``path``: those that the config states, or else that the file holds, if it is here."""
    names = stated(cfg)
    if names or not path.endswith(".pth") or not os.path.isfile(path):
        return names
    try:
        return names_in(read_checkpoint(path, lazy=True))
    except UserError:
        return {}  # the gate says so


def of_files(names: list[str], classes: list[str]) -> list[str]:
    """A table for each of the data sets of these names whose files have not just the ``classes``, which a model knows."""
    tables = []
    for name in names:
        match = Match(classes, list(MetadataCatalog.get(name).get("file_classes") or classes))
        if match.ours_alone or match.theirs_alone:
            what = "evaluated", "of the data alone: their objects are left out", "of the model alone: ignored"
            tables.append(f"{name}:\n{match.table(*what)}")
    return tables
