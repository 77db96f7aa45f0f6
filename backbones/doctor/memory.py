"""The memory that a step of training needs, from the model's own numbers and two small steps."""

import functools
import math
from typing import Any, Iterator, NamedTuple

import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage
from torch import nn

from ..benchmark.training import kept_bytes, peak_bytes
from ..errors import Finding, UserError
from ..lean import keep_activations
from .environment import memory_of_machine
from .examination import Examination, note, size_in_words, warning, words


def memory(examination: Examination) -> Iterator[Finding]:
    model, cfg = examination.model, examination.cfg
    if model is None:
        yield note("the model cannot be built: no estimate")
        return
    parameters = 4 * sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    exact = parameters + 2 * trained
    yield note(f"weights {size_in_words(parameters)}, gradients {size_in_words(trained)}, momentum {size_in_words(trained)}: exactly")
    if not examination.sound:
        yield note("the config cannot be built: activations were not measured")
        return
    try:
        fixed, slope = activations(examination)
    except Exception as problem:
        yield note(f"activations were not measured: {words(problem)}")
        return
    short, long = examination.largest()
    count = max(examination.per_process() // max(cfg.SOLVER.ACCUMULATE, 1), 1)
    kept = count * (fixed + slope * short * long)
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and torch.cuda.is_available():
        room, where, shares = torch.cuda.mem_get_info()[1], torch.cuda.get_device_name(), 1
    else:
        room, where, shares = memory_of_machine()[1], "this machine's free memory", max(examination.gpus, 1)
    # beside what is kept for it, the backward pass works on some of it: of CPUs as much again was measured
    amp, on_gpu = cfg.SOLVER.AMP.ENABLED, device.type == "cuda"
    peak = exact + kept * (1.25 if on_gpu else 2) * (0.6 if amp else 1)
    there = f"{where}: {size_in_words(room)}" if room else f"how much {where} is, the system does not say"
    yield note(
        f"an estimate: {count} images of {short}x{long} keep activations of {size_in_words(kept)}{' without AMP' if amp else ''} for the "
        f"backward pass, and a step's peak is some {size_in_words(peak)} a process; {there}"
    )
    if room and peak * shares > 0.9 * room:
        yield warning(
            f"a step may need {size_in_words(peak * shares)} of {size_in_words(room)}, by this estimate",
            f"{examination.lower_memory()}, use more processes or smaller images",
        )


def activations(examination: Examination) -> tuple[float, float]:
    """Bytes that a step of one image keeps: (those of any image, those of each pixel), from two small sizes."""
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
    """Bytes that are free on a device, 0 where the system does not say."""
    return torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else memory_of_machine()[1]


class Peak(NamedTuple):
    """Bytes of a step of training: those that do not depend on its images, those of each image, and those of each of its pixels."""

    fixed: float
    image: float
    pixel: float

    def of(self, images: int, pixels: float) -> float:
        return self.fixed + images * (self.image + self.pixel * pixels)


def peak(examination: Examination, device: str = "cpu", sizes: tuple[int, int] = _SIZES) -> Peak:
    """From small steps: of two images at two sizes, and of four. Weights, buffers and the optimizer's momentum are counted."""
    model: Any = _trained(examination).to(device)
    (small, area), (large, larger) = (_example(examination, model, size) for size in sizes)
    found = []
    for batch in ([small] * 2, [small] * 2, [small] * 4, [large] * 2):  # the first makes what stays; less than two may be less than gradients
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
    """The model as training has it. Raises UserError where images are not resized by their shorter side."""
    if not examination.front.knows("INPUT.MIN_SIZE_TRAIN"):
        raise UserError("images are resized by something else than ResizeShortestEdge")
    model = examination.build().train()
    keep_activations(model, examination.cfg.MODEL.ACTIVATIONS)
    return model


def _example(examination: Examination, model: Any, size: int) -> tuple[dict[str, Any], int]:
    """(what the model takes, its pixels with padding) of an image with many objects."""
    record, step = max(examination.some_records(50), key=lambda r: len(r.get("annotations", ()))), examination.divisibility()
    size = math.ceil(size / step) * step
    sides = ("INPUT.MIN_SIZE_TRAIN", (size, size), "INPUT.MAX_SIZE_TRAIN", 2 * size, "INPUT.CLASSIFICATION.SIZE", size)
    example = examination.front.clone(*sides, "INPUT.CROP.ENABLED", False).mapper(training=True)(record)
    if "instances" in example and hasattr(model, "roi_heads") and len(example["instances"]):
        # as many objects as heads for masks and keypoints will find once they are trained
        heads, objects = model.roi_heads, example["instances"]
        wanted = math.ceil(heads.batch_size_per_image * heads.positive_fraction)
        example["instances"] = Instances.cat([objects] * math.ceil(wanted / len(objects)))
    return example, math.prod(math.ceil(side / step) * step for side in example["image"].shape[1:])
