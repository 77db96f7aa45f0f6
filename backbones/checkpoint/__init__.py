"""Reading checkpoint files safely, and refusing weights that do not fit."""

from .gate import GatedCheckpointer
from .reading import fetch, read_checkpoint
from .report import LoadReport, part_of

__all__ = ["GatedCheckpointer", "LoadReport", "fetch", "part_of", "read_checkpoint"]
