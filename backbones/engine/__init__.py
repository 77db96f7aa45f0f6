"""Training: a config is opened as a `Front`, which builds a `Job`, which `Fit` trains."""

from .fit import Fit
from .front import Front
from .job import Job
from .launch import by_torchrun, count_processes, launch
from .lazy import PythonFront
from .logs import log_the_end, set_up_logs
from .opening import add_config_arguments, open_config, open_named, stay_in_moved_folder
from .resume import clear, lock
from .trainer import Trainer, YamlFront

__all__ = [
    "Fit",
    "Front",
    "Job",
    "PythonFront",
    "Trainer",
    "YamlFront",
    "add_config_arguments",
    "by_torchrun",
    "clear",
    "count_processes",
    "launch",
    "lock",
    "open_config",
    "open_named",
    "log_the_end",
    "set_up_logs",
    "stay_in_moved_folder",
]
