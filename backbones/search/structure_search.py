"""MAE-DET's search: by evolution, which can be killed at any moment and goes on to the same result, or through the whole space."""

import json
import os
import time
from typing import Any, Dict, List, Tuple

from ..documents import read_json
from ..errors import UserError
from ..files import write_whole
from . import exact, progress
from .evolution import Candidate, Evolution, SearchProblem, State
from .structure_config import problem_of
from .structure_result import plot_search, write_result


def search_structures(config: Dict[str, Any], seed: int, output: str, workers: int, resume: bool) -> Candidate:
    """Runs, or goes on with, the evolution in the folder ``output``, and writes its result there."""
    problem, start = problem_of(config)
    path = os.path.join(output, "state.json")
    identity = identity_of(config, seed)
    if os.path.isfile(path) and not resume:
        raise UserError(f"a search is in {output!r} already: go on with it by --resume, or take another --output")
    if not os.path.isfile(path) and os.path.lexists(os.path.join(output, "best.json")):
        raise UserError(f"{output!r} holds another result: take another --output")
    outside = problem.outside(start)
    if outside:
        print(f"note: the start is not of the space, and keeps what is not until it changes: its {outside}", flush=True)
    state, history = State(0, [(problem.meter.measure(start).score, start)]), []
    if resume and os.path.isfile(path):
        state, history = load_state(path, identity, problem)
    elif resume:
        print(f"--resume: no search is in {output!r}, it starts anew", flush=True)
    size = config["islands"] * config["round"]
    rounds = rounds_of(config)
    begun, first, saved = time.monotonic(), state.rounds, time.monotonic()
    islands = {"size": config["population"], "islands": config["islands"], "round_size": config["round"], "workers": workers}
    with Evolution(problem, state, seed, **islands) as evolution:
        with progress(total=rounds * size, initial=first * size, unit=" candidates", smoothing=0.1) as bar:
            while evolution.state.rounds < rounds:
                evolution.round()
                score, best = evolution.state.population[-1]
                done = evolution.state.rounds * size
                if not history or score > history[-1][1]:
                    history.append([done, score])
                bar.update(size)
                used = problem.meter.measure(best)
                bar.set_postfix_str(
                    f"score {score:.2f}, "
                    + ", ".join(f"{name} {100 * getattr(used, name) / most:.1f}%" for name, most in problem.budget.items()),
                    refresh=False,
                )
                if time.monotonic() - saved > 0.2 or evolution.state.rounds == rounds:
                    save_state(path, identity, evolution.state, history)
                    saved = time.monotonic()
    seconds, state = time.monotonic() - begun, evolution.state
    best = state.population[-1][1]
    made = (state.rounds - first) * size
    if made:
        print(
            f"{made} candidates in {seconds:.1f} s, {1e6 * seconds / made:.1f} microseconds each, {min(workers, config['islands'])} processes"
        )
    write_result(config, problem, best, output, {"seed": seed, "candidates": state.rounds * size, "by": "evolution"})
    plot_search(problem, state, history, best, os.path.join(output, "search.png"))
    return best


def rounds_of(config: Dict[str, Any]) -> int:
    """The whole rounds that the candidates are enough for, at least one."""
    return max(1, config["candidates"] // (config["islands"] * config["round"]))


def identity_of(config: Dict[str, Any], seed: int) -> Dict[str, Any]:
    """All that the result follows from, but for how many candidates there are to be."""
    kept = {key: value for key, value in config.items() if key not in ("candidates", "detector", "table", "latency_table")}
    table = config["table"]
    entries = sorted((key, sorted([*widths, s] for widths, s in rows.items())) for key, rows in table.entries.items()) if table else None
    return json.loads(json.dumps({**kept, "seed": seed, "table": entries}))


def save_state(path: str, identity: Dict[str, Any], state: State, history: List) -> None:
    population = [structure for _, structure in state.population]
    write_whole(path, json.dumps({"search": identity, "rounds": state.rounds, "history": history, "population": population}))


def load_state(path: str, identity: Dict[str, Any], problem: SearchProblem) -> Tuple[State, List]:
    try:
        data = read_json(path)
        differ = [key for key in identity if data["search"].get(key) != identity[key]]
        structures = [tuple(tuple(int(n) for n in block) for block in structure) for structure in data["population"]]
        strides = [block[2] for block in identity["start"]]
        for structure in structures:
            if [block[2] for block in structure if len(block) == 5 and min(block[:2]) > 0] != strides:
                raise ValueError("its population is of other blocks than the start")
        if not structures:
            raise ValueError("its population is empty")
        population = sorted((problem.meter.measure(structure).score, structure) for structure in structures)
        history = [[int(done), float(score)] for done, score in data["history"]]
        state = State(int(data["rounds"]), population)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{path!r} is no state of a search: {' '.join(str(error).split())[:200]}") from error
    if differ:
        raise UserError(f"--resume: the search in {os.path.dirname(path)!r} has another {', '.join(differ)}: take another --output")
    return state, history


def find_exact(problem: SearchProblem, start: Candidate, steps: int = 80) -> Tuple[exact.Bound, Candidate]:
    """The bound, and the best structure there is. Raises UserError where there are too many to go through."""
    with progress(total=steps, desc="bound", unit="step") as bar:

        def report(step: int, score: float) -> None:
            bar.update(1)
            bar.set_postfix_str(f"no score above {score:.3f}", refresh=False)

        proof = exact.bound(problem, start, steps, report)
    below = 0.02  # the nearer to the bound, the fewer there are; the first that is found is the best
    while True:
        found = exact.best(problem, start, proof, proof.score - below)
        if found:
            return proof, found
        below *= 2
        if below > proof.score:
            raise UserError("no structure of the space is within the budget")
