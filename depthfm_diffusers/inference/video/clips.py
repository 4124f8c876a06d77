"""Clips as frames with times: video files, read by PyAV, and sequences of images."""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ...image_processing import load_picture
from ...pictures.reading import MAX_PIXELS
from ...utils.errors import describe_error
from ...utils.imports import import_optional

logger = logging.getLogger(__name__)

# A file that is named on the command line is a video if its name ends in one of these.
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".ogv",
    ".3gp", ".3g2", ".mxf", ".vob", ".y4m", ".f4v",
)  # fmt: skip
# A frame is taken if it comes no more than this share of an interval before it is due: times in files are rounded.
EARLY = Fraction(1, 4)


class ClipError(ValueError):
    """A clip cannot be used; the message names the file."""


@dataclass(frozen=True)
class ClipFrame:
    """A frame of a clip.

    Attributes:
        image: Upright, of any kind that `DepthFMPipeline` takes.
        pts: Its time, in units of the clip's `time_base`.
    """

    image: Any
    pts: int


@dataclass(frozen=True)
class ClipLimits:
    """Which frames of a clip are used.

    Attributes:
        target_fps: Most frames a second; frames that come sooner are left out. `None`: all frames.
        max_frames: Most frames, those that are left out not counted. `None`: to the end.
        max_pixels: Most pixels that a frame may have. `None`: 120 million.

    Raises:
        ValueError: If a value is out of its range.
    """

    target_fps: Fraction | None = None
    max_frames: int | None = None
    max_pixels: int | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("target_fps", "max_frames", "max_pixels"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"`{name}` must be more than 0, got {value}.")


class Clip(ABC):
    """A clip that is read frame by frame, as often as needed.

    Args:
        path: The file, or the folder or pattern, for messages and names.
        limits: Which frames are used.

    Attributes:
        path: As given.
        limits: As given.
        size: Height and width of the upright frames.
        time_base: Unit of the times of frames, seconds.
        rate: Frames a second, on average.
        num_frames: Number of frames that will come, as the file says before they are read; `None`: not known.
        pixel_aspect: Width over height of a pixel.
        has_audio: Whether the file has sound.
    """

    size: tuple[int, int]
    time_base: Fraction
    rate: Fraction
    num_frames: int | None
    pixel_aspect: Fraction = Fraction(1)
    has_audio: bool = False

    def __init__(self, path: Path, limits: ClipLimits) -> None:
        self.path, self.limits = path, limits

    @abstractmethod
    def all_frames(self) -> Iterator[ClipFrame]:
        """Reads all frames in order, the limits not applied; the images may be functions that make them."""

    def frames(self, start: int = 0) -> Iterator[ClipFrame]:
        """Reads the frames that are used.

        Args:
            start: Number of frames that are passed over.

        Yields:
            The frames, at growing times, all of one size.

        Raises:
            ClipError: If the clip is damaged, has no frame, or its frames change their size.
            OSError: If it cannot be read.
        """
        number = None
        for number, frame in enumerate(islice(self._thinned(), self.limits.max_frames)):
            if number >= start:
                image = frame.image() if callable(frame.image) else frame.image
                yield ClipFrame(image, frame.pts)
        if number is None:
            raise ClipError(f"{self.path}: there is no frame in it.")

    def _thinned(self) -> Iterator[ClipFrame]:
        """Leaves out frames for `target_fps`."""
        last_slot, fps = None, self.limits.target_fps
        for frame in self.all_frames():
            slot = None if fps is None else (frame.pts * self.time_base * fps + EARLY).__floor__()
            if slot is None or slot != last_slot:
                yield frame
            last_slot = slot

    def _limited(self, count: int | None, duration: Fraction | None) -> int | None:
        """Returns how many of `count` frames remain within the limits."""
        if count is None:
            return None
        if self.limits.target_fps is not None and duration:
            last = max(duration - 1 / self.rate, Fraction(0))
            count = min(count, (last * self.limits.target_fps + EARLY).__floor__() + 1)
        return count if self.limits.max_frames is None else min(count, self.limits.max_frames)


class VideoFile(Clip):
    """A video file.

    Its first video stream is used, turned as the file says (phones), with the times of its frames.

    Args:
        path: The file.
        limits: Which frames are used.

    Raises:
        ClipError: If it is no video that can be read, has sound only, or frames of too many pixels.
        ImportError: If PyAV is not installed.
        OSError: If it cannot be opened.
    """

    def __init__(self, path: Path, limits: ClipLimits = ClipLimits()) -> None:
        super().__init__(path, limits)
        with self._opened() as (container, stream):
            self.time_base = stream.time_base
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or stream.base_rate or 25)
            self.has_audio = bool(container.streams.audio)
            duration = None if stream.duration is None else stream.duration * stream.time_base
            if duration is None and container.duration is not None:
                duration = Fraction(container.duration, 1_000_000)
            count = stream.frames or (None if duration is None else round(duration * self.rate))
            self.num_frames = self._limited(count or None, duration)
            pixel_aspect = Fraction(stream.sample_aspect_ratio or 1) or Fraction(1)
            height, width = stream.codec_context.height, stream.codec_context.width
            if not height or not width:
                raise ClipError(f"{path}: the size of its frames cannot be read; it is damaged or not a video.")
            most = limits.max_pixels or MAX_PIXELS
            if height * width > most:
                raise ClipError(f"{path}: its frames of {width}×{height} have more pixels than allowed ({most}).")
            first = next(self._decode(container, stream), None)
        if first is None:
            raise ClipError(f"{path}: there is no frame in its video stream.")
        self.size = _upright_size(first)
        self.pixel_aspect = 1 / pixel_aspect if _quarter_turns(first) % 2 else pixel_aspect

    def all_frames(self) -> Iterator[ClipFrame]:
        """Decodes all frames; pictures are converted only if they are used."""
        last = None
        with self._opened() as (container, stream):
            for number, frame in enumerate(self._decode(container, stream)):
                size = _upright_size(frame)
                if size != self.size:
                    (old_height, old_width), (height, width) = self.size, size
                    raise ClipError(
                        f"{self.path}: frame {number} is {width}×{height}, those before are {old_width}×{old_height}. "
                        f"Cut the clip there, or keep what is before with --max-frames {number}."
                    )
                pts = frame.pts if frame.pts is not None else round(number / self.rate / self.time_base)
                # Times that do not grow are an error of the file, which no container accepts.
                last = pts if last is None or pts > last else last + 1
                yield ClipFrame(_Upright(frame), last)

    def _decode(self, container: Any, stream: Any) -> Iterator[Any]:
        """Decodes the frames of an open file."""
        error_type = _av().error.FFmpegError
        number = 0
        try:
            for frame in container.decode(stream):
                yield frame
                number += 1
        except error_type as error:
            raise ClipError(
                f"{self.path}: frame {number} cannot be decoded ({_reason(error)}): the file is truncated or damaged. "
                + (f"Keep what is before with --max-frames {number}." if number else "There is no frame before it.")
            ) from error

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        """Opens the file; yields its container and its video stream."""
        av = _av()
        if not self.path.is_file():
            raise FileNotFoundError(2, "no such file", str(self.path))
        try:
            container = av.open(str(self.path), metadata_errors="replace")
        except av.error.FFmpegError as error:
            raise ClipError(
                f"{self.path}: not a video, or truncated or damaged at its beginning ({_reason(error)})."
            ) from error
        with container:
            streams = [one for one in container.streams.video if not _is_cover(one)]
            if not streams:
                what = "only sound" if container.streams.audio else "no video stream"
                raise ClipError(f"{self.path}: there is {what} in it, no video.")
            stream = streams[0]
            if stream.codec_context is None:
                raise ClipError(f"{self.path}: this build of PyAV cannot decode its video; convert it to H.264.")
            stream.thread_type = "AUTO"
            yield container, stream


class ImageSequence(Clip):
    """Images that are the frames of a clip, in the natural order of their names (`9.png` before `10.png`).

    Args:
        path: The folder or pattern that the images come from, for messages and names.
        files: The images.
        rate: Frames a second.
        limits: Which frames are used.

    Raises:
        ClipError: If there is no image.
        OSError: If the first image cannot be read.
        ValueError: If it is no image.
    """

    def __init__(self, path: Path, files: Sequence[Path], rate: Fraction, limits: ClipLimits = ClipLimits()) -> None:
        super().__init__(path, limits)
        if not files:
            raise ClipError(f"{path}: there is no image in it.")
        self.files = sorted(files, key=natural_key)
        self.rate, self.time_base = rate, 1 / rate
        self.num_frames = self._limited(len(files), len(files) / rate)
        self.size = self._load(self.files[0]).size[::-1]

    def all_frames(self) -> Iterator[ClipFrame]:
        """Reads the images, each only if it is used."""
        for number, file in enumerate(self.files):
            yield ClipFrame(lambda file=file: self._checked(file), number)

    def _checked(self, file: Path) -> Any:
        picture = self._load(file)
        if picture.size[::-1] != self.size:
            raise ClipError(
                f"{file} is {picture.size[0]}×{picture.size[1]}, the first image of the sequence {self.size[1]}×"
                f"{self.size[0]}: all frames of a clip must have one size."
            )
        return picture

    def _load(self, file: Path) -> Any:
        return load_picture(file, self.limits.max_pixels)


class _Upright:
    """Makes the upright RGB picture of a decoded frame when it is called."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __call__(self) -> np.ndarray:
        pixels = self._frame.to_ndarray(format="rgb24")
        return np.ascontiguousarray(np.rot90(pixels, _quarter_turns(self._frame)))


def _quarter_turns(frame: Any) -> int:
    """Returns by how many quarters a decoded frame is to be turned, counterclockwise; 0 to 3."""
    turns, rest = divmod(int(frame.rotation), 90)
    # A damaged matrix gives any number; angles between quarters are not turned by players either.
    return turns % 4 if rest == 0 and abs(turns) <= 4 else 0


def _upright_size(frame: Any) -> tuple[int, int]:
    """Returns the height and width of a decoded frame when it is upright."""
    return (frame.width, frame.height) if _quarter_turns(frame) % 2 else (frame.height, frame.width)


def is_video(path: Path) -> bool:
    """Returns whether a file is a video, by its name."""
    return path.suffix.lower() in VIDEO_SUFFIXES


def natural_key(path: Path) -> list[tuple[int, int | str]]:
    """Returns what paths are sorted by, so that numbers in them count as numbers."""
    parts = re.split(r"(\d+)", str(path))
    return [(1, int(part)) if part.isdecimal() and part.isascii() else (0, part) for part in parts] + [(0, str(path))]


def _av() -> Any:
    return import_optional("av", "video", "Reading and writing videos")


def _is_cover(stream: Any) -> bool:
    """Returns whether a stream is the picture on the cover of a sound file."""
    return bool(stream.disposition & _av().stream.Disposition.attached_pic)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or describe_error(error)
