"""Trains a detector from scratch on handwritten digits, evaluates it on unseen handwriting, and draws its predictions."""

import argparse
import os
import shlex
import subprocess
import sys
import time

import torch
from tabulate import tabulate

from ..errors import UserError
from . import parser_of, plot, program, run, visualize
from .digits import make

CONFIG = "quickstart/faster_rcnn_V_19_slim_dw_FPNLite_digits.yaml"


def main() -> None:
    parser = parser_of(program("quickstart"), __doc__)
    parser.add_argument("--output", default="output/quickstart", metavar="DIR", help="where everything goes (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides, KEY VALUE each")
    args = parser.parse_args()
    for key, instead in (
        ("OUTPUT_DIR", "give --output"),
        ("DATASETS.TEST", "its figures are those of digits_val; for other data, backbones train"),
    ):
        if key in args.opts[::2]:
            raise UserError(f"the quickstart sets {key} itself: {instead}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"1/3 real handwriting, no download: {make()}", flush=True)

    flags = ["--config-file", CONFIG, "MODEL.DEVICE", device, "OUTPUT_DIR", args.output, *args.opts]
    command = ["-m", "backbones", "train", "--overwrite", *flags]
    print(f"2/3 training from scratch on {device}: {os.path.basename(sys.executable)} {' '.join(command)}", flush=True)
    start = time.monotonic()
    code = subprocess.call([sys.executable, *command])
    if code:
        sys.exit(code)
    minutes = (time.monotonic() - start) / 60

    print("3/3 drawing", flush=True)
    detections, curve = (os.path.join(args.output, name) for name in ("detections.png", "training.png"))
    visualize.draw(os.path.join(args.output, "inference", "coco_instances_results.json"), "digits_val", detections)
    plot.plot(args.output, curve)
    final = plot.read_metrics(args.output)[-1]
    names = ("AP", "AP50", "AP75", "APs", "APm")
    weights = os.path.join(args.output, "model_final.pth")
    here = os.path.relpath(sys.executable) if sys.executable.startswith(os.getcwd()) else sys.executable
    print(f"""
Trained and evaluated in {minutes:.1f} minutes. On digits_val, whose handwriting was never trained on:

{tabulate([[final[f"bbox/{name}"] for name in names]], names, "pipe", floatfmt=".2f")}

  {detections}  the detections beside the ground truth
  {curve}    the training curve
  {weights}  the weights
  {os.path.join(args.output, "log.txt")}, metrics.json, config.yaml, inference/  everything about the run

Next:
  evaluate again, with the same figures
    {here} -m backbones train --config-file {CONFIG} --eval-only {shlex.join(["MODEL.WEIGHTS", weights, "MODEL.DEVICE", device, *args.opts])}
  the same with masks
    {here} -m backbones train --config-file {CONFIG} MODEL.DEVICE {device} MODEL.MASK_ON True OUTPUT_DIR output/masks
  COCO on 8 GPUs, once the data is under datasets/coco
    {here} -m backbones train --config-file faster_rcnn_V_39_FPN_3x.yaml --num-gpus 8
  your own data in COCO's format, all networks, everything else
    README.md""")


if __name__ == "__main__":
    run(main)
