"""Samples for the flow: frames encoded in each step, or latents encoded once and kept on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny

from ...depth_normalization import DepthNormalization, NormalizedDepth, normalize_log_depth
from ...frames import Frame
from ...pipelines.depthfm.further_channels import encode_partial_depth
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from .depth_transforms import View, frame_to_view, resize_view
from .draws import FlowDraws
from .latent_cache import (
    READER_VERSION,
    CachedSamples,
    CacheSettings,
    cache_key,
    choose_cache,
    fill_cache,
    size_content,
)
from .samples import SampleSettings, TrainingSamples
from .sources import MixedFrames

GEOMETRY = ["depth", "sky", "intrinsics"]  # kept in full precision: rounded depth has no surface normals
FEATURES = ["features_8", "features_16", "features_32"]  # of the image encoder's trunk, at these strides


class FlowFrames(TrainingSamples):
    """Augmented frames with everything the flow's objective needs, see `TrainingSamples`.

    A sample has `image` (3×H×W in [-1, 1]), `depth_map` (1×H×W, normalised log depth), `valid` (1×H×W, where it
    counts), `depth` (1×H×W, metres), `known` (1×H×W, where the depth is known), `sky` (1×H×W), `bounds` (2, log
    metres), `intrinsics` (3×3, NaN if not known), `without_depth` and `skipped` (0 or 1), and what `FlowDraws.draw`
    returns. A skipped frame has no valid depth, so that it does not count in the loss.

    Args:
        frames: All frames.
        indices: Which of them are used.
        settings: How a frame becomes a sample.
        normalization: How depth becomes the depth map.
        draws: What is drawn besides.
        downsampling: Pixels per latent cell.
    """

    def __init__(
        self,
        frames: MixedFrames,
        indices: Sequence[int],
        settings: SampleSettings,
        normalization: DepthNormalization,
        draws: FlowDraws,
        downsampling: int,
    ) -> None:
        super().__init__(frames, indices, settings, draws, downsampling)
        self.normalization = normalization

    def view(self, frame: Frame, index: int, rng: np.random.Generator) -> View:
        """Returns a frame at the size of its samples: resized, if a resolution is set."""
        if self.is_resized(index):
            return resize_view(frame_to_view(frame), *self.size_of(index))
        self.check_size(frame, index)
        return frame_to_view(frame)

    def tensors(self, frame: Frame | None, view: View) -> dict[str, torch.Tensor]:
        """Returns the tensors of a sample, see the class."""
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
    """Returns the truth for decoded losses: `depth_map`, `valid`, `known` (1×H×W each) and `bounds` (2)."""
    return {
        "depth_map": normalized.values,
        "valid": normalized.valid,
        "known": normalized.known,
        "bounds": torch.tensor([normalized.log_near, normalized.log_far]),
    }


@torch.no_grad()
def encode_batch(pipe: DepthFMPipeline, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Adds what a batch of `FlowFrames` lacks of `image_latent`, `depth_latent` (B×C×h×w) and `weight` (B×1×h×w).

    If the pipeline has an image encoder with a frozen trunk, its features are added, under the names `FEATURES`. Of
    `CompletionSamples`, `completion_channels` (B×(C + 2)×h×w) are added, see `encode_partial_depth`.
    """
    encoded = dict(batch)
    if "image_latent" not in batch:
        image_latent = pipe.encode_image(batch["image"])
        weight = latent_weight(batch["valid"], (image_latent.shape[-2], image_latent.shape[-1]))
        encoded |= {"image_latent": image_latent, "weight": weight}
        if has_frozen_trunk(pipe):
            encoded |= zip(FEATURES, pipe.image_encoder.extract_features(batch["image"]), strict=True)
    if "depth_latent" not in batch:
        encoded["depth_latent"] = pipe.encode_image(batch["depth_map"].expand(-1, 3, -1, -1))
    if "partial_depth" in batch:
        encoded["completion_channels"] = encode_partial_depth(pipe.encode_image, batch["partial_depth"])
    return encoded


def has_frozen_trunk(pipe: DepthFMPipeline) -> bool:
    """Returns whether a pipeline has an image encoder whose trunk is not trained."""
    encoder = pipe.image_encoder
    return encoder is not None and not any(parameter.requires_grad for parameter in encoder.trunk.parameters())


def latent_weight(valid: torch.Tensor, latent_size: tuple[int, int]) -> torch.Tensor:
    """Brings a mask to latent resolution: B×1×H×W (bool) to B×1×h×w in [0, 1].

    The weight of a cell is the share of valid pixels among those it covers. A cell at the border of a hole mixes depth
    and filling: it counts for less, but it counts. To drop every cell that a hole touches would lose far more pixels
    than are invalid, because the holes of depth sensors are small and many.
    """
    return F.adaptive_avg_pool2d(valid.float(), latent_size)


def restore_latents(normalization: DepthNormalization, sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a sample of the cache as `encode_batch` leaves it, without its `image`.

    `depth`, `sky`, `intrinsics` and what `depth_targets` returns are in it if the cache was written with depth.
    """
    latents = {name: sample[name].float() for name in ("image_latent", "depth_latent", "weight")}
    if "depth" not in sample:
        return sample | latents
    return sample | latents | depth_targets(normalize_log_depth(sample["depth"], normalization, sample["sky"]))


def encoder_networks(vae: AutoencoderKL | AutoencoderTiny) -> list[torch.nn.Module]:
    """Returns the parts of an autoencoder that latents depend on; training the decoder leaves them as they are."""
    networks = [vae.encoder, getattr(vae, "quant_conv", None)]
    return [network for network in networks if network is not None]


def cache_latents(
    pipe: DepthFMPipeline, dataset: FlowFrames, settings: CacheSettings, with_depth: bool, accelerator: Accelerator
) -> CachedSamples:
    """Encodes the variants of each frame, unless that was done before, and returns them as a data set.

    Call on every process: they share the work. The cache's name is a hash of the data's content, the weights of the
    autoencoder's encoder, the chosen frames, the normalisation, the augmentation and the seed: other settings never
    read it. Latents and `weight` are float16. `with_depth` adds `GEOMETRY`; without it, a complete cache with depth is
    used as well. The features of an image encoder with a frozen trunk are kept too, before they are standardised; the
    name depends on the trunk then.

    Raises:
        FloatingPointError: If latents are not finite.
        BlockingIOError: If this run has several processes, and another run is filling the cache.
    """
    config, normalization = pipe.vae.config, asdict(dataset.normalization)
    content = [
        dataset.indices,
        asdict(dataset.settings.augmentation),
        normalization,
        size_content(dataset),
        settings.variants,
        dataset.settings.seed,
        config.scaling_factor,
        accelerator.mixed_precision,
    ]
    # Only where it is set: the names of older caches have no place for it.
    content += [config.shift_factor] if config.get("shift_factor") else []
    fingerprint = dataset.frames.fingerprint()
    trunk = [pipe.image_encoder.trunk] if has_frozen_trunk(pipe) else []

    def folder_names(networks: Sequence[torch.nn.Module], content: Sequence[Any]) -> list[str]:
        name = f"latents-{cache_key(fingerprint, [*networks, *trunk], content)}"
        return [f"{name}-depth"] if with_depth else [name, f"{name}-depth"]

    def earlier_names() -> list[str]:
        """Up to 0.6.0 names depended on the whole autoencoder, and values were always clipped."""
        if not normalization.pop("clip"):
            return []
        return folder_names([pipe.vae], content)

    now = folder_names(encoder_networks(pipe.vae), [*content, READER_VERSION])
    folder = choose_cache(now, earlier_names, dataset, settings)
    names = ["image_latent", "depth_latent", "weight", "without_depth", "skipped", *(GEOMETRY if with_depth else [])]
    names += FEATURES if has_frozen_trunk(pipe) else []

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoded = encode_batch(pipe, batch)
        return {name: encoded[name] if name in GEOMETRY else encoded[name].half() for name in names}

    fill_cache(folder, dataset, settings, encode, accelerator)
    restore = partial(restore_latents, dataset.normalization)
    return CachedSamples(folder, dataset, settings.variants, restore)
