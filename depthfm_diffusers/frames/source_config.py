"""Settings of a data source: where it is, in which format, and what its fields are called."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

# The ends of the open range of a number, if it has one.
RANGES = {
    "weight": (0.0, math.inf),
    "max_pixels": (0.0, math.inf),
    "depth_scale": (0.0, math.inf),
    "fov_x_deg": (0.0, 180.0),
}


@dataclass(frozen=True)
class ImageSourceConfig:
    """Settings that every data source has.

    Attributes:
        path: A file, a folder, or a pattern with `*`, `?` or `[…]`; or several of one format.
        weight: How often batches are drawn from this source, relative to the others; positive.
        format: One of `FORMATS`; `auto` decides by what is at the path.
        image_column: Column (Parquet, image folder) or extension (WebDataset) of the image.
        max_pixels: Most pixels that a picture may have, checked before it is decoded; `None`: 120 million.
        resolution: Height and width of its training samples, pixels, in place of `--resolution`; each at least 1.

    Raises:
        TypeError: If a setting is of the wrong type.
        ValueError: If a setting is out of its range.
    """

    path: str | tuple[str, ...]
    weight: float = 1.0
    format: str = "auto"
    image_column: str | None = None
    max_pixels: int | None = None
    resolution: tuple[int, int] | None = None

    FORMATS: ClassVar[tuple[str, ...]] = ("auto", "webdataset", "parquet", "imagefolder")

    def __post_init__(self) -> None:
        """Checks types and ranges."""
        paths = (self.path,) if isinstance(self.path, str) else self.path
        if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
            raise TypeError(f"Data source: path must be text, or a list of texts, got {self.path!r}.")
        if not paths or not all(paths):
            raise ValueError(f"Data source: path is empty, got {self.path!r}.")
        object.__setattr__(self, "path", self.path if isinstance(self.path, str) else tuple(self.path))
        for field in fields(self)[1:]:
            value, kind = getattr(self, field.name), str(field.type)
            if value is None and "None" in kind:
                continue
            if "str" in kind and not isinstance(value, str):
                raise TypeError(f"Data source {self.name}: {field.name} must be text, got {value!r}.")
            if "float" in kind and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise TypeError(f"Data source {self.name}: {field.name} must be a number, got {value!r}.")
            if kind.startswith("int") and (isinstance(value, bool) or not isinstance(value, int)):
                raise TypeError(f"Data source {self.name}: {field.name} must be an integer, got {value!r}.")
            low, high = RANGES.get(field.name, (None, None))
            if low is not None and not low < value < high:
                raise ValueError(
                    f"Data source {self.name}: {field.name} must be above {low:g} and below {high:g}, got {value}."
                )
        if self.resolution is not None:
            object.__setattr__(self, "resolution", self._check_resolution(self.resolution))
        if self.format not in self.FORMATS:
            raise ValueError(f"Data source {self.name}: format must be one of {self.FORMATS}, got {self.format!r}.")

    def _check_resolution(self, given: Any) -> tuple[int, int]:
        sides = tuple(given) if isinstance(given, (list, tuple)) else ()
        if len(sides) != 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sides):
            raise TypeError(
                f"Data source {self.name}: resolution must be two positive integers, height and width, got {given!r}."
            )
        return sides[0], sides[1]

    @property
    def paths(self) -> tuple[str, ...]:
        """What `path` says, always as a tuple."""
        return (self.path,) if isinstance(self.path, str) else self.path

    @property
    def name(self) -> str:
        """What messages call the source."""
        return self.paths[0] + (f" (and {len(self.paths) - 1} more)" if len(self.paths) > 1 else "")

    @classmethod
    def parse(cls, setting: str | dict[str, Any]) -> Self:
        """Reads the settings as they are written in a configuration: a path alone, or a mapping of the fields.

        Raises:
            TypeError: If the setting is neither, or a field is of the wrong type.
            ValueError: If a field is unknown or out of its range, or `path` is missing.
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

    FORMATS: ClassVar[tuple[str, ...]] = (*ImageSourceConfig.FORMATS, "pairs")

    def frame_metadata(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a frame's own metadata, with what is set here in their place."""
        names = ("depth_scale", "sky_value", "fov_x_deg")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.fov_x_deg is not None:
            given["intrinsics"] = None
        return {**metadata, **given}


@dataclass(frozen=True)
class CaptionSourceConfig(ImageSourceConfig):
    """Settings of a data source of images with or without captions.

    Attributes:
        caption_column: Column (Parquet, image folder), extension or field of the json (WebDataset) of the caption.
            `None` takes the `.txt` file of a shard, or the field called `text`, `caption` or `prompt`, if there is
            one.
    """

    caption_column: str | None = None
