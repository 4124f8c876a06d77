"""Several data sources as one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from torch.utils.data import Dataset

from ...frames import CaptionedImage, CaptionSourceConfig, Frame, SourceConfig, open_captioned_source, open_source
from ...frames.formats import format_of_file
from ...frames.sources import DataSource, Item
from .sampling import SourceIndices


class MixedFrames(Dataset, Generic[Item]):
    """Several data sources, of frames or of captioned images, one after another; has what a source has.

    Args:
        sources: At least one.

    Attributes:
        sources: As given.
        scenes: Scene of each frame.
        sizes: Frames of each source.
        weights: Weight of each source.
        source_of: N, int; number of each frame's source.
        groups: N, int, or `None` where every source has random access. A frame of a source that has random access is
            a group of its own.
        has_intrinsics: Whether the camera of every frame is known.

    Raises:
        ValueError: If there is no source, or two share a file.
    """

    def __init__(self, sources: Sequence[DataSource[Item]]) -> None:
        if not sources:
            raise ValueError("No data source was given.")
        seen: set[Path] = set()
        for source in sources:
            for file in {file.resolve() for file in source.files}:
                if file in seen:
                    raise ValueError(f"{file} is in two data sources: its frames would be counted twice.")
                seen.add(file)
        self.sources: list[DataSource[Item]] = list(sources)
        self.sizes = [len(source) for source in sources]
        self.weights = [source.config.weight for source in sources]
        self.scenes = [scene for source in sources for scene in source.scenes]
        self.has_intrinsics = all(source.has_intrinsics for source in sources)
        self.source_of = np.repeat(np.arange(len(sources)), self.sizes)
        self.starts = np.cumsum([0, *self.sizes])
        self.groups = None
        if any(source.groups is not None for source in sources):
            self.groups = self._join_groups()

    @staticmethod
    def open(settings: Iterable[str | dict[str, Any]], streaming: bool = False) -> MixedFrames[Frame]:
        """Opens sources of frames with depth from their settings, see `SourceConfig.parse`.

        Plain paths of `.tar` files together are one source, as a shell's pattern gives them; so are `.parquet` files.

        Args:
            settings: A path, or a mapping, per source.
            streaming: See `frames.open_source`.

        Raises:
            TypeError: If a setting is of the wrong type.
            FileNotFoundError: If there is nothing at a path.
            ImportError: If a source needs `datasets` and that is not installed.
            ValueError: If a setting is out of range or unknown, or a source cannot be opened.
        """
        return MixedFrames([open_source(config, streaming) for config in _configs(settings, SourceConfig)])

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> Item:
        """Reads and decodes one frame, see `frames.FrameSource`."""
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Frame {index} of {len(self)}.")
        index %= len(self)
        number = int(self.source_of[index])
        return self.sources[number][index - int(self.starts[number])]

    def source_indices(self, indices: Sequence[int], weighted: bool) -> list[SourceIndices]:
        """Returns the chosen frames of each source that has any of them, for the sampler.

        Args:
            indices: The frames that are used; the sampler is given positions among them.
            weighted: Whether the sources' weights count.
        """
        chosen = np.asarray(indices, dtype=int)
        found = []
        for number, weight in enumerate(self.weights):
            positions = np.flatnonzero(self.source_of[chosen] == number)
            if len(positions) == 0:
                continue
            groups = None if self.groups is None else self.groups[chosen][positions]
            found.append(SourceIndices(positions, weight if weighted else None, groups))
        return found

    def reads_as_before(self, index: int) -> bool:
        """Returns whether versions before 0.6.0 read a frame as this one does, see `frames.sources.DataSource`."""
        number = int(self.source_of[index])
        return self.sources[number].reads_as_before(index - int(self.starts[number]))

    def fingerprint(self) -> str:
        """Computes a hash of the content of all sources, in their order."""
        return "-".join(source.fingerprint() for source in self.sources)

    def _join_groups(self) -> np.ndarray:
        joined, first_free = [], 0
        for source in self.sources:
            groups = np.arange(len(source)) if source.groups is None else source.groups.astype(np.int64)
            joined.append(groups + first_free)
            first_free += int(groups.max()) + 1
        return np.concatenate(joined)


def open_captioned_images(
    settings: Iterable[str | dict[str, Any]], streaming: bool = False
) -> MixedFrames[CaptionedImage]:
    """Opens sources of images, with captions or without; as `MixedFrames.open`, see `CaptionSourceConfig`.

    Returns:
        The sources, with a `CaptionedImage` at each index.
    """
    configs = _configs(settings, CaptionSourceConfig)
    return MixedFrames([open_captioned_source(config, streaming) for config in configs])


def has_weights(settings: Iterable[str | dict[str, Any]]) -> bool:
    """Returns whether the settings of any source name a weight."""
    return any(isinstance(setting, dict) and "weight" in setting for setting in settings)


Config = TypeVar("Config", SourceConfig, CaptionSourceConfig)


def _configs(settings: Iterable[str | dict[str, Any]], config_class: type[Config]) -> list[Config]:
    """Reads the settings of sources; plain paths of files of one format are one source, in the place of the first."""
    groups: dict[str | int, list[Config]] = {}
    for number, setting in enumerate(settings):
        kind = format_of_file(setting) if isinstance(setting, str) else None
        groups.setdefault(kind or number, []).append(config_class.parse(setting))
    return [
        group[0]
        if len(group) == 1
        else config_class(tuple(dict.fromkeys(path for one in group for path in one.paths)))
        for group in groups.values()
    ]
