"""Which files are opened, up to how many pixels, and at which resolution they are read."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers.picture_files import (
    POSTSCRIPT,
    broken_exif,
    chunk,
    huge_gif,
    huge_png,
    orientation,
    postscript_in_iptc,
    saved,
    tiff_header,
    with_chunks,
    with_segment,
)
from helpers.shards import encode
from PIL import Image

from depthfm_diffusers.frames import EncodedFrame, FrameError, decode_frame
from depthfm_diffusers.frames.headers import depth_size, picture_size
from depthfm_diffusers.frames.stored_files import StoredFile
from depthfm_diffusers.image_processing import load_image
from depthfm_diffusers.inference.synthesis_inputs import read_depth_file, read_mask_file
from depthfm_diffusers.pictures import PictureError, picture_header, read_picture, reading, shrink
from depthfm_diffusers.pictures.formats import SUFFIXES, choose_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
PNG, JPEG = saved(PICTURE, "PNG"), saved(PICTURE, "JPEG")
DEPTH = saved(Image.fromarray(np.full((6, 8), 1000, np.uint16)), "PNG")


METRES = encode(np.ones((6, 8), np.float32), "NPY")


def decode(path, image=PNG, depth=METRES):
    decode_frame(EncodedFrame("k", str(path), "", image, depth, "jpg", "depth.png", {}))


READERS = {
    "photo": load_image,
    "mask": read_mask_file,
    "depth": lambda path: read_depth_file(path, is_log=False),
    "image of a frame": lambda path: decode(path, image=path.read_bytes()),
    "depth of a frame": lambda path: decode(path, depth=path.read_bytes()),
    "header": lambda path: picture_size(StoredFile("a", path)),
    "depth header": lambda path: depth_size(StoredFile("a", path)),
}


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A `gs` on the path that leaves a file when it is started."""
    started = tmp_path / "started"
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\n: > {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    return started


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "content",
    [POSTSCRIPT, b"\xc5\xd0\xd3\xc6" + bytes(26) + POSTSCRIPT, postscript_in_iptc()],
    ids=["PostScript", "with a preview", "in IPTC"],
)
def test_no_program_is_started_for_a_picture(tmp_path, ghostscript, read, content):
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"not an image|not a readable image|not a picture"):
        read(tmp_path / "photo.png")
    assert not ghostscript.exists()


def test_pillow_would_start_it(tmp_path, ghostscript):
    """The test above can fail: both kinds of file are programs to Pillow."""
    for content in (POSTSCRIPT, postscript_in_iptc()):
        with pytest.raises((OSError, subprocess.SubprocessError)), Image.open(io.BytesIO(content)) as image:
            image.load()
        assert ghostscript.exists()
        ghostscript.unlink()


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "content",
    [
        huge_gif(13000, 13000),
        huge_png(170_000_000, 1),
        huge_png(1, 170_000_000),
        huge_png(13000, 13000, 16, 0),
        b"P5 13000 13000 255\n",
        b"BM" + bytes(12) + bytes([40, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 24, 0]) + bytes(24),
    ],
    ids=["GIF", "strip", "upright strip", "16 bits", "PGM", "BMP"],
)
def test_pixels_are_counted_before_they_are_decoded(tmp_path, read, content, monkeypatch):
    if content.startswith(b"\x89PNG") and read is READERS["depth header"]:
        pytest.skip("the header of a PNG with depth is read without Pillow; its image is of the same size")
    (tmp_path / "photo.png").write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)  # decodes, and cannot be called
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.load_prepare", None)
    with pytest.raises(ValueError, match=r"more than the limit of 120,000,000.*`max_pixels`"):
        read(tmp_path / "photo.png")


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "content",
    [
        huge_png(100_000_000, 1),
        huge_png(1, 100_000_000, 16, 0),
        huge_png(2, 1_200_001),
        b"P5 2000000 50 255\n",
        tiff_header(1_500_000, 1),
    ],
    ids=["strip", "upright strip", "two columns", "PGM", "TIFF"],
)
def test_strips_are_refused_before_they_are_decoded(tmp_path, read, content, monkeypatch):
    if content.startswith(b"\x89PNG") and read is READERS["depth header"]:
        pytest.skip("the header of a PNG with depth is read without Pillow; its image is of the same size")
    (tmp_path / "photo.png").write_bytes(content)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    with pytest.raises(ValueError, match=r"is a strip, .* the limit of 1,200,000 pixels.*`max_pixels`") as error:
        read(tmp_path / "photo.png")
    needed = int(re.search(r" to ([\d,]+) if", str(error.value))[1].replace(",", ""))
    assert max(picture_header(io.BytesIO(content), needed)[0]) > 1_200_000


def test_no_limit_on_pixels_forbids_the_sides_of_a_jpeg():
    for width, height in ((65_535, 1), (1, 65_535), (1000, 65_535)):
        assert picture_header(io.BytesIO(huge_png(width, height)), width * height)[0] == (width, height)
    assert picture_header(io.BytesIO(huge_gif(65_535, 1)))[0] == (65_535, 1)
    assert picture_header(io.BytesIO(huge_png(1_200_000, 100)))[0] == (1_200_000, 100)


def test_the_limit_is_an_argument(tmp_path):
    content = huge_png(13000, 13000)
    assert picture_header(io.BytesIO(content), 13000 * 13000)[0] == (13000, 13000)
    with pytest.raises(PictureError, match="too large"):
        picture_header(io.BytesIO(content), 13000 * 13000 - 1)
    (tmp_path / "a.png").write_bytes(PNG)
    assert load_image(tmp_path / "a.png", max_pixels=48).size == (8, 6)
    with pytest.raises(ValueError, match=r"a\.png is too large: 8 x 6 are 48 pixels, more than the limit of 47"):
        load_image(tmp_path / "a.png", max_pixels=47)
    encoded = EncodedFrame("k", "a.tar", "", PNG, DEPTH, "png", "depth.png", {}, max_pixels=47)
    with pytest.raises(FrameError, match=r"Frame 'k' of a\.tar: .*limit of 47"):
        decode_frame(encoded)


def test_a_limit_above_pillows_own_holds():
    """Pillow itself refuses 180 million pixels, whatever a caller says."""
    assert picture_header(io.BytesIO(huge_png(20000, 10000)), 10**9)[0] == (20000, 10000)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGBA")])
def test_large_pictures_are_shrunk_while_they_are_read(monkeypatch, kind, mode):
    """To no less than twice what is asked for, and to the means of their pixels."""
    monkeypatch.setattr(reading, "SHRINK_ABOVE", 10_000)
    array = np.linspace(0, 255, 160 * 120).reshape(120, 160).round().astype(np.uint8)
    picture = Image.fromarray(array).convert("RGB").convert(mode)
    content = saved(picture, kind, exif=orientation(6))
    whole, small = read_picture(content), read_picture(content, longer_side=10)
    assert whole.image.size == (160, 120)
    assert small.image.size == (20, 15)
    assert small.image.mode == whole.image.mode == mode
    assert small.size == whole.size == (120, 160)
    assert small.upright().size == (15, 20)
    expected = np.asarray(whole.image.convert("L").reduce(8), dtype=int)
    assert np.abs(np.asarray(small.image.convert("L"), dtype=int) - expected).max() <= 3
    assert read_picture(content, longer_side=41).image.size == (160, 120), "no less than twice the resolution"


@pytest.mark.parametrize("mode", ["1", "P", "I;16", "I", "F", "LA"])
def test_every_mode_can_be_shrunk(monkeypatch, mode):
    monkeypatch.setattr(reading, "SHRINK_ABOVE", 10_000)
    picture = Image.new("L", (400, 100), 200).convert("I" if mode == "I;16" else mode).convert(mode)
    small = shrink(picture, 20)
    assert small.size == (40, 10)
    assert abs(small.convert("L").getpixel((5, 5)) - 200) <= 1


def test_a_strip_is_shrunk_along_its_length(monkeypatch):
    monkeypatch.setattr(reading, "SHRINK_ABOVE", 10_000)
    assert shrink(Image.new("RGB", (20_000, 1)), 10).size == (20, 1)


def test_pictures_of_ordinary_size_are_read_whole():
    picture = read_picture(JPEG, longer_side=1)
    assert np.array_equal(np.asarray(picture.image), np.asarray(Image.open(io.BytesIO(JPEG))))


BOMB = b"Comment\0\0" + zlib.compress(bytes(3_000_000))
TEXTS = [chunk(b"zTXt", BOMB)]


@pytest.mark.parametrize(
    ("content", "turned"),
    [
        (saved(PICTURE, "WEBP", lossless=True, exif=b"garbage"), False),
        (saved(PICTURE, "PNG", exif=b"garbage"), False),
        (saved(PICTURE, "PNG", exif=broken_exif(3)), True),
        (saved(PICTURE, "TIFF"), False),
        (with_chunks(PNG, *TEXTS), False),
        (with_chunks(saved(PICTURE, "PNG", exif=orientation(3)), *TEXTS), True),
        (with_chunks(PNG, chunk(b"iTXt", b"a\0\1\0\0\0" + BOMB[9:])), False),
        (with_chunks(PNG, chunk(b"tEXt", b"a\0b")[:-4] + bytes(4)), False),
        (with_chunks(PNG, chunk(b"gAMA", b"")), False),
        (with_chunks(PNG, chunk(b"cHRM", b"\0")), False),
        (with_chunks(PNG, chunk(b"pHYs", b"\0")), False),
        (with_chunks(PNG, chunk(b"iCCP", b"icc\0\0broken")), False),
        (with_chunks(PNG, chunk(b"iCCP", b"icc\0\0" + BOMB[9:])), False),
        (with_chunks(PNG, chunk(b"acTL", bytes(8))), False),
        (with_chunks(PNG, chunk(b"fcTL", bytes(26))), False),
    ],
)
def test_broken_metadata_do_not_break_a_png_or_webp(content, turned, caplog):
    with caplog.at_level(logging.WARNING):
        picture = read_picture(content)
    assert np.array_equal(np.asarray(picture.upright()), PIXELS[::-1, ::-1] if turned else PIXELS)


@pytest.mark.parametrize(
    ("kind", "segment", "turned"),
    [
        (0xE1, b"Exif\0\0garbage", False),
        (0xE1, b"Exif\0\0", False),
        (0xE1, broken_exif(3), True),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0<x", False),
        (0xE2, b"MPF\0garbage", False),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x00\xb0\x07\0\x04\0\0\x000100", False),
        (0xE2, b"MPF\0II*\0\x08\0\0\0\x01\0\x01\xb0\x04\0\x01\0\0\0\x09\0\0\0\0\0\0\0", False),
        (0xE2, b"ICC_PROFILE\0\1\1garbage", False),
        (0xE2, b"ICC_PROFILE\0\7\7", False),
        (0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\xff\xff", False),
        (0xE0, b"JFIF\0", False),
        (0xE0, b"JFIF", False),
        (0xFE, b"\xff\xfe", False),
    ],
)
def test_broken_metadata_do_not_break_a_jpeg(kind, segment, turned, caplog):
    expected = np.asarray(Image.open(io.BytesIO(JPEG)))
    with caplog.at_level(logging.WARNING):
        picture = read_picture(with_segment(JPEG, kind, segment))
    assert np.array_equal(np.asarray(picture.upright()), expected[::-1, ::-1] if turned else expected)


def test_broken_metadata_do_not_break_an_avif():
    exif = Image.Exif()
    exif[0x0110] = "a camera"
    content = saved(PICTURE, "AVIF", exif=exif.tobytes())
    broken = content.replace(b"MM\0*", b"junk")
    assert broken != content
    assert read_picture(broken).image.size == PICTURE.size


def test_what_is_left_out_is_said(caplog):
    read_picture(with_chunks(PNG, *TEXTS), "a.png")
    read_picture(saved(PICTURE, "PNG", exif=b"garbage"), "b.png")
    assert "a.png: metadata that are damaged or too large are left out" in caplog.text
    assert "The EXIF data of b.png are damaged" in caplog.text
    assert "the stored pixels are used" in caplog.text


@pytest.mark.parametrize("content", [PNG[:-30], JPEG[:-30], with_chunks(PNG[:-30], *TEXTS), b"", b"\x89PNG\r\n\x1a\n"])
def test_damaged_pixels_are_refused(content):
    with pytest.raises(PictureError, match=r"is damaged or incomplete|is not an image"):
        read_picture(content)


def test_the_table_of_formats_is_pillows():
    """All that Pillow decodes without another program; HEIF is that of pillow-heif."""
    Image.init()
    refused = {"EPS", "WMF", "IPTC", "BUFR", "GRIB", "HDF5", "MPEG", "FPX", "MIC"}
    assert set(SUFFIXES) - {"HEIF"} == set(Image.OPEN) - refused - {"HEIF"}
    for suffix, kind in Image.registered_extensions().items():
        if kind in SUFFIXES or kind == "MPO":
            assert suffix in SUFFIXES["JPEG" if kind == "MPO" else kind]


@pytest.mark.parametrize(
    ("kind", "suffix"),
    [
        ("JPEG", "jfif"),
        ("JPEG", "jpe"),
        ("JPEG2000", "jp2"),
        ("TGA", "tga"),
        ("MPO", "mpo"),
        ("PPM", "pnm"),
        ("AVIF", "avif"),
    ],
)
def test_other_formats_are_found_in_folders_and_read(tmp_path, kind, suffix):
    path = tmp_path / f"a.{suffix.upper()}"
    path.write_bytes(saved(PICTURE, kind))
    assert choose_pictures(tmp_path, [path]) == [path]
    assert load_image(path).size == PICTURE.size


def test_heic_is_read_with_its_extra(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    array = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    heif.from_pillow(Image.fromarray(array)).save(tmp_path / "a.heic")
    found = np.asarray(load_image(tmp_path / "a.heic").convert("RGB"), dtype=int)
    assert np.abs(found - array).max() <= 6


def test_heic_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(64))
    with pytest.raises(
        ValueError, match=r"a\.heic is not read: .*needs pillow_heif: pip install 'depthfm_diffusers\[heif\]'"
    ):
        load_image(tmp_path / "a.heic")


def test_files_that_are_left_out_are_counted_and_named(tmp_path, caplog):
    names = ["a.png", "b.eps", "c.cr2", "d.txt", "e.pdf", "f.doc", "g.xyz", "h.HEIC"]
    files = [tmp_path / name for name in names]
    assert [file.name for file in choose_pictures(tmp_path, files, known=[tmp_path / "d.txt"])] == ["a.png", "h.HEIC"]
    assert "5 file(s) are left out, which are no pictures by suffix: b.eps, c.cr2, e.pdf, f.doc, g.xyz." in caplog.text
