"""Opens, checks and decodes picture files."""

from __future__ import annotations

import io
import logging
import struct
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from PIL import Image

from ..utils.imports import import_optional
from .colour import is_plain
from .formats import SUFFIXES, is_heif, is_postscript
from .metadata import (
    ORIENTATION,
    ORIENTATION_FIELDS,
    exif_numbers,
    is_oriented,
    orientation_of,
    turn,
    without_metadata,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# The default limit on the pixels of a picture, with room for cameras of 100 megapixels.
MAX_PIXELS = 120_000_000
# A side may be this share of the limit on pixels: to resize a map takes memory in proportion to its sides, too, which
# for a strip is more than all its pixels take. No JPEG file has a longer side than `ALWAYS_ALLOWED_SIDE`.
MAX_SIDE_SHARE = 1 / 100
ALWAYS_ALLOWED_SIDE = 65_535
# Pictures of more pixels than this are shrunk while they are read, if they are processed at a much lower resolution.
# Those of ordinary size are not, so that their results stay the same to the bit.
SHRINK_ABOVE = 32_000_000
# Shrunk pictures are at least this many times as long as the processing resolution.
SHRINK_MARGIN = 2
# The modes that Pillow's `reduce` averages as they are; the others are brought into one of these before.
REDUCIBLE_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I", "F")
PREFIX_LENGTH = 16


class PictureError(ValueError):
    """A picture cannot be used; the message has no name, the caller puts one before it.

    Attributes:
        reason: Why, without what kind of problem it is.
    """

    def __init__(self, problem: str, reason: str) -> None:
        super().__init__(f"{problem}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Picture:
    """A decoded picture file.

    Attributes:
        image: The pixels as they are stored (not turned), in the file's own mode; shrunk, if that was asked for.
        orientation: The EXIF orientation, 1 to 8; 1 if there is none.
        stored_size: Width and height as stored, before shrinking.
    """

    image: Image.Image
    orientation: int
    stored_size: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, before shrinking."""
        return self.stored_size[::-1] if self.orientation >= 5 else self.stored_size

    def upright(self) -> Image.Image:
        """Returns the picture upright by its EXIF orientation."""
        return turn(self.image, self.orientation)


def read_picture(source: Path | bytes, name: str = "", max_pixels: int | None = None, longer_side: int = 0) -> Picture:
    """Reads a picture file; of an animation, the first frame.

    Args:
        source: The file, or its content.
        name: What messages in the log call it; empty: the file's path.
        max_pixels: Most pixels that it may have; `None` is `MAX_PIXELS`, or Pillow's own limit where a program has
            set that lower. It limits the sides as well, see `max_side`.
        longer_side: At how many pixels of its longer side the picture will be processed: one of more than
            `SHRINK_ABOVE` pixels is shrunk to no less than `SHRINK_MARGIN` times that. 0 keeps all pixels.

    Raises:
        OSError: If the file does not exist or cannot be opened.
        PictureError: If it is no picture or of a format that is not opened, is damaged or incomplete, or has too many
            pixels, or is a strip that is too long.
    """
    name = name or (str(source) if isinstance(source, Path) else "a picture")

    def read(file: BinaryIO) -> Picture:
        opened = _open(file, max_pixels)
        stored_size, factor = opened.size, _shrink_factor(opened.size, longer_side)
        if min(stored_size) >= factor > 1:
            # JPEG alone can be decoded at a lower resolution.
            opened.draft(opened.mode, (stored_size[0] // factor, stored_size[1] // factor))
        opened.load()
        if factor == 1:
            stored_size = opened.size  # of an icon, the header may give another size than the picture in it
            _check_size(stored_size, max_pixels)
        image = shrink(opened, longer_side)
        if image is opened:
            image = image.copy()  # which holds no file
        orientation = orientation_of(opened, name)
        for field in ORIENTATION_FIELDS:
            image.info.pop(field, None)
        return Picture(image, orientation, stored_size)

    with source.open("rb") if isinstance(source, Path) else nullcontext(io.BytesIO(source)) as file:
        return _read_despite_metadata(file, name, read)


def picture_header(file: BinaryIO, max_pixels: int | None = None) -> tuple[tuple[int, int], str]:
    """Reads the size (width, height; as stored) and the mode of a picture from its header.

    Raises:
        PictureError: As `read_picture`.
    """

    def read(file: BinaryIO) -> tuple[tuple[int, int], str]:
        image = _open(file, max_pixels)
        return image.size, image.mode

    return _read_despite_metadata(file, "a picture", read)


def is_plain_picture(source: bytes, upright: bool, max_pixels: int | None = None) -> bool:
    """Returns whether Pillow alone reads a picture as `read_picture` does, see `colour.is_plain`; decodes nothing.

    Args:
        source: Content of the file.
        upright: Whether the picture must also be stored upright, as far as its EXIF data say.
        max_pixels: As for `read_picture`.

    Raises:
        PictureError: As `read_picture`.
    """

    def read(file: BinaryIO) -> bool:
        image = _open(file, max_pixels)
        return is_plain(image) and not (upright and is_oriented(image))

    return _read_despite_metadata(io.BytesIO(source), "a picture", read)


def picture_exif(source: Path | Image.Image) -> tuple[tuple[int, int], dict[int, float]]:
    """Reads the size of a picture and what its EXIF data say in numbers, without decoding it.

    Args:
        source: The file, or a picture that Pillow has opened.

    Returns:
        Width and height of the upright picture; the numbers by tag, none of what is damaged.

    Raises:
        OSError: As `read_picture`.
        PictureError: As `read_picture`, but for the number of pixels.
    """

    def read(image: Image.Image) -> tuple[tuple[int, int], dict[int, float]]:
        numbers = exif_numbers(image)
        is_turned = numbers.get(ORIENTATION) in (5, 6, 7, 8)
        return image.size[::-1] if is_turned else image.size, numbers

    if isinstance(source, Image.Image):
        return read(source)
    with source.open("rb") as file:
        return _read_despite_metadata(file, str(source), lambda content: read(_open(content, sys.maxsize)))


def shrink(image: Image.Image, longer_side: int) -> Image.Image:
    """Shrinks a decoded picture of more than `SHRINK_ABOVE` pixels that is processed at a much lower resolution.

    Args:
        image: The picture.
        longer_side: See `read_picture`.

    Returns:
        Another picture; the same, where there is nothing to gain.
    """
    factor = _shrink_factor(image.size, longer_side)
    if factor == 1:
        return image
    return _reducible(image).reduce((min(factor, image.width), min(factor, image.height)))


def _shrink_factor(size: tuple[int, int], longer_side: int) -> int:
    if size[0] * size[1] <= SHRINK_ABOVE or longer_side < 1:
        return 1
    return max(1, max(size) // (SHRINK_MARGIN * longer_side))


def _reducible(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        return image.convert("I")
    if image.has_transparency_data:
        return image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
    if image.mode in REDUCIBLE_MODES:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _read_despite_metadata(file: BinaryIO, name: str, read: Callable[[BinaryIO], T]) -> T:
    """Calls `read` on a file; if that fails, on its content without metadata."""
    try:
        return read(file)
    except (MemoryError, PictureError) as error:
        if not isinstance(error, _UnknownPictureError):
            raise
        failure: Exception = error
    except Exception as error:  # Pillow's decoders raise errors of many types
        failure = error
    file.seek(0)
    for content in without_metadata(file.read()):
        try:
            result = read(io.BytesIO(content))
        except Exception:  # the first error is reported
            continue
        logger.warning(f"{name}: metadata that are damaged or too large are left out ({_reason(failure)}).")
        return result
    if isinstance(failure, PictureError):
        raise failure
    if isinstance(failure, Image.DecompressionBombError):
        raise PictureError("is too large", str(failure)) from failure
    raise PictureError("is damaged or incomplete", _reason(failure)) from failure


class _UnknownPictureError(PictureError):
    """A file is no picture, or its beginning is damaged."""


def _open(file: BinaryIO, max_pixels: int | None) -> Image.Image:
    """Opens a picture without decoding it, as `PIL.Image.open` does.

    That function has a limit on pixels for the whole process, which it checks with a warning; this one has its own.
    """
    file.seek(0)
    prefix = file.read(PREFIX_LENGTH)
    if is_postscript(prefix):
        raise PictureError("is not an image", "PostScript is a program, which is not run; convert it to PNG")
    if is_heif(prefix):
        try:
            heif = import_optional("pillow_heif", "heif", "HEIC")
        except ImportError as error:
            raise PictureError("is not read", str(error)) from error
        file.seek(0)
        image = heif.HeifImageFile(file)
    else:
        image = _identify(file, prefix)
    _check_size(image.size, max_pixels)
    return image


def _identify(file: BinaryIO, prefix: bytes) -> Image.Image:
    Image.preinit()
    for kind in SUFFIXES:
        if kind not in Image.OPEN:
            Image.init()
        if kind not in Image.OPEN:
            continue  # Pillow is older than this reader, or it is that of HEIF
        factory, accept = Image.OPEN[kind]
        try:
            # A reader that accepts the file, but was not built, gives a text.
            if accept is None or accept(prefix) is True:
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # the reader of another format may accept it
    raise _UnknownPictureError("is not an image", "not a picture that Pillow knows")


def _check_size(size: tuple[int, int], max_pixels: int | None) -> None:
    pixels, limit = size[0] * size[1], max_pixels
    if limit is None:
        # Pillow refuses twice the number that it warns of.
        limit = min(MAX_PIXELS, 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS))
    if pixels > limit:
        raise PictureError(
            "is too large",
            f"{size[0]} x {size[1]} are {pixels:,} pixels, more than the limit of {limit:,}. Make it smaller, or "
            "raise `max_pixels` (`--max-pixels`) if the file can be trusted",
        )
    if max(size) > max_side(limit):
        raise PictureError(
            "is too large",
            f"{size[0]} x {size[1]} is a strip, whose longer side has more than the limit of {max_side(limit):,} "
            f"pixels. Cut it into pieces, or raise `max_pixels` (`--max-pixels`), which is {limit:,}, to "
            f"{round(max(size) / MAX_SIDE_SHARE):,} if the file can be trusted",
        )


def max_side(max_pixels: int = MAX_PIXELS) -> int:
    """Returns how many pixels the longer side of a picture may have: 1.2 million by default.

    Args:
        max_pixels: The limit on the number of pixels.
    """
    return max(ALWAYS_ALLOWED_SIDE, round(max_pixels * MAX_SIDE_SHARE))


def _reason(error: Exception) -> str:
    # Pillow's message may have the address of a buffer, which does not help.
    return str(error) if str(error) and "BytesIO" not in str(error) else type(error).__name__
