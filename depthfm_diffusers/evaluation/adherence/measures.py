"""How well generated images follow the depth that they were asked to have.

The depth of a generated image is not known. It is estimated by the estimator that made the control, with the same
settings. The effect of the estimator's errors is seen in the reference: the photo itself, encoded and decoded by
Stable Diffusion's autoencoder. No generated image is likely to score better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img import retrieve_latents
from numpy.typing import NDArray

from ...control_image import DEFAULT_CONTROL_PERCENTILES, check_control_arguments
from ...image_processing import resize
from ...inference.prediction import PredictionSettings, predict_log_depth
from ...pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from ...pipelines.depthfm_controlnet.controlnet_imports import StableDiffusionPipeline
from ...pipelines.depthfm_controlnet.controlnet_noise import depth_seed
from ...pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from ..choices import CONDITIONS
from ..metrics.alignment import align
from ..metrics.boundary import boundary_f1
from ..metrics.metrics import absolute_relative_error, delta_accuracy

REFERENCE = "photo"
MEASURES = ("abs_rel", "delta1", "boundary_f1", "correlation")
MAX_LOG_RANGE = 700.0  # float64 holds exp(709) at most


def depth_adherence(
    control_log_depth: NDArray[np.floating], generated_log_depth: NDArray[np.floating]
) -> dict[str, float]:
    """Compares the depth of a generated image with the depth that it was asked to have.

    `aligned_depths` says how the two are aligned. The log depth of a control is known up to scale and shift only
    (DepthFM's is in about [-1, 1], whatever the true range of the scene is), so its exponential is a depth up to a
    factor and a power. The factor does not matter. The power does: AbsRel grows with the range of the control's log
    depth, and δ1 falls. So these scores are no errors in metres, and can only be compared between images whose depth
    was estimated by the same estimator with the same settings. The correlation depends on neither.

    Args:
        control_log_depth: H×W, finite; the control image was made from it.
        generated_log_depth: h×w, finite; estimated from the generated image.

    Returns:
        `abs_rel` (0 is perfect), `delta1` (1 is perfect) and `boundary_f1` (1 is perfect; NaN where the control has no
        edge), see `metrics` and `boundary`; `correlation` of the two log depths (Pearson's, in [-1, 1]): negative
        where near and far are swapped, 0 for a generated image without any relief. All are NaN for a control that is
        constant up to rounding: it has no relief to follow.

    Raises:
        ValueError: If a map is not H×W, has no pixel, or values that are not finite, or the control's values differ by
            more than 700, which is no logarithm of a depth.
    """
    truth, depth = aligned_depths(control_log_depth, generated_log_depth)
    if _is_constant(control_log_depth):
        return dict.fromkeys(MEASURES, float("nan"))
    everywhere = np.ones(truth.shape, dtype=bool)
    return {
        "abs_rel": float(absolute_relative_error(depth, truth, everywhere)),
        "delta1": float(delta_accuracy(depth, truth, everywhere)),
        "boundary_f1": float(boundary_f1(depth, truth, everywhere)),
        "correlation": _correlation(np.log(truth), generated_log_depth.astype(np.float64)),
    }


def aligned_depths(
    control_log_depth: NDArray[np.floating], generated_log_depth: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Aligns the depth of a generated image to that of its control.

    Where sizes differ, the control's map is resized (bilinear, antialiased) to the size of the generated image, as the
    control image is. The generated image's log depth is aligned to the control's by least squares with a scale of at
    least 0: with a negative scale, a depth in which near and far are swapped would be perfect. Where least squares
    gives a negative scale, the best constant is taken.

    Args:
        control_log_depth: H×W, finite.
        generated_log_depth: h×w, finite.

    Returns:
        Depth of the control, its nearest point at 1, and aligned depth of the generated image; h×w.

    Raises:
        ValueError: As `depth_adherence` does.
    """
    for name, values in (("control_log_depth", control_log_depth), ("generated_log_depth", generated_log_depth)):
        if values.ndim != 2 or values.size == 0:
            raise ValueError(f"`{name}` must be H×W with at least one pixel, got the shape {values.shape}.")
        if not np.isfinite(values).all():
            raise ValueError(f"`{name}` holds NaN or infinite values.")
    if np.ptp(control_log_depth.astype(np.float64)) > MAX_LOG_RANGE:
        raise ValueError(
            f"`control_log_depth` has values that differ by more than {MAX_LOG_RANGE}: is it a logarithm?"
        )
    control = torch.from_numpy(control_log_depth.astype(np.float64))[None, None]
    resized = resize(control, generated_log_depth.shape, "bilinear")[0, 0].numpy()
    # Depth is clipped near 0 when it is aligned: from 1 upwards, whatever the factor of the control's depth is.
    truth = np.exp(resized - resized.min())
    everywhere = np.ones(truth.shape, dtype=bool)
    aligned = align(generated_log_depth, truth, everywhere, "log")
    if aligned.scale < 0:
        aligned = align(np.zeros(truth.shape), truth, everywhere, "log")
    return truth, aligned.depth


@dataclass(frozen=True)
class AdherenceSettings:
    """How images are generated, and how their depth is estimated. `None` leaves a value to the model.

    Attributes:
        conditions: Of `CONDITIONS`. `"depth"`: with the control image of the photo. `"none"`: by Stable Diffusion
            alone. `"shuffled"`: with the control image of another photo of the set, but compared with the depth of
            the photo itself.
        num_inference_steps: Steps of Stable Diffusion.
        guidance_scale: Weight of classifier-free guidance.
        control_mode: See `control_image_from_log_depth`.
        control_percentiles: See `control_image_from_log_depth`.
        controlnet_conditioning_scale: Strength of the control.
        height: Height of the generated images in pixels, rounded down to whole latents; `None`: the photo's.
        width: Width, likewise.
        depth: How depth is estimated. Its seed is that of the whole test: image i is generated from `depth.seed` + i,
            under all conditions.
        threads: Threads on the CPU. Another number changes the last digits of results.

    Raises:
        ValueError: If a value is out of its range.
    """

    conditions: Sequence[str] = CONDITIONS
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    control_mode: str = "disparity"
    control_percentiles: Sequence[float] = field(default=DEFAULT_CONTROL_PERCENTILES)
    controlnet_conditioning_scale: float = 1.0
    height: int | None = None
    width: int | None = None
    depth: PredictionSettings = field(default_factory=PredictionSettings)
    threads: int = 1

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        unknown = [name for name in self.conditions if name not in CONDITIONS]
        if unknown or not self.conditions or len(set(self.conditions)) != len(self.conditions):
            raise ValueError(f"`conditions` must be one or more of {CONDITIONS}, each once, got {self.conditions}.")
        check_control_arguments(self.control_mode, self.control_percentiles)
        for name in ("num_inference_steps", "threads", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        for name in ("guidance_scale", "controlnet_conditioning_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"`{name}` must be a finite number, got {getattr(self, name)}.")

    @property
    def seed(self) -> int:
        """The seed of the first image; those of the others follow."""
        return self.depth.seed

    def describe(self, estimator: DepthFMPipeline) -> dict[str, Any]:
        """Returns the settings with the defaults of the depth estimator filled in, as reports have them."""
        depth = self.depth.resolve(estimator)
        return {
            "conditions": list(self.conditions),
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "control_mode": self.control_mode,
            "control_percentiles": list(self.control_percentiles),
            "controlnet_conditioning_scale": self.controlnet_conditioning_scale,
            "height": self.height,
            "width": self.width,
            "depth_num_inference_steps": depth.num_inference_steps,
            "depth_processing_resolution": depth.processing_resolution,
            **({"depth_ensemble_size": depth.ensemble_size} if depth.ensemble_size > 1 else {}),
            "threads": self.threads,
        }


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

    def log_depth(self, image: Any) -> torch.Tensor:
        """Estimates the log depth of an image.

        Args:
            image: One image of any kind that `DepthFMPipeline` takes.

        Returns:
            1×1×H×W, float32, on the CPU.
        """
        # The first image is generated from the seed itself: with equal shapes, from the noise that depth would have.
        settings = replace(self.settings.depth, seed=depth_seed(self.settings.seed))
        return predict_log_depth(self._estimator, image, settings).cpu()

    def output_size(self, photo_size: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the images that are generated for a photo: rounded down to whole latents.

        Args:
            photo_size: Height and width of the photo.

        Raises:
            ValueError: If nothing is left.
        """
        factor, asked = self.pipe.vae_scale_factor, (self.settings.height, self.settings.width)
        sides = [own if given is None else given for own, given in zip(photo_size, asked, strict=True)]
        if min(sides) < factor:
            raise ValueError(
                f"images of {sides[0]}×{sides[1]} pixels (height × width) cannot be generated: both sides must be at "
                f"least {factor}. Give `height` and `width`."
            )
        return sides[0] - sides[0] % factor, sides[1] - sides[1] % factor

    def generate(
        self, condition: str, prompt: str, number: int, own: torch.Tensor, other: torch.Tensor | None
    ) -> tuple[NDArray[np.float32], bool]:
        """Generates an image.

        Args:
            condition: One of `CONDITIONS`.
            prompt: The prompt.
            number: Of the image in the set.
            own: Log depth of the photo, 1×1×H×W; the image has the `output_size` of that.
            other: Log depth of the other photo, for `"shuffled"`. Its control image is resized to the image's size,
                as diffusers does, whatever its proportions are.

        Returns:
            The image, H×W×3 in [0, 1], and whether the safety checker has replaced it by a black one.
        """
        settings = self.settings
        height, width = self.output_size((int(own.shape[-2]), int(own.shape[-1])))
        arguments: dict[str, Any] = {
            "height": height,
            "width": width,
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
        """Encodes and decodes an image with Stable Diffusion's autoencoder.

        Args:
            image: 1×3×H×W in [0, 1]; resized to its `output_size` first, as its control image is.

        Returns:
            H×W×3 in [0, 1].
        """
        vae = self.pipe.vae
        pixels = resize(image, self.output_size((int(image.shape[-2]), int(image.shape[-1]))), "bilinear").clamp(0, 1)
        latents = retrieve_latents(vae.encode((pixels * 2 - 1).to(vae.device, vae.dtype)), sample_mode="argmax")
        decoded = vae.decode(latents, return_dict=False)[0]
        return self.pipe.image_processor.postprocess(decoded, output_type="np")[0]


def draw_partners(count: int, seed: int) -> list[int]:
    """Draws for each of `count` photos another one, each once: neighbours on a random circle.

    Returns:
        The number of the other photo, for each photo.

    Raises:
        ValueError: If there is one photo only.
    """
    if count < 2:
        raise ValueError(
            "The condition 'shuffled' needs two images at least: give more, or leave it out of `conditions`."
        )
    circle = np.random.default_rng(seed).permutation(count)
    partners = np.empty(count, dtype=int)
    partners[circle] = np.roll(circle, -1)
    return partners.tolist()


def _is_constant(log_depth: NDArray[np.floating]) -> bool:
    """Returns whether a map differs from a constant by rounding in float32 only."""
    values = log_depth.astype(np.float64)
    return bool(np.ptp(values) <= 8 * np.finfo(np.float32).eps * max(1.0, np.abs(values).max()))


def _correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Returns Pearson's correlation; 0 if one map is constant."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return 0.0
    a, b = first - first.mean(), second - second.mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
