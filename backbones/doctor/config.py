"""The config: what stops a training, and what is legal but most likely not meant."""

import os
import re
from typing import Iterator, List

from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d

from ..config import add_backbones_config, bases, config_findings, learns, merge_file
from ..data import check_paths, dataset_findings, register_from_config, register_held_out, register_image_folders
from ..engine.tracking import tracker_findings
from ..errors import Finding, raised
from .examination import Examination, listed, note, sizes_of, warning


def config(examination: Examination) -> Iterator[Finding]:
    cfg = examination.cfg
    found: List[Finding] = []
    for key, register in (("REGISTER", register_from_config), ("IMAGE_FOLDERS", register_image_folders), ("HOLD_OUT", register_held_out)):
        for entry in cfg.DATASETS[key]:
            errors = raised(register, examination.clone(f"DATASETS.{key}", [entry]))
            found += map(Finding.of, errors)
            if errors and isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str):
                examination.refused |= {entry[0] + suffix for suffix in (("_kept", "_held_out") if key == "HOLD_OUT" else ("",))}
    of_config = list(listed(config_findings(cfg, training=True, processes=examination.processes)))
    examination.usable = all(finding.code != "device" for finding in of_config)
    examination.sound = all(finding.code == "device" for finding in of_config)
    found += listed(tracker_findings(cfg))
    found += of_config
    found += listed(dataset_findings(cfg, training=True, skip=examination.refused))
    if not cfg.DATASETS.TEST:
        found.append(warning("DATASETS.TEST is empty: nothing will be evaluated", "name data to evaluate on"))
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    examination.refused |= {name for name in names if name not in DatasetCatalog or raised(check_paths, name)}
    yield from dict.fromkeys(found)  # what two data sets have in common, once
    yield from _nonsense(examination)


def _nonsense(examination: Examination) -> Iterator[Finding]:
    """What is legal, and most likely not meant."""
    cfg, solver = examination.cfg, examination.cfg.SOLVER
    yield from _learning_rate(examination)
    late = [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME in ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"):
        advice = f"set SOLVER.STEPS to some two thirds and eight ninths: ({solver.MAX_ITER * 2 // 3}, {solver.MAX_ITER * 8 // 9})"
        yield warning(f"SOLVER.STEPS {tuple(solver.STEPS)}: the rate never falls at those from SOLVER.MAX_ITER {solver.MAX_ITER} on", advice)
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        yield warning(
            f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} is all of SOLVER.MAX_ITER {solver.MAX_ITER}: the full rate is never reached",
            f"set SOLVER.WARMUP_ITERS {max(solver.MAX_ITER // 20, 1)}",
        )
    period = cfg.TEST.EVAL_PERIOD
    if not period:
        yield note("TEST.EVAL_PERIOD is 0: evaluation follows at the end only", f"set it, to {max(solver.MAX_ITER // 10, 1)}, say")
    elif period > solver.MAX_ITER:
        yield warning(f"TEST.EVAL_PERIOD {period} is more than SOLVER.MAX_ITER {solver.MAX_ITER}: evaluation follows at the end only")
    if solver.CHECKPOINT_PERIOD > solver.MAX_ITER:
        yield note(
            f"SOLVER.CHECKPOINT_PERIOD {solver.CHECKPOINT_PERIOD} is more than SOLVER.MAX_ITER {solver.MAX_ITER}: a run that is killed "
            "cannot be resumed",
            f"set it to {max(solver.MAX_ITER // 10, 1)}",
        )
    if not solver.BASE_LR:
        yield warning("SOLVER.BASE_LR is 0: nothing is learnt")
    model = examination.model
    if model is not None and not cfg.MODEL.WEIGHTS:
        if any(isinstance(m, FrozenBatchNorm2d) for m in model.modules()):
            yield warning(
                "frozen batch norms without MODEL.WEIGHTS: their statistics are of no data", "set the backbone's NORM BN, or name weights"
            )
        if cfg.MODEL.BACKBONE.FREEZE_AT > 0 and not learns(cfg, "class"):
            yield warning(
                f"MODEL.BACKBONE.FREEZE_AT {cfg.MODEL.BACKBONE.FREEZE_AT} without MODEL.WEIGHTS: random layers stay random", "set it to 0"
            )
    if not learns(cfg, "class"):
        yield from _image_sizes(examination)


def _learning_rate(examination: Examination) -> Iterator[Finding]:
    solver = examination.cfg.SOLVER
    if not examination.config_file or solver.REFERENCE_WORLD_SIZE or solver.get("REFERENCE_BATCH", 0):
        return
    own = (solver.IMS_PER_BATCH, solver.BASE_LR)
    paths = [examination.config_file]
    while paths:
        other = get_cfg()
        add_backbones_config(other)
        for path in reversed(paths):
            merge_file(other, path)
        base = (other.SOLVER.IMS_PER_BATCH, other.SOLVER.BASE_LR)
        if base != own:
            expected = base[1] * own[0] / base[0]
            said = f"SOLVER.IMS_PER_BATCH {own[0]} with BASE_LR {own[1]:g}, where {' and '.join(map(os.path.basename, paths))!r} has {base[0]} with {base[1]:g}"
            if own[1] == base[1]:
                yield warning(f"{said}: the rate was not scaled along", f"set SOLVER.BASE_LR {expected:.4g}, or SOLVER.IMS_PER_BATCH {base[0]}")
            elif expected and not 0.25 <= own[1] / expected <= 4:
                yield note(f"{said}: in proportion it would be {expected:.4g}", "nothing, if it was meant")
            return
        paths = [base for path in paths for base in bases(path)]


def _image_sizes(examination: Examination) -> Iterator[Finding]:
    inputs, step = examination.cfg.INPUT, examination.divisibility()
    sizes = sizes_of(inputs.MIN_SIZE_TRAIN)
    for key, size, most in (("TRAIN", max(sizes), inputs.MAX_SIZE_TRAIN), ("TEST", inputs.MIN_SIZE_TEST, inputs.MAX_SIZE_TEST)):
        if size > most:
            yield warning(f"INPUT.MIN_SIZE_{key} {size} is more than INPUT.MAX_SIZE_{key} {most}: images never become that large")
    odd = [size for size in sizes if size % step]
    if step > 1 and odd:
        yield note(
            f"INPUT.MIN_SIZE_TRAIN {odd[0]} is no multiple of {step}: images are padded, which costs time",
            f"set {round(odd[0] / step) * step or step}",
        )
    if 0 < min(sizes) < 4 * step:
        yield warning(f"INPUT.MIN_SIZE_TRAIN {min(sizes)} leaves the coarsest features under 4 pixels a side (stride {step})")
    if inputs.MIN_SIZE_TEST and min(sizes) and not min(sizes) / 1.5 <= inputs.MIN_SIZE_TEST <= max(sizes) * 1.5:
        yield warning(
            f"INPUT.MIN_SIZE_TEST {inputs.MIN_SIZE_TEST} is far from INPUT.MIN_SIZE_TRAIN {min(sizes)} to {max(sizes)}: objects look larger or smaller"
        )
    if inputs.RANDOM_FLIP != "none":
        sided = [
            n for s in examination.cfg.DATASETS.TRAIN if s in MetadataCatalog.list() for n in MetadataCatalog.get(s).get("thing_classes") or ()
        ]
        sided = [n for n in dict.fromkeys(sided) if isinstance(n, str) and re.search(r"(?i)\b(left|right)\b", n.replace("_", " "))]
        if sided:
            yield warning(f"INPUT.RANDOM_FLIP {inputs.RANDOM_FLIP} mirrors classes that have a side: {', '.join(sided[:5])}", "set it to none")
