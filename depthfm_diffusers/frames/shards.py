"""WebDataset shards of frames: where each frame's files are, and reading them in place.

Per frame `KEY.webp` (or `.png`, `.jpg`, `.jpeg`), `KEY.depth.png` and `KEY.json`; KEY ends at the first dot of the
file's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from .tar_index import (
    Span,
    tar_members,
)

IMAGE_EXTENSIONS = ("webp", "png", "jpg", "jpeg")
DEPTH_EXTENSION = "depth.png"
MEMBER_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")  # as WebDataset splits key and extension


def index_shard(shard: Path) -> Iterator[tuple[str, dict[str, Span]]]:
    """Reads the headers of a shard: the key of each frame, and where its files are by extension.

    Raises:
        ValueError: If the shard is empty, cut off or damaged, or holds a file or a frame twice.
    """
    seen: set[str] = set()
    current: tuple[str, dict[str, Span]] | None = None
    for name, span in tar_members(shard):
        match = MEMBER_NAME.match(name)
        if match is None:
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
            raise ValueError(f"The shard {shard} holds {name!r} twice.")
        current[1][extension] = span
    if current is None:
        raise ValueError(f"The shard {shard} has no frame in it.")
    yield current


def image_extension(shard: Path, key: str, members: Mapping[str, Span]) -> str | None:
    """The extension of a frame's image; `None` if it has none.

    Raises:
        ValueError: If there are several.
    """
    found = [extension for extension in IMAGE_EXTENSIONS if extension in members]
    if len(found) > 1:
        raise ValueError(f"Frame {key!r} of {shard} has several images, {found}: set image_column.")
    return found[0] if found else None


def read_span(file: BinaryIO, shard: Path, span: Span) -> bytes:
    """The bytes of one file.

    Raises:
        ValueError: If the shard ends before them.
    """
    file.seek(span.offset)
    content = file.read(span.size)
    if len(content) != span.size:
        raise ValueError(f"The shard {shard} ends before byte {span.offset + span.size}; start again.")
    return content


def read_metadata(file: BinaryIO, shard: Path, key: str, span: Span) -> dict[str, Any]:
    """What a frame's json says.

    Raises:
        ValueError: If it is missing, or not a json object.
    """
    where = f"Frame {key!r} of {shard}"
    if span.size < 0:
        raise ValueError(f"{where} has no json.")
    return parse_metadata(read_span(file, shard, span), where)


def parse_metadata(content: bytes, where: str) -> dict[str, Any]:
    """What a json says; `where` is what messages call its frame.

    Raises:
        ValueError: If it is not a json object.
    """
    try:
        metadata = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{where}: its json cannot be read ({error}).") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{where}: its json is {type(metadata).__name__}, not an object.")
    return metadata
