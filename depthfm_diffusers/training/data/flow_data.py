"""Samples for the flow: frames encoded in each step, or latents encoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.utils.data import Dataset

from ... import DepthFMPipeline
from ...depth_normalization import (
    DepthNormalization,
    NormalizedDepth,
    normalize_log_depth,
)
from ...frames import FrameError
from ..objectives.flow_objective import (
    TimeDistribution,
    latent_weight,
)
from .depth_transforms import (
    AugmentationConfig,
    View,
    augment_view,
    frame_to_view,
    resize_view,
)
from .latent_cache import (
    CacheFiles,
    Item,
    cache_key,
    encode_batches,
    fill_cache,
    is_complete,
)
from .sampling import sample_rng
from .sources import MixedFrames

logger = get_logger(__name__)

LATENT_CHANNELS = 4
GEOMETRY = ["depth", "sky", "intrinsics"]  # kept as they are: halved depth has no surface normals left


@dataclass(frozen=True)
class FlowDraws:
    """What is drawn for each sample: the flow time and Gaussian noise.

    Attributes:
        times: Distribution of t.
        path_noise: Whether noise for the smoothing of the path (sigma_min > 0) is drawn too.
    """

    times: TimeDistribution
    path_noise: bool = False

    def draw(self, rng: np.random.Generator, latent_size: Sequence[int]) -> dict[str, torch.Tensor]:
        """Returns `time` (scalar), `noise` and, if asked for, `path_noise` (4×h×w each)."""
        names = ("noise", "path_noise") if self.path_noise else ("noise",)
        drawn = {"time": torch.tensor(self.times.sample(rng))}
        for name in names:
            noise = rng.standard_normal((LATENT_CHANNELS, *latent_size), dtype=np.float32)
            drawn[name] = torch.from_numpy(noise)
        return drawn


class FlowFrames(Dataset):
    """Augmented frames with everything the objective needs, drawn from (seed, epoch, index) alone.

    Args:
        frames: Where the frames come from.
        indices: Which of them are used.
        augmentation: Random changes to each frame.
        normalization: How depth becomes the depth map.
        draws: What is drawn besides.
        resolution: Height and width every frame is resized to; `None` leaves them as they are.
        downsampling: Pixels per latent cell.
        seed: Seed of the run.
        skip_bad_frames: A frame that cannot be used becomes a sample without valid depth, which changes nothing in
            the loss and is counted, instead of an error.

    Raises:
        ValueError: If the size is no multiple of `downsampling`, or no frame can be read.
    """

    def __init__(
        self,
        frames: MixedFrames,
        indices: Sequence[int],
        augmentation: AugmentationConfig,
        normalization: DepthNormalization,
        draws: FlowDraws,
        resolution: tuple[int, int] | None,
        downsampling: int,
        seed: int,
        skip_bad_frames: bool = False,
    ) -> None:
        self.frames = frames
        self.indices = [int(i) for i in indices]
        self.augmentation = augmentation
        self.normalization = normalization
        self.draws = draws
        self.downsampling = downsampling
        self.seed = seed
        self.resize = resolution is not None
        self.skip_bad_frames = skip_bad_frames
        self.size = tuple(resolution) if resolution else self._first_size()
        if any(side % downsampling for side in self.size):
            raise ValueError(
                f"{'--resolution' if resolution else 'The frames'}: height and width {self.size} must be multiples of "
                f"{downsampling}, the autoencoder's factor; set --resolution HEIGHT WIDTH."
            )

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns one sample.

        `image` (3×H×W in [-1, 1]), `depth_map` (1×H×W, normalised log depth), `valid` (1×H×W, where it counts),
        `depth` (1×H×W, metres), `known` (1×H×W, where there is a depth), `sky` (1×H×W), `bounds` (2, log metres),
        `intrinsics` (3×3, NaN if not known), `without_depth`, `skipped` (0 or 1), and what `FlowDraws.draw` returns.

        Raises:
            ValueError: If the frame has another size than the first and no resolution is set.
            FrameError: If the frame cannot be used and is not to be skipped.
        """
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        try:
            view, skipped = self._view(self.indices[index]), 0.0
        except FrameError as error:
            if not self.skip_bad_frames:
                raise
            logger.warning(f"Skipped: {error}", main_process_only=False)
            view, skipped = self._nothing(), 1.0
        sample = self._targets(augment_view(view, self.augmentation, rng))
        latent_size = tuple(side // self.downsampling for side in self.size)
        return sample | {"skipped": torch.tensor(skipped)} | self.draws.draw(rng, latent_size)

    def _first_size(self) -> tuple[int, ...]:
        for index in self.indices:
            try:
                return self.frames[index].depth.shape
            except FrameError:
                if not self.skip_bad_frames:
                    raise
        raise ValueError("--train_data: no frame is left to train on.")

    def _view(self, index: int) -> View:
        frame = self.frames[index]
        if self.resize:
            return resize_view(frame_to_view(frame), *self.size)
        if frame.depth.shape != self.size:
            raise ValueError(
                f"Frame {frame.key!r} is {frame.depth.shape} (height, width), the first frame {self.size}: "
                "set --resolution HEIGHT WIDTH."
            )
        return frame_to_view(frame)

    def _nothing(self) -> View:
        height, width = self.size
        sky = torch.zeros(1, height, width, dtype=torch.bool)
        return View(torch.zeros(3, height, width), torch.zeros(1, height, width), torch.full((3, 3), torch.nan), sky)

    def _targets(self, view: View) -> dict[str, torch.Tensor]:
        normalized = normalize_log_depth(view.depth, self.normalization, view.sky)
        return {
            "image": view.image * 2 - 1,
            **depth_targets(normalized),
            "depth": view.depth,
            "sky": view.sky,
            "intrinsics": view.intrinsics,
            "without_depth": torch.tensor(float(not normalized.has_range)),
        }


def depth_targets(normalized: NormalizedDepth) -> dict[str, torch.Tensor]:
    """What the losses on the decoded estimate compare with: `depth_map`, `valid`, `known` (1×H×W each), `bounds`."""
    return {
        "depth_map": normalized.values,
        "valid": normalized.valid,
        "known": normalized.known,
        "bounds": torch.tensor([normalized.log_near, normalized.log_far]),
    }


@torch.no_grad()
def encode_batch(pipe: DepthFMPipeline, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds `image_latent`, `depth_latent` (B×4×h×w) and `weight` (B×1×h×w) to a batch of `FlowFrames`."""
    image_latent = pipe.encode_image(batch["image"])
    depth_latent = pipe.encode_image(batch["depth_map"].expand(-1, 3, -1, -1))
    weight = latent_weight(batch["valid"], image_latent.shape[-2:])
    return batch | {"image_latent": image_latent, "depth_latent": depth_latent, "weight": weight}


class CachedLatents(Dataset):
    """Latents of several augmented variants per frame; an epoch takes one variant of each, drawn anew.

    Args:
        folder: Written by `cache_latents`; all of it.
        frames: Number of frames in each variant.
        variants: Number of variants.
        normalization: Of the depth, where the cache has it.
        draws: What is drawn besides.
        seed: Seed of the run.
    """

    def __init__(
        self,
        folder: Path,
        frames: int,
        variants: int,
        normalization: DepthNormalization,
        draws: FlowDraws,
        seed: int,
    ) -> None:
        self.files = CacheFiles(folder)
        self.frames = frames
        self.variants = variants
        self.normalization = normalization
        self.draws = draws
        self.seed = seed

    def __len__(self) -> int:
        """Number of frames."""
        return self.frames

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns the encoded sample: as `FlowFrames` after `encode_batch`, without its `image`.

        `depth`, `sky`, `intrinsics` and what `depth_targets` returns are there if the cache was written with depth.
        """
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        sample = self.files.read(int(rng.integers(self.variants)), index)
        for name in ("image_latent", "depth_latent", "weight"):
            sample[name] = sample[name].float()
        if "depth" in sample:
            sample |= depth_targets(normalize_log_depth(sample["depth"], self.normalization, sample["sky"]))
        return sample | self.draws.draw(rng, sample["weight"].shape[-2:])


def cache_latents(
    parent: Path,
    pipe: DepthFMPipeline,
    dataset: FlowFrames,
    variants: int,
    batch_size: int,
    with_depth: bool,
    accelerator: Accelerator,
) -> Path:
    """Encodes `variants` augmentations of each frame, unless that was done before, and returns their folder.

    Call on every process: they share the work. The folder is named after a hash of the data's content, the
    autoencoder's weights, the frames chosen, the augmentation and the seed, so another choice never meets old
    latents; its files are complete or not there, and encoding that was killed goes on with the missing ones. Latents
    and `weight` are float16; `with_depth` adds `GEOMETRY`. Without it, a finished cache with depth serves too.

    Raises:
        FloatingPointError: If the autoencoder gives values that are not finite.
    """
    settings = [
        dataset.indices,
        asdict(dataset.augmentation),
        asdict(dataset.normalization),
        dataset.size,
        variants,
        dataset.seed,
        pipe.vae.config.scaling_factor,
        accelerator.mixed_precision,
    ]
    if shift := pipe.vae.config.get("shift_factor"):  # a cache of an autoencoder without shift keeps its name
        settings.append(shift)
    key = cache_key(dataset.frames.fingerprint(), [pipe.vae], settings)
    folder, plain = parent / f"latents-{key}-depth", parent / f"latents-{key}"
    if not with_depth and not is_complete(folder, len(dataset), variants):
        folder = plain
    names = ["image_latent", "depth_latent", "weight", "without_depth", "skipped"]
    names += GEOMETRY if with_depth else []

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoded = encode_batch(pipe, batch)
        return {name: encoded[name] if name in GEOMETRY else encoded[name].half() for name in names}

    def encode_items(items: Sequence[Item]) -> dict[str, torch.Tensor]:
        tensors = encode_batches(dataset, items, batch_size, encode, accelerator)
        for name in ("image_latent", "depth_latent"):
            if not torch.isfinite(tensors[name]).all():
                raise FloatingPointError(f"The autoencoder gave non-finite values for {name}: check --vae.")
        return tensors

    fill_cache(folder, len(dataset), variants, encode_items, accelerator)
    return folder
