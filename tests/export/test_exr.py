"""OpenEXR files, opened again by OpenImageIO, which Blender and others read them with."""

from __future__ import annotations

import sys

import numpy as np
import OpenImageIO
import pytest

from depthfm_diffusers.export.exr import save_exr

DEPTH = np.random.default_rng(0).uniform(0.5, 30, (7, 9)).astype(np.float32)
NORMALS = np.random.default_rng(1).uniform(-1, 1, (7, 9, 3)).astype(np.float32)


def read(path) -> tuple[OpenImageIO.ImageSpec, dict[str, np.ndarray]]:
    """The header and the channels by their names."""
    file = OpenImageIO.ImageInput.open(str(path))
    spec = file.spec()
    pixels = file.read_image(OpenImageIO.FLOAT)
    file.close()
    return spec, {name: pixels[..., index] for index, name in enumerate(spec.channelnames)}


def test_channels_are_those_that_compositors_read(tmp_path):
    save_exr(tmp_path / "a.exr", DEPTH, NORMALS, "metres")
    spec, channels = read(tmp_path / "a.exr")
    assert set(channels) == {"Z", "N.X", "N.Y", "N.Z"}
    assert {str(spec.channelformat(index)) for index in range(4)} == {"float"}
    assert spec.getattribute("compression") == "zip"
    assert spec.getattribute("ImageDescription") == "metres"
    np.testing.assert_array_equal(channels["Z"], DEPTH)
    for index, (name, sign) in enumerate((("N.X", 1), ("N.Y", -1), ("N.Z", -1))):
        np.testing.assert_array_equal(channels[name], sign * NORMALS[..., index])


def test_depth_alone_and_any_float_type(tmp_path):
    save_exr(tmp_path / "a", DEPTH.astype(np.float64)[:, ::-1])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    (tmp_path / "a").rename(tmp_path / "a.exr")
    _, channels = read(tmp_path / "a.exr")
    assert list(channels) == ["Z"]
    np.testing.assert_array_equal(channels["Z"], DEPTH[:, ::-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DEPTH[None],), "`depth` must be one map, H×W"),
        ((DEPTH[:0],), "`depth` must be one map"),
        ((DEPTH, NORMALS[:-1]), r"`normals` must be of shape \(7, 9, 3\)"),
    ],
)
def test_shapes_that_do_not_fit_are_named(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        save_exr(tmp_path / "a.exr", *arguments)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    with pytest.raises(ImportError, match=r"needs OpenEXR: pip install 'depthfm_diffusers\[exr\]'"):
        save_exr(tmp_path / "a.exr", DEPTH)
    assert list(tmp_path.iterdir()) == []
