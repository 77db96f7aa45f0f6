"""Writes a config as one YAML file that needs no other."""

from typing import Any, Callable, Iterator, Mapping

import yaml
from detectron2.config import CfgNode

from .keys import defaults, flat


def written(cfg: CfgNode, head: str, reasons: Mapping[str, str], reason: Callable[[str], str] = lambda key: "") -> str:
    """``head`` as comments, then every key with one of the ``reasons`` and every other that differs from the defaults, with its ``reason``."""
    usual = flat(defaults())
    tree: dict[str, Any] = {}
    for key, value in flat(cfg).items():
        if key in reasons or usual.get(key) != value:
            *path, leaf = key.split(".")
            node = tree
            for part in path:
                node = node.setdefault(part, {})
            node[leaf] = (value, reasons[key] if key in reasons else reason(key))
    tree["VERSION"] = (usual["VERSION"], "of the config's format")
    return "\n".join([*(f"# {line}".rstrip() for line in head.splitlines()), *_lines(tree, "")]) + "\n"


def _lines(node: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, value in node.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from _lines(value, indent + "  ")
        else:
            why = " ".join(value[1].split())
            yield f"{indent}{key}: {_scalar(value[0])}" + (f"  # {why}" if why else "")


def _scalar(value: Any) -> str:
    text = repr(value) if isinstance(value, tuple) else value  # detectron2 evaluates texts
    return yaml.safe_dump(text, default_flow_style=True, width=10**6).strip().removesuffix("\n...").strip()
