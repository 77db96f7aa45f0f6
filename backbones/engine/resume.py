"""What a run has to know of itself to be continued as if it had not ended, and to be alone in its folder."""

import contextlib
import glob
import logging
import os
import shutil
from typing import IO, Any, Iterator

import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.solver import LRMultiplier
from detectron2.utils import comm

from ..config import KEYS, first_difference, flat
from ..data.loader import TrainLoader
from ..errors import UserError, counted
from .classes import names_of
from .job import Job

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# keys that change neither what is learned nor from what
_FREE = (
    "OUTPUT_DIR",
    "VIS_PERIOD",
    "DATALOADER.NUM_WORKERS",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.MAX_ITER",
    "MODEL.WEIGHTS",
    "MODEL.WEIGHTS_CLASSES",
    "MODEL.DEVICE",
)
_FREE_GROUPS = ("TEST.", "TRACKING.", "DATASETS.TEST", "DATASETS.PROPOSAL_FILES_TEST", "ONE_SHOT.")
# likewise of Python configs, beside what they call the keys above
_FREE_IN_PYTHON = ("dataloader.test.", "dataloader.evaluator.", "train.checkpointer.", "train.log_period", "train.ddp.")


class Run:
    """The seed of a run, its place in the data and its ids at trackers; checkpoints hold them, beside the config and the names of classes."""

    def __init__(self, job: Job):
        self.job = job
        self.seed = job.seed if job.seed >= 0 else comm.shared_random_seed()
        self.loaded: dict[str, Any] | None = None
        self.tracked: dict[str, str] = {}  # ids of the runs at trackers
        self.start = (0, 0)  # an iteration, and how many batches had been taken before it

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": int(self.seed),
            "processes": comm.get_world_size(),
            "batch": self.job.batch,
            "accumulate": self.job.accumulate,
            "start": list(self.start),
            "classes": self.names().get("classes", []),
            "stuff": self.names().get("stuff", []),
            "tracked": dict(self.tracked),
            "config": yaml.safe_dump(self.job.config),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded = state_dict

    def names(self) -> dict[str, list[str]]:
        """Of the classes that the model learns: `classes.names_of`."""
        return {} if self.job.dataset is None else names_of(MetadataCatalog.get(self.job.dataset))

    def go_on(self, iteration: int) -> int:
        """Puts the loader to where training goes on, says what is not as it was, and returns the seed.

        Raises UserError where the classes are others.
        """
        batch = iteration * self.job.accumulate
        if self.loaded is not None:
            self.seed = self.loaded["seed"]
            self.tracked.update(self.loaded.get("tracked", {}))
            self._compare(self.loaded)
            was = self.loaded["processes"], self.loaded["batch"], self.loaded["accumulate"]
            now = comm.get_world_size(), self.job.batch, self.job.accumulate
            self.start = tuple(self.loaded["start"])
            batch = self.start[1] + (iteration - self.start[0]) * was[2]
            if was != now:
                logging.getLogger(__name__).warning(
                    f"this run had {was[0]} processes and {was[1]} images an iteration in {was[2]} parts, now {now[0]}, {now[1]} and {now[2]}: "
                    "it goes on at the same number of images, whose order is another"
                )
                batch = batch * was[1] * now[2] // (was[2] * now[1])
                self.start = (iteration, batch)
        if isinstance(self.job.loader, TrainLoader):
            self.job.loader.go_to(self.seed, batch)
        return self.seed

    def _compare(self, loaded: dict[str, Any]) -> None:
        before, now = loaded["classes"], self.names().get("classes", [])
        if before != now:
            was, is_now = first_difference(before, now)
            raise UserError(
                f"--resume: the run in {self.job.output_dir!r} has {counted(len(before), 'class')}, now {len(now)}: {was!r} of the "
                f"one stands where the other has {is_now!r}. For a new run take another folder, and this one's weights to begin with"
            )
        old, new = flat(yaml.safe_load(loaded["config"])), flat(self.job.config)
        groups = (*_FREE_GROUPS, *_FREE_IN_PYTHON)
        free = {self.job.name(key) for key in (*_FREE, *(row.name for row in KEYS if row.name.startswith(_FREE_GROUPS)), "TEST.EVAL_PERIOD")}
        changed = [
            f"{key} {old[key]} -> {value}"
            for key, value in new.items()
            if key in old and old[key] != value and key not in free and not key.startswith(groups)
        ]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            kept = any(change.startswith(("SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.MOMENTUM", "optimizer.")) for change in changed)
            stay = ". Learning rate, weight decay and momentum are the checkpoint's: they stay as they were, but with --new-schedule"
            logging.getLogger(__name__).warning(f"--resume: the config is not as it was: {'; '.join(changed[:5])}{more}{stay if kept else ''}")


def keep_schedule(optimizer: torch.optim.Optimizer, scheduler: Any, iteration: int, fresh: list[dict[str, Any]] | None) -> None:
    """Makes a loaded optimizer and scheduler go on at ``iteration``: with the ``fresh`` options of its groups, or with None as they were.

    Raises UserError where the schedule is another than the checkpoint's, so that the learning rate would jump, and ``fresh`` is None.
    """
    if not isinstance(scheduler, LRMultiplier):  # of the user's own: it goes on as its state says
        if fresh is not None:
            raise UserError("--new-schedule is for schedulers of detectron2's LRMultiplier", code="unsupported", key="--new-schedule")
        return
    was = [group["lr"] for group in optimizer.param_groups]
    if fresh is not None:
        for group, new in zip(optimizer.param_groups, fresh):
            group.update({key: value for key, value in new.items() if key != "params"})
        scheduler.base_lrs = [group["initial_lr"] for group in fresh]
    scheduler.last_epoch = iteration
    now = scheduler.get_lr()
    for group, rate in zip(optimizer.param_groups, now):
        group["lr"] = rate
    differ = [(a, b) for a, b in zip(was, now) if abs(a - b) > 1e-6 * max(abs(a), abs(b))]
    if differ and fresh is not None:
        logging.getLogger(__name__).warning(f"--new-schedule: the learning rate goes from {differ[0][0]:g} to {differ[0][1]:g}")
    elif differ:
        raise UserError(
            f"--resume: the learning rate would jump from {differ[0][0]:g} to {differ[0][1]:g}, as the schedule is not the checkpoint's: "
            "set it back, or add --new-schedule to go on with the new one",
            code="resume",
            key="--new-schedule",
        )


# what a run leaves in its folder
_LEFT = ("model_*.pth", "last_checkpoint", "metrics.json", "events.out.tfevents*", "log.txt*", "inference", "inference_TTA", "pictures")


def clear(folder: str, overwrite: bool, weights: str) -> None:
    """Refuses a folder that holds another run's checkpoints, or with ``overwrite`` removes what that run left there, and says so.

    Raises UserError; so too where the ``weights`` to begin with are among what would be removed.
    """
    if "://" in folder or not comm.is_main_process():
        return
    there = sorted(path for pattern in _LEFT for path in glob.glob(os.path.join(glob.escape(folder), pattern)))
    checkpoints = [path for path in there if path.endswith(".pth")]
    if checkpoints and not overwrite:
        raise UserError(
            f"{folder!r} holds another run ({os.path.basename(checkpoints[-1])}): go on with it by --resume, name another folder, "
            "or remove it by --overwrite",
            code="folder-in-use",
            key="--overwrite",
        )
    if overwrite and os.path.abspath(weights) in map(os.path.abspath, there):
        raise UserError(f"--overwrite would remove {weights!r}, with which the run is to begin: copy it elsewhere", code="folder-in-use")
    if overwrite and there:
        for path in there:
            shutil.rmtree(path) if os.path.isdir(path) else os.remove(path)
        with_it = counted(len(checkpoints), "checkpoint")
        logging.getLogger(__name__).warning(f"--overwrite: the earlier run in {folder!r} is removed, {with_it} among it")


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """Holds a folder for the processes of one run. Raises UserError where another holds it."""
    if not comm.is_main_process() or "://" in folder:
        yield
        return
    try:
        os.makedirs(folder, exist_ok=True)
        file = open(os.path.join(folder, ".lock"), "a")
    except OSError as error:
        raise UserError(f"OUTPUT_DIR {folder!r} cannot be written: {error.strerror}") from error
    with file:
        try:
            _hold(file)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"another run is training in OUTPUT_DIR {folder!r}: take another one, or end it first", "folder-in-use") from error
        except OSError as error:  # a file system without locks
            logging.getLogger(__name__).warning(f"OUTPUT_DIR {folder!r} cannot be kept from other runs: {error.strerror or error}")
        yield


def _hold(file: IO) -> None:
    """Raises BlockingIOError or PermissionError where another process holds the file, another OSError where there are no locks."""
    if fcntl is not None:  # not flock, portalocker's choice, which the loader's workers would hold on to after a kill, until they notice
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import portalocker

    try:
        portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked as error:
        raise BlockingIOError(str(error)) from error
    except portalocker.LockException as error:
        raise OSError(str(error)) from error
