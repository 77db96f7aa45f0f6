"""The evaluator that fits a data set, and test-time augmentation."""

from .augmented import augmented
from .build import build_evaluator

__all__ = ["augmented", "build_evaluator"]
