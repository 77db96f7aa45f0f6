"""The paths of a supernet: their costs, the choice of the next ones, and the search over them, in one process or several.

The state is saved after every path, so that a killed search can resume.
"""

import contextlib
import dataclasses
import json
import math
import os
import random
import statistics
from typing import Any, Callable, Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.utils import comm

from .. import timing
from ..choices import choice_count, random_path
from ..config import all_keys, defaults, get
from ..documents import read_json, reading
from ..errors import UserError, first_of, raised
from ..files import sha256, write_whole
from ..layers import STAGES
from ..meta import conv_counts, on_meta
from ..shufflenetv2 import FAMILY, SPECS, ShuffleNetV2
from . import progress
from .runtimes import all_threads, prepared, seconds

Path = tuple[int, ...]
_WHOLE = 5  # whole paths to measure, to correct a table of seconds
METHODS = ("evolution", "random")
# keys that may change when a search resumes
_NO_MATTER = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "ONE_SHOT.GENERATIONS", "SOLVER.", "VIS_PERIOD", "SEED")


@dataclasses.dataclass(frozen=True)
class CostTable:
    """The cost of each choice of each block; a path costs ``base``, for the stem, plus the sum of its choices."""

    kind: str
    base: float
    blocks: tuple[tuple[float, ...], ...]

    @property
    def choices(self) -> int:
        """The number of choices of a block."""
        return len(self.blocks[0])

    def cost(self, path: Sequence[int]) -> float:
        return self.base + sum(row[choice] for row, choice in zip(self.blocks, path))

    def range(self) -> tuple[float, float]:
        return self.base + sum(map(min, self.blocks)), self.base + sum(map(max, self.blocks))


def cost_table(cfg: CfgNode, kind: str, size: Sequence[int]) -> CostTable:
    """The costs of all choices of ``cfg``'s backbone: "parameters", or on one image of ``size`` its "macs" or "latency" in seconds.

    Seconds are those of the blocks, measured one by one in ONE_SHOT.RUNTIME, times the ratio of whole paths to their blocks.
    """
    measure = {
        "macs": lambda unit, x: conv_counts(unit, x)[0],
        "parameters": lambda unit, x: sum(p.numel() for p in unit.parameters()),
        "latency": lambda unit, x: seconds(prepared(unit, x, cfg.ONE_SHOT.RUNTIME, "channels_last"), 0.02),
    }[kind]
    timed, count = kind == "latency", sum(SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks)
    choices = choice_count(cfg.MODEL.SHUFFLENETV2.BRANCH_WIDTHS)
    device, every = cfg.MODEL.DEVICE if timed else "meta", []
    with torch.no_grad():
        for choice in range(choices):
            with contextlib.nullcontext() if timed else on_meta():
                net = subnet_of(cfg, (choice,) * count).to(device).eval()
            x, costs, known = torch.rand(1, len(cfg.MODEL.PIXEL_MEAN), *size, device=device), [], {}
            for unit in [net.stem, *(block for name in STAGES[1:] for block in getattr(net, name))]:
                key = repr(unit), x.shape  # equal blocks cost the same; seconds are measured for each
                if timed or key not in known:
                    known[key] = measure(unit, x), unit(x)
                cost, x = known[key]
                costs.append(cost)
            every.append(costs)
    table = CostTable(kind, every[-1][0], tuple(zip(*(costs[1:] for costs in every))))
    if not timed:
        return table
    paths = [random_path(count, random.Random(i), choices) for i in range(_WHOLE)]
    factor = statistics.median(path_seconds(cfg, path) / table.cost(path) for path in paths)
    return CostTable(kind, factor * table.base, tuple(tuple(factor * cost for cost in row) for row in table.blocks))


def path_seconds(cfg: CfgNode, path: Sequence[int], enough: float = 0.3) -> float:
    """Seconds of a whole path for an image of ONE_SHOT.COST_SIZE in ONE_SHOT.RUNTIME, measured for about ``enough`` seconds."""
    net, channels = subnet_of(cfg, path).to(cfg.MODEL.DEVICE).eval(), len(cfg.MODEL.PIXEL_MEAN)
    x = torch.rand(1, channels, *cfg.ONE_SHOT.COST_SIZE, device=cfg.MODEL.DEVICE)
    return seconds(prepared(net, x, cfg.ONE_SHOT.RUNTIME), enough)


def subnet_of(cfg: CfgNode, path: Sequence[int]) -> ShuffleNetV2:
    """The network of a path of ``cfg``'s supernet, with its own weights."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.SHUFFLENETV2
    node.SUPERNET, node.SUBNET, node.CHOICES = False, "", list(path)
    return FAMILY.build(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))


@dataclasses.dataclass
class Evaluated:
    """An evaluated path."""

    path: Path
    cost: float
    score: float
    generation: int
    seconds: dict[str, float]  # of extraction, recalibration and inference


def pareto(archive: Iterable[Evaluated]) -> list[Evaluated]:
    """The results that no cheaper one equals, by cost."""
    front: list[Evaluated] = []
    for e in sorted(archive, key=lambda e: (e.cost, -e.score)):
        if not front or e.score > front[-1].score:
            front.append(e)
    return front


@dataclasses.dataclass
class PathSampler:
    """Chooses the paths to try: a generation depends only on the seed and earlier results, and no path is tried twice."""

    settings: CfgNode  # ONE_SHOT
    table: CostTable
    method: str
    seed: int

    def fits(self, path: Sequence[int]) -> bool:
        return self.settings.MIN_COST <= self.table.cost(path) <= self.settings.MAX_COST

    def check(self) -> None:
        """Raises UserError if no path is within the limits."""
        least, most, (low, high) = self.settings.MIN_COST, self.settings.MAX_COST, self.table.range()
        limits = f"ONE_SHOT.MIN_COST {least:.4g} and MAX_COST {most:.4g}"
        there_are = f"{self.table.kind} of the backbone range from {low:.4g} to {high:.4g}"
        if least > most or most < low or least > high:
            raise UserError(f"{limits} allow no path: {there_are}")
        if not self._random(random.Random(0)):
            raise UserError(f"no path was found between {limits}: widen them; {there_are}")
        if least <= low and most >= high and self.table.kind != "macs":
            raise UserError(f"{limits} exclude nothing: {there_are}")

    @classmethod
    def before_training(cls, cfg: CfgNode) -> list[str]:
        """What to say before a supernet trains: why its search would be refused. Nothing if it would not; seconds are not measured for this."""
        settings = cfg.ONE_SHOT
        if settings.COST == "latency":
            return []
        check = cls(settings, cost_table(cfg, settings.COST, settings.COST_SIZE), METHODS[0], 0).check
        return [
            f"{error}: the search would be refused -> set ONE_SHOT.MIN_COST and MAX_COST, now or before the search" for error in raised(check)
        ]

    def propose(self, generation: int, before: Sequence[Evaluated]) -> list[Path]:
        """The paths of a generation; fewer than requested if no more are found."""
        rng = random.Random(f"{self.seed}/{generation}")
        settings = self.settings
        tried: set[Path] = {e.path for e in before}
        paths: list[Path] = []

        def add(count: int, make: Callable[[], Path | None]) -> None:
            wanted = min(len(paths) + count, settings.POPULATION)
            for _ in range(100 * count):
                if len(paths) >= wanted:
                    return
                path = make()
                if path is not None and path not in tried and self.fits(path):
                    tried.add(path)
                    paths.append(path)

        if generation and self.method == "evolution":
            parents = [e.path for e in sorted(before, key=lambda e: -e.score)[: settings.PARENTS]]

            def choose() -> Path:
                return parents[int(rng.random() * len(parents))]

            def choice() -> int:
                return int(rng.random() * self.table.choices)

            add(settings.MUTATIONS, lambda: tuple(choice() if rng.random() < settings.MUTATION_PROB else c for c in choose()))
            add(settings.CROSSOVERS, lambda: tuple(a if rng.random() < 0.5 else b for a, b in zip(choose(), choose())))
        add(settings.POPULATION - len(paths), lambda: self._random(rng))
        return paths

    def _random(self, rng: random.Random) -> Path | None:
        """A path within the limits: a random one, or if those are rare, one moved there block by block."""
        rows = self.table.blocks
        for _ in range(50):
            path = list(random_path(len(rows), rng, self.table.choices))
            if self.fits(path):
                return tuple(path)
        for _ in range(200):
            if self.fits(path):
                return tuple(path)
            i = int(rng.random() * len(rows))
            now, down = rows[i][path[i]], self.table.cost(path) > self.settings.MAX_COST
            better = [choice for choice, cost in enumerate(rows[i]) if cost != now and (cost < now) == down]
            if better:
                path[i] = better[int(rng.random() * len(better))]
        return None


def state_file(cfg: CfgNode) -> str:
    return os.path.join(cfg.OUTPUT_DIR, "search.json")


def search_paths(cfg: CfgNode, sampler: PathSampler, evaluate: Callable[[Path], tuple[float, dict[str, float]]]) -> list[Evaluated]:
    """Runs or resumes a search in ``cfg.OUTPUT_DIR``; call it in every process, all get the same result.

    Returns everything evaluated, in order.
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
    """All that the result depends on, except the number of generations."""
    about: dict[str, Any] = {"weights": sha256(cfg.MODEL.WEIGHTS), "table": dataclasses.asdict(sampler.table), "method": sampler.method}
    about["seed"] = sampler.seed
    if sampler.table.kind == "latency":  # seconds are of one place
        with all_threads():
            here = timing.about(cfg.MODEL.DEVICE)
        about["place"] = f"{here['machine']}, {here['threads']} threads"
    return json.loads(json.dumps({**about, "config": config_values(cfg)}))


def config_values(cfg: CfgNode) -> dict[str, Any]:
    """The keys that scores depend on, with their values."""
    return {key: get(cfg, key) for key in all_keys(cfg) if not key.startswith(_NO_MATTER)}


def default_values() -> dict[str, Any]:
    """The default values of all keys that scores depend on, as JSON."""
    return json.loads(json.dumps(config_values(defaults())))


def load_archive(path: str, identity: dict[str, Any]) -> list[Evaluated]:
    """What the search of that ``identity`` has evaluated so far; nothing without a state. Raises UserError for another search's state."""
    if not os.path.isfile(path):
        return []
    with reading(f"{path!r} is no state of a search"):
        data = read_json(path)
        saved = {"place": identity.get("place"), **data["search"]}  # earlier versions wrote no place
        differ = [key for key in identity if key != "config" and saved.get(key) != identity[key]]
        before, now, usual = data["search"]["config"], identity["config"], default_values()  # an older state lacks keys that came later
        differ += sorted(key for key in {*before, *now} if before.get(key, usual.get(key)) != now.get(key))
    if differ:
        raise UserError(f"--resume: the search in {os.path.dirname(path)!r} has a different {first_of(differ)}: set another OUTPUT_DIR")
    with reading(f"{path!r} is no state of a search"):
        return [_evaluated(entry, identity["table"]["blocks"]) for entry in data["archive"]]


def _evaluated(entry: dict[str, Any], rows: Sequence[Sequence[float]]) -> Evaluated:
    """Reads one entry of a state file; raises ValueError or TypeError for an entry that no search writes."""
    result = Evaluated(**{**entry, "path": tuple(entry["path"])})
    if len(result.path) != len(rows) or any(type(c) is not int or c not in range(len(row)) for c, row in zip(result.path, rows)):
        raise ValueError(f"{list(result.path)} is not a path of {len(rows)} blocks with {len(rows[0])} choices each")
    if type(result.generation) is not int or not _finite([result.cost, result.score, *result.seconds.values()]):
        raise ValueError(f"the path {list(result.path)} has values that are not numbers")
    return result


def _finite(values: Iterable[Any]) -> bool:
    return all(type(v) in (int, float) and math.isfinite(v) for v in values)


def load_costs(path: str) -> CostTable:
    """The costs that the search of a state file used. Raises UserError for any other file."""
    with reading(f"{path!r} is no state of a search"):
        return costs_of(read_json(path)["search"]["table"])


def costs_of(saved: dict[str, Any]) -> CostTable:
    """A table from its fields, as JSON has them. Raises ValueError, KeyError or TypeError for anything else."""
    table = CostTable(str(saved["kind"]), saved["base"], tuple(tuple(row) for row in saved["blocks"]))
    if not table.blocks or not all(table.blocks) or not _finite([table.base, *(cost for row in table.blocks for cost in row)]):
        raise ValueError("its table has costs that are not numbers")
    if len({len(row) for row in table.blocks}) != 1:
        raise ValueError("its table has blocks with different numbers of choices")
    return table
