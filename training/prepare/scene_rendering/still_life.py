"""Single subjects, from a toy to a car, before plain and busy backgrounds. Metres; z up."""

from __future__ import annotations

import numpy as np

from .catalogue import Catalogue, Model
from .geometry import standing_box
from .parts import Scene, add_block, add_piece
from .shapes import JOINT
from .staging import (
    Stage,
    add_backdrop,
    add_key_light,
    add_shelf,
    draw_paint,
    fill_shelf,
    ground_stage,
    tabletop_models,
)
from .streets import GROUND_SIZE, populate
from .surfaces import backdrop_surface, facade_surface, floor_surface, ground_surface

MAX_SUBJECT = 5.0  # metres
ANIMALS = {"Dog", "Cat", "Siamese cat", "Horse", "Deer", "Chicken", "Rocking horse", "Teddy bear"}
PLANTS = ("plant", "tree", "bamboo", "cactus", "yucca", "tulips", "orchids", "hedge", "cypress", "pine", "flower")


def draw_still_life(
    rng: np.random.Generator, scene: Scene, catalogue: Catalogue, images: int
) -> tuple[Stage, list[int]]:
    """Draws a subject, what it stands on, and what is behind it.

    Args:
        rng: Draws everything.
        scene: An empty scene; it is filled.
        catalogue: The furniture.
        images: How many textures the renderer has.

    Returns:
        The ground around the subject, and the subject's index among the scene's pieces.
    """
    ground = floor_surface(rng, images) if scene.indoor else ground_surface(rng, images)
    add_block(scene, (GROUND_SIZE, GROUND_SIZE, 1.0), 0.0, 0.0, -1.0, ground)
    subject = draw_subject(rng, catalogue, scene.indoor)
    if subject is None:
        return ground_stage(0.0, 0.0, 1.0, 0.0), []
    # Its front looks at -y; most are photographed from before.
    yaw = float(rng.normal(0, 0.6) if rng.random() < 0.6 else rng.uniform(0, 2 * np.pi))
    add_piece(scene, subject, standing_box(subject.size, 0.0, 0.0, JOINT, yaw), paint=draw_paint(rng, subject))
    if not scene.pieces:
        return ground_stage(0.0, 0.0, 1.0, 0.0), []
    reach = float(np.hypot(*subject.size[:2])) / 2
    size = max(subject.size)
    distance = reach + 0.02 + float(rng.exponential(0.6)) * size
    if scene.indoor or rng.random() < 0.5:
        surface = backdrop_surface(rng, images) if scene.indoor else facade_surface(rng, images)
        add_backdrop(
            scene, distance, (float(rng.uniform(4, 10)) * size + 3, float(rng.uniform(1.5, 4)) * size + 1.5), surface
        )
    if scene.indoor and rng.random() < 0.35 and distance > reach + 0.4:
        shelf = (float(rng.uniform(1.0, 2.8)), 0.32, float(rng.uniform(0.9, 2.3)))
        boards = add_shelf(rng, scene, float(rng.normal(0, 0.5)), distance - 0.166, 0.0, shelf, images)
        fill_shelf(rng, scene, boards, tabletop_models(catalogue))
    if rng.random() < 0.75:
        _surround(rng, scene, catalogue, size)
    if not scene.indoor and rng.random() < 0.6:
        populate(rng, scene, catalogue, 10.0, (4, 16))
    if scene.indoor:
        add_key_light(rng, scene, scene.pieces[0].box)
    return ground_stage(0.0, 0.0, 4 * size, -np.pi / 2), [0]


def draw_subject(rng: np.random.Generator, catalogue: Catalogue, indoor: bool) -> Model | None:
    """A person, an animal, a plant, a vehicle, a piece of furniture or a small thing; None: there is no model."""
    stands = [
        model for model in catalogue.models if model.place in ("floor", "tabletop") and max(model.size) < MAX_SUBJECT
    ]
    people = [model for model in stands if model.category == "Characters"]
    animals = [model for model in stands if model.name in ANIMALS]
    plants = [model for model in stands if any(word in model.name.lower() for word in PLANTS)]
    vehicles = [model for model in stands if model.category == "Vehicles"]
    small = [model for model in stands if model.place == "tabletop"]
    others = [model for model in stands if model.place == "floor" and bool(model.outdoor) != indoor]
    groups = [people, animals, plants, vehicles, small, others]
    shares = np.array([0.2, 0.12, 0.14, 0.08 if indoor else 0.24, 0.2, 0.26]) * [bool(group) for group in groups]
    if not shares.any():
        return None
    group = groups[rng.choice(len(groups), p=shares / shares.sum())]
    return group[int(rng.integers(len(group)))]


def _surround(rng: np.random.Generator, scene: Scene, catalogue: Catalogue, size: float) -> None:
    """Other models around the subject, mostly behind it, of sizes not far from its own."""
    models = [
        model
        for model in catalogue.models
        if model.place in ("floor", "tabletop")
        and 0.3 * size < max(model.size) < 2 * size
        and (model.outdoor is None or model.outdoor != scene.indoor)
    ]
    for _ in range(int(rng.integers(2, 10)) if models else 0):
        model = models[int(rng.integers(len(models)))]
        x, y = rng.normal(0, 1.2) * size, rng.normal(0.6, 0.8) * size
        box = standing_box(model.size, float(x), float(y), JOINT, float(rng.uniform(0, 2 * np.pi)))
        add_piece(scene, model, box, paint=draw_paint(rng, model))
