"""What is in a folder, without what systems and programs put there for themselves."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

# Of macOS (in zip files), Windows, Linux and network storage; in lower case. Other such names begin with a dot.
SYSTEM_NAMES = {
    "__macosx",
    "icon\r",
    "thumbs.db",
    "ehthumbs.db",
    "ehthumbs_vista.db",
    "desktop.ini",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "@eadir",
    "#recycle",
}


def is_junk(path: str) -> bool:
    """Returns whether a path leads to, or through, something hidden or something of a system.

    Args:
        path: A path below the folder that a user has named, with `/` between its parts.
    """
    return any(_is_junk_name(part) for part in PurePosixPath(path).parts)


def files_below(folder: Path) -> list[Path]:
    """Lists the files in a folder and its subfolders, sorted by path; what is junk is left out.

    A link to a folder is followed, but each folder is listed once: under its own path if it is below `folder`,
    otherwise under the first link to it. A link to a folder that `folder` itself is in is not followed.

    Args:
        folder: The folder.

    Returns:
        The files. Their paths start with `folder`.

    Raises:
        OSError: If a folder cannot be read.
    """
    return sorted(path for path in _below(folder) if path.is_file())


def expand_pattern(pattern: str) -> list[Path]:
    """Lists the files and folders that a pattern stands for, sorted by path; what is junk is left out.

    Args:
        pattern: A path with `*`, `?` or `[`; `**` stands for any number of folders, which are listed once as in
            `files_below`. What is hidden is found only by a pattern that has the dot.

    Returns:
        The paths.

    Raises:
        OSError: If a folder cannot be read.
    """
    parts = Path(pattern).parts
    start = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    root, rest = Path(*parts[:start]), parts[start:]
    if "**" in rest:
        found = (path for path in _below(root) if _fits(path.relative_to(root).parts, rest)) if root.is_dir() else ()
        return sorted(found)
    matches = (Path(path) for path in glob.glob(pattern))
    return sorted(path for path in matches if not SYSTEM_NAMES & {part.lower() for part in path.parts[start:]})


def _is_junk_name(name: str) -> bool:
    return (name.startswith(".") and name != "..") or name.lower() in SYSTEM_NAMES


def _below(folder: Path) -> Iterator[Path]:
    """Yields all files and folders below a folder, see `files_below`."""
    root = folder.resolve()
    entered = {_identity(parent) for parent in root.parents}
    folders, links = [folder], list[Path]()
    while folders or links:
        # Links last: what is also below `folder` itself is listed there.
        current = folders.pop() if folders else links.pop(0)
        if _identity(current) in entered:
            continue
        entered.add(_identity(current))
        if current != folder:
            yield current
        found = []
        with os.scandir(current) as entries:
            for entry in entries:
                if _is_junk_name(entry.name):
                    continue
                path = current / entry.name
                if not entry.is_dir():
                    yield path
                elif entry.is_symlink():
                    found.append(path)
                else:
                    folders.append(path)
        links = sorted([*links, *found])


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Returns whether the parts of a path fit those of a pattern."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or (bool(parts) and _fits(parts[1:], pattern))
    return bool(parts) and fnmatch(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])
