"""The evaluator that fits a data set."""

from .build import build_evaluator

__all__ = ["build_evaluator"]
