"""RoIAlign on a CPU as sums of embeddings: the results of torchvision's operator in a fraction of its time.

A bin of a region is a weighted sum of the cells around it. With the channels of a cell adjacent in memory, that is a bag of embeddings,
for which torch has a vectorized kernel; torchvision's reads one channel of one cell at a time. The weights of a bin are the outer product
of those along its two sides, so cells that several samples share are read once.
"""

from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels, convert_boxes_to_pooler_format
from torch import Tensor, nn

_FAR = 1e5  # pixels: torchvision's operator handles boxes beyond, whose samples would fill the memory


def roi_align(
    x: Tensor, rois: Tensor, output_size: tuple[int, int], spatial_scale: float, sampling_ratio: int = 0, aligned: bool = True
) -> Tensor:
    """``torchvision.ops.roi_align``, with the same arguments, for float32 tensors on a CPU, without gradients.

    ``x`` (N, C, H, W) is read fastest in channels_last; ``rois`` (R, 5) are an image's index and x1, y1, x2, y2 in its pixels. The result
    (R, C, *output_size) is channels_last in memory.
    """
    result = x.new_empty(len(rois), *output_size, x.shape[1])
    if not (rois.abs() < _FAR).all():
        return torchvision.ops.roi_align(x, rois, output_size, spatial_scale, sampling_ratio, aligned)
    for ids, pooled in _groups(x, rois, output_size, spatial_scale, sampling_ratio, aligned):
        result[ids] = pooled
    return result.permute(0, 3, 1, 2)


def _groups(x: Tensor, rois: Tensor, output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool):
    """Groups of regions with equally many cells per bin, and their pooled features, (K, *output_size, C)."""
    if not len(rois):
        return
    n, channels, height, width = x.shape
    table = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).reshape(-1, channels)
    kind = torch.int32 if len(table) < 2**31 else torch.int64
    boxes = rois[:, 1:] * scale - (0.5 if aligned else 0.0)
    sides = boxes[:, 2:] - boxes[:, :2]
    if not aligned:
        sides = sides.clamp(min=1.0)
    columns, column_weights, spans_x = _taps(boxes[:, 0], sides[:, 0], output_size[1], sampling_ratio, width)
    rows, row_weights, spans_y = _taps(boxes[:, 1], sides[:, 1], output_size[0], sampling_ratio, height)
    rows = rows * width + rois[:, 0].long()[:, None, None] * (height * width)
    rows, columns = rows.to(kind), columns.to(kind)
    key = spans_y * (width + 2) + spans_x
    order = torch.argsort(key)
    keys, counts = torch.unique_consecutive(key[order], return_counts=True)
    for both, ids in zip(keys.tolist(), order.split(counts.tolist())):
        y, x_ = divmod(both, width + 2)
        cells = rows[ids, :, None, :y, None] + columns[ids, None, :, None, :x_]
        weights = row_weights[ids, :, None, :y, None] * column_weights[ids, None, :, None, :x_]
        bags = len(ids) * output_size[0] * output_size[1]
        pooled = F.embedding_bag(cells.reshape(bags, -1), table, per_sample_weights=weights.reshape(bags, -1), mode="sum")
        yield ids, pooled.view(len(ids), *output_size, channels)


def _taps(start: Tensor, side: Tensor, bins: int, sampling_ratio: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells along one side that each bin of each region reads, their weights, both (R, bins, K), and how many of the K are used, (R,)."""
    bin_side = side / bins
    samples = torch.full_like(side, sampling_ratio) if sampling_ratio > 0 else bin_side.ceil()
    samples = samples.clamp(min=0)
    k = torch.arange(max(1, int(samples.max())), device=side.device, dtype=side.dtype)
    divisor = samples.clamp(min=1.0)[:, None, None]
    begin = start[:, None] + torch.arange(bins, device=side.device, dtype=side.dtype) * bin_side[:, None]
    at = begin[:, :, None] + (k + 0.5) * bin_side[:, None, None] / divisor
    inside = (k < samples[:, None, None]) & (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.long()
    part = at - low
    first = low.amin(dim=2, keepdim=True)
    offset = low - first
    spans = offset.amax(dim=(1, 2)) + 2
    weights = side.new_zeros(len(side), bins, int(spans.max()))
    share = inside / divisor  # nothing from outside
    weights.scatter_add_(2, offset, (1 - part) * share)
    weights.scatter_add_(2, offset + 1, part * share)
    cells = (first + torch.arange(weights.shape[2], device=side.device)).clamp(max=size - 1)
    return cells, weights, spans


class CPUPooler(nn.Module):
    """A detectron2 ``ROIPooler`` that uses `roi_align` above; with gradients, on a GPU or in a trace it works as usual.

    Its result (R, C, h, w) is channels_last in memory.
    """

    def __init__(self, pooler: ROIPooler):
        super().__init__()
        self.pooler = pooler
        self.output_size = pooler.output_size

    @staticmethod
    def fits(pooler: Any) -> bool:
        return type(pooler) is ROIPooler and all(isinstance(level, ROIAlign) for level in pooler.level_poolers)

    def forward(self, x: list[Tensor], box_lists: list) -> Tensor:
        if torch.jit.is_tracing() or torch.is_grad_enabled() or any(f.device.type != "cpu" or f.dtype != torch.float32 for f in x):
            return self.pooler(x, box_lists)
        p: Any = self.pooler
        rois = convert_boxes_to_pooler_format(box_lists)
        if not (rois.abs() < _FAR).all():  # NaN too
            return p(x, box_lists)
        levels = torch.zeros(len(rois), dtype=torch.int64)
        if len(p.level_poolers) > 1 and len(rois):
            levels = assign_boxes_to_levels(box_lists, p.min_level, p.max_level, p.canonical_box_size, p.canonical_level)
        result = x[0].new_empty(len(rois), *p.output_size, x[0].shape[1])
        for level, (features, pool) in enumerate(zip(x, p.level_poolers)):
            chosen = (levels == level).nonzero()[:, 0]
            for ids, pooled in _groups(features, rois[chosen], p.output_size, pool.spatial_scale, pool.sampling_ratio, pool.aligned):
                result[chosen[ids]] = pooled
        return result.permute(0, 3, 1, 2)
