"""Writes video files with PyAV, with the sound of another file."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from ...utils.imports import import_optional

# The first that the build of PyAV can encode: H.264 where there is a licence for it, otherwise MPEG-4 part 2.
ENCODERS = {"libx264": {"crf": "18", "preset": "medium"}, "libopenh264": {"b": "8M"}, "mpeg4": {"qscale": "3"}}
BT709 = 1  # the number of this standard in all three fields of H.264


class VideoWriter:
    """Writes an MP4 file frame by frame; a context manager.

    The picture has even sides, as players ask for: the last row or column is repeated where a side is odd. The sound
    is copied as it is, up to the end of the last frame, between the frames where it belongs.

    Args:
        path: The file to write.
        size: Height and width of the frames.
        time_base: Unit of the times of frames, seconds.
        rate: Frames a second, on average: what the last frame lasts.
        pixel_aspect: Width over height of a pixel.
        sound: A file whose first sound stream is copied; `None`: no sound.

    Attributes:
        sound_problem: What is missing of the sound, and why; `None` if all was copied, or there is none.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        time_base: Fraction,
        rate: Fraction,
        pixel_aspect: Fraction = Fraction(1),
        sound: Path | None = None,
    ) -> None:
        self._av = import_optional("av", "video", "Reading and writing videos")
        self._size, self._time_base = size, time_base
        self._last_duration = max(1, round(1 / rate / time_base))
        self._waiting: Any = None
        self.sound_problem: str | None = None
        self._file = self._av.open(str(path), "w", format="mp4")
        self._input: Any = None
        try:
            self._stream = self._add_video(size, rate, pixel_aspect)
            self._sound = self._open_sound(sound)
            self._next_sound = next(self._sound, None)
        except BaseException:
            self._close()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._waiting is not None:
                self._write_waiting(self._waiting.pts + self._last_duration)
                self._file.mux(self._stream.encode(None))
        finally:
            self._close()

    def add(self, picture: np.ndarray, pts: int) -> None:
        """Adds a frame.

        Args:
            picture: H×W×3, uint8, sRGB.
            pts: Its time, in units of the time base; more than that of the frame before.
        """
        if self._waiting is not None:
            self._write_waiting(pts)
        height, width = self._size
        even = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        rgb = self._av.VideoFrame.from_ndarray(even, format="rgb24")
        self._waiting = rgb.reformat(format="yuv420p", dst_colorspace="ITU709")
        self._waiting.pts, self._waiting.time_base = pts, self._time_base

    def _write_waiting(self, end: int) -> None:
        """Encodes the frame that waits for its end, after the sound that comes before that."""
        self._waiting.duration = end - self._waiting.pts
        self._copy_sound(end * self._time_base)
        self._file.mux(self._stream.encode(self._waiting))
        self._waiting = None

    def _copy_sound(self, end: Fraction) -> None:
        while (packet := self._next_sound) is not None and packet.pts * packet.time_base < end:
            packet.stream = self._sound_stream
            try:
                self._file.mux(packet)
            except self._av.error.FFmpegError as error:
                # Such as times that go back, in a damaged file: the pictures are worth more than the sound.
                self.sound_problem = f"the sound ends early: it cannot be copied further ({error.strerror})"
                self._next_sound = None
                return
            self._next_sound = next(self._sound, None)

    def _add_video(self, size: tuple[int, int], rate: Fraction, pixel_aspect: Fraction) -> Any:
        encoders = {name for name in ENCODERS if name in self._av.codecs_available}
        name = next(name for name in ENCODERS if name in encoders)
        stream = self._file.add_stream(name, rate=rate, options=ENCODERS[name])
        context = stream.codec_context
        context.height, context.width = (side + side % 2 for side in size)
        context.pix_fmt, context.time_base = "yuv420p", self._time_base
        context.colorspace = context.color_primaries = context.color_trc = BT709
        if pixel_aspect != 1:
            context.sample_aspect_ratio = pixel_aspect
        return stream

    def _open_sound(self, sound: Path | None) -> Iterator[Any]:
        """Opens the sound's file and adds a stream for it; returns its packets."""
        if sound is None:
            return iter(())
        self._input = self._av.open(str(sound), metadata_errors="replace")
        if not self._input.streams.audio:
            return iter(())
        source = self._input.streams.audio[0]
        codec = source.codec_context.name if source.codec_context is not None else "an unknown codec"
        if (
            source.codec_context is None
            or source.codec_context.codec.canonical_name not in self._file.supported_codecs
        ):
            self.sound_problem = f"the sound is left out: MP4 cannot hold sound in {codec}"
            return iter(())
        self._sound_stream = self._file.add_stream_from_template(source)
        return self._packets(source)

    def _packets(self, source: Any) -> Iterator[Any]:
        try:
            for packet in self._input.demux(source):
                if packet.size and packet.pts is not None and packet.dts is not None:
                    yield packet
        except self._av.error.FFmpegError as error:
            self.sound_problem = f"the sound ends early: it is damaged ({error.strerror})"

    def _close(self) -> None:
        self._file.close()
        if self._input is not None:
            self._input.close()
