"""Configs and released checkpoints by name, like ``detectron2.model_zoo``, for our configs and detectron2's own."""

import functools
import hashlib
import json
import os
from typing import Any, Iterable

import detectron2
import torch
from detectron2.config import CfgNode, LazyConfig
from detectron2.modeling import build_model
from omegaconf import DictConfig

from ..config import defaults, flat, merge_file, merge_overrides, put
from ..errors import UserError, unknown
from ..files import nearest
from . import weights

_ENDINGS = (".yaml", ".py")
_HERE = os.path.dirname(os.path.abspath(__file__))


def config_root() -> str:
    """The folder of our configs: beside the package in a checkout, inside it once installed."""
    package = os.path.dirname(_HERE)
    root = _root_of("Base-RCNN-VoVNet-FPN.yaml", os.path.dirname(package), package)
    if root is None:
        raise UserError(f"the project's configs are neither in {package!r} nor next to it: reinstall the project", "missing-file")
    return root


def _detectron2_root() -> str | None:
    package = os.path.dirname(detectron2.__file__)  # not by detectron2.model_zoo, whose import needs pkg_resources
    return _root_of("Base-RCNN-FPN.yaml", os.path.join(package, "model_zoo"), os.path.dirname(package))


def _root_of(base: str, *folders: str) -> str | None:
    roots = (os.path.join(folder, "configs") for folder in folders)
    return next((root for root in roots if os.path.isfile(os.path.join(root, base))), None)


@functools.cache
def _names(root: str | None) -> list[str]:
    walk = os.walk(root) if root else ()
    return sorted(os.path.relpath(os.path.join(folder, f), root) for folder, _, files in walk for f in files if f.endswith(_ENDINGS))


def list_configs(python: bool = False) -> list[str]:
    """The names of our configs, such as ``COCO-Detection/faster_rcnn_V_39_FPN_3x.yaml``, ``python`` ones too; without bases and searches'."""
    endings = _ENDINGS if python else ".yaml"
    names = [name.split(os.sep) for name in _names(config_root()) if name.endswith(endings)]
    return [os.sep.join(name) for name in names if name[0] not in ("bases", "search") and not name[-1].startswith("Base-")]


def list_detectron2_configs() -> list[str]:
    """The names of detectron2's zoo configs, YAML and Python, its bases too, but not the parts that Python configs are made of."""
    return [name for name in _names(_detectron2_root()) if not name.startswith("common" + os.sep)]


def get_config_file(name: str, others: Iterable[str] = ()) -> str:
    """The path of a config: ``name`` is a path, or the name of one of our or detectron2's zoo configs.

    Zoo configs are named relative to their root (``COCO-Detection/retinanet_R_50_FPN_1x.yaml``), with or without ``configs/`` before and
    ``.yaml`` behind; also by file name alone, which means COCO's config if several data sets have one. Python configs keep their ``.py``.
    Raises UserError if there is none; it may suggest one of ``others``, other valid names.
    """
    if os.path.isfile(name):
        return os.path.abspath(name)
    wanted = os.path.normpath(name).removeprefix("configs" + os.sep)
    wanted += "" if wanted.endswith(_ENDINGS) else ".yaml"
    roots: tuple[Any, ...] = (config_root(), _detectron2_root())
    for root in roots:
        if wanted in _names(root):
            return os.path.join(root, wanted)
    for root in roots:
        flat = [n for n in _names(root) if os.path.basename(n) == wanted]
        coco = [n for n in flat if n.startswith("COCO-")]  # one name for several data sets means COCO's
        for found in (flat, coco):
            if len(found) == 1:
                return os.path.join(root, found[0])
        if flat:
            raise UserError(f"config {name!r} is ambiguous: {', '.join(flat)}", "unknown-name", "--config-file", flat[0])
    if os.path.isdir(name):
        raise UserError(f"config {name!r} is a folder: name a file in it", "missing-file", "--config-file")
    folder = os.path.dirname(name)
    if name.startswith((".", "~", os.sep)) or folder and os.path.isdir(folder):  # a path, not a name
        close = nearest(name, _ENDINGS)
        hint = f" Did you mean {close!r}?" if close else ""
        where = f", and neither does its folder {folder!r}" if folder and not os.path.isdir(folder) else ""
        raise UserError(f"config {name!r} does not exist{where}.{hint}", "missing-file", "--config-file", os.path.basename(close) or None)
    ours, theirs = map(_names, roots)
    here = sorted(file for file in os.listdir() if file.endswith(_ENDINGS)) if name.endswith((*_ENDINGS, ".yml")) else []
    names = [*here, *others, *ours, *theirs, *sorted(set(map(os.path.basename, ours)))]
    raise unknown("config (neither a file nor a name in the zoos)", name, names, "--config-file", listed="backbones zoo list")


def get_config(name: str, trained: bool = False) -> CfgNode:
    """The config of that name merged into all defaults; ``trained`` puts the released detector into ``MODEL.WEIGHTS``."""
    if get_config_file(name).endswith(".py"):
        raise UserError(f"{name!r} is a Python config: use get_lazy_config", "unsupported")
    cfg = defaults()
    merge_file(cfg, get_config_file(name))
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get_lazy_config(name: str) -> DictConfig:
    """The Python config of that name, of ours or detectron2's: ``model``, ``dataloader``, ``optimizer``, ``lr_multiplier``, ``train``."""
    path = get_config_file(name)
    if not path.endswith(".py"):
        raise UserError(f"{name!r} is not a Python config: use get_config", "unsupported")
    return LazyConfig.load(path)


def digest(name: str) -> str:
    """Identifies what the YAML config of that name and its bases say, except where a run goes; in 12 hexadecimal digits."""
    content = flat(CfgNode.load_yaml_with_base(get_config_file(name), allow_unsafe=True))
    kept = {key: value for key, value in content.items() if key != "OUTPUT_DIR"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:12]


def published(name: str) -> dict[str, Any]:
    """What is published about a config, ours or detectron2's; empty if nothing is.

    ``published_ap`` by kind, ``source`` and what is known ``about`` it, and where there is one the ``checkpoint``'s address, with the first
    digits of its ``sha256`` where its name carries them. ``about`` names the ``converter`` that reads its files, if they need one.
    """
    path = get_config_file(name)
    relative = [os.path.relpath(path, root) for root in (config_root(), _detectron2_root()) if root]
    flat = os.path.basename(path)  # of configs/reproduce, whose files repeat the names of the rows
    same = [config for config in weights.models() if relative[0] == os.path.join("reproduce", flat) and os.path.basename(config) == flat]
    return next((weights.models()[name] for name in (*relative, *same) if name in weights.models()), {})


def get_checkpoint_url(name: str) -> str:
    """The address that loads the detector released for that config: its file's, ``backbones://CONFIG`` for one that needs converting.

    Raises UserError for a config without a release.
    """
    row = published(name)
    if not row.get("checkpoint"):
        names = [config for config, row in weights.models().items() if row.get("checkpoint")]
        raise unknown("released model", name, names, code="missing-weights", listed="backbones zoo list")
    return f"{weights.PREFIX}{os.path.splitext(row['config'])[0]}" if "converter" in row["about"] else row["checkpoint"]


def get(name: str, trained: bool = False, device: str | None = None):
    """The model of that config, with the weights its config (or ``trained``) names, in training mode.

    Every weight of a ``trained`` model must be in its file, and all of the backbone's in any other (see `checkpoint.GatedCheckpointer`).

    Args:
        name: of `list_configs` or `list_detectron2_configs`, or a path.
        trained: take the detector that was released for the config.
        device: as torch names it; by default a GPU where there is one.

    Raises UserError for an unknown name, and for weights that cannot be downloaded or do not fit.
    """
    from ..checkpoint import GatedCheckpointer

    cfg = get_config(name, trained)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if cfg.MODEL.WEIGHTS and cfg.INPUT.NORMALIZATION == "weights":
        cfg.MODEL.WEIGHTS, images, overrides = weights.follow(cfg.MODEL.WEIGHTS)
        for key, value in weights.settings(images).items():
            put(cfg, key, value)
        merge_overrides(cfg, overrides)
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        GatedCheckpointer(model, require="all" if trained else "backbone").load(cfg.MODEL.WEIGHTS)
    return model
