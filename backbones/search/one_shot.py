"""DetNAS's search: paths of a trained supernet, evaluated as detectors on held-out training images, by evolution or at random.

python -m backbones.search.one_shot --config-file digits/detnas_supernet_digits.yaml --seed 0 MODEL.WEIGHTS supernet.pth MODEL.DEVICE cpu
python -m backbones.search.one_shot --config-file ... --num-gpus 8 --resume MODEL.WEIGHTS supernet.pth OUTPUT_DIR output/search

The config is the supernet's own; its ONE_SHOT says how much is searched and what a path may cost. Each path is evaluated once: its weights are
taken out of the supernet, its batch norms see training images anew, and it detects on images that neither training nor the final test has. With
several processes each evaluates paths of its own. After every one the state is saved: killed, a search goes on with --resume, and gives what it
would have given.
"""

import contextlib
import logging
import os
import sys

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from .. import zoo
from ..config import add_backbones_config, architecture, check_config, check_output_dir, learns, merge_file, merge_overrides
from ..data import check_datasets, check_paths, register_from_config, register_held_out
from ..data.holdout import HELD_OUT
from ..engine.launch import launch
from ..errors import UserError, unknown
from ..tools import run
from .path_evaluator import PathEvaluator
from .path_result import write_result, write_weights
from .path_search import load_costs, search_paths, state_file
from .paths import METHODS, PathSampler, cost_table


@contextlib.contextmanager
def quiet():
    """Without what detectron2 tells of every evaluation."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def setup(args) -> CfgNode:
    """The config of the command line, checked. Raises UserError for what cannot be searched."""
    if not args.config_file:
        raise UserError("--config-file is needed: the supernet's config")
    args.config_file = zoo.get_config_file(args.config_file)
    cfg = get_cfg()
    add_backbones_config(cfg)
    merge_file(cfg, args.config_file)
    merge_overrides(cfg, args.opts)
    register_from_config(cfg)
    register_held_out(cfg)
    check_config(cfg)
    node = cfg.MODEL.SHUFFLENETV2
    if "shufflenetv2" not in cfg.MODEL.BACKBONE.NAME or not node.SUPERNET:
        raise UserError(
            f"{args.config_file!r} is of no supernet: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}, MODEL.SHUFFLENETV2.SUPERNET {node.SUPERNET}"
        )
    if cfg.MODEL.ROI_HEADS.NAME == "LastStageROIHeads" and "MODEL.ROI_HEADS.IN_FEATURES" in (architecture(cfg).features or ()):
        raise UserError("detectors that run the last stage in their heads (C4) cannot be searched: take one with FPN")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("the search needs a trained supernet: add MODEL.WEIGHTS /path/to/model_final.pth")
    if not cfg.ONE_SHOT.DATASET:
        if not cfg.DATASETS.HOLD_OUT:
            raise UserError(
                "ONE_SHOT.DATASET is empty: name what paths are evaluated on, such as NAME_held_out of DATASETS.HOLD_OUT [['NAME', 5000]]"
            )
        cfg.ONE_SHOT.DATASET = cfg.DATASETS.HOLD_OUT[0][0] + HELD_OUT
    if learns(cfg, "class"):
        raise UserError(f"{args.config_file!r} is of a classifier: paths are searched as detectors, by the config of step 2")
    if cfg.ONE_SHOT.DATASET not in DatasetCatalog:
        raise unknown("ONE_SHOT.DATASET", cfg.ONE_SHOT.DATASET, sorted(DatasetCatalog.keys()))
    # as a test set is, for its classes and annotations
    looked_at = cfg.clone()
    looked_at.DATASETS.TEST = (cfg.ONE_SHOT.DATASET,)
    check_datasets(looked_at, training=True)
    check_metric(cfg)
    names = {r["file_name"] for r in DatasetCatalog.get(cfg.ONE_SHOT.DATASET)}
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name in DatasetCatalog and (key == "TRAIN" or _is_there(name)):
                shared = names & {r["file_name"] for r in DatasetCatalog.get(name)}
                if shared:
                    raise UserError(
                        f"ONE_SHOT.DATASET {cfg.ONE_SHOT.DATASET!r} and {name!r} of DATASETS.{key} share {len(shared)} images: a search is to "
                        "look at neither"
                    )
    check_output_dir(cfg.OUTPUT_DIR)
    if os.path.isfile(state_file(cfg)) and not args.resume:
        raise UserError(f"a search is in {cfg.OUTPUT_DIR!r} already: go on with it by --resume, or set another OUTPUT_DIR")
    cfg.freeze()
    return cfg


def _is_there(name: str) -> bool:
    try:
        check_paths(name)
    except UserError:  # a test set that is not on this machine shares nothing
        return False
    return True


def check_metric(cfg: CfgNode) -> None:
    """Raises UserError where ONE_SHOT.METRIC is nothing that the detector is evaluated by."""
    figures = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    tasks = ["bbox", *(["segm"] if learns(cfg, "masks") else []), *(["keypoints"] if learns(cfg, "keypoints") else [])]
    every = [f"{task}/{figure}" for task in tasks for figure in figures if (task, figure) != ("keypoints", "APs")]
    if cfg.ONE_SHOT.METRIC not in every:
        raise unknown("ONE_SHOT.METRIC", cfg.ONE_SHOT.METRIC, every)


def main(args) -> None:
    """One process of the search."""
    try:
        search(args)
    except KeyboardInterrupt:
        sys.exit(130)  # its state is saved
    except UserError as error:
        if comm.is_main_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def search(args) -> None:
    """Searches as the command line says, and writes what is found. Raises UserError for what cannot be searched."""
    cfg = setup(args)
    settings, table = cfg.ONE_SHOT, None
    # the first process's: seconds differ between processes, and between one measurement and the next
    if comm.is_main_process():
        measured = settings.COST == "latency" and os.path.isfile(state_file(cfg))
        table = load_costs(state_file(cfg)) if measured else cost_table(cfg, settings.COST, settings.COST_SIZE)
    table = comm.all_gather(table)[0]
    sampler = PathSampler(settings, table, args.method, args.seed)
    sampler.check()
    with quiet():
        evaluator = PathEvaluator(cfg, os.path.join(cfg.OUTPUT_DIR, f"inference_{comm.get_rank()}"))
        archive = search_paths(cfg, sampler, evaluator)
    if not comm.is_main_process():
        return
    best = write_result(cfg, args.config_file, table, archive)
    with quiet():
        write_weights(evaluator, best, os.path.join(cfg.OUTPUT_DIR, "best_subnet.pth"))
    parts = {name: sorted(e.seconds[name] for e in archive)[len(archive) // 2] for name in best.seconds}
    print(
        f"{len(archive)} paths; the best: {settings.METRIC} {best.score:.2f} on {settings.DATASET}, {table.kind} {best.cost:.4g}, {list(best.path)}"
    )
    print("a path takes " + ", ".join(f"{seconds:.2f} s {name}" for name, seconds in parts.items()) + " (medians)")
    detector, weights = (os.path.join(cfg.OUTPUT_DIR, name) for name in ("detector.yaml", "best_subnet.pth"))
    print(f"evaluate it with the supernet's weights: python train_net.py --config-file {detector} --eval-only MODEL.WEIGHTS {weights}")
    print(f"train it by itself: python train_net.py --config-file {detector}, with MODEL.WEIGHTS of step 4, best_subnet.yaml as a classifier")


def argument_parser():
    parser = default_argument_parser(epilog="")
    parser.prog = "python -m backbones.search.one_shot"
    parser.description = __doc__
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: %(default)s)")
    parser.add_argument("--method", choices=METHODS, default="evolution", help="random search is the baseline (default: %(default)s)")
    return parser


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    run(lambda: launch(main, arguments, setup(arguments).MODEL.DEVICE))
