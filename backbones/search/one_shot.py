"""DetNAS's search: paths of a trained supernet, evaluated as detectors on held-out training images, by evolution or at random.

backbones search-paths --config-file digits/detnas_supernet_digits.yaml --seed 0 MODEL.WEIGHTS supernet.pth MODEL.DEVICE cpu
backbones search-paths --config-file ... --num-gpus 8 --resume MODEL.WEIGHTS supernet.pth OUTPUT_DIR output/search

The config is the supernet's own; its ONE_SHOT says how many paths to try and what a path may cost. Each path is evaluated once: its weights are
taken from the supernet, its batch norms are recalibrated on training images, and it detects on images kept from training and test. With
several processes each evaluates its own paths. The state is saved after every path: a killed search continues with --resume, to the same
result.
"""

import argparse
import dataclasses
import logging
import os
import sys
from typing import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from matplotlib.figure import Figure

from ..checkpoint import fetch, write_checkpoint
from ..choices import CHOICES
from ..config import architecture, check_config, check_output_dir, defaults, learns, written
from ..data import check_datasets, check_paths
from ..data.holdout import HELD_OUT, KEPT
from ..engine import Front, launch, open_config
from ..errors import UserError, counted, raised, unknown
from ..files import save_figure, write_whole
from ..layers import STAGES
from ..shufflenetv2 import SPECS
from ..tools import parser_of, run
from ..tools.train import add_process_arguments, fail
from .path_evaluator import PathEvaluator
from .paths import (
    METHODS,
    CostTable,
    Evaluated,
    PathSampler,
    cost_table,
    load_costs,
    pareto,
    path_seconds,
    search_paths,
    state_file,
    subnet_of,
)
from .runtimes import all_threads, check_runtime


def open_supernet(args: argparse.Namespace) -> Front:
    """The config of the command line. Raises UserError for none, or for a Python config."""
    if not args.config_file:
        raise UserError("--config-file is needed: the supernet's config", "missing-argument", "--config-file")
    front = open_config(args.config_file, args.opts)
    args.config_file = front.path
    if not isinstance(front.cfg, CfgNode):
        raise UserError(f"{front.path!r} is a Python config: the search needs a supernet's YAML config", "unsupported", "--config-file")
    return front


def prepare(front: Front, args: argparse.Namespace) -> Front:
    """Checks ``front`` and registers its data sets. Raises UserError for a config that cannot be searched."""
    front.follow_weights()
    cfg, model = front.cfg, front.cfg.MODEL
    if "://" in model.WEIGHTS:  # a search names its weights by their file's hash
        model.WEIGHTS = fetch(model.WEIGHTS, PathManager)
    front.register(training=True)
    check_config(cfg)
    of_supernet = "shufflenetv2" in model.BACKBONE.NAME and model.SHUFFLENETV2.SUPERNET
    names = f"MODEL.BACKBONE.NAME {model.BACKBONE.NAME!r}, MODEL.SHUFFLENETV2.SUPERNET {model.SHUFFLENETV2.SUPERNET}"
    in_heads = model.ROI_HEADS.NAME == "LastStageROIHeads" and "MODEL.ROI_HEADS.IN_FEATURES" in (architecture(cfg).features or ())
    nameless = not cfg.ONE_SHOT.DATASET and not cfg.DATASETS.HOLD_OUT
    for wrong, key, code, message in (
        (not of_supernet, "MODEL.SHUFFLENETV2.SUPERNET", "unsupported", f"{front.path!r} is not a supernet's: {names}"),
        (in_heads, "MODEL.ROI_HEADS.NAME", "unsupported", "detectors that run the last stage in their heads (C4) cannot be searched: use FPN"),
        (not model.WEIGHTS, "MODEL.WEIGHTS", "missing-weights", "the search needs a trained supernet: add MODEL.WEIGHTS model_final.pth"),
        (nameless, "ONE_SHOT.DATASET", "missing-argument", "ONE_SHOT.DATASET and DATASETS.HOLD_OUT are empty: paths need images"),
        (learns(cfg, "class"), "MODEL.META_ARCHITECTURE", "unsupported", f"{front.path!r} is a classifier's: paths are searched as detectors"),
    ):
        if wrong:
            raise UserError(message, code, key)
    cfg.ONE_SHOT.DATASET = cfg.ONE_SHOT.DATASET or cfg.DATASETS.HOLD_OUT[0][0] + HELD_OUT
    if cfg.ONE_SHOT.DATASET not in DatasetCatalog:
        raise unknown("ONE_SHOT.DATASET", cfg.ONE_SHOT.DATASET, sorted(DatasetCatalog.keys()), "ONE_SHOT.DATASET")
    # like a test set, for its classes and annotations
    looked_at = cfg.clone()
    looked_at.DATASETS.TEST = (cfg.ONE_SHOT.DATASET,)
    check_datasets(looked_at, training=True)
    tasks = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
    figures = [f"{kind}/AP{rest}" for kind, task in tasks.items() if learns(cfg, task) for rest in ("", "50", "75", "s", "m", "l")]
    figures = [figure for figure in figures if figure != "keypoints/APs"]
    if cfg.ONE_SHOT.METRIC not in figures:
        raise unknown("ONE_SHOT.METRIC", cfg.ONE_SHOT.METRIC, figures, "ONE_SHOT.METRIC")
    searched = {r["file_name"] for r in DatasetCatalog.get(cfg.ONE_SHOT.DATASET)}
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            # a test set that is not on this machine cannot be compared
            there = name in DatasetCatalog and (key == "TRAIN" or not raised(check_paths, name))
            shared = searched & {r["file_name"] for r in DatasetCatalog.get(name)} if there else ()
            if shared:
                message = f"ONE_SHOT.DATASET {cfg.ONE_SHOT.DATASET!r} and {name!r} of DATASETS.{key} share {len(shared)} images"
                raise UserError(f"{message}: a search must not see training or test images", "conflict", "ONE_SHOT.DATASET")
    check_runtime(cfg.ONE_SHOT.RUNTIME, model.DEVICE, "ONE_SHOT.RUNTIME")
    check_output_dir(cfg.OUTPUT_DIR)
    if os.path.isfile(state_file(cfg)) and not args.resume:
        message = f"{cfg.OUTPUT_DIR!r} already holds a search: continue it with --resume, or set another OUTPUT_DIR"
        raise UserError(message, "folder-in-use", "OUTPUT_DIR")
    cfg.freeze()
    return front


def search(args: argparse.Namespace, front: Front) -> None:
    """Runs one process of the search and writes the results. Raises UserError."""
    cfg = front.cfg
    settings, table = cfg.ONE_SHOT, None
    # the first process's: seconds differ between processes and between measurements
    if comm.is_main_process():
        measured = settings.COST == "latency" and os.path.isfile(state_file(cfg))
        with all_threads():
            table = load_costs(state_file(cfg)) if measured else cost_table(cfg, settings.COST, settings.COST_SIZE)
    table = comm.all_gather(table)[0]
    sampler = PathSampler(settings, table, args.method, args.seed)
    sampler.check()
    evaluator = PathEvaluator(cfg, os.path.join(cfg.OUTPUT_DIR, f"inference_{comm.get_rank()}"))
    archive = search_paths(cfg, sampler, evaluator)
    if not comm.is_main_process():
        return
    with all_threads():
        best = best_of(cfg, table, archive)
    write_result(cfg, table, archive, best)
    write_weights(evaluator, best, os.path.join(cfg.OUTPUT_DIR, "best_subnet.pth"))
    parts = {name: sorted(e.seconds[name] for e in archive)[len(archive) // 2] for name in best.seconds}
    print(f"{counted(len(archive), 'path')}; the best: {list(best.path)}, {table.kind} {best.cost:.4g}")
    print(f"{settings.METRIC} of the best on {settings.DATASET}: {best.score:.2f}")
    print("a path takes " + ", ".join(f"{seconds:.2f} s {name}" for name, seconds in parts.items()) + " (medians)")
    detector, weights = (os.path.join(cfg.OUTPUT_DIR, name) for name in ("detector.yaml", "best_subnet.pth"))
    print(f"evaluate it with the supernet's weights: backbones train --config-file {detector} --eval-only MODEL.WEIGHTS {weights}")
    print(f"train it from these weights: backbones train --config-file {detector} MODEL.WEIGHTS {weights}")
    print("DetNAS trains it as a classifier first: steps 4 and 5 of docs/search.md")


def best_of(cfg: CfgNode, table: CostTable, archive: Sequence[Evaluated]) -> Evaluated:
    """The path with the highest score; with a limit of seconds, the best whose measured seconds are within the limit.

    Raises UserError if none is.
    """
    by_score = sorted(archive, key=lambda e: -e.score)
    if table.kind != "latency":
        return by_score[0]
    asked = cfg.ONE_SHOT.MAX_COST
    for e in by_score:
        taken = path_seconds(cfg, e.path)
        words = f"limit {1e3 * asked:.4g} ms, by the table {1e3 * e.cost:.4g} ms, measured {1e3 * taken:.4g} ms in {cfg.ONE_SHOT.RUNTIME}"
        print(f"latency of {list(e.path)}, score {e.score:.2f}: {words}", flush=True)
        if taken <= asked:
            return dataclasses.replace(e, cost=taken)
    said = f"ONE_SHOT.MAX_COST {asked:.4g}: none of {counted(len(archive), 'path')} is that fast when measured. Search again"
    raise UserError(f"{said}, with a slightly lower limit, or with more generations", "value", "ONE_SHOT.MAX_COST")


def write_result(cfg: CfgNode, table: CostTable, archive: Sequence[Evaluated], best: Evaluated) -> None:
    """Writes the best path as a subnet file and a config, and the pictures."""
    net = subnet_of(cfg, best.path)
    subnet = (
        f"network: {cfg.MODEL.SHUFFLENETV2.NAME}\nchoices: [{', '.join(map(str, best.path))}]\nsplit: {net.split}\nshuffle: {net.shuffle}\n"
        f"width: {cfg.MODEL.SHUFFLENETV2.WIDTH!r}\nbranch_widths: {list(net.branch_widths)}\n"
        f"score: {best.score!r}  # {cfg.ONE_SHOT.METRIC} on {cfg.ONE_SHOT.DATASET}\n"
        f"{table.kind}: {best.cost!r}\n"
    )
    config = written(_own_config(cfg), "The result of a one-shot search, to be trained on its own", {})
    try:
        for filename, text in (("best_subnet.yaml", subnet), ("detector.yaml", config)):
            write_whole(os.path.join(cfg.OUTPUT_DIR, filename), text)
        _plot_archive(cfg, table, archive, best)
        _plot_path(cfg, best)
    except OSError as error:
        raise UserError(f"the result cannot be written: {error}") from error


def _own_config(cfg: CfgNode) -> CfgNode:
    """The config of the found network: the supernet's, without the search and its held-out data."""
    own, usual = cfg.clone(), defaults()
    own.defrost()
    own.ONE_SHOT = usual.ONE_SHOT
    whole = {entry[0] + KEPT: entry[0] for entry in cfg.DATASETS.HOLD_OUT}  # nothing stays held out
    own.DATASETS.TRAIN = tuple(whole.get(name, name) for name in cfg.DATASETS.TRAIN)
    own.DATASETS.HOLD_OUT = usual.DATASETS.HOLD_OUT
    own.MODEL.WEIGHTS, node = "", own.MODEL.SHUFFLENETV2
    node.SUPERNET, node.CHOICES, node.SUBNET = False, [], "best_subnet.yaml"
    own.OUTPUT_DIR = os.path.join(cfg.OUTPUT_DIR, "training")
    return own


def write_weights(evaluator: PathEvaluator, best: Evaluated, path: str) -> None:
    """The best path as a detector with the supernet's weights and its own norm statistics, as it was scored."""
    model = evaluator.extract(best.path)
    evaluator.recalibrate(model)
    data = {"model": {key: value.cpu() for key, value in model.state_dict().items()}, "conventions": dict(evaluator.supernet.conventions)}
    write_checkpoint(data, path)


def _plot_archive(cfg: CfgNode, table: CostTable, archive: Sequence[Evaluated], best: Evaluated) -> None:
    """Plots scores by generation, and against costs."""
    scale, unit = {"macs": (1e6, "million multiply-adds"), "parameters": (1e6, "million parameters")}.get(table.kind, (1e-3, "milliseconds"))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    scores, front = [e.score for e in archive], pareto(archive)
    ends = sorted({e.generation for e in archive})
    left.scatter([e.generation + 1 for e in archive], scores, s=10, alpha=0.6, label="paths")
    highest = [max(e.score for e in archive if e.generation <= g) for g in ends]
    left.step([g + 1 for g in ends], highest, where="mid", label="best so far")
    left.set(xlabel="generation", xticks=[g + 1 for g in ends])
    right.scatter([e.cost / scale for e in archive], scores, s=10, alpha=0.6, label="paths")
    right.step([e.cost / scale for e in front], [e.score for e in front], where="post", color="tab:orange", label="Pareto front")
    right.scatter([best.cost / scale], [best.score], marker="*", s=140, color="tab:red", label="the best", zorder=3)
    right.set(xlabel=unit)
    for axis in (left, right):
        axis.set(ylabel=f"{cfg.ONE_SHOT.METRIC} on {cfg.ONE_SHOT.DATASET}")
        axis.legend(fontsize=8)
    save_figure(figure, os.path.join(cfg.OUTPUT_DIR, "search.png"))


def _plot_path(cfg: CfgNode, best: Evaluated) -> None:
    """Plots the choice of each block."""
    widths = cfg.MODEL.SHUFFLENETV2.BRANCH_WIDTHS
    names = [name if len(widths) == 1 else f"{name}, width {width:g}" for width in widths for name in CHOICES]
    figure = Figure(figsize=(0.42 * len(best.path) + 2, 1.2 + 0.3 * len(names)), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.eye(len(names))[list(best.path)].T, cmap="Blues", vmax=1.5, origin="lower", aspect="auto")
    axis.plot(best.path, color="black", linewidth=1)
    edge = -0.5
    for stage, count in zip(STAGES[1:], SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks):
        axis.text(edge + count / 2, len(names) - 0.4, stage, ha="center")
        edge += count
        axis.axvline(edge, color="gray", linewidth=1.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_xticks([])
    save_figure(figure, os.path.join(cfg.OUTPUT_DIR, "path.png"))


def _process(args: argparse.Namespace, front: Front) -> None:
    logging.disable(logging.INFO)  # detectron2 logs every evaluation
    try:
        search(args, front)
    except KeyboardInterrupt:
        sys.exit(130)  # the state is saved
    except UserError as error:
        fail(error)


def argument_parser() -> argparse.ArgumentParser:
    parser = parser_of(sys.argv[0] if sys.argv[0].startswith("backbones ") else "python -m backbones.search.one_shot", __doc__)
    parser.add_argument("--config-file", default="", metavar="FILE", help="the supernet's config")
    parser.add_argument(
        "--resume", action="store_true", help="continue the search in OUTPUT_DIR, to the same result as without the interruption"
    )
    parser.add_argument("--eval-only", action="store_true", help=argparse.SUPPRESS)  # refused with a hint
    add_process_arguments(parser)
    parser.add_argument("--seed", type=int, default=0, help="seed of all choices (default: %(default)s)")
    parser.add_argument("--method", choices=METHODS, default="evolution", help="random search is the baseline (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides: KEY VALUE each")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = argument_parser().parse_args(arguments)
    if args.eval_only:
        raise UserError("search-paths has no --eval-only: evaluate its detector.yaml with backbones train", "conflict", "--eval-only")
    front = open_supernet(args)
    launch(_process, args, front.cfg.MODEL.DEVICE, lambda: prepare(front, args))


if __name__ == "__main__":
    run(main)
