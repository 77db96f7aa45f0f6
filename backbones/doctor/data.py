"""The data: every annotation, a sample of the images, and whether anchors match the boxes."""

import importlib.util
from typing import Iterator

import numpy as np
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

from ..config import architecture, get, learns
from ..data.dataset import Dataset
from ..data.holdout import HELD_OUT, KEPT
from ..data.image_files import evenly
from ..data.inspection import copies, inspect
from ..data.sources import Source, Use, sources
from ..errors import Finding, counted
from ..evaluation.coco import evaluate
from ..recipe import rules
from ..recipe.facts import Facts, facts_of
from ..recipe.rules import unmatched
from .examination import Examination, note, warning


def data(examination: Examination) -> Iterator[Finding]:
    cfg, front = examination.cfg, examination.front
    found, others = sources(cfg)
    if not cfg.DATASETS.TRAIN:
        yield note("the training data are not in detectron2's catalogue: they were not checked")
    own = {entry[0] for entry in cfg.DATASETS.REGISTER if isinstance(entry, (list, tuple)) and entry and isinstance(entry[0], str)}
    for entry in cfg.DATASETS.REGISTER:  # without it the parts are not there, so the whole is looked at
        formed = isinstance(entry, (list, tuple)) and len(entry) == 3 and all(isinstance(part, str) for part in entry)
        if formed and entry[0] in examination.refused:
            held, kept = entry[0] + HELD_OUT in cfg.DATASETS.TEST, entry[0] + KEPT in cfg.DATASETS.TRAIN
            if (held or kept) and entry[0] not in (source.name for source in found):
                found.append(Source(entry[0], entry[1], entry[2], kept, held and not kept))
    found = [s for s in found if s.name in own or s.name not in examination.refused]  # others are fully reported
    use = examination.use = Use.of(cfg)
    for source in found:
        looked = inspect(source, use, examination.images, examination.progress)
        examination.data.append(looked)
        if not looked.findings.counts.keys() & {"missing file", "unreadable file"}:
            yield from _truth(looked)
            yield note(looked.summary())
    copied = {findings.dataset: findings for findings in copies(examination.data, examination.images, examination.progress)}
    for looked in examination.data:
        looked.findings.update(copied[looked.source.name])
        yield from looked.findings.lines()
    for name in others:
        yield note(f"{name}: not in COCO's format, its files were not checked")
    for looked in examination.data:
        counts, source = looked.counts(), looked.source
        if not counts or not looked.labelled:
            continue
        if len(counts) > 1:
            ordered = sorted(counts, key=lambda name: counts[name])
            yield note(
                f"{source.name}: rarest class {ordered[0]!r} ({counts[ordered[0]]}), most frequent {ordered[-1]!r} ({counts[ordered[-1]]})"
            )
        if examination.images is not None and len(looked.images) > examination.images:
            yield note(f"{source.name}: {examination.images} of {counted(len(looked.images), 'image')} were read", "--num all reads all")
        key, limit, most = "TEST.DETECTIONS_PER_IMAGE", cfg.TEST.DETECTIONS_PER_IMAGE, looked.most()
        if source.testing and front.knows(key) and most > limit:
            yield warning(f"{source.name}: an image has {most} objects, {front.name(key)} is {limit}", f"set it to {most}")
    sound = [looked for looked in examination.data if not looked.error()]
    training, testing = [d for d in sound if d.source.training], [d for d in sound if d.source.testing]
    facts = facts_of(training, testing) if training and not learns(cfg, "class") else None
    yield from _anchors(examination, facts)
    if facts is not None:
        yield from _by_the_rules(examination, facts)


def _by_the_rules(examination: Examination, facts: Facts) -> Iterator[Finding]:
    """Where the config differs widely from what `backbones recipe` would choose for the data."""
    cfg, front, solver = examination.cfg, examination.front, examination.cfg.SOLVER
    seen, wanted = solver.MAX_ITER * solver.IMS_PER_BATCH / max(facts.images, 1), rules.passes(facts.images)
    key = front.name("SOLVER.MAX_ITER")
    if seen > 3 * wanted:
        count = max(round(wanted * facts.images / solver.IMS_PER_BATCH), 100)
        said = f"{key} {solver.MAX_ITER} is {seen:,.0f} passes over {facts.images} images: expect overfitting after about {wanted:.0f}"
        yield warning(said, f"set it to {count} and scale the schedule with it; or use `backbones recipe`")
    elif seen < 1:
        yield warning(f"{key} {solver.MAX_ITER} is {seen:.2f} passes over {counted(facts.images, 'image')}: not all are seen")
    if not facts.objects:
        return
    size, reason = rules.image_size(facts, 8 if architecture(cfg).dense else 4)
    own = cfg.INPUT.MIN_SIZE_TEST
    if front.knows("INPUT.MIN_SIZE_TEST") and own and not 0.5 <= own / size <= 2.5:
        yield warning(f"{front.name('INPUT.MIN_SIZE_TEST')} {own}, but the objects suggest {size}: {reason}", f"set it to {size}")
    for choice in rules.sampling(facts):
        if front.knows(choice.key) and choice.key != "DATALOADER.REPEAT_THRESHOLD" and get(cfg, choice.key) != choice.value:
            yield note(f"{front.name(choice.key)} {get(cfg, choice.key)}: {choice.reason}", f"set it to {choice.value}")


def _truth(looked: Dataset, most: int = 50_000) -> Iterator[Finding]:
    """COCO's AP of the test data with the ground truth as detections: if not 100, something is wrong with ids or boxes."""
    objects = [a for a in looked.annotations if not a["iscrowd"]]
    if not looked.source.testing or not objects or looked.error():
        return
    if len(objects) > most or importlib.util.find_spec("faster_coco_eval") is None:
        yield note(
            f"{looked.source.name}: the ground truth was not evaluated as detections (more than {most} objects, or faster-coco-eval is missing)"
        )
        return
    found = [{"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 1.0} for a in objects]
    reached = 100 * evaluate(looked.truth(), found, "bbox", most=max(looked.most(), 100)).stats[0]
    said = f"{looked.source.name}: AP is {reached:.2f} with the {len(objects)} ground-truth objects as detections"
    yield (
        note(said)
        if reached > 99.995
        else warning(said, "no detector can reach 100 on these data: see the findings on their boxes and classes")
    )


def anchor_generator(examination: Examination) -> DefaultAnchorGenerator | None:
    """The model's; None if it has no anchors, or other ones."""
    modules = examination.model.modules() if examination.model is not None and architecture(examination.cfg).anchors else ()
    return next((m for m in modules if isinstance(m, DefaultAnchorGenerator)), None)


def training_boxes(examination: Examination, most: int = 20000) -> np.ndarray:
    boxes = [looked.boxes(examination.use) for looked in examination.data if looked.source.training]
    return evenly(np.concatenate([np.zeros((0, 4)), *boxes]), most)


def _anchors(examination: Examination, facts: Facts | None) -> Iterator[Finding]:
    """Whether the anchors of the model match the objects."""
    generator, boxes = anchor_generator(examination), training_boxes(examination)
    if generator is None or not len(boxes):
        return
    missed = unmatched(boxes, [cell.numpy() for cell in generator.cell_anchors], generator.strides, generator.offset)
    sides = np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(1))
    low, middle, high = np.quantile(sides, (0.05, 0.5, 0.95))
    said = f"{missed.mean():.1%} of the training boxes match no anchor with IoU 0.5"
    spread = f"boxes are {low:.0f} to {high:.0f} pixels (the middle nine tenths, median {middle:.0f}) as the network sees them"
    advice = "choose anchor sizes and aspect ratios that fit them, or resize differently" if missed.mean() > 0.05 else ""
    if advice and facts is not None and examination.front.knows("MODEL.ANCHOR_GENERATOR.SIZES"):
        fitted = rules.anchors(facts, examination.cfg, examination.cfg.INPUT.MIN_SIZE_TEST or 800)
        others = [choice for choice in fitted if get(examination.cfg, choice.key) != choice.value]
        advice = "; ".join(f"set {choice.key} {choice.value} ({choice.reason})" for choice in others)
    yield (warning if missed.mean() > 0.2 else note)(f"{said}; {spread}", advice)
