"""Random streets and yards. Metres; x and y on the ground, z up; a model's front looks along its own -y."""

from __future__ import annotations

import numpy as np

from .catalogue import Catalogue
from .geometry import overlap, standing_box
from .parts import Scene, add_block, add_piece
from .surfaces import Surface, facade_surface, ground_surface, pavement_surface, road_surface, wall_surface

GROUND_SIZE = 1200.0
STREET_HALF_LENGTH = 75.0  # beyond the 65 m that a 16-bit depth in millimetres holds


def draw_street(rng: np.random.Generator, scene: Scene, images: int) -> float:
    """A road along y with pavements and houses on both sides; returns half the width between the houses."""
    road, pavement = float(rng.uniform(5.5, 9.0)), float(rng.uniform(2.0, 4.5))
    half, length = road / 2 + pavement, 2 * STREET_HALF_LENGTH
    add_block(scene, (GROUND_SIZE, GROUND_SIZE, 1.0), 0.0, 0.0, -1.0, ground_surface(rng, images))
    asphalt, slabs = road_surface(rng), pavement_surface(rng)
    # Kerbs: the ground lies as high as the pavements, 12 cm over the road.
    add_block(scene, (road, GROUND_SIZE, 0.02), 0.0, 0.0, 0.0, asphalt)
    white = Surface("plain", (0.75, 0.75, 0.72), (0.75, 0.75, 0.72), (1.0, 1.0))
    for y in np.arange(-40.0, 40.0, 4.0):
        add_block(scene, (0.12, 1.8, 0.004), 0.0, float(y), 0.02, white)
    for side in (-1, 1):
        add_block(scene, (pavement, length, 0.14), side * (road + pavement) / 2, 0.0, 0.0, slabs)
        _add_houses(rng, scene, side, half, images)
    return half


def draw_yard(rng: np.random.Generator, scene: Scene, images: int) -> float:
    """An open ground with some walls and houses around; returns half its width."""
    half = float(rng.uniform(8, 16))
    add_block(scene, (GROUND_SIZE, GROUND_SIZE, 1.0), 0.0, 0.0, -1.0, ground_surface(rng, images))
    for _ in range(int(rng.integers(2, 8))):
        distance, angle = float(rng.uniform(half + 4, 55)), float(rng.uniform(0, 2 * np.pi))
        size = (float(rng.uniform(4, 18)), float(rng.uniform(4, 12)), float(rng.uniform(2.5, 14)))
        yaw = float(rng.uniform(0, np.pi))
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        add_block(scene, size, float(x), float(y), 0.0, facade_surface(rng, images), yaw)
    for _ in range(int(rng.integers(0, 4))):
        size = (float(rng.uniform(2, 9)), float(rng.uniform(0.15, 0.4)), float(rng.uniform(0.4, 2.2)))
        x, y = (float(value) for value in rng.uniform(-half, half, 2))
        add_block(scene, size, x, y, 0.0, wall_surface(rng, images), float(rng.uniform(0, np.pi)))
    return half


def populate(
    rng: np.random.Generator, scene: Scene, catalogue: Catalogue, half: float, number: tuple[int, int] = (20, 60)
) -> None:
    """Vehicles, trees, people and street furniture, on whatever ground is below them; `number`: range of tries."""
    vehicles = [model for model in catalogue.models if model.category == "Vehicles" and model.size[1] > 2.2]
    others = [model for model in catalogue.models if model.outdoor and model.place in ("floor", "tabletop")]
    either = [model for model in catalogue.models if model.outdoor is None and model.place == "floor"]
    crowd = [model for model in either if model.category == "Characters"] or either
    for _ in range(int(rng.integers(*number))):
        draw = rng.random()
        models = vehicles if draw < 0.2 else crowd if draw < 0.4 else either if draw < 0.5 else others
        if not models:
            continue
        model = models[int(rng.integers(len(models)))]
        # Denser towards the middle, where the cameras are.
        x = float(rng.uniform(-half, half))
        y = float(rng.normal(0, 14))
        yaw = float(rng.uniform(0, 2 * np.pi))
        if model.category == "Vehicles" and rng.random() < 0.8:
            yaw = float(np.pi if x > 0 else 0.0) + float(rng.normal(0, 0.03))
        box = standing_box(model.size, x, y, 0.0, yaw)
        grounds = [block.box.top for block in scene.blocks if block.box.top < 0.3 and overlap(box, block.box)]
        # Half on the pavement it would float over the road.
        if max(grounds, default=0.0) - min(grounds, default=0.0) < 0.03:
            add_piece(scene, model, standing_box(model.size, x, y, max(grounds, default=0.0), yaw))


def _add_houses(rng: np.random.Generator, scene: Scene, side: int, half: float, images: int) -> None:
    """A row of houses, with gaps, along one side of the street."""
    y = -STREET_HALF_LENGTH
    while y < STREET_HALF_LENGTH:
        front, depth, height = (float(rng.uniform(*span)) for span in ((6, 22), (7, 14), (3.5, 18)))
        setback = float(rng.uniform(0, 2.5)) if rng.random() < 0.4 else 0.0
        surface = facade_surface(rng, images)
        if rng.random() < 0.85:
            add_block(scene, (depth, front, height), side * (half + setback + depth / 2), y + front / 2, 0.0, surface)
        y += front + (float(rng.uniform(0.5, 8)) if rng.random() < 0.5 else 0.01)
