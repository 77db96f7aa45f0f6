"""A log file on a full disk is said once, and its run goes on."""

import logging
import os

import pytest

from backbones.engine import set_up_logs


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="only Linux has it")
def test_a_full_disk_is_said_once(tmp_path, capfd):
    os.symlink("/dev/full", tmp_path / "log.txt")
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "backbones")]
    before = [list(logger.handlers) for logger in loggers]
    try:
        set_up_logs(str(tmp_path))
        for i in range(6):
            loggers[i % 3].error(f"line {i}")
        new = {handler.stream for logger, old in zip(loggers, before) for handler in logger.handlers if handler not in old}
        for stream in (stream for stream in new if getattr(stream, "name", "").endswith("log.txt")):
            stream.close()  # as at the end of the process
    finally:
        for logger, old in zip(loggers, before):
            logger.handlers[:] = old
    printed = capfd.readouterr()
    assert "Logging error" not in printed.err and "Traceback" not in printed.err
    (line,) = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert "log.txt' cannot be written: No space left on device" in line
