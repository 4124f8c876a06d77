"""Finding the image files that arguments of the command line name."""

from __future__ import annotations

import glob
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..pictures import COMMON_SUFFIXES, choose_pictures
from ..utils.errors import describe_error
from ..utils.folders import expand_pattern, is_junk


@dataclass(frozen=True)
class InputFailure:
    """An argument that gave no result, and why.

    Attributes:
        name: The file, folder or pattern, as the user has named it.
        reason: Why there is no result; one line.
    """

    name: str
    reason: str


def collect_inputs(
    arguments: Sequence[str | os.PathLike[str]], skip: Iterable[Path] = ()
) -> tuple[list[Path], list[InputFailure]]:
    """Finds the files that arguments name.

    A file stands for itself. A folder stands for the image files directly in it (by suffix, hidden ones left out);
    the log says which others are left out.
    Any other argument with `*`, `?` or `[` in it is a pattern, `**` reaching into subfolders, and stands for the files
    that match, without what is hidden or of a system. Folders and patterns are listed in sorted order; a file that is
    named twice is taken once.

    Args:
        arguments: Paths and patterns.
        skip: Absolute paths that are left out of folders and patterns, such as the results of an earlier run.

    Returns:
        The files as absolute paths, in order, and the arguments that stand for no file.
    """
    skipped = {os.path.normcase(path) for path in skip}
    files: dict[str, Path] = {}
    failures = []
    for argument in (os.fspath(argument) for argument in arguments):
        found, reason = _expand(argument, skipped)
        named_itself = os.path.isfile(argument)
        kept = [path for path in found if named_itself or os.path.normcase(path) not in skipped]
        if found and not kept:
            reason = "holds nothing but results of an earlier run"
        if not kept:
            failures.append(InputFailure(argument, reason))
        for path in kept:
            files.setdefault(os.path.normcase(path), path)
    return list(files.values()), failures


def _expand(argument: str, skipped: Container[str]) -> tuple[list[Path], str]:
    """Returns the files that one argument stands for, and why there is none; `skipped` files are not spoken of."""
    path = Path(argument)
    try:
        if os.path.isfile(path):
            return [_absolute(path)], ""
        if os.path.isdir(path):
            entries = (entry for entry in sorted(path.iterdir()) if not is_junk(entry.name))
            files = [_absolute(entry) for entry in entries if entry.is_file()]
            results = [file for file in files if os.path.normcase(file) in skipped]
            found = choose_pictures(_absolute(path), files, results)
            return found, f"the folder has no image files directly in it ({COMMON_SUFFIXES})"
        if os.path.lexists(path):
            reason = "a broken link" if path.is_symlink() else "neither a file nor a folder"
            return [], reason
    except OSError as error:
        return [], error.strerror or str(error)
    if glob.has_magic(argument):
        try:
            matches = expand_pattern(os.path.expanduser(argument))
        except OSError as error:
            return [], describe_error(error)
        return [_absolute(match) for match in matches if match.is_file()], "the pattern matches no file"
    return [], "no such file or folder"


def _absolute(path: Path) -> Path:
    """Returns the absolute path without resolving links: a link is an input under its own name."""
    return Path(os.path.abspath(path))
