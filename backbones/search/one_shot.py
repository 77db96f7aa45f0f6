"""DetNAS's search: paths of a trained supernet, evaluated as detectors on held-out training images, by evolution or at random.

python -m backbones.search.one_shot --config-file digits/detnas_supernet_digits.yaml --seed 0 MODEL.WEIGHTS supernet.pth MODEL.DEVICE cpu
python -m backbones.search.one_shot --config-file ... --num-gpus 8 --resume MODEL.WEIGHTS supernet.pth OUTPUT_DIR output/search

The config is the supernet's own; its ONE_SHOT says how much is searched and what a path may cost. Each path is evaluated once: its weights are
taken out of the supernet, its batch norms see training images anew, and it detects on images that neither training nor the final test has. With
several processes each evaluates paths of its own. After every one the state is saved: killed, a search goes on with --resume, and gives what it
would have given.
"""

import contextlib
import copy
import dataclasses
import io
import json
import logging
import math
import os
import random
import re
import sys
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, DatasetMapper, build_detection_test_loader
from detectron2.engine import default_argument_parser
from detectron2.evaluation import inference_on_dataset
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .. import zoo
from ..checkpoint import GatedCheckpointer
from ..config import add_backbones_config, all_keys, check_config, check_output_dir, get, merge_file, merge_overrides
from ..data import check_datasets, check_paths, register_from_config, register_held_out
from ..data.holdout import HELD_OUT, KEPT
from ..data.loader import share
from ..deploy import optimize
from ..documents import read_json
from ..engine.launch import launch
from ..engine.supernet import random_path, supernets
from ..errors import UserError, unknown
from ..evaluation.build import coco_evaluator
from ..files import replacing, sha256, write_whole
from ..layers import COMMON_NORMS
from ..shufflenetv2 import CHOICES, FAMILY, SPECS, STAGES, ShuffleNetV2
from ..tools import run

Path = Tuple[int, ...]
METHODS = ("evolution", "random")
# keys that a search may be resumed with other values of
_NO_MATTER = ("OUTPUT_DIR", "MODEL.DEVICE", "MODEL.WEIGHTS", "DATALOADER.NUM_WORKERS", "ONE_SHOT.GENERATIONS", "SOLVER.", "VIS_PERIOD", "SEED")


@dataclasses.dataclass(frozen=True)
class CostTable:
    """What each choice of each block costs; a path costs ``base``, the stem's, and the sum of its choices'."""

    kind: str
    base: float
    blocks: Tuple[Tuple[float, ...], ...]

    def cost(self, path: Sequence[int]) -> float:
        return self.base + sum(row[choice] for row, choice in zip(self.blocks, path))

    def range(self) -> Tuple[float, float]:
        return self.base + sum(map(min, self.blocks)), self.base + sum(map(max, self.blocks))


def cost_table(cfg: CfgNode, kind: str, size: Sequence[int]) -> CostTable:
    """The costs of all choices of ``cfg``'s backbone: "macs" of its convolutions or seconds ("latency") on one image of ``size``, or "parameters"."""
    nets = []
    count = sum(SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks)
    for choice in range(len(CHOICES)):
        with torch.device("meta"):
            nets.append(_subnet(cfg, (choice,) * count))
    every = [[block for name in STAGES[1:] for block in getattr(net, name)] for net in nets]
    if kind == "parameters":
        stem = sum(p.numel() for p in nets[0].stem.parameters())
        costs = [[sum(p.numel() for p in block.parameters()) for block in blocks] for blocks in every]
    elif kind == "macs":
        (stem, *_), *_ = counted = [_macs(net, size) for net in nets]
        costs = [macs[1:] for macs in counted]
    else:
        stem, costs = _seconds(nets, size, cfg.MODEL.DEVICE)
    return CostTable(kind, stem, tuple(zip(*costs)))


def _macs(net: ShuffleNetV2, size: Sequence[int]) -> List[int]:
    """Multiply-adds of the convolutions of the stem and of each block."""
    x, counted = torch.empty(1, 3, *size, device="meta"), []
    for unit in [net.stem, *(block for name in STAGES[1:] for block in getattr(net, name))]:
        with FlopCounterMode(display=False) as counter:
            x = unit.eval()(x)
        counted.append(counter.get_total_flops() // 2)
    return counted


def _seconds(nets: Sequence[ShuffleNetV2], size: Sequence[int], device: str) -> Tuple[float, List[List[float]]]:
    """Median time of the stem and of each block, one after the other, on the device."""
    from torch.utils.benchmark import Timer

    def taken(module: nn.Module, x: torch.Tensor) -> float:
        module(x)
        return (
            Timer("module(x)", globals={"module": module, "x": x}, num_threads=torch.get_num_threads())
            .blocked_autorange(min_run_time=0.02)
            .median
        )

    stem, result = 0.0, []
    with torch.no_grad():
        for net in nets:
            net = net.to_empty(device=device).eval()
            for tensor in [*net.parameters(), *net.buffers()]:
                nn.init.ones_(tensor) if tensor.is_floating_point() else None
            x = torch.zeros(1, 3, *size, device=device)
            stem = taken(net.stem, x)
            x, times = net.stem(x), []
            for name in STAGES[1:]:
                for block in getattr(net, name):
                    times.append(taken(block, x))
                    x = block(x)
            result.append(times)
    return stem, result


def _subnet(cfg: CfgNode, path: Sequence[int]) -> ShuffleNetV2:
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
    seconds: Dict[str, float]  # of extraction, recalibration and inference


class PathEvaluator:
    """Scores paths of a trained supernet; the same path gets the same score, whatever was evaluated before.

    Args:
        cfg: the supernet's config.
        output: where the evaluator's files go.
    """

    def __init__(self, cfg: CfgNode, output: str):
        self.cfg = _with_plain_norms(cfg)
        model = build_model(self.cfg).eval()
        try:
            GatedCheckpointer(model, require="all").load(self.cfg.MODEL.WEIGHTS)
        except UserError as error:  # a search does without that flag
            raise UserError(re.sub(r" *To load [\w ]+: --allow-partial-weights$", "", str(error))) from error
        self.supernet = supernets(model)[0]
        self.outer = model.backbone if hasattr(model.backbone, "bottom_up") else model
        self.place = "bottom_up" if hasattr(model.backbone, "bottom_up") else "backbone"
        setattr(self.outer, self.place, nn.Identity())  # paths are put here
        self.template = model
        one_shot = self.cfg.ONE_SHOT
        # everything is calibrated by whole training steps only where norms beyond the backbone ask for it
        self.whole = any(isinstance(m, nn.BatchNorm2d) for key, m in model.named_modules() if not key.startswith("backbone."))
        records = [record for name in self.cfg.DATASETS.TRAIN for record in DatasetCatalog.get(name)]
        chosen = random.Random("calibration").sample(range(len(records)), min(one_shot.CALIBRATION_IMAGES, len(records)))
        mapper = DatasetMapper(self.cfg, is_train=False)
        if self.whole:
            mapper = DatasetMapper(self.cfg, is_train=True, augmentations=mapper.augmentations.augs)
        batch = one_shot.CALIBRATION_BATCH
        self.calibration = _Cached(self._loader([records[i] for i in chosen], mapper, batch))
        held_out = DatasetCatalog.get(one_shot.DATASET)
        self.images = _Cached(self._loader(held_out, DatasetMapper(self.cfg, is_train=False), 1))
        self.evaluator = coco_evaluator(self.cfg, one_shot.DATASET, output, distributed=False, allow_cached_coco=False)

    def _loader(self, records: List[dict], mapper: Callable, batch: int):
        # its own sampler gives each process a part; here each process sees all
        sampler = torch.utils.data.SequentialSampler(records)
        return build_detection_test_loader(
            records, mapper=mapper, sampler=sampler, batch_size=batch, num_workers=self.cfg.DATALOADER.NUM_WORKERS, collate_fn=share
        )

    def extract(self, path: Path) -> nn.Module:
        """The detector of a path, with weights and statistics of its own."""
        model = copy.deepcopy(self.template)
        with torch.device("meta"):
            net = _subnet(self.cfg, path)
        net.load_state_dict({key: value.clone() for key, value in self.supernet.subnet_state_dict(path).items()}, strict=True, assign=True)
        net.to(self.cfg.MODEL.DEVICE)
        setattr(model.backbone if self.place == "bottom_up" else model, self.place, net)
        return model.eval()

    def recalibrate(self, model: nn.Module) -> None:
        """Gives every batch norm the statistics of the calibration images."""
        from fvcore.nn.precise_bn import update_bn_stats

        module, forward = (model, model) if self.whole else (model.backbone, lambda batch: model.backbone(model.preprocess_image(batch).tensor))
        module.train()
        # whole training steps draw anchors and proposals: the same ones for every path, in every process
        with torch.no_grad(), EventStorage(), torch.random.fork_rng():
            torch.manual_seed(0)
            try:
                update_bn_stats(_Wrapped(module, forward), self.calibration, len(self.calibration))
            except AssertionError as error:  # fvcore's: norms that several levels share have no statistics of their own
                raise UserError(f"the paths' norms cannot be recalibrated: {' '.join(str(error).split())}") from error
        model.eval()

    def faster(self, model: nn.Module) -> nn.Module:
        """The same detector for inference: in a format that is not measured, as equal scores are to be equal in all processes."""
        return optimize(model, memory_format="channels_last" if self.cfg.MODEL.DEVICE == "cpu" else "contiguous")

    def __call__(self, path: Path) -> Tuple[float, Dict[str, float]]:
        """(score, seconds of each part)."""
        times = [time.perf_counter()]
        model = self.extract(path)
        times.append(time.perf_counter())
        self.recalibrate(model)
        times.append(time.perf_counter())
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its table
            results = inference_on_dataset(self.faster(model), self.images, self.evaluator)
        times.append(time.perf_counter())
        kind, _, name = self.cfg.ONE_SHOT.METRIC.partition("/")
        score = float(results[kind][name])
        parts = dict(zip(("extraction", "recalibration", "inference"), (b - a for a, b in zip(times, times[1:]))))
        return (score if math.isfinite(score) else 0.0), parts


class _Wrapped(nn.Module):
    """What fvcore recalibrates: the norms of ``module``, run by ``forward``."""

    def __init__(self, module: nn.Module, run: Callable):
        super().__init__()
        self.module = module
        self.run = run

    def forward(self, batch):
        return self.run(batch)


class _Cached:
    """A loader whose batches are kept after the first pass, as long as they are no more than ``most`` bytes."""

    def __init__(self, loader, most: int = 1 << 30):
        self.loader, self.most = loader, most
        self.batches: Optional[List] = None

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        if self.batches is not None:
            yield from self.batches
            return
        batches, size = [], 0
        for batch in self.loader:
            size += sum(x["image"].nbytes for x in batch)
            if size <= self.most:
                batches.append(batch)
            else:
                self.most, batches = 0, []  # not kept, in later passes neither
            yield batch
        if size <= self.most:
            self.batches = batches


def _with_plain_norms(cfg: CfgNode) -> CfgNode:
    """Norms that wait for other processes become BN, whose weights are the same: processes evaluate paths of their own."""
    cfg = cfg.clone()
    cfg.defrost()
    for key in all_keys(cfg):
        if key.endswith(".NORM") and isinstance(get(cfg, key), str) and "SyncBN" in get(cfg, key) and get(cfg, key) in COMMON_NORMS:
            merge_overrides(cfg, [key, "BN"])
    cfg.freeze()
    return cfg


@dataclasses.dataclass
class Evolution:
    """Which paths are tried: those of a generation follow from the seed and what was found before, and none is tried twice."""

    settings: CfgNode  # ONE_SHOT
    table: CostTable
    method: str
    seed: int

    def fits(self, path: Path) -> bool:
        return self.settings.MIN_COST <= self.table.cost(path) <= self.settings.MAX_COST

    def check(self) -> None:
        """Raises UserError where no path is within the limits."""
        low, high = self.table.range()
        limits = f"ONE_SHOT.MIN_COST {self.settings.MIN_COST:.4g} and MAX_COST {self.settings.MAX_COST:.4g}"
        if self.settings.MIN_COST > self.settings.MAX_COST or self.settings.MAX_COST < low or self.settings.MIN_COST > high:
            raise UserError(f"{limits} allow no path: {self.table.kind} of the backbone are from {low:.4g} to {high:.4g}")
        if not self._random(random.Random(0)):
            raise UserError(
                f"no path was found between {limits}: widen them; {self.table.kind} of the backbone are from {low:.4g} to {high:.4g}"
            )
        if self.settings.MIN_COST <= low and self.settings.MAX_COST >= high and self.table.kind != "macs":
            raise UserError(f"{limits} exclude nothing: {self.table.kind} of the backbone are from {low:.4g} to {high:.4g}")

    def propose(self, generation: int, before: Sequence[Evaluated]) -> List[Path]:
        """The paths of a generation; fewer than there should be where no more are found."""
        rng = random.Random(f"{self.seed}/{generation}")
        settings = self.settings
        tried: Set[Path] = {e.path for e in before}
        paths: List[Path] = []

        def add(count: int, make: Callable[[], Optional[Path]]) -> None:
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

            add(settings.MUTATIONS, lambda: tuple(self._choice(rng) if rng.random() < settings.MUTATION_PROB else c for c in choose()))
            add(settings.CROSSOVERS, lambda: tuple(a if rng.random() < 0.5 else b for a, b in zip(choose(), choose())))
        add(settings.POPULATION - len(paths), lambda: self._random(rng))
        return paths

    @staticmethod
    def _choice(rng: random.Random) -> int:
        return int(rng.random() * len(CHOICES))

    def _random(self, rng: random.Random) -> Optional[Path]:
        """A path within the limits: any, or where few are, one that was moved there block by block."""
        rows = self.table.blocks
        for _ in range(50):
            path = list(random_path(len(rows), rng))
            if self.fits(tuple(path)):
                return tuple(path)
        for _ in range(200):
            cost = self.table.cost(path)
            if self.settings.MIN_COST <= cost <= self.settings.MAX_COST:
                return tuple(path)
            i = int(rng.random() * len(rows))
            down = cost > self.settings.MAX_COST
            better = [c for c in range(len(CHOICES)) if (rows[i][c] < rows[i][path[i]]) == down and rows[i][c] != rows[i][path[i]]]
            if better:
                path[i] = better[int(rng.random() * len(better))]
        return None


def search(cfg: CfgNode, evolution: Evolution, evaluate: Callable[[Path], Tuple[float, Dict[str, float]]], resume: bool) -> List[Evaluated]:
    """Runs, or goes on with, a search in ``cfg.OUTPUT_DIR``; in every process of a run, with the same result in all.

    Returns all that was evaluated, in order.
    """
    path = os.path.join(cfg.OUTPUT_DIR, "search.json")
    identity = _identity(cfg, evolution)
    archive = comm.all_gather(_load(path, identity, resume) if comm.is_main_process() else None)[0]
    settings, processes, rank = cfg.ONE_SHOT, comm.get_world_size(), comm.get_rank()
    total = settings.GENERATIONS * settings.POPULATION
    bar = tqdm(
        total=total, initial=len(archive), unit="path", disable=not comm.is_main_process(), mininterval=0.1 if sys.stderr.isatty() else 15
    )
    with bar:
        for generation in range(settings.GENERATIONS):
            before = [e for e in archive if e.generation < generation]
            done = {e.path for e in archive}
            waiting = [p for p in evolution.propose(generation, before) if p not in done]
            for first in range(0, len(waiting), processes):
                chunk = waiting[first : first + processes]
                mine = (*evaluate(chunk[rank]), chunk[rank]) if rank < len(chunk) else None
                for path_, result in zip(chunk, comm.all_gather(mine)):
                    assert result[2] == path_, "processes propose other paths"
                    archive.append(Evaluated(path_, evolution.table.cost(path_), result[0], generation, result[1]))
                if comm.is_main_process():
                    _save(path, identity, archive)
                bar.update(len(chunk))
                bar.set_postfix_str(
                    f"generation {generation + 1}/{settings.GENERATIONS}, best {max(e.score for e in archive):.2f}", refresh=False
                )
    return archive


def _identity(cfg: CfgNode, evolution: Evolution) -> Dict[str, Any]:
    """All that the result follows from, but for how many generations there are to be."""
    about = {"weights": sha256(cfg.MODEL.WEIGHTS), "table": dataclasses.asdict(evolution.table)}
    about.update(method=evolution.method, seed=evolution.seed, config=config_values(cfg))
    return json.loads(json.dumps(about))


def config_values(cfg: CfgNode) -> Dict[str, Any]:
    """The keys that scores follow from, with their values."""
    keys = [key for key in all_keys(cfg) if not key.startswith(_NO_MATTER)]
    return {key: get(cfg, key) for key in keys}


def _load(path: str, identity: Dict[str, Any], resume: bool) -> List[Evaluated]:
    if not os.path.isfile(path):
        return []
    if not resume:
        raise UserError(f"a search is in {os.path.dirname(path)!r} already: go on with it by --resume, or set another OUTPUT_DIR")
    try:
        data = read_json(path)
        differ = [key for key in identity if key != "config" and data["search"].get(key) != identity[key]]
        before = data["search"]["config"]
        differ += sorted(key for key in {*before, *identity["config"]} if before.get(key) != identity["config"].get(key))
        archive = [_entry(entry, len(identity["table"]["blocks"])) for entry in data["archive"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path!r} is no state of a search: {' '.join(str(error).split())[:200]}") from error
    if differ:
        named = ", ".join(differ[:5]) + (f" and {len(differ) - 5} more" if len(differ) > 5 else "")
        raise UserError(f"--resume: the search in {os.path.dirname(path)!r} has another {named}: set another OUTPUT_DIR")
    return archive


def _entry(entry: Dict[str, Any], blocks: int) -> Evaluated:
    """One entry of a state file; raises ValueError or TypeError for what no search writes."""
    result = Evaluated(**{**entry, "path": tuple(entry["path"])})
    numbers = [result.cost, result.score, *result.seconds.values()]
    if len(result.path) != blocks or any(type(c) is not int or c not in range(len(CHOICES)) for c in result.path):
        raise ValueError(f"{list(result.path)} is no path of {blocks} blocks")
    if type(result.generation) is not int or not _finite(numbers):
        raise ValueError(f"the path {list(result.path)} has values that are no numbers")
    return result


def _finite(values: Iterable[Any]) -> bool:
    return all(type(v) in (int, float) and math.isfinite(v) for v in values)


def _save(path: str, identity: Dict[str, Any], archive: Sequence[Evaluated]) -> None:
    write_whole(path, json.dumps({"search": identity, "archive": [dataclasses.asdict(e) for e in archive]}))


def write_result(cfg: CfgNode, config_file: str, table: CostTable, archive: Sequence[Evaluated]) -> Evaluated:
    """The best path as a subnet file and a config, and the pictures."""
    best = max(archive, key=lambda e: e.score)
    net = _subnet(cfg, best.path)
    subnet = (
        f"network: {cfg.MODEL.SHUFFLENETV2.NAME}\nchoices: [{', '.join(map(str, best.path))}]\nsplit: {net.split}\nshuffle: {net.shuffle}\n"
        f"width: {cfg.MODEL.SHUFFLENETV2.WIDTH!r}\nscore: {best.score!r}  # {cfg.ONE_SHOT.METRIC} on {cfg.ONE_SHOT.DATASET}\n"
        f"{table.kind}: {best.cost!r}\n"
    )
    config = "# What a one-shot search found, to be trained by itself\n" + yaml.safe_dump(_own_config(cfg, config_file), sort_keys=False)
    try:
        for filename, text in (("best_subnet.yaml", subnet), ("detector.yaml", config)):
            write_whole(os.path.join(cfg.OUTPUT_DIR, filename), text)
        _plot(cfg, table, archive, best)
    except OSError as error:
        raise UserError(f"the result cannot be written: {error}") from error
    return best


def _own_config(cfg: CfgNode, config_file: str) -> Dict[str, Any]:
    """What the config of the found network says beside the supernet's file: all that the command line changed, and the network in its place."""
    plain = get_cfg()
    add_backbones_config(plain)
    merge_file(plain, config_file)
    values = {key: get(cfg, key) for key in all_keys(cfg) if key not in all_keys(plain) or get(cfg, key) != get(plain, key)}
    held_out = [entry[0] for entry in cfg.DATASETS.HOLD_OUT]
    values = {key: value for key, value in values.items() if not key.startswith("ONE_SHOT.")}
    values.update(
        {
            "MODEL.WEIGHTS": "",
            "MODEL.SHUFFLENETV2.SUPERNET": False,
            "MODEL.SHUFFLENETV2.SUBNET": "best_subnet.yaml",
            # nothing is held out any more
            "DATASETS.TRAIN": [
                name[: -len(KEPT)] if name.endswith(KEPT) and name[: -len(KEPT)] in held_out else name for name in cfg.DATASETS.TRAIN
            ],
            "DATASETS.HOLD_OUT": [],
            "OUTPUT_DIR": os.path.join(cfg.OUTPUT_DIR, "training"),
        }
    )
    result: Dict[str, Any] = {"_BASE_": os.path.abspath(config_file)}
    for key, value in values.items():
        *nodes, leaf = key.split(".")
        node = result
        for name in nodes:
            node = node.setdefault(name, {})
        node[leaf] = json.loads(json.dumps(value))
    return result


def write_weights(evaluate: "PathEvaluator", best: Evaluated, path: str) -> None:
    """The best path as a detector with the supernet's weights and norms of its own, as it was scored."""
    model = evaluate.extract(best.path)
    evaluate.recalibrate(model)
    data = {"model": {key: value.cpu() for key, value in model.state_dict().items()}, "conventions": dict(evaluate.supernet.conventions)}
    with replacing(path) as partial:
        torch.save(data, partial)


def pareto(archive: Iterable[Evaluated]) -> List[Evaluated]:
    """Those that none of lower cost reaches, by cost."""
    front: List[Evaluated] = []
    for e in sorted(archive, key=lambda e: (e.cost, -e.score)):
        if not front or e.score > front[-1].score:
            front.append(e)
    return front


def _plot(cfg: CfgNode, table: CostTable, archive: Sequence[Evaluated], best: Evaluated) -> None:
    from matplotlib.figure import Figure

    scale, unit = {"macs": (1e6, "million multiply-adds"), "parameters": (1e6, "million parameters")}.get(table.kind, (1e-3, "milliseconds"))
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    highest = [max(e.score for e in archive[: i + 1]) for i in range(len(archive))]
    left.scatter([e.generation + 1 for e in archive], [e.score for e in archive], s=10, alpha=0.6, label="paths")
    ends = sorted({e.generation for e in archive})
    left.step(
        [g + 1 for g in ends],
        [highest[max(i for i, e in enumerate(archive) if e.generation == g)] for g in ends],
        where="mid",
        label="best so far",
    )
    left.set_xlabel("generation")
    left.set_xticks([g + 1 for g in ends])
    right.scatter([e.cost / scale for e in archive], [e.score for e in archive], s=10, alpha=0.6, label="paths")
    front = pareto(archive)
    right.step([e.cost / scale for e in front], [e.score for e in front], where="post", color="tab:orange", label="Pareto front")
    right.scatter([best.cost / scale], [best.score], marker="*", s=140, color="tab:red", label="the best", zorder=3)
    right.set_xlabel(unit)
    for axis in (left, right):
        axis.set_ylabel(f"{cfg.ONE_SHOT.METRIC} on {cfg.ONE_SHOT.DATASET}")
        axis.legend(fontsize=8)
    figure.savefig(os.path.join(cfg.OUTPUT_DIR, "search.png"), dpi=110)

    blocks = SPECS[cfg.MODEL.SHUFFLENETV2.NAME].blocks
    figure = Figure(figsize=(0.42 * len(best.path) + 2, 2.4), layout="constrained")
    axis = figure.subplots()
    for i, choice in enumerate(best.path):
        for c in range(len(CHOICES)):
            axis.add_patch(_rectangle(i, c, "tab:blue" if c == choice else "whitesmoke"))
    axis.plot([i + 0.5 for i in range(len(best.path))], [c + 0.5 for c in best.path], color="black", linewidth=1)
    edge = 0
    for stage, count in zip(STAGES[1:], blocks):
        axis.text(edge + count / 2, len(CHOICES) + 0.15, stage, ha="center")
        edge += count
        axis.axvline(edge, color="gray", linewidth=1.5)
    axis.set_xlim(0, len(best.path))
    axis.set_ylim(0, len(CHOICES) + 0.8)
    axis.set_yticks([c + 0.5 for c in range(len(CHOICES))], CHOICES)
    axis.set_xticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    figure.savefig(os.path.join(cfg.OUTPUT_DIR, "path.png"), dpi=110)


def _rectangle(x: int, y: int, colour: str):
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.05, y + 0.08), 0.9, 0.84, facecolor=colour, edgecolor="lightgray")


@contextlib.contextmanager
def quiet():
    """Without what detectron2 tells of every evaluation."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)


def setup(args) -> CfgNode:
    """The config of the command line, checked. Raises UserError for what cannot be searched."""
    if not args.config_file:
        raise UserError("--config-file is needed: the supernet's config")
    args.config_file = zoo.get_config_file(args.config_file)
    cfg = get_cfg()
    add_backbones_config(cfg)
    merge_file(cfg, args.config_file)
    merge_overrides(cfg, args.opts)
    register_from_config(cfg)
    register_held_out(cfg)
    check_config(cfg)
    node = cfg.MODEL.SHUFFLENETV2
    if "shufflenetv2" not in cfg.MODEL.BACKBONE.NAME or not node.SUPERNET:
        raise UserError(
            f"{args.config_file!r} is of no supernet: MODEL.BACKBONE.NAME {cfg.MODEL.BACKBONE.NAME!r}, MODEL.SHUFFLENETV2.SUPERNET {node.SUPERNET}"
        )
    if cfg.MODEL.ROI_HEADS.NAME == "LastStageROIHeads" and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
        raise UserError("detectors that run the last stage in their heads (C4) cannot be searched: take one with FPN")
    if not cfg.MODEL.WEIGHTS:
        raise UserError("the search needs a trained supernet: add MODEL.WEIGHTS /path/to/model_final.pth")
    if not cfg.ONE_SHOT.DATASET:
        if not cfg.DATASETS.HOLD_OUT:
            raise UserError(
                "ONE_SHOT.DATASET is empty: name what paths are evaluated on, such as NAME_held_out of DATASETS.HOLD_OUT [['NAME', 5000]]"
            )
        cfg.ONE_SHOT.DATASET = cfg.DATASETS.HOLD_OUT[0][0] + HELD_OUT
    if cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
        raise UserError(f"{args.config_file!r} is of a classifier: paths are searched as detectors, by the config of step 2")
    if cfg.ONE_SHOT.DATASET not in DatasetCatalog:
        raise unknown("ONE_SHOT.DATASET", cfg.ONE_SHOT.DATASET, sorted(DatasetCatalog.keys()))
    # as a test set is, for its classes and annotations
    looked_at = cfg.clone()
    looked_at.DATASETS.TEST = (cfg.ONE_SHOT.DATASET,)
    check_datasets(looked_at, training=True)
    check_metric(cfg)
    names = {r["file_name"] for r in DatasetCatalog.get(cfg.ONE_SHOT.DATASET)}
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name in DatasetCatalog and (key == "TRAIN" or _is_there(name)):
                shared = names & {r["file_name"] for r in DatasetCatalog.get(name)}
                if shared:
                    raise UserError(
                        f"ONE_SHOT.DATASET {cfg.ONE_SHOT.DATASET!r} and {name!r} of DATASETS.{key} share {len(shared)} images: a search is to "
                        "look at neither"
                    )
    check_output_dir(cfg.OUTPUT_DIR)
    if os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "search.json")) and not args.resume:
        raise UserError(f"a search is in {cfg.OUTPUT_DIR!r} already: go on with it by --resume, or set another OUTPUT_DIR")
    cfg.freeze()
    return cfg


def _is_there(name: str) -> bool:
    try:
        check_paths(name)
    except UserError:  # a test set that is not on this machine shares nothing
        return False
    return True


def check_metric(cfg: CfgNode) -> None:
    """Raises UserError where ONE_SHOT.METRIC is nothing that the detector is evaluated by."""
    figures = ("AP", "AP50", "AP75", "APs", "APm", "APl")
    tasks = ["bbox", *(["segm"] if cfg.MODEL.MASK_ON else []), *(["keypoints"] if cfg.MODEL.KEYPOINT_ON else [])]
    every = [f"{task}/{figure}" for task in tasks for figure in figures if (task, figure) != ("keypoints", "APs")]
    if cfg.ONE_SHOT.METRIC not in every:
        raise unknown("ONE_SHOT.METRIC", cfg.ONE_SHOT.METRIC, every)


def main(args) -> None:
    """One process of the search."""
    try:
        _main(args)
    except KeyboardInterrupt:
        sys.exit(130)  # its state is saved
    except UserError as error:
        if comm.is_main_process():
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def _main(args) -> None:
    cfg = setup(args)
    settings = cfg.ONE_SHOT
    # the first process's: seconds differ between processes, and between one measurement and the next
    state, table = os.path.join(cfg.OUTPUT_DIR, "search.json"), None
    if comm.is_main_process():
        measured = settings.COST == "latency" and args.resume and os.path.isfile(state)
        table = _saved_table(state) if measured else cost_table(cfg, settings.COST, settings.COST_SIZE)
    table = comm.all_gather(table)[0]
    evolution = Evolution(settings, table, args.method, args.seed)
    evolution.check()
    with quiet():
        evaluate = PathEvaluator(cfg, os.path.join(cfg.OUTPUT_DIR, f"inference_{comm.get_rank()}"))
        archive = search(cfg, evolution, evaluate, args.resume)
    if not comm.is_main_process():
        return
    best = write_result(cfg, args.config_file, table, archive)
    with quiet():
        write_weights(evaluate, best, os.path.join(cfg.OUTPUT_DIR, "best_subnet.pth"))
    parts = {name: sorted(e.seconds[name] for e in archive)[len(archive) // 2] for name in best.seconds}
    print(
        f"{len(archive)} paths; the best: {settings.METRIC} {best.score:.2f} on {settings.DATASET}, {table.kind} {best.cost:.4g}, {list(best.path)}"
    )
    print("a path takes " + ", ".join(f"{seconds:.2f} s {name}" for name, seconds in parts.items()) + " (medians)")
    detector, weights = (os.path.join(cfg.OUTPUT_DIR, name) for name in ("detector.yaml", "best_subnet.pth"))
    print(f"evaluate it with the supernet's weights: python train_net.py --config-file {detector} --eval-only MODEL.WEIGHTS {weights}")
    print(f"train it by itself: python train_net.py --config-file {detector}, with MODEL.WEIGHTS of step 4, best_subnet.yaml as a classifier")


def _saved_table(path: str) -> CostTable:
    try:
        saved = read_json(path)["search"]["table"]
        table = CostTable(str(saved["kind"]), saved["base"], tuple(tuple(row) for row in saved["blocks"]))
        if not _finite([table.base, *(cost for row in table.blocks for cost in row)]) or not all(table.blocks):
            raise ValueError("its table has costs that are no numbers")
        return table
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path!r} is no state of a search: {' '.join(str(error).split())[:200]}") from error


def argument_parser():
    parser = default_argument_parser(epilog="")
    parser.prog = "python -m backbones.search.one_shot"
    parser.description = __doc__
    parser.add_argument("--seed", type=int, default=0, help="of all choices (default: %(default)s)")
    parser.add_argument("--method", choices=METHODS, default="evolution", help="random search is the baseline (default: %(default)s)")
    return parser


if __name__ == "__main__":
    arguments = argument_parser().parse_args()
    run(lambda: launch(main, arguments, setup(arguments).MODEL.DEVICE))
