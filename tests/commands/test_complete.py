"""`depthfm complete`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from depthfm_diffusers import cli


@pytest.fixture
def known(image) -> np.ndarray:
    """Half of a slanted floor, metres."""
    y, x = np.mgrid[0 : image.height, 0 : image.width]
    return np.where(x % 2 == 0, 4 - 3 * y / image.height, 0).astype(np.float32)


def save_depth(path: Path, metres: np.ndarray) -> None:
    if path.suffix == ".npy":
        np.save(path, metres)
    elif path.suffix == ".png":
        Image.fromarray((metres * 1000).round().astype(np.uint16)).save(path)
    elif path.suffix == ".tif":
        Image.fromarray(metres).save(path)
    else:
        openexr = pytest.importorskip("OpenEXR")
        openexr.File({"type": openexr.scanlineimage}, {"Z": metres}).write(str(path))


def run(*arguments: object) -> int:
    return cli.main(["complete", *map(str, arguments)])


@pytest.mark.parametrize("suffix", [".png", ".npy", ".tif", ".exr"])
def test_completes_a_file(model, tmp_path, image, known, suffix, capsys):
    image.save(tmp_path / "room.png")
    save_depth(tmp_path / f"points{suffix}", known)
    out = tmp_path / "out"
    status = run(
        tmp_path / "room.png", "--depth", tmp_path / f"points{suffix}", "--output", out, "--model", model,
        "--keep-known", "--optimization-steps", 1,
    )  # fmt: skip
    assert status == 0, capsys.readouterr().err
    depth = np.load(out / "room_completed.npy")
    assert (depth.dtype, depth.shape) == (np.float32, known.shape)
    np.testing.assert_allclose(depth[known > 0], known[known > 0], atol=6e-4)
    counts = np.asarray(Image.open(out / "room_completed.png"))
    np.testing.assert_allclose(counts * 0.001, depth, atol=6e-4)
    assert np.load(out / "room_uncertainty.npy").shape == known.shape
    with Image.open(out / "room_completed_color.png") as picture:
        assert picture.size == image.size
    record = json.loads((out / "metadata.json").read_text())
    (entry,) = record["images"]
    assert entry["png_scale"] == 0.001
    assert entry["fit"]["points"] == (known > 0).sum()
    assert entry["depth"].endswith(suffix)
    assert record["runs"][0]["settings"]["keep_known"] is True


def test_the_scale_is_an_argument(model, tmp_path, image, known):
    image.save(tmp_path / "room.png")
    save_depth(tmp_path / "points.npy", known * 100)
    out = tmp_path / "out"
    arguments = (tmp_path / "room.png", "--depth", tmp_path / "points.npy", "--scale", 0.01, "--output", out)
    assert run(*arguments, "--model", model, "--keep-known", "--optimization-steps", 0) == 0
    depth = np.load(out / "room_completed.npy")
    np.testing.assert_allclose(depth[known > 0], known[known > 0], rtol=1e-5)


def test_folders_are_paired_by_name(model, tmp_path, image, known, capsys):
    photos, depths, out = (tmp_path / name for name in ("photos", "depths", "out"))
    photos.mkdir()
    depths.mkdir()
    for name in ("a", "b", "c", "d", "e"):
        image.save(photos / f"{name}.png")
    save_depth(depths / "a.png", known)
    save_depth(depths / "b.npy", known)
    save_depth(depths / "c.npy", known[1:])
    save_depth(depths / "e.npy", 0 * known)
    assert run(photos, "--depth", depths, "--output", out, "--model", model, "--optimization-steps", 0) == 1
    printed = capsys.readouterr()
    assert "2 of 5 inputs written" in printed.out
    assert {path.name[0] for path in out.glob("*_completed.npy")} == {"a", "b"}
    assert "c.npy is 47x72 pixels, c.png is 48x72" in printed.err
    assert "has no depth for it: there must be one of d.png, d.npy" in printed.err
    assert "e.npy: `depth` has no known point" in printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depth", "missing.npy"], "missing.npy: there is no such file"),
        (["--depth", "points.npy", "--scale", "0"], "`scale` must be positive"),
        (["--depth", "points.npy", "--max-seconds", "-1"], "`max_seconds` must be positive"),
    ],
)
def test_bad_arguments(model, tmp_path, image, known, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    image.save("room.png")
    save_depth(Path("points.npy"), known)
    assert run("room.png", *arguments, "--output", "out", "--model", model) == 1
    assert message in capsys.readouterr().err


def test_one_depth_file_is_for_one_image(model, tmp_path, image, known, capsys):
    for name in ("a.png", "b.png"):
        image.save(tmp_path / name)
    save_depth(tmp_path / "points.npy", known)
    inputs = (tmp_path / "a.png", tmp_path / "b.png")
    assert run(*inputs, "--depth", tmp_path / "points.npy", "--output", tmp_path / "out", "--model", model) == 1
    assert "is one file for 2 images" in capsys.readouterr().err
