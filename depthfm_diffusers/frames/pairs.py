"""A folder with `images/` (or `rgb/`) and `depth/`: files of one frame have the same name up to the extension.

Depth is 16-bit grey, or floating-point metres in `.npy`. A file `metadata.csv` or `metadata.jsonl` beside the two
folders may give, for each image in `file_name`, its `scene`, `fov_x_deg` or `intrinsics`, `depth_scale`, `sky_value`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .decoding import (
    EncodedFrame,
    frame_error,
)

IMAGE_FOLDERS = ("images", "rgb")
DEPTH_FOLDER = "depth"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
DEPTH_SUFFIXES = (".png", ".npy", ".tif", ".tiff")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")
NAMED_IN_MESSAGES = 5


@dataclass(frozen=True)
class FramePair:
    """The two files of a frame.

    Attributes:
        key: Path of either file in its folder, without the extension.
        folder: The folder that holds both folders.
        image: The image file.
        depth: The depth file.
        metadata: The frame's row in the metadata; empty without metadata.
    """

    key: str
    folder: Path
    image: Path
    depth: Path
    metadata: Mapping[str, Any]

    def encoded(self, scene: str, metadata: Mapping[str, Any]) -> EncodedFrame:
        """Reads both files.

        Args:
            scene: Name of the frame's scene.
            metadata: What holds for the frame: its own metadata, or those with settings in their place.

        Raises:
            FrameError: If a file cannot be read.
        """
        fields = [file.relative_to(self.folder).as_posix() for file in (self.image, self.depth)]
        contents = []
        for file, field in zip((self.image, self.depth), fields, strict=True):
            try:
                contents.append(file.read_bytes())
            except OSError as error:
                raise frame_error(self.key, str(self.folder), f"cannot read {field} ({error.strerror}).") from error
        return EncodedFrame(
            key=self.key,
            origin=str(self.folder),
            scene=scene,
            image=contents[0],
            depth=contents[1],
            image_field=fields[0],
            depth_field=fields[1],
            metadata=metadata,
        )


def is_pair_folder(folder: Path) -> bool:
    """Whether a folder has the subfolders of images and of depth."""
    return (folder / DEPTH_FOLDER).is_dir() and any((folder / name).is_dir() for name in IMAGE_FOLDERS)


def pair_files(folder: Path) -> tuple[list[FramePair], Path | None]:
    """Finds the pairs of a folder.

    Returns:
        The pairs, ordered by key, and the file of metadata if there is one.

    Raises:
        FileNotFoundError: If a subfolder is missing.
        ValueError: If files have no partner, or the metadata do not fit them.
    """
    found = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
    if len(found) != 1 or not (folder / DEPTH_FOLDER).is_dir():
        problem = "has both images/ and rgb/" if len(found) > 1 else "lacks images/ (or rgb/) or depth/"
        raise FileNotFoundError(f"The folder {folder} {problem}.")
    images = _files_by_key(found[0], IMAGE_SUFFIXES)
    depths = _files_by_key(folder / DEPTH_FOLDER, DEPTH_SUFFIXES)
    alone = [images[key] for key in images if key not in depths] + [depths[k] for k in depths if k not in images]
    if alone:
        raise ValueError(f"{len(alone)} file(s) have no partner of the same name: {_some(alone)}.")
    metadata_files = [folder / name for name in METADATA_NAMES if (folder / name).is_file()]
    if len(metadata_files) > 1:
        raise ValueError(f"{folder} has both {' and '.join(METADATA_NAMES)}; keep one.")
    metadata: dict[str, dict[str, Any]] = {}
    for file in metadata_files:
        metadata = _metadata_by_key(file, found[0].name, images)
    pairs = [FramePair(key, folder, images[key], depths[key], metadata.get(key, {})) for key in sorted(images)]
    return pairs, metadata_files[0] if metadata_files else None


def _files_by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")]
    unknown = [file for file in files if file.suffix.lower() not in suffixes]
    if unknown:
        raise ValueError(f"{len(unknown)} file(s) in {folder} are none of {', '.join(suffixes)}: {_some(unknown)}.")
    found: dict[str, Path] = {}
    for file in files:
        key = file.relative_to(folder).with_suffix("").as_posix()
        if key in found:
            raise ValueError(f"{found[key]} and {file} have the same name up to the extension.")
        found[key] = file
    return found


def _metadata_by_key(file: Path, images_name: str, images: dict[str, Path]) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(_read_rows(file), start=1):
        where = f"{file}, row {number}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"{where} has no 'file_name' but {sorted(map(str, row))}: it is the image's name.")
        key = name.removeprefix(f"{images_name}/")
        if key not in images:
            key = str(Path(key).with_suffix("").as_posix())
        if key not in images:
            raise ValueError(f"{where}: there is no image {name!r} in {images_name}/.")
        if key in rows:
            raise ValueError(f"{where}: {name!r} was in an earlier row.")
        rows[key] = row
    missing = [images[key] for key in images if key not in rows]
    if missing:
        raise ValueError(f"{file} has no row for {len(missing)} image(s): {_some(missing)}.")
    return rows


def _read_rows(file: Path) -> list[dict[str, Any]]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # spreadsheets write a byte order mark
        if file.suffix == ".csv":
            rows = list(csv.DictReader(io.StringIO(text), strict=True))
        else:
            rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read ({error}).") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or None in row:
            raise ValueError(f"{file}, row {number} does not fit the columns: {row!r}.")
    return rows


def _some(files: Sequence[Path]) -> str:
    more = len(files) - NAMED_IN_MESSAGES
    return ", ".join(map(str, files[:NAMED_IN_MESSAGES])) + (f" and {more} more" if more > 0 else "")
