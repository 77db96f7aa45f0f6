"""detectron2's deformable rows without its compiled extension: the operator's definition, and its ResNet's blocks."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.backbone import resnet
from torch import nn

from backbones.resnet import TorchvisionDeformConv


def by_definition(x, offset, weight, mask, stride, padding, groups, deform_groups):
    """Each tap of the kernel reads the image, by bilinear interpolation, where its offset (y, x) moves it."""
    taps, side = weight.shape[-1] ** 2, weight.shape[-1]
    height, width = offset.shape[2:]
    channels = x.shape[1] // deform_groups
    ys, xs = torch.meshgrid(torch.arange(height) * stride - padding, torch.arange(width) * stride - padding, indexing="ij")
    sampled = []
    for g in range(deform_groups):
        part = x[:, g * channels : (g + 1) * channels]
        for k in range(taps):
            at = 2 * (g * taps + k)
            y, z = ys + k // side + offset[:, at], xs + k % side + offset[:, at + 1]
            grid = torch.stack([2 * z / (x.shape[3] - 1) - 1, 2 * y / (x.shape[2] - 1) - 1], dim=-1)
            value = F.grid_sample(part, grid, align_corners=True)
            sampled.append(value if mask is None else value * mask[:, g * taps + k, None])
    per_group = [torch.stack(sampled[g * taps : (g + 1) * taps], dim=2) for g in range(deform_groups)]
    columns = torch.cat(per_group, dim=1)  # (N, C, taps, H, W)
    ours = []
    for g, part in enumerate(columns.chunk(groups, dim=1)):
        rows = weight.chunk(groups, dim=0)[g].flatten(2)
        ours.append(torch.einsum("ncthw,oct->nohw", part, rows))
    return torch.cat(ours, dim=1)


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("groups, deform_groups, stride", [(1, 1, 1), (4, 1, 2), (2, 2, 1)])
def test_the_operator(modulated, groups, deform_groups, stride):
    """Within 1e-4; offsets that stay inside the image, where all agree on what interpolation means."""
    conv = TorchvisionDeformConv(8, 12, 3, stride=stride, padding=1, groups=groups, deformable_groups=deform_groups)
    x = torch.randn(2, 8, 11, 14)
    x[:, :, [0, 1, -2, -1]] = 0
    x[:, :, :, [0, 1, -2, -1]] = 0
    height, width = -(-11 // stride), -(-14 // stride)
    offset = torch.rand(2, 18 * deform_groups, height, width) - 0.5
    mask = torch.rand(2, 9 * deform_groups, height, width) if modulated else None
    expected = by_definition(x, offset, conv.weight, mask, stride, 1, groups, deform_groups)
    torch.testing.assert_close(conv(x, offset, mask), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("modulated", [False, True])
def test_blocks_of_detectron2s_resnet(modulated):
    """Offsets of zero leave the convolution as it is, halved where a gate of sigmoid(0) weighs each tap."""
    options = dict(bottleneck_channels=16, num_groups=2, norm="BN", stride=2)
    block = resnet.DeformBottleneckBlock(8, 32, deform_modulated=modulated, **options)
    plain = resnet.BottleneckBlock(8, 32, **options)
    plain.load_state_dict(block.state_dict(), strict=False)
    with torch.no_grad():
        plain.conv2.weight.mul_(0.5 if modulated else 1)
    x = torch.randn(2, 8, 9, 12, requires_grad=True)
    for module in (block, plain):
        module.eval()
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
    block.train()(x).sum().backward()
    assert x.grad.abs().sum() > 0 and block.conv2_offset.weight.grad is not None
    assert isinstance(block.conv2, nn.Module) and set(dict(block.conv2.named_parameters())) >= {"weight"}
