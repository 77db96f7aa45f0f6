"""The memory that a training step needs, from the size of the model and two small steps."""

import contextlib
import functools
import math
from typing import Any, Iterator, NamedTuple

import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..benchmark.training import kept_bytes, peak_bytes
from ..errors import Finding, UserError, counted
from ..lean import keep_activations
from .environment import memory_of_machine
from .examination import Examination, note, quiet, size_in_words, sizes_of, warning, words


def memory(examination: Examination) -> Iterator[Finding]:
    model, cfg = examination.model, examination.cfg
    if model is None:
        yield note("the model cannot be built: memory was not estimated")
        return
    parameters, trained, states, exact = exact_bytes(examination)
    average = f", their average {size_in_words(parameters)}" if cfg.MODEL_EMA.ENABLED else ""
    known = "unknown" if examination.states is None else size_in_words(states)
    yield note(f"weights {size_in_words(parameters)}{average}, gradients {size_in_words(trained)}, optimizer's state {known}")
    if not examination.sound:
        yield note("the config cannot be built: activations were not measured")
        return
    try:
        step = estimate(examination, exact)
    except Exception as problem:
        yield note(f"activations were not measured: {words(problem)}")
        return
    amp = " without AMP" if cfg.SOLVER.AMP.ENABLED else ""
    there = f"{step.where}: {size_in_words(step.room)}" if step.room else f"the system does not report {step.where}"
    yield note(
        f"estimate: {counted(step.images, 'image')} of {step.sides}, activations of {size_in_words(step.kept)}{amp} for the backward "
        f"pass; peak of a step about {size_in_words(step.peak)} per process; {there}"
    )
    yield from shortage(examination, step)


class Estimate(NamedTuple):
    """Memory of a training step in bytes. ``room``: available in ``where`` for ``shares`` processes, 0 if the system does not say."""

    images: int  # at once
    sides: str
    kept: float
    peak: float
    room: int
    where: str
    shares: int


def estimate(examination: Examination, exact: float) -> Estimate:
    """``exact``: bytes that do not depend on images."""
    cfg, (fixed, slope), (short, long) = examination.cfg, activations(examination), examination.largest()
    count = max(examination.per_process() // max(cfg.SOLVER.ACCUMULATE, 1), 1)
    kept = count * (fixed + slope * short * long)
    on_gpu = torch.device(cfg.MODEL.DEVICE).type == "cuda"
    if on_gpu and torch.cuda.is_available():
        free, where, shares = torch.cuda.mem_get_info()[0], torch.cuda.get_device_name(), 1
    else:
        free, where, shares = memory_of_machine()[1], "this machine's free memory", max(examination.gpus, 1)
    # the backward pass needs working memory besides what is kept for it: on CPUs as much again was measured
    peak = exact + kept * (1.25 if on_gpu else 2) * (0.6 if cfg.SOLVER.AMP.ENABLED else 1)
    return Estimate(count, f"{short}x{long}", kept, peak, free, where, shares)


def shortage(examination: Examination, step: Estimate) -> Iterator[Finding]:
    """Warns if a step may lack memory."""
    if step.room and step.peak * step.shares > 0.9 * step.room:
        need, there = size_in_words(step.peak * step.shares), size_in_words(step.room)
        parts = math.ceil(step.peak * step.shares / (0.9 * step.room))
        processes = f"use {'more' if step.shares == 1 else 'fewer'} processes"
        advice = examination.lower_memory(processes, "use smaller images", parts=max(parts, 2))
        said = f"{counted(step.images, 'image')} of {step.sides} at once may need an estimated {need} of memory, and {there} are free"
        yield warning(said, advice)


# more than the networks here need in training: if it fits, nothing needs measuring
_BYTES_PER_PIXEL = 8000


def too_much_for_cpu(examination: Examination) -> Iterator[Finding]:
    """`shortage` of a run on a CPU, which the system kills silently when memory is short. Costs nothing if that cannot happen."""
    cfg, free = examination.cfg, memory_of_machine()[1]
    pixels = (max(sizes_of(cfg.INPUT.MIN_SIZE_TRAIN)) or cfg.INPUT.MAX_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN
    images = max(examination.per_process() // max(cfg.SOLVER.ACCUMULATE, 1), 1) * max(examination.gpus, 1)
    if torch.device(cfg.MODEL.DEVICE).type != "cpu" or not free or images * pixels * _BYTES_PER_PIXEL < free:
        return
    with contextlib.suppress(Exception), quiet():  # training itself reports what is wrong
        if examination.records and examination.model is not None:
            yield from shortage(examination, estimate(examination, exact_bytes(examination)[3]))


def exact_bytes(examination: Examination) -> tuple[int, int, int, int]:
    """Bytes of weights and buffers, of gradients, of the optimizer's state, and of all with the average of the weights."""
    model: Any = examination.model
    own = 4 * sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    states = round((examination.states or 0) * trained)
    return own, trained, states, own * (2 if examination.cfg.MODEL_EMA.ENABLED else 1) + trained + states


def activations(examination: Examination) -> tuple[float, float]:
    """Bytes that a step of one image keeps, (per image, per pixel), from two small sizes."""
    model: Any = _trained(examination)
    points = []
    for size in _SIZES:
        example, area = _example(examination, model, size)
        with EventStorage():
            points.append((area, kept_bytes(model, [example])))
    (small, few), (large, many) = points
    slope = max((many - few) / (large - small), 0.0)
    return max(few - slope * small, 0.0), slope


_SIZES = (7 * 32, 11 * 32)


def room(device: str) -> int:
    """Free bytes on a device, 0 if the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else memory_of_machine()[1]


class Peak(NamedTuple):
    """Bytes of a training step: constant, per image, and per pixel."""

    fixed: float
    image: float
    pixel: float

    def of(self, images: int, pixels: float) -> float:
        return self.fixed + images * (self.image + self.pixel * pixels)


def peak(examination: Examination, device: str = "cpu", sizes: tuple[int, int] = _SIZES) -> Peak:
    """Measures small steps: two images at two sizes, and four images. Includes weights, buffers and the optimizer's momentum."""
    model: Any = _trained(examination).to(device)
    (small, area), (large, larger) = (_example(examination, model, size) for size in sizes)
    found = []
    for batch in ([small] * 2, [small] * 2, [small] * 4, [large] * 2):  # the first allocates what stays; one image may need less than gradients
        model.zero_grad()
        found.append(peak_bytes(functools.partial(step_backward, model, batch), device))
    _, two, four, other = found
    pixel = max((other - two) / 2 / (larger - area), 0.0)
    own = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    momentum = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return Peak(own + momentum + max(2 * two - four, 0.0), max((four - two) / 2 - pixel * area, 0.0), pixel)


def step_backward(model: nn.Module, batch: list[dict[str, Any]]) -> None:
    with EventStorage():
        sum(model(batch).values()).backward()


def _trained(examination: Examination) -> nn.Module:
    """The model as for training. Raises UserError if images are not resized by their shorter side."""
    if not examination.front.knows("INPUT.MIN_SIZE_TRAIN"):
        raise UserError("images are not resized by ResizeShortestEdge")
    model = examination.build().train()
    keep_activations(model, examination.cfg.MODEL.ACTIVATIONS)
    return model


def _example(examination: Examination, model: Any, size: int) -> tuple[dict[str, Any], int]:
    """(the model's input, its pixels with padding) for an image with many objects."""
    record, step = max(examination.some_records(50), key=lambda r: len(r.get("annotations", ()))), examination.divisibility()
    size = math.ceil(size / step) * step
    sides = ("INPUT.MIN_SIZE_TRAIN", (size, size), "INPUT.MAX_SIZE_TRAIN", 2 * size, "INPUT.CLASSIFICATION.SIZE", size)
    example = examination.front.clone(*sides, "INPUT.CROP.ENABLED", False).mapper(training=True)(record)
    if "instances" in example and hasattr(model, "roi_heads") and len(example["instances"]):
        # as many objects as trained heads for masks and keypoints will get
        heads, objects = model.roi_heads, example["instances"]
        wanted = math.ceil(heads.batch_size_per_image * heads.positive_fraction)
        example["instances"] = Instances.cat([objects] * math.ceil(wanted / len(objects)))
    return example, math.prod(math.ceil(side / step) * step for side in example["image"].shape[1:])
