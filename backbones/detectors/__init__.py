"""What detectors need that detectron2 does not have."""

from .cascade import MMDetCascadeROIHeads
from .classifier import ImageClassifier
from .gfl import GFL
from .last_stage import LastStageROIHeads, last_stage
from .retinanet import MMDetRetinaNet
from .rpn import MMDetRPN

__all__ = ["GFL", "ImageClassifier", "LastStageROIHeads", "MMDetCascadeROIHeads", "MMDetRPN", "MMDetRetinaNet", "last_stage"]
