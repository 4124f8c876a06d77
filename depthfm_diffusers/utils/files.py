"""Files that are written whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Writes a file whole or not at all.

    Yields the path of a new empty file in the same folder, to write to. When the block ends, that file replaces
    `path`. If the block raises, it is removed, and `path` stays as it was.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        The path to write to.
    """
    path = Path(path)
    # The name is short whatever `path` is called: a suffix could make a long name too long for the file system.
    temporary = path.with_name(f".depthfm-{secrets.token_hex(8)}.tmp")
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def open_without_link(path: str | os.PathLike[str], flags: int) -> int:
    """Opens a file of a folder that may come from anywhere: a link there would lead to a file outside it.

    Args:
        path: The file.
        flags: As of `os.open`.

    Returns:
        The file descriptor.

    Raises:
        OSError: If the file cannot be opened, or is a link.
    """
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)


def save_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes an array as `.npy`, without pickling.

    Args:
        path: The file to write; no suffix is appended to its name.
        array: The array.
    """
    with open(path, "wb") as file:
        np.save(file, array, allow_pickle=False)


def save_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes JSON for people to read, atomically.

    Args:
        path: The file to write.
        content: Anything the `json` module can write, without NaN and infinities, which JSON does not have.

    Raises:
        ValueError: If `content` has NaN or an infinity.
    """
    text = json.dumps(content, indent=2, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def file_sha256(path: Path) -> str:
    """Hashes a file's content: SHA-256, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
