"""Works out a config from your data, this machine and your time; every line of it states its reason.

backbones recipe --train photos --val-split 0.2 --minutes 60 --output photos.yaml
backbones train --config-file photos.yaml

`backbones train --auto --train photos --val-split 0.2` does both.
"""

import argparse
import contextlib
import os
import re
import shlex
import sys

import torch

from ..config import READING, add_data_arguments, check_device, check_output_file
from ..data.formats import unused
from ..engine import YamlFront
from ..errors import UserError
from ..files import is_stream, write_whole
from . import parser_of, program, run

MINUTES = 60.0  # of a training, if nothing says its length


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that a recipe depends on, besides the data."""
    group = parser.add_argument_group("what a recipe depends on")
    text = "what to learn (default: by the annotations)"
    named = {"bbox": "boxes", "segm": "masks"}  # as evaluations name it
    group.add_argument(
        "--task", default="auto", type=lambda text: named.get(text, text), choices=("auto", "boxes", "masks", "keypoints"), help=text
    )
    text = "time for the training: minutes, or a time such as 2h, 90m or 1h30m (default: %(default)g)"
    group.add_argument("--minutes", type=_minutes, default=MINUTES, metavar="TIME", help=text)
    group.add_argument("--iterations", type=int, metavar="N", help="length of the training, instead of --minutes")
    text = "longest time for inference on one image on this device, such as 30ms"
    group.add_argument("--latency", type=_seconds, default=0.0, metavar="MS", help=text)
    group.add_argument("--from-scratch", action="store_true", help="start from random weights even if pretrained ones are available")


def recipe_flags(args: argparse.Namespace) -> list[str]:
    """Which flags of `add_recipe_arguments` have other values than by default."""
    plain = argparse.ArgumentParser()
    add_recipe_arguments(plain)
    return ["--" + name.replace("_", "-") for name, value in vars(plain.parse_args([])).items() if getattr(args, name) != value]


def _minutes(text: str) -> float:
    with contextlib.suppress(ValueError):
        return float(text)
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}\s*h)?\s*(?:{number}\s*(?:m|min)?)?", text.strip())
    if not match or not any(match.groups()):
        raise argparse.ArgumentTypeError(f"{text!r}: must be minutes such as 30, or a time such as 90m, 2h or 1h30m")
    return 60 * float(match[1] or 0) + float(match[2] or 0)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s)?", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r}: must be a time such as 30ms")
    return float(match[1]) * (1 if match[2] == "s" else 0.001)


def design(args: argparse.Namespace, output: str, say=print) -> YamlFront:
    """Works out a recipe, writes it to ``output`` and returns it. Raises UserError."""
    from ..recipe.design import Design
    from ..recipe.writing import beside_3x, text

    if not args.train_json:
        raise UserError("--train is missing: a recipe needs the data to train on", "missing-argument", "--train")
    if args.iterations is not None and args.minutes != MINUTES:
        raise UserError("give --iterations or --minutes, not both", "conflict", "--minutes")
    for flag, value in (("--minutes", args.minutes), ("--iterations", args.iterations)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{flag} {value:g}: it must be positive", "value", flag)
    work = Design(args, say)
    work.run()
    lines = list(beside_3x(work.cfg))
    for line in lines:
        say(line)
    head = [
        f"Worked out by `backbones recipe`; train with:\n  {_command(args, output)}\nEach line states its reason. Change what you like.",
        *lines,
    ]
    write_whole(output, text(work.cfg, work.choices, "\n".join(head)))
    for line in (work.expected, *work.warnings):
        say(line)
    return YamlFront(work.cfg)


def _command(args: argparse.Namespace, output: str) -> str:
    return f"backbones train --config-file {shlex.quote(output)}" + (f" --num-gpus {args.gpus}" if args.gpus > 1 else "")


def argument_parser() -> argparse.ArgumentParser:
    parser = parser_of(program("recipe"), __doc__)
    add_data_arguments(parser)
    add_recipe_arguments(parser)
    parser.add_argument(
        "--num-gpus", "--gpus", type=int, default=1, dest="gpus", metavar="N", help="how many GPUs will train (default: %(default)s)"
    )
    parser.add_argument("--device", default="", help="device that will train (default: a GPU if there is one)")
    parser.add_argument("--output", required=True, metavar="FILE", help="the config to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --output names")
    text = f"how the data are read, KEY VALUE each: {', '.join(READING)}"
    parser.add_argument("opts", nargs=argparse.REMAINDER, help=text)
    return parser


def device_of(asked: str) -> str:
    """The device that was asked for, or a GPU if torch sees one. It says so if it takes the CPU."""
    if not asked and not torch.cuda.is_available():
        print("torch sees no GPU: the recipe is for the CPU. If there is a GPU, its driver may be too old for this torch", flush=True)
    return asked or ("cuda" if torch.cuda.is_available() else "cpu")


def _elsewhere(args: argparse.Namespace) -> None:
    """Prepares a recipe for GPUs of another machine. Raises UserError for flags that must be measured there."""
    for flag, value, wanted in (
        ("--minutes", args.iterations is None, "--iterations says the length"),
        ("--latency", args.latency, "leave it out"),
    ):
        if value:
            raise UserError(f"{flag} with --num-gpus {args.gpus}: this machine has no GPU to measure on; {wanted}", "device", flag)
    args.device = "cuda"
    print(f"this machine has no GPU: the recipe is for {args.gpus} of another machine, and nothing is measured")


def main() -> None:
    args = argument_parser().parse_args()
    other = next((key for key in args.opts[::2] if key not in READING), None)
    if other:
        raise UserError(f"{other}: the recipe chooses it. Only keys of how data are read may follow: {', '.join(READING)}", "conflict", other)
    if args.gpus < 1:
        raise UserError(f"--num-gpus {args.gpus}: it must be at least 1", "value", "--num-gpus")
    if args.gpus > 1 and not args.device and not torch.cuda.is_available():
        _elsewhere(args)
    else:
        args.device = device_of(args.device)
        check_device(args.device, "--device")
    check_output_file(args.output, "--output")
    if not args.overwrite and os.path.isfile(args.output) and not is_stream(args.output):  # its user may have changed it, as it invites to
        raise UserError(f"{args.output!r} exists: name another file, or add --overwrite", "conflict", "--output")
    args.output_dir = os.path.join("output", os.path.splitext(os.path.basename(args.output))[0])
    with contextlib.redirect_stdout(sys.stderr) if is_stream(args.output) else contextlib.nullcontext():
        front = design(args, args.output)
        for line in unused(args.train_json, args.train_images, args.val_json, front.evaluation_of("test")):
            print(line)
        print(f"{args.output}: train with `{_command(args, args.output)}`")


if __name__ == "__main__":
    run(main)
