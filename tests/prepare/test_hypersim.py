"""Hypersim's shards, from tiny files in the data set's layout; geometry, tone mapping and filters by hand."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import h5py
import hypersim
import hypersim_camera
import numpy as np
import pytest
import verify
from helpers.kill_points import digests
from helpers.prepared import check_killed_command, picture, read_shards
from hypothesis import given
from hypothesis import strategies as st
from shard_writer import FrameRejected, UnusableFrame

from depthfm_diffusers.frames import sources

HEIGHT, WIDTH = 12, 16
FILTERS = hypersim.Filters(min_depth_range=0.5, min_rgb_range=10, max_invalid=0.03)

# Of metadata_camera_parameters.csv: the plain camera and one with offsets and a tilt.
PLAIN_UV = np.diag([0.5773502886169104, 0.4330127164626828, -1.0])
TILTED_UV = np.array(
    [
        [0.57960725, 0.0, -0.06955287],
        [0.0, 0.43468653, 0.09273313],
        [0.0, 0.00405413, -1.00390917],
    ]
)


def write_hdf5(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("dataset", data=array, compression="gzip", compression_opts=9)


def write_frame(root: Path, scene: str, camera: str, number: int, **changes: np.ndarray) -> None:
    """Writes the three files of a frame: a floor that recedes upwards, random radiance, geometry everywhere."""
    rng = np.random.default_rng([int(scene[-3:]), int(camera[-2:]), number])
    parts = {
        "final/color": rng.uniform(0.0, 2.0, (HEIGHT, WIDTH, 3)).astype(np.float16),
        "geometry/depth_meters": np.linspace(6, 1, HEIGHT)[:, None].repeat(WIDTH, 1).astype(np.float16),
        "geometry/render_entity_id": rng.integers(1, 300, (HEIGHT, WIDTH)).astype(np.int16),
    }
    for name, array in parts.items():
        folder, content = name.split("/")
        path = root / scene / "images" / f"scene_{camera}_{folder}_hdf5" / f"frame.{number:04d}.{content}.hdf5"
        write_hdf5(path, changes.get(content, array))


def write_split(path: Path, rows: Sequence[tuple]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*hypersim.SPLIT_COLUMNS[:4], "exclude_reason", "split_partition_name"])
        writer.writerows(rows)
    return path


def write_cameras(path: Path, scenes: dict[str, np.ndarray]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        names = [name for row in hypersim_camera.MATRIX_COLUMNS for name in row]
        writer.writerow(["scene_name", "settings_output_img_height", "settings_output_img_width", *names])
        writer.writerows([scene, "768.0", "1024.0", *matrix.ravel()] for scene, matrix in scenes.items())
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two training scenes (one with two cameras) and one for validation; frames that must not be taken, too."""
    root = tmp_path / "hypersim"
    rows = []
    for scene, camera, number, split in [
        *(("ai_001_001", "cam_00", number, "train") for number in range(4)),
        *(("ai_001_001", "cam_01", number, "train") for number in range(3)),
        *(("ai_010_005", "cam_00", number, "train") for number in (0, 17)),
        ("ai_002_002", "cam_00", 5, "val"),
    ]:
        write_frame(root, scene, camera, number)
        rows.append((scene, camera, number, True, "", split))
    # Not published: there are no such files.
    rows.append(("ai_001_001", "cam_00", 99, False, "CONTENT FLAGGED FOR REMOVAL", ""))
    write_split(tmp_path / "split.csv", rows)
    write_cameras(tmp_path / "cameras.csv", {"ai_001_001": PLAIN_UV, "ai_010_005": TILTED_UV, "ai_002_002": PLAIN_UV})
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    paths = {"data_dir": "hypersim", "split_csv": "split.csv", "output": "out"}
    options = list(itertools.chain.from_iterable((f"--{name}", str(folder / path)) for name, path in paths.items()))
    if "--fixed_camera" not in more and "--camera_parameters" not in more:
        options += ["--camera_parameters", str(folder / "cameras.csv")]
    return [*options, *more]


# Camera and depth


def test_default_camera_is_the_known_one() -> None:
    expected = [[886.81, 0, 511.5], [0, 886.81, 383.5], [0, 0, 1]]
    np.testing.assert_allclose(hypersim_camera.default_intrinsics(768, 1024), expected, atol=1e-4)
    plain = hypersim_camera.intrinsics_from_uv_matrix(PLAIN_UV, 768, 1024)
    np.testing.assert_allclose(plain, expected, atol=1e-4)


def test_tilted_camera() -> None:
    # ai_037_002; by an RQ decomposition of the projection to pixels.
    expected = [[887.535381, 0, 572.94], [0, 887.535381, 457.142352], [0, 0, 1]]
    tilted = hypersim_camera.intrinsics_from_uv_matrix(TILTED_UV, 768, 1024)
    np.testing.assert_allclose(tilted, expected, rtol=0, atol=2e-4)


@given(
    focal=st.tuples(st.floats(0.5, 2), st.floats(0.5, 2)),
    centre=st.tuples(st.floats(-3, 20), st.floats(-3, 15)),
    skew=st.floats(-2, 2),
    angles=st.tuples(st.floats(-0.6, 0.6), st.floats(-0.6, 0.6), st.floats(-0.6, 0.6)),
    scale=st.floats(0.1, 10),
)
def test_camera_is_found_whatever_the_tilt(focal, centre, skew, angles, scale) -> None:
    intrinsics = np.array([[16 * focal[0], skew, centre[0]], [0, 16 * focal[1], centre[1]], [0, 0, 1]])
    rotation = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        rotation = rotation @ turn
    # From (u, v, 1) to a pixel, to a direction in the pinhole's frame, to the camera's frame with y up, z backwards.
    pixel_from_uv = np.array([[WIDTH / 2, 0, (WIDTH - 1) / 2], [0, -HEIGHT / 2, (HEIGHT - 1) / 2], [0, 0, 1]])
    camera_from_uv = scale * np.diag([1, -1, -1]) @ rotation @ np.linalg.inv(intrinsics) @ pixel_from_uv
    found = hypersim_camera.intrinsics_from_uv_matrix(camera_from_uv, HEIGHT, WIDTH)
    np.testing.assert_allclose(found, intrinsics, atol=1e-6)


def test_ray_lengths_by_hand() -> None:
    # Focal length 1, principal point at pixel (0, 0): pixel (2, 2) is seen along (2, 2, 1).
    np.testing.assert_allclose(
        hypersim_camera.ray_lengths(np.eye(3), 3, 3),
        [[1, 2**0.5, 5**0.5], [2**0.5, 3**0.5, 6**0.5], [5**0.5, 6**0.5, 3]],
    )


@pytest.mark.parametrize("camera_from_uv", [PLAIN_UV, TILTED_UV], ids=["plain", "tilted"])
def test_distance_to_a_plane_becomes_its_planar_depth(camera_from_uv: np.ndarray) -> None:
    """Rays cast as in ml-hypersim's notebook; the result unprojected with K has their lengths and is flat."""
    u = (np.arange(WIDTH) + 0.5) / WIDTH * 2 - 1
    v = 1 - (np.arange(HEIGHT) + 0.5) / HEIGHT * 2
    uv = np.stack([*np.meshgrid(u, v), np.ones((HEIGHT, WIDTH))], -1)
    rays = uv @ camera_from_uv.T
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    distance = 3.0 / (rays @ np.array([0.1, -0.2, -0.9]))  # of the plane 0.1 x - 0.2 y - 0.9 z = 3
    intrinsics = hypersim_camera.intrinsics_from_uv_matrix(camera_from_uv, HEIGHT, WIDTH)
    depth, too_far = hypersim.planar_depth_counts(distance, np.ones((HEIGHT, WIDTH), bool), intrinsics)
    assert not too_far.any()
    metres = depth / 1000
    x, y = np.meshgrid(np.arange(WIDTH), np.arange(HEIGHT))
    points = (np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics).T) * metres[..., None]
    np.testing.assert_allclose(np.linalg.norm(points, axis=-1), distance, atol=7e-4)  # half a millimetre, 1.3 times
    flat = points.reshape(-1, 3) - points.reshape(-1, 3).mean(0)
    assert np.linalg.svd(flat, compute_uv=False)[-1] / len(flat) ** 0.5 < 4e-4


def test_wall_in_front_has_one_depth() -> None:
    intrinsics = hypersim_camera.default_intrinsics(HEIGHT, WIDTH)
    focal = 8 / np.tan(np.pi / 6)
    distance = np.array(
        [
            [2 * np.sqrt(1 + ((x - 7.5) / focal) ** 2 + ((y - 5.5) / focal) ** 2) for x in range(WIDTH)]
            for y in range(HEIGHT)
        ]
    )
    depth, _ = hypersim.planar_depth_counts(distance, np.ones((HEIGHT, WIDTH), bool), intrinsics)
    assert depth.dtype == np.uint16
    assert (depth == 2000).all()


def test_what_is_not_known_is_zero() -> None:
    distance = np.array([[1.0, np.nan, np.inf, 0.0, -1.0, 0.0004, 65.534, 65.535, 1e5, 2.0]])
    geometry = np.array([[True] * 9 + [False]])
    # So long a focal length that distance and depth are the same.
    depth, too_far = hypersim.planar_depth_counts(distance, geometry, np.diag([1e9, 1e9, 1.0]))
    assert depth.tolist() == [[1000, 0, 0, 0, 0, 0, 65534, 0, 0, 0]]
    assert too_far.tolist() == [[False] * 7 + [True, True, False]]


# Tone mapping


def everywhere(image: np.ndarray) -> np.ndarray:
    return np.ones(image.shape[:2], bool)


@pytest.mark.parametrize("radiance", [2e-4, 0.5, 40.0])
def test_constant_grey_becomes_four_fifths(radiance: float) -> None:
    image = np.full((3, 4, 3), radiance, np.float32)
    assert (hypersim.tone_map(image, everywhere(image)) == 204).all()  # 0.8 · 255


def test_constant_colour_by_hand() -> None:
    # Brightness 0.3·0.5 + 0.59·1 + 0.11·0.2 = 0.762; 255 · 0.8 · (c / 0.762)^(1 / 2.2) = 168.44, 230.83, 111.06.
    image = np.broadcast_to(np.float32([0.5, 1.0, 0.2]), (2, 2, 3))
    assert hypersim.tone_map(image, everywhere(image)).reshape(-1, 3).tolist() == [[168, 231, 111]] * 4


def test_percentile_by_hand() -> None:
    # Greys 0 to 10: percentile 90 is 9. 255 · 0.8 · (c / 9)^(1 / 2.2) for 0, 1, 9, 10 is 0, 75.14, 204, 214.01.
    grey = np.arange(11, dtype=np.float32).reshape(1, 11, 1).repeat(3, 2)
    mapped = hypersim.tone_map(grey, everywhere(grey))[0, :, 0]
    assert mapped[[0, 1, 9, 10]].tolist() == [0, 75, 204, 214]
    # Pixels without geometry do not count, however bright, but are mapped too.
    sky = np.full((1, 9, 3), 1000, np.float32)
    mapped = hypersim.tone_map(np.concatenate([grey, sky], 1), np.arange(20)[None] < 11)[0, :, 0]
    assert mapped[[0, 1, 9, 10]].tolist() == [0, 75, 204, 214]
    assert (mapped[11:] == 255).all()


def test_dark_empty_and_infinite() -> None:
    dark = np.full((2, 2, 3), 0.9e-4, np.float32)
    assert (hypersim.tone_map(dark, everywhere(dark)) == 0).all()
    dark[0, 0] = np.inf
    dark[0, 1] = -np.inf
    assert (hypersim.tone_map(dark, np.array([[False, False], [True, True]])) == 0).all()
    # Without geometry nothing is scaled: 255 · 0.25^(1 / 2.2) = 135.79.
    quarter = np.full((2, 2, 3), 0.25, np.float32)
    assert (hypersim.tone_map(quarter, ~everywhere(quarter)) == 136).all()
    lamp = np.full((5, 5, 3), 0.5, np.float16)
    lamp[0, 0] = np.inf
    mapped = hypersim.tone_map(lamp, everywhere(lamp))
    assert mapped[0, 0].tolist() == [255] * 3
    assert (mapped.reshape(-1, 3)[1:] == 204).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_colour_that_cannot_be_mapped_is_rejected(value: float) -> None:
    image = np.full((2, 2, 3), 0.5, np.float32)
    image[0] = value  # half the pixels: percentile 90 is infinite
    with pytest.raises(FrameRejected, match="color_not_finite"):
        hypersim.tone_map(image, everywhere(image))


# Filters


def filter_input(invalid: int = 0, depth_range: int = 2000, rgb_range: int = 100) -> tuple[np.ndarray, np.ndarray]:
    depth = np.full((10, 10), 1000, np.uint16)
    depth[9, 9] += depth_range
    depth.ravel()[:invalid] = 0
    image = np.full((10, 10, 3), 50, np.uint8)
    image[0, 0, 2] += rgb_range
    return image, depth


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"invalid": 3}, None),
        ({"invalid": 4}, "invalid: 4.00%"),
        ({"invalid": 100}, "invalid: 100.00%"),
        ({"depth_range": 500}, None),
        ({"depth_range": 499}, "depth_range: 0.499 m"),
        ({"rgb_range": 10}, None),
        ({"rgb_range": 9}, "rgb_range: 9"),
        ({"invalid": 4, "depth_range": 0, "rgb_range": 0}, "invalid"),
        ({"depth_range": 0, "rgb_range": 0}, "depth_range"),
    ],
)
def test_filters_at_their_thresholds(changes: dict[str, int], reason: str | None) -> None:
    image, depth = filter_input(**changes)
    if reason is None:
        hypersim.check_filters(image, depth, FILTERS)
    else:
        with pytest.raises(FrameRejected, match=f"^{reason}"):
            hypersim.check_filters(image, depth, FILTERS)


def test_no_depth_at_all_never_passes() -> None:
    image, depth = filter_input(invalid=100)
    with pytest.raises(FrameRejected, match="invalid"):
        hypersim.check_filters(image, depth, hypersim.Filters(0.0, 0, 1.0))


# The whole command


def test_shards(dataset: Path, capsys: pytest.CaptureFixture) -> None:
    root = dataset / "hypersim"
    entity = np.ones((HEIGHT, WIDTH), np.int16)
    entity[:2] = -1
    write_frame(root, "ai_001_001", "cam_00", 1, render_entity_id=entity)
    write_frame(root, "ai_001_001", "cam_00", 2, depth_meters=np.full((HEIGHT, WIDTH), 1.0, np.float16))
    write_frame(root, "ai_001_001", "cam_00", 3, color=np.ones((HEIGHT, WIDTH, 3), np.float16))
    assert hypersim.main(command(dataset, "--shard_size", "4")) == 0
    output = dataset / "out"
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rejected"] == {"depth_range": 1, "invalid": 1, "rgb_range": 1}
    counts = {"candidates": 9, "frames": 6, "rejected": 3, "scenes": 2, "pixels": 6 * HEIGHT * WIDTH}
    assert {name: manifest["counts"][name] for name in counts} == counts
    assert manifest["scenes"] == {"ai_001_001": 4, "ai_010_005": 2}
    assert {"h5py", "numpy", "pillow"} == manifest["versions"].keys()
    assert "CC BY-SA 3.0" in manifest["source"]["licence"]
    assert verify.verify_manifest(output) == []
    assert "rejected, invalid: 1" in capsys.readouterr().out
    frames = read_shards(output)
    assert sorted(frames) == [
        "ai_001_001_cam_00_frame_0000",
        *(f"ai_001_001_cam_01_frame_000{number}" for number in range(3)),
        "ai_010_005_cam_00_frame_0000",
        "ai_010_005_cam_00_frame_0017",
    ]
    for key, files in frames.items():
        scene, camera, number = key[:10], key[11:17], int(key[-4:])
        matrix = TILTED_UV if scene == "ai_010_005" else PLAIN_UV
        k = hypersim_camera.intrinsics_from_uv_matrix(matrix, HEIGHT, WIDTH)
        metadata = json.loads(files["json"])
        assert metadata["scene"] == scene
        assert metadata["depth_scale"] == 0.001
        np.testing.assert_allclose(metadata["intrinsics"], [k[0, 0], k[1, 1], k[0, 2], k[1, 2]], atol=1e-6)
        images = root / scene / "images"
        with h5py.File(images / f"scene_{camera}_final_hdf5" / f"frame.{number:04d}.color.hdf5") as file:
            color = file["dataset"][()]
        np.testing.assert_array_equal(picture(files["png"]), hypersim.tone_map(color, everywhere(color)))
        with h5py.File(images / f"scene_{camera}_geometry_hdf5" / f"frame.{number:04d}.depth_meters.hdf5") as file:
            distance = file["dataset"][()].astype(np.float64)
        lengths = hypersim_camera.ray_lengths(k, HEIGHT, WIDTH)
        depth = picture(files["depth.png"])
        assert depth.dtype == np.uint16
        np.testing.assert_allclose(depth / 1000, distance / lengths, atol=5.001e-4)


@pytest.mark.parametrize("streaming", [False, True])
def test_trainer_reads_the_shards(dataset: Path, streaming: bool) -> None:
    assert hypersim.main(command(dataset, "--shard_size", "4")) == 0
    source = sources.open_source(sources.SourceConfig.parse(str(dataset / "out")), streaming=streaming)
    files = read_shards(dataset / "out")
    assert len(source) == 9
    assert source.has_intrinsics
    assert set(source.scenes) == {"ai_001_001", "ai_010_005"}
    for number in range(len(source)):
        frame = source[number]
        np.testing.assert_allclose(frame.depth, picture(files[frame.key]["depth.png"]) * 0.001, rtol=1e-6)
        np.testing.assert_array_equal(frame.image, picture(files[frame.key]["png"]))
        fx, fy, cx, cy = json.loads(files[frame.key]["json"])["intrinsics"]
        np.testing.assert_allclose(frame.intrinsics, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], rtol=1e-6)


def test_split_scenes_limit_and_fixed_camera(dataset: Path) -> None:
    assert hypersim.main(command(dataset, "--split", "val", "--fixed_camera")) == 0
    frames = read_shards(dataset / "out")
    assert list(frames) == ["ai_002_002_cam_00_frame_0005"]
    focal = 8 / np.tan(np.pi / 6)
    metadata = json.loads(frames["ai_002_002_cam_00_frame_0005"]["json"])
    np.testing.assert_allclose(metadata["intrinsics"], [focal, focal, 7.5, 5.5], atol=1e-6)
    assert [path.name for path in (dataset / "out").glob("*.tar")] == ["hypersim-val-00000.tar"]
    for name, more in (("a", ("--scenes", "ai_01*")), ("b", ("--limit", "3")), ("c", ("--limit", "3", "--seed", "1"))):
        assert hypersim.main(command(dataset, *more, "--output", str(dataset / name))) == 0
    assert {key[:10] for key in read_shards(dataset / "a")} == {"ai_010_005"}
    assert len(read_shards(dataset / "b")) == 3
    assert read_shards(dataset / "b").keys() != read_shards(dataset / "c").keys()


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (Path.unlink, "missing_file", "no such file"),
        (lambda path: path.write_bytes(b"<html>"), "unreadable_file", "not a readable HDF5 file"),
        (lambda path: os.truncate(path, path.stat().st_size // 2), "unreadable_file", "not a readable HDF5 file"),
        (lambda path: write_hdf5(path, np.zeros((HEIGHT, WIDTH), np.uint8)), "wrong_format", "has type uint8"),
        (lambda path: write_hdf5(path, np.zeros((HEIGHT, 2), np.float16)), "wrong_format", "2x12 pixels"),
        (lambda path: write_hdf5(path, np.zeros((HEIGHT, WIDTH, 3), np.float16)), "wrong_format", "not HxW"),
        (lambda path: write_without_dataset(path), "wrong_format", "no array called 'dataset'"),
    ],
)
def test_unusable_file_is_named_or_counted(dataset: Path, capsys, damage, reason: str, message: str) -> None:
    relative = "ai_001_001/images/scene_cam_01_geometry_hdf5/frame.0002.depth_meters.hdf5"
    damage(dataset / "hypersim" / relative)
    assert hypersim.main(command(dataset)) == 1
    error = capsys.readouterr().err
    assert f"{dataset / 'hypersim' / relative}: " in error
    assert message in error
    assert not list((dataset / "out").glob("*.tar"))
    output = dataset / "skipped"
    assert hypersim.main(command(dataset, "--on_error", "skip", "--output", str(output))) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rejected"] == {reason: 1}
    assert manifest["rejected_frames"][0]["key"] == "ai_001_001_cam_01_frame_0002"
    assert manifest["rejected_frames"][0]["detail"].startswith(f"{relative}: ")
    assert str(dataset) not in (output / "manifest.json").read_text()
    assert len(read_shards(output)) == 8


def write_without_dataset(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_group("dataset")


@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(1, 255), cut=st.booleans())
def test_any_damage_to_a_file_is_an_unusable_frame_or_other_numbers(
    tmp_path_factory: pytest.TempPathFactory, position: float, byte: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "frame.hdf5"
    write_hdf5(path, np.linspace(1, 2, HEIGHT * WIDTH, dtype=np.float16).reshape(HEIGHT, WIDTH))
    content = bytearray(path.read_bytes())
    place = int(position * len(content))
    content[place] ^= byte
    path.write_bytes(content[:place] if cut else content)
    with contextlib.suppress(UnusableFrame):
        assert hypersim.read_hdf5(path.parent, Path(path.name), np.floating, None).ndim == 2


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("split.csv", "scene_name,camera_name\n", "--split_csv: .*split.csv has no column"),
        ("cameras.csv", "scene_name\n", "--camera_parameters: .*cameras.csv has no column"),
        ("cameras.csv", None, "does not have 2 scenes: ai_001_001"),
        ("cameras.csv", {"ai_001_001": np.full((3, 3), "x")}, "scene ai_001_001: could not convert"),
        ("cameras.csv", {"ai_001_001": -PLAIN_UV, "ai_010_005": -PLAIN_UV}, "not a camera that looks along -z"),
    ],
)
def test_bad_tables_are_named(dataset: Path, capsys, file: str, content, message: str) -> None:
    if isinstance(content, str):
        (dataset / file).write_text(content)
    else:
        write_cameras(dataset / file, content or {"ai_002_002": PLAIN_UV})
    assert hypersim.main(command(dataset)) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_bad_options_are_named(dataset: Path, capsys) -> None:
    assert hypersim.main(command(dataset, "--scenes", "ai_001_*", "ai_999_*")) == 1
    assert "no scene of split 'train' fits 'ai_999_*'" in capsys.readouterr().err
    assert hypersim.main(command(dataset, "--limit", "0")) == 1
    assert "--limit must be at least 1, got 0" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        hypersim.main(command(dataset, "--max_invalid", "3"))
    assert "3 is not between 0 and 1" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        hypersim.main([option for option in command(dataset, "--fixed_camera") if option != "--fixed_camera"])
    assert "one of the arguments --camera_parameters --fixed_camera is required" in capsys.readouterr().err


def test_image_of_another_shape_than_the_camera(dataset: Path, capsys) -> None:
    write_frame(
        dataset / "hypersim",
        "ai_001_001",
        "cam_00",
        0,
        color=np.ones((HEIGHT, HEIGHT, 3), np.float16),
        depth_meters=np.ones((HEIGHT, HEIGHT), np.float16),
        render_entity_id=np.ones((HEIGHT, HEIGHT), np.int16),
    )
    assert hypersim.main(command(dataset)) == 1
    assert "has scene ai_001_001 at 1024x768 pixels, an image has 12x12" in capsys.readouterr().err


def test_changed_setting_is_refused_by_name(dataset: Path, capsys) -> None:
    assert hypersim.main(command(dataset)) == 0
    before = digests(dataset / "out")
    for option, name in (("--min_depth_range", "min_depth_range"), ("--seed", "seed"), ("--shard_size", "shard_size")):
        assert hypersim.main(command(dataset, option, "7")) == 1
        assert f"{name} was " in capsys.readouterr().err
    write_cameras(dataset / "cameras.csv", {"ai_001_001": PLAIN_UV, "ai_010_005": PLAIN_UV})
    assert hypersim.main(command(dataset)) == 1
    assert "camera_parameters_sha256 was " in capsys.readouterr().err
    assert digests(dataset / "out") == before


def test_h5py_is_asked_for(dataset: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert hypersim.main(command(dataset)) == 1
    assert "pip install 'depthfm_diffusers[prepare]'" in capsys.readouterr().err


@pytest.mark.parametrize("shards_before_kill", [0, 3])
def test_killed_command_ends_with_the_same_bytes(dataset: Path, shards_before_kill: int) -> None:
    options = command(dataset, "--shard_size", "1", "--num_workers", "2")
    assert hypersim.main([*options, "--output", str(dataset / "reference")]) == 0
    check_killed_command(hypersim.__file__, options, dataset / "out", dataset / "reference", shards=shards_before_kill)
