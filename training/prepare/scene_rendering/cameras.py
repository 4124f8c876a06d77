"""Cameras for photographs: where they stand, what they look at, their lens and film.

Metres; x and y on the ground, z up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .geometry import Box, Camera, cast
from .parts import Scene, Shot

HALF_DIAGONAL = 21.63  # mm, of 35 mm film: focal lengths are given for it
CLOSEST = 0.18  # metres from a camera to anything
MAX_BLUR = 0.06  # of the image's width: diameter that a point at infinity may be blurred to
LENSES = ((17, 28), (28, 60), (60, 135))  # mm: wide, normal, long
LENS_SHARES = (0.2, 0.55, 0.25)
# Degrees that a camera looks down at its subject (from below, level, from a chair, steep, from above), and how often.
HEIGHTS = ((-25, 2), (2, 15), (15, 45), (45, 78), (78, 90))
HEIGHT_SHARES = (0.08, 0.24, 0.44, 0.14, 0.1)


def horizontal_view(focal_length: float, aspect: float) -> float:
    """Horizontal field of view.

    Args:
        focal_length: Millimetres, for 35 mm film.
        aspect: Width over height of the picture, whose diagonal is that of the film.

    Returns:
        Radians.
    """
    return float(2 * np.arctan(HALF_DIAGONAL / focal_length * aspect / np.hypot(aspect, 1)))


def look_at(position: np.ndarray, target: np.ndarray, roll: float, fov_x: float) -> Camera:
    """A camera at `position` with `target` in the middle of its picture; angles in radians."""
    x, y, z = target - position
    return Camera(
        (float(position[0]), float(position[1]), float(position[2])),
        yaw=float(np.arctan2(y, x)),
        pitch=float(np.arctan2(z, np.hypot(x, y))),
        roll=roll,
        fov_x=fov_x,
    )


def draw_roll(rng: np.random.Generator) -> float:
    """Mostly level, at times askew; radians."""
    spread = rng.choice([1.5, 7.0, 22.0], p=[0.7, 0.2, 0.1])
    return float(np.radians(np.clip(rng.normal(0, spread), -50, 50)))


def draw_focal_length(rng: np.random.Generator) -> float:
    """Millimetres, for 35 mm film."""
    low, high = LENSES[rng.choice(3, p=LENS_SHARES)]
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def frame_subject(rng: np.random.Generator, subject: Box, aspect: float, facing: float, turn: float) -> Shot:
    """A shot of one subject.

    Args:
        rng: Draws lens, distance, height, framing and exposure.
        subject: What the picture is of.
        aspect: Width over height of the picture.
        facing: Direction in which the camera is seen from the subject, radians.
        turn: By how many radians the camera may be off it to either side.

    Returns:
        The shot. Nothing was checked: the camera may be in a wall.
    """
    focal_length = draw_focal_length(rng)
    fov_x = horizontal_view(focal_length, aspect)
    half = np.tan(fov_x / 2) * np.array([1, 1 / aspect])
    size = float(np.linalg.norm(subject.size))
    # The subject fills a quarter to all of the picture's shorter side.
    distance = max(size / 2 / (rng.uniform(0.25, 0.95) * half.min()), CLOSEST + 0.4 * size)
    low, high = np.radians(HEIGHTS[rng.choice(len(HEIGHTS), p=HEIGHT_SHARES)])
    down, around = rng.uniform(low, high), facing + rng.uniform(-turn, turn)
    towards = np.array([np.cos(down) * np.cos(around), np.cos(down) * np.sin(around), np.sin(down)])
    position = np.array(subject.centre) + distance * towards
    camera = look_at(position, np.array(subject.centre), draw_roll(rng), fov_x)
    # Off the middle by up to a third of the picture.
    aim = np.array([*(rng.normal(0, 0.25, 2).clip(-0.66, 0.66) * half), 1.0]) @ camera.axes
    camera = look_at(position, position + distance * aim, camera.roll, fov_x)
    depth = float((np.array(subject.centre) - position) @ camera.axes[2])
    return with_lens(rng, Shot(camera, float(rng.normal(-0.1, 0.45)), closest=CLOSEST), depth, focal_length)


def with_lens(rng: np.random.Generator, shot: Shot, focus: float, focal_length: float) -> Shot:
    """Limits the highlights, and adds depth of field, shake and grain, each to some of the shots.

    Args:
        rng: Draws them.
        shot: A sharp shot.
        focus: Depth of the subject in metres.
        focal_length: Millimetres, for 35 mm film.
    """
    aperture = 0.0
    if rng.random() < 0.55:
        aperture = focal_length / 1000 / (2 * np.exp(rng.uniform(np.log(1.8), np.log(11))))
        # A point at infinity is blurred as wide as the opening is in the plane of focus.
        aperture = min(aperture, MAX_BLUR * focus * np.tan(shot.camera.fov_x / 2))
    shake = (0.0, 0.0)
    if rng.random() < 0.12:
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(0.004, 0.025)
        shake = (float(length * np.cos(angle)), float(length * np.sin(angle)))
    grain = float(rng.uniform(0.005, 0.045)) if rng.random() < 0.5 else 0.0
    return replace(
        shot,
        highlights=float(rng.uniform(4, 12)),
        focus=float(max(focus, 0.1)),
        aperture=float(aperture),
        shake=shake,
        grain=grain,
    )


def why_unusable(scene: Scene, shot: Shot, subject: int | None) -> str | None:
    """Why a shot is not worth rendering, judged by bounding boxes; None if it is.

    Args:
        scene: What is there.
        shot: The shot.
        subject: Index of the piece that the picture is of; None: any.
    """
    position = np.array(shot.camera.position)
    if min(box.distance(position) for box in scene.boxes) < shot.closest:
        return f"closer than {shot.closest} m to something"
    depth, seen = cast(shot.camera, scene.boxes, 16, 12)
    if np.isinf(depth).mean() > 0.6:
        return "sees little but sky"
    known = depth[np.isfinite(depth)]
    if np.quantile(known, 0.95) < 1.2 * np.quantile(known, 0.05):
        return "sees one depth"
    if subject is None:
        pieces, counts = np.unique(seen[seen >= len(scene.blocks)], return_counts=True)
        return None if len(pieces) and counts.sum() > 0.05 * seen.size else "sees little but walls and ground"
    share = (seen == len(scene.blocks) + subject).mean()
    if share < 0.03:
        return "does not see its subject"
    if share > 0.85:
        return "sees nothing but its subject"
    if (depth < 0.5 * shot.focus).mean() > 0.3:
        return "something is before the subject"
    return None
