"""`training/frames.py`: what is read, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from frames import SceneFrames, find_shards, split_by_scene
from hypothesis import given
from hypothesis import strategies as st
from shards import png, sloping_frame, write_shard


def test_frame_is_decoded_in_metres(tmp_path):
    shard = write_shard(tmp_path / "train-000.tar", [sloping_frame(n) for n in range(3)])
    frames = SceneFrames([shard])
    assert len(frames) == 3
    assert frames.scenes == ["0", "0", "1"]
    frame = frames[1]
    assert frame.image.shape == (48, 64, 3)
    assert frame.image.dtype == np.uint8
    assert frame.depth.dtype == np.float32
    assert frame.fov_x_deg == 60.0
    assert (frame.depth[:4] == 0).all()
    np.testing.assert_allclose(frame.depth[-1, 0], 1.0, atol=1e-3)


def test_folder_gives_its_shards_sorted(tmp_path):
    for name in ("b.tar", "a.tar"):
        write_shard(tmp_path / name, [sloping_frame(0)])
    assert [p.name for p in find_shards([tmp_path, tmp_path / "a.tar"])] == ["a.tar", "b.tar"]


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.tar does not exist"):
        find_shards([tmp_path / "nowhere.tar"])
    with pytest.raises(FileNotFoundError, match=r"no \.tar shard"):
        find_shards([tmp_path])
    (tmp_path / "a.zip").touch()
    with pytest.raises(ValueError, match=r"a\.zip is not a \.tar"):
        find_shards([tmp_path / "a.zip"])
    (tmp_path / "empty.tar").touch()
    with pytest.raises(ValueError, match=r"empty\.tar is empty"):
        SceneFrames([tmp_path / "empty.tar"])


def test_missing_column_is_named(tmp_path):
    frame = sloping_frame(0)
    del frame["depth.png"]
    with pytest.raises(ValueError, match=r"missing column\(s\) \['depth.png'\]"):
        SceneFrames([write_shard(tmp_path / "a.tar", [frame])])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"depth.png": png(np.zeros((10, 10), np.uint16))},
            r"'frame0000': image is \(64, 48\), depth.png is \(10, 10\)",
        ),
        ({"depth.png": png(np.zeros((48, 64), np.uint8))}, "mode 'L', not 16-bit"),
        ({"png": b"no picture"}, "'frame0000': png is not a readable image"),
        ({"json": json.dumps({"scene": 1, "fov_x_deg": 0}).encode()}, "fov_x_deg is 0.0"),
    ],
)
def test_unusable_frame_is_named(tmp_path, change, message):
    shard = write_shard(tmp_path / "a.tar", [sloping_frame(0) | change])
    with pytest.raises(ValueError, match=message):
        SceneFrames([shard])[0]


def test_frame_without_scene_is_named(tmp_path):
    frame = sloping_frame(0) | {"json": json.dumps({"fov_x_deg": 60.0}).encode()}
    with pytest.raises(ValueError, match="'frame0000': its json has no 'scene'"):
        SceneFrames([write_shard(tmp_path / "a.tar", [frame])])


@given(st.lists(st.integers(0, 30), max_size=60), st.floats(0, 0.99))
def test_split_keeps_scenes_together_and_loses_nothing(numbers, fraction):
    scenes = [str(n) for n in numbers]
    train, validation = split_by_scene(scenes, fraction)
    assert sorted(train + validation) == list(range(len(scenes)))
    assert not {scenes[i] for i in train} & {scenes[i] for i in validation}


def test_split_does_not_move_when_scenes_are_added():
    scenes = [str(n) for n in range(400)]
    _, few = split_by_scene(scenes[:200], 0.05)
    _, many = split_by_scene(scenes, 0.05)
    assert few == [i for i in many if i < 200]
    assert 5 <= len(many) <= 40  # 20 expected


def test_split_refuses_everything_as_validation():
    with pytest.raises(ValueError, match="validation_fraction"):
        split_by_scene(["a"], 1.0)
