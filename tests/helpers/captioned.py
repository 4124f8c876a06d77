"""Writes tiny sources of images and captions in the formats that `depthfm_diffusers.frames` reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from helpers.shards import encode, write_shard, write_table
from PIL import Image

CAPTIONS = ["a", "a a", "", "a !", "! a", "a", "! !", "a a a"]


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth RGB picture, another for each number."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    channels = [np.sin(x / 9 + number), np.cos(y / 7 - number), np.sin((x + y) / 13 + 2 * number)]
    return np.stack([(c * 127 + 128).astype(np.uint8) for c in channels], axis=-1)


def write_caption_shard(path: Path, count: int = 8, captions: str = "txt", **size: int) -> Path:
    """A WebDataset shard with captions in `.txt` files, in the json's field `captions`, or (if that is empty) none."""
    samples = []
    for i in range(count):
        sample = {"png": encode(picture(i, **size), "PNG")}
        if captions == "txt":
            sample["txt"] = CAPTIONS[i % 8].encode()
        elif captions:
            sample["json"] = json.dumps({captions: CAPTIONS[i % 8], "scene": i // 2}).encode()
        samples.append(sample)
    return write_shard(path, samples)


def write_image_folder(folder: Path, count: int = 8, captioned: bool = True) -> Path:
    """A folder of images, with a `metadata.jsonl` as `datasets` reads it, or without."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(picture(i)).save(folder / f"photo{i}.png")
    if captioned:
        rows = [{"file_name": f"photo{i}.png", "text": CAPTIONS[i % 8]} for i in range(count)]
        (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    return folder


def write_caption_parquet(path: Path, count: int = 8) -> Path:
    """Rows of `image` and `caption`."""
    images = [{"bytes": encode(picture(i), "PNG"), "path": None} for i in range(count)]
    return write_table(path, {"image": images, "caption": [CAPTIONS[i % 8] for i in range(count)]}, ["image"])
