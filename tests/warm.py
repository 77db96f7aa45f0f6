"""Runs commands of this Python in processes that begin with the imports done; see `conftest.Warm`.

Reads a line of JSON {"argv", "cwd", "env", "out", "err", "timeout"} for each, answers with its process id, and with its exit code at its end.
The processes that --num-gpus and torchrun start are such copies too, unless the environment has FRESH.
"""

import atexit
import gc
import json
import os
import runpy
import signal
import sys
import threading
import time
from functools import partial
from typing import Callable, NoReturn

import detectron2.engine  # noqa: F401
import matplotlib.figure  # noqa: F401
import quick  # noqa: F401
import torch.distributed.run
import torch.multiprocessing
import torch.utils.benchmark
import torch.utils.tensorboard

import backbones.engine  # noqa: F401


def wait(pid: int, seconds: float) -> int:
    """The exit code of a process; those that take too long are killed, with all that they started."""
    until = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.killpg(pid, signal.SIGKILL)
        time.sleep(0.005)


def begin(request: dict) -> None:
    """Makes this process the one that was asked for, up to its first line."""
    os.setsid()
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        os.dup2(os.open(path, os.O_RDWR), number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    if "FRESH" not in os.environ:
        torch.multiprocessing.start_processes = partial(torch.multiprocessing.start_processes, start_method="fork")
        if request["argv"][:2] == ["-m", "torch.distributed.run"]:
            request["argv"][2:2] = ["--run-path", "--start-method=fork"]


def perform(request: dict) -> None:
    """Runs the module, the script or the code that was asked for."""
    if request["argv"][0] == "-c":
        _, code, *rest = request["argv"]
        sys.argv, sys.path[0] = ["-c", *rest], request["cwd"]
        exec(code, {"__name__": "__main__"})
    elif request["argv"][0] == "-m":
        sys.argv = request["argv"][1:]
        sys.path[0] = request["cwd"]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = request["argv"]
        sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
        runpy.run_path(sys.argv[0], run_name="__main__")


def main() -> None:
    gc.freeze()  # or each copy would go through all that was imported at its end, for a second
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            break
        print(pid, flush=True)
        print(wait(pid, request["timeout"]), flush=True)
    else:
        return
    begin(request)
    leave(partial(perform, request))


def leave(call: Callable[[], None]) -> NoReturn:
    """Ends this process after a call, with its exit code, as the interpreter does, but without taking all modules apart: that takes long."""
    code = 0
    try:
        call()
    except KeyboardInterrupt:
        raise  # the interpreter ends as the signal would end it
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
