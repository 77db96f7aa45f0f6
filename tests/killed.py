"""Runs train_net.py in processes that are killed, again and again with --resume until one comes to its end; the imports are done once.

python killed.py FOLDER KILLS SEED [KEY VALUE ...]

Prints a line of JSON: {"kills": {kind: number}}. Kinds are of what is under way: "training" (a random moment of the first iterations),
"write" (of a checkpoint), "evaluation", "SIGTERM" (as "training", but the process ends by itself), and last of all "end" (the last evaluation).
"""

import collections
import json
import multiprocessing
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import detectron2.engine  # noqa: F401

import train_net
from backbones.engine import Trainer  # noqa: F401
from backbones.engine.step import Steps

KINDS = ("training", "write", "evaluation", "SIGTERM")
steps = multiprocessing.Value("i", 0)  # that the process has begun
run_step = Steps.run_step


def step(self) -> None:
    steps.value += 1
    run_step(self)


def start(arguments) -> int:
    steps.value = 0
    pid = os.fork()
    if pid:
        return pid
    Steps.run_step = step
    log = os.open(os.path.join(os.path.dirname(arguments[-1]), "killed.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        train_net.command_line(arguments)
        code = 0
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.stdout.flush()
        os._exit(code)


def evaluations(output: str) -> int:
    try:
        with open(os.path.join(output, "log.txt")) as f:
            return f.read().count("Start inference on")
    except OSError:
        return 0


def writing(output: str) -> bool:
    return os.path.isdir(output) and any(name.endswith(".pth.partial") for name in os.listdir(output))


def main() -> None:
    output, kills, rng, options = sys.argv[1], int(sys.argv[2]), random.Random(int(sys.argv[3])), sys.argv[4:]
    done = collections.Counter()
    while True:
        killed = sum(done.values())
        kind = "" if killed == kills else "end" if killed >= kills - kills // 5 else KINDS[killed % 4]
        before, moment = evaluations(output), rng.uniform(0, 2)
        pid = start(["--resume", *options, "OUTPUT_DIR", output])
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            ready = {
                "training": steps.value > moment,
                "SIGTERM": steps.value > moment,
                "write": writing(output),
                "evaluation": evaluations(output) > before,
                "end": evaluations(output) > before and os.path.exists(os.path.join(output, "model_final.pth")),
            }
            if kind and ready[kind]:
                if kind in ("training", "SIGTERM"):
                    time.sleep(moment % 1 / 5)  # a step is some 0.2 s
                os.kill(pid, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
                _, status = os.waitpid(pid, 0)
                break
            time.sleep(0.002)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
            break
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 143:
            done[kind] += 1
            continue
        sys.exit(f"exit code {os.WEXITSTATUS(status)}: see killed.log")
    print(json.dumps({"kills": done}))


if __name__ == "__main__":
    main()
