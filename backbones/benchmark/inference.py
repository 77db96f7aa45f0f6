"""Whole detectors on one image: optimized against eager and against alternatives; exported backbones; shares of time."""

import importlib.util
import os
import statistics
import tempfile
from functools import partial
from typing import Any, Callable, Iterator

import numpy as np
import torch

from .. import timing
from ..deploy import Runner, optimize
from ..deploy.export import check_target, export
from ..errors import raised
from . import detectors

SIZES = ((480, 640), (800, 1088))
# networks of equal cost: (ours, the other library and its name there)
PEERS = (
    ("R-50", "torchvision_fasterrcnn_resnet50_fpn"),
    ("RegNetX-3.2GF", "torchvision_fasterrcnn_regnet_x_3_2gf_fpn"),
    ("mask_R-50", "torchvision_maskrcnn_resnet50_fpn"),
    ("retinanet_R-50", "torchvision_retinanet_resnet50_fpn"),
    ("V-39-eSE", "timm_ese_vovnet39b"),
    ("RegNetX-3.2GF", "timm_regnetx_032"),
    ("MobileNetV2", "timm_mobilenetv2_100"),
)
CONFIGS = {**detectors.FASTER, "mask_R-50": detectors.MASK, "retinanet_R-50": detectors.RETINANET}


def call(model: Callable[[Any], object], inputs: Any) -> Callable[[], object]:
    return torch.inference_mode()(partial(model, inputs))


def suite(count: int, device: str = "cpu") -> Iterator[dict[str, Any]]:
    """Yields every row as it is measured."""
    about = timing.about(device)
    for size in SIZES:
        where, inputs = f"{size[0]}x{size[1]}", detectors.image_for(size, device)
        reference = detectors.detector(detectors.FASTER["R-50"], device)
        for name, config in detectors.FASTER.items():
            eager = detectors.detector(config, device)
            faster = optimize(eager, size=size)
            run = {"optimized": call(faster, inputs), "eager": call(eager, inputs), "detectron2_R-50": call(reference, inputs)}
            times = timing.interleaved(run, count)
            for other in ("eager", "detectron2_R-50"):
                yield from timing.rows_of(f"inference/{name}/{where}", {k: times[k] for k in ("optimized", other)}, other, **about)
            if name in ("V-19-slim-dw-eSE", "V-39-eSE", "R-50"):
                for kind, model in (("eager", eager), ("optimized", faster)):
                    yield {"name": f"inference/{name}/{where}/parts_{kind}", "parts": parts(model, inputs), **about}
    yield from _exports(count, about)
    for size in SIZES:
        yield from _peers(count, size, device, about)


def parts(model: Any, inputs: list[dict[str, Any]], rounds: int = 7) -> dict[str, float]:
    """The share of each part of a Faster R-CNN in its time: medians over the rounds."""
    marked = (model.backbone.bottom_up, model.backbone, model.proposal_generator, model.roi_heads.box_pooler, model.roi_heads, model)
    times: dict[Any, list[float]] = {module: [] for module in marked}
    begun: dict[Any, float] = {}
    hooks = []
    for module in marked:
        hooks.append(module.register_forward_pre_hook(lambda m, args: begun.update({m: timing.now()})))
        hooks.append(module.register_forward_hook(lambda m, args, output: times[m].append(timing.now() - begun[m])))
    for _ in range(rounds + 1):
        call(model, inputs)()
    for hook in hooks:
        hook.remove()
    body, with_fpn, rpn, align, heads, whole = (statistics.median(times[module][1:]) for module in marked)
    split = {
        "backbone": body,
        "FPN": with_fpn - body,
        "RPN": rpn,
        "RoIAlign": align,
        "heads": heads - align,
        "rest": whole - with_fpn - rpn - heads,
    }
    return {name: round(value / whole, 4) for name, value in split.items()}


def _exports(count: int, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The exported backbone and FPN against the eager and the optimized one, on the CPU."""
    for name in ("V-19-slim-dw-eSE", "V-39-eSE"):
        cfg, model = detectors.config(detectors.FASTER[name]), detectors.detector(detectors.FASTER[name])
        runners = {}
        with tempfile.TemporaryDirectory() as folder:
            for kind, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
                path = os.path.join(folder, f"backbone{suffix}")
                if raised(check_target, kind, path):  # its packages are not installed
                    continue
                export(cfg, model, path, kind, np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8), part="backbone")
                runners[kind] = Runner(path)
            for size in SIZES:
                x = detectors.image_for(size)[0]["image"][None]
                functions: dict[str, Any] = {kind: partial(runner.run, x) for kind, runner in runners.items()}
                functions.update(optimized=_features(optimize(model, size=size), x), eager=_features(model, x))
                times = timing.interleaved(functions, count)
                yield from timing.rows_of(f"export/{name}/{size[0]}x{size[1]}", times, "eager", **about)


def _features(model: Any, x: torch.Tensor) -> Callable[[], object]:
    return call(lambda image: model.backbone((image - model.pixel_mean) / model.pixel_std), x)


def _peers(count: int, size: tuple[int, int], device: str, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    where, inputs = f"{size[0]}x{size[1]}", detectors.image_for(size, device)
    for name, other in PEERS:
        library, _, kind = other.partition("_")
        if importlib.util.find_spec(library) is None:
            continue
        peer = detectors.with_timm(CONFIGS[name], kind, device) if library == "timm" else detectors.of_torchvision(kind, size, device)
        ours = optimize(detectors.detector(CONFIGS[name], device), size=size)
        times = timing.interleaved({"optimized": call(ours, inputs), other: call(peer, inputs)}, count)
        yield from timing.rows_of(f"inference/{name}/{where}", times, other, **about)
