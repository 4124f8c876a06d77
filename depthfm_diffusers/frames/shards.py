"""WebDataset shards: an index of where each frame's files are, and frames read in place.

Per frame `KEY.webp` (or `.png`, `.jpg`, `.jpeg`), `KEY.depth.png` and `KEY.json`; for an image with a caption
`KEY.txt` or `KEY.json` in place of the depth. KEY ends at the first dot of the file's name. As in WebDataset, the case
of what follows does not matter.

`datasets.load_dataset("webdataset")` is not used: it copies every shard to a cache, takes a shard that was cut off
between two files for a shorter one, and drops json fields that the first five frames do not have.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.folders import is_junk
from .decoding import EncodedFrame, frame_error, has_camera
from .reader import CAPTION_NAMES, FrameReader
from .source_config import CaptionSourceConfig, ImageSourceConfig, SourceConfig
from .stored_files import Span, StoredFile, tar_members

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
DEPTH_EXTENSION = "depth.png"
CAPTION_EXTENSION = "txt"
MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # as WebDataset splits key and extension


def index_shard(shard: Path) -> Iterator[tuple[str, dict[str, Span]]]:
    """Reads the headers of a shard.

    Yields:
        The key of each sample, and where its files are by extension.

    Raises:
        ValueError: If the shard is empty, cut off or damaged, or has a file or a sample twice.
    """
    seen: set[str] = set()
    current: tuple[str, dict[str, Span]] | None = None
    for name, span in tar_members(shard):
        match = MEMBER_NAME.match(name)
        if match is None or is_junk(name):
            continue
        key, extension = match[1], match[2].lower()  # keys differ by case in WebDataset, extensions do not
        if current is None or key != current[0]:
            if current is not None:
                yield current
            if key in seen:
                raise ValueError(f"The shard {shard} holds frame {key!r} in two places.")
            seen.add(key)
            current = (key, {})
        if extension in current[1]:
            raise ValueError(f"The shard {shard} holds {name!r} twice.")
        current[1][extension] = span
    if current is None:
        raise ValueError(f"The shard {shard} has no frame in it.")
    yield current


class ShardReader(FrameReader):
    """Frames, or captioned images, of WebDataset shards.

    The index has some numbers per frame, in arrays: a data set may have millions of frames.

    Args:
        config: Settings of the source.
        shards: The `.tar` files.

    Raises:
        ValueError: If a shard is empty, cut off or not a tar; if a json is missing (of a frame with depth) or cannot
            be read; if no sample has an image, or none has the depth or the caption that `config` names.
    """

    KIND = "Tar"

    def __init__(self, config: SourceConfig | CaptionSourceConfig, shards: Sequence[Path]) -> None:
        self.files = list(shards)
        # A caption in a file of its own comes before all others: it takes the first name that is looked for.
        self._depth_field = self._caption_field = self._caption_name = ""
        if isinstance(config, SourceConfig):
            self._depth_field = (config.depth_column or DEPTH_EXTENSION).lower()
        else:
            self._caption_field = (config.caption_column or CAPTION_EXTENSION).lower()
            self._caption_name = config.caption_column or CAPTION_NAMES[0]
        # A shard that is written again after this would be read at the old offsets.
        self._states = [_state(shard) for shard in shards]
        self._index(config)

    def members(self, index: int) -> dict[str, Span]:
        """Returns where the files of a sample are in its shard, by extension."""
        layout, first = self._layouts[self._layout_of[index]], self._first[index]
        numbers = self._spans[first : first + 2 * len(layout)]
        return dict(zip(layout, map(Span, numbers[::2], numbers[1::2]), strict=True))

    def stored(self, index: int) -> tuple[StoredFile, ...]:
        """Finds the image of a sample, and its depth if it is a frame with depth.

        Raises:
            FrameError: If one is missing.
            ValueError: If the shard has changed since it was indexed.
        """
        key, shard, members = self.keys[index], self.scene_file(index), self.members(index)
        if _state(shard) != self._states[self._shards[index]]:
            raise ValueError(f"{shard} has changed since it was opened; start again.")
        image_field = self._image_fields[self._layout_of[index]]
        fields = (image_field, self._depth_field) if self._depth_field else (image_field,)
        for field in fields:
            if field not in members:
                raise frame_error(key, str(shard), f"has no {field}.")
        return tuple(StoredFile(f"{key}.{field}", shard, members[field]) for field in fields)

    def encoded(self, index: int) -> EncodedFrame:
        """Reads a sample from its shard; a caption in a file of its own is added to the metadata."""
        key, shard, members = self.keys[index], self.scene_file(index), self.members(index)
        texts = {
            field: StoredFile(f"{key}.{field}", shard, members[field])
            for field in ("json", self._caption_field)
            if field in members
        }
        stored = self.stored(index)
        # Opened for each sample: nothing to share with, or to send to, the workers of a data loader.
        with shard.open("rb") as file:
            contents = [part.read(file) for part in stored]
            read = {field: part.read(file) for field, part in texts.items()}
        metadata = _parse_json(read["json"], key, shard) if "json" in read else {}
        if self._caption_field in read:
            try:
                metadata[self._caption_name] = read[self._caption_field].decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise frame_error(key, str(shard), f"its caption is not UTF-8 ({error}).") from error
        return EncodedFrame(
            key=key,
            origin=str(shard),
            scene="",
            image=contents[0],
            depth=contents[1] if self._depth_field else b"",
            image_field=self._image_fields[self._layout_of[index]],
            depth_field=self._depth_field,
            metadata=metadata,
        )

    def scene_file(self, index: int) -> Path:
        """Returns the shard that a sample is in."""
        return self.files[self._shards[index]]

    def _index(self, config: SourceConfig | CaptionSourceConfig) -> None:
        self.keys, self.scenes, self.has_cameras = [], [], True
        # Samples have few different sets of extensions, each listed once: a sample has the number of its set, and
        # where its spans begin.
        self._layouts: list[tuple[str, ...]] = []
        self._image_fields: list[str] = []
        self._shards, self._layout_of, self._first, self._spans = array("i"), array("i"), array("q"), array("q")
        numbers: dict[tuple[str, ...], int] = {}
        json_fields: set[str] = set()
        for shard_number, shard in enumerate(self.files):
            with shard.open("rb") as file:
                for key, members in index_shard(shard):
                    layout = tuple(members)
                    if layout not in numbers:
                        numbers[layout] = len(self._layouts)
                        self._layouts.append(layout)
                        self._image_fields.append(_image_field(config, key, shard, layout))
                    self.keys.append(key)
                    self._shards.append(shard_number)
                    self._layout_of.append(numbers[layout])
                    self._first.append(len(self._spans))
                    for span in members.values():
                        self._spans.extend(span)
                    metadata = {}
                    if "json" in members:
                        metadata = _parse_json(StoredFile("json", shard, members["json"]).read(file), key, shard)
                    elif self._depth_field:
                        raise ValueError(f"Frame {key!r} of {shard} has no json.")
                    json_fields.update(metadata)
                    self.scenes.append(metadata.get("scene"))
                    self.has_cameras &= has_camera(metadata)
        self.shard_of = np.array(self._shards, dtype=np.int32)
        self._check_fields(config, json_fields)

    def _check_fields(self, config: SourceConfig | CaptionSourceConfig, json_fields: set[str]) -> None:
        there = list(dict.fromkeys(extension for layout in self._layouts for extension in layout))
        if not any(field in layout for field, layout in zip(self._image_fields, self._layouts, strict=True)):
            wanted = config.image_column or ", ".join(IMAGE_EXTENSIONS)
            raise ValueError(f"Data source {config.name}: no sample has an image ({wanted}); there are {there}.")
        if self._depth_field and self._depth_field not in there:
            raise ValueError(
                f"Data source {config.name}: no sample has depth ({self._depth_field}); there are {there}."
            )
        if isinstance(config, CaptionSourceConfig) and (column := config.caption_column):
            if column.lower() not in there and column not in json_fields:
                raise ValueError(
                    f"Data source {config.name}: no sample has a caption .{column}, nor {column!r} in its json; set "
                    "caption_column."
                )


def _image_field(config: ImageSourceConfig, key: str, shard: Path, layout: tuple[str, ...]) -> str:
    found = [extension for extension in IMAGE_EXTENSIONS if extension in layout]
    if config.image_column is None and len(found) > 1:
        raise ValueError(f"Frame {key!r} of {shard} has several images, {found}: set image_column.")
    return (config.image_column or (found[0] if found else "image")).lower()


def _parse_json(content: bytes, key: str, shard: Path) -> dict[str, Any]:
    where = f"Frame {key!r} of {shard}: its json"
    try:
        metadata = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where} cannot be read ({error}).") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{where} is {type(metadata).__name__}, not an object.")
    return metadata


def _state(shard: Path) -> tuple[int, ...]:
    status = shard.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns
