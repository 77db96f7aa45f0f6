"""Checks files before a comparison: detections in COCO's result format, and the annotations of their images."""

import dataclasses
import os
from typing import Any, Callable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from ..data import annotations, check_paths
from ..data.reader import read
from ..data.sources import Source, Use, unknown_data_set
from ..errors import UserError

TASKS = {"bbox": "bbox", "segm": "segmentation", "keypoints": "keypoints"}  # task -> the field that results need


def read_truth(path: str, images: str, task: str, say: Callable[[str], Any] = lambda line: None, as_in: Use | None = None) -> dict[str, Any]:
    """The annotations of a file for an evaluation of ``task``, their images in the folder ``images`` or "". Raises UserError.

    ``as_in``: how a run reads its data.
    """
    use = dataclasses.replace(as_in or Use(), masks=task == "segm", keypoints=task == "keypoints")
    data = read(Source(os.path.basename(path), path, images, training=False), use, files=bool(images))
    error = data.error()
    if error:
        raise error
    if set(data.findings.counts) - {"crowds"}:
        say(data.summary())
    if not data.annotations:
        raise UserError(f"annotation file {path!r} has no annotations, so there is no ground truth", "data")
    return data.truth()


def check_results(content: Any, dataset: dict[str, Any], task: str, path: str) -> list[dict]:
    """The fields of the detections that ``task`` needs; raises UserError if ``content``, of the file ``path``, is no list of such."""
    what = f"result file {path!r}"
    if not isinstance(content, list):
        raise UserError(f"{what} is not in COCO's format: it is not a list of detections", "bad-file")
    if not content:
        raise UserError(f"{what} has no detections: the detector found nothing", "data")
    field = TASKS[task]
    if isinstance(content[0], dict) and field not in content[0]:
        has = [name for name, key in TASKS.items() if key in content[0]]
        said = f"a detection has no {field}; the file is for {', '.join(has) or 'none of the tasks'}"
        raise UserError(f"{what} is not for task {task!r}: {said}", "value", "--task", next(iter(has), None))
    keys = ["image_id", "category_id", "score", field]
    # the size of a detection with keypoints is its box's where it has one, of one with a mask always the mask's
    if task == "keypoints" and all(isinstance(result, dict) and "bbox" in result for result in content):
        keys.append("bbox")
    kinds = {
        **annotations.FIELDS,
        "score": ("a number", lambda value: annotations.numbers([value])),
        "segmentation": ("run lengths", lambda value: isinstance(value, dict)),
    }
    fields = {key: kinds[key] for key in keys}
    images, classes = ({entry["id"]: entry for entry in dataset[key]} for key in ("images", "categories"))
    for i, result in enumerate(content):
        for fault in annotations.faults(result, fields):
            raise UserError(f"{what}: entry {i} {fault}", "bad-file")
        for key, known, owner in (("image_id", images, "images"), ("category_id", classes, "categories")):
            if result[key] not in known:
                said = f"has {key} {result[key]}, which is not among the {owner!r} of the annotations: is it for another data set?"
                raise UserError(f"{what}: entry {i} {said}", "data")
        if task == "segm":
            image, mask = images[result["image_id"]], result[field]
            if not isinstance(mask.get("counts"), str) or annotations.mask_fault(mask, image["height"], image["width"]):
                raise UserError(f"{what}: entry {i} has a segmentation that is not compressed RLE of the image's size", "data")
    return [{key: result[key] for key in keys} for result in content]


def check_keypoints(dataset: dict[str, Any], results: Sequence[list[dict]], sigmas: Sequence[float]) -> None:
    """Raises UserError if the numbers of keypoints do not agree."""
    wanted = len(sigmas) or 17
    for who, entries in (("objects", dataset["annotations"]), ("detections of A", results[0]), ("detections of B", results[1])):
        other = next((len(e["keypoints"]) / 3 for e in entries if len(e["keypoints"]) != 3 * wanted), None)
        if other is not None:
            hint = "" if sigmas else " Set your own with --oks-sigmas (TEST.KEYPOINT_OKS_SIGMAS in the config)."
            raise UserError(f"{who} have {other:g} keypoints, but there are {wanted} OKS sigmas.{hint}", "value", "--oks-sigmas")


def truth_of(name: str, task: str) -> tuple[str, dict[str, Any]]:
    """(annotation file, truth) of a data set in detectron2's catalogue; raises UserError if it has none in COCO's format."""
    if name not in DatasetCatalog:
        raise unknown_data_set("data set", name, "--dataset")
    check_paths(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("labelled", True):
        raise UserError(f"data set {name!r} has no annotations, so there is no ground truth", "data", "--dataset")
    if metadata.get("truth"):
        return metadata.get("json_file", name), metadata.truth()
    if not metadata.get("json_file") or metadata.get("evaluator_type") not in ("coco", "coco_panoptic_seg"):
        raise UserError(f"data set {name!r} has no annotations in COCO's format: give a file with --annotations", "unsupported", "--dataset")
    if metadata.get("generated"):  # its first use generates it
        DatasetCatalog.get(name)
    path = PathManager.get_local_path(metadata.json_file)
    return path, read_truth(path, metadata.get("image_root") or "", task)


def config_of(path: str) -> str:
    """The config.yaml that a run left, where ``path`` is its folder or the results in it; "" if there is none."""
    inside = os.path.dirname(os.path.abspath(path))
    if os.path.basename(os.path.dirname(inside)) == "inference":  # of one of several data sets
        inside = os.path.dirname(inside)
    left = os.path.normpath(os.path.join(path if os.path.isdir(path) else os.path.join(inside, ".."), "config.yaml"))
    return left if os.path.isfile(left) else ""


def folder_of(name: str) -> str:
    """Where evaluations put the results of one of several data sets."""
    return name.replace("/", "_").replace(os.sep, "_")


def results_file(path: str, name: str | None, tested: Sequence[str] = ()) -> str:
    """The results on the data set ``name`` inside, if ``path`` is the folder of a run; else ``path``.

    ``tested``: the data sets of its last evaluation. Results on one alone are not in a folder of their own.
    """
    if not os.path.isdir(path):
        return path
    file = "coco_instances_results.json"
    own, alone = os.path.join(path, "inference", folder_of(name or ""), file), os.path.join(path, "inference", file)
    if not name or not os.path.isfile(own) or tuple(tested) == (name,) and os.path.isfile(alone):
        return alone
    return own
