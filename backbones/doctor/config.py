"""The config: what stops a training, and what is legal but probably unintended."""

import os
import re
from typing import Any, Iterator

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import FrozenBatchNorm2d

from ..config import bases, defaults, learns, merge_file
from ..data import check_paths, follow, register_from_config, register_held_out, register_image_folders
from ..data.holdout import HELD_OUT, KEPT
from ..engine.tracking import tracker_findings
from ..errors import Finding, UserError, raised
from .examination import Examination, listed, note, sizes_of, warning

# what Python configs may express differently from YAML ones: key -> description
_OF_YAML = {
    "SOLVER.REFERENCE_WORLD_SIZE": "the learning rate for this batch compared with the config's bases",
    "SOLVER.STEPS": "where the learning rate drops",
    "SOLVER.WARMUP_ITERS": "the warm-up",
    "INPUT.MIN_SIZE_TRAIN": "image sizes",
    "INPUT.RANDOM_FLIP": "whether flips mirror classes that have a side",
}
_OF_READING = ("DATASETS.CLASSES", "DATASETS.CROWDS", "DATASETS.NO_MASK", "DATASETS.BOX_FORMAT")


def config(examination: Examination) -> Iterator[Finding]:
    cfg, front = examination.cfg, examination.front
    found: list[Finding] = []
    found += _own_data(examination)
    for key, register in (("IMAGE_FOLDERS", register_image_folders), ("HOLD_OUT", register_held_out)):
        for entry in cfg.DATASETS[key]:
            name = entry[0] if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str) else None
            alone = cfg.clone()
            alone.DATASETS[key] = [entry]
            known = name in examination.refused  # and reported: that it cannot be divided follows from it
            errors = raised(register, alone)
            found += [] if known else map(Finding.of, errors)
            if errors and name is not None:
                examination.refused |= {name + suffix for suffix in ((KEPT, HELD_OUT) if key == "HOLD_OUT" else ("",))}
    found += _followed(examination)  # also keys that follow from held-out parts
    of_config = list(listed(front.config_findings(True, examination.processes)))
    if examination.model is None and all(finding.code == "device" for finding in of_config):
        of_config += listed(_building(examination))
    examination.usable = all(finding.code != "device" for finding in of_config)
    examination.sound = all(finding.code == "device" for finding in of_config)
    found += listed(tracker_findings(cfg, front.name))
    found += of_config
    unread = examination.refused & {*cfg.DATASETS.TRAIN}  # nothing is known of how they would be read
    of_data = front.data_findings(training=True, skip=examination.refused)
    found += listed(error for error in of_data if not (unread and error.code == "conflict" and error.key in _OF_READING))
    if not front.evaluates:
        said = "the dataloader has no evaluator" if cfg.DATASETS.TEST else f"{front.name('DATASETS.TEST')} is empty"
        found.append(warning(f"{said}: there will be no evaluation", "name data to evaluate on"))
    names = {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST}
    examination.refused |= {name for name in names if name not in DatasetCatalog or raised(check_paths, name)}
    yield from dict.fromkeys(found)  # findings that two data sets share only once
    yield from _nonsense(examination)
    unseen = ", ".join(what for key, what in _OF_YAML.items() if not front.knows(key))
    if unseen:
        yield note(f"not checked, because a Python config may express it differently: {unseen}")


def _own_data(examination: Examination) -> Iterator[Finding]:
    """Registers the data sets of the config, those to train on first, as the others use their classes. Their flaws are listed as data."""
    cfg = examination.cfg
    train, test = ([name.removesuffix(HELD_OUT).removesuffix(KEPT) for name in names] for names in (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST))
    stated = {key: list(cfg.DATASETS[key]) for key in ("CLASSES", "KEYPOINTS")}
    before: list[Any] = []
    for entry in sorted(cfg.DATASETS.REGISTER, key=lambda e: not (isinstance(e, (list, tuple)) and e and e[0] in train)):
        formed = isinstance(entry, (list, tuple)) and len(entry) == 3 and all(isinstance(part, str) for part in entry)
        alone = cfg.clone()
        alone.DATASETS.update(stated, REGISTER=[*before, entry])  # without what follows from the data before: that is looked up, as in training
        errors = raised(register_from_config, alone)
        if errors and isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str):
            examination.refused.add(entry[0])
        used = formed and entry[0] in (*train, *test)
        before += [entry] if not errors and entry[0] in train else []
        yield from (Finding.of(error) for error in errors if not used or error.code in ("conflict", "classes"))
        yield from _followed(examination)


def _followed(examination: Examination) -> Iterator[Finding]:
    """Sets the keys that follow from the data, as training does."""
    front = examination.front
    for key, value, reason in list(follow(examination.cfg, examination.replaced)):
        front.set(key, value)
        if reason:
            yield note(f"{front.name(key)} is set to {value}: {reason}")


def _building(examination: Examination) -> Iterator[UserError]:
    yield from raised(examination.build)


def _nonsense(examination: Examination) -> Iterator[Finding]:
    """What is legal, but probably unintended."""
    cfg, solver, front = examination.cfg, examination.cfg.SOLVER, examination.front
    name, least = front.name, max(solver.MAX_ITER // 10, 1)
    end = f"{name('SOLVER.MAX_ITER')} {solver.MAX_ITER}"
    if front.knows("SOLVER.REFERENCE_WORLD_SIZE"):
        yield from _learning_rate(examination)
    late = front.knows("SOLVER.STEPS") and [step for step in solver.STEPS if step >= solver.MAX_ITER]
    if late and solver.LR_SCHEDULER_NAME in ("WarmupMultiStepLR", "WarmupStepWithFixedGammaLR"):
        advice = f"set SOLVER.STEPS to about two thirds and eight ninths: ({solver.MAX_ITER * 2 // 3}, {solver.MAX_ITER * 8 // 9})"
        yield warning(f"SOLVER.STEPS {tuple(solver.STEPS)}: those from {end} on are never reached", advice)
    if front.knows("SOLVER.WARMUP_ITERS") and solver.WARMUP_ITERS >= solver.MAX_ITER:
        said = f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS} covers all of {end}: the full learning rate is never reached"
        yield warning(said, f"set SOLVER.WARMUP_ITERS {max(solver.MAX_ITER // 20, 1)}")
    key, period = name("TEST.EVAL_PERIOD"), cfg.TEST.EVAL_PERIOD
    if not period:
        yield note(f"{key} is 0: evaluation runs only at the end", f"set it, for example to {least}")
    elif period > solver.MAX_ITER:
        yield warning(f"{key} {period} is more than {end}: evaluation runs only at the end")
    if solver.CHECKPOINT_PERIOD > solver.MAX_ITER:
        said = f"{name('SOLVER.CHECKPOINT_PERIOD')} {solver.CHECKPOINT_PERIOD} is more than {end}: a killed run cannot be resumed"
        yield note(said, f"set it to {least}")
    if not solver.BASE_LR:
        yield warning(f"{name('SOLVER.BASE_LR')} is 0: nothing is learned")
    model, weights = examination.model, name("MODEL.WEIGHTS")
    if model is not None and not cfg.MODEL.WEIGHTS:
        if any(isinstance(m, FrozenBatchNorm2d) for m in model.modules()):
            said = f"frozen batch norms without {weights}: their statistics come from no data"
            yield warning(said, "set the backbone's norm to BN, or start from weights")
        if not all(p.requires_grad for p in model.parameters()):
            yield warning(f"frozen layers without {weights}: random layers stay random", "set the backbone's FREEZE_AT to 0")
    if not learns(cfg, "class"):
        yield from _image_sizes(examination)


def _learning_rate(examination: Examination) -> Iterator[Finding]:
    solver = examination.cfg.SOLVER
    if not examination.front.path or solver.REFERENCE_WORLD_SIZE or solver.REFERENCE_BATCH:
        return
    own = (solver.IMS_PER_BATCH, solver.BASE_LR)
    paths = [examination.front.path]
    while paths:
        other = defaults()
        for path in reversed(paths):
            merge_file(other, path)
        base = (other.SOLVER.IMS_PER_BATCH, other.SOLVER.BASE_LR)
        if base != own:
            expected = base[1] * own[0] / base[0]
            names = " and ".join(map(os.path.basename, paths))
            said = f"SOLVER.IMS_PER_BATCH {own[0]} with BASE_LR {own[1]:g}, where {names!r} has {base[0]} with {base[1]:g}"
            if own[1] == base[1]:
                yield warning(f"{said}: the rate was not scaled", f"set SOLVER.BASE_LR {expected:.4g}, or SOLVER.IMS_PER_BATCH {base[0]}")
            elif expected and not 0.25 <= own[1] / expected <= 4:
                yield note(f"{said}: in proportion it would be {expected:.4g}", "nothing, if intended")
            return
        paths = [base for path in paths for base in bases(path)]


def _image_sizes(examination: Examination) -> Iterator[Finding]:
    inputs, step, front = examination.cfg.INPUT, examination.divisibility(), examination.front
    sizes = sizes_of(inputs.MIN_SIZE_TRAIN)
    for split, size in (("TRAIN", max(sizes)), ("TEST", inputs.MIN_SIZE_TEST)):
        key, limit = f"INPUT.MIN_SIZE_{split}", f"INPUT.MAX_SIZE_{split}"
        if front.knows(key) and front.knows(limit) and size > inputs[f"MAX_SIZE_{split}"]:
            most = f"{front.name(limit)} {inputs[f'MAX_SIZE_{split}']}"
            yield warning(f"{front.name(key)} {size} is more than {most}: images never get that large")
    if front.knows("INPUT.MIN_SIZE_TRAIN"):
        key, odd = front.name("INPUT.MIN_SIZE_TRAIN"), [size for size in sizes if size % step]
        if step > 1 and odd:
            said = f"{key} {odd[0]} is not a multiple of {step}: images are padded, which costs time"
            yield note(said, f"set {round(odd[0] / step) * step or step}")
        if 0 < min(sizes) < 4 * step:
            yield warning(f"{key} {min(sizes)} leaves the coarsest features under 4 pixels a side (stride {step})")
        test = front.knows("INPUT.MIN_SIZE_TEST") and inputs.MIN_SIZE_TEST
        if test and min(sizes) and not min(sizes) / 1.5 <= test <= max(sizes) * 1.5:
            its = f"{front.name('INPUT.MIN_SIZE_TEST')} {test}"
            yield warning(f"{its} is far from {key} {min(sizes)} to {max(sizes)}: objects look larger or smaller")
    if front.knows("INPUT.RANDOM_FLIP") and inputs.RANDOM_FLIP != "none":
        known = [s for s in examination.cfg.DATASETS.TRAIN if s in MetadataCatalog.list()]
        names = dict.fromkeys(n for s in known for n in MetadataCatalog.get(s).get("thing_classes") or () if isinstance(n, str))
        sided = [n for n in names if re.search(r"(?i)\b(left|right)\b", n.replace("_", " "))]
        if sided:
            yield warning(f"INPUT.RANDOM_FLIP {inputs.RANDOM_FLIP} mirrors classes that have a side: {', '.join(sided[:5])}", "set it to none")
