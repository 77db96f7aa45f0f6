"""Thin command lines over the package: ``backbones VERB --help``, also ``python -m backbones.tools.VERB --help``."""

import os
import sys
from typing import Callable

from ..errors import UserError, unknown


def run(main: Callable[[], None], prefix: str = "") -> None:
    """Runs a tool's ``main``; a user's mistake becomes one line, which begins with ``prefix``, and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"{prefix}error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def program(verb: str) -> str:
    """What the user typed to start a tool, for its help."""
    return f"backbones {verb}" if sys.argv[0].startswith("backbones ") else f"python -m backbones.tools.{verb}"


def picture(path: str, kinds=(".png", ".jpg", ".jpeg")) -> str:
    """``path``, where a picture of one of these ``kinds`` can be written, its folder made; raises UserError where none can."""
    kind = os.path.splitext(path)[1].lower()
    if kind not in kinds:
        raise unknown(f"kind of picture, of {path!r}", kind, kinds)
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    except OSError as error:
        raise UserError(f"the folder of {path!r} cannot be made: {error}") from error
    if os.path.isdir(path) or not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK):
        raise UserError(f"{path!r} cannot be written")
    return path
