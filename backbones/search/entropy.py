"""MAE-DET's score of a structure and its costs, from integers and logarithms; no network is built.

The score is the entropy of the features of a network with random weights, in closed form. Without norms, activations and shortcuts, a
convolution of n inputs to each output adds (ln n) / 2, and a feature of C channels ln C. Those of the stages are weighted and summed. (The
paper multiplies variances; the sums here are of their logarithms.) Compare scores only between structures of one budget and of
like depth: ResNet-101's is higher than that of MAE-DET-M, which detects better, and docs/search.md shows what depth does.
"""

import dataclasses
import math
from typing import Any, NamedTuple, Sequence

import torch
import torch.nn.functional as F

from ..errors import UserError
from ..maedet import SPECS, Block, Structure, check_structure, stage_of
from .latency import LatencyTable

STAGE_WEIGHTS = (0.0, 0.0, 1.0, 1.0, 6.0)  # for the features at strides 2 to 32

# blocks as plain tuples, for speed: channels, kernel, stride, bottlenecks, width of the bottlenecks
Plain = tuple[int, int, int, int, int]


class Costs(NamedTuple):
    """A structure's score (or a block's entropy), operations for one image, parameters, layers on the main path, and seconds."""

    score: float
    flops: int
    parameters: int
    layers: int
    latency: float


def block_costs(channels: int, block: Plain, side: int, table: LatencyTable | None = None) -> Costs:
    """The costs of a block for an input of ``channels`` with ``side`` x ``side`` pixels.

    Operations are counted as in MAE-DET's search: one per multiply-add, two per output value of a batch norm,
    one per value of a ReLU, per input value of an average, and per value of the shortcut at the start of a group.
    """
    out, kernel, stride, layers, width = block
    after = -(-side // stride)
    before, pixels = side * side, after * after
    area = kernel * kernel
    if not layers:
        seconds = table.conv(channels, out, kernel, stride, side) if table else 0.0
        return Costs(0.5 * math.log(channels * area), (channels * area + 3) * out * pixels, channels * area * out + 2 * out, 1, seconds)
    inner = area * width * width
    first = before * width * (channels + 3) + pixels * (inner + 3 * width + width * out + 3 * out)
    first += pixels * out * (channels + 3) + (before * channels if stride == 2 else 0)
    rest = pixels * (2 * width * out + inner + 6 * width + 3 * out)
    parameters = channels * width + inner + width * out + channels * out + 4 * width + 4 * out
    parameters += (layers - 1) * (2 * width * out + inner + 4 * width + 2 * out)
    narrow = math.log(width) + math.log(kernel)
    entropy = layers * narrow + 0.5 * (math.log(channels) + (layers - 1) * math.log(out))
    seconds = 0.0
    if table:
        last = table.conv(width, out, 1, 1, after)
        seconds = (
            table.conv(channels, width, 1, 1, side)
            + table.conv(width, width, kernel, stride, side)
            + last
            + table.conv(channels, out, 1, 1, after)
        )
        seconds += (layers - 1) * (table.conv(out, width, 1, 1, after) + table.conv(width, width, kernel, 1, after) + last)
    return Costs(entropy, first + (layers - 1) * rest, parameters, 3 * layers, seconds)


@dataclasses.dataclass
class Meter:
    """Measures structures at one image size: ``measure(structure)`` returns its `Costs`.

    Args:
        image_size: side of the square images, in pixels.
        stage_weights: weights of the stages' entropies in the score.
        table: a `latency.LatencyTable`, or None for no latency.
    """

    image_size: int = 480
    stage_weights: Sequence[float] = STAGE_WEIGHTS
    table: LatencyTable | None = None
    _known: dict[tuple, Costs] = dataclasses.field(default_factory=dict, repr=False)

    def measure(self, structure: Sequence[Plain]) -> Costs:
        known = self._known
        if len(known) > 1 << 17:
            known.clear()
        channels, side, stage = 3, self.image_size, 0
        score = entropy = latency = 0.0
        flops = parameters = layers = 0
        weights = self.stage_weights
        for i, block in enumerate(structure):
            stride = block[2]
            if i and stride == 2:  # the block before ends its stage
                score += weights[stage] * (entropy + math.log(channels))
                stage += 1
            key = (channels, block, side)
            costs = known.get(key)
            if costs is None:
                costs = known[key] = block_costs(channels, block, side, self.table)
            entropy += costs[0]
            flops += costs[1]
            parameters += costs[2]
            layers += costs[3]
            latency += costs[4]
            channels = block[0]
            side = -(-side // stride)
        score += weights[stage] * (entropy + math.log(channels))
        return Costs(score, flops, parameters, layers, latency)

    def stages(self, structure: Sequence[Plain]) -> list[float]:
        """The share of each stage in the score."""
        parts = [0.0] * len(self.stage_weights)
        entropy, channels, side = 0.0, 3, self.image_size
        for block, stage in zip(structure, stage_of([Block(*b) for b in structure])):
            entropy += block_costs(channels, block, side)[0]
            channels, side = block[0], -(-side // block[2])
            parts[stage] = self.stage_weights[stage] * (entropy + math.log(channels))
        return parts


def plain(structure: Structure, what: str = "the structure") -> tuple[Plain, ...]:
    """Prepares ``structure`` for measuring. Raises UserError for blocks that the search does not know: single bottlenecks, and
    convolutions without an activation."""
    for i, block in enumerate(check_structure(structure, what)):
        if not block.forced:
            raise UserError(f"{what}: block {i} is a single ResK1KXK1, which the search does not know: write it as a SuperResK1KXK1 with L 1")
        if not block.relu:
            raise UserError(f"{what}: block {i} is a ConvKXBN, without an activation, which the search does not know")
    return tuple((b.channels, b.kernel_size, b.stride, b.layers, b.bottleneck) for b in structure)


def _resnet(*layers: int) -> Structure:
    groups = zip(layers, (256, 512, 1024, 2048), (64, 128, 256, 512))
    return (Block(64, 7, 2), *(Block(channels, 3, 2, count, width) for count, channels, width in groups))


# structures that can be scored by name; in the ResNets the first stage has a strided convolution instead of a pooling
STRUCTURES: dict[str, Structure] = {
    **{name: spec.structure for name, spec in SPECS.items()},
    "R-50": _resnet(3, 4, 6, 3),
    "R-101": _resnet(3, 4, 23, 3),
}


def monte_carlo(
    structure: Sequence[Plain], image_size: int = 160, batch: int = 2, repeats: int = 2, seed: int = 0, stage_weights=STAGE_WEIGHTS
) -> dict[str, Any]:
    """Measures the score by the definition of the entropy: random images through convolutions with random weights, on the CPU.

    Returns ``mean`` and ``std`` over the repeats. It approaches `Meter`'s score from below as images grow, as borders are padded with zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    numbers = stage_of([Block(*b) for b in structure])
    scores = []
    with torch.no_grad():
        for _ in range(repeats):
            x = torch.randn(batch, 3, image_size, image_size, generator=generator)
            entropy = score = 0.0
            for i, (out, kernel, stride, layers, width) in enumerate(structure):
                units = [(out, kernel, stride)] if not layers else []
                for j in range(layers):
                    units += [(width, 1, 1), (width, kernel, stride if j == 0 else 1), (out, 1, 1)]
                for channels, k, s in units:
                    weight = torch.randn(channels, x.shape[1], k, k, generator=generator)
                    x = F.conv2d(x, weight, stride=s, padding=k // 2)
                    deviation = x.std()
                    entropy += math.log(deviation)
                    x /= deviation
                if i + 1 == len(structure) or numbers[i + 1] > numbers[i]:
                    score += stage_weights[numbers[i]] * (entropy + math.log(out))
            scores.append(score)
    mean = sum(scores) / repeats
    return {"mean": mean, "std": math.sqrt(sum((s - mean) ** 2 for s in scores) / repeats), "image_size": image_size, "repeats": repeats}
