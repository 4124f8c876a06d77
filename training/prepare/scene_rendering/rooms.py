"""Random furnished rooms. Metres; x and y on the floor, z up; a model's front looks along its own -y."""

from __future__ import annotations

import numpy as np

from .catalogue import Catalogue, Model
from .geometry import Box, overlap, standing_box
from .parts import Block, Scene, add_piece
from .surfaces import AreaLight, ceiling_surface, floor_surface, lamp_colour, wall_surface

WALL_THICKNESS = 0.25

# Which categories furnish a room, and how often; any other indoor model turns up in one of five.
ROOMS = {
    "living room": {"Living room": 0.85, "Office": 0.15},
    "bedroom": {"Bedroom": 0.8, "Living room": 0.2},
    "kitchen": {"Kitchen": 0.75, "Living room": 0.25},
    "bathroom": {"Bathroom": 1.0},
    "office": {"Office": 0.8, "Living room": 0.2},
    "anything": {},
}


def wall_parts(
    start: tuple[float, float],
    along: float,
    length: float,
    height: float,
    hole: tuple[float, float, float, float] | None,
) -> list[Box]:
    """A wall, with or without a rectangular hole in it.

    Args:
        start: x, y where the wall begins, on its inner side.
        along: Direction of the wall, radians; the wall's thickness lies to the right of it.
        length: Metres.
        height: Metres.
        hole: Begin, end (along the wall), bottom and top of the hole.

    Returns:
        One box, or the four around the hole.
    """
    spans = [(0.0, length, 0.0, height)]
    if hole:
        begin, end, bottom, top = hole
        spans = [
            (0.0, begin, 0.0, height),
            (end, length, 0.0, height),
            (begin, end, 0.0, bottom),
            (begin, end, top, height),
        ]
    direction = np.array([np.cos(along), np.sin(along)])
    outwards = np.array([direction[1], -direction[0]])
    boxes = []
    for begin, end, bottom, top in spans:
        x, y = np.array(start) + direction * (begin + end) / 2 + outwards * WALL_THICKNESS / 2
        boxes.append(standing_box((end - begin, WALL_THICKNESS, top - bottom), float(x), float(y), bottom, along))
    return boxes


def _opening(start: tuple[float, float], along: float, hole: tuple[float, float, float, float]) -> Box:
    """The room that a hole in a wall (see `wall_parts`) takes, with half a metre before it."""
    begin, end, bottom, top = hole
    direction = np.array([np.cos(along), np.sin(along)])
    inwards = np.array([-direction[1], direction[0]])
    x, y = np.array(start) + direction * (begin + end) / 2 + inwards * (0.5 - WALL_THICKNESS) / 2
    return standing_box((end - begin, WALL_THICKNESS + 0.5, top - bottom), float(x), float(y), bottom, along)


def draw_room(rng: np.random.Generator, scene: Scene, images: int) -> tuple[float, float, float]:
    """Floor, ceiling, walls (some with an opening to the sky) and lamps; returns the room's inner size."""
    width, length, height = (float(rng.uniform(*span)) for span in ((2.8, 7.0), (3.2, 9.0), (2.4, 3.3)))
    thick = WALL_THICKNESS
    outer = (width + 2 * thick, length + 2 * thick, thick)
    middle = (width / 2, length / 2)
    scene.blocks.append(Block(standing_box(outer, *middle, -thick), floor_surface(rng, images)))
    scene.blocks.append(Block(standing_box(outer, *middle, height), ceiling_surface(rng)))
    paint = wall_surface(rng, images)
    for side in range(4):
        start = [(0.0, 0.0), (width, 0.0), (width, length), (0.0, length)][side]
        extent = (width, length)[side % 2]
        hole = None
        if rng.random() < 0.3:
            opening = rng.uniform(0.8, min(2.4, extent - 1.2))
            begin = rng.uniform(0.5, extent - 0.5 - opening)
            hole = (float(begin), float(begin + opening), float(rng.uniform(0.6, 1.1)), float(rng.uniform(1.9, 2.3)))
            scene.openings.append(_opening(start, side * np.pi / 2, hole))
        # One wall in four differs from the others.
        surface = wall_surface(rng, images) if rng.random() < 0.25 else paint
        # Corners: each wall is longer by the next one's thickness.
        for box in wall_parts(start, side * np.pi / 2, extent + thick, height, hole):
            scene.blocks.append(Block(box, surface))
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(0.2, 0.8, 2) * (width, length)
        power = float(width * length * rng.uniform(2, 8))
        light = AreaLight((float(x), float(y), height - 0.02), float(rng.uniform(0.2, 1.2)), power, lamp_colour(rng))
        scene.lights.append(light)
    return width, length, height


def furnish(
    rng: np.random.Generator,
    scene: Scene,
    catalogue: Catalogue,
    width: float,
    length: float,
    height: float,
    density: tuple[float, float] = (0.3, 0.8),
) -> None:
    """Furniture against walls, in the room, on walls and on tables; `density`: pieces tried per square metre."""
    shares = ROOMS[str(rng.choice(list(ROOMS)))]
    groups: dict[str, list[Model]] = {"floor": [], "tabletop": [], "wall": [], "ceiling": []}
    for model in catalogue.models:
        if not model.outdoor and model.size[2] + model.elevation < height - 0.05:
            groups[model.place].append(model)

    def pick(place: str) -> Model | None:
        candidates = groups[place]
        if shares and rng.random() < 0.8:
            category = str(rng.choice(list(shares), p=list(shares.values())))
            candidates = [model for model in candidates if model.category == category] or candidates
        return candidates[int(rng.integers(len(candidates)))] if candidates else None

    before = len(scene.pieces)
    for _ in range(int(rng.poisson(3))):
        if model := pick("wall"):
            _place_at_wall(rng, scene, model, width, length, model.elevation)
    for _ in range(int(width * length * rng.uniform(*density)) + 3):
        # Small things stand on the floor too, now and then.
        if model := pick("floor" if rng.random() < 0.88 else "tabletop"):
            if model.size[2] > 0.5 and rng.random() < 0.65:
                _place_at_wall(rng, scene, model, width, length, 0.0)
            else:
                x, y = rng.uniform(0, 1, 2) * (width, length)
                yaw = float(rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2)
                add_piece(scene, model, standing_box(model.size, float(x), float(y), 0.0, yaw))
    for support in range(before, len(scene.pieces)):
        _lay_table(rng, scene, support, groups["tabletop"])
    if groups["ceiling"] and rng.random() < 0.5:
        model = groups["ceiling"][int(rng.integers(len(groups["ceiling"])))]
        x, y = rng.uniform(0.35, 0.65, 2) * (width, length)
        # A lamp that hangs lower than people are tall only goes with high rooms.
        if height - model.size[2] > 1.4:
            add_piece(scene, model, standing_box(model.size, float(x), float(y), height - model.size[2], 0.0))


def _place_at_wall(
    rng: np.random.Generator, scene: Scene, model: Model, width: float, length: float, elevation: float
) -> None:
    """With its back to one of the four walls, if there is room; one centimetre off it."""
    side = int(rng.integers(4))
    extent = (width, length)[side % 2]
    if model.size[0] > extent:
        return
    along = float(rng.uniform(model.size[0] / 2, extent - model.size[0] / 2))
    off = model.size[1] / 2 + 0.01
    x, y = [(along, off), (width - off, along), (width - along, length - off), (off, length - along)][side]
    # Side 0 is the wall at y = 0: the front, -y, must be turned round to look into the room.
    box = standing_box(model.size, x, y, elevation, np.pi + side * np.pi / 2)
    if model.place != "wall" or not any(overlap(box, opening) for opening in scene.openings):
        add_piece(scene, model, box)


def _lay_table(rng: np.random.Generator, scene: Scene, support: int, models: list[Model]) -> None:
    """Puts small things on a piece with a high, flat top (not on seats, whose backs they would cut)."""
    table = scene.pieces[support]
    top = table.model.top
    if not models or top is None or top < 0.9 * table.model.size[2] or not 0.35 < top < 1.5 or rng.random() < 0.25:
        return
    for _ in range(int(rng.integers(1, 5))):
        model = models[int(rng.integers(len(models)))]
        # Inside the ellipse that fits the top, as it may be round.
        reach = 0.72 * np.array(table.model.size[:2]) / 2 - max(model.size[:2]) / 2
        if (reach <= 0).any():
            continue
        local = rng.uniform(-1, 1, 2) * reach
        x, y = table.box.rotation[:2, :2] @ local + np.array(table.box.centre[:2])
        yaw = float(rng.uniform(0, 2 * np.pi))
        box = standing_box(model.size, float(x), float(y), table.box.bottom + top + 0.001, yaw)
        add_piece(scene, model, box, support)
