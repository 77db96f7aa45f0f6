"""The console command on a machine that lacks what Windows and macOS lack, as far as Linux plays it: `python tests/elsewhere.py VERB ...`."""

import builtins
import multiprocessing
import os
import signal
import sys

import detectron2.data
import detectron2.engine  # noqa: F401  on such machines too these find what they need: portalocker another lock than fcntl's

IN_NO_OTHER_PLACE = ("/proc", "/dev/shm")
SIGNALS = ("SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIGCHLD")  # that Windows has; torch for Linux wants the last
FUNCTIONS = ("sysconf", "sched_getaffinity", "getuid", "geteuid", "killpg", "setsid", "getpgid", "fork", "getloadavg")
_open, _isdir = builtins.open, os.path.isdir


def opened(file, *args, **kwargs):
    if str(file).startswith(IN_NO_OTHER_PLACE):
        raise FileNotFoundError(2, "No such file or directory", file)
    return _open(file, *args, **kwargs)


# also in the processes that it starts, which begin as they do on macOS and on Windows
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None  # type: ignore[assignment]
for name in FUNCTIONS:
    delattr(os, name)
for number in list(signal.Signals):
    if number.name not in SIGNALS:
        delattr(signal, number.name)
builtins.open = opened
os.path.isdir = lambda path: not str(path).startswith(IN_NO_OTHER_PLACE) and _isdir(path)

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    from backbones.cli import main

    main()
