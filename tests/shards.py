"""Writes tiny scene shards in the layout that `training/frames.py` reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def png(array: np.ndarray) -> bytes:
    """An 8-bit RGB or 16-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="PNG")
    return buffer.getvalue()


def sloping_frame(number: int, height: int = 48, width: int = 64) -> dict[str, bytes]:
    """One frame: a floor that recedes upwards, a near box, a strip of sky without depth."""
    rng = np.random.default_rng(number)
    rows = np.linspace(9, 1, height)[:, None].repeat(width, 1)
    left = int(rng.integers(4, width - 20))
    rows[height // 3 : -4, left : left + 12] = rng.uniform(0.8, 1.5)
    depth = (rows * 1000).astype(np.uint16)
    depth[:4] = 0
    shade = (255 * rows / 9).astype(np.uint8)
    image = np.stack([shade, 255 - shade, rng.integers(0, 40, shade.shape, dtype=np.uint8)], -1)
    metadata = {"fov_x_deg": 60.0, "indoor": False, "scene": number // 2}
    return {"png": png(image), "depth.png": png(depth), "json": json.dumps(metadata).encode()}


def write_shard(path: Path, frames: list[dict[str, bytes]]) -> Path:
    """Writes a WebDataset tar; frame i is called `frame000i`."""
    with tarfile.open(path, "w") as tar:
        for number, frame in enumerate(frames):
            for suffix, content in frame.items():
                info = tarfile.TarInfo(f"frame{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path
