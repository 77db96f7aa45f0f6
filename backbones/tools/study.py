"""Trains many networks in one setting until they learn little more: what predicts AP, and do searches find better networks than chance?

OMP_NUM_THREADS=1 backbones study short paths wide stages --jobs 2
backbones study --show

Each training adds a row to the JSON file: its command, AP, minutes, machine and seed. Rows that are there already are not trained again, so a
stopped study continues, and a later one adds seeds. --show prints what the rows say.
"""

import argparse
import concurrent.futures
import logging
import os
import tempfile
import threading
from typing import Any

import torch
from tqdm import tqdm

from .. import zoo
from ..config import check_output_file
from ..engine import open_config
from ..errors import UserError, counted, either, unknown
from ..files import sha256, write_whole
from ..search import evidence, study
from ..search.one_shot import prepare
from ..search.path_evaluator import PathEvaluator
from . import parser_of, picture, program, run
from .benchmark import machine, record, train, words
from .digits import make

Rows = list[dict[str, Any]]
Known = dict[tuple[str, str], dict[str, Any]]  # `study.identities`
KEYS = ("study", "network", "seed")
_MPS = "nvidia-cuda-mps-control -d"  # NVIDIA's Multi-Process Service


def row_of(name: str, network: study.Network, seed: int, output: str, about: dict[str, object]) -> dict[str, object]:
    """Trains a network and returns its row; ``about`` is its entry in `study.identities`."""
    folder = os.path.join(output, name, f"{network.name.replace(' ', '_')}_{seed}")
    os.makedirs(folder, exist_ok=True)
    options = {**network.options, "SEED": seed}
    if network.structure:
        options["MODEL.MAEDET.STRUCTURE"], options["MODEL.MAEDET.WIDTH"] = os.path.join(folder, "structure.txt"), 1.0
        write_whole(os.path.join(folder, "structure.txt"), study.structure_file(network))
    row = train(network.config, folder, words(options), network.backbone, log=os.path.join(folder, "output.txt"))
    return {
        "study": name,
        "network": network.name,
        "group": network.group,
        **row,
        **about,
        "command": f"backbones study {name} --networks '{network.name}' --seeds {seed}",
    }


def waiting(args: argparse.Namespace, rows: Rows, known: Known) -> list[tuple[str, study.Network, int]]:
    """What is to be trained: (study, network, seed), all networks of a seed before the next seed.

    Raises UserError for names of networks that no study has, and if rows of these studies are of other networks or settings.
    """
    done = {tuple(row[key] for key in KEYS) for row in rows}
    networks = [(name, network) for name in args.studies for network in study.STUDIES[name]()]
    names = {network.name for _, network in networks}
    for name in args.networks:
        if name not in names:
            raise unknown("--networks", name, sorted(names), "--networks")
    check_rows([row for row in rows if row["study"] in args.studies], known, args.json)
    return [
        (name, network, seed)
        for seed in args.seeds
        for name, network in networks
        if (name, network.name, seed) not in done and (not args.networks or network.name in args.networks)
    ]


def check_rows(rows: Rows, known: Known, path: str) -> None:
    """Raises UserError if rows are not of networks as they are now."""
    for row in rows:
        if not study.is_current(row, known):
            said = f"--json {path!r}: {row['network']!r}, seed {row['seed']}, is of another version of that network or its config"
            raise UserError(f"{said}: name another file", "conflict", "--json")


def scores(name: str, weights: str, path: str, seed: int, rows: Rows, known: Known) -> None:
    """Scores the paths of a study by a trained supernet; adds a row for each that has none.

    Raises UserError if there are scores of that seed by another supernet.
    """
    config, digest, scored = study.SUPERNETS[name], sha256(weights), study.scores_of(name)
    own = [row for row in rows if row["study"] == scored and row["seed"] == seed]
    check_rows(own, known, path)
    if any(row.get("weights") != digest for row in own):
        raise UserError(
            f"--json {path!r} has scores of another supernet with seed {seed}: name another file, or its seed", "conflict", "--json"
        )
    networks = [network for network in study.STUDIES[name]() if network.name not in {row["network"] for row in own}]
    print(f"{counted(len(networks), 'path')} to score, {len(own)} scored before", flush=True)
    cfg = open_config(config, ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu"])
    front = prepare(cfg, argparse.Namespace(resume=True))
    logging.disable(logging.INFO)  # detectron2 logs every evaluation
    with tempfile.TemporaryDirectory() as folder:
        evaluator = PathEvaluator(front.cfg, folder)
        for network in tqdm(networks, desc="paths", unit="path"):
            score, _ = evaluator(tuple(network.options[study.PATH]))
            row = {"study": scored, "network": network.name, "group": network.group, "ap": round(score, 4), "seed": seed}
            row.update(machine=machine(), weights=digest, **known[scored, network.name])
            record({**row, "command": f"backbones study {name} --supernet {weights} --seeds {seed}"}, path, KEYS)


def main() -> None:
    parser = parser_of(program("study"), __doc__)
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=f"(default: {' '.join(study.STUDIES)})")
    parser.add_argument("--networks", nargs="+", default=[], metavar="NAME", help="train only these networks")
    parser.add_argument("--seeds", type=int, nargs="+", help="(default: 1 2)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default: %(default)s)")
    parser.add_argument("--output", default="output/study", metavar="DIR", help="where the runs go (default: %(default)s)")
    default = os.path.join(os.path.dirname(zoo.__file__), "study.json")
    parser.add_argument("--json", default=default, metavar="FILE", help="where the rows go (default: study.json of backbones/zoo)")
    parser.add_argument(
        "--supernet",
        default="",
        metavar="FILE",
        help="train nothing: score the paths of the study by this supernet, trained with the first seed",
    )
    parser.add_argument("--show", action="store_true", help="train nothing: print what the rows say")
    parser.add_argument("--plot", default="", metavar="FILE", help="with --show: draw AP against what was known before training")
    args = parser.parse_args()
    for name in args.studies:
        if name not in study.STUDIES:
            raise unknown("study", name, study.STUDIES)
    for flag, given in (("STUDY", args.studies), *((f"--{name}", getattr(args, name)) for name in ("networks", "seeds", "supernet"))):
        if args.show and given:
            raise UserError(f"--show shows all rows: it cannot be combined with {flag}", "conflict", "--show")
    if args.plot and not args.show:
        raise UserError("--plot draws what --show prints: add --show", "missing-argument", "--show")
    if args.supernet and len(args.seeds or ()) > 1:
        raise UserError("--supernet is trained with one seed: name it alone with --seeds", "conflict", "--seeds")
    args.studies, args.seeds = (list(dict.fromkeys(given)) for given in (args.studies or study.STUDIES, args.seeds or (1, 2)))
    if args.supernet and ({*args.studies} - {*study.SUPERNETS} or len(args.studies) > 1):
        said = f"--supernet scores the paths of one study: name {either(list(study.SUPERNETS))} alone"
        raise UserError(said, "missing-argument", "--supernet")
    if args.supernet and args.networks:
        raise UserError("--supernet scores all paths of a study: it cannot be combined with --networks", "conflict", "--networks")
    if args.supernet and not os.path.isfile(args.supernet):
        raise UserError(f"--supernet {args.supernet!r} is not a file", "missing-file", "--supernet")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: it must be at least 1", "value", "--jobs")
    if args.plot:
        picture(args.plot, flag="--plot")
    if args.show and not os.path.isfile(args.json):
        raise UserError(f"--json {args.json!r} is not a file", "missing-file", "--json")
    rows = study.read(args.json) if os.path.isfile(args.json) else []
    if args.show:
        there = {row["study"] for row in rows}
        known = study.identities(name for name in study.STUDIES if there & {name, study.scores_of(name)})
        now = [row for row in rows if study.is_current(row, known)]
        if len(now) < len(rows):
            print(f"{counted(len(rows) - len(now), 'row')} left out: of other versions of networks or configs\n")
        rows = now
        print(evidence.summary(rows))
        if args.plot:
            evidence.plot(rows, args.plot)
        return
    check_output_file(args.json, "--json")
    known = study.identities(args.studies)
    if args.supernet:
        make(which="digits_crowd")
        return scores(args.studies[0], args.supernet, args.json, args.seeds[0], rows, known)
    todo = waiting(args, rows, known)
    print(f"{len(todo)} networks to train, {len(rows)} rows in {args.json}", flush=True)
    if (
        torch.cuda.is_available()
        and min(args.jobs, len(todo)) > 1
        and not os.path.exists(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps"))
    ):
        print(f"--jobs {args.jobs} on a GPU without MPS: the trainings take turns. Start it: {_MPS}", flush=True)
    make(which="digits_crowd")
    lock, ended = threading.Lock(), 0

    def one(task: tuple[str, study.Network, int]) -> None:
        nonlocal ended
        row = row_of(*task, args.output, known[task[0], task[1].name])
        with lock:
            record(row, args.json, KEYS)
            ended += 1
            print(f"{ended}/{len(todo)} {row['network']}, seed {row['seed']}: AP {row['ap']:.2f} in {row['minutes']} minutes", flush=True)

    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        try:
            for training in concurrent.futures.as_completed([pool.submit(one, task) for task in todo]):
                training.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    run(main)
