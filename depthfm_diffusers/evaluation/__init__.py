"""Scores of depth maps: alignment to the truth, error measures, and the benchmarks that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names
from .choices import ALIGNMENT_METHODS, ALIGNMENT_SPACES

if TYPE_CHECKING:
    from .adherence.measures import depth_adherence
    from .metrics.alignment import Alignment, align, prediction_in_space
    from .metrics.boundary import boundary_f1
    from .metrics.edges import edge_errors
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
    from .metrics.ransac import RansacAlignment, align_log_ransac
    from .metrics.uncertainty import Sparsification, rank_correlation, sparsification_error

_MODULES = {
    "Alignment": ".metrics.alignment",
    "RansacAlignment": ".metrics.ransac",
    "Sparsification": ".metrics.uncertainty",
    "absolute_relative_error": ".metrics.metrics",
    "align": ".metrics.alignment",
    "align_log_ransac": ".metrics.ransac",
    "all_metrics": ".metrics.metrics",
    "boundary_f1": ".metrics.boundary",
    "edge_errors": ".metrics.edges",
    "delta_accuracy": ".metrics.metrics",
    "depth_adherence": ".adherence.measures",
    "inverse_rmse": ".metrics.metrics",
    "log10_error": ".metrics.metrics",
    "normal_angles": ".metrics.metrics",
    "prediction_in_space": ".metrics.alignment",
    "rank_correlation": ".metrics.uncertainty",
    "rmse": ".metrics.metrics",
    "rmse_log": ".metrics.metrics",
    "silog": ".metrics.metrics",
    "sparsification_error": ".metrics.uncertainty",
    "squared_relative_error": ".metrics.metrics",
}
__getattr__, __dir__ = lazy_names(__name__, _MODULES)

__all__ = [
    "ALIGNMENT_METHODS",
    "ALIGNMENT_SPACES",
    "Alignment",
    "RansacAlignment",
    "Sparsification",
    "absolute_relative_error",
    "align",
    "align_log_ransac",
    "all_metrics",
    "boundary_f1",
    "delta_accuracy",
    "depth_adherence",
    "edge_errors",
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
