"""Training examples that depend on a seed and a position alone: a resumed run sees the same examples as an uninterrupted one.

detectron2 restarts the order of images, and the random numbers of augmentations, at each resume. Here batches are formed from indices, before
anything is read, so a run can start at any iteration at no cost. Each example seeds its own random numbers, so the number of workers
does not matter either.
"""

import itertools
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import dataclass
from typing import Any, Callable, Iterator, Sequence

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import Instances
from detectron2.utils import comm
from PIL import UnidentifiedImageError
from torch.utils import data as torchdata

from .. import upstream
from ..errors import UserError, first_of, one_line
from .images import UNREADABLE, UnusableImage
from .packed import Packed

_TRIES = 20  # replacements that are tried for a skipped image


def seed_random_numbers(*numbers: int) -> None:
    """Seeds Python's, numpy's and torch's random numbers of this process from some whole numbers, 0 or more."""
    seed = int(np.random.SeedSequence(numbers).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def unreadable(record: dict[str, Any], error: BaseException) -> str:
    """One line that says which image cannot be read, and why."""
    if isinstance(error, UnusableImage):
        return str(error)
    why = f"{type(error).__name__}: {one_line(error)}"
    if isinstance(error, UnidentifiedImageError):  # whose message names a Python object
        size = os.path.getsize(record["file_name"]) if os.path.isfile(str(record.get("file_name"))) else 1
        why = "it holds no image of a known kind" if size else "the file is empty"
    return f"image {record.get('file_name')!r} cannot be read: {why}"


def refusal(problem: str, skip: bool | None) -> UserError:
    """The error for an image that cannot be read; if ``skip`` is False it advises the setting that skips."""
    if skip is None:
        return UserError(problem, "bad-file")
    return UserError(f"{problem}. To leave out such images, set INPUT.UNREADABLE skip", "bad-file", "INPUT.UNREADABLE", "skip")


@dataclass
class NamesFiles:
    """A mapper that raises UserError, with the image's name, for an image that cannot be read.

    With ``skip`` it returns a record with the single entry "unreadable" instead; `Readable` leaves those out.
    """

    mapper: Callable
    skip: bool | None = False

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self.mapper(record)
        except UNREADABLE as error:
            problem = unreadable(record, error)
            if self.skip:
                return {"unreadable": problem}
            raise refusal(problem, self.skip) from error


@dataclass
class Readable:
    """The batches of a loader for evaluation, without unreadable images, which are counted and named at the end.

    ``effect`` says what happens to their objects.
    """

    loader: Any
    effect: str

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        left_out: list[str] = []
        for batch in self.loader:
            left_out += [example["unreadable"] for example in batch if "unreadable" in example]
            rest = [example for example in batch if "unreadable" not in example]
            if rest:
                yield rest
        say_left_out(left_out, f"this evaluation{self.effect}")


def say_left_out(problems: Sequence[str], what: str) -> None:
    """Logs how many images ``what`` leaves out in all processes, and the first of them. Call it in all processes."""
    every = sorted(set(itertools.chain(*comm.gather(list(problems)))))
    if every:
        logging.getLogger(__name__).warning(f"images left out of {what}: {len(every)}: {first_of(every, 3, '; ')}")


# how evaluators count an image without detections; others do not notice
_EFFECTS = dict.fromkeys(("coco", "lvis", "pascal_voc"), ", so their objects count as missed")
_WHOLE = ("coco_panoptic_seg", "cityscapes_instance", "cityscapes_sem_seg", "cityscapes_panoptic_seg")  # evaluators that need every image


def evaluation_loader(build: Callable[..., Any], mapper: Callable, skip: bool | None, kind: str | None) -> Any:
    """The loader that ``build(mapper=...)`` makes, with names in its errors; ``kind`` is the data's ``evaluator_type``.

    With ``skip`` it leaves out unreadable images, unless the evaluator needs all images.
    """
    leaves_out = bool(skip) and kind not in _WHOLE
    loader = build(mapper=NamesFiles(mapper, leaves_out or (None if skip else skip)))
    if isinstance(loader, torchdata.DataLoader) and loader.worker_init_fn is None:
        loader.worker_init_fn = begin_worker  # detectron2's function that builds it takes none
    return Readable(loader, _EFFECTS.get(kind or "", "")) if leaves_out else loader


class Examples(torchdata.Dataset):
    """What ``mapper`` makes of ``records``; ``self[position * len(self) + index]`` is record ``index`` with the random numbers of ``position``.

    With ``skip`` another record replaces an unreadable image, and the example lists the image under "unreadable".
    Otherwise an unreadable image is a UserError, which advises the setting that skips if ``skip`` is False.
    """

    def __init__(self, records: Sequence[dict[str, Any]], mapper: Callable, skip: bool | None = False):
        self.records, self.mapper, self.skip = records, mapper, skip
        self.seed, self.rank = 0, comm.get_rank()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, code: int) -> dict[str, Any]:
        position, index = divmod(code, len(self))
        skipped: list[str] = []
        for attempt in range(_TRIES):
            seed_random_numbers(self.seed, self.rank, position, attempt)
            if attempt:
                index = int(np.random.randint(len(self)))
            record = self.records[index]
            try:
                example = self.mapper(record)
            except UNREADABLE as error:
                problem = unreadable(record, error)
                if not self.skip:
                    raise refusal(problem, self.skip) from error
                skipped.append(problem)
                continue
            if example is not None:
                return {**example, "unreadable": skipped} if skipped else example
        raise UserError(f"{_TRIES} images in a row cannot be used, such as: {skipped[-1] if skipped else 'the mapper returns None'}", "data")


class Batches(torchdata.Sampler):
    """Endless lists of ``size`` codes for `Examples`, made from an infinite sampler's indices, from batch number ``start`` on.

    ``wide`` says for each of ``length`` records whether its image is wider than high; a batch holds only one kind. None: kinds are mixed.
    """

    def __init__(self, sampler: torchdata.Sampler, size: int, length: int, wide: np.ndarray | None = None):
        self.sampler, self.size, self.length, self.wide = sampler, size, length, wide
        self.start = 0

    def __iter__(self) -> Iterator[list[int]]:
        groups: list[list[int]] = [[], []]
        number = 0
        for position, index in enumerate(self.sampler):
            group = groups[0 if self.wide is None else int(self.wide[index])]
            group.append(position * self.length + index)
            if len(group) == self.size:
                if number >= self.start:
                    yield list(group)
                group.clear()
                number += 1


class TrainLoader:
    """An endless iterator over lists of examples. To start elsewhere, call `go_to` before the first.

    ``own_subset``: the sampler's random subset is the user's, and not to be drawn by the seed of the run.
    """

    def __init__(
        self, examples: Examples, sampler: torchdata.Sampler, size: int, wide: np.ndarray | None, workers: int, own_subset: bool = False
    ):
        self.dataset, self.workers, self.own_subset = examples, workers, own_subset
        self.batches = Batches(sampler, size, len(examples), wide)

    def go_to(self, seed: int, batch: int, other: int = 0) -> None:
        """Starts at batch number ``batch`` of the run with this ``seed``, or of one in ``other`` order."""
        self.dataset.seed = seed + other
        upstream.set_seed(self.batches.sampler, seed + other, None if self.own_subset else seed)
        self.batches.start = batch

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        options: dict[str, Any] = dict(batch_sampler=self.batches, collate_fn=share, worker_init_fn=_begin_training_worker)
        iterator = iter(torchdata.DataLoader(self.dataset, num_workers=self.workers, **options))
        try:
            while True:
                yield next(iterator)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker (pid"):
                raise
            said = f"a process that reads images was killed, probably for lack of memory or {_MORE_SHARED_MEMORY} ({error})"
            raise UserError(said, "resources") from error
        finally:  # now, because the end of the process would wait for its workers
            if self.workers:
                upstream.stop_workers(iterator)


_MORE_SHARED_MEMORY = (
    "shared memory, /dev/shm, is too small for the batches of DATALOADER.NUM_WORKERS processes: enlarge it "
    "(docker run --shm-size 8g, or --ipc host), or set a lower DATALOADER.NUM_WORKERS; 0 needs no shared memory"
)


def share(batch: list[Any]) -> list[Any]:
    """Puts a worker's batch into shared memory. Raises UserError if shared memory is too small: torch would lose the batch and wait forever."""
    if torchdata.get_worker_info() is not None:
        try:
            _share(batch)
        except RuntimeError as error:
            if "Too many open files" in str(error):
                raise UserError("the loader's processes have too many files open: raise the limit (ulimit -n 65536)", "resources") from error
            if "shared memory" not in str(error) and "No space left" not in str(error):
                raise
            raise UserError(_MORE_SHARED_MEMORY, "resources", "DATALOADER.NUM_WORKERS", 0) from error
    return batch


def _share(value: Any) -> None:
    if isinstance(value, torch.Tensor):
        value.share_memory_()
    elif isinstance(value, (list, tuple, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _share(item)
    else:  # Instances, and Boxes, BitMasks, Keypoints among their fields
        _share(value.get_fields() if isinstance(value, Instances) else getattr(value, "tensor", ()))


def _begin_training_worker(worker: int) -> None:
    # a signal to all processes stops the run after its iteration, which still needs the workers; they end with the run
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    begin_worker(worker)


def begin_worker(worker: int) -> None:
    """Gives this worker one thread, and ends it if its parent process is killed."""
    cv2.setNumThreads(0)  # torch limits its own. A fork has none of its parent's threads, and would wait for them
    # torch's own watchdog does not end it if a batch waits in a full pipe
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.pid,), daemon=True).start()


def _watch(parent: int | None) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _train_records(cfg: CfgNode) -> list[dict[str, Any]]:
    names = tuple(cfg.DATASETS.TRAIN)
    proposals = cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE if cfg.MODEL.KEYPOINT_ON else 0
    records: list[dict[str, Any]] = []
    try:
        records = get_detection_dataset_dicts(names, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, keypoints, proposals)
    except AssertionError as error:
        if not str(error).startswith("No valid data"):
            raise
    if not records:
        without = ": images without annotations are left out, unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False"
        raise UserError(f"DATASETS.TRAIN {names} has no images to train on{without}", "data", "DATASETS.TRAIN")
    return records


def build_train_loader(
    cfg: CfgNode, mapper: Callable | None = None, share_records: Callable[[Callable[[], Packed]], Packed] | None = None
) -> TrainLoader:
    """The loader of ``cfg.DATASETS.TRAIN``, sampler and grouping as detectron2's loader has them; without ``mapper``, detectron2's own.

    ``share_records(read)`` gives each process of a machine what ``read()`` returns in one of them.
    Raises UserError if no image is left to train on.
    """
    dataset: Sequence = share_records(lambda: _packed(_train_records(cfg))) if share_records else _train_records(cfg)
    if isinstance(dataset, Packed):
        dataset.forget()  # all have it open
    parts = upstream.train_loader_parts(cfg, mapper, dataset=dataset)
    parts["total_batch_size"] = cfg.SOLVER.IMS_PER_BATCH // cfg.SOLVER.ACCUMULATE
    return train_loader(**parts, skip=cfg.INPUT.UNREADABLE == "skip")


def _wide(records: Sequence[dict[str, Any]]) -> np.ndarray | None:
    """Whether each image is wider than high; None unless all have a size."""
    if not all("width" in r and "height" in r for r in records):
        return None
    return np.array([r["width"] > r["height"] for r in records])


def _packed(records: list[dict[str, Any]]) -> Packed:
    return Packed(records, _wide(records))


def train_loader(
    dataset: Sequence[dict[str, Any]],
    mapper: Callable,
    sampler: torchdata.Sampler | None = None,
    total_batch_size: int = 16,
    aspect_ratio_grouping: bool = True,
    num_workers: int = 0,
    *,
    skip: bool | None = None,
    own_subset: bool = False,
) -> TrainLoader:
    """Like detectron2's ``build_detection_train_loader``, with the same arguments; ``skip`` goes to `Examples`, the last to `TrainLoader`."""
    wide = dataset.about if isinstance(dataset, Packed) else _wide(dataset)
    records = dataset if isinstance(dataset, Packed) else DatasetFromList(list(dataset), copy=False)
    examples = Examples(records, mapper, skip)
    return TrainLoader(
        examples,
        sampler or TrainingSampler(len(dataset)),
        total_batch_size // comm.get_world_size(),
        wide if aspect_ratio_grouping else None,
        num_workers,
        own_subset,
    )
