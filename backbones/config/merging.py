"""Merges files, overrides and flags into a config; errors in them are reported in one line."""

import argparse
import os
import re
from typing import Any, Collection, Iterator

import yaml
from detectron2.config import CfgNode
from detectron2.config.compat import guess_version

from ..errors import UserError, choices, near, one_line
from ..files import not_there
from .keys import all_keys, flat, get, put

# keys that name a file, which lies beside the config or where the run starts
_FILES = ("MODEL.MAEDET.STRUCTURE", "MODEL.SHUFFLENETV2.SUBNET")
# what a value of each type is, in words
KINDS = {str: "text", int: "a whole number", float: "a number", bool: "True or False", tuple: "a list", list: "a list"}
# how images are normalized; if a config sets one of them, the weights' own values do not apply, see INPUT.NORMALIZATION
IMAGES = ("INPUT.FORMAT", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")
_WHOSE = "INPUT.NORMALIZATION"
_WEIGHTS = "MODEL.WEIGHTS"
_Loader: Any = getattr(yaml, "CUnsafeLoader", yaml.UnsafeLoader)  # libyaml's is ten times as fast
# what detectron2, yacs and Python raise for values that cannot be merged
_OF_MERGING = (KeyError, ValueError, AssertionError, AttributeError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError)


def merge_file(cfg: CfgNode, path: str) -> None:
    """``cfg.merge_from_file``. Raises UserError for a file that does not exist or is invalid.

    As in detectron2, a config may hold Python expressions (its RetinaNet's does): read configs from strangers before you use them.
    """
    if not os.path.isfile(path):
        raise not_there("config file", path, "--config-file")
    if path.lower().endswith((".pth", ".pkl", ".safetensors", ".onnx", ".ts")):
        said = f"--config-file {path!r} is a file of weights: set MODEL.WEIGHTS to it, and --config-file to a config"
        raise UserError(said, "syntax", "--config-file")
    unset = _unset(cfg)
    try:
        _check_syntax(path)
        content = CfgNode(cfg.load_yaml_with_base(path, allow_unsafe=True))
        current = (content.get("VERSION", None) or guess_version(content, path)) == cfg.VERSION
        if current:
            known = set(all_keys(cfg))
            for key in all_keys(content):
                _check_key(cfg, key, known, path)
        try:
            if current:
                cfg.merge_from_other_cfg(content)  # not from the file: parsing it takes most of the time
            else:
                cfg.merge_from_file(path, allow_unsafe=True)  # detectron2 upgrades it
        except ValueError:  # one by one, to find the culprit
            for key, value in flat(content).items():
                if key in all_keys(cfg):
                    _check_point(cfg, key, value, path)
                    _merge(cfg.clone(), key, value, f"config file {path!r}: ")
            raise
        _check_values(cfg, unset, f"config file {path!r}: ")
        for key in _FILES:
            _find_beside(cfg, path, key)
        put(cfg, _WHOSE, _normalization(path) or get(cfg, _WHOSE))
    except UserError:
        raise
    except RecursionError:
        said = f"config file {path!r}: it is nested too deeply, or its _BASE_ refers back to itself"
        raise UserError(said, "syntax", "--config-file") from None
    except Exception as error:  # a Python expression in it may raise anything
        raise UserError(f"config file {path!r}: {one_line(error, 1000)}", "syntax", "--config-file") from error


def _check_syntax(path: str) -> None:
    """Raises UserError for keys in a config, or in its bases, that YAML allows, but that detectron2 would drop or stumble over."""
    with open(path, encoding="utf-8") as f:
        events = yaml.parse(f, _Loader)
        begun = next((event for event in events if isinstance(event, yaml.NodeEvent)), None)
        if not isinstance(begun, yaml.MappingStartEvent):
            raise UserError(f"config file {path!r} holds no KEY: VALUE pairs", "syntax", "--config-file")
        _check_repeated(begun, events, "", path)
    content = _content(path)
    for key in _other_keys(content):
        said = f"config file {path!r}: the key {key!r} is not text to YAML, but {type(key).__name__}: write a config key, such as SOLVER"
        raise UserError(said, "syntax", str(key))
    names = content.get("_BASE_", [])
    if not all(isinstance(name, str) for name in (names if isinstance(names, list) else [names])):
        raise UserError(f"config file {path!r}: _BASE_ is {names!r}: it must be a path, or a list of paths", "syntax", "_BASE_")
    for base in bases(path):
        if os.path.isfile(base):
            _check_syntax(base)


def _check_repeated(event: Any, events: Iterator[Any], name: str, path: str) -> None:
    """Reads the node ``name`` that an event begins. Raises UserError for a key that a section has twice: the later would replace it."""
    if isinstance(event, yaml.MappingStartEvent):
        seen: dict[str, int] = {}
        while not isinstance(key := next(events), yaml.MappingEndEvent):
            inner, line = f"{name}.{getattr(key, 'value', '')}".lstrip("."), key.start_mark.line + 1
            if inner in seen:
                said = f"config file {path!r} has {inner} twice, on lines {seen[inner]} and {line}, and only one would count: join them"
                raise UserError(said, "syntax", inner)
            if isinstance(key, yaml.ScalarEvent) and key.value != "<<":  # which merges, several times if need be
                seen[inner] = line
            _check_repeated(key, events, "", path)
            _check_repeated(next(events), events, inner, path)
    elif isinstance(event, yaml.SequenceStartEvent):
        while not isinstance(item := next(events), yaml.SequenceEndEvent):
            _check_repeated(item, events, name, path)


def _other_keys(section: Any) -> Iterator[Any]:
    """The keys that are no text, of a section and of those in it."""
    for key, value in section.items() if isinstance(section, dict) else ():
        yield from (() if isinstance(key, str) else (key,))
        yield from _other_keys(value)


def _check_values(cfg: CfgNode, unset: Collection[str], where: str) -> None:
    """YAML's null, and nothing behind the colon, are values to detectron2, which would fail anywhere. Raises UserError, naming the key.

    ``unset``: keys that had no value before.
    """
    for key in sorted(_unset(cfg) - {*unset}):
        if key != _WEIGHTS:
            raise UserError(f"{where}{key} has no value: give it one, or leave it out", "value", key)
        put(cfg, key, "")  # no weights


def _unset(cfg: CfgNode) -> set[str]:
    return {key for key in all_keys(cfg) if get(cfg, key) is None}


def _check_point(cfg: CfgNode, key: str, value: Any, path: str) -> None:
    """detectron2 rejects 1 for 1.0. Raises UserError with the accepted form."""
    if type(value) is int and isinstance(get(cfg, key), float):
        raise UserError(f"config file {path!r}: {key} is {value}: write it as a decimal, {float(value)}", "syntax", key, float(value))


def _find_beside(cfg: CfgNode, path: str, key: str) -> None:
    """Resolves a file that a config names relatively, from the folder of that config, wherever it is used from."""
    name = get(cfg, key) if key.split(".")[1] in cfg.MODEL else ""
    folder = _folder_of(path, key) if isinstance(name, str) and name and not os.path.isabs(name) else None
    if folder and os.path.isfile(os.path.join(folder, name)):
        put(cfg, key, os.path.join(folder, name))


def _normalization(path: str) -> str:
    """The INPUT.NORMALIZATION that a config or the first of its bases sets; "" if none does."""
    content = flat(_content(path))
    if _WHOSE in content or any(key in content for key in IMAGES):
        return str(content.get(_WHOSE, "config"))
    return next(filter(None, (_normalization(base) for base in bases(path) if os.path.isfile(base))), "")


def _folder_of(path: str, key: str) -> str | None:
    """The folder of the config, ``path`` or the nearest it is based on, that sets a key."""
    if flat(_content(path)).get(key):
        return os.path.dirname(os.path.abspath(path))
    return next(filter(None, (_folder_of(base, key) for base in bases(path) if os.path.isfile(base))), None)


def bases(path: str) -> list[str]:
    """The paths of the configs that a config names as its ``_BASE_``, in order of precedence."""
    names = _content(path).get("_BASE_") or []
    return [os.path.join(os.path.dirname(path), os.path.expanduser(name)) for name in reversed([names] if isinstance(names, str) else names)]


def _content(path: str) -> dict[str, Any]:
    with open(path, encoding="utf-8") as f:
        return yaml.load(f, _Loader) or {}  # unsafe, as when it is merged


def merge_overrides(cfg: CfgNode, opts: list[str]) -> None:
    """``cfg.merge_from_list`` of command-line overrides. Raises UserError for invalid ones."""
    flag = next((item for item in opts[::2] if item.startswith("--")), None)
    if flag:
        raise UserError(f"{flag} follows an override: flags must come before all KEY VALUE pairs", "syntax", flag)
    python = next((item for item in opts[::2] if re.match(r"[a-z][\w.]*=", item)), None)
    if python:
        raise UserError(f"{python!r} is an override for Python configs: YAML configs take KEY VALUE", "syntax", python)
    joined = next((item for item in opts if item.partition("=")[0] in all_keys(cfg) and "=" in item), None)
    if joined:
        raise UserError(f"{joined!r}: overrides of YAML configs use a space, as in {joined.replace('=', ' ', 1)}", "syntax", joined)
    if len(opts) % 2:
        raise UserError(f"overrides must be KEY VALUE pairs, but a key or value is missing: {' '.join(opts)}", "syntax", opts[-1])
    known, unset = set(all_keys(cfg)), _unset(cfg)
    for key, value in zip(opts[::2], opts[1::2]):
        _check_key(cfg, key, known, "the command line")
        if key in known and isinstance(get(cfg, key), float) and re.fullmatch(r"[-+]?\d+", value):
            value += ".0"  # accept 1 for 1.0, which detectron2 rejects
        _merge(cfg, key, value)
    _check_values(cfg, unset, "")
    if any(key in opts[::2] for key in IMAGES) and _WHOSE not in opts[::2]:
        put(cfg, _WHOSE, "config")


def _merge(cfg: CfgNode, key: str, value: Any, where: str = "") -> None:
    """``cfg.merge_from_list`` of one key. Raises UserError for a value of the wrong type."""
    try:
        cfg.merge_from_list([key, value])
    except ValueError as error:  # yacs compares types
        has = get(cfg, key)
        raise UserError(
            f"{where}{key} is {value!r}: it must be {KINDS.get(type(has), 'KEY: VALUE pairs')}, such as {has!r}", "syntax", key
        ) from error
    except _OF_MERGING as error:
        raise UserError(f"{where}{key} {value}: {one_line(error, 1000)}", "syntax", key) from error


def _check_key(cfg: CfgNode, key: str, known: Collection[str], where: str) -> None:
    # keys that detectron2 renamed or removed are its own to deal with
    if key in known or cfg.key_is_renamed(key) or cfg.key_is_deprecated(key):
        return
    own = next((name for name in sorted(known) if name.startswith(f"{key}.")), None)
    if own:
        raise UserError(f"{key!r} in {where} is a group of keys: give it keys of its own, such as {own}, or leave it out", "value", key)
    close = near(key, known)
    level = (close[0] if close else key).rpartition(".")[0]
    siblings = sorted(k for k in known if k.rpartition(".")[0] == level)
    said = choices(siblings, close, "docs/reference/config.md, and defaults.py of detectron2")
    raise UserError(f"unknown config key: {key!r} in {where}. {said}", "unknown-key", key, close[0] if close else None)


def make_files_absolute(cfg: CfgNode) -> None:
    """Makes paths of structure and subnet files absolute, so that a run's config.yaml works from any folder."""
    for key in _FILES:
        if os.path.isfile(get(cfg, key)):
            put(cfg, key, os.path.abspath(get(cfg, key)))


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags for own data of an argparse parser: ``--train``, ``--train-images``, ``--val``, ``--val-images`` and ``--val-split``."""
    group = parser.add_argument_group("own data instead of the config's; the number and names of classes follow from it")
    for split, what in (("train", "to train on"), ("val", "to evaluate on")):
        text = f"annotations {what}: a COCO file or folder, a YOLO data.yaml, or a folder of YOLO's, Pascal VOC's or labelme's files"
        group.add_argument(f"--{split}", f"--{split}-json", dest=f"{split}_json", default="", metavar="PATH", help=text)
        group.add_argument(f"--{split}-images", default="", metavar="DIR", help="the folder of their images (default: that of the annotations)")
    group.add_argument(
        "--val-split", type=float, default=0, metavar="PART", help="hold out this fraction of the training data, such as 0.2, for evaluation"
    )


def apply_data_arguments(cfg: CfgNode, args: argparse.Namespace, training: bool = True) -> bool:
    """Puts the data of `add_data_arguments` into ``cfg``; returns whether there are any. Call it before overrides, which take precedence.

    Raises UserError for flags that need another one.
    """
    paths = {split: (getattr(args, f"{split}_json"), getattr(args, f"{split}_images")) for split in ("train", "val")}
    for split, (file, folder) in paths.items():
        if folder and not file:
            raise UserError(f"--{split}-images is given without --{split}", "missing-argument", f"--{split}")
        if file and not os.path.exists(file):
            raise not_there(f"--{split}", file, f"--{split}")
    part = getattr(args, "val_split", 0)
    if part and (not paths["train"][0] or paths["val"][0]):
        raise UserError("--val-split needs --train, and excludes --val", "conflict", "--val-split")
    if part and not 0 < part < 1:
        raise UserError(f"--val-split {part:g} must be a fraction of the images, between 0 and 1", "value", "--val-split")
    if not any(file for file, _ in paths.values()):
        return False
    if training and not paths["train"][0]:
        said = "--val is given without --train: to evaluate only, add --eval-only; to train, add --train"
        raise UserError(said, "missing-argument", "--train")
    if not training and not (paths["val"][0] or part):
        raise UserError("--train is given without --val, which --eval-only needs", "missing-argument", "--val")
    from ..data.formats import splits

    given: dict[str, tuple[str, str]] = {}
    for split, (file, folder) in paths.items():
        found = splits(file) if file and not folder else {split: (file, folder)}
        if file and part and "val" in found:
            said = f"--val-split: {file!r} already has a validation split, {found['val'][1]!r}: leave --val-split out"
            raise UserError(said, "conflict", "--val-split")
        for own in ("train", "val"):
            # a YOLO data.yaml or a folder of splits has both parts
            place = found.get(own) or (found.get("") if own == split else None)
            if file and place and (own == split or split == "train" and not part and f"own_{own}" not in given and not paths[own][0]):
                given[f"own_{own}"] = os.path.abspath(place[0]), os.path.abspath(place[1])
        if file and f"own_{split}" not in given:
            flag = f"--{split}"
            parts = ", ".join(f"{flag} {folder!r} ({name})" for name, (_, folder) in found.items())
            raise UserError(f"{flag} {file!r} has no split {split!r}; it has: {parts}", "data", flag)
    cfg.DATASETS.REGISTER = [
        *(e for e in cfg.DATASETS.REGISTER if not e or e[0] not in given),
        *([name, *where] for name, where in given.items()),
    ]
    if "own_train" in given:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("own_train",), ()
        cfg.DATASETS.CLASSES, cfg.DATASETS.KEYPOINTS, cfg.DATASETS.KEYPOINT_FLIPS = [], [], []
        cfg.DATASETS.HOLD_OUT = [["own_train", part]] if part else []
    if "own_val" in given:
        cfg.DATASETS.TEST = ("own_val",)
    if part:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("own_train_kept",), ("own_train_held_out",)
    cfg.DATASETS.PROPOSAL_FILES_TRAIN, cfg.DATASETS.PROPOSAL_FILES_TEST = (), ()
    return True


def first_difference(one: Collection[Any], other: Collection[Any]) -> tuple[Any, Any]:
    """The first two entries that differ at the same position; None stands for the end of the shorter list."""
    return next((a, b) for a, b in zip([*one, None], [*other, None]) if a != b)
