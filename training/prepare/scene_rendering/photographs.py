"""Scenes composed as photographs: close-ups, single subjects, and places seen from anywhere. Metres; z up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .cameras import CLOSEST, draw_focal_length, draw_roll, frame_subject, horizontal_view, why_unusable, with_lens
from .catalogue import Catalogue
from .geometry import Camera, cast
from .parts import Scene, Shot
from .rooms import draw_room, furnish
from .staging import Stage, add_key_light
from .still_life import draw_still_life
from .streets import draw_street, draw_yard, populate
from .surfaces import draw_evening_sky
from .tabletop import draw_tabletop

KINDS = ("tabletop", "still life", "snapshot")
SHARES = (0.5, 0.23, 0.27)
TRIES = 80  # of cameras, for each view


def draw_photograph(
    rng: np.random.Generator,
    scene: Scene,
    catalogue: Catalogue,
    views: int,
    aspect: float,
    images: int,
    environments: int,
) -> None:
    """Fills an empty scene.

    Args:
        rng: Draws everything.
        scene: `indoor` decides the surroundings.
        catalogue: The furniture.
        views: Shots to look for.
        aspect: Width over height of the pictures.
        images: How many textures the renderer has.
        environments: How many environment maps it has.
    """
    kind = KINDS[rng.choice(3, p=SHARES)]
    if rng.random() < 0.3:
        scene.sky = draw_evening_sky(rng, environments)
    if kind == "snapshot":
        area = _draw_place(rng, scene, catalogue, images)
        _change_light(rng, scene)
        _shoot_place(rng, scene, area, views, aspect)
        return
    draw = draw_tabletop if kind == "tabletop" else draw_still_life
    stage, subjects = draw(rng, scene, catalogue, images)
    _change_light(rng, scene)
    if subjects and rng.random() < 0.5:
        add_key_light(rng, scene, scene.pieces[subjects[0]].box, 0.7)
    _shoot_subjects(rng, scene, stage, subjects, views, aspect)


def _draw_place(
    rng: np.random.Generator, scene: Scene, catalogue: Catalogue, images: int
) -> tuple[float, float, float, float]:
    """A room or street; returns the ground that cameras may be above."""
    if scene.indoor:
        width, length, height = draw_room(rng, scene, images)
        furnish(rng, scene, catalogue, width, length, height, (0.2, 0.6))
        return 0.0, width, 0.0, length
    half = draw_street(rng, scene, images) if rng.random() < 0.6 else draw_yard(rng, scene, images)
    populate(rng, scene, catalogue, half, (10, 35))
    return -half, half, -12.0, 12.0


def _change_light(rng: np.random.Generator, scene: Scene) -> None:
    """Leaves some rooms to the daylight of their windows, others to one small lamp."""
    draw = rng.random()
    if draw < 0.35 and scene.openings and scene.sky.elevation > np.radians(12):
        scene.lights.clear()
    elif draw < 0.6 and scene.lights:
        scene.lights[:] = [replace(scene.lights[0], side=float(rng.uniform(0.03, 0.15)))]


def _shoot_subjects(
    rng: np.random.Generator, scene: Scene, stage: Stage, subjects: list[int], views: int, aspect: float
) -> None:
    """Looks for shots of the things on a stage."""
    for _ in range(TRIES * views if subjects else 0):
        if len(scene.shots) == views:
            return
        # The first one is what the others stand around.
        subject = subjects[0] if rng.random() < 0.5 else subjects[int(rng.integers(len(subjects)))]
        shot = frame_subject(rng, scene.pieces[subject].box, aspect, stage.front, stage.turn)
        if why_unusable(scene, shot, subject) is None:
            scene.shots.append(shot)


def _shoot_place(
    rng: np.random.Generator, scene: Scene, area: tuple[float, float, float, float], views: int, aspect: float
) -> None:
    """Looks for shots of a piece of the place, or into it from anywhere, up and down as well."""
    for _ in range(TRIES * views):
        if len(scene.shots) == views:
            return
        subject = None
        if scene.pieces and rng.random() < 0.5:
            subject = int(rng.integers(len(scene.pieces)))
            box = scene.pieces[subject].box
            shot = frame_subject(rng, box, aspect, float(rng.uniform(0, 2 * np.pi)), 0.0)
        else:
            focal_length = draw_focal_length(rng)
            camera = Camera(
                (float(rng.uniform(*area[:2])), float(rng.uniform(*area[2:])), float(rng.uniform(0.2, 2.3))),
                yaw=float(rng.uniform(0, 2 * np.pi)),
                pitch=float(np.radians(np.clip(rng.normal(-5, 17), -80, 60))),
                roll=draw_roll(rng),
                fov_x=horizontal_view(focal_length, aspect),
            )
            shot = Shot(camera, float(rng.normal(0, 0.45)), closest=CLOSEST)
            depth, _ = cast(camera, scene.boxes, 9, 9)
            shot = with_lens(rng, shot, float(np.median(depth).clip(0.5, 20)), focal_length)
        if why_unusable(scene, shot, subject) is None:
            scene.shots.append(shot)
