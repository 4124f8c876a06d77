"""Samples for the flow: frames encoded in each step, or latents encoded once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import torch
from accelerate.logging import get_logger
from depth_transforms import AugmentationConfig, View, augment_view, frame_to_view, normalize_log_depth, resize_view
from frames import SceneFrames, find_shards
from objective import TimeDistribution, latent_weight
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sampling import sample_rng
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from depthfm_diffusers import DepthFMPipeline

logger = get_logger(__name__)


class FlowFrames(Dataset):
    """Augmented frames with everything the objective needs, drawn from (seed, epoch, index) alone.

    Args:
        frames: Where the frames come from.
        indices: Which of them are used.
        augmentation: Random changes to each frame.
        times: Distribution of t.
        resolution: Height and width every frame is resized to; `None` leaves them as they are.
        downsampling: Pixels per latent cell.
        seed: Seed of the run.
    """

    def __init__(
        self,
        frames: SceneFrames,
        indices: list[int],
        augmentation: AugmentationConfig,
        times: TimeDistribution,
        resolution: tuple[int, int] | None,
        downsampling: int,
        seed: int,
    ) -> None:
        self.frames = frames
        self.indices = indices
        self.augmentation = augmentation
        self.times = times
        self.downsampling = downsampling
        self.seed = seed
        self.size = resolution or (frames[indices[0]].depth.shape if indices else (0, 0))
        self.resize = resolution is not None

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns one sample.

        `image` (3×H×W in [-1, 1]), `depth_map` (1×H×W, normalised log depth), `depth` (1×H×W, metres), `valid`
        (1×H×W), `bounds` (2), `intrinsics` (3×3), `has_range` (0 or 1), `time` (scalar) and `noise` (4×h×w).

        Raises:
            ValueError: If the frame has another size than the first and no resolution is set, or a depth that is
                not finite.
        """
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        frame = self.frames[self.indices[index]]
        view = frame_to_view(frame)
        if self.resize:
            view = resize_view(view, *self.size)
        elif frame.depth.shape != self.size:
            raise ValueError(
                f"Frame {frame.key!r} is {frame.depth.shape} (height, width), the first frame {self.size}: "
                "set --resolution HEIGHT WIDTH."
            )
        sample = self._targets(augment_view(view, self.augmentation, rng))
        latent_size = tuple(side // self.downsampling for side in self.size)
        return sample | draw_flow(rng, self.times, latent_size)

    @staticmethod
    def _targets(view: View) -> dict[str, torch.Tensor]:
        normalized = normalize_log_depth(view.depth)
        return {
            "image": view.image * 2 - 1,
            "depth_map": normalized.values,
            "depth": view.depth,
            "valid": normalized.valid,
            "bounds": torch.tensor([normalized.log_near, normalized.log_far]),
            "intrinsics": view.intrinsics,
            "has_range": torch.tensor(float(normalized.has_range)),
        }


def draw_flow(
    rng: np.random.Generator, times: TimeDistribution, latent_size: tuple[int, ...]
) -> dict[str, torch.Tensor]:
    """Draws a sample's flow time and the Gaussian noise of its source (4×h×w)."""
    return {
        "time": torch.tensor(times.sample(rng)),
        "noise": torch.from_numpy(rng.standard_normal((4, *latent_size), dtype=np.float32)),
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
        path: File written by `cache_latents`.
        times: Distribution of t.
        seed: Seed of the run.
    """

    def __init__(self, path: Path, times: TimeDistribution, seed: int) -> None:
        self.tensors = load_file(path)
        self.times = times
        self.seed = seed

    def __len__(self) -> int:
        """Number of frames."""
        return self.tensors["weight"].shape[1]

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns `image_latent`, `depth_latent`, `noise` (4×h×w), `weight` (1×h×w) and `time` (scalar)."""
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        variant = int(rng.integers(self.tensors["weight"].shape[0]))
        sample = {name: tensor[variant, index].float() for name, tensor in self.tensors.items()}
        return sample | draw_flow(rng, self.times, sample["weight"].shape[-2:])


def cache_latents(
    folder: Path,
    pipe: DepthFMPipeline,
    dataset: FlowFrames,
    train_data: list[str],
    variants: int,
    batch_size: int,
    device: torch.device,
    autocast_dtype: torch.dtype | None,
) -> Path:
    """Encodes `variants` augmentations of each frame, unless that was done before, and returns the file.

    The file is named after a hash of the shards' bytes, the autoencoder's weights, the frames chosen, the augmentation
    and the seed; its tensors are `image_latent`, `depth_latent` (variants×frames×4×h×w) and `weight`, in float16.
    """
    digest = hashlib.sha256()
    for shard in find_shards(train_data):
        with shard.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    for name, tensor in sorted(pipe.vae.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    settings = [
        dataset.indices,
        vars(dataset.augmentation),
        dataset.size,
        variants,
        dataset.seed,
        pipe.vae.config.scaling_factor,
        str(autocast_dtype),
    ]
    digest.update(json.dumps(settings).encode())
    path = folder / f"latents-{digest.hexdigest()[:16]}.safetensors"
    if path.is_file():
        with safe_open(path, "pt") as file:
            logger.info(f"Using the cached latents {path} ({file.metadata()}).")
        return path

    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, list[torch.Tensor]] = {"image_latent": [], "depth_latent": [], "weight": []}
    without_range = 0
    items = [(variant, index) for variant in range(variants) for index in range(len(dataset))]
    batches = DataLoader(dataset, batch_size=batch_size, sampler=items)
    for batch in tqdm(batches, desc="Encoding latents"):
        without_range += int((batch["has_range"] == 0).sum())
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        with torch.autocast(device.type, dtype=autocast_dtype, enabled=autocast_dtype is not None):
            encoded = encode_batch(pipe, batch)
        for name, parts in tensors.items():
            parts.append(encoded[name].half().cpu())
    stacked = {name: torch.cat(parts).unflatten(0, (variants, -1)).contiguous() for name, parts in tensors.items()}
    for name, tensor in stacked.items():
        if not torch.isfinite(tensor).all():
            raise FloatingPointError(f"The autoencoder gave non-finite values for {name}: check --vae.")
    metadata = {
        "frames": str(len(dataset)),
        "variants": str(variants),
        "views_without_depth_range": str(without_range),
    }
    partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
    save_file(stacked, partial, metadata=metadata)
    partial.replace(path)
    logger.info(f"Wrote {path} ({metadata}).")
    return path
