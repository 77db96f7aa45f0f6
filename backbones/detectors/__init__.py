"""What detectors need that detectron2 does not have."""

from .cascade import MMDetCascadeROIHeads
from .retinanet import MMDetRetinaNet
from .rpn import MMDetRPN

__all__ = ["MMDetCascadeROIHeads", "MMDetRPN", "MMDetRetinaNet"]
