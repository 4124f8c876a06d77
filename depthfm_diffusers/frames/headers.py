"""What the headers of picture and `.npy` files say, without decoding the files."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np

from ..pictures import PictureError, picture_header, read_picture
from .decoding import COUNT_MODES, NPY_MAGIC
from .stored_files import StoredFile

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_GREY = 0


def picture_size(stored: StoredFile) -> tuple[int, int]:
    """Returns width and height of a picture, as stored.

    Raises:
        ValueError: If it cannot be opened.
    """
    with stored.open() as file:
        return _header(file)[0]


def is_on_its_side(stored: StoredFile) -> bool:
    """Returns whether a picture's EXIF orientation exchanges width and height; decodes the picture."""
    try:
        return read_picture(stored.read()).orientation >= 5
    except PictureError:
        return False  # which is reported when it is read


def png16_size(stored: StoredFile) -> tuple[int, int]:
    """Returns width and height of a 16-bit grey PNG.

    Raises:
        ValueError: If the file is something else.
    """
    with stored.open() as file:
        header = file.read(26)
    if not header.startswith(PNG_MAGIC) or len(header) < 26:
        raise ValueError("is not a PNG file")
    bits, colour = header[24], header[25]
    if (bits, colour) != (16, PNG_GREY):
        kind = "grey" if colour == PNG_GREY else "not grey"
        raise ValueError(f"has {bits} bits per channel and is {kind}; it must be a 16-bit grey PNG")
    return int.from_bytes(header[16:20], "big"), int.from_bytes(header[20:24], "big")


def npy_size(stored: StoredFile, kinds: str, flat: bool = False) -> tuple[int, int]:
    """Returns width and height of an H×W or H×W×1 array in a `.npy` file.

    Args:
        stored: The file.
        kinds: Which kinds of numbers it may have, as in `numpy.dtype.kind`.
        flat: Whether it must be H×W.

    Raises:
        ValueError: If the file is cut off, or has another array.
    """
    with stored.open() as file:
        try:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            start = file.tell()
        except (ValueError, EOFError) as error:
            raise ValueError(f"is not a readable .npy file ({error})") from error
    if dtype.kind not in kinds:
        names = {"f": "floating point", "b": "booleans", "i": "integers", "u": "integers"}
        raise ValueError(f"holds {dtype}, not {' or '.join(dict.fromkeys(names[kind] for kind in kinds))}")
    if len(shape) < 2 or shape[2:] not in ([()] if flat else [(), (1,)]) or 0 in shape:
        raise ValueError(f"is an array of shape {shape}, not {'HxW' if flat else 'HxW or HxWx1'}")
    expected = start + dtype.itemsize * int(np.prod(shape))
    if stored.size != expected:
        raise ValueError(f"has {stored.size} bytes, not the {expected} of its array")
    return shape[1], shape[0]


def depth_size(stored: StoredFile) -> tuple[int, int]:
    """Returns width and height of a depth map of any kind that `decoding.decode_frame` reads.

    Raises:
        ValueError: If it is of another kind.
    """
    with stored.open() as file:
        magic = file.read(len(PNG_MAGIC))
        if magic.startswith(NPY_MAGIC):
            return npy_size(stored, "f", flat=True)
        if magic == PNG_MAGIC:
            return png16_size(stored)
        file.seek(0)
        size, mode = _header(file)
        if mode != "F" and mode not in COUNT_MODES:
            raise ValueError(f"has mode {mode!r}, not 16-bit grey or 32-bit floating point")
        return size


def _header(file: BinaryIO) -> tuple[tuple[int, int], str]:
    try:
        return picture_header(file)
    except PictureError as error:
        raise ValueError(f"is not a picture that Pillow can open ({error.reason})") from error
