"""The machine: versions, memory, GPUs, shared memory for workers, room for checkpoints."""

import contextlib
import importlib.util
import os
import platform
import re
import shutil
from pathlib import Path
from typing import Iterator

import detectron2
import torch
import torchvision

from ..errors import Finding, counted
from .examination import Examination, error, note, size_in_words, warning

# optional modules: what each provides
_OPTIONAL = {
    "faster_coco_eval": ("faster-coco-eval", "several times faster COCO evaluation"),
    "simplejpeg": ("simplejpeg", "faster decoding with INPUT.MAPPER fast"),
    "onnx": ("onnx", "export to ONNX"),
    "onnxruntime": ("onnxruntime", "running exported ONNX files"),
    "openvino": ("openvino", "export to OpenVINO and running it"),
    "panopticapi": ("panopticapi-lite", "panoptic evaluation"),
    "tensorboard": ("tensorboard", "training curves in TensorBoard"),
}


def environment(examination: Examination) -> Iterator[Finding]:
    workers = examination.cfg.DATALOADER.NUM_WORKERS * examination.gpus
    its = f"{examination.front.name('DATALOADER.NUM_WORKERS')} gives {workers} worker processes"
    compiled = importlib.util.find_spec("detectron2._C") is not None
    yield note(
        f"Python {platform.python_version()}, torch {torch.__version__}, torchvision {torchvision.__version__}, detectron2 "
        f"{detectron2.__version__} {'with' if compiled else 'without'} its compiled _C (not needed), {platform.system()} {platform.machine()}"
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    total, free = memory_of_machine()
    memory = f"{size_in_words(total)} of memory, {size_in_words(free)} free" if total else "the system does not report how much memory it has"
    yield note(f"{cores} cores, {memory}")
    yield from _gpus(examination)
    if workers and os.path.isdir("/dev/shm"):
        shared = shutil.disk_usage("/dev/shm")
        short, long = examination.largest()
        planes = 3 + (
            10 if examination.use.masks and examination.cfg.INPUT.MASK_FORMAT == "bitmask" else 0
        )  # bytes per pixel: the image, and some masks
        wanted = 2 * workers * short * long * planes  # each worker prefetches two images
        said = f"{its}, which need about {size_in_words(wanted)} of shared memory; {size_in_words(shared.free)} are free"
        if wanted > shared.free / 2:
            yield warning(f"{said}: they may die with a bus error", "start the container with a larger --shm-size, or use fewer workers")
        else:
            yield note(said)
    if workers > cores:
        yield warning(f"{its} on {cores} cores", f"set it to {max(cores // examination.gpus, 1)}")
    there = [package for module, (package, _) in _OPTIONAL.items() if importlib.util.find_spec(module)]
    yield note(f"optional packages installed: {', '.join(there) or 'none'}")
    for package, use in _OPTIONAL.values():
        if package not in there:
            yield note(f"{package} is not installed: {use}", f"pip install {package}")
    yield from _disk(examination)


def _gpus(examination: Examination) -> Iterator[Finding]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for i in range(count):
        free, total = torch.cuda.mem_get_info(i)
        yield note(f"GPU {i}: {torch.cuda.get_device_name(i)}, {size_in_words(total)}, {size_in_words(free)} free (CUDA {torch.version.cuda})")
        if free < total / 2:
            yield warning(f"GPU {i} is more than half in use by others", "look with nvidia-smi")
    if not count:
        yield note("torch sees no GPU")
    device, front = examination.cfg.MODEL.DEVICE, examination.front
    if count and device == "cpu":
        yield warning(f"{front.name('MODEL.DEVICE')} is 'cpu', though there is a GPU", f"set {front.override('MODEL.DEVICE', 'cuda')}")
    if device.startswith("cuda") and examination.gpus > count:
        yield error(f"--num-gpus {examination.gpus}, but torch sees {count} on this machine", "lower it, or train elsewhere")


def _disk(examination: Examination) -> Iterator[Finding]:
    cfg, name, folder = examination.cfg, examination.front.name, os.path.abspath(examination.cfg.OUTPUT_DIR)
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        folder = os.path.dirname(folder)
    free = shutil.disk_usage(folder).free
    model = examination.model
    if model is not None:
        copies = 2 if cfg.MODEL_EMA.ENABLED else 1
        weights, trained = model.state_dict().values(), (p for p in model.parameters() if p.requires_grad)
        size = round(4 * (copies * sum(t.numel() for t in weights) + (examination.states or 0) * sum(p.numel() for p in trained)))
        count = -(-cfg.SOLVER.MAX_ITER // max(cfg.SOLVER.CHECKPOINT_PERIOD, 1))
        count = min(count, examination.front.checkpoints_kept or count) + (2 if cfg.TEST.BEST_METRIC and examination.front.evaluates else 1)
        state = "without the optimizer's state" if examination.states is None else "with the optimizer's state"
        more = state + (", with the average" if examination.states is None else " and the average") * (copies > 1)
        about = f"{counted(count, 'checkpoint')} of {size_in_words(size)}, {more}: {size_in_words(count * size)}"
        said, advice = (
            f"{about}; {folder!r} has {size_in_words(free)} free",
            f"raise {name('SOLVER.CHECKPOINT_PERIOD')}, or name another folder",
        )
        yield error(said, advice) if count * size > free else note(said)
    if not examination.resume and os.path.isfile(os.path.join(cfg.OUTPUT_DIR, "last_checkpoint")):
        said = f"{name('OUTPUT_DIR')} {cfg.OUTPUT_DIR!r} holds an earlier run: training will refuse to start"
        yield warning(said, "continue it with --resume, name another folder, or remove it with --overwrite")


def memory_of_machine() -> tuple[int, int]:
    """(total, free) bytes available to this process within the limits of its container or job; 0 if the system does not say."""
    if not hasattr(os, "sysconf"):  # on Windows
        return 0, 0
    total = free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, IndexError), open("/proc/meminfo") as f:
        free = 1024 * int(re.findall(r"MemAvailable:\s+(\d+)", f.read())[0])
    limits = list(limits_of_memory())
    return min([total, *(limit for limit, _ in limits)]), min([free, *(left for _, left in limits)])


def limits_of_memory(root: str = "/sys/fs/cgroup", own: str = "/proc/self/cgroup") -> Iterator[tuple[int, int]]:
    """(limit, remainder) in bytes for each control group of this process that has a limit."""
    lines: list[str] = []
    with contextlib.suppress(OSError):
        lines = Path(own).read_text().splitlines()
    for line in lines:
        kinds, path = line.split(":", 2)[1:]
        if kinds and "memory" not in kinds.split(","):
            continue
        top = Path(root, "memory" if kinds else "")  # version 1 has a folder for memory, version 2 one for everything
        limit, usage, cached = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if kinds
            else ("memory.max", "memory.current", "inactive_file")
        )
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):  # a limit applies to nested groups; of a host's path only the top may be visible here
            with contextlib.suppress(OSError, ValueError, StopIteration):  # "max" is not a number
                most, used = int((folder / limit).read_text()), int((folder / usage).read_text())
                stated = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                yield most, max(most - used + next(int(value) for name, value in stated if name == cached), 0)
            if folder == top:
                break
