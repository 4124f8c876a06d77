"""A folder with `images/` (or `rgb/`) and `depth/`: files of one frame have the same name up to the extension.

Depth is 16-bit grey, or floating-point metres in `.npy`. A file `metadata.csv` or `metadata.jsonl` beside the two
folders may give, for each image in `file_name`, its `scene`, `fov_x_deg` or `intrinsics`, `depth_scale`, `sky_value`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..pictures import IMAGE_SUFFIXES, choose_pictures
from ..utils.folders import files_below
from .decoding import EncodedFrame, frame_error, has_camera
from .reader import FrameReader, first_few
from .rows import check_rows, read_rows
from .stored_files import StoredFile

IMAGE_FOLDERS = ("images", "rgb")
DEPTH_FOLDER = "depth"
DEPTH_SUFFIXES = (".png", ".npy", ".tif", ".tiff")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl")


def is_pair_folder(folder: Path) -> bool:
    """Returns whether a folder has the subfolders of images and of depth."""
    return (folder / DEPTH_FOLDER).is_dir() and any((folder / name).is_dir() for name in IMAGE_FOLDERS)


class PairReader(FrameReader):
    """Frames of a folder of images and a folder of depth maps, in the order of their keys.

    A frame's key is its path in these folders without the extension.

    Args:
        folder: The folder that has both.

    Attributes:
        metadata: The row of each frame in the metadata file; empty without such a file.

    Raises:
        FileNotFoundError: If a subfolder is missing.
        ValueError: If files have no partner, or the metadata do not fit them.
    """

    KIND = "Pair"

    def __init__(self, folder: Path) -> None:
        found = [folder / name for name in IMAGE_FOLDERS if (folder / name).is_dir()]
        if len(found) != 1 or not (folder / DEPTH_FOLDER).is_dir():
            problem = "has both images/ and rgb/" if len(found) > 1 else "lacks images/ (or rgb/) or depth/"
            raise FileNotFoundError(f"The folder {folder} {problem}.")
        images = _files_by_key(found[0], IMAGE_SUFFIXES)
        depths = _files_by_key(folder / DEPTH_FOLDER, DEPTH_SUFFIXES)
        alone = [images[key] for key in images if key not in depths] + [depths[k] for k in depths if k not in images]
        if alone:
            raise ValueError(f"{len(alone)} file(s) have no partner of the same name: {first_few(alone)}.")
        metadata_files = [path for path in sorted(folder.iterdir()) if path.name.lower() in METADATA_NAMES]
        if len(metadata_files) > 1:
            raise ValueError(f"{folder} has both {' and '.join(METADATA_NAMES)}; keep one.")
        rows: dict[str, dict[str, Any]] = {}
        for file in metadata_files:
            rows = _metadata_by_key(file, found[0].name, images)
        self.folder = folder
        self.keys = sorted(images)
        self.metadata = [rows.get(key, {}) for key in self.keys]
        self._images, self._depths = ([files[key] for key in self.keys] for files in (images, depths))
        self._metadata_files = metadata_files
        # The fingerprint is made in this order.
        self.files = [*metadata_files, *self._images, *self._depths]
        self.scenes = None
        if any("scene" in row for row in self.metadata):
            self.scenes = [row.get("scene") for row in self.metadata]
        self.has_cameras = all(map(has_camera, self.metadata))

    def stored(self, index: int) -> tuple[StoredFile, StoredFile]:
        """Returns the image file and the depth file of a frame."""
        files = (self._images[index], self._depths[index])
        image, depth = (StoredFile(file.relative_to(self.folder).as_posix(), file) for file in files)
        return image, depth

    def encoded(self, index: int) -> EncodedFrame:
        """Reads a frame from its two files."""
        key, origin = self.keys[index], str(self.folder)
        stored = self.stored(index)
        image, depth = (read_file(file, key, origin) for file in stored)
        return EncodedFrame(key, origin, "", image, depth, stored[0].name, stored[1].name, self.metadata[index])

    def scene_file(self, index: int) -> Path:
        """Returns the metadata file; the folder, if there is none."""
        return (*self._metadata_files, self.folder)[0]


class ImageFileReader(FrameReader):
    """The images in a folder and its subfolders, without depth or captions; a key is the path in the folder.

    Args:
        folder: The folder.
    """

    KIND = "File"

    def __init__(self, folder: Path) -> None:
        self.files = choose_pictures(folder, files_below(folder))
        self.keys = [path.relative_to(folder).as_posix() for path in self.files]
        self.scenes = None

    def encoded(self, index: int) -> EncodedFrame:
        """Reads an image from its file."""
        key, path = self.keys[index], self.files[index]
        image = read_file(StoredFile("the file", path), key, str(path))
        return EncodedFrame(key, str(path), "", image, b"", "the file", "", {})

    def scene_file(self, index: int) -> Path:
        """Returns the image's file."""
        return self.files[index]


def read_file(stored: StoredFile, key: str, origin: str) -> bytes:
    """Reads one file of a frame.

    Raises:
        FrameError: If it cannot be read.
    """
    try:
        return stored.read()
    except OSError as error:
        raise frame_error(key, origin, f"cannot read {stored.name} ({error.strerror}).") from error


def _files_by_key(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    files = files_below(folder)
    unknown = [file for file in files if file.suffix.lower() not in suffixes]
    if unknown:
        raise ValueError(
            f"{len(unknown)} file(s) in {folder} are none of {', '.join(suffixes)}: {first_few(unknown)}."
        )
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
        raise ValueError(f"{file} has no row for {len(missing)} image(s): {first_few(missing)}.")
    return rows


def _read_rows(file: Path) -> list[dict[str, Any]]:
    try:
        rows = read_rows(file)
    except ValueError as error:
        raise ValueError(f"{file} cannot be read ({error}).") from error
    check_rows(rows, file)
    return rows
