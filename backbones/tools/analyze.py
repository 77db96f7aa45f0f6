"""Counts the parameters and multiply-adds of a backbone, or of a config's detector.

Param. counts every trainable-kind parameter (torch's Parameter, frozen or not). "with affine" adds the weight and bias of frozen batch
norms, which detectron2 keeps as buffers: with FrozenBN this equals what other projects report for the same network with BatchNorm.
GFLOPs are multiply-adds / 1e9 for one image of the size given: of the convolutions alone, and by fvcore's count of all operators it knows
(norms and poolings too, additions and activations not). Activations are the values that convolutions give, which tell speed better than FLOPs. Backbones take the image as it is; with an FPN it is padded, as in the detector,
to the multiple of size_divisibility (800x1333 becomes 800x1344), and the table says so.
"""

import argparse
import json
import math
from collections import Counter
from typing import Any, Dict, Sequence, Tuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from fvcore.nn import ActivationCountAnalysis, FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from tabulate import tabulate
from torch import nn

from .. import registry
from ..engine import open_config
from ..errors import UserError
from . import program, run


def parameters(module: nn.Module) -> Tuple[int, int]:
    """(parameters, the same and the affine weights of frozen norms); works on the meta device."""
    count = sum(p.numel() for p in module.parameters())
    frozen = sum(m.weight.numel() + m.bias.numel() for m in module.modules() if isinstance(m, FrozenBatchNorm2d))
    return count, count + frozen


def activations(network: nn.Module, size: Tuple[int, int], in_channels: int = 3) -> int:
    """Values in the outputs of all convolutions and matrix products for one image of height, width ``size``, as fvcore counts them."""
    with torch.no_grad():
        count = ActivationCountAnalysis(network.eval(), torch.rand(1, in_channels, *size)).unsupported_ops_warnings(False)
        count.set_op_handle("torchvision::deform_conv2d", lambda inputs, outputs: Counter({"deform_conv": math.prod(get_shape(outputs[0]))}))
        return int(count.total())


def multiply_adds(network: nn.Module, size: Tuple[int, int], in_channels: int = 3) -> Tuple[int, int]:
    """(of the convolutions, of all operators that fvcore counts) for one image of height, width ``size``; computes a forward pass."""
    with torch.no_grad():
        count = FlopCountAnalysis(network.eval(), torch.rand(1, in_channels, *size)).unsupported_ops_warnings(False)
        count.set_op_handle("torchvision::deform_conv2d", _deform_conv)
        operators = count.by_operator()
        return int(operators["conv"] + operators["deform_conv"]), int(count.total())


def _deform_conv(inputs, outputs) -> Counter:
    weight, out = get_shape(inputs[1]), get_shape(outputs[0])
    return Counter({"deform_conv": math.prod(out) * math.prod(weight[1:])})


def analyze(name: str, is_backbone: bool, size: Tuple[int, int], opts: Sequence[str] = ()) -> Dict[str, Dict[str, Any]]:
    """For each part: its ``parameters``, ``with_affine``, and for networks ``size`` (height, width counted), ``gmacs_conv``, ``gmacs_all`` and ``activations``."""
    if is_backbone:
        parts: Dict[str, Any] = {name: registry.create(name)}
        networks = {name}
    else:
        front = open_config(name, opts)
        front.set("MODEL.DEVICE", "cpu")
        front.check_model()
        model = front.build_model()
        networks = {"backbone", "backbone and FPN"} if hasattr(model.backbone, "bottom_up") else {"backbone"}
        parts = {"backbone": getattr(model.backbone, "bottom_up", model.backbone), "backbone and FPN": model.backbone}
        for name, child in model.named_children():
            children = child.named_children() if name == "roi_heads" else [("", child)]
            parts.update({f"{name}.{inner}".strip("."): m for inner, m in children if name != "backbone" and any(True for _ in m.parameters())})
        parts["detector"] = model
    result: Dict[str, Dict[str, Any]] = {}
    for part, module in parts.items():
        count, with_affine = parameters(module)
        result[part] = {"parameters": count, "with_affine": with_affine}
        if part in networks:
            step = part == "backbone and FPN" and module.size_divisibility or 1
            height, width = (-(-side // step) * step for side in size)
            conv, everything = multiply_adds(module, (height, width))
            result[part].update(size=[height, width], gmacs_conv=conv / 1e9, gmacs_all=everything / 1e9)
            result[part]["activations"] = activations(module, (height, width))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        prog=program("analyze"), description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--backbone", metavar="NAME", help="of backbones.list_backbones()")
    what.add_argument("--config-file", metavar="FILE", help="a config's path or name")
    parser.add_argument("--size", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"), help="image size (default: 800 1344)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides, KEY VALUE each")
    args = parser.parse_args()
    if min(args.size) < 1:
        raise UserError(f"--size {args.size[0]} {args.size[1]}: both sides must be at least 1")
    if args.backbone and args.opts:
        raise UserError(f"overrides go with --config-file, not with --backbone: {' '.join(args.opts)}")
    result = analyze(args.backbone or args.config_file, bool(args.backbone), tuple(args.size), args.opts)
    if args.json:
        print(json.dumps({"size": list(args.size), "parts": result}, indent=1))
        return
    sizes = {part: v["size"] for part, v in result.items() if v.get("size", list(args.size)) != list(args.size)}
    rows = [
        (
            f"{part} at {sizes[part][0]}x{sizes[part][1]}" if part in sizes else part,
            f"{v['parameters']:,}",
            f"{v['with_affine']:,}",
            *(f"{v[k]:.2f}" if k in v else "" for k in ("gmacs_conv", "gmacs_all")),
            f"{v['activations'] / 1e6:.1f}" if "activations" in v else "",
        )
        for part, v in result.items()
    ]
    print(
        tabulate(
            rows,
            ("", "Param.", "with affine", f"GFLOPs {args.size[0]}x{args.size[1]}, conv", "all", "activations / 1e6"),
            "pipe",
            disable_numparse=True,
        )
    )


if __name__ == "__main__":
    run(main)
