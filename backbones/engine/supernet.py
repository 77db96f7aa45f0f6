"""Training a supernet: one path for all processes in each iteration, and nothing of the others is touched."""

import random
from typing import Sequence

from detectron2.engine import HookBase
from torch import nn

from ..shufflenetv2 import CHOICES, ShuffleNetV2Supernet


def supernets(model: nn.Module) -> list[ShuffleNetV2Supernet]:
    return [module for module in model.modules() if isinstance(module, ShuffleNetV2Supernet)]


def draw_path(blocks: int, seed: int, iteration: int) -> tuple[int, ...]:
    """The choice of each of so many blocks, uniform, from the seed and the iteration alone: the same in every process and after a resume."""
    return random_path(blocks, random.Random(f"{seed}/{iteration}"))


def random_path(blocks: int, rng: random.Random) -> tuple[int, ...]:
    """A choice for each of so many blocks, uniform."""
    return tuple(int(rng.random() * len(CHOICES)) for _ in range(blocks))


class SamplePath(HookBase):
    """Sets the path of each iteration. Gradients of the other choices stay None, so that neither decay nor momentum moves them."""

    def __init__(self, nets: Sequence[ShuffleNetV2Supernet], seed: int):
        self.nets, self.seed = nets, seed

    def before_step(self) -> None:
        for net in self.nets:
            net.set_path(draw_path(sum(net.blocks), self.seed, self.trainer.iter))
