"""How well generated images follow the depth that they were asked to have.

The depth of a generated image is not known, it is estimated: by the estimator that made the control, with the same
settings. What its own errors do to the measure shows in the reference, the photo itself sent through Stable
Diffusion's autoencoder: no image that autoencoder can make is likely to score better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray

from ..control_image import DEFAULT_CONTROL_PERCENTILES, check_control_arguments
from ..image_processing import resize
from ..pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from .alignment import align
from .boundary import boundary_f1
from .metrics import absolute_relative_error, delta_accuracy

CONDITIONS = ("depth", "none", "shuffled")
REFERENCE = "photo"
MEASURES = ("abs_rel", "delta1", "boundary_f1")


def depth_adherence(
    control_log_depth: NDArray[np.floating], generated_log_depth: NDArray[np.floating]
) -> dict[str, float]:
    """Compares the depth of a generated image with the depth that it was asked to have.

    The generated image's log depth is aligned to the control's by least squares (scale and shift), then the
    exponentials of both are compared. A control's log depth is known up to scale and shift only (DepthFM's runs from
    about -1 to 1), so its exponential is a depth up to a factor and a power: the figures compare images whose depth
    one estimator has estimated, and are no errors in metres.

    Args:
        control_log_depth: H×W, finite; as the control image was made of it.
        generated_log_depth: H×W, finite; estimated from the generated image.

    Returns:
        `abs_rel` (0 is perfect), `delta1` (1 is perfect) and `boundary_f1` (1 is perfect; NaN where the control has no
        edge): see `metrics` and `boundary`. Of a control without any relief the first two are perfect, whatever was
        generated: the best constant fits it.

    Raises:
        ValueError: If the shapes differ, or values are not finite.
    """
    if control_log_depth.ndim != 2 or control_log_depth.shape != generated_log_depth.shape:
        raise ValueError(
            "`control_log_depth` and `generated_log_depth` must be H×W of one size, got the shapes "
            f"{control_log_depth.shape} and {generated_log_depth.shape}."
        )
    if not np.isfinite(control_log_depth).all():
        raise ValueError("`control_log_depth` holds NaN or infinite values.")
    truth = np.exp(control_log_depth.astype(np.float64))
    everywhere = np.ones(truth.shape, dtype=bool)
    depth = align(generated_log_depth, truth, everywhere, "log").depth
    return {
        "abs_rel": float(absolute_relative_error(depth, truth, everywhere)),
        "delta1": float(delta_accuracy(depth, truth, everywhere)),
        "boundary_f1": float(boundary_f1(depth, truth, everywhere)),
    }


@dataclass(frozen=True)
class AdherenceSettings:
    """What images are generated with, and how their depth is estimated. `None` leaves a value to the model.

    Attributes:
        conditions: Of `CONDITIONS`. `"depth"`: with the control image of the photo. `"none"`: by Stable Diffusion
            alone. `"shuffled"`: with the control image of another photo of the set; compared with the depth of the
            photo whose turn it is, not of the other.
        seed: Image i is generated from the seed `seed` + i, under all conditions; depth is estimated from `seed`.
        num_inference_steps: Steps of Stable Diffusion.
        guidance_scale: Weight of classifier-free guidance.
        control_mode: See `control_image_from_log_depth`.
        control_percentiles: Likewise.
        controlnet_conditioning_scale: Strength of the control.
        height: Of the generated images, pixels; `None`: the photo's.
        width: Likewise.
        depth_num_inference_steps: Steps of the depth estimator.
        depth_processing_resolution: Longer side at which it sees images, 0 for their own.
        threads: Threads on the CPU. Another number changes the last digits of results.

    Raises:
        ValueError: If a value is out of its range.
    """

    conditions: Sequence[str] = CONDITIONS
    seed: int = 0
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    control_mode: str = "disparity"
    control_percentiles: Sequence[float] = field(default=DEFAULT_CONTROL_PERCENTILES)
    controlnet_conditioning_scale: float = 1.0
    height: int | None = None
    width: int | None = None
    depth_num_inference_steps: int | None = None
    depth_processing_resolution: int | None = None
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        if unknown or not self.conditions or len(set(self.conditions)) != len(self.conditions):
            raise ValueError(f"`conditions` must be one or more of {CONDITIONS}, each once, got {self.conditions}.")
        check_control_arguments(self.control_mode, self.control_percentiles)
        for name in ("num_inference_steps", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.seed < 0:
            raise ValueError(f"`seed` must be 0 or more, got {self.seed}.")


class AdherenceTest:
    """Generates images under each condition and estimates their depth.

    Args:
        pipe: The pipeline, on its device, quiet.
        settings: What to generate with.
    """

    def __init__(self, pipe: DepthFMControlNetPipeline, settings: AdherenceSettings) -> None:
        self.pipe = pipe
        self.settings = settings
        self._estimator = pipe.depth_estimator
        names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
        self._plain = StableDiffusionPipeline(
            **{name: getattr(pipe, name) for name in names},
            requires_safety_checker=pipe.config.requires_safety_checker,
        )
        self._plain.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))

    def log_depth(self, image: Any, size: tuple[int, int] | None = None) -> torch.Tensor:
        """Estimates the log depth of an image.

        Args:
            image: Whatever `DepthFMPipeline` takes, one.
            size: Height and width to resize it to; `None` for the image's.

        Returns:
            1×1×H×W, float32, on the CPU.
        """
        found = self._estimator(
            image,
            num_inference_steps=self.settings.depth_num_inference_steps,
            processing_resolution=self.settings.depth_processing_resolution,
            generator=torch.Generator().manual_seed(self.settings.seed),
            output_type="pt",
        ).log_depth.cpu()
        return found if size is None or found.shape[-2:] == size else resize(found, size, "bilinear")

    def generate(
        self, condition: str, prompt: str, number: int, own: torch.Tensor, other: torch.Tensor | None
    ) -> tuple[NDArray[np.float32], bool]:
        """Generates an image.

        Args:
            condition: One of `CONDITIONS`.
            prompt: The prompt.
            number: Of the image in the set.
            own: Log depth of the photo, 1×1×H×W, whose size the image has, rounded down to whole latents.
            other: Log depth of the other photo, for `"shuffled"`.

        Returns:
            The image, H×W×3 in [0, 1], and whether the safety checker has blackened it.
        """
        settings = self.settings
        height, width = (
            own.shape[axis] if given is None else given
            for axis, given in ((-2, settings.height), (-1, settings.width))
        )
        factor = self.pipe.vae_scale_factor
        arguments = {
            "height": height - height % factor,
            "width": width - width % factor,
            "num_inference_steps": settings.num_inference_steps,
            "guidance_scale": settings.guidance_scale,
            "generator": torch.Generator().manual_seed(settings.seed + number),
            "output_type": "np",
        }
        if condition == "none":
            output = self._plain(prompt, **arguments)
        else:
            output = self.pipe(
                prompt,
                log_depth=own if condition == "depth" else other,
                control_mode=settings.control_mode,
                control_percentiles=settings.control_percentiles,
                controlnet_conditioning_scale=settings.controlnet_conditioning_scale,
                **arguments,
            )
        return output.images[0], bool((output.nsfw_content_detected or [False])[0])

    @torch.no_grad()
    def reconstruct(self, image: torch.Tensor) -> NDArray[np.float32]:
        """Sends an image through Stable Diffusion's autoencoder and back.

        Args:
            image: 1×3×H×W in [0, 1]; cut to whole latents.

        Returns:
            H×W×3 in [0, 1].
        """
        vae, factor = self.pipe.vae, self.pipe.vae_scale_factor
        height, width = (side - side % factor for side in image.shape[-2:])
        pixels = (image[..., :height, :width] * 2 - 1).to(vae.device, vae.dtype)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mode(), return_dict=False)[0]
        return (decoded[0].float() * 0.5 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def draw_partners(count: int, seed: int) -> list[int]:
    """For each of `count` photos another one, each once: neighbours on a random circle.

    Raises:
        ValueError: If there is one photo only.
    """
    if count < 2:
        raise ValueError("The condition 'shuffled' needs two images at least: give more, or leave it out.")
    circle = np.random.default_rng(seed).permutation(count)
    partners = np.empty(count, dtype=int)
    partners[circle] = np.roll(circle, -1)
    return partners.tolist()
