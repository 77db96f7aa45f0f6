"""The paths of a supernet: what each costs, and which are tried next."""

import dataclasses
import random
from typing import Callable, Iterable, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..engine.supernet import random_path
from ..errors import UserError
from ..meta import on_meta
from ..shufflenetv2 import CHOICES, FAMILY, SPECS, STAGES, ShuffleNetV2
from .latency import median_seconds

Path = tuple[int, ...]
METHODS = ("evolution", "random")


@dataclasses.dataclass(frozen=True)
class CostTable:
    """What each choice of each block costs; a path costs ``base``, the stem's, and the sum of its choices'."""

    kind: str
    base: float
    blocks: tuple[tuple[float, ...], ...]

    def cost(self, path: Sequence[int]) -> float:
        return self.base + sum(row[choice] for row, choice in zip(self.blocks, path))

    def range(self) -> tuple[float, float]:
        return self.base + sum(map(min, self.blocks)), self.base + sum(map(max, self.blocks))


def cost_table(cfg: CfgNode, kind: str, size: Sequence[int]) -> CostTable:
    """The costs of all choices of ``cfg``'s backbone: "parameters", or on one image of ``size`` its "macs" or "latency" in seconds."""
    measure = {
        "macs": _macs,
        "parameters": lambda unit, x: sum(p.numel() for p in unit.parameters()),
        "latency": lambda unit, x: median_seconds(unit, x, 0.02),
    }[kind]
    device = cfg.MODEL.DEVICE if kind == "latency" else "meta"
    every = []
    with torch.no_grad():
        for choice in range(len(CHOICES)):
            with on_meta():
                net = subnet_of(cfg, (choice,) * sum(SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks))
            net = net.to_empty(device=device).eval()
            for tensor in [*net.parameters(), *net.buffers()]:
                nn.init.ones_(tensor) if tensor.is_floating_point() else None
            x, costs = torch.zeros(1, 3, *size, device=device), []
            for unit in [net.stem, *(block for name in STAGES[1:] for block in getattr(net, name))]:
                costs.append(measure(unit, x))
                x = unit(x)
            every.append(costs)
    return CostTable(kind, every[-1][0], tuple(zip(*(costs[1:] for costs in every))))


def _macs(unit: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        unit(x)
    return counter.get_total_flops() // 2


def subnet_of(cfg: CfgNode, path: Sequence[int]) -> ShuffleNetV2:
    """The network of a path of ``cfg``'s supernet, with weights of its own."""
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.SHUFFLENETV2
    node.SUPERNET, node.SUBNET, node.CHOICES = False, "", list(path)
    return FAMILY.build(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))


@dataclasses.dataclass
class Evaluated:
    """One path that was evaluated."""

    path: Path
    cost: float
    score: float
    generation: int
    seconds: dict[str, float]  # of extraction, recalibration and inference


def pareto(archive: Iterable[Evaluated]) -> list[Evaluated]:
    """Those that none of lower cost reaches, by cost."""
    front: list[Evaluated] = []
    for e in sorted(archive, key=lambda e: (e.cost, -e.score)):
        if not front or e.score > front[-1].score:
            front.append(e)
    return front


@dataclasses.dataclass
class PathSampler:
    """Which paths are tried: those of a generation follow from the seed and what was found before, and none is tried twice."""

    settings: CfgNode  # ONE_SHOT
    table: CostTable
    method: str
    seed: int

    def fits(self, path: Sequence[int]) -> bool:
        return self.settings.MIN_COST <= self.table.cost(path) <= self.settings.MAX_COST

    def check(self) -> None:
        """Raises UserError where no path is within the limits."""
        least, most, (low, high) = self.settings.MIN_COST, self.settings.MAX_COST, self.table.range()
        limits = f"ONE_SHOT.MIN_COST {least:.4g} and MAX_COST {most:.4g}"
        there_are = f"{self.table.kind} of the backbone are from {low:.4g} to {high:.4g}"
        if least > most or most < low or least > high:
            raise UserError(f"{limits} allow no path: {there_are}")
        if not self._random(random.Random(0)):
            raise UserError(f"no path was found between {limits}: widen them; {there_are}")
        if least <= low and most >= high and self.table.kind != "macs":
            raise UserError(f"{limits} exclude nothing: {there_are}")

    def propose(self, generation: int, before: Sequence[Evaluated]) -> list[Path]:
        """The paths of a generation; fewer than there should be where no more are found."""
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
                return int(rng.random() * len(CHOICES))

            add(settings.MUTATIONS, lambda: tuple(choice() if rng.random() < settings.MUTATION_PROB else c for c in choose()))
            add(settings.CROSSOVERS, lambda: tuple(a if rng.random() < 0.5 else b for a, b in zip(choose(), choose())))
        add(settings.POPULATION - len(paths), lambda: self._random(rng))
        return paths

    def _random(self, rng: random.Random) -> Path | None:
        """A path within the limits: any, or where few are, one that was moved there block by block."""
        rows = self.table.blocks
        for _ in range(50):
            path = list(random_path(len(rows), rng))
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
