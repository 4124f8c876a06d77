"""Parquet files and image folders, read through Hugging Face `datasets`.

Columns: `image`, `depth`, and, if there are any, `scene`, `fov_x_deg` or `intrinsics`, `depth_scale`, `sky_value`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder
from datasets.packaged_modules.parquet.parquet import Parquet

from ...frames import (
    EncodedFrame,
    frame_error,
    has_camera,
)
from .frame_source import (
    FrameSource,
    ImageSourceConfig,
    SourceConfig,
    scene_name,
    warn_without_scenes,
)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
METADATA_COLUMNS = ("fov_x_deg", "intrinsics", "depth_scale", "sky_value")


class TableSource(FrameSource):
    """The rows of a `datasets.Dataset`, some of whose columns are pictures.

    Args:
        config: Settings of the source.
        table: The rows.
        files: The files that the content depends on, in order.
        origins: For each row, the file that it is from; paths in the row start at its folder.
        keys: Name of each row inside the source.
        pictures: For each setting that names a picture's column, that column.
        others: Columns that are kept beside these, where they are there.
        scenes: Scene of each row.
        has_intrinsics: See `FrameSource`.

    Raises:
        ValueError: If there is no such column.
    """

    def __init__(
        self,
        config: ImageSourceConfig,
        table: datasets.Dataset,
        files: Sequence[Path],
        origins: Sequence[Path],
        keys: Sequence[str],
        pictures: Mapping[str, str],
        others: Sequence[str],
        scenes: Sequence[str],
        has_intrinsics: bool,
    ) -> None:
        for setting, column in pictures.items():
            if column not in table.column_names:
                raise ValueError(
                    f"Data source {config.name}: there is no column {column!r}, but {table.column_names}; set "
                    f"{setting}."
                )
            if isinstance(table.features[column], datasets.Image):
                # Decoded by us, so that a broken picture can be named.
                table = table.cast_column(column, datasets.Image(decode=False))
        self.origins = list(origins)
        self.keys = list(keys)
        self.picture_columns = list(pictures.values())
        self.table = table.select_columns([*self.picture_columns, *others])
        super().__init__(config, files, scenes, has_intrinsics)

    def content_files(self) -> Iterable[Path]:
        """The files of the table, and those that its rows point to."""
        yield from self.files
        for origin, row in zip(self.origins, self.table, strict=True):
            for value in (row[column] for column in self.picture_columns):
                if isinstance(value, dict):
                    value = value.get("path") if value.get("bytes") is None else None
                if isinstance(value, str):
                    yield origin.parent / value

    def picture(self, row: Mapping[str, Any], index: int, column: str) -> bytes:
        """The content of a picture's file.

        Raises:
            FrameError: If it is missing, of another type, or cannot be read.
        """
        value, path = row[column], None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        elif isinstance(value, str):
            value, path = None, value
        origin = self.origins[index]
        if isinstance(value, bytes):
            return value
        if value is not None:
            kind = type(value).__name__
            message = f"{column} is {kind}, not an image: a datasets.Image, the bytes of a file, or its path."
            raise frame_error(self.keys[index], str(origin), message)
        if path is None:
            raise frame_error(self.keys[index], str(origin), f"{column} is missing.")
        try:
            return (origin.parent / path).read_bytes()
        except OSError as error:
            message = f"{column}: cannot read {path} ({error.strerror})."
            raise frame_error(self.keys[index], str(origin), message) from error


class TableFrames(TableSource):
    """Frames that are the rows of a `datasets.Dataset`.

    Without a column `scene` each frame is a scene of its own, which is said in the log.

    Args:
        config: Settings of the source.
        table: The rows; pictures are taken from the columns `image` and `depth`, or those that `config` names.
        files: The files that the content depends on, in order.
        origins: For each row, the file that it is from; paths in the row start at its folder.
        keys: Name of each row inside the source.

    Raises:
        ValueError: If there is no such column, or a row has no scene though there is a column.
    """

    def __init__(
        self,
        config: SourceConfig,
        table: datasets.Dataset,
        files: Sequence[Path],
        origins: Sequence[Path],
        keys: Sequence[str],
    ) -> None:
        self.image_column = config.image_column or "image"
        self.depth_column = config.depth_column or "depth"
        self.metadata_columns = [name for name in METADATA_COLUMNS if name in table.column_names]
        scenes = table_scenes(table, origins, keys)
        if scenes is None:
            warn_without_scenes(config)
        cameras = table.select_columns(self.metadata_columns) if self.metadata_columns else []
        super().__init__(
            config,
            table,
            files,
            origins,
            keys,
            pictures={"image_column": self.image_column, "depth_column": self.depth_column},
            others=self.metadata_columns,
            scenes=keys if scenes is None else scenes,
            has_intrinsics=len(cameras) > 0 and all(has_camera(row) for row in cameras),
        )

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is in its row."""
        row = self.table[index]
        return EncodedFrame(
            key=self.keys[index],
            origin=str(self.origins[index]),
            scene=self.scenes[index],
            image=self.picture(row, index, self.image_column),
            depth=self.picture(row, index, self.depth_column),
            image_field=self.image_column,
            depth_field=self.depth_column,
            metadata=self.config.frame_metadata({name: row[name] for name in self.metadata_columns}),
        )


def table_scenes(table: datasets.Dataset, origins: Sequence[Path], keys: Sequence[str]) -> list[str] | None:
    """The scene of each row; `None` if there is no column for it.

    Raises:
        ValueError: If a row has none though there is a column.
    """
    if "scene" not in table.column_names:
        return None
    where = (f"Frame {key!r} of {origin}" for key, origin in zip(keys, origins, strict=True))
    return [scene_name(value, w) for value, w in zip(table["scene"], where, strict=True)]


Source = TypeVar("Source", bound=TableSource)


def open_parquet(config: ImageSourceConfig, files: Sequence[Path], source: type[Source]) -> Source:
    """The rows of Parquet files as a `source`, in the order of `files`; a row's key is its number in its file.

    Raises:
        ValueError: If a file cannot be read, or the files do not have the same columns.
    """
    keys: list[str] = []
    origins: list[Path] = []
    footers = hashlib.sha256()
    for file in files:
        try:
            rows = pq.read_metadata(file).num_rows
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is empty, cut off or not a Parquet file ({error}).") from error
        keys += [f"{file.stem}:{row}" for row in range(rows)]
        origins += [file] * rows
        # The last change of the inode: copying or unpacking an archive may bring an old modification time along.
        footers.update(_parquet_footer(file) + str(file.stat().st_ctime_ns).encode())
    if not keys:
        raise ValueError(f"Data source {config.name}: there is no frame in it.")
    table = _prepare(config, Parquet, files, footers.hexdigest())
    return source(config, table, files, origins, keys)


def open_image_folder(
    config: ImageSourceConfig, root: Path, metadata_files: Sequence[Path], source: type[Source]
) -> Source:
    """The rows of the metadata files in a folder as a `source`; a row's key is its image's path in the folder.

    A column `NAME_file_name` has paths that are relative to its metadata file and becomes the column `NAME`; so does
    `file_name`, which becomes `image`.

    Raises:
        ValueError: If a metadata file cannot be read, or two have columns of one name and different types.
    """
    tables, keys, origins = [], [], []
    column = config.image_column or "image"
    for file in metadata_files:  # one by one: the builder takes several in an order that changes from run to run
        table = _prepare(config, ImageFolder, [file], hashlib.sha256(file.read_bytes()).hexdigest())
        paths = [None] * len(table)
        if isinstance(table.features.get(column), datasets.Image):
            pictures = table.cast_column(column, datasets.Image(decode=False))[column]
            paths = [picture and picture["path"] for picture in pictures]
        for row, path in enumerate(paths):
            keys.append(os.path.relpath(path or f"{file.resolve()}:{row}", root.resolve()))
        tables.append(table)
        origins += [file] * len(table)
    with _named_errors(config):
        table = datasets.concatenate_datasets(tables)
    return source(config, table, metadata_files, origins, keys)


def _parquet_footer(file: Path) -> bytes:
    """Schema, offsets, sizes and statistics of a file, which are quick to read."""
    with file.open("rb") as content:
        content.seek(-8, os.SEEK_END)
        length = int.from_bytes(content.read(4), "little")
        content.seek(-8 - length, os.SEEK_END)
        return content.read()


def _prepare(
    config: ImageSourceConfig, builder_class: type[datasets.DatasetBuilder], files: Sequence[Path], content: str
) -> datasets.Dataset:
    """Runs one of the library's builders; a file's times are part of its cache's name, `content` makes it sure.

    With the class itself, as load_dataset counts its calls at the Hub, and takes files and folders that are called
    `test` for a split of their own.
    """
    with _named_errors(config), _silence():
        builder = builder_class(data_files={"train": [str(file.resolve()) for file in files]}, hash=content)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")


@contextmanager
def _named_errors(config: ImageSourceConfig) -> Iterator[None]:
    try:
        yield
    except (datasets.exceptions.DatasetsError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"Data source {config.name} cannot be read: {reason}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps the library from printing: progress bars, and errors that are raised as well."""
    shown = not datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if shown:
            datasets.enable_progress_bars()
