"""Scores of depth maps: alignment to the truth, error measures, and the benchmarks that use them."""

from .adherence.measures import depth_adherence
from .choices import ALIGNMENT_METHODS, ALIGNMENT_SPACES
from .metrics.alignment import (
    Alignment,
    align,
    prediction_in_space,
)
from .metrics.boundary import boundary_f1
from .metrics.metrics import (
    absolute_relative_error,
    all_metrics,
    delta_accuracy,
    inverse_rmse,
    log10_error,
    normal_angles,
    rmse,
    rmse_log,
    silog,
    squared_relative_error,
)
from .metrics.uncertainty import (
    Sparsification,
    rank_correlation,
    sparsification_error,
)

__all__ = [
    "ALIGNMENT_METHODS",
    "ALIGNMENT_SPACES",
    "Alignment",
    "Sparsification",
    "absolute_relative_error",
    "align",
    "all_metrics",
    "boundary_f1",
    "delta_accuracy",
    "depth_adherence",
    "inverse_rmse",
    "log10_error",
    "normal_angles",
    "prediction_in_space",
    "rank_correlation",
    "rmse",
    "rmse_log",
    "silog",
    "sparsification_error",
    "squared_relative_error",
]
