"""What becomes of every kind of image, and the way from log depth to depth."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from depthfm_diffusers.image_processing import (
    depth_from_log_depth,
    load_image,
    load_images,
    load_picture,
    process_image,
    process_images,
    processing_size,
    resize,
    unpad,
)

EXIF_ORIENTATION = 0x0112


def gradient(height: int = 5, width: int = 7) -> np.ndarray:
    return np.linspace(0, 255, height * width * 3).astype(np.uint8).reshape(height, width, 3)


def as_tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.float32) / 255).permute(2, 0, 1)[None]


def test_arrays_tensors_and_pil_images_agree():
    array = gradient()
    expected = as_tensor(array)
    for image in (
        Image.fromarray(array),
        array,
        array.astype(np.uint16) * 257,
        array.astype(np.float64) / 255,
        np.flip(np.flip(array, 0).copy(), 0),  # negative strides
        torch.from_numpy(array).permute(2, 0, 1),
        expected[0],
        expected.double(),
    ):
        (tensor,) = load_images(image)
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)


def test_read_only_arrays_are_accepted_and_not_written_to():
    array = gradient().astype(np.float32) / 255
    array.setflags(write=False)
    (tensor,) = load_images(array)
    tensor.zero_()
    assert array.max() == 1


def test_greyscale_is_repeated_in_every_layout():
    grey = np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)
    for image in (grey, grey[..., None], grey[None, ..., None], torch.from_numpy(grey), torch.from_numpy(grey)[None]):
        (tensor,) = load_images(image)
        assert tensor.shape == (1, 3, 3, 4)
        assert all(np.array_equal(channel, grey) for channel in tensor[0].numpy())


def test_batches_and_lists_are_flattened_in_order():
    batch = np.stack([np.full((2, 3, 3), value, dtype=np.float32) for value in (0.1, 0.2)])
    tensors = load_images([batch, Image.new("L", (5, 4), 255), torch.from_numpy(batch).permute(0, 3, 1, 2)])
    assert [round(t.mean().item(), 3) for t in tensors] == [0.1, 0.2, 1.0, 0.1, 0.2]
    assert [tuple(t.shape[2:]) for t in tensors] == [(2, 3), (2, 3), (4, 5), (2, 3), (2, 3)]


@pytest.mark.parametrize("mode", ["I;16", "I"])
def test_16_bit_greyscale_keeps_its_precision(mode):
    values = np.array([[0, 1, 32768, 65535]], dtype=np.uint16)
    image = Image.fromarray(values) if mode == "I;16" else Image.fromarray(values.astype(np.int32))
    assert image.mode == mode
    (tensor,) = load_images(image)
    np.testing.assert_allclose(tensor[0, 0].numpy(), values / np.float32(65535), atol=1e-7)


def test_mode_f_is_taken_as_floats_in_0_1():
    (tensor,) = load_images(Image.fromarray(np.array([[0.0, 0.25]], dtype=np.float32)))
    assert tensor[0, 0].tolist() == [[0.0, 0.25]]
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        load_images(Image.fromarray(np.array([[0.0, 255.0]], dtype=np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode):
    opaque, clear = ((10, 10, 10, 255), (10, 10, 10, 0)) if mode == "RGBA" else ((10, 255), (10, 0))
    image = Image.new(mode, (2, 1), opaque)
    image.putpixel((1, 0), clear)
    (tensor,) = load_images(image)
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([10 / 255] * 3)
    assert tensor[0, :, 0, 1].tolist() == [1.0] * 3


def test_palettes_become_their_colours():
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    paletted = image.quantize(2)
    assert paletted.mode == "P"
    torch.testing.assert_close(load_images(paletted)[0], load_images(image)[0])


def test_a_transparent_palette_entry_shows_white():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 200, 0])
    image.putpixel((1, 0), 1)
    image.info["transparency"] = 1
    assert load_images(image)[0][0, :, 0, 1].tolist() == [1.0] * 3


@pytest.mark.parametrize("mode", ["1", "CMYK", "YCbCr", "HSV"])
def test_other_colour_spaces_are_converted(mode):
    image = Image.fromarray(gradient()).convert(mode)
    torch.testing.assert_close(load_images(image)[0], load_images(image.convert("RGB"))[0])


def test_exif_orientation_is_applied_once(tmp_path):
    """Orientation 6: the camera was turned, the picture must be turned by 270 degrees counter-clockwise."""
    stored = Image.fromarray(gradient(4, 6))
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    upright = load_images(stored.transpose(Image.Transpose.ROTATE_270))[0]
    with Image.open(tmp_path / "turned.png") as opened:
        assert torch.equal(load_images(opened)[0], upright)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == (4, 6)
    assert torch.equal(load_images(loaded)[0], upright)


def test_of_an_animation_the_current_frame_is_used(tmp_path):
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    red, blue = (load_images(frame)[0] for frame in frames)
    torch.testing.assert_close(load_images(load_image(tmp_path / "two.gif"))[0], red)
    with Image.open(tmp_path / "two.gif") as animation:
        animation.seek(1)
        torch.testing.assert_close(load_images(animation)[0], blue)


def test_load_image_keeps_16_bit(tmp_path):
    values = np.array([[0, 257, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert np.array_equal(np.asarray(load_image(str(tmp_path / "deep.png"))), values)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif", "gif", "bmp"])
def test_truncated_files_are_named(tmp_path, suffix):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    with pytest.raises(ValueError, match=rf"half\.{suffix} is (damaged|not an image)"):
        load_image(path)


def test_a_truncated_pil_image_is_named_too(tmp_path):
    Image.fromarray(gradient(64, 64)).save(tmp_path / "whole.jpg")
    (tmp_path / "half.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-40])
    with (
        Image.open(tmp_path / "half.jpg") as image,
        pytest.raises(ValueError, match=r"`image\[0\]` .* cannot be read"),
    ):
        load_images([image])


def test_what_is_not_an_image_file(tmp_path, monkeypatch):
    (tmp_path / "notes.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("notes.jpg", "empty.png"):
        with pytest.raises(ValueError, match=f"{name} is not an image"):
            load_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)
    Image.fromarray(gradient()).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match=r"large\.png is too large"):
        load_image(tmp_path / "large.png")


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((1, 1_200_001), np.uint8),
        np.zeros((1, 1_200_001, 1, 3), np.uint8),
        torch.zeros(1, 1, 1_200_001),
        Image.new("L", (1_200_001, 1)),
    ],
    ids=["array", "batch", "tensor", "PIL"],
)
def test_strips_from_python_are_refused(image):
    with pytest.raises(ValueError, match=r"`image` is a strip of \d+ x \d+ pixels: a side may have at most 1,200,000"):
        load_images(image)
    one = np.zeros((1, 1_200_000), np.uint8)
    assert load_images(one)[0].shape == (1, 3, 1, 1_200_000)


def test_a_strip_whose_limit_was_raised_is_read(tmp_path):
    Image.new("L", (1_200_001, 1)).save(tmp_path / "strip.png")
    with pytest.raises(ValueError, match=r"strip\.png is too large: 1200001 x 1 is a strip"):
        load_picture(tmp_path / "strip.png", processing_resolution=64)
    picture = load_picture(tmp_path / "strip.png", max_pixels=120_000_100, processing_resolution=64)
    (processed,) = process_images(picture, 64, "bilinear", 8)
    assert processed.original_size == (1, 1_200_001)


@pytest.mark.parametrize(
    ("image", "error", "match"),
    [
        ([], ValueError, "`image` is empty"),
        (np.zeros((0, 4, 4, 3), np.float32), ValueError, "`image` is empty"),
        (torch.zeros(0, 3, 4, 4), ValueError, "`image` is empty"),
        (np.zeros((0, 4, 3), np.float32), ValueError, "no pixels"),
        (torch.zeros(3, 4, 0), ValueError, "no pixels"),
        (Image.new("RGB", (0, 4)), ValueError, "no pixels"),
        ("photo.jpg", TypeError, "got str.*load_image"),
        ([Image.new("L", (2, 2)), None], TypeError, r"`image\[1\]` must be .* got NoneType"),
        (torch.full((3, 4, 4), float("nan")), ValueError, "NaN"),
        (np.full((4, 4), np.inf), ValueError, "NaN or infinite"),
        (np.full((4, 4), 1.5), ValueError, r"\[0, 1\], got values from 1.5 to 1.5"),
        (torch.full((3, 4, 4), -0.1), ValueError, r"\[0, 1\]"),
        (np.full((4, 4, 3), 100.0), ValueError, r"\[0, 1\]"),
        (np.zeros((4, 4, 4), np.uint8), ValueError, "1 or 3 channels last"),
        (np.zeros((3, 4, 5), np.uint8), ValueError, "1 or 3 channels last"),
        (torch.zeros(4, 5, 3), ValueError, "1 or 3 channels first"),
        (torch.zeros(4), ValueError, "1 or 3 channels first"),
        (np.zeros((4, 4), np.int32), ValueError, "dtype int32"),
        (np.zeros((4, 4), bool), ValueError, "dtype bool"),
        (np.zeros((4, 4), complex), ValueError, "dtype complex"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), ValueError, "dtype torch.int64"),
        (Image.fromarray(np.full((2, 2), -1, np.int32)), ValueError, "16-bit values"),
    ],
    ids=lambda value: str(getattr(value, "shape", value))[:30],
)
def test_unacceptable_images_are_named(image, error, match):
    with pytest.raises(error, match=match):
        load_images(image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_that_rounding_takes_out_of_range_are_clamped(dtype):
    """As after an antialiased resize, whose weights sum up to 1 within rounding."""
    values = torch.tensor([[-9e-6, 0.0, 0.5, 1.0, 1 + 9e-6]], dtype=dtype)
    for image in (values, values.numpy(), Image.fromarray(values.float().numpy())):
        assert load_images(image)[0][0, 0].tolist() == [[0.0, 0.0, 0.5, 1.0, 1.0]]
    for overshoot in (-1.1e-5, 1 + 1.2e-5):
        with pytest.raises(ValueError, match=r"must have values in \[0, 1\], got values from"):
            load_images(torch.full((2, 2), overshoot, dtype=dtype))


def test_a_picture_with_broken_exif_is_read(tmp_path):
    Image.fromarray(gradient()).save(tmp_path / "a.webp", exif=b"garbage", lossless=True)
    expected = as_tensor(gradient())
    with Image.open(tmp_path / "a.webp") as opened:
        assert torch.equal(load_images(opened)[0], expected)
    assert torch.equal(load_images(load_image(tmp_path / "a.webp"))[0], expected)


def test_large_pictures_are_shrunk_for_their_resolution(tmp_path, monkeypatch):
    """They keep their size, and are processed at that of a picture which is not shrunk."""
    array = np.linspace(0, 255, 99 * 201).reshape(99, 201).round().astype(np.uint8)
    Image.fromarray(array).convert("RGB").save(tmp_path / "a.png")
    (whole,) = process_images(Image.open(tmp_path / "a.png"), 24, "bilinear", 8)
    monkeypatch.setattr("depthfm_diffusers.pictures.reading.SHRINK_ABOVE", 10_000)
    with Image.open(tmp_path / "a.png") as opened:
        (small,) = process_images(opened, 24, "bilinear", 8)
        assert opened.size == (201, 99)
    (read,) = process_images(load_picture(tmp_path / "a.png", processing_resolution=24), 24, "bilinear", 8)
    for one in (small, read):
        assert one.original_size == whole.original_size == (99, 201)
        assert one.padding == whole.padding
        assert not torch.equal(one.pixels, whole.pixels)
        torch.testing.assert_close(one.pixels, whole.pixels, rtol=0, atol=0.03)
    (native,) = process_images(load_picture(tmp_path / "a.png"), 0, "bilinear", 8)
    assert torch.equal(unpad(native.pixels, native.padding), as_tensor(np.stack([array] * 3, -1)) * 2 - 1)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 2000))
def test_processing_size_keeps_the_aspect_and_a_pixel(height, width, resolution):
    size = processing_size(height, width, resolution)
    assert max(size) == resolution
    assert min(size) == max(1, round(min(height, width) * resolution / max(height, width)))
    assert processing_size(height, width, 0) == (height, width)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 5, 32, 50]), st.sampled_from([8, 16, 64]))
def test_padding_is_cropped_off_again(height, width, resolution, multiple):
    image = torch.rand(1, 3, height, width)
    processed = process_image(image, resolution, "bilinear", multiple)
    assert processed.original_size == (height, width)
    assert all(side % multiple == 0 for side in processed.pixels.shape[2:])
    assert all(padding < multiple for padding in processed.padding)
    assert processed.pixels.min() >= -1
    assert processed.pixels.max() <= 1
    size = processing_size(height, width, resolution)
    expected = resize(image, size, "bilinear").clamp(0, 1) * 2 - 1
    assert torch.equal(unpad(processed.pixels, processed.padding), expected)


@pytest.mark.parametrize("method", ["nearest", "nearest-exact", "bilinear", "bicubic", "area"])
def test_resizing_a_constant_gives_the_constant(method):
    resized = resize(torch.full((1, 1, 9, 13), 0.3), (17, 5), method)
    torch.testing.assert_close(resized, torch.full((1, 1, 17, 5), 0.3))


def test_bicubic_overshoot_stays_in_range():
    edge = torch.zeros(1, 3, 8, 8)
    edge[..., 4:] = 1
    assert resize(edge, (32, 32), "bicubic").max() > 1
    assert process_image(edge, 32, "bicubic", 8).pixels.abs().max() == 1


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=8, unique=True), st.floats(-300, 300, width=32))
def test_depth_is_the_normalised_exponential_wherever_the_range_lies(values, offset):
    """A factor on the depth, e**offset, changes nothing, even where exp would overflow."""
    if max(values) - min(values) < 0.01:
        return
    low, high = math.exp(min(values)), math.exp(max(values))
    expected = [(math.exp(value) - low) / (high - low) for value in values]
    depth = depth_from_log_depth(torch.tensor(values, dtype=torch.float64)[None] + offset)
    assert depth[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_a_constant_map_gives_zero():
    constant = torch.full((2, 1, 6, 6), 0.7)
    constant[1] = resize(torch.full((1, 1, 5, 3), -0.3), (6, 6), "bicubic")[0]  # constant up to rounding
    assert torch.equal(depth_from_log_depth(constant), torch.zeros(2, 1, 6, 6))


def test_maps_are_normalised_each_by_itself():
    maps = torch.rand(3, 1, 4, 5) * torch.tensor([0.1, 1.0, 50.0]).view(3, 1, 1, 1)
    depth = depth_from_log_depth(maps)
    assert depth.amin(dim=(1, 2, 3)).tolist() == [0.0] * 3
    assert depth.amax(dim=(1, 2, 3)).tolist() == [1.0] * 3
