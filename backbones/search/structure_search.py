"""MAE-DET's search, by evolution, which can be killed at any moment and resumes to the same result, or exhaustively; its result."""

import dataclasses
import json
import math
import os
import time
from typing import Any, Sequence

import torch
from matplotlib.figure import Figure

from .. import zoo
from ..config import written
from ..documents import read_json, reading
from ..errors import UserError, raised
from ..files import save_figure, write_whole
from ..maedet import MAEDET, Block, format_structure
from ..meta import conv_counts, on_meta
from . import exact, progress
from .entropy import STRUCTURES, Costs, Meter, Plain, plain
from .evolution import BUDGETS, Candidate, Evolution, SearchProblem, State
from .latency import check_here, measured
from .structure_config import amount, problem_of, say_narrowed, with_start

# for a budget of latency: the least share that a result should use, the share that later searches aim at, how many searches
LEAST, AIM, TRIES = 0.95, 0.98, 8
_MEASURED = 3  # the best structures of each search


def search_structures(config: dict[str, Any], seed: int, output: str, workers: int, resume: bool) -> Candidate:
    """Runs or resumes the evolution in the folder ``output``, and writes its result there.

    With a budget of latency, results are measured if the table is of this machine. If they take more than the budget, or much less, the
    table is corrected by the measurement, and the search starts again. Raises UserError if no result is within the budget.
    """
    run = _Run(config, seed, os.path.join(output, "state.json"), workers)
    if os.path.isfile(run.path) and not resume:
        raise UserError(f"{output!r} already holds a search: continue it with --resume, or name another --output")
    if not os.path.isfile(run.path) and os.path.lexists(os.path.join(output, "best.json")):
        raise UserError(f"{output!r} holds another result: name another --output")
    if run.moved:
        print(f"note: the start is outside the space: its {run.moved}. The search starts from the nearest structure inside", flush=True)
    if resume and os.path.isfile(run.path):
        run.load()
    elif resume:
        print(f"--resume: no search in {output!r}, it starts from the beginning", flush=True)
    how: dict[str, Any] = {"seed": seed, "by": "evolution"}
    elsewhere = raised(check_here, config["table"]) if "latency" in config["budget"] else []
    if elsewhere:
        print(f"note: the result is within the budget by the table alone, as it cannot be measured here: {elsewhere[0]}", flush=True)
    if "latency" in config["budget"] and not elsewhere:
        best, taken = _within(run)
        # by the table as it was corrected for the search that found it
        how.update(latency=taken["predicted"], measured_latency=taken["measured"])
        how.update(runtime=config["table"].about.get("runtime", "eager"), searches=len(run.tries))
    else:
        best = run.evolve()
    problem = dataclasses.replace(run.problem, budget=config["budget"])  # as asked: a corrected search aims at less
    write_result(config, problem, best, output, {**how, "candidates": run.state.rounds * config["islands"] * config["round"]})
    plot_search(problem, run.state, run.history, best, os.path.join(output, "search.png"))
    return best


def _within(run: "_Run") -> tuple[Candidate, dict[str, Any]]:
    """The best structure whose measured latency is within the budget, and the entry of `_Run.tries` that it is of."""
    table, asked = run.config["table"], run.config["budget"]["latency"]

    def fits(taken: dict[str, Any]) -> bool:
        return taken["measured"] <= asked and (taken["measured"] >= LEAST * asked or taken["limited"])

    def ended() -> bool:
        """Whether the last search fits, and has had all its candidates: --resume may allow more."""
        return bool(run.tries) and fits(run.tries[-1]) and run.state.rounds >= run.rounds()

    while len(run.tries) < TRIES and not ended():
        run.evolve()
        best = [structure for _, structure in run.state.population[::-1][:_MEASURED]]
        times = [measured(structure, table) for structure in best]
        i = next((i for i, seconds in enumerate(times) if seconds <= asked), 0)
        costs = run.problem.meter.measure(best[i])
        words = (amount("latency", seconds) for seconds in (asked, costs.latency, times[i]))
        print("latency: limit {}, by the table {}, measured {}".format(*words), flush=True)
        # the best structure, not one that was taken because it is faster, leaves some of the budget by the table
        unused = i == 0 and costs.latency < LEAST * run.problem.budget["latency"]
        # another bottleneck has three layers
        nearly = {name: most - 2 if name == "layers" else LEAST * most for name, most in run.problem.budget.items()}
        full = any(getattr(costs, name) >= most for name, most in nearly.items())
        limited = unused and (full or run.extended > 0 and costs.score <= run.tries[-1]["score"])
        taken = {"structure": best[i], "score": costs.score, "predicted": costs.latency, "measured": times[i]}
        run.tries.append({**taken, "limited": limited, "unused": unused})
        if not fits(run.tries[-1]) and len(run.tries) < TRIES:
            if unused and times[i] <= asked:  # no error of the table: the search goes on
                run.extended += 1
            elif refused := raised(run.begin, run.factor * times[i] / costs.latency):
                run.save()
                if not any(each["measured"] <= asked for each in run.tries):
                    raise refused[0]
                print(f"note: there are no more searches: with the table corrected, {refused[0]}", flush=True)
                break
        run.save()
    found = [taken for taken in run.tries if taken["measured"] <= asked]
    if not found:
        least = amount("latency", min(taken["measured"] for taken in run.tries))
        said = f"no structure found in {TRIES} searches is within {amount('latency', asked)}: the fastest takes {least}"
        raise UserError(f"{said}. Use a larger budget or a smaller start", "value", "budget")
    chosen = max(found[::-1], key=lambda taken: taken["score"])  # the latest of equal ones
    if chosen["measured"] < LEAST * asked:
        if chosen["limited"]:
            why = "the space or other limits allow no more"
        elif chosen.get("unused") or fits(run.tries[-1]):  # it scores more than one that uses the budget
            why = "the search has not converged, and more candidates help"
        else:
            why = "times vary on this machine"
        print(f"note: the result takes {100 * chosen['measured'] / asked:.0f} % of the budget of latency: {why}", flush=True)
    return _candidate(chosen["structure"]), chosen


class _Run:
    """A running search: its population, and the measurements of earlier ones."""

    def __init__(self, config: dict[str, Any], seed: int, path: str, workers: int):
        self.config, self.seed, self.path, self.workers = config, seed, path, workers
        self.identity = identity_of(config, seed)
        self.narrowed = with_start(config).get("narrowed", 1)
        self.tries: list[dict[str, Any]] = []
        self.begin(1.0)

    def correct(self, factor: float) -> None:
        """Makes the table return ``factor`` times the seconds of convolutions. Raises UserError if the start then exceeds the budget."""
        config = self.config
        if factor != 1.0:
            budget = {**config["budget"], "latency": AIM * config["budget"]["latency"]}
            config = {**config, "table": dataclasses.replace(config["table"], factor=factor), "budget": budget}
        config = with_start(config)
        narrowed = config.get("narrowed", 1)
        problem, start = problem_of(config)
        admitted = problem.admitted(start)
        if not problem.fits(costs := problem.meter.measure(admitted)):
            said = f"the start is outside the space, and the nearest structure inside exceeds the budget: {described(costs, problem.budget)}"
            raise UserError(f"{said}. Use a smaller start or a larger budget", "value", "start")
        if narrowed > self.narrowed:
            say_narrowed(narrowed)
        self.factor, self.narrowed, self.problem, self.start = factor, narrowed, problem, admitted
        self.moved = problem.outside(start) if admitted != start else ""

    def begin(self, factor: float) -> None:
        self.correct(factor)
        self.history: list[list[float]] = []
        self.extended = 0  # times that the search goes on for as many candidates again
        self.state = State(0, [(self.problem.meter.measure(self.start).score, self.start)])

    def rounds(self) -> int:
        """The last round of this search."""
        return rounds_of(self.config) * (1 + self.extended)

    def evolve(self) -> Candidate:
        """Runs to the last round; returns the best structure."""
        config, size, rounds = self.config, self.config["islands"] * self.config["round"], self.rounds()
        begun, first, saved = time.monotonic(), self.state.rounds, time.monotonic()
        islands = {"size": config["population"], "islands": config["islands"], "round_size": config["round"], "workers": self.workers}
        # a new seed each time, so that no search repeats the one before
        with Evolution(self.problem, self.state, self.seed + 7919 * len(self.tries), **islands) as evolution:
            with progress(total=rounds * size, initial=first * size, unit=" candidates", smoothing=0.1) as bar:
                while evolution.state.rounds < rounds:
                    evolution.round()
                    self.state = evolution.state
                    score, best = self.state.population[-1]
                    if not self.history or score > self.history[-1][1]:
                        self.history.append([self.state.rounds * size, score])
                    bar.update(size)
                    used = self.problem.meter.measure(best)
                    bar.set_postfix_str(
                        f"score {score:.2f}, "
                        + ", ".join(f"{name} {100 * getattr(used, name) / most:.1f}%" for name, most in self.problem.budget.items()),
                        refresh=False,
                    )
                    if time.monotonic() - saved > 0.2 or self.state.rounds == rounds:
                        self.save()
                        saved = time.monotonic()
        seconds, made = time.monotonic() - begun, (self.state.rounds - first) * size
        if made:
            each = 1e6 * seconds / made
            print(f"{made} candidates in {seconds:.1f} s, {each:.1f} microseconds each, {min(self.workers, config['islands'])} processes")
        return self.state.population[-1][1]

    def save(self) -> None:
        """Writes the state, completely or not at all."""
        population = [structure for _, structure in self.state.population]
        about = {"search": self.identity, "rounds": self.state.rounds, "history": self.history, "population": population}
        write_whole(self.path, json.dumps({**about, "factor": self.factor, "extended": self.extended, "tries": self.tries}))

    def load(self) -> None:
        """Reads what `save` wrote. Raises UserError for the state of another search."""
        self.state, self.history = load_state(self.path, self.identity, self.problem)
        with reading(f"{self.path!r} is no state of a search"):
            data = read_json(self.path)
            factor, tries = data.get("factor", 1.0), data.get("tries", [])  # earlier versions measured nothing
            values = [factor, *(taken[key] for taken in tries for key in ("score", "predicted", "measured"))]
            if not all(type(value) in (int, float) and 0 < value < math.inf for value in values):
                raise ValueError("its measured values are not positive")
            self.extended = int(data.get("extended", 0))
            self.tries = [{**taken, "structure": _candidate(taken["structure"]), "limited": bool(taken["limited"])} for taken in tries]
        self.correct(factor)


def _candidate(structure: Any) -> Any:
    return tuple(tuple(int(n) for n in block) for block in structure)


def rounds_of(config: dict[str, Any]) -> int:
    """The number of whole rounds that the candidates allow, at least one."""
    return max(1, config["candidates"] // (config["islands"] * config["round"]))


def identity_of(config: dict[str, Any], seed: int) -> dict[str, Any]:
    """All that the result depends on, except the number of candidates."""
    others = ("candidates", "detector", "table", "latency_table", "narrowed")
    kept = {key: value for key, value in with_start(config).items() if key not in others}
    table = config["table"]
    entries = sorted((key, sorted([*widths, s] for widths, s in rows.items())) for key, rows in table.entries.items()) if table else None
    return json.loads(json.dumps({**kept, "seed": seed, "table": entries}))


def load_state(path: str, identity: dict[str, Any], problem: SearchProblem) -> tuple[State, list]:
    """State and history of the search of that ``identity``. Raises UserError for another search's state."""
    with reading(f"{path!r} is no state of a search"):
        data = read_json(path)
        differ = [key for key in identity if data["search"].get(key) != identity[key]]
        structures: Any = [_candidate(structure) for structure in data["population"]]
        strides = [block[2] for block in identity["start"]]
        for structure in structures:
            if [block[2] for block in structure if len(block) == 5 and min(block[:2]) > 0] != strides:
                raise ValueError("its population has different blocks from the start")
        if not structures:
            raise ValueError("its population is empty")
        population = sorted((problem.meter.measure(structure).score, structure) for structure in structures)
        history = [[int(done), float(score)] for done, score in data["history"]]
        state = State(int(data["rounds"]), population)
    if differ:
        raise UserError(f"--resume: the search in {os.path.dirname(path)!r} has a different {', '.join(differ)}: name another --output")
    return state, history


def find_exact(problem: SearchProblem, start: Candidate, steps: int = 80) -> tuple[exact.Bound, Candidate]:
    """The bound, and the best structure of the space. Raises UserError if there are too many to go through."""
    with progress(total=steps, desc="bound", unit="step") as bar:

        def report(step: int, score: float) -> None:
            bar.update(1)
            bar.set_postfix_str(f"no score above {score:.3f}", refresh=False)

        proof = exact.bound(problem, start, steps, report)
    below = 0.02  # the nearer to the bound, the fewer structures; the first one found is the best
    while True:
        found = exact.best(problem, start, proof, proof.score - below)
        if found:
            return proof, found
        below *= 2
        if below > proof.score:
            raise UserError("no structure of the space is within the budget")


def described(costs: Costs, budget: dict[str, float]) -> str:
    parts = [f"score {costs.score:.3f}"]
    for name in BUDGETS:
        value = getattr(costs, name)
        if name in budget:
            parts.append(f"{name} {amount(name, value)} of {amount(name, budget[name])}")
        elif name != "latency":
            parts.append(f"{name} {amount(name, value)}")
    return ", ".join(parts)


def write_result(config: dict[str, Any], problem: SearchProblem, best: Candidate, output: str, how: dict[str, Any]) -> None:
    structure = tuple(Block(*block) for block in best)
    costs = problem.meter.measure(best)
    costs = costs._replace(latency=how.get("latency", costs.latency))
    detector = zoo.get_config(config["detector"])
    detector.MODEL.MAEDET.STRUCTURE, detector.MODEL.MAEDET.WIDTH = "best_structure.txt", 1.0
    detector.OUTPUT_DIR = os.path.join(output, "training")
    detector.MODEL.WEIGHTS, detector.TEST.EXPECTED_RESULTS = "", []  # which are of the network that it replaces
    head = f"The structure of highest entropy that a search found, in {config['detector']}. best.json has its figures."
    text = written(detector, head, {})
    about = {**describe(best, problem.meter), "budget": problem.budget, **how}
    for name, content in (
        ("best_structure.txt", format_structure(structure)),
        ("detector.yaml", text),
        ("best.json", json.dumps(about, indent=1) + "\n"),
    ):
        write_whole(os.path.join(output, name), content)
    print(f"{os.path.join(output, 'best_structure.txt')}: {described(costs, problem.budget)}")
    print(f"train it: backbones train --config-file {os.path.join(output, 'detector.yaml')}")


def describe(structure: Sequence[Plain], meter: Meter) -> dict[str, Any]:
    """Score, its parts, and the costs of a structure, by the search's counter at its image size and by fvcore's at 800x1280."""
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


def fvcore_flops(structure: Sequence[Plain], size: tuple[int, int] = (800, 1280)) -> int:
    """Multiply-adds of the convolutions, and two per output value of a batch norm: fvcore's count."""
    with on_meta(), torch.no_grad():
        macs, values = conv_counts(MAEDET([Block(*block) for block in structure], norm="BN").eval(), torch.empty(1, 3, *size))
    return macs + 2 * values


def plot_search(problem: SearchProblem, state: State, history: list, best: Candidate, path: str) -> None:
    """Plots the best score against candidates, and the last population against the budgeted costs, with known networks."""
    names = list(problem.budget)[:3]
    figure = Figure(figsize=(5 * (1 + len(names)), 4), layout="constrained")
    axes = figure.subplots(1, 1 + len(names), squeeze=False)[0]
    axes[0].step([done / 1000 for done, _ in history], [score for _, score in history], where="post")
    axes[0].set(xlabel="candidates, in thousands", ylabel="score of the best")
    known_costs = [problem.meter.measure(structure) for _, structure in state.population]
    own = problem.meter.measure(best)
    units = {"flops": (1e9, f"GFLOPs at {problem.meter.image_size} pixels"), "parameters": (1e6, "million parameters"), "layers": (1, "layers")}
    for axis, name in zip(axes[1:], names):
        scale, label = units.get(name, (1e-3, "milliseconds"))
        axis.scatter([getattr(c, name) / scale for c in known_costs], [c.score for c in known_costs], s=8, label="last population")
        axis.scatter([getattr(own, name) / scale], [own.score], marker="*", s=140, facecolors="none", edgecolors="tab:red", label="the best")
        for known, structure in STRUCTURES.items():
            if not problem.meter.table:
                costs = problem.meter.measure(plain(structure))
                if getattr(costs, name) <= 2 * problem.budget[name]:
                    axis.annotate(
                        known, (getattr(costs, name) / scale, costs.score), fontsize=8, va="center", xytext=(5, 0), textcoords="offset points"
                    )
                    axis.plot([getattr(costs, name) / scale], [costs.score], "k.", markersize=4)
        axis.axvline(problem.budget[name] / scale, color="gray", linestyle="--", label="budget")
        axis.set(xlabel=label, ylabel="score")
        axis.margins(x=0.2, y=0.15)  # keeps names inside
        axis.legend(fontsize=8, loc="best")
    save_figure(figure, path)
