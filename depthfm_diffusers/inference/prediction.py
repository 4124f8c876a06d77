"""The prediction of depth as commands, evaluation and training make it: its settings and the call of the pipeline."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..image_processing import load_picture
from ..pipelines.depthfm.pipeline_depthfm import DepthFMPipeline

if TYPE_CHECKING:
    from diffusers import MarigoldDepthPipeline

# The pipelines whose predictions are scored.
DepthModel: TypeAlias = "DepthFMPipeline | MarigoldDepthPipeline"


@dataclass(frozen=True)
class PredictionSettings:
    """How depth is predicted. `None` leaves a value to the model.

    Attributes:
        num_inference_steps: Steps from image to depth.
        ensemble_size: Members whose log depths are averaged.
        seed: Seed of the noise, set anew for each call, so that a result does not depend on what was predicted before.
        processing_resolution: Longer side in pixels at which the network sees the image, 0 for the image's own size.
        batch_size: Images × members that go through the network at once.

    Raises:
        ValueError: If a value is out of its range.
    """

    num_inference_steps: int | None = None
    ensemble_size: int = 1
    seed: int = 0
    processing_resolution: int | None = None
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded."""
        for name in ("num_inference_steps", "ensemble_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        if self.processing_resolution is not None and self.processing_resolution < 0:
            raise ValueError(f"`processing_resolution` must be 0 or more pixels, got {self.processing_resolution}.")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"`seed` must be from 0 to 2**63 - 1, got {self.seed}.")

    def resolve(self, pipe: DepthModel) -> PredictionSettings:
        """Returns the settings with the defaults of a model in place of `None`."""
        is_depthfm = isinstance(pipe, DepthFMPipeline)
        steps = pipe.default_num_inference_steps if is_depthfm else pipe.default_denoising_steps
        resolution = self.processing_resolution
        return replace(
            self,
            num_inference_steps=self.num_inference_steps or steps,
            processing_resolution=pipe.default_processing_resolution if resolution is None else resolution,
        )

    def call_arguments(self) -> dict[str, Any]:
        """Returns the arguments of a call of a `DepthModel`, with a new generator for each call."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "ensemble_size": self.ensemble_size,
            "processing_resolution": self.processing_resolution,
            "batch_size": self.batch_size,
            # On the CPU whatever the device, so that the noise is the same on all.
            "generator": torch.Generator("cpu").manual_seed(self.seed),
        }


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one image.

    Attributes:
        depth: H×W, float32 in [0, 1]; see `DepthFMOutput.prediction`.
        log_depth: H×W, float32; see `DepthFMOutput.log_depth`.
        uncertainty: H×W, float32, see `DepthFMOutput.uncertainty`; `None` unless asked for.
    """

    depth: NDArray[np.float32]
    log_depth: NDArray[np.float32]
    uncertainty: NDArray[np.float32] | None = None


def predict_image(
    pipe: DepthFMPipeline,
    image: Any,
    settings: PredictionSettings = PredictionSettings(),
    output_uncertainty: bool = False,
    max_pixels: int | None = None,
) -> Prediction:
    """Predicts one image.

    Args:
        pipe: The pipeline.
        image: An image file, or one image of any kind that `DepthFMPipeline` takes.
        settings: How.
        output_uncertainty: Whether the spread of the ensemble is returned; needs an ensemble of at least 2.
        max_pixels: Most pixels that an image file may have; `None`: 120 million.

    Returns:
        The maps, of the size of the image.

    Raises:
        OSError: If the file cannot be read.
        TypeError: If the image is of a type that is not accepted.
        ValueError: If the image or a setting cannot be used.
        RuntimeError: If the network's output is not finite.
    """
    if isinstance(image, (str, Path)):
        image = load_picture(image, max_pixels, settings.resolve(pipe).processing_resolution or 0)
    depth, log_depth, uncertainty, *_ = pipe(
        image, **settings.call_arguments(), output_uncertainty=output_uncertainty, return_dict=False
    )
    return Prediction(depth[0, ..., 0], log_depth[0, ..., 0], None if uncertainty is None else uncertainty[0, ..., 0])


def predict_affine(
    pipe: MarigoldDepthPipeline,
    image: NDArray[np.uint8],
    settings: PredictionSettings = PredictionSettings(),
    output_uncertainty: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Predicts one image by diffusers' `MarigoldDepthPipeline`.

    Args:
        pipe: The pipeline.
        image: H×W×3, RGB.
        settings: How.
        output_uncertainty: Whether the spread of the ensemble is returned; needs an ensemble of at least 2.

    Returns:
        The affine-invariant map, H×W in [0, 1], depth or disparity as `pipe.config.prediction_type` says; and the
        uncertainty, H×W, or `None`.

    Raises:
        ValueError: If a setting cannot be used.
        RuntimeError: If the network's output is not finite.
    """
    prediction, uncertainty, _ = pipe(
        Image.fromarray(image),
        **settings.call_arguments(),
        output_uncertainty=output_uncertainty,
        return_dict=False,
    )
    if not np.isfinite(prediction).all():
        raise RuntimeError("The network's output is not finite. Try dtype=float32.")
    return prediction[0, ..., 0], None if uncertainty is None else uncertainty[0, ..., 0]


def predict_log_depth(
    pipe: DepthFMPipeline,
    images: Any,
    settings: PredictionSettings = PredictionSettings(),
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Predicts the log depth of images of one size, for further computation with tensors.

    Args:
        pipe: The pipeline.
        images: B images of one size of any kind that `DepthFMPipeline` takes, such as B×3×H×W in [0, 1].
        settings: How.
        noise: Gaussian noise of the source, one per image and member, (B·members)×C×h×w; `None`: drawn from the seed,
            image by image.

    Returns:
        B×1×H×W, float32, on the pipeline's device.

    Raises:
        TypeError: If the images are of a type that is not accepted.
        ValueError: If the images, the noise or a setting cannot be used.
        RuntimeError: If the network's output is not finite.
    """
    _, log_depth, *_ = pipe(images, **settings.call_arguments(), latents=noise, output_type="pt", return_dict=False)
    return log_depth
