"""`depthfm predict --save`: which files are written, what is assumed and said, and what happens to earlier results."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import OpenImageIO
import pytest
from PIL import Image

from depthfm_diffusers import cli
from depthfm_diffusers.geometry import intrinsics_from_fov
from depthfm_diffusers.inference import geometry_files
from depthfm_diffusers.inference.geometry_files import ENDINGS, VALUES, GeometrySettings, depth_in_range
from depthfm_diffusers.inference.prediction_files import SUFFIXES
from depthfm_diffusers.utils.choices import SAVED_KINDS

ALL = ",".join(SAVED_KINDS)


@pytest.fixture
def predict(model, tmp_path, monkeypatch, image):
    """Runs `depthfm predict in/photo.png ... --output out --model TINY --steps 1` in the temporary folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    image.save(tmp_path / "in" / "photo.png")

    def run(*arguments: object) -> int:
        command = ["predict", "in/photo.png", "--output", "out", "--model", str(model), "--steps", "1"]
        return cli.main([*command, *map(str, arguments)])

    return run


def names() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def record() -> dict:
    return json.loads(Path("out/metadata.json").read_text(encoding="utf-8"))


def test_every_kind_has_files_and_every_file_a_meaning():
    assert set(ENDINGS) == set(SAVED_KINDS) - {"depth"}
    endings = [ending for endings in ENDINGS.values() for ending in endings]
    assert sorted(endings) == sorted(VALUES)


def test_all_kinds(predict, image, capsys):
    assert predict("--save", ALL, "--depth-range", "2,20", "--max-angle", 90) == 0
    expected = [*SUFFIXES, *VALUES]
    assert names() == sorted(["metadata.json", *("photo" + ending for ending in expected)])
    content = record()
    (entry,) = content["images"]
    assert sorted(entry["files"]) == names()[1:]
    assert set(content["values"]) == set(expected)
    assert content["runs"][0]["settings"]["geometry"]["depth_range"] == [2, 20]
    metres = np.load("out/photo_metres.npy")
    assert metres.shape == (48, 72)
    assert (metres.min(), metres.max()) == pytest.approx((2, 20))
    log_depth = np.load("out/photo_log_depth.npy").astype(float)
    slope = np.ptp(np.log(metres)) / np.ptp(log_depth)
    np.testing.assert_allclose(np.log(metres), np.log(2) + slope * (log_depth - log_depth.min()), atol=1e-5)
    with Image.open("out/photo_metres.png") as picture:
        scale = float(picture.text["depth_scale"])
        np.testing.assert_allclose(np.asarray(picture) * scale, metres, atol=scale)
    assert entry["metres_png_scale"] == scale == 0.001
    assert entry["metres"] == {"source": "given range", "near": 2, "far": 20}
    assert entry["focal_length"]["source"] == "default"
    np.testing.assert_allclose(entry["intrinsics"], intrinsics_from_fov(55.0, 48, 72), rtol=1e-6)
    normals = np.load("out/photo_normals.npy")
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)
    for name, width in (("side_by_side", 144), ("anaglyph", 72)):
        with Image.open(f"out/photo_{name}.png") as picture:
            assert picture.size == (width, 48)
    with Image.open("out/photo_mesh.png") as texture:
        np.testing.assert_array_equal(np.asarray(texture), np.asarray(image.convert("RGB")))
    error = capsys.readouterr().err
    assert "field of view of 55 degrees is assumed" in error
    assert "metres is not known" not in error


def test_without_a_range_the_command_says_what_it_assumed(predict, capsys):
    assert predict("--save", "metres") == 0
    error = capsys.readouterr().err
    assert "the nearest point of each image is assumed 1 m away and the farthest 10 m; --depth-range" in error
    (entry,) = record()["images"]
    assert entry["metres"] == {"source": "assumed range", "near": 1, "far": 10}
    assert names() == ["metadata.json", "photo_metres.npy", "photo_metres.png"]


def test_known_points_and_a_known_camera_are_used(predict, capsys):
    """The farther of two pixels is put at 4 m, the nearer at 2 m; OpenEXR has the metres that were fitted."""
    assert predict() == 0
    log_depth = np.load("out/photo_log_depth.npy")
    anchors = []
    for metres, flat in ((2, log_depth.argmin()), (4, log_depth.argmax())):
        row, column = np.unravel_index(flat, log_depth.shape)
        anchors += ["--anchor", f"{column},{row},{metres}"]
    capsys.readouterr()
    assert predict(*anchors, "--focal-length", 100, "--save", "points,exr", "--max-angle", 90) == 0
    assert "assumed" not in capsys.readouterr().err
    (entry,) = record()["images"]
    assert entry["metres"]["source"] == "points of known depth"
    assert entry["intrinsics"][0][0] == pytest.approx(100)
    assert {"photo_metres.npy", "photo_points.ply", "photo_depth.exr"} <= set(entry["files"])
    metres = np.load("out/photo_metres.npy")
    assert (metres.min(), metres.max()) == pytest.approx((2, 4))
    file = OpenImageIO.ImageInput.open("out/photo_depth.exr")
    names = list(file.spec().channelnames)
    np.testing.assert_array_equal(file.read_image(OpenImageIO.FLOAT)[..., names.index("Z")], metres)
    file.close()


def test_depth_maps_alone_assume_nothing(predict, capsys):
    assert predict() == 0
    assert "assumed" not in capsys.readouterr().err
    assert not {"metres", "intrinsics"} & set(record()["images"][0])


def test_files_of_an_earlier_run_are_kept_and_the_record_says_how_they_were_made(predict):
    assert predict("--seed", 1) == 0
    assert predict("--seed", 2, "--save", "metres") == 0
    assert predict("--seed", 3, "--save", "metres,normals") == 0
    content = record()
    (entry,) = content["images"]
    files = [name for name in names() if name != "metadata.json"]
    assert sorted(entry["files"]) == files
    assert len(files) == len(SUFFIXES) + 4
    (kept,) = entry["kept"]
    assert kept["run"]["settings"]["seed"] == 1
    assert sorted(kept["files"]) == sorted("photo" + suffix for suffix in SUFFIXES)
    assert content["runs"][entry["run"]]["settings"]["seed"] == 3
    assert set(content["values"]) == {*SUFFIXES, *ENDINGS["metres"], *ENDINGS["normals"]}
    assert predict("--seed", 4) == 0
    (entry,) = record()["images"]
    (kept,) = entry["kept"]
    assert kept["run"]["settings"]["seed"] == 3
    assert len(kept["files"]) == 4
    assert sorted(entry["files"]) == files


def test_a_file_of_other_origin_is_not_overwritten(predict):
    Path("out").mkdir()
    Path("out/photo_mesh.glb").write_bytes(b"mine")
    assert predict("--save", "metres,mesh", "--max-angle", 90) == 0
    assert Path("out/photo_mesh.glb").read_bytes() == b"mine"
    assert "photo_png_mesh.glb" in names()


@pytest.mark.parametrize(("kind", "package", "extra"), [("mesh", "trimesh", "mesh"), ("exr", "OpenEXR", "exr")])
def test_missing_packages_are_named_before_a_model_is_looked_for(predict, monkeypatch, capsys, kind, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    assert predict("--save", f"depth,{kind}", "--model", "no-model") == 1
    assert f"needs {package}: pip install 'depthfm_diffusers[{extra}]'" in capsys.readouterr().err
    assert not Path("out").exists()


def test_an_image_of_which_nothing_is_left_is_named(predict, capsys):
    assert predict("--save", "metres,points", "--max-depth", 0.5) == 1
    assert "photo.png: no point is left of the depth map of 72 x 48 pixels" in capsys.readouterr().err
    assert not Path("out").exists(), "all files of an image, or none"


def test_an_interruption_leaves_nothing(predict, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(geometry_files, "save_points", interrupt)
    assert predict("--save", "metres,points") == 130
    assert not Path("out").exists()


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "F"])
def test_pictures_of_any_mode_colour_the_points(predict, mode):
    if mode == "I;16":
        picture = Image.fromarray(np.linspace(0, 65535, 48 * 72).reshape(48, 72).astype(np.uint16))
    elif mode == "F":
        picture = Image.fromarray(np.linspace(0, 1, 48 * 72, dtype=np.float32).reshape(48, 72))
    else:
        picture = Image.open("in/photo.png").convert(mode)
    Path("in/photo.png").unlink()
    picture.save("in/photo.tiff")
    Path("in/photo.tiff").rename("in/photo.png")
    assert predict("--save", "stereo", "--stereo-shift", 0.01) == 0
    with Image.open("out/photo_anaglyph.png") as found:
        assert np.ptp(np.asarray(found).astype(int)) > 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--save", "depth,meshes"], "did you mean mesh?"),
        (["--save", ""], "invalid choice: ''"),
        (["--depth-range", "5"], "must be NEAR,FAR in metres"),
        (["--depth-range", "5,2"], "must be NEAR,FAR in metres with 0 < NEAR < FAR, got '5,2'"),
        (["--depth-range", "0,2"], "must be NEAR,FAR"),
        (["--depth-range", "nan,2"], "must be NEAR,FAR"),
        (["--depth-range", "1,inf"], "must be NEAR,FAR"),
        (["--max-depth", "far"], "must be a number"),
    ],
)
def test_arguments_are_checked_before_anything_is_done(predict, capsys, arguments, message):
    with pytest.raises(SystemExit):
        predict(*arguments)
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth-range", "1,2", "--anchor", "1,1,2"], "--depth-range and points of known depth both say"),
        (["--max-depth", "-1"], "`max_depth` must be a positive number of metres"),
        (["--edge-tolerance", "0"], "`tolerance` must be a positive number"),
        (["--stereo-shift", "2"], "`max_shift` must be in"),
    ],
)
def test_values_out_of_range_are_named(predict, capsys, arguments, message):
    assert predict(*arguments, "--model", "no-model") == 1
    assert message in capsys.readouterr().err
    assert not Path("out").exists()


def test_a_constant_map_is_at_the_near_end():
    assert (depth_in_range(np.full((2, 3), 0.3, np.float32), 2.0, 5.0) == 2).all()


@pytest.mark.parametrize("change", [{"kinds": ()}, {"kinds": ("mash",)}, {"depth_range": (2.0, 1.0)}])
def test_settings_out_of_range_are_named(change):
    with pytest.raises(ValueError, match=f"`{next(iter(change))}` must be"):
        GeometrySettings(**change)
