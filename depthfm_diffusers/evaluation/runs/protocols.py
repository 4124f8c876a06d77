"""The protocols of the field by which one set of predictions is scored: their alignment and their pixels.

| protocol | aligned | pixels that count |
|---|---|---|
| `marigold` | depth by least squares: `metrics.alignment.align` in the space `depth` | those of the benchmark |
| `ppd` | log(depth + 1) by RANSAC: `metrics.ransac.align_log_ransac` | Pixel-Perfect Depth's |
| `ppd_no_sobel` | as `ppd` | the same, with those of steep depth, where the benchmark has `ppd_max_gradient` (DIODE) |

Scores of two protocols do not compare: they are never put in one column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from ..choices import LOG_PLUS_ONE, PROTOCOLS
from ..data.benchmark_data import BenchmarkData, Sample
from ..data.configs import BenchmarkConfig
from ..metrics import ransac
from .scoring import EvaluationSettings

MARIGOLD, PPD, PPD_NO_SOBEL = *PROTOCOLS, "ppd_no_sobel"
# What reports call the protocols' alignment, for people.
TITLES = {
    MARIGOLD: "depth by least squares",
    PPD: "log(depth + 1) by RANSAC",
    PPD_NO_SOBEL: "as ppd, with the pixels of steep depth that ppd leaves out",
}


def protocol_names(choice: str | None, config: BenchmarkConfig) -> tuple[str, ...]:
    """Returns the names of the protocols that a choice stands for; none for the benchmark's own.

    Args:
        choice: One of `choices.PROTOCOL_CHOICES`, or `None`.
        config: The benchmark.

    Raises:
        ImportError: If a protocol needs scikit-learn, and it is not installed.
    """
    if choice is None:
        return ()
    names = PROTOCOLS if choice == "all" else (choice,)
    if PPD in names:
        ransac.require_ransac()
        if config.ppd_max_gradient is not None:
            names = (*names, PPD_NO_SOBEL)
    return names


def space_of(name: str) -> str:
    """Returns the space in which a protocol aligns."""
    return "depth" if name == MARIGOLD else LOG_PLUS_ONE


class ProtocolData(Sequence[Sample]):
    """The images of a benchmark with the valid pixels of a protocol.

    Args:
        data: The benchmark.
        name: The protocol.

    Attributes:
        keys: The names of the images.
    """

    def __init__(self, data: BenchmarkData, name: str) -> None:
        self.data = data
        self.name = name
        self.keys = data.keys

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.data)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]  # no slices, as in the data
        """Reads one image, see `BenchmarkData`."""
        return self.select(index, self.data[index])

    def select(self, index: int, sample: Sample) -> Sample:
        """Returns an image that has been read with the valid pixels of the protocol."""
        if self.name == MARIGOLD:
            return sample
        return replace(sample, valid=self.data.ppd_pixels(index, sample.depth, self.name == PPD))


def describe_scoring(settings: EvaluationSettings, config: BenchmarkConfig) -> dict[str, Any]:
    """Describes how predictions are aligned and scored, for `settings` of a report.

    Args:
        settings: What to evaluate with.
        config: The benchmark.

    Returns:
        `alignment`, `alignment_method` and `max_depth`; by named protocols `protocols`, with those of each.
    """
    if settings.protocol is None:
        return {
            "alignment": settings.alignment or config.alignment,
            "alignment_method": config.alignment_method,
            "max_depth": config.max_depth,
        }
    described: dict[str, dict[str, Any]] = {}
    for name in protocol_names(settings.protocol, config):
        if name == MARIGOLD:
            described[name] = {"alignment": "depth", "alignment_method": "least_squares", "max_depth": config.max_depth}
            continue
        crop = config.crop_of_ppd
        described[name] = {
            "alignment": LOG_PLUS_ONE,
            "alignment_method": "ransac",
            "max_trials": ransac.MAX_TRIALS,
            "seed": ransac.SEED,
            "min_depth": config.min_depth_of_ppd,
            "crop": list(crop) if isinstance(crop, tuple) else crop,
            "max_gradient": config.ppd_max_gradient if name == PPD else None,
        }
    return {"protocols": described}


def scoring_versions(settings: EvaluationSettings, config: BenchmarkConfig) -> dict[str, str]:
    """Returns the versions of the libraries that scores by named protocols depend on, besides the usual ones."""
    uses_ransac = PPD in protocol_names(settings.protocol, config)
    return {library: version(library) for library in ("scikit-learn", "scipy")} if uses_ransac else {}
