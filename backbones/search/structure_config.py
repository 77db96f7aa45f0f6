"""The config of a training-free search: its keys, and the problem they define."""

import contextlib
import math
import os
import re
from typing import Any, Callable, NamedTuple

from tabulate import tabulate

from .. import zoo
from ..documents import read_yaml, reading
from ..errors import UserError, unknown
from ..files import not_there
from ..layers import rounded
from ..maedet import Block, Structure, parse_structure, read_structure
from ..registry import BUILDERS
from .entropy import STAGE_WEIGHTS, STRUCTURES, Meter, plain
from .evolution import Candidate, SearchProblem, Space
from .latency import load_table


class _Key(NamedTuple):
    """A key of the config: its default, the allowed values in words, a check of a value, and its meaning."""

    default: Any
    wanted: str
    fits: Callable[[Any], bool]
    meaning: str = ""


def _number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _count(default: Any, least: int, meaning: str) -> _Key:
    return _Key(default, f"a whole number, {least} or more", lambda v: type(v) is int and v >= least, meaning)


def _pairs(meaning: str) -> _Key:
    return _Key({}, "KEY: VALUE pairs", lambda v: isinstance(v, dict), meaning)


def _width(meaning: str) -> _Key:
    return _Key(None, "a multiple of 8", lambda v: type(v) is int and v > 0 and v % 8 == 0, meaning)


def _file(default: str, meaning: str) -> _Key:
    return _Key(default, "a file's name", lambda v: isinstance(v, str), meaning)


def _most(meaning: str) -> _Key:
    return _Key(None, "a number above 0", lambda v: _number(v) and v > 0, meaning)


_KEYS = {
    "budget": _pairs("the largest costs of a structure; see below"),
    "image_size": _count(480, 32, "side in pixels of the square image for which operations are counted"),
    "start": _Key(
        "",
        "the name of a structure, a structure file, or a list of blocks",
        lambda v: isinstance(v, (str, list)),
        "structure the search starts from: a name such as `MAE-DET-S` or `R-50`, a structure file, or a list of blocks. "
        "By default the paper's, narrowed until it is within the budget",
    ),
    "space": _pairs("the structures to search; see below"),
    "detector": _file("COCO-Detection/gfl_MAE_DET_S_FPN_73e.yaml", "the config to put the result into"),
    "latency_table": _file("", "the file written by `latency`, for a budget of latency; relative to the config or to the working folder"),
    "stage_weights": _Key(
        list(STAGE_WEIGHTS),
        "five numbers, 0 or more and not all 0",
        lambda v: isinstance(v, list) and len(v) == 5 and all(_number(w) and w >= 0 for w in v) and any(v),
        "weights of the entropy of the features at strides 2, 4, 8, 16 and 32",
    ),
    "candidates": _count(100000, 1, "structures to try"),
    "population": _count(256, 1, "structures to keep"),
    "islands": _count(4, 1, "populations that evolve separately during a round, each in its own process if there are enough"),
    "round": _count(256, 1, "candidates per island before all islands share their best"),
}
_BUDGET = {
    "flops": _most("multiply-adds of the network for one image of `image_size`; `5e9` is 5 billion"),
    "parameters": _most("weights of the network"),
    "layers": _most("convolutions of the network; a bottleneck has 3. By default 91, unless `max_layers` is set; short trainings want few"),
    "latency": _most("seconds for one image, by the `latency_table`"),
}
_SPACE = {
    "max_stem": _width("widest stem, in channels"),
    "max_channels": _width("widest block, in channels"),
    "kernels": _Key(
        None,
        "a list of 1, 3, 5, 7, 9 or 11",
        lambda v: isinstance(v, list) and bool(v) and all(type(k) is int and k in (1, 3, 5, 7, 9, 11) for k in v),
        "kernel sizes of the bottlenecks",
    ),
    "max_expansion": _count(None, 1, "largest ratio of a block's width to that of the block before"),
    "min_bottleneck": _Key(
        None, "a number above 0, at most 1", lambda v: _number(v) and 0 < v <= 1, "narrowest bottleneck, as a fraction of its block's width"
    ),
    "max_layers": _count(None, 0, "most bottlenecks of a block; 0: 3 in the first, in the others an equal share of the budget's layers"),
}
# the paper's, for the budget of ResNet-50
_START, _LAYERS = "search/maedet_r50_budget.yaml", 91


def keys() -> str:
    """All keys as tables, for the docs."""
    space = Space()
    defaults = {name: list(value) if isinstance(value := getattr(space, name), tuple) else value for name in _SPACE}
    parts = []
    for head, rows, of in (("key", _KEYS, {}), ("key of `budget`", _BUDGET, {}), ("key of `space`", _SPACE, defaults)):
        table = [(f"`{name}`", _shown(of.get(name, row.default)), row.meaning) for name, row in rows.items()]
        parts.append(tabulate(table, (head, "default", "meaning"), "pipe", disable_numparse=True))
    return "\n\n".join(parts)


def _shown(value: Any) -> str:
    return f"`{value}`" if value not in ("", {}, None) else ""


def _check(values: dict[str, Any], keys: dict[str, _Key], path: str, section: str) -> None:
    for name, value in values.items():
        if name not in keys:
            raise unknown(f"{section} in {path!r}", name, keys)
        if not keys[name].fits(value):
            where = name if section == "key" else f"{section} {name}"
            raise UserError(f"{path!r}: {where} is {value!r}: it must be {keys[name].wanted}")


def load_structure_config(path: str) -> dict[str, Any]:
    """Reads a search's settings over the defaults. Raises UserError for unknown keys and invalid values."""
    path = path if os.path.isfile(path) or not os.path.isfile(_in_zoo(path)) else _in_zoo(path)
    if not os.path.isfile(path):
        raise not_there("config", path)
    with reading(f"config {path!r}"):
        own = read_yaml(path)
    if not isinstance(own, dict):
        raise UserError(f"config {path!r} holds no KEY: VALUE pairs")
    config = {**{name: key.default for name, key in _KEYS.items()}, **own}
    _check(config, _KEYS, path, "key")
    config["budget"] = {str(name).lower(): _as_number(str(name).lower(), value) for name, value in config["budget"].items()}
    _check(config["budget"], _BUDGET, path, "budget")
    if not config["budget"]:
        raise UserError(f"{path!r}: budget is missing: limit at least one of {', '.join(_BUDGET)}, such as `budget: {{flops: 5e9}}`")
    _check(config["space"], _SPACE, path, "space")
    beside = os.path.dirname(os.path.abspath(path))
    if config["start"]:
        config["start"] = _start_of(config["start"], beside, path)
    if ("latency" in config["budget"]) != bool(config["latency_table"]):
        raise UserError(f"{path!r}: a budget of latency and a latency_table need each other")
    config["table"] = load_table(_near(config["latency_table"], beside)) if config["latency_table"] else None
    if config["table"] and config["table"].image_size != config["image_size"]:
        raise UserError(f"{path!r}: image_size is {config['image_size']}, but the latency table has {config['table'].image_size}")
    config["detector"] = _near(config["detector"], beside)
    builder = zoo.get_config(config["detector"]).MODEL.BACKBONE.NAME
    if builder not in BUILDERS or BUILDERS[builder].name != "maedet":
        raise UserError(
            f"{path!r}: detector {config['detector']!r} has {builder!r}: use a config with MAE-DET, which the found network replaces"
        )
    if "layers" not in config["budget"] and not config["space"].get("max_layers"):
        config["budget"]["layers"] = _LAYERS
        print(f"note: the budget does not limit layers, so the deepest network would score best: set to {_LAYERS}, the paper's", flush=True)
    if (part := with_start(config).get("narrowed", 1)) > 1:
        say_narrowed(part)
    return config


def _as_number(cost: str, value: Any) -> Any:
    """Accepts 1e9 as a number, for which YAML 1.1 requires 1.0e+9; also 1 G, 10M and 30 ms, as `amount` writes them."""
    units = {"ms": 1e-3, "s": 1.0} if cost == "latency" else {"k": 1e3, "m": 1e6, "g": 1e9}
    match = re.fullmatch(r"(.*?)\s*([a-z]*)", value.strip().lower()) if isinstance(value, str) else None
    with contextlib.suppress(ValueError):
        if match and match[2] in units:
            return float(match[1]) * units[match[2]]
        return float(value) if match else value
    return value


def _start_of(start: str | list, beside: str, path: str) -> Structure:
    if isinstance(start, list):
        return parse_structure(start, f"{path!r}: start")
    if start in STRUCTURES:
        return STRUCTURES[start]
    file = _near(start, beside)
    if not os.path.isfile(file):
        raise unknown(f"start in {path!r}, neither a structure file nor a name", start, STRUCTURES)
    return read_structure(file)


def _in_zoo(path: str) -> str:
    return os.path.join(zoo.config_root(), path.removeprefix("configs" + os.sep))


def _near(path: str, folder: str) -> str:
    beside = os.path.join(folder, path)
    return beside if os.path.isfile(beside) else path


def problem_of(config: dict[str, Any]) -> tuple[SearchProblem, Candidate]:
    """The problem that a config defines, and its start. Raises UserError if the start exceeds the budget."""
    problem, start = _problem(config), plain(with_start(config)["start"], "the start")
    meter = problem.meter
    for i, block in enumerate(start[1:], 1):
        if not block[3]:
            raise UserError(f"the start: block {i} is a convolution after the stem, which the search does not know")
    for kernel in problem.space.kernels if meter.table else ():  # check that all were measured
        meter.measure((start[0], *((*block[:1], kernel, *block[2:]) for block in start[1:])))
    costs = meter.measure(start)
    for name, most in problem.budget.items():
        if getattr(costs, name) > most:
            has = amount(name, getattr(costs, name))
            raise UserError(f"budget {name} {amount(name, most)} is less than the {has} of the start: use a smaller start or a larger budget")
    return problem, start


def _problem(config: dict[str, Any]) -> SearchProblem:
    limits: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in config["space"].items()}
    meter = Meter(config["image_size"], tuple(float(w) for w in config["stage_weights"]), config["table"])
    return SearchProblem(meter, Space(**limits), dict(config["budget"]))


def with_start(config: dict[str, Any]) -> dict[str, Any]:
    """``config`` with a start: if it names none, the paper's in its space, narrowed as little as the budget requires, or the narrowest.

    "narrowed" is then the factor.
    """
    if config["start"]:
        return config
    problem = _problem(config)
    blocks = parse_structure(read_yaml(_in_zoo(_START))["start"])
    for part in (1, 2, 4, 8):
        start = tuple(b._replace(channels=rounded(b.channels / part), bottleneck=b.bottleneck and rounded(b.bottleneck / part)) for b in blocks)
        inside = problem.admitted(plain(start))
        if problem.fits(problem.meter.measure(inside)):
            break
    return {**config, "start": tuple(Block(*block) for block in inside), "narrowed": part}


def say_narrowed(part: int) -> None:
    print(f"note: the search starts from the paper's start at 1/{part} of its widths, because the budget allows no more", flush=True)


def amount(name: str, value: float) -> str:
    """A cost with its unit, for printing."""
    scale, unit = {"flops": (1e9, " G"), "parameters": (1e6, " M"), "latency": (1e-3, " ms")}.get(name, (1, ""))
    return f"{value / scale:.4g}{unit}"
