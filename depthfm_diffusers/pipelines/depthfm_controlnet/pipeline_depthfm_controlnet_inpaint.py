"""Pipeline that repaints a part of images and keeps their depth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from ...control_image import DEFAULT_CONTROL_PERCENTILES
from ...loaders.registration import NativeLibraryNamesMixin
from .controlnet_generation import ControlNetGenerationMixin
from .controlnet_imports import StableDiffusionControlNetInpaintPipeline
from .controlnet_inputs import load_initial_images, load_masks
from .pipeline_output import DepthFMControlNetOutput


class DepthFMControlNetInpaintPipeline(
    NativeLibraryNamesMixin, ControlNetGenerationMixin, StableDiffusionControlNetInpaintPipeline
):
    """Inpainting that keeps the depth of the image, or follows a given one.

    As `DepthFMControlNetPipeline`, on diffusers' `StableDiffusionControlNetInpaintPipeline`: what `mask_image` marks
    is repainted. Given the same control image and generator, images are the same to the bit. (With several images
    *and* several images per prompt they are not, on purpose: diffusers then joins images with the prompts, masks and
    control images of others.)

    Components and parameters are described in the constructor.
    """

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        image: Any = None,
        mask_image: Any = None,
        depth: Any = None,
        log_depth: Any = None,
        control_image: Any = None,
        control_mode: str = "disparity",
        control_percentiles: Sequence[float] = DEFAULT_CONTROL_PERCENTILES,
        depth_kwargs: Mapping[str, Any] | None = None,
        height: int | None = None,
        width: int | None = None,
        padding_mask_crop: int | None = None,
        strength: float = 1.0,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        ip_adapter_image: Any = None,
        ip_adapter_image_embeds: list[torch.Tensor] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        cross_attention_kwargs: dict[str, Any] | None = None,
        controlnet_conditioning_scale: float | list[float] = 0.5,
        guess_mode: bool = False,
        control_guidance_start: float | list[float] = 0.0,
        control_guidance_end: float | list[float] = 1.0,
        clip_skip: int | None = None,
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> DepthFMControlNetOutput | tuple:
        """Repaints a part of images, keeping their depth.

        Args:
            prompt: The prompt, or a list of them; one per image where there are several images.
            image: Images to repaint a part of, whose depth is estimated as well: PIL images, arrays or tensors as
                `DepthFMPipeline` takes them.
            mask_image: White (or 1) where to repaint; one mask of the images' size, or one per image: PIL images,
                arrays (H×W, H×W×1 or N×H×W×1) or tensors (H×W, 1×H×W or N×1×H×W) in [0, 1].
            depth: Depth to use instead of an estimated one, in metres or any other unit, positive: arrays (H×W, H×W×1
                or N×H×W×1), tensors (H×W, 1×H×W or N×1×H×W), PIL images of 16 or 32 bit, or a list of these;
                of the size of `image`, one map per image.
            log_depth: The same as a logarithm, up to a constant: `log_depth` of an earlier output, for instance.
            control_image: Control images that are made elsewhere, as diffusers takes them, in place of those made of
                the depth; no depth is estimated if none is needed. With several ControlNets: a list of one entry per
                ControlNet, each an image or a batch of them, `None` where the depth is to be used. `None` uses the
                depth for all ControlNets.
            control_mode: `"disparity"` (near is white, as published depth ControlNets expect) or `"depth"` (near is
                black).
            control_percentiles: Percentiles of each map that become black and white, in percent; (0, 100) is min-max.
                See `control_image_from_log_depth`.
            depth_kwargs: Arguments of the depth estimator, as `DepthFMPipeline` takes them: `num_inference_steps`,
                `ensemble_size`, `processing_resolution`, `batch_size`, `generator`, ... Without `generator` and
                `latents`, its noise is drawn from another stream, which the seed of `generator` determines
                (`controlnet_noise.depth_generator`); `generator` is not advanced.
            height: Height of the generated images in pixels, rounded down to a multiple of `vae_scale_factor`; `None`:
                that of `image`. Needed, as `width` is, for images of several sizes.
            width: Width of the generated images.
            padding_mask_crop: Margin in pixels of a crop around the mask, which is repainted at the full size and put
                back; needs a single PIL image and mask, one ControlNet and `output_type="pil"`. `None`: no crop.
            strength: How much of what is repainted is replaced, in (0, 1]: that fraction of `num_inference_steps` is
                taken.
            num_inference_steps: Steps of Stable Diffusion, of which the fraction `strength` is taken.
            guidance_scale: Weight of classifier-free guidance; there is none at 1 or less.
            negative_prompt: What not to generate: one if `prompt` is one, a list of as many if it is a list.
            num_images_per_prompt: Number of images per prompt.
            eta: η of DDIM; other schedulers ignore it.
            generator: Source of all noise: one, or a list of one per generated image.
            latents: Initial noise instead of drawn noise, images×C×h×w.
            prompt_embeds: Embeddings instead of `prompt`, prompts×tokens×width.
            negative_prompt_embeds: Embeddings instead of `negative_prompt`, of the same shape.
            ip_adapter_image: Image prompt for a loaded IP-Adapter.
            ip_adapter_image_embeds: Embeddings instead of `ip_adapter_image`, one tensor per IP-Adapter.
            output_type: `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict: Whether to return a `DepthFMControlNetOutput` instead of a tuple of its fields.
            cross_attention_kwargs: Passed on to the UNet's attention processors; `{"scale": 0.5}` scales a LoRA.
            controlnet_conditioning_scale: Strength of the control, one number or one per ControlNet.
            guess_mode: Whether the ControlNet guides without prompt; `guidance_scale` of 3 to 5 is advised then.
            control_guidance_start: Fraction of the steps at which the control starts; or one per ControlNet.
            control_guidance_end: Fraction of the steps at which the control ends; or one per ControlNet.
            clip_skip: Number of last layers of the text encoder that are skipped.
            callback_on_step_end: Called after each step of Stable Diffusion as `callback(pipe, i, t, tensors)`;
                returns the dict of tensors, in which they may be replaced.
            callback_on_step_end_tensor_inputs: Names of the tensors that it gets, of `_callback_tensor_inputs`.

        Returns:
            `DepthFMControlNetOutput`, or the tuple (images, nsfw_content_detected, depth, log_depth, control_image).

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument, an image or a depth map is not acceptable, or several do not fit together. No
                network has run then.
            RuntimeError: If an output of the depth estimator is not finite.
        """
        call = dict(locals())  # what the caller gave, by name: nothing else is defined yet
        self.check_is_complete()
        initial = load_initial_images(image, None, self.vae_scale_factor)
        initial = replace(initial, masks=load_masks(mask_image, initial.sizes))
        return self.generate_from_depth(super().__call__, call, initial)
