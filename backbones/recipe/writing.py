"""The recipe as a self-contained YAML file: each line states its reason."""

from typing import Any, Iterator, Mapping

from detectron2.config import CfgNode

from .. import zoo
from ..config import flat, get, written
from .rules import BASE, Choice

_OTHERS = "from this project's recipe for COCO"
# reasons for keys that follow from others
_KNOWN = {
    "MODEL.DEVICE": "the device that the recipe was worked out for",
    "MODEL.PIXEL_MEAN": "as the weights require",
    "MODEL.PIXEL_STD": "as the weights require",
    "INPUT.FORMAT": "as the weights require",
    "INPUT.NORMALIZATION": "channel order, mean and standard deviation are set as the weights require",
    "DATASETS.CLASSES": "the data's",
    "DATASETS.KEYPOINTS": "the data's",
    "DATASETS.KEYPOINT_FLIPS": "the data's",
    "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS": "the data's",
    "TEST.KEYPOINT_OKS_SIGMAS": "one for each keypoint, all alike",
    "INPUT.MASK_FORMAT": "some masks are in run-length encoding (RLE)",
    "OUTPUT_DIR": "the folder that training writes into",
}


# detectron2's 3x recipe of Faster R-CNN on COCO
THREE_TIMES = {
    "INPUT.MIN_SIZE_TEST": 800,
    "INPUT.MAX_SIZE_TEST": 1333,
    "INPUT.RANDOM_FLIP": "horizontal",
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.BACKBONE.FREEZE_AT": 2,
    "SOLVER.IMS_PER_BATCH": 16,
    "SOLVER.BASE_LR": 0.02,
    "SOLVER.MAX_ITER": 270_000,
    "SOLVER.WARMUP_ITERS": 1000,
    "SOLVER.LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "MODEL_EMA.ENABLED": False,
}


def beside_3x(cfg: CfgNode) -> Iterator[str]:
    """Lines on which keys equal detectron2's 3x recipe for COCO, within 5 %, and which differ; the recipe's lines give the reasons."""
    values = flat(cfg)
    same = {key for key, theirs in THREE_TIMES.items() if _near(values[key], theirs)}
    yield f"As in detectron2's 3x recipe for COCO: {', '.join(key for key in THREE_TIMES if key in same) or 'nothing'}."
    others = [f"{key} {values[key]} ({theirs})" for key, theirs in THREE_TIMES.items() if key not in same]
    if others:
        yield f"Different from it: {', '.join(others)}."


def _near(value: Any, theirs: Any) -> bool:
    numbers = isinstance(theirs, (int, float)) and not isinstance(theirs, bool)
    return abs(value - theirs) <= 0.05 * theirs if numbers else value == theirs


def text(cfg: CfgNode, choices: Mapping[str, Choice], head: str) -> str:
    """``head`` as comments, then every key that is chosen or differs from the defaults, followed by its reason."""
    base = flat(zoo.get_config(BASE))

    def reason(key: str) -> str:
        return _KNOWN.get(key) or (_OTHERS if base.get(key) == get(cfg, key) else "from the chosen network: see MODEL.BACKBONE.NAME")

    return written(cfg, head, {key: choice.reason for key, choice in choices.items()}, reason)
