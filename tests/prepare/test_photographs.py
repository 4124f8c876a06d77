"""Scenes composed as photographs: drawn things and patterns, stages, cameras, light, lens effects. No Blender."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.furniture import BoxRenderer, write_library
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_rendering.cameras import (
    CLOSEST,
    HALF_DIAGONAL,
    MAX_BLUR,
    frame_subject,
    horizontal_view,
    look_at,
    why_unusable,
)
from scene_rendering.catalogue import Catalogue, read_catalogue
from scene_rendering.geometry import Box, Camera, cast, overlap, standing_box
from scene_rendering.layout import draw_scene
from scene_rendering.parts import Block, Scene, Shot
from scene_rendering.patterns import PATTERNS, draw_pattern
from scene_rendering.pictures import add_grain, shake, tone_map
from scene_rendering.pool import RenderSettings, render_views
from scene_rendering.shapes import Slab, Swept, Thing, Turned
from scene_rendering.staging import add_key_light, add_shelf, add_table, fill_shelf, is_free, lay
from scene_rendering.still_life import draw_subject
from scene_rendering.surfaces import Sky, Surface, plain_surface
from scene_rendering.things import DRAW
from shard_writer import Sample

GREY = plain_surface((0.5, 0.5, 0.5), 0.5)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder: Path = tmp_path_factory.mktemp("furniture")
    write_library(folder / "Tiny.sh3f")
    return read_catalogue(folder)


def empty_scene(indoor: bool = True) -> Scene:
    ground = Block(Box((0.0, 0.0, -0.5), (20.0, 20.0, 1.0)), GREY)
    return Scene(0, indoor, Sky(1.0, 0.0, 1.0, 0.0), [ground])


def rests(scene: Scene, bottom: float, x: float, y: float) -> bool:
    """Whether a block's top is at most a millimetre below a point."""
    return any(
        -1e-9 <= bottom - block.box.top < 1e-3 and block.box.distance(np.array([x, y, bottom])) < 1e-3
        for block in scene.blocks
    )


# Patterns


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_repeat_without_a_seam(kind):
    for seed in range(4):
        image = draw_pattern(kind, seed, 64)
        assert image.shape == (64, 64, 3)
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
        assert image.std() > 0.005
        np.testing.assert_array_equal(image, draw_pattern(kind, seed, 64))
        for axis in (0, 1):
            steps = np.abs(image - np.roll(image, 1, axis)).mean(axis=(1 - axis, 2))
            # The first step is the one over the edge.
            assert steps[0] <= steps[1:].max() * 1.2 + 0.02
    assert (draw_pattern(kind, 0, 64) != draw_pattern(kind, 1, 64)).any()


def test_unknown_pattern_is_an_error():
    with pytest.raises(ValueError, match=r"kind must be one of .* got 'tartan'"):
        draw_pattern("tartan", 0)


# Drawn things


def test_turned_part_is_round():
    vertices, faces, texture = Turned(((0.1, 0.0), (0.2, 0.5)), GREY, (1.0, 2.0)).mesh()
    radius = np.hypot(vertices[:, 0] - 1, vertices[:, 1] - 2)
    np.testing.assert_allclose(radius, np.where(vertices[:, 2] == 0, 0.1, 0.2))
    assert len(texture) == sum(map(len, faces))
    # Once around is as long in texture coordinates as the wider ring; a step along is as long as the side.
    sides = texture[: 4 * 28]
    assert np.ptp(sides[:, 0]) == pytest.approx(2 * np.pi * 0.2, rel=0.01)
    assert np.ptp(sides[:, 1]) == pytest.approx(np.hypot(0.1, 0.5), rel=0.01)


def test_swept_part_has_the_widths_it_says():
    vertices = Swept(((0.0, 0.0, 0.1), (1.0, 0.0, 0.1)), ((0.02, 0.01),) * 2, GREY).mesh().vertices
    np.testing.assert_allclose(np.ptp(vertices, axis=0), [1.0, 0.04, 0.02], rtol=0.06)
    upright = Swept(((0.0, 0.0, 0.0), (0.0, 0.0, 1.0)), ((0.02, 0.02),) * 2, GREY).mesh().vertices
    np.testing.assert_allclose(np.hypot(upright[:, 0], upright[:, 1]), 0.02)


def test_slab_is_the_box_it_says():
    vertices = Slab((0.4, 0.2, 0.1), (1.0, 2.0, 3.0), GREY, np.pi / 2).mesh().vertices
    np.testing.assert_allclose(vertices.min(0), [0.9, 1.8, 3.0])
    np.testing.assert_allclose(vertices.max(0), [1.1, 2.2, 3.1])


@pytest.mark.parametrize("kind", DRAW)
def test_things_fill_their_boxes_and_touch_the_ground(kind):
    for seed in range(25):
        thing = DRAW[kind](np.random.default_rng(seed))
        vertices = np.concatenate([part.mesh().vertices for part in thing.parts])
        np.testing.assert_allclose(2 * np.abs(vertices[:, :2]).max(0), thing.size[:2])
        assert vertices[:, 2].max() == pytest.approx(thing.size[2])
        assert -1e-3 < vertices[:, 2].min() < 2e-3
        assert max(thing.size) < 1.2
        assert 0 < thing.foot <= np.hypot(*thing.size[:2]) / 2 + 1e-9
        if thing.top:
            assert 0 < thing.top[0] <= thing.size[2] + 1e-9
            assert 0 < thing.top[1] < max(thing.size[:2])
        for part in thing.parts:
            mesh = part.mesh()
            assert {corner for face in mesh.faces for corner in face} == set(range(len(mesh.vertices)))
            assert np.isfinite(mesh.texture).all()


# Stages


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000))
def test_things_on_a_table_rest_on_it(catalogue, seed):
    rng = np.random.default_rng(seed)
    scene = empty_scene()
    stage = add_table(rng, scene, 1.0, -2.0, 0.7, 0)
    assert rests(scene, stage.box.top, 1.0, -2.0)
    for index in lay(rng, scene, stage, catalogue, 12):
        piece = scene.pieces[index]
        local = (piece.box.footprint - stage.box.centre[:2]) @ stage.box.rotation[:2, :2]
        if piece.support < 0:
            assert (np.abs(local) <= np.array(stage.box.size[:2]) / 2).all()
            assert rests(scene, piece.box.bottom, *piece.box.centre[:2])
        else:
            below = scene.pieces[piece.support]
            assert isinstance(piece.model, Thing)
            assert piece.box.centre[:2] == below.box.centre[:2]
            assert 0 <= piece.box.bottom - below.box.bottom - below.model.top[0] < 1e-3
            assert piece.model.foot <= below.model.top[1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.floats(0.6, 2.5), st.floats(0.5, 2.3))
def test_what_is_on_a_shelf_rests_on_its_boards(catalogue, seed, width, height):
    rng = np.random.default_rng(seed)
    scene = empty_scene()
    models = [model for model in catalogue.models if model.place == "tabletop"]
    boards = add_shelf(rng, scene, 0.5, 1.0, 0.4, (width, 0.3, height), 0)
    assert len(scene.blocks) == 4 + len(boards)  # ground, back, two sides
    fill_shelf(rng, scene, boards, models)
    for piece in scene.pieces:
        assert rests(scene, piece.box.bottom, *piece.box.centre[:2])
        assert piece.box.bottom < height


def test_key_light_shines_on_the_subject_from_where_nothing_is_between():
    subject = standing_box((0.2, 0.2, 0.2), 0, 0)
    scene = empty_scene()
    add_key_light(np.random.default_rng(0), scene, subject)
    (light,) = scene.lights
    way = np.array([0, 0, 0.21]) - light.position
    np.testing.assert_allclose(way / np.linalg.norm(way), light.direction)
    assert light.position[2] > 0.2
    # Under a lid there is no such place.
    scene.blocks.append(Block(standing_box((30, 30, 1), 0, 0, 0.3), GREY))
    scene.lights.clear()
    add_key_light(np.random.default_rng(0), scene, subject)
    assert scene.lights == []


def test_free_way_ends_at_its_end():
    scene = empty_scene()
    scene.blocks.append(Block(standing_box((0.1, 4, 4), 2, 0), GREY))
    start = np.array([0.0, 0.0, 1.0])
    assert is_free(scene, start, np.array([1.9, 0.0, 1.0]))
    assert not is_free(scene, start, np.array([2.2, 0.0, 1.0]))
    assert is_free(scene, start, np.array([0.0, 0.0, 9.0]))


def test_subjects_belong_to_their_place(catalogue):
    rng = np.random.default_rng(0)
    indoors = {draw_subject(rng, catalogue, True).id for _ in range(200)}
    outdoors = {draw_subject(rng, catalogue, False).id for _ in range(200)}
    assert {"Tiny#woman", "Tiny#cup", "Tiny#chair"} <= indoors
    assert "Tiny#woman" in outdoors
    assert "Tiny#tree" not in indoors | outdoors  # longer than a subject may be
    assert draw_subject(rng, replace(catalogue, models=()), True) is None


# Cameras


def test_field_of_view_is_that_of_35_mm_film():
    for aspect in (4 / 3, 3 / 4, 1.0):
        half = np.tan(horizontal_view(50.0, aspect) / 2)
        assert np.hypot(half, half / aspect) == pytest.approx(HALF_DIAGONAL / 50)
    # As wide as long: a focal length of half the diagonal sees 90 degrees from corner to corner.
    assert np.degrees(horizontal_view(HALF_DIAGONAL, 1e6)) == pytest.approx(90, abs=1e-3)


@pytest.mark.parametrize("target", [(0.0, 0.0, 0.0), (3.0, 1.0, 2.0), (0.9, 2.1, 3.5)])
def test_what_is_looked_at_is_in_the_middle(target):
    position = np.array([1.0, 2.0, 0.5])
    camera = look_at(position, np.array(target), 0.3, 1.0)
    seen = camera.axes @ (np.array(target) - position)
    np.testing.assert_allclose(seen, [0, 0, np.linalg.norm(np.array(target) - position)], atol=1e-12)
    assert camera.axes[0, 2] < 0  # turned clockwise, the right points down


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.sampled_from([4 / 3, 3 / 4]), st.floats(0.03, 4.0))
def test_shots_hold_their_subject(seed, aspect, size):
    subject = standing_box((size, 0.7 * size, 0.9 * size), 1.0, 2.0, 0.4, 0.3)
    shot = frame_subject(np.random.default_rng(seed), subject, aspect, 0.5, 0.2)
    position = np.array(shot.camera.position)
    assert subject.distance(position) > 0.1
    right, down, forward = shot.camera.axes @ (np.array(subject.centre) - position)
    assert forward == pytest.approx(shot.focus, abs=1e-6) or shot.focus == 0.1
    half = np.tan(shot.camera.fov_x / 2)
    assert abs(right / forward) <= half
    assert abs(down / forward) <= half / aspect
    # The camera is where the subject faces.
    x, y = position[:2] - subject.centre[:2]
    if np.hypot(x, y) > 1e-3:
        assert abs((np.arctan2(y, x) - 0.5 + np.pi) % (2 * np.pi) - np.pi) <= 0.2 + 1e-6
    # Blur of a point at infinity, as a share of the image's width.
    assert shot.aperture / (shot.focus * half) <= MAX_BLUR + 1e-9


def test_useless_shots_are_told_why():
    scene = empty_scene()
    scene.blocks.append(Block(standing_box((0.3, 0.3, 0.3), 2.0, 0.0), GREY))
    low = Shot(Camera((0.0, 0.0, 0.1), 0.0, 0.0, 0.0, 1.0), 0.0, closest=CLOSEST)
    assert "closer" in why_unusable(scene, low, None)
    up = replace(low, camera=Camera((0.0, 0.0, 1.0), 0.0, 1.2, 0.0, 1.0))
    assert why_unusable(scene, up, None) == "sees little but sky"
    down = replace(low, camera=Camera((0.0, 0.0, 1.0), 0.0, -np.pi / 2, 0.0, 0.8))
    assert why_unusable(scene, down, None) == "sees one depth"
    level = replace(low, camera=Camera((0.0, 0.0, 1.0), 0.0, -0.4, 0.0, 1.0))
    assert why_unusable(scene, level, None) == "sees little but walls and ground"


# Whole scenes


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.booleans(), st.sampled_from([4 / 3, 3 / 4]))
def test_photographed_scenes_hold_together(catalogue, number, indoor, aspect):
    scene = draw_scene(catalogue, 3, number, 2, float(indoor), photo_share=1.0, aspect=aspect)
    assert scene.indoor is indoor
    for i, piece in enumerate(scene.pieces):
        assert not any(overlap(piece.box, block.box, -1e-9) for block in scene.blocks)
        assert not any(overlap(piece.box, other.box) for j, other in enumerate(scene.pieces[:i]) if j != piece.support)
        assert piece.box.size == piece.model.size
    for shot in scene.shots:
        assert min(box.distance(np.array(shot.camera.position)) for box in scene.boxes) >= CLOSEST
        depth, _ = cast(shot.camera, scene.boxes, 16, 12)
        assert np.isfinite(depth).mean() >= 0.4
        assert 10 <= np.degrees(shot.camera.fov_x) <= 110


def test_photographed_scene_depends_on_seed_and_number_only(catalogue):
    again = draw_scene(catalogue, 5, 7, 2, photo_share=1.0)
    draw_scene(catalogue, 5, 8, 2, photo_share=1.0)
    assert draw_scene(catalogue, 5, 7, 2, photo_share=1.0) == again
    assert draw_scene(catalogue, 6, 7, 2, photo_share=1.0) != again


def test_photographs_show_many_heights_tilts_and_lenses(catalogue):
    scenes = [draw_scene(catalogue, 1, number, 2, photo_share=1.0) for number in range(120)]
    cameras = [camera for scene in scenes for camera in scene.cameras]
    assert len(cameras) > 160
    pitch, roll = (np.degrees([getattr(camera, name) for camera in cameras]) for name in ("pitch", "roll"))
    assert np.mean(pitch < -45) > 0.08
    assert np.mean(pitch > 5) > 0.02
    assert 0.1 < np.mean(np.abs(roll) > 5) < 0.4
    view = np.degrees([camera.fov_x for camera in cameras])
    assert np.mean(view < 32) > 0.1
    assert np.mean(view > 70) > 0.1
    near = [cast(camera, scene.boxes, 12, 9)[0].min() for scene in scenes for camera in scene.cameras]
    assert np.mean(np.array(near) < 0.5) > 0.15


def test_portrait_frames_are_upright(catalogue):
    rendering = RenderSettings(catalogue, 4, 1, 1.0, (24, 32), 1, 1, photo_share=1.0)
    results = [render_views(BoxRenderer((24, 32)), rendering, number)[0] for number in range(8)]
    assert sum(isinstance(result, Sample) for result in results) >= 4


# Lens and film


def test_shake_smears_along_its_direction_and_stays_in_place():
    radiance = np.zeros((21, 40, 3))
    radiance[10, 20] = 1.0
    blurred = shake(radiance, (0.1, 0.0))
    assert set(np.flatnonzero(blurred[10, :, 0])) == set(range(18, 23))
    assert (blurred[:10] == 0).all()
    assert blurred.sum() == pytest.approx(radiance.sum())
    assert (np.argwhere(shake(radiance, (0.0, 0.1))[..., 0] > 0)[:, 1] == 20).all()
    np.testing.assert_array_equal(shake(radiance, (0.0, 0.0)), radiance)


def test_grain_has_the_deviation_it_says():
    image = np.full((200, 200, 3), 128, dtype=np.uint8)
    grainy = add_grain(image, 0.04, np.random.default_rng(0)).astype(float)
    assert grainy.std() == pytest.approx(0.04 * 255, rel=0.05)
    assert grainy.mean() == pytest.approx(128, abs=0.5)
    dark = add_grain(np.full_like(image, 5), 0.04, np.random.default_rng(0)).astype(float)
    assert dark.std() < 0.5 * grainy.std()
    np.testing.assert_array_equal(add_grain(image, 0.0, np.random.default_rng(0)), image)


def test_highlights_limit_the_exposure():
    radiance = np.full((20, 20, 3), 0.05)
    radiance[:3] = 5.0
    burnt, held = tone_map(radiance, 0.0), tone_map(radiance, 0.0, highlights=4.0)
    assert burnt[0, 0, 0] == 255
    assert held[0, 0, 0] < 235
    assert held[-1, 0, 0] < burnt[-1, 0, 0]
    # Where nothing is bright, it changes nothing.
    even = np.random.default_rng(0).uniform(0.4, 0.6, (20, 20, 3))
    np.testing.assert_array_equal(tone_map(even, 0.0, highlights=4.0), tone_map(even, 0.0))


def test_surfaces_of_kind_pattern_name_one():
    surface = Surface("plaid", (1, 1, 1), (1, 1, 1), (0.2, 0.2), image=3)
    assert surface.kind in PATTERNS
