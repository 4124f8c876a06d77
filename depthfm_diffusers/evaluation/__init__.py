"""Scores for depth maps: alignment to the truth, then error measures."""

from .alignment import ALIGNMENT_SPACES, Alignment, align
from .metrics import absolute_relative_error, delta_accuracy

__all__ = ["ALIGNMENT_SPACES", "Alignment", "absolute_relative_error", "align", "delta_accuracy"]
