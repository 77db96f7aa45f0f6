"""Finds what is wrong with a config as a whole, before anything heavy starts."""

import math
import os
import sysconfig
import traceback
from typing import Any, Callable, Iterable, Iterator

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone, build_model
from torch import nn

from ..errors import UserError, counted, one_line, raised, unknown
from ..files import is_stream
from ..layers import COMMON_NORMS, NORMS
from ..meta import on_meta
from ..registry import FAMILIES
from ..solver import build_lr_scheduler, build_optimizer
from .architectures import architecture
from .keys import KEYS, all_keys, get, put


def check_config(cfg: CfgNode, training: bool = False, processes: int = 1) -> None:
    """Raises UserError, the first of `config_findings`, if a config's model or solver cannot be built.

    Args:
        cfg: a config with this project's keys; it is not changed.
        training: whether it is for training.
        processes: number of processes that will train.
    """
    for error in config_findings(cfg, training, processes):
        raise error


def config_findings(cfg: CfgNode, training: bool = False, processes: int = 1) -> Iterator[UserError]:
    """All reasons why a config's model, or in ``training`` its solver, cannot be built, or its output folder cannot be written.

    Args:
        cfg: a config with this project's keys; it is not changed.
        training: whether it is for training.
        processes: number of processes that will train.
    """
    yield from raised(check_device, cfg.MODEL.DEVICE)
    yield from raised(check_output_dir, cfg.OUTPUT_DIR)
    device, buildable = cfg.MODEL.DEVICE, True
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "meta"  # costs no memory
    for find in (_values, _combinations):
        for error in find(cfg):
            yield error
            if error.suggestion is None:
                buildable = False
            else:  # each mistake is reported once, and hides no other
                put(cfg, error.key, error.suggestion)
    if training:
        yield from training_findings(cfg, processes, device)
    if buildable:
        yield from _building(cfg, training, processes > 1 and not device.startswith("cuda"))


_SWITCHES = {  # keys that change nothing while the switch of their section is off
    "SOLVER.AMP": ("PRECISION",),
    "SOLVER.CLIP_GRADIENTS": ("CLIP_TYPE", "CLIP_VALUE", "NORM_TYPE"),
    "MODEL_EMA": ("DECAY",),
    "INPUT.CROP": ("SIZE", "TYPE"),
    "TEST.AUG": ("MIN_SIZES", "MAX_SIZE", "FLIP"),
    "TEST.PRECISE_BN": ("NUM_ITER",),
}


def idle_keys(cfg: CfgNode, called: Callable[[str], str] = str) -> Iterator[tuple[str, str]]:
    """Keys without any effect in a config, and what to do; ``called`` gives the user's name for a key."""
    for section, keys in _SWITCHES.items():
        if not get(cfg, f"{section}.ENABLED"):
            yield from ((f"{section}.{key}", f"it needs {called(f'{section}.ENABLED')} True") for key in keys)
    builder = cfg.MODEL.BACKBONE.NAME
    kinds = {family: (family, "mnv2") if family == "mobilenetv2" else (family,) for family in (*FAMILIES, "resnet")}
    theirs = next((family for family, words in kinds.items() if any(f"_{word}_" in f"_{builder}_" for word in words)), None)
    for key in all_keys(cfg) if theirs else ():
        family = key.split(".")[1].lower() if key.startswith("MODEL.") else ""
        if family in FAMILIES and family != theirs:
            yield key, f"the backbone is {builder}: give another one with --backbone"
    if theirs and ("retinanet" not in builder or builder == "build_retinanet_resnet_fpn_backbone"):  # the last is detectron2's
        instead = "only those for RetinaNet have P6 and P7" if "retinanet" not in builder else "build_retinanet_resnet_p6p7_backbone reads it"
        why = f"the backbone is {builder}: {instead}"
        yield from ((f"MODEL.FPN.{key}", why) for key in ("P6_INPUT", "P6_RELU"))


def _values(cfg: CfgNode) -> Iterator[UserError]:
    """Keys with a value that is not allowed, each by itself."""
    own = [family.upper() for family in FAMILIES]
    for name in all_keys(cfg):
        if name.endswith(".NORM"):
            allowed = NORMS if name.split(".")[1] in own else COMMON_NORMS
            if isinstance(get(cfg, name), str) and get(cfg, name) not in allowed:
                yield unknown(name, get(cfg, name), allowed, name)
    for key in KEYS:
        error = key.error(get(cfg, key.name))
        if error:
            yield error


def _conflict(key: str, suggestion: Any, said: str) -> UserError:
    return UserError(f"{key} {said}", "conflict", key, suggestion)


# key of the shorter sides for resizing, key of the limit on the longer side, and detectron2's default of that limit
_SIDES = (
    ("INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN", 1333),
    ("INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST", 1333),
    ("TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE", 4000),
)


def _combinations(cfg: CfgNode) -> Iterator[UserError]:
    """Keys whose values conflict."""
    supernet, parts, images = cfg.MODEL.SHUFFLENETV2.SUPERNET, cfg.SOLVER.ACCUMULATE, cfg.INPUT.CLASSIFICATION
    for key in ("MODEL.COMPILE", "SOLVER.DDP.STATIC_GRAPH"):
        if supernet and get(cfg, key):
            yield _conflict(key, False, "needs a network that never changes: it conflicts with MODEL.SHUFFLENETV2.SUPERNET")
    if cfg.SOLVER.DDP.STATIC_GRAPH and parts > 1:
        yield _conflict("SOLVER.DDP.STATIC_GRAPH", False, f"needs identical iterations: it conflicts with SOLVER.ACCUMULATE {parts}")
    if images.RESIZE < images.SIZE:
        said = f"{images.RESIZE} must be at least SIZE {images.SIZE}, the size of the centre crop"
        yield _conflict("INPUT.CLASSIFICATION.RESIZE", images.SIZE, said)
    sides, crop = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP
    sides = tuple(side for side in (sides if isinstance(sides, (list, tuple)) else [sides]) if type(side) is int)  # others are refused already
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" and sides and (len(sides) != 2 or sides[0] > sides[1]):
        said = f"{sides} must be two sides, the smaller first, if MIN_SIZE_TRAIN_SAMPLING is 'range'"
        yield _conflict("INPUT.MIN_SIZE_TRAIN", (min(sides), max(sides)), said)
    for key, longest, usual in _SIDES:
        shorter = get(cfg, key)
        if get(cfg, longest) < 1 and any(shorter if isinstance(shorter, (list, tuple)) else [shorter]):
            yield _conflict(longest, usual, f"{get(cfg, longest)} must be at least 1: it is the largest side allowed")
    for key, task in (("MODEL.MASK_ON", "masks"), ("MODEL.KEYPOINT_ON", "keypoints")):
        if get(cfg, key) and (tasks := architecture(cfg).tasks) and task not in tasks:
            yield _conflict(key, False, f"True: META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r} learns {', '.join(tasks)} alone")
    if crop.AROUND_OBJECTS and not crop.ENABLED:
        yield _conflict("INPUT.CROP.AROUND_OBJECTS", False, "needs INPUT.CROP.ENABLED: nothing is cropped without")
    relative = crop.TYPE.startswith("relative")
    kinds = (int, float) if relative else (int,)
    if crop.ENABLED and not (len(crop.SIZE) == 2 and all(type(v) in kinds and v > 0 and (v <= 1 or not relative) for v in crop.SIZE)):
        wanted = "fractions of an image's height and width, above 0 and at most 1" if relative else "a height and a width in whole pixels"
        yield _conflict("INPUT.CROP.SIZE", None, f"{crop.SIZE} must be {wanted}, if TYPE is {crop.TYPE!r}")
    channels = 1 if cfg.INPUT.FORMAT == "L" else 3
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        if not all(type(value) in (int, float) and math.isfinite(value) for value in get(cfg, key)):
            yield _conflict(key, None, f"{get(cfg, key)} must be {channels} numbers")
        elif len(get(cfg, key)) != channels:
            said = f"has {len(get(cfg, key))} values, but images in INPUT.FORMAT {cfg.INPUT.FORMAT!r} have {channels} channels"
            yield _conflict(key, None, said)
    unfit = [] if architecture(cfg).augmented else [f"META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE!r}"]
    unfit += ["LOAD_PROPOSALS"] if cfg.MODEL.LOAD_PROPOSALS else []
    if cfg.TEST.AUG.ENABLED and unfit:
        said = f"TEST.AUG supports R-CNNs, RetinaNet and GFL, not MODEL.{unfit[0]}: set TEST.AUG.ENABLED False"
        yield UserError(said, "conflict", "TEST.AUG.ENABLED", False)


def training_findings(
    cfg: CfgNode, processes: int, device: str, name: Callable[[str], str] = str, evaluates: bool = False
) -> Iterator[UserError]:
    """Conflicting settings of training; ``name`` gives the user's name for a key, ``evaluates``: on data that DATASETS.TEST need not name."""
    batch, reference, parts = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE, cfg.SOLVER.ACCUMULATE
    unit = (reference or processes) * parts
    if batch % unit:
        key = name("SOLVER.IMS_PER_BATCH")
        among = f"SOLVER.REFERENCE_WORLD_SIZE {reference}" if reference else f"{counted(processes, 'process')}"
        among += f" times {name('SOLVER.ACCUMULATE')} {parts}" if parts > 1 else ""
        yield UserError(f"{key} {batch} cannot be divided evenly among {among}", "batch", key, max(batch // unit, 1) * unit)
    if cfg.TEST.PATIENCE and not (cfg.TEST.EVAL_PERIOD and cfg.TEST.BEST_METRIC and (evaluates or cfg.DATASETS.TEST)):
        key, *needed = map(name, ("TEST.PATIENCE", "TEST.EVAL_PERIOD", "TEST.BEST_METRIC", "DATASETS.TEST"))
        yield _conflict(key, 0, f"{cfg.TEST.PATIENCE} needs evaluations in training: set {', '.join(needed)}")
    if cfg.SOLVER.AMP.ENABLED and not device.startswith("cuda") and cfg.SOLVER.AMP.PRECISION != "bfloat16":
        key, precision, place = map(name, ("SOLVER.AMP.ENABLED", "SOLVER.AMP.PRECISION", "MODEL.DEVICE"))
        said = f"needs a GPU, but {place} is {device!r}: set it to False, or {precision} to bfloat16"
        yield _conflict(key, False, said)


def _building(cfg: CfgNode, training: bool, on_cpus: bool) -> Iterator[UserError]:
    """Builds the model, so that the builders' own checks run; an error here hides the rest."""
    try:
        with on_meta():
            try:
                model, failed = build_model(cfg), None
            except Exception as error:
                model, failed = None, error
            if architecture(cfg).features:
                backbone = build_backbone(cfg) if failed else model.backbone
                if wrong := list(_features(cfg, backbone.output_shape())):  # their message is the clearest
                    yield from wrong
                    return
            if failed:
                raise failed
            if training:
                build_lr_scheduler(cfg, build_optimizer(cfg, model))
    except UserError as error:
        yield error
        return
    except Exception as error:
        if "meta" in str(error) or not from_libraries(error):
            return  # the user's own code, which cannot run without memory, or whose traceback should be shown
        reason = one_line(error, 1000) if str(error) else traceback.extract_tb(error.__traceback__)[-1].line  # an assertion without a message
        found = UserError(f"the config cannot be built: {type(error).__name__}: {reason}", "build")
        found.__cause__ = error
        yield found
        return
    if training and on_cpus and any(isinstance(m, nn.SyncBatchNorm) for m in model.modules()):
        yield UserError("torch's SyncBN works only on GPUs: for CPU processes use BN or naiveSyncBN", "conflict")


def _features(cfg: CfgNode, features: Iterable[str]) -> Iterator[UserError]:
    for key in architecture(cfg).features or ():
        if not get(cfg, key):
            yield UserError(f"{key} is empty. Allowed: {', '.join(features)}.", "missing-argument", key)
        for name in get(cfg, key):
            if name not in features:
                yield unknown(f"feature in {key}", name, features, key)


def from_libraries(error: Exception) -> bool:
    """Whether the error comes only from installed packages, detectron2 and this project, not from a user's code."""
    paths = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    paths += [os.path.dirname(os.path.abspath(path)) for path in (detectron2.__file__, os.path.dirname(__file__))]
    return all(frame.filename.startswith((*paths, "<")) for frame in traceback.extract_tb(error.__traceback__))


def check_output_dir(path: str, key: str = "OUTPUT_DIR") -> None:
    """Raises UserError if the folder ``path``, the value of ``key``, cannot be written to or created."""
    existing = os.path.abspath(path)
    while not os.path.lexists(existing) and existing != os.path.dirname(existing):  # a drive of Windows may not exist
        existing = os.path.dirname(existing)
    if not os.path.lexists(existing):
        raise UserError(f"{key} {path!r} cannot be created: {existing!r} does not exist", "cannot-write", key)
    if not os.path.isdir(existing):
        raise UserError(f"{key} {path!r} cannot be created: {existing!r} is a file", "cannot-write", key)
    if not os.access(existing, os.W_OK):
        raise UserError(f"{key} {path!r} cannot be written: no permission for {existing!r}", "cannot-write", key)


def check_output_file(path: str, key: str) -> None:
    """Raises UserError if the file ``path``, the value of ``key``, cannot be written."""
    if not path or os.path.isdir(path):
        raise UserError(f"{key} {path!r} is not a file name{': it is a folder' if path else ''}", "cannot-write", key)
    if is_stream(path):
        return
    check_output_dir(os.path.dirname(os.path.abspath(path)), f"the folder of {key}")


def check_device(device: str, key: str = "MODEL.DEVICE", way: str = "") -> None:
    """Raises UserError if torch cannot use ``device``, the value of ``key``; ``way`` sets it to cpu on the command line."""
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise unknown(key, device, ("cuda", "cpu", "mps"), key) from None
    missing = _missing(wanted)
    if missing:
        said = f"{key} is {device!r}, but {missing}. To run on the CPU, add: {way or f'{key} cpu'}"
        raise UserError(said, "device", key, "cpu")


def _missing(device: torch.device) -> str:
    """What keeps torch from using a device, or ""."""
    if device.type == "cuda":  # without initializing a GPU, which would take memory from the run's processes
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return "" if (device.index or 0) < count else f"torch sees {f'{count} GPUs, numbered from 0,' if count else 'no GPU'} here"
    if device.type == "mps" and not torch.backends.mps.is_available():
        return "torch sees no Apple GPU here" if torch.backends.mps.is_built() else "this torch is built without support for Apple GPUs"
    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # each kind of device has its own error
        return f"torch cannot use it here: {one_line(error).partition('. ')[0].rstrip('.!')}"
    return ""
