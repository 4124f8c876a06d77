"""Files below a root that is a folder, or one uncompressed tar file that is read in place."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...frames.stored_files import Span, StoredFile, tar_members
from ...utils.folders import is_junk
from .file_lists import as_expression, as_glob


class Storage:
    """Files by their path below a root, with `/` between its parts; a leading `./` of names in a tar file is dropped.

    Args:
        root: A folder, or an uncompressed tar file.

    Attributes:
        root: As given.

    Raises:
        ValueError: If a tar file is empty, compressed, cut off, damaged or not a tar file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._spans: dict[str, Span] | None = None
        if not root.is_dir():
            self._spans = {name.removeprefix("./"): span for name, span in tar_members(root)}

    def file(self, path: str) -> StoredFile | None:
        """Returns the file at a path; `None` if there is none."""
        if self._spans is not None:
            return StoredFile(path, self.root, self._spans[path]) if path in self._spans else None
        return StoredFile(path, self.root / path) if (self.root / path).is_file() else None

    def find(self, pattern: str) -> list[dict[str, str]]:
        """Returns the values in the paths of the files that a pattern stands for, in alphabetical order of the paths.

        What is hidden or of a system is left out, unless the pattern itself names it.
        """
        paths: Iterable[str]
        if self._spans is not None:
            paths = self._spans
        else:
            found = (path for path in self.root.glob(as_glob(pattern)) if path.is_file())
            paths = (path.relative_to(self.root).as_posix() for path in found)
        expression = as_expression(pattern)
        shown = sorted(path for path in paths if is_junk(pattern) or not is_junk(path))
        return [match.groupdict() for match in map(expression.fullmatch, shown) if match]
