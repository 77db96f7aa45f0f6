"""The evaluator that fits a data set, and test-time augmentation."""

from .augmented import augmented, check_augmented
from .build import build_evaluator

__all__ = ["augmented", "build_evaluator", "check_augmented"]
