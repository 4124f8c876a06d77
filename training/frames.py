"""Frames of RGB and metric depth: finding the shards, decoding one frame, splitting by scene.

The data format is a WebDataset tar read through `datasets`: per frame `KEY.webp` (or `.png`, `.jpg`: 8-bit RGB),
`KEY.depth.png` (16 bit, planar depth in millimetres, 0 = no depth) and `KEY.json` with `fov_x_deg` and `scene`.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from PIL import Image, UnidentifiedImageError
from torch.utils.data import Dataset

logger = logging.getLogger(__name__)

IMAGE_COLUMNS = ("webp", "png", "jpg", "jpeg")
DEPTH_COLUMN = "depth.png"
MILLIMETRES_PER_METRE = 1000.0


@dataclass(frozen=True)
class Frame:
    """One rendered or photographed view with its depth.

    Attributes:
        key: Name of the frame inside its shard.
        scene: Frames of the same scene carry the same name; splits are made by it.
        image: H×W×3, uint8, RGB.
        depth: H×W, float32, planar depth along the optical axis in metres; 0 where it is not known.
        fov_x_deg: Horizontal field of view in degrees (pinhole, square pixels, centred principal point).
    """

    key: str
    scene: str
    image: np.ndarray
    depth: np.ndarray
    fov_x_deg: float


def find_shards(train_data: Iterable[str | Path]) -> list[Path]:
    """Returns the `.tar` files among `train_data`, folders replaced by the tars directly inside them, sorted.

    Raises:
        FileNotFoundError: If a path does not exist, or a folder holds no `.tar` file.
        ValueError: If a file is not a `.tar`.
    """
    shards: list[Path] = []
    for path in map(Path, train_data):
        if path.is_dir():
            found = sorted(path.glob("*.tar"))
            if not found:
                raise FileNotFoundError(f"--train_data: the folder {path} has no .tar shard in it.")
            shards.extend(found)
        elif not path.exists():
            raise FileNotFoundError(f"--train_data: {path} does not exist.")
        elif path.suffix != ".tar":
            raise ValueError(f"--train_data: {path} is not a .tar shard (WebDataset).")
        else:
            shards.append(path)
    if not shards:
        raise ValueError("--train_data: no path was given.")
    return list(dict.fromkeys(shards))


class SceneFrames(Dataset):
    """Random access to the frames of WebDataset shards; items are `Frame`s.

    Args:
        train_data: Shards, or folders of shards.

    Raises:
        ValueError: If the shards lack a column, or a frame lacks `scene`.
    """

    def __init__(self, train_data: Iterable[str | Path]) -> None:
        shards = find_shards(train_data)
        for shard in shards:
            if shard.stat().st_size == 0:
                raise ValueError(f"The shard {shard} is empty.")
        table = datasets.load_dataset("webdataset", data_files=[str(s) for s in shards], split="train")
        image_columns = [name for name in IMAGE_COLUMNS if name in table.column_names]
        missing = [name for name in (DEPTH_COLUMN, "json") if name not in table.column_names]
        if not image_columns or missing:
            wanted = missing + ([] if image_columns else ["an image (" + ", ".join(IMAGE_COLUMNS) + ")"])
            raise ValueError(f"{shards[0]}: missing column(s) {wanted}; the shard has {table.column_names}.")
        self.image_column = image_columns[0]
        for name in (self.image_column, DEPTH_COLUMN):
            # Decoded below, so that a broken picture can be named.
            table = table.cast_column(name, datasets.Image(decode=False))
        self.table = table
        self.scenes = [self._metadata(row, "scene") for row in table.select_columns(["json", "__key__"])]

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.table)

    def __getitem__(self, index: int) -> Frame:
        """Decodes one frame.

        Raises:
            ValueError: Naming the frame and the field that cannot be used.
        """
        row = self.table[index]
        key = row["__key__"]
        image = self._decode(row, self.image_column).convert("RGB")
        depth = self._decode(row, DEPTH_COLUMN)
        if depth.mode not in ("I;16", "I"):
            raise ValueError(f"Frame {key!r}: {DEPTH_COLUMN} has mode {depth.mode!r}, not 16-bit grey.")
        if depth.size != image.size:
            raise ValueError(f"Frame {key!r}: image is {image.size}, {DEPTH_COLUMN} is {depth.size} (width, height).")
        fov_x_deg = float(self._metadata(row, "fov_x_deg"))
        if not 0.0 < fov_x_deg < 180.0:
            raise ValueError(f"Frame {key!r}: fov_x_deg is {fov_x_deg}, not between 0 and 180.")
        return Frame(
            key=key,
            scene=self.scenes[index],
            image=np.asarray(image),
            depth=np.asarray(depth, dtype=np.float32) / MILLIMETRES_PER_METRE,
            fov_x_deg=fov_x_deg,
        )

    @staticmethod
    def _decode(row: dict[str, Any], column: str) -> Image.Image:
        content = (row[column] or {}).get("bytes")
        if content is None:
            raise ValueError(f"Frame {row['__key__']!r}: no {column}.")
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except (UnidentifiedImageError, OSError) as error:
            raise ValueError(f"Frame {row['__key__']!r}: {column} is not a readable image ({error}).") from error
        return image

    @staticmethod
    def _metadata(row: dict[str, Any], field: str) -> Any:
        content = row["json"]
        if isinstance(content, (str, bytes)):
            content = json.loads(content)
        if content is None or content.get(field) is None:
            raise ValueError(f"Frame {row['__key__']!r}: its json has no {field!r}.")
        return str(content[field]) if field == "scene" else content[field]


def split_by_scene(scenes: Sequence[str], validation_fraction: float) -> tuple[list[int], list[int]]:
    """Splits frame indices so that no scene is on both sides.

    A scene's side depends on a hash of its name alone: adding shards never moves a frame across.

    Args:
        scenes: Scene name of each frame.
        validation_fraction: Expected share of the scenes that go to validation, in [0, 1).

    Returns:
        Indices for training and for validation, both increasing.
    """
    if not 0.0 <= validation_fraction < 1.0:
        raise ValueError(f"validation_fraction must be in [0, 1), got {validation_fraction}.")

    def in_validation(scene: str) -> bool:
        digest = hashlib.sha256(scene.encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64 < validation_fraction

    sides = {scene: in_validation(scene) for scene in set(scenes)}
    train = [i for i, scene in enumerate(scenes) if not sides[scene]]
    validation = [i for i, scene in enumerate(scenes) if sides[scene]]
    if validation_fraction > 0 and not validation:
        logger.warning(f"None of the {len(sides)} scenes fell to validation: nothing will be validated.")
    return train, validation
