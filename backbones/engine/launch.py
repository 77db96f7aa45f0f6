"""Starting the processes of a run: detectron2's way (``--num-gpus``), or by ``torchrun``."""

import argparse
import contextlib
import multiprocessing
import os
import pickle
import re
import signal
import sys
import tempfile
import time
import uuid
from typing import Any, Callable, Iterator, TypeVar

import cloudpickle
import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.distributed.rendezvous import rendezvous

from ..errors import UserError
from .logs import hush
from .signals import exit_code

T = TypeVar("T")


def count_processes(args) -> int:
    """How many processes the run will have, over all machines. Raises UserError for counts that cannot be."""
    if _torchrun():
        return int(os.environ["WORLD_SIZE"])
    for flag, count, least in (("--num-gpus", args.num_gpus, 0), ("--num-machines", args.num_machines, 1)):  # detectron2 takes 0 GPUs as 1
        if count < least:
            raise UserError(f"{flag} {count}: it must be at least 1", "value", flag, 1)
    return max(args.num_gpus, 1) * args.num_machines


def _torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(main: Callable, args: argparse.Namespace, device: str, prepare: Callable[[], Any]) -> None:
    """Runs ``main(args, prepare())`` in every process of the run; ``prepare`` is called once on each machine.

    Under ``torchrun`` this process is one of them already, and the counts in ``args`` are not looked at. Otherwise ``args.num_gpus`` processes
    are started on each of ``args.num_machines`` machines: one a GPU, or where ``device`` is "cpu", talking by gloo, as many as asked for.
    ``args.resume`` is set where ``torchrun`` has started a training anew.
    """
    hush()
    cuda = torch.device(device).type == "cuda"
    if _torchrun():
        local_rank, local_size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        _check_gpus(local_size if cuda else 0)
        if cuda:
            torch.cuda.set_device(local_rank)
        store, rank, size = next(rendezvous("env://"))
        name, number = _meet(store, rank, size)
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=dist.PrefixStore(name, store), rank=rank, world_size=size, timeout=DEFAULT_TIMEOUT)
        comm.create_local_process_group(local_size)
        try:
            # after a loss all processes are started anew, those of a node that is new itself for the first time
            if max(comm.all_gather(number)) > 0 and not getattr(args, "eval_only", False):
                args.resume = True
            main(args, once_a_machine(prepare))
        finally:
            dist.destroy_process_group()
        return
    count_processes(args)
    _check_gpus(args.num_gpus if cuda else 0)
    if args.num_machines > 1 and args.dist_url == "auto":
        message = "--dist-url auto is for one machine: with --num-machines, name the first machine, such as tcp://10.0.0.1:29500"
        raise UserError(message, code="missing-argument", key="--dist-url")
    if args.dist_url != "auto" and not re.match(r"(tcp://[^/]+:\d+|file:///.+|env://)", args.dist_url):
        message = f"--dist-url {args.dist_url!r} is no place to meet: name the first machine and a port, such as tcp://10.0.0.1:29500"
        raise UserError(message, "value", "--dist-url")
    if not 0 <= args.machine_rank < args.num_machines:
        message = f"--machine-rank {args.machine_rank} is not from 0 to --num-machines {args.num_machines} - 1"
        raise UserError(message, key="--machine-rank")
    processes, prepared = max(args.num_gpus, 1), prepare()
    if processes * args.num_machines == 1:
        main(args, prepared)
        return
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # detectron2 takes NCCL wherever it sees a GPU
    try:
        with _pass_on_signals():
            detectron2.engine.launch(
                _begin,
                processes,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args, cloudpickle.dumps(prepared)),
            )
    except torch.multiprocessing.ProcessExitedException as error:
        if error.signal_name:  # the system ended it, for want of memory most often; any other has said why itself
            raise UserError(f"process {error.error_index} of the run was killed by {error.signal_name}", code="resources") from error
        sys.exit(error.exit_code)


def _begin(main: Callable, args: argparse.Namespace, packed: bytes) -> None:
    hush()
    main(args, cloudpickle.loads(packed))


def once_a_machine(read: Callable[[], T]) -> T:
    """What ``read()`` gives, or the UserError that it raises: the first process of each machine calls it, the others get what comes of it."""
    if comm.get_local_size() == 1:
        return read()
    handed: Any = None
    path = ""
    if comm.get_local_rank() == 0:
        try:
            handed = read()
        except UserError as error:
            handed = error
        with tempfile.NamedTemporaryFile(prefix="backbones-", delete=False) as written:
            cloudpickle.dump(handed, written)
        path = written.name
    paths = comm.all_gather(path)
    if not path:
        with open(paths[comm.get_rank() - comm.get_local_rank()], "rb") as f:
            handed = pickle.load(f)
    comm.synchronize()
    if path:
        os.remove(path)
    if isinstance(handed, UserError):
        raise handed
    return handed


def _meet(store: dist.Store, rank: int, size: int) -> tuple[str, int]:
    """A name of this start of all processes that no other start has, and whether it is a restart: a number above 0, in some process at least.

    The store outlives restarts, and the addresses in it of processes that have ended are not to be taken for those of this start. How often
    each node's agent has restarted its own processes is not the same on all nodes. So the first process gives the name to whoever asks
    under a word of its own, until all have it.
    """
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    own = uuid.uuid4().hex
    if rank:
        store.set(f"ask/{rank}", own)
        name = store.get(f"answer/{own}").decode()
        store.set(f"has/{name}/{rank}", "")
        return name, restarts
    started = store.add("starts", 1) - 1
    waiting, until = set(range(1, size)), time.monotonic() + DEFAULT_TIMEOUT.total_seconds()
    while waiting:
        if time.monotonic() > until:
            raise UserError(f"{len(waiting)} of {size} processes did not start, such as number {min(waiting)}")
        for other in sorted(waiting):
            if store.check([f"has/{own}/{other}"]):
                waiting.remove(other)
            elif store.check([f"ask/{other}"]):  # perhaps one's that has ended, whose answer nobody reads
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", own)
        time.sleep(0.01)
    return own, max(restarts, started)


@contextlib.contextmanager
def _pass_on_signals() -> Iterator[None]:
    """Gives SIGTERM and SIGINT, which end a run in order, to the processes that this one has started; their exit code is then its own."""
    own = os.getpid()

    def pass_on(number, frame) -> None:
        if os.getpid() != own:  # a process that has not yet a handler of its own
            os._exit(exit_code(number))
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    # Ctrl-C on a terminal reaches all processes by itself; this one waits for the others
    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_gpus(wanted: int) -> None:
    if wanted > torch.cuda.device_count():
        raise UserError(f"--num-gpus {wanted}, but torch sees {torch.cuda.device_count()} here")
