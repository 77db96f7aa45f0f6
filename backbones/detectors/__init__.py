"""What detectors need that detectron2 does not have."""

from .classifier import ImageClassifier
from .gfl import GFL
from .last_stage import LastStageROIHeads, last_stage
from .mmdet import MMDetCascadeROIHeads, MMDetRetinaNet, MMDetRPN
from .ranking import InOrder, ranked

__all__ = [
    "GFL",
    "ImageClassifier",
    "InOrder",
    "LastStageROIHeads",
    "MMDetCascadeROIHeads",
    "MMDetRPN",
    "MMDetRetinaNet",
    "last_stage",
    "ranked",
]
