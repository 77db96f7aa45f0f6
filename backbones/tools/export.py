"""Exports a trained detector, or its backbone and FPN, to TorchScript, ONNX or OpenVINO, and checks that the file computes the same.

backbones export --config-file faster_rcnn_V_39_FPN_3x.yaml --format onnx --output detector.onnx MODEL.WEIGHTS model_final.pth
backbones demo --exported detector.onnx --input street.jpg --output found

The file is traced and checked on --image, at two sizes; where it differs by more than rounding it is not written.
"""

import os
from typing import Any

import numpy as np

from ..config import check_output_dir
from ..data import check_paths, images
from ..data.loader import unreadable
from ..engine import Front, add_config_arguments, open_named
from ..errors import UserError
from . import parser_of, program, run


def read_image(path: str, **reading: Any) -> np.ndarray:
    """(H, W, 3) BGR uint8, read as `data.images.settings` say. Raises UserError for what is no image, or cannot be used as it is."""
    try:
        return np.ascontiguousarray(images.read(path, "BGR", **reading))
    except images.UNREADABLE as error:
        raise UserError(unreadable({"file_name": path}, error), "bad-file") from error


def sample(front: Front, path: str | None) -> np.ndarray:
    """The image at ``path``, or else the first of the config's test data that has an object."""
    from detectron2.data import DatasetCatalog

    reading = images.settings(front.settings)
    if path:
        return read_image(path, **reading)
    name = next(iter(front.settings.DATASETS.TEST), "")
    try:
        front.register()
        if name not in DatasetCatalog:
            raise UserError(f"data set {name!r} is not known")
        check_paths(name)
    except UserError as error:
        raise UserError(f"give an --image, on which the detector finds something ({error})") from error
    records = DatasetCatalog.get(name)
    return read_image(next((r for r in records if r.get("annotations")), records[0])["file_name"], **reading)


def main() -> None:
    from ..deploy.export import FORMATS, PARTS, check_target, export
    from ..deploy.predictor import Predictor

    parser = parser_of(program("export"), __doc__)
    parser.add_argument("--format", required=True, choices=FORMATS, help="onnx and openvino need those packages: pip install -e '.[openvino]'")
    parser.add_argument("--part", default="detector", choices=PARTS, help="backbone: with its FPN, the file gives features (default: detector)")
    parser.add_argument("--image", metavar="FILE", help="what the export is traced and checked on (default: an image of DATASETS.TEST)")
    parser.add_argument("--output", required=True, metavar="FILE", help=f"ends in {', '.join(FORMATS.values())}, after the format")
    add_config_arguments(parser, required=True)
    args = parser.parse_args()
    check_target(args.format, args.output)
    folder = os.path.dirname(os.path.abspath(args.output))
    check_output_dir(folder, key="the folder of --output")
    front = open_named(args)
    front.set("MODEL.DEVICE", "cpu")
    front.follow_weights()
    front.check_model()
    front.check_resize()
    image = sample(front, args.image)
    os.makedirs(folder, exist_ok=True)
    predictor = Predictor(front)
    differences = export(front.settings, predictor.model, args.output, args.format, image, args.part, names=predictor.metadata)
    print(predictor.said)
    print(f"{args.output}: {os.path.getsize(args.output) / 1e6:.1f} MB. It differs from the model by at most:")
    for name, value in differences.items():
        unit = {"boxes": " pixels", "scores": ""}.get(name, " of the largest value")
        print(f"  {name}: {value:.2g}{unit}")


if __name__ == "__main__":
    run(main)
