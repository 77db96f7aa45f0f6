"""Thin command lines over the package: ``python -m backbones.tools.<verb> --help``."""

import sys
from typing import Callable

from ..errors import UserError


def run(main: Callable[[], None]) -> None:
    """Runs a tool's ``main``; a user's mistake becomes one line and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
