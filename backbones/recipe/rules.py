"""The rules: each yields values of config keys with the reason and its figures. COCO's statistics lead to COCO's usual recipe.

The doctor uses the same rules.
"""

import math
import re
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np
from detectron2.config import CfgNode

from ..errors import UserError, counted
from .facts import Facts

BASE = "Base-RCNN-VoVNet-FPN.yaml"  # this project's recipe for COCO, which the rules change
# COCO 2017 train, on which the rules are based: images, and passes over them in detectron2's 3x schedule
COCO_IMAGES, COCO_PASSES = 118_287, 36.5
REFERENCE_BATCH, REFERENCE_RATE = 16, 0.02
SHORT_RATE = 0.1  # for the same number of images, if norms keep features in range
# the smallest tenth of COCO's objects have sides of about 5 cells of the finest features at 800 pixels
CELLS = 5
MET = 0.83  # the share of boxes that anchors should match with IoU 0.5: COCO's anchors match about 84 % of COCO-sized boxes
FEW_IMAGES = 1000
ROOM = 0.8  # share of the free memory that a step may use


class Choice(NamedTuple):
    """A key's value and why."""

    key: str
    value: Any
    reason: str


_OUTLINED = 0.2  # outlines for each rectangle, from which on somebody has drawn masks


def task(facts: Facts, wanted: str = "auto") -> tuple[str, str]:
    """("boxes", "masks" or "keypoints", the reason)."""
    if wanted != "auto":
        return wanted, f"from --task {wanted}"
    if facts.keypoints >= 0.5:
        return "keypoints", f"{facts.keypoints:.0%} of the objects have visible keypoints"
    if facts.masks + facts.rectangles >= 0.5 and facts.masks >= _OUTLINED * facts.rectangles:
        return "masks", f"{facts.masks:.0%} of the objects have a mask that is more than its box"
    if facts.rectangles:
        others = f"; --task masks learns the outlines of the other {facts.masks:.0%}" if facts.masks else ""
        return "boxes", f"{facts.rectangles:.0%} of the objects have rectangles as masks, which add nothing to the boxes{others}"
    return "boxes", f"{facts.masks:.0%} of the objects have masks, {facts.keypoints:.0%} keypoints"


def image_size(facts: Facts, stride: int) -> tuple[int, str]:
    """(the shorter side that images are resized to, the reason); ``stride``: that of the finest features."""
    own = float(np.median(facts.short))
    if not facts.objects:
        return round_to(own), "no objects: the original size of the images"
    smallest = smallest_tenth(facts)
    wanted = CELLS * stride / smallest
    size = min(max(wanted, least_size(facts)), 2 * own, 1333.0)
    cells = f"{smallest * size / stride:.1f} cells of P{int(math.log2(stride))}"
    reason = f"the smallest tenth of the objects then have sides up to {smallest * size:.0f} pixels, {cells}"
    if size < wanted:
        reason += f" (the rule requires {CELLS}: {wanted:.0f} pixels, but images are enlarged at most to twice their {own:.0f})"
    return round_to(size), reason


def smallest_tenth(facts: Facts) -> float:
    """The side below which the smallest tenth of the objects are, relative to the image's shorter side."""
    return float(np.quantile(np.sqrt(facts.boxes.prod(1)) / facts.shorter, 0.1))


def gentle(facts: Facts, size: int, stride: int) -> bool:
    """Whether training should start gently: many objects are smaller than they should be."""
    return smallest_tenth(facts) * size / stride < 0.8 * CELLS


def least_size(facts: Facts) -> float:
    return min(float(np.median(facts.short)), 320.0)


class View(NamedTuple):
    """The size of images in training: their shorter side, and the part of both sides used at a time."""

    size: int
    part: float = 1.0


def views(facts: Facts, wanted: int) -> Iterator[View]:
    """Views from the size that the objects need downwards: whole, then in parts at least four times as large as large objects."""
    large = float(np.quantile(np.sqrt(facts.boxes.prod(1)) / facts.shorter, 0.95)) if facts.objects else 1.0
    least = round_to(least_size(facts))
    for size in (*range(wanted, least, -32), least):
        yield View(size)
        for part in (0.7, 0.5, 0.35, 0.25, 0.18, 0.125):
            if part * size >= max(160, 4 * large * size):
                yield View(size, part)


def within(facts: Facts, wanted: int, seconds: Callable[[View], float], limit: float) -> View:
    """The first of `views` for which training and an evaluation take no longer than the limit, else the fastest."""
    every = list(views(facts, wanted))
    return next((view for view in every if seconds(view) <= limit), min(every, key=seconds))


def steps_needed(facts: Facts, batch: int) -> int:
    """The least number of training steps: three passes, and with few images enough to adapt pretrained weights."""
    return max(300, min(3 * facts.images // batch, 5000))


def round_to(size: float, step: int = 32) -> int:
    return max(int(round(size / step)) * step, step)


def sizes(facts: Facts, view: View) -> Iterator[Choice]:
    ratio = float(np.quantile(facts.long / facts.short, 0.95))
    longest = round_to(view.size * min(ratio, 2.0)) if ratio > 1.67 else round_to(view.size * 1.6667)
    short = round_to(view.size * view.part)
    many = tuple(range(round_to(0.8 * short), short + 1, 32)) if short >= 160 else (short,)
    said = (
        f"the {view.size} pixels of evaluation" if view.part == 1 else f"{short} pixels, about {view.part:g} of the {view.size} of evaluation"
    )
    if len(many) > 1:
        said = f"{many[0] / short:.2g} to 1 times {said}, in steps of 32 (of detectron2's 640 to 800 it is 0.8 to 1)"
    if view.part < 1:
        yield Choice("INPUT.CROP.ENABLED", True, "training uses part of an image at a time, at full size: more steps in the same time")
        yield Choice("INPUT.CROP.TYPE", "relative", "INPUT.CROP.SIZE is a part of the image's height and width")
        yield Choice("INPUT.CROP.SIZE", [view.part, view.part], "the largest part that the time allows; four large objects fit in a row")
        yield Choice("INPUT.CROP.AROUND_OBJECTS", True, "a part with no object teaches little")
    yield Choice("INPUT.MIN_SIZE_TRAIN", many, said)
    about = f"the longer side is at most {ratio:.2f} times the shorter in 95 % of the images"
    yield Choice("INPUT.MAX_SIZE_TRAIN", round_to(longest * view.part), about)
    yield Choice("INPUT.MAX_SIZE_TEST", longest, f"{about}; evaluation uses whole images" if view.part < 1 else "as INPUT.MAX_SIZE_TRAIN")


def anchors(facts: Facts, cfg: CfgNode, short: int) -> Iterator[Choice]:
    """Keeps anchors that match the boxes, else fits them: sizes from the smallest twentieth up, ratios by quantiles, as few as match most."""
    dense = "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
    strides = (8, 16, 32, 64, 128) if dense else (4, 8, 16, 32, 64)
    boxes = facts.boxes * (short / facts.shorter)[:, None]
    if not len(boxes):
        return
    old_sizes, old_ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]
    before = met(boxes, old_sizes, old_ratios, strides)
    if before >= MET:
        yield Choice("MODEL.ANCHOR_GENERATOR.SIZES", old_sizes, f"kept: {before:.1%} of the boxes match an anchor with IoU 0.5")
        return
    sides = np.sqrt(boxes.prod(1))
    low, high = np.quantile(sides, (0.05, 0.95))
    shapes = np.quantile(np.log(boxes[:, 1] / boxes[:, 0]), (0.1, 0.5, 0.9))
    fitted = sorted({round(float(np.exp(value)), 2) for value in shapes})
    best = Anchors(before, old_sizes, list(old_ratios))
    for octaves in (3,) if dense else (1, 2):  # sizes per level; each level is twice as coarse as the one before
        own = [[round(float(max(low, 4.0) * 2 ** (level + i / octaves)), 1) for i in range(octaves)] for level in range(len(strides))]
        for ratios in (list(old_ratios), fitted):
            share = met(boxes, own, ratios, strides)
            if share > best.share + (0.005 if best.sizes is old_sizes else 0.02):
                best = Anchors(share, own, ratios)
    if best.share == before:
        yield Choice("MODEL.ANCHOR_GENERATOR.SIZES", old_sizes, f"kept: {before:.1%} of the boxes match one with IoU 0.5, fitted ones no more")
        return
    said = f"boxes are {low:.0f} to {high:.0f} pixels: {before:.1%} of them matched an anchor, now {best.share:.1%}"
    yield Choice("MODEL.ANCHOR_GENERATOR.SIZES", best.sizes, said)
    if best.ratios == fitted:
        said = "height by width of the boxes: their first tenth, median, last tenth"
        yield Choice("MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [best.ratios], said)


class Anchors(NamedTuple):
    """The share of boxes that match them, their sizes on each level, and their ratios."""

    share: float
    sizes: list[list[float]]
    ratios: list[float]


def met(boxes: np.ndarray, sizes_: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> float:
    """The share of boxes (N, 2), width and height, that match an anchor with IoU 0.5 in any position: also midway between two cells."""
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[list(map(float, own)) for own in sizes_], aspect_ratios=[list(ratios)], strides=list(strides))
    places = np.random.default_rng(0).uniform(200, 400, (len(boxes), 2))
    corners = np.concatenate([places, places + boxes], axis=1)
    corners = corners[:: max(len(corners) // 5000, 1)]
    return 1 - float(unmatched(corners, [cell.numpy() for cell in generator.cell_anchors], strides, generator.offset).mean())


def unmatched(boxes: np.ndarray, anchors: Sequence[np.ndarray], strides: Sequence[int], offset: float, threshold: float = 0.5) -> np.ndarray:
    """Which boxes (N, 4) x0, y0, x1, y1 no anchor matches with that IoU, (N,) bool; ``anchors`` (A, 4) of each level are centered at 0, 0."""
    best = np.zeros(len(boxes))
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for cell, stride in zip(anchors, strides):
        # among anchors of one shape, the one with the nearest centre overlaps most
        place = centers / stride - offset
        distance = np.abs(place - np.maximum(np.round(place), 0)) * stride
        for x0, y0, x1, y1 in np.asarray(cell, float):
            own = np.array([x1 - x0, y1 - y0])
            overlap = np.minimum(sides / 2, distance + own / 2) - np.maximum(-sides / 2, distance - own / 2)
            inter = overlap.clip(min=0).prod(1)
            best = np.maximum(best, inter / (sides.prod(1) + own.prod() - inter))
    return best < threshold


def heads(facts: Facts, cfg: CfgNode, small: bool, part: float = 1.0) -> Iterator[Choice]:
    """``small``: training on a CPU; ``part``: of both sides of an image at a time."""
    most = int(facts.per_image.max()) if len(facts.per_image) else 0
    usual = int(np.quantile(facts.per_image, 0.95)) if len(facts.per_image) else 1
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if most > limit:
        yield Choice(
            "TEST.DETECTIONS_PER_IMAGE", int(math.ceil(most * 1.2 / 10) * 10), f"an image has {most} objects, more than the usual {limit}"
        )
    if not small or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return
    seen = max(math.ceil(usual * part**2), 1)
    regions = min(max(round_to(8 * seen, 16), 32), 128)
    said = f"eight for each of the {seen} objects that images {'' if part == 1 else 'and their parts '}have at most (95 % of them), 32 to 128"
    yield Choice("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", regions, said)
    said = f"half of an image's {regions} regions may be objects (detectron2: 0.25 of 512), so that few regions show enough objects"
    yield Choice("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5, said)
    training, testing = (min(max(round_to(20 * count, 50), 250), 1000) for count in (seen, usual))
    said = "proposals: 20 for each of the {} objects of an image, 250 to 1000"
    yield Choice("MODEL.RPN.POST_NMS_TOPK_TRAIN", training, f"{said.format(seen)}; a CPU spends most of a step after the backbone")
    yield Choice("MODEL.RPN.PRE_NMS_TOPK_TRAIN", 2 * training, f"per level, before NMS leaves {training} (POST_NMS_TOPK_TRAIN)")
    yield Choice("MODEL.RPN.POST_NMS_TOPK_TEST", testing, said.format(usual))
    yield Choice("MODEL.RPN.PRE_NMS_TOPK_TEST", min(2 * testing, 1000), f"per level, before NMS leaves {testing} (POST_NMS_TOPK_TEST)")
    yield Choice(
        "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 128, f"anchors per image, half of detectron2's 256: 95 % of the images have at most {usual} objects"
    )
    narrow = "are narrow: they train faster on a CPU, and few images do not fill wide ones"
    yield Choice("MODEL.RPN.CONV_DIMS", [64], f"64 channels instead of 256 {narrow}")
    yield Choice("MODEL.FPN.OUT_CHANNELS", 128, f"128 channels instead of 256 {narrow} (FPNLite)")
    yield Choice("MODEL.ROI_BOX_HEAD.FC_DIM", 256, f"256 channels instead of 1024 {narrow}")
    yield Choice("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2, "a fixed number of samples: faster than one that depends on the box")
    if cfg.MODEL.MASK_ON:
        yield Choice("MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "two layers instead of four: a mask head for CPUs")
        yield Choice("MODEL.ROI_MASK_HEAD.CONV_DIM", 64, "64 channels instead of 256: a mask head for CPUs")
    if cfg.MODEL.KEYPOINT_ON:
        said = "four layers of 64 channels instead of eight of 512: a keypoint head for CPUs"
        yield Choice("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (64,) * 4, said)


def sampling(facts: Facts) -> Iterator[Choice]:
    shares = {name: share for name, share in facts.shares.items() if share}
    if len(shares) > 1:
        middle = float(np.median(list(shares.values())))
        rare = {name: share for name, share in shares.items() if share < middle / 5 and facts.counts[name] < 100}
        if rare:
            name = min(rare, key=lambda key: rare[key])
            yield Choice(
                "DATALOADER.SAMPLER_TRAIN",
                "RepeatFactorTrainingSampler",
                f"rare classes: {len(rare)}, {name!r} with {counted(facts.counts[name], 'object')} most: their images are shown more often",
            )
            yield Choice(
                "DATALOADER.REPEAT_THRESHOLD", round(middle / 2, 4), f"half of {middle:.3g}, the share of images with the median class"
            )
    share = facts.empty / max(facts.images, 1)
    if facts.empty and share <= 0.5:
        said = f"{counted(facts.empty, 'image')} ({share:.0%}) without objects, to learn what is not an object"
        yield Choice("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, said)
    elif facts.empty:
        yield Choice(
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, f"else the {facts.empty} without objects ({share:.0%}) would dominate the training"
        )


def flips(facts: Facts, known: str = "") -> Iterator[Choice]:
    """``known``: why the data's keypoints cannot be flipped."""
    sided = [name for name in facts.counts if re.search(r"(?i)\b(left|right)\b", name.replace("_", " "))]
    signs = [name for name in facts.counts if len(name) == 1]
    for wrong, reason in ((sided, "have a side"), (signs, "are characters, which mirroring changes")):
        if wrong and (wrong is sided or len(wrong) > len(facts.counts) / 2):
            yield Choice("INPUT.RANDOM_FLIP", "none", f"classes such as {wrong[0]!r} {reason}")
            return
    if known:
        yield Choice("INPUT.RANDOM_FLIP", "none", known)


def passes(images: int) -> float:
    """Passes over the images if time does not limit them: as in COCO's 3x, more for fewer images, at most 300."""
    return min(COCO_PASSES * math.sqrt(COCO_IMAGES / max(images, 1)), 300.0)


def passed(facts: Facts, batch: int, count: int) -> str:
    """The passes of so many steps, in words."""
    seen = count * batch / max(facts.images, 1)
    return f"{seen:.{0 if seen >= 10 else 1}f} passes over {counted(facts.images, 'image')}"


def schedule(
    facts: Facts, batch: int, limit: int | None, limited: str, evaluations: int = 10, gently: bool = False, asked: bool = False
) -> Iterator[Choice]:
    """``limit``: iterations that the time allows, or those ``asked`` for; ``evaluations``: how many it allows; ``gently``: see `gentle`."""
    wanted = max(round(passes(facts.images) * facts.images / batch), 100)
    count = wanted if limit is None else limit if asked else min(wanted, limit)
    why = passed(facts, batch, count)
    if count != wanted:
        why = f"{limited}, {why}. Without a limit: {passes(facts.images):.0f} passes"
    else:
        why += ", by the square root of COCO's number over theirs"
    yield Choice("SOLVER.MAX_ITER", count, why)
    yield Choice("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "the rate falls to 0 at the end, for any length: no steps to set")
    yield Choice("SOLVER.STEPS", (), "WarmupCosineLR has none")
    warmup = min(max(count // (4 if gently else 10), 10), 1000, count)
    said = f"a {'quarter' if gently else 'tenth'} of the training, at least 10{' or all of it' * (count < 10)}, at most detectron2's 1000"
    yield Choice("SOLVER.WARMUP_ITERS", warmup, said)
    period = math.ceil(count / evaluations) if facts.tested else 0
    times = math.ceil(count / period) if period else 0
    said = f"{times} evaluation{'s' if times > 1 else ''} on {counted(facts.tested, 'image')}"
    yield Choice("TEST.EVAL_PERIOD", period, said if period else "there are no data to evaluate on")
    often = period or math.ceil(count / 10)
    said = "with each evaluation" if period else "ten times in the training, as there are no evaluations"
    yield Choice("SOLVER.CHECKPOINT_PERIOD", min(often, 5000), said if often <= 5000 else "detectron2's")
    yield Choice("MODEL_EMA.ENABLED", True, "an average of the weights is smoother than the last ones")
    decay = round(1 - min(max(20 / count, 1e-4), 0.5), 5)
    yield Choice(
        "MODEL_EMA.DECAY", decay, f"over about {round(1 / (1 - decay))} iterations: a twentieth of the training, at least 2 and at most 10,000"
    )


def parts(batch: int, peak: Callable[[int], float], room: float) -> Iterator[Choice]:
    """``peak``: bytes that a step of a number of images needs in one process; ``room``: available bytes, 0 if unknown.

    Raises UserError if there is no room for one image.
    """
    fits = [count for count in range(1, batch + 1) if batch % count == 0 and peak(count) <= ROOM * room]
    need, there = (f"{value / 2**30:.2f} GiB" for value in (peak(batch), room))
    if not room or batch in fits:
        there = there if room else "an unknown amount"
        yield Choice("SOLVER.ACCUMULATE", 1, f"{batch} images at once need about {need} of memory, by small measurements; available: {there}")
        return
    if not fits:
        said = f"an image needs about {peak(1) / 2**30:.2f} GiB of memory in training, and {there} are available"
        raise UserError(f"{said}: use smaller images, or a machine with more", "resources", "INPUT.MIN_SIZE_TRAIN")
    count = batch // fits[-1]
    said = f"{batch} images at once would need about {need} of memory, and {there} are available; {fits[-1]} need {peak(fits[-1]) / 2**30:.2f}"
    yield Choice("SOLVER.ACCUMULATE", count, said)


def rate(batch: int, small: bool, gently: bool = False) -> Iterator[Choice]:
    """``small``: training on a CPU, with norms in the FPN and clipped gradients, which allow a higher rate. ``gently``: see `gentle`."""
    reference = SHORT_RATE if small else REFERENCE_RATE
    why = "detectron2's" if reference == REFERENCE_RATE else "with batch norms in the FPN, the quickstart's"
    said = f"{why} {reference} for {REFERENCE_BATCH} images, in proportion to {batch}"
    yield Choice("SOLVER.BASE_LR", round(reference * batch / REFERENCE_BATCH, 5), said)
    if small:
        yield Choice("SOLVER.CLIP_GRADIENTS.ENABLED", True, "so that no single batch derails a short training")
        yield Choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "by the norm of all gradients together")
        if gently:
            said = "limit of the gradients' norm: objects are small, and after larger first steps heads might call all of them background"
        else:
            said = "limit of the gradients' norm: far above that of trained networks"
        yield Choice("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1.0 if gently else 10.0, said)
