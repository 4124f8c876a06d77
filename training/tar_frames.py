"""WebDataset shards as a data source: an index of where each frame's files are, and frames read by it.

`datasets.load_dataset("webdataset")` is not used: it copies every shard to a cache, takes a shard that was cut off
between two files for a shorter one, and drops json fields that the first five frames do not have.
"""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np
from frame_source import FrameSource, SourceConfig, scene_name

from depthfm_diffusers.frames import EncodedFrame, frame_error, has_camera
from depthfm_diffusers.frames.shards import (
    DEPTH_EXTENSION,
    IMAGE_EXTENSIONS,
    image_extension,
    index_shard,
    read_metadata,
    read_span,
)
from depthfm_diffusers.frames.tar_index import ABSENT, Span


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
        keys: list[str] = []
        scenes: list[str] = []
        image_fields: list[str] = []
        shard_of, spans = array("i"), array("q")
        all_cameras = True
        self.depth_field = config.depth_column or DEPTH_EXTENSION
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
                    keys.append(key)
                    shard_of.append(number)
                    image_fields.append(image_field)
                    for field in (image_field, self.depth_field, "json"):
                        spans.extend(members.get(field, ABSENT))
        self.keys = keys
        self.shard_of = np.array(shard_of, dtype=np.int32)
        self.spans = np.array(spans, dtype=np.int64).reshape(-1, 3, 2)
        self.image_fields = image_fields
        # A shard that is written anew after this would be read at the old offsets.
        self.states = [_state(shard) for shard in shards]
        super().__init__(config, shards, scenes, all_cameras, self.shard_of if sequential else None)
        for what, position, wanted in (
            ("image", 0, config.image_column or ", ".join(IMAGE_EXTENSIONS)),
            ("depth", 1, self.depth_field),
        ):
            if (self.spans[:, position, 1] < 0).all():
                raise ValueError(
                    f"Data source {config.name}: no frame has {what} ({wanted}); there are {list(extensions)}."
                )

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is in its shard."""
        number = int(self.shard_of[index])
        shard, key = self.files[number], self.keys[index]
        if _state(shard) != self.states[number]:
            raise ValueError(f"{shard} has changed since it was opened; start again.")
        fields = (self.image_fields[index], self.depth_field, "json")
        # Opened for each frame: nothing to share with, or to send to, the workers of a data loader.
        with shard.open("rb") as file:
            spans = [Span(*map(int, span)) for span in self.spans[index]]
            for field, span in zip(fields, spans, strict=True):
                if span.size < 0:
                    raise frame_error(key, str(shard), f"has no {field}.")
            image, depth = (read_span(file, shard, span) for span in spans[:2])
            metadata = read_metadata(file, shard, key, spans[2])
        return EncodedFrame(
            key=key,
            origin=str(shard),
            scene=self.scenes[index],
            image=image,
            depth=depth,
            image_field=fields[0],
            depth_field=fields[1],
            metadata=self.config.frame_metadata(metadata),
        )


def _state(shard: Path) -> tuple[int, ...]:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
