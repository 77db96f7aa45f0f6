"""Starts the processes of a run: as detectron2 does (``--num-gpus``), or under ``torchrun``."""

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
    """The number of processes of the run, over all machines. Raises UserError for invalid counts."""
    if by_torchrun():
        here, every = (int(os.environ[name]) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
        for flag, count, other in (("--num-gpus", args.num_gpus, here), ("--num-machines", args.num_machines, every // here)):
            if count not in (1, other):
                raise UserError(f"{flag} {count}: torchrun started {other} instead, so leave the flag out", "conflict", flag)
        return every
    for flag, count, least in (("--num-gpus", args.num_gpus, 0), ("--num-machines", args.num_machines, 1)):  # detectron2 treats 0 GPUs as 1
        if count < least:
            raise UserError(f"{flag} {count}: it must be at least 1", "value", flag, 1)
    return max(args.num_gpus, 1) * args.num_machines


def by_torchrun() -> bool:
    """Whether ``torchrun`` has started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def launch(main: Callable, args: argparse.Namespace, device: str, prepare: Callable[[], Any]) -> None:
    """Runs ``main(args, prepare())`` in every process of the run; ``prepare`` is called once on each machine.

    Under ``torchrun`` this process already is one of them. Otherwise ``args.num_gpus`` processes
    start on each of ``args.num_machines`` machines: one per GPU, or with ``device`` "cpu" as many as requested, which use gloo.
    ``args.resume`` is set if ``torchrun`` has restarted the training.
    """
    hush()
    cuda = torch.device(device).type == "cuda"
    if by_torchrun():
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
            # after a failure torchrun restarts all processes; on a replaced node they start for the first time
            if max(comm.all_gather(number)) > 0 and not getattr(args, "eval_only", False):
                args.resume = True
            main(args, once_a_machine(prepare))
        finally:
            dist.destroy_process_group()
        return
    count_processes(args)
    _check_gpus(args.num_gpus if cuda else 0)
    if args.num_machines > 1 and args.dist_url == "auto":
        message = "--dist-url auto works on one machine only: with --num-machines, name the first machine, such as tcp://10.0.0.1:29500"
        raise UserError(message, code="missing-argument", key="--dist-url")
    if args.dist_url != "auto" and not re.match(r"(tcp://[^/]+:\d+|file:///.+|env://)", args.dist_url):
        message = f"--dist-url {args.dist_url!r} is invalid: name the first machine and a port, such as tcp://10.0.0.1:29500"
        raise UserError(message, "value", "--dist-url")
    if not 0 <= args.machine_rank < args.num_machines:
        message = f"--machine-rank {args.machine_rank}: it must be from 0 to {args.num_machines - 1} (--num-machines - 1)"
        raise UserError(message, key="--machine-rank")
    processes, prepared = max(args.num_gpus, 1), prepare()
    if processes * args.num_machines == 1:
        main(args, prepared)
        return
    if not cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # detectron2 uses NCCL whenever it sees a GPU
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
        if error.signal_name:  # the system killed it, usually for lack of memory; other failures have reported their own reason
            raise UserError(f"process {error.error_index} of the run was killed by {error.signal_name}", code="resources") from error
        sys.exit(error.exit_code)


def _begin(main: Callable, args: argparse.Namespace, packed: bytes) -> None:
    hush()
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:  # threads that wait for cores keep them busy
        torch.set_num_threads(max(torch.get_num_threads() // comm.get_local_size(), 1))
    main(args, cloudpickle.loads(packed))


def once_a_machine(read: Callable[[], T]) -> T:
    """The result of ``read()``, or its UserError: the first process of each machine calls it and shares the outcome with the others."""
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
    """A unique name for this start of all processes, and whether it is a restart: a number above 0, in at least one process.

    The store outlives restarts, so addresses of ended processes must not be mistaken for those of this start. How often
    each node's agent has restarted its processes differs between nodes. So the first process gives the name to every process that asks
    with a key of its own, until all have it.
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
            elif store.check([f"ask/{other}"]):  # perhaps from an ended process; nobody reads that answer
                store.set(f"answer/{store.get(f'ask/{other}').decode()}", own)
        time.sleep(0.01)
    return own, max(restarts, started)


@contextlib.contextmanager
def _pass_on_signals() -> Iterator[None]:
    """Forwards SIGTERM and SIGINT, which end a run cleanly, to the processes that this one started, and exits with their code."""
    own = os.getpid()

    def pass_on(number, frame) -> None:
        if os.getpid() != own:  # a child process without a handler of its own yet
            os._exit(exit_code(number))
        for child in multiprocessing.active_children():
            if child.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    # the terminal sends Ctrl-C to all processes; this one waits for the others
    handlers = {signal.SIGTERM: pass_on, signal.SIGINT: lambda number, frame: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_gpus(wanted: int) -> None:
    if wanted > torch.cuda.device_count():
        raise UserError(f"--num-gpus {wanted}, but torch sees {torch.cuda.device_count()} on this machine")
