"""What a run has to know of itself to be continued as if it had not ended, and to be alone in its folder."""

import contextlib
import fcntl
import logging
import os
from typing import Any, Dict, Iterator, List, Optional

import yaml
from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..config import flat
from ..data.loader import TrainLoader
from ..errors import UserError

# keys that change neither what is learned nor from what
_FREE = ("OUTPUT_DIR", "VIS_PERIOD", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_PERIOD", "SOLVER.MAX_ITER", "MODEL.WEIGHTS", "MODEL.DEVICE")
_FREE_GROUPS = ("TEST.", "TRACKING.", "DATASETS.TEST", "DATASETS.PROPOSAL_FILES_TEST", "ONE_SHOT.")


class Run:
    """The seed of a run and its place in the data; every checkpoint holds them, beside the config and the names of classes.

    Args:
        loader: of its training data.
        seed: below 0: a random one, the same in all processes.
        batch: images an iteration, in all processes, taken in ``accumulate`` parts.
        dataset: the name of a training set, whose classes the model learns; None where it has none.
        folder: of its checkpoints.
        config: keys and values, nested dicts; what has changed in it is said at a resume.
    """

    def __init__(self, loader: Any, seed: int, batch: int, accumulate: int, dataset: Optional[str], folder: str, config: Dict[str, Any]):
        self.loader, self.batch, self.accumulate, self.dataset, self.folder, self.config = loader, batch, accumulate, dataset, folder, config
        self.seed = seed if seed >= 0 else comm.shared_random_seed()
        self.loaded: Optional[Dict[str, Any]] = None
        self.start = (0, 0)  # an iteration, and how many batches had been taken before it

    def state_dict(self) -> Dict[str, Any]:
        return {
            "seed": int(self.seed),
            "processes": comm.get_world_size(),
            "batch": self.batch,
            "accumulate": self.accumulate,
            "start": list(self.start),
            "classes": self._classes(),
            "config": yaml.safe_dump(self.config),
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.loaded = state_dict

    def _classes(self) -> List[str]:
        if self.dataset is None:
            return []
        metadata = MetadataCatalog.get(self.dataset)
        return list(map(str, metadata.get("thing_classes") or metadata.get("classes") or metadata.get("stuff_classes") or []))

    def go_on(self, iteration: int) -> int:
        """Puts the loader to where training goes on, says what is not as it was, and returns the seed.

        Raises UserError where the classes are others.
        """
        batch = iteration * self.accumulate
        if self.loaded is not None:
            self.seed = self.loaded["seed"]
            self._compare()
            was = self.loaded["processes"], self.loaded["batch"], self.loaded["accumulate"]
            now = comm.get_world_size(), self.batch, self.accumulate
            self.start = tuple(self.loaded["start"])
            batch = self.start[1] + (iteration - self.start[0]) * was[2]
            if was != now:
                logging.getLogger(__name__).warning(
                    f"this run had {was[0]} processes and {was[1]} images an iteration in {was[2]} parts, now {now[0]}, {now[1]} and {now[2]}: "
                    "it goes on at the same number of images, whose order is another"
                )
                batch = batch * was[1] * now[2] // (was[2] * now[1])
                self.start = (iteration, batch)
        if isinstance(self.loader, TrainLoader):
            self.loader.go_to(self.seed, batch)
        return self.seed

    def _compare(self) -> None:
        before, now = self.loaded["classes"], self._classes()
        if before != now:
            first = next((a, b) for a, b in zip([*before, None], [*now, None]) if a != b)
            raise UserError(
                f"--resume: the run in {self.folder!r} has {len(before)} classes, the training data now {len(now)}: {first[0]!r} of the one stands "
                f"where the other has {first[1]!r}. For a new run take another folder, and this one's weights to begin with"
            )
        old, new = flat(yaml.safe_load(self.loaded["config"])), flat(self.config)
        changed = [
            f"{key} {old[key]} -> {value}"
            for key, value in new.items()
            if key in old and old[key] != value and key not in _FREE and not key.startswith(_FREE_GROUPS)
        ]
        if changed:
            more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
            rates = any(change.startswith(("SOLVER.", "optimizer.")) for change in changed)
            stay = ". Learning rate, weight decay and momentum are in the checkpoint, and stay as they were" if rates else ""
            logging.getLogger(__name__).warning(f"--resume: the config is not as it was: {'; '.join(changed[:5])}{more}{stay}")


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
            # not flock, which the loader's workers would hold on to after a kill, until they notice
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(f"another run is training in OUTPUT_DIR {folder!r}: take another one, or end it first") from error
        except OSError as error:  # a file system without locks
            logging.getLogger(__name__).warning(f"OUTPUT_DIR {folder!r} cannot be kept from other runs: {error.strerror}")
        yield
