"""What pictures say besides their pixels: the EXIF orientation, and how to do without what cannot be read."""

from __future__ import annotations

import logging
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

logger = logging.getLogger(__name__)

ORIENTATION, EXIF_DIRECTORY = 0x0112, 0x8769
TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Where Pillow looks for an orientation.
ORIENTATION_FIELDS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
# What the pixels need, and what is worth a second try: the colour profile and the orientation.
PNG_PIXELS, PNG_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"), (b"iCCP", b"eXIf")
JPEG_KEPT = (b"Exif\0", b"ICC_PROFILE\0")
JPEG_APP, JPEG_ADOBE, JPEG_COMMENT, JPEG_SCAN = range(0xE0, 0xF0), 0xEE, 0xFE, 0xDA


def orientation_of(image: Image.Image, name: str = "a picture") -> int:
    """Returns the EXIF orientation of a picture, 1 to 8; 1 where there is none, or none that can be read.

    Args:
        image: The picture.
        name: What the log calls it, if its EXIF data are damaged.
    """
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception as error:  # Pillow's parsers raise errors of many types
        orientation = _first_orientation(image.info.get("exif"))
        used = "the stored pixels are used" if orientation == 1 else f"its orientation, {orientation}, is used"
        logger.warning(f"The EXIF data of {name} are damaged ({type(error).__name__}: {error}); {used}.")
    return orientation if isinstance(orientation, int) and orientation in TRANSPOSITIONS else 1


def is_oriented(image: Image.Image) -> bool:
    """Returns whether the header of a picture has an EXIF orientation other than 1, or one that cannot be read.

    The picture is not decoded; EXIF data that follow the pixels of a PNG are not seen.
    """
    try:
        return Image.Image.getexif(image).get(ORIENTATION, 1) != 1  # that of PNG files decodes the picture
    except Exception:  # Pillow's parsers raise errors of many types
        return True


def exif_numbers(image: Image.Image) -> dict[int, float]:
    """Returns the EXIF fields of a picture, those on the camera among them, that are finite numbers, by tag.

    Nothing but the orientation, if it can be found, where the data are damaged. The log says nothing of that:
    `orientation_of` does. The picture is not decoded, as in `is_oriented`.
    """
    numbers: dict[int, float] = {}
    try:
        with warnings.catch_warnings(action="ignore"):
            exif = Image.Image.getexif(image)
            fields = dict(exif) | exif.get_ifd(EXIF_DIRECTORY)
    except Exception:  # Pillow's parsers raise errors of many types
        fields = {ORIENTATION: _first_orientation(image.info.get("exif"))}
    for tag, value in fields.items():
        with suppress(TypeError, ValueError, ZeroDivisionError, OverflowError):
            if math.isfinite(number := float(value)):
                numbers[tag] = number
    return numbers


def turn(image: Image.Image, orientation: int) -> Image.Image:
    """Turns a picture by an EXIF orientation; the result says nothing of an orientation any more."""
    if orientation not in TRANSPOSITIONS:
        return image
    turned = image.transpose(TRANSPOSITIONS[orientation])
    for field in ORIENTATION_FIELDS:
        turned.info.pop(field, None)
    return turned


def upright(image: Image.Image) -> Image.Image:
    """Returns a picture upright by its EXIF orientation; the picture itself, if it is."""
    image.load()
    return turn(image, orientation_of(image))


def without_metadata(content: bytes) -> Iterator[bytes]:
    """Takes metadata out of a picture file, for pictures whose metadata keep Pillow from reading the pixels.

    Args:
        content: The file.

    Yields:
        The file with the colour profile and the EXIF data alone, then without these too. Nothing for formats other
        than PNG, JPEG, AVIF and HEIF.
    """
    for keeps in (True, False):
        with suppress(struct.error):
            if content.startswith(PNG_MAGIC):
                yield _png_without(content, keeps)
            elif content.startswith(b"\xff\xd8"):
                yield _jpeg_without(content, keeps)
            elif content[4:8] == b"ftyp" and not keeps:
                # The type of an item, behind its number and protection; readers pass over types that they do not know.
                yield content.replace(b"\0\0Exif", b"\0\0none")


def _png_without(content: bytes, keeps: bool) -> bytes:
    """Copies the chunks of a PNG that its pixels need."""
    parts, position = [PNG_MAGIC], len(PNG_MAGIC)
    while position < len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        end = position + 12 + length
        if kind in PNG_PIXELS or (keeps and kind in PNG_KEPT):
            parts.append(content[position:end])
        position = end
    return b"".join(parts)


def _jpeg_without(content: bytes, keeps: bool) -> bytes:
    """Copies the segments of a JPEG that its pixels need; Adobe's says how the colours are coded."""
    parts, position = [content[:2]], 2
    while position < len(content):
        mark, kind, length = struct.unpack_from(">BBH", content, position)
        if mark != 0xFF or kind == JPEG_SCAN:
            break
        segment = content[position : position + 2 + length]
        kept = keeps and segment[4:].startswith(JPEG_KEPT)
        if kept or kind == JPEG_ADOBE or not (kind in JPEG_APP or kind == JPEG_COMMENT):
            parts.append(segment)
        position += len(segment)
    return b"".join([*parts, content[position:]])


def _first_orientation(exif: bytes | None) -> int:
    """Finds the orientation in the first directory of EXIF data whose other parts may be damaged."""
    data = (exif or b"").removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    with suppress(struct.error):
        if order is not None:
            (start,) = struct.unpack_from(f"{order}I", data, 4)
            (count,) = struct.unpack_from(f"{order}H", data, start)
            for entry in range(start + 2, start + 2 + 12 * count, 12):
                tag, _, _, value = struct.unpack_from(f"{order}HHIH", data, entry)
                if tag == ORIENTATION:
                    return value
    return 1
