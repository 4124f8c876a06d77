"""Data sources: frames with depth, and images with captions, of any format."""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import ClassVar, Generic, TypeVar

import numpy as np

from ..pictures import PictureError, is_plain_picture
from .decoding import EncodedFrame, decode_captioned_image, decode_frame
from .formats import METADATA_NAMES, find_source, metadata_in
from .frame import CaptionedImage, Frame, FrameError
from .pairs import ImageFileReader, PairReader
from .reader import CAPTION_NAMES, FrameReader
from .shards import ShardReader
from .source_config import CaptionSourceConfig, ImageSourceConfig, SourceConfig
from .tables import open_image_folder, open_parquet

logger = logging.getLogger(__name__)

Item = TypeVar("Item", Frame, CaptionedImage)
# Settings of a source that do not change what its frames hold.
NOT_CONTENT = ("path", "weight", "format", "resolution", "max_pixels")


class DataSource(ABC, Generic[Item]):
    """Random access to the frames, or captioned images, of one data source.

    Objects are read-only and can be pickled: the workers of a data loader use them, forked or spawned.

    Args:
        config: Settings of the source.
        reader: Reads what is stored.
        scenes: Scene of each frame.
        has_intrinsics: Whether the camera of every frame is known.
        streaming: Whether the frames of shards are to be read nearly in order.

    Attributes:
        config: As given.
        files: The files of the source, in order.
        keys: Name of each frame inside the source.
        scenes: As given.
        has_intrinsics: As given.
        groups: N, int; number of the shard of each frame, if they are to be read nearly in order; `None` for random
            access.
    """

    KIND: ClassVar[str]  # part of the fingerprint

    def __init__(
        self,
        config: ImageSourceConfig,
        reader: FrameReader,
        scenes: Sequence[str],
        has_intrinsics: bool,
        streaming: bool,
    ) -> None:
        self.config = config
        self.reader = reader
        self.files = reader.files
        self.keys = reader.keys
        self.scenes = list(scenes)
        self.has_intrinsics = has_intrinsics
        self.groups: np.ndarray | None = reader.shard_of if streaming else None
        if not self.keys:
            raise ValueError(f"Data source {config.name}: there is no frame in it.")

    @abstractmethod
    def decode(self, encoded: EncodedFrame) -> Item:
        """Decodes what is stored."""

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.keys)

    def __getitem__(self, index: int) -> Item:
        """Reads and decodes one frame.

        Raises:
            FrameError: Naming the frame, its file and the field that cannot be used.
            IndexError: If the index is out of range.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Frame {index} of {len(self)} in data source {self.config.name}.")
        index %= len(self)
        encoded = replace(self.reader.encoded(index), scene=self.scenes[index], max_pixels=self.config.max_pixels)
        return self.decode(encoded)

    def reads_as_before(self, index: int) -> bool:
        """Returns whether versions before 0.6.0 read the image of a frame as this one does; decodes nothing.

        They dropped transparency, did not apply colour profiles, and did not turn the image of a frame with depth.
        """
        try:
            encoded = self.reader.encoded(index)
            return is_plain_picture(encoded.image, upright=bool(encoded.depth), max_pixels=self.config.max_pixels)
        except (FrameError, PictureError):
            return True  # refused, or skipped, by all versions

    def fingerprint(self) -> str:
        """Computes a hash of the files' content and names and of the settings that change frames; reads every file.

        Another format that gives the same frames has another hash.
        """
        settings = {k: v for k, v in asdict(self.config).items() if k not in NOT_CONTENT}
        kind = self.reader.KIND + self.KIND
        digest = hashlib.sha256(json.dumps([kind, settings], sort_keys=True).encode())
        for path in self.reader.content_files():
            digest.update(hashlib.sha256(path.name.encode()).digest())
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except FileNotFoundError:
                digest.update(b"missing")  # an error of its frame, which may be skipped
        return digest.hexdigest()


class FrameSource(DataSource[Frame]):
    """Frames with depth.

    Frames of a source that names no scenes are each a scene of their own, which is said in the log.

    Args:
        config: Settings of the source.
        reader: Reads what is stored.
        streaming: Whether the frames of shards are to be read nearly in order.

    Raises:
        ValueError: If there is no frame, or only some frames have a scene.
    """

    KIND = "Frames"
    config: SourceConfig

    def __init__(self, config: SourceConfig, reader: FrameReader, streaming: bool = False) -> None:
        has_intrinsics = reader.has_cameras or config.fov_x_deg is not None
        super().__init__(config, reader, scene_names(reader), has_intrinsics, streaming)
        if reader.scenes is None:
            logger.warning(
                f"Data source {config.name} does not say which frames show the same scene: each is taken for a scene "
                "of its own, so that one place may be trained on and validated on. Give 'scene' to keep its frames "
                "together."
            )

    def decode(self, encoded: EncodedFrame) -> Frame:
        """Decodes a frame, with the settings of the source in place of what it says itself."""
        return decode_frame(replace(encoded, metadata=self.config.frame_metadata(encoded.metadata)))


class CaptionedSource(DataSource[CaptionedImage]):
    """Images with or without captions; an image without a scene is a scene of its own.

    Args:
        config: Settings of the source.
        reader: Reads what is stored.
        streaming: Whether the images of shards are to be read nearly in order.

    Raises:
        ValueError: If there is no image, or only some rows of a table have a scene.
    """

    KIND = "Images"
    config: CaptionSourceConfig

    def __init__(self, config: CaptionSourceConfig, reader: FrameReader, streaming: bool = False) -> None:
        # The samples of a shard need not have the same fields; the rows of a table have.
        scenes = scene_names(reader, required=not isinstance(reader, ShardReader))
        super().__init__(config, reader, scenes, False, streaming)

    def decode(self, encoded: EncodedFrame) -> CaptionedImage:
        """Decodes an image, and finds its caption."""
        column = self.config.caption_column
        return decode_captioned_image(encoded, (column,) if column else CAPTION_NAMES)


def open_source(config: SourceConfig, streaming: bool = False) -> FrameSource:
    """Opens a data source of frames.

    WebDataset shards are read in place. Parquet files are brought into the cache of `datasets`, which follows changes
    of the files. Image folders and pairs are read file by file.

    Args:
        config: What to open.
        streaming: Whether frames of WebDataset shards are to be read nearly in order: the source then has `groups`.
            The other formats have random access only.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ImportError: If Parquet files or an image folder are to be read and `datasets` is not installed.
        ValueError: If what is there is not of the format, or the format cannot be told, or there is no frame.
    """
    return FrameSource(config, _open_reader(config), streaming)


def open_captioned_source(config: CaptionSourceConfig, streaming: bool = False) -> CaptionedSource:
    """Opens a data source of images with or without captions; as `open_source`, for these.

    Raises:
        FileNotFoundError: If there is nothing at the path.
        ImportError: If Parquet files or a folder with metadata are to be read and `datasets` is not installed.
        ValueError: If what is there is not of the format, or the format cannot be told, or there is no image.
    """
    return CaptionedSource(config, _open_reader(config), streaming)


def _open_reader(config: SourceConfig | CaptionSourceConfig) -> FrameReader:
    kind, paths = find_source(config)
    if kind == "webdataset":
        return ShardReader(config, paths)
    if kind == "parquet":
        return open_parquet(config, paths)
    if kind == "pairs":
        return PairReader(paths[0])
    metadata = metadata_in(paths[0])
    if metadata:
        return open_image_folder(config, paths[0], metadata)
    none = f"Data source {config.name}: the folder has none of {', '.join(METADATA_NAMES)} in it"
    if isinstance(config, SourceConfig):
        raise FileNotFoundError(f"{none}.")
    for name in ("image_column", "caption_column"):
        if getattr(config, name) is not None:
            raise ValueError(f"{none}, which {name} needs.")
    return ImageFileReader(paths[0])


def scene_names(reader: FrameReader, required: bool = True) -> list[str]:
    """Returns the scene of each frame: its key, where the source has none.

    Raises:
        ValueError: If a scene is required and a frame has none: frames of one scene could then be both trained on and
            validated on.
    """
    if reader.scenes is None:
        return reader.keys
    scenes = []
    for index, value in enumerate(reader.scenes):
        missing = value is None or not str(value)
        if missing and required:
            raise ValueError(f"Frame {reader.keys[index]!r} of {reader.scene_file(index)} has no 'scene'.")
        scenes.append(reader.keys[index] if missing else str(value))
    return scenes
