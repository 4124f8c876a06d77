"""Random rooms and streets: which furniture stands where, what lights it, and where cameras look from.

Everything is drawn from (seed, scene number) alone. Positions are checked with the furniture's bounding boxes; no
Blender is needed. Metres; x and y on the ground, z up; a model's front looks along its own -y.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scene_catalogue import Catalogue, Model
from scene_geometry import Box, Camera, cast, overlap, standing_box
from scene_surfaces import (
    AreaLight,
    Sky,
    Surface,
    ceiling_surface,
    draw_sky,
    facade_surface,
    floor_surface,
    ground_surface,
    lamp_colour,
    pavement_surface,
    road_surface,
    wall_surface,
)

MIN_CAMERA_DISTANCE = 0.45  # metres to anything
WALL_THICKNESS = 0.25
GROUND_SIZE = 1200.0
STREET_HALF_LENGTH = 75.0  # beyond the 65 m that a 16-bit depth in millimetres holds
CAMERA_TRIES = 300

# Which categories furnish a room, and how often; any other indoor model turns up in one of five.
ROOMS = {
    "living room": {"Living room": 0.85, "Office": 0.15},
    "bedroom": {"Bedroom": 0.8, "Living room": 0.2},
    "kitchen": {"Kitchen": 0.75, "Living room": 0.25},
    "bathroom": {"Bathroom": 1.0},
    "office": {"Office": 0.8, "Living room": 0.2},
    "anything": {},
}


@dataclass(frozen=True)
class Piece:
    """A model in its place; `support` is the index of the piece that it stands on, -1 for none."""

    model: Model
    box: Box
    support: int = -1


@dataclass(frozen=True)
class Block:
    """A box of the building or the street, and what it is made of."""

    box: Box
    surface: Surface


@dataclass
class Scene:
    """All that the renderer needs."""

    number: int
    indoor: bool
    sky: Sky
    blocks: list[Block] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    lights: list[AreaLight] = field(default_factory=list)
    cameras: list[Camera] = field(default_factory=list)
    # Stops of exposure over or under the usual, one per camera.
    exposures: list[float] = field(default_factory=list)

    @property
    def boxes(self) -> list[Box]:
        """Bounding boxes of everything: first the blocks, then the pieces."""
        return [block.box for block in self.blocks] + [piece.box for piece in self.pieces]


def draw_scene(
    catalogue: Catalogue,
    seed: int,
    number: int,
    views: int,
    indoor_share: float = 2 / 3,
    images: int = 0,
    environments: int = 0,
) -> Scene:
    """Draws one scene.

    Args:
        catalogue: The furniture.
        seed: With `number`, decides everything that is random.
        number: Which scene of the seed.
        views: Cameras to look for. A crowded scene may have fewer.
        indoor_share: Probability of a room.
        images: How many textures the renderer has.
        environments: How many environment maps it has.

    Returns:
        The scene.
    """
    rng = np.random.default_rng([seed, number])
    indoor = bool(rng.random() < indoor_share)
    scene = Scene(number, indoor, draw_sky(rng, environments))
    if indoor:
        width, length, height = _draw_room(rng, scene, images)
        _furnish(rng, scene, catalogue, width, length, height)
        area = (0.0, width, 0.0, length)
    else:
        half_width = _draw_street(rng, scene, images) if rng.random() < 0.65 else _draw_yard(rng, scene, images)
        _populate(rng, scene, catalogue, half_width)
        area = (-half_width, half_width, -12.0, 12.0)
    _place_cameras(rng, scene, area, views)
    return scene


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


def _draw_room(rng: np.random.Generator, scene: Scene, images: int) -> tuple[float, float, float]:
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


def _furnish(
    rng: np.random.Generator, scene: Scene, catalogue: Catalogue, width: float, length: float, height: float
) -> None:
    """Furniture against walls, in the room, on walls and on tables."""
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

    for _ in range(int(rng.poisson(3))):
        if model := pick("wall"):
            _place_at_wall(rng, scene, model, width, length, model.elevation)
    for _ in range(int(width * length * rng.uniform(0.3, 0.8)) + 3):
        # Small things stand on the floor too, now and then.
        if model := pick("floor" if rng.random() < 0.88 else "tabletop"):
            if model.size[2] > 0.5 and rng.random() < 0.65:
                _place_at_wall(rng, scene, model, width, length, 0.0)
            else:
                x, y = rng.uniform(0, 1, 2) * (width, length)
                yaw = float(rng.uniform(0, 2 * np.pi) if rng.random() < 0.5 else rng.integers(4) * np.pi / 2)
                _add_piece(scene, model, standing_box(model.size, float(x), float(y), 0.0, yaw))
    for support in range(len(scene.pieces)):
        _lay_table(rng, scene, support, groups["tabletop"])
    if groups["ceiling"] and rng.random() < 0.5:
        model = groups["ceiling"][int(rng.integers(len(groups["ceiling"])))]
        x, y = rng.uniform(0.35, 0.65, 2) * (width, length)
        # A lamp that hangs lower than people are tall only goes with high rooms.
        if height - model.size[2] > 1.4:
            _add_piece(scene, model, standing_box(model.size, float(x), float(y), height - model.size[2], 0.0))


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
    _add_piece(scene, model, standing_box(model.size, x, y, elevation, np.pi + side * np.pi / 2))


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
        _add_piece(scene, model, box, support)


def _add_piece(scene: Scene, model: Model, box: Box, support: int = -1) -> bool:
    """Adds a piece unless it would intersect anything but what it stands on."""
    for number, other in enumerate(scene.pieces):
        if number != support and overlap(box, other.box, 0.02):
            return False
    # Blocks that it stands on or hangs from end where it begins.
    if any(overlap(box, block.box) for block in scene.blocks):
        return False
    scene.pieces.append(Piece(model, box, support))
    return True


def _draw_street(rng: np.random.Generator, scene: Scene, images: int) -> float:
    """A road along y with pavements and houses on both sides; returns half the width between the houses."""
    road, pavement = float(rng.uniform(5.5, 9.0)), float(rng.uniform(2.0, 4.5))
    half, length = road / 2 + pavement, 2 * STREET_HALF_LENGTH
    _add_block(scene, (GROUND_SIZE, GROUND_SIZE, 1.0), 0.0, 0.0, -1.0, ground_surface(rng, images))
    asphalt, slabs = road_surface(rng), pavement_surface(rng)
    # Kerbs: the ground lies as high as the pavements, 12 cm over the road.
    _add_block(scene, (road, GROUND_SIZE, 0.02), 0.0, 0.0, 0.0, asphalt)
    white = Surface("plain", (0.75, 0.75, 0.72), (0.75, 0.75, 0.72), (1.0, 1.0))
    for y in np.arange(-40.0, 40.0, 4.0):
        _add_block(scene, (0.12, 1.8, 0.004), 0.0, float(y), 0.02, white)
    for side in (-1, 1):
        _add_block(scene, (pavement, length, 0.14), side * (road + pavement) / 2, 0.0, 0.0, slabs)
        _add_houses(rng, scene, side, half, images)
    return half


def _add_houses(rng: np.random.Generator, scene: Scene, side: int, half: float, images: int) -> None:
    """A row of houses, with gaps, along one side of the street."""
    y = -STREET_HALF_LENGTH
    while y < STREET_HALF_LENGTH:
        front, depth, height = (float(rng.uniform(*span)) for span in ((6, 22), (7, 14), (3.5, 18)))
        setback = float(rng.uniform(0, 2.5)) if rng.random() < 0.4 else 0.0
        surface = facade_surface(rng, images)
        if rng.random() < 0.85:
            _add_block(scene, (depth, front, height), side * (half + setback + depth / 2), y + front / 2, 0.0, surface)
        y += front + (float(rng.uniform(0.5, 8)) if rng.random() < 0.5 else 0.01)


def _draw_yard(rng: np.random.Generator, scene: Scene, images: int) -> float:
    """An open ground with some walls and houses around; returns half its width."""
    half = float(rng.uniform(8, 16))
    _add_block(scene, (GROUND_SIZE, GROUND_SIZE, 1.0), 0.0, 0.0, -1.0, ground_surface(rng, images))
    for _ in range(int(rng.integers(2, 8))):
        distance, angle = float(rng.uniform(half + 4, 55)), float(rng.uniform(0, 2 * np.pi))
        size = (float(rng.uniform(4, 18)), float(rng.uniform(4, 12)), float(rng.uniform(2.5, 14)))
        yaw = float(rng.uniform(0, np.pi))
        x, y = distance * np.cos(angle), distance * np.sin(angle)
        _add_block(scene, size, float(x), float(y), 0.0, facade_surface(rng, images), yaw)
    for _ in range(int(rng.integers(0, 4))):
        size = (float(rng.uniform(2, 9)), float(rng.uniform(0.15, 0.4)), float(rng.uniform(0.4, 2.2)))
        x, y = (float(value) for value in rng.uniform(-half, half, 2))
        _add_block(scene, size, x, y, 0.0, wall_surface(rng, images), float(rng.uniform(0, np.pi)))
    return half


def _add_block(
    scene: Scene,
    size: tuple[float, float, float],
    x: float,
    y: float,
    bottom: float,
    surface: Surface,
    yaw: float = 0.0,
) -> None:
    """Adds a block unless it would stick in one that is there."""
    box = standing_box(size, x, y, bottom, yaw)
    if not any(overlap(box, block.box) for block in scene.blocks):
        scene.blocks.append(Block(box, surface))


def _populate(rng: np.random.Generator, scene: Scene, catalogue: Catalogue, half: float) -> None:
    """Vehicles, trees, people and street furniture, on whatever ground is below them."""
    vehicles = [model for model in catalogue.models if model.category == "Vehicles" and model.size[1] > 2.2]
    others = [model for model in catalogue.models if model.outdoor and model.place in ("floor", "tabletop")]
    either = [model for model in catalogue.models if model.outdoor is None and model.place == "floor"]
    crowd = [model for model in either if model.category == "Characters"] or either
    for _ in range(int(rng.integers(20, 60))):
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
            _add_piece(scene, model, standing_box(model.size, x, y, max(grounds, default=0.0), yaw))


def _place_cameras(
    rng: np.random.Generator, scene: Scene, area: tuple[float, float, float, float], views: int
) -> None:
    """Looks for cameras that see something; `area` is the ground they may stand on."""
    for _ in range(CAMERA_TRIES):
        if len(scene.cameras) == views:
            return
        low, high = (0.9, 1.9) if scene.indoor else (0.9, 3.0)
        position = (float(rng.uniform(*area[:2])), float(rng.uniform(*area[2:])), float(rng.uniform(low, high)))
        if scene.pieces and rng.random() < 0.85:
            target = scene.pieces[int(rng.integers(len(scene.pieces)))].box.centre
            yaw = np.arctan2(target[1] - position[1], target[0] - position[0]) + rng.normal(0, 0.25)
        else:
            yaw = rng.uniform(0, 2 * np.pi)
        pitch = rng.normal(-9, 8) if scene.indoor else rng.normal(-5, 5)
        camera = Camera(
            position,
            yaw=float(yaw),
            pitch=float(np.radians(pitch)),
            roll=float(np.radians(rng.normal(0, 1.5))),
            fov_x=float(np.radians(rng.uniform(50, 85))),
        )
        exposure = float(rng.normal(0, 0.45))
        if why_bad(scene, camera) is None:
            scene.cameras.append(camera)
            scene.exposures.append(exposure)


def why_bad(scene: Scene, camera: Camera) -> str | None:
    """Why a camera cannot be used, judged by bounding boxes; None if it can."""
    position = np.array(camera.position)
    if min(box.distance(position) for box in scene.boxes) < MIN_CAMERA_DISTANCE:
        return f"closer than {MIN_CAMERA_DISTANCE} m to something"
    depth, seen = cast(camera, scene.boxes, 16, 12)
    numbers, counts = np.unique(seen[seen >= len(scene.blocks)], return_counts=True)
    if len(numbers) < (2 if scene.indoor else 3):
        return "sees nothing but walls and ground"
    if counts.max() > 0.4 * seen.size:
        return "one piece fills the view"
    if (depth < 0.8).mean() > 0.15 or np.median(depth) < (1.4 if scene.indoor else 2.5):
        return "too close"
    return None
