"""The colours of pictures: profiles, transparency and depth of colour, the same for inference and for training."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from helpers.colour_profiles import D50, DISPLAY_P3, SRGB, grey_profile, rgb_profile
from helpers.picture_files import saved
from PIL import Image, ImageCms

from depthfm_diffusers.frames import EncodedFrame
from depthfm_diffusers.frames.decoding import decode_captioned_image, decode_frame
from depthfm_diffusers.image_processing import load_image, load_images
from depthfm_diffusers.pictures import picture_array, picture_bytes, picture_grey
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_inputs import load_initial_images

COLOURS = np.random.default_rng(0).integers(40, 216, (6, 8, 3), dtype=np.uint8)
P3, GENERIC_RGB = rgb_profile(DISPLAY_P3, 2.2), rgb_profile(SRGB, 1.8)
LITTLE_CMS_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def srgb(light: np.ndarray) -> np.ndarray:
    """The stored values of linear light in [0, 1]."""
    light = light.clip(0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def through(primaries, gamma: float) -> np.ndarray:
    """The colours as sRGB, computed here."""
    return srgb((COLOURS / 255) ** gamma @ np.array(primaries) @ np.linalg.inv(np.array(SRGB)))


@pytest.mark.parametrize(
    ("profile", "primaries", "gamma"), [(P3, DISPLAY_P3, 2.2), (GENERIC_RGB, SRGB, 1.8)], ids=["P3", "gamma 1.8"]
)
def test_colours_are_converted_through_the_profile(profile, primaries, gamma):
    expected = through(primaries, gamma)
    assert np.abs(expected - COLOURS).max() > 8
    for mode in ("RGB", "RGBA"):
        image = Image.fromarray(COLOURS).convert(mode)
        image.info["icc_profile"] = profile
        assert np.abs(picture_array(image) - expected).max() <= 1.5
    palette = Image.fromarray(COLOURS).quantize(256)
    palette.info["icc_profile"] = profile
    assert np.abs(picture_array(palette) - expected).max() <= 1.5


def test_grey_is_converted_through_its_profile():
    grey = COLOURS[..., 0]
    expected = srgb((grey / 255) ** 1.0)[..., None]
    image = Image.fromarray(grey)
    image.info["icc_profile"] = grey_profile(1.0)
    assert np.abs(picture_array(image) - expected).max() <= 1.5
    assert np.abs(picture_array(image) - grey[..., None].astype(int)).max() > 20
    transparent = image.convert("LA")
    transparent.putpixel((0, 0), (0, 0))
    transparent.info["icc_profile"] = grey_profile(1.0)
    assert picture_array(transparent)[0, 0].tolist() == [255] * 3
    assert np.array_equal(picture_array(transparent)[1:], picture_array(image)[1:])


@pytest.mark.parametrize(
    ("profile", "mode", "message"),
    [
        (LITTLE_CMS_SRGB, "RGB", None),
        (b"no profile", "RGB", "cannot be used"),
        (P3[:300], "RGB", "cannot be used"),
        (grey_profile(1.0), "RGB", "is for GRAY, and the pixels are RGB"),
        (P3, "CMYK", "is for RGB, and the pixels are CMYK"),
    ],
    ids=["sRGB", "none", "cut off", "of grey", "of other channels"],
)
def test_stored_values_are_the_fallback(profile, mode, message, caplog):
    image = Image.fromarray(COLOURS).convert(mode)
    expected = np.asarray(image.convert("RGB"))
    image.info["icc_profile"] = profile
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(picture_array(image), expected)
    assert message in caplog.text if message else not caplog.records


def transparent(mode: str) -> Image.Image:
    """A picture with black pixels that are not seen."""
    image = Image.fromarray(COLOURS).convert(mode)
    image.putpixel((0, 0), (0,) * (len(mode)))
    return image


FILES = {
    "RGBA": (saved(transparent("RGBA"), "PNG"), [255, 255, 255]),
    "LA": (saved(transparent("LA"), "PNG"), [255, 255, 255]),
    "WebP": (saved(transparent("RGBA"), "WEBP", lossless=True, exact=True), [255, 255, 255]),
    "a transparent colour": (saved(Image.new("RGB", (8, 6), (1, 2, 3)), "PNG", transparency=(1, 2, 3)), [255] * 3),
    "a transparent grey": (saved(Image.new("L", (8, 6), 7), "PNG", transparency=7), [255] * 3),
    "a transparent palette entry": (saved(Image.new("P", (8, 6), 0), "PNG", transparency=0), [255] * 3),
    "16 bits": (saved(Image.fromarray(np.full((6, 8), 0x8081, np.uint16)), "PNG"), [128] * 3),
    "16 bits, TIFF": (saved(Image.fromarray(np.full((6, 8), 0x8081, np.uint16)), "TIFF"), [128] * 3),
    "floating point": (saved(Image.fromarray(np.full((6, 8), 0.25, np.float32)), "TIFF"), [64] * 3),
    "CMYK": (saved(Image.new("CMYK", (8, 6), (255, 0, 0, 0)), "TIFF"), [0, 255, 255]),
    "P3": (saved(Image.fromarray(COLOURS), "PNG", icc_profile=P3), None),
    "bilevel": (saved(Image.new("1", (8, 6), 1), "PNG"), [255] * 3),
}


@pytest.mark.parametrize(("content", "first"), FILES.values(), ids=FILES)
def test_one_rule_for_inference_synthesis_and_training(tmp_path, content, first):
    (tmp_path / "a").write_bytes(content)
    depth = saved(Image.fromarray(np.full((6, 8), 1000, np.uint16)), "PNG")
    encoded = EncodedFrame("k", "a.tar", "", content, depth, "image", "depth.png", {})
    image = decode_captioned_image(encoded, ()).image
    assert first is None or image[0, 0].tolist() == first
    assert np.array_equal(decode_frame(encoded).image, image)
    inferred = load_images(load_image(tmp_path / "a"))[0]
    assert np.array_equal((inferred[0] * 255).round().permute(1, 2, 0).numpy(), image)
    start = load_initial_images(load_image(tmp_path / "a"), None, 8).pictures[0]
    assert np.array_equal(np.asarray(start), image)


def test_values_of_16_bits_keep_their_order_of_bytes():
    values = np.array([[0, 256, 65535]], np.uint16)
    image = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    assert np.array_equal(picture_array(image), values)
    assert load_images(image)[0][0, 0, 0].tolist() == pytest.approx((values[0] / 65535).tolist())


@pytest.mark.parametrize("value", [-0.1, 1.1, np.nan])
def test_floats_that_are_no_image_are_refused(value):
    image = Image.fromarray(np.full((2, 2), value, np.float32))
    with pytest.raises(ValueError, match=r"NaN or infinite|must be in"):
        picture_bytes(image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_masks_of_8_bits_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    expected = np.asarray(image.convert("RGB").convert("L")) / np.float32(255)
    assert np.array_equal(picture_grey(image), expected)


def test_profiles_are_of_photos_not_of_masks():
    image = Image.fromarray(COLOURS[..., 0])
    image.info["icc_profile"] = grey_profile(1.0)
    assert np.array_equal(picture_grey(image), COLOURS[..., 0] / np.float32(255))
    assert "icc_profile" in image.info


def test_the_white_of_the_profiles_is_right():
    assert np.allclose(np.sum(DISPLAY_P3, axis=0), D50, atol=1e-3)
    assert np.allclose(np.sum(SRGB, axis=0), D50, atol=1e-3)
