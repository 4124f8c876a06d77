"""Depth maps as files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from depthfm_diffusers.export.images import colorize_depth, depth_to_uint16, save_image
from depthfm_diffusers.utils.files import atomic_write, save_array, save_json

RAMP = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)


def test_near_is_red_and_far_is_blue():
    colors = colorize_depth(RAMP).astype(int)
    assert colors.shape == (3, 4, 3)
    near, far = colors[0, 0], colors[-1, -1]
    assert near[0] > near[2] + 50
    assert far[2] > far[0] + 50


def test_colormap_is_used():
    assert (colorize_depth(RAMP, "gray")[0, 0] == 0).all()
    assert (colorize_depth(RAMP, "gray")[-1, -1] == 255).all()


@given(hnp.arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32)))
def test_uint16_round_trip(depth):
    encoded = depth_to_uint16(depth)
    assert encoded.dtype == np.uint16
    assert np.abs(encoded / 65535 - depth).max() <= 1 / 131070 + 1e-7
    order = np.argsort(depth, axis=None)
    assert (np.diff(encoded.ravel()[order].astype(int)) >= 0).all()


def test_uint16_ends():
    assert depth_to_uint16(RAMP).min() == 0
    assert depth_to_uint16(RAMP[..., None]).max() == 65535


@pytest.mark.parametrize("function", [colorize_depth, depth_to_uint16])
@pytest.mark.parametrize(
    ("depth", "message"),
    [
        (np.zeros((2, 3, 3)), "H×W"),
        (np.zeros((0, 3)), "not empty"),
        (np.zeros((2, 2), dtype=np.uint8), "floats"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.array([[0.0, 1.5]]), "from 0 to 1.5"),
        (np.array([[-0.5, 1.0]]), "from -0.5 to 1"),
    ],
)
def test_bad_depth(function, depth, message):
    with pytest.raises(ValueError, match=message):
        function(depth)


def test_unknown_colormap():
    with pytest.raises(ValueError, match="'rainbows'"):
        colorize_depth(RAMP, "rainbows")


def test_files_hold_what_was_given(tmp_path):
    save_array(tmp_path / "a.npy", RAMP)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", allow_pickle=False), RAMP)
    save_image(tmp_path / "a.png", depth_to_uint16(RAMP))
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(picture), depth_to_uint16(RAMP))
    save_image(tmp_path / "c.png", colorize_depth(RAMP))
    with Image.open(tmp_path / "c.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), colorize_depth(RAMP))
    save_json(tmp_path / "m.json", {"größe": [1, None]})
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"größe": [1, None]}


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_atomic_write_replaces(tmp_path):
    path = tmp_path / ("n" * 251 + ".txt")
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        save_json(tmp_path / "m.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_large_maps_are_converted_in_parts(monkeypatch):
    depth = np.linspace(0, 1, 7 * 5, dtype=np.float32).reshape(7, 5)
    whole = colorize_depth(depth), depth_to_uint16(depth)
    monkeypatch.setattr("depthfm_diffusers.export.images.PIXELS_AT_ONCE", 11)
    parts = colorize_depth(depth), depth_to_uint16(depth)
    for one, other in zip(whole, parts, strict=True):
        assert np.array_equal(one, other)
        assert one.dtype == other.dtype
