"""Where files are in an uncompressed tar file, so that they can be read in place."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

BLOCK = tarfile.BLOCKSIZE


class Span(NamedTuple):
    """Where a file's bytes are in its tar file; a size of -1 stands for a file that is not there."""

    offset: int
    size: int


ABSENT = Span(0, -1)


def tar_members(path: Path) -> Iterator[tuple[str, Span]]:
    """Reads the headers of a tar file: name and place of each regular file in it, in order.

    Raises:
        ValueError: If it is empty, compressed, cut off, damaged or not a tar file.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"The tar file {path} is empty.")
    end = 0
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # or every header stays in memory
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK if member.isreg() else tar.offset
                if member.isreg():
                    yield member.name, Span(member.offset_data, member.size)
    except tarfile.TarError as error:
        raise ValueError(f"The tar file {path} is cut off, damaged, compressed or none at all ({error}).") from error
    # tarfile takes the end of the file, or a damaged header, for the end of the archive.
    with path.open("rb") as file:
        file.seek(end)
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f"The tar file {path} is cut off or damaged: no file and no end mark at byte {end}.")
