"""Clips in a result folder: the files, what becomes of a run that is killed, and of one that was done before."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.kill_points import digests
from helpers.videos import moving_pictures, write_video
from PIL import Image

from depthfm_diffusers.export.images import depth_to_uint16
from depthfm_diffusers.inference.prediction import PredictionSettings
from depthfm_diffusers.inference.prediction_files import PredictionFolder
from depthfm_diffusers.inference.video import store
from depthfm_diffusers.inference.video.clips import ClipError, ClipLimits, VideoFile
from depthfm_diffusers.inference.video.encoding import VideoWriter
from depthfm_diffusers.inference.video.results import ClipPredictor, ClipResult
from depthfm_diffusers.inference.video.steady import SteadyPredictor, depth_in_range

LIMITS = ClipLimits()
SETTINGS = PredictionSettings(num_inference_steps=1)
FORMATS = ("png", "npz")


def events(pipe, path, output, settings=SETTINGS, limits=LIMITS, formats=FORMATS):
    """Predicts a clip into a folder; yields what `ClipPredictor` does."""
    folder = PredictionFolder(output, "Spectral")
    try:
        run = {"started": "now", "settings": settings.seed}
        yield from ClipPredictor(pipe, settings, folder, run, formats).predict(VideoFile(path, limits))
    finally:
        folder.close()


def predict(*arguments, **options):
    *_, result = events(*arguments, **options)
    return result


@pytest.fixture
def path(tmp_path):
    return write_video(tmp_path / "clip.mp4", moving_pictures(6), times=[0, 5, 20, 25, 60, 61], sound="aac")


def test_files_of_a_clip(pipe, path, tmp_path):
    out = tmp_path / "out"
    assert predict(pipe, path, out) == ClipResult("clip", 6)
    numbered = [f"clip_depth_{number:06d}.png" for number in range(6)]
    assert sorted(p.name for p in out.iterdir()) == [
        "clip_color.mp4",
        *numbered,
        "clip_log_depth.npz",
        "metadata.json",
    ]
    predictor = SteadyPredictor(pipe, SETTINGS)
    states = [predictor.predict(frame.image) for frame in VideoFile(path).frames()]
    with np.load(out / "clip_log_depth.npz") as arrays:
        np.testing.assert_array_equal(arrays["log_depth"], [state.log_depth for state in states])
        np.testing.assert_allclose(arrays["time"], [0, 0.05, 0.2, 0.25, 0.6, 0.61], atol=1e-4)
        assert arrays["shot"].tolist() == [0] * 6
    for name, state in zip(numbered, states, strict=True):
        depth = depth_in_range(state.log_depth, states[-1].low, states[-1].high)
        with Image.open(out / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), depth_to_uint16(depth))
    (entry,) = json.loads((out / "metadata.json").read_text())["images"]
    assert entry["frames"] == 6
    assert entry["shots"] == [{"first": 0, "frames": 6, "low": states[-1].low, "high": states[-1].high}]


def test_the_video_has_the_times_and_the_sound_of_the_input(pipe, path, tmp_path):
    predict(pipe, path, tmp_path / "out", formats=())
    clip = VideoFile(tmp_path / "out" / "clip_color.mp4")
    times = [float(frame.pts * clip.time_base) for frame in clip.frames()]
    np.testing.assert_allclose(times, [0, 0.05, 0.2, 0.25, 0.6, 0.61], atol=1e-4)
    sounds = []
    for file in (path, clip.path):
        with av.open(str(file)) as container:
            packets = [p for p in container.demux(container.streams.audio[0]) if p.size]
            sounds.append([(round(float(p.pts * p.time_base), 4), bytes(p)) for p in packets])
    assert clip.has_audio
    assert sounds[1] == sounds[0][: len(sounds[1])]
    assert 0.5 < sounds[1][-1][0] < 0.75  # as long as the picture, 0.61 s and one frame


def test_sound_that_mp4_cannot_hold_is_left_out_and_told(pipe, tmp_path):
    path = write_video(tmp_path / "clip.mkv", moving_pictures(2), sound="pcm_u8")
    result = predict(pipe, path, tmp_path / "out", formats=())
    assert result.message == "the sound is left out: MP4 cannot hold sound in pcm_u8"
    assert not VideoFile(tmp_path / "out" / "clip_color.mp4").has_audio


def test_sound_whose_times_go_back_ends_and_the_pictures_do_not(path, tmp_path):
    clip = VideoFile(path)
    with VideoWriter(tmp_path / "out.mp4", clip.size, clip.time_base, clip.rate, sound=path) as writer:
        first, second, *_ = list(writer._sound)
        writer._sound = iter([second, first])
        for frame in clip.frames():
            writer.add(frame.image, frame.pts)
    assert writer.sound_problem.startswith("the sound ends early: it cannot be copied further")
    assert len(list(VideoFile(tmp_path / "out.mp4").frames())) == 6


def test_odd_sides_are_made_even_in_the_video_only(pipe, tmp_path):
    pictures = [picture[:47, :63] for picture in moving_pictures(2)]
    path = write_video(tmp_path / "clip.mkv", pictures, codec="ffv1")
    predict(pipe, path, tmp_path / "out", formats=("png",))
    assert VideoFile(tmp_path / "out" / "clip_color.mp4").size == (48, 64)
    with Image.open(tmp_path / "out" / "clip_depth_000001.png") as picture:
        assert picture.size == (63, 47)


def test_a_run_that_was_killed_ends_with_the_same_bytes(pipe, path, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FRAMES_PER_PART", 2)
    whole = tmp_path / "whole"
    done = []
    for number, _ in enumerate(events(pipe, path, whole)):
        shutil.copytree(whole, tmp_path / f"killed-{number}")  # what a kill leaves here
        done.append(number)
    expected = digests(whole)
    for number in done[:-1]:
        killed = tmp_path / f"killed-{number}"
        assert next(iter(events(pipe, path, killed))) == number // 2 * 2
        predict(pipe, path, killed)
        assert digests(killed) == expected


def test_damaged_parts_are_predicted_again(pipe, path, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FRAMES_PER_PART", 2)
    out = tmp_path / "out"
    run = events(pipe, path, out)
    for _ in range(6):
        next(run)
    run.close()
    second = next(out.glob(".depthfm-video-*/part-000001.npz"))
    second.write_bytes(second.read_bytes()[:100])
    assert next(iter(events(pipe, path, out))) == 2
    predict(pipe, path, out)
    predict(pipe, path, tmp_path / "whole")
    assert digests(out) == digests(tmp_path / "whole")


def test_a_clip_that_was_done_is_not_predicted_again(pipe, path, tmp_path):
    out = tmp_path / "out"
    predict(pipe, path, out)
    before = digests(out)
    assert list(events(pipe, path, out)) == [ClipResult("clip", 6, "has been predicted before with the same settings")]
    assert digests(out) == before
    (out / "clip_depth_000003.png").unlink()
    assert predict(pipe, path, out) == ClipResult("clip", 6)
    write_video(path, moving_pictures(3, seed=1))
    assert predict(pipe, path, out) == ClipResult("clip", 3)
    assert len(list(out.glob("clip_depth_*.png"))) == 3


def test_frames_of_other_settings_are_not_used(pipe, path, tmp_path):
    out = tmp_path / "out"
    run = events(pipe, path, out)
    next(run), next(run)
    run.close()
    assert next(iter(events(pipe, path, out, PredictionSettings(num_inference_steps=1, seed=1)))) == 0
    assert len(list(out.glob(".depthfm-video-*"))) == 1


def test_fewer_frames_of_a_run_that_had_more(pipe, path, tmp_path):
    out = tmp_path / "out"
    run = events(pipe, path, out)
    for _ in range(5):
        next(run)
    run.close()
    assert predict(pipe, path, out, limits=ClipLimits(max_frames=3)) == ClipResult("clip", 3)
    predict(pipe, path, tmp_path / "direct", limits=ClipLimits(max_frames=3))
    assert digests(out) == digests(tmp_path / "direct")


def test_a_truncated_clip_keeps_its_frames_for_a_shorter_run(pipe, tmp_path):
    path = write_video(tmp_path / "clip.mpg", moving_pictures(6), codec="mpeg2video", times=range(0, 24, 4))
    other = write_video(tmp_path / "other.mpg", moving_pictures(6, 96), codec="mpeg2video", times=range(0, 24, 4))
    path.write_bytes(path.read_bytes() + other.read_bytes())
    run = events(pipe, path, tmp_path / "out")
    numbers = []
    with pytest.raises(ClipError, match="--max-frames"):
        numbers.extend(run)
    limits = ClipLimits(max_frames=numbers[-1])
    assert next(iter(events(pipe, path, tmp_path / "out", limits=limits))) == numbers[-1] > 0
    assert predict(pipe, path, tmp_path / "out", limits=limits).frames == numbers[-1]


def test_target_fps_is_that_of_the_result(pipe, path, tmp_path):
    predict(pipe, path, tmp_path / "out", limits=ClipLimits(target_fps=Fraction(10)), formats=())
    clip = VideoFile(tmp_path / "out" / "clip_color.mp4")
    assert [round(float(frame.pts * clip.time_base), 2) for frame in clip.frames()] == [0, 0.2, 0.6]
