"""The block of DetNAS's search space: a ShuffleNetV2 block whose branch is one of `choices.CHOICES`."""

import torch
from torch import Tensor, nn

from .layers import Conv, ConvNormAct, StagePlan, rounded

SPLITS = ("halves", "input")  # how a reducing block's width is split: in two halves, or into its input's width and the rest
SHUFFLES = ("after", "before", "alternate")  # channels interleaved after each block, before each that keeps the size, or every second one taken


def interleave(x: Tensor) -> Tensor:
    """The channels of the two halves of (N, C, H, W) in turn."""
    n, c, h, w = x.shape
    return x.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def _main_branch(in_channels: int, width: int, out_channels: int, choice: int, norm: str, plan: StagePlan, reduces: bool) -> nn.Sequential:
    """The branch that is chosen: each depthwise convolution without, each 1x1 with an activation."""
    stride, first = (plan.stride, plan.reducing) if reduces else (1, plan.conv)

    def depthwise(channels: int, kernel: int, stride: int = 1, conv: Conv = plan.conv) -> nn.Module:
        return ConvNormAct(channels, channels, kernel, stride, groups=channels, norm=norm, act=nn.Identity, conv=conv)

    def pointwise(i: int, o: int) -> nn.Module:
        return ConvNormAct(i, o, norm=norm)

    if choice == 3:
        return nn.Sequential(
            depthwise(in_channels, 3, stride, first),
            pointwise(in_channels, width),
            depthwise(width, 3),
            pointwise(width, width),
            depthwise(width, 3),
            pointwise(width, out_channels),
        )
    return nn.Sequential(pointwise(in_channels, width), depthwise(width, 3 + 2 * choice, stride, first), pointwise(width, out_channels))


class ShuffleBlock(nn.Module):
    """Half of the channels pass, the other half goes through the chosen branch; where the block reduces, all go through both branches.

    Args:
        in_channels, out_channels: equal where the block keeps the size.
        choice: index into CHOICES.
        reduces: whether it has stride 2.
        split, shuffle: among SPLITS and SHUFFLES.
        branch_width: factor of the width within the chosen branch.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        choice: int,
        reduces: bool,
        split: str,
        shuffle: str,
        norm: str,
        plan: StagePlan,
        branch_width: float = 1.0,
    ):
        super().__init__()
        self.shuffle = shuffle
        self.proj = None  # where the block keeps the size
        width = out_channels // 2
        inner = width if branch_width == 1 else rounded(width * branch_width, 4)
        if not reduces:
            self.main = _main_branch(width, inner, width, choice, norm, plan, reduces)
            return
        passed = in_channels if split == "input" else width
        kernel = 3 if choice == 3 else 3 + 2 * choice
        self.proj = nn.Sequential(
            ConvNormAct(in_channels, in_channels, kernel, plan.stride, groups=in_channels, norm=norm, act=nn.Identity, conv=plan.reducing),
            ConvNormAct(in_channels, passed, norm=norm),
        )
        self.main = _main_branch(in_channels, inner, out_channels - passed, choice, norm, plan, reduces)

    def forward(self, x: Tensor) -> Tensor:
        if self.proj is not None:
            x = torch.cat((self.proj(x), self.main(x)), dim=1)
        else:
            if self.shuffle == "before":
                x = interleave(x)
            if self.shuffle == "alternate":
                kept, x = x[:, 0::2], x[:, 1::2]
            else:
                kept, x = x.chunk(2, dim=1)
            x = torch.cat((kept, self.main(x)), dim=1)
        return interleave(x) if self.shuffle == "after" else x
