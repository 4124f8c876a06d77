"""The focal length of a picture in pixels: as given, from EXIF data, or from an assumed field of view."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .pictures import picture_exif

# Of the camera where nothing is known of it: about that of a phone held upright, or of a 35 mm lens.
DEFAULT_FOV_X_DEG = 55.0
FULL_FRAME_DIAGONAL_MM = math.hypot(36, 24)
# Sides of sensors that are possible, from endoscopes to large format.
SENSOR_MM = (0.5, 150.0)
# By how much two ratios of width to height may differ: sides are whole pixels, and some programs round to 8 or 16.
SAME_ASPECT = 0.01
PLANE_UNITS_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 1e-3}

PIXEL_WIDTH, PIXEL_HEIGHT = 0xA002, 0xA003
FOCAL_LENGTH_MM, FOCAL_LENGTH_35MM, DIGITAL_ZOOM = 0x920A, 0xA405, 0xA404
PLANE_X, PLANE_Y, PLANE_UNIT = 0xA20E, 0xA20F, 0xA210


@dataclass(frozen=True)
class FocalLength:
    """A focal length, and where it comes from.

    Attributes:
        pixels: In pixels of the picture at its full size, the same along x and y.
        source: `"argument"`, `"exif 35 mm equivalent"`, `"exif focal length and sensor"` or `"default"`, which is a
            horizontal field of view of 55° for the upright picture.
    """

    pixels: float
    source: str

    def fov_x_deg(self, width: int) -> float:
        """Returns the horizontal field of view in degrees of the upright picture, which is `width` pixels wide."""
        return math.degrees(2 * math.atan(width / 2 / self.pixels))


def focal_length_pixels(picture: str | Path | Image.Image, given: float | None = None) -> FocalLength:
    """Returns the focal length of a picture in pixels, and where it comes from.

    EXIF data are used in this order: the focal length equivalent to that of 35 mm film, whose image has a diagonal of
    43.27 mm; or the focal length in mm, times the pixels per mm on the sensor and the digital zoom. If they give
    another size than the picture has, it was made smaller where the ratio of the sides is the same, and cut where
    one of the sides is; in any other case they are not used, nor are damaged ones.

    Args:
        picture: A picture file, of which only the header is read; or an opened one, whose EXIF data are those that
            Pillow has (a picture that `load_image` has turned upright has none).
        given: The focal length in pixels, if it is known.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If `given` is not positive and finite, or the file is no picture.
    """
    if given is not None:
        if not (math.isfinite(given) and given > 0):
            raise ValueError(f"The focal length must be a positive number of pixels, got {given}.")
        return FocalLength(float(given), "argument")
    size, exif = picture_exif(Path(picture) if isinstance(picture, str) else picture)
    taken = _size_when_taken(size, exif)
    if taken is not None:
        full_size, scale = taken
        if (equivalent := exif.get(FOCAL_LENGTH_35MM, 0)) > 0:
            pixels = equivalent / FULL_FRAME_DIAGONAL_MM * math.hypot(*full_size)
            return FocalLength(pixels * scale, "exif 35 mm equivalent")
        if (in_mm := _by_sensor(full_size, exif)) is not None:
            return FocalLength(in_mm * scale, "exif focal length and sensor")
    return FocalLength(size[0] / 2 / math.tan(math.radians(DEFAULT_FOV_X_DEG) / 2), "default")


def _size_when_taken(size: tuple[int, int], exif: Mapping[int, float]) -> tuple[tuple[float, float], float] | None:
    """Returns the sides of a picture when it was taken, and by what factor it was made smaller since.

    `None` if that cannot be known. The order of the sides does not matter.
    """
    now = sorted(size)
    then = sorted((exif.get(PIXEL_WIDTH, 0), exif.get(PIXEL_HEIGHT, 0)))
    if then[0] <= 0:
        return (now[0], now[1]), 1.0
    if abs(now[0] / now[1] * then[1] / then[0] - 1) <= SAME_ASPECT:
        return (then[0], then[1]), now[1] / then[1]
    # Cut on one side only: the pixels are those that were taken.
    is_cut = set(now) & set(then) and now[0] <= then[0] and now[1] <= then[1]
    return ((then[0], then[1]), 1.0) if is_cut else None


def _by_sensor(size: tuple[float, float], exif: Mapping[int, float]) -> float | None:
    """Returns the focal length in pixels from that in mm and the pixels per mm on the sensor."""
    focal = exif.get(FOCAL_LENGTH_MM, 0)
    density = exif.get(PLANE_X, 0) or exif.get(PLANE_Y, 0)
    unit = PLANE_UNITS_MM.get(int(exif.get(PLANE_UNIT, 2)))
    if focal <= 0 or density <= 0 or unit is None:
        return None
    per_mm = density / unit
    if not SENSOR_MM[0] <= max(size) / per_mm <= SENSOR_MM[1]:
        return None
    return focal * per_mm * (exif.get(DIGITAL_ZOOM, 0) or 1.0)
