"""The memory that a step of training needs, from the model's own numbers and two small steps."""

import math
from typing import Any, Iterator

import torch
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from ..benchmark.training import kept_bytes
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
    if not examination.front.knows("INPUT.MIN_SIZE_TRAIN"):
        raise UserError("images are resized by something else than ResizeShortestEdge")
    record, step = max(examination.some_records(50), key=lambda r: len(r.get("annotations", ()))), examination.divisibility()
    model: Any = examination.build().train()
    keep_activations(model, examination.cfg.MODEL.ACTIVATIONS)
    points = []
    for size in (7 * 32, 11 * 32):
        size = math.ceil(size / step) * step
        sides = ("INPUT.MIN_SIZE_TRAIN", (size, size), "INPUT.MAX_SIZE_TRAIN", 2 * size, "INPUT.CLASSIFICATION.SIZE", size)
        example = examination.front.clone(*sides, "INPUT.CROP.ENABLED", False).mapper(training=True)(record)
        if "instances" in example and hasattr(model, "roi_heads") and len(example["instances"]):
            # as many objects as heads for masks and keypoints will find once they are trained
            heads, objects = model.roi_heads, example["instances"]
            wanted = math.ceil(heads.batch_size_per_image * heads.positive_fraction)
            example["instances"] = Instances.cat([objects] * math.ceil(wanted / len(objects)))
        area = math.prod(math.ceil(side / step) * step for side in example["image"].shape[1:])
        with EventStorage():
            points.append((area, kept_bytes(model, [example])))
    (small, few), (large, many) = points
    slope = max((many - few) / (large - small), 0.0)
    return max(few - slope * small, 0.0), slope
