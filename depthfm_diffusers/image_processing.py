"""From images of any accepted kind to padded tensors for the autoencoder, and from log depth to depth.

How each kind of image is read:

- PIL images are turned upright by their EXIF orientation first, and become sRGB by the rules of
  `depthfm_diffusers.pictures.colour`: profiles are applied, and transparency is put over white. 16-bit greyscale is
  divided by 65535; `F` must hold values in [0, 1]. Of an animation, the current frame is used (the first, if the file
  was just opened). The pipeline shrinks pictures of more than 32 million pixels before it makes floats of them, to no
  less than twice the processing resolution.
- Arrays are channels-last: H×W, H×W×1, H×W×3, or N×H×W×C. Tensors are channels-first: H×W, C×H×W or N×C×H×W, with
  C of 1 or 3. Floats must be in [0, 1], and are clamped to it where rounding takes them out (by up to 1e-5); unsigned
  integers (for tensors: uint8) are divided by the largest value of their type.

The number of pixels is limited in files alone. A side may have at most 1.2 million pixels in images of all kinds, as
the memory for resizing a map grows with its sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image

from .pictures import Picture, PictureError, max_side, picture_array, read_picture, shrink, upright
from .pictures.colour import ROUNDING

RESAMPLE_METHODS = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")


@dataclass(frozen=True)
class ProcessedImage:
    """One image as the autoencoder takes it.

    Attributes:
        pixels: 1×3×PH×PW, float32 in [-1, 1], padded at the bottom and on the right by repeating the border.
        padding: Rows and columns of padding.
        original_size: Height and width of the image before resizing.
    """

    pixels: torch.Tensor
    padding: tuple[int, int]
    original_size: tuple[int, int]


def load_image(path: str | Path, max_pixels: int | None = None) -> Image.Image:
    """Reads an image file, upright by its EXIF orientation, in the file's own mode (16 bit stays 16 bit).

    Of an animation, the first frame is read. See `depthfm_diffusers.pictures` for the formats.

    Args:
        path: The file.
        max_pixels: Most pixels that it may have; `None`: 120 million.

    Returns:
        The image, read completely; the file is closed.

    Raises:
        OSError: If the file does not exist or cannot be opened.
        ValueError: If it is not an image, is damaged or truncated, or has more pixels than the limit.
    """
    return load_picture(path, max_pixels).upright()


def load_picture(path: str | Path, max_pixels: int | None = None, processing_resolution: int = 0) -> Picture:
    """Reads an image file for the pipeline, which takes its size and its orientation from what is returned.

    Args:
        path: The file.
        max_pixels: As for `load_image`.
        processing_resolution: The resolution at which the pipeline will process it: a large image is read at a
            lower resolution than its own. 0: at its own.

    Raises:
        OSError: As `load_image`.
        ValueError: As `load_image`.
    """
    try:
        return read_picture(Path(path), max_pixels=max_pixels, longer_side=processing_resolution)
    except PictureError as error:
        raise ValueError(f"{path} {error}.") from error


def load_images(image: Any) -> list[torch.Tensor]:
    """Validates images of any accepted kind (see the module's docstring) and makes them RGB tensors.

    Args:
        image: A PIL image, array or tensor, or a list or tuple of them, of one size or of several.

    Returns:
        One tensor 1×3×H×W per image, float32 in [0, 1], in input order; tensors stay on their device.

    Raises:
        TypeError: If an image is of another type.
        ValueError: If there is no image, or one has a shape, dtype or mode that is not accepted, has no pixels, holds
            NaN, infinite values or values outside [0, 1], is a strip that is too long, or cannot be decoded.
    """
    return [one for tensor, _ in _each_image(image, 0) for one in tensor.split(1)]


def _each_image(image: Any, processing_resolution: int) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Makes each input N×3×H×W, and yields it with the height and width that it has in full."""
    several = isinstance(image, (list, tuple))
    named = [(f"`image[{i}]`", one) for i, one in enumerate(image)] if several else [("`image`", image)]
    is_empty = True
    for name, value in named:
        size, from_file = None, isinstance(value, Picture)
        if isinstance(value, Image.Image):
            value, size = _shrunk(name, value, processing_resolution)
        elif isinstance(value, Picture):
            value, size = value.upright(), value.size[::-1]
        tensor = _to_tensor(name, value)
        is_empty &= len(tensor) == 0
        height, width = size or (tensor.shape[-2], tensor.shape[-1])
        if max(height, width) > max_side() and not from_file:  # of a file, it was checked by the limit of its caller
            raise ValueError(
                f"{name} is a strip of {width} x {height} pixels: a side may have at most {max_side():,}. Cut it into "
                "pieces."
            )
        yield tensor, (height, width)
    if is_empty:
        raise ValueError("`image` is empty: pass at least one image.")


def _shrunk(name: str, image: Image.Image, processing_resolution: int) -> tuple[Image.Image, tuple[int, int]]:
    """Returns a PIL image upright, small enough for its resolution, and its full height and width."""
    try:
        image.load()
        width, height = image.size
        shrunk = shrink(image, processing_resolution)
        turned = upright(shrunk)
    except Exception as error:  # Pillow's decoders raise errors of many types
        raise ValueError(f"{name} (a PIL image of mode {image.mode}) cannot be read: {error}.") from error
    is_on_its_side = turned is not shrunk and turned.size != shrunk.size
    return turned, ((width, height) if is_on_its_side else (height, width))


def _to_tensor(name: str, image: Any) -> torch.Tensor:
    """Makes one input N×3×H×W, float32 in [0, 1]; `name` is what errors call it."""
    if isinstance(image, Image.Image):
        try:
            image = picture_array(image)
        except Exception as error:  # as above
            raise ValueError(f"{name} (a PIL image of mode {image.mode}) cannot be read: {error}.") from error
    if isinstance(image, np.ndarray):
        tensor = _array_to_tensor(name, image)
    elif isinstance(image, torch.Tensor):
        tensor = _scale_tensor(name, image)
    else:
        hint = (
            " Read files with depthfm_diffusers.image_processing.load_image." if isinstance(image, (str, Path)) else ""
        )
        raise TypeError(
            f"{name} must be a PIL image, a NumPy array or a torch tensor, got {type(image).__name__}.{hint}"
        )
    if 0 in tensor.shape[1:]:
        raise ValueError(f"{name} has no pixels: its shape is {tuple(image.shape)}.")
    is_scaled = not torch.is_floating_point(image) if isinstance(image, torch.Tensor) else image.dtype.kind == "u"
    if tensor.numel() > 0 and not is_scaled:
        tensor = _checked_range(name, tensor)
    return tensor.expand(-1, 3, -1, -1)


def _checked_range(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Checks floats; what rounding takes out of [0, 1] is clamped."""
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values: replace them before the call.")
    low, high = tensor.min().item(), tensor.max().item()
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(f"{name} must have values in [0, 1], got values from {low:.6g} to {high:.6g}: rescale it.")
    return tensor if low >= 0 and high <= 1 else tensor.clamp(0, 1)


def _array_to_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """Makes an array N×C×H×W, C of 1 or 3, float32; unsigned integers are scaled to [0, 1]."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} must be H×W, H×W×C or N×H×W×C with 1 or 3 channels last, got an array of shape {array.shape}. "
            "(Alpha is taken from PIL images only; tensors have their channels first.)"
        )
    if array.dtype.kind not in "uf":
        raise ValueError(f"{name} must hold floats in [0, 1] or unsigned integers, got dtype {array.dtype}.")
    images = array if array.ndim == 4 else array[None]
    # Transposed as integers, and scaled in place: a large photo is in memory once as floats, not three times.
    values = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32)
    if array.dtype.kind == "u":
        values /= np.iinfo(array.dtype).max
    return torch.from_numpy(values)


def _scale_tensor(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Makes a tensor N×C×H×W, C of 1 or 3, float32; uint8 is scaled to [0, 1]."""
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim not in (3, 4) or tensor.shape[-3] not in (1, 3):
        raise ValueError(
            f"{name} must be H×W, C×H×W or N×C×H×W with 1 or 3 channels first, got a tensor of shape "
            f"{tuple(tensor.shape)}. (Arrays have their channels last.)"
        )
    if tensor.dtype == torch.uint8:
        tensor = tensor.float() / 255
    elif not tensor.is_floating_point():
        raise ValueError(f"{name} must hold floats in [0, 1] or uint8, got dtype {tensor.dtype}.")
    return (tensor[None] if tensor.ndim == 3 else tensor).detach().float()


def processing_size(height: int, width: int, processing_resolution: int) -> tuple[int, int]:
    """Returns the size at which an image is processed, before padding.

    Args:
        height: Height of the image.
        width: Width of the image.
        processing_resolution: Longer side in pixels; 0 keeps the size.

    Returns:
        Height and width; the shorter side is rounded to the nearest pixel, and at least 1.
    """
    if processing_resolution == 0:
        return height, width
    scale = processing_resolution / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def resize(image: torch.Tensor, size: tuple[int, int], method: str) -> torch.Tensor:
    """Resizes N×C×H×W to `size` (height, width); bilinear and bicubic are antialiased when they shrink."""
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    return MarigoldImageProcessor.resize_antialias(image, size, method, is_aa=True)


def process_images(image: Any, processing_resolution: int, method: str, multiple: int) -> list[ProcessedImage]:
    """Validates, resizes and pads images for the autoencoder.

    Args:
        image: As for `load_images`, or `Picture`s from `load_picture`.
        processing_resolution: Longer side in pixels after resizing; 0 keeps the size.
        method: Resampling, one of `RESAMPLE_METHODS`.
        multiple: Both sides are padded to a multiple of this.

    Returns:
        Each image, in input order.

    Raises:
        TypeError: As `load_images`.
        ValueError: As `load_images`.
    """
    return [
        process_image(one, processing_resolution, method, multiple, size)
        for tensor, size in _each_image(image, processing_resolution)
        for one in tensor.split(1)
    ]


def process_image(
    image: torch.Tensor,
    processing_resolution: int,
    method: str,
    multiple: int,
    original_size: tuple[int, int] | None = None,
) -> ProcessedImage:
    """Resizes and pads one image for the autoencoder.

    Args:
        image: 1×3×H×W, float32 in [0, 1].
        processing_resolution: Longer side in pixels after resizing; 0 keeps the size.
        method: Resampling, one of `RESAMPLE_METHODS`.
        multiple: Both sides are padded to a multiple of this.
        original_size: Height and width of the image in full, if it was shrunk already; `None`: it was not.

    Returns:
        The image in [-1, 1], and what is needed to undo the padding and the resizing.
    """
    size = (image.shape[-2], image.shape[-1]) if original_size is None else original_size
    resized = resize(image, processing_size(*size, processing_resolution), method)
    # Bicubic interpolation overshoots.
    pixels, padding = MarigoldImageProcessor.pad_image(resized.clamp(0, 1) * 2 - 1, multiple)
    return ProcessedImage(pixels, padding, size)


def unpad(maps: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """Crops `padding` rows and columns off the bottom and the right of N×C×H×W."""
    return MarigoldImageProcessor.unpad_image(maps, padding)


def depth_from_log_depth(log_depth: torch.Tensor) -> torch.Tensor:
    """Makes depth of log depth, by exp and then min-max per map: 0 is the nearest point, 1 the farthest.

    Computed as (exp(y - y_max) - exp(y_min - y_max)) / (1 - exp(y_min - y_max)): the same, but it cannot overflow.

    Args:
        log_depth: ...×H×W, any finite values.

    Returns:
        Depth in [0, 1], shape and dtype of `log_depth`; 0 everywhere where a map is constant up to rounding.
    """
    high = log_depth.amax(dim=(-2, -1), keepdim=True)
    low = log_depth.amin(dim=(-2, -1), keepdim=True)
    # Resizing a constant map leaves differences of a few units in the last place, which are not a range.
    rounding = 8 * torch.finfo(log_depth.dtype).eps * torch.maximum(high.abs(), low.abs())
    constant = high - low <= rounding
    nearest = torch.expm1(torch.where(constant, -1.0, low - high))
    depth = (1 - torch.expm1(log_depth - high) / nearest).clamp(0, 1)
    return torch.where(constant, 0.0, depth)
