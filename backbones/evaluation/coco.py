"""COCO's evaluation by faster-coco-eval: pycocotools' numbers, several times as fast. Where it is not installed, detectron2's serves."""

import contextlib
import io
import itertools
import json
import os
from typing import Any, Sequence

from detectron2.evaluation import COCOEvaluator

from ..errors import UserError
from ..files import write_whole


def evaluate(
    dataset: dict[str, Any], results: list[dict[str, Any]], task: str, sigmas: Sequence[float] = (), image_ids: Sequence | None = None
) -> Any:
    """The summarized ``COCOeval`` of one or more detections in COCO's format: ``stats``, and ``eval["precision"]``.

    ``task`` is "bbox", "segm" or "keypoints", ``sigmas`` those of the keypoints, by default COCO's. Without ``image_ids`` all images count.
    """
    from faster_coco_eval import COCO, COCOeval_faster

    if task == "segm":  # its area, not its box's, says how large a mask is
        results = [{key: value for key, value in r.items() if key != "bbox"} for r in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(dataset)
        evaluation = COCOeval_faster(truth, truth.loadRes([dict(r) for r in results]), task, kpt_oks_sigmas=list(sigmas) or None)
        evaluation.params.catIds = sorted(truth.getCatIds())  # of keypoints it takes those alone that have objects
        if image_ids is not None:
            evaluation.params.imgIds = list(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


class FastCOCOEvaluator(COCOEvaluator):
    """detectron2's ``COCOEvaluator`` with the same files and numbers, evaluated by faster-coco-eval."""

    def _eval_predictions(self, predictions, img_ids=None):
        if self._max_dets_per_image is not None and list(self._max_dets_per_image) != [1, 10, 100]:
            return super()._eval_predictions(predictions, img_ids)
        results = list(itertools.chain(*(p["instances"] for p in predictions)))
        to_id = {v: k for k, v in self._metadata.get("thing_dataset_id_to_contiguous_id", {}).items()}
        for result in results if to_id else ():
            if result["category_id"] not in to_id:
                raise UserError(f"the model predicts class {result['category_id']}, but data set {self._metadata.name!r} has {len(to_id)}")
            result["category_id"] = to_id[result["category_id"]]
        if self._output_dir:
            path = os.path.join(self._output_dir, "coco_instances_results.json")
            self._logger.info(f"Saving results to {path}")
            write_whole(path, json.dumps(results))
        if not self._do_evaluation:
            self._logger.info("Annotations are not available for evaluation.")
            return
        for task in sorted(self._tasks or self._tasks_from_predictions(results)):
            sigmas = self._kpt_oks_sigmas if task == "keypoints" else ()
            if task == "keypoints" and results:
                _check_keypoints(self._coco_api.dataset, results, sigmas)
            evaluation = evaluate(self._coco_api.dataset, results, task, sigmas, img_ids) if results else None
            self._results[task] = self._derive_coco_results(evaluation, task, class_names=self._metadata.get("thing_classes"))


def _check_keypoints(dataset: dict[str, Any], results: list[dict[str, Any]], sigmas: Sequence[float]) -> None:
    truth = next((len(a["keypoints"]) // 3 for a in dataset["annotations"] if "keypoints" in a), 0)
    found, wanted = len(results[0]["keypoints"]) // 3, len(sigmas) or 17
    if not truth == found == wanted:
        raise UserError(f"objects have {truth} keypoints, predictions {found}, and TEST.KEYPOINT_OKS_SIGMAS {wanted}: they must agree")
