"""Thin command lines over the package: ``backbones VERB --help``, also ``python -m backbones.tools.VERB --help``."""

import argparse
import os
import sys
from typing import Callable

from ..config import check_output_file
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


def parser_of(prog: str, text: str) -> argparse.ArgumentParser:
    """A tool's parser, whose help has the first line of ``text`` above the flags and the rest below."""
    summary, _, details = text.partition("\n")
    return argparse.ArgumentParser(prog=prog, description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)


def picture(path: str, kinds=(".png", ".jpg", ".jpeg")) -> None:
    """Makes the folder of a picture. Raises UserError where no picture of one of these ``kinds`` can be written to ``path``."""
    kind = os.path.splitext(path)[1].lower()
    if kind not in kinds:
        raise unknown(f"kind of picture, of {path!r}", kind, kinds)
    check_output_file(path, "the picture")
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
