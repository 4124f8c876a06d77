"""Files on disk, and files inside an uncompressed tar file that are read in place."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

BLOCK = tarfile.BLOCKSIZE


class Span(NamedTuple):
    """Where the bytes of a file are in its tar file."""

    offset: int
    size: int


def tar_members(path: Path) -> Iterator[tuple[str, Span]]:
    """Reads the headers of a tar file.

    Yields:
        The name and the place of each regular file in it, in order.

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


@dataclass(frozen=True)
class StoredFile:
    """A file on disk, or a file inside a tar file.

    Attributes:
        name: What messages call it.
        path: The file, or the tar file that it is in.
        span: Where it is in the tar file; `None` for a file of its own.
    """

    name: str
    path: Path
    span: Span | None = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.path.stat().st_size if self.span is None else self.span.size

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Opens the file for reading."""
        with self.path.open("rb") as file:
            yield file if self.span is None else cast(BinaryIO, _FileSlice(file, self.span))

    def read(self, tar: BinaryIO | None = None) -> bytes:
        """Reads the whole file.

        Args:
            tar: The tar file, if it is open already.

        Raises:
            OSError: If the file cannot be read.
            ValueError: If the tar file ends before the end of this file.
        """
        if self.span is None:
            return self.path.read_bytes()
        if tar is None:
            with self.path.open("rb") as opened:
                return self.read(opened)
        tar.seek(self.span.offset)
        content = tar.read(self.span.size)
        if len(content) != self.span.size:
            raise ValueError(f"{self.name} in {self.path} has changed, or ends early; start again.")
        return content


class _FileSlice(io.RawIOBase):
    """Read access to a part of an open file, as a file of its own; others may read from that file in between."""

    def __init__(self, file: BinaryIO, span: Span) -> None:
        super().__init__()
        self._file, self._span, self._position = file, span, 0

    def readable(self) -> bool:
        """Returns that it can be read."""
        return True

    def seekable(self) -> bool:
        """Returns that the position can be changed."""
        return True

    def tell(self) -> int:
        """Returns the position in the part."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position in the part."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._span.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer is meant
        """Reads up to the end of the part."""
        count = min(len(buffer), max(0, self._span.size - self._position))
        self._file.seek(self._span.offset + self._position)
        content = self._file.read(count)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
