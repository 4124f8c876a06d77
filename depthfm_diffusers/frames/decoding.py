"""Decodes frames and captioned images, wherever their bytes come from.

Images become 8-bit sRGB by the rules of `depthfm_diffusers.pictures.colour`, as they do at inference. Depth is 16-bit
grey (PNG, TIFF) in counts of `depth_scale` metres, or floating point (32-bit TIFF, `.npy`).

Images without depth are turned upright by their EXIF orientation. Depth belongs to the pixels as stored, or to the
upright image if it was predicted. The sizes tell which of the two, for an image on its side; where they do not, the
frame is refused.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..pictures import Picture, PictureError, picture_bytes, read_picture
from .frame import CaptionedImage, Frame, FrameError

COUNT_MODES = ("I;16", "I;16L", "I;16B", "I")
METRES_PER_COUNT = 0.001
NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class EncodedFrame:
    """A frame, or an image with a caption, as it is stored.

    Attributes:
        key: Name of the frame inside its source.
        origin: File that messages name beside the key.
        scene: Name of the scene.
        image: Content of the image file.
        depth: Content of the depth file; empty for an image without depth.
        image_field: What the image is called in the source, for messages.
        depth_field: What the depth is called in the source, for messages.
        metadata: May have `fov_x_deg` (degrees) or `intrinsics` (fx, fy, cx, cy in pixels, pixel centres at
            integers), `depth_scale` (metres per stored unit; 0.001 for integers, 1 for floating point) and
            `sky_value` (the stored number that means sky), or a caption. Numbers may be given as text; other fields
            are ignored.
        max_pixels: Most pixels that a picture may have; `None`: 120 million.
    """

    key: str
    origin: str
    scene: str
    image: bytes
    depth: bytes
    image_field: str
    depth_field: str
    metadata: Mapping[str, Any]
    max_pixels: int | None = None

    def error(self, message: str) -> FrameError:
        """Returns an error that names this frame."""
        return frame_error(self.key, self.origin, message)


def frame_error(key: str, origin: str, message: str) -> FrameError:
    """Returns an error that names a frame and its file."""
    return FrameError(f"Frame {key!r} of {origin}: {message}")


def decode_frame(encoded: EncodedFrame) -> Frame:
    """Decodes a frame.

    A frame without any known depth is no error here: the caller decides what to do with it.

    Raises:
        FrameError: Naming the frame and the field that cannot be used.
    """
    stored, orientation = decode_depth(encoded)
    picture = open_picture(encoded, encoded.image, encoded.image_field)
    image = decode_image(encoded, orient_with_depth(encoded, picture, stored.shape, orientation))
    if stored.shape != image.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (image, stored)]
        raise encoded.error(
            f"{encoded.image_field} is {sizes[0]} pixels, {encoded.depth_field} is {sizes[1]} (width x height)."
        )
    depth, sky = _to_metres(encoded, stored)
    return Frame(encoded.key, encoded.scene, image, depth, _camera(encoded, *depth.shape), sky)


def decode_captioned_image(encoded: EncodedFrame, caption_names: Sequence[str]) -> CaptionedImage:
    """Decodes an image; its caption is the first of the fields `caption_names` that the metadata have.

    Raises:
        FrameError: If the image cannot be decoded, or the caption is not text.
    """
    image = decode_image(encoded, open_picture(encoded, encoded.image, encoded.image_field).upright())
    caption = next((encoded.metadata[name] for name in caption_names if name in encoded.metadata), None)
    if caption is not None and not isinstance(caption, str):
        raise encoded.error(f"its caption is {type(caption).__name__}, not text: {caption!r}.")
    return CaptionedImage(encoded.key, encoded.scene, image, caption or "")


def has_camera(metadata: Mapping[str, Any]) -> bool:
    """Returns whether a frame's metadata say how it was projected."""
    return _given(metadata, "fov_x_deg") or _given(metadata, "intrinsics")


def _given(metadata: Mapping[str, Any], field: str) -> bool:
    value = metadata.get(field)
    return value is not None and not (isinstance(value, str) and not value.strip())  # an empty cell of a CSV file


def open_picture(encoded: EncodedFrame, content: bytes, field: str) -> Picture:
    """Decodes a picture of a frame.

    Raises:
        FrameError: Naming the frame and the field, if it cannot be decoded.
    """
    if not content:
        raise encoded.error(f"{field} is empty.")
    try:
        return read_picture(content, f"{field} of frame {encoded.key!r} of {encoded.origin}", encoded.max_pixels)
    except PictureError as error:
        raise encoded.error(f"{field} is not a readable image ({error.reason}).") from error


def decode_image(encoded: EncodedFrame, image: Image.Image) -> np.ndarray:
    """Makes the array of a frame's image: H×W×3, uint8, sRGB.

    Raises:
        FrameError: If its pixels have values that are none of an image.
    """
    try:
        return picture_bytes(image)
    except ValueError as error:
        raise encoded.error(f"{encoded.image_field} cannot be read: {error}.") from error


def orient_with_depth(
    encoded: EncodedFrame, picture: Picture, depth_shape: Sequence[int], depth_orientation: int
) -> Image.Image:
    """Returns the image of a frame turned as its depth is.

    Args:
        encoded: The frame.
        picture: Its image.
        depth_shape: Height and width of its depth, as stored.
        depth_orientation: EXIF orientation of the depth's file, 1 if it has none.

    Raises:
        FrameError: If the depth may belong to the pixels as stored or as turned.
    """
    if picture.orientation == depth_orientation:
        return picture.image
    stored, turned = picture.stored_size[::-1], picture.size[::-1]
    if stored != turned and depth_orientation == 1:
        if tuple(depth_shape) == turned:
            return picture.upright()
        if tuple(depth_shape) == stored:
            return picture.image
    raise encoded.error(
        f"{encoded.image_field} has the EXIF orientation {picture.orientation}, {encoded.depth_field} has "
        f"{depth_orientation} (1: none): the sizes do not tell whether the depth belongs to the pixels as stored or "
        "as turned. Turn the pixels of the one that is not upright, and remove the orientation."
    )


def decode_depth(encoded: EncodedFrame) -> tuple[np.ndarray, int]:
    """Returns the depth as stored, H×W, of an integer or a floating-point type; and its EXIF orientation.

    Raises:
        FrameError: Naming the frame and the field, if it cannot be decoded.
    """
    field = encoded.depth_field
    if encoded.depth.startswith(NPY_MAGIC):
        try:
            stored = np.load(io.BytesIO(encoded.depth), allow_pickle=False)
        except Exception as error:  # as above
            raise encoded.error(f"{field} is not a readable .npy file ({error}).") from error
        if stored.ndim != 2 or stored.dtype.kind != "f" or stored.size == 0:
            raise encoded.error(
                f"{field} is an array of {stored.dtype} and shape {stored.shape}, not floating point and HxW."
            )
        return stored, 1
    picture = open_picture(encoded, encoded.depth, field)
    if picture.image.mode != "F" and picture.image.mode not in COUNT_MODES:
        raise encoded.error(f"{field} has mode {picture.image.mode!r}, not 16-bit grey or 32-bit floating point.")
    return np.asarray(picture.image), picture.orientation


def _to_metres(encoded: EncodedFrame, stored: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    field = encoded.depth_field
    sky = None
    if _given(encoded.metadata, "sky_value"):
        sky = stored == _number(encoded, "sky_value")
        stored = np.where(sky, 0, stored)
    if not np.isfinite(stored).all():
        raise encoded.error(f"{field} has NaN or infinite values; depth that is not known is 0.")
    if (stored < 0).any():
        raise encoded.error(f"{field} has negative values, down to {stored.min()}; depth that is not known is 0.")
    scale = METRES_PER_COUNT if stored.dtype.kind in "iu" else 1.0
    if _given(encoded.metadata, "depth_scale"):
        scale = _number(encoded, "depth_scale")
        if not 0.0 < scale < math.inf:
            raise encoded.error(f"depth_scale is {scale}, not positive and finite.")
    # In float64, so that 1500 counts are the float32 nearest to 1.5 m.
    metres = stored.astype(np.float64) * scale
    if metres.max() > np.finfo(np.float32).max:
        raise encoded.error(f"{field} has {metres.max()} m, more than float32 holds.")
    return metres.astype(np.float32), sky


def _camera(encoded: EncodedFrame, height: int, width: int) -> np.ndarray | None:
    by_fov, by_intrinsics = (_given(encoded.metadata, field) for field in ("fov_x_deg", "intrinsics"))
    if by_fov and by_intrinsics:
        raise encoded.error("has both fov_x_deg and intrinsics; give one of them.")
    if by_fov:
        fov_x_deg = _number(encoded, "fov_x_deg")
        if not 0.0 < fov_x_deg < 180.0:
            raise encoded.error(f"fov_x_deg is {fov_x_deg}, not between 0 and 180.")
        from ..geometry import intrinsics_from_fov  # needs torch, which frames without a camera do not

        return intrinsics_from_fov(fov_x_deg, height, width).numpy()
    if not by_intrinsics:
        return None
    fx, fy, cx, cy = _intrinsics(encoded)
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], dtype=np.float32)


def _intrinsics(encoded: EncodedFrame) -> list[float]:
    given = encoded.metadata["intrinsics"]
    try:
        numbers = [float(n) for n in (json.loads(given) if isinstance(given, str) else given)]
        usable = len(numbers) == 4 and all(map(math.isfinite, numbers)) and min(numbers[:2]) > 0
    except (TypeError, ValueError):
        usable = False
    if not usable:
        raise encoded.error(
            f"intrinsics is {given!r}, not [fx, fy, cx, cy] in pixels with positive focal lengths fx and fy."
        )
    return numbers


def _number(encoded: EncodedFrame, field: str) -> float:
    value = encoded.metadata[field]
    try:
        if isinstance(value, (bool, Sequence)) and not isinstance(value, str):
            raise TypeError(field)
        return float(value)
    except (TypeError, ValueError):
        raise encoded.error(f"{field} is {value!r}, not a number.") from None
