"""What a run must save to resume as if it had not been interrupted, and how it keeps its folder to itself."""

import contextlib
import glob
import logging
import os
import shutil
from typing import IO, Any, Callable, Iterator

import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.solver import LRMultiplier
from detectron2.utils import comm

from ..config import KEYS, first_difference, flat
from ..data.holdout import HELD_OUT, KEPT
from ..data.loader import TrainLoader
from ..errors import UserError, counted, first_of
from ..files import overwritten
from .classes import names_of
from .job import Job

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None  # type: ignore[assignment]

# keys that change neither what is learned nor the data it is learned from
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
# the same for Python configs, in addition to the keys above
_FREE_IN_PYTHON = ("dataloader.test.", "dataloader.evaluator.", "train.checkpointer.", "train.log_period", "train.ddp.")


class Run:
    """The seed of a run, its place in the data and its tracker ids; checkpoints hold them with the config and the class names."""

    def __init__(self, job: Job):
        self.job = job
        self.seed = job.seed if job.seed >= 0 else comm.shared_random_seed()
        self.loaded: dict[str, Any] | None = None
        self.tracked: dict[str, str] = {}  # ids of the runs at trackers
        self.start = (0, 0)  # an iteration, and how many batches came before it
        self.tests_others = False  # whether the resumed run had other test data

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
        """The names of the classes that the model learns: `classes.names_of`."""
        return {} if self.job.dataset is None else names_of(MetadataCatalog.get(self.job.dataset))

    def go_on(self, iteration: int) -> int:
        """Moves the loader to where training resumes, reports what has changed, and returns the seed.

        Raises UserError if the classes differ.
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
                    f"this run had {was[0]} processes and {was[1]} images per batch in {was[2]} parts, now {now[0]}, {now[1]} and {now[2]}: "
                    "it continues after the same number of images, in a different order"
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
                f"--resume: the run in {self.job.output_dir!r} has {counted(len(before), 'class')}, the config now {len(now)}; "
                f"the first difference is {was!r}, now {is_now!r}. Start a new run in another folder from this run's weights"
            )
        old, new = flat(yaml.safe_load(loaded["config"])), flat(self.job.config)
        self.tests_others = _tested(old, self.job.name) != _tested(new, self.job.name)
        groups = (*_FREE_GROUPS, *_FREE_IN_PYTHON)
        free = {self.job.name(key) for key in (*_FREE, *(row.name for row in KEYS if row.name.startswith(_FREE_GROUPS)), "TEST.EVAL_PERIOD")}
        changed = [
            f"{key} {old[key]} -> {value}"
            for key, value in new.items()
            if key in old and old[key] != value and key not in free and not key.startswith(groups)
        ]
        if changed:
            of_groups = ("SOLVER.BASE_LR", "SOLVER.WEIGHT_DECAY", "SOLVER.MOMENTUM", "SOLVER.OFFSET_LR_FACTOR", "optimizer.")
            kept = any(change.startswith(of_groups) for change in changed)
            stay = ". Learning rate, weight decay and momentum stay those of the checkpoint unless you add --new-schedule"
            logging.getLogger(__name__).warning(f"--resume: the config has changed: {first_of(changed, between='; ')}{stay if kept else ''}")


def _tested(config: dict[str, Any], name: Callable[[str], str]) -> tuple[Any, ...]:
    """The test data as a flat config states them, without the folders of their files: these may have moved."""
    tests, held_out, register = (config.get(name(key)) or [] for key in ("DATASETS.TEST", "DATASETS.HOLD_OUT", "DATASETS.REGISTER"))
    names = [tests] if isinstance(tests, str) else list(tests)
    used = {each.removesuffix(HELD_OUT).removesuffix(KEPT) for each in names}
    files = [[os.path.basename(str(part)) for part in row] for row in register if row[0] in used]
    return names, [list(row) for row in held_out if row[0] in used], files


def keep_schedule(optimizer: torch.optim.Optimizer, scheduler: Any, iteration: int, fresh: list[dict[str, Any]] | None) -> None:
    """Makes a loaded optimizer and scheduler continue at ``iteration``, with the ``fresh`` options of its groups; None keeps the old ones.

    Raises UserError if ``fresh`` is None and the learning rate would jump because the schedule differs from the checkpoint's.
    """
    if not isinstance(scheduler, LRMultiplier):  # the user's own: it continues from its state
        if fresh is not None:
            raise UserError("--new-schedule works only with detectron2's LRMultiplier", code="unsupported", key="--new-schedule")
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
        logging.getLogger(__name__).warning(f"--new-schedule: the learning rate changes from {differ[0][0]:g} to {differ[0][1]:g}")
    elif differ:
        raise UserError(
            f"--resume: the learning rate would jump from {differ[0][0]:g} to {differ[0][1]:g}, because the schedule is not the checkpoint's: "
            "restore it, or add --new-schedule to continue with the new one",
            code="resume",
            key="--new-schedule",
        )


# what a run writes into its folder
_LEFT = ("model_*.pth", "last_checkpoint", "metrics.json", "events.out.tfevents*", "log.txt*", "inference", "inference_TTA", "pictures")


def clear(folder: str, overwrite: bool, weights: str) -> None:
    """Refuses a folder that holds another run's checkpoints, or with ``overwrite`` removes that run's files and says so.

    Raises UserError, also if the initial ``weights`` are among the files to remove.
    """
    if "://" in folder or not comm.is_main_process():
        return
    there = sorted(path for pattern in _LEFT for path in glob.glob(os.path.join(glob.escape(folder), pattern)))
    checkpoints = [path for path in there if path.endswith(".pth")]
    if checkpoints and not overwrite:
        raise UserError(
            f"{folder!r} holds another run ({os.path.basename(checkpoints[-1])}): continue it with --resume, name another folder, "
            "or remove it with --overwrite",
            code="folder-in-use",
            key="--overwrite",
        )
    if overwrite and weights and overwritten([weights.partition("?")[0]], there):
        raise UserError(f"--overwrite would remove {weights!r}, from which the run starts: copy it elsewhere", code="folder-in-use")
    if overwrite and there:
        for path in there:
            shutil.rmtree(path) if os.path.isdir(path) and not os.path.islink(path) else os.remove(path)
        with_it = counted(len(checkpoints), "checkpoint")
        logging.getLogger(__name__).warning(f"--overwrite: the earlier run in {folder!r} is removed, with {with_it}")


@contextlib.contextmanager
def lock(folder: str) -> Iterator[None]:
    """Locks a folder for the processes of one run. Raises UserError if another run holds the lock."""
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
            raise UserError(f"another run is training in OUTPUT_DIR {folder!r}: name another, or end that run", "folder-in-use") from error
        except OSError as error:  # the file system has no locks
            logging.getLogger(__name__).warning(f"OUTPUT_DIR {folder!r} cannot be locked against other runs: {error.strerror or error}")
        yield


def _hold(file: IO) -> None:
    """Raises BlockingIOError or PermissionError if another process holds the file, another OSError if there are no locks."""
    if fcntl is not None:  # not flock, portalocker's choice: after a kill the loader's workers would keep such a lock until they notice
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    import portalocker

    try:
        portalocker.lock(file, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked as error:
        raise BlockingIOError(str(error)) from error
    except portalocker.LockException as error:
        raise OSError(str(error)) from error
