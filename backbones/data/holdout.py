"""Splits a data set into a part for training and a held-out one, so that a search evaluates on neither training nor test images."""

import functools
import math
import random
from typing import Collection, Hashable, Iterator, Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError, counted
from .sources import unknown_data_set
from .split import held_out

KEPT, HELD_OUT = "_kept", "_held_out"


def entries(cfg: CfgNode, key: str, form: dict[str, type | tuple[type, ...]]) -> Iterator[Sequence]:
    """The entries of a list of ``cfg.DATASETS``. Raises UserError for one without the parts of ``form``, name -> type."""
    for entry in cfg.DATASETS.get(key, []):
        if (
            not isinstance(entry, (list, tuple))
            or len(entry) != len(form)
            or bool in map(type, entry)
            or not all(map(isinstance, entry, form.values()))
        ):
            raise UserError(f"DATASETS.{key}: {entry!r} must have the form [{', '.join(form)}]", "syntax", f"DATASETS.{key}")
        yield entry


def is_registered(name: str, field: str, value: str, key: str) -> bool:
    """Whether a data set is in the catalogue already; raises UserError where another one, by that field of its metadata, has its name."""
    if name in DatasetCatalog and MetadataCatalog.get(name).get(field) != value:
        raise UserError(f"DATASETS.{key}: the name {name!r} is taken by another data set", "conflict", f"DATASETS.{key}")
    return name in DatasetCatalog


def register_held_out(cfg: CfgNode, training: bool = True, names: Collection[str] | None = None) -> None:
    """Registers NAME_held_out and NAME_kept for each [NAME, count] of ``cfg.DATASETS.HOLD_OUT``: that many images of NAME, and the rest.

    A count below 1 is a fraction of the images. ``names``: those to register; None: all.

    The images are the same every time: they depend only on the name and the count. Raises UserError for a malformed entry, a data set that
    is not registered, or a name that appears with two counts. That there are so many images is checked when they are read.
    """
    seen: dict[str, int] = {}
    for name, count in entries(cfg, "HOLD_OUT", {"'name'": str, "number of images": (int, float)}):
        if names is not None and not {name, name + KEPT, name + HELD_OUT} & set(names):
            continue
        if name not in DatasetCatalog:
            raise unknown_data_set("data set in DATASETS.HOLD_OUT", name, "DATASETS.HOLD_OUT")
        if not 0 < count < math.inf or count > 1 and count != int(count):
            raise UserError(
                f"DATASETS.HOLD_OUT: {count} of {name!r}: must be 1 image or more, or a fraction between 0 and 1", "value", "DATASETS.HOLD_OUT"
            )
        if seen.setdefault(name, count) != count:
            said = f"DATASETS.HOLD_OUT: {name!r} appears twice, with {seen[name]} and with {counted(count, 'image')}"
            raise UserError(said, "conflict", "DATASETS.HOLD_OUT")
        if training and (name in cfg.DATASETS.TRAIN or name + HELD_OUT in cfg.DATASETS.TRAIN):
            said = f"DATASETS.HOLD_OUT: the images held out of {name!r} would be trained on: set DATASETS.TRAIN to {name + KEPT!r}"
            raise UserError(said, "conflict", "DATASETS.TRAIN", (name + KEPT,))
        if name + HELD_OUT in DatasetCatalog:
            if MetadataCatalog.get(name + HELD_OUT).get("held_out") == count:
                continue
            for catalogue in (DatasetCatalog, MetadataCatalog):
                catalogue.remove(name + HELD_OUT)
                catalogue.remove(name + KEPT)
        # what evaluators read from files, they are to make from the records
        about = {
            key: value
            for key, value in MetadataCatalog.get(name).as_dict().items()
            if key not in ("name", "json_file", "reader", "truth", "said")
        }
        for suffix, inside in ((HELD_OUT, True), (KEPT, False)):
            DatasetCatalog.register(name + suffix, lambda name=name, count=count, inside=inside: _part(name, count, inside))
            MetadataCatalog.get(name + suffix).set(**about, held_out=count, part_of=name)
            if inside and MetadataCatalog.get(name).get("reader"):
                total = len(MetadataCatalog.get(name).reader.dataset().images)
                MetadataCatalog.get(name + suffix).said = [f"{name}: {_number(count, total)} of {total} images are held out for evaluation"]
            if MetadataCatalog.get(name).get("truth"):
                MetadataCatalog.get(name + suffix).truth = functools.partial(_truth, name, count, inside)


def _truth(name: str, count: float, inside: bool) -> dict:
    content, ids = MetadataCatalog.get(name).truth(), {record["image_id"] for record in _part(name, count, inside)}
    images = [image for image in content["images"] if image["id"] in ids]
    part = {**content, "images": images}
    if "annotations" in content:  # data to predict have none
        part["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    return part


def _part(name: str, count: float, inside: bool) -> list[dict]:
    records = DatasetCatalog.get(name)
    number = _number(count, len(records))
    if number >= len(records):
        said = f"DATASETS.HOLD_OUT: {counted(number, 'image')} of {name!r}, which has {len(records)}, would leave no image to train on"
        raise UserError(said, "data", "DATASETS.HOLD_OUT")
    if count < 1:  # with all classes in both parts, as far as that can be
        classes: list[set[Hashable]] = [{a["category_id"] for a in record.get("annotations", ())} for record in records]
        held = held_out(classes, number / len(records))
        return [record for record, chosen in zip(records, held) if chosen == inside]
    picked = set(random.Random(f"{name}/{number}").sample(range(len(records)), number))
    return [record for i, record in enumerate(records) if (i in picked) == inside]


def _number(count: float, total: int) -> int:
    return int(count) if count >= 1 else max(round(count * total), 1)
