"""Tables, shelves and backdrops for close-ups, the things on them, and a lamp that lights them. Metres; z up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .catalogue import Catalogue, Model
from .geometry import Box, Camera, cast, standing_box
from .parts import Scene, add_block, add_piece
from .shapes import JOINT, Thing
from .surfaces import AreaLight, Surface, cloth_surface, draw_colour, lamp_colour, plain_surface, table_surface
from .things import draw_thing

# What is put on one table: categories of the catalogue, and kinds of drawn things.
THEMES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Kitchen",), ("served cup", "cup", "plate", "bowl", "cutlery", "bottle", "fruit", "paper", "vase")),
    (("Kitchen",), ("served cup", "served cup", "cup", "plate", "cutlery")),
    (("Office", "Miscellaneous"), ("books", "pencil", "paper", "box", "cup", "plant")),
    (("Living room", "Lights"), ("plant", "vase", "books", "bowl", "plant")),
    (("Miscellaneous",), ("tool", "tool", "box", "pencil", "bottle")),
    (("Bedroom", "Bathroom"), ("box", "bottle", "books", "paper", "fruit")),
    (
        (),
        (
            "plate",
            "books",
            "box",
            "paper",
            "standing books",
            "plant",
            "fruit",
            "cup",
            "bottle",
            "vase",
            "bowl",
            "tool",
        ),
    ),
)
NEAR = 0.004  # metres between things that stand close together


@dataclass(frozen=True)
class Stage:
    """A level rectangle that things stand on.

    Attributes:
        box: Its top is the surface. Nothing stands beyond its sides.
        front: Direction from which it is looked at, radians.
        turn: By how many radians to either side of it cameras may be.
    """

    box: Box
    front: float
    turn: float = np.pi


def add_table(rng: np.random.Generator, scene: Scene, x: float, y: float, yaw: float, images: int) -> Stage:
    """A table or a chest, at times with a cloth; its front is at -y before it is turned."""
    surface, legs = table_surface(rng, images), plain_surface(draw_colour(rng, (0, 0.12), (0, 0.6), (0.05, 0.9)), 0.6)
    width, depth, height = (float(rng.uniform(*span)) for span in ((0.6, 1.8), (0.5, 1.0), (0.35, 0.95)))
    thick = float(rng.uniform(0.015, 0.06))
    if rng.random() < 0.3:
        surface = cloth_surface(rng)
        add_block(scene, (width - 0.04, depth - 0.04, height - thick - 2 * JOINT), x, y, JOINT, surface, yaw)
    else:
        for across, along in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            local = np.array([across * (width / 2 - 0.05), along * (depth / 2 - 0.05)])
            dx, dy = _turned(local, yaw)
            add_block(scene, (0.05, 0.05, height - thick - 2 * JOINT), x + dx, y + dy, JOINT, legs, yaw)
    add_block(scene, (width, depth, thick), x, y, height - thick, surface, yaw)
    top = height
    if rng.random() < 0.3:
        share = rng.uniform(0.35, 0.95, 2)
        add_block(scene, (width * share[0], depth * share[1], 0.003), x, y, height + JOINT, cloth_surface(rng), yaw)
        width, depth, top = width * share[0], depth * share[1], height + JOINT + 0.003
    return Stage(standing_box((float(width), float(depth), top), x, y, 0.0, yaw), yaw - np.pi / 2)


def add_shelf(
    rng: np.random.Generator,
    scene: Scene,
    x: float,
    y: float,
    yaw: float,
    size: tuple[float, float, float],
    images: int,
) -> list[Stage]:
    """A bookcase with a back; returns its boards, the lowest first. Its front is at -y before it is turned."""
    surface = table_surface(rng, images)
    width, depth, height = size
    thick, number = float(rng.uniform(0.012, 0.03)), max(1, int(height / rng.uniform(0.28, 0.45)))
    dx, dy = _turned(np.array([0.0, depth / 2 - 0.005]), yaw)
    add_block(scene, (width, 0.01, height), x + dx, y + dy, JOINT, surface, yaw)
    for side in (-1, 1):
        dx, dy = _turned(np.array([side * (width - thick) / 2, -0.006]), yaw)
        add_block(scene, (thick, depth - 0.012, height), x + dx, y + dy, JOINT, surface, yaw)
    boards = []
    for board in range(number):
        bottom = 0.05 + board * (height - 0.05 - thick) / number
        dx, dy = _turned(np.array([0.0, -0.006]), yaw)
        inner = (width - 2 * thick - 0.001, depth - 0.012, thick)
        add_block(scene, inner, x + dx, y + dy, bottom, surface, yaw)
        stage = standing_box((inner[0], inner[1], thick), x + dx, y + dy, bottom, yaw)
        boards.append(Stage(stage, yaw - np.pi / 2, 0.9))
    return boards


def fill_shelf(rng: np.random.Generator, scene: Scene, boards: Sequence[Stage], models: Sequence[Model]) -> None:
    """Puts books and things side by side on the boards; what is too high for a board is left out."""
    heights = [stage.box.top for stage in boards]
    room = min(np.diff(heights)) - 0.03 if len(boards) > 1 else 0.5
    for stage in boards:
        place = -stage.box.size[0] / 2 + 0.01
        while place < stage.box.size[0] / 2 - 0.05:
            item = draw_thing(rng, ("standing books", "standing books", "books", "box", "vase", "plant", "bottle"))
            if rng.random() < 0.3 and models:
                item = models[int(rng.integers(len(models)))]
            width, depth, height = item.size
            if height < room and depth < stage.box.size[1] and place + width < stage.box.size[0] / 2:
                dx, dy = _turned(
                    np.array([place + width / 2, float(rng.uniform(-0.5, 0.5)) * (stage.box.size[1] - depth)]),
                    stage.box.yaw,
                )
                x, y = stage.box.centre[0] + dx, stage.box.centre[1] + dy
                add_piece(scene, item, standing_box(item.size, x, y, stage.box.top + JOINT, stage.box.yaw), gap=0.0)
                place += width
            place += float(rng.exponential(0.04)) + 0.002


def tabletop_models(catalogue: Catalogue, categories: Sequence[str] = ()) -> list[Model]:
    """Models that stand on tables, of some categories, or of all if there are none of these."""
    models = [model for model in catalogue.models if model.place == "tabletop"]
    return [model for model in models if model.category in categories] or models


def lay(rng: np.random.Generator, scene: Scene, stage: Stage, catalogue: Catalogue, number: int) -> list[int]:
    """Puts things that belong together on a stage.

    Args:
        rng: Chooses them and their places.
        scene: They are added to it, unless there is no room.
        stage: Where they stand.
        catalogue: Models, beside drawn things.
        number: How many to try.

    Returns:
        Their indices among the scene's pieces, the first being the one that the others stand around.
    """
    categories, kinds = THEMES[rng.integers(len(THEMES))]
    models = tabletop_models(catalogue, categories)
    spread = float(rng.uniform(0.08, 0.28))
    half = np.array(stage.box.size[:2]) / 2
    middle = rng.uniform(-0.4, 0.4, 2) * half
    tidy = rng.random() < 0.4
    placed: list[int] = []
    for _ in range(number):
        item: Model | Thing = draw_thing(rng, kinds)
        if models and rng.random() < 0.5:
            item = models[int(rng.integers(len(models)))]
        yaw = stage.box.yaw + float(rng.normal(0, 0.08) if tidy else rng.uniform(0, 2 * np.pi))
        # The nearest free place to the middle that a few tries find; the first thing stands there itself.
        for attempt in range(6):
            offset = rng.normal(0, spread * (1 + 0.3 * attempt), 2) if placed else np.zeros(2)
            local = middle + offset
            reach = float(np.hypot(*item.size[:2])) / 2
            if (np.abs(local) + reach > half).any():
                continue
            dx, dy = _turned(local, stage.box.yaw)
            x, y = stage.box.centre[0] + dx, stage.box.centre[1] + dy
            box = standing_box(item.size, x, y, stage.box.top + JOINT, yaw)
            if add_piece(scene, item, box, paint=draw_paint(rng, item), gap=NEAR):
                placed.append(len(scene.pieces) - 1)
                if isinstance(item, Thing):
                    placed += _stack(rng, scene, placed[-1], kinds)
                break
    return placed


def draw_paint(rng: np.random.Generator, item: Model | Thing) -> tuple[float, float, float] | None:
    """Another colour for some of the catalogue's models, but not for people."""
    if isinstance(item, Thing) or item.category == "Characters" or rng.random() > 0.35:
        return None
    return draw_colour(rng, (0, 1), (0.05, 0.7), (0.3, 0.95))


def _stack(rng: np.random.Generator, scene: Scene, support: int, kinds: Sequence[str]) -> list[int]:
    """Puts a thing on a drawn thing that is made for it, now and then: a cup on a saucer, a tin on a book."""
    below = scene.pieces[support]
    if not isinstance(below.model, Thing) or below.model.top is None or rng.random() > 0.7:
        return []
    height, radius = below.model.top
    wanted = tuple(kind for kind in kinds if kind in ("cup", "fruit", "bowl", "box", "bottle", "plant", "vase"))
    for _ in range(4):
        item = draw_thing(rng, wanted or ("cup", "fruit", "box"))
        if item.foot <= radius:
            x, y, _ = below.box.centre
            box = standing_box(item.size, x, y, below.box.bottom + height + JOINT, float(rng.uniform(0, 2 * np.pi)))
            if add_piece(scene, item, box, support, gap=NEAR):
                return [len(scene.pieces) - 1]
    return []


def add_key_light(rng: np.random.Generator, scene: Scene, subject: Box, share: float = 1.0) -> None:
    """A lamp beside or above the subject, small (hard shadows) or large, where nothing is between the two.

    Args:
        rng: Draws it.
        scene: The lamp is added to it.
        subject: What it lights.
        share: Factor on its power; at 1 it outshines the lamps of a room.
    """
    size = max(subject.size)
    for _ in range(12):
        distance = float(rng.uniform(0.8, 2.0)) + size
        up, around = np.radians(rng.uniform(12, 80)), rng.uniform(0, 2 * np.pi)
        towards = np.array([np.cos(up) * np.cos(around), np.cos(up) * np.sin(around), np.sin(up)])
        centre = np.array([*subject.centre[:2], subject.top + 0.01])
        position = centre + distance * towards
        if not is_free(scene, centre, position):
            continue
        side = float(np.exp(rng.uniform(np.log(0.02), np.log(1.2)))) * max(1.0, size)
        power = float(rng.uniform(20, 90)) * distance**2 * share
        light = AreaLight(_triple(position), side, power, lamp_colour(rng), _triple(-towards))
        scene.lights.append(light)
        return


def is_free(scene: Scene, start: np.ndarray, end: np.ndarray) -> bool:
    """Whether no bounding box is between two points, the start's own vicinity left out."""
    way = end - start
    length = float(np.linalg.norm(way))
    yaw, pitch = float(np.arctan2(way[1], way[0])), float(np.arcsin(way[2] / length))
    camera = Camera(_triple(start), yaw, pitch, 0.0, 0.01)
    depth, _ = cast(camera, scene.boxes, 1, 1)
    return float(depth[0, 0]) > length


def _turned(local: np.ndarray, yaw: float) -> tuple[float, float]:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return float(cos * local[0] - sin * local[1]), float(sin * local[0] + cos * local[1])


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    return float(values[0]), float(values[1]), float(values[2])


def ground_stage(x: float, y: float, side: float, front: float) -> Stage:
    """A square of the ground, whose height is 0."""
    return Stage(Box((x, y, -0.5), (side, side, 1.0), front + np.pi / 2), front)


def add_backdrop(scene: Scene, distance: float, size: tuple[float, float], surface: Surface) -> None:
    """A wall behind the origin, seen from -y: its inner side is `distance` away; width and height."""
    add_block(scene, (size[0], 0.2, size[1]), 0.0, distance + 0.1, JOINT, surface)
