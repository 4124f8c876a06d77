"""From rendered radiance and depth to the files of a frame: tone mapping, checks, WebP, 16-bit PNG, JSON."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
from PIL import Image
from shard_writer import FrameRejected

from .geometry import Camera
from .parts import MIN_CAMERA_DISTANCE

MAX_DEPTH = 65.0  # metres; 16 bits hold 65.535 m in millimetres
MIN_KNOWN = 0.35  # share of pixels that must have depth
MIN_LOG_RANGE = 0.15  # of ln depth, between the 5% and the 95% quantile
MIN_CONTRAST = 8.0  # standard deviation of all levels, of 255
MIN_LEVEL = 10  # median level, of 255
WEBP_QUALITY = 92


def tone_map(radiance: np.ndarray, stops: float, highlights: float = np.inf) -> np.ndarray:
    """Exposes linear light for its own brightness, as a camera does, and compresses the highlights.

    Args:
        radiance: H×W×3, linear, at least 0.
        stops: Exposure over (positive) or under what is usual, in powers of two.
        highlights: How many times brighter than middle grey the 97% quantile may become; beyond that, the exposure is
            reduced.

    Returns:
        H×W×3 uint8, sRGB.
    """
    radiance = np.nan_to_num(np.asarray(radiance, dtype=np.float64), posinf=1e4).clip(0, 1e4)
    luminance = radiance @ (0.2126, 0.7152, 0.0722)
    # The log mean of most pixels becomes middle grey; bright lamps and dark corners do not count.
    low, high = np.quantile(luminance, [0.02, 0.95])
    key = np.exp(np.log(luminance.clip(low, high) + 1e-6).mean())
    bright = np.quantile(luminance, 0.97) + 1e-6
    x = radiance * min(0.2 / key * 2.0**stops, 0.2 * highlights / bright)
    # Narkowicz's fit of the ACES curve.
    mapped = (x * (2.51 * x + 0.03)) / (x * (2.43 * x + 0.59) + 0.14)
    mapped = mapped.clip(0, 1)
    srgb = np.where(mapped <= 0.0031308, 12.92 * mapped, 1.055 * mapped ** (1 / 2.4) - 0.055)
    return (255 * srgb + 0.5).astype(np.uint8)


def millimetres(depth: np.ndarray) -> np.ndarray:
    """Planar depth in metres as 16-bit millimetres; 0 beyond 65 m (the sky is at 1e10 m)."""
    known = np.isfinite(depth) & (depth > 0) & (depth <= MAX_DEPTH)
    return np.where(known, np.round(1000 * np.where(known, depth, 0)), 0).astype(np.uint16)


def shake(radiance: np.ndarray, move: tuple[float, float]) -> np.ndarray:
    """Blurs a picture along a line, as a camera does that turns during the exposure.

    Args:
        radiance: H×W×3, linear.
        move: Way of the picture to the right and down, as shares of its width; the middle of the way is where the
            picture was, so that depth still fits.

    Returns:
        H×W×3; beyond the edges the picture's outermost pixels are repeated.
    """
    width = radiance.shape[1]
    steps = int(np.ceil(width * np.hypot(*move)))
    if steps < 1:
        return radiance
    total = np.zeros_like(radiance, dtype=np.float64)
    rows, columns = np.indices(radiance.shape[:2])
    for part in np.linspace(-0.5, 0.5, steps + 1):
        down, right = (int(np.round(part * width * way)) for way in (move[1], move[0]))
        total += radiance[(rows - down).clip(0, len(radiance) - 1), (columns - right).clip(0, width - 1)]
    return total / (steps + 1)


def add_grain(image: np.ndarray, deviation: float, rng: np.random.Generator) -> np.ndarray:
    """Adds a sensor's noise, strongest at middle grey.

    Args:
        image: H×W×3 uint8.
        deviation: Standard deviation at middle grey, of levels from 0 to 1.
        rng: Draws it.

    Returns:
        H×W×3 uint8.
    """
    if not deviation:
        return image
    levels = image / 255
    noise = rng.normal(size=image.shape) * 0.6 + rng.normal(size=(*image.shape[:2], 1)) * 0.8
    noisy = levels + deviation * 2 * np.sqrt((levels * (1 - levels)).clip(0.01)) * noise
    return (255 * noisy.clip(0, 1) + 0.5).astype(np.uint8)


def check_frame(image: np.ndarray, depth: np.ndarray, camera: Camera, closest: float = MIN_CAMERA_DISTANCE) -> None:
    """Lets a rendered frame pass that is worth training on.

    Args:
        image: H×W×3 uint8.
        depth: H×W planar depth in metres, as rendered.
        camera: What it was rendered with.
        closest: Metres that everything must be away from the camera.

    Raises:
        FrameRejected: With the first reason of `little_depth`, `too_close`, `depth_range`, `too_dark`,
            `one_colour`.
    """
    height, width = depth.shape
    known = depth <= MAX_DEPTH
    if known.mean() < MIN_KNOWN:
        raise FrameRejected("little_depth", f"{known.mean():.1%} of the pixels have a depth up to {MAX_DEPTH:g} m")
    nearest = float((depth * np.linalg.norm(camera.rays(width, height), axis=-1)).min())
    if nearest < closest:
        raise FrameRejected("too_close", f"something is {nearest:.3f} m from the camera")
    near, far = np.quantile(np.log(depth[known]), [0.05, 0.95])
    if far - near < MIN_LOG_RANGE:
        raise FrameRejected("depth_range", f"depths differ by {np.exp(far - near) - 1:.1%}")
    if np.median(image) < MIN_LEVEL:
        raise FrameRejected("too_dark", f"half of all levels are below {MIN_LEVEL} of 255")
    if image.std() < MIN_CONTRAST:
        raise FrameRejected("one_colour", f"levels vary by {image.std():.2f} of 255")


def encode_frame(image: np.ndarray, depth: np.ndarray, metadata: dict[str, Any]) -> dict[str, bytes]:
    """The files of a frame by extension: `webp`, `depth.png`, `json`."""
    picture, depth_png = io.BytesIO(), io.BytesIO()
    Image.fromarray(image).save(picture, format="WEBP", quality=WEBP_QUALITY, method=6)
    Image.fromarray(millimetres(depth)).save(depth_png, format="PNG", optimize=True)
    return {
        "webp": picture.getvalue(),
        "depth.png": depth_png.getvalue(),
        "json": json.dumps(metadata).encode(),
    }
