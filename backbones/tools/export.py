"""Exports a trained detector, or its backbone and FPN, to TorchScript, ONNX or OpenVINO, and checks that the file computes the same.

backbones export --config-file faster_rcnn_V_39_FPN_3x.yaml --format onnx --output detector.onnx MODEL.WEIGHTS model_final.pth
backbones demo --exported detector.onnx --input street.jpg --output found

backbones export --config-file ... --format onnx --precision int8 --calibrate coco_2017_train --output small.onnx MODEL.WEIGHTS model_final.pth

The file is traced and checked on --image, at two sizes. If it differs by more than rounding, it is not written.
"""

import os
import sys
import tempfile
from functools import partial
from typing import Any, Callable, Iterable, Iterator

import numpy as np

from ..config import check_output_file
from ..data import check_paths, images
from ..data.loader import unreadable
from ..data.sources import unknown_data_set
from ..engine import Front, add_config_arguments, open_named
from ..errors import UserError, counted, first_of
from ..files import nearest
from . import check_needed, parser_of, program, run


def read_image(path: str, **reading: Any) -> np.ndarray:
    """(H, W, 3) BGR uint8, read as `data.images.settings` say. Raises UserError for a file that is no image or cannot be used."""
    try:
        pixels = np.ascontiguousarray(images.read(path, "BGR", **reading))
        with images.opened(path, reading.get("max_pixels", 0)) as image:
            pictures = images.pictures_in(image)
    except images.UNREADABLE as error:
        raise UserError(unreadable({"file_name": path}, error), "bad-file") from error
    if pictures > 1:
        print(f"{path}: using the first of {pictures} pictures in it", file=sys.stderr)
    return pixels


def sample(front: Front, path: str | None) -> np.ndarray:
    """The image at ``path``, or else the first image of the config's test data that has an object."""
    from detectron2.data import DatasetCatalog

    reading = images.settings(front.settings)
    if path and os.path.isdir(path):
        raise UserError(f"--image {path!r} is a folder: name one of its images", "value", "--image")
    if path:
        return read_image(path, **reading)
    name = next(iter(front.settings.DATASETS.TEST), "")
    try:
        front.register()
        if name not in DatasetCatalog:
            raise UserError(f"unknown data set {name!r}")
        check_paths(name)
    except UserError as error:
        raise UserError(f"give an --image in which the detector finds something ({error})") from error
    records = DatasetCatalog.get(name)
    return read_image(next((r for r in records if r.get("annotations")), records[0])["file_name"], **reading)


def calibration(front: Front, source: str, count: int) -> Iterator[np.ndarray]:
    """Up to ``count`` images, evenly chosen from a folder or a known data set; those that cannot be read are left out.

    Raises UserError for anything else.
    """
    from detectron2.data import DatasetCatalog

    from .demo import images_of

    reading = images.settings(front.settings)
    if os.path.isdir(source):
        files = images_of([source], recursive=True)[0]
    else:
        front.register()
        if source not in DatasetCatalog:
            if near := nearest(source):
                said = f"--calibrate {source!r}: no data set and no folder. Did you mean {near!r}?"
                raise UserError(said, "unknown-name", "--calibrate", near)
            raise unknown_data_set("data set or folder, of --calibrate", source, "--calibrate")
        check_paths(source)
        files = [record["file_name"] for record in DatasetCatalog.get(source)]
    chosen = np.unique(np.linspace(0, len(files) - 1, min(count, len(files))).astype(int))
    print(f"calibrating on {len(chosen)} of {counted(len(files), 'image')} in {source!r}")
    return _readable((files[i] for i in chosen), reading)


def _readable(files: Iterable[str], reading: dict[str, Any]) -> Iterator[np.ndarray]:
    for file in files:
        try:
            yield read_image(file, **reading)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)


def evaluator(front: Front, part: str = "detector") -> Callable[[Any], dict[str, Any]] | None:
    """A function that evaluates a `Runner` on the config's test data; None, with a line that says so, for a backbone and if they are not
    here."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from ..deploy.runner import RunnerModel

    if part == "backbone":
        print("AP is not measured: a backbone has none")
        return None
    try:
        front.register()
        for name in front.settings.DATASETS.TEST:
            check_paths(name)
    except UserError as error:
        print(f"AP is not measured, and --max-drop is not checked: {error}")
        return None
    if not front.evaluates:
        print("AP is not measured, and --max-drop is not checked: DATASETS.TEST is empty")
        return None
    every = {name: len(DatasetCatalog.get(name)) for name in front.settings.DATASETS.TEST}  # what reads them knows whether they are labelled
    tests = [f"{counted(count, 'image')} of {name!r}" for name, count in every.items() if MetadataCatalog.get(name).get("labelled", True)]
    if every and not tests:  # a Python config may have data without names, of which nothing is known
        print(f"AP is not measured, and --max-drop is not checked: {first_of(list(every))} has no annotations")
        return None
    print(f"accuracy is measured twice, in float32 and in --precision, on {' and '.join(tests) or 'the test data'}")

    def evaluate(runner: Any) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(prefix="export-") as place:  # the results in OUTPUT_DIR are those of the run
            return front.clone("OUTPUT_DIR", place).evaluate(RunnerModel(runner))

    return evaluate


def main() -> None:
    from ..deploy.export import FORMATS, PARTS, check_batch, check_target, export
    from ..deploy.low_precision import PRECISIONS, check_precision, lower
    from ..deploy.predictor import Predictor

    parser = parser_of(program("export"), __doc__)
    parser.add_argument("--format", required=True, choices=FORMATS, help="onnx and openvino need the extras export and openvino")
    parser.add_argument("--part", default="detector", choices=PARTS, help="backbone: with its FPN, returns features (default: detector)")
    parser.add_argument(
        "--batch",
        type=int,
        default=0,
        metavar="N",
        help="the detector's file takes N images of one size per call (default: one, without a batch axis)",
    )
    parser.add_argument(
        "--include-preprocessing",
        action="store_true",
        help="the file takes uint8 images (H, W, 3) RGB of any size, and returns boxes in their pixels",
    )
    parser.add_argument("--image", "--input", metavar="FILE", help="image to trace and check the export on (default: one of DATASETS.TEST)")
    parser.add_argument("--output", required=True, metavar="FILE", help=f"ends in {', '.join(FORMATS.values())}, depending on the format")
    precisions = sorted({"float32", *(name for names in PRECISIONS.values() for name in names)})
    parser.add_argument("--precision", default="float32", choices=precisions, help="int8 needs --calibrate (default: float32)")
    parser.add_argument(
        "--calibrate", metavar="DATA", help="a data set's name, or a folder of images and subfolders, to find the ranges for int8"
    )
    parser.add_argument("--num", "--images", type=int, default=128, metavar="N", help="number of images to calibrate on (default: %(default)s)")
    parser.add_argument(
        "--max-drop", type=float, default=0.5, help="points of AP, PQ, mIoU or top-1 that DATASETS.TEST may lose (default: %(default)s)"
    )
    add_config_arguments(parser, required=True)
    args = parser.parse_args()
    check_target(args.format, args.output)
    check_batch(args.batch, args.part)
    check_needed(parser, args, ("num",), "--calibrate", args.calibrate)
    check_needed(parser, args, ("max_drop",), "a --precision other than float32", args.precision != "float32")
    check_needed(parser, args, ("max_drop",), "--part detector", args.part == "detector")
    check_precision(args.format, args.precision, bool(args.calibrate))
    if args.include_preprocessing and args.precision != "float32":
        raise UserError(
            f"--include-preprocessing: resizing needs float32, but --precision is {args.precision}", "conflict", "--include-preprocessing"
        )
    if args.calibrate and args.precision != "int8":
        raise UserError("--calibrate is for --precision int8: add it, or omit --calibrate", "conflict", "--calibrate")
    if args.num < 1:
        raise UserError(f"--num {args.num} must be at least 1", key="--num")
    folder = os.path.dirname(os.path.abspath(args.output))
    check_output_file(args.output, "--output")
    front = open_named(args)
    front.set("MODEL.DEVICE", "cpu")
    front.follow_weights()
    front.check_model()
    front.check_resize()
    image = sample(front, args.image)
    predictor = Predictor(front)
    os.makedirs(folder, exist_ok=True)
    given = partial(export, front.settings, predictor.model, image=image, part=args.part, names=predictor.metadata, batch=args.batch)
    given = partial(given, include_preprocessing=args.include_preprocessing)
    if args.precision == "float32":
        differences, figures = given(args.output, args.format), {}
    else:
        evaluate = evaluator(front, args.part)
        samples = calibration(front, args.calibrate, args.num) if args.precision == "int8" else iter(())
        with tempfile.TemporaryDirectory(dir=folder) as place:
            exact = os.path.join(place, "float32.onnx")
            differences = given(exact, "onnx")
            figures = lower(exact, args.output, args.format, args.precision, samples, args.calibrate or "", evaluate, args.max_drop, image)
    print(predictor.said)
    it = "It" if args.precision == "float32" else "In float32 it"
    files = [args.output, f"{os.path.splitext(args.output)[0]}.bin"] if args.format == "openvino" else [args.output]
    print(f"{' and '.join(files)}: {sum(map(os.path.getsize, files)) / 1e6:.1f} MB. {it} differs from the model by at most:")
    for name, value in differences.items():
        unit = {"boxes": " pixels", "proposals": " pixels", "scores": ""}.get(name, " of the largest value")
        print(f"  {name}: {value:.2g}{unit}")
    for name, (before, after) in figures.items():
        print(f"{args.precision}: {name} {before:.2f} -> {after:.2f}")
    print(f"To run it without this package: python {os.path.join(folder, 'run_exported.py')} {args.output} IMAGE")


if __name__ == "__main__":
    run(main)
