"""Materials of what is not furniture (floors, walls, façades, ground) and light, drawn at random."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Surface:
    """What a floor, wall or ground is made of.

    Attributes:
        kind: `plain`, `noise` (blotches of two colours), `bricks` (also tiles, floorboards and façades), `image`, or
            one of `patterns.PATTERNS`.
        colour: Linear RGB.
        second: Linear RGB of blotches, or of the joints between bricks.
        size: Metres: width and height of a brick, of the image or of the pattern, or the scale of blotches twice.
        joint: Metres between bricks.
        offset: By what part of its length a row of bricks is shifted against the one below.
        roughness: From 0 (mirror) to 1.
        image: Number of the image, for `image`; seed of the drawing, for patterns.
        metallic: 0 or 1.
    """

    kind: str
    colour: Colour
    second: Colour
    size: tuple[float, float]
    joint: float = 0.0
    offset: float = 0.0
    roughness: float = 0.7
    image: int = -1
    metallic: float = 0.0


@dataclass(frozen=True)
class AreaLight:
    """A square lamp: centre, side in metres, power in watts, linear RGB, and the direction in which it shines."""

    position: tuple[float, float, float]
    side: float
    power: float
    colour: Colour
    direction: tuple[float, float, float] = (0.0, 0.0, -1.0)


@dataclass(frozen=True)
class Sky:
    """Daylight.

    Attributes:
        elevation: Of the sun over the horizon, radians.
        azimuth: Of the sun, radians.
        strength: Factor on its brightness.
        clouds: Share of the sky that clouds cover, from 0 to 1.
        environment: Number of the environment map to use instead; -1: none.
    """

    elevation: float
    azimuth: float
    strength: float
    clouds: float
    environment: int = -1


def draw_colour(
    rng: np.random.Generator, hue: tuple[float, float], saturation: tuple[float, float], value: tuple[float, float]
) -> Colour:
    """A linear RGB colour; hue, saturation and value of its sRGB form are drawn from ranges."""
    srgb = np.array(colorsys.hsv_to_rgb(rng.uniform(*hue) % 1, rng.uniform(*saturation), rng.uniform(*value)))
    red, green, blue = (srgb**2.2).tolist()
    return red, green, blue


def lamp_colour(rng: np.random.Generator) -> Colour:
    """From the yellow of a bulb to the blue of a north window."""
    warmth = rng.uniform(-0.25, 1)
    return 1.0, float(1 - 0.22 * warmth), float(1 - 0.55 * warmth)


def draw_sky(rng: np.random.Generator, environments: int) -> Sky:
    """Sun and clouds, or now and then one of the environment maps."""
    return Sky(
        elevation=float(np.radians(rng.uniform(12, 70))),
        azimuth=float(rng.uniform(0, 2 * np.pi)),
        strength=float(rng.uniform(0.6, 1.3)),
        clouds=float(rng.uniform(0, 1)),
        environment=int(rng.integers(environments)) if environments and rng.random() < 0.7 else -1,
    )


def draw_evening_sky(rng: np.random.Generator, environments: int) -> Sky:
    """A low sun: long shadows and warm light, or dusk."""
    sky = draw_sky(rng, environments)
    return replace(sky, elevation=float(np.radians(rng.uniform(0.5, 11))), clouds=sky.clouds * 0.7)


def plain_surface(colour: Colour, roughness: float) -> Surface:
    """One colour throughout."""
    return Surface("plain", colour, colour, (1.0, 1.0), roughness=roughness)


def metal_surface(rng: np.random.Generator) -> Surface:
    """Steel, brass or copper, polished or brushed."""
    hue = [(0.55, 0.65), (0.09, 0.13), (0.03, 0.06)][rng.choice(3, p=[0.75, 0.15, 0.1])]
    colour = draw_colour(rng, hue, (0.02, 0.06) if hue[0] > 0.5 else (0.35, 0.6), (0.7, 0.95))
    return Surface("plain", colour, colour, (1.0, 1.0), roughness=float(rng.uniform(0.12, 0.45)), metallic=1.0)


def pattern_surface(rng: np.random.Generator, kinds: Sequence[str], size: float) -> Surface:
    """A drawn pattern.

    Args:
        rng: Chooses the kind and the seed of the drawing.
        kinds: Some of `patterns.PATTERNS`.
        size: Metres after which it repeats.
    """
    white = (1.0, 1.0, 1.0)
    return Surface(
        str(rng.choice(list(kinds))),
        white,
        white,
        (size, size),
        roughness=float(rng.uniform(0.25, 0.95)),
        image=int(rng.integers(2**31)),
    )


def table_surface(rng: np.random.Generator, images: int) -> Surface:
    """Wood more than anything; stone, paint, oilcloth."""
    kind = rng.choice(
        ["wood", "boards", "marble", "plain", "cloth", "speckles", "image"], p=[0.34, 0.1, 0.1, 0.16, 0.16, 0.07, 0.07]
    )
    if kind == "wood":
        return pattern_surface(rng, ("wood",), float(rng.uniform(0.4, 1.2)))
    if kind == "marble":
        return pattern_surface(rng, ("marble",), float(rng.uniform(0.4, 1.5)))
    if kind == "cloth":
        return cloth_surface(rng)
    if kind == "image" and (image := _image(rng, images, 1.0)):
        return image
    if kind == "speckles":
        return _noise(rng, draw_colour(rng, (0, 1), (0, 0.3), (0.3, 0.9)), float(rng.uniform(0.004, 0.03)), 0.5)
    if kind == "plain":
        return plain_surface(draw_colour(rng, (0, 1), (0, 0.6), (0.1, 0.97)), float(rng.uniform(0.15, 0.9)))
    wood = draw_colour(rng, (0.05, 0.11), (0.2, 0.65), (0.3, 0.85))
    return _bricks(rng, wood, 3.0, float(rng.uniform(0.06, 0.2)), float(rng.uniform(0.001, 0.005)), 0.37)


def cloth_surface(rng: np.random.Generator) -> Surface:
    """A printed or woven cloth."""
    kinds = ("stripes", "checks", "plaid", "dots", "zigzag", "rosettes", "picture", "patches")
    return replace(pattern_surface(rng, kinds, float(rng.uniform(0.08, 0.6))), roughness=0.9)


def backdrop_surface(rng: np.random.Generator, images: int) -> Surface:
    """What is behind a single thing: paper of one colour, a wall, a patterned cloth, a picture."""
    draw = rng.random()
    if draw < 0.3:
        return plain_surface(draw_colour(rng, (0, 1), (0, 0.7), (0.05, 0.97)), 0.9)
    if draw < 0.6:
        return wall_surface(rng, images)
    if draw < 0.85:
        return cloth_surface(rng)
    return pattern_surface(rng, ("picture", "marble", "wood", "print"), float(rng.uniform(0.5, 2.5)))


def _image(rng: np.random.Generator, images: int, share: float = 0.7) -> Surface | None:
    """One of the user's textures, if there are any, now and then."""
    if not images or rng.random() > share:
        return None
    side = float(rng.uniform(0.8, 3.0))
    tint = draw_colour(rng, (0, 1), (0, 0.25), (0.75, 1))
    return Surface(
        "image", tint, tint, (side, side), roughness=float(rng.uniform(0.3, 1)), image=int(rng.integers(images))
    )


def _bricks(
    rng: np.random.Generator, colour: Colour, width: float, height: float, joint: float, offset: float
) -> Surface:
    darker = rng.uniform(0.25, 0.7)
    second = (colour[0] * darker, colour[1] * darker, colour[2] * darker)
    return Surface("bricks", colour, second, (width, height), joint, offset, float(rng.uniform(0.25, 0.8)))


def _noise(rng: np.random.Generator, colour: Colour, scale: float, contrast: float) -> Surface:
    factor = 1 - contrast
    second = (colour[0] * factor, colour[1] * factor, colour[2] * factor)
    return Surface("noise", colour, second, (scale, scale), roughness=float(rng.uniform(0.6, 1)))


def floor_surface(rng: np.random.Generator, images: int) -> Surface:
    """Floorboards, tiles, carpet, concrete."""
    if image := _image(rng, images):
        return image
    kind = rng.choice(["boards", "tiles", "carpet", "concrete"], p=[0.45, 0.25, 0.2, 0.1])
    if kind == "boards":
        wood = draw_colour(rng, (0.05, 0.11), (0.25, 0.65), (0.3, 0.85))
        return _bricks(rng, wood, rng.uniform(0.9, 2.0), rng.uniform(0.08, 0.2), 0.004, 0.37)
    if kind == "tiles":
        side = rng.uniform(0.15, 0.6)
        return _bricks(rng, draw_colour(rng, (0, 1), (0, 0.3), (0.35, 0.95)), side, side, 0.008, 0.0)
    if kind == "carpet":
        return _noise(rng, draw_colour(rng, (0, 1), (0.05, 0.6), (0.25, 0.85)), 0.03, 0.45)
    return _noise(rng, draw_colour(rng, (0.05, 0.15), (0, 0.1), (0.4, 0.75)), 0.8, 0.25)


def wall_surface(rng: np.random.Generator, images: int) -> Surface:
    """Paint, plaster, bricks, tiles, panels."""
    if image := _image(rng, images, 0.4):
        return image
    kind = rng.choice(["paint", "plaster", "bricks", "tiles", "panels"], p=[0.45, 0.25, 0.1, 0.1, 0.1])
    paint = draw_colour(rng, (0, 1), (0, 0.35), (0.6, 0.97))
    if kind == "paint":
        return Surface("plain", paint, paint, (1.0, 1.0), roughness=0.8)
    if kind == "plaster":
        return _noise(rng, paint, float(rng.uniform(0.1, 0.8)), 0.18)
    if kind == "bricks":
        return _bricks(rng, draw_colour(rng, (0.0, 0.07), (0.1, 0.55), (0.45, 0.85)), 0.24, 0.075, 0.012, 0.5)
    if kind == "tiles":
        side = rng.uniform(0.1, 0.3)
        return _bricks(rng, paint, side, side, 0.006, 0.0)
    wood = draw_colour(rng, (0.05, 0.11), (0.2, 0.6), (0.35, 0.85))
    return _bricks(rng, wood, rng.uniform(0.1, 0.3), 4.0, 0.008, 0.0)


def ceiling_surface(rng: np.random.Generator) -> Surface:
    """Off-white paint."""
    paint = draw_colour(rng, (0.05, 0.2), (0, 0.08), (0.8, 0.97))
    return Surface("plain", paint, paint, (1.0, 1.0), roughness=0.9)


def ground_surface(rng: np.random.Generator, images: int) -> Surface:
    """Grass, gravel, sand, paving, snow."""
    if image := _image(rng, images, 0.5):
        return image
    kind = rng.choice(["grass", "soil", "paving", "pale"], p=[0.4, 0.2, 0.3, 0.1])
    if kind == "grass":
        return _noise(rng, draw_colour(rng, (0.2, 0.32), (0.35, 0.65), (0.3, 0.6)), float(rng.uniform(0.15, 1.5)), 0.5)
    if kind == "soil":
        return _noise(
            rng, draw_colour(rng, (0.05, 0.12), (0.15, 0.45), (0.35, 0.75)), float(rng.uniform(0.1, 1.0)), 0.45
        )
    if kind == "paving":
        side = rng.uniform(0.3, 1.0)
        return _bricks(
            rng, draw_colour(rng, (0, 1), (0, 0.15), (0.4, 0.8)), side, side * rng.uniform(0.5, 1), 0.015, 0.5
        )
    return _noise(rng, draw_colour(rng, (0.5, 0.65), (0, 0.08), (0.8, 0.95)), 1.0, 0.15)


def road_surface(rng: np.random.Generator) -> Surface:
    """Asphalt."""
    return _noise(rng, draw_colour(rng, (0.5, 0.7), (0, 0.08), (0.22, 0.5)), float(rng.uniform(0.05, 0.6)), 0.3)


def pavement_surface(rng: np.random.Generator) -> Surface:
    """Slabs of a pavement."""
    side = rng.uniform(0.3, 0.7)
    return _bricks(rng, draw_colour(rng, (0, 0.15), (0, 0.15), (0.45, 0.8)), side, side, 0.012, 0.5)


def facade_surface(rng: np.random.Generator, images: int) -> Surface:
    """A wall with rows of windows (dark bricks with wide joints), or without."""
    if rng.random() < 0.25:
        return wall_surface(rng, images)
    wall = draw_colour(rng, (0, 0.16), (0.02, 0.5), (0.45, 0.95))
    glass = draw_colour(rng, (0.5, 0.65), (0.1, 0.5), (0.12, 0.45))
    floor_height, bay = float(rng.uniform(2.8, 3.8)), float(rng.uniform(2.3, 3.6))
    return Surface("bricks", glass, wall, (bay, floor_height), float(rng.uniform(0.9, 1.4)), 0.0, 0.35)
