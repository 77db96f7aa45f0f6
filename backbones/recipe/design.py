"""From data, machine and time to a config: facts, rules and measurements, in order of their dependence."""

import contextlib
import copy
import dataclasses
import math
import statistics
from typing import Any, Callable, Iterable, Iterator

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from .. import zoo
from ..config import READING, apply_data_arguments, get, merge_overrides, put
from ..data.dataset import Dataset
from ..data.findings import KINDS
from ..data.inspection import check_ends
from ..data.sources import trained_on
from ..doctor import memory
from ..doctor.examination import Examination, quiet
from ..engine import YamlFront
from ..errors import UserError, counted, first_of
from ..swap import use_backbone
from ..timing import now
from ..upstream import cpu_has_bfloat16
from . import measuring, rules
from .facts import Facts, facts_of
from .networks import available, candidates, costs
from .rules import BASE, Choice

SCRATCH = "V-19-slim-dw-eSE"
# the plain way to train, and the faster one for processors and GPUs that support it
_FAST = {
    "SOLVER.AMP.ENABLED": (True, "half precision"),
    "SOLVER.AMP.PRECISION": ("bfloat16", "has float32's range: no loss scaling"),
    "MODEL.ACTIVATIONS": ("lean", "keeps less for the backward pass"),
    "MODEL.MEMORY_FORMAT": ("channels_last", "the order for fast convolutions"),
    "SOLVER.FUSED": (True, "the optimizer's step in one kernel"),
}
_STEPS = 12  # measured at most, for each way
_INFERENCE = 0.7  # share of an image's time in a training step, until it is measured


class Design:
    """Works out one recipe: after `run`, ``cfg`` is the config, and ``choices`` holds the reason for each key.

    Args:
        args: the flags of `tools.recipe`: data, ``task``, ``minutes``, ``iterations``, ``gpus``, ``latency``, ``device``, ``output_dir``, and
            ``opts``, of which keys of READING count.
        say: called with each choice as it is made.
    """

    def __init__(self, args: Any, say: Callable[[str], None] = print):
        self.args, self.say = args, say
        opts = getattr(args, "opts", [])
        self.reading = {key: value for key, value in zip(opts[::2], opts[1::2]) if key in READING}
        self.choices: dict[str, Choice] = {}
        self.cfg = zoo.get_config(BASE)
        self.cfg.MODEL.WEIGHTS = ""
        self.small = args.device == "cpu"
        self.warnings: list[str] = []  # to say last
        self.times = 1.0  # the network's multiply-adds as a multiple of the measured one's
        self.processes = max(args.gpus, 1)
        self.devices = self.processes if args.device.startswith("cuda") else 1  # they divide the time; processes of a CPU share its cores
        self.allowed, self.measured = 60 * args.minutes * measuring.SHARE, 0.0  # seconds allowed for measuring, and used so far

    def take(self, choices: Iterable[Choice]) -> None:
        for choice in choices:
            put(self.cfg, choice.key, choice.value)
            self.choices[choice.key] = choice
            self.say(f"{choice.key} {choice.value}: {choice.reason}")

    def run(self) -> None:
        """Raises UserError for data that cannot be read, and if no network can be trained in the time."""
        self._data()
        self._task()
        self._network()
        self.take(rules.heads(self.facts, self.cfg, self.small, self.view.part))
        self.take(rules.anchors(self.facts, self.cfg, self.cfg.INPUT.MIN_SIZE_TEST))
        self.take(rules.sampling(self.facts))
        self._time()

    # the data

    def _data(self) -> None:
        cfg, args = self.cfg, self.args
        cfg.OUTPUT_DIR, cfg.MODEL.DEVICE = args.output_dir, args.device
        asked = args.val_split
        apply_data_arguments(cfg, args)
        missing = not cfg.DATASETS.TEST
        held_out = ""
        try:
            self.facts = self._facts(0.2 if missing else asked)
            if missing:
                tested = self.facts.tested
                held_out = f"no --val or --val-split: {tested} of {self.facts.images + tested} images are held out for evaluation"
        except UserError as error:
            if not missing or error.key != "DATASETS.HOLD_OUT":
                raise
            held_out = "no --val or --val-split, and a single image cannot be split: there is no evaluation"
            self.facts = self._facts(asked)
        for line in self.said:
            if not missing or not line.endswith(" images are held out for evaluation"):
                self.say(line)
        if missing:
            self.say(held_out)
        if not self.facts.objects:
            raise UserError("the training data have no objects: there is nothing to learn", "data", "--train")
        for key, reason in (("REGISTER", ""), ("TRAIN", held_out), ("TEST", held_out), ("HOLD_OUT", held_out)):
            self.choices[f"DATASETS.{key}"] = Choice(f"DATASETS.{key}", cfg.DATASETS[key], reason or "as the command line says")
        for key in self.reading:
            self.choices[key] = Choice(key, get(cfg, key), "as the command line says")
        facts = self.facts
        there = f"{counted(facts.images, 'image')}, {counted(facts.objects, 'object')} of {counted(len(facts.counts), 'class')}"
        each = [f"{name} {count}" for name, count in sorted(facts.counts.items(), key=lambda row: -row[1])]
        each = each if len(each) <= 20 else [*each[:10], "...", *each[-10:]]
        self.say(f"data: {there} ({', '.join(each)}); {counted(facts.tested, 'image')} to evaluate on")

    def _facts(self, val_split: float) -> Facts:
        """Holds out this share of the images. Raises UserError."""
        self.args.val_split = val_split
        apply_data_arguments(self.cfg, self.args)
        merge_overrides(self.cfg, [word for pair in self.reading.items() for word in pair])
        front, names = YamlFront(self.cfg), self.cfg.DATASETS
        front.register(True, [*names.TRAIN, *names.TEST], replaced=True)
        front.said += trained_on(self.cfg)
        for problem in front.data_findings(True):
            raise problem
        # the first line of each data set counts what was repaired; the training of --auto says the others
        known = [
            "MODEL.ROI_HEADS.NUM_CLASSES is",
            *(f"{name}: {kind} (" for name in front.names for kind, row in KINDS.items() if row.effect == "repaired"),
        ]
        self.said = [] if getattr(self.args, "auto", False) else [line for line in front.said if not line.startswith(tuple(known))]
        return facts_of(self._read(names.TRAIN), self._read(names.TEST))

    def _read(self, names: Iterable[str]) -> list[Dataset]:
        found = []
        for name in names:
            about = MetadataCatalog.get(name)
            reader = MetadataCatalog.get(about.part_of).get("reader") if about.get("held_out") else about.get("reader")
            data = reader.dataset()
            self._check_classes(data)
            if about.get("held_out"):
                kept = {record["image_id"] for record in DatasetCatalog.get(name)}
                data = dataclasses.replace(
                    data,
                    images=[image for image in data.images if image["id"] in kept],
                    annotations=[a for a in data.annotations if a["image_id"] in kept],
                )
            check_ends(data, reader.use)
            found.append(data)
        return found

    def _check_classes(self, data: Dataset) -> None:
        """Warns if most objects are of classes that the training data do not have: they may be misspelt."""
        left, there = data.findings.counts.get("class of other data", 0), len(data.annotations)
        if left > there:
            names = first_of(data.findings.names["class of other data"])
            said = f"{data.source.name}: {left} of {left + there} objects are left out, since the training data have no such class: {names}"
            self.warnings = [f"WARNING: {said}. Misspelt?"]

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
        front.register(True, [*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST], replaced=True)  # needed for keypoints and masks
        self.take(rules.flips(self.facts, _unflippable(self.cfg)))

    # images and the network

    def _network(self) -> None:
        ranked = dict(candidates())
        alive = [] if self.args.from_scratch else [(name, ranked[name], address) for name, address in available(ranked, self.say).items()]
        self.pretrained = bool(alive)
        networks = alive or [(SCRATCH, None, "")]
        cost = costs([name for name, _, _ in networks])
        cheapest = min(networks, key=lambda row: cost[row[0]])
        self._images(cheapest[0])
        slowness = {}
        for name, ap, address in self._affordable(networks, cheapest, cost):
            slowness[name] = self._slowness(name, address)
            if slowness[name] <= 1:
                self.times = cost[name] / cost[cheapest[0]]
                self._use(name, address, self._why(ap))
                return
        self._shrink(*cheapest, slowness[cheapest[0]])

    def _why(self, ap: float | None) -> str:
        if self.pretrained:
            return f"{f'published with box AP {ap} on COCO' if ap else 'ImageNet weights'}, the best with weights available here"
        reason = "as asked" if self.args.from_scratch else "no pretrained weights are available here"
        return f"from scratch, {reason}: the smallest published network needs the fewest images"

    def _slowness(self, name: str, address: str) -> float:
        """The time of an image as a multiple of --latency."""
        if not self.args.latency:
            return 0.0
        with self._measuring():  # what the trial counts is lost with it
            seconds = self._with(name, address)._latency()
        if seconds > self.args.latency:
            size = self.cfg.INPUT.MIN_SIZE_TEST
            self.say(f"{name}: {1000 * seconds:.0f} ms for an image of {size} pixels, more than the allowed {1000 * self.args.latency:.0f}")
        return seconds / self.args.latency

    def _shrink(self, name: str, ap: float | None, address: str, slowness: float) -> None:
        """The fastest network, at an image size for which it is within the latency. Raises UserError if there is none."""
        size = wanted = self.cfg.INPUT.MIN_SIZE_TEST
        least, asked = rules.round_to(rules.least_size(self.facts)), f"--latency {1000 * self.args.latency:.0f}ms"
        while slowness > 1 and size > least:  # time is roughly proportional to the pixels
            size = max(min(size - 32, rules.round_to(size / math.sqrt(slowness))), least)
            part = min(max(self.view.part, round(160 / size, 2)), 1.0) if self.view.part < 1 else 1.0
            self._see(rules.View(size, part), f"the objects need {wanted}, but {asked} does not allow more")
            slowness = self._slowness(name, address)
        if slowness > 1:
            raise UserError(f"no network is within {asked} on this device, even at {least} pixels", "value", "--latency")
        self._use(name, address, self._why(ap))

    def _use(self, name: str, address: str, reason: str) -> None:
        use_backbone(self.cfg, name, own_weights=True)
        self.cfg.MODEL.WEIGHTS = address
        few = self.facts.images < rules.FEW_IMAGES
        node = f"MODEL.{self.cfg.MODEL.BACKBONE.NAME.removeprefix('build_').removesuffix('_fpn_backbone').upper()}"
        self.take([Choice("MODEL.BACKBONE.NAME", self.cfg.MODEL.BACKBONE.NAME, f"{name}, {reason}")])
        if address:
            self.take(
                [
                    Choice("MODEL.WEIGHTS", address, "pretrained weights of the network: training downloads them if necessary"),
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
                    Choice("MODEL.WEIGHTS", "", "none: training starts from random weights"),
                    Choice(f"{node}.NORM", self._norm(), "random weights need norms that learn their statistics"),
                    Choice("MODEL.BACKBONE.FREEZE_AT", 0, "random layers must not stay random"),
                ]
            )
        if self.small or not address:
            self.take([Choice("MODEL.FPN.NORM", "BN", "a short training learns faster with norms")])

    def _norm(self) -> str:
        if self.processes == 1:
            return "BN"
        return "SyncBN" if self.devices > 1 else "naiveSyncBN"  # torch's is only for GPUs

    def _with(self, name: str, address: str = "") -> "Design":
        """A trial of a network with its heads, without lasting effects."""
        trial = copy.copy(self)
        trial.cfg, trial.choices, trial.say = self.cfg.clone(), {}, lambda line: None
        trial._use(name, address, "")
        trial.take(rules.heads(self.facts, trial.cfg, self.small))
        return trial

    def _latency(self) -> float:
        """Seconds of inference for an image."""
        with self._measuring():
            return measuring.latency(self.cfg, self._ratio())

    def _ratio(self, level: float = 0.5) -> float:
        return min(float(np.quantile(self.facts.long / self.facts.short, level)), 2.0)

    @contextlib.contextmanager
    def _measuring(self) -> Iterator[None]:
        begun = now()
        yield
        self.measured += now() - begun

    def _affordable(
        self, alive: list[tuple[str, float | None, str]], cheapest: tuple[str, float | None, str], cost: dict[str, float]
    ) -> list[tuple[str, float | None, str]]:
        """Drops networks whose steps, by their multiply-adds, take too long; the cheapest stays."""
        if self.args.iterations is not None or len(alive) == 1:
            return alive
        within = [row for row in alive if self._seconds(self.view, cost[row[0]] / cost[cheapest[0]]) <= 60 * self.args.minutes]
        needed = rules.steps_needed(self.facts, self._batch())
        self.say(f"{len(alive)} networks have weights; {len(within)} of them can do {needed} steps in the time")
        return within or [cheapest]

    def _usual_batch(self) -> int:
        return 8 if self.small else rules.REFERENCE_BATCH

    def _batch(self) -> int:
        """As near to the usual one as processes with the same number of images each allow."""
        return max(round(self._usual_batch() / self.processes), 1) * self.processes

    def _at_once(self) -> int:
        """Images of a step on one device: the time of a step is theirs."""
        return self._batch() // self.devices

    def _images(self, name: str) -> None:
        """The image size, by the objects and the time: ``name`` is the cheapest available network, which is measured."""
        size, reason = rules.image_size(self.facts, 4)
        self.view = rules.View(size)
        if self.args.iterations is not None:
            self._see(self.view, reason)
            return
        trial = self._with(name)
        with self._measuring():
            self.pace = measuring.pace(self._front(trial.cfg), (128, 256) if self.small else (320, 640), self._ratio(), self.allowed)
        needed, minutes = rules.steps_needed(self.facts, self._batch()), self.args.minutes
        view = rules.within(self.facts, size, self._seconds, 60 * minutes)
        took, taken = (self._seconds(seen) / 60 for seen in (self.view, view))
        steps = f"{needed} steps of {self._batch()} images and an evaluation"
        if view != self.view:
            parts = f" in parts of {view.part:g} times the sides" if view.part < 1 else ""
            reason = f"the objects need {size} ({reason}), but there {steps} take about {took:.1f} minutes"
            reason += f", and {taken:.1f} at {view.size}{parts}; {minutes:g} are available"
        if taken > minutes:
            reason += f"; {steps} would take at least {taken:.1f} minutes at any size: the training will be shorter"
        self._see(view, reason)

    def _see(self, view: rules.View, reason: str) -> None:
        self.view = view
        if view.part == 1:  # an earlier view may have used parts
            self.cfg.INPUT.CROP = zoo.get_config(BASE).INPUT.CROP
            self.choices = {key: choice for key, choice in self.choices.items() if not key.startswith("INPUT.CROP.")}
        self.take([Choice("INPUT.MIN_SIZE_TEST", view.size, reason)])
        self.take(rules.sizes(self.facts, view))

    def _seconds(self, view: rules.View, times: float = 1.0) -> float:
        """Seconds of all training steps and an evaluation, for a network with ``times`` the multiply-adds of the measured one."""
        training = rules.steps_needed(self.facts, self._batch()) * self._step(view, times)
        return training + self._tested_at_once() * _INFERENCE * self._image(view, times)

    def _image(self, view: rules.View, times: float, scale: float = 1.0) -> float:
        """Seconds of an image in training whose pixels are ``scale`` times those of evaluation."""
        return dataclasses.replace(self.pace, pixel=self.pace.pixel * times).of(scale * self._ratio() * view.size**2)

    def _step(self, view: rules.View, times: float) -> float:
        """Seconds of a step."""
        # training sizes are on average 0.9 times that of evaluation; a part of an image has its share of the objects
        return self._at_once() * view.part**2 * self._image(view, times, 0.81)

    def _tested_at_once(self) -> int:
        """Images that one device evaluates."""
        return math.ceil(self.facts.tested / self.devices)

    # time

    def _time(self) -> None:
        args, facts = self.args, self.facts
        batch = self._batch()
        reason = "small batches, so that there are more steps in the time" if self.small else "detectron2's"
        if batch != self._usual_batch():
            reason += f"; {batch} instead of {self._usual_batch()}, as many for each of {self.processes} processes"
        self.take([Choice("SOLVER.IMS_PER_BATCH", batch, reason)])
        self._memory()
        gently = self.small and rules.gentle(facts, self.view.size, 4)
        self.take(rules.rate(batch, self.small, gently))
        limit, evaluations, limited, takes = args.iterations, 10, f"--iterations {args.iterations}", 0.0
        if limit is not None:
            self.say("--iterations: no step was measured, so training uses plain float32; with --minutes, bfloat16 is tried too")
        else:
            seconds = self._fastest()
            evaluation = self._tested_at_once() * self._latency()
            limit, evaluations = measuring.length(args.minutes, seconds, evaluation)
            takes = (limit * seconds + evaluations * evaluation) / 60
            limited = f"{_minutes(args.minutes)} ({seconds:.2f} s a step"
            if limit == measuring.LEAST and takes > args.minutes:
                limited = f"{limit} steps, the fewest possible: {takes:.1f} minutes ({seconds:.2f} s a step"
            limited += f", {counted(evaluations, 'evaluation')} of {evaluation:.0f} s)" if facts.tested else ")"
            if self.devices > 1:
                each = f"{self._at_once()} of the {batch} images of a step"
                self.say(f"measured on one GPU with {each}: the time that {self.devices} GPUs wait for each other is not counted")
            self.say(f"measuring took {self.measured:.0f} s, in addition to the {_minutes(args.minutes)} for training")
        self.take(rules.schedule(facts, batch, limit, limited, evaluations, gently, args.iterations is not None))
        count = self.cfg.SOLVER.MAX_ITER
        about = f" in about {_minutes(round(takes * count / limit, 1))}" if limit and takes else ""
        self.expected = f"expected: {counted(count, 'step')}{about}, {rules.passed(facts, batch, count)}"
        workers = 0 if self.small else 4
        self.take([Choice("DATALOADER.NUM_WORKERS", workers, "none: the CPU's cores are busy training" if self.small else "detectron2's")])
        if facts.tested:
            self.take([Choice("TEST.BEST_METRIC", "auto", "model_best.pth is chosen by the main AP")])

    def _memory(self) -> None:
        """The batch in as many parts as the memory requires. Raises UserError if there is no room for one image."""
        args, batch = self.args, self._batch() // self.processes
        if args.device.startswith("cuda") and not torch.cuda.is_available():  # the recipe is for another machine
            return
        with self._measuring(), quiet():
            examination = Examination(self._front(self.cfg))
            peak = memory.peak(examination, args.device)
            step = examination.divisibility()
        short = max(self.cfg.INPUT.MIN_SIZE_TRAIN)
        sides = (short, min(short * self._ratio(0.95), self.cfg.INPUT.MAX_SIZE_TRAIN))
        pixels = math.prod(math.ceil(side / step) * step for side in sides)
        self.take(rules.parts(batch, lambda images: peak.of(images, pixels), memory.room(args.device) * self.devices / self.processes))

    def _fastest(self) -> float:
        """Seconds per step of the faster of two ways; the fast way counts only if its losses follow the plain one's."""
        expected = self._step(self.view, self.times)
        ways = 2 if self._has_bf16() else 1
        count = min(int((self.allowed - self.measured) / (ways * expected)), _STEPS)
        if count < 3:
            self.say(f"a step takes about {expected:.1f} s, estimated from small ones: too long to measure")
            return expected
        plain, losses = self._steps({}, count, ways)
        faster = dict(_FAST)
        if not Examination(self._front(self.cfg)).can_keep_less():
            del faster["MODEL.ACTIVATIONS"]
        fast, others = self._steps({key: value for key, (value, _) in faster.items()}, count, 1) if ways == 2 else (math.inf, [])
        follows = bool(others) and all(math.isfinite(b) and abs(a - b) <= 0.1 * abs(a) for a, b in zip(losses, others))
        if fast < 0.95 * plain and follows:
            apart = max(abs(a - b) / a for a, b in zip(losses, others))
            said = f"a step takes {fast:.2f} s instead of {plain:.2f}, and losses agree within {apart:.1%}"
            self.take(Choice(key, value, f"{why}: {said}" if i == 0 else why) for i, (key, (value, why)) in enumerate(faster.items()))
            return fast
        tried = f"bfloat16 was no faster ({fast:.2f} s)" if math.isfinite(fast) else "this device has no bfloat16"
        self.say(f"plain float32: {plain:.2f} s per step, {tried if follows or not math.isfinite(fast) else 'bfloat16 changes the losses'}")
        return plain

    def _steps(self, more: dict[str, Any], count: int, ways: int) -> tuple[float, list[float]]:
        """Seconds per step, and losses, of ``count`` steps; ``ways``: among how many measurements the time left is divided."""
        left = (self.allowed - self.measured) / ways
        with self._measuring():
            times, losses = measuring.steps(self._front(self.cfg), {**more, "SOLVER.IMS_PER_BATCH": self._at_once()}, count, left)
        if len(losses) < count:
            self.say(f"{len(losses)} steps were measured instead of {count}: they took longer than the {max(left, 0):.0f} s for them")
        # the first image of each size takes longer: the device prepares its operations
        return statistics.mean(times[len(times) // 3 :]), losses

    def _front(self, cfg: CfgNode) -> YamlFront:
        front = YamlFront(cfg.clone())
        front.register(True, cfg.DATASETS.TRAIN, replaced=True)
        return front

    def _has_bf16(self) -> bool:
        if self.args.device.startswith("cuda"):
            return torch.cuda.is_bf16_supported()
        return cpu_has_bfloat16()


def _minutes(count: float) -> str:
    return f"{count:g} minute{'s' * (count != 1)}"


def _unflippable(cfg: CfgNode) -> str:
    if not cfg.MODEL.KEYPOINT_ON:
        return ""
    names = (MetadataCatalog.get(name) for name in cfg.DATASETS.TRAIN)
    return next((about.keypoint_flips_unknown for about in names if about.get("keypoint_flips_unknown")), "")
