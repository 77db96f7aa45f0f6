"""Writes model_zoo.md from the data in backbones/zoo: published and measured figures as recorded, computed ones computed now."""

import argparse
import json
import os
from typing import List

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch.utils.flop_counter import FlopCounterMode

from .. import registry, zoo
from . import run
from .analyze import parameters

SIZE = (800, 1344)


def _data(name: str) -> dict:
    with open(os.path.join(os.path.dirname(zoo.__file__), name)) as f:
        return json.load(f)


def _on_meta(name: str):
    cfg = zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        return build_model(cfg)


def _table(rows: List[tuple], headers: tuple) -> str:
    return tabulate(rows, headers, "pipe", disable_numparse=True)


def conv_gmacs(network: torch.nn.Module, in_channels: int = 3) -> float:
    """Multiply-adds / 1e9 of a network's convolutions at SIZE, on the meta device: nothing is computed."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, in_channels, *SIZE, device="meta"))
    return counter.get_total_flops() / 2e9


def render() -> str:
    models, measured = _data("models.json"), _data("measured.json")
    about, backbone_rows, detector_rows = models["about"], [], []
    for name in registry.list_backbones():
        with torch.device("meta"):
            net = registry.create(name)
        count, affine = parameters(net)
        backbone_rows.append((name, f"{count / 1e6:.2f}", f"{affine / 1e6:.2f}", f"{conv_gmacs(net):.2f}"))
    for row in models["models"]:
        model = _on_meta(row["config"])
        ap = row["published_ap"]
        label = os.path.basename(row["config"])[: -len(".yaml")]
        detector_rows.append(
            (
                f"[{label}](configs/{row['config']})",
                *(ap.get(key, "") for key in ("box", "mask", "pq")),
                f"{parameters(model)[1] / 1e6:.1f}",
                f"{conv_gmacs(model.backbone):.1f}",
                f"[model]({row['checkpoint']}) \\| [metrics]({row['metrics']})",
            )
        )
    measured_rows = [
        (
            f"[{os.path.basename(r['config'])[:-5]}](configs/{r['config']})",
            r["data"],
            f"{r['ap']:.2f}",
            f"{r['minutes']:.1f}",
            r["machine"],
            r["seed"],
        )
        for r in measured["runs"]
    ]
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(r["command"] for r in measured["runs"]))
    return f"""# Model zoo

Written by `python -m backbones.tools.zoo_table`; do not edit. Each figure says whether it is *published*, *computed* or *measured here*.

## Backbones

*Computed.* Param.: millions of parameters; with affine: and of the weights of frozen norms, which detectron2 keeps as buffers. GFLOPs:
multiply-adds / 1e9 of the convolutions of the bare backbone on one image of {SIZE[0]}x{SIZE[1]}. `python -m backbones.tools.analyze` counts
any of them at any size.

{_table(backbone_rows, ("backbone", "Param.", "with affine", "GFLOPs"))}

## Detectors on COCO

AP and PQ: *published*: {about["published_ap"]}.
Param. (of the whole detector, with affine) and GFLOPs (of backbone and FPN, as above): *computed* here. The source's own tables count other
networks in their Param. columns: the ImageNet classifier for FPNLite, CenterMask for FPN.

Source: {about["source"]}. Licence of the weights: {about["licence"]}. They expect {about["preprocessing"]["format"]} images, mean
{", ".join(map(str, about["preprocessing"]["pixel_mean"]))}, standard deviation {", ".join(map(str, about["preprocessing"]["pixel_std"]))}, as the
configs say. Of the links: {about["availability"]}.

{_table(detector_rows, ("config", "box AP", "mask AP", "PQ", "Param.", "GFLOPs", "download"))}

## Digits

*Measured here*, by training from scratch with

{commands}

{_table(measured_rows, ("config", "data", "box AP", "minutes", "machine", "seed"))}
"""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backbones.tools.zoo_table", description=__doc__)
    parser.add_argument("--output", default="model_zoo.md", metavar="FILE", help="(default: %(default)s)")
    args = parser.parse_args()
    text = render()
    with open(args.output, "w") as f:
        f.write(text)
    print(args.output)


if __name__ == "__main__":
    run(main)
