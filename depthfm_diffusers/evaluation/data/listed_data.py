"""Benchmarks whose images, depth maps and masks are files whose names follow patterns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...frames import EncodedFrame
from ...frames.decoding import decode_image, open_picture, orient_with_depth
from ...frames.headers import is_on_its_side, npy_size, picture_size, png16_size
from ...frames.reader import first_few
from ...frames.stored_files import StoredFile
from ...utils.folders import is_junk
from .benchmark_data import BenchmarkData
from .configs import BenchmarkConfig
from .file_lists import fill, placeholders, read_file_list
from .storage import Storage

MASK_KINDS = "biuf"


class ListedFiles(NamedTuple):
    """An image's files; `mask` is `None` where the benchmark has none."""

    image: StoredFile
    depth: StoredFile
    mask: StoredFile | None


class ListedData(BenchmarkData):
    """The images of a benchmark whose file names follow patterns: those of a list, or all that are there.

    Args:
        config: The benchmark.
        root: A folder, or an uncompressed tar file.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the file list or the root cannot be read, there are too few or too many images, or headers show
            files that cannot be used.
    """

    def __init__(self, config: BenchmarkConfig, root: Path) -> None:
        self.storage = Storage(root)
        rows = _rows(config, self.storage)
        missing: list[str] = []
        self.files = [_find(config, self.storage, row, missing) for row in rows]
        if missing:
            total = len(rows) * (3 if config.mask else 2)
            what = f"{len(missing)} of {total} files are not in {root}: {first_few(missing)}"
            if len(missing) == total:
                # Most likely the root is wrong: then the layout says more than five missing files.
                what = f"none of its {total} files is in {root}"
            raise FileNotFoundError(f"Benchmark {config.name}: {what}. {_layout(config, self.storage)}")
        super().__init__(config, [fill(str(config.key), row) for row in rows])
        self.check_headers(root)

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """Decodes an image's files."""
        files, encoded = self.files[index], self._encoded(index)
        picture = open_picture(encoded, encoded.image, encoded.image_field)
        depth, orientation = self._stored_depth(encoded, picture.stored_size[0])
        image = decode_image(encoded, orient_with_depth(encoded, picture, depth.shape, orientation))
        mask = None if files.mask is None else _load_array(files.mask.read()) != 0
        known = self._known(encoded, depth, mask)
        metres = np.where(known, depth, 0).astype(np.float64) * (self.config.metres_per_count or 1.0)
        if self.config.resize_image and image.shape[:2] != depth.shape:
            resized = Image.fromarray(image).resize(depth.shape[::-1], Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        return image, metres.astype(np.float32), self.config_intrinsics()

    def stored_depth(self, index: int) -> NDArray[np.floating]:
        """Reads the depth map of an image as its file has it, also where it is not known: H×W, metres."""
        encoded = self._encoded(index)
        width = open_picture(encoded, encoded.image, encoded.image_field).stored_size[0]
        depth = self._stored_depth(encoded, width)[0].astype(np.float32)
        return depth if self.config.metres_per_count is None else depth * np.float32(self.config.metres_per_count)

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """Returns the image's files by what they are: the same data are passed on under several paths."""
        return [(what, file.size) for what, file in self.files[index]._asdict().items() if file is not None]

    def _encoded(self, index: int) -> EncodedFrame:
        files = self.files[index]
        return EncodedFrame(
            key=self.keys[index],
            origin=str(self.storage.root),
            scene="",
            image=files.image.read(),
            depth=files.depth.read(),
            image_field=files.image.name,
            depth_field=files.depth.name,
            metadata={},
        )

    def _stored_depth(self, encoded: EncodedFrame, width: int) -> tuple[NDArray[Any], int]:
        """Decodes the depth, H×W, as stored; and its EXIF orientation."""
        if self.config.depth_format == "png16":
            picture = open_picture(encoded, encoded.depth, encoded.depth_field)
            return np.asarray(picture.image), picture.orientation
        if self.config.depth_format == "npy":
            return _load_array(encoded.depth), 1
        return np.frombuffer(encoded.depth, dtype="<f4").reshape(-1, width), 1

    def _known(self, encoded: EncodedFrame, depth: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Returns where depth is known.

        Raises:
            FrameError: If another value is no depth.
        """
        known = np.ones(depth.shape, bool) if mask is None else mask
        marks = {"zero": depth == 0, "nan": np.isnan(depth), "infinity": np.isposinf(depth)}
        for mark in self.config.unknown:
            known &= ~marks[mark]
        bad = known & ~(np.isfinite(depth) & (depth > 0))
        if bad.any():
            raise encoded.error(
                f"{encoded.depth_field} has {int(bad.sum())} value(s) that are no depth, such as {depth[bad][0]}; in "
                f"benchmark {self.config.name} unknown depth is marked by {_marks(self.config)}."
            )
        return known

    def header_problem(self, index: int) -> str | None:
        """Returns what is wrong with an image's files, as far as their headers tell."""
        files = self.files[index]
        sizes: list[tuple[int, int]] = []  # of the image, the depth, and the mask if there is one
        for file in files:
            if file is not None:
                try:
                    sizes.append(self._header_size(files, file, sizes))
                except ValueError as error:
                    return f"{file.name} {error}"
        image, depth = files.image.name, files.depth.name
        if self.config.image_size is not None and sizes[0] != self.config.image_size:
            return f"{image} is {_times(sizes[0])} pixels, not {_times(self.config.image_size)}"
        if files.mask is not None and sizes[2] != sizes[1]:
            return f"{files.mask.name} is {_times(sizes[2])}, {depth} is {_times(sizes[1])}"
        is_turned = sizes[0] == sizes[1][::-1] and is_on_its_side(files.image)
        if sizes[0] != sizes[1] and not (self.config.resize_image or is_turned):
            return f"{image} is {_times(sizes[0])} pixels, {depth} is {_times(sizes[1])}"
        problem = self.size_problem(*sizes[1])
        return f"{depth} {problem}" if problem else None

    def _header_size(self, files: ListedFiles, file: StoredFile, sizes: list[tuple[int, int]]) -> tuple[int, int]:
        if file is files.image:
            return picture_size(file)
        if file is files.mask:
            return npy_size(file, MASK_KINDS)
        if self.config.depth_format == "float32":
            width, height = sizes[0]
            if file.size != 4 * width * height:
                raise ValueError(f"has {file.size} bytes, not the {4 * width * height} of {width}x{height} float32")
            return width, height
        return png16_size(file) if self.config.depth_format == "png16" else npy_size(file, "f")


def _rows(config: BenchmarkConfig, storage: Storage) -> list[dict[str, str]]:
    """Returns the values for the placeholders of each image, from the list or from the names of the depth files."""
    if config.file_list is not None:
        patterns = (str(config.key), *config.image, *config.depth, *config.mask)
        needed = {name for pattern in patterns for name in placeholders(pattern)}
        return read_file_list(config.folder / config.file_list, needed)
    found = (row for pattern in config.depth for row in storage.find(pattern))
    rows = {tuple(sorted(row.items())): row for row in found}
    if not rows:
        raise FileNotFoundError(
            f"Benchmark {config.name}: there is no depth file in {storage.root}. {_layout(config, storage)}"
        )
    return [rows[values] for values in sorted(rows)]


def _find(config: BenchmarkConfig, storage: Storage, row: dict[str, str], missing: list[str]) -> ListedFiles:
    """Finds the files of an image; those that are not there are added to `missing`."""

    def first(patterns: Sequence[str]) -> StoredFile:
        paths = [fill(pattern, row) for pattern in patterns]
        for path in paths:
            file = storage.file(path)
            if file is not None:
                return file
        missing.append(paths[0])
        return StoredFile(paths[0], storage.root)

    return ListedFiles(first(config.image), first(config.depth), first(config.mask) if config.mask else None)


def _layout(config: BenchmarkConfig, storage: Storage) -> str:
    """Returns where the files of a benchmark are looked for, for messages."""

    def places(patterns: Sequence[str]) -> str:
        others = len(patterns) - 1
        return patterns[0] + (f" (or {others} other place{'s' if others > 1 else ''})" if others else "")

    text = f"Images are looked for at {places(config.image)}, depth at {places(config.depth)}."
    if len(config.image) + len(config.depth) > 2:
        text += " All places are in `image` and `depth` of the benchmark's .toml file."
    tars = (
        [path for path in sorted(storage.root.glob("*.tar")) if not is_junk(path.name)]
        if storage.root.is_dir()
        else []
    )
    return text + (f" To read {tars[0].name} in place, give that file as the root." if tars else "")


def _marks(config: BenchmarkConfig) -> str:
    marks = [*config.unknown, *(["its mask"] if config.mask else [])]
    return " and ".join(marks) if marks else "nothing"


def _load_array(content: bytes) -> NDArray[Any]:
    array = np.load(io.BytesIO(content), allow_pickle=False)
    return array[..., 0] if array.ndim == 3 else array


def _times(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
