"""Close-ups: things on tables, on shelves and on the floor, in a room, outdoors or before a backdrop. Metres; z up."""

from __future__ import annotations

import numpy as np

from .catalogue import Catalogue
from .parts import Scene, add_block
from .rooms import draw_room, furnish
from .staging import (
    Stage,
    add_backdrop,
    add_key_light,
    add_shelf,
    add_table,
    fill_shelf,
    ground_stage,
    lay,
    tabletop_models,
)
from .streets import GROUND_SIZE, draw_yard, populate
from .surfaces import backdrop_surface, floor_surface


def draw_tabletop(
    rng: np.random.Generator, scene: Scene, catalogue: Catalogue, images: int
) -> tuple[Stage, list[int]]:
    """Draws the surroundings, a table, shelf or piece of floor, and things on it.

    Args:
        rng: Draws everything.
        scene: An empty scene; it is filled.
        catalogue: The furniture.
        images: How many textures the renderer has.

    Returns:
        Where the things stand, and their indices among the scene's pieces.
    """
    number = int(rng.choice([1, 2, int(rng.integers(3, 7)), int(rng.integers(7, 19))], p=[0.1, 0.1, 0.35, 0.45]))
    if not scene.indoor:
        half = draw_yard(rng, scene, images)
        stage = _table_or_ground(rng, scene, 0.0, 0.0, images)
        things = lay(rng, scene, stage, catalogue, number)
        populate(rng, scene, catalogue, half, (3, 12))
        return stage, things
    if rng.random() < 0.4:
        return _before_backdrop(rng, scene, catalogue, number, images)
    width, length, height = draw_room(rng, scene, images)
    draw = rng.random()
    if draw < 0.2:
        # A bookcase against the wall at the end, half a centimetre off it.
        size = (
            float(rng.uniform(0.7, min(2.4, width - 0.2))),
            float(rng.uniform(0.24, 0.4)),
            float(rng.uniform(0.8, 2.1)),
        )
        boards = add_shelf(rng, scene, width / 2, length - size[1] / 2 - 0.005, 0.0, size, images)
        fill_shelf(rng, scene, boards, tabletop_models(catalogue))
        things = list(range(len(scene.pieces)))
        stage = boards[int(rng.integers(len(boards)))]
    else:
        x, y = rng.uniform(0.35, 0.65, 2) * (width, length)
        stage = _table_or_ground(rng, scene, float(x), float(y), images)
        things = lay(rng, scene, stage, catalogue, number)
    furnish(rng, scene, catalogue, width, length, height, (0.1, 0.35))
    return stage, things


def _table_or_ground(rng: np.random.Generator, scene: Scene, x: float, y: float, images: int) -> Stage:
    if rng.random() < 0.15:
        return ground_stage(x, y, 1.2, float(rng.uniform(0, 2 * np.pi)))
    return add_table(rng, scene, x, y, float(rng.uniform(0, 2 * np.pi)), images)


def _before_backdrop(
    rng: np.random.Generator, scene: Scene, catalogue: Catalogue, number: int, images: int
) -> tuple[Stage, list[int]]:
    """A table before a wall or a full bookcase, open to the sky on the other sides."""
    add_block(scene, (GROUND_SIZE, GROUND_SIZE, 1.0), 0.0, 0.0, -1.0, floor_surface(rng, images))
    stage = add_table(rng, scene, 0.0, 0.0, float(rng.normal(0, 0.1)), images)
    reach = max(stage.box.size[:2]) * 0.75
    distance = reach + float(rng.exponential(0.5))
    add_backdrop(
        scene, distance, (float(rng.uniform(4, 12)), float(rng.uniform(2.5, 6))), backdrop_surface(rng, images)
    )
    things = lay(rng, scene, stage, catalogue, number)
    if rng.random() < 0.35 and distance > reach + 0.35:
        size = (float(rng.uniform(1.2, 2.6)), 0.3, float(rng.uniform(1.2, 2.2)))
        boards = add_shelf(rng, scene, 0.0, distance - 0.156, 0.0, size, images)
        fill_shelf(rng, scene, boards, tabletop_models(catalogue))
    if things:
        add_key_light(rng, scene, scene.pieces[things[0]].box)
    return Stage(stage.box, stage.front, 1.2), things
