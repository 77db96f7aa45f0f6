"""The available networks, best first, and their costs."""

from collections import defaultdict
from typing import Callable, Iterable, Iterator

import torch

from .. import zoo
from ..errors import UserError
from ..meta import conv_counts, on_meta
from ..registry import create
from ..swap import network_of
from ..zoo import checking, weights

# weights without a published detector that are worth a try, after all others
_MORE = ("timm/tf_efficientnet_lite0.in1k",)


def costs(names: Iterable[str]) -> dict[str, float]:
    """Multiply-adds of each network for an image of 320 x 320."""
    with on_meta():
        image = torch.empty(1, 3, 320, 320, device="meta")
        return {name: conv_counts(create(name).eval(), image)[0] for name in names}


def candidates() -> Iterator[tuple[str, float | None]]:
    """(network, box AP on COCO) of the published Faster R-CNNs on FPN of our families, best first; then other networks, without a figure."""
    best: dict[str, float] = {}
    for config, row in weights.models().items():
        if row["source"] in ("vovnet-detectron2", "mmdetection") and "faster_rcnn" in config and "box" in row["published_ap"]:
            name = network_of(zoo.get_config(config))
            best[name] = max(best.get(name, 0.0), row["published_ap"]["box"])
    yield from sorted(best.items(), key=lambda pair: -pair[1])
    for name in _MORE:
        yield name, None


def available(names: Iterable[str], say: Callable[[str], None]) -> dict[str, str]:
    """The address of the weights of each network that are available now, in the same order. Asks hosts in parallel.

    Says which networks are not considered, why, and what to do.
    """
    names, found, asked = list(names), {}, {}
    missing: defaultdict[str, list[str]] = defaultdict(list)  # why -> networks
    for name in names:
        try:
            own, free = weights.local(name), [release for release in weights.releases(name) if release.free]
        except UserError as error:
            missing[str(error)].append(name)
            continue
        there = next((release.address for release in free if weights.here(release)), "")
        if own or there:
            found[name] = weights.PREFIX + name if own else there
        elif free:
            asked[name] = free[0]
        else:
            missing["their weights are gone from the web, or their licence restricts use"].append(name)
    try:
        answers = checking.check(asked.values(), timeout=3) if asked else {}
    except UserError as error:
        missing[f"their weights must be downloaded, and there is {error}"] += asked
        asked, answers = {}, {}
    for name, release in asked.items():
        answer = answers[release.place]
        if answer.state in ("alive", "moved"):
            found[name] = release.address
        else:
            missing[f"their weights cannot be downloaded: {answer.why}"].append(name)
    for why, left in missing.items():
        files = f"save weights of theirs as NAME.pth in {weights.folder()!r}"
        say(f"not considered: {', '.join(left)}, because {why}. To have them considered, {files}")
    return {name: found[name] for name in names if name in found}
