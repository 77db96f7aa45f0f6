"""Whole detectors on a GPU: training steps and inference in each precision and memory format, compared with detectron2's R-50.

Shares of peak are the operations that torch counts relative to the card's dense peak in the data type of the products, TF32 for float32.
"""

import contextlib
import copy
import re
from typing import Any, Callable, Iterator

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .. import timing
from ..deploy import optimize
from ..errors import UserError
from ..lean import keep_activations
from . import detectors

NAMES = ("R-50", "V-39-eSE")
# (data type of the products, memory format, kept activations, whether the backbone is compiled)
WAYS: dict[str, tuple[torch.dtype, torch.memory_format, str, bool]] = {
    "plain": (torch.float32, torch.contiguous_format, "all", False),
    "channels_last": (torch.float32, torch.channels_last, "all", False),
    "compile": (torch.float32, torch.contiguous_format, "all", True),
    "float16": (torch.float16, torch.contiguous_format, "all", False),
    "bfloat16": (torch.bfloat16, torch.contiguous_format, "all", False),
    "float16_channels_last": (torch.float16, torch.channels_last, "all", False),
    "bfloat16_channels_last": (torch.bfloat16, torch.channels_last, "all", False),
    "bfloat16_channels_last_lean": (torch.bfloat16, torch.channels_last, "lean", False),
    "bfloat16_channels_last_compile": (torch.bfloat16, torch.channels_last, "all", True),
}
REFERENCE = "detectron2_R-50"
# published dense peaks in TFLOP/s: (float32, float16 and bfloat16). In float32 torch's convolutions use TF32 where a card has it
_PEAKS = {
    "H100 PCIe": (378, 756),
    "H100 NVL": (417.5, 835),
    "H100": (494.5, 989),
    "H200": (494.5, 989),
    "A100": (156, 312),
    "L4": (60.5, 121),
    "T4": (8.1, 65),
}


def suite(count: int, device: str = "cuda") -> Iterator[dict[str, Any]]:
    """Yields every row as it is measured: inference on one image of 800x1088, training with 4 of them."""
    if not device.startswith("cuda"):
        raise UserError(f"--suite gpu on --device {device}: it needs a GPU, such as --device cuda", "device", "--device", "cuda")
    yield from rows(count, device, (800, 1088), images=4)


def rows(count: int, device: str, size: tuple[int, int], images: int, ways=tuple(WAYS)) -> Iterator[dict[str, Any]]:
    about = {key: value for key, value in timing.about(device).items() if key != "precision"}
    for training in (False, True):
        functions: dict[str, Callable[[], object]] = {}
        operations: dict[str, float] = {}
        peaks: dict[str, int] = {}
        inputs = batch(size, device, images, training)
        for name in (REFERENCE, *(f"{name}/{way}" for name in NAMES for way in ways)):
            network, _, way = name.partition("/") if name != REFERENCE else ("R-50", "", "plain")
            before = torch.cuda.memory_allocated() if device.startswith("cuda") else 0  # by the other networks
            model = as_asked(network, way, device, training, size)
            functions[name] = run = step(model, inputs, WAYS[way][0], training)
            run()  # a compiled backbone is compiled now
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
                run()
                peaks[name] = torch.cuda.max_memory_allocated() - before
            if WAYS[way][3]:
                operations[name] = operations.get(f"{network}/plain", 0)  # the counter cannot see compiled code
            else:
                with FlopCounterMode(display=False) as counter:
                    run()
                operations[name] = counter.get_total_flops()
        times = timing.interleaved(functions, count)
        kind = "training" if training else "inference"
        for row in timing.rows_of(f"gpu/{kind}/{images if training else 1}x{size[0]}x{size[1]}", times, REFERENCE, **about):
            name = next(name for name in functions if row["name"].endswith(f"/{name}_vs_{REFERENCE}"))
            way = name.partition("/")[2]
            row["precision"] = str(WAYS[way][0]).rpartition(".")[2]
            row["share_of_peak"] = share_of_peak(operations[name], row["seconds"][0], row["machine"], WAYS[way][0])
            if name in peaks:
                row["peak_bytes"] = [peaks[name], peaks[REFERENCE]]
            yield row


def batch(size: tuple[int, int], device: str, images: int, training: bool):
    """One image for inference, or several with ten boxes each for training."""
    if not training:
        return detectors.image_for(size, device)
    generator = torch.Generator().manual_seed(0)
    records = [dict(detectors.image_for(size, device)[0]) for _ in range(images)]
    for record in records:
        corners = torch.rand(10, 2, generator=generator) * torch.tensor([size[1], size[0]]) * 0.6
        sides = (torch.rand(10, 2, generator=generator) * 0.35 + 0.03) * torch.tensor([size[1], size[0]])
        instances = Instances(size, gt_boxes=Boxes(torch.cat([corners, corners + sides], 1)))
        instances.gt_classes = torch.randint(80, (10,), generator=generator)
        record["instances"] = instances
    return records


def as_asked(network: str, way: str, device: str, training: bool, size: tuple[int, int]) -> Any:
    dtype, memory_format, kept, compiled = WAYS[way]
    model = detectors.detector(detectors.FASTER[network], device, norm="FrozenBN" if training else "BN")
    if training:
        model.train()
        keep_activations(model, kept)
    elif kept == "lean":  # replaced by folded norms
        model = optimize(model, memory_format="channels_last", size=size)
    model = copy.deepcopy(model).to(memory_format=memory_format)
    if compiled:
        model.backbone.bottom_up.compile()
    return model


def step(model: nn.Module, inputs, dtype: torch.dtype, training: bool) -> Callable[[], object | None]:
    """A function of one training step with its update, or of one inference."""
    device = inputs[0]["image"].device.type
    cast = (lambda: torch.autocast(device, dtype)) if dtype != torch.float32 else contextlib.nullcontext
    if not training:

        def infer():
            with torch.inference_mode(), cast():
                return model(inputs)

        return infer
    # learning rate 0: the compared networks do not change
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.0, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def train():
        with EventStorage(), cast():
            loss = sum(model(inputs).values())
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    return train


def share_of_peak(operations: float, seconds: float, machine: str, dtype: torch.dtype) -> float | None:
    """None for a card whose peak is not in the table."""
    peaks = next((both for name, both in _PEAKS.items() if re.search(rf"\b{name}\b", machine)), None)
    return round(operations / seconds / 1e12 / peaks[dtype != torch.float32], 4) if peaks else None
