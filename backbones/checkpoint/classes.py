"""Loads weights of a model with different classes, or the same in another order: rows of layers that stand for classes are matched by name.

Otherwise rows are matched by number, and rows of one class are used for another if the numbers of classes are equal.
"""

import re
from dataclasses import dataclass
from typing import Any, Iterator, Sequence

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from tabulate import tabulate
from torch import Tensor, nn

from ..detectors.classifier import ImageClassifier
from ..detectors.gfl import GFLHead
from ..errors import counted, first_of, plain

_NAMELESS = (
    "the weights do not name their classes, so layers with a different number of classes start from scratch. Set MODEL.WEIGHTS_CLASSES: a data "
    "set such as coco_2017_val, or names separated by commas"
)
ROWS = re.compile(r"\.(cls_score|bbox_pred|predictor|fc)\.(weight|bias)$")  # layers as `rows_of` finds them
_SHOWN = 12  # names in each line of a table


@dataclass(frozen=True)
class Rows:
    """How a layer's rows are ordered: by anchor, then by class, ``each`` rows for each class; then ``others``, for background."""

    layer: str
    each: int = 1
    others: int = 0
    stuff: bool = False  # classes of pixels, not of objects
    always: bool = True  # whether its rows stand for classes in every config

    def anchors(self, rows: int, classes: int) -> int:
        """The number of anchors of a layer with this many rows; 0 if its rows do not stand for classes."""
        count, rest = divmod(rows - self.others, self.each * classes) if classes else (0, 1)
        return 0 if rest else count


def rows_of(model: nn.Module) -> Iterator[Rows]:
    """The layers of a model whose rows stand for its classes, always or if they are class-specific."""
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, FastRCNNOutputLayers):
            yield Rows(f"{prefix}cls_score", others=1)
            yield Rows(f"{prefix}bbox_pred", each=4, always=False)
        elif isinstance(module, (RetinaNetHead, GFLHead)):
            yield Rows(f"{prefix}cls_score")
        elif isinstance(module, (MaskRCNNConvUpsampleHead, SemSegFPNHead)):
            yield Rows(f"{prefix}predictor", stuff=isinstance(module, SemSegFPNHead), always=isinstance(module, SemSegFPNHead))
        elif isinstance(module, ImageClassifier):
            yield Rows(f"{prefix}fc")


@dataclass
class Match:
    """The names of ``theirs`` and ``ours``, classes of weights and of a model or of its data."""

    theirs: Sequence[str]
    ours: Sequence[str]

    def __post_init__(self) -> None:
        place = {name: i for i, name in enumerate(self.theirs)}
        self.pairs = [(i, place[name]) for i, name in enumerate(self.ours) if name in place]
        self.shared = [self.ours[i] for i, _ in self.pairs]
        self.ours_alone = [name for name in self.ours if name not in place]
        self.theirs_alone = [name for name in self.theirs if name not in set(self.ours)]

    def table(self, shared: str, ours: str, theirs: str) -> str:
        """A table of which classes were matched, and names that are almost the same."""
        parts = ((shared, self.shared), (ours, self.ours_alone), (theirs, self.theirs_alone))
        rows = [(what, len(names), first_of(names, _SHOWN)) for what, names in parts if names]
        near = {plain(name): name for name in self.theirs_alone}
        close = [f"{name!r} and {near[plain(name)]!r}" for name in self.ours_alone if plain(name) in near]
        remedy = "rename them in the annotations, or name those of the weights in MODEL.WEIGHTS_CLASSES"
        hint = f"\n  names must match exactly: {', '.join(close[:5])} differ -> {remedy}" if close else ""
        return tabulate(rows, ("classes by name", "number", "which"), "pipe") + hint


def by_name(model: nn.Module, weights: dict[str, Any], theirs: dict[str, list[str]], ours: dict[str, list[str]]) -> tuple[dict[str, Any], str]:
    """``weights`` with rows in the order of the classes of ``model``, whose initial rows stay for new classes; and a table of the classes.

    ``theirs`` and ``ours`` are lists of names by "classes" and "stuff". Layers with unknown names, or with equal lists of names,
    stay as they are; the table is empty then.
    """
    own, weights = model.state_dict(), dict(weights)
    tables: dict[str, str] = {}
    for rows in rows_of(model) if ours else ():
        kind = "stuff" if rows.stuff and "stuff" in ours else "classes"
        match = Match(theirs.get(kind, []), ours.get(kind, []))
        if len(match.ours) == len(match.theirs) == 1 and not rows.always:
            continue  # a layer that all classes share has the same shape
        if not match.theirs and rows.layer + ".weight" in weights and len(weights[rows.layer + ".weight"]) != len(own[rows.layer + ".weight"]):
            tables.setdefault(kind, _NAMELESS)
        if not match.theirs or not match.ours or list(match.theirs) == list(match.ours):
            continue
        for key in (f"{rows.layer}.weight", f"{rows.layer}.bias"):
            if key not in own or key not in weights:
                continue
            new, old = own[key].clone(), torch.as_tensor(weights[key])
            anchors = rows.anchors(len(new), len(match.ours))
            found = rows.anchors(len(old), len(match.theirs))
            if anchors and anchors == found and new.shape[1:] == old.shape[1:]:
                weights[key] = _placed(new, old, rows, anchors, match)
                what = "loaded from the weights", "new, from scratch", "only in the weights, dropped"
                tables[kind] = match.table(*what)
            elif anchors and anchors != found and rows.always:
                classes = f"{counted(len(match.theirs), 'class')} ({first_of(match.theirs)})"
                said = f"{rows.layer} is not matched by name: the weights name {classes}, but have {counted(len(old), 'row')} there"
                tables[rows.layer] = f"{said}, not {anchors} for each{' and one more' if rows.others else ''}"
    return weights, "\n".join(tables.values())


def _placed(new: Tensor, old: Tensor, rows: Rows, anchors: int, match: Match) -> Tensor:
    to, place = (torch.tensor([pair[i] for pair in match.pairs], dtype=torch.long) for i in range(2))
    ours, theirs = (tensor[: len(tensor) - rows.others] for tensor in (new, old))
    blocks = ours.reshape(anchors, len(match.ours), rows.each, *new.shape[1:])
    blocks[:, to] = theirs.reshape(anchors, len(match.theirs), rows.each, *old.shape[1:])[:, place].to(blocks)
    return torch.cat((blocks.reshape(ours.shape), old[len(old) - rows.others :].to(new)))


def chosen(stated: dict[str, list[str]], own: dict[str, list[str]]) -> tuple[dict[str, list[str]], str]:
    """The class names of weights, and what to say of them: those that the config states, unless the file itself names more or fewer.

    Nor are they used if the file has the same names in another order: it knows the order of its rows.
    """
    said = []
    for kind, names in stated.items():
        theirs = own.get(kind, names)
        if len(theirs) != len(names):
            said.append(
                f"MODEL.WEIGHTS_CLASSES is not used: it names {counted(len(names), 'class')}, but the weights {len(theirs)} of their own"
            )
        elif names != theirs and sorted(names) == sorted(theirs):
            said.append("MODEL.WEIGHTS_CLASSES is not used: the weights name the same classes in another order")
        else:
            own = {**own, kind: names}
    return own, "; ".join(said)


def names_in(checkpoint: dict[str, Any]) -> dict[str, list[str]]:
    """The class names in a checkpoint from this project's training, by "classes" and "stuff"; empty for other checkpoints."""
    run = checkpoint.get("run")
    found = {kind: run.get(kind) for kind in ("classes", "stuff")} if isinstance(run, dict) else {}
    return {kind: list(map(str, names)) for kind, names in found.items() if isinstance(names, list) and names}
