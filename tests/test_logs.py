"""A log file on a full disk is said once, and its run goes on."""

import logging
import os

import pytest

from backbones.engine import log_the_end, set_up_logs


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


def test_pages_are_in_the_file_alone(tmp_path, capfd):
    """Of configs and models the terminal has a heading that says where the rest is; tables of figures it has whole."""
    loggers = [logging.getLogger(name) for name in ("detectron2", "fvcore", "backbones")]
    before = [list(logger.handlers) for logger in loggers]
    config, table = "Running with full config:\n" + "KEY: 1\n" * 500, "Evaluation results for bbox:\n|  AP  |\n| 12.3 |"
    try:
        set_up_logs(str(tmp_path))
        set_up_logs(str(tmp_path))  # as a second run in one process does
        loggers[0].info(config)
        loggers[2].info(table)
        log_the_end("training diverged")
    finally:
        for logger, old in zip(loggers, before):
            for handler in logger.handlers[len(old) :]:
                handler.flush()
            logger.handlers[:] = old
    printed, written = capfd.readouterr().out, (tmp_path / "log.txt").read_text()
    assert written.count("KEY: 1\n") == 500 and table in written
    assert "KEY" not in printed and table in printed
    assert "diverged" not in printed and "training diverged" in written.splitlines()[-1]
    assert f"Running with full config: 500 lines in {tmp_path / 'log.txt'}\n" in printed
