"""WebDataset shards, read in place: an index of where each frame's files are, and frames read by it.

Per frame `KEY.webp` (or `.png`, `.jpg`, `.jpeg`), `KEY.depth.png` and `KEY.json`; KEY ends at the first dot of the
file's name.

`datasets.load_dataset("webdataset")` is not used: it copies every shard to a cache, takes a shard that was cut off
between two files for a shorter one, and drops json fields that the first five frames do not have.
"""

from __future__ import annotations

import json
import re
import tarfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from frame_decoding import EncodedFrame, frame_error, has_camera
from frame_source import FrameSource, SourceConfig, scene_name

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
DEPTH_EXTENSION = "depth.png"
MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # as WebDataset splits key and extension
BLOCK = tarfile.BLOCKSIZE


class Span(NamedTuple):
    """Where a file's bytes are in its shard; a size of -1 stands for a file that is not there."""

    offset: int
    size: int


ABSENT = Span(0, -1)


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
                    metadata = _read_json(file, shard, key, members.get("json", ABSENT))
                    where = f"Frame {key!r} of {shard}: its json"
                    scenes.append(scene_name(metadata.get("scene"), where))
                    all_cameras &= has_camera(metadata)
                    image_field = _image_field(config, shard, key, members)
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
            image, depth = (_read(file, shard, span) for span in spans[:2])
            metadata = _read_json(file, shard, key, spans[2])
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


def index_shard(shard: Path) -> Iterator[tuple[str, dict[str, Span]]]:
    """Reads the headers of a shard: the key of each frame, and where its files are by extension.

    Raises:
        ValueError: If the shard is empty, cut off or damaged, or holds a file or a frame twice.
    """
    size = shard.stat().st_size
    if size == 0:
        raise ValueError(f"The shard {shard} is empty.")
    seen: set[str] = set()
    current: tuple[str, dict[str, Span]] | None = None
    end = 0
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # or every header stays in memory
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK if member.isreg() else tar.offset
                match = MEMBER_NAME.match(member.name)
                if match is None or not member.isreg():
                    continue
                key, extension = match.groups()
                if current is None or key != current[0]:
                    if current is not None:
                        yield current
                    if key in seen:
                        raise ValueError(f"The shard {shard} holds frame {key!r} in two places.")
                    seen.add(key)
                    current = (key, {})
                if extension in current[1]:
                    raise ValueError(f"The shard {shard} holds {member.name!r} twice.")
                current[1][extension] = Span(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"The shard {shard} is cut off, damaged or not a tar file ({error}).") from error
    # tarfile takes the end of the file, or a damaged header, for the end of the archive.
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"The shard {shard} is cut off or damaged: no file and no end mark at byte {end}.")
    if current is None:
        raise ValueError(f"The shard {shard} has no frame in it.")
    yield current


def _image_field(config: SourceConfig, shard: Path, key: str, members: dict[str, Span]) -> str:
    if config.image_column is not None:
        return config.image_column
    found = [extension for extension in IMAGE_EXTENSIONS if extension in members]
    if len(found) > 1:
        raise ValueError(f"Frame {key!r} of {shard} has several images, {found}: set image_column.")
    return found[0] if found else "image"


def _read(file: Any, shard: Path, span: Span) -> bytes:
    file.seek(span.offset)
    content = file.read(span.size)
    if len(content) != span.size:
        raise ValueError(f"The shard {shard} ends before byte {span.offset + span.size}; start again.")
    return content


def _read_json(file: Any, shard: Path, key: str, span: Span) -> dict[str, Any]:
    where = f"Frame {key!r} of {shard}"
    if span.size < 0:
        raise ValueError(f"{where} has no json.")
    try:
        metadata = json.loads(_read(file, shard, span))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: its json cannot be read ({error}).") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: its json is {type(metadata).__name__}, not an object.")
    return metadata


def _state(shard: Path) -> tuple[int, ...]:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
