"""What a training-free search leaves: the best structure, its costs, a config that trains it, and a picture."""

import json
import math
import os
from typing import Any, Dict, List, Sequence, Tuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import zoo
from ..files import write_whole
from ..maedet import MAEDET, Block, format_structure
from .entropy import STRUCTURES, Costs, Meter, Plain, plain
from .evolution import BUDGETS, Candidate, SearchProblem, State
from .structure_config import amount


def described(costs: Costs, budget: Dict[str, float]) -> str:
    parts = [f"score {costs.score:.3f}"]
    for name in BUDGETS:
        value = getattr(costs, name)
        if name in budget:
            parts.append(f"{name} {amount(name, value)} of {amount(name, budget[name])}")
        elif name != "latency":
            parts.append(f"{name} {amount(name, value)}")
    return ", ".join(parts)


def write_result(config: Dict[str, Any], problem: SearchProblem, best: Candidate, output: str, how: Dict[str, Any]) -> None:
    structure = tuple(Block(*block) for block in best)
    costs = problem.meter.measure(best)
    detector = zoo.get_config_file(config["detector"])
    text = f"""# The structure of highest entropy that a search found; its numbers are in best.json
_BASE_: {json.dumps(detector)}
MODEL:
  MAEDET:
    STRUCTURE: "best_structure.txt"
    WIDTH: 1.0
OUTPUT_DIR: {json.dumps(os.path.join(output, "training"))}
"""
    about = {**describe(best, problem.meter), "budget": problem.budget, **how}
    for name, content in (
        ("best_structure.txt", format_structure(structure)),
        ("detector.yaml", text),
        ("best.json", json.dumps(about, indent=1) + "\n"),
    ):
        write_whole(os.path.join(output, name), content)
    print(f"{os.path.join(output, 'best_structure.txt')}: {described(costs, problem.budget)}")
    print(f"train it: backbones train --config-file {os.path.join(output, 'detector.yaml')} --num-gpus 8")


def describe(structure: Sequence[Plain], meter: Meter) -> Dict[str, Any]:
    """Score, its parts, and what the structure costs, by the search's counter at its image size and by fvcore's at 800x1280."""
    costs = meter.measure(structure)
    result = {
        "score": costs.score,
        "stages": meter.stages(structure),
        "image_size": meter.image_size,
        "flops": costs.flops,
        "fvcore_flops_800x1280": fvcore_flops(structure),
        "parameters": costs.parameters,
        "layers": costs.layers,
    }
    return {**result, "latency": costs.latency} if meter.table else result


def fvcore_flops(structure: Sequence[Plain], size: Tuple[int, int] = (800, 1280)) -> int:
    """Multiply-adds of the convolutions, and two for each value that a batch norm gives, which is fvcore's count."""

    def conv(x: Sequence[int], weight: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
        return math.prod(out_shape) * (math.prod(weight[1:]) + 2)

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution: conv})
    with torch.device("meta"):
        net, image = MAEDET([Block(*block) for block in structure], norm="BN").eval(), torch.empty(1, 3, *size)
    with torch.no_grad(), counter:
        net(image)
    return counter.get_total_flops()


def plot_search(problem: SearchProblem, state: State, history: List, best: Candidate, path: str) -> None:
    """The best score against candidates, and the last population against what is budgeted, beside networks that are known."""
    from matplotlib.figure import Figure

    names = list(problem.budget)[:3]
    figure = Figure(figsize=(5 * (1 + len(names)), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    axes[0].step([done for done, _ in history], [score for _, score in history], where="post")
    axes[0].set_xlabel("candidates")
    axes[0].set_ylabel("score of the best")
    measured_ = [problem.meter.measure(structure) for _, structure in state.population]
    own = problem.meter.measure(best)
    units = {"flops": (1e9, f"GFLOPs at {problem.meter.image_size} pixels"), "parameters": (1e6, "million parameters"), "layers": (1, "layers")}
    for axis, name in zip(axes[1:], names):
        scale, label = units.get(name, (1e-3, "milliseconds"))
        axis.scatter([getattr(c, name) / scale for c in measured_], [c.score for c in measured_], s=8, label="last population")
        axis.scatter([getattr(own, name) / scale], [own.score], marker="*", s=140, color="tab:red", label="the best", zorder=3)
        for known, structure in STRUCTURES.items():
            if not problem.meter.table:
                costs = problem.meter.measure(plain(structure))
                if getattr(costs, name) <= 2 * problem.budget[name]:
                    axis.annotate(known, (getattr(costs, name) / scale, costs.score), fontsize=8, ha="center", va="bottom")
                    axis.plot([getattr(costs, name) / scale], [costs.score], "k.", markersize=4)
        axis.axvline(problem.budget[name] / scale, color="gray", linestyle="--", label="budget")
        axis.set_xlabel(label)
        axis.set_ylabel("score")
        axis.legend(fontsize=8, loc="upper left")
    figure.savefig(path, dpi=110)
