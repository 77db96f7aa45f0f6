"""MAE-DET's training-free search: the structure of highest entropy within a budget, found without a network ever being built.

python -m backbones.search.zero_shot search --config configs/search/maedet_r50_budget.yaml --seed 0 --output output/search
python -m backbones.search.zero_shot exact --config configs/search/maedet_r50_budget.yaml --output output/exact
python -m backbones.search.zero_shot score MAE-DET-S --json
python -m backbones.search.zero_shot latency --device cpu --output latency.json
python -m backbones.search.zero_shot benchmark --config configs/search/maedet_r50_budget.yaml --seeds 0 1 2

`search` is the paper's evolution, `exact` goes through the whole space instead, and proves that nothing in it scores more. Both write
best_structure.txt, which MODEL.MAEDET.STRUCTURE takes, and detector.yaml, which train_net.py trains.
"""

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from typing import Any, Dict, List, Optional, Sequence, Tuple

from tqdm import tqdm

from .. import zoo
from ..config import check_device, check_output_dir
from ..documents import read_json, read_yaml
from ..errors import UserError, unknown
from ..files import write_whole
from ..maedet import Block, format_structure, parse_structure, read_structure
from ..registry import BUILDERS
from ..tools import run
from . import exact
from .entropy import STAGE_WEIGHTS, STRUCTURES, Costs, Meter, Plain, monte_carlo, plain
from .evolution import BUDGETS, Candidate, Evolution, Problem, Space, State
from .latency import build_table, load_table, measured

# milliseconds a candidate of the original's own loop on one core, single process, without building the networks that it builds besides
REFERENCE_MS = 11.5

_DEFAULTS: Dict[str, Any] = {
    "image_size": 480,  # side of the square images that operations are counted at
    "stage_weights": list(STAGE_WEIGHTS),  # of the features' entropies, at strides 2 to 32
    "budget": {},  # the most of flops, parameters, layers, latency (seconds)
    "latency_table": "",  # of the tool `latency`, for a budget of latency; relative to the config or to where one is
    "start": None,  # blocks, or a structure file
    "space": {},  # of evolution.Space
    "population": 256,
    "candidates": 100000,
    "islands": 4,  # populations that evolve apart for a round
    "round": 256,  # candidates of each
    "detector": "COCO-Detection/gfl_MAE_DET_S_FPN_73e.yaml",  # the config that the result is put into
}


def load_config(path: str) -> Dict[str, Any]:
    """A search's settings over the defaults. Raises UserError for what is unknown or cannot be."""
    path = path if os.path.isfile(path) or not os.path.isfile(_in_zoo(path)) else _in_zoo(path)
    if not os.path.isfile(path):
        raise UserError(f"config {path!r} is not there")
    try:
        own = read_yaml(path)
    except ValueError as error:
        raise UserError(f"config {path!r}: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(own, dict):
        raise UserError(f"config {path!r} holds no KEY: VALUE pairs")
    for key in own:
        if key not in _DEFAULTS:
            raise unknown(f"key in {path!r}", key, _DEFAULTS)
    config = {**_DEFAULTS, **own}
    for key, least in (("image_size", 32), ("population", 1), ("candidates", 1), ("islands", 1), ("round", 1)):
        if isinstance(config[key], bool) or not isinstance(config[key], int) or config[key] < least:
            raise UserError(f"{path!r}: {key} is {config[key]!r}: it must be a whole number, {least} or more")
    weights = config["stage_weights"]
    if not isinstance(weights, list) or len(weights) != 5 or not all(_number(w) and w >= 0 for w in weights) or not any(weights):
        raise UserError(f"{path!r}: stage_weights is {weights!r}: it must be five numbers, 0 or more and not all 0")
    for key in ("latency_table", "detector"):
        if not isinstance(config[key], str):
            raise UserError(f"{path!r}: {key} is {config[key]!r}, not a file's name")
    for key in ("budget", "space"):
        if not isinstance(config[key], dict):
            raise UserError(f"{path!r}: {key} is {config[key]!r}, not KEY: VALUE pairs")
    for name, most in config["budget"].items():
        if name not in BUDGETS:
            raise unknown(f"budget in {path!r}", name, BUDGETS)
        if not _number(most) or most <= 0:
            hint = " (YAML wants a point and a sign in numbers like 18.8e+9)" if isinstance(most, str) else ""
            raise UserError(f"{path!r}: budget {name} is {most!r}: it must be a number above 0{hint}")
    fields = {field.name: field for field in dataclasses.fields(Space)}
    for name, value in config["space"].items():
        if name not in fields:
            raise unknown(f"space in {path!r}", name, fields)
        if name == "kernels":
            good = isinstance(value, list) and value and all(type(k) is int and k in (1, 3, 5, 7, 9, 11) for k in value)
        else:
            good = _number(value) and (
                0 < value <= 1 if name == "min_bottleneck" else isinstance(value, int) and value >= (name != "max_layers")
            )
        if not good:
            raise UserError(f"{path!r}: space {name} is {value!r}, which is none")
    for name in ("max_stem", "max_channels"):
        value = config["space"].get(name, 8)
        if value % 8:
            raise UserError(f"{path!r}: space {name} is {value}: it must be a multiple of 8")
    beside = os.path.dirname(os.path.abspath(path))
    start = config["start"]
    if start is None:
        raise UserError(f"{path!r} has no start: blocks, or a structure file")
    config["start"] = read_structure(_near(start, beside)) if isinstance(start, str) else parse_structure(start, f"{path!r}: start")
    if ("latency" in config["budget"]) != bool(config["latency_table"]):
        raise UserError(f"{path!r}: a budget of latency and a latency_table need each other")
    config["table"] = load_table(_near(config["latency_table"], beside)) if config["latency_table"] else None
    if config["table"] and config["table"].image_size != config["image_size"]:
        raise UserError(f"{path!r}: image_size is {config['image_size']}, but that of the latency table {config['table'].image_size}")
    builder = zoo.get_config(config["detector"]).MODEL.BACKBONE.NAME
    if builder not in BUILDERS or BUILDERS[builder].name != "maedet":
        raise UserError(
            f"{path!r}: detector {config['detector']!r} has {builder!r}, where the network found is to stand: take one with MAE-DET"
        )
    return config


def _in_zoo(path: str) -> str:
    name = path[len("configs" + os.sep) :] if path.startswith("configs" + os.sep) else path
    return os.path.join(zoo.config_root(), name)


def _near(path: str, folder: str) -> str:
    beside = os.path.join(folder, path)
    return beside if os.path.isfile(beside) else path


def _number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)


def problem_of(config: Dict[str, Any]) -> Tuple[Problem, Candidate]:
    """What a config asks for: the problem and its start. Raises UserError for a budget that the start itself is beyond."""
    space = Space(**{key: tuple(value) if isinstance(value, list) else value for key, value in config["space"].items()})
    meter = Meter(config["image_size"], tuple(float(w) for w in config["stage_weights"]), config["table"])
    problem, start = Problem(meter, space, dict(config["budget"])), plain(config["start"], "the start")
    for i, block in enumerate(start[1:], 1):
        if not block[3]:
            raise UserError(f"the start: block {i} is a convolution behind the stem, which the search does not know")
    for kernel in space.kernels if meter.table else ():  # that all were measured
        meter.measure((start[0], *((*block[:1], kernel, *block[2:]) for block in start[1:])))
    costs = meter.measure(start)
    for name, most in problem.budget.items():
        if getattr(costs, name) > most:
            raise UserError(f"budget {name} {_amount(name, most)} is impossible: the start has {_amount(name, getattr(costs, name))} already")
    return problem, start


def _amount(name: str, value: float) -> str:
    units = {"flops": (1e9, " G"), "parameters": (1e6, " M"), "latency": (1e-3, " ms")}
    scale, unit = units.get(name, (1, ""))
    return f"{value / scale:.4g}{unit}"


def _described(costs: Costs, budget: Dict[str, float]) -> str:
    parts = [f"score {costs.score:.3f}"]
    for name in BUDGETS:
        value = getattr(costs, name)
        if name in budget:
            parts.append(f"{name} {_amount(name, value)} of {_amount(name, budget[name])}")
        elif name != "latency":
            parts.append(f"{name} {_amount(name, value)}")
    return ", ".join(parts)


def _bar(**kwargs) -> tqdm:
    """A progress bar on a terminal, a line now and then in a log."""
    return tqdm(mininterval=0.1 if sys.stderr.isatty() else 15, **kwargs)


def search(config: Dict[str, Any], seed: int, output: str, workers: int, resume: bool) -> Candidate:
    """Runs, or goes on with, the evolution in the folder ``output``, and writes its result there."""
    problem, start = problem_of(config)
    path = os.path.join(output, "state.json")
    identity = _identity(config, seed)
    if os.path.isfile(path) and not resume:
        raise UserError(f"a search is in {output!r} already: go on with it by --resume, or take another --output")
    if not os.path.isfile(path) and os.path.lexists(os.path.join(output, "best.json")):
        raise UserError(f"{output!r} holds another result: take another --output")
    outside = problem.outside(start)
    if outside:
        print(f"note: the start is not of the space, and keeps what is not until it changes: its {outside}", flush=True)
    state, history = State(0, [(problem.meter.measure(start).score, start)]), []
    if resume and os.path.isfile(path):
        state, history = _load_state(path, identity, problem)
    elif resume:
        print(f"--resume: no search is in {output!r}, it starts anew", flush=True)
    size = config["islands"] * config["round"]
    rounds = _rounds(config)
    begun, first, saved = time.monotonic(), state.rounds, time.monotonic()
    islands = {"size": config["population"], "islands": config["islands"], "round_size": config["round"], "workers": workers}
    with Evolution(problem, state, seed, **islands) as evolution:
        with _bar(total=rounds * size, initial=first * size, unit=" candidates", smoothing=0.1) as bar:
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
                    _save_state(path, identity, evolution.state, history)
                    saved = time.monotonic()
    seconds, state = time.monotonic() - begun, evolution.state
    best = state.population[-1][1]
    made = (state.rounds - first) * size
    if made:
        print(
            f"{made} candidates in {seconds:.1f} s, {1e6 * seconds / made:.1f} microseconds each, {min(workers, config['islands'])} processes"
        )
    _write_result(config, problem, best, output, {"seed": seed, "candidates": state.rounds * size, "by": "evolution"})
    _plot(problem, state, history, best, os.path.join(output, "search.png"))
    return best


def _rounds(config: Dict[str, Any]) -> int:
    """The whole rounds that the candidates are enough for, at least one."""
    return max(1, config["candidates"] // (config["islands"] * config["round"]))


def _identity(config: Dict[str, Any], seed: int) -> Dict[str, Any]:
    """All that the result follows from, but for how many candidates there are to be."""
    kept = {key: value for key, value in config.items() if key not in ("candidates", "detector", "table", "latency_table")}
    table = config["table"]
    entries = sorted((key, sorted([*widths, s] for widths, s in rows.items())) for key, rows in table.entries.items()) if table else None
    return json.loads(json.dumps({**kept, "seed": seed, "table": entries}))


def _save_state(path: str, identity: Dict[str, Any], state: State, history: List) -> None:
    population = [structure for _, structure in state.population]
    write_whole(path, json.dumps({"search": identity, "rounds": state.rounds, "history": history, "population": population}))


def _load_state(path: str, identity: Dict[str, Any], problem: Problem) -> Tuple[State, List]:
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


def _write_result(config: Dict[str, Any], problem: Problem, best: Candidate, output: str, how: Dict[str, Any]) -> None:
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
    print(f"{os.path.join(output, 'best_structure.txt')}: {_described(costs, problem.budget)}")
    print(f"train it: python train_net.py --config-file {os.path.join(output, 'detector.yaml')} --num-gpus 8")


def describe(structure: Sequence[Plain], meter: Meter) -> Dict[str, Any]:
    """Score, its parts, and what the structure costs, by the search's counter at its image size and by fvcore's at 800x1280."""
    costs = meter.measure(structure)
    result = {
        "score": costs.score,
        "stages": meter.stages(structure),
        "image_size": meter.image_size,
        "flops": costs.flops,
        "fvcore_flops_800x1280": _fvcore_flops(structure),
        "parameters": costs.parameters,
        "layers": costs.layers,
    }
    return {**result, "latency": costs.latency} if meter.table else result


def _fvcore_flops(structure: Sequence[Plain], size: Tuple[int, int] = (800, 1280)) -> int:
    """Multiply-adds of the convolutions, and two for each value that a batch norm gives."""
    total, channels, (h, w) = 0, 3, size
    for out, kernel, stride, layers, width in structure:
        before, (h, w) = h * w, (-(-h // stride), -(-w // stride))
        pixels, area = h * w, kernel * kernel
        if not layers:
            total += pixels * out * (channels * area + 2)
        else:
            total += before * width * (channels + 2) + pixels * (area * width * width + 2 * width + out * (width + 2) + out * (channels + 2))
            total += (layers - 1) * pixels * (width * (out + 2) + area * width * width + 2 * width + out * (width + 2))
        channels = out
    return total


def _plot(problem: Problem, state: State, history: List, best: Candidate, path: str) -> None:
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


def find_exact(problem: Problem, start: Candidate, steps: int = 80) -> Tuple[exact.Bound, Candidate]:
    """The bound, and the best structure there is. Raises UserError where there are too many to go through."""
    with _bar(total=steps, desc="bound", unit="step") as bar:

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


def _score(args) -> None:
    if args.name in STRUCTURES:
        structure = plain(STRUCTURES[args.name])
    elif os.path.isfile(args.name):
        structure = plain(read_structure(args.name), repr(args.name))
    else:
        raise unknown("structure, neither a file nor a name", args.name, STRUCTURES)
    if not 32 <= args.image_size <= 1 << 16 or not 0 <= args.seed < 1 << 63:
        raise UserError(f"--image-size {args.image_size} and --seed {args.seed} must be 32 or more, and 0 or more")
    table = load_table(args.latency_table) if args.latency_table else None
    result = {"name": args.name, **describe(structure, Meter(table.image_size if table else args.image_size, table=table))}
    if args.monte_carlo:
        result["monte_carlo"] = monte_carlo(structure, seed=args.seed)
    if args.json:
        print(json.dumps(result))
        return
    print(f"{args.name}: score {result['score']:.3f} ({', '.join(f'{part:.3f}' for part in result['stages'])} of the stages)")
    print(f"operations at {result['image_size']} pixels, by the search's count: {result['flops'] / 1e9:.3f} G")
    print(f"multiply-adds at 800x1280, by fvcore's: {result['fvcore_flops_800x1280'] / 1e9:.3f} G")
    print(f"parameters {result['parameters']:,}, layers {result['layers']}" + (f", {result['latency'] * 1e3:.2f} ms" if table else ""))
    if args.monte_carlo:
        about = result["monte_carlo"]
        print(
            f"measured on random images of {about['image_size']} pixels: {about['mean']:.2f} +- {about['std']:.2f}, below it by their borders"
        )


def _latency(args) -> None:
    check_device(args.device, "--device")
    if args.device.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise unknown("--device", args.device, ("cpu", "cuda", "mps"))
    _check_file(args.output, "--output")
    for name, value, least, most in (
        ("--image-size", args.image_size, 32, 4096),
        ("--batch", args.batch, 1, 1024),
        ("--seconds", args.seconds, 1e-4, 10),
        ("--max-channels", args.max_channels, 8, 1 << 16),
        *(("--kernels", kernel, 1, 15) for kernel in args.kernels),
    ):
        if not least <= value <= most or (name == "--kernels" and value % 2 == 0):
            raise UserError(f"{name} is {value}: it must be from {least} to {most}{', and odd' * (name == '--kernels')}")
    table = build_table(
        args.image_size,
        args.device,
        args.kernels,
        args.max_channels,
        args.batch,
        args.seconds,
        lambda jobs: _bar(iterable=jobs, unit="convolution"),
    )
    table.save(args.output)  # whatever becomes of the check
    start = plain(load_config("search/maedet_r50_budget.yaml")["start"])
    checks = {}
    for name, structure in (("R-50", plain(STRUCTURES["R-50"])), ("MAE-DET-S", plain(STRUCTURES["MAE-DET-S"])), ("the search's start", start)):
        if {b[1] for b in structure[1:]} <= set(args.kernels):
            predicted, taken = measured(structure, table, args.device)
            checks[name] = {"predicted": predicted, "measured": taken}
            print(f"{name}: {predicted * 1e3:.2f} ms by the table, {taken * 1e3:.2f} ms measured, ratio {predicted / taken:.2f}")
    table.about["checks"] = checks
    table.save(args.output)
    print(args.output)


def _check_file(path: str, key: str) -> None:
    """Raises UserError where no file ``path``, the value of ``key``, can be written."""
    if not path or os.path.isdir(path):
        raise UserError(f"{key} {path!r} is no file's name")
    check_output_dir(os.path.dirname(os.path.abspath(path)), key)


def _check_folder(path: str) -> None:
    if not path:
        raise UserError("--output is empty: name a folder")
    check_output_dir(path, "--output")
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {path!r} cannot be made: {error.strerror}") from error


def _benchmark(args) -> None:
    """One process, each seed: what the search reaches, and how long a candidate takes it."""
    from ..tools.benchmark import machine

    if args.json:
        _check_file(args.json, "--json")
    config = load_config(args.config)
    problem, start = problem_of(config)
    proof, optimum = find_exact(problem, start) if "latency" not in problem.budget else (None, None)
    rows = []
    for seed in args.seeds:
        problem, _ = problem_of(config)
        state = State(0, [(problem.meter.measure(start).score, start)])
        begun = time.process_time()
        with Evolution(problem, state, seed, config["population"], config["islands"], config["round"]) as evolution:
            for _ in range(_rounds(config)):
                evolution.round()
        candidates = evolution.state.rounds * config["islands"] * config["round"]
        each = (time.process_time() - begun) / candidates
        score, best = evolution.state.population[-1]
        costs = problem.meter.measure(best)
        row = {"seed": seed, "score": score, **_integers(costs), "candidates": candidates}
        rows.append({**row, "microseconds": round(each * 1e6, 2), "times_reference": round(REFERENCE_MS / each / 1e3, 1)})
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "config": os.path.relpath(args.config) if os.path.isfile(args.config) else args.config,
        "image_size": config["image_size"],
        "budget": problem.budget,
        "machine": machine(),
        "reference_ms": REFERENCE_MS,
        "command": f"python -m backbones.search.zero_shot benchmark --config {args.config} --seeds {' '.join(map(str, args.seeds))}",
        "runs": rows,
    }
    if optimum:
        costs = problem.meter.measure(optimum)
        result["exact"] = {"score": costs.score, "bound": proof.score, **_integers(costs)}
        print(f"the best there is: {result['exact']['score']:.3f}; proved without going through it: no more than {proof.score:.3f}")
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")


def _integers(costs: Costs) -> Dict[str, int]:
    return {name: getattr(costs, name) for name in ("flops", "parameters", "layers")}


def _exact(args) -> None:
    config = load_config(args.config)
    problem, start = problem_of(config)
    if args.output:
        if os.path.isfile(os.path.join(args.output, "state.json")):
            raise UserError(f"a search is in {args.output!r} already: take another --output")
        _check_folder(args.output)
    proof, best = find_exact(problem, start)
    print(f"the best there is in this space: {_described(problem.meter.measure(best), problem.budget)} (bound {proof.score:.3f})")
    if args.output:
        _write_result(config, problem, best, args.output, {"by": "exact", "bound": proof.score})
    else:
        print(format_structure(tuple(Block(*block) for block in best)), end="")


def argument_parser() -> argparse.ArgumentParser:
    summary, _, details = __doc__.partition("\n")
    parser = argparse.ArgumentParser(
        prog="python -m backbones.search.zero_shot", description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    config = {"required": True, "metavar": "FILE", "help": "a search's config, such as configs/search/maedet_r50_budget.yaml"}

    verb = verbs.add_parser("search", help="evolve structures within a budget")
    verb.add_argument("--config", **config)
    verb.add_argument("--seed", type=int, default=0, help="of all choices (default: %(default)s)")
    verb.add_argument("--output", required=True, metavar="DIR", help="where everything goes")
    verb.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; the result does not depend on it (default: %(default)s)"
    )
    verb.add_argument("--candidates", type=int, help="how many, instead of the config's")
    verb.add_argument("--resume", action="store_true", help="go on with the search in DIR, to the same result as if it had not been stopped")

    verb = verbs.add_parser("exact", help="the best structure there is within a budget, and the proof")
    verb.add_argument("--config", **config)
    verb.add_argument("--output", default="", metavar="DIR", help="where it goes (default: it is printed)")

    verb = verbs.add_parser("score", help="score and costs of a structure")
    verb.add_argument("name", metavar="NAME_OR_FILE", help=f"a structure file, or one of {', '.join(STRUCTURES)}")
    verb.add_argument("--json", action="store_true", help="on one line, for programs")
    verb.add_argument("--image-size", type=int, default=480, help="that operations are counted at (default: %(default)s)")
    verb.add_argument("--latency-table", default="", metavar="FILE", help="of the verb latency, for seconds too")
    verb.add_argument("--monte-carlo", action="store_true", help="also measure it on random images, to check the closed form")
    verb.add_argument("--seed", type=int, default=0, help="of those (default: %(default)s)")

    verb = verbs.add_parser("latency", help="measure convolutions on this device, for budgets in seconds")
    verb.add_argument("--output", required=True, metavar="FILE", help="the table, as JSON")
    verb.add_argument("--device", default="cpu", help="(default: %(default)s)")
    verb.add_argument("--image-size", type=int, default=480, help="as that of the search (default: %(default)s)")
    verb.add_argument("--kernels", type=int, nargs="+", default=[3, 5], help="of the bottlenecks (default: 3 5)")
    verb.add_argument("--max-channels", type=int, default=2048, help="(default: %(default)s)")
    verb.add_argument("--batch", type=int, default=1, help="images at once; times are of one (default: %(default)s)")
    verb.add_argument("--seconds", type=float, default=0.02, help="of measuring each convolution (default: %(default)s)")

    verb = verbs.add_parser("benchmark", help="what the search reaches, how fast, and how far from the best there is")
    verb.add_argument("--config", **config)
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    verb.add_argument("--json", default="", metavar="FILE", help="where the figures go")
    return parser


def main(arguments: Optional[List[str]] = None) -> None:
    args = argument_parser().parse_args(arguments)
    if args.verb == "search":
        config = load_config(args.config)
        if args.candidates is not None:
            if args.candidates < 1:
                raise UserError(f"--candidates is {args.candidates}: it must be 1 or more")
            config["candidates"] = args.candidates
        if args.workers < 1:
            raise UserError(f"--workers is {args.workers}: it must be 1 or more")
        _check_folder(args.output)
        search(config, args.seed, args.output, args.workers, args.resume)
    else:
        {"exact": _exact, "score": _score, "latency": _latency, "benchmark": _benchmark}[args.verb](args)


if __name__ == "__main__":
    run(main)
