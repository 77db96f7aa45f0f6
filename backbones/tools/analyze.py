"""Counts the parameters and multiply-adds of a backbone, or of a config's detector.

Param. counts every torch Parameter, frozen or not. "with affine" adds the weight and bias of frozen batch
norms, which detectron2 keeps as buffers: with FrozenBN this equals what other projects report for the same network with BatchNorm.
GFLOPs are multiply-adds / 1e9 for one image of the given size: of the convolutions only, and of all operators that fvcore counts
(including norms and poolings, but not additions and activations). Activations are the outputs of convolutions, which predict speed better
than FLOPs. A backbone gets the image as it is. With an FPN the image is padded, as in the detector, to a multiple of size_divisibility
(800x1333 becomes 800x1344), and the table says so.
"""

import argparse
import json
import math
from collections import Counter
from typing import Any, Sequence

import torch
from detectron2.layers import FrozenBatchNorm2d
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from tabulate import tabulate
from torch import nn

from .. import registry
from ..engine import open_config
from ..errors import UserError
from . import parser_of, program, run


def parameters(module: nn.Module) -> tuple[int, int]:
    """Returns (parameters, parameters with the affine weights of frozen norms); works on the meta device."""
    count = sum(p.numel() for p in module.parameters())
    frozen = sum(m.weight.numel() + m.bias.numel() for m in module.modules() if isinstance(m, FrozenBatchNorm2d))
    return count, count + frozen


def costs(network: nn.Module, size: tuple[int, int], channels: int = 3) -> dict[str, float]:
    """fvcore's counts for a forward pass of an image of (height, width) ``size`` and so many channels.

    Activations are outputs of convolutions and matrix products.
    """
    with torch.no_grad():
        image = torch.rand(1, channels, *size)
        work, values = (count(network.eval(), image).unsupported_ops_warnings(False) for count in (FlopCountAnalysis, ActivationCountAnalysis))
        work.set_op_handle(
            "torchvision::deform_conv2d",
            lambda inputs, outputs: Counter(deform_conv=math.prod(get_shape(outputs[0])) * math.prod(get_shape(inputs[1])[1:])),
        )
        values.set_op_handle("torchvision::deform_conv2d", lambda inputs, outputs: Counter(deform_conv=math.prod(get_shape(outputs[0]))))
        convs = work.by_operator()["conv"] + work.by_operator()["deform_conv"]
        return {"gmacs_conv": convs / 1e9, "gmacs_all": work.total() / 1e9, "activations": int(values.total())}


def analyze(name: str, is_backbone: bool, size: tuple[int, int], opts: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """For each part ``parameters`` and ``with_affine``; for networks also ``size`` (height, width) and the counts of `costs`."""
    parts: dict[str, Any]
    channels = 3
    if is_backbone:
        parts, networks = {name: registry.create(name)}, {name}
    else:
        front = open_config(name, opts)
        front.set("MODEL.DEVICE", "cpu")
        front.check_model()
        model, channels = front.build_model(), len(front.settings.MODEL.PIXEL_MEAN)
        parts = {"backbone": model.backbone}
        if hasattr(model.backbone, "bottom_up"):
            parts = {"backbone": model.backbone.bottom_up, "backbone and FPN": model.backbone}
        networks = set(parts)
        for name, child in model.named_children():
            children = child.named_children() if name == "roi_heads" else [("", child)]
            parts.update({f"{name}.{inner}".strip("."): m for inner, m in children if name != "backbone" and any(True for _ in m.parameters())})
        parts["detector"] = model
    result: dict[str, dict[str, Any]] = {}
    for part, module in parts.items():
        result[part] = dict(zip(("parameters", "with_affine"), parameters(module)))
        if part in networks:
            step = part == "backbone and FPN" and module.size_divisibility or 1
            height, width = (-(-side // step) * step for side in size)
            result[part].update(size=[height, width], **costs(module, (height, width), channels))
    return result


def main() -> None:
    parser = parser_of(program("analyze"), __doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--backbone", metavar="NAME", help="of backbones.list_backbones()")
    what.add_argument("--config-file", metavar="FILE", help="a config's path or name")
    parser.add_argument(
        "--image-size", "--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"), help="image size (default: 800 1344)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE each, or key=value of a Python config")
    args = parser.parse_args()
    if min(args.image_size) < 1:
        raise UserError(f"--image-size {args.image_size[0]} {args.image_size[1]}: both sides must be at least 1")
    if args.backbone and args.opts:
        raise UserError(f"overrides go with --config-file, not with --backbone: {' '.join(args.opts)}")
    result = analyze(args.backbone or args.config_file, bool(args.backbone), tuple(args.image_size), args.opts)
    if args.json:
        print(json.dumps({"size": list(args.image_size), "parts": result}, indent=1))
        return
    rows = [
        (
            part if v.get("size", list(args.image_size)) == list(args.image_size) else f"{part} at {v['size'][0]}x{v['size'][1]}",
            f"{v['parameters']:,}",
            f"{v['with_affine']:,}",
            *(f"{v[k]:.2f}" if k in v else "" for k in ("gmacs_conv", "gmacs_all")),
            f"{v['activations'] / 1e6:.1f}" if "activations" in v else "",
        )
        for part, v in result.items()
    ]
    headers = ("", "Param.", "with affine", f"GFLOPs {args.image_size[0]}x{args.image_size[1]}, conv", "all", "activations / 1e6")
    print(tabulate(rows, headers, "pipe", disable_numparse=True))


if __name__ == "__main__":
    run(main)
