"""Reading checkpoint files safely, and refusing weights that do not fit."""

from .classes import Match, chosen, names_in
from .fetching import fetch, fetch_hub
from .gate import PARTIAL, GatedCheckpointer, LoadReport, last_checkpoint, part_of, write_checkpoint
from .reading import read_checkpoint

__all__ = [
    "PARTIAL",
    "GatedCheckpointer",
    "LoadReport",
    "Match",
    "chosen",
    "fetch",
    "fetch_hub",
    "last_checkpoint",
    "names_in",
    "part_of",
    "read_checkpoint",
    "write_checkpoint",
]
