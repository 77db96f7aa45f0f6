"""Holds out a part of the images, with all classes in proportion.

Iterative stratification (Sechidis, Tsoumakas, Vlahavas: On the Stratification of Multi-Label Data, 2011): the rarest class first, each of its
images to the part that still lacks it most.
"""

import random
from collections import Counter
from typing import Any, Hashable, Sequence

from ..errors import UserError


def held_out(classes: Sequence[set[Hashable]], share: float, seed: int = 0) -> list[bool]:
    """Which images are held out. ``classes`` lists those of each image; the same input gives the same answer.

    About ``share`` of all images, and of those of each class. A class with two images or more is in both parts, unless other classes of its
    images prevent it; `alone` lists those.
    """
    count = round(share * len(classes))
    if not 0 < share < 1 or not 0 < count < len(classes):
        raise UserError(f"a share of {share:g} of {len(classes)} images leaves one of the two parts empty", "value")
    generator = random.Random(seed)
    images: dict[Hashable, list[int]] = {}
    for i in generator.sample(range(len(classes)), len(classes)):
        for name in classes[i]:
            images.setdefault(name, []).append(i)
    # what each part lacks of each class, and in all: at least one image of each class that has two
    lacks: list[dict[Hashable, float]] = [{}, {}]
    for name, its in images.items():
        part = min(max(share * len(its), 1), len(its) - 1) if len(its) > 1 else share
        lacks[True][name], lacks[False][name] = part, len(its) - part
    total = [len(classes) - count, count]
    part_of: dict[int, bool] = {}

    def put(i: int, part: bool) -> None:
        part_of[i] = part
        total[part] -= 1
        for name in classes[i]:
            lacks[part][name] -= 1

    left = Counter({name: len(its) for name, its in images.items()})
    while left:
        rarest = min(left, key=lambda name: (left[name], str(name)))
        for i in images[rarest]:
            if i not in part_of:
                put(i, (lacks[True][rarest], total[True] / count) > (lacks[False][rarest], total[False] / (len(classes) - count)))
                left.subtract(classes[i])
        del left[rarest]
        left = +left
    for i in generator.sample(range(len(classes)), len(classes)):
        if i not in part_of:
            put(i, total[True] > 0)
    return _mended([part_of[i] for i in range(len(classes))], classes, images, count)


def alone(answer: Sequence[bool], classes: Sequence[set[Hashable]]) -> list[Hashable]:
    """The classes with two images or more that are missing in one part of `held_out`."""
    there = [{name for i, names in enumerate(classes) if answer[i] == part for name in names} for part in (False, True)]
    counts = Counter(name for names in classes for name in names)
    return sorted((name for name in there[0] ^ there[1] if counts[name] > 1), key=str)


def _mended(answer: list[bool], classes: Sequence[set[Hashable]], images: dict[Hashable, list[int]], count: int) -> list[bool]:
    """Moves images one by one, as long as that leaves fewer classes in only one part, and until ``count`` are held out."""
    counts = {name: Counter(answer[i] for i in its) for name, its in images.items() if len(its) > 1}

    def gain(i: int) -> int:
        """How many more classes are in both parts after moving an image."""
        own, other = answer[i], not answer[i]
        known = [name for name in classes[i] if name in counts]
        return sum(counts[name][other] == 0 for name in known) - sum(counts[name][own] == 1 for name in known)

    def move(i: int) -> None:
        for name in classes[i] & set(counts):
            counts[name].subtract([answer[i]])
            counts[name].update([not answer[i]])
        answer[i] = not answer[i]

    def mend() -> None:
        for name in sorted(counts, key=str):
            if min(counts[name][True], counts[name][False]) == 0:
                best = max(images[name], key=gain)
                if gain(best) > 0 and answer.count(answer[best]) > 1:
                    move(best)

    mend()
    held = sum(answer)
    # those first whose move changes least: images without a class that is theirs alone, and with few classes
    for i in sorted(range(len(answer)), key=lambda i: (len(classes[i] - set(counts)), len(classes[i]))):
        # an empty part is worse than a class in only one part
        if held != count and answer[i] == (held > count) and (gain(i) >= 0 or held in (0, len(answer))):
            held += -1 if answer[i] else 1
            move(i)
    mend()
    return answer


def parts(content: dict[str, Any], share: float, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Splits data in COCO's format into training and held-out data; also returns the classes missing in one of them, see `held_out`."""
    index = {image["id"]: i for i, image in enumerate(content["images"])}
    names = {category["id"]: category["name"] for category in content["categories"]}
    classes: list[set[Hashable]] = [set() for _ in index]
    for annotation in content["annotations"]:
        classes[index[annotation["image_id"]]].add(names[annotation["category_id"]])
    answer = held_out(classes, share, seed)
    kept, held = (
        {
            **content,
            "images": [image for i, image in enumerate(content["images"]) if answer[i] == part],
            "annotations": [a for a in content["annotations"] if answer[index[a["image_id"]]] == part],
        }
        for part in (False, True)
    )
    return kept, held, [str(name) for name in alone(answer, classes)]
