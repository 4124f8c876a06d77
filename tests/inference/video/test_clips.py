"""Clips: what is read of video files and image sequences, and what is said of files that cannot be read."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from helpers.videos import moving_pictures, turn_video, write_video
from PIL import Image

from depthfm_diffusers.inference.video.clips import (
    ClipError,
    ClipLimits,
    ImageSequence,
    VideoFile,
    is_video,
    natural_key,
)


def times(clip):
    return [float(frame.pts * clip.time_base) for frame in clip.frames()]


def test_lossless_frames_come_as_they_were_written(tmp_path):
    pictures = moving_pictures(5)
    clip = VideoFile(write_video(tmp_path / "a.mkv", pictures, codec="ffv1"))
    assert (clip.size, clip.rate, clip.has_audio) == ((48, 64), 10, False)
    frames = list(clip.frames())
    np.testing.assert_array_equal([frame.image for frame in frames], pictures)
    np.testing.assert_array_equal([frame.image for frame in clip.frames(3)], pictures[3:])
    assert times(clip) == [0, 0.1, 0.2, 0.3, 0.4]


def test_times_of_frames_at_a_variable_rate_are_kept(tmp_path):
    given = [0, 3, 30, 31, 90]
    clip = VideoFile(write_video(tmp_path / "a.mp4", moving_pictures(5), times=given))
    np.testing.assert_allclose(times(clip), np.array(given) / 100, atol=1e-4)


def test_odd_sides(tmp_path):
    pictures = [picture[:47, :63] for picture in moving_pictures(2)]
    clip = VideoFile(write_video(tmp_path / "a.mkv", pictures, codec="ffv1"))
    np.testing.assert_array_equal([frame.image for frame in clip.frames()], pictures)


def test_a_phones_video_is_turned_upright(tmp_path):
    pictures = moving_pictures(2)
    path = write_video(tmp_path / "a.mp4", pictures)
    flat = [frame.image for frame in VideoFile(path).frames()]
    turn_video(path)
    clip = VideoFile(path)
    assert clip.size == (64, 48)
    np.testing.assert_array_equal([frame.image for frame in clip.frames()], [np.rot90(one, -1) for one in flat])


@pytest.mark.parametrize(
    ("fps", "kept"), [(5, [0, 2, 4, 6, 8]), (10, range(10)), (30, range(10)), (Fraction(10, 3), [0, 3, 6, 9])]
)
def test_target_fps_leaves_frames_out(tmp_path, fps, kept):
    path = write_video(tmp_path / "a.mp4", moving_pictures(10))
    clip = VideoFile(path, ClipLimits(target_fps=Fraction(fps)))
    np.testing.assert_allclose(times(clip), np.array(kept) / 10, atol=1e-4)
    assert clip.num_frames == len(times(clip))


def test_target_fps_bears_times_that_are_rounded(tmp_path):
    clip = VideoFile(
        write_video(tmp_path / "a.mp4", moving_pictures(7), times=[0, 3, 7, 10, 13, 17, 20]),
        ClipLimits(target_fps=Fraction(30)),
    )
    assert len(times(clip)) == 7


def test_max_frames_counts_what_is_used(tmp_path):
    clip = VideoFile(write_video(tmp_path / "a.mp4", moving_pictures(10)), ClipLimits(Fraction(5), 3))
    np.testing.assert_allclose(times(clip), [0, 0.2, 0.4], atol=1e-4)
    assert clip.num_frames == 3


@pytest.mark.parametrize("limits", [{"target_fps": Fraction(0)}, {"max_frames": 0}, {"max_pixels": -1}])
def test_limits_that_leave_nothing(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        ClipLimits(**limits)


def test_too_many_pixels(tmp_path):
    path = write_video(tmp_path / "a.mp4", moving_pictures(1))
    with pytest.raises(ClipError, match=r"a\.mp4: its frames of 64×48 have more pixels than allowed \(3000\)"):
        VideoFile(path, ClipLimits(max_pixels=3000))


def test_what_is_no_video(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("this is not a video\n" * 100)
    empty = tmp_path / "empty.mp4"
    empty.touch()
    for path in (text, empty):
        with pytest.raises(ClipError, match=rf"{path.name}: not a video, or truncated or damaged at its beginning"):
            VideoFile(path)
    with pytest.raises(FileNotFoundError):
        VideoFile(tmp_path / "absent.mp4")


def test_sound_alone(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("aac", rate=16000)
        stream.layout = "mono"
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 16000
        file.mux(stream.encode(samples))
        file.mux(stream.encode(None))
    with pytest.raises(ClipError, match=r"a\.mp4: there is only sound in it, no video"):
        VideoFile(path)


def test_a_video_without_frames(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "bgr0"
        file.start_encoding()
    with pytest.raises(ClipError, match=r"a\.mkv: "):
        VideoFile(path)


def test_frames_that_change_their_size(tmp_path):
    """Of two files in MPEG-2 program streams, one after the other is a file again."""
    for name, height in (("a.mpg", 48), ("b.mpg", 96)):
        write_video(tmp_path / name, moving_pictures(6, height), codec="mpeg2video", times=range(0, 24, 4))
    path = tmp_path / "both.mpg"
    path.write_bytes((tmp_path / "a.mpg").read_bytes() + (tmp_path / "b.mpg").read_bytes())
    with pytest.raises(ClipError, match=r"both\.mpg: frame \d+ is 64×96, those before are 64×48.*--max-frames \d+"):
        list(VideoFile(path).frames())


def test_truncated_and_damaged_files_end_with_a_sentence_or_a_frame(tmp_path):
    """Whatever bytes are missing or wrong, nothing but a `ClipError` that names the file comes of it."""
    whole = write_video(tmp_path / "a.mp4", moving_pictures(8), sound="aac").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[:length] for length in np.linspace(1, len(whole) - 1, 12).astype(int)]
    for _ in range(30):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 20):
            content[place] = rng.integers(256)
        damaged.append(bytes(content))
    errors = []
    for number, content in enumerate(damaged):
        path = tmp_path / f"damaged-{number}.mp4"
        path.write_bytes(content)
        try:
            assert all(frame.image.shape[2] == 3 for frame in VideoFile(path).frames())
        except ClipError as error:
            errors.append(str(error).startswith(str(path)))
    assert len(errors) >= 12
    assert all(errors)


def test_image_sequences_are_in_natural_order(tmp_path):
    for number in (10, 9, 1):
        Image.new("RGB", (6, 4), (number, 0, 0)).save(tmp_path / f"f{number}.png")
    clip = ImageSequence(tmp_path, sorted(tmp_path.iterdir()), Fraction(24))
    assert [file.name for file in clip.files] == ["f1.png", "f9.png", "f10.png"]
    assert [frame.image.image.getpixel((0, 0))[0] for frame in clip.frames()] == [1, 9, 10]
    assert (clip.size, times(clip), clip.num_frames) == ((4, 6), [0, 1 / 24, 2 / 24], 3)


def test_image_sequence_of_two_sizes(tmp_path):
    for number, width in enumerate((6, 7)):
        Image.new("RGB", (width, 4)).save(tmp_path / f"{number}.png")
    with pytest.raises(ClipError, match=r"1\.png is 7×4, the first image of the sequence 6×4"):
        list(ImageSequence(tmp_path, sorted(tmp_path.iterdir()), Fraction(24)).frames())
    with pytest.raises(ClipError, match="no image"):
        ImageSequence(tmp_path, [], Fraction(24))


def test_names(tmp_path):
    assert is_video(tmp_path / "A.MP4")
    assert not is_video(tmp_path / "a.gif")
    names = ["a.png", "a2.png", "a10.png", "a2b.png", "10", "9", "a²"]
    assert [path.name for path in sorted(map(tmp_path.joinpath, names), key=natural_key)][:2] == ["9", "10"]
