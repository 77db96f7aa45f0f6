"""Trains detectors from scratch on digits, one after another, and records what they reach: the figures of model_zoo.md.

Each run goes to OUTPUT/<config>; its AP, AP50, minutes, machine and seed replace that config's row of the same machine and seed in the JSON file.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from typing import Dict, List

import torch

from .. import zoo
from ..config import merge_overrides
from ..errors import UserError
from ..files import write_whole
from ..registry import family_of
from . import plot, run


def machine() -> str:
    """What the figures depend on, in words: processor or GPU, Python, torch."""
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    else:
        try:
            with open("/proc/cpuinfo") as f:
                model = next(line.partition(":")[2].strip() for line in f if line.startswith("model name"))
        except (OSError, StopIteration):
            model = platform.machine()
        where = f"{torch.get_num_threads()} CPU cores ({model})"
    return f"{where}, Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"


# what the metrics of training call the figures of a row
_FIGURES = {
    "ap": "bbox/AP",
    "ap50": "bbox/AP50",
    "mask_ap": "segm/AP",
    "keypoint_ap": "keypoints/AP",
    "pq": "panoptic_seg/PQ",
    "miou": "sem_seg/mIoU",
}


def train(config: str, output: str, opts: List[str], backbone: str = "") -> Dict[str, object]:
    """Trains one config with the command that a user would give, and returns its row."""
    train_net = os.path.join(os.path.dirname(zoo.config_root()), "train_net.py")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    overrides = ["MODEL.DEVICE", device, "OUTPUT_DIR", output, *opts]
    cfg = zoo.get_config(config)
    merge_overrides(cfg, overrides)
    metrics = os.path.join(output, "metrics.json")
    if os.path.isfile(metrics):
        os.remove(metrics)  # training appends, and these figures are to be of this run
    start = time.monotonic()
    other = ["--backbone", backbone] if backbone else []
    code = subprocess.call([sys.executable, train_net, "--config-file", zoo.get_config_file(config), *other, *overrides])
    if code:
        raise UserError(f"training {config} ended with exit code {code}: see {os.path.join(output, 'log.txt')}")
    minutes = (time.monotonic() - start) / 60
    final = plot.read_metrics(output)[-1]
    plot.plot(output, os.path.join(output, "training.png"))
    figures = {name: round(final[metric], 4) for name, metric in _FIGURES.items() if metric in final}
    asked = "".join(f" {item}" for item in (*(("--backbone", backbone) if backbone else ()), *(("--opts", *opts) if opts else ())))
    return {
        "config": os.path.relpath(zoo.get_config_file(config), zoo.config_root()),
        **({"backbone": backbone} if backbone else {}),
        "data": cfg.DATASETS.TEST[0],
        **figures,
        "iterations": cfg.SOLVER.MAX_ITER,
        "minutes": round(minutes, 1),
        "machine": machine(),
        "seed": cfg.SEED,
        "command": f"python -m backbones.tools.benchmark {config}{asked}",
    }


def record(row: Dict[str, object], path: str) -> None:
    """Puts the row into the file, in the place of one of the same config, backbone, machine and seed."""
    runs = []
    if os.path.isfile(path):
        with open(path) as f:
            runs = json.load(f)["runs"]
    same = [i for i, old in enumerate(runs) if all(old.get(key) == row.get(key) for key in ("config", "backbone", "machine", "seed"))]
    if same:
        runs[same[0]] = row
    else:
        runs.append(row)
    write_whole(path, json.dumps({"runs": runs}, indent=1) + "\n")


def main() -> None:
    default = sorted(name for name in zoo.list_configs() if name.startswith("quickstart/"))
    parser = argparse.ArgumentParser(
        prog="python -m backbones.tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("configs", nargs="*", default=default, metavar="CONFIG", help=f"(default: {', '.join(default)})")
    parser.add_argument("--backbone", nargs="+", default=[""], metavar="NAME", help="train each config with each of these networks in it")
    parser.add_argument("--output", default="output/benchmark", metavar="DIR", help="where the runs go (default: %(default)s)")
    parser.add_argument(
        "--json",
        default=os.path.join(os.path.dirname(zoo.__file__), "measured.json"),
        metavar="FILE",
        help="where the rows go (default: %(default)s)",
    )
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides, KEY VALUE each")
    args = parser.parse_args()
    for config in args.configs:
        zoo.get_config_file(config)  # mistakes before the first run, not after
    for name in filter(None, args.backbone):
        family_of(name)
    for config in args.configs:
        for backbone in args.backbone:
            folder = os.path.splitext(os.path.basename(zoo.get_config_file(config)))[0] + (f"_{backbone}" if backbone else "")
            row = train(config, os.path.join(args.output, folder), args.opts, backbone)
            record(row, args.json)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run(main)
