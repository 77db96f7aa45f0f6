"""From data, machine and time to a config: facts, rules, and what has to be measured, in the order in which one needs the other."""

import argparse
import contextlib
import copy
import dataclasses
import math
import tempfile
from typing import Any, Callable, Iterable, Iterator

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .. import zoo
from ..config import add_data_arguments, apply_data_arguments, put
from ..doctor.dry_run import in_small, train_some
from ..doctor.examination import Examination, quiet
from ..engine import Front, YamlFront, open_config
from ..errors import UserError
from ..meta import conv_counts, on_meta
from ..registry import create
from ..swap import network_of, use_backbone
from ..timing import now
from ..upstream import cpu_has_bfloat16
from ..zoo import checking, weights
from . import rules
from .facts import facts_of
from .rules import Choice

BASE = "Base-RCNN-VoVNet-FPN.yaml"
SCRATCH = "V-19-slim-dw-eSE"
# which weights that no detector was published with are worth a try, after all others
_MORE = ("timm/tf_efficientnet_lite0.in1k",)
# the plain way to train, and the one that is faster on processors and GPUs that have what it needs
_FAST = {
    "SOLVER.AMP.ENABLED": (True, "half precision"),
    "SOLVER.AMP.PRECISION": ("bfloat16", "with float32's range: no scaling of losses"),
    "MODEL.ACTIVATIONS": ("lean", "less is kept for the backward pass"),
    "MODEL.MEMORY_FORMAT": ("channels_last", "the order that fast convolutions want"),
    "SOLVER.FUSED": (True, "the optimizer's step in one kernel"),
}
EVALUATION = 0.15  # of the time is for evaluations


class Design:
    """Works out one recipe: after `run`, ``cfg`` is the config, and ``choices`` say by key why it is as it is.

    Args:
        args: the flags of `tools.recipe`: data, ``task``, ``minutes``, ``iterations``, ``gpus``, ``latency``, ``device``, ``output_dir``.
        say: told each choice as it is made.
    """

    def __init__(self, args: Any, say: Callable[[str], None] = print):
        self.args, self.say = args, say
        self.choices: dict[str, Choice] = {}
        self.cfg = zoo.get_config(BASE)
        self.cfg.MODEL.WEIGHTS = ""
        self.small = args.device == "cpu"

    def take(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            put(self.cfg, choice.key, choice.value)
            self.choices[choice.key] = choice
            self.say(f"{choice.key} {choice.value}: {choice.reason}")

    def run(self) -> None:
        """Raises UserError for data that cannot be read, and where no network can be trained in the time."""
        self._data()
        self._task()
        self._images()
        self._network()
        self.take(rules.heads(self.facts, self.cfg, self.small))
        self.take(rules.anchors(self.facts, self.cfg, self.cfg.INPUT.MIN_SIZE_TEST))
        self.take(rules.sampling(self.facts))
        self._time()

    # the data

    def _data(self) -> None:
        cfg, args = self.cfg, self.args
        apply_data_arguments(cfg, args)
        cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = args.output_dir, args.device
        front = YamlFront(cfg)
        front.register(True, [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST], replaced=True)
        for problem in front.data_findings(True):
            raise problem
        self.facts = facts_of(*(self._read(names) for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)))
        if not self.facts.objects:
            raise UserError("the training data have no objects: there is nothing to learn", "data", "--train")
        for key in ("DATASETS.REGISTER", "DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.HOLD_OUT"):
            self.choices[key] = Choice(key, cfg.DATASETS[key.split(".")[1]], "as the command line says")
        facts = self.facts
        self.say(f"data: {facts.images} images, {facts.objects} objects of {len(facts.counts)} classes; {facts.tested} images to evaluate on")

    def _read(self, names: Iterable[str]) -> list[Any]:
        found = []
        for name in names:
            about = MetadataCatalog.get(name)
            reader = MetadataCatalog.get(about.part_of).get("reader") if about.get("held_out") else about.get("reader")
            data = reader.dataset()
            if about.get("held_out"):
                kept = {record["image_id"] for record in DatasetCatalog.get(name)}
                data = dataclasses.replace(
                    data,
                    images=[image for image in data.images if image["id"] in kept],
                    annotations=[a for a in data.annotations if a["image_id"] in kept],
                )
            found.append(data)
        return found

    def _task(self) -> None:
        kind, reason = rules.task(self.facts, self.args.task)
        classes = len(self.facts.counts)
        self.take([Choice("MODEL.ROI_HEADS.NUM_CLASSES", classes, "the data's")])
        if kind == "masks":
            self.take([Choice("MODEL.MASK_ON", True, reason)])
        elif kind == "keypoints":
            self.take([Choice("MODEL.KEYPOINT_ON", True, reason)])
        else:
            self.say(f"boxes alone: {reason}")
        front = YamlFront(self.cfg)
        front.register(True, [*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST], replaced=True)  # what keypoints and masks need
        self.take(rules.flips(self.facts, _unflippable(self.cfg)))

    # the network

    def _network(self) -> None:
        ranked = dict(candidates())
        alive = [(name, ranked[name], address) for name, address in available(ranked, self.say).items()]
        self.pretrained = bool(alive) and not self.args.from_scratch
        if not self.pretrained:
            reason = "as asked" if self.args.from_scratch else "no network's weights can be had here"
            self._use(SCRATCH, "", f"from scratch, {reason}: the smallest published network needs the fewest images")
            return
        for name, ap, address in self._affordable(alive):
            seconds = self._with(name, address)._latency() if self.args.latency else 0.0
            if seconds <= self.args.latency:
                figure = f"published with box AP {ap} on COCO" if ap else "ImageNet weights"
                self._use(name, address, f"{figure}, the best whose weights can be had here")
                return
            self.say(f"{name}: {1000 * seconds:.0f} ms an image, more than the {1000 * self.args.latency:.0f} asked for")
        raise UserError(f"no network with weights is within --latency {1000 * self.args.latency:.0f}ms on this device", "value", "--latency")

    def _use(self, name: str, address: str, reason: str) -> None:
        use_backbone(self.cfg, name, own_weights=True)
        self.cfg.MODEL.WEIGHTS = address
        few = self.facts.images < rules.FEW_IMAGES
        node = f"MODEL.{self.cfg.MODEL.BACKBONE.NAME.removeprefix('build_').removesuffix('_fpn_backbone').upper()}"
        self.take([Choice("MODEL.BACKBONE.NAME", self.cfg.MODEL.BACKBONE.NAME, reason)])
        if address:
            self.take(
                [
                    Choice("MODEL.WEIGHTS", address, "downloaded, or from where it lies, when training starts"),
                    Choice(f"{node}.NORM", "FrozenBN", "the statistics of the weights: batches are too small to learn new ones"),
                    Choice(
                        "MODEL.BACKBONE.FREEZE_AT",
                        2 if few else self.cfg.MODEL.BACKBONE.FREEZE_AT,
                        f"{self.facts.images} images are {'too few to' if few else 'enough to'} change the first stages",
                    ),
                ]
            )
        else:
            self.take(
                [
                    Choice("MODEL.WEIGHTS", "", "nothing to begin with"),
                    Choice(f"{node}.NORM", "BN" if self.args.gpus <= 1 else "SyncBN", "random weights need norms that learn their statistics"),
                    Choice("MODEL.BACKBONE.FREEZE_AT", 0, "random layers are not to stay random"),
                ]
            )
        if self.small or not address:
            self.take([Choice("MODEL.FPN.NORM", "BN", "a short training learns faster with norms")])

    def _with(self, name: str, address: str = "") -> "Design":
        """A trial of a network, of which nothing stays."""
        trial = copy.copy(self)
        trial.cfg, trial.choices, trial.say = self.cfg.clone(), {}, lambda line: None
        trial._use(name, address, "")
        return trial

    def _latency(self) -> float:
        """Seconds that inference takes for an image of 3:4."""
        model: Any = YamlFront(self.cfg.clone()).build_model().eval()
        size = self.cfg.INPUT.MIN_SIZE_TEST
        image = {"image": torch.zeros(3, size, rules.round_to(size * 4 / 3), device=self.args.device)}
        times = []
        with torch.no_grad():
            for _ in range(4):
                begun = now()
                model([image])
                times.append(now() - begun)
        return min(times)

    def _affordable(self, alive: list[tuple[str, float | None, str]]) -> list[tuple[str, float | None, str]]:
        """Without those whose steps, by their multiply-adds, take too long for the time; the cheapest stays, and its step is measured."""
        if self.args.iterations is not None or len(alive) == 1:
            return alive
        size = self.cfg.INPUT.MIN_SIZE_TEST
        with on_meta():
            image = torch.empty(1, 3, size, size, device="meta")
            cost = {name: conv_counts(create(name).eval(), image)[0] for name, _, _ in alive}
        cheapest = min(alive, key=lambda row: cost[row[0]])
        trial = self._with(cheapest[0])
        trial.take(rules.heads(self.facts, trial.cfg, self.small))
        trial.cfg.SOLVER.IMS_PER_BATCH = self._batch()
        seconds, _ = trial._steps({}, 3)
        needed = max(300, min(3 * self.facts.images // self._batch(), 5000))
        most = 60 * self.args.minutes * (1 - EVALUATION) / needed
        within = [row for row in alive if seconds * cost[row[0]] / cost[cheapest[0]] <= most]
        self.say(
            f"{len(alive)} networks have weights; {len(within)} make {needed} steps in the time ({cheapest[0]} takes {seconds:.2f} s each)"
        )
        return within or [cheapest]

    def _batch(self) -> int:
        return 8 if self.small else rules.REFERENCE_BATCH

    # images and time

    def _images(self) -> None:
        size, reason = rules.image_size(self.facts, 4)
        self.take([Choice("INPUT.MIN_SIZE_TEST", size, reason)])
        self.take(rules.sizes(self.facts, size))

    def _time(self) -> None:
        args, facts = self.args, self.facts
        batch = self._batch()
        reason = "a CPU takes more, smaller steps in the same time" if self.small else "detectron2's"
        self.take([Choice("SOLVER.IMS_PER_BATCH", batch, reason)])
        self.take(rules.rate(batch, self.pretrained, self.small))
        limit, limited = args.iterations, f"--iterations {args.iterations}"
        seconds = 0.0
        if limit is None:
            seconds = self._fastest()
            limit = max(int(60 * args.minutes * (1 - EVALUATION) / seconds), 20)
            limited = f"{args.minutes:g} minutes, {seconds:.2f} s a step"
        each = 0.5 * facts.tested * seconds / batch  # an evaluation's seconds, by those of a step
        evaluations = min(max(int(60 * args.minutes * EVALUATION / each), 1), 10) if each else 10
        self.take(rules.schedule(facts, batch, limit, limited, evaluations))
        workers = 0 if self.small else 4
        self.take([Choice("DATALOADER.NUM_WORKERS", workers, "the cores train" if self.small else "detectron2's")])
        if facts.tested:
            self.take([Choice("TEST.BEST_METRIC", "auto", "model_best.pth is kept by the AP that leads")])

    def _fastest(self) -> float:
        """Seconds a step, the faster of two ways; the fast one only where its losses follow the plain one's."""
        plain, losses = self._steps({})
        fast, others = self._steps({key: value for key, (value, _) in _FAST.items()}) if self._has_bf16() else (math.inf, [])
        follows = bool(others) and all(math.isfinite(b) and abs(a - b) <= 0.1 * abs(a) for a, b in zip(losses, others))
        if fast < 0.95 * plain and follows:
            apart = max(abs(a - b) / a for a, b in zip(losses, others))
            said = f"a step takes {fast:.2f} s in place of {plain:.2f}, and losses follow within {apart:.1%}"
            self.take(Choice(key, value, f"{why}: {said}" if i == 0 else why) for i, (key, (value, why)) in enumerate(_FAST.items()))
            return fast
        tried = f"bfloat16 was no faster ({fast:.2f} s)" if math.isfinite(fast) else "this device has no bfloat16"
        self.say(f"plain float32: {plain:.2f} s a step, {tried if follows or not math.isfinite(fast) else 'bfloat16 changes the losses'}")
        return plain

    def _steps(self, more: dict[str, Any], count: int = 4) -> tuple[float, list[float]]:
        front = YamlFront(self.cfg.clone())
        front.register(True, self.cfg.DATASETS.TRAIN, replaced=True)
        return steps(front, more, count)

    def _has_bf16(self) -> bool:
        if self.args.device.startswith("cuda"):
            return torch.cuda.is_bf16_supported()
        return cpu_has_bfloat16()


def steps(front: Front, more: dict[str, Any], count: int = 4) -> tuple[float, list[float]]:
    """(seconds of the fastest step after the first, the losses) of a few steps of a config with ``more`` keys set, on some of its images."""
    batch = front.settings.SOLVER.IMS_PER_BATCH
    alone = {
        "SOLVER.MAX_ITER": count, "SOLVER.WARMUP_ITERS": 0, "SOLVER.BASE_LR": 0.001, "SEED": 1, "MODEL.WEIGHTS": "", "MODEL_EMA.ENABLED": False,
        "DATALOADER.NUM_WORKERS": 0, "DATALOADER.SAMPLER_TRAIN": "TrainingSampler", **more,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="recipe-"))
        stack.enter_context(quiet())
        pairs = [item for pair in alone.items() for item in pair]
        times, losses = train_some(in_small(Examination(front), folder, stack, count * batch, *pairs), resume=False)
    return min(times[1:]), losses


def seconds_a_step(config: str, opts: list[str], backbone: str, data: list[str]) -> float:
    """Of a config's training on own data, the flags ``data``, as the recipe measures its own."""
    parser = argparse.ArgumentParser()
    add_data_arguments(parser)
    front = open_config(config, ["MODEL.DEVICE", "cpu", *opts], backbone)
    front.apply_data_arguments(parser.parse_args(data), True)
    front.register(True, [*front.settings.DATASETS.TRAIN], replaced=True)
    return steps(front, {})[0]


def _unflippable(cfg: CfgNode) -> str:
    if not cfg.MODEL.KEYPOINT_ON:
        return ""
    names = (MetadataCatalog.get(name) for name in cfg.DATASETS.TRAIN)
    return next((about.keypoint_flips_unknown for about in names if about.get("keypoint_flips_unknown")), "")


def candidates() -> Iterator[tuple[str, float | None]]:
    """(network, box AP on COCO) of the published Faster R-CNNs on FPN of our families, best first; then other networks, without a figure."""
    best: dict[str, float] = {}
    for config, row in weights.models().items():
        if row["source"] in ("vovnet-detectron2", "mmdetection") and "faster_rcnn" in config and "box" in row["published_ap"]:
            name = network_of(zoo.get_config(config))
            best[name] = max(best.get(name, 0.0), row["published_ap"]["box"])
    yield from sorted(best.items(), key=lambda pair: -pair[1])
    for name in _MORE:
        yield name, None


def available(names: Iterable[str], say: Callable[[str], None]) -> dict[str, str]:
    """Of each network whose weights can be had now, in the same order, their address. What hosts answer is asked for all at once."""
    found, asked = {}, {}
    for name in names:
        try:
            own, free = weights.local(name), [release for release in weights.releases(name) if release.free]
        except UserError as error:
            say(f"{name} is left out: {error}")
            continue
        there = next((release.address for release in free if weights.here(release)), "")
        if own or there:
            found[name] = weights.PREFIX + name if own else there
        elif free:
            asked[name] = free[0]
    try:
        answers = checking.check(asked.values(), timeout=3) if asked else {}
    except UserError as error:
        say(f"{len(asked)} networks are left out, whose weights are not here: {error}")
        answers = {}
    alive = {
        name: release.address
        for name, release in asked.items()
        if release.place in answers and answers[release.place].state in ("alive", "moved")
    }
    return {name: {**found, **alive}[name] for name in names if name in found or name in alive}
