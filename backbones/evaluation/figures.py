"""The figures that an evaluation will give, as far as they are known in advance, and which of them is the main one."""

from typing import Callable, Iterable, Iterator

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import learns
from ..errors import UserError, unknown

_BOXES = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_RARE = (*_BOXES, "APr", "APc", "APf")
_COCO = {"boxes": ("bbox", _BOXES), "masks": ("segm", _BOXES), "keypoints": ("keypoints", ("AP", "AP50", "AP75", "APm", "APl"))}
_PROPOSALS = tuple(f"AR{size}@{count}" for size in ("", "s", "m", "l") for count in (100, 1000))
_SEMANTIC = ("mIoU", "fwIoU", "mACC", "pACC")
_PANOPTIC = tuple(f"{figure}{part}" for part in ("", "_th", "_st") for figure in ("PQ", "SQ", "RQ"))
# evaluator_type -> task -> figures; those of COCO's follow from what the model learns
_OTHERS: dict[str, dict[str, tuple[str, ...]]] = {
    "coco_panoptic_seg": {"sem_seg": _SEMANTIC, "panoptic_seg": _PANOPTIC},
    "sem_seg": {"sem_seg": _SEMANTIC},
    "cityscapes_instance": {"segm": ("AP", "AP50")},
    "cityscapes_sem_seg": {"sem_seg": ("IoU", "iIoU", "IoU_sup", "iIoU_sup")},
    "pascal_voc": {"bbox": ("AP", "AP50", "AP75")},
    "classification": {"classification": ("top1", "top5")},
    "lvis": {"bbox": _RARE, "segm": _RARE},
}
# the main one is the AP of the most detailed output, which users of Mask R-CNN care most about; model_best.pth, `compare` and `plot` follow it
LEADING = (
    *("segm/AP", "keypoints/AP", "panoptic_seg/PQ", "bbox/AP", "box_proposals/AR@1000"),
    *("sem_seg/mIoU", "sem_seg/IoU", "classification/top1"),
)
_LOSSES = "validation/"  # of TEST.LOSS: lower is better


def figures_of(cfg: CfgNode, name: str) -> list[str] | None:
    """The figures on a data set for evaluation, such as "bbox/AP", without those of single classes; None if unknown."""
    kind, labelled = (MetadataCatalog.get(name).get(key, other) for key, other in (("evaluator_type", None), ("labelled", True)))
    if kind != "coco" and kind not in _OTHERS:
        return None
    if not labelled:
        return []
    tasks = dict(_OTHERS.get(kind, {}))
    if kind in ("coco", "coco_panoptic_seg"):
        tasks.update(figures for task, figures in _COCO.items() if learns(cfg, task))
        if learns(cfg, "proposals"):
            tasks["box_proposals"] = _PROPOSALS
    return [f"{task}/{figure}" for task, figures in tasks.items() for figure in figures] or None


def metric_findings(cfg: CfgNode, called: Callable[[str], str] = str) -> Iterator[UserError]:
    """A TEST.BEST_METRIC that no evaluation of the config's data gives; ``called`` gives the user's name for a key."""
    wanted, known = cfg.TEST.BEST_METRIC, [figures_of(cfg, name) for name in cfg.DATASETS.TEST]
    if wanted in ("auto", "") or not known or None in known:
        return
    possible = list(dict.fromkeys(figure for figures in known for figure in figures or ()))
    named = wanted
    for name in cfg.DATASETS.TEST:
        named = named.removeprefix(f"{name}/")
    of_a_class = named.split("-")[0] in possible or named.split("/")[0] == "sem_seg" and "-" in named
    losses = [_LOSSES] if len(cfg.DATASETS.TEST) == 1 else [f"{_LOSSES}{name}/" for name in cfg.DATASETS.TEST]
    if named in possible or of_a_class:
        return
    if wanted.startswith(_LOSSES) and not cfg.TEST.LOSS:
        key = called("TEST.LOSS")
        yield UserError(f"{called('TEST.BEST_METRIC')} {wanted!r} is a loss on the test data: set {key} True", "conflict", key, True)
    elif not wanted.startswith(tuple(losses)):
        possible += [f"{start}total_loss" for start in losses] * cfg.TEST.LOSS
        key = called("TEST.BEST_METRIC")
        yield unknown(key, wanted, possible, key, listed="what an evaluation prints, as task/figure")


def headline(names: Iterable[str], wanted: str = "auto") -> str | None:
    """The figure ``wanted`` of an evaluation, alone or after a data set's name; None if it is not there."""
    names = list(names)
    for figure in LEADING if wanted == "auto" else (wanted,):
        for name in names:
            if name == figure or name.endswith(f"/{figure}"):
                return name
    return None


def is_better(name: str, value: float, best: float) -> bool:
    """Whether a figure's value is better than another; never if it is NaN."""
    loss = name.startswith(_LOSSES) and name.rpartition("/")[2].startswith(("total_loss", "loss"))  # a data set may be called validation
    return value < best if loss else value > best


def leading_task(*results: list) -> str:
    """The task of COCO's results, "segm", "keypoints" or "bbox", that is the main one among the tasks they all have."""
    fields, firsts = {"segm": "segmentation", "keypoints": "keypoints"}, first_entries(*results)
    return next((task for task, field in fields.items() if firsts and all(field in first for first in firsts)), "bbox")


def first_entries(*results: list) -> list[dict]:
    """The first detection of each of COCO's results that has one; these may be anything that JSON holds."""
    return [found[0] for found in results if found and isinstance(found, list) and isinstance(found[0], dict)]
