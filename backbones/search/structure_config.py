"""The config of a training-free search: its keys, and the problem that they state."""

import math
import os
from typing import Any, Callable, NamedTuple

from .. import zoo
from ..documents import read_yaml, reading
from ..errors import UserError, unknown
from ..maedet import parse_structure, read_structure
from ..registry import BUILDERS
from .entropy import STAGE_WEIGHTS, Meter, plain
from .evolution import BUDGETS, Candidate, SearchProblem, Space
from .latency import load_table


class _Key(NamedTuple):
    """A key of the config: its default, what its value must be in words, and whether a value is that."""

    default: Any
    wanted: str
    fits: Callable[[Any], bool]


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _count(default: Any, least: int) -> _Key:
    return _Key(default, f"a whole number, {least} or more", lambda v: type(v) is int and v >= least)


_WIDTH = _Key(None, "a multiple of 8", lambda v: type(v) is int and v > 0 and v % 8 == 0)
_PAIRS = _Key({}, "KEY: VALUE pairs", lambda v: isinstance(v, dict))


def _file(default: str) -> _Key:
    return _Key(default, "a file's name", lambda v: isinstance(v, str))


_KEYS = {
    "image_size": _count(480, 32),  # side of the square images that operations are counted at
    "stage_weights": _Key(  # of the features' entropies, at strides 2 to 32
        list(STAGE_WEIGHTS),
        "five numbers, 0 or more and not all 0",
        lambda v: isinstance(v, list) and len(v) == 5 and all(_number(w) and w >= 0 for w in v) and any(v),
    ),
    "budget": _PAIRS,  # the most of flops, parameters, layers, latency (seconds)
    "latency_table": _file(""),  # of the verb `latency`, for a budget of latency; relative to the config or to where one is
    "start": _Key(None, "a list of blocks, or a structure file", lambda v: v is not None),
    "space": _PAIRS,  # of evolution.Space
    "population": _count(256, 1),
    "candidates": _count(100000, 1),
    "islands": _count(4, 1),  # populations that evolve apart for a round
    "round": _count(256, 1),  # candidates of each
    "detector": _file("COCO-Detection/gfl_MAE_DET_S_FPN_73e.yaml"),  # the config that the result is put into
}
_SPACE = {
    "max_stem": _WIDTH,
    "max_channels": _WIDTH,
    "kernels": _Key(
        None,
        "a list of 1, 3, 5, 7, 9 or 11",
        lambda v: isinstance(v, list) and bool(v) and all(type(k) is int and k in (1, 3, 5, 7, 9, 11) for k in v),
    ),
    "max_expansion": _count(None, 1),
    "min_bottleneck": _Key(None, "a number above 0, at most 1", lambda v: _number(v) and 0 < v <= 1),
    "max_layers": _count(None, 0),
}
_MOST = _Key(None, "a number above 0 (YAML wants a point and a sign, as in 18.8e+9)", lambda v: _number(v) and v > 0)


def _check(values: dict[str, Any], keys: dict[str, _Key], path: str, section: str) -> None:
    for name, value in values.items():
        if name not in keys:
            raise unknown(f"{section} in {path!r}", name, keys)
        if not keys[name].fits(value):
            where = name if section == "key" else f"{section} {name}"
            raise UserError(f"{path!r}: {where} is {value!r}: it must be {keys[name].wanted}")


def load_structure_config(path: str) -> dict[str, Any]:
    """A search's settings over the defaults. Raises UserError for what is unknown or cannot be."""
    path = path if os.path.isfile(path) or not os.path.isfile(_in_zoo(path)) else _in_zoo(path)
    if not os.path.isfile(path):
        raise UserError(f"config {path!r} is not there")
    with reading(f"config {path!r}"):
        own = read_yaml(path)
    if not isinstance(own, dict):
        raise UserError(f"config {path!r} holds no KEY: VALUE pairs")
    config = {**{name: key.default for name, key in _KEYS.items()}, **own}
    _check(config, _KEYS, path, "key")
    _check(config["budget"], dict.fromkeys(BUDGETS, _MOST), path, "budget")
    _check(config["space"], _SPACE, path, "space")
    beside = os.path.dirname(os.path.abspath(path))
    start = config["start"]
    config["start"] = read_structure(_near(start, beside)) if isinstance(start, str) else parse_structure(start, f"{path!r}: start")
    if ("latency" in config["budget"]) != bool(config["latency_table"]):
        raise UserError(f"{path!r}: a budget of latency and a latency_table need each other")
    config["table"] = load_table(_near(config["latency_table"], beside)) if config["latency_table"] else None
    if config["table"] and config["table"].image_size != config["image_size"]:
        raise UserError(f"{path!r}: image_size is {config['image_size']}, but that of the latency table {config['table'].image_size}")
    builder = zoo.get_config(config["detector"]).MODEL.BACKBONE.NAME
    if builder not in BUILDERS or BUILDERS[builder].name != "maedet":
        raise UserError(
            f"{path!r}: detector {config['detector']!r} has {builder!r}, where the network found is to stand: take one with MAE-DET"
        )
    return config


def _in_zoo(path: str) -> str:
    return os.path.join(zoo.config_root(), path.removeprefix("configs" + os.sep))


def _near(path: str, folder: str) -> str:
    beside = os.path.join(folder, path)
    return beside if os.path.isfile(beside) else path


def problem_of(config: dict[str, Any]) -> tuple[SearchProblem, Candidate]:
    """What a config asks for: the problem and its start. Raises UserError for a budget that the start itself is beyond."""
    limits: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in config["space"].items()}
    space = Space(**limits)
    meter = Meter(config["image_size"], tuple(float(w) for w in config["stage_weights"]), config["table"])
    problem, start = SearchProblem(meter, space, dict(config["budget"])), plain(config["start"], "the start")
    for i, block in enumerate(start[1:], 1):
        if not block[3]:
            raise UserError(f"the start: block {i} is a convolution behind the stem, which the search does not know")
    for kernel in space.kernels if meter.table else ():  # that all were measured
        meter.measure((start[0], *((*block[:1], kernel, *block[2:]) for block in start[1:])))
    costs = meter.measure(start)
    for name, most in problem.budget.items():
        if getattr(costs, name) > most:
            raise UserError(f"budget {name} {amount(name, most)} is impossible: the start has {amount(name, getattr(costs, name))} already")
    return problem, start


def amount(name: str, value: float) -> str:
    """A cost with its unit, as it is printed."""
    scale, unit = {"flops": (1e9, " G"), "parameters": (1e6, " M"), "latency": (1e-3, " ms")}.get(name, (1, ""))
    return f"{value / scale:.4g}{unit}"
