"""Paths in DetNAS's search space, one choice for each block: drawn at random, checked, and read from files.

Every block is one of four choices: a depthwise kernel of 3, 5 or 7, or an Xception-like chain of three. With several branch widths a space has
these four for each width: choice i + 4 k is choice i with the k-th width.
"""

import ast
import os
import random
import re
from typing import Any, Sequence

from .documents import read_yaml
from .errors import UserError, unknown
from .files import not_there

CHOICES = ("shuffle_3x3", "shuffle_5x5", "shuffle_7x7", "shuffle_xception")
SAMPLINGS = ("uniform", "fair")  # paths of a supernet's training: independent, or in rounds in which every block uses each choice once


def are_branch_widths(values: Any) -> bool:
    """Whether they are different numbers above 0, and at most 4."""
    numbers = isinstance(values, (list, tuple)) and len(values) > 0 and all(type(v) in (int, float) and 0 < v <= 4 for v in values)
    return numbers and len({*values}) == len(values)


def choice_count(branch_widths: Sequence[float]) -> int:
    """The number of choices of each block."""
    return len(CHOICES) * len(branch_widths)


def random_path(blocks: int, rng: random.Random, count: int = len(CHOICES)) -> tuple[int, ...]:
    """A uniformly random choice of ``count`` for each block."""
    return tuple(int(rng.random() * count) for _ in range(blocks))


def path_at(blocks: int, seed: int, step: int, sampling: str = "uniform", count: int = len(CHOICES)) -> tuple[int, ...]:
    """The path of iteration ``step`` in training a supernet of ``blocks`` with ``count`` choices each: only ``seed`` and ``step`` decide it.

    "fair" is the strict fairness of Chu et al., "FairNAS: Rethinking Evaluation Fairness of Weight Sharing Neural Architecture Search", with a
    step of the optimizer for each of its paths.
    """
    if sampling == "uniform":
        return random_path(blocks, random.Random(f"{seed}/{step}"), count)
    rng = random.Random(f"{seed}/fair/{step // count}")
    return tuple(rng.sample(range(count), count)[step % count] for _ in range(blocks))


def check_choices(choices: Any, blocks: Sequence[int], what: str = "the path", count: int = len(CHOICES)) -> tuple[int, ...]:
    """Returns ``choices`` if each block has one, of ``count``; stages have ``blocks``. Otherwise raises UserError, naming the block."""
    if not isinstance(choices, (list, tuple)) or len(choices) != sum(blocks):
        given = f"{len(choices)} choices" if isinstance(choices, (list, tuple)) else f"a {type(choices).__name__}"
        raise UserError(f"{what} holds {given}, but the network has {sum(blocks)} blocks ({', '.join(map(str, blocks))})")
    for i, choice in enumerate(choices):
        if isinstance(choice, bool) or choice not in range(count):
            more = "; BRANCH_WIDTHS gives more" if type(choice) is int and choice >= count else ""
            raise UserError(f"unknown choice of block {i} in {what}: {choice!r}. Allowed: 0 to {count - 1}{more}", "unknown-name")
    return tuple(int(choice) for choice in choices)


def read_choices(path: str, blocks: Sequence[int], stated: dict[str, Any] | None = None, count: int = len(CHOICES)) -> tuple[int, ...]:
    """The choices in a subnet file: MMRazor's YAML of either version, a plain list of numbers, or a mapping with ``choices``.

    ``blocks`` are the numbers of blocks of the stages, ``count`` that of the choices of each, and ``stated`` the required values of "network",
    "split", "shuffle", "width" and "branch_widths", if the file has them; without the last it is of one width, 1.0, as MMRazor's always are.
    Raises UserError, naming the block, for anything else.
    """
    what = f"subnet file {path!r}"
    if not os.path.isfile(path):
        raise not_there("subnet file", path)
    try:
        content = read_yaml(path)
        if isinstance(content, str):  # a tuple, as Python writes it
            content = ast.literal_eval(content.strip())
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:
        raise UserError(f"{what} cannot be read: {error}") from error
    if isinstance(content, dict) and "choices" in content:
        says = {"branch_widths": [1.0], **content}
        for key, value in (stated or {}).items():
            if key in says and says[key] != value:
                name = "NAME" if key == "network" else key.upper()
                mend = "or remove that line from the file" if key in content else "or write the line into the file"
                raise UserError(
                    f"{what} has {key} {says[key]!r}, but the config has {value!r}: set MODEL.SHUFFLENETV2.{name} {says[key]!r}, {mend}"
                )
        content = content["choices"]
    if isinstance(content, dict):
        widths = (stated or {}).get("branch_widths", [1.0])
        if 1.0 not in widths:
            raise UserError(f"{what} is MMRazor's, of branches of full width, but MODEL.SHUFFLENETV2.BRANCH_WIDTHS is {widths}: add 1.0 to it")
        content = [len(CHOICES) * widths.index(1.0) + choice for choice in _from_mapping(content, blocks, what)]
    return check_choices(content, blocks, what, count)


def _from_mapping(content: dict[Any, Any], blocks: Sequence[int], what: str) -> list[int]:
    found: dict[int, int] = {}
    for key, value in content.items():
        match = re.match(r"(?:(?:architecture\.)?backbone\.layers\.(\d)\.(\d+)|stage_(\d)_block_(\d+))$", str(key))
        if not match:
            raise UserError(f"{what}: {key!r} is not a block: it must be backbone.layers.STAGE.BLOCK or stage_STAGE_block_BLOCK")
        stage, block = (int(n) for n in match.groups() if n is not None)
        if stage >= len(blocks) or block >= blocks[stage]:
            raise UserError(f"{what}: block {key!r} does not exist: the stages have {', '.join(map(str, blocks))} blocks")
        chosen = value.get("chosen") if isinstance(value, dict) else None
        if isinstance(chosen, list) and len(chosen) == 1:
            chosen = chosen[0]
        if chosen not in CHOICES:
            raise unknown(f"choice of {key!r} in {what}", chosen, CHOICES)
        found[sum(blocks[:stage]) + block] = CHOICES.index(chosen)
    missing = [i for i in range(sum(blocks)) if i not in found]
    if missing:
        raise UserError(f"{what} lacks block {missing[0]}, and {len(missing) - 1} more")
    return [found[i] for i in range(sum(blocks))]
