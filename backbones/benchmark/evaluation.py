"""COCO's evaluators on synthetic detections: the same metrics, in less time."""

import contextlib
import io
from functools import partial
from typing import Any, Iterator

import numpy as np

from .. import timing
from ..evaluation import coco
from ..evaluation.comparison import pycocotools_evaluation

CLASSES = 80


def made_up(images: int, detections: int, task: str, seed: int = 0) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(annotations, results) in COCO's format: about six objects per image; detections find four in ten, with varying accuracy."""
    import pycocotools.mask as mask_util

    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def mask(x: float, y: float, w: float, h: float) -> dict[str, Any]:
        runs = mask_util.frPyObjects([[x, y, x + w, y, x + 0.8 * w, y + h, x, y + h]], 480, 640)[0]
        return {"size": runs["size"], "counts": runs["counts"].decode()}

    for image in range(1, images + 1):
        own: list[dict[str, Any]] = []
        for _ in range(rng.integers(0, 12)):
            w, h = np.exp(rng.normal(4, 1, 2)).clip(4, 400)
            x, y = rng.uniform(0, 640 - w), rng.uniform(0, 480 - h)
            points = np.stack([rng.uniform(x, x + w, 17), rng.uniform(y, y + h, 17), rng.integers(0, 3, 17)], axis=1)
            own.append(
                {
                    "id": len(annotations) + len(own) + 1,
                    "image_id": image,
                    "category_id": int(rng.integers(1, CLASSES + 1)),
                    "bbox": [float(v) for v in (x, y, w, h)],
                    "area": float(0.8 * w * h),
                    "iscrowd": int(rng.random() < 0.02),
                    "segmentation": mask(x, y, w, h),
                    "keypoints": points.flatten().tolist(),
                    "num_keypoints": int((points[:, 2] > 0).sum()),
                }
            )
        annotations += own
        for _ in range(detections):
            if own and rng.random() < 0.4:
                truth = own[rng.integers(len(own))]
                box, kind = np.array(truth["bbox"]) + rng.normal(0, 6, 4), truth["category_id"]
                points = np.array(truth["keypoints"]).reshape(17, 3) + rng.normal(0, 5, (17, 3))
            else:
                box = np.array([rng.uniform(0, 500), rng.uniform(0, 400), *np.exp(rng.normal(4, 1, 2)).clip(4, 140)])
                kind, points = int(rng.integers(1, CLASSES + 1)), rng.uniform(0, 480, (17, 3))
            box[2:] = box[2:].clip(1)
            result = {"image_id": image, "category_id": kind, "bbox": box.tolist(), "score": float(rng.random().__round__(4))}
            if task == "segm":
                result["segmentation"] = mask(*box.tolist())
            elif task == "keypoints":
                result["keypoints"] = points.flatten().tolist()
            results.append(result)
    categories = [{"id": i, "name": str(i)} for i in range(1, CLASSES + 1)]
    pictures = [{"id": i, "width": 640, "height": 480} for i in range(1, images + 1)]
    return {"info": {}, "images": pictures, "annotations": annotations, "categories": categories}, results


def official(dataset: dict[str, Any], results: list[dict[str, Any]], task: str) -> Any:
    """pycocotools' evaluation, as detectron2 runs it."""
    if task == "segm":
        results = [{key: value for key, value in r.items() if key != "bbox"} for r in results]
    evaluation = pycocotools_evaluation(dataset, results, task)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def suite(count: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Yields every row as it is measured: boxes on 500 images, masks and keypoints on 100, with 100 detections each."""
    about = timing.about()
    for task, images in (("bbox", 500), ("segm", 100), ("keypoints", 100)):
        dataset, results = made_up(images, 100, task)
        ways = {"fastest": partial(coco.evaluate, dataset, results, task), "pycocotools": partial(official, dataset, results, task)}
        ours, theirs = (np.asarray(evaluate().stats) for evaluate in ways.values())
        times = timing.interleaved(ways, count)
        off = float(np.abs(ours[: len(theirs)] - theirs).max())
        yield from timing.rows_of(f"evaluation/{task}/{images}x100", times, "pycocotools", largest_difference=off, **about)
