"""Starting the processes of a run: detectron2's way (``--num-gpus``), or by ``torchrun``."""

import os
import sys
from typing import Callable

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..errors import UserError


def launch(main: Callable, args, device: str) -> None:
    """Runs ``main(args)`` in every process of the run.

    Under ``torchrun`` this process is one of them already, and the counts in ``args`` are not looked at. Otherwise ``args.num_gpus`` processes
    are started on each of ``args.num_machines`` machines: one a GPU, or where ``device`` is "cpu", talking by gloo, as many as asked for.
    """
    cuda = torch.device(device).type == "cuda"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _check_gpus(local_size if cuda else 0)
        if cuda:
            torch.cuda.set_device(local_rank)
        dist.init_process_group("nccl" if cuda else "gloo")
        comm.create_local_process_group(local_size)
        try:
            main(args)
        finally:
            dist.destroy_process_group()
        return
    _check_gpus(args.num_gpus if cuda else 0)
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # detectron2 takes NCCL wherever it sees a GPU
    try:
        detectron2.engine.launch(
            main, max(args.num_gpus, 1), num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url, args=(args,)
        )
    except torch.multiprocessing.ProcessExitedException as error:
        sys.exit(error.exit_code)  # the process has said why


def _check_gpus(wanted: int) -> None:
    if wanted > torch.cuda.device_count():
        raise UserError(f"--num-gpus {wanted}, but torch sees {torch.cuda.device_count()} here")
