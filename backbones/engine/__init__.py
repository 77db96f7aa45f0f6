"""Training and launching."""

from .launch import launch
from .trainer import Trainer, load_for_evaluation

__all__ = ["Trainer", "launch", "load_for_evaluation"]
