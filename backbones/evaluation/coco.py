"""COCO's evaluation by faster-coco-eval: pycocotools' numbers, several times as fast. If it is not installed, detectron2's is used."""

import contextlib
import io
import itertools
import json
import os
import tempfile
import uuid
from typing import Any, Sequence

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator

from ..errors import UserError
from ..files import write_whole


def evaluate(
    dataset: dict[str, Any],
    results: list[dict[str, Any]],
    task: str,
    sigmas: Sequence[float] = (),
    image_ids: Sequence | None = None,
    most: int = 100,
) -> Any:
    """The summarized ``COCOeval`` of one or more detections in COCO's format: ``stats``, and ``eval["precision"]``.

    ``task`` is "bbox", "segm" or "keypoints", ``sigmas`` those of the keypoints, by default COCO's. Without ``image_ids`` all images count.
    ``most``: detections of an image that count.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if task == "segm":  # a mask's size is its own area, not its box's
        results = [{key: value for key, value in r.items() if key != "bbox"} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(dataset)
        evaluation = COCOeval_faster(truth, truth.loadRes([dict(r) for r in results]), task, kpt_oks_sigmas=list(sigmas) or None)
        evaluation.params.catIds = sorted(truth.getCatIds())  # for keypoints it would use only categories with objects
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        if most > 100:
            evaluation.params.maxDets = [1, 10, most]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


class FastCOCOEvaluator(COCOEvaluator):
    """detectron2's ``COCOEvaluator`` with the same files and numbers.

    Args:
        faster: evaluate by faster-coco-eval.

    If the metadata have a function ``truth``, its result is used as the ground truth, and no file is read.
    """

    def __init__(self, dataset_name: str, faster: bool = True, **options: Any):
        self._faster = faster
        truth = MetadataCatalog.get(dataset_name).get("truth")
        if truth is None:
            super().__init__(dataset_name, **options)
            return
        with tempfile.TemporaryDirectory() as folder:  # detectron2's takes a file
            name, path = f"{dataset_name} {uuid.uuid4().hex}", os.path.join(folder, "empty.json")
            write_whole(path, json.dumps({"images": [], "annotations": [], "categories": []}))
            MetadataCatalog.get(name).json_file = path
            try:
                super().__init__(name, **options)
            finally:
                MetadataCatalog.remove(name)
        self._metadata = MetadataCatalog.get(dataset_name)
        self._coco_api.dataset = truth()
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api.createIndex()
        self._do_evaluation = "annotations" in self._coco_api.dataset

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        """detectron2's, which takes names in the model's order for figures in the order of the categories' ids."""
        classes = self._metadata.get("thing_dataset_id_to_contiguous_id")
        if class_names and classes:
            class_names = [class_names[classes[i]] for i in sorted(classes)]
        return super()._derive_coco_results(coco_eval, iou_type, class_names=class_names)

    def _eval_predictions(self, predictions, img_ids=None):
        most = list(self._max_dets_per_image or [100])[-1]
        if self._do_evaluation and most != 100:
            self._logger.info(f"{self._metadata.name} has images with more than 100 objects: up to {most} detections per image count (maxDets)")
        if not self._do_evaluation:
            where = f" are in {os.path.join(self._output_dir, 'coco_instances_results.json')}" if self._output_dir else ""
            self._logger.info(f"{self._metadata.name} has no annotations: predictions{where}, without evaluation")
        if not self._faster:
            return super()._eval_predictions(predictions, img_ids)
        results = list(itertools.chain(*(p["instances"] for p in predictions)))
        to_id = {v: k for k, v in self._metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
        for result in results if to_id else ():
            if result["category_id"] not in to_id:
                raise UserError(
                    f"the model predicts class {result['category_id']}, but data set {self._metadata.name!r} has {len(to_id)} classes"
                )
            result["category_id"] = to_id[result["category_id"]]
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            write_whole(path, json.dumps(results, default=np.generic.item))  # ids of images may be numpy's
        if not self._do_evaluation:
            return
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            sigmas = self._kpt_oks_sigmas if task == "keypoints" else ()
            if task == "keypoints" and results:
                _check_keypoints(self._coco_api.dataset, results, sigmas)
            limit = 20 if task == "keypoints" else most
            evaluation = evaluate(self._coco_api.dataset, results, task, sigmas, img_ids, limit) if results else None
            self._results[task] = self._derive_coco_results(evaluation, task, class_names=self._metadata.get("thing_classes"))


def _check_keypoints(dataset: dict[str, Any], results: list[dict[str, Any]], sigmas: Sequence[float]) -> None:
    truth = next((len(a["keypoints"]) // 3 for a in dataset["annotations"] if "keypoints" in a), 0)
    found, wanted = len(results[0]["keypoints"]) // 3, len(sigmas) or 17
    if not truth == found == wanted:
        raise UserError(f"objects have {truth} keypoints, predictions {found}, and TEST.KEYPOINT_OKS_SIGMAS has {wanted}: they must agree")
