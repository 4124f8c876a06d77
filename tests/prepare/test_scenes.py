"""Rendered scenes: catalogue, layout, cameras and files without Blender; and what Blender, if installed, renders."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scenes
import verify
from helpers.furniture import BoxRenderer, write_library
from helpers.kill_points import digests
from helpers.prepared import picture, read_shards
from hypothesis import given, settings
from hypothesis import strategies as st
from scene_rendering.catalogue import Catalogue, extract_model, read_catalogue, read_model_names
from scene_rendering.geometry import Box, Camera, cast, overlap, standing_box
from scene_rendering.layout import MIN_CAMERA_DISTANCE, draw_scene, why_bad
from scene_rendering.pictures import check_frame, millimetres, tone_map
from scene_rendering.pool import RenderSettings, render_views
from scene_rendering.rooms import WALL_THICKNESS, wall_parts
from shard_writer import FrameRejected, Sample, write_shards

from depthfm_diffusers.frames import sources

SCRIPT = Path(scenes.__file__)


@pytest.fixture(scope="module")
def furniture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furniture")
    write_library(folder / "Tiny.sh3f")
    return folder


@pytest.fixture(scope="module")
def catalogue(furniture: Path) -> Catalogue:
    return read_catalogue(furniture)


# Catalogue


def test_catalogue_has_real_sizes_places_and_authors(catalogue):
    models = {model.id.removeprefix("Tiny#"): model for model in catalogue.models}
    assert models["sofa"].size == (1.8, 0.9, 0.8)
    assert models["sofa"].name == "Sofá"  # Latin-1
    assert models["sofa"].creator == "Zoė"  # Java's escape
    assert models["sofa"].licence == "CC0"
    assert models["sofa"].top == 0.42
    assert models["chair"].top == 0.9  # the catalogue's default: its height
    assert models["vase"].top is None
    assert models["lying"].rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0)
    places = {name: model.place for name, model in models.items()}
    assert places == dict.fromkeys(
        ("cupboard", "table", "sofa", "chair", "lying", "car", "tree", "woman"), "floor"
    ) | {
        "vase": "tabletop",
        "cup": "tabletop",
        "picture": "wall",
        "door": "wall",
        "lamp": "ceiling",
    }
    outdoor = {name for name, model in models.items() if model.outdoor}
    assert outdoor == {"car", "tree"}
    assert models["woman"].outdoor is None


def test_unusable_models_are_counted_by_reason(catalogue):
    assert catalogue.left_out == {
        "flatter than 0.02 m": 1,
        "longer than 12.5 m": 1,
        "needs a hole in the floor": 1,
        "no id or no .obj file": 1,
        "no readable size": 1,
        "on walls, smaller than 0.12 m": 1,
        "sits without a seat": 1,
    }


@pytest.mark.parametrize(
    ("licence", "short"),
    [
        ("Creative Commons Attribution 3.0 United States license  Copyright © X", "CC-BY-3.0-US"),
        ("Creative Commons Attribution 3.0 Unported license", "CC-BY-3.0"),
        ("Something else", "Something else"),
    ],
)
def test_licence_of_the_library_is_that_of_its_models(tmp_path, licence, short):
    write_library(tmp_path / "A.sh3f", licence)
    assert {model.licence for model in read_catalogue(tmp_path).models} == {short}


def test_models_without_licence_are_not_used(tmp_path):
    write_library(tmp_path / "A.sh3f", "")
    with pytest.raises(ValueError, match=r"no usable model.*'no licence'"):
        read_catalogue(tmp_path)


def test_held_out_models_stay_out(furniture, tmp_path):
    names = tmp_path / "models.tsv"
    names.write_text("id\tname\nTiny#sofa\tSofa\n\nTiny#car\tCar\n")
    held_out = read_model_names(names)
    assert held_out == {"Tiny#sofa", "Tiny#car"}
    every = {model.id for model in read_catalogue(furniture).models}
    without = read_catalogue(furniture, exclude=held_out)
    assert {model.id for model in without.models} == every - held_out
    assert without.left_out["excluded by name"] == 2
    assert {model.id for model in read_catalogue(furniture, only=held_out).models} == held_out
    # Also where the library lists the held-out model only.
    assert {m.id for m in read_catalogue(furniture, exclude={"Tiny#car"}, only=held_out).models} == {"Tiny#sofa"}


def test_unknown_names_and_folders_are_errors(furniture, tmp_path):
    with pytest.raises(ValueError, match=r"exclude_models: no library .* has \['Tiny#sofas'\]"):
        read_catalogue(furniture, exclude={"Tiny#sofas"})
    with pytest.raises(FileNotFoundError, match="apt-get install sweethome3d-furniture"):
        read_catalogue(tmp_path)
    (tmp_path / "bad.sh3f").write_bytes(b"no zip")
    with pytest.raises(ValueError, match=r"bad\.sh3f is not a furniture library"):
        read_catalogue(tmp_path)
    (tmp_path / "names.txt").write_text("id\n")
    with pytest.raises(ValueError, match="has no model names"):
        read_model_names(tmp_path / "names.txt")


def test_extraction_drops_pictures_that_are_not_there(catalogue, tmp_path):
    model = next(model for model in catalogue.models if model.id == "Tiny#sofa")
    path = extract_model(model, tmp_path)
    assert path.read_text().startswith("mtllib sofa.mtl")
    materials = path.with_suffix(".mtl").read_text()
    assert "wood.jpg" not in materials
    assert "map_Kd here.png" in materials  # the library says Here.PNG, which only Windows would find
    assert "Kd 0.8 0.1 0.1" in materials


# Geometry

BOXES = st.builds(
    standing_box,
    st.tuples(*[st.floats(0.1, 3)] * 3),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0, 2),
    st.floats(-4, 4),
)


@settings(deadline=None)
@given(BOXES, BOXES)
def test_overlap_is_what_points_inside_say(a, b):
    assert overlap(a, b) == overlap(b, a)
    grid = np.linspace(-0.49, 0.49, 8)
    points = np.stack(np.meshgrid(grid, grid, grid), -1).reshape(-1, 3) * a.size @ a.rotation.T + a.centre
    if any(b.distance(point) == 0 for point in points):
        assert overlap(a, b)


def test_boxes_past_each_others_corners_do_not_overlap():
    # Their bounds along x and y do, and each one's along the other's axes in one direction.
    a, b = standing_box((2, 2, 1), 0, 0), standing_box((2, 2, 1), 1.9, 1.9, yaw=np.pi / 4)
    assert not overlap(a, b)
    assert overlap(a, standing_box((2, 2, 1), 1.5, 1.5, yaw=np.pi / 4))
    assert not overlap(a, standing_box((2, 2, 1), 0, 0, bottom=1.0))  # one on the other


@pytest.mark.parametrize(("gap", "expected"), [(0.0, False), (0.09, False), (0.11, True)])
def test_gap_is_kept_sideways(gap, expected):
    a, b = standing_box((1, 1, 1), 0, 0), standing_box((1, 1, 1), 1.1, 0)
    assert overlap(a, b, gap) is expected


def test_camera_has_the_field_of_view_and_axes_it_says():
    camera = Camera((0, 0, 1), yaw=0.3, pitch=-0.2, roll=0.05, fov_x=np.radians(70))
    np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(camera.axes) == pytest.approx(1)
    rays = camera.rays(256, 192)
    np.testing.assert_allclose(rays @ camera.axes[2], 1, atol=1e-12)
    # Edges of the image: half a pixel beyond the outer pixel centres.
    outer = rays[96, -1] @ camera.axes[0]
    assert outer * 128 / 127.5 == pytest.approx(np.tan(np.radians(35)))
    level = Camera((0, 0, 1), yaw=0.0, pitch=0.0, roll=0.0, fov_x=1.0)
    np.testing.assert_allclose(level.axes, [[0, -1, 0], [0, 0, -1], [1, 0, 0]], atol=1e-12)
    # Turned clockwise, the camera's right points down.
    assert replace(level, roll=0.1).axes[0, 2] < 0


def test_cast_gives_planar_depth():
    camera = Camera((0, 0, 1), yaw=0.0, pitch=0.0, roll=0.0, fov_x=np.radians(90))
    wall, post = Box((5.5, 0, 1), (1, 40, 40)), Box((2.5, 1, 1), (1, 0.5, 2))
    depth, seen = cast(camera, [wall, post], 64, 48)
    assert set(np.unique(seen)) == {0, 1}
    np.testing.assert_allclose(depth[seen == 0], 5.0)  # planar: the same at the edges of the image
    assert depth[seen == 1].min() == pytest.approx(2.0)
    assert seen[24, 20] == 1  # y = 1 is on the left of a camera that looks along x
    nothing, unseen = cast(camera, [Box((-5, 0, 1), (1, 1, 1))], 8, 6)
    assert np.isinf(nothing).all()
    assert (unseen == -1).all()
    inside, _ = cast(camera, [Box((0, 0, 1), (1, 1, 1))], 8, 6)
    assert (inside == 0).all()


@pytest.mark.parametrize("along", [0.0, np.pi / 2, np.pi])
def test_wall_with_a_hole_misses_only_the_hole(along):
    hole = (1.0, 2.5, 0.8, 2.0)
    parts = wall_parts((1.0, 2.0), along, 4.0, 2.5, hole)
    assert sum(box.size[0] * box.size[2] for box in parts) == pytest.approx(4 * 2.5 - 1.5 * 1.2)
    assert not any(overlap(a, b, -1e-9) for a in parts for b in parts if a is not b)
    (whole,) = wall_parts((1.0, 2.0), along, 4.0, 2.5, None)
    # Its inner side is the line from the start; its thickness is to the right.
    direction = np.array([np.cos(along), np.sin(along), 0])
    start = np.array([1.0, 2.0, 1.0])
    assert whole.distance(start + 2 * direction) == pytest.approx(0, abs=1e-9)
    assert whole.distance(start + 2 * direction + 0.3 * np.array([-direction[1], direction[0], 0])) == pytest.approx(
        0.3
    )
    assert whole.size == (4.0, WALL_THICKNESS, 2.5)


# Layout


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_nothing_intersects_and_cameras_keep_their_distance(catalogue, number, indoor):
    scene = draw_scene(catalogue, 1, number, 3, indoor_share=float(indoor))
    assert scene.indoor is indoor
    boxes = scene.boxes
    pieces = scene.pieces
    for i, piece in enumerate(pieces):
        assert not any(overlap(piece.box, block.box, -1e-9) for block in scene.blocks)
        assert not any(overlap(piece.box, other.box) for other in pieces[:i])
        assert piece.box.size == piece.model.size  # real size
        if piece.support >= 0:
            table = pieces[piece.support]
            assert piece.box.bottom == pytest.approx(table.box.bottom + table.model.top, abs=2e-3)
            local = (piece.box.footprint - table.box.centre[:2]) @ table.box.rotation[:2, :2]
            assert (np.abs(local) <= np.array(table.model.size[:2]) / 2).all()
        elif piece.model.place in ("floor", "tabletop") and indoor:
            assert piece.box.bottom == pytest.approx(0, abs=1e-9)
        assert piece.model.outdoor in ((False, None) if indoor else (True, None))
    for camera in scene.cameras:
        assert min(box.distance(np.array(camera.position)) for box in boxes) >= MIN_CAMERA_DISTANCE
        assert why_bad(scene, camera) is None
        assert 50 <= np.degrees(camera.fov_x) <= 85
    assert len(scene.exposures) == len(scene.cameras)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_rooms_are_closed_but_for_their_windows(catalogue, number):
    scene = draw_scene(catalogue, 2, number, 0, indoor_share=1.0)
    width, length = (scene.blocks[0].box.size[i] - 2 * WALL_THICKNESS for i in range(2))
    # Straight up, down, and along the walls' feet there is always something.
    for yaw in np.linspace(0, 2 * np.pi, 9):
        low = Camera((width / 2, length / 2, 0.01), float(yaw), 0.0, 0.0, 1.0)
        assert np.isfinite(cast(low, [block.box for block in scene.blocks], 33, 1)[0]).all()
    for pitch in (-1.5, 1.5):
        steep = Camera((width / 2, length / 2, 1.2), 0.0, pitch, 0.0, 1.0)
        assert np.isfinite(cast(steep, [block.box for block in scene.blocks], 9, 9)[0]).all()


def test_furniture_at_a_wall_has_its_back_to_it(catalogue):
    seen = 0
    for number in range(40):
        scene = draw_scene(catalogue, 0, number, 0, indoor_share=1.0)
        width, length = (scene.blocks[0].box.size[i] - 2 * WALL_THICKNESS for i in range(2))
        for piece in scene.pieces:
            if piece.model.place == "wall":
                # The back is +y; one centimetre behind it is the wall, and no window.
                back = np.array(piece.box.centre) + piece.box.rotation @ (0, piece.model.size[1] / 2 + 0.01, 0)
                x, y, _ = back
                assert min(abs(x), abs(width - x), abs(y), abs(length - y)) < 1e-6
                assert min(block.box.distance(back) for block in scene.blocks[2:]) < 1e-6
                assert piece.box.bottom == pytest.approx(piece.model.elevation, abs=1e-9)
                seen += 1
    assert seen > 20


def test_scene_depends_on_seed_and_number_only(catalogue):
    again = draw_scene(catalogue, 5, 7, 3)
    draw_scene(catalogue, 5, 8, 3)
    assert draw_scene(catalogue, 5, 7, 3) == again
    assert draw_scene(catalogue, 6, 7, 3) != again
    assert draw_scene(catalogue, 5, 8, 3) != again


def test_indoor_share_is_the_share_of_rooms(catalogue):
    rooms = sum(draw_scene(catalogue, 0, number, 0, indoor_share=0.3).indoor for number in range(120))
    assert 20 <= rooms <= 52  # 36 expected, deviation 5


# Files


def test_tone_map_does_not_depend_on_the_unit_of_light():
    radiance = np.random.default_rng(0).gamma(1.0, 1.0, (24, 32, 3))
    image = tone_map(radiance, 0.0)
    assert 80 < image.mean() < 170
    assert np.abs(image.astype(int) - tone_map(1000 * radiance, 0.0)).max() <= 1
    assert tone_map(radiance, 1.0).mean() > image.mean() > tone_map(radiance, -1.0).mean()
    assert tone_map(np.zeros((4, 4, 3)), 0.0).max() == 0
    radiance[0, 0] = np.inf
    assert (tone_map(radiance, 0.0)[0, 0] == 255).all()


def test_depth_is_written_in_millimetres_and_zero_for_sky():
    depth = np.array([[0.5, 1.2344, 1.2346], [65.0, 65.001, 1e10]])
    np.testing.assert_array_equal(millimetres(depth), [[500, 1234, 1235], [65000, 0, 0]])
    assert millimetres(depth).dtype == np.uint16


CAMERA = Camera((0, 0, 1), 0.0, 0.0, 0.0, np.radians(60))


@pytest.mark.parametrize(
    ("depth", "contrast", "reason"),
    [
        (np.full((12, 16), 1e10), 60, "little_depth"),
        (np.full((12, 16), 70.0), 60, "little_depth"),
        (np.linspace(0.3, 5, 192).reshape(12, 16), 60, "too_close"),
        (np.linspace(2.0, 2.1, 192).reshape(12, 16), 60, "depth_range"),
        (np.linspace(1, 5, 192).reshape(12, 16), 2, "one_colour"),
        (np.linspace(1, 5, 192).reshape(12, 16), 0, "too_dark"),
        (np.linspace(1, 5, 192).reshape(12, 16), 60, None),
    ],
)
def test_useless_frames_are_rejected(depth, contrast, reason):
    image = np.random.default_rng(0).normal(128, contrast, (12, 16, 3)).clip(0, 255).astype(np.uint8)
    if reason == "too_dark":
        image[2:] = 0  # a bright window in a dark room
    if reason is None:
        check_frame(image, depth, CAMERA)
        return
    with pytest.raises(FrameRejected) as caught:
        check_frame(image, depth, CAMERA)
    assert caught.value.reason == reason


def settings_for(catalogue: Catalogue, **changes) -> RenderSettings:
    given = {"catalogue": catalogue, "seed": 4, "views": 2, "indoor_share": 0.6, "size": (32, 24), "samples": 1}
    return RenderSettings(**(given | {"threads": 1} | changes))


def test_views_without_camera_are_rejected_and_counted(catalogue):
    renderer = BoxRenderer((32, 24))
    empty = replace(catalogue, models=tuple(model for model in catalogue.models if model.place == "ceiling"))
    results = render_views(renderer, settings_for(empty, views=3, indoor_share=1.0), 0)
    assert [reason for reason, _ in results] == ["no_camera"] * 3
    assert renderer.built == []


def test_shards_are_read_by_the_trainer(catalogue, tmp_path):
    rendering = settings_for(catalogue)
    renderer = BoxRenderer(rendering.size)
    results = {number: render_views(renderer, rendering, number) for number in range(6)}

    def encode(frame):
        result = results[frame.scene][frame.view]
        if isinstance(result, Sample):
            return result
        raise FrameRejected(*result)

    frames = scenes.list_frames(4, 6, 2, 3)
    manifest = write_shards(
        tmp_path,
        scenes.PREFIX,
        frames,
        encode,
        settings={},
        source={},
        versions={},
        shard_size=6,
    )
    assert len(manifest["shards"]) == 2
    assert verify.verify_manifest(tmp_path) == []
    source = sources.open_source(sources.SourceConfig(str(tmp_path)))
    assert len(source) == manifest["counts"]["frames"] >= 8
    assert source.has_intrinsics
    frame = source[0]
    scene = draw_scene(catalogue, 4, int(frame.scene.split("_")[-1]), 2, 0.6)
    camera = scene.cameras[int(frame.key.split("_")[-1])]
    expected, _ = cast(camera, scene.boxes, 32, 24)
    known = expected <= 65
    np.testing.assert_allclose(frame.depth[known], expected[known], atol=6e-4)
    assert (frame.depth[~known] == 0).all()
    assert frame.intrinsics[0, 0] == pytest.approx(16 / np.tan(camera.fov_x / 2), rel=1e-5)
    used = {piece.model.id for number in range(6) for piece in draw_scene(catalogue, 4, number, 2, 0.6).pieces}
    assert scenes.write_models(tmp_path, catalogue) <= len(used)
    lines = (tmp_path / "models.tsv").read_text().splitlines()
    assert lines[0] == "id\tname\tcreator\tlicence"
    assert all(line.endswith("\tZoė\tCC0") for line in lines[1:])
    named = set().union(*(json.loads(files["json"])["models"] for files in read_shards(tmp_path).values()))
    assert {line.split("\t")[0] for line in lines[1:]} == named != set()


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 9))
def test_a_scene_is_in_one_shard_only_and_no_frame_is_lost(number, views, per_shard):
    frames = scenes.list_frames(3, number, views, per_shard)
    assert Counter((frame.scene, frame.view) for frame in frames) == Counter(
        (scene, view) for scene in range(number) for view in range(views)
    )
    assert len({frame.key for frame in frames}) == len(frames)
    for position, frame in enumerate(frames):
        assert position // (per_shard * views) == frame.scene // per_shard


# The command


def test_missing_bpy_is_told_with_what_to_install(furniture, tmp_path, monkeypatch, capsys):
    # A module of that name that fails as Blender's does where a system library is missing.
    (tmp_path / "bpy.py").write_text("raise ImportError('libXrender.so.1: cannot open shared object file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert scenes.main(["--furniture", str(furniture), "--output", str(tmp_path / "out")]) == 1
    message = capsys.readouterr().err
    assert "libXrender.so.1" in message
    assert "pip install -c constraints-render.txt bpy" in message
    assert "apt-get install" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "0"], "--views must be at least 1, got 0"),
        (["--seed", "-1"], "--seed must not be negative"),
        (["--textures", "{empty}"], "--textures: .* has no .jpg"),
        (["--environments", "{empty}"], "--environments: .* has no .exr"),
        (["--exclude_models", "{empty}/nothing.tsv"], "nothing.tsv"),
    ],
)
def test_bad_options_are_named(furniture, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.setattr(scenes, "check_bpy", lambda: None)
    (tmp_path / "empty").mkdir()
    options = [option.format(empty=tmp_path / "empty") for option in options]
    assert scenes.main(["--furniture", str(furniture), "--output", str(tmp_path / "out"), *options]) == 1
    assert re.search(message, capsys.readouterr().err)


# What Blender renders


@pytest.fixture(scope="module")
def render_python() -> str:
    """The interpreter that has Blender's module: this one, or the one that RENDER_PYTHON names."""
    python = os.environ.get("RENDER_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import bpy"], capture_output=True).returncode:
        pytest.skip(f"{python} has no bpy: set RENDER_PYTHON to a Python made with constraints-render.txt")
    return python


COMPARE_DEPTH = """
import json, sys, tempfile
from pathlib import Path
import numpy as np
from scene_rendering.catalogue import read_catalogue
from scene_rendering.geometry import Camera, cast, standing_box
from scene_rendering.parts import Block, Piece, Scene
from scene_rendering.render import Renderer
from scene_rendering.surfaces import Sky, Surface

models = {model.id: model for model in read_catalogue(Path(sys.argv[1])).models}
grey = Surface("bricks", (0.5, 0.5, 0.5), (0.1, 0.1, 0.1), (0.3, 0.3), 0.02)
scene = Scene(0, False, Sky(1.0, 0.5, 1.0, 0.2))
scene.blocks = [
    Block(standing_box((40, 40, 1), 0, 0, -1), grey),
    Block(standing_box((0.3, 6, 2.5), 7, 1, 0, 0.2), grey),
]
table, cupboard, lying, vase = (models["Tiny#" + name] for name in ("table", "cupboard", "lying", "vase"))
scene.pieces = [
    Piece(table, standing_box(table.size, 3.0, 0.9, 0, 0.4)),
    Piece(cupboard, standing_box(cupboard.size, 4.0, -1.2, 0, -0.7)),
    Piece(lying, standing_box(lying.size, 2.5, -0.3, 0, 1.0)),
    # 3 cm too high: it must be let down onto the table.
    Piece(vase, standing_box(vase.size, 3.0, 0.9, 0.78, 0), 0),
    # Half over the edge: it must be left out.
    Piece(vase, standing_box(vase.size, 3.0 - 0.6 * np.cos(0.4), 0.9 - 0.6 * np.sin(0.4), 0.75, 0.4), 0),
]
with tempfile.TemporaryDirectory() as folder:
    renderer = Renderer(Path(folder), (96, 72), samples=4, threads=1)
    kept = renderer.build(scene)
    boxes = scene.boxes[:-1]
    boxes[-1] = standing_box(vase.size, 3.0, 0.9, 0.751)
    results = []
    for camera in (
        Camera((0, 0, 1.5), 0.05, -0.2, 0.1, 1.2),
        Camera((1.0, -2.5, 0.8), 0.9, 0.05, -0.2, 1.0),
    ):
        radiance, depth = renderer.render(camera)
        expected, seen = cast(camera, boxes, 96, 72)
        even = np.ones_like(seen, dtype=bool)  # all eight neighbours show the same box
        for rows in (-1, 0, 1):
            for columns in (-1, 0, 1):
                even &= np.roll(seen, (rows, columns), (0, 1)) == seen
        even[[0, -1]] = even[:, [0, -1]] = False
        for box in range(-1, len(boxes)):
            pixels = even & (seen == box)
            if pixels.any():
                error = float(np.abs(depth - expected)[pixels].max()) if box >= 0 else None
                colour = radiance[pixels].mean(0).tolist()
                results.append([box, int(pixels.sum()), error, float(depth[pixels].min()), colour])
print(json.dumps({"kept": [model.id for model in kept], "results": results}))
"""


def run_blender(python: str, arguments: list[str], **options) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": "1"}
    return subprocess.run([python, *arguments], capture_output=True, text=True, env=environment, **options)


@pytest.mark.slow
def test_rendered_depth_is_that_of_the_geometry(render_python, furniture):
    done = run_blender(render_python, ["-c", COMPARE_DEPTH, str(furniture)])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kept"] == ["Tiny#table", "Tiny#cupboard", "Tiny#lying", "Tiny#vase"]
    assert {box for box, *_ in report["results"]} == set(range(-1, 6))  # sky, ground, wall, four pieces
    for box, _, error, nearest, colour in report["results"]:
        if box == -1:
            assert nearest >= 1e9
            continue
        # Float32, and the ground's far end at a grazing angle.
        assert error < (0.02 if box == 0 else 0.002), (box, error)
        if box >= 2:  # pieces are red and green, not the magenta of missing pictures
            assert colour[2] < 0.5 * max(colour[:2])


COMPARE_SHARPNESS = """
import json, sys, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np
from scene_rendering.geometry import Camera, cast, standing_box
from scene_rendering.parts import Block, Piece, Scene
from scene_rendering.render import Renderer
from scene_rendering.shapes import Slab, Turned, make_thing
from scene_rendering.surfaces import AreaLight, Sky, Surface, plain_surface

white = (1.0, 1.0, 1.0)
checks = Surface("checks", white, white, (2.0, 2.0), image=4)
box = make_thing("box", (Slab((0.3, 0.2, 0.4), (0.0, 0.0, 0.0), plain_surface((0.8, 0.1, 0.1), 0.5)),))
column = make_thing("column", (Turned(((0.1, 0.0), (0.1, 0.5)), checks),))
scene = Scene(0, True, Sky(1.0, 0.5, 1.0, 0.2))
scene.blocks = [
    Block(standing_box((40, 40, 1), 0, 0, -1), checks),
    Block(standing_box((0.2, 8, 4), 3.1, 0), checks),
]
scene.pieces = [
    Piece(box, standing_box(box.size, 1.0, 0.2, 0, 0.5)),
    Piece(column, standing_box(column.size, 1.2, -0.3, 0)),
]
scene.lights = [AreaLight((0.0, 0.0, 1.5), 0.1, 200.0, white, (0.8, 0.0, -0.6))]
camera = Camera((0, 0, 0.5), 0.0, -0.2, 0.1, 1.0)
with tempfile.TemporaryDirectory() as folder:
    renderer = Renderer(Path(folder), (96, 72), samples=16, threads=1)
    kept = renderer.build(scene)
    sharp, depth = renderer.render(camera)
    blurred, same = renderer.render(camera, 1.0, 0.1)
    again, _ = renderer.render(camera)
    scene.lights = [replace(scene.lights[0], direction=(-0.8, 0.0, 0.6))]
    renderer.build(scene)
    unlit, _ = renderer.render(camera)
expected, seen = cast(camera, scene.boxes, 96, 72)
turned = seen == 3

def edges(image, pixels):
    return float(np.abs(np.diff(image.mean(-1), axis=1))[pixels[:, 1:] & pixels[:, :-1]].mean())
print(json.dumps({
    "kept": kept,
    "same": float(np.abs(depth - same).max()),
    "again": float(np.abs(sharp - again).max()),
    "box": float(np.median(np.abs(depth - expected)[seen == 2])),
    "column": [float(depth[turned].min()), float(expected[turned].min())],
    "wall": [edges(sharp, seen == 1), edges(blurred, seen == 1)],
    "red": (sharp[seen == 2].mean(0) / sharp[seen == 2].mean()).tolist(),
    "light": [float(sharp.mean()), float(unlit.mean())],
}))
"""


@pytest.mark.slow
def test_depth_stays_sharp_where_the_picture_is_blurred(render_python):
    done = run_blender(render_python, ["-c", COMPARE_SHARPNESS])
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["kept"] == []  # drawn things are nobody's models
    assert report["same"] == 0
    assert report["again"] == 0  # the lens is as it was
    assert report["box"] < 1e-3
    nearest, expected = report["column"]
    assert nearest == pytest.approx(expected, abs=0.01)
    sharp, blurred = report["wall"]
    assert blurred < 0.5 * sharp
    assert report["red"][0] > 2 * report["red"][1]
    lit, unlit = report["light"]
    assert lit > 1.2 * unlit  # a lamp that is turned away


@pytest.mark.slow
def test_unreadable_picture_stops_the_run_and_is_named(render_python, tmp_path):
    write_library(tmp_path / "Bad.sh3f", picture=b"no PNG")
    command = [str(SCRIPT), "--furniture", str(tmp_path), "--output", str(tmp_path / "out"), "--threads", "1"]
    done = run_blender(render_python, [*command, "--scenes", "1", "--width", "16", "--height", "12"])
    assert done.returncode == 1
    assert re.search(r"error: Bad#\w+: .*here\.png is not a readable picture", done.stderr)
    assert not list((tmp_path / "out").glob("*.tar"))


@pytest.mark.slow
def test_killed_command_continues_to_the_same_bytes(render_python, furniture, tmp_path):
    def command(output: Path, workers: int) -> list[str]:
        return [
            *(str(SCRIPT), "--furniture", str(furniture), "--output", str(output), "--scenes", "3", "--views", "2"),
            *("--width", "48", "--height", "36", "--samples", "2", "--threads", "1", "--scenes_per_shard", "1"),
            *("--seed", "11", "--num_workers", str(workers)),
        ]

    reference, output = tmp_path / "reference", tmp_path / "output"
    done = run_blender(render_python, command(reference, 1))
    assert done.returncode == 0, done.stderr
    expected = digests(reference)
    manifest = json.loads((reference / "manifest.json").read_text())
    assert manifest["counts"]["candidates"] == 6
    assert len(manifest["shards"]) == 3
    assert verify.verify_manifest(reference) == []
    for files in read_shards(reference).values():
        image, depth = picture(files["webp"]), picture(files["depth.png"])
        assert image.shape == (36, 48, 3)
        assert depth.dtype == np.uint16
        assert depth.max() <= 65000
        assert (depth > 0).mean() > 0.3

    process = subprocess.Popen([render_python, *command(output, 2)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list(output.glob("*.tar")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    # By the threads that started them.
    tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [child for task in tasks for child in task.read_text().split()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "manifest.json").exists()
    # Those that rendered do not outlive it.
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert len(children) >= 2
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    first = {name: digest for name, digest in digests(output).items() if name.endswith(".tar")}
    assert first
    assert first.items() <= expected.items()
    done = run_blender(render_python, command(output, 2))
    assert done.returncode == 0, done.stderr
    assert digests(output) == expected
    # Other settings into the same folder are refused.
    done = run_blender(render_python, [*command(output, 1), "--samples", "3"])
    assert done.returncode == 1
    assert "samples was 2, is 3" in done.stderr
