"""Trains by `launch`, in however many processes, and leaves each process's weights behind: run by test_train_net.py."""

import os
import sys

import torch
from detectron2.engine import hooks
from detectron2.utils import comm

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
import train_net  # noqa: E402
from backbones.engine import Trainer, launch  # noqa: E402
from backbones.engine.supernet import supernets  # noqa: E402


def main(args):
    cfg = train_net.setup(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    paths = []
    trainer.register_hooks([hooks.CallbackHook(after_step=lambda t: paths.append([net.choices for net in supernets(t.model)]))])
    trainer.train()
    weights = {name.replace("module.", ""): p.detach() for name, p in trainer.model.named_parameters()}
    torch.save(
        {"weights": weights, "processes": comm.get_world_size(), "paths": paths}, os.path.join(cfg.OUTPUT_DIR, f"rank{comm.get_rank()}.pth")
    )


if __name__ == "__main__":
    args = train_net.argument_parser().parse_args()
    launch(main, args, "cpu")
