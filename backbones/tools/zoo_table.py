"""Writes model_zoo.md from the data in backbones/zoo: published and measured figures as recorded, computed ones computed now."""

import argparse
import json
import math
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
    """Multiply-adds / 1e9 of a network's convolutions, deformable ones too, at SIZE, on the meta device: nothing is computed."""
    with FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_flops}) as counter:
        network.eval()(torch.empty(1, in_channels, *SIZE, device="meta"))
    return counter.get_total_flops() / 2e9


def _deform_flops(x, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


def render() -> str:
    sections = [_section(key, source) for key, source in _data("models.json")["sources"].items()]
    return "\n".join([_HEAD, _backbones(), "## Detectors on COCO\n", *sections, _configs_without_figures(), _measured()])


_HEAD = """# Model zoo

Written by `python -m backbones.tools.zoo_table`; do not edit. Each figure says whether it is *published*, *computed* or *measured here*.
"""


def _backbones() -> str:
    weights, rows = _data("weights.json"), []
    for name in registry.list_backbones():
        with torch.device("meta"):
            net = registry.create(name)
        count, affine = parameters(net)
        error = weights["weights"].get(name, {}).get("top1_error")
        rows.append((name, f"{count / 1e6:.2f}", f"{affine / 1e6:.2f}", f"{conv_gmacs(net):.2f}", f"{error:.1f}" if error else ""))
    about = weights["sources"]["pycls"]
    return f"""## Backbones

*Computed.* Param.: millions of parameters; with affine: and of the weights of frozen norms, which detectron2 keeps as buffers. GFLOPs:
multiply-adds / 1e9 of the convolutions of the bare backbone on one image of {SIZE[0]}x{SIZE[1]}. `python -m backbones.tools.analyze` counts
any of them at any size. Error: top-1 on ImageNet, %, *published*: {about["title"]}; those weights ({about["licence"]}) are what
`MODEL.WEIGHTS backbones://<name>` downloads, unless a converted file of that name lies in `weights/`.

{_table(rows, ("backbone", "Param.", "with affine", "GFLOPs", "error"))}
"""


def _section(key: str, source: dict) -> str:
    rows = [row for row in _data("models.json")["models"] if row["source"] == key]
    linked = any("checkpoint" in row for row in rows)
    table = []
    for row in rows:
        model = _on_meta(row["config"])
        ap = row["published_ap"]
        last = (f"[model]({row['checkpoint']}) \\| [metrics]({row['metrics']})",) if linked else (row["row"], row.get("note", ""))
        cost = (f"{parameters(model)[1] / 1e6:.1f}", f"{conv_gmacs(model.backbone):.1f}")
        table.append((_link(row["config"]), *(ap.get(kind, "") for kind in ("box", "mask", "pq")), *cost, *last))
    images = source["preprocessing"]
    headers = ("config", "box AP", "mask AP", "PQ", "Param.", "GFLOPs", *(("download",) if linked else ("row there", "remark")))
    return f"""### {source["title"]}

AP and PQ: *published*: {source["published_ap"]}. Param. (of the whole detector, with affine) and GFLOPs (of backbone and FPN, as above):
*computed* here.{" " + source["remark"] if "remark" in source else ""}

Source: [{key}]({source["url"]}), {source["version"]}. Licence of the weights: {source["licence"]}. They expect {images["format"]} images, mean
{", ".join(map(str, images["pixel_mean"]))}, standard deviation {", ".join(map(str, images["pixel_std"]))}, as the configs say.
Of the files: {source["availability"]}.

{_table(table, headers)}
"""


def _configs_without_figures() -> str:
    rows = [row for row in _data("models.json")["models"] if row["source"] is None]
    table = []
    for row in rows:
        model = _on_meta(row["config"])
        table.append((_link(row["config"]), f"{parameters(model)[1] / 1e6:.1f}", f"{conv_gmacs(model.backbone):.1f}"))
    return f"""### Configs nobody has published figures of

By the same recipes; costs *computed* as above.

{_table(table, ("config", "Param.", "GFLOPs"))}
"""


def _measured() -> str:
    runs = _data("measured.json")["runs"]
    rows = [
        (
            _link(r["config"]),
            f"{r['ap']:.2f}",
            f"{r['ap50']:.2f}" if "ap50" in r else "",
            f"{r['mask_ap']:.2f}" if "mask_ap" in r else "",
            r["iterations"],
            f"{r['minutes']:.1f}",
            r["machine"],
            r["seed"],
        )
        for r in runs
    ]
    commands = "\n".join(f"    {command}" for command in dict.fromkeys(r["command"] for r in runs))
    return f"""## Digits

*Measured here* on digits_val, by training from scratch with

{commands}

{_table(rows, ("config", "box AP", "AP50", "mask AP", "iterations", "minutes", "machine", "seed"))}
"""


def _link(config: str) -> str:
    return f"[{os.path.basename(config)[: -len('.yaml')]}](configs/{config})"


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
