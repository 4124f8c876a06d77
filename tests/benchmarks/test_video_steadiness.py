"""The benchmark of steadiness: clips are read from shards, and all ways are measured."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import video_steadiness
from helpers.videos import moving_pictures
from PIL import Image


def write_clip(path, frames=3, poses=True):
    """Writes a shard of one clip, its frames not in order, whose camera moves before a slope."""
    depth = np.add.outer(np.linspace(2000, 4000, 48), np.linspace(0, 500, 64)).astype(np.uint16)
    with tarfile.open(path, "w") as tar:
        for number in reversed(range(frames)):
            pose = np.eye(4)
            pose[0, 3] = 0.02 * number
            metadata = {"fov_x_deg": 60, "scene": "s", **({"camera_to_world": pose.tolist()} if poses else {})}
            files = {"json": json.dumps(metadata).encode()}
            for extension, pixels in (("webp", moving_pictures(frames)[number]), ("depth.png", depth)):
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, format="PNG" if extension == "depth.png" else "WEBP")
                files[extension] = buffer.getvalue()
            for extension, content in files.items():
                info = tarfile.TarInfo(f"s_{number:02d}.{extension}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_a_clip_is_measured_in_all_ways(pipe, tmp_path):
    write_clip(tmp_path / "a.tar")
    (clip,) = video_steadiness.read_clips(tmp_path)
    assert clip.poses[:, 0, 3].tolist() == [0, 0.02, 0.04]
    assert clip.depth[0, 0, 0] == 2
    rows, steady = video_steadiness.measure_clip(pipe, clip)
    assert list(rows) == ["frame by frame", "same noise", "least squares", "steady", "true depth"]
    assert rows["true depth"]["flicker"] == pytest.approx(0, abs=1e-9)
    assert rows["true depth"]["abs_rel_clip"] == pytest.approx(0, abs=1e-9)
    assert all(np.isfinite(value) for row in rows.values() for value in row.values())
    assert steady.shape == clip.depth.shape
    assert video_steadiness.draw_picture(clip, steady, steady, columns=2).size == (128, 144)


def test_the_command_writes_measures_and_a_picture(pipe, tmp_path, monkeypatch, capsys):
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "a.tar", frames=2)
    output, picture = tmp_path / "results.json", tmp_path / "strip.webp"
    arguments = ["--model", tmp_path / "model", "--clips", tmp_path / "clips", "--output", output]
    monkeypatch.setattr("sys.argv", ["x", *map(str, arguments), "--picture", str(picture), "--memory_frames", "2"])
    video_steadiness.main()
    results = json.loads(output.read_text())
    assert f"| steady | {results['means']['steady']['tae']:.2f} |" in capsys.readouterr().out
    assert results["clips"][0]["frames"] == 2
    assert "MiB after 2 frames" in results["memory"]
    assert picture.exists()


def test_frames_without_poses(tmp_path):
    write_clip(tmp_path / "a.tar", poses=False)
    with pytest.raises(ValueError, match=r"a\.tar: s_02 has no `camera_to_world`: render with --path_frames"):
        video_steadiness.read_clips(tmp_path)
