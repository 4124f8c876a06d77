"""`depthfm_diffusers.frames`: what is decoded, what is refused, and the split by scene."""

from __future__ import annotations

import hashlib
import io
import warnings
from typing import Any

import numpy as np
import pytest
from helpers.shards import encode, png
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depthfm_diffusers.frames import EncodedFrame, Frame, FrameError, decode_frame, split_by_scene
from depthfm_diffusers.frames.decoding import has_camera

HEIGHT, WIDTH = 6, 8
IMAGE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
COUNTS = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)


def encoded(image: bytes = png(IMAGE), depth: bytes = png(COUNTS), **metadata: Any) -> EncodedFrame:
    return EncodedFrame("k7", "/data/a.tar", "hall", image, depth, "png", "depth.png", metadata)


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def test_frame_is_decoded_in_metres():
    frame = decode_frame(encoded(fov_x_deg=60.0))
    assert isinstance(frame, Frame)
    assert (frame.key, frame.scene) == ("k7", "hall")
    np.testing.assert_array_equal(frame.image, IMAGE)
    assert frame.depth.dtype == np.float32
    np.testing.assert_array_equal(frame.depth, COUNTS.astype(np.float32) / np.float32(1000))
    focal = WIDTH / 2 / np.tan(np.pi / 6)
    np.testing.assert_allclose(frame.intrinsics, [[focal, 0, 3.5], [0, focal, 2.5], [0, 0, 1]], rtol=1e-6)
    assert frame.sky is None


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_other_eight_bit_images_become_rgb(mode):
    picture = Image.fromarray(IMAGE).convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = decode_frame(encoded(image=saved(picture, kind)))
    np.testing.assert_array_equal(frame.image, np.asarray(picture.convert("RGB")))


def test_palette_with_transparency_does_not_warn():
    content = saved(Image.fromarray(IMAGE).convert("P"), "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_frame(encoded(image=content)).image.shape == IMAGE.shape


def test_floating_point_depth_is_in_metres():
    metres = np.random.default_rng(2).uniform(0, 90, (HEIGHT, WIDTH)).astype(np.float32)
    metres[0] = 0
    for kind in ("TIFF", "NPY"):
        np.testing.assert_array_equal(decode_frame(encoded(depth=encode(metres, kind))).depth, metres)
    centimetres = decode_frame(encoded(depth=encode(metres, "NPY"), depth_scale=0.01)).depth
    np.testing.assert_allclose(centimetres, metres / 100, rtol=1e-6)


def test_tiff_counts_are_depth_too():
    np.testing.assert_array_equal(
        decode_frame(encoded(depth=encode(COUNTS, "TIFF"))).depth, decode_frame(encoded()).depth
    )


def test_depth_scale_and_sky():
    counts = COUNTS.copy()
    counts[:2] = 65535
    counts[2:] %= 65535
    frame = decode_frame(encoded(depth=png(counts), depth_scale=0.01, sky_value=65535))
    assert frame.sky.dtype == bool
    assert frame.sky[:2].all()
    assert not frame.sky[2:].any()
    assert (frame.depth[:2] == 0).all()
    np.testing.assert_allclose(frame.depth[2:], counts[2:] / 100, rtol=1e-6)


def test_sky_may_be_infinite_in_floating_point():
    metres = np.ones((HEIGHT, WIDTH), np.float32)
    metres[0] = np.inf
    frame = decode_frame(encoded(depth=encode(metres, "NPY"), sky_value=np.inf))
    assert frame.sky[0].all()
    assert (frame.depth[0] == 0).all()


def test_frame_without_any_depth_is_no_error():
    assert not decode_frame(encoded(depth=png(np.zeros_like(COUNTS)))).depth.any()


@pytest.mark.parametrize("given", [[7.0, 8.0, 3.1, 2.9], "[7, 8, 3.1, 2.9]", np.array([7.0, 8.0, 3.1, 2.9])])
def test_intrinsics_are_taken_as_they_are(given):
    frame = decode_frame(encoded(intrinsics=given))
    np.testing.assert_allclose(frame.intrinsics, [[7, 0, 3.1], [0, 8, 2.9], [0, 0, 1]], rtol=1e-6)
    assert frame.intrinsics.dtype == np.float32


@pytest.mark.parametrize("metadata", [{}, {"fov_x_deg": None, "intrinsics": ""}, {"depth_scale": 0.001}])
def test_camera_may_be_unknown(metadata):
    assert decode_frame(encoded(**metadata)).intrinsics is None
    assert not has_camera(metadata)


def test_numbers_may_be_text():
    np.testing.assert_array_equal(
        decode_frame(encoded(fov_x_deg="60.0", depth_scale="0.001", sky_value="")).intrinsics,
        decode_frame(encoded(fov_x_deg=60)).intrinsics,
    )


def floating(value: float) -> bytes:
    metres = np.ones((HEIGHT, WIDTH), np.float32)
    metres[1, 2] = value
    return encode(metres, "TIFF")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": png(np.zeros((10, 12), np.uint16))}, r"png is 8x6 pixels, depth.png is 12x10 \(width x height\)"),
        ({"depth": png(np.zeros((HEIGHT, WIDTH), np.uint8))}, "depth.png has mode 'L', not 16-bit"),
        ({"depth": png(IMAGE)}, "depth.png has mode 'RGB', not 16-bit"),
        ({"depth": floating(np.nan)}, "depth.png has NaN or infinite"),
        ({"depth": floating(np.inf)}, "depth.png has NaN or infinite"),
        ({"depth": floating(-0.5)}, "depth.png has negative values, down to -0.5"),
        ({"depth": encode(COUNTS, "NPY")}, "depth.png is an array of uint16"),
        ({"depth": encode(np.ones((HEIGHT, WIDTH, 1)), "NPY")}, r"shape \(6, 8, 1\)"),
        ({"depth": encode(np.ones((HEIGHT, WIDTH)), "NPY")[:-9]}, "not a readable .npy"),
        ({"depth": encode(np.full((HEIGHT, WIDTH), 1e300), "NPY")}, "more than float32 holds"),
        ({"depth": encode(np.array([[object()]]), "NPY")}, "not a readable .npy"),
        ({"depth": b""}, "depth.png is empty"),
        ({"image": b"no picture"}, r"png is not a readable image \(not a picture that Pillow knows\)"),
        ({"image": png(IMAGE)[:-30]}, "png is not a readable image"),
        ({"image": floating(2.0)}, r"png cannot be read: floating point must be in \[0, 1\]"),
        ({"fov_x_deg": 0}, "fov_x_deg is 0.0"),
        ({"fov_x_deg": 180}, "fov_x_deg is 180.0"),
        ({"fov_x_deg": float("nan")}, "fov_x_deg is nan"),
        ({"fov_x_deg": "wide"}, "fov_x_deg is 'wide', not a number"),
        ({"fov_x_deg": True}, "fov_x_deg is True, not a number"),
        ({"fov_x_deg": [60]}, r"fov_x_deg is \[60\], not a number"),
        ({"fov_x_deg": 60, "intrinsics": [7, 8, 3, 2]}, "both fov_x_deg and intrinsics"),
        ({"intrinsics": [7, 8, 3]}, r"intrinsics is \[7, 8, 3\], not \[fx"),
        ({"intrinsics": [7, 0, 3, 2]}, "positive focal lengths"),
        ({"intrinsics": [7, 8, float("nan"), 2]}, "intrinsics is"),
        ({"intrinsics": "7 8 3 2"}, "intrinsics is '7 8 3 2'"),
        ({"intrinsics": 7}, "intrinsics is 7"),
        ({"depth_scale": 0}, "depth_scale is 0.0, not positive"),
        ({"depth_scale": float("inf")}, "depth_scale is inf"),
        ({"sky_value": "none"}, "sky_value is 'none'"),
    ],
)
def test_unusable_frame_is_named(change, message):
    with pytest.raises(FrameError, match=rf"Frame 'k7' of /data/a.tar: .*{message}"):
        decode_frame(encoded(**change))


@given(st.data())
def test_damaged_files_give_a_frame_or_a_frame_error(data):
    """Whatever bytes change or go missing, nothing but a FrameError comes out, and never another shape."""
    contents = {
        "image": png(IMAGE),
        "depth": data.draw(st.sampled_from([png(COUNTS), floating(1), encode(np.ones((HEIGHT, WIDTH)), "NPY")])),
    }
    name = data.draw(st.sampled_from(sorted(contents)))
    content = bytearray(contents[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    contents[name] = bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        frame = decode_frame(encoded(**contents))
    except FrameError:
        return
    assert frame.image.shape[:2] == frame.depth.shape
    assert np.isfinite(frame.depth).all()
    assert (frame.depth >= 0).all()


@given(st.lists(st.integers(0, 30), max_size=60), st.floats(0, 0.99))
def test_split_keeps_scenes_together_and_loses_nothing(numbers, fraction):
    scenes = [str(n) for n in numbers]
    train, validation = split_by_scene(scenes, fraction)
    assert sorted(train + validation) == list(range(len(scenes)))
    assert not {scenes[i] for i in train} & {scenes[i] for i in validation}


def test_split_does_not_move_when_scenes_are_added():
    scenes = [str(n) for n in range(400)]
    _, few = split_by_scene(scenes[:200], 0.05)
    _, many = split_by_scene(scenes, 0.05)
    assert few == [i for i in many if i < 200]
    assert 5 <= len(many) <= 40  # 20 expected


def test_split_is_that_of_the_first_release():
    """Published scores are on these scenes: the bundled model never saw them, whatever release trained it."""
    _, validation = split_by_scene([str(n) for n in range(668)], 0.05)
    assert validation[:5] == [39, 51, 55, 146, 149]
    assert hashlib.sha256(str(validation).encode()).hexdigest()[:16] == "0eda4696ade82095"


def test_split_refuses_everything_as_validation():
    with pytest.raises(ValueError, match="validation_fraction"):
        split_by_scene(["a"], 1.0)
