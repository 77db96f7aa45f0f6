"""Trains or evaluates a detector, as detectron2's tools/train_net.py does, with any config of this project or of detectron2's zoo.

backbones train --config-file faster_rcnn_V_39_FPN_3x.yaml --num-gpus 8
backbones train --config-file faster_rcnn_V_39_FPN_3x.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
torchrun --nproc-per-node 8 -m backbones train --config-file faster_rcnn_V_39_FPN_3x.yaml
"""

import argparse
import contextlib
import errno
import gc
import logging
import os
import shlex
import sys
import time
from typing import NoReturn, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from .. import zoo
from ..checkpoint import last_checkpoint
from ..config import READING, add_data_arguments, check_device, check_output_dir, learns, merge_overrides
from ..data.holdout import HELD_OUT
from ..deploy.optimize import PRECISIONS
from ..deploy.predictor import evaluate_optimized, size_in_mind
from ..doctor.examination import Examination
from ..doctor.memory import too_much_for_cpu
from ..engine import (
    Front,
    add_config_arguments,
    by_torchrun,
    clear,
    count_processes,
    launch,
    lock,
    log_the_end,
    open_config,
    open_named,
    set_up_logs,
    stay_in_moved_folder,
)
from ..engine.step import OutOfMemory
from ..errors import UserError
from ..files import write_whole
from ..recipe.rules import BASE
from ..search.paths import PathSampler
from . import parser_of, program
from .recipe import add_recipe_arguments, design, device_of, recipe_flags

_HINTS = {
    "--auto": ": it is for working out a recipe. For the config of one, run `backbones recipe` again",
    "--optimize": ", the faster model that it is for",
}


def argument_parser() -> argparse.ArgumentParser:
    """The flags of detectron2's own train_net.py, and more."""
    named = os.path.basename(sys.argv[0]) == "train_net.py"
    parser = parser_of("train_net.py" if named else program("train"), __doc__)
    add_config_arguments(parser)
    parser.add_argument("--resume", action="store_true", help="resume from the last checkpoint in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="remove the run in the output folder, and start a new one")
    parser.add_argument(
        "--new-schedule", action="store_true", help="with --resume: use the learning rate and schedule of the config, not of the run"
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate, train nothing")
    text = "work out the config from the data of --train and the time of --minutes (see `backbones recipe`), and train with it"
    parser.add_argument("--auto", action="store_true", help=text)
    add_process_arguments(parser)
    add_data_arguments(parser)
    add_recipe_arguments(parser)
    parser.add_argument("--optimize", action="store_true", help="with --eval-only: a faster model that gives the same results")
    parser.add_argument(
        "--precision",
        default="float32",
        choices=PRECISIONS,
        help="for --optimize; 16 bits change results, and the change is printed; float16 needs a GPU",
    )
    parser.add_argument(
        "--allow-partial-weights", action="store_true", help="continue if the weights fill less than they should (see the table)"
    )
    return parser


def add_process_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds detectron2's flags for several processes."""
    gpus = "number of GPUs per machine; with MODEL.DEVICE cpu, number of processes"
    for flag, value, text in (
        ("--num-gpus", 1, gpus),
        ("--num-machines", 1, "number of machines"),
        ("--machine-rank", 0, "number of this machine, from 0"),
    ):
        parser.add_argument(flag, type=int, default=value, metavar="N", help=f"{text} (default: %(default)s)")
    parser.add_argument("--dist-url", default="auto", metavar="URL", help="where the processes meet (default: a free port of this machine)")


def read_config(args: argparse.Namespace) -> Front:
    """Opens the config of the command line. Raises UserError."""
    recipe = recipe_flags(args)
    for flag, value, other, needed in (
        ("--optimize", args.optimize, "--eval-only", args.eval_only),
        ("--precision", args.precision != "float32", "--optimize", args.optimize),
        ("--new-schedule", args.new_schedule, "--resume", args.resume),
        *((flag, True, "--auto", args.auto) for flag in recipe),
    ):
        if value and not needed:
            raise UserError(f"{flag} needs {other}{_HINTS.get(other, '')}", code="missing-argument", key=flag)
    if args.overwrite and (args.resume or args.eval_only):
        raise UserError("--overwrite is for a new run: it cannot be combined with --resume or --eval-only", code="conflict", key="--overwrite")
    data = {"--train": args.train_json, "--val": args.val_json, "--val-split": args.val_split}
    given = [*(flag for flag, value in data.items() if value), *recipe]
    kept = args.auto and _design(args)
    if not args.config_file and args.train_json:  # detectron2's defaults, which opts alone stand for, are not for these data
        said = "--config-file is missing. For your own data: --auto, or `backbones recipe`"
        raise UserError(said, code="missing-argument", key="--config-file")
    if not args.config_file and not args.opts:
        message = "--config-file is missing: give a config's path, or a name from `backbones zoo list`"
        raise UserError(message, code="missing-argument", key="--config-file")
    front = open_named(args)
    args.config_file = front.path
    if args.resume and args.weights and (there := last_checkpoint(front.settings.OUTPUT_DIR)):
        front.said.append(f"--weights {args.weights} is not used -> --resume continues from {there}")
    if args.eval_only and front.settings.MODEL.COMPILE and not args.optimize:
        front.said.append(f"{front.name('MODEL.COMPILE')} has no effect on an evaluation -> add --optimize")
    if args.optimize and front.settings.TEST.AUG.ENABLED:
        front.said.append("--optimize: figures that end in _TTA are of the model as it is")
    if kept and given:
        said = f"--auto --resume: {', '.join(given)} changed nothing: data and settings are those of {front.path}"
        front.said.append(f"{said} -> for others, start a new run")
    check_device(front.settings.MODEL.DEVICE, front.name("MODEL.DEVICE"), front.override("MODEL.DEVICE", "cpu"))
    if args.resume or args.eval_only:
        stay_in_moved_folder(front, args.opts, "the run continues" if not args.eval_only else "its results go")
    return front


def _design(args: argparse.Namespace) -> bool:
    """Makes the recipe in the output folder the config: a new one, or with --resume the one there; returns whether it was there."""
    for flag, value in (("--config-file", args.config_file), ("--backbone", args.backbone), ("--eval-only", args.eval_only)):
        if value:
            raise UserError(f"--auto works out the config itself: it cannot be combined with {flag}", "conflict", "--auto")
    merge_overrides(zoo.get_config(BASE), args.opts)  # what is wrong with them is said before anything is measured
    given = dict(zip(args.opts[::2], args.opts[1::2]))
    later = [key for key in given if key not in (*READING, "OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS")]
    if later and not args.resume:
        print(f"the recipe does not account for {', '.join(later)}: rate, minutes and memory may not fit. They are set after it")
    for name, weights in (("--weights", args.weights), ("MODEL.WEIGHTS", given.get("MODEL.WEIGHTS", ""))):
        if weights:  # the recipe chose network, norms and learning rate for other weights
            said = f"--auto works out the config itself: it cannot be combined with {name}. Run `backbones recipe --output my.yaml`"
            raise UserError(f"{said}, then `backbones train --config-file my.yaml {name} {weights}`", "conflict", "--auto")
    args.output_dir, args.gpus = given.get("OUTPUT_DIR", os.path.join("output", "auto")), args.num_gpus
    args.config_file = os.path.join(args.output_dir, "recipe.yaml")
    check_output_dir(args.output_dir)
    if args.resume and os.path.isfile(args.config_file):
        args.train_json = args.train_images = args.val_json = args.val_images = ""
        args.val_split = 0.0
        return True
    if by_torchrun() or args.num_machines > 1:  # each process or machine would work out its own
        said = "--auto starts its processes itself, on one machine: otherwise run `backbones recipe --num-gpus N --output my.yaml`"
        raise UserError(f"{said}, then train with --config-file my.yaml", "conflict", "--auto")
    if args.resume and last_checkpoint(args.output_dir):
        said = f"{args.output_dir!r} has no recipe.yaml of --auto: continue its run with --config-file"
        raise UserError(f"{said} {os.path.join(args.output_dir, 'config.yaml')} --resume", "missing-file", "--auto")
    args.device = device_of(given.get("MODEL.DEVICE", ""))
    if not args.overwrite:  # with it, the run removes the earlier one, once there is a recipe
        clear(args.output_dir, False, "")
    design(args, args.config_file)
    return False


def prepare(args: argparse.Namespace, front: Front) -> Front:
    """The config for all processes of this machine, with the lines to log about it. Raises UserError."""
    processes = count_processes(args)
    front.prepare(args, processes)
    if args.eval_only:
        _check_results_stay(front)
    else:
        here = processes // max(args.num_machines, 1)
        front.said += [f"{finding.message} -> {finding.advice}" for finding in too_much_for_cpu(Examination(front, processes, gpus=here))]
        shuffle = front.cfg.MODEL.SHUFFLENETV2 if isinstance(front.cfg, CfgNode) else None
        if (
            not args.resume
            and shuffle
            and shuffle.SUPERNET
            and "shufflenetv2" in front.cfg.MODEL.BACKBONE.NAME
            and not learns(front.cfg, "class")
        ):
            front.said += PathSampler.before_training(front.cfg)
    return front


def _check_results_stay(front: Front) -> None:
    """Raises UserError if results on other data would replace those of the run in the output folder, whose config says what they are of."""
    output = front.settings.OUTPUT_DIR
    left = os.path.join(output, "config.yaml")
    if not os.path.isfile(left) or not last_checkpoint(output):
        return
    before, now = _tested(open_config(left)), _tested(front)
    if before and before != now:
        was, own = (", ".join(row[0] for row in many if row not in others) for many, others in ((before, now), (now, before)))
        other = front.override("OUTPUT_DIR", os.path.join(output, "other"))
        said = f"{output!r} has a run's results on {was or 'these and other data'}, which those on {own or 'a part of them'} would replace"
        raise UserError(f"{said}: name another folder, such as {other}", "conflict", front.name("OUTPUT_DIR"))


def _tested(front: Front) -> list[tuple[str, list[str]]]:
    """The test data of a config, in words, and their files."""
    data, found = front.settings.DATASETS, []
    files = {entry[0]: list(entry[1:]) for entry in (*data.REGISTER, *data.IMAGE_FOLDERS)}
    parts = {entry[0]: entry[1] for entry in data.HOLD_OUT}
    for name in data.TEST:
        whole = name.removesuffix(HELD_OUT)
        there = files.get(whole, [name])
        part = f" ({parts[whole]:g} of it)" if whole != name and whole in parts else ""
        found.append((repr(there[0]) + part, [os.path.realpath(path) for path in there if path]))
    return sorted(found)


def main(args: argparse.Namespace, front: Front) -> None:
    """One process of the run."""
    try:
        with contextlib.nullcontext() if args.eval_only else lock(front.settings.OUTPUT_DIR):
            run(args, front)
    except UserError as error:
        log_the_end(str(error))
        fail(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG):
            raise
        message = f"{error.filename or 'a file'!r} cannot be written: {error.strerror}. Existing checkpoints are intact"
        fail(UserError(message, code="cannot-write"))


def run(args: argparse.Namespace, front: Front) -> None:
    output = front.settings.OUTPUT_DIR
    if not (args.eval_only or args.resume):
        clear(output, args.overwrite, front.settings.MODEL.WEIGHTS)
        comm.synchronize()  # the other processes' logs are not to be among what is removed
    left, before = os.path.join(output, "config.yaml"), None
    if (args.resume or args.eval_only and last_checkpoint(output)) and os.path.isfile(left):
        with open(left, encoding="utf-8") as f:
            before = f.read()
    set_up_logs(output)
    default_setup(front.cfg, args)
    for line in front.said:
        logging.getLogger("backbones").log(logging.WARNING if " -> " in line else logging.INFO, line)
    if args.eval_only:
        if before is not None and comm.is_main_process():  # it says what the run is, for --resume
            write_whole(left, before)
        model = front.build_model()
        front.load_for_evaluation(model, resume=args.resume, allow_partial_weights=args.allow_partial_weights)
        own = front.settings
        precision = args.precision if args.optimize else ""
        results = evaluate_optimized(model, precision, front.evaluate, size_in_mind(own), own.MODEL.COMPILE)
        if front.settings.TEST.AUG.ENABLED:
            results = {**(results or {}), **front.evaluate_augmented(model)}
        if comm.is_main_process():
            front.verify(results)
        return
    resume = args.resume
    while True:
        try:
            fit = front.fit(allow_partial_weights=args.allow_partial_weights)
            fit.resume_or_load(resume=resume, new_schedule=args.new_schedule)
        except UserError:
            if before is not None and comm.is_main_process():  # a refused config is not the run's
                write_whole(left, before)
            raise
        try:
            fit.train()
            if comm.is_main_process():
                say_next(front)
            return
        except OutOfMemory as error:
            if not args.auto or front.settings.SOLVER.IMS_PER_BATCH % (comm.get_world_size() * error.suggestion):
                raise
            logging.getLogger("backbones").warning(f"--auto: {error}. Trying {error.key} {error.suggestion}")
            front.set("SOLVER.ACCUMULATE", error.suggestion)
            resume = resume or fit.checkpointer.has_checkpoint()
        del fit
        gc.collect()
        torch.cuda.empty_cache()


def say_next(front: Front) -> None:
    """Logs the command that draws what a trained detector finds; a classifier finds nothing."""
    if isinstance(front.cfg, CfgNode) and learns(front.cfg, "class"):
        return
    config, best, final = (os.path.join(front.settings.OUTPUT_DIR, name) for name in ("config.yaml", "model_best.pth", "model_final.pth"))
    weights = best if os.path.isfile(best) else final
    words = f"--config-file {shlex.quote(config)} --input IMAGES --output found {front.override('MODEL.WEIGHTS', weights)}"
    logging.getLogger("backbones").info(f"next, draw what it finds in your images: {program('demo')} {words}")


def fail(error: UserError) -> NoReturn:
    if comm.is_main_process() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr, flush=True)
    else:  # printed once on the terminal; an error of only one other process is in its log
        logging.getLogger("backbones").error(error)
        time.sleep(3)  # as soon as one process ends, the launcher ends the others: the first must have said why
    sys.exit(2)


def command_line(arguments: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(arguments)
    try:
        front = read_config(args)
        launch(main, args, front.settings.MODEL.DEVICE, lambda: prepare(args, front))
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    command_line()
