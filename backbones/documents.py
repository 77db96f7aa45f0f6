"""Reads untrusted JSON and YAML without running out of time or memory."""

import codecs
import contextlib
import json
import os
from typing import Any, Iterator

import msgspec
import yaml

from .errors import UserError, one_line


def read_json(path: str) -> Any:
    """A JSON file's content, in UTF-8 or, with a byte-order mark, in UTF-16. NaN and Infinity are accepted. Raises ValueError."""
    try:
        content = _content(path)
        if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            content = content.decode("utf-16").encode()
        content = content.removeprefix(codecs.BOM_UTF8)
        try:
            return msgspec.json.decode(content)  # several times as fast as the standard library, and stricter
        except (msgspec.MsgspecError, RecursionError):
            return json.loads(content.decode("utf-8"), parse_int=_whole)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 text (byte {error.start} is {error.object[error.start]:#x}): save it as UTF-8") from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_yaml(path: str, most: int = 1 << 18) -> Any:
    """A YAML file's content. Raises ValueError for anything else, Python objects, more than 100,000 values, and more than ``most`` bytes."""
    try:
        return yaml.load(_content(path, most).decode("utf-8-sig"), _Plain)
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(one_line(error, 1000)) from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:  # a value that is not of its tag, such as !!bool abc
        raise ValueError(f"it has a value of another type than its tag says: {error}") from error


@contextlib.contextmanager
def reading(what: str) -> Iterator[None]:
    """Turns errors in content that the reader does not expect into a UserError, "``what``: ..."."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError) as error:
        raise UserError(f"{what}: {error}", "bad-file") from error


def _content(path: str, most: float = float("inf")) -> bytes:
    if not os.path.isfile(path):  # a device never ends, and a pipe may never begin
        raise ValueError("it is not a file")
    try:
        if os.path.getsize(path) > most:
            raise ValueError(f"it has {os.path.getsize(path)} bytes, more than {most}")
        with open(path, "rb") as f:
            return f.read()
    except OSError as error:
        raise ValueError(error.strerror) from error


def _whole(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) >= 1 << 63:
        raise ValueError(f"the number {digits[:20]} of {len(digits)} digits is too large")
    return int(digits)


class _Plain(yaml.SafeLoader):
    """Plain values: no numbers beyond 64 bits, and no aliases by which a few lines expand beyond any memory."""

    def __init__(self, stream):
        super().__init__(stream)
        self.sizes = {}  # number of values of each node, including those that aliases repeat

    def compose_node(self, parent, index):
        if self.flow_level > 100:
            raise ValueError("it is nested more than 100 times")
        repeated = self.check_event(yaml.AliasEvent)
        node = super().compose_node(parent, index)
        if repeated and node not in self.sizes:
            raise ValueError("an alias (*) repeats something that contains it")
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in node.value for part in pair]
        else:
            parts = node.value if isinstance(node, yaml.SequenceNode) else []
        self.sizes[node] = 1 + sum(self.sizes[part] for part in parts)
        if self.sizes[node] > 100_000:
            raise ValueError("its aliases (*) repeat too much")
        return node

    def construct_yaml_int(self, node) -> int:
        return _whole(str(super().construct_yaml_int(node)))


_Plain.add_constructor("tag:yaml.org,2002:int", _Plain.construct_yaml_int)
