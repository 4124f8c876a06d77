"""Benchmarks of frames that say themselves what their depth means: folders of pairs, and shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...frames import FrameError, SourceConfig, decode_frame, split_by_scene
from ...frames.formats import files_in
from ...frames.headers import depth_size, is_on_its_side, picture_size
from ...frames.pairs import PairReader
from ...frames.shards import ShardReader
from ...frames.sources import scene_names
from .benchmark_data import BenchmarkData
from .configs import BenchmarkConfig


class FrameData(BenchmarkData):
    """Frames of a folder of pairs, or of WebDataset shards.

    Args:
        config: The benchmark; with `held_out_fraction`, only frames of scenes that are held out are in it.
        root: The folder of pairs; or a shard, or a folder of shards.

    Raises:
        FileNotFoundError: If the folder has no shard, or a subfolder of pairs is missing.
        ValueError: If files cannot be read, or do not belong together, or no scene is held out.
    """

    def __init__(self, config: BenchmarkConfig, root: Path) -> None:
        self.reader = _open_reader(config, root)
        self.indices = list(range(len(self.reader.keys)))
        if config.held_out_fraction is not None:
            scenes = scene_names(self.reader, required=False)
            self.indices = split_by_scene(scenes, config.held_out_fraction)[1]
            if not self.indices:
                raise ValueError(
                    f"Benchmark {config.name}: no scene in {root} is one that a training with validation_fraction "
                    f"{config.held_out_fraction} holds out."
                )
        super().__init__(config, [self.reader.keys[i] for i in self.indices])
        self.check_headers(root)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """Decodes a frame."""
        frame = decode_frame(self.reader.encoded(self.indices[index]))
        return frame.image, frame.depth, frame.intrinsics

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """Returns the frame's files; of a pair also its metadata, which may change what the depth means."""
        index = self.indices[index]
        if isinstance(self.reader, ShardReader):
            # Whichever shard it is in.
            return ((extension, span.size) for extension, span in sorted(self.reader.members(index).items()))
        metadata = sorted((name, str(value)) for name, value in self.reader.metadata[index].items())
        return [*((file.name, file.size) for file in self.reader.stored(index)), (repr(metadata), 0)]

    def header_problem(self, index: int) -> str | None:
        """Returns what is wrong with a frame, as far as the headers of its files tell."""
        sizes = []
        try:
            image, depth = self.reader.stored(self.indices[index])
        except FrameError as error:
            return str(error).rstrip(".")
        for file, size_of in ((image, picture_size), (depth, depth_size)):
            try:
                sizes.append(size_of(file))
            except ValueError as error:
                return f"{file.name} {error}"
        if sizes[0] != sizes[1] and not (sizes[0] == sizes[1][::-1] and is_on_its_side(image)):
            of_image, of_depth = (f"{width}x{height}" for width, height in sizes)
            return f"{image.name} is {of_image} pixels, {depth.name} is {of_depth}"
        problem = self.size_problem(*sizes[0])
        return f"{image.name} {problem}" if problem else None


def _open_reader(config: BenchmarkConfig, root: Path) -> PairReader | ShardReader:
    if config.reader == "pairs":
        if not root.is_dir():
            raise ValueError(f"Benchmark {config.name} takes a folder of pairs, {root} is a file.")
        return PairReader(root)
    shards = [root] if root.is_file() else files_in(root, "webdataset")
    if not shards:
        raise FileNotFoundError(f"Benchmark {config.name}: the folder {root} has no .tar file in it.")
    return ShardReader(SourceConfig(str(root)), shards)
