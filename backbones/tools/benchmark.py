"""Measures speed in pairs, or the accuracy of detectors on digits: the figures in model_zoo.md.

backbones benchmark --suite inference training data evaluation --json speed.json
backbones benchmark --suite deploy --json speed.json --plot latency.png
backbones benchmark quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml

With --suite, the things compared run in turn. Each row has the median, lowest and highest ratio of the rounds, the machine, its threads
and the versions; rows of the same machine and threads are replaced. Run nothing else meanwhile.

Without --suite, each config is trained from scratch on digits. Its run goes to OUTPUT/<config>; its AP, AP50, minutes, machine and seed
replace that config's row of the same machine and seed.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Mapping, Sequence

import numpy as np
import torch
from iopath.common.file_io import file_lock

from .. import zoo
from ..benchmark import speed
from ..benchmark.tables import FIGURES
from ..config import check_device, check_output_file
from ..engine import open_config
from ..errors import UserError
from ..files import write_whole
from ..registry import family_of
from ..timing import processor
from . import check_needed, parser_of, picture, plot, program, run

# suite -> the module that measures it
SUITES = {
    **{name: f"benchmark.{name}" for name in ("inference", "deploy", "training", "data", "evaluation")},
    "budgets": "search.budgets",
    "gpu": "benchmark.gpu",
}


def machine() -> str:
    """Describes what the figures depend on: processor or GPU, Python, torch."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU cores ({processor()})"
    return f"{where}, Python {platform.python_version()}, torch {torch.__version__.partition('+')[0]}"


def train(config: str, output: str, opts: list[str], backbone: str = "", data: Sequence[str] = (), log: str = "") -> dict[str, object]:
    """Trains one config with the command that a user would type, and returns its row.

    Args:
        data: flags that name data.
        log: a file for what the command prints; "": it is printed.
    """
    front = open_config(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    given = (("MODEL.DEVICE", device), ("OUTPUT_DIR", output))
    own = [part for key, value in given for part in shlex.split(front.override(key, value))]
    overrides = [*own, *opts]
    settings = open_config(config, overrides).settings
    other = ["--backbone", backbone] if backbone else []
    start = time.monotonic()
    command = [sys.executable, "-m", "backbones", "train", "--overwrite", "--config-file", front.path, *other, *data, *overrides]
    with open(log, "w") if log else contextlib.nullcontext() as said:
        code = subprocess.call(command, stdout=said, stderr=said)
    if code:
        raise UserError(f"training {config} ended with exit code {code}: see {log or os.path.join(output, 'log.txt')}")
    minutes = (time.monotonic() - start) / 60
    final = plot.read_metrics(output)[-1]
    plot.plot(output, os.path.join(output, "training.png"))
    there = {name: final[metric] for name, (_, metric) in FIGURES.items() if metric in final}
    figures = {name: round(float(np.nan_to_num(value)), 4) for name, value in there.items()}  # NaN: nothing was found
    return {
        "config": os.path.relpath(front.path, zoo.config_root()),
        **({"backbone": backbone} if backbone else {}),
        "data": "own_val" if data else settings.DATASETS.TEST[0],
        **figures,
        "iterations": settings.SOLVER.MAX_ITER,
        "minutes": round(minutes, 1),
        "machine": machine(),
        "seed": settings.SEED,
        "command": " ".join(["backbones benchmark", config, *other, *(("--opts", *opts) if opts else ())]),
    }


def words(options: Mapping[str, object]) -> list[str]:
    """Overrides of a command line."""
    return [str(part) for pair in options.items() for part in pair]


def record(row: dict[str, object], path: str, keys: Sequence[str] = ("config", "backbone", "machine", "seed")) -> None:
    """Writes the row to the file; it replaces a row with equal ``keys``."""
    own = hashlib.sha256(f"{getattr(os, 'getuid', int)()} {os.path.realpath(path)}".encode()).hexdigest()[:16]
    with file_lock(os.path.join(tempfile.gettempdir(), f"backbones-{own}")):  # two processes may write to one file
        runs = speed.read(path) if os.path.isfile(path) else []
        place = next((i for i, old in enumerate(runs) if all(old.get(key) == row.get(key) for key in keys)), len(runs))
        runs[place : place + 1] = [row]
        write_whole(path, json.dumps({"runs": runs}, indent=1) + "\n")


def measure(args: argparse.Namespace) -> None:
    """Runs the suites and writes their rows to the file, one by one."""
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(device, key="--device")
    if args.pairs < 3:
        raise UserError(f"--pairs {args.pairs}: it must be at least 3, because a median is reported")
    if args.plot:
        picture(args.plot, flag="--plot")
        before = speed.read(args.json) if os.path.isfile(args.json) else []
        speed.by_place(before)
        if "deploy" not in args.suite and not speed.deployed(before):
            said = f"--plot {args.plot!r} needs rows of --suite deploy, but {args.json!r} has none: measure them too"
            raise UserError(said, "missing-argument", "--plot")
    where = ""
    for name in args.suite:
        suite = importlib.import_module(f"..{SUITES[name]}", __package__).suite
        for row in suite(args.pairs, device, *([args.num] if name == "data" else [])):
            record(row, args.json, ("name", "machine", "threads"))
            where = row["machine"]
            if "median" in row:
                ratio = f"{row['median']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
                print(f"{row['name']}: {ratio} {row['unit']}, {row['pairs']} pairs", flush=True)
            elif "milliseconds" in row:
                print(f"{row['name']}: {', '.join(f'{key} {ms:.1f}' for key, ms in row['milliseconds'].items())} ms", flush=True)
    if args.plot:
        speed.plot(args.json, args.plot, where)
        print(args.plot)


def folders_of(configs: Sequence[str]) -> dict[str, str]:
    """The folder of each config's run: the name of its file; of files of one name, with its ending and the folders in which they differ."""
    paths = {config: os.path.abspath(zoo.get_config_file(config)) for config in configs}
    alike: dict[str, list[str]] = {}
    for config, path in paths.items():
        alike.setdefault(os.path.splitext(os.path.basename(path))[0], []).append(config)
    found = {}
    for name, some in alike.items():
        root = os.path.commonpath([os.path.dirname(paths[config]) for config in some])
        for config in some:
            found[config] = name if len(some) == 1 else os.path.relpath(paths[config], root).replace(os.sep, "_")
    return {config: found[config] for config in configs}


def main() -> None:
    default = sorted(name for name in zoo.list_configs() if name.startswith("quickstart/"))
    parser = parser_of(program("benchmark"), __doc__)
    parser.add_argument("configs", nargs="*", default=default, metavar="CONFIG", help=f"(default: {', '.join(default)})")
    parser.add_argument("--backbone", nargs="+", default=[""], metavar="NAME", help="train each config with each of these networks")
    parser.add_argument("--output", default="output/benchmark", metavar="DIR", help="where the runs go (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="where the rows go (default: measured.json, with --suite speed.json, of backbones/zoo)")
    parser.add_argument("--suite", nargs="+", default=[], choices=SUITES, help="measure speed instead of training configs")
    parser.add_argument("--pairs", type=int, default=9, help="rounds of --suite (default: %(default)s)")
    parser.add_argument(
        "--num",
        "--images",
        type=int,
        default=5000,
        metavar="N",
        help="number of images in the annotation file that --suite data reads; COCO has 118287 (default: %(default)s)",
    )
    parser.add_argument("--device", default="", help="device for --suite (default: a GPU if there is one)")
    parser.add_argument("--plot", default="", metavar="FILE", help="with --suite deploy: plot published AP against latency")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE each, or key=value of Python configs")
    args = parser.parse_args()
    args.json = args.json or os.path.join(os.path.dirname(zoo.__file__), "speed.json" if args.suite else "measured.json")
    check_output_file(args.json, "--json")
    if os.path.isfile(args.json):
        speed.read(args.json)
    check_needed(parser, args, ("device", "pairs", "num", "plot"), "--suite", args.suite)
    if args.suite:
        check_needed(parser, args, ("num",), "--suite data", "data" in args.suite)
        for name in ("configs", "backbone", "output", "opts"):
            if getattr(args, name) != parser.get_default(name):
                raise UserError(f"--suite measures speed and trains no config: it cannot be combined with {name}", "conflict", "--suite")
        measure(args)
        return
    # report mistakes before the first run, not after
    keys = [part.partition("=")[0] for part in args.opts if "=" in part] or args.opts[::2]
    for key in {"OUTPUT_DIR", "train.output_dir"} & {*keys}:
        raise UserError(f"--opts cannot set {key}: --output says where the runs go", "conflict", "--opts")
    names = folders_of(args.configs)
    for backbone in filter(None, args.backbone):
        family_of(backbone)
    for config in names:
        if len(tested := list(open_config(config, args.opts).settings.DATASETS.TEST)) != 1:
            raise UserError(f"{config}: a row is of one data set, but DATASETS.TEST names {tested}", "value", "--opts")
    for config, name in names.items():
        for backbone in args.backbone:
            folder = f"{name}_{backbone}" if backbone else name
            row = train(config, os.path.join(args.output, folder), args.opts, backbone)
            record(row, args.json)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run(main)
