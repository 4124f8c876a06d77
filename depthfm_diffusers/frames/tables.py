"""Parquet files and image folders, read through Hugging Face `datasets`.

Columns: `image`, `depth`, and, if there are any, `scene`, `fov_x_deg` or `intrinsics`, `depth_scale`, `sky_value`; of
an image with a caption `image`, `text` (or `caption`, or `prompt`) and `scene`.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.imports import import_optional
from .decoding import EncodedFrame, frame_error, has_camera
from .reader import CAPTION_NAMES, FrameReader
from .rows import check_rows, read_rows
from .source_config import CaptionSourceConfig, ImageSourceConfig, SourceConfig

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

METADATA_COLUMNS = ("fov_x_deg", "intrinsics", "depth_scale", "sky_value")


class TableReader(FrameReader):
    """Frames, or captioned images, that are the rows of a `datasets.Dataset`.

    Args:
        config: Settings of the source. Images are in the column `image`, depth in `depth`, captions in one of
            `CAPTION_NAMES`, unless it names other columns.
        table: The rows.
        files: The files of the table, in order.
        origins: For each row, the file that it is from; paths in the row start at its folder.
        keys: Name of each row inside the source.

    Raises:
        ValueError: If there is no such column.
    """

    KIND = "Table"

    def __init__(
        self,
        config: SourceConfig | CaptionSourceConfig,
        table: datasets.Dataset,
        files: Sequence[Path],
        origins: Sequence[Path],
        keys: Sequence[str],
    ) -> None:
        names = table.column_names
        settings = {"image_column": config.image_column or "image"}
        if isinstance(config, SourceConfig):
            settings["depth_column"] = config.depth_column or "depth"
            self.metadata_columns = [name for name in METADATA_COLUMNS if name in names]
        else:
            if config.caption_column is not None:
                settings["caption_column"] = config.caption_column
            wanted = (config.caption_column,) if config.caption_column else CAPTION_NAMES
            self.metadata_columns = [name for name in wanted if name in names][:1]
            if not self.metadata_columns and config.caption_column is None:
                logger.warning(
                    f"Data source {config.name} has no column of captions ({', '.join(CAPTION_NAMES)}), but {names}: "
                    "its images have none. Set caption_column to choose one."
                )
        for setting, column in settings.items():
            if column not in names:
                raise ValueError(
                    f"Data source {config.name}: there is no column {column!r}, but {names}; set {setting}."
                )
        self.picture_columns = [settings[name] for name in ("image_column", "depth_column") if name in settings]
        self.files, self.origins, self.keys = list(files), list(origins), list(keys)
        self.scenes = list(table["scene"]) if "scene" in names else None
        for column in self.picture_columns:
            # Decoded by us, so that a broken picture can be named.
            table = _undecoded(table, column)
        self.table = table.select_columns([*self.picture_columns, *self.metadata_columns])
        if isinstance(config, SourceConfig) and self.metadata_columns:
            self.has_cameras = all(map(has_camera, table.select_columns(self.metadata_columns)))

    def encoded(self, index: int) -> EncodedFrame:
        """Reads a frame from its row."""
        row = self.table[index]
        pictures = [self._picture(row, index, column) for column in self.picture_columns]
        image_field, depth_field = (*self.picture_columns, "")[:2]
        return EncodedFrame(
            key=self.keys[index],
            origin=str(self.origins[index]),
            scene="",
            image=pictures[0],
            depth=pictures[1] if depth_field else b"",
            image_field=image_field,
            depth_field=depth_field,
            metadata={name: row[name] for name in self.metadata_columns},
        )

    def scene_file(self, index: int) -> Path:
        """Returns the file that a row is from."""
        return self.origins[index]

    def content_files(self) -> Iterable[Path]:
        """Returns the files of the table, and those that its rows name."""
        yield from self.files
        for origin, row in zip(self.origins, self.table, strict=True):
            for value in (row[column] for column in self.picture_columns):
                if isinstance(value, dict):
                    value = value.get("path") if value.get("bytes") is None else None
                if isinstance(value, str):
                    yield origin.parent / value

    def _picture(self, row: Mapping[str, Any], index: int, column: str) -> bytes:
        """Reads the content of a picture's file."""
        value: Any = row[column]
        path: Any = None
        if isinstance(value, dict):
            value, path = value.get("bytes"), value.get("path")
        elif isinstance(value, str):
            value, path = None, value
        if isinstance(value, bytes):
            return value
        key, origin = self.keys[index], self.origins[index]
        if value is not None:
            kind = type(value).__name__
            message = f"{column} is {kind}, not an image: a datasets.Image, the bytes of a file, or its path."
            raise frame_error(key, str(origin), message)
        if path is None:
            raise frame_error(key, str(origin), f"{column} is missing.")
        try:
            return (origin.parent / path).read_bytes()
        except OSError as error:
            raise frame_error(key, str(origin), f"{column}: cannot read {path} ({error.strerror}).") from error


def open_parquet(config: SourceConfig | CaptionSourceConfig, files: Sequence[Path]) -> TableReader:
    """Opens the rows of Parquet files, in the order of `files`; a row's key is its number in its file.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If a file cannot be read, or the files do not have the same columns.
    """
    _import_datasets()
    import pyarrow
    from datasets.packaged_modules.parquet.parquet import Parquet
    from pyarrow import parquet

    keys: list[str] = []
    origins: list[Path] = []
    footers = hashlib.sha256()
    for file in files:
        try:
            rows = parquet.read_metadata(file).num_rows
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise ValueError(f"{file} is empty, cut off or not a Parquet file ({error}).") from error
        keys += [f"{file.stem}:{row}" for row in range(rows)]
        origins += [file] * rows
        # The last change of the inode: copying or unpacking an archive may bring an old modification time along.
        footers.update(_parquet_footer(file) + str(file.stat().st_ctime_ns).encode())
    if not keys:
        raise ValueError(f"Data source {config.name}: there is no frame in it.")
    table = _prepare(config, Parquet, files, footers.hexdigest())
    return TableReader(config, table, files, origins, keys)


def open_image_folder(
    config: SourceConfig | CaptionSourceConfig, root: Path, metadata_files: Sequence[Path]
) -> TableReader:
    """Opens the rows of the metadata files in a folder; a row's key is its image's path in the folder.

    A column `NAME_file_name` has paths that are relative to its metadata file and becomes the column `NAME`; so does
    `file_name`, which becomes `image`.

    Raises:
        ImportError: If `datasets` is not installed.
        ValueError: If a metadata file cannot be read, or two have columns of one name and different types.
    """
    datasets = _import_datasets()
    tables, keys, origins = [], [], []
    column = config.image_column or "image"
    for file in metadata_files:
        table = _read_metadata(config, file)
        paths = [None] * len(table)
        if isinstance(table.features.get(column), datasets.Image):
            paths = [picture and picture["path"] for picture in _undecoded(table, column)[column]]
        for row, path in enumerate(paths):
            keys.append(os.path.relpath(path or f"{file.resolve()}:{row}", root.resolve()))
        tables.append(table)
        origins += [file] * len(table)
    with _named_errors(config):
        table = datasets.concatenate_datasets(tables)
    return TableReader(config, table, metadata_files, origins, keys)


def _read_metadata(config: SourceConfig | CaptionSourceConfig, file: Path) -> datasets.Dataset:
    """Reads the rows of one metadata file of an image folder.

    CSV files and JSON lines are not left to the library, which takes `NA` for no caption, `1984` for a number and
    `2020-01-01` for a time.
    """
    datasets = _import_datasets()
    if file.suffix.lower() == ".parquet":
        from datasets.packaged_modules.imagefolder.imagefolder import ImageFolder

        return _prepare(config, ImageFolder, [file], hashlib.sha256(file.read_bytes()).hexdigest())
    with _named_errors(config):
        try:
            rows = read_rows(file)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
        check_rows(rows, file)
        columns: dict[str, list[Any]] = {}
        pictures = []
        for name in dict.fromkeys(name for row in rows for name in row):
            values = [row.get(name) for row in rows]
            if name == "file_name" or name.endswith("_file_name"):
                name = name.removesuffix("file_name").removesuffix("_") or "image"
                values = [_picture_path(file, value) for value in values]
                pictures.append(name)
            if name in columns:
                raise ValueError(f"{file} has two columns for {name!r}")
            columns[name] = values
        if not pictures:
            raise ValueError(f"`file_name` or a column whose name ends in `_file_name` is missing in {file}")
        table = datasets.Dataset.from_dict(columns)
        for name in pictures:
            table = table.cast_column(name, datasets.Image())
        return table


def _picture_path(metadata_file: Path, name: Any) -> str | None:
    """Returns the path of a picture that a row names; `None` for an empty cell."""
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{metadata_file} names the file {name!r}, which is not text")
    return str(metadata_file.resolve().parent / name) if name else None


def _import_datasets() -> Any:
    return import_optional("datasets", "train", "Reading Parquet files and image folders")


def _undecoded(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """Returns a table whose column has the pictures' bytes or paths, as far as it is a column of pictures."""
    image = _import_datasets().Image
    return table.cast_column(column, image(decode=False)) if isinstance(table.features[column], image) else table


def _parquet_footer(file: Path) -> bytes:
    """Reads schema, offsets, sizes and statistics of a file, which is quick."""
    with file.open("rb") as content:
        content.seek(-8, os.SEEK_END)
        length = int.from_bytes(content.read(4), "little")
        content.seek(-8 - length, os.SEEK_END)
        return content.read()


def _prepare(
    config: ImageSourceConfig, builder_class: type[datasets.DatasetBuilder], files: Sequence[Path], content: str
) -> datasets.Dataset:
    """Runs one of the library's builders. The times of a file are part of its cache's name; `content` makes it sure.

    The class itself is used: `load_dataset` counts its calls at the Hub, and takes files and folders that are called
    `test` for a split of their own.
    """
    with _named_errors(config), _silence():
        builder = builder_class(data_files={"train": [str(file.resolve()) for file in files]}, hash=content)
        builder.download_and_prepare()
        return builder.as_dataset(split="train")


@contextmanager
def _named_errors(config: ImageSourceConfig) -> Iterator[None]:
    import pyarrow

    library_error = _import_datasets().exceptions.DatasetsError
    try:
        yield
    except (library_error, pyarrow.ArrowException, ValueError, KeyError, TypeError) as error:
        reason = error.__cause__ or error
        raise ValueError(f"Data source {config.name} cannot be read: {reason}") from error


@contextmanager
def _silence() -> Iterator[None]:
    """Keeps the library from printing progress bars, and errors that are raised as well."""
    datasets = _import_datasets()
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
