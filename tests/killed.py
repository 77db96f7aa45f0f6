"""Runs train_net.py in processes that are killed, again and again with --resume until one comes to its end; the imports are done once.

python killed.py FOLDER KILLS SEED [KEY VALUE ...]

Prints a line of JSON: {"kills": {kind: number}}. Kinds are of what is under way: "training" (a random moment), "write" (of a checkpoint), "evaluation",
"end" (the last evaluation), and "SIGTERM", which lets the process end by itself.
"""

import collections
import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import detectron2.engine  # noqa: E402, F401

import train_net  # noqa: E402
from backbones.engine import Trainer  # noqa: E402, F401

KINDS = ("training", "write", "evaluation", "SIGTERM", "end")


def start(arguments) -> int:
    pid = os.fork()
    if pid:
        return pid
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
        kind = KINDS[sum(done.values()) % 5] if sum(done.values()) < kills else ""
        before, begun, moment = evaluations(output), time.monotonic(), rng.uniform(1.5, 6.0)
        pid = start(["--resume", *options, "OUTPUT_DIR", output])
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            ready = {
                "training": time.monotonic() - begun > moment,
                "SIGTERM": time.monotonic() - begun > moment,
                "write": writing(output),
                "evaluation": evaluations(output) > before,
                "end": evaluations(output) > before and os.path.exists(os.path.join(output, "model_final.pth")),
            }
            if kind and ready[kind]:
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
