"""DetNAS's five steps on handwritten digits, narrowed so that two CPU cores do them: supernet, search, and what it finds, trained."""

import argparse
import os
import subprocess
import sys
import time
from typing import List

import torch
from tqdm import tqdm

from ..config import check_output_dir
from ..data import digits
from ..errors import UserError
from . import plot, run


def steps(output: str, device: str, opts: List[str]) -> List[tuple]:
    """(what, command, folder) of each step."""
    folders = {name: os.path.join(output, name) for name in ("supernet_classes", "supernet", "search", "subnet_classes", "subnet")}
    final = {name: os.path.join(folder, "model_final.pth") for name, folder in folders.items()}
    subnet = ["MODEL.SHUFFLENETV2.SUBNET", os.path.join(folders["search"], "best_subnet.yaml")]

    def command(script: List[str], config: str, name: str, *more: str) -> List[str]:
        return [
            *script,
            "--config-file",
            f"digits/detnas_{config}_digits.yaml",
            "MODEL.DEVICE",
            device,
            *more,
            "OUTPUT_DIR",
            folders[name],
            *opts,
        ]

    train, search = ["-m", "backbones", "train", "--overwrite"], ["-m", "backbones", "search-paths"]
    return [
        ("the supernet as a classifier", command(train, "supernet_classes", "supernet_classes"), folders["supernet_classes"]),
        ("the supernet as a detector", command(train, "supernet", "supernet", "MODEL.WEIGHTS", final["supernet_classes"]), folders["supernet"]),
        ("the search", command(search, "supernet", "search", "MODEL.WEIGHTS", final["supernet"]), folders["search"]),
        ("what was found as a classifier", command(train, "subnet_classes", "subnet_classes", *subnet), folders["subnet_classes"]),
        ("and as a detector", command(train, "subnet", "subnet", *subnet, "MODEL.WEIGHTS", final["subnet_classes"]), folders["subnet"]),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backbones.tools.search_demo", description=__doc__)
    parser.add_argument("--output", default="output/detnas", metavar="DIR", help="where everything goes (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides of all steps, KEY VALUE each")
    args = parser.parse_args()
    check_output_dir(args.output, key="--output")
    if os.path.isfile(os.path.join(args.output, "search", "search.json")):
        raise UserError(f"a search is in {args.output!r} already: remove it, or take another --output")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"real handwriting, no download: {digits.generate('', lambda s: tqdm(s, desc='digits', unit='scene'))}", flush=True)
    begun = time.monotonic()
    every = steps(args.output, device, args.opts)
    for i, (what, command, folder) in enumerate(every, 1):
        print(f"\n{i}/{len(every)} {what}: {os.path.basename(sys.executable)} {' '.join(command)}", flush=True)
        start = time.monotonic()
        if i == 3:
            code = subprocess.call([sys.executable, *command])
        else:
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, "output.txt"), "w") as log:  # log.txt too; this is for what goes wrong before there is one
                code = subprocess.call([sys.executable, *command], stdout=log, stderr=subprocess.STDOUT)
        if code:
            raise UserError(f"step {i} ended with exit code {code}: see {os.path.join(folder, 'output.txt' if i != 3 else '')}")
        if i != 3:
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
