"""Which of detectron2's evaluators a data set calls for."""

import os
from typing import Optional

import numpy as np
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..data import check_packages
from ..errors import unknown
from .classification import ClassificationEvaluator
from .coco import EVALUATORS, FastCOCOEvaluator, is_installed


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: Optional[str] = None) -> evaluation.DatasetEvaluator:
    """The evaluator for a data set, after its metadata's ``evaluator_type``; results go to ``output_dir``, by default OUTPUT_DIR/inference.

    Raises UserError for an unknown type, or where its package is not installed.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    builders = {
        "coco": lambda: [coco_evaluator(cfg, dataset_name, output_dir)],
        "coco_panoptic_seg": lambda: [
            coco_evaluator(cfg, dataset_name, output_dir),
            _sem_seg(dataset_name, output_dir),
            evaluation.COCOPanopticEvaluator(dataset_name, output_dir),
        ],
        "sem_seg": lambda: [_sem_seg(dataset_name, output_dir)],
        "cityscapes_instance": lambda: [evaluation.CityscapesInstanceEvaluator(dataset_name)],
        "cityscapes_sem_seg": lambda: [evaluation.CityscapesSemSegEvaluator(dataset_name)],
        "cityscapes_panoptic_seg": lambda: [
            evaluation.CityscapesSemSegEvaluator(dataset_name),
            evaluation.CityscapesInstanceEvaluator(dataset_name),
            evaluation.COCOPanopticEvaluator(dataset_name, output_dir),
        ],
        "pascal_voc": lambda: [evaluation.PascalVOCDetectionEvaluator(dataset_name)],
        "classification": lambda: [ClassificationEvaluator()],
        "lvis": lambda: [_lvis(dataset_name, output_dir)],
    }
    if kind not in builders:
        raise unknown(f"evaluator_type of data set {dataset_name!r}", kind, builders)
    check_packages(dataset_name, evaluating=True)
    evaluators = builders[kind]()
    return evaluators[0] if len(evaluators) == 1 else evaluation.DatasetEvaluators(evaluators)


def coco_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str, **options) -> evaluation.COCOEvaluator:
    """The evaluator that TEST.COCO_EVALUATOR asks for; ``options`` are those of detectron2's. Both give the same numbers."""
    fast = cfg.TEST.get("COCO_EVALUATOR", EVALUATORS[0]) == "fastest" and is_installed()
    kind = FastCOCOEvaluator if fast else evaluation.COCOEvaluator
    if fast:
        options["use_fast_impl"] = False  # detectron2's own fast one, which would say that it is not built
    return kind(dataset_name, output_dir=output_dir, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS, **options)


def _lvis(dataset_name: str, output_dir: str) -> evaluation.LVISEvaluator:
    import lvis.eval

    lvis.eval.np = _OldNumpy()
    return evaluation.LVISEvaluator(dataset_name, output_dir=output_dir)


class _OldNumpy:
    """numpy with the name ``float``, which it dropped in 1.24 and the lvis package asks it for."""

    def __getattr__(self, name: str):
        return float if name == "float" else getattr(np, name)


def _sem_seg(dataset_name: str, output_dir: str) -> evaluation.SemSegEvaluator:
    return evaluation.SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)


def _read_labels(filename: str, dtype=None) -> np.ndarray:
    # detectron2's own asks for an array without a copy, which numpy 2 refuses
    with PathManager.open(filename, "rb") as f:
        return np.asarray(Image.open(f), dtype=dtype)
