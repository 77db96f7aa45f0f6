"""What a user is told when something cannot be used: a sentence for people; a code, the key and a suggestion for programs."""

import difflib
from dataclasses import dataclass, field
from typing import Any, Callable, Iterable

# code -> what it says
CODES = {
    "value": "the key or flag does not take this value",
    "unknown-name": "nothing has this name; the suggestion is the nearest that exists",
    "unknown-key": "there is no such config key; the suggestion is the nearest that exists",
    "syntax": "an override or a config cannot be parsed",
    "missing-argument": "a flag, key or value is needed and not given",
    "conflict": "two settings exclude each other",
    "build": "the config's model or solver cannot be built",
    "unsupported": "the model or the file is of a kind that this cannot be done with",
    "device": "torch does not see the device here",
    "batch": "the images of a step cannot be shared evenly",
    "missing-package": "a package is not installed",
    "missing-file": "a file or folder is not there",
    "bad-file": "a file's content cannot be used",
    "cannot-write": "a file or folder cannot be written",
    "download": "a download failed",
    "data": "the data cannot be used for this",
    "classes": "the classes of model and data, or of two data sets, differ",
    "missing-weights": "weights are needed and not named, or there are none",
    "misfit-weights": "the weights do not fit the model",
    "folder-in-use": "the output folder holds, or is used by, another run",
    "resume": "the run in the folder cannot be continued in this way",
    "diverged": "a loss or weight is infinite or NaN",
    "resources": "the machine's memory, shared memory or open files ran out, or it killed a process",
    "mismatch": "a result differs from what it was compared with, and is not used",
}
SEVERITIES = ("error", "warning", "note")


class UserError(ValueError):
    """A mistake its maker can mend.

    Args:
        message: one line of at most 1000 characters: the bad value, what is allowed, the nearest match. People read it, no code does.
        code: one of `CODES`.
        key: the config key or the flag that is wrong, where it is one.
        suggestion: what to set it to.
    """

    def __init__(self, message: object, code: str = "value", key: str = "", suggestion: Any = None):
        assert code in CODES, code
        text = str(message)
        if "Original Traceback (most recent call last)" in text:  # torch makes an error of a loader's worker anew, from its traceback alone
            text, code = text.rpartition("UserError: ")[2], "data"
        line = " ".join(text.split())
        super().__init__(line if len(line) < 1000 else f"{line[:800]} ... {line[-150:]}")
        self.code, self.key, self.suggestion = code, key, suggestion


def unknown(what: str, value: Any, allowed: Iterable[Any], key: str = "", code: str = "unknown-name") -> UserError:
    """The error for a ``value`` that is not among ``allowed``; ``what`` names its kind, or the config key it stands in."""
    allowed = list(allowed)
    names = [str(name) for name in allowed]
    value = value if len(str(value)) <= 200 else str(value)[:200] + "..."
    # a difference in case alone is no difference to people
    lowered = {name.lower(): name for name in reversed(names)}
    close = [lowered[name] for name in difflib.get_close_matches(str(value).lower(), lowered, n=1, cutoff=0.4)]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(repr(name) for name in names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    suggestion = allowed[names.index(close[0])] if close else None
    return UserError(f"unknown {what}: {value!r}.{hint} Allowed: {shown or 'none'}.", code, key, suggestion)


def plain(name: str) -> str:
    """A name without what people do not look at: case, spaces and signs."""
    return "".join(letter for letter in name.casefold() if letter.isalnum()) or name


def counted(number: int, name: str) -> str:
    """ "1 image", "2 images", "0 classes": ``name`` is of one."""
    return f"{number} {name}{'' if number == 1 else 'es' if name.endswith(('s', 'x')) else 's'}"


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
