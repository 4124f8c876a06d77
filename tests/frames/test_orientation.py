"""Images with an EXIF orientation, with depth and without."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.picture_files import broken_exif, orientation, saved
from helpers.shards import encode
from PIL import Image

from depthfm_diffusers.frames import EncodedFrame, FrameError, decode_frame
from depthfm_diffusers.frames.decoding import decode_captioned_image
from depthfm_diffusers.pictures.metadata import TRANSPOSITIONS

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def frame(image: bytes, depth: bytes, **metadata: float) -> EncodedFrame:
    return EncodedFrame("k", "pairs", "", image, depth, "a.png", "depth/a.png", metadata)


def photo(value: int, pixels: np.ndarray = PIXELS) -> bytes:
    return saved(Image.fromarray(pixels), "PNG", exif=orientation(value))


def counts(height: int, width: int, value: int = 1) -> bytes:
    return saved(Image.fromarray(np.full((height, width), 1000, np.uint16)), "PNG", exif=orientation(value))


@pytest.mark.parametrize("value", [5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["PNG", "NPY"])
def test_depth_of_the_upright_photo_gets_the_upright_photo(value, kind):
    """As `depthfm predict` writes it."""
    depth = counts(8, 6) if kind == "PNG" else encode(np.ones((8, 6), np.float32), "NPY")
    decoded = decode_frame(frame(photo(value), depth, fov_x_deg=60))
    expected = np.asarray(Image.fromarray(PIXELS).transpose(TRANSPOSITIONS[value]))
    assert np.array_equal(decoded.image, expected)
    assert decoded.intrinsics[:2, 2].tolist() == [2.5, 3.5]


@pytest.mark.parametrize("value", [5, 6, 7, 8])
def test_depth_of_the_stored_pixels_gets_the_stored_pixels(value):
    assert np.array_equal(decode_frame(frame(photo(value), counts(6, 8))).image, PIXELS)


@pytest.mark.parametrize("value", [1, 2, 3, 6])
def test_files_of_one_orientation_are_taken_as_stored(value):
    assert np.array_equal(decode_frame(frame(photo(value), counts(6, 8, value))).image, PIXELS)


@pytest.mark.parametrize(
    ("image", "depth"),
    [
        (photo(2), counts(6, 8)),
        (photo(3), counts(6, 8)),
        (photo(4), counts(6, 8)),
        (photo(6, PIXELS[:, :6]), counts(6, 6)),
        (photo(1), counts(6, 8, 3)),
        (photo(6), counts(6, 8, 8)),
    ],
    ids=["mirrored", "upside down", "mirrored upside down", "square", "depth turned", "both turned"],
)
def test_what_the_sizes_do_not_tell_is_refused(image, depth):
    with pytest.raises(FrameError, match=r"Frame 'k' of pairs: a\.png has the EXIF orientation \d, depth/a\.png has"):
        decode_frame(frame(image, depth))


def test_a_broken_orientation_is_none():
    content = saved(Image.fromarray(PIXELS), "WEBP", lossless=True, exif=b"garbage")
    assert np.array_equal(decode_frame(frame(content, counts(6, 8))).image, PIXELS)
    assert np.array_equal(decode_captioned_image(frame(content, b""), ()).image, PIXELS)
    content = saved(Image.fromarray(PIXELS), "PNG", exif=broken_exif(6))
    assert np.array_equal(decode_captioned_image(frame(content, b""), ()).image, np.rot90(PIXELS, -1))
