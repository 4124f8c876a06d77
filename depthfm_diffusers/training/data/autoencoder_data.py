"""Data of the small autoencoder that has one latent space for images and depth maps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import Dataset

from ...depth_normalization import normalize_log_depth
from ...frames import Frame
from .depth_transforms import augment_view, frame_to_view
from .draws import gaussian
from .samples import SampleSettings
from .sampling import sample_rng
from .sources import MixedFrames


class AutoencoderViews(Dataset):
    """Augmented square crops, each as the image and as the depth map, both in [-1, 1].

    Args:
        frames: All frames.
        indices: Which of them are used.
        settings: Augmentation and seed; resolution and bad frames are not looked at.
        crop_size: Side of the square crop, pixels.
        latent_channels: Channels of the noise.
        downsampling: Pixels per latent cell.

    Raises:
        ValueError: If the crop size is no multiple of `downsampling`.
    """

    def __init__(
        self,
        frames: MixedFrames,
        indices: Sequence[int],
        settings: SampleSettings,
        crop_size: int,
        latent_channels: int,
        downsampling: int,
    ) -> None:
        if crop_size % downsampling:
            raise ValueError(
                f"--crop_size must be a multiple of {downsampling}, the autoencoder's factor, got {crop_size}."
            )
        self.frames = frames
        self.indices = indices
        self.settings = settings
        self.crop_size = crop_size
        self.latent_shape = (latent_channels, crop_size // downsampling, crop_size // downsampling)

    def __len__(self) -> int:
        """Returns the number of frames."""
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns `pixels`, 2×3×S×S (the image, then the depth map as three equal channels), and `noise`, 2×C×s×s.

        Raises:
            ValueError: If the crop does not fit into the frame.
        """
        epoch, index = item
        rng = sample_rng(self.settings.seed, epoch, index)
        view = augment_view(frame_to_view(self.frames[self.indices[index]]), self.settings.augmentation, rng)
        # Normalised before the crop, because in inference the quantiles are those of the whole map.
        depth = normalize_log_depth(view.depth).values
        height, width = depth.shape[-2:]
        size = self.crop_size
        if size > min(height, width):
            raise ValueError(f"--crop_size {size} is larger than a frame of {width}x{height} pixels.")
        top, left = int(rng.integers(0, height - size + 1)), int(rng.integers(0, width - size + 1))
        pixels = torch.stack([view.image * 2 - 1, depth.expand(3, -1, -1)])[..., top : top + size, left : left + size]
        return {"pixels": pixels.contiguous(), "noise": gaussian(rng, (2, *self.latent_shape))}


def image_and_depth(frame: Frame, downsampling: int) -> torch.Tensor:
    """Returns a frame's image and depth map, 2×3×H×W in [-1, 1], cropped to multiples of the autoencoder's factor."""
    view = frame_to_view(frame)
    depth = normalize_log_depth(view.depth).values.expand(3, -1, -1)
    height, width = (side - side % downsampling for side in depth.shape[-2:])
    return torch.stack([view.image * 2 - 1, depth])[..., :height, :width]
