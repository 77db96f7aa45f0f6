"""train_net.py for `torchrun`, with a first argument: "lost" kills the second process once, in iteration 5."""

import os
import signal
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import train_net
from backbones.engine.step import Steps

run_step = Steps.run_step


def step(self) -> None:
    if self.iter == 5 and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        open(os.path.join(sys.argv[-1], "was_lost"), "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    run_step(self)


if sys.argv.pop(1) == "lost":
    Steps.run_step = step
train_net.command_line()
