"""docs/reference and docs/findings.md, from the tables of keys, codes and findings, and from the parsers of all commands."""

import argparse
import contextlib
import importlib
import sys
from functools import partial
from typing import Any, Callable, Iterator
from unittest import mock

from detectron2.config import get_cfg

from ...benchmark.tables import columns_of
from ...cli import VERBS
from ...config.keys import KEYS, THEIRS, Key, get
from ...data.findings import KINDS, Kind
from ...engine import lazy_keys
from ...errors import CODES
from ...search.structure_config import keys as keys_of_searches
from .notebook import notebook

_WRITTEN = "Written by `python -m backbones.tools.docs`; do not edit."


def _cell(text: str) -> str:
    """Escapes text for a table, so that no part of it becomes a tag, a column or emphasis."""
    text = " ".join(text.split())
    for sign, shown in (("<", "&lt;"), ("|", "\\|"), ("*", "\\*")):
        text = text.replace(sign, shown)
    return text


def _section(key: Key) -> str:
    """The heading for a key: a node of MODEL that is ours has its own."""
    parts = key.name.split(".")
    return ".".join(parts[:2]) if parts[0] == "MODEL" and len(parts) > 2 and key.default is not THEIRS else parts[0]


def _values(key: Key) -> str:
    if callable(key.allowed):
        return "any that is registered"
    if key.allowed:
        return " ".join(f"`{value!r}`" for value in key.allowed)
    limits = [f"at least {key.least}"] if key.least is not None else []
    return " and ".join([*limits, *([key.test[1]] if key.test else [])])


def config() -> str:
    theirs = get_cfg()
    sections: dict[str, list[Key]] = {}
    for key in KEYS:
        sections.setdefault(_section(key), []).append(key)
    text = f"""# Config keys

{_WRITTEN} The texts come from `backbones/config/keys.py`.

These are the keys that this project adds to detectron2's, and the keys of detectron2 whose values it checks. The latter are marked with a
star, and keep detectron2's defaults. [detectron2's page](https://detectron2.readthedocs.io/en/latest/modules/config.html) lists its other keys.
On the command line, write an override as `KEY VALUE`, or as `name=value` for a Python config. The last column has that name.
"""
    for heading, keys in sections.items():
        columns = {
            "key": [f"`{key.name}`" + " \\*" * (key.default is THEIRS) for key in keys],
            "default": [f"`{(get(theirs, key.name) if key.default is THEIRS else key.default)!r}`" for key in keys],
            "meaning": [_cell(key.text) for key in keys],
            "values": [_cell(_values(key)) for key in keys],
            "Python config": [f"`{lazy_keys.KEYS[key.name]}`" if key.name in lazy_keys.KEYS else "" for key in keys],
        }
        text += f"\n## {heading}\n\n{columns_of(columns)}\n"
    searches = "## Searches without training\n\nThe keys of the YAML file that `backbones search --config-file` takes:"
    return f"{text}\n{searches}\n\n{keys_of_searches()}\n"


# commands that are not verbs of `backbones`: module and function -> how to start it
_OTHERS = {"backbones.deploy.run_exported:main": "python run_exported.py"}
_OTHERS |= {
    f"backbones.{name}:main": f"python -m backbones.{name}"
    for name in ("search.rank_correlation", *(f"tools.{name}" for name in "digits docs quickstart recipes search_demo transfer".split()))
}


class _Made(Exception):
    """Carries a parser."""


def _parser(module: str, function: str, program: str) -> argparse.ArgumentParser:
    """The parser of a command, without running the rest of it."""

    def stop(self: argparse.ArgumentParser, *_: Any, **__: Any) -> None:
        raise _Made(self)

    methods: dict[str, Any] = dict.fromkeys(("parse_args", "parse_known_args", "parse_intermixed_args"), stop)
    with mock.patch.multiple(argparse.ArgumentParser, **methods), mock.patch.object(sys, "argv", [program]):
        try:
            getattr(importlib.import_module(module), function)()
        except _Made as made:
            return made.args[0]
    raise AssertionError(f"{module} parses nothing")


def _takes(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices and action.metavar is None:
        names = " ".join(f"`{choice}`" for choice in action.choices)
    else:
        metavar = action.metavar or action.dest.upper()
        names = f"`{' '.join(metavar) if isinstance(metavar, tuple) else metavar}`"
    return names + (" ..." if action.nargs in ("+", "*", argparse.REMAINDER) else "")


def _meaning(action: argparse.Action) -> str:
    text = (action.help or "") % vars(action)
    return _cell(text) + (" (needed)" if action.option_strings and action.required else "")


def _flags(parser: argparse.ArgumentParser) -> str:
    actions = [action for action in parser._actions if action.dest != "help" and action.help is not argparse.SUPPRESS]
    columns = {
        "flag": [", ".join(f"`{flag}`" for flag in action.option_strings) for action in actions],
        "takes": [_cell(_takes(action)) for action in actions],
        "meaning": [_meaning(action) for action in actions],
    }
    return columns_of(columns) if actions else "It takes no flags."


def _command(name: str, parser: argparse.ArgumentParser) -> Iterator[str]:
    summary, _, details = f"{parser.description or ''}\n\n{parser.epilog or ''}".strip().partition("\n\n")
    yield f"## {name}\n\n{_cell(summary)}"
    if details.strip():
        yield f"```text\n{details.strip()}\n```"
    verbs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not verbs:
        yield _flags(parser)
    for action in verbs:
        about = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for verb, one in action.choices.items():
            text = about.get(verb, "")
            yield f"### {name} {verb}\n\n{_cell(text[:1].upper() + text[1:])}."
            yield _flags(one)


def commands() -> str:
    parts = [f"""# Commands

{_WRITTEN} `backbones VERB --help` says the same.

In a checkout where the package is not installed, write `python -m backbones VERB` instead of `backbones VERB`. `python train_net.py` is the
same as `backbones train`."""]
    for verb, (place, _) in VERBS.items():
        module, _, function = place.partition(":")
        parts += _command(f"backbones {verb}", _parser(module, function, f"backbones {verb}"))
    for place, start in _OTHERS.items():
        module, _, function = place.partition(":")
        with contextlib.suppress(ModuleNotFoundError):
            module = importlib.import_module(f"{module}.__main__").__name__
        parts += _command(start, _parser(module, function, start))
    return "\n\n".join(parts) + "\n"


_EXITS = {
    "0": "done",
    "1": "an unexpected error, with its traceback; for `doctor`, `zoo check` and `TEST.EXPECTED_RESULTS`: a check failed",
    "2": "a mistake that you can correct: the last line says what is wrong, what is allowed, and the nearest match",
    "130": "stopped by Ctrl-C; a training has written a checkpoint",
    "143": "stopped by SIGTERM; a training has written a checkpoint",
}


def errors() -> str:
    codes = columns_of({"code": [f"`{code}`" for code in CODES], "what is wrong": [_cell(text) for text in CODES.values()]})
    exits = columns_of({"exit code": list(_EXITS), "meaning": list(_EXITS.values())})
    return f"""# Errors

{_WRITTEN} The codes come from `backbones/errors.py`.

A user's mistake ends a command with a one-line error and exit code 2. In Python it raises `backbones.UserError`, a `ValueError` with
these attributes:

- `code`: the kind of mistake, from the table below. Programs use it instead of parsing the message.
- `key`: the config key or the flag that is wrong, or `""`.
- `suggestion`: the value to set it to, or `None`.

```python
import backbones

try:
    backbones.create("V-38-eSE")
except backbones.UserError as error:
    print(error)  # unknown backbone: 'V-38-eSE'. Did you mean 'V-39-eSE'? Allowed: ...
    assert (error.code, error.suggestion) == ("unknown-name", "V-39-eSE")
```

The findings of the [doctor](commands.md#backbones-doctor) and of [reading data](../findings.md) carry the same codes.

## Codes

{codes}

## Exit codes

{exits}
"""


_REFUSED = (
    "The error names the first places. The key in the last column, if any, changes what happens. Only the doctor reports `train and test`."
)


def findings() -> str:
    # heading, what the table tells, and which rows it has
    parts = (
        ("Training stops", _REFUSED, lambda kind: kind.severity == "error"),
        ("Left out", "The entry is counted and not used.", lambda kind: kind.effect == "left out"),
        ("Repaired", "The entry has only one sensible meaning, which is used. It is counted.", lambda kind: kind.effect == "repaired"),
        ("Reported", "The data are used as they are.", lambda kind: kind.severity != "error" and kind.effect in ("", "read in part")),
    )
    text = f"""# What is found in data

{_WRITTEN} [Train on my data](train-my-data.md#what-was-read) shows where these findings appear.

Before training, one line for each data set counts what was left out and repaired, and further lines describe each kind of finding.
`backbones doctor` lists the same findings, and more.
"""
    for heading, about, belongs in parts:
        rows: dict[str, Kind] = {name: kind for name, kind in KINDS.items() if belongs(kind)}
        columns = {
            "kind": list(rows),
            "what it is": [kind.message for kind in rows.values()],
            "what you can do": ["" if kind.advice == "nothing" else kind.advice for kind in rows.values()],
            "key": [f"`{kind.key}`" if kind.key else "" for kind in rows.values()],
        }
        text += f"\n## {heading}\n\n{about}\n\n{columns_of(columns)}\n"
    return text


# page -> its text
PAGES: dict[str, Callable[[], str]] = {
    "docs/findings.md": findings,
    "docs/reference/config.md": config,
    "docs/reference/commands.md": commands,
    "docs/reference/errors.md": errors,
    "docs/tutorial.ipynb": partial(notebook, "docs/tutorial.md"),
}
