"""Patterns drawn with NumPy: cloths, carpets, wallpaper, printed paper, pictures. They repeat without a seam."""

from __future__ import annotations

import colorsys

import numpy as np

PATTERNS = (
    "stripes",
    "checks",
    "plaid",
    "dots",
    "zigzag",
    "rosettes",
    "patches",
    "print",
    "marble",
    "wood",
    "picture",
)


def draw_pattern(kind: str, seed: int, size: int = 256) -> np.ndarray:
    """Draws one pattern.

    Args:
        kind: One of `PATTERNS`.
        seed: Decides colours, counts and places.
        size: Side in pixels.

    Returns:
        size×size×3 float32, sRGB in [0, 1]. The left edge continues at the right one, the top at the bottom.

    Raises:
        ValueError: If `kind` is not a pattern.
    """
    if kind not in PATTERNS:
        raise ValueError(f"kind must be one of {PATTERNS}, got {kind!r}.")
    rng = np.random.default_rng(seed)
    ticks = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(ticks, ticks)
    colours = _palette(rng, 5)
    image = _DRAW[kind](rng, x, y, colours)
    # Threads, fibres and dirt: nothing photographed has one colour throughout.
    image = image * (1 + rng.uniform(0.02, 0.1) * _noise(rng, size, 0.6)[..., None])
    return image.clip(0, 1).astype(np.float32)


def _palette(rng: np.random.Generator, number: int) -> np.ndarray:
    """Colours around one hue, with one that stands out; number×3."""
    hue, spread, saturation = rng.uniform(0, 1), rng.uniform(0, 0.12), rng.uniform(0.0, 0.8)
    colours = [
        colorsys.hsv_to_rgb(
            (hue + rng.normal(0, spread)) % 1, float(np.clip(saturation * rng.uniform(0.3, 1.2), 0, 1)), value
        )
        for value in rng.permutation(np.linspace(rng.uniform(0.1, 0.5), rng.uniform(0.75, 1.0), number))
    ]
    colours[-1] = colorsys.hsv_to_rgb((hue + rng.uniform(0.3, 0.7)) % 1, rng.uniform(0.2, 0.9), rng.uniform(0.4, 0.95))
    return np.array(colours)


def _noise(rng: np.random.Generator, size: int, falloff: float) -> np.ndarray:
    """Noise that repeats, of mean 0 and deviation 1; the higher `falloff`, the smoother."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]) * size
    frequency[0, 0] = 1
    spectrum = np.fft.fft2(rng.normal(size=(size, size))) / frequency**falloff
    spectrum[0, 0] = 0
    noise = np.fft.ifft2(spectrum).real
    return noise / noise.std()


def _blend(levels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Colours interpolated along levels in [0, 1]."""
    places = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(levels, places, colours[:, channel]) for channel in range(3)], -1)


def _bands(rng: np.random.Generator, positions: np.ndarray, number: int) -> np.ndarray:
    """Numbers of bands of random widths that repeat with period 1."""
    edges = np.sort(rng.uniform(0, 1, number - 1))
    return np.searchsorted(edges, positions % 1)


def _stripes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    across, along = [(1, 0), (0, 1), (1, 1)][rng.integers(3)]
    repeats = int(rng.integers(1, 7))
    return colours[_bands(rng, repeats * (across * x + along * y), int(rng.integers(2, 6)))]


def _checks(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    number = 2 * int(rng.integers(1, 8))
    odd = (np.floor(number * x) + np.floor(number * y)) % 2
    return colours[np.where(odd > 0, 0, 1)]


def _plaid(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    repeats, number = int(rng.integers(1, 5)), int(rng.integers(2, 6))
    bands = rng.permutation(5)
    generator = np.random.default_rng(int(rng.integers(2**32)))
    edges = np.sort(generator.uniform(0, 1, number - 1))
    warp = colours[bands[np.searchsorted(edges, repeats * x % 1)]]
    weft = colours[bands[np.searchsorted(edges, repeats * y % 1)]]
    return (warp + weft) / 2


def _dots(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    number, radius = int(rng.integers(2, 12)), rng.uniform(0.15, 0.42)
    row = np.floor(number * y)
    shift = 0.5 * (row % 2) if number % 2 == 0 else 0.0
    dx, dy = (number * x + shift) % 1 - 0.5, number * y % 1 - 0.5
    return colours[(np.hypot(dx, dy) < radius).astype(int)]


def _zigzag(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    teeth, rows = int(rng.integers(2, 9)), int(rng.integers(1, 5))
    wave = np.abs(2 * (teeth * x % 1) - 1) if rng.random() < 0.5 else 0.5 + 0.5 * np.sin(2 * np.pi * teeth * x)
    return colours[_bands(rng, rows * y + rng.uniform(0.1, 0.5) * wave, int(rng.integers(2, 5)))]


def _rosettes(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    image = np.broadcast_to(colours[0], (*x.shape, 3)).copy()
    for _ in range(int(rng.integers(4, 24))):
        dx, dy = ((ticks - rng.uniform(0, 1) + 0.5) % 1 - 0.5 for ticks in (x, y))
        petals, size = int(rng.integers(3, 9)), rng.uniform(0.04, 0.2)
        radius, angle = np.hypot(dx, dy), np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi)
        edge = size * (0.65 + 0.35 * np.cos(petals * angle))
        image[radius < edge] = colours[1 + rng.integers(3)]
        image[radius < 0.3 * size] = colours[-1]
    return image


def _patches(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The nearest of random points decides the colour: terrazzo, patchwork, stones."""
    points = rng.uniform(0, 1, (int(rng.integers(8, 60)), 2))
    nearest, owner = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=int)
    for number, point in enumerate(points):
        dx, dy = ((ticks - centre + 0.5) % 1 - 0.5 for ticks, centre in zip((x, y), point, strict=True))
        distance = np.hypot(dx, dy)
        closer = distance < nearest
        nearest[closer], owner[closer] = distance[closer], number
    return colours[rng.integers(5, size=len(points))][owner]


def _print(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Columns of dark bars that look like text from afar, and a box that looks like a picture."""
    paper = rng.uniform(0.75, 1.0)
    image = np.full((*x.shape, 3), paper) * (1, 1, rng.uniform(0.85, 1))
    lines, columns = int(rng.integers(12, 34)), int(rng.integers(1, 4))
    words = rng.random((lines, 40 * columns)) < 0.78
    row, letter = (lines * y).astype(int), (40 * columns * x).astype(int)
    ink = words[row, letter] & (lines * y % 1 < 0.55) & (columns * x % 1 > 0.08) & (columns * x % 1 < 0.94)
    image[ink] = rng.uniform(0.05, 0.35)
    left, top, width, height = rng.uniform(0, 0.5), rng.uniform(0, 0.6), rng.uniform(0.2, 0.5), rng.uniform(0.1, 0.35)
    box = (x > left) & (x < left + width) & (y > top) & (y < top + height)
    image[box] = _blend(np.tanh(_noise(rng, len(x), 1.4))[box] / 2 + 0.5, colours)
    return image


def _marble(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    veins = np.abs(np.sin(2 * np.pi * (x + y) + rng.uniform(1, 3) * _noise(rng, len(x), 1.6)))
    pale = 1 - rng.uniform(0.05, 0.4) * (1 - colours[:2])
    if rng.random() < 0.25:
        pale = pale * rng.uniform(0.1, 0.4)
    return _blend(veins ** rng.uniform(0.2, 0.7), np.stack([0.55 * pale[0], 0.9 * pale[1], pale[0]]))


def _wood(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    size = len(x)
    # Fibres: noise that is smooth along x.
    fibres = np.fft.ifft2(
        np.fft.fft2(_noise(rng, size, 0.3)) / (1 + np.abs(np.fft.fftfreq(size) * size)[None] * 2)
    ).real
    rings = np.sin(2 * np.pi * (int(rng.integers(2, 7)) * y + rng.uniform(0.1, 0.5) * _noise(rng, size, 2.0)))
    levels = 0.5 + 0.25 * rings + 0.2 * fibres / fibres.std()
    hue, saturation, value = rng.uniform(0.05, 0.11), rng.uniform(0.2, 0.65), rng.uniform(0.3, 0.9)
    pale = np.array(colorsys.hsv_to_rgb(hue, saturation, value))
    return _blend(levels, np.stack([pale * rng.uniform(0.5, 0.8), pale]))


def _picture(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Soft shapes of many colours, as paintings, posters and packaging have."""
    levels = np.tanh(_noise(rng, len(x), rng.uniform(1.2, 2.0))) / 2 + 0.5
    image = _blend(levels, colours[rng.permutation(5)])
    for _ in range(int(rng.integers(0, 7))):
        dx, dy = ((ticks - rng.uniform(0, 1) + 0.5) % 1 - 0.5 for ticks in (x, y))
        width, height = rng.uniform(0.03, 0.3, 2)
        inside = (
            np.hypot(dx / width, dy / height) < 1 if rng.random() < 0.5 else (abs(dx) < width) & (abs(dy) < height)
        )
        image[inside] = rng.uniform(0, 1, 3) if rng.random() < 0.3 else colours[rng.integers(5)]
    return image


_DRAW = {
    "stripes": _stripes,
    "checks": _checks,
    "plaid": _plaid,
    "dots": _dots,
    "zigzag": _zigzag,
    "rosettes": _rosettes,
    "patches": _patches,
    "print": _print,
    "marble": _marble,
    "wood": _wood,
    "picture": _picture,
}
