"""`depthfm predict` on videos and image sequences."""

from __future__ import annotations

import json
import sys
from fractions import Fraction

import numpy as np
import OpenEXR
import pytest
from helpers.videos import moving_pictures, write_video
from PIL import Image

from depthfm_diffusers import cli
from depthfm_diffusers.commands.predict_clips import positive_rate
from depthfm_diffusers.inference.video.clips import VideoFile


def predict(model, out, *arguments):
    return cli.main(["predict", *map(str, arguments), "--output", str(out), "--model", str(model), "--steps", "1"])


def test_videos_beside_images_and_bad_files(model, tmp_path, image, capsys):
    image.save(tmp_path / "clip.png")
    clip = write_video(tmp_path / "clip.mp4", moving_pictures(3), sound="aac")
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(clip.read_bytes()[:300])
    out = tmp_path / "out"
    assert predict(model, out, tmp_path / "clip.png", bad, clip) == 1
    captured = capsys.readouterr()
    assert "2 of 3 inputs written" in captured.out
    (line,) = (line for line in captured.err.splitlines() if "bad.mp4" in line)
    assert "not a video, or truncated or damaged at its beginning" in line
    assert line.count("bad.mp4") == 1
    assert (out / "clip_depth.png").exists()
    assert VideoFile(out / "clip_mp4_color.mp4").num_frames == 3
    entries = json.loads((out / "metadata.json").read_text())["images"]
    assert [entry["name"] for entry in entries] == ["clip", "clip_mp4"]
    assert predict(model, out, clip, out / "*.mp4") == 1  # the pattern holds nothing but the result
    assert "has been predicted before" in capsys.readouterr().err
    assert predict(model, tmp_path / "meshes", clip, "--save", "mesh") == 1
    assert "--save is for images, got a video" in capsys.readouterr().err


def test_a_folder_of_images_is_a_clip_only_if_asked_for(model, tmp_path):
    frames = tmp_path / "frames"
    frames.mkdir()
    for number, picture in enumerate(moving_pictures(3)):
        Image.fromarray(picture).save(frames / f"{number}.png")
    assert predict(model, tmp_path / "images", frames) == 0
    assert len(list((tmp_path / "images").glob("?_depth.npy"))) == 3
    assert predict(model, tmp_path / "clip", frames, "--sequence-fps", "12.5", "--save-frames", "png,exr") == 0
    for number in range(3):
        grey = np.asarray(Image.open(tmp_path / "clip" / f"frames_depth_{number:06d}.png"))
        exr = OpenEXR.File(str(tmp_path / "clip" / f"frames_depth_{number:06d}.exr")).channels()["Z"].pixels
        np.testing.assert_allclose(65535 * exr, grey, atol=0.51)
    assert VideoFile(tmp_path / "clip" / "frames_color.mp4").rate == Fraction("12.5")


def test_what_is_only_for_clips(model, tmp_path, image, capsys):
    image.save(tmp_path / "photo.png")
    assert predict(model, tmp_path / "out", tmp_path / "photo.png", "--max-frames", 3) != 0
    assert "--max-frames: only for videos and sequences of images" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        predict(model, tmp_path / "out", tmp_path / "photo.png", "--save-frames", "png,jpg")
    assert "must be some of png,exr,npz, got 'png,jpg'" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["av", "cv2"])
def test_without_the_extra_the_command_says_what_to_install(model, tmp_path, monkeypatch, capsys, package):
    clip = write_video(tmp_path / "clip.mp4", moving_pictures(2))
    monkeypatch.setitem(sys.modules, package, None)
    assert predict(model, tmp_path / "out", clip) != 0
    assert f"needs {package}: pip install 'depthfm_diffusers[video]'" in capsys.readouterr().err


def test_rates():
    assert (positive_rate("25"), positive_rate("30000/1001")) == (25, Fraction(30000, 1001))
    for text in ("0", "-1", "1/0", "nan", "fast"):
        with pytest.raises(Exception, match="positive number or fraction"):
            positive_rate(text)
