"""Focal length from EXIF data of all kinds, turned, cut, made smaller and damaged; and without them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.picture_files import broken_exif, saved
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from depthfm_diffusers.focal_length import FocalLength, focal_length_pixels

PER_MM = math.hypot(40, 30) / math.hypot(36, 24)
DEFAULT = 20 / math.tan(math.radians(27.5))
# A sensor 8 mm wide of 40 pixels, and a lens of 6 mm.
SENSOR = {0x920A: IFDRational(6), 0xA20E: IFDRational(40 * 254, 80), 0xA210: 2}


@pytest.fixture
def photo(tmp_path):
    """Writes a JPEG of a size, with fields in the camera's EXIF directory."""

    def write(size: tuple[int, int] = (40, 30), orientation: int = 1, **fields) -> str:
        exif = Image.Exif()
        exif[0x0112] = orientation
        exif.get_ifd(0x8769).update({int(tag, 16): value for tag, value in fields.items()})
        path = tmp_path / "photo.jpg"
        path.write_bytes(saved(Image.new("RGB", size), "JPEG", exif=exif.tobytes()))
        return str(path)

    return write


def tags(fields: dict[int, object]) -> dict[str, object]:
    return {hex(tag): value for tag, value in fields.items()}


@pytest.mark.parametrize(
    ("size", "fields", "pixels"),
    [
        ((40, 30), {0xA405: 28}, 28 * PER_MM),
        ((40, 30), {0xA405: 28, 0xA002: 40, 0xA003: 30}, 28 * PER_MM),
        # Half as large as it was taken.
        ((40, 30), {0xA405: 28, 0xA002: 80, 0xA003: 60}, 28 * PER_MM),
        # Turned by a program that left the size of before.
        ((30, 40), {0xA405: 28, 0xA002: 40, 0xA003: 30}, 28 * PER_MM),
        # Cut to a square.
        ((30, 30), {0xA405: 28, 0xA002: 40, 0xA003: 30}, 28 * PER_MM),
        # The equivalent is that of the picture as it is, zoom included.
        ((40, 30), {0xA405: 56, 0xA404: IFDRational(2)}, 56 * PER_MM),
        ((40, 30), {0xA405: 28, **SENSOR}, 28 * PER_MM),
    ],
)
def test_the_35_mm_equivalent(photo, size, fields, pixels):
    found = focal_length_pixels(photo(size, **tags(fields)))
    assert found.source == "exif 35 mm equivalent"
    assert found.pixels == pytest.approx(pixels)


@pytest.mark.parametrize(
    ("fields", "pixels"),
    [
        (SENSOR, 30),
        ({0xA405: 0, **SENSOR}, 30),
        ({**SENSOR, 0xA404: IFDRational(0)}, 30),
        ({**SENSOR, 0xA404: IFDRational(3, 2)}, 45),
        ({**SENSOR, 0xA20E: IFDRational(50), 0xA210: 3}, 30),
        ({0x920A: IFDRational(6), 0xA20F: IFDRational(127)}, 30),
        # Taken with 80 pixels on those 8 mm.
        ({**SENSOR, 0xA20E: IFDRational(254), 0xA002: 80, 0xA003: 60}, 30),
    ],
)
def test_focal_length_and_sensor(photo, fields, pixels):
    found = focal_length_pixels(photo(**tags(fields)))
    assert found.source == "exif focal length and sensor"
    assert found.pixels == pytest.approx(pixels)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {0xA405: 0},
        {0x920A: IFDRational(6)},
        {0x920A: IFDRational(6, 0), 0xA20E: IFDRational(127)},
        {0x920A: IFDRational(0), 0xA20E: IFDRational(127)},
        {**SENSOR, 0xA210: 1},
        # A sensor of 4 m.
        {**SENSOR, 0xA20E: IFDRational(1, 4)},
        # Cut on both sides: nothing is known of the scale.
        {0xA405: 28, 0xA002: 100, 0xA003: 50},
    ],
)
def test_the_default_where_nothing_is_known(photo, fields):
    assert focal_length_pixels(photo(**tags(fields))) == FocalLength(pytest.approx(DEFAULT), "default")


def test_the_default_is_that_of_the_upright_picture(photo):
    found = focal_length_pixels(photo(orientation=6))
    assert found.pixels == pytest.approx(DEFAULT * 30 / 40)
    assert found.fov_x_deg(30) == pytest.approx(55)


def test_a_turned_picture_has_the_same_equivalent(photo):
    assert focal_length_pixels(photo(orientation=6, **tags({0xA405: 28}))).pixels == pytest.approx(28 * PER_MM)


def test_an_opened_picture(photo):
    image = Image.open(photo(**tags({0xA405: 28})))
    assert focal_length_pixels(image).source == "exif 35 mm equivalent"
    assert focal_length_pixels(Image.new("L", (40, 30))).source == "default"


def test_damaged_exif_is_as_good_as_none(tmp_path):
    for name, exif in (("broken", broken_exif(1)), ("garbage", b"Exif\0\0garbage")):
        path = tmp_path / f"{name}.jpg"
        path.write_bytes(saved(Image.new("RGB", (40, 30)), "JPEG", exif=exif))
        assert focal_length_pixels(path).source == "default"


def test_an_argument_goes_first(photo):
    assert focal_length_pixels(photo(**tags({0xA405: 28})), 123) == FocalLength(123.0, "argument")


@pytest.mark.parametrize("given", [0, -3.0, math.nan, math.inf])
def test_arguments_that_are_refused(given):
    with pytest.raises(ValueError, match="focal length must be a positive number of pixels"):
        focal_length_pixels("never opened.jpg", given)


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    with pytest.raises(ValueError, match="is not an image"):
        focal_length_pixels(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError):
        focal_length_pixels(tmp_path / "b.jpg")


def test_normals_assume_the_default(pipe, image):
    fov = focal_length_pixels(image).fov_x_deg(image.width)
    same, other = (
        pipe(image, output_normals=True, generator=torch.Generator().manual_seed(0), **settings).normals
        for settings in ({}, {"fov_x_deg": fov})
    )
    assert fov == pytest.approx(55)
    np.testing.assert_allclose(same, other, atol=1e-5)
