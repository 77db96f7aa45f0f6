"""Runs DetNAS's search on crowded scenes of handwritten digits, small enough for two CPU cores: supernet, search, training of the result.

With --proof N, step 3 trains the found path and N random ones of its cost alike, each from its weights in the supernet.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Iterator

import torch

from .. import zoo
from ..benchmark import tables
from ..config import check_output_dir
from ..documents import read_json, reading
from ..errors import UserError
from ..files import write_whole
from ..search.rank_correlation import ahead, check_comparison, compared
from . import parser_of, plot, program, run
from .digits import make

SUPERNET, SUBNET = "crowd/detnas_demo_supernet_crowd.yaml", "crowd/detnas_demo_subnet_crowd.yaml"
RESULTS = ("model_final.pth", "best_subnet.pth")  # of a training, of the search: each is written last
SPEAK = ("search", "comparison")  # folders of the steps that print progress; the output of a training goes to a file


def steps(args: argparse.Namespace, device: str) -> Iterator[tuple[str, list[str], str]]:
    """(what, command, folder) of each step."""

    def step(what: str, folder: str, verb: list[str], config: str, more: list[str]) -> tuple[str, list[str], str]:
        where = os.path.join(args.output, folder)
        return what, ["-m", *verb, "--config-file", config, *more, "MODEL.DEVICE", device, "OUTPUT_DIR", where, *args.opts], where

    def training(what: str, folder: str, config: str, more: list[str]) -> tuple[str, list[str], str]:
        return step(what, folder, ["backbones", "train", "--overwrite"], config, [*more, "SEED", str(args.seed)])

    found, supernet = (os.path.join(args.output, *names) for names in (("search", "best_subnet.yaml"), ("supernet", "model_final.pth")))
    weights = ["MODEL.WEIGHTS", supernet]
    yield training("the supernet", "supernet", SUPERNET, [])
    search = ["backbones", "search-paths", "--resume", "--seed", str(args.seed)]
    if device == "cpu" and (cores := min(os.cpu_count() or 1, 4)) > 1:
        search += ["--num-gpus", str(cores)]  # processes, of which each evaluates its own paths: the result is the same
    yield step("the search", "search", search, SUPERNET, weights)
    if args.proof:
        verb = ["backbones.search.rank_correlation", "--subnet", found, "--train", SUBNET, "--inherit"]
        verb += ["--paths", str(args.proof), "--seed", str(args.seed), "--json", args.json]
        verb += ["--train-opts", *args.opts] if args.opts else []
        yield step("the found network and random ones", "comparison", verb, SUPERNET, weights)
        return
    yield training("the found network", "subnet", SUBNET, ["MODEL.SHUFFLENETV2.SUBNET", found, *weights])


def begin(args: argparse.Namespace) -> None:
    """Writes into the folder what it is for. Raises UserError if it is for something else."""
    settings = [zoo.digest(config) for config in (SUPERNET, SUBNET)]
    about, path = {"seed": args.seed, "opts": args.opts, "settings": settings}, os.path.join(args.output, "demo.json")
    with reading(f"--output {args.output!r} holds a demo.json that no search_demo wrote"):
        before = read_json(path) if os.path.isfile(path) else about
    if before != about or not os.path.isfile(path) and os.path.isdir(args.output) and os.listdir(args.output):
        said = f"--output {args.output!r} holds another run: remove it, or name another folder"
        raise UserError(said, "folder-in-use", "--output")
    os.makedirs(args.output, exist_ok=True)
    write_whole(path, json.dumps(about) + "\n")


def main() -> None:
    parser = parser_of(program("search_demo"), __doc__)
    parser.add_argument("--output", default="output/search_demo", metavar="DIR", help="where everything goes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of all steps (default: %(default)s)")
    parser.add_argument("--proof", type=int, default=0, metavar="N", help="compare the found path with N random ones, 2 or more")
    parser.add_argument("--json", default="", metavar="FILE", help="with --proof: where the comparison goes (default: proof.json in --output)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides of all steps, KEY VALUE each")
    args = parser.parse_args()
    if args.json and not args.proof:
        raise UserError("--json is for the comparison: it needs --proof", "missing-argument", "--json")
    for key, why in (
        ("SEED", "give --seed"),
        ("OUTPUT_DIR", "give --output"),
        ("MODEL.WEIGHTS", "the supernet starts from random weights, and the other steps from the supernet's"),
    ):
        if key in args.opts[::2]:
            raise UserError(f"{key} cannot be set for all steps: {why}", "conflict", key)
    check_output_dir(args.output, key="--output")
    if args.proof:
        args.json = args.json or os.path.join(args.output, "proof.json")
        check_comparison(args.proof, args.json)
    begin(args)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"real handwriting, no download: {make(which='digits_crowd')}", flush=True)
    begun = time.monotonic()
    every = list(steps(args, device))
    for i, (what, command, folder) in enumerate(every, 1):
        if any(os.path.isfile(os.path.join(folder, name)) for name in RESULTS):
            print(f"{i}/{len(every)} {what}: done before, in {folder}", flush=True)
            continue
        print(f"\n{i}/{len(every)} {what}: {os.path.basename(sys.executable)} {' '.join(command)}", flush=True)
        start = time.monotonic()
        said = "" if os.path.basename(folder) in SPEAK else os.path.join(folder, "output.txt")  # for failures before there is a log.txt
        os.makedirs(folder, exist_ok=True)
        with open(said, "w") if said else contextlib.nullcontext() as log:
            code = subprocess.call([sys.executable, *command], stdout=log, stderr=log)
        if code:
            raise UserError(f"step {i} ended with exit code {code}: see {said or folder}. Start it again, and it goes on with this step")
        if said:
            final = plot.read_metrics(folder)[-1]
            figures = ", ".join(f"{key} {final[key]:.2f}" for key in ("bbox/AP", "bbox/AP50") if key in final)
            print(f"{(time.monotonic() - start) / 60:.1f} minutes: {figures}", flush=True)
    print(f"""
All {len(every)} steps in {(time.monotonic() - begun) / 60:.1f} minutes.

  {os.path.join(args.output, "search", "search.png")}  the search: score by generation, and against cost
  {os.path.join(args.output, "search", "path.png")}    the path it found""")
    if args.proof:
        return
    print(f"  {os.path.join(args.output, 'subnet', 'model_final.pth')}  the found network, trained\n")
    rows = [row for row in compared(tables.path("one_shot.json")) if row["config"] == SUBNET]
    print("Is a found path better than chance? Each was trained from its weights in the supernet, beside random paths of its cost:")
    print(f"it beat their mean in {ahead(rows)} of {len(rows)} seeds. --proof 4 compares them again.")


if __name__ == "__main__":
    run(main)
