"""VoVNetV2 (Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", CVPR 2020), seven variants.

One-shot aggregation: a block concatenates its input and the outputs of all its layers once, at its end, instead of in every layer, which
keeps the feature maps in memory few and the convolutions dense. V2 adds an identity around repeated blocks and an effective
squeeze-excitation (eSE) gate of one full-width layer.

Worth knowing:
- The released weights have a gate in every block (``ese="all"``); timm's networks of the same name gate only the last of each stage.
- Pooling between stages rounds odd sizes down where the stem rounds up, so features fit their strides only for sizes that 32 divides:
  the network states that as its ``size_divisibility``, and detectron2 pads to it.
- The released weights expect BGR images with mean 103.53, 116.28, 123.675 and standard deviation 1, detectron2's defaults.
"""

import functools
import re
from typing import Any, Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, fx, nn

from .errors import unknown
from .fpn import common_options, register
from .layers import Conv, ConvNormAct, Options, StagedBackbone, initialize_convs, spec_of

STAGES = ("stem", "stage2", "stage3", "stage4", "stage5")


class DepthwiseSeparable(nn.Module):
    """3x3 depthwise convolution, then a 1x1 unit: one norm and one activation, after the second."""

    def __init__(self, channels: int, out_channels: int, stride: int = 1, norm: str = "FrozenBN", conv: Conv = nn.Conv2d):
        super().__init__()
        self.depthwise = conv(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False)
        self.pointwise = ConvNormAct(channels, out_channels, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.pointwise(self.depthwise(x))
        return y


class EffectiveSqueezeExcite(nn.Module):
    """Scales each channel by a gate in [0, 1], computed from all channels' means by one layer of full width."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.fc(F.adaptive_avg_pool2d(x, 1)))


class OSABlock(nn.Module):
    """One-shot aggregation: (N, in_channels, H, W) -> (N, out_channels, H, W)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        layers: int,
        depthwise: bool,
        norm: str,
        gated: bool,
        identity: bool,
        conv: Conv,
    ):
        super().__init__()
        # depthwise layers cannot change the width, so a unit before them does
        self.reduction = ConvNormAct(in_channels, channels, norm=norm) if depthwise and in_channels != channels else nn.Identity()
        unit = DepthwiseSeparable if depthwise else functools.partial(ConvNormAct, kernel_size=3)
        before = [channels if i or depthwise else in_channels for i in range(layers)]
        self.layers = nn.ModuleList([unit(width, channels, norm=norm, conv=conv) for width in before])
        self.concat = ConvNormAct(in_channels + layers * channels, out_channels, norm=norm)
        self.ese = EffectiveSqueezeExcite(out_channels) if gated else nn.Identity()
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        y = self.reduction(x)
        for layer in self.layers:
            y = layer(y)
            features.append(y)
        if torch.jit.is_scripting():
            y = self.concat(torch.cat(features, dim=1))
        else:
            y = self.concat.of_pieces(features)
        y = self.ese(y)
        out: Tensor = y + x if self.identity else y
        return out


@fx.wrap  # a branch on sizes, which symbolic_trace cannot follow
def _padded(x: Tensor) -> Tensor:
    """A map of one row or column with one of -infinity more."""
    if not torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        if x.shape[2] < 2 or x.shape[3] < 2:
            return F.pad(x, [0, int(x.shape[3] < 2), 0, int(x.shape[2] < 2)], value=float("-inf"))
    return x


class Pool(nn.Module):
    """3x3 max pooling with stride 2: n becomes n // 2, and 1 stays 1, where plain pooling would fail. With stride 1, n stays n."""

    def __init__(self, stride: int = 2):
        super().__init__()
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:  # the same windows, one at each pixel
            return F.max_pool2d(F.pad(x, [0, 2, 0, 2], value=float("-inf")), kernel_size=3, stride=1)
        return F.max_pool2d(_padded(x), kernel_size=3, stride=2, ceil_mode=True)


class VoVNet(StagedBackbone):
    """VoVNetV2: emits "stem" and "stage2" (stride 4), "stage3" (8), "stage4" (16) and "stage5" (32).

    Args:
        stem_channels: widths of the stem's three convolutions.
        stage_channels, stage_out_channels: widths inside and after the blocks of stage2 to stage5.
        layers_per_block, blocks_per_stage, depthwise: what a block is made of, and how many there are in each stage.
        ese: gates in "all" blocks, as in the released weights, or in the "last" of each stage.
        common: `Options`.
    """

    stages = STAGES
    layouts = ("released", "timm")
    classifier = re.compile(r"head\.fc\.")

    def __init__(
        self,
        stem_channels: Sequence[int],
        stage_channels: Sequence[int],
        stage_out_channels: Sequence[int],
        layers_per_block: int,
        blocks_per_stage: Sequence[int],
        depthwise: bool = False,
        *,
        ese: str = "all",
        **common: Any,
    ):
        super().__init__()
        options = Options(**common)
        norm = options.norm
        if ese not in ("all", "last"):
            raise unknown("eSE placement", ese, ("all", "last"))
        self._depthwise = depthwise
        unit = DepthwiseSeparable if depthwise else functools.partial(ConvNormAct, kernel_size=3)
        first, second, third = stem_channels
        stem = nn.Sequential(
            ConvNormAct(options.in_channels, first, 3, stride=2, norm=norm),
            unit(first, second, norm=norm),
            unit(second, third, stride=2, norm=norm),
        )
        self.add_stage("stem", stem, third, stride=4)
        width, stride = third, 4
        for i, (name, channels, out_channels, num_blocks, plan) in enumerate(
            zip(STAGES[1:], stage_channels, stage_out_channels, blocks_per_stage, options.plans())
        ):
            stage = nn.Sequential()
            if i > 0:
                stage.add_module("pool", Pool(plan.stride))
                stride *= plan.stride
            for b in range(num_blocks):
                gated = ese == "all" or b == num_blocks - 1
                block = OSABlock(width, channels, out_channels, layers_per_block, depthwise, norm, gated, identity=b > 0, conv=plan.conv)
                stage.add_module(f"block{b + 1}", block)
                width = out_channels
            self.add_stage(name, stage, out_channels, stride)
        initialize_convs(self, lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"))
        self.finish(options, divisible=True)

    def translate_key(self, key: str, layout: str) -> str:
        if layout == "timm" and self._depthwise:  # timm keeps a separable unit's norm beside its two convolutions
            key = re.sub(r"^(stem\.[12]|.*\.conv_mid\.\d+)\.bn\.", r"\1.pointwise.norm.", key)
        for pattern, replacement in _KEYS[layout]:
            key = re.sub(pattern, replacement, key)
        return key

    def complete(self, state_dict: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
        if layout == "timm":  # gates the last block of a stage alone: the others get gates that are open, as hardsigmoid(3) is exactly 1
            for name, module in self.named_modules():
                if isinstance(module, EffectiveSqueezeExcite) and f"{name}.fc.weight" not in state_dict:
                    state_dict[f"{name}.fc.weight"] = torch.zeros_like(module.fc.weight, device="cpu")
                    state_dict[f"{name}.fc.bias"] = torch.full(module.fc.weight.shape[:1], 3.0, dtype=module.fc.weight.dtype)
        return state_dict


_KEYS = {
    # vovnet-detectron2's names: stage3.OSA3_1.layers.0.OSA3_1_0/conv.weight, stem.stem_2/dw_conv3x3.weight, ...
    "released": (
        (r"^stem\.stem_([123])/", lambda m: f"stem.{int(m[1]) - 1}."),
        (r"^(stage\d)\.OSA\d_(\d+)\.", r"\1.block\2."),
        (r"\.layers\.(\d+)\.OSA\d_\d+_\d+/", r".layers.\1."),
        (r"\.concat\.OSA\d_\d+_concat/", r".concat."),
        (r"\.conv_reduction\.OSA\d_\d+_reduction_0/", r".reduction."),
        (r"\.dw_conv3x3\.", r".depthwise."),
        (r"\.pw_conv1x1\.", r".pointwise.conv."),
        (r"\.pw_norm\.", r".pointwise.norm."),
    ),
    # stages.1.blocks.0.conv_mid.0.conv.weight, stem.1.conv_dw.weight, ...
    "timm": (
        (r"^stages\.(\d+)\.blocks\.(\d+)\.", lambda m: f"stage{int(m[1]) + 2}.block{int(m[2]) + 1}."),
        (r"\.conv_mid\.", r".layers."),
        (r"\.conv_concat\.", r".concat."),
        (r"\.conv_reduction\.", r".reduction."),
        (r"\.attn\.", r".ese."),
        (r"\.bn\.", r".norm."),
        (r"\.conv_dw\.", r".depthwise."),
        (r"\.conv_pw\.", r".pointwise.conv."),
    ),
}


VoVNetSpec = spec_of(VoVNet)

_SLIM = (64, 80, 96, 112), (112, 256, 384, 512)
_FULL = (128, 160, 192, 224), (256, 512, 768, 1024)

SPECS = {
    "V-19-slim-dw-eSE": VoVNetSpec((64, 64, 64), *_SLIM, 3, (1, 1, 1, 1), depthwise=True),
    "V-19-dw-eSE": VoVNetSpec((64, 64, 64), *_FULL, 3, (1, 1, 1, 1), depthwise=True),
    "V-19-slim-eSE": VoVNetSpec((64, 64, 128), *_SLIM, 3, (1, 1, 1, 1)),
    "V-19-eSE": VoVNetSpec((64, 64, 128), *_FULL, 3, (1, 1, 1, 1)),
    "V-39-eSE": VoVNetSpec((64, 64, 128), *_FULL, 5, (1, 1, 2, 2)),
    "V-57-eSE": VoVNetSpec((64, 64, 128), *_FULL, 5, (1, 1, 4, 3)),
    "V-99-eSE": VoVNetSpec((64, 64, 128), *_FULL, 5, (1, 3, 9, 3)),
}


def build(cfg: CfgNode, input_shape: ShapeSpec) -> VoVNet:
    """The VoVNet that ``cfg.MODEL.VOVNET`` asks for."""
    node = cfg.MODEL.VOVNET
    if node.CONV_BODY not in SPECS:
        raise unknown("MODEL.VOVNET.CONV_BODY", node.CONV_BODY, SPECS)
    return VoVNet(**vars(SPECS[node.CONV_BODY]), **common_options(cfg, node, input_shape), ese=node.ESE)


FAMILY = register("vovnet", VoVNet, SPECS, build, variant_key="MODEL.VOVNET.CONV_BODY")
