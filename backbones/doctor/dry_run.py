"""A small run: a few steps, an evaluation, a resumed step, in a temporary folder."""

import contextlib
import gc
import math
import os
import tempfile
import time
from typing import Any, Iterator

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets.coco import convert_to_coco_json
from detectron2.engine import HookBase
from detectron2.utils.env import seed_all_rng

from ..data.image_files import evenly
from ..engine.front import Front
from ..errors import Finding, counted
from ..evaluation.build import write_panoptic_part
from .examination import Examination, error, note, size_in_words, words

_WITH_PARTS = ("coco", "coco_panoptic_seg", "sem_seg", "classification")  # evaluator types that accept part of the data


def dry_run(examination: Examination) -> Iterator[Finding]:
    if not examination.sound or not set(examination.cfg.DATASETS.TRAIN) - examination.refused:
        yield note(f"{'the data cannot be read' if examination.sound else 'the config cannot be built'}: no dry run")
        return
    if not examination.usable:
        key, front = "MODEL.DEVICE", examination.front
        yield note(
            f"{front.name(key)} {front.settings.MODEL.DEVICE!r} is not available: no dry run",
            f"add {front.override(key, 'cpu')} to try the rest",
        )
        return
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="doctor-"))
        stack.callback(gc.collect)  # before the folder is removed: loaders' workers and open files
        stage = "reading the data"
        try:
            front = _small_run(examination, folder, stack)
            batch = front.settings.SOLVER.IMS_PER_BATCH
            stage = "training"
            times, losses = train_some(front, resume=False)
            if torch.device(front.settings.MODEL.DEVICE).type == "cuda":
                yield note(f"peak memory on the GPU: {size_in_words(torch.cuda.max_memory_allocated())}")
            yield note(f"2 steps of {batch} images: losses {', '.join(f'{v:.3g}' for v in losses)}")
            final = os.path.join(folder, "model_final.pth")
            if examination.front.evaluates and examination.cfg.DATASETS.TEST:
                stage = "evaluating"
                yield _evaluate(examination, front, final, stack)
            stage = "resuming"
            front.set("SOLVER.MAX_ITER", 3)
            more, losses = train_some(front, resume=True)
            yield note(f"saved {size_in_words(os.path.getsize(final))}, resumed and trained one more step: loss {losses[-1]:.3g}")
            yield _hours(examination, batch, min(times + more))
        except torch.cuda.OutOfMemoryError:
            yield error(f"while {stage}: the GPU does not have enough memory for {batch} images", examination.lower_memory())
        except Exception as problem:  # a user's data and code may raise anything
            yield error(f"while {stage}: {words(problem)}")


def _small_run(examination: Examination, folder: str, stack: contextlib.ExitStack) -> Front:
    whole = examination.cfg
    on_gpu = torch.device(whole.MODEL.DEVICE).type == "cuda"
    # a GPU must show that it has room for the full batch; a CPU's time is proportional
    batch = examination.per_process() if on_gpu else max(min(examination.per_process(), 1_500_000 // math.prod(examination.largest())), 1)
    parts = whole.SOLVER.ACCUMULATE
    return in_small(
        *(examination, folder, stack, 4 * batch, "MODEL.WEIGHTS", examination.weights, "SOLVER.IMS_PER_BATCH", batch, "SOLVER.MAX_ITER", 2),
        *("SOLVER.ACCUMULATE", parts if batch % parts == 0 else 1, "DATALOADER.NUM_WORKERS", min(whole.DATALOADER.NUM_WORKERS, 2)),
        *("SOLVER.BASE_LR", whole.SOLVER.BASE_LR * batch / examination.per_process()),  # scaled to this batch
    )


def in_small(examination: Examination, folder: str, stack: contextlib.ExitStack, images: int, *pairs: Any) -> Front:
    """The config on some of its images, with training only and with keys set; ``stack`` removes its data."""
    data, name = examination.cfg.DATASETS, "part:train"
    register_part(name, data.TRAIN[0], examination.some_records(images), folder, stack)
    return examination.front.clone(
        *("OUTPUT_DIR", folder, "DATASETS.TRAIN", (name,), "DATASETS.TEST", ()),
        *("DATASETS.PROPOSAL_FILES_TRAIN", tuple(data.PROPOSAL_FILES_TRAIN[:1]), "DATASETS.PROPOSAL_FILES_TEST", ()),
        *("SOLVER.STEPS", (), "SOLVER.REFERENCE_WORLD_SIZE", 0, "SOLVER.CHECKPOINT_PERIOD", 1000, "SOLVER.REFERENCE_BATCH", 0),
        *("TEST.EVAL_PERIOD", 0, "TEST.EXPECTED_RESULTS", [], "TEST.AUG.ENABLED", False, "TEST.PRECISE_BN.ENABLED", False),
        *("TEST.BEST_METRIC", "", "TEST.PATIENCE", 0, "TEST.LOSS", False, "TEST.PICTURES", 0, "TRACKING.WANDB", "", "TRACKING.MLFLOW", ""),
        *("VIS_PERIOD", 0, *pairs),
    )


def train_some(front: Front, resume: bool, seconds: float = math.inf) -> tuple[list[float], list[float]]:
    """(seconds, total loss) of each step; from the second on, the one that exceeds ``seconds`` in all is the last.

    Raises FloatingPointError where a loss is not finite.
    """
    seed_all_rng(max(front.settings.SEED, 0))
    watch = _Watch(seconds)
    fit = front.fit(allow_partial_weights=True)
    fit.register_hooks([watch])
    fit.resume_or_load(resume=resume, new_schedule=resume)  # for one more step
    fit.train()
    if not all(map(math.isfinite, watch.losses)):
        raise FloatingPointError(f"losses are not finite: {watch.losses}")
    return watch.times, watch.losses


def _evaluate(examination: Examination, front: Front, final: str, stack: contextlib.ExitStack) -> Finding:
    name = examination.cfg.DATASETS.TEST[0]
    if name in examination.refused:
        return note(f"{name} cannot be read: evaluation was not tried")
    chosen, kind, folder = evenly(DatasetCatalog.get(name), 4), MetadataCatalog.get(name).get("evaluator_type"), os.path.dirname(final)
    register_part("doctor:test", name, chosen, folder, stack)
    if kind in ("coco", "coco_panoptic_seg"):
        MetadataCatalog.get("doctor:test").json_file = os.path.join(folder, "test.json")
        convert_to_coco_json("doctor:test", os.path.join(folder, "test.json"), allow_cached=False)
    proposals = tuple(examination.cfg.DATASETS.PROPOSAL_FILES_TEST[:1])
    front = front.clone("MODEL.WEIGHTS", final, "DATASETS.TEST", ("doctor:test",), "DATASETS.PROPOSAL_FILES_TEST", proposals)
    model = front.build_model()
    front.load_for_evaluation(model)
    begun = time.perf_counter()
    if kind in _WITH_PARTS:
        results = front.evaluate(model)
        done = f"evaluated {', '.join(results) or 'nothing'} on"
    else:  # its evaluator reads the whole data set from files
        mapper = front.mapper(training=False)
        with torch.no_grad():
            for record in get_detection_dataset_dicts(
                ["doctor:test"], filter_empty=False, proposal_files=proposals if front.settings.MODEL.LOAD_PROPOSALS else None
            ):
                model.eval()([mapper(record)])
        done = "found objects in"
    return note(f"{done} {counted(len(chosen), 'image')} of {name} with the saved weights: {time.perf_counter() - begun:.1f} s")


def _hours(examination: Examination, batch: int, seconds: float) -> Finding:
    solver = examination.cfg.SOLVER
    steps = solver.MAX_ITER * (solver.REFERENCE_WORLD_SIZE or examination.processes) / examination.processes
    whole = seconds * examination.per_process() / batch
    alone = f" on each of {examination.processes} processes, if they are as fast as this one" if examination.processes > 1 else ""
    also = f", {whole:.2f} s for {examination.per_process()}" if examination.per_process() != batch else ""
    return note(
        f"estimate: {seconds:.2f} s for a step of {counted(batch, 'image')}{also}{alone}; "
        f"{steps:.0f} steps take about {_time_in_words(whole * steps)}, without evaluations"
    )


def _time_in_words(seconds: float) -> str:
    unit, size = next(((unit, size) for unit, size in (("hours", 3600), ("minutes", 60)) if seconds >= size), ("seconds", 1))
    return f"{seconds / size:.1f} {unit}"


class _Watch(HookBase):
    def __init__(self, seconds: float):
        self.seconds = seconds
        self.times: list[float] = []
        self.losses: list[float] = []

    def before_step(self):
        self.begun = time.perf_counter()

    def after_step(self):
        self.losses.append(self.trainer.storage.history("total_loss").latest())
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter() - self.begun)
        if len(self.times) > 1 and sum(self.times) > self.seconds:
            self.trainer.finish()


def register_part(name: str, whole: str, records: list[dict], folder: str, stack: contextlib.ExitStack) -> None:
    """Registers ``records`` of the data set ``whole`` as ``name``, until ``stack`` ends."""
    about = {key: value for key, value in MetadataCatalog.get(whole).as_dict().items() if key not in ("name", "json_file")}
    if about.get("panoptic_json"):
        path = os.path.join(folder, f"panoptic_{len(os.listdir(folder))}.json")
        write_panoptic_part(about["panoptic_json"], records, path)
        about["panoptic_json"] = path
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(**about)
    stack.callback(MetadataCatalog.remove, name)
    stack.callback(DatasetCatalog.remove, name)
