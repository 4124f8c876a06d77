"""The colours of a picture in any of Pillow's modes, as sRGB.

- An embedded colour profile is applied by LittleCMS, with the perceptual intent, to pictures of 8 bits. A profile that
  is sRGB to within two steps of 255 is not, so that such pictures keep their stored values.
- The fallback: where a profile cannot be read or is for other channels than the picture has, where the picture has 16
  bits or floating point, or where Pillow was built without LittleCMS, stored values are taken for sRGB. All but the
  third are said in the log. Colour that is described in other ways than by a profile (gamma and primaries in PNG, the
  colour space in EXIF, `nclx` in AVIF) is not looked at.
- Greyscale, bilevel, CMYK, YCbCr, HSV and palette pictures become RGB. Transparent pixels are put over white.
- 16-bit grey (`I;16`, and `I`, which older readers use for it) keeps its 16 bits; `F` is returned as it is.
"""

from __future__ import annotations

import io
import logging
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

logger = logging.getLogger(__name__)

SRGB_TOLERANCE = 2  # of 255
GRID_STEPS = 6  # colours along each axis by which a profile is compared with sRGB
UINT16_MAX = 65535
# How far floats may leave [0, 1]: what resizing adds, but no other range of values.
ROUNDING = 1e-5
# The modes that each kind of profile is applied to, and the mode that a picture is brought into before.
PROFILE_MODES = {
    "RGB": dict.fromkeys(("RGB", "RGBX", "P", "L", "1", "YCbCr", "HSV"), "RGB"),
    "GRAY": dict.fromkeys(("L", "1", "P"), "L"),
    "CMYK": {"CMYK": "CMYK"},
}


def picture_array(image: Image.Image) -> NDArray[Any]:
    """Makes an array of a picture, as stored (not turned).

    Args:
        image: The picture, of any mode.

    Returns:
        H×W×3 uint8, sRGB; of 16-bit grey H×W uint16, of mode `F` H×W float32.

    Raises:
        ValueError: If mode `I` holds other than 16-bit values, or the mode cannot be converted.
    """
    if image.mode == "F" or image.mode.startswith("I;16"):
        # As the processor orders bytes; an array of the mode `I;16B` is big-endian.
        array = np.asarray(image)
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    if image.mode == "I":
        array = np.asarray(image)
        if array.size and not (array.min() >= 0 and array.max() <= UINT16_MAX):
            raise ValueError(f"mode I must hold 16-bit values, got values from {array.min()} to {array.max()}")
        return array.astype(np.uint16)
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("LA" if image.mode in ("L", "LA", "La") else "RGBA")
        alpha = image.getchannel("A")
        image = image.convert(image.mode[:-1])
    if profile:
        image = _to_srgb(image, profile)
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return np.asarray(image)


def is_plain(image: Image.Image) -> bool:
    """Returns whether an opened picture has 8 bits, no transparency and no colour profile but sRGB.

    The array of a plain picture is that of Pillow's `convert("RGB")`. The picture is not decoded.
    """
    if image.has_transparency_data or image.mode.startswith("I") or image.mode == "F":
        return False
    profile = image.info.get("icc_profile")
    if not profile:
        return True
    try:
        mode = PROFILE_MODES.get(_colour_space(profile), {}).get(image.mode)
        return mode is not None and _is_srgb(profile, mode)
    except Exception:  # of LittleCMS, of Pillow, and of Pillow without LittleCMS
        return False


def picture_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """Makes an array H×W×3, uint8, sRGB, of a picture of any mode; 16-bit grey and `F` are rounded to 8 bits.

    Raises:
        ValueError: As `picture_array`, and if mode `F` leaves [0, 1].
    """
    array = picture_array(image)
    if array.ndim == 3:
        return array
    grey = (unit_values(array) * 255).round().astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def picture_grey(image: Image.Image) -> NDArray[np.float32]:
    """Makes the values of a mask H×W in [0, 1] of a picture of any mode; colour profiles are for photos.

    Raises:
        ValueError: As `picture_bytes`.
    """
    array = picture_array(_without_profile(image))
    if array.ndim == 3:
        # Of grey, the weighted mean of three equal channels is rounded to that value.
        array = np.asarray(Image.fromarray(array).convert("L"))
    return unit_values(array)


def unit_values(array: NDArray[Any]) -> NDArray[np.float32]:
    """Scales unsigned integers to [0, 1], by the largest value of their type; checks that floats are in it.

    Raises:
        ValueError: If floats are not finite, or leave [0, 1] by more than rounding.
    """
    if array.dtype.kind == "u":
        values = array.astype(np.float32)
        values /= np.iinfo(array.dtype).max
        return values
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinite values")
    if array.size and not (array.min() >= -ROUNDING and array.max() <= 1 + ROUNDING):
        raise ValueError(f"floating point must be in [0, 1], got values from {array.min():.6g} to {array.max():.6g}")
    return array.clip(0, 1).astype(np.float32)


def _without_profile(image: Image.Image) -> Image.Image:
    if "icc_profile" in image.info:
        image = image.copy()
        del image.info["icc_profile"]
    return image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Converts an opaque picture of 8 bits through its profile; returns it as it is where that is not possible."""
    try:
        space = _colour_space(profile)
        mode = PROFILE_MODES.get(space, {}).get(image.mode)
        if mode is None:
            reason = f"is for {space}, and the pixels are {image.mode}"
        elif _is_srgb(profile, mode):
            return image
        else:
            from PIL import ImageCms

            converted = ImageCms.applyTransform(image.convert(mode), _transform(profile, mode))
            return image if converted is None else converted
    except Exception as error:  # of LittleCMS, of Pillow, and of Pillow without LittleCMS
        reason = f"cannot be used ({type(error).__name__}: {error})"
    logger.warning(f"The colour profile of a picture {reason}: its stored values are taken for sRGB.")
    return image


def _colour_space(profile: bytes) -> str:
    from PIL import ImageCms

    return ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Any:
    from PIL import ImageCms

    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    return ImageCms.buildTransform(source, _srgb_profile(), mode, "RGB", ImageCms.Intent.PERCEPTUAL)


@cache
def _srgb_profile() -> Any:
    from PIL import ImageCms

    return ImageCms.createProfile("sRGB")


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes, mode: str) -> bool:
    """Returns whether a profile leaves colours as they are, by a grid of them."""
    from PIL import ImageCms

    if mode == "CMYK":
        return False
    steps = np.linspace(0, 255, GRID_STEPS if mode == "RGB" else 256).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(*[steps] * len(mode)), axis=-1)
    grid = Image.fromarray(colours.reshape(1, -1) if mode == "L" else colours.reshape(1, -1, 3))
    converted = np.asarray(ImageCms.applyTransform(grid, _transform(profile, mode)), dtype=int)
    return bool(np.abs(converted - np.asarray(grid.convert("RGB"), dtype=int)).max() <= SRGB_TOLERANCE)
