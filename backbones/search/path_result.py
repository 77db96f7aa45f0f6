"""What a one-shot search leaves: the best path as a subnet file, a config and weights, and pictures."""

import json
import os
from typing import Any, Sequence

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from matplotlib.figure import Figure

from ..config import add_backbones_config, all_keys, get, merge_file
from ..data.holdout import KEPT
from ..errors import UserError
from ..files import replacing, write_whole
from ..shufflenetv2 import CHOICES, SPECS, STAGES
from .path_evaluator import PathEvaluator
from .paths import CostTable, Evaluated, pareto, subnet_of


def write_result(cfg: CfgNode, config_file: str, table: CostTable, archive: Sequence[Evaluated]) -> Evaluated:
    """The best path as a subnet file and a config, and the pictures."""
    best = max(archive, key=lambda e: e.score)
    net = subnet_of(cfg, best.path)
    subnet = (
        f"network: {cfg.MODEL.SHUFFLENETV2.NAME}\nchoices: [{', '.join(map(str, best.path))}]\nsplit: {net.split}\nshuffle: {net.shuffle}\n"
        f"width: {cfg.MODEL.SHUFFLENETV2.WIDTH!r}\nscore: {best.score!r}  # {cfg.ONE_SHOT.METRIC} on {cfg.ONE_SHOT.DATASET}\n"
        f"{table.kind}: {best.cost!r}\n"
    )
    config = "# What a one-shot search found, to be trained by itself\n" + yaml.safe_dump(_own_config(cfg, config_file), sort_keys=False)
    try:
        for filename, text in (("best_subnet.yaml", subnet), ("detector.yaml", config)):
            write_whole(os.path.join(cfg.OUTPUT_DIR, filename), text)
        _plot_archive(cfg, table, archive, best)
        _plot_path(cfg, best)
    except OSError as error:
        raise UserError(f"the result cannot be written: {error}") from error
    return best


def _own_config(cfg: CfgNode, config_file: str) -> dict[str, Any]:
    """What the config of the found network says beside the supernet's file: all that the command line changed, and the network in its place."""
    before = get_cfg()
    add_backbones_config(before)
    merge_file(before, config_file)
    known = set(all_keys(before))
    values = {key: get(cfg, key) for key in all_keys(cfg) if key not in known or get(cfg, key) != get(before, key)}
    values = {key: value for key, value in values.items() if not key.startswith("ONE_SHOT.")}
    whole = {entry[0] + KEPT: entry[0] for entry in cfg.DATASETS.HOLD_OUT}  # nothing is held out any more
    values.update(
        {
            "MODEL.WEIGHTS": "",
            "MODEL.SHUFFLENETV2.SUPERNET": False,
            "MODEL.SHUFFLENETV2.SUBNET": "best_subnet.yaml",
            "DATASETS.TRAIN": [whole.get(name, name) for name in cfg.DATASETS.TRAIN],
            "DATASETS.HOLD_OUT": [],
            "OUTPUT_DIR": os.path.join(cfg.OUTPUT_DIR, "training"),
        }
    )
    result: dict[str, Any] = {"_BASE_": os.path.abspath(config_file)}
    for key, value in values.items():
        *nodes, leaf = key.split(".")
        node = result
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = json.loads(json.dumps(value))
    return result


def write_weights(evaluator: PathEvaluator, best: Evaluated, path: str) -> None:
    """The best path as a detector with the supernet's weights and norms of its own, as it was scored."""
    model = evaluator.extract(best.path)
    evaluator.recalibrate(model)
    data = {"model": {key: value.cpu() for key, value in model.state_dict().items()}, "conventions": dict(evaluator.supernet.conventions)}
    with replacing(path) as partial:
        torch.save(data, partial)


def _plot_archive(cfg: CfgNode, table: CostTable, archive: Sequence[Evaluated], best: Evaluated) -> None:
    """Scores by generation, and against costs."""
    scale, unit = {"macs": (1e6, "million multiply-adds"), "parameters": (1e6, "million parameters")}.get(table.kind, (1e-3, "milliseconds"))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    scores, front = [e.score for e in archive], pareto(archive)
    ends = sorted({e.generation for e in archive})
    left.scatter([e.generation + 1 for e in archive], scores, s=10, alpha=0.6, label="paths")
    highest = [max(e.score for e in archive if e.generation <= g) for g in ends]
    left.step([g + 1 for g in ends], highest, where="mid", label="best so far")
    left.set_xlabel("generation")
    left.set_xticks([g + 1 for g in ends])
    right.scatter([e.cost / scale for e in archive], scores, s=10, alpha=0.6, label="paths")
    right.step([e.cost / scale for e in front], [e.score for e in front], where="post", color="tab:orange", label="Pareto front")
    right.scatter([best.cost / scale], [best.score], marker="*", s=140, color="tab:red", label="the best", zorder=3)
    right.set_xlabel(unit)
    for axis in (left, right):
        axis.set_ylabel(f"{cfg.ONE_SHOT.METRIC} on {cfg.ONE_SHOT.DATASET}")
        axis.legend(fontsize=8)
    figure.savefig(os.path.join(cfg.OUTPUT_DIR, "search.png"), dpi=110)


def _plot_path(cfg: CfgNode, best: Evaluated) -> None:
    """The choice of each block."""
    figure = Figure(figsize=(0.42 * len(best.path) + 2, 2.4), layout="constrained")
    axis = figure.subplots()
    axis.imshow(np.eye(len(CHOICES))[list(best.path)].T, cmap="Blues", vmax=1.5, origin="lower", aspect="auto")
    axis.plot(best.path, color="black", linewidth=1)
    edge = -0.5
    for stage, count in zip(STAGES[1:], SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks):
        axis.text(edge + count / 2, len(CHOICES) - 0.4, stage, ha="center")
        edge += count
        axis.axvline(edge, color="gray", linewidth=1.5)
    axis.set_yticks(range(len(CHOICES)), CHOICES)
    axis.set_xticks([])
    figure.savefig(os.path.join(cfg.OUTPUT_DIR, "path.png"), dpi=110)
