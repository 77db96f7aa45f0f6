"""How MMDetection ranks boxes: by probability, of which single precision has few near 1.

Which of many equal ones come first is then up to torch's sort. The very same calls are made here, so that the same boxes survive. Trained
detectors are seldom that sure; random ones are, and they are what conversions are proved on.
"""

from typing import Tuple

import torch
from torch import Tensor
from torchvision.ops import nms


def highest(scores: Tensor, most: int) -> Tuple[Tensor, Tensor]:
    """The ``most`` largest of (N,) scores, in order, and where they stood."""
    ranked, order = scores.sort(descending=True)
    return ranked[:most], order[:most]


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """Indices of the (N, 4) boxes that no better one of their group overlaps by more than ``threshold``, best first."""
    order = scores.sort(descending=True)[1]
    largest = torch.cat((boxes.flatten(), boxes.new_zeros(1))).max()  # also of no boxes, and in a trace
    apart = boxes + (groups.to(boxes) * (largest + 1))[:, None]  # groups moved apart do not suppress each other
    return order[nms(apart[order], scores[order], threshold)]
