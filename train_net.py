#!/usr/bin/env python
"""Trains or evaluates a detector, as detectron2's tools/train_net.py does, with any config of this project or of detectron2's zoo.

train_net.py --config-file faster_rcnn_V_39_FPN_3x.yaml --num-gpus 8
train_net.py --config-file faster_rcnn_V_39_FPN_3x.yaml --eval-only MODEL.WEIGHTS output/model_final.pth
torchrun --nproc-per-node 8 train_net.py --config-file faster_rcnn_V_39_FPN_3x.yaml
"""

import argparse
import contextlib
import errno
import logging
import os
import sys

from detectron2.config import get_cfg
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from backbones import UserError, add_backbones_config, check_config, use_backbone, zoo
from backbones.config import add_data_arguments, apply_data_arguments, make_files_absolute, merge_file, merge_overrides
from backbones.data import check_datasets, register_from_config, register_held_out, register_image_folders
from backbones.deploy.optimize import PRECISIONS
from backbones.deploy.predictor import evaluate_optimized, size_in_mind
from backbones.engine import Trainer, check_trackers, count_processes, launch, lazy, load_for_evaluation, lock


def argument_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=f"Examples:\n{__doc__.partition(chr(10))[2]}")
    parser.description = __doc__.partition("\n")[0]
    for action in parser._actions:
        if action.dest == "config_file":
            action.help = "a config's path, or its name among this project's or detectron2's zoo configs"
        elif action.dest == "num_gpus":
            action.help = "number of GPUs per machine; with MODEL.DEVICE cpu, number of processes"
    parser.add_argument("--backbone", default="", metavar="NAME", help="put this network, of backbones.list_backbones(), into the config")
    add_data_arguments(parser)
    parser.add_argument("--optimize", action="store_true", help="with --eval-only: a faster model that gives the same results")
    parser.add_argument(
        "--precision", default="float32", choices=PRECISIONS, help="of --optimize; bfloat16 changes results, and by how much is printed"
    )
    parser.add_argument(
        "--allow-partial-weights", action="store_true", help="go on where weights fill less than all of what they should (see the table)"
    )
    return parser


def setup(args):
    """The config of the command line, checked: a CfgNode, or of a Python config a DictConfig. Raises UserError for what cannot be."""
    if args.optimize and not args.eval_only:
        raise UserError("--optimize is for inference: it goes with --eval-only")
    if not args.config_file and not args.opts:
        raise UserError("--config-file is missing: a config's path, or one of the names that `python -m backbones.tools.zoo list` gives")
    if args.config_file:
        args.config_file = zoo.get_config_file(args.config_file)
    if lazy.is_lazy(args.config_file):
        cfg = lazy.load_config(args.config_file, args.opts, args.backbone)
        lazy.apply_data_arguments(cfg, args, training=not args.eval_only)
        lazy.check_data(cfg, training=not args.eval_only)
        return cfg
    cfg = get_cfg()
    add_backbones_config(cfg)
    if args.config_file:
        merge_file(cfg, args.config_file)
    if args.backbone:
        use_backbone(cfg, args.backbone)
    apply_data_arguments(cfg, args, training=not args.eval_only)
    merge_overrides(cfg, args.opts)
    register_from_config(cfg)
    register_image_folders(cfg)
    register_held_out(cfg, training=not args.eval_only)
    make_files_absolute(cfg)
    check_config(cfg, training=not args.eval_only, processes=count_processes(args))
    check_datasets(cfg, training=not args.eval_only)
    check_trackers(cfg)
    cfg.freeze()
    return cfg


def main(args) -> None:
    """One process of the run."""
    try:
        run(args)
    except UserError as error:
        fail(error)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        fail(UserError(f"{error.filename or 'a file'!r} cannot be written: {error.strerror}. Checkpoints that were written are whole"))


def run(args) -> None:
    cfg = setup(args)
    output = cfg.train.output_dir if lazy.is_lazy(args.config_file) else cfg.OUTPUT_DIR
    with contextlib.nullcontext() if args.eval_only else lock(output):
        train_or_evaluate(cfg, args)


def train_or_evaluate(cfg, args) -> None:
    default_setup(cfg, args)
    if lazy.is_lazy(args.config_file):
        setup_logger(cfg.train.output_dir, distributed_rank=comm.get_rank(), name="backbones")
        if args.eval_only:
            model = lazy.build_model(cfg)
            lazy.load_for_evaluation(cfg, model, resume=args.resume, allow_partial_weights=args.allow_partial_weights)
            evaluate_optimized(model, args.optimize and args.precision, lambda m: lazy.evaluate(cfg, m))
        else:
            lazy.train(cfg, resume=args.resume, allow_partial_weights=args.allow_partial_weights)
        return
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="backbones")
    if args.eval_only:
        model = Trainer.build_model(cfg)
        load_for_evaluation(cfg, model, resume=args.resume, allow_partial_weights=args.allow_partial_weights)
        results = evaluate_optimized(model, args.optimize and args.precision, lambda m: Trainer.test(cfg, m), size_in_mind(cfg))
        if cfg.TEST.AUG.ENABLED:
            results = {**(results or {}), **Trainer.test_with_TTA(cfg, model)}
        if comm.is_main_process():
            verify_results(cfg, results)
        return
    trainer = Trainer(cfg, allow_partial_weights=args.allow_partial_weights)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def fail(error: UserError) -> None:
    if comm.is_main_process() and os.environ.get("LOCAL_RANK", "0") == "0":
        print(f"train_net.py: error: {error}", file=sys.stderr, flush=True)
    else:  # said once on the terminal; what only one of the others finds stands in its log
        logging.getLogger("backbones").error(error)
    sys.exit(2)


def command_line(arguments=None) -> None:
    args = argument_parser().parse_args(arguments)
    try:
        # in the first process already, so that a mistake is reported once and before any other starts
        cfg = setup(args)
        launch(main, args, cfg.train.device if lazy.is_lazy(args.config_file) else cfg.MODEL.DEVICE)
    except UserError as error:
        fail(error)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    command_line()
