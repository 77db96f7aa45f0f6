"""Log lines: those for pages of configs and models are in the file alone; those in files have no colour codes; files on a full disk."""

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


# what torch says of detectron2's code and of fvcore's, and who runs a command can do nothing about: how the messages begin
_OF_THEIR_CODE = (
    ("torch.meshgrid: in an upcoming release", UserWarning),
    ("Creating a tensor from a list of numpy.ndarrays is extremely slow", UserWarning),
    ("`broadcast_buffers` is deprecated", FutureWarning),
)
_OF_THEIR_LOGS = {"torch.fx._symbolic_trace": "is_fx_tracing will return true", "torch.utils.cpp_extension": "No CUDA runtime is found"}


def _is_ours(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_OF_THEIR_LOGS[record.name])


def hush() -> None:
    """Keeps those messages out of a command's output. Who imports the package is warned as ever: their own code may be meant."""
    for start, category in _OF_THEIR_CODE:
        warnings.filterwarnings("ignore", start, category)
    for name in _OF_THEIR_LOGS:
        logging.getLogger(name).addFilter(_is_ours)


class _Plain(logging.Formatter):
    """Another formatter's lines without the codes."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _CODES.sub("", self.formatter.format(record))


# how messages begin that go on for pages: hundreds of lines before the first that says something of the run
_PAGES = ("Environment info:", "Contents of args.config_file=", "Running with full config:", "Model:")


class _Short(logging.Formatter):
    """Another formatter's lines, but of pages the heading alone, and where the rest is."""

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
    """As detectron2's ``setup_logger`` for all that a run logs, in this process of it; to be called before its ``default_setup``."""
    rank = comm.get_rank()
    # the first two as default_setup calls it, which keeps what the first call has made
    loggers = [setup_logger(folder, distributed_rank=rank, name="fvcore"), setup_logger(folder, distributed_rank=rank)]
    loggers.append(setup_logger(folder, distributed_rank=rank, name="backbones"))
    file = os.path.join(folder, "log.txt")
    for handler in (handler for logger in loggers for handler in logger.handlers):
        printed = isinstance(handler, logging.StreamHandler) and handler.stream in (sys.stdout, sys.stderr)
        if printed and handler.formatter and os.path.isfile(file):  # without the file they are all that there is
            while isinstance(handler.formatter, (_Short, _Plain)):  # of an earlier run in this process
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
            setattr(handler, "handleError", partial(_end, handler))  # noqa: B010  which mypy does not let one assign


def log_the_end(message: str) -> None:
    """A last line in the log file, of what ends a run: the terminal has it already."""
    logger = logging.getLogger("backbones")
    record = logger.makeRecord(logger.name, logging.ERROR, __file__, 0, message, (), None)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream not in (sys.stdout, sys.stderr):
            handler.handle(record)


def _end(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    """Says once that a log file cannot be written, and goes on without. Python says so for each line, with a traceback."""
    error, stream = sys.exc_info()[1], handler.stream
    if not isinstance(error, OSError):
        return logging.StreamHandler.handleError(handler, record)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())  # what is in its buffer would be said at the end again
    os.close(nowhere)
    print(f"warning: {stream.name!r} cannot be written: {error.strerror}. The run goes on without it", file=sys.stderr, flush=True)
