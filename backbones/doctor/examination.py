"""One config from all sides: environment, mistakes in it, weights, data, memory, a dry run."""

import collections
import contextlib
import gc
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import platform
import re
import shutil
import tempfile
import time
import traceback
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple
from urllib.parse import urlparse

import detectron2
import numpy as np
import torch
import torchvision
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.engine import HookBase
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator, build_anchor_generator
from detectron2.structures import Instances
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage
from iopath.common.file_io import get_cache_dir
from torch import nn

from ..benchmark.training import kept_bytes
from ..checkpoint import GatedCheckpointer
from ..config import (
    REGISTERED,
    add_backbones_config,
    all_keys,
    check_config,
    get,
    merge_file,
    merge_overrides,
)
from ..data import check_datasets, register_from_config, register_held_out, register_image_folders
from ..data.inspection import Finding, Source, Use, inspect, sources, summarize
from ..engine import Trainer, load_for_evaluation
from ..engine.tracking import check_trackers
from ..errors import UserError
from ..files import write_whole
from ..lean import keep_activations
from ..zoo import weights as named_weights

# modules that are not needed: what each gives
_OPTIONAL = {
    "faster_coco_eval": ("faster-coco-eval", "COCO's evaluation several times as fast"),
    "simplejpeg": ("simplejpeg", "faster decoding with INPUT.MAPPER fast"),
    "onnx": ("onnx", "export to ONNX"),
    "onnxruntime": ("onnxruntime", "running exported ONNX files"),
    "openvino": ("openvino", "export to OpenVINO and running it"),
    "panopticapi": ("panopticapi-lite", "panoptic evaluation"),
    "tensorboard": ("tensorboard", "training curves in TensorBoard"),
}
_GIB = 2**30


def size_in_words(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB else f"{count / 2**20:.0f} MiB"


def error(message: str, advice: str = "") -> Finding:
    return Finding("error", message, advice)


def warning(message: str, advice: str = "") -> Finding:
    return Finding("warning", message, advice)


def note(message: str, advice: str = "") -> Finding:
    return Finding("note", message, advice)


def words(problem: BaseException) -> str:
    """An exception in one line; of those that are no user's mistake, the place too."""
    text = " ".join(str(problem).split())[:400]
    if isinstance(problem, UserError):
        return text
    frames = traceback.extract_tb(problem.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})" if frames else ""
    return f"{type(problem).__name__}: {text or 'no message'}{place}"


def unmatched(boxes: np.ndarray, anchors: Sequence[np.ndarray], strides: Sequence[int], offset: float, threshold: float = 0.5) -> np.ndarray:
    """Which boxes (N, 4) x0, y0, x1, y1 no anchor meets with at least that IoU, (N,) bool; ``anchors`` (A, 4) of each level lie around 0, 0."""
    best = np.zeros(len(boxes))
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for cell, stride in zip(anchors, strides):
        # of the anchors of one form, the one whose centre is nearest overlaps most
        place = centers / stride - offset
        distance = np.abs(place - np.maximum(np.round(place), 0)) * stride
        for x0, y0, x1, y1 in np.asarray(cell, float):
            own = np.array([x1 - x0, y1 - y0])
            overlap = np.minimum(sides / 2, distance + own / 2) - np.maximum(-sides / 2, distance - own / 2)
            inter = overlap.clip(min=0).prod(1)
            best = np.maximum(best, inter / (sides.prod(1) + own.prod() - inter))
    return best < threshold


class Examination:
    """One config, seen from all sides. Each section is a method that yields its findings; later ones use what earlier ones found out.

    Args:
        cfg: the config, changed where data sets are made known to it.
        config_file: where it is from, or "".
        processes: how many will train.
        gpus: how many of them on this machine.
        images: as `inspect` takes it.
        download: whether weights may be downloaded.
        resume: whether training is to go on from the last checkpoint in OUTPUT_DIR.
        partial: whether weights may fill only part of the backbone.
        progress: as `inspect` takes it.
    """

    def __init__(
        self,
        cfg: CfgNode,
        config_file: str = "",
        processes: int = 1,
        gpus: int = 1,
        images: Optional[int] = 500,
        download: bool = False,
        resume: bool = False,
        partial: bool = False,
        progress: Callable = lambda items, **_: items,
    ):
        self.cfg, self.config_file, self.processes, self.gpus = cfg, config_file, processes, gpus
        self.images, self.download, self.resume, self.partial, self.progress = images, download, resume, partial, progress
        self.use = Use.of(cfg)
        self.sources: List[Source] = []
        self.refused: set = set()  # data sets that cannot be read through detectron2
        self.sound = True  # whether the config can be built
        self.usable = True  # whether its device is here
        self.weights = ""  # those that can be loaded
        self.text: Dict[str, str] = {}  # of sections, what is no finding
        self._meta: Optional[nn.Module] = None
        self._records: Optional[List[dict]] = None

    # what several sections ask for

    def meta_model(self) -> Optional[nn.Module]:
        """The model without memory, or None where it cannot be built so."""
        if self._meta is None:
            cfg = self.clone("MODEL.DEVICE", "meta")
            with contextlib.suppress(Exception), torch.device("meta"):
                self._meta = build_model(cfg)
        return self._meta

    def clone(self, *pairs: Any) -> CfgNode:
        """The config with values set where it has such keys."""
        cfg = self.cfg.clone()
        cfg.defrost()
        known = set(all_keys(cfg))
        for key, value in zip(pairs[::2], pairs[1::2]):
            if key in known:
                node, _, leaf = key.rpartition(".")
                (get(cfg, node) if node else cfg)[leaf] = value
        return cfg

    def records(self) -> List[dict]:
        """The images that training would take, as detectron2 reads them. Raises what it raises."""
        if self._records is None:
            cfg = self.cfg
            names = [name for name in cfg.DATASETS.TRAIN if name not in self.refused]
            if not names:
                raise UserError("none of the data sets in DATASETS.TRAIN can be read")
            keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
            files = (
                [f for n, f in zip(cfg.DATASETS.TRAIN, cfg.DATASETS.PROPOSAL_FILES_TRAIN) if n in names] if cfg.MODEL.LOAD_PROPOSALS else None
            )
            self._records = get_detection_dataset_dicts(
                names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, min_keypoints=keypoints, proposal_files=files
            )
        return self._records

    def some_records(self, count: int) -> List[dict]:
        records = self.records()
        return [records[i] for i in np.linspace(0, len(records) - 1, min(count, len(records))).astype(int)]

    def per_process(self) -> int:
        """Images of a step in one process."""
        return max(self.cfg.SOLVER.IMS_PER_BATCH // (self.cfg.SOLVER.REFERENCE_WORLD_SIZE or self.processes), 1)

    def largest(self) -> Tuple[int, int]:
        """(shorter, longer) side in pixels of the largest training image, padded as the network does it."""
        cfg = self.cfg.INPUT
        short, most = max(_sizes(cfg.MIN_SIZE_TRAIN)), cfg.MAX_SIZE_TRAIN
        sizes = [(i["width"], i["height"]) for source in self.sources if source.training for i in source.content.get("images", ())]
        if self.cfg.MODEL.META_ARCHITECTURE == "ImageClassifier":
            sides = (self.cfg.INPUT.CLASSIFICATION.SIZE,) * 2
        elif sizes:
            found = np.array(sorted(map(sorted, set(sizes))), float)
            scale = np.minimum(short / found[:, 0], most / found[:, 1])[:, None] if short else 1.0
            sides = max((found * scale).tolist(), key=math.prod)
        else:
            sides = (short or 800, most)
        step = self.divisibility()
        return tuple(math.ceil(round(side) / step) * step for side in sorted(sides))

    def divisibility(self) -> int:
        model = self.meta_model()
        return max(getattr(getattr(model, "backbone", None), "size_divisibility", 0) or 1, 1)

    # sections

    def environment(self) -> Iterator[Finding]:
        cfg = self.cfg
        compiled = importlib.util.find_spec("detectron2._C") is not None
        yield note(
            f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, detectron2 "
            f"{detectron2.__version__} {'with' if compiled else 'without'} its compiled _C (not needed), {platform.system()} {platform.machine()}"
        )
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        total, free = memory_of_machine()
        yield note(f"{cores} cores, {size_in_words(total)} of memory, {size_in_words(free)} free")
        yield from self._gpus()
        if os.path.isdir("/dev/shm"):
            shared = shutil.disk_usage("/dev/shm")
            short, long = self.largest()
            planes = 3 + (10 if self.use.masks and not self.use.polygons else 0)  # bytes a pixel: the image, and some masks
            wanted = 2 * cfg.DATALOADER.NUM_WORKERS * max(self.gpus, 1) * short * long * planes  # each worker is two images ahead
            yield note(f"shared memory: {size_in_words(shared.free)} free, workers need some {size_in_words(wanted)}")
            if wanted > shared.free / 2:
                yield warning(
                    f"/dev/shm has {size_in_words(shared.free)} free, DATALOADER.NUM_WORKERS {cfg.DATALOADER.NUM_WORKERS} may need "
                    f"{size_in_words(wanted)}: workers die of a bus error",
                    "start the container with a larger --shm-size, or lower NUM_WORKERS",
                )
        workers = cfg.DATALOADER.NUM_WORKERS * max(self.gpus, 1)
        if workers > cores:
            yield warning(
                f"DATALOADER.NUM_WORKERS gives {workers} worker processes on {cores} cores", f"set it to {max(cores // max(self.gpus, 1), 1)}"
            )
        there = [name for module, (name, _) in _OPTIONAL.items() if importlib.util.find_spec(module)]
        yield note(f"optional packages that are here: {', '.join(there) or 'none'}")
        for module, (name, use) in _OPTIONAL.items():
            if name not in there:
                yield note(f"{name} is not installed: {use}", f"pip install {name}")
        yield from self._disk()

    def _gpus(self) -> Iterator[Finding]:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for i in range(count):
            free, total = torch.cuda.mem_get_info(i)
            yield note(
                f"GPU {i}: {torch.cuda.get_device_name(i)}, {size_in_words(total)}, {size_in_words(free)} free (CUDA {torch.version.cuda})"
            )
            if free < total / 2:
                yield warning(f"GPU {i} is more than half in use by others", "look with nvidia-smi")
        if not count:
            yield note("no GPU that torch sees")
        on_gpu = self.cfg.MODEL.DEVICE.startswith("cuda")
        if count and self.cfg.MODEL.DEVICE == "cpu":
            yield warning("MODEL.DEVICE is 'cpu', though there is a GPU", "set MODEL.DEVICE cuda")
        if on_gpu and self.gpus > count:
            yield error(f"--num-gpus {self.gpus}, but torch sees {count} here", "lower it, or train elsewhere")

    def _disk(self) -> Iterator[Finding]:
        cfg, folder = self.cfg, os.path.abspath(self.cfg.OUTPUT_DIR)
        while not os.path.isdir(folder) and folder != os.path.dirname(folder):
            folder = os.path.dirname(folder)
        free = shutil.disk_usage(folder).free
        model = self.meta_model()
        if model is not None:
            size = 4 * (sum(t.numel() for t in model.state_dict().values()) + sum(p.numel() for p in model.parameters() if p.requires_grad))
            count = -(-cfg.SOLVER.MAX_ITER // max(cfg.SOLVER.CHECKPOINT_PERIOD, 1)) + 1
            about = f"{count} checkpoints of {size_in_words(size)}, with the optimizer's state, are {size_in_words(count * size)}"
            yield note(f"OUTPUT_DIR: {about}; {size_in_words(free)} free")
            if count * size > free:
                yield error(
                    f"{about}, but {folder!r} has {size_in_words(free)} free", "raise SOLVER.CHECKPOINT_PERIOD, or name another OUTPUT_DIR"
                )
        if not self.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
            yield warning(
                f"OUTPUT_DIR {cfg.OUTPUT_DIR!r} holds an earlier run", "go on with --resume, or name another: its files would be overwritten"
            )

    def config(self) -> Iterator[Finding]:
        found: List[Finding] = []
        for key, register in (
            ("REGISTER", register_from_config),
            ("IMAGE_FOLDERS", register_image_folders),
            ("HOLD_OUT", register_held_out),
        ):
            for entry in self.cfg.DATASETS[key]:
                try:
                    register(self.clone(f"DATASETS.{key}", [entry]))
                except UserError as problem:
                    found.append(error(words(problem)))
                    if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str):
                        self.refused |= {entry[0]} if key != "HOLD_OUT" else {entry[0] + "_kept", entry[0] + "_held_out"}
        refused_config = list(self._collect(lambda cfg: check_config(cfg, training=True, processes=self.processes), self.cfg))
        found += self._collect(check_trackers, self.cfg)
        self.usable = not any("torch sees no" in finding.message for finding in refused_config)
        self.sound = all("torch sees no" in finding.message for finding in refused_config)
        found += refused_config
        for key, training in (("TRAIN", True), ("TEST", False)):
            names = list(self.cfg.DATASETS[key])
            if not names:
                found.append(
                    error("DATASETS.TRAIN is empty", "name data to train on")
                    if training
                    else warning("DATASETS.TEST is empty: nothing will be evaluated", "name data to evaluate on")
                )
            files = self.cfg.DATASETS[f"PROPOSAL_FILES_{key}"]
            for i, name in enumerate(names):
                if name in self.refused:
                    continue
                chosen = {"TRAIN": (), "TEST": (), key: (name,)}
                alone = self.clone(
                    *itertools.chain(*((f"DATASETS.{k}", v) for k, v in chosen.items())),
                    f"DATASETS.PROPOSAL_FILES_{key}",
                    tuple(files[i : i + 1]),
                )
                for finding in self._collect(lambda cfg: check_datasets(cfg, training=training), alone):
                    found.append(finding)
                    if "is not there" in finding.message or "unknown data set" in finding.message:
                        self.refused.add(name)
        yield from dict.fromkeys(found)  # what two data sets have in common, once
        yield from self._nonsense()

    def _collect(self, check: Callable[[CfgNode], None], cfg: CfgNode) -> Iterator[Finding]:
        """What ``check`` raises, and what it raises once that is mended as it says, and so on."""
        cfg, seen = cfg.clone(), set()
        cfg.defrost()
        while True:
            try:
                check(cfg)
                return
            except UserError as problem:
                message = words(problem)
            except Exception as problem:  # code of the user's own, which speaks with a traceback
                yield error(words(problem))
                return
            if message in seen:
                return
            seen.add(message)
            yield error(message)
            if not _mend(cfg, message):
                return

    def _nonsense(self) -> Iterator[Finding]:
        """What is legal, and most likely not meant."""
        cfg, solver = self.cfg, self.cfg.SOLVER
        yield from self._learning_rate()
        late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
        if late and solver.LR_SCHEDULER_NAME in ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"):
            advice = f"set SOLVER.STEPS to some two thirds and eight ninths: ({solver.MAX_ITER * 2 // 3}, {solver.MAX_ITER * 8 // 9})"
            yield warning(
                f"SOLVER.STEPS {tuple(solver.STEPS)}: the rate never falls at those from SOLVER.MAX_ITER {solver.MAX_ITER} on", advice
            )
        if solver.WARMUP_ITERS >= solver.MAX_ITER:
            yield warning(
                f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is all of SOLVER.MAX_ITER {solver.MAX_ITER}: the full rate is never reached",
                f"set SOLVER.WARMUP_ITERS {max(solver.MAX_ITER // 20, 1)}",
            )
        period = cfg.TEST.EVAL_PERIOD
        if not period:
            yield note("TEST.EVAL_PERIOD is 0: evaluation follows at the end only", f"set it, to {max(solver.MAX_ITER // 10, 1)}, say")
        elif period > solver.MAX_ITER:
            yield warning(f"TEST.EVAL_PERIOD {period} is more than SOLVER.MAX_ITER {solver.MAX_ITER}: evaluation follows at the end only")
        if solver.CHECKPOINT_PERIOD > solver.MAX_ITER:
            yield note(
                f"SOLVER.CHECKPOINT_PERIOD {solver.CHECKPOINT_PERIOD} is more than SOLVER.MAX_ITER {solver.MAX_ITER}: a run that is killed "
                "cannot be resumed",
                f"set it to {max(solver.MAX_ITER // 10, 1)}",
            )
        if not solver.BASE_LR:
            yield warning("SOLVER.BASE_LR is 0: nothing is learnt")
        model = self.meta_model()
        if model is not None and not cfg.MODEL.WEIGHTS:
            if any(isinstance(m, FrozenBatchNorm2d) for m in model.modules()):
                yield warning(
                    "frozen batch norms without MODEL.WEIGHTS: their statistics are of no data", "set the backbone's NORM BN, or name weights"
                )
            if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and cfg.MODEL.META_ARCHITECTURE != "ImageClassifier":
                yield warning(
                    f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} without MODEL.WEIGHTS: random layers stay random", "set it to 0"
                )
        if cfg.MODEL.META_ARCHITECTURE != "ImageClassifier":
            yield from self._image_sizes()

    def _learning_rate(self) -> Iterator[Finding]:
        solver = self.cfg.SOLVER
        if not self.config_file or solver.REFERENCE_WORLD_SIZE or solver.get("REFERENCE_BATCH", 0):
            return
        own = (solver.IMS_PER_BATCH, solver.BASE_LR)
        path: Optional[str] = self.config_file
        while path:
            other = get_cfg()
            add_backbones_config(other)
            merge_file(other, path)
            base = (other.SOLVER.IMS_PER_BATCH, other.SOLVER.BASE_LR)
            if base != own:
                expected = base[1] * own[0] / base[0]
                said = f"SOLVER.IMS_PER_BATCH {own[0]} with BASE_LR {own[1]:g}, where {os.path.basename(path)!r} has {base[0]} with {base[1]:g}"
                if own[1] == base[1]:
                    yield warning(
                        f"{said}: the rate was not scaled along", f"set SOLVER.BASE_LR {expected:.4g}, or SOLVER.IMS_PER_BATCH {base[0]}"
                    )
                elif expected and not 0.25 <= own[1] / expected <= 4:
                    yield note(f"{said}: in proportion it would be {expected:.4g}", "nothing, if it was meant")
                return
            path = _base_of(path)

    def _image_sizes(self) -> Iterator[Finding]:
        inputs, step = self.cfg.INPUT, self.divisibility()
        sizes = _sizes(inputs.MIN_SIZE_TRAIN)
        for key, size, most in (("TRAIN", max(sizes), inputs.MAX_SIZE_TRAIN), ("TEST", inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)):
            if size > most:
                yield warning(f"INPUT.MIN_SIZE_{key} {size} is more than INPUT.MAX_SIZE_{key} {most}: images never become that large")
        odd = [size for size in sizes if size % step]
        if step > 1 and odd:
            yield note(
                f"INPUT.MIN_SIZE_TRAIN {odd[0]} is no multiple of {step}: images are padded, which costs time",
                f"set {round(odd[0] / step) * step or step}",
            )
        if 0 < min(sizes) < 4 * step:
            yield warning(f"INPUT.MIN_SIZE_TRAIN {min(sizes)} leaves the coarsest features under 4 pixels a side (stride {step})")
        if inputs.MIN_SIZE_TEST and min(sizes) and not min(sizes) / 1.5 <= inputs.MIN_SIZE_TEST <= max(sizes) * 1.5:
            yield warning(
                f"INPUT.MIN_SIZE_TEST {inputs.MIN_SIZE_TEST} is far from INPUT.MIN_SIZE_TRAIN {min(sizes)} to {max(sizes)}: objects look larger or smaller"
            )
        if inputs.RANDOM_FLIP != "none":
            sided = [
                n for s in self.cfg.DATASETS.TRAIN if s in MetadataCatalog.list() for n in MetadataCatalog.get(s).get("thing_classes") or ()
            ]
            sided = [n for n in dict.fromkeys(sided) if isinstance(n, str) and re.search(r"(?i)\b(left|right)\b", n.replace("_", " "))]
            if sided:
                yield warning(
                    f"INPUT.RANDOM_FLIP {inputs.RANDOM_FLIP} mirrors classes that have a side: {', '.join(sided[:5])}", "set it to none"
                )

    def pretrained(self) -> Iterator[Finding]:
        cfg = self.clone("MODEL.DEVICE", "cpu")
        checkpointer = GatedCheckpointer(nn.Identity(), cfg.OUTPUT_DIR)
        begun = self.resume and checkpointer.has_checkpoint()
        path = checkpointer.get_checkpoint_file() if begun else cfg.MODEL.WEIGHTS
        if self.resume and not begun:
            yield warning(f"--resume: no checkpoint in {cfg.OUTPUT_DIR!r}, training starts anew")
        if not path:
            yield note("MODEL.WEIGHTS is empty: training from scratch")
            return
        if not self.sound:
            yield note("the config cannot be built: whether weights fit was not looked at")
            return
        if not self.download and not is_here(path):
            yield note(f"{path!r} is not on this machine: it will be downloaded when training starts", "add --download to try it now")
            return
        checkpointer = GatedCheckpointer(build_model(cfg), require="nothing" if self.partial else "all" if begun else "backbone")
        try:
            checkpointer.load(path, checkpointables=[])
            self.weights = path
        except UserError as problem:
            yield error(words(problem))
        report = checkpointer.report
        if report:
            self.text["weights"] = report.table()
            count = len(report.total) - len(report.unfilled())
            yield note(f"{count} of {len(report.total)} tensors {'are' if self.weights else 'would be'} filled from {path!r}")

    def data(self) -> Iterator[Finding]:
        self.sources, others = sources(self.cfg)
        own = {entry[0] for entry in self.cfg.DATASETS.REGISTER if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str)}
        self.sources = [source for source in self.sources if source.name in own or source.name not in self.refused]  # of others all is said
        yield from summarize(inspect(self.sources, self.use, self.images, self.progress))
        for name in others:
            yield note(f"{name}: not in COCO's format, its files were not looked into")
        for source in self.sources:
            content = source.content
            counts = source.classes()
            if not counts:
                continue
            objects = sum(counts.values())
            ordered = sorted(counts, key=lambda name: counts[name])
            yield note(
                f"{source.name}: {len(content['images'])} images, {objects} objects of {len(counts)} classes, least {ordered[0]!r} "
                f"({counts[ordered[0]]}), most {ordered[-1]!r} ({counts[ordered[-1]]})"
            )
            if self.images is not None and len(content["images"]) > self.images:
                yield note(f"{source.name}: {self.images} of {len(content['images'])} images were read", "--images all reads all")
            most = max(collections.Counter(a["image_id"] for a in content["annotations"]).values(), default=0)
            if source.testing and most > self.cfg.TEST.DETECTIONS_PER_IMAGE:
                yield warning(
                    f"{source.name}: an image has {most} objects, TEST.DETECTIONS_PER_IMAGE is {self.cfg.TEST.DETECTIONS_PER_IMAGE}",
                    f"set it to {most}, which COCO's AP at 100 detections does not reward",
                )
        yield from self._anchors()

    def training_boxes(self, most: int = 20000) -> np.ndarray:
        boxes = [source.boxes(self.use) for source in self.sources if source.training and source.content.get("images")]
        boxes = np.concatenate(boxes) if boxes else np.zeros((0, 4))
        return boxes[np.linspace(0, len(boxes) - 1, min(most, len(boxes))).astype(int)]

    def _anchors(self) -> Iterator[Finding]:
        cfg, model, boxes = self.cfg, self.meta_model(), self.training_boxes()
        retina = "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
        if model is None or not len(boxes) or not (retina or hasattr(getattr(model, "proposal_generator", None), "anchor_generator")):
            return
        shapes = model.backbone.output_shape()
        generator = build_anchor_generator(cfg, [shapes[f] for f in (cfg.MODEL.RETINANET if retina else cfg.MODEL.RPN).IN_FEATURES])
        if not isinstance(generator, DefaultAnchorGenerator):
            return
        missed = unmatched(boxes, [cell.numpy() for cell in generator.cell_anchors], generator.strides, generator.offset)
        sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
        low, middle, high = np.quantile(sides, (0.05, 0.5, 0.95))
        said = f"{missed.mean():.1%} of the training boxes meet no anchor with IoU 0.5"
        spread = f"boxes are {low:.0f} to {high:.0f} pixels (the middle nine tenths, median {middle:.0f}) as the network sees them"
        if missed.mean() > 0.05:
            make = warning if missed.mean() > 0.2 else note
            yield make(f"{said}: {spread}", "set MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS after them, or resize otherwise")
        else:
            yield note(f"{said}; {spread}")

    def memory(self) -> Iterator[Finding]:
        meta = self.meta_model()
        if meta is None:
            yield note("the model cannot be built: no estimate")
            return
        parameters = 4 * sum(t.numel() for t in [*meta.parameters(), *meta.buffers()])
        trained = 4 * sum(p.numel() for p in meta.parameters() if p.requires_grad)
        exact = parameters + 2 * trained
        yield note(f"weights {size_in_words(parameters)}, gradients {size_in_words(trained)}, momentum {size_in_words(trained)}: exactly")
        if not self.sound:
            yield note("the config cannot be built: activations were not measured")
            return
        try:
            fixed, slope = self.activations()
        except Exception as problem:
            yield note(f"activations were not measured: {words(problem)}")
            return
        short, long = self.largest()
        count = max(self.per_process() // max(self.cfg.SOLVER.get("ACCUMULATE", 1), 1), 1)
        kept = count * (fixed + slope * short * long)
        device = torch.device(self.cfg.MODEL.DEVICE)
        if device.type == "cuda" and torch.cuda.is_available():
            room, where, shares = torch.cuda.mem_get_info()[1], torch.cuda.get_device_name(), 1
        else:
            room, where, shares = memory_of_machine()[1], "this machine's free memory", max(self.gpus, 1)
        # beside what is kept for it, the backward pass works on some of it: of CPUs as much again was measured
        amp, on_gpu = self.cfg.SOLVER.AMP.ENABLED, device.type == "cuda"
        peak = exact + kept * (1.25 if on_gpu else 2) * (0.6 if amp else 1)
        yield note(
            f"an estimate: {count} images of {short}x{long} keep activations of {size_in_words(kept)}{' without AMP' if amp else ''} for the backward "
            f"pass, and a step's peak is some {size_in_words(peak)} a process; {where}: {size_in_words(room)}"
        )
        if peak * shares > 0.9 * room:
            yield warning(
                f"a step may need {size_in_words(peak * shares)} of {size_in_words(room)}, by this estimate",
                "lower SOLVER.IMS_PER_BATCH with BASE_LR, use more processes, SOLVER.AMP.ENABLED, MODEL.ACTIVATIONS lean, or smaller images",
            )

    def activations(self) -> Tuple[float, float]:
        """Bytes that a step of one image keeps: (those of any image, those of each pixel), from two small sizes."""
        record, step = max(self.some_records(50), key=lambda r: len(r.get("annotations", ()))), self.divisibility()
        model = build_model(self.clone("MODEL.DEVICE", "cpu")).train()
        keep_activations(model, self.cfg.MODEL.ACTIVATIONS)
        points = []
        for size in (7 * 32, 11 * 32):
            size = math.ceil(size / step) * step
            cfg = self.clone("INPUT.MIN_SIZE_TRAIN", (size,), "INPUT.MAX_SIZE_TRAIN", 2 * size, "INPUT.CROP.ENABLED", False)
            cfg.INPUT.CLASSIFICATION.SIZE = size
            example = Trainer.build_mapper(cfg, is_train=True)(record)
            if "instances" in example and hasattr(model, "roi_heads") and len(example["instances"]):
                # as many objects as heads for masks and keypoints will find once they are trained
                heads, objects = cfg.MODEL.ROI_HEADS, example["instances"]
                wanted = math.ceil(heads.BATCH_SIZE_PER_IMAGE * heads.POSITIVE_FRACTION)
                example["instances"] = Instances.cat([objects] * math.ceil(wanted / len(objects)))
            area = math.prod(math.ceil(side / step) * step for side in example["image"].shape[1:])
            with EventStorage():
                points.append((area, kept_bytes(model, [example])))
        (small, few), (large, many) = points
        slope = max((many - few) / (large - small), 0.0)
        return max(few - slope * small, 0.0), slope

    def dry_run(self) -> Iterator[Finding]:
        if not self.sound or not set(self.cfg.DATASETS.TRAIN) - self.refused:
            yield note(f"{'the data cannot be read' if self.sound else 'the config cannot be built'}: no dry run")
            return
        if not self.usable:
            yield note(f"MODEL.DEVICE {self.cfg.MODEL.DEVICE!r} is not here: no dry run", "add MODEL.DEVICE cpu to try the rest")
            return
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="doctor-"))
            stack.callback(gc.collect)  # before the folder goes: loaders' workers and open files
            stage = "reading the data"
            try:
                cfg = self._small_run(folder, stack)
                stage = "training"
                times, losses = self._train(cfg, resume=False)
                if torch.device(cfg.MODEL.DEVICE).type == "cuda":
                    yield note(f"the peak of memory on the GPU was {size_in_words(torch.cuda.max_memory_allocated())}")
                yield note(f"2 steps of {cfg.SOLVER.IMS_PER_BATCH} images: losses {', '.join(f'{v:.3g}' for v in losses)}")
                final = os.path.join(folder, "model_final.pth")
                if len(self.cfg.DATASETS.TEST):
                    stage = "evaluating"
                    yield self._evaluate(cfg, folder, final, stack)
                stage = "resuming"
                cfg.SOLVER.MAX_ITER = 3
                more, losses = self._train(cfg, resume=True)
                yield note(f"saved {size_in_words(os.path.getsize(final))}, resumed and trained one step more: loss {losses[-1]:.3g}")
                yield self._hours(cfg, min(times + more))
            except torch.cuda.OutOfMemoryError:
                yield error(
                    f"while {stage}: the GPU's memory is not enough for {cfg.SOLVER.IMS_PER_BATCH} images",
                    "lower SOLVER.IMS_PER_BATCH with BASE_LR, or set SOLVER.AMP.ENABLED True or MODEL.ACTIVATIONS lean",
                )
            except Exception as problem:  # anything may come of a user's data and code
                yield error(f"while {stage}: {words(problem)}")

    def _small_run(self, folder: str, stack: contextlib.ExitStack) -> CfgNode:
        on_gpu = torch.device(self.cfg.MODEL.DEVICE).type == "cuda"
        # a GPU is to show that it has room for all, a CPU's time is in proportion
        batch = self.per_process() if on_gpu else max(min(self.per_process(), 1_500_000 // math.prod(self.largest())), 1)
        parts = self.cfg.SOLVER.get("ACCUMULATE", 1)
        register_part("doctor:train", self.cfg.DATASETS.TRAIN[0], self.some_records(4 * batch), folder, stack)
        cfg = self.clone(
            *("OUTPUT_DIR", folder, "MODEL.WEIGHTS", self.weights, "DATASETS.TRAIN", ("doctor:train",), "DATASETS.TEST", ()),
            *("DATASETS.PROPOSAL_FILES_TRAIN", tuple(self.cfg.DATASETS.PROPOSAL_FILES_TRAIN[:1]), "DATASETS.PROPOSAL_FILES_TEST", ()),
            *("SOLVER.IMS_PER_BATCH", batch, "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.REFERENCE_WORLD_SIZE", 0),
            *("SOLVER.ACCUMULATE", parts if batch % parts == 0 else 1, "SOLVER.CHECKPOINT_PERIOD", 1000, "SOLVER.REFERENCE_BATCH", 0),
            *("TEST.EVAL_PERIOD", 0, "TEST.EXPECTED_RESULTS", [], "TEST.AUG.ENABLED", False, "TEST.PRECISE_BN.ENABLED", False),
            *("TEST.BEST_METRIC", "", "TEST.PATIENCE", 0, "TEST.LOSS", False, "TEST.PICTURES", 0, "TRACKING.WANDB", "", "TRACKING.MLFLOW", ""),
            *("DATALOADER.NUM_WORKERS", min(self.cfg.DATALOADER.NUM_WORKERS, 2), "VIS_PERIOD", 0),
        )
        if self.cfg.SOLVER.BASE_LR:  # in proportion, as two steps at another batch would
            cfg.SOLVER.BASE_LR = self.cfg.SOLVER.BASE_LR * batch / self.per_process()
        return cfg

    @staticmethod
    def _train(cfg: CfgNode, resume: bool) -> Tuple[List[float], List[float]]:
        """(seconds, total loss) of each step. Raises FloatingPointError where a loss is not finite."""
        seed_all_rng(max(cfg.SEED, 0))
        watch = _Watch()
        trainer = Trainer(cfg, allow_partial_weights=True)
        trainer.register_hooks([watch])
        trainer.resume_or_load(resume=resume)
        trainer.train()
        if not all(map(math.isfinite, watch.losses)):
            raise FloatingPointError(f"losses are not finite: {watch.losses}")
        return watch.times, watch.losses

    def _evaluate(self, cfg: CfgNode, folder: str, final: str, stack: contextlib.ExitStack) -> Finding:
        name = self.cfg.DATASETS.TEST[0]
        if name in self.refused:
            return note(f"{name} cannot be read: no evaluation was tried")
        records = DatasetCatalog.get(name)
        chosen = [records[i] for i in np.linspace(0, len(records) - 1, min(4, len(records))).astype(int)]
        register_part("doctor:test", name, chosen, folder, stack)
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS, cfg.DATASETS.TEST = final, ("doctor:test",)
        cfg.DATASETS.PROPOSAL_FILES_TEST = tuple(self.cfg.DATASETS.PROPOSAL_FILES_TEST[:1])
        model = Trainer.build_model(cfg)
        load_for_evaluation(cfg, model)
        begun = time.perf_counter()
        if MetadataCatalog.get(name).get("evaluator_type") in _WITH_PARTS:
            results = Trainer.test(cfg, model)
            done = f"evaluated {', '.join(results) or 'nothing'} on"
        else:  # its evaluator reads the whole data set from files
            with torch.no_grad():
                for batch in Trainer.build_test_loader(cfg, "doctor:test"):
                    model.eval()(batch)
            done = "found objects in"
        return note(f"{done} {len(chosen)} images of {name} with the weights that were saved: {time.perf_counter() - begun:.1f} s")

    def _hours(self, cfg: CfgNode, seconds: float) -> Finding:
        solver = self.cfg.SOLVER
        steps = solver.MAX_ITER * (solver.REFERENCE_WORLD_SIZE or self.processes) / self.processes
        whole = seconds * self.per_process() / cfg.SOLVER.IMS_PER_BATCH
        alone = f" on each of {self.processes} processes, were they as fast as this one" if self.processes > 1 else ""
        return note(
            f"an estimate: {seconds:.2f} s a step of {cfg.SOLVER.IMS_PER_BATCH} images, {whole:.2f} s one of {self.per_process()}{alone}; "
            f"{steps:.0f} steps take some {whole * steps / 3600:.1f} hours, evaluations apart"
        )


_WITH_PARTS = ("coco", "coco_panoptic_seg", "sem_seg", "classification")  # evaluator types that take a part of the data


class _Watch(HookBase):
    def __init__(self):
        self.times: List[float] = []
        self.losses: List[float] = []

    def before_step(self):
        self.begun = time.perf_counter()

    def after_step(self):
        self.losses.append(self.trainer.storage.history("total_loss").latest())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.begun)


def register_part(name: str, whole: str, records: List[dict], folder: str, stack: contextlib.ExitStack) -> None:
    """Registers ``records`` of the data set ``whole`` as ``name``, until ``stack`` ends."""
    about = {key: value for key, value in MetadataCatalog.get(whole).as_dict().items() if key not in ("name", "json_file")}
    if about.get("panoptic_json"):
        with open(about["panoptic_json"]) as f:
            content = json.load(f)
        ids = {record["image_id"] for record in records}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
        content["images"] = [image for image in content["images"] if image["id"] in ids]
        about["panoptic_json"] = os.path.join(folder, f"panoptic_{len(os.listdir(folder))}.json")
        write_whole(about["panoptic_json"], json.dumps(content))
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**about)
    stack.callback(MetadataCatalog.remove, name)
    stack.callback(DatasetCatalog.remove, name)


def memory_of_machine() -> Tuple[int, int]:
    """(all, free) bytes."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, AttributeError), open("/proc/meminfo") as f:
        return total, 1024 * int(re.search(r"MemAvailable:\s+(\d+)", f.read()).group(1))
    return total, total


def is_here(path: str) -> bool:
    """Whether weights need no download."""
    if "://" not in path:
        return True
    if path.startswith(named_weights.PREFIX):
        name = path[len(named_weights.PREFIX) :]
        released = named_weights.released(name)
        return bool(named_weights.local(name)) or released is None or is_here(released["url"])
    if path.startswith("detectron2://"):
        path = "https://dl.fbaipublicfiles.com/detectron2/" + path[len("detectron2://") :]
    parsed = urlparse(path)
    return os.path.isfile(os.path.join(get_cache_dir(), parsed.netloc, parsed.path.lstrip("/")))


def _sizes(value: Any) -> List[int]:
    return list(value) if isinstance(value, (list, tuple)) and value else [value or 0]


def _base_of(path: str) -> Optional[str]:
    with open(path) as f:
        base = (yaml.unsafe_load(f) or {}).get("_BASE_")  # as it was when it was merged
    base = base[-1] if isinstance(base, list) and base else base
    return os.path.join(os.path.dirname(path), os.path.expanduser(base)) if isinstance(base, str) else None


def _mend(cfg: CfgNode, message: str) -> bool:
    """Changes what a message of `check_config` or `check_datasets` complains about, so that the next mistake shows; whether it could be."""
    default = get_cfg()
    add_backbones_config(default)
    known = set(all_keys(cfg))
    named = [key for key in re.findall(r"[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*", message) if key in known]
    advised = re.search(r"(?:set|add:) ([A-Z][A-Z0-9_.]+) ([\w.]+)", message)
    meant = re.search(r"Did you mean '([^']*)'\?", message)
    changes = [(advised[1], advised[2])] if advised and advised[1] in known else []
    changes += [(named[0], repr(meant[1]))] if meant and named and isinstance(get(cfg, named[0]), str) else []
    # a builder's other features would only be complained about
    changes += [(key, repr(get(default, key))) for key in named if key not in REGISTERED and get(cfg, key) != get(default, key)]
    for key, value in changes:
        before = get(cfg, key)
        with contextlib.suppress(UserError):
            merge_overrides(cfg, [key, value])
            if get(cfg, key) != before:
                return True
    return False


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps loggers, warnings and what libraries print off the terminal."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "backbones", "fvcore", "iopath", "torch.fx")]
    before = [(logger.level, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        # on, so that a trainer does not set them up
        logger.level, logger.handlers, logger.propagate = logging.INFO, [logging.NullHandler()], False
        logger.manager._clear_cache()
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, state in zip(loggers, before):
            logger.level, logger.handlers, logger.propagate = state
            logger.manager._clear_cache()
