"""Does the search work? Trains paths of equal cost on their own, and compares them with the supernet's scores.

python -m backbones.search.rank_correlation --config-file digits/detnas_supernet_digits.yaml --subnet output/detnas/search/best_subnet.yaml \\
    --paths 8 --pretrain digits/detnas_subnet_classes_digits.yaml --train digits/detnas_subnet_digits.yaml --json rank.json \\
    MODEL.WEIGHTS output/detnas/supernet/model_final.pth MODEL.DEVICE cpu OUTPUT_DIR output/detnas/rank

The first path is the one found; the others are random, of its cost or slightly less. All are trained with the
same configs. Results in the JSON file are reused, so a stopped run can continue.
"""

import argparse
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
from ..choices import random_path, read_choices
from ..config import check_output_file
from ..documents import read_json, reading
from ..errors import UserError
from ..files import sha256, write_whole
from ..shufflenetv2 import SPECS
from ..tools import parser_of, plot, run
from ..tools.benchmark import machine
from .one_shot import open_supernet, prepare
from .path_evaluator import PathEvaluator
from .paths import CostTable, config_values, cost_table


def paths_of_one_cost(table: CostTable, highest: float, count: int, window: float, seed: int, found: Sequence[int] = ()) -> list[tuple]:
    """``count`` random paths other than ``found`` that cost (1 - window) to 1 times ``highest``. Raises UserError if there are fewer."""
    rng = random.Random(seed)
    result: list[tuple] = []
    for _ in range(100_000):
        path = random_path(len(table.blocks), rng, table.choices)
        if (1 - window) * highest <= table.cost(path) <= highest and path != tuple(found) and path not in result:
            result.append(path)
            if len(result) == count:
                return result
    raise UserError(f"only {len(result)} random paths cost from {1 - window:g} to 1 of {highest:.4g}: give a larger --window")


def train_path(path: Sequence[int], pretrain: str, config: str, metric: str, cfg: CfgNode, folder: str, seed: int) -> float:
    """The metric of a path of ``cfg``'s supernet on its own: pretrained with one config, trained with another."""
    common = ["MODEL.DEVICE", cfg.MODEL.DEVICE, "SEED", str(seed), "MODEL.SHUFFLENETV2.CHOICES", str(list(path))]
    for key in ("NAME", "SPLIT", "SHUFFLE", "WIDTH", "BRANCH_WIDTHS"):  # the same network, whatever those configs say
        common += [f"MODEL.SHUFFLENETV2.{key}", str(cfg.MODEL.SHUFFLENETV2[key])]
    weights: list[str] = []
    for name, step in (("classes", pretrain), ("detector", config)):
        if not step:
            continue
        output = os.path.join(folder, name)
        command = [sys.executable, "-m", "backbones", "train", "--overwrite", "--config-file", zoo.get_config_file(step)]
        command += [*common, *weights, "OUTPUT_DIR", output]
        os.makedirs(folder, exist_ok=True)
        with open(f"{output}.txt", "w") as log:
            if subprocess.call(command, stdout=log, stderr=subprocess.STDOUT):
                raise UserError(f"training a path failed: see {output}.txt")
        weights = ["MODEL.WEIGHTS", os.path.join(output, "model_final.pth")]
    final = plot.read_metrics(output)[-1]
    if metric not in final:
        raise UserError(f"{metric} is not among the metrics of training: {', '.join(key for key in final if '/' in key)}")
    return final[metric]


def load_rows(path: str, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of a comparison so far; none without a file. Raises UserError for another comparison's file."""
    if not os.path.isfile(path):
        return []
    with reading(f"--json {path!r} is not a comparison"):
        data = read_json(path)
        differ = [key for key, value in json.loads(json.dumps(about)).items() if data[key] != value]
        rows = list(data["paths"])
        for row in rows:
            times = row.get("seconds", {})
            if any(type(value) not in (int, float) for value in (row["cost"], row["supernet"], row["trained"], *times.values())):
                raise ValueError("an entry has values that are not numbers")
            if times.keys() != rows[0].get("seconds", {}).keys():
                raise ValueError("its entries have seconds of different parts")
            tuple(row["path"])
    if differ:
        raise UserError(f"--json {path!r} holds a comparison with a different {', '.join(differ)}: name another file", "conflict", "--json")
    return rows


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
    parser.add_argument("--paths", type=int, default=8, help="number of random paths (default: %(default)s)")
    parser.add_argument("--window", type=float, default=0.03, help="how much less they may cost, as a fraction (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the paths and of training (default: %(default)s)")
    parser.add_argument("--json", required=True, metavar="FILE", help="where the figures go")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="overrides of the supernet's config, KEY VALUE each")
    args = parser.parse_args()
    if importlib.util.find_spec("scipy") is None:
        raise UserError("rank correlations need a package that is not installed: pip install scipy", "missing-package", suggestion="scipy")
    if args.paths < 2 or not 0 < args.window < 1:
        raise UserError(f"--paths {args.paths} and --window {args.window}: they must be at least 2, and from 0 to 1")
    check_output_file(args.json, "--json")
    args.resume = True
    cfg = prepare(open_supernet(args), args).cfg
    for config in filter(None, (args.train, args.pretrain)):
        zoo.get_config_file(config)
    table = cost_table(cfg, cfg.ONE_SHOT.COST, cfg.ONE_SHOT.COST_SIZE)
    found = read_choices(args.subnet, SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks, count=table.choices)
    paths = [found, *paths_of_one_cost(table, table.cost(found), args.paths, args.window, args.seed, found)]
    about = {"config": args.train, "pretrain": args.pretrain, "metric": cfg.ONE_SHOT.METRIC, "cost": table.kind, "seed": args.seed}
    about.update(dataset=cfg.ONE_SHOT.DATASET, window=args.window, supernet=sha256(cfg.MODEL.WEIGHTS))
    values = json.dumps(config_values(cfg), sort_keys=True)
    about["supernet_config"] = hashlib.sha256(values.encode()).hexdigest()
    rows = load_rows(args.json, about)
    if [tuple(r["path"]) for r in rows] != paths[: len(rows)]:
        raise UserError(f"--json {args.json!r} holds other paths: name another file")
    logging.disable(logging.INFO)  # detectron2 logs every evaluation
    evaluator = PathEvaluator(cfg, os.path.join(cfg.OUTPUT_DIR, "inference"))
    for i, path in enumerate(paths[len(rows) :], len(rows)):
        score, seconds = evaluator(path)
        reached = train_path(path, args.pretrain, args.train, about["metric"], cfg, os.path.join(cfg.OUTPUT_DIR, f"path{i}"), args.seed)
        rows.append({"path": list(path), "cost": table.cost(path), "supernet": score, "trained": reached, "seconds": seconds})
        result = {**about, "machine": machine(), "paths": rows, **(summary(rows) if len(rows) > 2 else {})}
        write_whole(args.json, json.dumps(result, indent=1) + "\n")
        kind = "found" if i == 0 else "random"
        print(f"{i + 1}/{len(paths)} {kind}: supernet {score:.2f}, trained {reached:.2f}, {table.kind} {table.cost(path):.4g}", flush=True)
    about = summary(rows)
    others = f"mean {about['others_mean']:.2f}, best {about['others_best']:.2f}"
    print(f"found: {about['found']:.2f}; {len(rows) - 1} random paths of the same cost: {others}")
    print(f"rank correlation of the supernet's scores: Spearman {about['spearman']:.2f}, Kendall {about['kendall']:.2f}")


if __name__ == "__main__":
    run(main)
