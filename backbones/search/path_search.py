"""The search over a supernet's paths, in one process or several; its state is saved after every path, so that it can be killed and go on."""

import dataclasses
import json
import math
import os
from typing import Any, Callable, Iterable

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import all_keys, get
from ..documents import read_json, reading
from ..errors import UserError
from ..files import sha256, write_whole
from ..shufflenetv2 import CHOICES
from . import progress
from .paths import CostTable, Evaluated, Path, PathSampler

# keys that a search may be resumed with other values of
_NO_MATTER = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "ONE_SHOT.GENERATIONS", "SOLVER.", "VIS_PERIOD", "SEED")


def state_file(cfg: CfgNode) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "search.json")


def search_paths(cfg: CfgNode, sampler: PathSampler, evaluate: Callable[[Path], tuple[float, dict[str, float]]]) -> list[Evaluated]:
    """Runs, or goes on with, a search in ``cfg.OUTPUT_DIR``; in every process of a run, with the same result in all.

    Returns all that was evaluated, in order.
    """
    identity = identity_of(cfg, sampler)
    archive = comm.all_gather(load_archive(state_file(cfg), identity) if comm.is_main_process() else None)[0]
    settings, processes, rank = cfg.ONE_SHOT, comm.get_world_size(), comm.get_rank()
    total = settings.GENERATIONS * settings.POPULATION
    with progress(total=total, initial=len(archive), unit="path", disable=not comm.is_main_process()) as bar:
        for generation in range(settings.GENERATIONS):
            done = {e.path for e in archive}
            waiting = [p for p in sampler.propose(generation, [e for e in archive if e.generation < generation]) if p not in done]
            for first in range(0, len(waiting), processes):
                chunk = waiting[first : first + processes]
                mine = (chunk[rank], *evaluate(chunk[rank])) if rank < len(chunk) else None
                for path, (same, score, seconds) in zip(chunk, comm.all_gather(mine)):
                    assert same == path, "processes propose other paths"
                    archive.append(Evaluated(path, sampler.table.cost(path), score, generation, seconds))
                if comm.is_main_process():
                    write_whole(state_file(cfg), json.dumps({"search": identity, "archive": [dataclasses.asdict(e) for e in archive]}))
                bar.update(len(chunk))
                best = max(e.score for e in archive)
                bar.set_postfix_str(f"generation {generation + 1}/{settings.GENERATIONS}, best {best:.2f}", refresh=False)
    return archive


def identity_of(cfg: CfgNode, sampler: PathSampler) -> dict[str, Any]:
    """All that the result follows from, but for how many generations there are to be."""
    about = {"weights": sha256(cfg.MODEL.WEIGHTS), "table": dataclasses.asdict(sampler.table), "method": sampler.method, "seed": sampler.seed}
    return json.loads(json.dumps({**about, "config": config_values(cfg)}))


def config_values(cfg: CfgNode) -> dict[str, Any]:
    """The keys that scores follow from, with their values."""
    return {key: get(cfg, key) for key in all_keys(cfg) if not key.startswith(_NO_MATTER)}


def load_archive(path: str, identity: dict[str, Any]) -> list[Evaluated]:
    """What the search of that ``identity`` has evaluated so far: nothing where no state is there. Raises UserError for any other's state."""
    if not os.path.isfile(path):
        return []
    with reading(f"{path!r} is no state of a search"):
        data = read_json(path)
        differ = [key for key in identity if key != "config" and data["search"].get(key) != identity[key]]
        before = data["search"]["config"]
        differ += sorted(key for key in {*before, *identity["config"]} if before.get(key) != identity["config"].get(key))
        archive = [_evaluated(entry, len(identity["table"]["blocks"])) for entry in data["archive"]]
    if differ:
        named = ", ".join(differ[:5]) + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
        raise UserError(f"--resume: the search in {os.path.dirname(path)!r} has another {named}: set another OUTPUT_DIR")
    return archive


def _evaluated(entry: dict[str, Any], blocks: int) -> Evaluated:
    """One entry of a state file; raises ValueError or TypeError for what no search writes."""
    result = Evaluated(**{**entry, "path": tuple(entry["path"])})
    if len(result.path) != blocks or any(type(c) is not int or c not in range(len(CHOICES)) for c in result.path):
        raise ValueError(f"{list(result.path)} is no path of {blocks} blocks")
    if type(result.generation) is not int or not _finite([result.cost, result.score, *result.seconds.values()]):
        raise ValueError(f"the path {list(result.path)} has values that are no numbers")
    return result


def _finite(values: Iterable[Any]) -> bool:
    return all(type(v) in (int, float) and math.isfinite(v) for v in values)


def load_costs(path: str) -> CostTable:
    """The costs that a state file's search has gone by. Raises UserError for what is no state."""
    with reading(f"{path!r} is no state of a search"):
        saved = read_json(path)["search"]["table"]
        table = CostTable(str(saved["kind"]), saved["base"], tuple(tuple(row) for row in saved["blocks"]))
        if not _finite([table.base, *(cost for row in table.blocks for cost in row)]) or not all(table.blocks):
            raise ValueError("its table has costs that are no numbers")
        return table
