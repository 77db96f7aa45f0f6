"""Which figure of an evaluation is the main one: the same rule for model_best.pth, `compare`, `plot` and `errors`.

The AP of the most detailed output: masks, else keypoints, else boxes. Users of Mask R-CNN care most about masks.
"""

from typing import Iterable

LEADING = ("segm/AP", "keypoints/AP", "panoptic_seg/PQ", "bbox/AP", "box_proposals/AR@1000", "sem_seg/mIoU", "classification/top1")


def headline(names: Iterable[str], wanted: str = "auto") -> str | None:
    """The figure ``wanted`` of an evaluation, alone or after a data set's name; None if it is not there."""
    names = list(names)
    for figure in LEADING if wanted == "auto" else (wanted,):
        for name in names:
            if name == figure or name.endswith(f"/{figure}"):
                return name
    return None


def leading_task(*results: list) -> str:
    """The task of COCO's results, "segm", "keypoints" or "bbox", that is the main one among the tasks they all have."""
    fields, firsts = {"segm": "segmentation", "keypoints": "keypoints"}, first_entries(*results)
    return next((task for task, field in fields.items() if firsts and all(field in first for first in firsts)), "bbox")


def first_entries(*results: list) -> list[dict]:
    """The first detection of each of COCO's results that has one; these may be anything that JSON holds."""
    return [found[0] for found in results if found and isinstance(found, list) and isinstance(found[0], dict)]
