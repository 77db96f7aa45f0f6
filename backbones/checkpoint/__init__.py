"""Reading checkpoint files safely, and refusing weights that do not fit."""

from .fetching import fetch, fetch_hub
from .gate import GatedCheckpointer, LoadReport, part_of
from .reading import read_checkpoint

__all__ = ["GatedCheckpointer", "LoadReport", "fetch", "fetch_hub", "part_of", "read_checkpoint"]
