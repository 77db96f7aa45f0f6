"""The optimum of a search space: a proved upper bound of the score, and the best structure itself.

Score and costs are sums over blocks. So for given prices of operations, parameters and layers, the best structure follows by dynamic
programming over the widths between blocks. Its score minus its cost, plus the price of the whole budget, bounds the score of all structures in
the budget. The ellipsoid method finds the prices with the lowest bound. A structure of score s then loses no
more than bound - s in all its blocks together; few do, and `best` enumerates them.

The space is a little larger than what mutations reach: all widths that are multiples of 8, with the rules of `evolution.Space`.
"""

import dataclasses
import math
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np

from ..errors import UserError
from ..layers import rounded
from .entropy import block_costs
from .evolution import Candidate, SearchProblem

_PRICED = ("flops", "parameters", "layers")
_MOST_PATHS = 5_000_000


class Bound(NamedTuple):
    """No structure within the budget scores more than ``score``; ``prices`` prove it."""

    score: float
    prices: dict[str, float]


@dataclasses.dataclass
class _Stage:
    """One block of the structures: its place, and what may be chosen for it."""

    weight: float  # weight of its entropy in the score
    before: float  # weight of the logarithm of the width before it, which depends on whether that ends a stage
    behind: float  # weight of the logarithm of its own width
    stride: int
    side: int
    after: int
    most: int  # bottlenecks
    kernels: list[int]
    first: bool


class _Values:
    """The values of the choices for one block at some prices. Its input width c and its own width o are indices on the grid."""

    def __init__(self, stage: _Stage, space, grid: np.ndarray, price: Sequence[float]):
        self.stage, self.space, self.grid, self.price = stage, space, grid, price

    def inputs(self, o: int) -> slice:
        """The input widths that its own width allows."""
        most = min(o + 1, self.space.max_stem // 8) if self.stage.first else o + 1
        lowest = 0 if self.stage.first else max(0, rounded(self.grid[o] / self.space.max_expansion) // 8 - 1)
        return slice(min(lowest, most), most)

    def widths(self, o: int) -> np.ndarray:
        """The allowed widths of the bottlenecks."""
        return self.grid[rounded(self.grid[o] * self.space.min_bottleneck) // 8 - 1 : o + 1].astype(float)

    def parts(self, o: int, kernel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By bottleneck width: the value of the first bottleneck without its input, of each further one, and of one more input channel."""
        flops, parameters, layers = self.price
        s, m, out = self.stage, self.widths(o), float(self.grid[o])
        before, pixels, area = s.side**2, s.after**2, kernel**2
        narrow = np.log(m) + math.log(kernel)
        rest = s.weight * (narrow + 0.5 * math.log(out)) - 3 * layers
        rest -= flops * pixels * (2 * m * out + area * m * m + 6 * m + 3 * out)
        rest -= parameters * (2 * m * out + area * m * m + 4 * m + 2 * out)
        own = s.weight * narrow - 3 * layers + s.behind * math.log(out)
        own -= flops * (3 * before * m + pixels * (area * m * m + 3 * m + m * out + 6 * out))
        own -= parameters * (area * m * m + m * out + 4 * m + 4 * out)
        return own, rest, -m * (flops * before + parameters)

    def of_input(self, c: np.ndarray, o: int) -> np.ndarray:
        """The values of the input widths that do not depend on the bottlenecks."""
        flops, parameters, _ = self.price
        s, out = self.stage, float(self.grid[o])
        worth = (0.5 * s.weight + s.before) * np.log(c)
        return worth - flops * (s.after**2 * out * c + (s.side**2 * c if s.stride == 2 else 0)) - parameters * c * out

    def table(self) -> tuple[np.ndarray, ...]:
        """For every pair (c, o) the largest value, with its kernel, number of bottlenecks and their width; -inf if not allowed."""
        n = len(self.grid)
        value = np.full((n, n), -math.inf)
        choice = [np.zeros((n, n), dtype=np.int32) for _ in range(3)]
        for o in range(n):
            rows = self.inputs(o)
            c = self.grid[rows].astype(float)
            if not len(c):
                continue
            m, of_input = self.widths(o), self.of_input(c, o)
            for kernel in self.stage.kernels:
                own, rest, slope = self.parts(o, kernel)
                own = own + (self.stage.most - 1) * np.maximum(rest, 0)  # each further one has the same value: take all or none
                total = own[None] + np.outer(c, slope)
                best = total.argmax(axis=1)
                new = total[np.arange(len(c)), best] + of_input
                better = new > value[rows, o]
                value[rows, o] = np.where(better, new, value[rows, o])
                for array, what in zip(choice, (kernel, np.where(rest[best] > 0, self.stage.most, 1), m[best])):
                    array[rows, o] = np.where(better, what, array[rows, o])
        return (value, *choice)


class _Program:
    """The dynamic program of a problem: structures like ``start``, from their stem on."""

    def __init__(self, problem: SearchProblem, start: Candidate):
        if "latency" in problem.budget:
            raise UserError("there is no bound for a budget of latency: leave latency out of the budget")
        for i, block in enumerate(start):
            if block[0] % 8 or (block[3] and block[4] % 8) or (i > 0) != (block[3] > 0):
                raise UserError(f"block {i} of the start has no known bound: it must be a stem, or a group whose widths are multiples of 8")
        outside = problem.outside(start)
        if outside:
            raise UserError(f"the start is outside the space, so there is no bound: its {outside}")
        if not problem.space.max_layers and "layers" not in problem.budget:
            raise UserError("there are too many structures to go through: set a budget of layers, or max_layers of the space")
        if not any(name in problem.budget for name in _PRICED):
            raise UserError("there is no bound without a budget: scores grow with every layer")
        self.problem, self.start = problem, start
        space, weights = problem.space, list(problem.meter.stage_weights)
        self.grid = 8 * np.arange(1, space.max_channels // 8 + 1)
        self.stem = self.grid[self.grid <= space.max_stem]
        self.stages: list[_Stage] = []
        number, side = 0, -(-problem.meter.image_size // start[0][2])
        for i, block in enumerate(start[1:], 1):
            ends = block[2] == 2
            before = weights[number] if ends else 0.0
            number += ends
            after = -(-side // block[2])
            kernels = {problem.fit_kernels(start[:i] + ((block[0], k, *block[2:]),))[i][1] for k in space.kernels}
            most = space.most_layers(i, len(start), problem.budget.get("layers", math.inf))
            behind = weights[number] if i + 1 == len(start) else 0.0
            self.stages.append(_Stage(sum(weights[number:]), before, behind, block[2], side, after, most, sorted(kernels), i == 1))
            side = after
        self.total_weight = sum(weights)

    def stem_costs(self) -> list:
        return [block_costs(3, (int(width), *self.start[0][1:]), self.problem.meter.image_size) for width in self.stem]

    def values(self, price: dict[str, float]) -> list[_Values]:
        prices = [price.get(name, 0.0) for name in _PRICED]
        return [_Values(stage, self.problem.space, self.grid, prices) for stage in self.stages]

    def stem_worth(self, price: dict[str, float]) -> np.ndarray:
        worth = np.full(len(self.grid), -math.inf)
        for i, costs in enumerate(self.stem_costs()):
            worth[i] = self.total_weight * costs.score - sum(price.get(name, 0.0) * getattr(costs, name) for name in _PRICED)
        return worth

    def best_at(self, price: dict[str, float]) -> Candidate:
        """The structure with the largest score minus prices."""
        worth, chosen = self.stem_worth(price), []
        for values in self.values(price):
            value, *choice = values.table()
            total = worth[:, None] + value
            before = total.argmax(axis=0)
            worth = total[before, np.arange(len(self.grid))]
            chosen.append((before, choice))
        at, blocks = int(worth.argmax()), []
        for (before, choice), block in zip(reversed(chosen), reversed(self.start[1:])):
            c = int(before[at])
            kernel, layers, width = (int(array[c, at]) for array in choice)
            blocks.append((int(self.grid[at]), kernel, block[2], layers, width))
            at = c
        return (((int(self.grid[at]), *self.start[0][1:])), *reversed(blocks))


def bound(problem: SearchProblem, start: Candidate, steps: int = 80, report: Callable[[int, float], None] = lambda *_: None) -> Bound:
    """The lowest bound found in ``steps`` steps; calls ``report`` with (step, bound so far).

    Raises UserError for a budget of latency, which is no sum of integers, for no budget, and for a start with other blocks or widths.
    """
    program = _Program(problem, start)
    names = [name for name in _PRICED if name in problem.budget]
    limits = np.array([problem.budget[name] for name in names], dtype=float)
    lowest = Bound(math.inf, {})
    # prices in units of the budgets: the center and matrix of an ellipsoid that holds the best ones
    size = problem.meter.measure(start).score  # the order of magnitude of prices
    center, shape = np.full(len(names), 2.5 * size), np.eye(len(names)) * (5 * size) ** 2
    for step in range(steps):
        prices = np.maximum(center, 0)
        price = dict(zip(names, (prices / limits).tolist()))
        costs = problem.meter.measure(program.best_at(price))
        spent = np.array([getattr(costs, name) for name in names]) / limits
        score = costs.score + float(prices @ (1 - spent))
        if score < lowest.score:
            lowest = Bound(score, price)
        report(step, lowest.score)
        # keep the half in which the bound may be lower, or the prices not negative
        slope = np.where(center < 0, -1.0, 0.0) if (center < 0).any() else 1 - spent
        size = math.sqrt(max(float(slope @ shape @ slope), 0.0))
        if size < 1e-12 * lowest.score:
            break
        n, direction = len(center), shape @ slope / size
        center = center - direction / (n + 1)
        grow = n * n / (n * n - 1.0) if n > 1 else 1.0
        shape = grow * (shape - 2 / (n + 1) * np.outer(direction, direction)) if n > 1 else shape / 4
    return lowest


@dataclasses.dataclass
class _Paths:
    """Structures up to some block: the index of their last width, costs, what they may still lose, and how they were built."""

    width: np.ndarray  # (N,)
    spent: np.ndarray  # (N, 3), of _PRICED
    slack: np.ndarray  # (N,)
    parent: np.ndarray  # (N,) among the paths one block shorter
    choice: np.ndarray  # (N, 3): kernel, bottlenecks, their width

    def take(self, rows: np.ndarray) -> "_Paths":
        return _Paths(*(getattr(self, field.name)[rows] for field in dataclasses.fields(self)))


def best(problem: SearchProblem, start: Candidate, proof: Bound, incumbent: float) -> Candidate | None:
    """The best structure, if it scores more than ``incumbent``; else None.

    Raises UserError if too many structures lie between ``incumbent`` and the bound of the ``proof``.
    """
    program = _Program(problem, start)
    price = np.array([proof.prices.get(name, 0.0) for name in _PRICED])
    budget = np.array([problem.budget.get(name, math.inf) for name in _PRICED])
    every = program.values(proof.prices)
    tables = [values.table()[0] for values in every]
    ahead = [np.zeros(len(program.grid))]  # the largest value obtainable after each width
    for table in reversed(tables):
        ahead.insert(0, (table + ahead[0][None]).max(axis=1))
    total = sum(proof.prices[name] * problem.budget[name] for name in proof.prices)
    stems = program.stem_costs()
    n = len(stems)
    paths = _Paths(
        np.arange(n),
        np.array([[c.flops, c.parameters, c.layers] for c in stems], dtype=np.int64),
        program.stem_worth(proof.prices)[:n] + ahead[0][:n] + total - incumbent - 1e-9,
        np.zeros(n, dtype=np.int64),
        np.tile([program.start[0][1], 0, 0], (n, 1)),
    )
    history = [paths.take(paths.slack > 0)]
    for values, table, behind, following in zip(every, tables, ahead, ahead[1:]):
        before, found, count = history[-1], [], 0
        for c in np.unique(before.width):
            own = np.flatnonzero(before.width == c)
            for o in np.flatnonzero(behind[c] - table[c] - following < before.slack[own].max()):
                for choice, costs, loss in _choices(values, int(c), int(o), behind[c] - following[o], before.slack[own].max()):
                    rows = own[(before.slack[own] > loss) & (before.spent[own] + costs <= budget).all(axis=1)]
                    size = len(rows)
                    slack = before.slack[rows] - loss
                    found.append(_Paths(np.full(size, o), before.spent[rows] + costs, slack, rows, np.tile(choice, (size, 1))))
                    count += size
            if count > _MOST_PATHS:
                raise UserError("the best structure cannot be found in reasonable time: too many are close to the bound")
        if not count:
            return None
        joined = _Paths(*(np.concatenate([getattr(f, field.name) for f in found]) for field in dataclasses.fields(_Paths)))
        history.append(joined.take(_undominated(joined, price, budget)))
    paths = history[-1]
    blocks: list[Any] = []
    at = int((paths.slack + paths.spent @ price).argmax())
    for paths, block in zip(reversed(history), reversed(start)):
        blocks.append((int(program.grid[paths.width[at]]), int(paths.choice[at, 0]), block[2], *map(int, paths.choice[at, 1:])))
        at = int(paths.parent[at])
    structure: Candidate = tuple(reversed(blocks))
    # structures that leave much of the budget unused get this far, as if the rest were worth its price
    return structure if problem.meter.measure(structure).score > incumbent else None


def _choices(values: _Values, c: int, o: int, reach: float, most: float):
    """All choices between two widths that lose less than ``most`` of the ``reach``: (choice, costs, loss) each."""
    stage = values.stage
    channels, out = int(values.grid[c]), int(values.grid[o])
    of_input = values.of_input(np.array([float(channels)]), o)[0]
    m = values.widths(o)
    counts = np.arange(1, stage.most + 1)
    for kernel in stage.kernels:
        own, rest, slope = values.parts(o, kernel)
        loss = reach - (of_input + own + channels * slope)[:, None] - rest[:, None] * (counts - 1)[None]
        for i, j in zip(*np.nonzero(loss < most)):
            choice = (kernel, int(counts[j]), int(m[i]))
            costs = block_costs(channels, (out, kernel, stage.stride, *choice[1:]), stage.side)
            yield choice, np.array([costs.flops, costs.parameters, costs.layers]), float(loss[i, j])


def _undominated(paths: _Paths, price: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """The rows of the paths that no other to the same width dominates: as good a score, no higher first limited cost, equal other costs."""
    limited = np.flatnonzero(np.isfinite(budget))
    score = paths.slack + paths.spent @ price  # up to a part that all paths to a width share
    others = [paths.spent[:, i] for i in limited[1:]]
    order = np.lexsort((-score, paths.spent[:, limited[0]], *others, paths.width))
    group = np.stack([paths.width, *others], axis=1)[order]
    new = np.concatenate([[True], (group[1:] != group[:-1]).any(axis=1)])
    kept, highest = [], -math.inf
    for row, begins, value in zip(order.tolist(), new.tolist(), score[order].tolist()):
        if begins or value > highest:
            kept.append(row)
            highest = value
    return np.array(kept)
