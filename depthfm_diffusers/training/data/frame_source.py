"""What every data source has: its settings, random access to frames, scenes, and a hash of its content."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch.utils.data import Dataset

from ...frames import (
    EncodedFrame,
    Frame,
    decode_frame,
)

logger = logging.getLogger(__name__)

FORMATS = ("auto", "webdataset", "parquet", "imagefolder", "pairs")


@dataclass(frozen=True)
class ImageSourceConfig:
    """Settings that every data source has.

    Attributes:
        path: A file, a folder, or a pattern with `*`, `?` or `[…]`; or several of one format.
        weight: How often batches are drawn from this source, relative to the others; positive.
        format: One of `FORMATS`; `auto` decides by what is at the path.
        image_column: Column (Parquet, image folder) or extension (WebDataset) of the image.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of its range.
    """

    path: str | tuple[str, ...]
    weight: float = 1.0
    format: str = "auto"
    image_column: str | None = None

    # Settings that are texts, and those that are numbers, with the ends of their range if it has any.
    TEXTS: ClassVar[tuple[str, ...]] = ("image_column",)
    NUMBERS: ClassVar[dict[str, tuple[float, float] | None]] = {"weight": (0.0, math.inf)}

    def __post_init__(self) -> None:
        """Checks types and ranges."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
            raise TypeError(f"Data source: path must be text, or a list of texts, got {self.path!r}.")
        if not paths or not all(paths):
            raise ValueError(f"Data source: path is empty, got {self.path!r}.")
        object.__setattr__(self, "path", self.path if isinstance(self.path, str) else tuple(self.path))
        for name in ("format", *self.TEXTS):
            value = getattr(self, name)
            if not (isinstance(value, str) or (value is None and name != "format")):
                raise TypeError(f"Data source {self.name}: {name} must be text, got {value!r}.")
        for name, ends in self.NUMBERS.items():
            value = getattr(self, name)
            if value is None and name != "weight":
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"Data source {self.name}: {name} must be a number, got {value!r}.")
            if ends is not None and not ends[0] < value < ends[1]:
                raise ValueError(
                    f"Data source {self.name}: {name} must be above {ends[0]:g} and below {ends[1]:g}, got {value}."
                )
        if self.format not in FORMATS:
            raise ValueError(f"Data source {self.name}: format must be one of {FORMATS}, got {self.format!r}.")

    @property
    def paths(self) -> tuple[str, ...]:
        """What `path` says, always as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """What messages call the source."""
        return self.paths[0] + (f" (and {len(self.paths) - 1} more)" if len(self.paths) > 1 else "")

    @property
    def sets_camera(self) -> bool:
        """Whether the settings say how every frame was projected."""
        return False

    @classmethod
    def parse(cls, setting: str | dict[str, Any]) -> Self:
        """The settings as written in a configuration: a path alone, or a mapping of this class's fields.

        Raises:
            TypeError: If the setting is neither.
            ValueError: If a field is unknown, or `path` is missing.
        """
        if isinstance(setting, str):
            return cls(setting)
        if not isinstance(setting, dict):
            raise TypeError(f"A data source is a path or a mapping, got {setting!r}.")
        known = [field.name for field in fields(cls)]
        unknown = [name for name in setting if name not in known]
        if unknown:
            raise ValueError(f"Data source {setting}: unknown setting(s) {unknown}; there are {known}.")
        if "path" not in setting:
            raise ValueError(f"Data source {setting}: path is missing.")
        return cls(**setting)


@dataclass(frozen=True)
class SourceConfig(ImageSourceConfig):
    """Settings of a data source of frames. What is set here replaces what the frames themselves say.

    Attributes:
        depth_column: Column (Parquet, image folder) or extension (WebDataset) of the depth.
        depth_scale: Metres per stored unit of depth.
        sky_value: The stored number that means sky.
        fov_x_deg: Horizontal field of view of every frame, degrees.
    """

    depth_column: str | None = None
    depth_scale: float | None = None
    sky_value: float | None = None
    fov_x_deg: float | None = None

    TEXTS: ClassVar[tuple[str, ...]] = ("image_column", "depth_column")
    NUMBERS: ClassVar[dict[str, tuple[float, float] | None]] = {
        "weight": (0.0, math.inf),
        "depth_scale": (0.0, math.inf),
        "sky_value": None,
        "fov_x_deg": (0.0, 180.0),
    }

    @property
    def sets_camera(self) -> bool:
        """Whether the settings say how every frame was projected."""
        return self.fov_x_deg is not None

    def frame_metadata(self, metadata: dict[str, Any]) -> dict[str, Any]:
        """A frame's own metadata, with what is set here in their place."""
        result = dict(metadata)
        for name in ("depth_scale", "sky_value", "fov_x_deg"):
            if getattr(self, name) is not None:
                result[name] = getattr(self, name)
        if self.fov_x_deg is not None:
            result["intrinsics"] = None
        return result


class FrameSource(Dataset):
    """Random access to the frames of one data source. Subclasses implement `encoded`.

    Objects are read-only and can be pickled: workers of a data loader use them, forked or spawned.

    Args:
        config: Settings of the source.
        files: The files of the source, in order.
        scenes: Scene of each frame.
        has_intrinsics: Whether the frames themselves say how each was projected.
        groups: N; number of the shard of each frame, where reading is fast only in a shard's order.

    Attributes:
        scenes: As given.
        groups: As given; `None` for random access.
        has_intrinsics: Whether the camera of every frame is known, from the frames or from the settings.
    """

    def __init__(
        self,
        config: SourceConfig,
        files: Sequence[Path],
        scenes: Sequence[str],
        has_intrinsics: bool,
        groups: np.ndarray | None = None,
    ) -> None:
        if not scenes:
            raise ValueError(f"Data source {config.name}: there is no frame in it.")
        self.config = config
        self.files = list(files)
        self.scenes = list(scenes)
        self.has_intrinsics = has_intrinsics or config.sets_camera
        self.groups = groups

    def encoded(self, index: int) -> EncodedFrame:
        """A frame as it is stored, with `config.frame_metadata` applied."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.scenes)

    def __getitem__(self, index: int) -> Frame:
        """Reads and decodes one frame.

        Raises:
            FrameError: Naming the frame, its file and the field that cannot be used.
            IndexError: If the index is out of range.
        """
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Frame {index} of {len(self)} in data source {self.config.name}.")
        return decode_frame(self.encoded(index % len(self)))

    def fingerprint(self) -> str:
        """A hash of the files' bytes and names and of the settings that change frames; reads every file.

        Another format that gives the same frames has another hash.
        """
        settings = {k: v for k, v in asdict(self.config).items() if k not in ("path", "weight", "format")}
        digest = hashlib.sha256(json.dumps([type(self).__name__, settings], sort_keys=True).encode())
        for path in self.content_files():
            digest.update(hashlib.sha256(path.name.encode()).digest())
            try:
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            except FileNotFoundError:
                digest.update(b"missing")  # an error of its frame, which may be skipped
        return digest.hexdigest()

    def content_files(self) -> Iterable[Path]:
        """The files that the frames depend on, in order."""
        return self.files


def warn_without_scenes(config: SourceConfig) -> None:
    """Says that the split of a source goes by frame."""
    logger.warning(
        f"Data source {config.name} does not say which frames show the same scene: each is taken for a scene of its "
        "own, so that one place may be trained on and validated on. Give 'scene' to keep its frames together."
    )


def scene_name(value: Any, where: str) -> str:
    """A frame's scene as text.

    Raises:
        ValueError: If there is none: without it frames of one scene could end up on both sides of the split.
    """
    if value is None or not str(value):
        raise ValueError(f"{where} has no 'scene'.")
    return str(value)
