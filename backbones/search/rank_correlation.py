"""Does the search work? Trains paths of equal cost on their own, and compares them with the supernet's scores.

python -m backbones.search.rank_correlation --config-file digits/detnas_supernet_digits.yaml --subnet output/detnas/search/best_subnet.yaml \\
    --paths 8 --pretrain digits/detnas_subnet_classes_digits.yaml --train digits/detnas_subnet_digits.yaml --json rank.json \\
    MODEL.WEIGHTS output/detnas/supernet/model_final.pth MODEL.DEVICE cpu OUTPUT_DIR output/detnas/rank

The first path is the one found; the others are random, of its cost or slightly less. All are trained with the same configs. They start
from random weights, from a classifier's (--pretrain), or from their weights in the supernet (--inherit). The comparison is a row of the JSON
file, written after each path, so that a stopped run continues.
"""

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import logging
import os
import random
import subprocess
import sys
from typing import Any, Sequence

import numpy as np
from detectron2.config import CfgNode

from .. import zoo
from ..choices import random_path
from ..config import check_output_file
from ..documents import read_json, reading
from ..errors import UserError
from ..files import sha256
from ..shufflenetv2 import read_subnet
from ..tools import parser_of, plot, run
from ..tools.benchmark import machine, record
from .one_shot import open_supernet, prepare
from .path_evaluator import PathEvaluator
from .paths import CostTable, config_values, cost_table, costs_of, default_values


def paths_of_one_cost(
    table: CostTable, highest: float, count: int, window: float, seed: int, found: Sequence[int] = (), stages: Sequence[int] = ()
) -> list[tuple]:
    """``count`` random paths other than ``found`` that cost (1 - window) to 1 times ``highest``. Raises UserError if there are fewer.

    With ``stages``, the number of blocks of each, all blocks of a stage have the same choice.
    """
    rng = random.Random(seed)
    result: list[tuple] = []
    for _ in range(100_000):
        path = random_path(len(stages or table.blocks), rng, table.choices)
        if stages:
            path = tuple(choice for choice, blocks in zip(path, stages) for _ in range(blocks))
        if (1 - window) * highest <= table.cost(path) <= highest and path != tuple(found) and path not in result:
            result.append(path)
            if len(result) == count:
                return result
    raise UserError(f"only {len(result)} random paths cost from {1 - window:g} to 1 of {highest:.4g}: give a larger --window")


def train_path(path: Sequence[int], args: argparse.Namespace, metric: str, cfg: CfgNode, folder: str) -> float:
    """The metric of a path of ``cfg``'s supernet on its own, trained as the flags say."""
    common = ["MODEL.DEVICE", cfg.MODEL.DEVICE, "SEED", str(args.seed), "MODEL.SHUFFLENETV2.CHOICES", str(list(path))]
    for key in ("NAME", "SPLIT", "SHUFFLE", "WIDTH", "BRANCH_WIDTHS"):  # the same network, whatever those configs say
        common += [f"MODEL.SHUFFLENETV2.{key}", str(cfg.MODEL.SHUFFLENETV2[key])]
    weights = ["MODEL.WEIGHTS", os.path.abspath(cfg.MODEL.WEIGHTS)] if args.inherit else []
    for name, step in (("classes", args.pretrain), ("detector", args.train)):
        if not step:
            continue
        output = os.path.join(folder, name)
        command = [sys.executable, "-m", "backbones", "train", "--overwrite", "--config-file", zoo.get_config_file(step)]
        command += [*common, *weights, *args.train_opts, "OUTPUT_DIR", output]
        os.makedirs(folder, exist_ok=True)
        with open(f"{output}.txt", "w") as log:
            if subprocess.call(command, stdout=log, stderr=subprocess.STDOUT):
                raise UserError(f"training a path failed: see {output}.txt")
        weights = ["MODEL.WEIGHTS", os.path.join(output, "model_final.pth")]
    final = plot.read_metrics(output)[-1]
    if metric not in final:
        raise UserError(f"{metric} is not among the metrics of training: {', '.join(key for key in final if '/' in key)}")
    return float(np.nan_to_num(final[metric]))  # NaN: nothing was found


def load_paths(path: str, identity: str) -> tuple[list[dict[str, Any]], CostTable | None]:
    """The paths of that comparison so far, and its table of costs if that was measured; none without a file.

    Raises UserError for a file that no comparison wrote.
    """
    if not os.path.isfile(path):
        return [], None
    with reading(f"--json {path!r} is not a file of comparisons"):
        rows = [row for row in read_json(path)["runs"] if row["comparison"] == identity]
        table = costs_of(rows[0]["table"]) if rows and "table" in rows[0] else None
        paths = list(rows[0]["paths"]) if rows else []
        for row in paths:
            times = row.get("seconds", {})
            if any(type(value) not in (int, float) for value in (row["cost"], row["supernet"], row["trained"], *times.values())):
                raise ValueError("an entry has values that are not numbers")
            if times.keys() != paths[0].get("seconds", {}).keys():
                raise ValueError("its entries have seconds of different parts")
            tuple(row["path"])
    return paths, table


def compared(path: str) -> list[dict[str, Any]]:
    """The whole comparisons of a file. Raises UserError for a file that no comparison wrote."""
    with reading(f"{path!r} is not a file of comparisons"):
        rows = [row for row in read_json(path)["runs"] if len(row["paths"]) == row["random_paths"] + 1]
        if not all(type(row[key]) in (int, float) for row in rows for key in ("seed", "found", "others_mean", "others_best", "spearman")):
            raise ValueError("a comparison has values that are not numbers")
        return rows


def ahead(rows: Sequence[dict[str, Any]]) -> int:
    """How many comparisons found a path better than the mean of the random ones."""
    return sum(row["found"] > row["others_mean"] for row in rows)


def check_comparison(count: int, path: str) -> None:
    """Raises UserError if ``count`` paths cannot be compared, or the file ``path`` cannot take the comparison."""
    if importlib.util.find_spec("scipy") is None:
        raise UserError("rank correlations need a package that is not installed: pip install scipy", "missing-package", suggestion="scipy")
    if count < 2:
        raise UserError(f"{count} random paths are too few: compare at least 2", "value", "--paths")
    check_output_file(path, "--json")
    if os.path.isfile(path):
        compared(path)


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The found path against the others, the rank correlation of supernet and training, and the median seconds of an evaluation."""
    from scipy.stats import kendalltau, spearmanr

    scores, reached = [r["supernet"] for r in rows], [r["trained"] for r in rows]
    others = reached[1:]
    timed = [r["seconds"] for r in rows if "seconds" in r]
    return {
        **({"seconds": {part: float(np.median([t[part] for t in timed])) for part in timed[0]}} if timed else {}),
        "found": reached[0],
        "others_mean": float(np.mean(others)),
        "others_best": max(others),
        "spearman": float(spearmanr(scores, reached).statistic),
        "kendall": float(kendalltau(scores, reached).statistic),  # tau-b
    }


def main() -> None:
    parser = parser_of("python -m backbones.search.rank_correlation", __doc__)
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the supernet's")
    parser.add_argument("--subnet", required=True, metavar="FILE", help="best_subnet.yaml of the search")
    parser.add_argument("--train", required=True, metavar="FILE", help="the config to train each path with")
    parser.add_argument("--pretrain", default="", metavar="FILE", help="a config to pretrain each path with, as a classifier")
    parser.add_argument("--inherit", action="store_true", help="start each path from its weights in the supernet")
    parser.add_argument("--paths", type=int, default=8, help="number of random paths (default: %(default)s)")
    parser.add_argument("--window", type=float, default=0.03, help="how much less they may cost, as a fraction (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the paths and of training (default: %(default)s)")
    parser.add_argument("--json", required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("--train-opts", nargs="+", default=[], metavar="KEY VALUE", help="overrides of --pretrain and --train")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides of the supernet's config, KEY VALUE each")
    args = parser.parse_args()
    check_comparison(args.paths, args.json)
    if not 0 < args.window < 1:
        raise UserError(f"--window {args.window}: it must be from 0 to 1", "value", "--window")
    if args.inherit and args.pretrain:
        raise UserError("--inherit and --pretrain exclude each other: both say what a path starts from", "conflict", "--inherit")
    args.resume = True
    cfg = prepare(open_supernet(args), args).cfg
    for flag, config in (("--train", args.train), ("--pretrain", args.pretrain)):
        if config and zoo.get_config_file(config).endswith(".py"):
            raise UserError(f"{flag} {config!r} is a Python config: paths are trained with YAML configs", "unsupported", flag)
    found = read_subnet(cfg.MODEL.SHUFFLENETV2, args.subnet)
    start = "the supernet" if args.inherit else args.pretrain or "random weights"
    about = {"config": args.train, "start": start, "metric": cfg.ONE_SHOT.METRIC, "cost": cfg.ONE_SHOT.COST, "seed": args.seed}
    about["settings"] = [zoo.digest(config) for config in (args.train, args.pretrain) if config]
    about.update(dataset=cfg.ONE_SHOT.DATASET, window=args.window, random_paths=args.paths, supernet=sha256(cfg.MODEL.WEIGHTS))
    usual, values = default_values(), json.loads(json.dumps(config_values(cfg)))
    own = {key: value for key, value in values.items() if key not in usual or value != usual[key]}  # a key that comes later changes nothing
    about["supernet_config"] = hashlib.sha256(json.dumps([own, args.train_opts], sort_keys=True).encode()).hexdigest()
    identity = hashlib.sha256(json.dumps([about, found]).encode()).hexdigest()[:12]
    rows, table = load_paths(args.json, identity)
    table = table or cost_table(cfg, cfg.ONE_SHOT.COST, cfg.ONE_SHOT.COST_SIZE)
    measured = {"table": dataclasses.asdict(table)} if table.kind == "latency" else {}  # measured again, it would be another
    paths = [found, *paths_of_one_cost(table, table.cost(found), args.paths, args.window, args.seed, found)]
    if [tuple(r["path"]) for r in rows] != paths[: len(rows)]:
        raise UserError(f"--json {args.json!r} holds other paths in comparison {identity!r}: name another file")
    logging.disable(logging.INFO)  # detectron2 logs every evaluation
    evaluator = PathEvaluator(cfg, os.path.join(cfg.OUTPUT_DIR, "inference"))
    for i, path in enumerate(paths[len(rows) :], len(rows)):
        score, seconds = evaluator(path)
        reached = train_path(path, args, about["metric"], cfg, os.path.join(cfg.OUTPUT_DIR, f"path{i}"))
        rows.append({"path": list(path), "cost": table.cost(path), "supernet": score, "trained": reached, "seconds": seconds})
        row = {"comparison": identity, **about, "machine": machine(), **measured, **(summary(rows) if len(rows) > 2 else {}), "paths": rows}
        record(row, args.json, ("comparison",))
        kind = "found" if i == 0 else "random"
        print(f"{i + 1}/{len(paths)} {kind}: supernet {score:.2f}, trained {reached:.2f}, {table.kind} {table.cost(path):.4g}", flush=True)
    result = summary(rows)
    others = f"mean {result['others_mean']:.2f}, best {result['others_best']:.2f}"
    print(f"found: {result['found']:.2f}; {len(rows) - 1} random paths of the same cost: {others}")
    print(f"rank correlation of the supernet's scores: Spearman {result['spearman']:.2f}, Kendall {result['kendall']:.2f}")


if __name__ == "__main__":
    run(main)
