"""MAE-DET's training-free search: finds the structure of highest entropy within a budget without building a network.

backbones search search --config-file configs/search/maedet_r50_budget.yaml --seed 0 --output output/search
backbones search exact --config-file configs/search/maedet_r50_budget.yaml --output output/exact
backbones search score MAE-DET-S --json
backbones search latency --device cpu --output latency.json
backbones search benchmark --config-file configs/search/maedet_r50_budget.yaml --seeds 0 1 2

`search` is the paper's evolution. `exact` goes through the whole space instead, and proves that nothing in it scores more. Both write
best_structure.txt for MODEL.MAEDET.STRUCTURE, and detector.yaml for `backbones train`.
"""

import argparse
import json
import os
import sys
import time
from typing import Any

from ..config import check_device, check_output_dir, check_output_file
from ..errors import UserError, unknown
from ..files import write_whole
from ..maedet import Block, format_structure, read_structure
from ..tools import parser_of, run
from .entropy import STRUCTURES, Costs, Meter, monte_carlo, plain
from .evolution import Evolution, State
from .latency import build_table, load_table, measured
from .runtimes import RUNTIMES, check_runtime
from .structure_config import keys, load_structure_config, problem_of
from .structure_search import describe, described, find_exact, rounds_of, search_structures, write_result

# milliseconds per candidate of the original's loop in one process on one core, without building networks as it also does
REFERENCE_MS = 11.5


def _score(args) -> None:
    if args.name in STRUCTURES:
        structure = plain(STRUCTURES[args.name])
    elif os.path.isfile(args.name):
        structure = plain(read_structure(args.name), repr(args.name))
    else:
        raise unknown("structure, neither a file nor a name", args.name, STRUCTURES)
    table = load_table(args.latency_table) if args.latency_table else None
    size = args.image_size if args.image_size is not None else table.image_size if table else 480
    for flag, value, least, most in (("--image-size", size, 32, 1 << 16), ("--seed", args.seed, 0, (1 << 63) - 1)):
        if not least <= value <= most:
            raise UserError(f"{flag} {value} must be from {least} to {most}", "value", flag)
    if table and size != table.image_size:
        raise UserError(f"--image-size is {size}, but the latency table has {table.image_size}: leave it out", "conflict", "--image-size")
    result = {"name": args.name, **describe(structure, Meter(size, table=table))}
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
        print(f"measured on random images of {about['image_size']} pixels: {about['mean']:.2f} +- {about['std']:.2f}, lower because of borders")


def _latency(args) -> None:
    check_device(args.device, "--device")
    if args.device.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise unknown("--device", args.device, ("cpu", "cuda", "mps"))
    check_output_file(args.output, "--output")
    check_runtime(args.runtime, args.device, "--runtime")
    for name, value, least, most in (
        ("--image-size", args.image_size, 32, 4096),
        ("--batch", args.batch, 1, 1024),
        ("--seconds", args.seconds, 1e-4, 10),
        ("--max-channels", args.max_channels, 8, 1 << 16),
        *(("--kernels", kernel, 1, 15) for kernel in args.kernels),
    ):
        if not least <= value <= most or (name == "--kernels" and value % 2 == 0):
            raise UserError(f"{name} is {value}: it must be from {least} to {most}{', and odd' * (name == '--kernels')}")
    table = build_table(args.image_size, args.device, args.kernels, args.max_channels, args.batch, args.seconds, args.runtime)
    table.save(args.output)  # even if the check fails
    _, start = problem_of(load_structure_config("search/maedet_r50_budget.yaml"))
    meter, checks = Meter(table.image_size, table=table), {}
    for name, structure in (("R-50", plain(STRUCTURES["R-50"])), ("MAE-DET-S", plain(STRUCTURES["MAE-DET-S"])), ("the search's start", start)):
        if {b[1] for b in structure[1:]} <= set(args.kernels):
            predicted, taken = meter.measure(structure).latency, measured(structure, table)
            checks[name] = {"predicted": predicted, "measured": taken}
            print(f"{name}: {predicted * 1e3:.2f} ms by the table, {taken * 1e3:.2f} ms measured, ratio {predicted / taken:.2f}")
    table.about["checks"] = checks
    table.save(args.output)
    print(args.output)


def _check_folder(path: str) -> None:
    if not path:
        raise UserError("--output is empty: name a folder", "missing-argument", "--output")
    check_output_dir(path, "--output")


def _benchmark(args) -> None:
    """Runs the search in one process for each seed; reports its scores and the time per candidate."""
    from ..tools.benchmark import machine

    if args.json:
        check_output_file(args.json, "--json")
    config = load_structure_config(args.config)
    problem, start = problem_of(config)
    exact = find_exact(problem, start) if "latency" not in problem.budget else None
    rows = []
    for seed in args.seeds:
        problem, _ = problem_of(config)
        state = State(0, [(problem.meter.measure(start).score, start)])
        begun = time.process_time()
        with Evolution(problem, state, seed, config["population"], config["islands"], config["round"]) as evolution:
            for _ in range(rounds_of(config)):
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
        "command": f"backbones search benchmark --config-file {args.config} --seeds {' '.join(map(str, args.seeds))}",
        "runs": rows,
    }
    if exact:
        proof, optimum = exact
        costs = problem.meter.measure(optimum)
        result["exact"] = {"score": costs.score, "bound": proof.score, **_integers(costs)}
        print(f"the best structure: {result['exact']['score']:.3f}; bound proved without enumeration: {proof.score:.3f}")
    if args.json:
        write_whole(args.json, json.dumps(result, indent=1) + "\n")


def _integers(costs: Costs) -> dict[str, int]:
    return {name: getattr(costs, name) for name in ("flops", "parameters", "layers")}


def _exact(args) -> None:
    config = load_structure_config(args.config)
    problem, start = problem_of(config)
    if args.output:
        for name, what in (("state.json", "a search"), ("best.json", "another result")):
            if os.path.lexists(os.path.join(args.output, name)):
                raise UserError(f"{args.output!r} already holds {what}: name another --output")
        _check_folder(args.output)
    proof, best = find_exact(problem, start)
    print(f"the best structure of this space: {described(problem.meter.measure(best), problem.budget)} (bound {proof.score:.3f})")
    if args.output:
        write_result(config, problem, best, args.output, {"by": "exact", "bound": proof.score})
    else:
        print(format_structure(tuple(Block(*block) for block in best)), end="")


def argument_parser() -> argparse.ArgumentParser:
    named = sys.argv[0].startswith("backbones ")
    parser = parser_of(sys.argv[0] if named else "python -m backbones.search.zero_shot", __doc__)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    config: dict[str, Any] = {"required": True, "metavar": "FILE", "help": "a search's config, such as configs/search/maedet_r50_budget.yaml"}

    verb = verbs.add_parser("search", help="evolve structures within a budget")
    verb.add_argument("--config-file", "--config", dest="config", **config)
    verb.add_argument("--seed", type=int, default=0, help="seed of all choices (default: %(default)s)")
    verb.add_argument("--output", required=True, metavar="DIR", help="where everything goes")
    verb.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; they do not change the result (default: one per CPU core)"
    )
    verb.add_argument("--candidates", type=int, help="number of candidates, instead of the config's")
    verb.add_argument("--resume", action="store_true", help="continue the search in DIR, to the same result as without the interruption")

    verb = verbs.add_parser("exact", help="find and prove the best structure within a budget")
    verb.add_argument("--config-file", "--config", dest="config", **config)
    verb.add_argument("--output", default="", metavar="DIR", help="where it goes (default: print it)")

    verb = verbs.add_parser("score", help="score and costs of a structure")
    verb.add_argument("name", metavar="NAME_OR_FILE", help=f"a structure file, or one of {', '.join(STRUCTURES)}")
    verb.add_argument("--json", action="store_true", help="on one line, for programs")
    text = "image size for counting operations (default: 480, or the latency table's)"
    verb.add_argument("--image-size", "--size", type=int, help=text)
    verb.add_argument("--latency-table", default="", metavar="FILE", help="file written by `latency`, to report seconds too")
    verb.add_argument("--monte-carlo", action="store_true", help="also measure it on random images, to check the closed form")
    verb.add_argument("--seed", type=int, default=0, help="seed of the random images (default: %(default)s)")

    verb = verbs.add_parser("latency", help="measure convolutions on this device, for budgets in seconds")
    verb.add_argument("--output", required=True, metavar="FILE", help="the table, as JSON")
    verb.add_argument("--device", default="cpu", help="(default: %(default)s)")
    verb.add_argument("--runtime", default="eager", help=f"how the network runs: {', '.join(RUNTIMES)} (default: %(default)s)")
    verb.add_argument("--image-size", "--size", type=int, default=480, help="image size of the search (default: %(default)s)")
    verb.add_argument("--kernels", type=int, nargs="+", default=[3, 5], help="kernel sizes of the bottlenecks (default: 3 5)")
    verb.add_argument("--max-channels", type=int, default=2048, help="(default: %(default)s)")
    verb.add_argument("--batch", type=int, default=1, help="images at once; times are per image (default: %(default)s)")
    verb.add_argument("--seconds", type=float, default=0.02, help="time to measure each convolution (default: %(default)s)")

    verb = verbs.add_parser("benchmark", help="scores of the search, its speed, and the gap to the best structure")
    verb.add_argument("--config-file", "--config", dest="config", **config)
    verb.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(default: 0 1 2)")
    verb.add_argument("--json", default="", metavar="FILE", help="where the figures go")
    verbs.add_parser("keys", help="list every key of a search's config with its default and meaning")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = argument_parser().parse_args(arguments)
    if args.verb == "search":
        config = load_structure_config(args.config)
        if args.candidates is not None:
            if args.candidates < 1:
                raise UserError(f"--candidates is {args.candidates}: it must be 1 or more")
            config["candidates"] = args.candidates
        if args.workers < 1:
            raise UserError(f"--workers is {args.workers}: it must be 1 or more")
        _check_folder(args.output)
        search_structures(config, args.seed, args.output, args.workers, args.resume)
    else:
        {"exact": _exact, "score": _score, "latency": _latency, "benchmark": _benchmark, "keys": lambda args: print(keys())}[args.verb](args)


if __name__ == "__main__":
    run(main)
