"""Reading checkpoint files safely, and refusing weights that do not fit."""

from .gate import GatedCheckpointer, LoadReport, part_of
from .reading import fetch, read_checkpoint

__all__ = ["GatedCheckpointer", "LoadReport", "fetch", "part_of", "read_checkpoint"]
