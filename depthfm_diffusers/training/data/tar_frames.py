"""WebDataset shards as a data source: an index of where each frame's files are, and frames read by it.

`datasets.load_dataset("webdataset")` is not used: it copies every shard to a cache, takes a shard that was cut off
between two files for a shorter one, and drops json fields that the first five frames do not have.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ...frames import (
    EncodedFrame,
    frame_error,
    has_camera,
)
from ...frames.shards import (
    DEPTH_EXTENSION,
    IMAGE_EXTENSIONS,
    image_extension,
    index_shard,
    parse_metadata,
    read_metadata,
    read_span,
)
from ...frames.tar_index import (
    ABSENT,
    Span,
)
from .frame_source import (
    FrameSource,
    SourceConfig,
    scene_name,
)


class ShardFields:
    """Where fields of each sample lie in shards, and their content read in place.

    Args:
        shards: The `.tar` files.
        width: Number of fields of a sample.
    """

    def __init__(self, shards: Sequence[Path], width: int) -> None:
        self.shards = list(shards)
        # A shard that is written anew after this would be read at the old offsets.
        self._states = [_state(shard) for shard in shards]
        self._width = width
        self._shard_of, self._spans = array("i"), array("q")

    def add(self, shard_number: int, spans: Iterable[Span]) -> None:
        """Adds a sample's fields."""
        self._shard_of.append(shard_number)
        for span in spans:
            self._spans.extend(span)

    @property
    def shard_of(self) -> np.ndarray:
        """Number of each sample's shard."""
        return np.array(self._shard_of, dtype=np.int32)

    def anyone_has(self, field: int) -> bool:
        """Whether a sample has this field."""
        return any(size >= 0 for size in self._spans[2 * field + 1 :: 2 * self._width])

    def shard(self, index: int) -> Path:
        """The shard that a sample is in."""
        return self.shards[self._shard_of[index]]

    def read(self, index: int) -> list[bytes | None]:
        """The content of each field of a sample; `None` for those that it does not have.

        Raises:
            ValueError: If the shard is not the file any more that it was when it was indexed.
        """
        shard = self.shard(index)
        if _state(shard) != self._states[self._shard_of[index]]:
            raise ValueError(f"{shard} has changed since it was opened; start again.")
        first = 2 * self._width * index
        numbers = self._spans[first : first + 2 * self._width]
        spans = [Span(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]
        # Opened for each sample: nothing to share with, or to send to, the workers of a data loader.
        with shard.open("rb") as file:
            return [None if span.size < 0 else read_span(file, shard, span) for span in spans]


class TarFrames(FrameSource):
    """Frames of WebDataset shards.

    Args:
        config: Settings of the source.
        shards: The `.tar` files.
        sequential: Whether to tell which shard a frame is in (`groups`), for reading nearly in order.

    Raises:
        ValueError: If a shard is empty, cut off or not a tar; if a json cannot be read or lacks `scene`; if no frame
            has an image, or none has a depth.
    """

    def __init__(self, config: SourceConfig, shards: list[Path], sequential: bool = False) -> None:
        self.keys: list[str] = []
        self.image_fields: list[str] = []
        self.depth_field = config.depth_column or DEPTH_EXTENSION
        self.stored = ShardFields(shards, width=3)
        scenes: list[str] = []
        all_cameras = True
        extensions: dict[str, None] = {}
        for number, shard in enumerate(shards):
            with shard.open("rb") as file:
                for key, members in index_shard(shard):
                    extensions.update(dict.fromkeys(members))
                    metadata = read_metadata(file, shard, key, members.get("json", ABSENT))
                    where = f"Frame {key!r} of {shard}: its json"
                    scenes.append(scene_name(metadata.get("scene"), where))
                    all_cameras &= has_camera(metadata)
                    image_field = config.image_column or image_extension(shard, key, members) or "image"
                    self.keys.append(key)
                    self.image_fields.append(image_field)
                    fields = (image_field, self.depth_field, "json")
                    self.stored.add(number, (members.get(field, ABSENT) for field in fields))
        super().__init__(config, shards, scenes, all_cameras, self.stored.shard_of if sequential else None)
        for what, position, wanted in (
            ("image", 0, config.image_column or ", ".join(IMAGE_EXTENSIONS)),
            ("depth", 1, self.depth_field),
        ):
            if not self.stored.anyone_has(position):
                raise ValueError(
                    f"Data source {config.name}: no frame has {what} ({wanted}); there are {list(extensions)}."
                )

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is in its shard."""
        key, shard = self.keys[index], str(self.stored.shard(index))
        fields = (self.image_fields[index], self.depth_field, "json")
        contents = []
        for field, content in zip(fields, self.stored.read(index), strict=True):
            if content is None:
                raise frame_error(key, shard, f"has no {field}.")
            contents.append(content)
        image, depth, metadata = contents
        return EncodedFrame(
            key=key,
            origin=shard,
            scene=self.scenes[index],
            image=image,
            depth=depth,
            image_field=fields[0],
            depth_field=fields[1],
            metadata=self.config.frame_metadata(parse_metadata(metadata, f"Frame {key!r} of {shard}")),
        )


def _state(shard: Path) -> tuple[int, ...]:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
