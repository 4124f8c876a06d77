"""The photos of an adherence test, each with a prompt."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...frames.rows import read_rows
from ...image_processing import load_image


@dataclass(frozen=True)
class PromptedImage:
    """A photo and the prompt that images are generated from.

    Attributes:
        key: Its name in the report; unique in a set.
        path: The image file.
        prompt: The prompt; may be empty.
        max_pixels: Most pixels that the file may have; `None`: 120 million.
    """

    key: str
    path: Path
    prompt: str
    max_pixels: int | None = None


def prompted_images(
    files: Sequence[Path], prompt: str = "", prompts: Path | None = None, max_pixels: int | None = None
) -> list[PromptedImage]:
    """Assigns keys and prompts to files.

    A key is the file's path below the folder that all files have in common.

    Args:
        files: Absolute paths, each once.
        prompt: The prompt of all images.
        prompts: Instead of `prompt`, a file with one prompt per image: JSON lines (`.jsonl`) or CSV with a header,
            with `file_name` and `text`, as the `metadata.jsonl` of an image folder. File names are relative to the
            folder of `prompts`. If there is no such file, the row is for any image of that name in another folder.
            Rows for other images are ignored.
        max_pixels: See `PromptedImage`.

    Raises:
        OSError: If `prompts` cannot be read.
        ValueError: If `prompts` is of another format or damaged, or has no row for an image, or several.
    """
    find = (lambda file: prompt) if prompts is None else _Prompts(prompts).find
    common = Path(os.path.commonpath([file.parent for file in files])) if files else Path()
    return [PromptedImage(file.relative_to(common).as_posix(), file, find(file), max_pixels) for file in files]


def check_images(images: Sequence[PromptedImage]) -> None:
    """Reads all images once, so that a damaged one is found before a long run.

    Raises:
        ValueError: If there is no image, two have the same key, or one cannot be read; the message names it.
    """
    if not images:
        raise ValueError("`images` is empty: there is nothing to generate from.")
    keys = [one.key for one in images]
    if len(set(keys)) != len(keys):
        raise ValueError(f"`images`: two are called {max(keys, key=keys.count)!r}; give each a key of its own.")
    for one in images:
        try:
            load_image(one.path, one.max_pixels)
        except (ValueError, OSError) as error:
            raise ValueError(f"image {one.key!r}: {error}") from error


def fingerprint(images: Sequence[PromptedImage]) -> str:
    """Returns the SHA-256 of the files, their keys and prompts, in order."""
    digest = hashlib.sha256()
    for one in images:
        digest.update(f"{len(one.key)} {one.key} {len(one.prompt)} {one.prompt}".encode())
        with one.path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


class _Prompts:
    """The content of a file of prompts; see `prompted_images`.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._by_path: dict[Path, str] = {}
        self._by_name: dict[str, list[str]] = {}
        folder = Path(os.path.abspath(path)).parent
        for number, row in enumerate(self._rows(), start=1):
            name, text = (row.get(column) if isinstance(row, dict) else None for column in ("file_name", "text"))
            if not isinstance(name, str) or not isinstance(text, str):
                raise self._error(f"row {number} has no file_name or no text: {row!r}.")
            file = Path(os.path.normpath(folder / name))
            if file in self._by_path:
                raise self._error(f"{name} has several rows, the second is row {number}.")
            self._by_path[file] = text
            if not file.is_file():
                self._by_name.setdefault(file.name, []).append(text)

    def find(self, file: Path) -> str:
        """Finds the prompt of an image."""
        if file in self._by_path:
            return self._by_path[file]
        named = self._by_name.get(file.name, [])
        if len(named) > 1:
            raise self._error(f"{len(named)} rows could be for {file.name}: put the file where its paths start from.")
        if not named:
            raise self._error(f"there is no prompt for {file.name} ({file}); its paths start at {self._path.parent}.")
        return named[0]

    def _rows(self) -> list[Any]:
        if self._path.suffix.lower() not in (".jsonl", ".csv"):
            raise self._error("must be a .jsonl or a .csv file.")
        try:
            return read_rows(self._path)
        except ValueError as error:
            raise self._error(f"{error}.") from error

    def _error(self, message: str) -> ValueError:
        return ValueError(f"prompts {self._path}: {message}")
