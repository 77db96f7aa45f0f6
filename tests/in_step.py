"""Trains by `launch`, in however many processes, and leaves each process's weights behind: run by test_train_net.py."""

import os
import sys

import torch
from detectron2.engine import hooks
from detectron2.utils import comm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from backbones.engine import count_processes, launch
from backbones.shufflenetv2 import supernets
from backbones.tools.train import argument_parser, read_config


def main(args, front):
    torch.manual_seed(comm.get_rank())  # so that all runs begin with the weights of the first process
    trainer = front.fit()
    trainer.resume_or_load(args.resume, args.new_schedule)
    validated = front.validate(trainer.model) if front.settings.TEST.LOSS else {}
    paths = []
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: paths.append([net.choices for net in supernets(t.model)]))])
    trainer.train()
    weights = {name.replace("module.", ""): p.detach() for name, p in trainer.model.named_parameters()}
    torch.save(
        {"weights": weights, "processes": comm.get_world_size(), "paths": paths, "validated": validated},
        os.path.join(front.settings.OUTPUT_DIR, f"rank{comm.get_rank()}.pth"),
    )


if __name__ == "__main__":
    args = argument_parser().parse_args()
    front = read_config(args)
    launch(main, args, "cpu", lambda: front.prepare(args, count_processes(args)))
