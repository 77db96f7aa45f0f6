"""Runs what a page of docs/ says, step by step: see test_docs.py.

python steps.py STEPS

STEPS: a JSON list of commands, lists of words, and of Python code, text. Prints the list of their exit codes.
"""

import json
import os
import runpy
import subprocess
import sys
from functools import partial

from warm import leave

from backbones.doctor import memory

# smaller images than users' to tell memory from: the pages say nothing of how much there must be
memory._SIZES = (64, 128)
memory.peak.__defaults__ = ("cpu", memory._SIZES)


def perform(step):
    """Runs a step, in this process where it is Python's."""
    if isinstance(step, str):
        exec(compile(step, "the page's code", "exec"), {"__name__": "__main__"})
    elif step[0] != "python":
        sys.exit(subprocess.call(step))
    elif step[1] == "-m":
        sys.argv = step[2:]
        runpy.run_module(step[2], run_name="__main__", alter_sys=True)
    else:
        sys.argv = step[1:]
        runpy.run_path(step[1], run_name="__main__")


def perform_all(every):
    """Runs steps one after the other, each in a copy of this process. Returns their exit codes.

    What step i prints goes to i.txt.
    """
    codes = []
    for i, step in enumerate(every):
        pid = os.fork()
        if pid == 0:
            output = os.open(f"{i}.txt", os.O_WRONLY | os.O_CREAT)
            os.dup2(output, 1)
            os.dup2(output, 2)
            leave(partial(perform, step))
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    return codes


if __name__ == "__main__":
    print(json.dumps(perform_all(json.loads(sys.argv[1]))))
