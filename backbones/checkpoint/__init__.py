"""Reading checkpoint files safely, and refusing weights that do not fit."""

from .gate import GatedCheckpointer, LoadReport
from .reading import read_checkpoint

__all__ = ["GatedCheckpointer", "LoadReport", "read_checkpoint"]
