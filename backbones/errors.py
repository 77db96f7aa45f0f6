"""Errors for users: a sentence for people; a code, the key and a suggestion for programs."""

import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Callable, Collection, Iterable, Sequence

# code -> what it says
CODES = {
    "value": "the key or flag does not accept this value",
    "unknown-name": "nothing has this name; the suggestion is the nearest that exists",
    "unknown-key": "this config key does not exist; the suggestion is the nearest that exists",
    "syntax": "an override or a config cannot be parsed",
    "missing-argument": "a required flag, key or value is missing",
    "conflict": "two settings exclude each other",
    "build": "the config's model or solver cannot be built",
    "unsupported": "this kind of model or file is not supported here",
    "device": "torch does not find the device",
    "batch": "the images of a step cannot be divided evenly",
    "missing-package": "a package is not installed",
    "missing-file": "a file or folder does not exist",
    "bad-file": "a file's content cannot be used",
    "cannot-write": "a file or folder cannot be written",
    "download": "a download failed",
    "data": "the data cannot be used for this",
    "classes": "the classes of model and data, or of two data sets, differ",
    "missing-weights": "weights are required but not named, or do not exist",
    "misfit-weights": "the weights do not fit the model",
    "folder-in-use": "the output folder holds, or is used by, another run",
    "resume": "the run in the folder cannot be resumed this way",
    "diverged": "a loss or weight is infinite or NaN",
    "resources": "the machine ran out of memory, shared memory or open files, or killed a process",
    "mismatch": "a result differs from its reference, and is not used",
}
SEVERITIES = ("error", "warning", "note")
_READABLE = 12  # names that a sentence can list


class UserError(ValueError):
    """A mistake that the user can fix.

    Args:
        message: one line of at most 1000 characters: the bad value, what is allowed, the nearest match. It is for people only.
        code: one of `CODES`.
        key: the config key or flag that is wrong, if any.
        suggestion: what to set it to.
    """

    def __init__(self, message: object, code: str = "value", key: str = "", suggestion: Any = None):
        assert code in CODES, code
        text = str(message)
        if "Original Traceback (most recent call last)" in text:  # torch recreates the error of a loader's worker from its traceback
            text, code = text.rpartition("UserError: ")[2], "data"
        line = " ".join(text.split())
        super().__init__(line if len(line) < 1000 else f"{line[:800]} ... {line[-150:]}")
        self.code, self.key, self.suggestion = code, key, suggestion


def one_line(error: BaseException, most: int = 300) -> str:
    """What an exception of a library says, in one line of at most ``most`` characters; the name of its class if it says nothing."""
    said = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(said).split())[:most] or type(error).__name__


def near(value: Any, names: Iterable[str]) -> list[str]:
    """Up to three of the names, those most like a value first; people ignore case."""
    lowered, text = {name.lower(): name for name in reversed(list(names))}, str(value).lower()
    close = difflib.get_close_matches(text, lowered, n=3, cutoff=0.4)
    numbered = re.match(r"[a-z].+?(?=\d)", text)  # "v-" of "v-40", which is too short to be like "v-39-ese" as a whole
    if not close and numbered:
        close = difflib.get_close_matches(text, [name for name in lowered if name.startswith(numbered[0])], n=3, cutoff=0.0)
    return [lowered[name] for name in close]


def choices(names: Collection[str], close: Sequence[str] = (), listed: str = "") -> str:
    """What is allowed instead, in words: the nearest name, then all of a short list, or of a long one its length and some names.

    ``close`` are those that are `near`. ``listed`` says where a long list can be read.
    """
    hint = f"Did you mean {close[0]!r}? " if close else ""
    if len(names) <= _READABLE:
        return f"{hint}Allowed: {', '.join(map(repr, names)) or 'none'}."
    others = ", ".join(map(repr, close[1:] if close else list(names)[:3]))
    some = f", such as {others}" if others else ""
    return f"{hint}Allowed: {len(names)} names{some}{f'. To see all: {listed}' if listed else ''}."


def unknown(what: str, value: Any, allowed: Iterable[Any], key: str = "", code: str = "unknown-name", listed: str = "") -> UserError:
    """The error for a ``value`` that is not among ``allowed``; ``what`` names its kind, or its config key, ``listed`` where all can be read."""
    allowed = list(allowed)
    names = [str(name) for name in allowed]
    value = value if len(str(value)) <= 200 else str(value)[:200] + "..."
    close = near(value, names)
    suggestion = allowed[names.index(close[0])] if close else None
    return UserError(f"unknown {what}: {value!r}. {choices(names, close, listed)}", code, key, suggestion)


def plain(name: str) -> str:
    """A name without what people ignore: case, spaces and punctuation."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


def counted(number: int, name: str) -> str:
    """ "1 image", "2 images", "0 classes": ``name`` is the singular."""
    return f"{number} {name}{'' if number == 1 else 'es' if name.endswith(('s', 'x')) else 's'}"


def first_of(names: Sequence[str], most: int = 5, between: str = ", ") -> str:
    """The first so many names, and how many more there are."""
    return between.join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def either(ways: Sequence[str]) -> str:
    """ "a", "a or b", "a, b or c"."""
    *others, last = ways
    return f"{', '.join(others)} or {last}" if others else last


def raised(check: Callable[..., Any], *arguments: Any) -> list[UserError]:
    """The UserError that a call raises, if it does."""
    try:
        check(*arguments)
    except UserError as error:
        return [error]
    return []


@dataclass(frozen=True)
class Finding:
    """One line of a report. ``severity`` is one of `SEVERITIES`; ``code``, ``key`` and ``suggestion`` are as those of `UserError`."""

    severity: str
    message: str
    advice: str = ""
    code: str = ""
    key: str = ""
    suggestion: Any = field(default=None, compare=False)

    @classmethod
    def of(cls, error: UserError) -> "Finding":
        return cls("error", str(error), "", error.code, error.key, error.suggestion)
