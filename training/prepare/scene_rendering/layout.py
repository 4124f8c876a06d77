"""Random scenes: rooms or streets, what stands in them, and where cameras look from.

Everything is drawn from (seed, scene number) alone. Positions are checked with the furniture's bounding boxes; no
Blender is needed. Metres; x and y on the ground, z up.
"""

from __future__ import annotations

import numpy as np

from .catalogue import Catalogue
from .geometry import Camera, cast
from .parts import MIN_CAMERA_DISTANCE, Scene, Shot
from .photographs import draw_photograph
from .rooms import draw_room, furnish
from .streets import draw_street, draw_yard, populate
from .surfaces import draw_sky

CAMERA_TRIES = 300
MIN_FURNITURE = (0.03, 0.08)  # share of a view, by bounding boxes, outdoors and indoors


def draw_scene(
    catalogue: Catalogue,
    seed: int,
    number: int,
    views: int,
    indoor_share: float = 2 / 3,
    images: int = 0,
    environments: int = 0,
    photo_share: float = 0.0,
    aspect: float = 4 / 3,
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
        photo_share: Probability of a scene that is composed as a photograph is (see `photographs`).
        aspect: Width over height of the pictures, for photographs.

    Returns:
        The scene.
    """
    rng = np.random.default_rng([seed, number])
    indoor = bool(rng.random() < indoor_share)
    scene = Scene(number, indoor, draw_sky(rng, environments))
    # At a share of 0 nothing is drawn here: the scenes are those of a version without photographs.
    if photo_share and rng.random() < photo_share:
        draw_photograph(rng, scene, catalogue, views, aspect, images, environments)
        return scene
    if indoor:
        width, length, height = draw_room(rng, scene, images)
        furnish(rng, scene, catalogue, width, length, height)
        area = (0.0, width, 0.0, length)
    else:
        half_width = draw_street(rng, scene, images) if rng.random() < 0.65 else draw_yard(rng, scene, images)
        populate(rng, scene, catalogue, half_width)
        area = (-half_width, half_width, -12.0, 12.0)
    _place_cameras(rng, scene, area, views)
    return scene


def _place_cameras(
    rng: np.random.Generator, scene: Scene, area: tuple[float, float, float, float], views: int
) -> None:
    """Looks for cameras that see something; `area` is the ground they may stand on."""
    for _ in range(CAMERA_TRIES):
        if len(scene.shots) == views:
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
            scene.shots.append(Shot(camera, exposure))


def why_bad(scene: Scene, camera: Camera) -> str | None:
    """Why a camera cannot be used, judged by bounding boxes; None if it can."""
    position = np.array(camera.position)
    if min(box.distance(position) for box in scene.boxes) < MIN_CAMERA_DISTANCE:
        return f"closer than {MIN_CAMERA_DISTANCE} m to something"
    depth, seen = cast(camera, scene.boxes, 16, 12)
    numbers, counts = np.unique(seen[seen >= len(scene.blocks)], return_counts=True)
    if len(numbers) < (2 if scene.indoor else 3) or counts.sum() < MIN_FURNITURE[scene.indoor] * seen.size:
        return "sees little but walls and ground"
    if counts.max() > 0.4 * seen.size:
        return "one piece fills the view"
    if (depth < 0.8).mean() > 0.15 or np.median(depth) < (1.4 if scene.indoor else 2.5):
        return "too close"
    return None
