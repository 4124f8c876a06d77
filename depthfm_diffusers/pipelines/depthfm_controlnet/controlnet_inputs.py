"""Reads and checks the inputs of the ControlNet pipelines: depth maps, initial images and masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from ...image_processing import load_images
from ...pictures import picture_grey, upright
from ...pictures.colour import ROUNDING, unit_values

logger = logging.getLogger(__name__)

# From which value on diffusers repaints a pixel.
MASK_THRESHOLD = 0.5

Size: TypeAlias = tuple[int, int]
Pictures: TypeAlias = list[Image.Image] | np.ndarray | torch.Tensor


def load_log_depths(depth: Any, log_depth: Any) -> list[torch.Tensor] | None:
    """Reads depth maps that are given instead of predicted.

    Arrays are H×W, H×W×1 or N×H×W×1; tensors are H×W, 1×H×W or N×1×H×W. So the maps of a `DepthFMOutput` are taken as
    they are, and those of `depthfm predict`.

    Args:
        depth: Depth in metres or any other unit, positive: an array, a tensor, a PIL image of 16 or 32 bit
            (millimetres in a PNG file), or a list of these, of one size or of several. `None`: not given.
        log_depth: Logarithm of a depth, up to a constant: an array, a tensor, or a list of these. `None`: not given.

    Returns:
        The log depth of each map, 1×1×H×W, float32; `None` if neither is given.

    Raises:
        TypeError: If a map is of another type.
        ValueError: If both are given, if there is no map, or if one has another shape, no pixels, values that are not
            finite, or (for `depth`) values that are not positive.
    """
    if depth is not None and log_depth is not None:
        raise ValueError("Pass `depth` or `log_depth`, not both.")
    if depth is None and log_depth is None:
        return None
    name, maps = ("`depth`", depth) if log_depth is None else ("`log_depth`", log_depth)
    several = isinstance(maps, (list, tuple))
    named = [(f"{name[:-1]}[{i}]`", one) for i, one in enumerate(maps)] if several else [(name, maps)]
    loaded = [one[None] for label, value in named for one in _to_maps(label, value, pictures=log_depth is None)]
    if not loaded:
        raise ValueError(f"{name} is empty: pass at least one map.")
    return loaded if depth is None else [one.log() for one in loaded]


@dataclass(frozen=True)
class InitialImages:
    """Images that generation starts from.

    Attributes:
        pictures: What diffusers gets: upright 8-bit RGB pictures if all inputs were PIL images (it resizes those with
            a better filter), an array N×H×W×3 if all were arrays (its convolutions round otherwise where channels are
            last), else one tensor N×3×H×W, both float32 in [0, 1]; or latents N×C×h×w.
        loaded: 1×3×H×W each, float32 in [0, 1], for the depth estimator; `None` for latents.
        sizes: Height and width of each in pixels; those of latents are multiples of the autoencoder's factor.
        masks: For inpainting, one mask or one per image; see `load_masks`.
    """

    pictures: Pictures
    loaded: list[torch.Tensor] | None
    sizes: list[Size]
    masks: Pictures | None = None

    def check_depth_sizes(self, log_depths: Sequence[torch.Tensor] | None, multiple: int) -> None:
        """Checks that depth maps, if given, are those of the images.

        Args:
            log_depths: One map 1×1×H×W per image, or `None`.
            multiple: Pixels per latent pixel: the size of latents is known to a multiple of this.

        Raises:
            ValueError: If their number or a size differs.
        """
        if log_depths is None:
            return
        sizes = [_size(one) for one in log_depths]
        if self.loaded is None:
            sizes = [(height - height % multiple, width - width % multiple) for height, width in sizes]
        if sizes != self.sizes:
            raise ValueError(
                "The depth must be of the size of `image`, one map per image: images of (height, width) "
                f"{self.sizes}, depth maps of {sizes}. Resize the depth before the call."
            )

    def check_output_size(self, height: int, width: int) -> None:
        """Checks that latents, which cannot be resized, are of the size of the generated images.

        Args:
            height: Height of the generated images in pixels.
            width: Width of the generated images.

        Raises:
            ValueError: If they are latents of another size.
        """
        if self.loaded is None and (height, width) != self.sizes[0]:
            raise ValueError(
                f"`image` holds latents of {self.sizes[0][0]}×{self.sizes[0][1]} pixels (height × width), which are "
                f"not resized, but `height` and `width` ask for {height}×{width}."
            )

    def for_diffusers(self, num_images_per_prompt: int) -> dict[str, Any]:
        """Returns images and masks as diffusers takes them: one, or a batch in the order of the generated images.

        Args:
            num_images_per_prompt: How often each image is needed.

        Returns:
            The arguments `image` and, with masks, `mask_image` of diffusers' `__call__`.
        """
        masks = {} if self.masks is None else {"mask_image": _batch(self.masks, num_images_per_prompt)}
        return {"image": _batch(self.pictures, num_images_per_prompt), **masks}


def load_initial_images(image: Any, latent_channels: int | None, vae_scale_factor: int) -> InitialImages:
    """Reads the images that generation starts from; see `depthfm_diffusers.image_processing` for what is accepted.

    Args:
        image: Images, or their latents: a tensor N×C×h×w with the channels of the autoencoder's latents.
        latent_channels: Number of those channels; `None` if latents are not accepted.
        vae_scale_factor: Pixels per latent pixel.

    Raises:
        TypeError: If there is no image, or one is of another type.
        ValueError: If an image is not acceptable, or arrays or tensors are not of one size.
    """
    if image is None:
        raise TypeError("`image` is missing: pass the image to start from.")
    if isinstance(image, torch.Tensor) and image.ndim == 4 and image.shape[1] == (latent_channels or 0):
        height, width = image.shape[-2:]
        return InitialImages(image, None, [(height * vae_scale_factor, width * vae_scale_factor)] * len(image))
    loaded = load_images(image)
    sizes = [_size(one) for one in loaded]
    inputs = image if isinstance(image, (list, tuple)) else [image]
    if all(isinstance(one, Image.Image) for one in inputs):
        return InitialImages([to_pil(one) for one in loaded], loaded, sizes)
    if len(set(sizes)) > 1:
        raise ValueError(
            "`image` has images of several sizes: pass PIL images, with `height` and `width`. The sizes (height, "
            f"width) are {sizes}."
        )
    pictures = torch.cat(loaded)
    if all(isinstance(one, np.ndarray) for one in inputs):
        return InitialImages(pictures.movedim(1, -1).contiguous().numpy(), loaded, sizes)
    return InitialImages(pictures, loaded, sizes)


def load_masks(mask_image: Any, image_sizes: Sequence[Size]) -> Pictures:
    """Reads inpainting masks: white (or 1) is repainted.

    Args:
        mask_image: One mask, or one per image: PIL images, arrays (H×W, H×W×1 or N×H×W×1) or tensors (H×W, 1×H×W or
            N×1×H×W), or a list of these. Values are as those of images: floats in [0, 1], unsigned integers and
            pictures of 8 and 16 bits up to the largest value of their type; transparent pixels are white. A mask
            that repaints nothing or everything is said in the log.
        image_sizes: Height and width of the images that they belong to.

    Returns:
        PIL images, or a tensor N×1×H×W.

    Raises:
        TypeError: If there is no mask, or one is of another type.
        ValueError: If a mask has another shape or size than its image, values outside [0, 1], or if there are more or
            fewer masks than images, and more than one.
    """
    if mask_image is None:
        raise TypeError("`mask_image` is missing: pass the mask of what is to be repainted (white).")
    inputs = list(mask_image) if isinstance(mask_image, (list, tuple)) else [mask_image]
    masks: list[Image.Image] | torch.Tensor
    if inputs and all(isinstance(one, Image.Image) for one in inputs):
        masks = [_to_mask(one) for one in inputs]
        sizes = [(one.height, one.width) for one in masks]
        shares = [float((np.asarray(one) >= MASK_THRESHOLD * 255).mean()) for one in masks]
    else:
        values = (_scaled(value) for value in inputs)
        loaded = [one[None] for value in values for one in _to_maps("`mask_image`", value, pictures=False)]
        shares = [(one >= MASK_THRESHOLD).float().mean().item() for one in loaded]
        sizes = [_size(one) for one in loaded]
        if any(one.min() < -ROUNDING or one.max() > 1 + ROUNDING for one in loaded):
            raise ValueError("`mask_image` must have values in [0, 1]: 1 where the image is repainted.")
        # What is not of the images' size is refused below, so these can be one tensor.
        masks = torch.cat(loaded).clamp(0, 1) if loaded and len(set(sizes)) == 1 else []
    if sizes != list(image_sizes) and not (len(sizes) == 1 and set(sizes) == set(image_sizes)):
        raise ValueError(
            "`mask_image` must be one mask of the images' size, or one mask per image of that image's size: images of "
            f"(height, width) {list(image_sizes)}, masks of {sizes}."
        )
    for share in shares:
        if share in (0, 1):
            logger.warning(
                f"`mask_image` is {'white' if share else 'black'} everywhere: {'all' if share else 'nothing'} of the "
                f"image is repainted. Pixels of {MASK_THRESHOLD} and more, where white is 1, are repainted."
            )
    return masks


def _to_mask(mask: Image.Image) -> Image.Image:
    """Makes an upright 8-bit picture of a mask in any mode."""
    try:
        values = picture_grey(upright(mask))
    except ValueError as error:
        raise ValueError(f"`mask_image` (a PIL image of mode {mask.mode}) cannot be read: {error}.") from error
    return Image.fromarray((values * 255).round().astype(np.uint8))


def _scaled(mask: Any) -> Any:
    """Scales arrays of unsigned integers, and tensors of uint8, to [0, 1]."""
    if isinstance(mask, np.ndarray) and mask.dtype.kind == "u":
        return unit_values(mask)
    return mask.float() / 255 if isinstance(mask, torch.Tensor) and mask.dtype == torch.uint8 else mask


def to_pil(image: torch.Tensor) -> Image.Image:
    """Makes an 8-bit RGB picture of 1×3×H×W in [0, 1]."""
    return Image.fromarray((image[0] * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy())


def _batch(pictures: Pictures, num_images_per_prompt: int) -> Any:
    """Returns one picture as it is; of several, repeats each, because diffusers would repeat the whole batch.

    diffusers repeats prompts and control images one by one (a, a, b, b), but initial images and masks as a whole (a,
    b, a, b), so that with several of both they would not belong together.
    """
    if len(pictures) == 1:
        return pictures[0] if isinstance(pictures, list) else pictures
    if isinstance(pictures, torch.Tensor):
        return pictures.repeat_interleave(num_images_per_prompt, dim=0)
    if isinstance(pictures, np.ndarray):
        return pictures.repeat(num_images_per_prompt, axis=0)
    return [picture for picture in pictures for _ in range(num_images_per_prompt)]


def _to_maps(name: str, value: Any, pictures: bool) -> torch.Tensor:
    """Makes one input N×1×H×W, float32 and finite; with `pictures`, PIL images are taken, and all must be positive."""
    if pictures and isinstance(value, Image.Image):
        value = upright(value)
        if not (value.mode in ("I", "F") or value.mode.startswith("I;16")):
            raise ValueError(
                f"{name} must be a PIL image of 16 or 32 bit (mode I;16, I or F), got mode {value.mode}: 8 bit are "
                "too few for a depth."
            )
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        maps, channel = torch.from_numpy(np.array(value, dtype=np.float32)), -1
        shapes = "an array H×W, H×W×1 or N×H×W×1"
    elif isinstance(value, torch.Tensor):
        maps, channel = value.float(), -3
        shapes = "a tensor H×W, 1×H×W or N×1×H×W"
    else:
        kinds = "a NumPy array, a torch tensor or a PIL image" if pictures else "a NumPy array or a torch tensor"
        raise TypeError(f"{name} must be {kinds}, got {type(value).__name__}.")
    if maps.numel() == 0 or not (maps.ndim == 2 or (maps.ndim in (3, 4) and maps.shape[channel] == 1)):
        raise ValueError(f"{name} must be {shapes} with at least one pixel, got the shape {tuple(maps.shape)}.")
    maps = maps[None, None] if maps.ndim == 2 else maps.movedim(channel, -3)
    maps = maps if maps.ndim == 4 else maps[None]
    if not torch.isfinite(maps).all():
        raise ValueError(f"{name} holds NaN or infinite values: fill them before the call.")
    if pictures and not (maps > 0).all():
        raise ValueError(
            f"{name} must be positive everywhere, and {int((maps <= 0).sum())} of its values are not. Fill holes; of "
            "DepthFM's output, in whose `prediction` 0 is the nearest point, pass `log_depth` instead."
        )
    return maps


def _size(image: torch.Tensor) -> Size:
    """Returns the height and width of ...×H×W."""
    return int(image.shape[-2]), int(image.shape[-1])
