"""Checks before a training for everything that would spoil it: environment, config, weights, data, memory, a dry run.

backbones doctor --config-file faster_rcnn_V_39_FPN_3x.yaml
backbones doctor --config-file photos.yaml --num-gpus 8 --num all --output doctor.html SOLVER.IMS_PER_BATCH 32

Each line is an error (training would stop, or its figures mean nothing), a warning (training would probably be worse than it could), or a note.
The exit code is 0 without errors, 1 with errors, and 2 for a command line that cannot be understood. Only --output is written; the dry run
works in a temporary folder.
"""

import argparse
import os
import sys
from typing import Callable

from tqdm import tqdm

from ..config import add_data_arguments, check_output_dir
from ..doctor.config import config
from ..doctor.data import data
from ..doctor.dry_run import dry_run
from ..doctor.environment import environment
from ..doctor.examination import Examination, error, quiet, words
from ..doctor.memory import memory
from ..doctor.report import charts, page, printable, samples, totals
from ..doctor.weights import weights
from ..engine import count_processes
from ..engine.front import Front
from ..engine.opening import add_config_arguments, open_named, stay_in_moved_folder
from ..errors import SEVERITIES, Finding, UserError, raised
from ..files import write_whole
from . import parser_of, program, run


def read_config(args: argparse.Namespace) -> tuple[Front, list[Finding], bool]:
    """The config of the command line, problems of its overrides, and whether flags name data. Raises UserError if there is no config."""
    front, opts = open_named(args, ()), args.opts
    if len(opts) % front.words:
        raise UserError(f"overrides are pairs of KEY VALUE, but their number is odd: {' '.join(opts)}", "syntax")
    replaced = front.apply_data_arguments(args, True)
    errors: list[UserError] = []
    for i in range(0, len(opts), front.words):
        changed = front.clone()
        wrong = raised(changed.merge, opts[i : i + front.words])
        errors += wrong
        front = front if wrong else changed
    if args.resume:
        stay_in_moved_folder(front, opts)
    return front, [Finding.of(problem) for problem in errors], replaced


def examine(args: argparse.Namespace, say: Callable[[str], None] = print) -> tuple[Examination, dict[str, list[Finding]]]:
    """The findings of all sections, each printed as soon as it is known."""
    front, found, replaced = read_config(args)
    examination = Examination(
        front,
        processes=count_processes(args),
        gpus=args.num_gpus,
        images=args.num,
        download=args.download,
        resume=args.resume,
        partial=args.allow_partial_weights,
        replaced=replaced,
        progress=lambda items, **about: tqdm(items, leave=False, disable=None, **about),
    )
    steps = {"environment": environment, "config": config, "weights": weights, "data": data, "memory": memory, "dry run": dry_run}
    if args.no_run:
        del steps["dry run"]
    sections: dict[str, list[Finding]] = {}
    for name, step in steps.items():
        findings = sections[name] = found if name == "config" else []
        with quiet():
            try:
                for finding in step(examination):
                    findings.append(finding)
            except Exception as problem:  # a failure in one section does not hide the others
                findings.append(error(f"this section could not be finished: {words(problem)}"))
        findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
        say(name.capitalize())
        for finding in findings:
            say(printable(f"  {finding.severity:<8} {finding.message}" + (f" -> {finding.advice}" if finding.advice else "")))
        if name in examination.text:
            say(examination.text[name])
        elif not findings:
            say("  nothing to report")
    return examination, sections


def _images(value: str) -> int | None:
    if value == "all":
        return None
    if not value.isdigit() or int(value) < 1:
        raise argparse.ArgumentTypeError(f"{value!r} is neither a positive number nor 'all'")
    return int(value)


def argument_parser() -> argparse.ArgumentParser:
    parser = parser_of(program("doctor"), __doc__)
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N", help="as for training: GPUs per machine, or on a CPU processes")
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="as for training")
    parser.add_argument(
        "--num", "--images", type=_images, default=500, metavar="N|all", help="how many images of each data set to read (default: %(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="as for training")
    parser.add_argument("--allow-partial-weights", action="store_true", help="as for training")
    for name in ("--machine-rank", "--dist-url"):  # so that the flags of a training command can be reused
        parser.add_argument(name, help=argparse.SUPPRESS)
    parser.add_argument("--no-run", action="store_true", help="skip the dry run")
    parser.add_argument("--download", action="store_true", help="download weights that are not on this machine, as training does")
    parser.add_argument(
        "--output", "--report", default="", metavar="FILE", help="write everything, with charts and training samples, to this .html file"
    )
    add_data_arguments(parser)
    add_config_arguments(parser)
    return parser


def main() -> None:
    args = argument_parser().parse_args()
    if args.output:
        if not args.output.lower().endswith((".html", ".htm")):
            raise UserError(f"--output {args.output!r} must end in .html", "value", "--output")
        if os.path.isdir(args.output):
            raise UserError(f"--output {args.output!r} is a folder", "cannot-write", "--output")
        check_output_dir(os.path.dirname(os.path.abspath(args.output)), "the folder of --output")
    if min(args.num_gpus, args.num_machines) < 1:
        raise UserError("--num-gpus and --num-machines must be at least 1", "value", "--num-gpus")
    examination, sections = examine(args)
    if args.output:
        pictures: dict[str, list[tuple[str, str]]] = {"data": []}
        for draw in (charts, samples):
            with quiet():
                try:
                    pictures["data"] += draw(examination)
                except Exception as problem:  # the page is useful without charts
                    pictures["data"].append((f"no {draw.__name__}: {words(problem)}", ""))
        title = f"Doctor: {os.path.basename(args.config_file) or 'defaults'}"
        write_whole(args.output, page(title, sections, examination.text, pictures))
        print(args.output)
    print(totals(sections))
    sys.exit(1 if any(f.severity == "error" for findings in sections.values() for f in findings) else 0)


if __name__ == "__main__":
    run(main)
