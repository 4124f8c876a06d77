"""Virtual KITTI's shards, from tiny files in the data set's layout."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import verify
import virtual_kitti
from helpers.kill_points import digests
from helpers.prepared import check_killed_command, picture, read_shards
from PIL import Image

from depthfm_diffusers.frames import sources

HEIGHT, WIDTH = 6, 20
HEADER = "frame cameraID K[0,0] K[1,1] K[0,2] K[1,2]"
CAMERAS = {0: (725.0087, 725.0087, 620.5, 187.0), 1: (700.0, 701.0, 9.5, 2.5)}


def write_picture(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def depth_path(root: Path, drive: str, variation: str, camera: int, number: int) -> Path:
    return root / "depth" / drive / variation / "frames" / "depth" / f"Camera_{camera}" / f"depth_{number:05d}.png"


def write_drive(root: Path, drive: str, variation: str, frames: int, cameras: Sequence[int] = (0, 1)) -> None:
    """Writes rgb, depth and intrinsics of one variation: a row of sky, an unknown pixel, the rest 1 to 400 m."""
    lines = [HEADER]
    for number in range(frames):
        for camera in cameras:
            rng = np.random.default_rng([number, camera])
            folder = root / "rgb" / drive / variation / "frames" / "rgb" / f"Camera_{camera}"
            image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            write_picture(folder / f"rgb_{number:05d}.jpg", image)
            depth = rng.integers(100, 40000, (HEIGHT, WIDTH)).astype(np.uint16)
            depth[0] = 65535
            depth[1, 0] = 0
            write_picture(depth_path(root, drive, variation, camera, number), depth)
            lines.append(" ".join(map(str, (number, camera, *CAMERAS[camera]))))
    path = root / "textgt" / drive / variation / "intrinsic.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    for drive, frames in (("Scene01", 3), ("Scene20", 2)):
        for variation in ("clone", "15-deg-left"):
            write_drive(tmp_path, drive, variation, frames)
    return tmp_path


def command(folder: Path, *more: str) -> list[str]:
    names = {"rgb_dir": "rgb", "depth_dir": "depth", "text_dir": "textgt", "output": "out"}
    options = [part for name, path in names.items() for part in (f"--{name}", str(folder / path))]
    chosen = ("--scenes", "Scene01", "Scene20", "--variations", "clone", "15-deg-left")
    return [*options, *chosen, *more]


def test_shards(dataset: Path) -> None:
    assert virtual_kitti.main(command(dataset, "--shard_size", "7")) == 0
    output = dataset / "out"
    assert [path.name for path in sorted(output.glob("*.tar"))] == [f"vkitti2-0000{i}.tar" for i in range(3)]
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["counts"] == {
        "candidates": 20,
        "frames": 20,
        "rejected": 0,
        "scenes": 2,
        "pixels": 20 * HEIGHT * WIDTH,
        "pixels_of_sky": 20 * WIDTH,
        "pixels_without_depth": 20,
    }
    # Variations and cameras of a drive are one scene.
    assert manifest["scenes"] == {"vkitti2_Scene01": 12, "vkitti2_Scene20": 8}
    assert "CC BY-NC-SA" in manifest["source"]["licence"]
    assert verify.verify_manifest(output) == []
    frames = read_shards(output)
    assert len(frames) == 20
    files = frames["Scene20_15-deg-left_Camera_1_00001"]
    folder = dataset / "rgb" / "Scene20" / "15-deg-left" / "frames" / "rgb" / "Camera_1"
    assert files["jpg"] == (folder / "rgb_00001.jpg").read_bytes()
    assert files["depth.png"] == depth_path(dataset, "Scene20", "15-deg-left", 1, 1).read_bytes()
    assert json.loads(files["json"]) == {
        "scene": "vkitti2_Scene20",
        "intrinsics": [700.0, 701.0, 9.5, 2.5],
        "depth_scale": 0.01,
        "sky_value": 65535,
    }
    # The middle of 1242×375 pixels whose centres are at integers.
    metadata = json.loads(frames["Scene01_clone_Camera_0_00000"]["json"])
    assert metadata["intrinsics"] == [725.0087, 725.0087, (1242 - 1) / 2, (375 - 1) / 2]


@pytest.mark.parametrize("streaming", [False, True])
def test_trainer_reads_the_shards(dataset: Path, streaming: bool) -> None:
    assert virtual_kitti.main(command(dataset, "--shard_size", "7")) == 0
    source = sources.open_source(sources.SourceConfig.parse(str(dataset / "out")), streaming=streaming)
    files = read_shards(dataset / "out")
    assert len(source) == 20
    assert source.has_intrinsics
    for number in range(len(source)):
        frame = source[number]
        counts = picture(files[frame.key]["depth.png"]).astype(np.float64)
        assert frame.sky[0].all()
        assert not frame.sky[1:].any()
        assert (frame.depth[0] == 0).all()
        assert frame.depth[1, 0] == 0
        np.testing.assert_allclose(frame.depth[1:], counts[1:] / 100, rtol=1e-6)
        fx, fy, cx, cy = CAMERAS[int("Camera_1" in frame.key)]
        np.testing.assert_allclose(frame.intrinsics, [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], rtol=1e-6)


def test_choice_of_scenes_variations_and_cameras(dataset: Path) -> None:
    more = ("--scenes", "Scene20", "--variations", "clone", "--cameras", "1")
    assert virtual_kitti.main(command(dataset, *more)) == 0
    assert sorted(read_shards(dataset / "out")) == [f"Scene20_clone_Camera_1_0000{i}" for i in range(2)]
    assert virtual_kitti.main([*command(dataset, *more), "--cameras", "0"]) == 1


def test_all_sky_is_rejected(dataset: Path, capsys) -> None:
    depth = np.full((HEIGHT, WIDTH), 65535, np.uint16)
    depth[0, 0] = 0
    write_picture(depth_path(dataset, "Scene01", "clone", 0, 2), depth)
    assert virtual_kitti.main(command(dataset)) == 0
    manifest = json.loads((dataset / "out" / "manifest.json").read_text())
    assert manifest["rejected"] == {"no_depth": 1}
    assert manifest["rejected_frames"][0]["key"] == "Scene01_clone_Camera_0_00002"
    assert "rejected, no_depth: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("damage", "reason", "message"),
    [
        (Path.unlink, "missing_file", "no such file"),
        (lambda path: path.write_bytes(b""), "unreadable_file", "not a readable picture"),
        (lambda path: os.truncate(path, path.stat().st_size - 40), "unreadable_file", "not a readable picture"),
        (lambda path: write_picture(path, np.zeros((HEIGHT, WIDTH), np.uint8)), "wrong_format", "mode L, not I;16"),
        (lambda path: write_picture(path, np.zeros((HEIGHT, WIDTH, 3), np.uint8)), "wrong_format", "mode RGB, not"),
        (lambda path: write_picture(path, np.ones((HEIGHT, 9), np.uint16)), "wrong_format", "9x6 pixels, its image"),
    ],
)
def test_unusable_file_is_named_or_counted(dataset: Path, capsys, damage, reason: str, message: str) -> None:
    path = depth_path(dataset, "Scene20", "clone", 0, 1)
    damage(path)
    assert virtual_kitti.main(command(dataset)) == 1
    error = capsys.readouterr().err
    assert f"{path}: " in error
    assert message in error
    output = dataset / "skipped"
    assert virtual_kitti.main(command(dataset, "--on_error", "skip", "--output", str(output))) == 0
    manifest = json.loads((output / "manifest.json").read_text())
    assert manifest["rejected"] == {reason: 1}
    relative = path.relative_to(dataset / "depth").as_posix()
    assert manifest["rejected_frames"][0]["detail"].startswith(f"{relative}: ")
    assert len(read_shards(output)) == 19


def test_missing_image_is_noticed(dataset: Path, capsys) -> None:
    """An archive that was unpacked in part: intrinsic.txt lists what there should be."""
    path = dataset / "rgb" / "Scene01" / "clone" / "frames" / "rgb" / "Camera_1" / "rgb_00002.jpg"
    path.unlink()
    assert virtual_kitti.main(command(dataset)) == 1
    assert f"{path}: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"intrinsic\.txt does not exist; see --scenes"),
        ("", "does not begin with the line 'frame cameraID"),
        ("frame cameraID\n0 0\n", "does not begin with the line 'frame cameraID"),
        (f"{HEADER}\n0 0 1 1 1 1\n0 1 1 1 1\n", "line 3: '0 1 1 1 1' is not two integers and four numbers"),
        (f"{HEADER}\n0 x 1 1 1 1\n", "line 2: '0 x 1 1 1 1' is not two integers"),
        (f"{HEADER}\n0 0 -1 1 1 1\n", "line 2: '0 0 -1 1 1 1' is not a camera"),
        (f"{HEADER}\n0 0 1 1 nan 1\n", "line 2: '0 0 1 1 nan 1' is not a camera"),
        (f"{HEADER}\n0 0 1 1 1 1\n\n", "has no frame of camera 1"),
        (f"{HEADER}\n0 0 1 1 1 1\n0 1 1 1 1 1\n0 0 1 1 1 1\n", "'Scene01_clone_Camera_0_00000'"),
    ],
)
def test_bad_intrinsics_are_named(dataset: Path, capsys, content: str | None, message: str) -> None:
    path = dataset / "textgt" / "Scene01" / "clone" / "intrinsic.txt"
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert virtual_kitti.main(command(dataset)) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_unknown_names_are_refused(dataset: Path, capsys) -> None:
    for option, value in (("--scenes", "Scene03"), ("--variations", "snow"), ("--cameras", "2")):
        with pytest.raises(SystemExit):
            virtual_kitti.main(command(dataset, option, value))
        assert f"argument {option}: invalid choice" in capsys.readouterr().err


def test_changed_setting_is_refused_by_name(dataset: Path, capsys) -> None:
    assert virtual_kitti.main(command(dataset)) == 0
    before = digests(dataset / "out")
    for option, value, name in (
        ("--cameras", "0", "cameras"),
        ("--limit", "3", "limit"),
        ("--on_error", "skip", "on_error"),
    ):
        assert virtual_kitti.main(command(dataset, option, value)) == 1
        assert f"{name} was " in capsys.readouterr().err
    assert digests(dataset / "out") == before
    # The order of the names on the command line is not a setting.
    assert virtual_kitti.main(command(dataset, "--scenes", "Scene20", "Scene01")) == 0


def test_killed_command_ends_with_the_same_bytes(dataset: Path) -> None:
    options = command(dataset, "--shard_size", "1", "--num_workers", "3")
    assert virtual_kitti.main([*options, "--output", str(dataset / "reference")]) == 0
    check_killed_command(virtual_kitti.__file__, options, dataset / "out", dataset / "reference", shards=5)


def test_frames_are_mixed_within_a_shard(dataset: Path) -> None:
    assert virtual_kitti.main(command(dataset, "--shard_size", "10")) == 0
    with tarfile.open(dataset / "out" / "vkitti2-00000.tar") as tar:
        keys = [name.removesuffix(".json") for name in tar.getnames() if name.endswith(".json")]
        first = tar.extractfile(f"{keys[0]}.jpg").read()
    assert keys != sorted(keys)
    assert len({key[:7] for key in keys}) == 2
    assert Image.open(io.BytesIO(first)).size == (WIDTH, HEIGHT)
