"""Log lines that go into files, or to whatever is no terminal, have no colour codes."""

import logging
import re
from typing import Any

from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

_CODES = re.compile("\x1b\\[[0-9;]*m")


class _Plain(logging.Formatter):
    """Another formatter's lines without the codes."""

    def __init__(self, formatter: logging.Formatter):
        super().__init__()
        self.formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _CODES.sub("", self.formatter.format(record))


def _is_terminal(stream: Any) -> bool:
    return not getattr(stream, "closed", False) and bool(getattr(stream, "isatty", bool)())


def set_up_logs(folder: str) -> None:
    """As detectron2's ``setup_logger`` for all that a run logs, in this process of it; to be called before its ``default_setup``."""
    rank = comm.get_rank()
    # the first two as default_setup calls it, which keeps what the first call has made
    loggers = [setup_logger(folder, distributed_rank=rank, name="fvcore"), setup_logger(folder, distributed_rank=rank)]
    loggers.append(setup_logger(folder, distributed_rank=rank, name="backbones"))
    for handler in (handler for logger in loggers for handler in logger.handlers):
        if (
            isinstance(handler, logging.StreamHandler)
            and handler.formatter
            and not isinstance(handler.formatter, _Plain)
            and not _is_terminal(handler.stream)
        ):
            handler.setFormatter(_Plain(handler.formatter))
