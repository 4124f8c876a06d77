"""Images and captions as training samples of a depth ControlNet: encoded in each step, or once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from transformers import CLIPTokenizer

from ...checkpoints.model_folder import load_pipeline, resolve_model
from ...control_image import control_image_from_log_depth
from ...frames import CaptionedImage
from ...inference.prediction import PredictionSettings, predict_log_depth
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from .depth_transforms import View, crop_view, image_tensor, resize_view
from .draws import DiffusionDraws, gaussian
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


@dataclass(frozen=True)
class DepthControl:
    """Makes control images from images, as the pipelines do at inference.

    Attributes:
        estimator: Estimates the depth, at the size that the images have.
        steps: The estimator's steps; `None`: its default.
        control_mode: See `control_image_from_log_depth`.
        percentiles: See `control_image_from_log_depth`.
    """

    estimator: DepthFMPipeline
    steps: int | None
    control_mode: str
    percentiles: tuple[float, float]

    @classmethod
    def load(
        cls, model: str, steps: int | None, control_mode: str, percentiles: tuple[float, float], device: torch.device
    ) -> DepthControl:
        """Loads the estimator: frozen, in float32 and on the device.

        Args:
            model: Folder or Hub repository of a DepthFM.
            steps: See the class.
            control_mode: See the class.
            percentiles: See the class.
            device: Where it runs.
        """
        estimator = load_pipeline(resolve_model(model), device=str(device), dtype=torch.float32)
        estimator.set_progress_bar_config(disable=True)
        for module in estimator.components.values():
            if isinstance(module, torch.nn.Module):
                module.requires_grad_(False)
        return cls(estimator, steps, control_mode, percentiles)

    @property
    def noise(self) -> tuple[int, int]:
        """Channels, and pixels per cell, of the estimator's noise."""
        return self.estimator.vae.config.latent_channels, self.estimator.vae_scale_factor

    def __call__(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Makes the control images of a batch.

        Args:
            images: B×3×H×W in [-1, 1].
            noise: Gaussian noise of the depth estimator's source, B×C×h×w.

        Returns:
            B×1×H×W, uint8.
        """
        control = self.picture(self.log_depth(images.float() * 0.5 + 0.5, noise))
        return (control[:, :1] * 255).round().to(torch.uint8)

    def log_depth(self, images: torch.Tensor, noise: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
        """Estimates the log depth of images.

        Args:
            images: B×3×H×W in [0, 1].
            noise: Gaussian noise of the estimator's source, B×C×h×w; `None`: drawn from `seed`.
            seed: See `noise`.

        Returns:
            B×1×H×W, float32.
        """
        settings = PredictionSettings(self.steps, seed=seed, processing_resolution=0, batch_size=len(images))
        return predict_log_depth(self.estimator, images, settings, noise)

    def picture(self, log_depth: torch.Tensor) -> torch.Tensor:
        """Makes control images (B×3×H×W in [0, 1]) of log depth (B×1×H×W)."""
        return control_image_from_log_depth(log_depth, self.control_mode, self.percentiles)

    def describe(self) -> list[Any]:
        """Returns the settings, for the name of a cache."""
        estimator = self.estimator
        steps = self.steps or estimator.default_num_inference_steps
        # Its private entries, such as the version of diffusers, do not change results.
        schedule = {k: v for k, v in estimator.scheduler.config.items() if not k.startswith("_")}
        rescaled = estimator.config.rescale_self_attention
        return [steps, self.control_mode, list(self.percentiles), rescaled, sorted(schedule.items())]


class PromptTokens:
    """Turns prompts into the tokens that Stable Diffusion's text encoder takes.

    Args:
        tokenizer: Stable Diffusion's.
    """

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, prompt: str) -> torch.Tensor:
        """Returns the tokens of a prompt, padded or cut to the tokenizer's length; int64."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return tokens[0]

    def fingerprint(self) -> str:
        """Returns a hash of what the tokens of any prompt depend on."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # These two record its last call.
        content = {name: value for name, value in state.items() if name not in ("padding", "truncation")}
        content |= {"length": self.tokenizer.model_max_length, "pad": self.tokenizer.pad_token_id}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class ControlImages(TrainingSamples):
    """Augmented images with everything the ControlNet's objective needs, see `TrainingSamples`.

    A sample has `image` (3×H×W in [-1, 1]), `tokens` (of the caption), `weight` (1, or 0 for a skipped image),
    `skipped` (0 or 1), what `DiffusionDraws.draw` returns, and `depth_noise` if a depth is to be estimated.
    With a resolution, images are resized such that they cover it, and a random part of that size is cut out.

    Args:
        images: All images, `CaptionedImage`s.
        indices: Which of them are used.
        settings: How an image becomes a sample.
        tokens: Turns captions into tokens.
        draws: What is drawn besides.
        downsampling: Pixels per latent cell, of Stable Diffusion's autoencoder.
        depth_noise: Channels, and pixels per cell, of the depth estimator's noise; `None`: no depth is estimated.
    """

    def __init__(
        self,
        images: MixedFrames,
        indices: Sequence[int],
        settings: SampleSettings,
        tokens: PromptTokens,
        draws: DiffusionDraws,
        downsampling: int,
        depth_noise: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(images, indices, settings, draws, downsampling)
        self.tokens = tokens
        self.depth_noise = depth_noise

    def view(self, frame: CaptionedImage, index: int, rng: np.random.Generator) -> View:
        """Returns an image at the size of its samples."""
        view = image_view(image_tensor(frame.image))
        if self.is_resized(index):
            return cover_view(view, *self.size_of(index), rng)
        self.check_size(frame, index)
        return view

    def tensors(self, frame: CaptionedImage | None, view: View) -> dict[str, torch.Tensor]:
        """Returns the tensors of a sample, see the class."""
        return {
            "image": view.image * 2 - 1,
            "tokens": self.tokens("" if frame is None else frame.caption),
            "weight": torch.tensor(0.0 if frame is None else 1.0),
        }

    def draw(self, rng: np.random.Generator, size: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns what is drawn besides, the noise of the depth estimator last."""
        drawn = super().draw(rng, size)
        if self.depth_noise is not None:
            channels, factor = self.depth_noise
            drawn["depth_noise"] = gaussian(rng, (channels, *(-(-side // factor) for side in size)))
        return drawn


def image_view(image: torch.Tensor) -> View:
    """Returns an image (3×H×W in [0, 1]) as a view without depth, camera and sky."""
    nothing = torch.zeros(1, *image.shape[-2:])
    return View(image, nothing, torch.full((3, 3), torch.nan), nothing.bool())


def cover_view(view: View, height: int, width: int, rng: np.random.Generator) -> View:
    """Resizes a view so that it just covers a size, and cuts a random part of that size out."""
    full_height, full_width = view.image.shape[-2:]
    scale = max(height / full_height, width / full_width)
    new_height, new_width = max(height, round(full_height * scale)), max(width, round(full_width * scale))
    resized = resize_view(view, new_height, new_width)
    top = int(rng.integers(0, new_height - height + 1))
    left = int(rng.integers(0, new_width - width + 1))
    return crop_view(resized, top, left, height, width)


@torch.no_grad()
def encode_control_batch(
    vae: AutoencoderKL, control: DepthControl | None, batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Adds `image_latent` (B×C×h×w) and, with `control`, `control` (B×1×H×W, uint8) to a batch of `ControlImages`."""
    image = batch["image"]
    # As Stable Diffusion's pipelines scale latents: they know no shift.
    latent = vae.encode(image.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
    encoded = {"image_latent": latent.float()}
    if control is not None:
        encoded["control"] = control(image, batch["depth_noise"])
    return batch | encoded


def restore_control(sample: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a sample of the cache as `encode_control_batch` leaves it, without its `image`."""
    return sample | {"image_latent": sample["image_latent"].float(), "tokens": sample["tokens"].long()}


def cache_control(
    vae: AutoencoderKL,
    control: DepthControl | None,
    dataset: ControlImages,
    settings: CacheSettings,
    accelerator: Accelerator,
) -> CachedSamples:
    """Encodes the variants of each image, unless that was done before, and returns them as a data set.

    Call on every process: they share the work. The cache's name is a hash of the data's content, the networks'
    weights, the chosen images, the augmentation and the seed: other settings never read it.

    Raises:
        FloatingPointError: If latents are not finite.
        BlockingIOError: If this run has several processes, and another run is filling the cache.
    """
    content = [
        dataset.indices,
        asdict(dataset.settings.augmentation),
        size_content(dataset),
        settings.variants,
        dataset.settings.seed,
        vae.config.scaling_factor,
        accelerator.mixed_precision,
        dataset.tokens.fingerprint(),
        None if control is None else control.describe(),
    ]
    networks: list[torch.nn.Module] = [vae]
    kept = {"image_latent": torch.float16, "tokens": torch.int32, "weight": torch.float32, "skipped": torch.float32}
    if control is not None:
        estimator = control.estimator
        networks += [estimator.unet, estimator.vae, estimator.prompt_embedding]
        networks += [] if estimator.image_encoder is None else [estimator.image_encoder]
        kept["control"] = torch.uint8
    fingerprint = dataset.frames.fingerprint()
    folder = choose_cache(
        [f"control-{cache_key(fingerprint, networks, [*content, READER_VERSION])}"],
        lambda: [f"control-{cache_key(fingerprint, networks, content)}"],
        dataset,
        settings,
    )

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoded = encode_control_batch(vae, control, batch)
        return {name: encoded[name].to(dtype) for name, dtype in kept.items()}

    fill_cache(folder, dataset, settings, encode, accelerator)
    return CachedSamples(folder, dataset, settings.variants, restore_control)


def prompt_embeddings(
    text_encoder: Callable[..., Any], batch: dict[str, torch.Tensor], empty_tokens: torch.Tensor
) -> torch.Tensor:
    """Embeds the captions of a batch, or the empty prompt where `without_prompt` is true: B×tokens×width."""
    tokens = torch.where(batch["without_prompt"][:, None], empty_tokens.to(batch["tokens"].device), batch["tokens"])
    return text_encoder(tokens)[0]
