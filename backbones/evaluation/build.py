"""Which of detectron2's evaluators a data set calls for."""

import importlib
import os
from types import ModuleType
from typing import Any

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


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> evaluation.DatasetEvaluator:
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
        "cityscapes_instance": lambda: [_cityscapes_instances(dataset_name)],
        "cityscapes_sem_seg": lambda: [_cityscapes_sem_seg(dataset_name)],
        "cityscapes_panoptic_seg": lambda: [
            _cityscapes_sem_seg(dataset_name),
            _cityscapes_instances(dataset_name),
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


def _cityscapes_instances(dataset_name: str) -> evaluation.CityscapesInstanceEvaluator:
    theirs: Any = _with_old_numpy("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    # it writes what nobody reads, matches.json into the folder one stands in, and cannot write numpy 2's numbers
    theirs.writeDict2JSON = lambda contents, path: None
    return evaluation.CityscapesInstanceEvaluator(dataset_name)


def _cityscapes_sem_seg(dataset_name: str) -> evaluation.CityscapesSemSegEvaluator:
    _with_old_numpy("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    return evaluation.CityscapesSemSegEvaluator(dataset_name)


def _lvis(dataset_name: str, output_dir: str) -> evaluation.LVISEvaluator:
    _with_old_numpy("lvis.eval")
    return evaluation.LVISEvaluator(dataset_name, output_dir=output_dir)


def _with_old_numpy(name: str) -> ModuleType:
    """The module of that name, with a numpy that has the names which the module asks for."""
    module: Any = importlib.import_module(name)
    module.np = _OldNumpy()
    return module


class _OldNumpy:
    """numpy with two names that it has dropped: ``float`` in 1.24, which lvis uses, and ``in1d`` in 2.4, which cityscapesScripts uses."""

    float = float
    in1d = staticmethod(np.isin)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def _sem_seg(dataset_name: str, output_dir: str) -> evaluation.SemSegEvaluator:
    return evaluation.SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)


def _read_labels(filename: str, dtype=None) -> np.ndarray:
    # detectron2's own asks for an array without a copy, which numpy 2 refuses
    with PathManager.open(filename, "rb") as f:
        return np.asarray(Image.open(f), dtype=dtype)
