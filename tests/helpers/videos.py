"""Small video files, encoded when they are needed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SOUND_RATE = 16000


def moving_pictures(count: int, height: int = 48, width: int = 64, seed: int = 0) -> list[np.ndarray]:
    """Pictures of a random pattern that moves by a pixel a frame, H×W×3 uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 4 + 1, (width + count) // 4 + 1, 3), dtype=np.uint8)
    wide = np.kron(coarse, np.ones((4, 4, 1), np.uint8))
    return [np.ascontiguousarray(wide[:height, i : i + width]) for i in range(count)]


def write_video(
    path: Path,
    pictures: Sequence[np.ndarray],
    times: Sequence[int] | None = None,
    codec: str = "mpeg4",
    sound: str | None = None,
) -> Path:
    """Encodes a video; returns its path.

    Args:
        path: The file; its suffix chooses the container.
        pictures: H×W×3 uint8.
        times: Time of each picture in hundredths of a second; `None`: ten a second.
        codec: Encoder of the pictures.
        sound: Encoder of one second of silence; `None`: no sound.
    """
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p" if codec != "ffv1" else "bgr0"
        stream.codec_context.time_base = Fraction(1, 100)
        if sound:
            audio = file.add_stream(sound, rate=SOUND_RATE)
            audio.layout = "mono"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = 10 * number if times is None else times[number]
            frame.time_base = Fraction(1, 100)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound:
            silence = np.zeros((1, SOUND_RATE), np.int16)
            samples = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            samples.sample_rate, samples.pts = SOUND_RATE, 0
            resampler = av.AudioResampler(audio.format, "mono", SOUND_RATE, frame_size=audio.frame_size or None)
            for part in [*resampler.resample(samples), *resampler.resample(None)]:
                file.mux(audio.encode(part))
            file.mux(audio.encode(None))
    return path


def turn_video(path: Path) -> None:
    """Marks an MP4 file as one that players turn clockwise by 90 degrees, as phones do for upright videos."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4
    matrix = start + (52 if content[start] == 1 else 40)
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
