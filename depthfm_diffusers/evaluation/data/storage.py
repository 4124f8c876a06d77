"""Files below a root that is a folder, or one uncompressed tar file that is read in place."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from ...frames.tar_index import tar_members
from .file_lists import (
    as_expression,
    as_glob,
)


class FileSlice(io.RawIOBase):
    """Read access to a part of an open file, as a file of its own.

    Args:
        file: The open file; others may read from it in between.
        offset: Where the part begins.
        size: How many bytes it has.
    """

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__()
        self._file, self._offset, self._size, self._position = file, offset, size, 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Position in the part."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Moves to a position in the part."""
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # any buffer is meant
        """Reads up to the end of the part."""
        count = min(len(buffer), max(0, self._size - self._position))
        self._file.seek(self._offset + self._position)
        content = self._file.read(count)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class Storage(ABC):
    """Files by their path below a root, with `/` between its parts.

    Args:
        root: A folder or a file.

    Attributes:
        root: As given.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Size of a file in bytes; `None` if there is none."""

    @abstractmethod
    def open(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Opens a file of which `size` knows, for a `with` statement."""

    @abstractmethod
    def _candidates(self, pattern: str) -> Iterator[str]:
        """Paths of files, among them all that a pattern stands for."""

    def find(self, pattern: str) -> list[tuple[str, dict[str, str]]]:
        """Files that a pattern of `file_lists` stands for, in alphabetical order, with the values in their paths.

        Hidden files are left out: file managers leave their own beside pictures.
        """
        expression = as_expression(pattern)
        matches = ((path, expression.fullmatch(path)) for path in self._candidates(pattern))
        shown = ((path, match) for path, match in matches if match and not PurePosixPath(path).name.startswith("."))
        return sorted((path, match.groupdict()) for path, match in shown)

    def read(self, path: str) -> bytes:
        """The content of a file of which `size` knows.

        Raises:
            ValueError: If it is not what it was when it was found.
        """
        with self.open(path) as file:
            content = file.read()
        if len(content) != self.size(path):
            raise ValueError(f"{path} in {self.root} has changed, or ends early; start again.")
        return content


class FolderStorage(Storage):
    """Files in a folder."""

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; `None` if there is none."""
        file = self.root / path
        return file.stat().st_size if file.is_file() else None

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Opens a file."""
        with (self.root / path).open("rb") as file:
            yield file

    def _candidates(self, pattern: str) -> Iterator[str]:
        return (path.relative_to(self.root).as_posix() for path in self.root.glob(as_glob(pattern)) if path.is_file())


class TarStorage(Storage):
    """Files in an uncompressed tar file; a leading `./` of their names is dropped.

    Raises:
        ValueError: If the file is empty, compressed, cut off, damaged or not a tar file.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._spans = {name.removeprefix("./"): span for name, span in tar_members(root)}

    def size(self, path: str) -> int | None:
        """Size of a file in bytes; `None` if there is none."""
        return self._spans[path].size if path in self._spans else None

    @contextmanager
    def open(self, path: str) -> Iterator[BinaryIO]:
        """Opens a file."""
        with self.root.open("rb") as file:
            yield cast(BinaryIO, FileSlice(file, *self._spans[path]))

    def _candidates(self, pattern: str) -> Iterator[str]:
        return iter(self._spans)


def open_storage(root: Path) -> Storage:
    """The files of a folder, or of a tar file."""
    return FolderStorage(root) if root.is_dir() else TarStorage(root)
