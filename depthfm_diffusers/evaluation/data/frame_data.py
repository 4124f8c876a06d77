"""Benchmarks of frames that say themselves what their depth means: folders of pairs, and shards."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from ...frames import (
    EncodedFrame,
    FramePair,
    decode_frame,
    index_shard,
    pair_files,
    split_by_scene,
)
from ...frames.shards import (
    DEPTH_EXTENSION,
    image_extension,
    read_metadata,
    read_span,
)
from ...frames.tar_index import (
    ABSENT,
    Span,
)
from .benchmark_data import (
    BenchmarkData,
    some,
)
from .configs import BenchmarkConfig
from .headers import (
    depth_size,
    picture_size,
)
from .storage import FileSlice


class FrameData(BenchmarkData):
    """Frames that `depthfm_diffusers.frames.decode_frame` decodes. Subclasses implement `encoded` and `files_of`."""

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is stored."""
        raise NotImplementedError

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """Decodes a frame."""
        frame = decode_frame(self.encoded(index))
        return frame.image, frame.depth, frame.intrinsics

    def header_problem(self, image: tuple[str, BinaryIO], depth: tuple[str, BinaryIO], depth_bytes: int) -> str | None:
        """What is wrong with a frame as its files' headers tell it; files come with their names."""
        sizes = []
        for name, file in (image, depth):
            try:
                sizes.append(picture_size(file) if file is image[1] else depth_size(file, depth_bytes))
            except ValueError as error:
                return f"{name} {error}"
        if sizes[0] != sizes[1]:
            of_image, of_depth = (f"{width}x{height}" for width, height in sizes)
            return f"{image[0]} is {of_image} pixels, {depth[0]} is {of_depth}"
        problem = self.size_problem(*sizes[0])
        return f"{image[0]} {problem}" if problem else None

    def refuse(self, where: Path, problems: list[str]) -> None:
        """Raises a `ValueError` that names the first of the problems, if there are any."""
        if problems:
            raise ValueError(
                f"Benchmark {self.config.name}: {len(problems)} of {len(self)} frames in {where} cannot be used: "
                f"{some(problems)}."
            )


class PairData(FrameData):
    """A folder of pairs, see `depthfm_diffusers.frames.pairs`.

    Args:
        config: The benchmark.
        root: The folder.

    Raises:
        FileNotFoundError: If a subfolder is missing.
        ValueError: If files have no partner, the metadata do not fit, or headers show a file that cannot be used.
    """

    def __init__(self, config: BenchmarkConfig, root: Path) -> None:
        self.pairs, self.metadata_file = pair_files(root)
        super().__init__(config, [pair.key for pair in self.pairs])
        problems = []
        for pair in self.pairs:
            names = [file.relative_to(root).as_posix() for file in (pair.image, pair.depth)]
            with pair.image.open("rb") as image, pair.depth.open("rb") as depth:
                problems.append(self.header_problem((names[0], image), (names[1], depth), pair.depth.stat().st_size))
        self.refuse(root, [problem for problem in problems if problem])

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is in its two files."""
        pair = self.pairs[index]
        return pair.encoded(str(pair.metadata.get("scene", pair.key)), pair.metadata)

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """The pair's files, and what the metadata say of it: they may change what the depth means."""
        pair: FramePair = self.pairs[index]
        yield from ((p.relative_to(pair.folder).as_posix(), p.stat().st_size) for p in (pair.image, pair.depth))
        yield repr(sorted((name, str(value)) for name, value in pair.metadata.items())), 0


class ShardData(FrameData):
    """WebDataset shards, see `depthfm_diffusers.frames.shards`.

    Args:
        config: The benchmark; with `held_out_fraction`, only frames of scenes that are held out are in it.
        root: A shard, or a folder of shards.

    Raises:
        FileNotFoundError: If the folder has no shard.
        ValueError: If a shard or a frame cannot be read, or no scene is held out.
    """

    def __init__(self, config: BenchmarkConfig, root: Path) -> None:
        shards = [root] if root.is_file() else sorted(root.glob("*.tar"))
        if not shards:
            raise FileNotFoundError(f"Benchmark {config.name}: the folder {root} has no .tar file in it.")
        frames: list[tuple[Path, str, dict[str, Span]]] = []
        scenes = []
        for shard in shards:
            with shard.open("rb") as file:
                for key, members in index_shard(shard):
                    frames.append((shard, key, members))
                    metadata = read_metadata(file, shard, key, members.get("json", ABSENT))
                    scenes.append(str(metadata.get("scene", key)))
        if config.held_out_fraction is not None:
            held_out = split_by_scene(scenes, config.held_out_fraction)[1]
            frames, scenes = [frames[i] for i in held_out], [scenes[i] for i in held_out]
            if not frames:
                raise ValueError(
                    f"Benchmark {config.name}: no scene in {root} is one that a training with validation_fraction "
                    f"{config.held_out_fraction} holds out."
                )
        self.frames, self.scenes = frames, scenes
        super().__init__(config, [key for _, key, _ in frames])
        self.refuse(root, [problem for problem in map(self._problem, range(len(self))) if problem])

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is in its shard."""
        shard, key, members = self.frames[index]
        extension = cast(str, image_extension(shard, key, members))  # checked when the shard was opened
        with shard.open("rb") as file:
            return EncodedFrame(
                key=key,
                origin=str(shard),
                scene=self.scenes[index],
                image=read_span(file, shard, members[extension]),
                depth=read_span(file, shard, members[DEPTH_EXTENSION]),
                image_field=extension,
                depth_field=DEPTH_EXTENSION,
                metadata=read_metadata(file, shard, key, members["json"]),
            )

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """The frame's files in its shard, whichever shard it is."""
        return ((extension, span.size) for extension, span in sorted(self.frames[index][2].items()))

    def _problem(self, index: int) -> str | None:
        shard, key, members = self.frames[index]
        extension = image_extension(shard, key, members)
        if extension is None or DEPTH_EXTENSION not in members:
            return f"{key} of {shard.name} has no {'image' if extension is None else DEPTH_EXTENSION}"
        with shard.open("rb") as file:
            image, depth = (
                (f"{key}.{name}", cast(BinaryIO, FileSlice(file, *members[name])))
                for name in (extension, DEPTH_EXTENSION)
            )
            return self.header_problem(image, depth, members[DEPTH_EXTENSION].size)
