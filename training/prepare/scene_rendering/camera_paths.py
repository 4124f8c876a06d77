"""Smooth camera paths through a scene, for clips. Metres; x and y on the ground, z up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .cameras import look_at, why_unusable
from .geometry import Camera, cast
from .parts import Scene, Shot

PATH_TRIES = 12
# Way of the camera from the first to the last frame, as shares of the median depth of the first.
SIDEWAYS, UPWARDS, FORWARDS, TURN = (0.15, 0.45), (-0.1, 0.1), (-0.1, 0.3), (-0.25, 0.25)
SWAY, ROLL_SWAY = 0.003, 0.003  # of a hand that holds the camera: share of the median depth, and radians


def draw_path(rng: np.random.Generator, scene: Scene, shot: Shot, frames: int) -> list[Shot]:
    """Moves a camera along a smooth path: sideways and forwards, turning, with the sway of a hand.

    The lens is sharp everywhere and nothing is shaken: the picture of a video camera.

    Args:
        rng: Draws the path.
        scene: What is there. All frames see enough of it and keep the shot's distance to everything.
        shot: The first frame.
        frames: Number of frames, at least 2.

    Returns:
        One shot a frame; none if the camera has no room to move.
    """
    depth, _ = cast(shot.camera, scene.boxes, 16, 12)
    known = depth[np.isfinite(depth)]
    distance = float(np.clip(np.median(known) if len(known) else 5.0, 0.3, 8.0))
    sharp = replace(shot, aperture=0.0, shake=(0.0, 0.0))
    for attempt in range(PATH_TRIES):
        # A path that does not fit is followed by shorter ones.
        cameras = _draw_cameras(rng, shot.camera, distance, 0.85**attempt, frames)
        shots = [replace(sharp, camera=camera) for camera in cameras]
        if all(_is_usable(scene, one) for one in shots):
            return shots
    return []


def camera_to_world(camera: Camera) -> np.ndarray:
    """Returns a camera's pose: 4×4, from camera axes (x right, y down, z forward) to the world, in metres."""
    pose = np.eye(4)
    pose[:3, :3] = camera.axes.T
    pose[:3, 3] = camera.position
    return pose


def _draw_cameras(
    rng: np.random.Generator, first: Camera, distance: float, length: float, frames: int
) -> list[Camera]:
    """Draws one path, without looking at what is in its way."""
    right, down, forward = first.axes
    side = rng.choice([-1.0, 1.0]) * rng.uniform(*SIDEWAYS)
    way = length * distance * (side * right + rng.uniform(*UPWARDS) * down + rng.uniform(*FORWARDS) * forward)
    target = np.array(first.position) + distance * forward
    turn = length * distance * rng.uniform(*TURN) * right
    rates, phases = rng.uniform(0.5, 2.5, (4, 2)), rng.uniform(0, 2 * np.pi, (4, 2))
    cameras = []
    for time in np.linspace(0, 1, frames):
        # Starts and ends more slowly; the sway is zero in the first frame.
        part = 0.5 * time + 0.5 * time**2 * (3 - 2 * time)
        waves = (np.sin(2 * np.pi * rates * time * 2 + phases) - np.sin(phases)).sum(1)
        position = np.array(first.position) + part * way + SWAY * distance * (waves[:3] @ first.axes)
        roll = first.roll + ROLL_SWAY * float(waves[3])
        cameras.append(look_at(position, target + part * turn, roll, first.fov_x))
    return cameras


def _is_usable(scene: Scene, shot: Shot) -> bool:
    return why_unusable(scene, shot, None) is None
