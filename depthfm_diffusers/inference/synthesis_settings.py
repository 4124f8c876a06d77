"""The settings of `depthfm synthesize`."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from ..control_image import DEFAULT_CONTROL_PERCENTILES, check_control_arguments
from ..pipelines.depthfm_controlnet.controlnet_inputs import Size
from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_img2img import DepthFMControlNetImg2ImgPipeline
from ..pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_inpaint import DepthFMControlNetInpaintPipeline
from .prediction import PredictionSettings

SynthesisPipeline: TypeAlias = (
    DepthFMControlNetPipeline | DepthFMControlNetImg2ImgPipeline | DepthFMControlNetInpaintPipeline
)
# The pipeline for each kind of start.
PIPELINES: dict[str, type[SynthesisPipeline]] = {
    "noise": DepthFMControlNetPipeline,
    "image": DepthFMControlNetImg2ImgPipeline,
    "mask": DepthFMControlNetInpaintPipeline,
}


@dataclass(frozen=True)
class SynthesisSettings:
    """How images are generated, apart from their seeds.

    Attributes:
        prompt: What to generate; may be empty.
        negative_prompt: What not to generate.
        start: Key of `PIPELINES`: `"noise"`; `"image"` for image-to-image; `"mask"` for inpainting.
        strength: For `"image"` and `"mask"`, how much is replaced, in (0, 1]; `None` is the pipeline's default.
        num_inference_steps: Steps of Stable Diffusion, of which the fraction `strength` is taken.
        guidance_scale: Weight of classifier-free guidance; there is none at 1 or less.
        control_mode: See `control_image_from_log_depth`.
        controlnet_conditioning_scale: Strength of the control: one number, or one per ControlNet; empty is the
            pipeline's default.
        control_guidance_start: Fraction of the steps at which the control starts.
        control_guidance_end: Fraction of the steps at which it ends.
        guess_mode: Whether ControlNets guide without prompt.
        height: Height of the generated images in pixels; `None`: in proportion to `width`, or the input's.
        width: Width, likewise.
        depth: How depth is estimated. Its seed is independent of the seeds of the images: all images of an input have
            the same depth, and each can be generated again by itself.
    """

    prompt: str
    negative_prompt: str | None = None
    start: str = "noise"
    strength: float | None = None
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    control_mode: str = "disparity"
    controlnet_conditioning_scale: tuple[float, ...] = ()
    control_guidance_start: float = 0.0
    control_guidance_end: float = 1.0
    guess_mode: bool = False
    height: int | None = None
    width: int | None = None
    depth: PredictionSettings = field(default_factory=PredictionSettings)

    def __post_init__(self) -> None:
        """Checks what can be checked before a model is loaded.

        Raises:
            ValueError: If a value is out of its range.
        """
        if self.start not in PIPELINES:
            raise ValueError(f"`start` must be one of {list(PIPELINES)}, got {self.start!r}.")
        check_control_arguments(self.control_mode, DEFAULT_CONTROL_PERCENTILES)
        numbers = [self.guidance_scale, *self.controlnet_conditioning_scale]
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"`guidance_scale` and `controlnet_conditioning_scale` must be finite, got {numbers}.")
        start, end = self.control_guidance_start, self.control_guidance_end
        if not 0 <= start < end <= 1:
            raise ValueError(
                "`control_guidance_start` must be less than `control_guidance_end`, both in [0, 1], got "
                f"{start:g} and {end:g}."
            )
        if self.strength is None:
            return
        if self.start == "noise":
            raise ValueError(
                "`strength` needs an image to start from: leave it out, or set `start` to 'image' or 'mask'."
            )
        if not 0 < self.strength <= 1:
            raise ValueError(f"`strength` must be in (0, 1], got {self.strength:g}.")
        if int(self.num_inference_steps * self.strength) < 1:
            raise ValueError(
                f"`strength` {self.strength:g} of {self.num_inference_steps} steps is less than a step: raise either."
            )

    @property
    def pipeline_class(self) -> type[SynthesisPipeline]:
        """The class of the pipeline that generates."""
        return PIPELINES[self.start]

    def pipeline_arguments(self) -> dict[str, Any]:
        """Returns the arguments of the pipeline's call that are the same for all inputs, its defaults filled in."""
        defaults = inspect.signature(self.pipeline_class.__call__).parameters
        names = ("num_inference_steps", "guidance_scale", "control_mode", "guess_mode", "prompt", "negative_prompt")
        arguments = {name: getattr(self, name) for name in (*names, "control_guidance_start", "control_guidance_end")}
        scales = list(self.controlnet_conditioning_scale)
        if not scales:
            scales = [defaults["controlnet_conditioning_scale"].default]
        arguments["controlnet_conditioning_scale"] = scales[0] if len(scales) == 1 else scales
        if self.start != "noise":
            arguments["strength"] = defaults["strength"].default if self.strength is None else self.strength
        return arguments

    def describe(self, pipe: SynthesisPipeline) -> dict[str, Any]:
        """Returns the settings with all defaults filled in, as records have them."""
        depth = self.depth.resolve(pipe.depth_estimator)
        own = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "depth"}
        return {
            **own,
            "depth_num_inference_steps": depth.num_inference_steps,
            "depth_processing_resolution": depth.processing_resolution,
            "depth_seed": depth.seed,
            **({"depth_ensemble_size": depth.ensemble_size} if depth.ensemble_size > 1 else {}),
            **self.pipeline_arguments(),
            "control_percentiles": list(DEFAULT_CONTROL_PERCENTILES),
        }

    def output_size(self, size: Size) -> Size:
        """Returns height and width to generate for an input of `size`; the pipeline rounds them down."""
        height, width = size
        if self.height is not None and self.width is not None:
            return self.height, self.width
        if self.height is not None:
            return self.height, max(1, round(width * self.height / height))
        if self.width is not None:
            return max(1, round(height * self.width / width)), self.width
        return size
