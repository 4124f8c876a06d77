"""Images with or without captions as data sources: WebDataset shards, Parquet files, folders of images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import datasets
import numpy as np

from ...frames import (
    EncodedFrame,
    frame_error,
)
from ...frames.decoding import decode_image
from ...frames.shards import (
    IMAGE_EXTENSIONS,
    image_extension,
    index_shard,
    parse_metadata,
    read_metadata,
)
from ...frames.tar_index import ABSENT
from ...inference.input_files import IMAGE_SUFFIXES
from .frame_source import (
    FrameSource,
    ImageSourceConfig,
)
from .sources import (
    SUFFIX_FORMATS,
    MixedFrames,
    expand,
    files_of_format,
    metadata_files,
    only_folder,
)
from .table_frames import (
    METADATA_NAMES,
    TableSource,
    open_image_folder,
    open_parquet,
    table_scenes,
)
from .tar_frames import ShardFields

FORMATS = ("auto", "webdataset", "parquet", "imagefolder")
# Where a caption is looked for if `caption_column` does not say, in this order.
CAPTION_NAMES = ("text", "caption", "prompt")
CAPTION_EXTENSION = "txt"


@dataclass(frozen=True)
class CaptionSourceConfig(ImageSourceConfig):
    """Settings of a data source of images and captions.

    Attributes:
        caption_column: Column (Parquet, image folder), extension or field of the json (WebDataset) of the caption;
            `None`: a shard's `.txt`, or what is called `text`, `caption` or `prompt`, if there is such.
    """

    caption_column: str | None = None

    TEXTS: ClassVar[tuple[str, ...]] = ("image_column", "caption_column")

    def __post_init__(self) -> None:
        """Checks types and ranges."""
        super().__post_init__()
        if self.format not in FORMATS:
            raise ValueError(f"Data source {self.name}: format must be one of {FORMATS}, got {self.format!r}.")


@dataclass(frozen=True)
class CaptionedImage:
    """An image and what it shows.

    Attributes:
        key: Name of the image inside its source.
        scene: Images of the same scene carry the same name; the key, where the source does not say.
        image: H×W×3, uint8, RGB, upright.
        caption: In words; empty if there is none.
    """

    key: str
    scene: str
    image: np.ndarray
    caption: str


class CaptionedSource(FrameSource):
    """Random access to the images of one source. Subclasses implement `encoded`; the caption is in its metadata."""

    def __getitem__(self, index: int) -> CaptionedImage:
        """Reads and decodes one image.

        Raises:
            FrameError: Naming the image, its file and the field that cannot be used.
            IndexError: If the index is out of range.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Image {index} of {len(self)} in data source {self.config.name}.")
        encoded = self.encoded(index % len(self))
        image = decode_image(encoded, upright=True)
        return CaptionedImage(encoded.key, encoded.scene, image, encoded.metadata["caption"])


class TarImages(CaptionedSource):
    """Images of WebDataset shards: `KEY.jpg` (or `.webp`, `.png`, `.jpeg`) with `KEY.txt` or `KEY.json`, or neither.

    Args:
        config: Settings of the source.
        shards: The `.tar` files.
        sequential: Whether to tell which shard an image is in (`groups`), for reading nearly in order.

    Raises:
        ValueError: If a shard is empty, cut off or not a tar; if a json cannot be read; if no sample has an image; if
            none has the caption that `config` names.
    """

    def __init__(self, config: CaptionSourceConfig, shards: list[Path], sequential: bool = False) -> None:
        self.keys: list[str] = []
        self.image_fields: list[str] = []
        self.caption_column = config.caption_column
        self.stored = ShardFields(shards, width=3)
        text_field = config.caption_column or CAPTION_EXTENSION
        scenes: list[str] = []
        extensions: dict[str, None] = {}
        anyone_has_field = False
        for number, shard in enumerate(shards):
            with shard.open("rb") as file:
                for key, members in index_shard(shard):
                    extensions.update(dict.fromkeys(members))
                    metadata = read_metadata(file, shard, key, members["json"]) if "json" in members else {}
                    scenes.append(_scene(key, metadata))
                    anyone_has_field |= config.caption_column in metadata
                    image_field = config.image_column or image_extension(shard, key, members) or "image"
                    self.keys.append(key)
                    self.image_fields.append(image_field)
                    fields = (image_field, text_field, "json")
                    self.stored.add(number, (members.get(field, ABSENT) for field in fields))
        super().__init__(config, shards, scenes, False, self.stored.shard_of if sequential else None)
        if not self.stored.anyone_has(0):
            wanted = config.image_column or ", ".join(IMAGE_EXTENSIONS)
            raise ValueError(
                f"Data source {config.name}: no sample has an image ({wanted}); there are {list(extensions)}."
            )
        if config.caption_column and not anyone_has_field and not self.stored.anyone_has(1):
            raise ValueError(
                f"Data source {config.name}: no sample has a caption .{text_field}, nor {text_field!r} in its json; "
                "set caption_column."
            )

    def encoded(self, index: int) -> EncodedFrame:
        """An image as it is in its shard, its caption in the metadata."""
        key, shard = self.keys[index], str(self.stored.shard(index))
        image, text, metadata = self.stored.read(index)
        if image is None:
            raise frame_error(key, shard, f"has no {self.image_fields[index]}.")
        caption = None
        if text is not None:
            try:
                caption = text.decode("utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise frame_error(key, shard, f"its caption is not UTF-8 ({error}).") from error
        elif metadata is not None:
            caption = _find_caption(parse_metadata(metadata, f"Sample {key!r} of {shard}"), self.caption_column)
        return _encoded(key, shard, self.scenes[index], image, self.image_fields[index], caption)


class TableImages(CaptionedSource, TableSource):
    """Images that are the rows of a `datasets.Dataset`, with a caption in another column, or without.

    Args:
        config: Settings of the source.
        table: The rows.
        files: The files that the content depends on, in order.
        origins: For each row, the file that it is from; paths in the row start at its folder.
        keys: Name of each row inside the source.

    Raises:
        ValueError: If there is no such column.
    """

    def __init__(
        self,
        config: CaptionSourceConfig,
        table: datasets.Dataset,
        files: Sequence[Path],
        origins: Sequence[Path],
        keys: Sequence[str],
    ) -> None:
        self.image_column = config.image_column or "image"
        names = table.column_names
        if config.caption_column is not None and config.caption_column not in names:
            raise ValueError(
                f"Data source {config.name}: there is no column {config.caption_column!r}, but {names}; set "
                "caption_column."
            )
        found = [name for name in CAPTION_NAMES if name in names]
        self.caption_column = config.caption_column or (found[0] if found else None)
        scenes = table_scenes(table, origins, keys)
        super().__init__(
            config,
            table,
            files,
            origins,
            keys,
            pictures={"image_column": self.image_column},
            others=[self.caption_column] if self.caption_column else [],
            scenes=keys if scenes is None else scenes,
            has_intrinsics=False,
        )

    def encoded(self, index: int) -> EncodedFrame:
        """An image as it is in its row, its caption in the metadata."""
        row, key, origin = self.table[index], self.keys[index], str(self.origins[index])
        image = self.picture(row, index, self.image_column)
        caption = row[self.caption_column] if self.caption_column else None
        return _encoded(key, origin, self.scenes[index], image, self.image_column, caption)


class FileImages(CaptionedSource):
    """The images in a folder and its subfolders, without captions.

    Args:
        config: Settings of the source.
        folder: The folder.

    Raises:
        ValueError: If there is no image in it, or a caption's column is named.
    """

    def __init__(self, config: CaptionSourceConfig, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
        for name in ("image_column", "caption_column"):
            if getattr(config, name) is not None:
                raise ValueError(
                    f"Data source {config.name}: {name} is set, but the folder has none of "
                    f"{', '.join(METADATA_NAMES)} in it."
                )
        self.keys = [path.relative_to(folder).as_posix() for path in files]
        super().__init__(config, files, self.keys, False)

    def encoded(self, index: int) -> EncodedFrame:
        """An image as it is in its file."""
        key, path = self.keys[index], self.files[index]
        try:
            image = path.read_bytes()
        except OSError as error:
            raise frame_error(key, str(path), f"cannot be read ({error.strerror}).") from error
        return _encoded(key, str(path), key, image, "the file", None)


def open_captioned_images(settings: Iterable[str | dict[str, Any]], streaming: bool = False) -> MixedFrames:
    """Opens sources of images, and mixes them; see `CaptionSourceConfig` for the settings.

    Returns:
        What has a `CaptionedImage` at each index.

    Raises:
        TypeError: If a setting is of the wrong type.
        FileNotFoundError: If there is nothing at a path.
        ValueError: If a setting is out of range or unknown, or a source cannot be opened.
    """
    return MixedFrames.open(settings, streaming, CaptionSourceConfig, open_captioned_source)


def open_captioned_source(config: CaptionSourceConfig, streaming: bool = False) -> CaptionedSource:
    """Opens one source.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ValueError: If what is there is not of the format, or has no image.
    """
    paths = [found for path in config.paths for found in expand(path)]
    kind = _detect(paths) if config.format == "auto" else config.format
    if kind == "webdataset":
        return TarImages(config, files_of_format(paths, kind), streaming)
    if kind == "parquet":
        return open_parquet(config, files_of_format(paths, kind), TableImages)
    folder = only_folder(config, kind, paths)
    if any(file.name in METADATA_NAMES for file in folder.rglob("metadata.*")):
        return open_image_folder(config, folder, metadata_files(folder), TableImages)
    return FileImages(config, folder)


def _detect(paths: Sequence[Path]) -> str:
    """The format of what is at the paths: that of shards or Parquet files if there are any, else of images."""
    for suffix, kind in SUFFIX_FORMATS.items():
        if any(path.suffix == suffix or (path.is_dir() and any(path.glob(f"*{suffix}"))) for path in paths):
            return kind
    return "imagefolder"


def _encoded(key: str, origin: str, scene: str, image: bytes, image_field: str, caption: Any) -> EncodedFrame:
    if caption is not None and not isinstance(caption, str):
        raise frame_error(key, origin, f"its caption is {type(caption).__name__}, not text: {caption!r}.")
    return EncodedFrame(key, origin, scene, image, b"", image_field, "", {"caption": caption or ""})


def _find_caption(metadata: Mapping[str, Any], column: str | None) -> Any:
    for name in (column,) if column else CAPTION_NAMES:
        if name in metadata:
            return metadata[name]
    return None


def _scene(key: str, metadata: Mapping[str, Any]) -> str:
    value = metadata.get("scene")
    return key if value is None or not str(value) else str(value)
