"""Images and captions as training samples of a depth ControlNet: encoded in each step, or once and kept on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from diffusers import AutoencoderKL
from torch.utils.data import Dataset
from transformers import CLIPTokenizer

from ... import DepthFMPipeline
from ...control_image import control_image_from_log_depth
from ...frames import FrameError
from ..objectives.denoising import DiffusionDraws
from .depth_transforms import (
    AugmentationConfig,
    View,
    augment_view,
    crop_view,
    resize_view,
)
from .latent_cache import (
    CacheFiles,
    Item,
    cache_key,
    encode_batches,
    fill_cache,
)
from .sampling import sample_rng
from .sources import MixedFrames

logger = get_logger(__name__)


@dataclass(frozen=True)
class DepthControl:
    """Makes control images of images, as the pipelines do at inference.

    Attributes:
        estimator: Estimates the depth, at the size that the images have.
        steps: Its steps; `None`: its default.
        control_mode: See `control_image_from_log_depth`.
        percentiles: See `control_image_from_log_depth`.
    """

    estimator: DepthFMPipeline
    steps: int | None
    control_mode: str
    percentiles: tuple[float, float]

    def __call__(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Control images of B images.

        Args:
            images: B×3×H×W in [-1, 1].
            noise: Gaussian, of the depth estimator's source, B×C×h×w.

        Returns:
            B×1×H×W, uint8.
        """
        control = self.picture(self.log_depth(images.float() * 0.5 + 0.5, latents=noise))
        return (control[:, :1] * 255).round().to(torch.uint8)

    def log_depth(self, images: torch.Tensor, **noise: Any) -> torch.Tensor:
        """Log depth of images.

        Args:
            images: B×3×H×W in [0, 1].
            **noise: `latents` or `generator` of the estimator.

        Returns:
            B×1×H×W, float32.
        """
        return self.estimator(
            images,
            num_inference_steps=self.steps,
            processing_resolution=0,
            batch_size=len(images),
            output_type="pt",
            **noise,
        ).log_depth

    def picture(self, log_depth: torch.Tensor) -> torch.Tensor:
        """Control images of log depth maps B×1×H×W: B×3×H×W in [0, 1]."""
        return control_image_from_log_depth(log_depth, self.control_mode, self.percentiles)

    def describe(self) -> list[Any]:
        """The settings, for the name of a cache."""
        estimator = self.estimator
        steps = self.steps or estimator.default_num_inference_steps
        # The scheduler's configuration has a version that says nothing about results.
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
        """Tokens of a prompt, padded or cut to the tokenizer's length; int64."""
        length = self.tokenizer.model_max_length
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return tokens[0]

    def fingerprint(self) -> str:
        """A hash of what the tokens of any prompt depend on."""
        state = json.loads(self.tokenizer.backend_tokenizer.to_str())
        # These two say how it was called last.
        content = {name: value for name, value in state.items() if name not in ("padding", "truncation")}
        content |= {"length": self.tokenizer.model_max_length, "pad": self.tokenizer.pad_token_id}
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class ControlImages(Dataset):
    """Augmented images with everything the objective needs, drawn from (seed, epoch, index) alone.

    Args:
        images: Where the `CaptionedImage`s come from.
        indices: Which of them are used.
        augmentation: Random changes to each image.
        tokens: Turns captions into tokens.
        draws: What is drawn besides.
        resolution: Height and width of the samples: images are resized so that they cover it, and a random part of
            that size is cut out; `None` leaves them as they are.
        downsampling: Pixels per latent cell, of Stable Diffusion's autoencoder.
        seed: Seed of the run.
        depth_noise: Channels, and pixels per cell, of the depth estimator's noise; `None`: no depth is estimated.
        skip_bad_images: An image that cannot be used becomes a sample of weight 0 that is counted, instead of an
            error.

    Raises:
        ValueError: If the size is no multiple of `downsampling`, or no image can be read.
    """

    def __init__(
        self,
        images: MixedFrames,
        indices: Sequence[int],
        augmentation: AugmentationConfig,
        tokens: PromptTokens,
        draws: DiffusionDraws,
        resolution: tuple[int, int] | None,
        downsampling: int,
        seed: int,
        depth_noise: tuple[int, int] | None = None,
        skip_bad_images: bool = False,
    ) -> None:
        self.images = images
        self.indices = [int(i) for i in indices]
        self.augmentation = augmentation
        self.tokens = tokens
        self.draws = draws
        self.seed = seed
        self.skip_bad_images = skip_bad_images
        self.resize = resolution is not None
        self.size = tuple(resolution) if resolution else self._first_size()
        if any(side % downsampling for side in self.size):
            raise ValueError(
                f"{'--resolution' if resolution else 'The images'}: height and width {self.size} must be multiples of "
                f"{downsampling}, the autoencoder's factor; set --resolution HEIGHT WIDTH."
            )
        self.latent_size = tuple(side // downsampling for side in self.size)
        self.depth_noise_shape = None
        if depth_noise is not None:
            channels, factor = depth_noise
            self.depth_noise_shape = (channels, *(-(-side // factor) for side in self.size))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns one sample.

        `image` (3×H×W in [-1, 1]), `tokens` (of the caption), `weight` (1, or 0 for what was skipped), `skipped`
        (0 or 1), what `DiffusionDraws.draw` returns, and `depth_noise` if a depth is to be estimated.

        Raises:
            ValueError: If the image has another size than the first and no resolution is set.
            FrameError: If the image cannot be used and is not to be skipped.
        """
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        try:
            (view, caption), skipped = self._view(self.indices[index], rng), 0.0
        except FrameError as error:
            if not self.skip_bad_images:
                raise
            logger.warning(f"Skipped: {error}", main_process_only=False)
            (view, caption), skipped = (image_view(torch.zeros(3, *self.size)), ""), 1.0
        view = augment_view(view, self.augmentation, rng)
        sample = {
            "image": view.image * 2 - 1,
            "tokens": self.tokens(caption),
            "weight": torch.tensor(1.0 - skipped),
            "skipped": torch.tensor(skipped),
        }
        sample |= self.draws.draw(rng, self.latent_size)
        if self.depth_noise_shape is not None:
            noise = rng.standard_normal(self.depth_noise_shape, dtype=np.float32)
            sample["depth_noise"] = torch.from_numpy(noise)
        return sample

    def _first_size(self) -> tuple[int, ...]:
        for index in self.indices:
            try:
                return self.images[index].image.shape[:2]
            except FrameError:
                if not self.skip_bad_images:
                    raise
        raise ValueError("--train_data: no image is left to train on.")

    def _view(self, index: int, rng: np.random.Generator) -> tuple[View, str]:
        image = self.images[index]
        view = image_view(torch.from_numpy(image.image.copy()).permute(2, 0, 1).float() / 255)
        if self.resize:
            return cover_view(view, *self.size, rng), image.caption
        if image.image.shape[:2] != self.size:
            raise ValueError(
                f"Image {image.key!r} is {image.image.shape[:2]} (height, width), the first image {self.size}: set "
                "--resolution HEIGHT WIDTH."
            )
        return view, image.caption


def image_view(image: torch.Tensor) -> View:
    """An image 3×H×W in [0, 1] as a view of which nothing else is known."""
    nothing = torch.zeros(1, *image.shape[-2:])
    return View(image, nothing, torch.full((3, 3), torch.nan), nothing.bool())


def cover_view(view: View, height: int, width: int, rng: np.random.Generator) -> View:
    """Resizes a view as little as it takes to cover a size, and cuts a random part of that size out."""
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
    latent = vae.encode(image.to(vae.dtype)).latent_dist.mode() * vae.config.scaling_factor
    encoded = {"image_latent": latent.float()}
    if control is not None:
        encoded["control"] = control(image, batch["depth_noise"])
    return batch | encoded


class CachedControl(Dataset):
    """Encoded samples of several augmented variants per image; an epoch takes one variant of each, drawn anew.

    Args:
        folder: Written by `cache_control`; all of it.
        samples: Number of images in each variant.
        variants: Number of variants.
        draws: What is drawn besides.
        seed: Seed of the run.
    """

    def __init__(self, folder: Path, samples: int, variants: int, draws: DiffusionDraws, seed: int) -> None:
        self.files = CacheFiles(folder)
        self.samples = samples
        self.variants = variants
        self.draws = draws
        self.seed = seed

    def __len__(self) -> int:
        """Number of images."""
        return self.samples

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns the encoded sample: as `ControlImages` after `encode_control_batch`, without its `image`."""
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        sample = self.files.read(int(rng.integers(self.variants)), index)
        sample["image_latent"] = sample["image_latent"].float()
        sample["tokens"] = sample["tokens"].long()
        return sample | self.draws.draw(rng, sample["image_latent"].shape[-2:])


def cache_control(
    parent: Path,
    vae: AutoencoderKL,
    control: DepthControl | None,
    dataset: ControlImages,
    variants: int,
    batch_size: int,
    accelerator: Accelerator,
) -> Path:
    """Encodes `variants` augmentations of each image, unless that was done before, and returns their folder.

    Call on every process: they share the work. The folder is named after a hash of the data's content, the networks'
    weights, the images chosen, the augmentation and the seed, so another choice never meets old samples.

    Raises:
        FloatingPointError: If the autoencoder gives values that are not finite.
    """
    settings = [
        dataset.indices,
        asdict(dataset.augmentation),
        dataset.size,
        variants,
        dataset.seed,
        vae.config.scaling_factor,
        accelerator.mixed_precision,
        dataset.tokens.fingerprint(),
        None if control is None else control.describe(),
    ]
    networks = [vae]
    if control is not None:
        networks += [control.estimator.unet, control.estimator.vae, control.estimator.prompt_embedding]
    folder = parent / f"control-{cache_key(dataset.images.fingerprint(), networks, settings)}"
    kept = {"image_latent": torch.float16, "tokens": torch.int32, "weight": torch.float32, "skipped": torch.float32}
    if control is not None:
        kept["control"] = torch.uint8

    def encode(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        encoded = encode_control_batch(vae, control, batch)
        return {name: encoded[name].to(dtype) for name, dtype in kept.items()}

    def encode_items(items: Sequence[Item]) -> dict[str, torch.Tensor]:
        tensors = encode_batches(dataset, items, batch_size, encode, accelerator)
        if not torch.isfinite(tensors["image_latent"]).all():
            raise FloatingPointError("The autoencoder gave non-finite latents: check the base's vae.")
        return tensors

    fill_cache(folder, len(dataset), variants, encode_items, accelerator)
    return folder


def prompt_embeddings(
    text_encoder: Callable[..., Any], batch: dict[str, torch.Tensor], empty_tokens: torch.Tensor
) -> torch.Tensor:
    """Embeddings of a batch's captions, or of the empty prompt where `without_prompt` says so. B×tokens×width."""
    tokens = torch.where(batch["without_prompt"][:, None], empty_tokens.to(batch["tokens"].device), batch["tokens"])
    return text_encoder(tokens)[0]
