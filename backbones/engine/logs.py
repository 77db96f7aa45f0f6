"""Log lines: pages of configs and models go only to the file, without colour codes; a full disk does not end a run."""

import logging
import os
import re
import sys
import warnings
from functools import partial
from typing import Any

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from ..errors import counted

_CODES = re.compile("\x1b\\[[0-9;]*m")


# the beginnings of torch's warnings about the code of detectron2 and fvcore, which a user can do nothing about
_OF_THEIR_CODE = (
    ("torch.meshgrid: in an upcoming release", UserWarning),
    ("Creating a tensor from a list of numpy.ndarrays is extremely slow", UserWarning),
    ("`broadcast_buffers` is deprecated", FutureWarning),
)
_OF_THEIR_LOGS = {"torch.fx._symbolic_trace": "is_fx_tracing will return true", "torch.utils.cpp_extension": "No CUDA runtime is found"}


def _is_ours(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_OF_THEIR_LOGS[record.name])


def hush() -> None:
    """Keeps those messages out of a command's output. Importing the package does not hide them: they may concern the user's code."""
    for start, category in _OF_THEIR_CODE:
        warnings.filterwarnings("ignore", start, category)
    for name in _OF_THEIR_LOGS:
        logging.getLogger(name).addFilter(_is_ours)


class _Plain(logging.Formatter):
    """Strips colour codes from another formatter's lines."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _CODES.sub("", self.formatter.format(record))


# the beginnings of messages with hundreds of lines, which would hide the first news of the run
_PAGES = ("Environment info:", "Contents of args.config_file=", "Running with full config:", "Model:")


class _Short(logging.Formatter):
    """Another formatter's lines; of long messages only the heading, and where the rest is."""

    def __init__(self, formatter: logging.Formatter, file: str):
        super().__init__()
        self.formatter, self.file = formatter, file

    def format(self, record: logging.LogRecord) -> str:
        heading, *rest = self.formatter.format(record).splitlines() or [""]
        if rest and record.getMessage().startswith(_PAGES):
            return f"{heading} {counted(len(rest), 'line')} in {self.file}"
        return "\n".join((heading, *rest))


def _is_terminal(stream: Any) -> bool:
    return not getattr(stream, "closed", False) and bool(getattr(stream, "isatty", bool)())


def set_up_logs(folder: str) -> None:
    """As detectron2's ``setup_logger``, for everything that this process of a run logs. Call it before ``default_setup``."""
    rank = comm.get_rank()
    # the first two as in default_setup, which keeps what the first call has made
    loggers = [setup_logger(folder, distributed_rank=rank, name="fvcore"), setup_logger(folder, distributed_rank=rank)]
    loggers.append(setup_logger(folder, distributed_rank=rank, name="backbones"))
    file = os.path.join(folder, "log.txt")
    for handler in (handler for logger in loggers for handler in logger.handlers):
        printed = isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
        if printed and handler.formatter and os.path.isfile(file):  # without the file the terminal gets everything
            while isinstance(handler.formatter, (_Short, _Plain)):  # left by an earlier run in this process
                handler.formatter = handler.formatter.formatter
            handler.setFormatter(_Short(handler.formatter, file))
        if (
            isinstance(handler, logging.StreamHandler)
            and handler.formatter
            and not isinstance(handler.formatter, _Plain)
            and not _is_terminal(handler.stream)
        ):
            handler.setFormatter(_Plain(handler.formatter))
        if isinstance(handler, logging.StreamHandler) and handler.stream not in (sys.stdout, sys.stderr) and hasattr(handler.stream, "fileno"):
            setattr(handler, "handleError", partial(_end, handler))  # noqa: B010  mypy forbids the assignment


def log_the_end(message: str) -> None:
    """Writes what ended a run as the last line of the log file; the terminal has it already."""
    logger = logging.getLogger("backbones")
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream not in (sys.stdout, sys.stderr):
            handler.handle(record)


def _end(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    """Warns once that a log file cannot be written, and continues without it. Python would print a traceback for each line."""
    error, stream = sys.exc_info()[1], handler.stream
    if not isinstance(error, OSError):
        return logging.StreamHandler.handleError(handler, record)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())  # else flushing its buffer would fail again at the end
    os.close(nowhere)
    print(f"warning: {stream.name!r} cannot be written: {error.strerror}. The run continues without it", file=sys.stderr, flush=True)
