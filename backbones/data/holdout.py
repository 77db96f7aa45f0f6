"""Parts of a data set that are kept for training and held out of it: what a search looks at is neither trained on nor the test set."""

import random
from typing import Dict, List

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError, unknown

KEPT, HELD_OUT = "_kept", "_held_out"


def register_held_out(cfg: CfgNode, training: bool = True) -> None:
    """Registers NAME_held_out and NAME_kept for each [NAME, count] of ``cfg.DATASETS.HOLD_OUT``: so many images of NAME, and the others.

    The same images every time: they follow from the name and the count alone. Raises UserError for an entry of another form, a data set that
    is not registered, or a name that stands there with two counts. That there are so many images is checked when they are read.
    """
    seen: Dict[str, int] = {}
    for entry in cfg.DATASETS.get("HOLD_OUT", []):
        if not (isinstance(entry, (list, tuple)) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int):
            raise UserError(f"DATASETS.HOLD_OUT: {entry!r} is not of the form ['name', number of images]", "syntax", "DATASETS.HOLD_OUT")
        name, count = entry
        if name not in DatasetCatalog:
            raise unknown("data set in DATASETS.HOLD_OUT", name, sorted(DatasetCatalog.keys()), "DATASETS.HOLD_OUT")
        if seen.setdefault(name, count) != count:
            raise UserError(
                f"DATASETS.HOLD_OUT: {name!r} stands there with {seen[name]} and with {count} images", "conflict", "DATASETS.HOLD_OUT"
            )
        if training and (name in cfg.DATASETS.TRAIN or name + HELD_OUT in cfg.DATASETS.TRAIN):
            said = f"DATASETS.HOLD_OUT: what is held out of {name!r} would be trained on: set DATASETS.TRAIN to {name + KEPT!r}"
            raise UserError(said, "conflict", "DATASETS.TRAIN", (name + KEPT,))
        if count < 1:
            raise UserError(f"DATASETS.HOLD_OUT: {count} images of {name!r}: it must be 1 or more", "value", "DATASETS.HOLD_OUT")
        if name + HELD_OUT in DatasetCatalog:
            if MetadataCatalog.get(name + HELD_OUT).get("held_out") == count:
                continue
            DatasetCatalog.remove(name + HELD_OUT)
            DatasetCatalog.remove(name + KEPT)
            MetadataCatalog.remove(name + HELD_OUT)
            MetadataCatalog.remove(name + KEPT)
        # what evaluators read from files, they are to make from the records
        about = {key: value for key, value in MetadataCatalog.get(name).as_dict().items() if key not in ("name", "json_file")}
        for suffix, inside in ((HELD_OUT, True), (KEPT, False)):
            DatasetCatalog.register(name + suffix, lambda name=name, count=count, inside=inside: _part(name, count, inside))
            MetadataCatalog.get(name + suffix).set(**about, held_out=count)


def _part(name: str, count: int, inside: bool) -> List[dict]:
    records = DatasetCatalog.get(name)
    if count >= len(records):
        raise UserError(
            f"DATASETS.HOLD_OUT: {count} images of {name!r}, which has {len(records)}: none would be left to train on",
            "data",
            "DATASETS.HOLD_OUT",
        )
    chosen = set(random.Random(f"{name}/{count}").sample(range(len(records)), count))
    return [record for i, record in enumerate(records) if (i in chosen) == inside]
