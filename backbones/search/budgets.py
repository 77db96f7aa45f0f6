"""Whether budgets in milliseconds are kept: what both searches find for three budgets in each of two runtimes, and how long it takes."""

import contextlib
import json
import os
import statistics
import tempfile
from typing import Any, Iterator

import yaml

from .. import timing, zoo
from ..errors import UserError
from .latency import LatencyTable, build_table, measured
from .one_shot import best_of
from .paths import CostTable, Evaluated, PathSampler, cost_table, path_seconds
from .structure_config import load_structure_config
from .structure_search import search_structures

SIZE = 480
RUNTIMES = ("optimized", "openvino")
SUPERNET = "digits/detnas_supernet_digits.yaml"
_SECONDS = (0.02, 0.04, 0.08)  # for structures, whose times vary a hundredfold
_PARTS = (0.25, 0.5, 0.75)  # for paths: between the fastest and the slowest one
_PATHS = 24


def suite(count: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Yields a row for each search: "milliseconds" asked, predicted by the corrected table, measured by the search, and measured again."""
    about = timing.about(device)
    for runtime in RUNTIMES:
        with tempfile.TemporaryDirectory() as folder:
            table = build_table(SIZE, device, (3, 5), 2048, 1, 0.02, runtime)
            for asked in _SECONDS:
                found = structure_within(table, asked, folder)
                again = statistics.median(measured(found["structure"], table) for _ in range(count))
                yield _row(f"budgets/structures/{runtime}", asked, again, found, about)
            cfg = zoo.get_config(SUPERNET)
            cfg.MODEL.DEVICE, cfg.ONE_SHOT.RUNTIME, cfg.ONE_SHOT.COST, cfg.ONE_SHOT.COST_SIZE = device, runtime, "latency", [SIZE, SIZE]
            costs = cost_table(cfg, "latency", cfg.ONE_SHOT.COST_SIZE)
            low, high = costs.range()
            for part in _PARTS:
                asked = round(low + part * (high - low), 4)
                found = path_within(cfg, costs, asked)
                again = statistics.median(path_seconds(cfg, found["path"]) for _ in range(count))
                yield _row(f"budgets/paths/{runtime}", asked, again, found, about)


def _row(name: str, asked: float, again: float, found: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    times = {"asked": asked, **{key: found[key] for key in ("predicted", "measured")}, "again": again}
    milliseconds = {key: round(1e3 * seconds, 2) for key, seconds in times.items()}
    return {
        "name": f"{name}/{milliseconds['asked']:g}ms",
        "size": SIZE,
        "milliseconds": milliseconds,
        "searches": found.get("searches", 1),
        **about,
    }


def structure_within(table: LatencyTable, asked: float, folder: str) -> dict[str, Any]:
    """The "structure" found within a budget of seconds, its "predicted" and "measured" seconds, and how many "searches" it took."""
    output = os.path.join(folder, f"{1e3 * asked:g}ms")
    os.makedirs(output)
    table.save(os.path.join(output, "latency.json"))
    with open(os.path.join(output, "budget.yaml"), "w") as f:
        yaml.safe_dump({"budget": {"latency": asked}, "latency_table": "latency.json", "image_size": table.image_size}, f)
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        found = search_structures(load_structure_config(os.path.join(output, "budget.yaml")), 0, output, os.cpu_count() or 1, False)
    with open(os.path.join(output, "state.json")) as f:
        tries = json.load(f)["tries"]
    chosen = next(taken for taken in tries[::-1] if taken["structure"] == [list(block) for block in found])
    return {"structure": found, "predicted": chosen["predicted"], "measured": chosen["measured"], "searches": len(tries)}


def path_within(cfg: Any, costs: CostTable, asked: float) -> dict[str, Any]:
    """The "path" that a search takes within a limit of seconds, with its "predicted" and "measured" seconds.

    The paths are those of a search's first generation, at most 5 % faster than the limit by the table. Their order is random: which of them a
    supernet prefers is not measured here.
    """
    cfg = cfg.clone()
    cfg.ONE_SHOT.MAX_COST, cfg.ONE_SHOT.MIN_COST, cfg.ONE_SHOT.POPULATION = asked, 0.95 * asked, _PATHS
    paths = PathSampler(cfg.ONE_SHOT, costs, "random", 0).propose(0, [])
    if not paths:
        raise UserError(f"no path is within 5 % of {1e3 * asked:.3g} ms", "value")
    archive = [Evaluated(path, costs.cost(path), -float(i), 0, {}) for i, path in enumerate(paths)]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        best = best_of(cfg, costs, archive)
    return {"path": best.path, "predicted": costs.cost(best.path), "measured": best.cost}
