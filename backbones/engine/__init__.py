"""Training and launching."""

from .launch import count_processes, launch
from .resume import lock
from .tracking import check_trackers
from .trainer import Trainer, load_for_evaluation

__all__ = ["Trainer", "check_trackers", "count_processes", "launch", "load_for_evaluation", "lock"]
