"""The rules: each gives values of config keys, with the reason and the figures behind it. COCO's own numbers lead to COCO's own recipe.

The doctor goes by the same rules.
"""

import math
import re
from typing import Any, Iterator, NamedTuple, Sequence

import numpy as np
from detectron2.config import CfgNode

from .facts import Facts

# of COCO 2017 train, by which the rules are set: images, and passes over them of detectron2's 3x schedule
COCO_IMAGES, COCO_PASSES = 118_287, 36.5
REFERENCE_BATCH, REFERENCE_RATE = 16, 0.02
# a side of the smallest tenth of COCO's objects is some 5 cells of the finest features at 800 pixels
CELLS = 5
MET = 0.95  # the part of the boxes that anchors should meet with IoU 0.5
FEW_IMAGES = 1000


class Choice(NamedTuple):
    """A key's value and why."""

    key: str
    value: Any
    reason: str


def task(facts: Facts, wanted: str = "auto") -> tuple[str, str]:
    """("boxes", "masks" or "keypoints", the reason)."""
    if wanted != "auto":
        return wanted, "as asked"
    if facts.keypoints >= 0.5:
        return "keypoints", f"{facts.keypoints:.0%} of the objects have visible keypoints"
    if facts.masks + facts.rectangles >= 0.5 and facts.masks > facts.rectangles:
        return "masks", f"{facts.masks:.0%} of the objects have a mask that is more than its box"
    if facts.rectangles:
        return "boxes", f"{facts.rectangles:.0%} of the objects have rectangles as masks: they say no more than the boxes"
    return "boxes", f"{facts.masks:.0%} of the objects have masks, {facts.keypoints:.0%} keypoints"


def image_size(facts: Facts, stride: int, most: int = 0) -> tuple[int, str]:
    """(the shorter side that images are resized to, the reason); ``stride`` is of the finest features, ``most`` the largest side to be had."""
    own = float(np.median(facts.short))
    if not facts.objects:
        return round_to(own), "no objects: the images' own size"
    smallest = float(np.quantile(np.sqrt(facts.boxes.prod(1)) / facts.shorter, 0.1))  # of the image's shorter side
    wanted = CELLS * stride / smallest
    low, high = min(own, 320.0), min(2 * own, 1333.0)
    size = min(max(wanted, low), high)
    cells = f"{smallest * size / stride:.1f} cells of P{int(math.log2(stride))}"
    reason = f"the smallest tenth of the objects then have sides up to {smallest * size:.0f} pixels, {cells}"
    if size < wanted:
        reason += f" (the rule asks for {CELLS}: {wanted:.0f} pixels, but images are enlarged to at most twice their {own:.0f})"
    if most and size > most:
        size, reason = most, reason + f"; {most} is what the time allows"
    return round_to(size), reason


def round_to(size: float, step: int = 32) -> int:
    return max(int(round(size / step)) * step, step)


def sizes(facts: Facts, short: int) -> Iterator[Choice]:
    ratio = float(np.quantile(facts.long / facts.short, 0.95))
    longest = round_to(short * min(ratio, 2.0)) if ratio > 1.67 else round_to(short * 1.6667)
    low = round_to(0.8 * short)
    many = tuple(range(low, short + 1, 32)) if short >= 160 else (short,)
    yield Choice(
        "INPUT.MIN_SIZE_TRAIN", many, f"0.8 to 1 times the size of evaluation, as detectron2's 640 to 800, in steps of 32 ({len(many)} sizes)"
    )
    yield Choice("INPUT.MAX_SIZE_TRAIN", longest, f"the longer side is at most {ratio:.2f} times the shorter in 95 % of the images")
    yield Choice("INPUT.MAX_SIZE_TEST", longest, "as in training")


def anchors(facts: Facts, cfg: CfgNode, short: int) -> Iterator[Choice]:
    """Kept where they meet the boxes, else from the data: five sizes from the smallest to the largest twentieth, ratios by quantiles."""
    dense = "RetinaNet" in cfg.MODEL.META_ARCHITECTURE
    strides = (8, 16, 32, 64, 128) if dense else (4, 8, 16, 32, 64)
    boxes = facts.boxes * (short / facts.shorter)[:, None]
    if not len(boxes):
        return
    old_sizes, old_ratios = cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0]
    before = met(boxes, old_sizes, old_ratios, strides)
    if before >= MET:
        yield Choice("MODEL.ANCHOR_GENERATOR.SIZES", old_sizes, f"kept: {before:.1%} of the boxes meet an anchor with IoU 0.5")
        return
    sides = np.sqrt(boxes.prod(1))
    low, high = np.quantile(sides, (0.05, 0.95))
    steps = np.geomspace(max(low, 4.0), max(high, 1.5 * low, 8.0), len(strides))
    octaves = [2 ** (i / 3) for i in range(3)] if dense else [1.0]
    new_sizes = [[round(float(side * octave), 1) for octave in octaves] for side in steps]
    shapes = np.quantile(np.log(boxes[:, 1] / boxes[:, 0]), (0.1, 0.5, 0.9))
    fitted = sorted({round(float(np.exp(value)), 2) for value in shapes})
    tries = {tuple(ratios): met(boxes, new_sizes, ratios, strides) for ratios in (old_ratios, fitted)}
    ratios = max(tries, key=lambda key: (tries[key] > tries[tuple(old_ratios)] + 0.01, tries[key])) if tries else tuple(old_ratios)
    after = tries[ratios]
    if after <= before + 0.005:
        said = f"kept: {before:.1%} of the boxes meet one with IoU 0.5, and {after:.1%} one that is fitted"
        yield Choice("MODEL.ANCHOR_GENERATOR.SIZES", old_sizes, said)
        return
    yield Choice(
        "MODEL.ANCHOR_GENERATOR.SIZES",
        new_sizes,
        f"boxes are {low:.0f} to {high:.0f} pixels: {before:.1%} of them met an anchor, now {after:.1%}",
    )
    if list(ratios) != list(old_ratios):
        yield Choice(
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [list(ratios)], "height by width of the boxes: their first tenth, median, last tenth"
        )


def met(boxes: np.ndarray, sizes_: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> float:
    """The part of boxes (N, 2), width and height, that meet an anchor with IoU 0.5 wherever they lie: at the middle between two cells."""
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[list(map(float, own)) for own in sizes_], aspect_ratios=[list(ratios)], strides=list(strides))
    places = np.random.default_rng(0).uniform(200, 400, (len(boxes), 2))
    corners = np.concatenate([places, places + boxes], axis=1)
    corners = corners[:: max(len(corners) // 5000, 1)]
    return 1 - float(unmatched(corners, [cell.numpy() for cell in generator.cell_anchors], strides, generator.offset).mean())


def unmatched(boxes: np.ndarray, anchors: Sequence[np.ndarray], strides: Sequence[int], offset: float, threshold: float = 0.5) -> np.ndarray:
    """Which boxes (N, 4) x0, y0, x1, y1 no anchor meets with at least that IoU, (N,) bool; ``anchors`` (A, 4) of each level lie around 0, 0."""
    best = np.zeros(len(boxes))
    centers, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    for cell, stride in zip(anchors, strides):
        # of the anchors of one form, the one whose centre is nearest overlaps most
        place = centers / stride - offset
        distance = np.abs(place - np.maximum(np.round(place), 0)) * stride
        for x0, y0, x1, y1 in np.asarray(cell, float):
            own = np.array([x1 - x0, y1 - y0])
            overlap = np.minimum(sides / 2, distance + own / 2) - np.maximum(-sides / 2, distance - own / 2)
            inter = overlap.clip(min=0).prod(1)
            best = np.maximum(best, inter / (sides.prod(1) + own.prod() - inter))
    return best < threshold


def heads(facts: Facts, cfg: CfgNode, small: bool) -> Iterator[Choice]:
    """``small``: a CPU trains."""
    most = int(facts.per_image.max()) if len(facts.per_image) else 0
    usual = int(np.quantile(facts.per_image, 0.95)) if len(facts.per_image) else 1
    limit = cfg.TEST.DETECTIONS_PER_IMAGE
    if most > limit:
        yield Choice(
            "TEST.DETECTIONS_PER_IMAGE", int(math.ceil(most * 1.2 / 10) * 10), f"an image has {most} objects, more than the usual {limit}"
        )
    if not small or cfg.MODEL.META_ARCHITECTURE != "GeneralizedRCNN":
        return
    regions = min(max(round_to(8 * usual, 16), 32), cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE)
    yield Choice(
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", regions, f"eight for each of the {usual} objects that images have at most (95 % of them)"
    )
    yield Choice("MODEL.ROI_HEADS.POSITIVE_FRACTION", 0.5, "of so few")
    proposals = max(round_to(20 * usual, 50), 250)
    yield Choice(
        "MODEL.RPN.POST_NMS_TOPK_TRAIN", min(proposals, 1000), f"enough for {usual} objects; a CPU spends most of a step behind the backbone"
    )
    yield Choice("MODEL.RPN.PRE_NMS_TOPK_TRAIN", min(2 * proposals, 2000), "twice as many")
    yield Choice("MODEL.RPN.POST_NMS_TOPK_TEST", max(min(proposals, 1000), 100), "as in training")
    yield Choice("MODEL.RPN.PRE_NMS_TOPK_TEST", min(2 * proposals, 1000), "as in training")
    yield Choice("MODEL.RPN.BATCH_SIZE_PER_IMAGE", 128, "half of the usual: images have few objects")
    yield Choice("MODEL.RPN.CONV_DIMS", [64], "narrow layers train faster on a CPU, and few images do not fill wide ones")
    yield Choice("MODEL.FPN.OUT_CHANNELS", 128, "likewise (FPNLite)")
    yield Choice("MODEL.ROI_BOX_HEAD.FC_DIM", 256, "likewise")
    yield Choice("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2, "a fixed number of samples: faster than one that follows the box")
    if cfg.MODEL.MASK_ON:
        yield Choice("MODEL.ROI_MASK_HEAD.NUM_CONV", 2, "two layers of 64: a CPU's mask head")
        yield Choice("MODEL.ROI_MASK_HEAD.CONV_DIM", 64, "likewise")
    if cfg.MODEL.KEYPOINT_ON:
        yield Choice("MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS", (64,) * 4, "four layers of 64: a CPU's keypoint head")


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
                f"{len(rare)} classes are rare, {name!r} with {facts.counts[name]} objects most: their images are shown more often",
            )
            yield Choice("DATALOADER.REPEAT_THRESHOLD", round(middle / 2, 4), f"half of the median class's share of images, {middle:.3g}")
    share = facts.empty / max(facts.images, 1)
    if facts.empty and share <= 0.5:
        yield Choice("DATALOADER.FILTER_EMPTY_ANNOTATIONS", False, f"{facts.empty} images ({share:.0%}) without objects teach what is none")
    elif facts.empty:
        yield Choice(
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS", True, f"{facts.empty} images ({share:.0%}) without objects would be most of the training"
        )


def flips(facts: Facts, known: str = "") -> Iterator[Choice]:
    """``known``: why the data's keypoints cannot be flipped."""
    sided = [name for name in facts.counts if re.search(r"(?i)\b(left|right)\b", name.replace("_", " "))]
    signs = [name for name in facts.counts if len(name) == 1]
    for wrong, reason in ((sided, "have a side"), (signs, "are characters, which a mirror makes others of")):
        if wrong and (wrong is sided or len(wrong) > len(facts.counts) / 2):
            yield Choice("INPUT.RANDOM_FLIP", "none", f"classes such as {wrong[0]!r} {reason}")
            return
    if known:
        yield Choice("INPUT.RANDOM_FLIP", "none", known)


def passes(images: int) -> float:
    """How often each image is seen where time does not limit it: as in COCO's 3x, more often where there are fewer, at most 300 times."""
    return min(COCO_PASSES * math.sqrt(COCO_IMAGES / max(images, 1)), 300.0)


def schedule(facts: Facts, batch: int, limit: int | None, limited: str, evaluations: int = 10) -> Iterator[Choice]:
    """``limit``: iterations that there is time for; ``evaluations``: how often there is."""
    wanted = max(round(passes(facts.images) * facts.images / batch), 100)
    count = min(wanted, limit) if limit is not None else wanted
    seen = count * batch / max(facts.images, 1)
    why = f"{seen:.0f} passes over {facts.images} images"
    why += (
        f": {limited} (without a limit {passes(facts.images):.0f} passes)"
        if count < wanted
        else ", by the square root of COCO's number over theirs"
    )
    yield Choice("SOLVER.MAX_ITER", count, why)
    yield Choice("SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "falls to 0 at the end of any length: no steps to set")
    yield Choice("SOLVER.STEPS", (), "the cosine has none")
    warmup = min(max(count // 10, 10), 1000)
    yield Choice("SOLVER.WARMUP_ITERS", warmup, "a tenth of the training, at most detectron2's 1000")
    period = max(count // evaluations, 1) if facts.tested else 0
    said = f"{evaluations} evaluations on {facts.tested} images"
    yield Choice("TEST.EVAL_PERIOD", period, said if period else "there is nothing to evaluate on")
    yield Choice("SOLVER.CHECKPOINT_PERIOD", max(count // 10, 1), "ten times")
    yield Choice("MODEL_EMA.ENABLED", True, "an average of the weights is smoother than the last ones")
    decay = round(1 - min(max(20 / count, 1e-4), 0.5), 5)
    yield Choice("MODEL_EMA.DECAY", decay, f"over some {round(1 / (1 - decay))} iterations, the last twentieth of the training")


def rate(batch: int, pretrained: bool, small: bool) -> Iterator[Choice]:
    if pretrained:
        value = REFERENCE_RATE * batch / REFERENCE_BATCH
        yield Choice("SOLVER.BASE_LR", round(value, 5), f"detectron2's {REFERENCE_RATE} for {REFERENCE_BATCH} images, in proportion to {batch}")
    else:
        yield Choice(
            "SOLVER.BASE_LR", round(0.1 * batch / 16, 5), "from scratch with batch norms everywhere: 0.1 for 16 images, as the quickstart's"
        )
    if small:
        yield Choice("SOLVER.CLIP_GRADIENTS.ENABLED", True, "so that no batch throws a short training out of its way")
        yield Choice("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "full_model", "the norm of all gradients together")
        yield Choice("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 10.0, "far above what trained networks have")
