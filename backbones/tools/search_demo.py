"""Runs DetNAS's five steps on handwritten digits, small enough for two CPU cores: supernet, search, training of the result."""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from typing import Iterator

import torch

from ..config import check_output_dir
from ..errors import UserError
from . import parser_of, plot, program, run
from .digits import make


def steps(output: str, device: str, opts: list[str]) -> Iterator[tuple[str, list[str], str]]:
    """(what, command, folder) of each step."""

    def weights(name: str) -> list[str]:
        return ["MODEL.WEIGHTS", os.path.join(output, name, "model_final.pth")]

    subnet = ["MODEL.SHUFFLENETV2.SUBNET", os.path.join(output, "search", "best_subnet.yaml")]
    for what, folder, config, more in (
        ("the supernet as a classifier", "supernet_classes", "supernet_classes", []),
        ("the supernet as a detector", "supernet", "supernet", weights("supernet_classes")),
        ("the search", "search", "supernet", weights("supernet")),
        ("the found network as a classifier", "subnet_classes", "subnet_classes", subnet),
        ("the found network as a detector", "subnet", "subnet", [*subnet, *weights("subnet_classes")]),
    ):
        verb, where = ["search-paths"] if folder == "search" else ["train", "--overwrite"], os.path.join(output, folder)
        flags = ["--config-file", f"digits/detnas_{config}_digits.yaml", "MODEL.DEVICE", device, *more, "OUTPUT_DIR", where, *opts]
        yield what, ["-m", "backbones", *verb, *flags], where


def main() -> None:
    parser = parser_of(program("search_demo"), __doc__)
    parser.add_argument("--output", default="output/detnas", metavar="DIR", help="where everything goes (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides of all steps, KEY VALUE each")
    args = parser.parse_args()
    check_output_dir(args.output, key="--output")
    if os.path.isfile(os.path.join(args.output, "search", "search.json")):
        raise UserError(f"{args.output!r} already holds a search: remove it, or name another --output")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"real handwriting, no download: {make()}", flush=True)
    begun = time.monotonic()
    every = list(steps(args.output, device, args.opts))
    for i, (what, command, folder) in enumerate(every, 1):
        print(f"\n{i}/{len(every)} {what}: {os.path.basename(sys.executable)} {' '.join(command)}", flush=True)
        start = time.monotonic()
        said = "" if folder.endswith("search") else os.path.join(folder, "output.txt")  # for failures before there is a log.txt
        os.makedirs(folder, exist_ok=True)
        with open(said, "w") if said else contextlib.nullcontext() as log:
            code = subprocess.call([sys.executable, *command], stdout=log, stderr=log)
        if code:
            raise UserError(f"step {i} ended with exit code {code}: see {said or folder}")
        if said:
            final = plot.read_metrics(folder)[-1]
            figures = ", ".join(f"{key} {final[key]:.2f}" for key in ("classification/top1", "bbox/AP", "bbox/AP50") if key in final)
            print(f"{(time.monotonic() - start) / 60:.1f} minutes: {figures}", flush=True)
    print(f"""
All five steps in {(time.monotonic() - begun) / 60:.1f} minutes.

  {os.path.join(args.output, "search", "search.png")}  the search: score by generation, and against cost
  {os.path.join(args.output, "search", "path.png")}    the path it found
  {os.path.join(args.output, "subnet", "model_final.pth")}  the found network, trained
""")


if __name__ == "__main__":
    run(main)
