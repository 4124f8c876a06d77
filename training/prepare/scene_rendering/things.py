"""Random small things: crockery, cutlery, vases, bottles, fruit, plants, books, boxes, papers. Metres."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .shapes import JOINT, Part, Point, Slab, Swept, Thing, Turned, make_thing
from .surfaces import Surface, draw_colour, metal_surface, pattern_surface, plain_surface

PLATE_FLOOR = 0.004  # thickness of a plate's well


def _ceramic(rng: np.random.Generator) -> Surface:
    draw = rng.random()
    if draw < 0.4:
        return plain_surface(draw_colour(rng, (0.05, 0.2), (0, 0.12), (0.75, 0.97)), float(rng.uniform(0.1, 0.4)))
    if draw < 0.8:
        return plain_surface(draw_colour(rng, (0, 1), (0.2, 0.9), (0.2, 0.9)), float(rng.uniform(0.1, 0.6)))
    return pattern_surface(rng, ("stripes", "dots", "rosettes", "zigzag", "picture"), 0.15)


def _curve(points: list[tuple[float, float]], steps: int = 14) -> list[tuple[float, float]]:
    """A smooth line through points (Catmull-Rom)."""
    given = np.array([points[0], *points, points[-1]])
    line = []
    for start in range(len(points) - 1):
        a, b, c, d = given[start : start + 4]
        for t in np.linspace(0, 1, steps, endpoint=False):
            spot = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
            line.append((float(spot[0]), float(spot[1])))
    return [*line, points[-1]]


def _vessel(outside: list[tuple[float, float]], wall: float, floor: float) -> tuple[tuple[float, float], ...]:
    """Profile of an open vessel: up its outer side, over the rim, down its inner side."""
    inside = [(max(radius - wall, 0.001), max(height, floor)) for radius, height in reversed(outside)]
    return ((0.0005, outside[0][1]), *outside, *inside, (0.0005, floor))


def draw_cup(rng: np.random.Generator) -> Thing:
    """A cup or mug with a handle, often with something to drink in it."""
    return make_thing("cup", tuple(_cup(rng, _ceramic(rng), float(rng.uniform(0.03, 0.048)))))


def _cup(rng: np.random.Generator, ceramic: Surface, rim: float) -> list[Part]:
    """Parts of a cup whose rim has a radius; the handle is at +x."""
    height = float(rng.uniform(0.05, 0.11))
    foot = rim * float(rng.uniform(0.55, 1.0))
    outside = _curve([(foot, 0.0), (rim * rng.uniform(0.9, 1.02), height * rng.uniform(0.4, 0.6)), (rim, height)], 6)
    radii, heights = zip(*outside, strict=True)
    parts: list[Part] = [Turned(_vessel(outside, 0.0035, 0.006), ceramic)]
    if rng.random() < 0.75:
        level = height * float(rng.uniform(0.6, 0.88))
        radius = float(np.interp(level, heights, radii)) - 0.003
        drink = plain_surface(draw_colour(rng, (0.03, 0.12), (0.3, 0.9), (0.08, 0.8)), 0.15)
        surface = ((0.0005, level - 0.002), (radius, level - 0.002), (radius, level), (0.0005, level))
        parts.append(Turned(surface, drink))
    if rng.random() < 0.85:
        angles = np.linspace(-1.25, 1.25, 9)
        reach, middle, extent = 0.026 * rng.uniform(0.8, 1.2), height * 0.53, height * 0.3
        inner = float(np.interp(middle, heights, radii)) - 0.006
        line = tuple((float(inner + reach * np.cos(a)), 0.0, float(middle + extent * np.sin(a))) for a in angles)
        width = float(rng.uniform(0.003, 0.006))
        parts.append(Swept(line, ((width, width * 0.7),) * 9, ceramic))
    return parts


def draw_plate(rng: np.random.Generator) -> Thing:
    """A plate or saucer; things can stand in its well."""
    radius = float(rng.uniform(0.065, 0.085) if rng.random() < 0.5 else rng.uniform(0.09, 0.145))
    plate, well, _ = _plate(rng, _ceramic(rng), radius)
    return make_thing("plate", (plate,), (PLATE_FLOOR, well - 0.004))


def _plate(rng: np.random.Generator, ceramic: Surface, radius: float) -> tuple[Turned, float, float]:
    """A plate, the radius of its well, and the height of its rim."""
    height, well = radius * float(rng.uniform(0.12, 0.25)), radius * float(rng.uniform(0.5, 0.7))
    outside = _curve([(well, 0.0), ((well + radius) / 2, 0.45 * height), (radius, height)], 5)
    return Turned(_vessel(outside, 0.003, PLATE_FLOOR), ceramic), well, height


def draw_served_cup(rng: np.random.Generator) -> Thing:
    """A cup on its saucer, mostly with a spoon that lies on the saucer's rim."""
    ceramic, rim = _ceramic(rng), float(rng.uniform(0.03, 0.045))
    radius = rim * float(rng.uniform(1.7, 2.0))
    saucer, _, height = _plate(rng, ceramic, radius)
    parts = [saucer, *(_raised(part, PLATE_FLOOR + JOINT) for part in _cup(rng, ceramic, rim))]
    if rng.random() < 0.75:
        # Beside the cup, on two points of the rim.
        line, widths = _spoon(2.2 * float(np.sqrt(radius**2 - (rim + 0.013) ** 2)))
        beside = tuple((x, -rim - 0.013, z - line[0][2] + height + 0.0015) for x, _, z in line)
        parts.append(Swept(beside, widths, metal_surface(rng)))
    return make_thing("served cup", tuple(parts))


def _raised(part: Part, height: float) -> Part:
    """A turned or swept part, moved upwards."""
    if isinstance(part, Turned):
        return replace(part, profile=tuple((radius, z + height) for radius, z in part.profile))
    if isinstance(part, Swept):
        return replace(part, line=tuple((x, y, z + height) for x, y, z in part.line))
    return replace(part, middle=(*part.middle[:2], part.middle[2] + height))


def draw_bowl(rng: np.random.Generator) -> Thing:
    """A bowl, at times with fruit in it."""
    radius = float(rng.uniform(0.05, 0.14))
    height, foot = radius * float(rng.uniform(0.4, 0.9)), radius * float(rng.uniform(0.35, 0.6))
    outside = _curve([(foot, 0.0), (radius * rng.uniform(0.75, 0.95), 0.45 * height), (radius, height)], 6)
    parts: list[Part] = [Turned(_vessel(outside, 0.004, 0.008), _ceramic(rng))]
    if rng.random() < 0.5 and radius > 0.075:
        skin = plain_surface(draw_colour(rng, (-0.02, 0.3), (0.5, 0.95), (0.4, 0.9)), 0.35)
        for angle in np.linspace(0, 2 * np.pi, int(rng.integers(3, 6)), endpoint=False):
            ball = radius * 0.36
            place = (0.42 * radius * float(np.cos(angle)), 0.42 * radius * float(np.sin(angle)))
            profile = tuple((r, z + 0.55 * height) for r, z in _ball(ball, 1.0))
            parts.append(Turned(profile, skin, place))
    return make_thing("bowl", tuple(parts))


def _ball(radius: float, flatness: float) -> list[tuple[float, float]]:
    """Profile of a ball that stands on the ground."""
    angles = np.linspace(-np.pi / 2, np.pi / 2, 13)
    return [
        (float(max(radius * np.cos(angle), 0.0005)), float(radius * flatness * (1 + np.sin(angle))))
        for angle in angles
    ]


def draw_vase(rng: np.random.Generator) -> Thing:
    """A vase or jar of any outline, at times with flowers or twigs."""
    height = float(rng.uniform(0.1, 0.34))
    radii = height * rng.uniform(0.16, 0.42, 5)
    radii[3] *= rng.uniform(0.4, 1.0)
    outside = _curve([(float(r), float(z)) for r, z in zip(radii, np.linspace(0, height, 5), strict=True)], 6)
    parts: list[Part] = [Turned(_vessel(outside, 0.004, 0.012), _ceramic(rng))]
    if rng.random() < 0.5:
        parts += _stems(rng, height * 0.6, height * float(rng.uniform(0.9, 1.9)), float(radii[-1]) * 0.5)
    return make_thing("vase", tuple(parts))


def _stems(rng: np.random.Generator, start: float, length: float, spread: float) -> list[Part]:
    """Stems that lean outwards, each with leaves, and a blossom at its end now and then."""
    green = plain_surface(draw_colour(rng, (0.2, 0.4), (0.35, 0.8), (0.2, 0.55)), 0.6)
    blossom = plain_surface(draw_colour(rng, (0, 1), (0.3, 0.9), (0.5, 0.95)), 0.6) if rng.random() < 0.6 else None
    parts: list[Part] = []
    for _ in range(int(rng.integers(3, 10))):
        angle, lean = rng.uniform(0, 2 * np.pi), rng.uniform(0.05, 0.55)
        steps = np.linspace(0, 1, 6)
        out = spread * 0.6 + length * lean * steps**1.6
        line = [
            (float(r * np.cos(angle)), float(r * np.sin(angle)), float(start + length * (1 - 0.3 * lean) * t))
            for r, t in zip(out, steps, strict=True)
        ]
        line[0] = (spread * 0.3 * float(np.cos(angle)), spread * 0.3 * float(np.sin(angle)), start)
        stem = float(rng.uniform(0.0012, 0.003))
        parts.append(Swept(tuple(line), ((stem, stem),) * 6, green))
        for foot in line[2:]:
            if rng.random() < 0.8:
                parts.append(
                    _leaf(rng, foot, float(angle + rng.normal(0, 1.2)), length * rng.uniform(0.15, 0.4), green)
                )
        if blossom:
            radius = float(rng.uniform(0.01, 0.03))
            x, y, z = line[-1]
            parts.append(
                Turned(tuple((r, h + z - radius / 2) for r, h in _ball(radius, rng.uniform(0.4, 1))), blossom, (x, y))
            )
    return parts


def _leaf(rng: np.random.Generator, foot: Point, angle: float, length: float, surface: Surface) -> Swept:
    """A leaf that rises and bends down."""
    steps, width = np.linspace(0, 1, 7), length * rng.uniform(0.08, 0.28)
    rise, droop = rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.0)
    line = tuple(
        (
            float(foot[0] + length * t * np.cos(angle)),
            float(foot[1] + length * t * np.sin(angle)),
            float(max(foot[2] + length * (rise * t - droop * t**2), 0.002)),
        )
        for t in steps
    )
    return Swept(line, tuple((float(max(width * np.sin(np.pi * t**0.8), 0.0004)), 0.0005) for t in steps), surface)


def draw_plant(rng: np.random.Generator) -> Thing:
    """A plant in a pot: a rosette of leaves, or stems."""
    radius, height = float(rng.uniform(0.035, 0.12)), float(rng.uniform(0.06, 0.18))
    clay = draw_colour(rng, (0.02, 0.07), (0.3, 0.7), (0.4, 0.8))
    surface = plain_surface(clay, 0.8) if rng.random() < 0.5 else _ceramic(rng)
    outside = [(radius * 0.75, 0.0), (radius, height), (radius * 1.06, height)]
    soil = plain_surface(draw_colour(rng, (0.04, 0.1), (0.2, 0.6), (0.1, 0.35)), 0.95)
    parts: list[Part] = [
        Turned(_vessel(outside, 0.005, 0.01), surface),
        Turned(((0.0005, 0.8 * height), (radius * 0.9, 0.85 * height), (0.0005, 0.87 * height)), soil),
    ]
    if rng.random() < 0.5:
        parts += _stems(rng, 0.85 * height, height * float(rng.uniform(0.8, 2.2)), radius * 0.6)
    else:
        green = plain_surface(draw_colour(rng, (0.18, 0.45), (0.25, 0.8), (0.2, 0.65)), 0.5)
        length = height * float(rng.uniform(0.8, 2.2))
        for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(8, 28))):
            parts.append(_leaf(rng, (0.0, 0.0, 0.86 * height), float(angle), length * rng.uniform(0.5, 1), green))
    return make_thing("plant", tuple(parts))


def draw_bottle(rng: np.random.Generator) -> Thing:
    """A bottle or flask with a label."""
    height, radius = float(rng.uniform(0.09, 0.31)), float(rng.uniform(0.02, 0.042))
    neck, shoulder = radius * float(rng.uniform(0.25, 0.6)), height * float(rng.uniform(0.5, 0.72))
    middle = (shoulder + height) / 2
    outside = [
        (radius, 0.0),
        (radius, shoulder),
        *_curve([(radius, shoulder), (neck * 1.15, middle), (neck, height)], 5),
    ]
    glass = plain_surface(draw_colour(rng, (0, 1), (0.1, 0.9), (0.1, 0.8)), 0.1)
    profile = ((0.0005, 0.0), *outside, (0.0005, height))
    parts: list[Part] = [Turned(profile, glass)]
    if rng.random() < 0.7:
        low, high = 0.2 * shoulder, 0.85 * shoulder
        label = pattern_surface(rng, ("print", "picture", "stripes"), 0.12)
        parts.append(Turned(((radius, low), (radius + 0.0005, low), (radius + 0.0005, high), (radius, high)), label))
    cap = plain_surface(draw_colour(rng, (0, 1), (0, 0.9), (0.1, 0.9)), 0.4)
    parts.append(
        Turned(
            ((neck * 1.12, height - 0.004), (neck * 1.12, height + 0.014), (0.0005, height + 0.015)),
            cap,
        )
    )
    return make_thing("bottle", tuple(parts))


def draw_fruit(rng: np.random.Generator) -> Thing:
    """One fruit or ball, or a few side by side."""
    radius, flatness = float(rng.uniform(0.02, 0.05)), float(rng.uniform(0.75, 1.25))
    skin = plain_surface(draw_colour(rng, (-0.04, 0.32), (0.4, 0.95), (0.35, 0.92)), float(rng.uniform(0.2, 0.7)))
    places = [(0.0, 0.0), (2.02 * radius, 0.0), (radius, 1.76 * radius)][: int(rng.integers(1, 4))]
    middle = np.mean(places, axis=0)
    parts = [
        Turned(tuple(_ball(radius, flatness)), skin, (float(x - middle[0]), float(y - middle[1]))) for x, y in places
    ]
    return make_thing("fruit", tuple(parts))


def _spoon(length: float) -> tuple[tuple[Point, ...], tuple[tuple[float, float], ...]]:
    """Line along x and widths of a spoon."""
    steps = np.linspace(0, 1, 16)
    bowl = ((steps - 0.7) / 0.3).clip(0, 1)
    widths = length * np.where(
        steps > 0.7, np.maximum(0.02, 0.11 * np.sqrt(np.sin(np.pi * bowl**0.9).clip(0))), _grip(steps)
    )
    return _lying(length, steps, widths, np.where(steps > 0.7, 0.002, 0.0012))


def _grip(steps: np.ndarray) -> np.ndarray:
    """Half widths of a piece of cutlery's handle, as shares of its length."""
    return np.interp(steps, [0, 0.06, 0.5, 0.68], [0.35, 1, 0.5, 0.42]) * 0.052


def _lying(
    length: float, steps: np.ndarray, widths: np.ndarray, thick: np.ndarray
) -> tuple[tuple[Point, ...], tuple[tuple[float, float], ...]]:
    """Line and widths of cutlery that lies on its two ends, bent upwards between them."""
    line = tuple((float(length * (t - 0.5)), 0.0, float(0.002 + 0.006 * np.sin(np.pi * t))) for t in steps)
    return line, tuple((float(w), float(h)) for w, h in zip(widths, thick, strict=True))


def draw_cutlery(rng: np.random.Generator) -> Thing:
    """A spoon, a knife, or a fork whose tines are three bars."""
    wood = plain_surface(draw_colour(rng, (0.05, 0.1), (0.3, 0.6), (0.4, 0.8)), 0.6)
    material = metal_surface(rng) if rng.random() < 0.85 else wood
    length, kind = float(rng.uniform(0.12, 0.21)), rng.integers(3)
    if kind == 0:
        return make_thing("spoon", (Swept(*_spoon(length), material),))
    steps = np.linspace(0, 1, 16)
    grip = length * _grip(steps)
    if kind == 1:
        widths = np.where(steps > 0.5, 0.010 * np.sqrt((1 - steps).clip(0.002) / 0.5), np.maximum(grip, 0.006))
        return make_thing(
            "knife", (Swept(*_lying(length, steps, widths, np.where(steps > 0.5, 0.0008, 0.003)), material),)
        )
    parts: list[Part] = []
    for offset in (-0.0085, 0.0, 0.0085):
        tine = tuple(
            (float(length * (t - 0.5)), offset, float(0.002 + 0.006 * np.sin(np.pi * t))) for t in (0.7, 0.85, 1.0)
        )
        parts.append(Swept(tine, ((0.0017, 0.0011), (0.0015, 0.0011), (0.0008, 0.0008)), material))
    short = steps[:12]
    widths = np.where(short > 0.66, 0.011, grip[:12])
    parts.append(Swept(*_lying(length, short, widths, np.full(12, 0.0012)), material))
    return make_thing("fork", tuple(parts))


def draw_pencil(rng: np.random.Generator) -> Thing:
    """A pencil, pen or stick that lies on the table."""
    length, radius = float(rng.uniform(0.1, 0.2)), float(rng.uniform(0.003, 0.008))
    paint = plain_surface(draw_colour(rng, (0, 1), (0.2, 0.95), (0.2, 0.95)), 0.3)
    wood = plain_surface(draw_colour(rng, (0.07, 0.1), (0.3, 0.5), (0.6, 0.85)), 0.8)
    half, tip = length / 2, 4 * radius
    parts = (
        Swept(((-half, 0.0, radius), (half - tip, 0.0, radius)), ((radius, radius),) * 2, paint),
        Swept(((half - tip, 0.0, radius), (half, 0.0, radius)), ((radius, radius), (0.0004, 0.0004)), wood),
    )
    return make_thing("pencil", parts)


def draw_books(rng: np.random.Generator) -> Thing:
    """One book, or a pile of them, each turned a little."""
    parts: list[Part] = []
    bottom = 0.0
    width, depth = float(rng.uniform(0.11, 0.22)), float(rng.uniform(0.16, 0.3))
    for _ in range(int(rng.integers(1, 6))):
        width, depth = width * float(rng.uniform(0.8, 1.0)), depth * float(rng.uniform(0.8, 1.0))
        thickness, yaw = float(rng.uniform(0.008, 0.04)), float(rng.normal(0, 0.12))
        cover, paper = _cover(rng), plain_surface(draw_colour(rng, (0.08, 0.15), (0.03, 0.2), (0.75, 0.95)), 0.9)
        inner = (width - 0.008, depth - 0.008, thickness - 0.005)
        parts += [
            Slab((width, depth, 0.0025), (0.0, 0.0, bottom), cover, yaw),
            Slab(inner, (0.0, 0.0, bottom + 0.0025), paper, yaw),
            Slab((width, depth, 0.0025), (0.0, 0.0, bottom + thickness - 0.0025), cover, yaw),
        ]
        bottom += thickness
    return make_thing("books", tuple(parts), (bottom, 0.35 * min(width, depth)))


def _cover(rng: np.random.Generator) -> Surface:
    if rng.random() < 0.5:
        return plain_surface(draw_colour(rng, (0, 1), (0.1, 0.9), (0.15, 0.9)), float(rng.uniform(0.3, 0.9)))
    return pattern_surface(rng, ("picture", "stripes", "print", "rosettes", "patches"), 0.25)


def draw_standing_books(rng: np.random.Generator) -> Thing:
    """A row of upright books whose spines look along -y."""
    places, x = [], 0.0
    for _ in range(int(rng.integers(2, 10))):
        thickness = float(rng.uniform(0.01, 0.045))
        places.append((x + thickness / 2, thickness))
        x += thickness + 0.001
    parts = [
        Slab(
            (thickness, float(rng.uniform(0.11, 0.17)), float(rng.uniform(0.15, 0.27))),
            (place - x / 2, 0.0, 0.0),
            _cover(rng),
        )
        for place, thickness in places
    ]
    return make_thing("standing books", tuple(parts))


def draw_box(rng: np.random.Generator) -> Thing:
    """A carton, tin or toy block."""
    size = tuple(float(value) for value in rng.uniform(0.03, 0.2, 3))
    surface = pattern_surface(rng, ("picture", "print", "stripes", "dots", "wood", "checks"), 0.2)
    if rng.random() < 0.4:
        surface = plain_surface(draw_colour(rng, (0, 1), (0, 0.9), (0.15, 0.95)), float(rng.uniform(0.2, 0.9)))
    if rng.random() < 0.3:
        radius, height = size[0] / 2, size[2]
        ends = metal_surface(rng)
        body = Turned(((radius, 0.002), (radius, height - 0.002)), surface)
        rim = ((0.0005, 0.0), (radius, 0.0), (radius + 0.001, 0.001), (radius, 0.003))
        lid = tuple((r, height - z) for r, z in reversed(rim))
        return make_thing("tin", (body, Turned(rim, ends), Turned(lid, ends)), (height, 0.7 * radius))
    return make_thing("box", (Slab(size, (0.0, 0.0, 0.0), surface),), (size[2], 0.35 * min(size[:2])))


def draw_paper(rng: np.random.Generator) -> Thing:
    """A sheet, napkin, mat or folded cloth that lies flat."""
    width, depth = float(rng.uniform(0.1, 0.35)), float(rng.uniform(0.1, 0.3))
    kinds = ("print", "picture", "stripes", "checks", "plaid", "dots")
    surface = pattern_surface(rng, kinds, max(width, depth))
    thickness = float(rng.uniform(0.0015, 0.006))
    slab = Slab((width, depth, thickness), (0.0, 0.0, 0.0), surface)
    return make_thing("paper", (slab,), (thickness, 0.4 * min(width, depth)))


def draw_tool(rng: np.random.Generator) -> Thing:
    """A screwdriver, brush, chisel or mallet: a handle and what is on it, lying."""
    length, radius = float(rng.uniform(0.15, 0.32)), float(rng.uniform(0.009, 0.017))
    grip = plain_surface(draw_colour(rng, (0, 1), (0.4, 0.95), (0.2, 0.9)), 0.4)
    if rng.random() < 0.4:
        grip = pattern_surface(rng, ("wood",), 0.2)
    half, split = length / 2, float(rng.uniform(-0.1, 0.15)) * length
    bulge = radius * float(rng.uniform(0.6, 0.95))
    handle = Swept(
        ((-half, 0.0, radius), (-half * 0.6, 0.0, radius), (-half * 0.2, 0.0, radius), (split, 0.0, radius)),
        ((bulge, bulge), (radius, radius), (bulge, bulge), (bulge * 0.8, bulge * 0.8)),
        grip,
    )
    metal = metal_surface(rng)
    shaft = radius * float(rng.uniform(0.2, 0.45))
    blade = Swept(
        ((split, 0.0, radius), (half * 0.8, 0.0, radius), (half, 0.0, radius)),
        ((shaft, shaft), (shaft, shaft), (shaft * float(rng.uniform(0.5, 2)), shaft * 0.3)),
        metal,
    )
    parts: list[Part] = [handle, blade]
    if rng.random() < 0.35:
        head = radius * float(rng.uniform(0.8, 0.99))
        side = length * float(rng.uniform(0.12, 0.25))
        parts[1] = Swept(((split, 0.0, radius), (half, 0.0, radius)), ((shaft, shaft),) * 2, metal)
        parts.append(Slab((2 * head, 2 * side, 2 * head), (half - head, 0.0, radius - head), metal))
    return make_thing("tool", tuple(parts))


DRAW: dict[str, Callable[[np.random.Generator], Thing]] = {
    "cup": draw_cup,
    "served cup": draw_served_cup,
    "plate": draw_plate,
    "bowl": draw_bowl,
    "vase": draw_vase,
    "plant": draw_plant,
    "bottle": draw_bottle,
    "fruit": draw_fruit,
    "cutlery": draw_cutlery,
    "pencil": draw_pencil,
    "books": draw_books,
    "standing books": draw_standing_books,
    "box": draw_box,
    "paper": draw_paper,
    "tool": draw_tool,
}


def draw_thing(rng: np.random.Generator, kinds: tuple[str, ...] = tuple(DRAW)) -> Thing:
    """A thing of one of some kinds."""
    return DRAW[str(rng.choice(kinds))](rng)
