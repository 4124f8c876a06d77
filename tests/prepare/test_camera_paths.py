"""Camera paths: smooth, within the room, with the pose of each frame; without Blender."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scenes
from helpers.furniture import BoxRenderer, write_library
from scene_rendering.camera_paths import camera_to_world, draw_path
from scene_rendering.cameras import why_unusable
from scene_rendering.catalogue import Catalogue, read_catalogue
from scene_rendering.layout import draw_scene
from scene_rendering.pool import RenderSettings, render_views
from shard_writer import Sample

FRAMES = 8


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    folder = tmp_path_factory.mktemp("furniture")
    write_library(folder / "Tiny.sh3f")
    return read_catalogue(folder)


def paths(catalogue, count=6):
    for number in range(count):
        scene = draw_scene(catalogue, 3, number, 1, photo_share=0.5)
        if scene.shots:
            yield scene, draw_path(np.random.default_rng(number), scene, scene.shots[0], FRAMES)


def test_paths_are_smooth_and_usable(catalogue):
    found = 0
    for scene, path in paths(catalogue):
        if not path:
            continue
        found += 1
        assert len(path) == FRAMES
        assert path[0].camera.position == pytest.approx(scene.shots[0].camera.position)
        assert all(why_unusable(scene, shot, None) is None for shot in path)
        assert {(shot.aperture, shot.shake, shot.camera.fov_x) for shot in path} == {
            (0.0, (0.0, 0.0), scene.shots[0].camera.fov_x)
        }
        steps = np.linalg.norm(np.diff([shot.camera.position for shot in path], axis=0), axis=1)
        assert 0 < steps.min()
        assert steps.max() < 3 * steps.min()
    assert found >= 3


def test_the_pose_leads_from_the_camera_to_the_world(catalogue):
    _, path = next((scene, path) for scene, path in paths(catalogue) if path)
    pose = camera_to_world(path[3].camera)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
    assert np.linalg.det(pose[:3, :3]) == pytest.approx(1)
    ray = path[3].camera.rays(5, 3)[0, 4]
    focal = 5 / 2 / np.tan(path[3].camera.fov_x / 2)
    np.testing.assert_allclose(pose[:3, :3] @ [2 / focal, -1 / focal, 1], ray)


def test_all_frames_of_a_clip_have_poses_or_none_is_written(catalogue):
    settings = RenderSettings(catalogue, 3, FRAMES, 2 / 3, (32, 24), 1, 1, photo_share=0.5, moving=True)
    renderer, whole = BoxRenderer((32, 24)), 0
    for number in range(6):
        results = render_views(renderer, settings, number)
        written = [result for result in results if isinstance(result, Sample)]
        assert len(written) in (0, FRAMES)
        assert len({result for result in results if not isinstance(result, Sample)}) <= 1
        if written:
            whole += 1
            poses = [json.loads(sample.files["json"])["camera_to_world"] for sample in written]
            assert np.shape(poses) == (FRAMES, 4, 4)
            assert not np.allclose(poses[0], poses[-1])
    assert whole >= 2


def test_the_first_frame_is_that_of_the_scene_without_a_path(catalogue):
    for scene, path in paths(catalogue, 3):
        still = draw_scene(catalogue, 3, scene.number, 1, photo_share=0.5)
        if path:
            assert still.shots[0].camera.position == pytest.approx(path[0].camera.position)


def test_a_path_of_one_frame_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "check_bpy", lambda: None)
    arguments = ["--furniture", str(tmp_path), "--output", str(tmp_path / "out"), "--path_frames", "1"]
    assert scenes.main(arguments) != 0
    assert "--path_frames must be at least 2, got 1" in capsys.readouterr().err
