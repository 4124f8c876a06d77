"""Picture files that Pillow does not write by itself: with huge headers, broken metadata, or programs in them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image

ORIENTATION = 0x0112
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_GREY, PNG_RGB = 0, 2
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    """The content of a picture's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def orientation(value: int) -> bytes:
    """EXIF data with an orientation only."""
    exif = Image.Exif()
    exif[ORIENTATION] = value
    return exif.tobytes()


def broken_exif(value: int) -> bytes:
    """EXIF data whose orientation is whole, but whose resolution lies behind the end."""
    entries = struct.pack("<HHIHH", ORIENTATION, 3, 1, value, 0) + struct.pack("<HHII", 0x011A, 5, 1, 9999)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + bytes(4)


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """A PNG with chunks after its header."""
    end = len(PNG_MAGIC) + 25
    return png[:end] + b"".join(chunks) + png[end:]


def with_segment(jpeg: bytes, kind: int, content: bytes) -> bytes:
    """A JPEG with a segment after its beginning."""
    return jpeg[:2] + struct.pack(">BBH", 0xFF, kind, len(content) + 2) + content + jpeg[2:]


def huge_png(width: int, height: int, bits: int = 8, colour: int = PNG_RGB) -> bytes:
    """A PNG of some bytes that is as large as its header says."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return PNG_MAGIC + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    """A TIFF of some bytes, 8-bit grey, that is as large as its header says."""
    # tag, type (4: long), number of values, value; the pixels would follow the header
    fields = [(256, width), (257, height), (258, 8), (259, 1), (262, 1), (273, 122), (277, 1), (278, height)]
    fields.append((279, width * height))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + b"".join(struct.pack("<HHII", t, 4, 1, v) for t, v in fields)


def huge_gif(width: int, height: int) -> bytes:
    """A GIF of 48 bytes that is as large as its header says."""
    size = struct.pack("<HH", width, height)
    head = b"GIF89a" + size + b"\x80\0\0\0\0\0\xff\xff\xff" + b"!\xf9\x04\0\0\0\0\0" + b","
    return (head + struct.pack("<HH", 0, 0) + size + b"\0\x02\x02D\x01\0").ljust(47, b"\0") + b";"


def postscript_in_iptc() -> bytes:
    """PostScript in the one container whose content Pillow opens whatever its format is."""

    def field(record: int, number: int, content: bytes) -> bytes:
        return struct.pack(">BBBH", 0x1C, record, number, len(content)) + content

    fields = [(3, 60, b"\x01\0"), (3, 20, b"\0\x08"), (3, 30, b"\0\x08"), (3, 120, b"\x05")]
    return b"".join(field(*one) for one in fields) + field(8, 10, POSTSCRIPT)
