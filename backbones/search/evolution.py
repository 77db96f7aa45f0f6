"""MAE-DET's search space and its evolution, over plain tuples of integers.

Differences from the original: the last block is mutated like any other, every choice comes from one seed, and the stem is never wider than the
block after it. A search runs in rounds. In each, every island evolves by itself from the shared population; at the end their best structures
are merged. A round depends only on (seed, round, island) and the population. So a search gives the same result for any number of
processes, and a killed search resumes as if nothing had happened.
"""

import bisect
import dataclasses
import math
import multiprocessing
import os
import random
import threading
from typing import Any, Sequence

from ..errors import UserError
from ..layers import rounded
from .entropy import Costs, Meter, Plain

Candidate = tuple[Plain, ...]
Scored = tuple[float, Candidate]

# fields of Costs that a budget may limit
BUDGETS = ("flops", "parameters", "layers", "latency")
_FACTORS = (1.5, 1.25, 0.8, 0.6, 0.5)
_STEPS = (-2, -1, 1, 2)


@dataclasses.dataclass(frozen=True)
class Space:
    """A search space: the structures that mutations of a start can reach.

    Args:
        max_stem, max_channels: largest width of the stem, and of everything else.
        kernels: kernel sizes of the bottlenecks.
        max_expansion: largest ratio of a block's width to that of the block before.
        min_bottleneck: smallest width of the bottlenecks, as a fraction of the block's.
        max_layers: most bottlenecks of each block after the stem; 0: 3 in the first, in the others an equal share of the budget's layers.
    """

    max_stem: int = 32
    max_channels: int = 2048
    kernels: tuple[int, ...] = (3, 5)
    max_expansion: int = 4
    min_bottleneck: float = 0.1
    max_layers: int = 0

    def most_layers(self, index: int, count: int, budget: float) -> int:
        """The most bottlenecks of block ``index`` of ``count`` with a budget of ``budget`` layers."""
        if self.max_layers:
            return self.max_layers
        if index == 1:
            return 3
        return max(1, int(budget // 3 // (count - 2))) if budget < float("inf") else 1 << 30


@dataclasses.dataclass
class SearchProblem:
    """A space, a measure and a budget: the largest allowed value for each limited one of `BUDGETS`."""

    meter: Meter
    space: Space
    budget: dict[str, float]

    def fits(self, costs: Costs) -> bool:
        return all(getattr(costs, name) <= most for name, most in self.budget.items())

    def outside(self, blocks: Candidate) -> str:
        """Why a structure is outside the space, in words; "" if it is inside."""
        space = self.space
        for i, ((out, kernel, _, layers, width), kernels) in enumerate(zip(blocks, self._kernels(blocks))):
            before, most = (blocks[i - 1][0], space.max_channels) if i else (8, space.max_stem)
            deepest = space.most_layers(i, len(blocks), self.budget.get("layers", float("inf")))
            narrowest = rounded(out * space.min_bottleneck)
            if out % 8 or not before <= out <= most:
                return f"block {i} has {out} channels, not a multiple of 8 from {before} to {most}"
            if i > 1 and rounded(out / space.max_expansion) > before:
                return f"block {i} has {out} channels, more than {space.max_expansion} times the {before} before it"
            if layers and (width % 8 or not narrowest <= width <= out):
                return f"block {i} has bottlenecks with {width} channels, not a multiple of 8 from {narrowest} to {out}"
            if layers and kernel not in kernels:
                return f"block {i} has kernel size {kernel}, not {' or '.join(map(str, kernels))}"
            if layers > deepest:
                return f"block {i} has {layers} bottlenecks, more than {deepest}"
        return ""

    def _kernels(self, blocks: Candidate) -> list[list[int]]:
        """The kernel sizes that each block may have: the space's, as its features allow."""
        fitting = [self.fit_kernels(tuple((*b[:1], kernel, *b[2:]) for b in blocks)) for kernel in self.space.kernels]
        return [sorted({block[1] for block in same}) for same in zip(*fitting)]

    def moved_inside(self, blocks: Candidate) -> Candidate:
        """A structure with the strides of ``blocks`` inside the space, as near to them as its limits allow."""
        space, result = self.space, list[Plain]()
        for i, ((out, kernel, stride, layers, width), kernels) in enumerate(zip(blocks, self._kernels(blocks))):
            if i:
                before = result[-1][0]
                most = min(space.max_channels, space.max_expansion * before) if i > 1 else space.max_channels
            else:
                before, most = 8, min(space.max_stem, space.max_channels)
            out = min(max(rounded(out), before), most)
            if layers:
                kernel = min(kernels, key=lambda each: abs(each - kernel))
                layers = min(layers, space.most_layers(i, len(blocks), self.budget.get("layers", math.inf)))
                width = min(max(rounded(width), rounded(out * space.min_bottleneck)), out)
            result.append((out, kernel, stride, layers, width))
        return tuple(result)

    def admitted(self, start: Candidate) -> Candidate:
        """``start`` if its mutations lie inside the space, else the nearest structure inside.

        Kernels may be too large for small features: the first mutation reduces them.
        """
        return self.moved_inside(start) if self.outside(self.fit_kernels(start)) else start

    def mutate(self, parent: Candidate, rng: random.Random) -> Candidate:
        """A child: two mutations of one field each."""
        most = self.budget.get("layers", float("inf"))
        child = parent
        for _ in range(2):
            for _ in range(len(parent)):
                changed = self._change(child, rng, most)
                if sum(3 * b[3] or 1 for b in changed) <= most:
                    break
            child = changed
        return child

    def _change(self, blocks: Candidate, rng: random.Random, budget_layers: float) -> Candidate:
        space, random_ = self.space, rng.random
        i = int(random_() * len(blocks))
        out, kernel, stride, layers, width = blocks[i]
        following = blocks[i + 1][0] if i + 1 < len(blocks) else space.max_channels
        if not layers:
            out = min(rounded(out * _FACTORS[int(random_() * 5)]), space.max_stem, following)
        else:
            field = int(random_() * 4)
            if field == 0:
                before = blocks[i - 1][0]
                out = rounded(out * _FACTORS[int(random_() * 5)])
                out = min(out, space.max_channels, space.max_expansion * before)
                out = max(min(max(out, before), following), rounded(following / space.max_expansion) if i + 1 < len(blocks) else 8)
            elif field == 1:
                for _ in range(3):
                    new = space.kernels[int(random_() * len(space.kernels))]
                    if new != kernel:
                        break
                kernel = new
            elif field == 2:
                width = rounded(width * _FACTORS[int(random_() * 5)])
            else:
                most = space.most_layers(i, len(blocks), budget_layers)
                for _ in range(5):
                    new = min(max(1, layers + _STEPS[int(random_() * 4)]), most)
                    if new != layers:
                        break
                layers = new
            width = min(max(width, rounded(out * space.min_bottleneck)), out)
        changed = blocks[:i] + ((out, kernel, stride, layers, width),) + blocks[i + 1 :]
        return self.fit_kernels(changed) if self.meter.image_size < 32 * 1.5 * max(space.kernels) else changed

    def random(self, start: Candidate, rng: random.Random, window: float = 0.03) -> Candidate:
        """A structure of any shape in the space, with the strides of ``start``, that costs (1 - ``window``) to 1 times the first budget.

        Ratios of widths, kernels, and numbers and widths of bottlenecks are drawn, then all widths are scaled to the budget.
        """
        space, (name, most) = self.space, next(iter(self.budget.items()))
        depths = [space.most_layers(i, len(start), self.budget.get("layers", math.inf)) for i in range(1, len(start))]
        while True:
            shape = [
                (
                    rng.uniform(1, space.max_expansion),
                    rng.choice(space.kernels),
                    rng.randint(1, min(depth, 8)),
                    space.min_bottleneck ** rng.random(),
                )
                for depth in depths
            ]
            low, high = 1.0, float(space.max_channels)  # of the stem's width
            for _ in range(12):
                width = middle = math.sqrt(low * high)
                blocks = [(rounded(min(width, space.max_stem)), *start[0][1:])]
                for (growth, kernel, layers, part), (*_, stride, _, _) in zip(shape, start[1:]):
                    width *= growth
                    out = rounded(min(width, space.max_channels))
                    blocks.append((out, kernel, stride, layers, max(rounded(out * part), rounded(out * space.min_bottleneck))))
                made = self.fit_kernels(tuple(blocks))
                costs = self.meter.measure(made)
                cost = getattr(costs, name)
                if (1 - window) * most <= cost <= most:
                    if self.fits(costs) and not self.outside(made):
                        return made
                    break
                low, high = (middle, high) if cost < most else (low, middle)

    def fit_kernels(self, blocks: Candidate) -> Candidate:
        """Reduces kernels that would be larger than two thirds of the features they filter."""
        side, result = self.meter.image_size, []
        for out, kernel, stride, layers, width in blocks:
            side = -(-side // stride)
            while layers and kernel > 1 and 1.5 * kernel > side:
                kernel -= 2
            result.append((out, kernel, stride, layers, width))
        return tuple(result)

    def explore(self, population: Sequence[Scored], size: int, count: int, seed: str) -> list[Scored]:
        """The best ``size`` structures after ``count`` more candidates, from worst to best."""
        population, rng = list(population), random.Random(seed)
        known = {structure for _, structure in population}
        measure, mutate, fits = self.meter.measure, self.mutate, self.fits
        for _ in range(count):
            child = mutate(population[int(rng.random() * len(population))][1], rng)
            if child in known:
                continue
            costs = measure(child)
            if len(population) >= size and costs[0] <= population[0][0] or not fits(costs):
                continue
            known.add(child)
            bisect.insort(population, (costs[0], child))
            if len(population) > size:
                known.discard(population.pop(0)[1])
        return population


@dataclasses.dataclass
class State:
    """All that a search needs to resume: the number of finished rounds, and the population from worst to best."""

    rounds: int
    population: list[Scored]


class Evolution:
    """Runs rounds of a search in ``workers`` processes; use it as a context manager.

    Args:
        problem: the problem to solve.
        state: the state to continue from.
        seed: seed of all choices.
        size: size of the population.
        islands, round_size: how many populations evolve separately, and how many candidates each tries per round.
    """

    def __init__(
        self, problem: SearchProblem, state: State, seed: int, size: int = 256, islands: int = 4, round_size: int = 256, workers: int = 1
    ):
        self.problem, self.state, self.seed = problem, state, seed
        self.size, self.islands, self.round_size = size, islands, round_size
        self.workers = min(workers, islands)
        self._processes: list[tuple[multiprocessing.process.BaseProcess, multiprocessing.connection.Connection]] = []

    def __enter__(self) -> "Evolution":
        if self.workers > 1:
            for _ in range(self.workers):
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.Process(target=_work, args=(theirs, self.problem), daemon=True)
                process.start()
                theirs.close()
                self._processes.append((process, ours))
        return self

    def __exit__(self, *_) -> None:
        for process, connection in self._processes:
            connection.close()
            process.terminate()
        self._processes = []

    def round(self) -> None:
        """Runs one round of all islands."""
        state = self.state
        tasks = [(state.population, self.size, self.round_size, f"{self.seed}/{state.rounds}/{island}") for island in range(self.islands)]
        results: list[Any] = [None] * len(tasks)
        if not self._processes:
            results = [self.problem.explore(*task) for task in tasks]
        else:
            try:
                for first in range(0, len(tasks), self.workers):
                    batch = list(zip(range(first, len(tasks)), self._processes))
                    for i, (_, connection) in batch:
                        connection.send(tasks[i])
                    for i, (_, connection) in batch:
                        results[i] = connection.recv()
                        if isinstance(results[i], UserError):
                            raise results[i]
            except (EOFError, OSError) as error:
                raise UserError("a process of the search was killed; start it again with --resume") from error
        merged = sorted({scored for result in results for scored in result})
        self.state = State(state.rounds + 1, merged[-self.size :])


def _work(connection, problem: SearchProblem) -> None:
    """The loop of a worker process: explores what it receives until the sender closes or the search is gone."""
    threading.Thread(target=_end_with_the_search, daemon=True).start()
    try:
        while True:
            task = connection.recv()
            try:
                connection.send(problem.explore(*task))
            except UserError as error:
                connection.send(error)
    except (EOFError, OSError, KeyboardInterrupt):
        pass


def _end_with_the_search() -> None:
    """A killed search does not close its end of the connection if other processes, such as this one, inherited it: `recv` would hang."""
    search = multiprocessing.parent_process()
    if search is not None:
        search.join()
        os._exit(1)
