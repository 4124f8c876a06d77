"""What the trainers share of their data: the split of the frames, and the frames as samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from torch.utils.data import Dataset

from ...frames import FrameError, split_by_scene
from .depth_transforms import AugmentationConfig, View, augment_view
from .draws import Draws
from .sampling import EpochBatchSampler, sample_rng, spread_over_scenes
from .sources import MixedFrames, has_weights

logger = get_logger(__name__)


@dataclass(frozen=True)
class DataSettings:
    """Which data are used, and how they are split.

    Attributes:
        sources: A path, or a mapping with settings, per source.
        streaming: Whether shards are shuffled such that they are read nearly in order.
        validation_fraction: Share of the scenes that are held out, in [0, 1).
    """

    sources: tuple[str | dict[str, Any], ...]
    streaming: bool = False
    validation_fraction: float = 0.05


@dataclass(frozen=True)
class SplitFrames:
    """All frames, and which of them are trained on.

    Attributes:
        frames: All frames.
        train: Indices of the frames to train on.
        held_out: Indices of the frames held out for validation; no scene is on both sides.
        weighted: Whether the sources have weights.
    """

    frames: MixedFrames
    train: list[int]
    held_out: list[int]
    weighted: bool

    @classmethod
    def open(cls, settings: DataSettings, open_sources: Callable[..., MixedFrames] = MixedFrames.open) -> SplitFrames:
        """Opens the sources and splits their frames by scene.

        Args:
            settings: Which data.
            open_sources: Opens sources from their settings and `streaming`.
        """
        frames = open_sources(settings.sources, streaming=settings.streaming)
        split = split_by_scene(frames.scenes, settings.validation_fraction)
        return cls(frames, *split, has_weights(settings.sources))

    def choose(self, indices: Sequence[int], count: int) -> list[int]:
        """Returns at most `count` of some frames, evenly over their scenes, see `spread_over_scenes`."""
        return spread_over_scenes(indices, self.frames.scenes, count)

    def sampler(self, batch_size: int, seed: int, num_processes: int) -> EpochBatchSampler:
        """Returns the sampler of the frames to train on, see `EpochBatchSampler`."""
        sources = self.frames.source_indices(self.train, self.weighted)
        return EpochBatchSampler(sources, batch_size, seed, num_processes)


@dataclass(frozen=True)
class SampleSettings:
    """How a frame becomes a training sample.

    Attributes:
        augmentation: Random changes to each frame.
        resolution: Height and width of the samples, pixels; `None`: frames keep their size, which is the same for all
            of a source. A source's own `resolution` replaces it.
        seed: Seed of the run.
        skip_bad_frames: Whether a frame that cannot be used becomes a sample that does not count, instead of an error.
    """

    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    resolution: tuple[int, int] | None = None
    seed: int = 0
    skip_bad_frames: bool = False


class TrainingSamples(Dataset):
    """Augmented frames as training samples, drawn from (seed, epoch, index) alone.

    Args:
        frames: All frames.
        indices: Which of them are used.
        settings: How a frame becomes a sample.
        draws: What is drawn besides.
        downsampling: Pixels per latent cell.

    Attributes:
        sizes: Height and width of the samples of each source, pixels; only of the sources that are used.

    Raises:
        ValueError: If a size is no multiple of `downsampling`, or no frame of a source can be read.
    """

    def __init__(
        self, frames: MixedFrames, indices: Sequence[int], settings: SampleSettings, draws: Draws, downsampling: int
    ) -> None:
        self.frames = frames
        self.indices = [int(i) for i in indices]
        self.settings = settings
        self.draws = draws
        self.downsampling = downsampling
        self.sizes: dict[int, tuple[int, int]] = {}
        for source in sorted({int(frames.source_of[index]) for index in self.indices}):
            resolution = self._resolution(source)
            size = resolution or self._first_size(source)
            if any(side % downsampling for side in size):
                raise ValueError(
                    f"{'--resolution' if resolution else frames.sources[source].config.name}: height and width {size} "
                    f"must be multiples of {downsampling}, the autoencoder's factor; set --resolution HEIGHT WIDTH "
                    "(or resolution for that source)."
                )
            self.sizes[source] = size

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns one sample: what `tensors` and `draw` return, and `skipped` (0 or 1).

        Args:
            item: Epoch and index.

        Raises:
            ValueError: If the frame has another size than the first of its source and no resolution is set.
            FrameError: If the frame cannot be used and is not to be skipped.
        """
        epoch, index = item
        rng = sample_rng(self.settings.seed, epoch, index)
        frame = self._read(self.indices[index])
        height, width = self.size_of(index)
        view = self._nothing(height, width) if frame is None else self.view(frame, index, rng)
        sample = self.tensors(frame, augment_view(view, self.settings.augmentation, rng))
        skipped = {"skipped": torch.tensor(float(frame is None))}
        return sample | skipped | self.draw(rng, (height, width))

    def size_of(self, index: int) -> tuple[int, int]:
        """Returns height and width of a sample, pixels."""
        return self.sizes[int(self.frames.source_of[self.indices[index]])]

    def view(self, frame: Any, index: int, rng: np.random.Generator) -> View:
        """Returns a frame at the size of its samples.

        Args:
            frame: The frame.
            index: Of the sample.
            rng: Source of the randomness.
        """
        raise NotImplementedError

    def tensors(self, frame: Any, view: View) -> dict[str, torch.Tensor]:
        """Returns the tensors of a sample.

        Args:
            frame: The frame; `None` if it was skipped.
            view: The frame at the size of the samples, augmented.
        """
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns what is drawn besides, for a sample of this height and width."""
        return self.draws.draw(rng, [side // self.downsampling for side in size])

    def is_resized(self, index: int) -> bool:
        """Returns whether a sample is brought to a resolution that was asked for."""
        return self._resolution(int(self.frames.source_of[self.indices[index]])) is not None

    def check_size(self, frame: Any, index: int) -> None:
        """Checks that a frame that is not resized has the size of the first one of its source."""
        if frame.image.shape[:2] != self.size_of(index):
            raise ValueError(
                f"Frame {frame.key!r} is {frame.image.shape[:2]} (height, width), the first frame of its source "
                f"{self.size_of(index)}: set --resolution HEIGHT WIDTH, or resolution for that source."
            )

    def _resolution(self, source: int) -> tuple[int, int] | None:
        return self.frames.sources[source].config.resolution or self.settings.resolution

    def _read(self, index: int) -> Any | None:
        try:
            return self.frames[index]
        except FrameError as error:
            if not self.settings.skip_bad_frames:
                raise
            logger.warning(f"Skipped: {error}", main_process_only=False)
            return None

    def _first_size(self, source: int) -> tuple[int, int]:
        for index in self.indices:
            if self.frames.source_of[index] == source:
                frame = self._read(index)
                if frame is not None:
                    height, width = frame.image.shape[:2]
                    return height, width
        raise ValueError(f"--train_data: no frame of {self.frames.sources[source].config.name} can be read.")

    def _nothing(self, height: int, width: int) -> View:
        known = torch.zeros(1, height, width)
        return View(torch.zeros(3, height, width), known, torch.full((3, 3), torch.nan), known.bool())
