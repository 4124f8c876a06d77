"""Draws a sheet of random frames with their depth: `python training/prepare/frame_sheet.py SHARDS SHEET.png`.

Reads whatever the trainer reads. Depth is shown as inverse depth, near is red, far is blue, unknown is black; each
frame is coloured for its own range.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from depthfm_diffusers.export.images import colorize_depth
from depthfm_diffusers.frames import Frame, SourceConfig, open_source

TILE_HEIGHT = 192  # pixels


def draw_tile(frame: Frame) -> np.ndarray:
    """A frame's image with its depth to the right of it, H×2·W×3 uint8."""
    known = np.isfinite(frame.depth) & (frame.depth > 0)
    inverse = 1 / np.where(known, frame.depth, np.inf)
    near, far = np.quantile(inverse[known], [0.98, 0.02]) if known.any() else (1.0, 0.0)
    depth = colorize_depth(1 - ((inverse - far) / max(near - far, 1e-9)).clip(0, 1))
    depth[~known] = 0
    return np.concatenate([np.asarray(frame.image), depth], axis=1)


def draw_sheet(tiles: Sequence[np.ndarray], columns: int) -> Image.Image:
    """Puts tiles, brought to one height, side by side in rows; tiles narrower than the widest are centred."""
    images = [Image.fromarray(tile) for tile in tiles]
    images = [image.resize((round(image.width * TILE_HEIGHT / image.height), TILE_HEIGHT)) for image in images]
    width = max(image.width for image in images) + 4
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (width * columns, (TILE_HEIGHT + 4) * rows), "white")
    for number, image in enumerate(images):
        left = number % columns * width + (width - image.width) // 2
        sheet.paste(image, (left, number // columns * (TILE_HEIGHT + 4)))
    return sheet


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("source", metavar="SHARDS", help="folder, file or pattern, as --train_data takes it")
    parser.add_argument("sheet", type=Path, metavar="FILE", help="picture to write")
    parser.add_argument("--frames", type=int, default=60, metavar="N", help="how many, at most all")
    parser.add_argument("--columns", type=int, default=4, metavar="N", help="frames side by side")
    parser.add_argument("--seed", type=int, default=0, help="of the choice")
    options = parser.parse_args(arguments)
    if options.frames < 1 or options.columns < 1:
        parser.error("--frames and --columns must be at least 1")
    source = open_source(SourceConfig(options.source))
    chosen = np.random.default_rng(options.seed).permutation(len(source))[: options.frames]
    draw_sheet([draw_tile(source[int(index)]) for index in chosen], options.columns).save(options.sheet)
    return 0


if __name__ == "__main__":
    sys.exit(main())
