"""Detectors in use: optimized for inference, exported to other runtimes, and run from there."""

from ..detectors import ranked
from .optimize import optimize
from .runner import Runner

__all__ = ["Runner", "optimize", "ranked"]
