"""What each image of an evaluation is scored by: the benchmark's own protocol, or several that have names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.benchmark_data import BenchmarkData, Sample
from .protocol_report import build_protocols_report, entries_of
from .protocols import ProtocolData, protocol_names, space_of
from .report import build_report
from .scoring import EvaluationSettings


class ScoringPlan:
    """The protocols of an evaluation, and the form of its entries and of its report.

    Args:
        data: The benchmark.
        settings: What to evaluate with.

    Attributes:
        names: The names of the protocols; none for the benchmark's own.
        spaces: The space of the alignment of each protocol.
        shown: The images of the benchmark with the pixels of the first protocol, by which the picture is drawn.

    Raises:
        ImportError: If a protocol needs scikit-learn, and it is not installed.
    """

    def __init__(self, data: BenchmarkData, settings: EvaluationSettings) -> None:
        self.names = protocol_names(settings.protocol, data.config)
        self.spaces = [space_of(name) for name in self.names] or [settings.alignment or data.config.alignment]
        self._data = data
        self._views = [ProtocolData(data, name) for name in self.names]
        self.shown: BenchmarkData | ProtocolData = self._views[0] if self._views else data

    def samples(self, index: int) -> list[Sample]:
        """Reads an image: for each protocol with the pixels that it scores."""
        sample = self._data[index]
        return [view.select(index, sample) for view in self._views] or [sample]

    def entry(self, scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Returns the entry of an image from its scores by each protocol, what `scoring.score_sample` returns."""
        if not self.names:
            return dict(scores[0])
        without_key = [{name: value for name, value in one.items() if name != "key"} for one in scores]
        return {"key": scores[0]["key"], "protocols": dict(zip(self.names, without_key, strict=True))}

    def report(self, described: Mapping[str, Any], entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Puts the report together, see `report.build_report` and `protocol_report.build_protocols_report`."""
        return (build_protocols_report if self.names else build_report)(described, entries)

    def shown_entries(self, entries: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Returns the scores of the images by the first protocol."""
        return entries_of(entries, self.names[0]) if self.names else entries
