"""The one place that opens picture files: which formats, up to how many pixels, upright, and in sRGB.

Everything that reads a picture of the user reads it through here: `load_image`, the commands, masks, data sources
and benchmarks. The rules:

- Only the raster formats of `formats.SUFFIXES` are opened. PostScript is a program, which Pillow hands to
  Ghostscript; other formats need programs or libraries of their own.
- The number of pixels and the length of the sides are read from the header and checked before anything is decoded,
  see `MAX_PIXELS` and `max_side`.
- Metadata that cannot be read do not make a picture unreadable. The EXIF orientation is used if it can be read.
- Colours are converted to sRGB through an embedded profile, see `colour`; transparent pixels are put over white.
- Of an animation, or a file of several pictures, the first is read.

Nothing here needs torch.
"""

from .colour import picture_array, picture_bytes, picture_grey
from .formats import COMMON_SUFFIXES, IMAGE_SUFFIXES, choose_pictures
from .metadata import upright
from .reading import (
    MAX_PIXELS,
    Picture,
    PictureError,
    is_plain_picture,
    max_side,
    picture_exif,
    picture_header,
    read_picture,
    shrink,
)

__all__ = [
    "COMMON_SUFFIXES",
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Picture",
    "PictureError",
    "choose_pictures",
    "is_plain_picture",
    "max_side",
    "picture_array",
    "picture_bytes",
    "picture_exif",
    "picture_grey",
    "picture_header",
    "read_picture",
    "shrink",
    "upright",
]
