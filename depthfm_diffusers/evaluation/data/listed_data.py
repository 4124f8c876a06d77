"""Benchmarks whose images, depth maps and masks are files of their own, named by patterns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...frames import EncodedFrame
from ...frames.decoding import (
    decode_image,
    open_picture,
)
from .benchmark_data import (
    BenchmarkData,
    some,
)
from .configs import BenchmarkConfig
from .file_lists import (
    fill,
    placeholders,
    read_file_list,
)
from .headers import (
    npy_size,
    picture_size,
    png16_size,
)
from .storage import (
    Storage,
    open_storage,
)

MASK_KINDS = "biuf"


class ListedFiles(NamedTuple):
    """Paths of an image's files below the root; `mask` is `None` where the benchmark has none."""

    image: str
    depth: str
    mask: str | None


class ListedData(BenchmarkData):
    """Images that patterns name: those of a list, or all there are.

    Args:
        config: The benchmark.
        root: A folder, or an uncompressed tar file.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the file list or the root cannot be read, there are too few or too many images, or headers show
            files that cannot be used.
    """

    def __init__(self, config: BenchmarkConfig, root: Path) -> None:
        self.storage = open_storage(root)
        rows = _rows(config, self.storage)
        missing: list[str] = []
        self.files = [_find(config, self.storage, row, missing) for row in rows]
        if missing:
            total = len(rows) * (3 if config.mask else 2)
            what = f"{len(missing)} of {total} files are not in {root}: {some(missing)}"
            if len(missing) == total:
                # A wrong root, most likely: five paths of the first layout say no more than the layout itself.
                what = f"none of its {total} files is in {root}"
            raise FileNotFoundError(f"Benchmark {config.name}: {what}. {_layout(config, self.storage)}")
        super().__init__(config, [fill(str(config.key), row) for row in rows])
        problems = [problem for files in self.files if (problem := self._problem(files)) is not None]
        if problems:
            raise ValueError(
                f"Benchmark {config.name}: {len(problems)} of {len(self)} images in {root} cannot be used: "
                f"{some(problems)}."
            )

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32] | None]:
        """Decodes an image's files."""
        files = self.files[index]
        encoded = EncodedFrame(
            key=self.keys[index],
            origin=str(self.storage.root),
            scene="",
            image=self.storage.read(files.image),
            depth=self.storage.read(files.depth),
            image_field=files.image,
            depth_field=files.depth,
            metadata={},
        )
        image = decode_image(encoded)
        depth = self._stored_depth(encoded, image.shape[1])
        known = self._known(encoded, depth, None if files.mask is None else self._mask(files.mask))
        metres = np.where(known, depth, 0).astype(np.float64) * (self.config.metres_per_count or 1.0)
        if self.config.resize_image and image.shape[:2] != depth.shape:
            resized = Image.fromarray(image).resize(depth.shape[::-1], Image.Resampling.BILINEAR)
            image = np.asarray(resized)
        return image, metres.astype(np.float32), self.config_intrinsics()

    def files_of(self, index: int) -> Iterable[tuple[str, int]]:
        """The image's files, by what they are: paths differ between forms in which the same data are passed on."""
        for what, path in zip(ListedFiles._fields, self.files[index], strict=True):
            if path is not None:
                yield what, self.storage.size(path) or 0

    def _stored_depth(self, encoded: EncodedFrame, width: int) -> NDArray[Any]:
        """H×W, as stored."""
        if self.config.depth_format == "png16":
            return np.asarray(open_picture(encoded, encoded.depth, encoded.depth_field))
        if self.config.depth_format == "npy":
            return _squeeze(np.load(io.BytesIO(encoded.depth), allow_pickle=False))
        return np.frombuffer(encoded.depth, dtype="<f4").reshape(-1, width)

    def _mask(self, path: str) -> NDArray[np.bool_]:
        return _squeeze(np.load(io.BytesIO(self.storage.read(path)), allow_pickle=False)) != 0

    def _known(self, encoded: EncodedFrame, depth: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
        """Where depth is known; anything else that is no depth is an error."""
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

    def _problem(self, files: ListedFiles) -> str | None:
        """What is wrong with an image's files, as far as their headers tell."""
        sizes: dict[str, tuple[int, int]] = {}
        for path in files:
            if path is None:
                continue
            try:
                sizes[path] = self._header_size(files, path, sizes)
            except ValueError as error:
                return f"{path} {error}"
        image_size, depth_size = sizes[files.image], sizes[files.depth]
        if self.config.image_size is not None and image_size != self.config.image_size:
            return f"{files.image} is {_times(image_size)} pixels, not {_times(self.config.image_size)}"
        if files.mask is not None and sizes[files.mask] != depth_size:
            return f"{files.mask} is {_times(sizes[files.mask])}, {files.depth} is {_times(depth_size)}"
        if image_size != depth_size and not self.config.resize_image:
            return f"{files.image} is {_times(image_size)} pixels, {files.depth} is {_times(depth_size)}"
        problem = self.size_problem(*depth_size)
        return f"{files.depth} {problem}" if problem else None

    def _header_size(self, files: ListedFiles, path: str, sizes: dict[str, tuple[int, int]]) -> tuple[int, int]:
        file_bytes = self.storage.size(path) or 0
        if path == files.depth and self.config.depth_format == "float32":
            width, height = sizes[files.image]
            if file_bytes != 4 * width * height:
                raise ValueError(f"has {file_bytes} bytes, not the {4 * width * height} of {width}x{height} float32")
            return width, height
        with self.storage.open(path) as file:
            if path == files.image:
                return picture_size(file)
            if path == files.mask:
                return npy_size(file, file_bytes, MASK_KINDS)
            return png16_size(file) if self.config.depth_format == "png16" else npy_size(file, file_bytes, "f")


def _rows(config: BenchmarkConfig, storage: Storage) -> list[dict[str, str]]:
    """Values for the placeholders of each image: by the list, or by the depth files there are."""
    if config.file_list is not None:
        patterns = (str(config.key), *config.image, *config.depth, *config.mask)
        needed = {name for pattern in patterns for name in placeholders(pattern)}
        return read_file_list(config.folder / config.file_list, needed)
    found = (row for pattern in config.depth for _, row in storage.find(pattern))
    rows = {tuple(sorted(row.items())): row for row in found}
    if not rows:
        raise FileNotFoundError(
            f"Benchmark {config.name}: there is no depth file in {storage.root}. {_layout(config, storage)}"
        )
    return [rows[values] for values in sorted(rows)]


def _find(config: BenchmarkConfig, storage: Storage, row: dict[str, str], missing: list[str]) -> ListedFiles:
    """The files of an image; those that are not there are added to `missing`."""

    def first(patterns: Sequence[str]) -> str:
        paths = [fill(pattern, row) for pattern in patterns]
        found = [path for path in paths if storage.size(path) is not None]
        if not found:
            missing.append(paths[0])
        return found[0] if found else paths[0]

    return ListedFiles(first(config.image), first(config.depth), first(config.mask) if config.mask else None)


def _layout(config: BenchmarkConfig, storage: Storage) -> str:
    """Where the files of a benchmark are looked for, for messages."""

    def places(patterns: Sequence[str]) -> str:
        others = len(patterns) - 1
        return patterns[0] + (f" (or {others} other place{'s' if others > 1 else ''})" if others else "")

    text = f"Images are looked for at {places(config.image)}, depth at {places(config.depth)}."
    if len(config.image) + len(config.depth) > 2:
        text += " All places are in `image` and `depth` of the benchmark's .toml file."
    tars = sorted(storage.root.glob("*.tar")) if storage.root.is_dir() else []
    return text + (f" To read {tars[0].name} in place, give that file as the root." if tars else "")


def _marks(config: BenchmarkConfig) -> str:
    marks = [*config.unknown, *(["its mask"] if config.mask else [])]
    return " and ".join(marks) if marks else "nothing"


def _squeeze(array: NDArray[Any]) -> NDArray[Any]:
    return array[..., 0] if array.ndim == 3 else array


def _times(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]}"
