"""Which of detectron2's evaluators a data set calls for."""

import importlib.util
import os
from typing import Optional

import numpy as np
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..errors import UserError, unknown

# evaluator types whose package is optional: type -> (module, what pip calls it)
_PACKAGES = {
    "coco_panoptic_seg": ("panopticapi", "panopticapi-lite"),
    "cityscapes_panoptic_seg": ("panopticapi", "panopticapi-lite"),
    "cityscapes_instance": ("cityscapesscripts", "cityscapesScripts"),
    "cityscapes_sem_seg": ("cityscapesscripts", "cityscapesScripts"),
    "lvis": ("lvis", "lvis --no-deps"),
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: Optional[str] = None) -> evaluation.DatasetEvaluator:
    """The evaluator for a data set, after its metadata's ``evaluator_type``; results go to ``output_dir``, by default OUTPUT_DIR/inference.

    Raises UserError for an unknown type, or where its package is not installed.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    builders = {
        "coco": lambda: [_coco(cfg, dataset_name, output_dir)],
        "coco_panoptic_seg": lambda: [
            _coco(cfg, dataset_name, output_dir),
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
        "lvis": lambda: [evaluation.LVISEvaluator(dataset_name, output_dir=output_dir)],
    }
    if kind not in builders:
        raise unknown(f"evaluator_type of data set {dataset_name!r}", kind, builders)
    module, package = _PACKAGES.get(kind, (None, None))
    if module and importlib.util.find_spec(module) is None:
        raise UserError(f"evaluating {dataset_name!r} needs a package that is not installed: pip install {package}")
    evaluators = builders[kind]()
    return evaluators[0] if len(evaluators) == 1 else evaluation.DatasetEvaluators(evaluators)


def _coco(cfg: CfgNode, dataset_name: str, output_dir: str) -> evaluation.COCOEvaluator:
    return evaluation.COCOEvaluator(dataset_name, output_dir=output_dir, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)


def _sem_seg(dataset_name: str, output_dir: str) -> evaluation.SemSegEvaluator:
    return evaluation.SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)


def _read_labels(filename: str, dtype=None) -> np.ndarray:
    # detectron2's own asks for an array without a copy, which numpy 2 refuses
    with PathManager.open(filename, "rb") as f:
        return np.asarray(Image.open(f), dtype=dtype)
