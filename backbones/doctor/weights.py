"""The initial weights of training."""

import os
from typing import Iterator

from ..checkpoint import GatedCheckpointer, last_checkpoint
from ..checkpoint.fetching import place
from ..errors import Finding, UserError
from ..zoo import weights as named_weights
from .examination import Examination, note, warning


def weights(examination: Examination) -> Iterator[Finding]:
    cfg = examination.cfg
    begun = last_checkpoint(cfg.OUTPUT_DIR, examination.resume)
    path = begun or cfg.MODEL.WEIGHTS
    if examination.resume and not begun:
        yield warning(f"--resume: no checkpoint in {cfg.OUTPUT_DIR!r}, training starts from the beginning")
    if not path:
        yield note(f"{examination.front.name('MODEL.WEIGHTS')} is empty: training from scratch")
        return
    if not examination.sound:
        yield note("the config cannot be built: weights were not checked")
        return
    if not examination.download and not is_here(path):
        yield note(f"{path!r} is not on this machine: training will download it", "add --download to try it now")
        return
    try:
        examination.front.follow_weights(examination.resume)
    except UserError as problem:
        yield Finding.of(problem)
        return
    path = begun or cfg.MODEL.WEIGHTS  # which may name a file by now
    checkpointer = GatedCheckpointer(examination.build(), require="nothing" if examination.partial else "all" if begun else "backbone")
    try:
        checkpointer.load(path, checkpointables=[])
        examination.weights = path
    except UserError as problem:
        yield Finding.of(problem)
    report = checkpointer.report
    if report:
        examination.text["weights"] = report.table()
        count = len(report.total) - len(report.unfilled())
        yield note(f"{count} of {len(report.total)} tensors {'are' if examination.weights else 'would be'} filled from {path!r}")


def is_here(path: str) -> bool:
    """Whether the weights are already on this machine."""
    if "://" not in path:
        return True
    if named_weights.parsed(path):
        return named_weights.is_here(path)
    return os.path.isfile(place(path))
