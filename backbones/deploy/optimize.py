"""Makes a detector faster: folds norms into convolutions, picks the faster memory format, on CPUs a faster RoIAlign and matrix product.

Results stay the same up to rounding. Only 16 bits, which you must request, change them.
"""

import copy
import logging
import statistics
from functools import partial
from typing import Any, Iterator, Sequence

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.layers.batch_norm import NaiveSyncBatchNorm
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..detectors import ranked
from ..errors import UserError, one_line, unknown
from ..layers import ConvNormAct, DeformConv2d
from ..timing import interleaved
from ..upstream import onednn_linear
from .roi_align import CPUPooler

MEMORY_FORMATS = ("auto", "channels_last", "contiguous")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm, NaiveSyncBatchNorm, FrozenBatchNorm2d)
_CONVS = (nn.Conv2d, DeformConv2d)
# parts of detectors that consist of convolutions and matrix products and pass features on
_HEAVY = ("backbone", "proposal_generator.rpn_head", "roi_heads.box_head", "roi_heads.mask_head", "sem_seg_head", "head")


def optimize(
    model: nn.Module,
    memory_format: str = "auto",
    precision: str = "float32",
    size: tuple[int, int] = (800, 1088),
    fold: bool = True,
    roi_align: bool = True,
    compile: bool = False,
) -> nn.Module:
    """Returns a copy of a detector or backbone, for inference only, that gives the same results in less time. Among equal scores the first
    wins, as in exported files, see `ranked`.

    Args:
        model: any detectron2 model, on the device where it is to run.
        memory_format: format of the convolutions: "channels_last", "contiguous" (channels first), or "auto": whichever is faster here
            on an image of ``size``; both are run in turn.
        precision: "bfloat16", or on a GPU "float16", for backbone and heads. That changes results: evaluate before use.
        size: the typical height and width of images.
        fold: whether to fold batch norms into the convolutions before them.
        roi_align: whether poolers on a CPU use `CPUPooler`.
        compile: whether torch.compile compiles backbone and heads. The first images then take up to minutes, and again those of a second
            size. After that, new sizes need no compilation.

    Raises UserError for unknown options, and if torch.compile does not work on this machine.
    """
    if memory_format not in MEMORY_FORMATS:
        raise unknown("memory format", memory_format, MEMORY_FORMATS)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if min(size) < 1:
        raise UserError(f"the size of images is {size[0]}x{size[1]}: both sides must be at least 1")
    model = ranked(copy.deepcopy(model).eval())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    device = next(model.parameters()).device
    if fold:
        fold_norms(model)
    if roi_align and device.type == "cpu":
        replace_poolers(model)
    if precision != "float32":
        _to_half(model, PRECISIONS[precision], device)
    elif device.type == "cpu":
        replace_linears(model)
    if memory_format == "auto":
        memory_format = _faster_format(getattr(model, "backbone", model), len(getattr(model, "pixel_mean", "RGB")), size, device)
    model.to(memory_format=torch.channels_last if memory_format == "channels_last" else torch.contiguous_format)
    compiled = ""
    if compile:
        _compile(model, device)
        compiled = ", compiled: the first images take up to minutes"
    logging.getLogger(__name__).info(f"optimized for inference: {memory_format}, {precision}{compiled}")
    return model


def fold_norms(module: nn.Module) -> int:
    """Folds every batch norm with fixed statistics into the convolution before it, in place; returns how many.

    Modules in training mode stay as they are.
    """
    count = 0
    unit: Any
    for unit in module.modules():
        conv, norm = unit.conv if isinstance(unit, ConvNormAct) else unit, getattr(unit, "norm", None)  # detectron2's Conv2d holds its norm
        if isinstance(conv, _CONVS) and isinstance(norm, _NORMS) and (not norm.training or isinstance(norm, FrozenBatchNorm2d)):
            _fold(conv, norm)
            unit.norm = None if unit is conv else nn.Identity()
            count += 1
    return count


def _fold(conv: Any, norm: Any) -> None:
    # in double precision, so that only the result is rounded
    tensors = (conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    double: Any = [None if t is None else t.detach().double() for t in tensors]
    weight, bias, mean, variance, scale, shift = double
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, scale, shift)
    conv.weight, conv.bias = (nn.Parameter(p.to(conv.weight.dtype), requires_grad=False) for p in fused)


class _FlattenLast(nn.Module):
    """(N, C, H, W) -> (N, H * W * C), which for channels_last is no copy."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1).flatten(1)


def replace_poolers(model: nn.Module) -> None:
    """Replaces a detector's ROIPoolers by `CPUPooler`s, in place.

    In box heads that start with a fully connected layer, its columns are reordered to the new order of channels.
    """
    inside = {id(module.pooler) for module in model.modules() if isinstance(module, CPUPooler)}  # the model may have them already
    names = [name for name, module in model.named_modules() if CPUPooler.fits(module) and id(module) not in inside]
    for name in names:
        outer, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(outer), leaf, CPUPooler(model.get_submodule(name)))
    box_pooler: Any = next((model.get_submodule(name) for name in names if "box_pooler" in name), None)
    head: Any
    for head in model.modules() if box_pooler else ():
        if type(head) is FastRCNNConvFCHead and isinstance(getattr(head, "flatten", None), nn.Flatten):
            weight = head.fc1.weight.detach().unflatten(1, (-1, *box_pooler.output_size)).permute(0, 2, 3, 1).flatten(1)
            head.fc1.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
            head.flatten = _FlattenLast()


class OneDNNLinear(nn.Linear):
    """A fully connected layer by oneDNN instead of torch's BLAS, usually MKL, which is slow on processors other than Intel's.

    With gradients, in a trace, in torch.compile, on a GPU and in bfloat16 it behaves as ``nn.Linear``.
    """

    def forward(self, x: Tensor) -> Tensor:
        other = torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling()
        if other or x.device.type != "cpu" or not x.dtype == self.weight.dtype == torch.float32:
            return super().forward(x)
        return onednn_linear(x, self.weight, self.bias, "none", [], "")


def replace_linears(model: nn.Module) -> None:
    """Gives a model `OneDNNLinear`s, in place, if that makes its largest layer faster with a thousand rows, see `timing.interleaved`."""
    linears = [module for module in model.modules() if type(module) is nn.Linear]
    if not linears or onednn_linear is None or not torch.backends.mkldnn.is_available():
        return
    largest = max(linears, key=lambda module: module.weight.numel())
    x, other = torch.rand(1000, largest.in_features), copy.copy(largest)
    other.__class__ = OneDNNLinear
    if largest.weight.dtype == torch.float32 and _faster(largest, other, x):
        for module in linears:
            module.__class__ = OneDNNLinear


class Half(nn.Module):
    """Runs a module's convolutions and matrix products in 16 bits: float32 tensors go in and come out, also in lists and dicts."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        self.module, self.dtype = module, dtype
        for part in module.modules():
            if isinstance(part, (*_CONVS, nn.ConvTranspose2d, nn.Linear)):
                part.to(dtype)  # once, instead of by autocast in each call

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:  # attributes that detectors read: size_divisibility, output_shape, ...
            return getattr(super().__getattr__("module"), name)

    def forward(self, *args, **kwargs):
        with torch.autocast(next(self.module.parameters()).device.type, self.dtype):
            result = self.module(*args, **kwargs)
        return _to_float32(result)


def _to_float32(value):
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Instances):  # a mask head's
        for key, field in value.get_fields().items():
            value.set(key, _to_float32(field))
    if isinstance(value, dict):
        return {key: _to_float32(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_to_float32(v) for v in value)
    return value


def _to_half(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    name = str(dtype).rpartition(".")[2]
    if not hasattr(model, "backbone"):
        raise UserError(f"{name} is for whole detectors: this model has no backbone", "unsupported")
    if dtype == torch.float16 and device.type == "cpu":
        raise UserError("float16 needs a GPU: on a CPU use bfloat16", "unsupported", "--precision", "bfloat16")
    for outer, place, part in list(_heavy(model)):
        setattr(outer, place, Half(part, dtype))


def _heavy(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent module, name, module) of each part that consists of convolutions and matrix products."""
    modules = dict(model.named_modules())
    for name in _HEAVY:
        part, (outer, _, leaf) = modules.get(name), name.rpartition(".")
        if isinstance(part, nn.ModuleList):  # of a cascade
            yield from ((part, place, each) for place, each in part.named_children())
        elif part is not None:
            yield modules[outer], leaf, part


def _compile(model: nn.Module, device: torch.device) -> None:
    try:  # only use shows what it needs, such as a C++ compiler
        torch.compile(lambda x: x * 2 + 1)(torch.zeros(2, device=device))
    except Exception as error:  # each backend raises its own kind
        raise UserError(f"torch.compile does not work on this machine: {one_line(error)}", "unsupported", "MODEL.COMPILE", False) from error
    for _, _, part in _heavy(model) if hasattr(model, "backbone") else [(model, "", model)]:
        # compile what is inside `Half`: torch limits how often a function is compiled, and all parts would share `Half`'s
        module = part.module if isinstance(part, Half) else part
        module.compile(options={"freezing": True} if device.type == "cpu" else None)


def _faster_format(network: nn.Module, channels: int, size: Sequence[int], device: torch.device) -> str:
    """ "channels_last" or "contiguous": the format in which ``network`` is faster for images of so many channels."""
    divisor = max(getattr(network, "size_divisibility", 0), 1)
    image = torch.rand(1, channels, *(-(-side // divisor) * divisor for side in size), device=device)
    channels_last = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return "channels_last" if _faster(copy.deepcopy(network), channels_last, image) else "contiguous"


def _faster(usual: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Whether ``other`` takes less time, by the median of the ratios of five pairs of runs."""
    with torch.no_grad():
        times = interleaved({"usual": partial(usual, x), "other": partial(other, x)}, pairs=5)
    return statistics.median(second / first for first, second in zip(times["usual"], times["other"])) < 1
