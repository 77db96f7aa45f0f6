"""Chooses the evaluator for a data set."""

import importlib.util
import json
import os
from collections import OrderedDict
from types import ModuleType
from typing import Any, Callable

import numpy as np
from detectron2 import evaluation
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image

from ..data import check_packages
from ..errors import unknown
from ..files import write_whole
from .coco import FastCOCOEvaluator
from .results import folder_of


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> evaluation.DatasetEvaluator:
    """The evaluator for a data set, by its metadata's ``evaluator_type``.

    Results go to ``output_dir``, by default OUTPUT_DIR/inference, and of several data sets to a folder of each in it.
    Raises UserError for an unknown type, or if its package is not installed.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    if len(cfg.DATASETS.TEST) > 1:
        output_dir = os.path.join(output_dir, folder_of(dataset_name))
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _BUILDERS:
        raise unknown(f"evaluator_type of data set {dataset_name!r}", kind, _BUILDERS)
    check_packages(dataset_name, evaluating=True)
    evaluators = [build(cfg, dataset_name, output_dir) for build in _BUILDERS[kind]]
    return evaluators[0] if len(evaluators) == 1 else evaluation.DatasetEvaluators(evaluators)


def coco_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str, **options) -> evaluation.COCOEvaluator:
    """The evaluator that TEST.COCO_EVALUATOR asks for; ``options`` are those of detectron2's. Both give the same numbers."""
    faster = cfg.TEST.get("COCO_EVALUATOR", "fastest") == "fastest" and importlib.util.find_spec("faster_coco_eval") is not None
    about = MetadataCatalog.get(dataset_name)
    if faster:
        options["use_fast_impl"] = False  # detectron2's own fast one, which would say that it is not built
    if about.get("most_objects", 0) > 100:
        options.setdefault("max_dets_per_image", max(cfg.TEST.DETECTIONS_PER_IMAGE, 100))
    options.update(output_dir=output_dir, kpt_oks_sigmas=cfg.TEST.KEYPOINT_OKS_SIGMAS)
    if not faster and not about.get("truth"):
        return evaluation.COCOEvaluator(dataset_name, **options)
    return FastCOCOEvaluator(dataset_name, faster, **options)


def _cityscapes_instances(cfg: CfgNode, dataset_name: str, output_dir: str) -> evaluation.CityscapesInstanceEvaluator:
    theirs: Any = _with_old_numpy("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    # it writes an unused matches.json into the current folder, and cannot write numpy 2's numbers
    theirs.writeDict2JSON = lambda contents, path: None
    return evaluation.CityscapesInstanceEvaluator(dataset_name)


def _cityscapes_sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str) -> evaluation.CityscapesSemSegEvaluator:
    _with_old_numpy("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")
    return evaluation.CityscapesSemSegEvaluator(dataset_name)


def _lvis(cfg: CfgNode, dataset_name: str, output_dir: str) -> evaluation.LVISEvaluator:
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


def _sem_seg(cfg: CfgNode, dataset_name: str, output_dir: str) -> evaluation.SemSegEvaluator:
    return evaluation.SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)


def _read_labels(filename: str, dtype=None) -> np.ndarray:
    # detectron2's own asks for an array without a copy, which numpy 2 refuses
    with PathManager.open(filename, "rb") as f:
        return np.asarray(Image.open(f), dtype=dtype)


def _panoptic(cfg: CfgNode, dataset_name: str, output_dir: str) -> evaluation.COCOPanopticEvaluator:
    about = MetadataCatalog.get(dataset_name)
    if about.get("part_of"):  # its file of segments is of the whole, and each of its images must have been predicted
        path = os.path.join(output_dir, f"{dataset_name}_truth.json")
        if comm.is_main_process():
            os.makedirs(output_dir, exist_ok=True)
            write_panoptic_part(about.panoptic_json, DatasetCatalog.get(dataset_name), path)
        dataset_name = f"{dataset_name}_truth"
        MetadataCatalog.pop(dataset_name, None)  # of an earlier evaluation
        kept = {key: value for key, value in about.as_dict().items() if key not in ("name", "panoptic_json")}
        MetadataCatalog.get(dataset_name).set(**kept, panoptic_json=path)
    return evaluation.COCOPanopticEvaluator(dataset_name, output_dir)


def write_panoptic_part(source: str, records: list[dict[str, Any]], path: str) -> None:
    """Writes the part of a file in COCO's panoptic format that concerns the images of ``records``."""
    with open(source, encoding="utf-8") as f:
        content = json.load(f)
    ids = {record["image_id"] for record in records}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    content["images"] = [image for image in content["images"] if image["id"] in ids]
    write_whole(path, json.dumps(content))


class ClassificationEvaluator(evaluation.DatasetEvaluator):
    """Top-1 and top-5 accuracy in percent; the same in any number of processes."""

    def reset(self) -> None:
        self._correct: dict[str, list[int]] = {}  # by image, so that an image seen by two processes counts once

    def process(self, inputs, outputs) -> None:
        for given, found in zip(inputs, outputs):
            scores = found["scores"]
            # a score as high as the label's counts against it, and so does NaN: equal scores distinguish nothing
            rank = int((~(scores < scores[given["label"]])).sum()) - 1
            self._correct[str(given["image_id"])] = [int(rank < 1), int(rank < 5)]

    def evaluate(self):
        every = comm.gather(self._correct)
        if not comm.is_main_process():
            return None
        seen = {image: correct for part in every for image, correct in part.items()}
        top1, top5 = (100 * sum(correct[i] for correct in seen.values()) / max(len(seen), 1) for i in range(2))
        return OrderedDict(classification={"top1": top1, "top5": top5})


_BUILDERS: dict[str, list[Callable[..., evaluation.DatasetEvaluator]]] = {
    "coco": [coco_evaluator],
    "coco_panoptic_seg": [coco_evaluator, _sem_seg, _panoptic],
    "sem_seg": [_sem_seg],
    "cityscapes_instance": [_cityscapes_instances],
    "cityscapes_sem_seg": [_cityscapes_sem_seg],
    "cityscapes_panoptic_seg": [_cityscapes_sem_seg, _cityscapes_instances, _panoptic],
    "pascal_voc": [lambda cfg, dataset_name, output_dir: evaluation.PascalVOCDetectionEvaluator(dataset_name)],
    "classification": [lambda cfg, dataset_name, output_dir: ClassificationEvaluator()],
    "lvis": [_lvis],
}
