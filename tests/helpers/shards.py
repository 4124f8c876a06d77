"""Writes tiny data sources of frames in the formats that `depthfm_diffusers.frames` reads."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image

from depthfm_diffusers.frames import Frame


def png(array: np.ndarray) -> bytes:
    """An 8-bit RGB or 16-bit grey PNG."""
    return encode(array, "PNG")


def encode(array: np.ndarray, kind: str) -> bytes:
    """The content of a picture file of any kind that Pillow writes, or of an `.npy` file for "NPY"."""
    buffer = io.BytesIO()
    if kind == "NPY":
        np.save(buffer, array)
    else:
        Image.fromarray(array).save(buffer, format=kind)
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
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, frame in enumerate(frames):
            for suffix, content in frame.items():
                info = tarfile.TarInfo(f"frame{number:04d}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, frames: list[dict[str, bytes]], **columns: list[Any]) -> Path:
    """Writes frames as rows of a Parquet file with `image`, `depth` and what their json has."""
    rows = [json.loads(frame["json"]) for frame in frames]
    columns = {
        "image": [{"bytes": frame["png"], "path": None} for frame in frames],
        "depth": [{"bytes": frame["depth.png"], "path": None} for frame in frames],
        **{name: [row.get(name) for row in rows] for name in dict.fromkeys(n for row in rows for n in row)},
        **columns,
    }
    return write_table(path, columns, [name for name in ("image", "depth") if isinstance(columns[name][0], dict)])


def write_table(path: Path, columns: dict[str, list[Any]], pictures: list[str]) -> Path:
    """Writes a Parquet file, some of whose columns are pictures as `datasets` stores them."""
    table = datasets.Dataset.from_dict(columns)
    for name in pictures:
        table = table.cast_column(name, datasets.Image())
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)
    if shown:
        datasets.enable_progress_bars()
    return path


def write_pairs(folder: Path, frames: list[dict[str, bytes]], metadata: bool = False, images: str = "images") -> Path:
    """Writes frames as `images/frame000i.png` and `depth/frame000i.png`, with `metadata.jsonl` if asked for."""
    (folder / images).mkdir(parents=True)
    (folder / "depth").mkdir()
    lines = []
    for number, frame in enumerate(frames):
        name = f"frame{number:04d}"
        (folder / images / f"{name}.png").write_bytes(frame["png"])
        suffix = ".npy" if "depth.npy" in frame else ".png"
        (folder / "depth" / (name + suffix)).write_bytes(frame.get("depth.npy") or frame["depth.png"])
        lines.append(json.dumps({"file_name": f"{name}.png"} | json.loads(frame["json"])))
    if metadata:
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_image_folder(folder: Path, frames: list[dict[str, bytes]]) -> Path:
    """Writes frames as an image folder of `datasets` whose metadata name image and depth files."""
    folder.mkdir(parents=True)
    lines = []
    for number, frame in enumerate(frames):
        names = {"image_file_name": f"frame{number:04d}.png", "depth_file_name": f"frame{number:04d}_depth.png"}
        (folder / names["image_file_name"]).write_bytes(frame["png"])
        (folder / names["depth_file_name"]).write_bytes(frame["depth.png"])
        lines.append(json.dumps(names | json.loads(frame["json"])))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def assert_same_frames(first: Frame, second: Frame) -> None:
    """Checks that two frames have the same content, whatever they are called."""
    assert first.scene == second.scene
    for name in ("image", "depth", "intrinsics", "sky"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None) == (other is None), name
        if one is not None:
            assert one.dtype == other.dtype
            np.testing.assert_array_equal(one, other, err_msg=name)
