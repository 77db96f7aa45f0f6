"""What a user is told when a value cannot be used."""

import difflib
from typing import Any, Iterable


class UserError(ValueError):
    """A mistake its maker can mend. The message is one line of at most 1000 characters: the bad value, what is allowed, the nearest match."""

    def __init__(self, message: object):
        text = str(message)
        if "Original Traceback (most recent call last)" in text:  # torch makes an error of a worker anew, from its whole traceback
            text = text.rpartition("UserError: ")[2]
        line = " ".join(text.split())
        super().__init__(line if len(line) < 1000 else f"{line[:800]} ... {line[-150:]}")


def unknown(what: str, value: Any, allowed: Iterable[Any]) -> UserError:
    """The error for a ``value`` that is not among ``allowed``; ``what`` names its kind, or the config key it stands in."""
    names = [str(name) for name in allowed]
    value = value if len(str(value)) <= 200 else str(value)[:200] + "..."
    # a difference in case alone is no difference to people
    close = [name for name in names if name.lower() == str(value).lower()] or difflib.get_close_matches(str(value), names, n=1, cutoff=0.4)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(repr(name) for name in names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")
    return UserError(f"unknown {what}: {value!r}.{hint} Allowed: {shown or 'none'}.")
