"""A picture of the best, the median and the worst images of an evaluation, with their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ...export.images import colorize_depth
from ..data.benchmark_data import BenchmarkData, Sample
from .protocols import ProtocolData
from .report import is_scored

EACH = 3
TILE_WIDTH = 320
MARGIN = 8
TEXT_SIZE = 14
LINE = 20
UNKNOWN_GREY = 200
# Relative error at the bright end of the error map; the same in all pictures, so that they can be compared.
MAX_ERROR = 0.5
ERROR_COLORMAP = "inferno"
COLUMNS = (
    "image",
    "truth",
    "prediction, aligned",
    f"relative error, black 0 to yellow {MAX_ERROR} or more",
)


def pick_images(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    """Chooses the images to show, by AbsRel.

    Args:
        entries: The report's `per_image`.

    Returns:
        Rank ("best", "median" or "worst") and entry of up to three of each, best first; of a few images, each once.
    """
    ranked = sorted((entry for entry in entries if is_scored(entry)), key=lambda entry: entry["abs_rel"])
    count = len(ranked)
    middle = max(0, count // 2 - EACH // 2)
    starts = {"best": 0, "median": middle, "worst": max(0, count - EACH)}
    names: dict[int, str] = {}
    # The extremes first: of a few images, the median may also be the best.
    for name in ("best", "worst", "median"):
        for position in range(starts[name], min(starts[name] + EACH, count)):
            names.setdefault(position, name)
    return [(names[position], ranked[position]) for position in sorted(names)]


def contact_sheet(
    data: BenchmarkData | ProtocolData,
    picked: Sequence[tuple[str, Mapping[str, Any]]],
    predict: Callable[[Sample], NDArray[np.float64]],
) -> NDArray[np.uint8]:
    """Predicts the chosen images again and draws them: a row each of image, truth, prediction and error.

    Truth and aligned prediction share a colour scale, in log depth from the truth's 2 % to its 98 % quantile, red near
    and blue far. Pixels that are not scored are grey in truth and error.

    Args:
        data: The benchmark, or its images with the pixels of a protocol.
        picked: From `pick_images`.
        predict: Returns the aligned prediction of an image, H×W in metres.

    Returns:
        H×W×3, uint8.
    """
    rows = []
    for rank, entry in picked:
        sample = data[data.keys.index(entry["key"])]
        aligned = predict(sample)
        error = np.abs(aligned - sample.depth) / np.where(sample.valid, sample.depth, 1)
        near, far = np.quantile(np.log(sample.depth[sample.valid]), (0.02, 0.98))
        tiles = [
            sample.image,
            _masked(color_depth(np.where(sample.valid, sample.depth, 1), near, far), sample.valid),
            color_depth(aligned, near, far),
            _masked(colorize_depth(np.clip(error / MAX_ERROR, 0, 1), ERROR_COLORMAP), sample.valid),
        ]
        title = f"{rank}: {entry['key']}   AbsRel {entry['abs_rel']:.3f}   δ1 {entry['delta1']:.3f}"
        rows.append((title, tiles))
    return draw_sheet(COLUMNS, rows)


def draw_sheet(columns: Sequence[str], rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]]]]) -> NDArray[np.uint8]:
    """Draws titled rows of pictures below each other, all resized to one width.

    Args:
        columns: The title of each column.
        rows: Title and pictures (H×W×3, uint8) of each row, as many as there are columns.

    Returns:
        H×W×3, uint8.
    """
    rows = [(title, [_shrink(tile) for tile in tiles]) for title, tiles in rows]
    width = MARGIN + len(columns) * (TILE_WIDTH + MARGIN)
    height = MARGIN + LINE + sum(LINE + max(tile.shape[0] for tile in tiles) + MARGIN for _, tiles in rows)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    # Pillow's default font has no Greek letters, and names of images may be in any script.
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")), TEXT_SIZE)
    lefts = [MARGIN + column * (TILE_WIDTH + MARGIN) for column in range(len(columns))]
    for left, column in zip(lefts, columns, strict=True):
        draw.text((left, MARGIN), column, "black", font)
    top = MARGIN + LINE
    for title, tiles in rows:
        draw.text((MARGIN, top), title, "black", font)
        top += LINE
        for left, tile in zip(lefts, tiles, strict=True):
            sheet.paste(Image.fromarray(tile), (left, top))
        top += max(tile.shape[0] for tile in tiles) + MARGIN
    return np.asarray(sheet)


def color_depth(depth: NDArray[np.floating], log_near: float, log_far: float) -> NDArray[np.uint8]:
    """Colours depth by its position between two log depths: H×W×3, uint8."""
    extent = max(log_far - log_near, 1e-6)
    return colorize_depth(np.clip((np.log(depth) - log_near) / extent, 0, 1))


def _masked(picture: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(valid[..., None], picture, np.uint8(UNKNOWN_GREY))


def _shrink(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resizes to the width of a tile."""
    height = max(1, round(picture.shape[0] * TILE_WIDTH / picture.shape[1]))
    return np.asarray(Image.fromarray(picture).resize((TILE_WIDTH, height), Image.Resampling.BOX))
