"""From images of any accepted kind to padded tensors for the autoencoder, and from log depth to depth.

How each kind of image is read:

- PIL images are turned upright by their EXIF orientation first. Greyscale, bilevel, CMYK, YCbCr, HSV and palette
  images become RGB; transparency (RGBA, LA, palettes) is composited over white. 16-bit greyscale (`I;16`, and `I`,
  which older readers use for it) is divided by 65535; `F` must hold values in [0, 1]. Of an animation, the current
  frame is used (the first, if the file was just opened).
- Arrays are channels-last: H×W, H×W×1, H×W×3, or N×H×W×C. Tensors are channels-first: H×W, C×H×W or N×C×H×W, with
  C of 1 or 3. Floats must be in [0, 1]; unsigned integers (for tensors: uint8) are divided by the largest value of
  their type.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.marigold.marigold_image_processing import MarigoldImageProcessor
from PIL import Image, ImageOps

RESAMPLE_METHODS = ("nearest", "nearest-exact", "bilinear", "bicubic", "area")

# What Pillow's decoders raise on damaged files.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, struct.error, zlib.error)


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


def load_image(path: str | Path) -> Image.Image:
    """Reads an image file, upright by its EXIF orientation, in the file's own mode (16 bit stays 16 bit).

    Of an animation, the first frame is read. Pillow's limit on the number of pixels applies.

    Args:
        path: The file.

    Returns:
        The image, read completely; the file is closed.

    Raises:
        OSError: If the file does not exist or cannot be opened.
        ValueError: If it is not an image, is damaged or truncated, or has more pixels than Pillow's limit.
    """
    try:
        with Path(path).open("rb") as file, Image.open(file) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except Image.UnidentifiedImageError as error:
        raise ValueError(f"{path} is not an image, or not in a format that Pillow can read.") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{path} is too large: {error} Resize it, or raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except _DECODING_ERRORS as error:
        # What the operating system says of a path has an error number, and names the file already.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged or incomplete: {error}") from error


def load_images(image: Any) -> list[torch.Tensor]:
    """Validates images of any accepted kind (see the module's docstring) and makes them RGB tensors.

    Args:
        image: A PIL image, array or tensor, or a list or tuple of them, of one size or of several.

    Returns:
        One tensor 1×3×H×W per image, float32 in [0, 1], in input order; tensors stay on their device.

    Raises:
        TypeError: If an image is of another type.
        ValueError: If there is no image, or one has a shape, dtype or mode that is not accepted, has no pixels, holds
            NaN, infinite values or values outside [0, 1], or cannot be decoded.
    """
    several = isinstance(image, (list, tuple))
    named = [(f"`image[{i}]`", one) for i, one in enumerate(image)] if several else [("`image`", image)]
    tensors = [one[None] for name, value in named for one in _to_tensor(name, value)]
    if not tensors:
        raise ValueError("`image` is empty: pass at least one image.")
    return tensors


def _to_tensor(name: str, image: Any) -> torch.Tensor:
    """Makes one input N×3×H×W, float32 in [0, 1]; `name` is what errors call it."""
    if isinstance(image, Image.Image):
        image = _pil_to_array(name, image)
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
    if tensor.numel() == 0:
        return tensor
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{name} holds NaN or infinite values: replace them before the call.")
    low, high = tensor.min().item(), tensor.max().item()
    if low < 0 or high > 1:
        raise ValueError(f"{name} must have values in [0, 1], got values from {low:.6g} to {high:.6g}: rescale it.")
    return tensor.expand(-1, 3, -1, -1)


def _array_to_tensor(name: str, array: np.ndarray) -> torch.Tensor:
    """Makes an array N×C×H×W, C of 1 or 3, float32; unsigned integers are scaled to [0, 1]."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim not in (3, 4) or array.shape[-1] not in (1, 3):
        raise ValueError(
            f"{name} must be H×W, H×W×C or N×H×W×C with 1 or 3 channels last, got an array of shape {array.shape}. "
            "(Alpha is taken from PIL images only; tensors have their channels first.)"
        )
    if array.dtype.kind == "u":
        values = array.astype(np.float32) / np.iinfo(array.dtype).max
    elif array.dtype.kind == "f":
        values = array.astype(np.float32)
    else:
        raise ValueError(f"{name} must hold floats in [0, 1] or unsigned integers, got dtype {array.dtype}.")
    values = values if array.ndim == 4 else values[None]
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


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


def _pil_to_array(name: str, image: Image.Image) -> np.ndarray:
    """Makes an upright array of a PIL image: H×W×3 uint8, or H×W uint16 or float32 for modes of more than 8 bit."""
    try:
        image = ImageOps.exif_transpose(image)
        if image.mode == "F" or image.mode.startswith("I;16"):
            return np.asarray(image)
        if image.mode == "I":
            array = np.asarray(image)
            if array.size and not (array.min() >= 0 and array.max() <= 65535):
                raise ValueError(f"mode I must hold 16-bit values, got values from {array.min()} to {array.max()}")
            return array.astype(np.uint16)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.asarray(image.convert("RGB"))
    except _DECODING_ERRORS as error:
        raise ValueError(f"{name} (a PIL image of mode {image.mode}) cannot be read: {error}.") from error


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


def process_image(image: torch.Tensor, processing_resolution: int, method: str, multiple: int) -> ProcessedImage:
    """Resizes and pads one image for the autoencoder.

    Args:
        image: 1×3×H×W, float32 in [0, 1].
        processing_resolution: Longer side in pixels after resizing; 0 keeps the size.
        method: Resampling, one of `RESAMPLE_METHODS`.
        multiple: Both sides are padded to a multiple of this.

    Returns:
        The image in [-1, 1], and what is needed to undo the padding and the resizing.
    """
    height, width = image.shape[-2:]
    resized = resize(image, processing_size(height, width, processing_resolution), method)
    # Bicubic interpolation overshoots.
    pixels, padding = MarigoldImageProcessor.pad_image(resized.clamp(0, 1) * 2 - 1, multiple)
    return ProcessedImage(pixels, padding, (height, width))


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
    depth = 1 - torch.expm1(log_depth - high) / nearest
    return torch.where(constant, 0.0, depth.clamp(0, 1))
