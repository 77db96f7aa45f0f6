"""Training and launching."""

from .launch import count_processes, launch
from .trainer import Trainer, load_for_evaluation

__all__ = ["Trainer", "count_processes", "launch", "load_for_evaluation"]
