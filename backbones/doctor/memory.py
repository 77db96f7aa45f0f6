"""The memory that a step of training needs, from the model's own numbers and two small steps."""

import math
from typing import Iterator, Tuple

import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.events import EventStorage

from ..benchmark.training import kept_bytes
from ..engine import Trainer
from ..errors import Finding
from ..lean import keep_activations
from .environment import memory_of_machine
from .examination import Examination, note, size_in_words, warning, words


def memory(examination: Examination) -> Iterator[Finding]:
    meta = examination.model
    if meta is None:
        yield note("the model cannot be built: no estimate")
        return
    parameters = 4 * sum(t.numel() for t in [*meta.parameters(), *meta.buffers()])
    trained = 4 * sum(p.numel() for p in meta.parameters() if p.requires_grad)
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
    count = max(examination.per_process() // max(examination.cfg.SOLVER.get("ACCUMULATE", 1), 1), 1)
    kept = count * (fixed + slope * short * long)
    device = torch.device(examination.cfg.MODEL.DEVICE)
    if device.type == "cuda" and torch.cuda.is_available():
        room, where, shares = torch.cuda.mem_get_info()[1], torch.cuda.get_device_name(), 1
    else:
        room, where, shares = memory_of_machine()[1], "this machine's free memory", max(examination.gpus, 1)
    # beside what is kept for it, the backward pass works on some of it: of CPUs as much again was measured
    amp, on_gpu = examination.cfg.SOLVER.AMP.ENABLED, device.type == "cuda"
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


def activations(examination: Examination) -> Tuple[float, float]:
    """Bytes that a step of one image keeps: (those of any image, those of each pixel), from two small sizes."""
    record, step = max(examination.some_records(50), key=lambda r: len(r.get("annotations", ()))), examination.divisibility()
    model = build_model(examination.clone("MODEL.DEVICE", "cpu")).train()
    keep_activations(model, examination.cfg.MODEL.ACTIVATIONS)
    points = []
    for size in (7 * 32, 11 * 32):
        size = math.ceil(size / step) * step
        cfg = examination.clone("INPUT.MIN_SIZE_TRAIN", (size,), "INPUT.MAX_SIZE_TRAIN", 2 * size, "INPUT.CROP.ENABLED", False)
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
