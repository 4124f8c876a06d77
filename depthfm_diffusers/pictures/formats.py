"""The formats of pictures that are opened, and the ends of their files' names."""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable
from pathlib import Path

logger = logging.getLogger(__name__)

NAMED_IN_MESSAGES = 5

# Pillow's names of the formats, those with an unmistakable beginning first: Pillow tries one after the other. Left out
# are EPS and WMF (programs that draw), IPTC (a container whose content Pillow opens without a choice of formats), and
# BUFR, GRIB, HDF5 and MPEG, which Pillow cannot decode.
SUFFIXES: dict[str, tuple[str, ...]] = {
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "PPM": (".pbm", ".pgm", ".ppm", ".pnm", ".pfm"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "AVIF": (".avif", ".avifs"),
    "HEIF": (".heic", ".heics", ".heif", ".heifs", ".hif"),
    "JPEG2000": (".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c"),
    "BLP": (".blp",),
    "CUR": (".cur",),
    "DCX": (".dcx",),
    "DDS": (".dds",),
    "FITS": (".fit", ".fits"),
    "FLI": (".fli", ".flc"),
    "FTEX": (".ftc", ".ftu"),
    "GBR": (".gbr",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "MCIDAS": (),
    "MSP": (".msp",),
    "PCX": (".pcx",),
    "PIXAR": (".pxr",),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "SUN": (".ras",),
    "XBM": (".xbm",),
    "XPM": (".xpm",),
    "XVTHUMB": (),
    "IM": (".im",),
    "IMT": (),
    "PCD": (".pcd",),
    "SPIDER": (),
    "TGA": (".tga", ".icb", ".vda", ".vst"),
}

# What a folder is searched for.
IMAGE_SUFFIXES = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)

# In messages: the suffixes of photos, of which all others are variants or rare.
COMMON_SUFFIXES = ".png, .jpg, .webp, .tif, .bmp, .gif, .avif, .heic, .jp2, .tga, .ppm and others"

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def is_heif(prefix: bytes) -> bool:
    """Returns whether the first 12 bytes of a file are those of HEIC or HEIF, which Pillow does not read itself."""
    return prefix[4:8] == b"ftyp" and prefix[8:12] in HEIF_BRANDS


def is_postscript(prefix: bytes) -> bool:
    """Returns whether the first bytes of a file are those of PostScript, with or without a preview."""
    return prefix.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6"))


def choose_pictures(folder: Path, files: Iterable[Path], known: Container[Path] = ()) -> list[Path]:
    """Finds the picture files among the files of a folder, by suffix; says in the log which others are left out.

    Args:
        folder: The folder.
        files: Files in it.
        known: Files that the log does not speak of.

    Returns:
        The pictures, in the order of `files`.
    """
    pictures: list[Path] = []
    others: list[Path] = []
    for file in files:
        if file.suffix.lower() in IMAGE_SUFFIXES:
            pictures.append(file)
        elif file not in known:
            others.append(file)
    if others:
        named = ", ".join(str(file.relative_to(folder)) for file in others[:NAMED_IN_MESSAGES])
        more = f" and {len(others) - NAMED_IN_MESSAGES} more" if len(others) > NAMED_IN_MESSAGES else ""
        logger.warning(
            f"{folder}: {len(others)} file(s) are left out, which are no pictures by suffix: {named}{more}."
        )
    return pictures
