"""Pipeline from images to depth maps by flow matching."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ...geometry import (
    depth_to_normals,
    intrinsics_from_fov,
)
from ...image_processing import (
    RESAMPLE_METHODS,
    ProcessedImage,
    depth_from_log_depth,
    load_images,
    process_image,
    resize,
    unpad,
)
from ...loaders.lora import UNetLoraLoaderMixin
from ...loaders.registration import NativeLibraryNamesMixin
from ...models.attention_processor import (
    RescaledSelfAttnProcessor,
    set_self_attention_rescaling,
)
from ...models.prompt_embedding import PromptEmbedding
from ...schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ..pipeline_output import (
    DepthFMOutput,
    Maps,
    collect_maps,
)
from .ensembling import (
    ensemble_log_depth,
    ensemble_uncertainty,
)

logger = logging.get_logger(__name__)


class DepthFMPipeline(NativeLibraryNamesMixin, DiffusionPipeline, UNetLoraLoaderMixin):
    """Pipeline for monocular depth estimation with [DepthFM](https://arxiv.org/abs/2403.13788).

    The latent of an image, with a little noise added, is carried along a learnt velocity field from t = 0 (image) to
    t = 1 (depth map), in a few steps or a single one. The pipeline inherits loading, saving, devices and offloading
    from `DiffusionPipeline`, and LoRA for its UNet from diffusers' `StableDiffusionLoraLoaderMixin`.

    ```python
    pipe = DepthFMPipeline.from_pretrained(default_model_path())
    output = pipe(load_image("photo.jpg"), ensemble_size=4, generator=torch.Generator().manual_seed(0))
    output.prediction  # 1×H×W×1, 0 is near and 1 is far
    ```

    Args:
        unet: Velocity field. Its input is the current latent and the image's latent, concatenated.
        vae: Autoencoder of images and depth maps: `AutoencoderKL` (the posterior's mode is used) or `AutoencoderTiny`.
        scheduler: Noise of the source, time grid and solver.
        prompt_embedding: The constant embedding for the UNet's cross-attention, that of the empty prompt.
        default_num_inference_steps: Used when a call names no number of steps.
        default_processing_resolution: Used when a call names no processing resolution; pixels of the longer side, 0
            for the images' own size. The best value is the size that the model was trained at.
        rescale_self_attention: Whether the UNet's self-attention is scaled by the number of tokens, see
            `depthfm_diffusers.models.attention_processor`. Sets the UNet's attention processors.

    Raises:
        TypeError: If a default is not an integer.
        ValueError: If the UNet's input channels are not twice the autoencoder's latent channels, if the embedding's
            width is not what the UNet's cross-attention takes, or if a default is out of its range.
    """

    model_cpu_offload_seq = "prompt_embedding->unet->vae"
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "image_latents"]

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL | AutoencoderTiny,
        scheduler: FlowMatchingImageToDepthScheduler,
        prompt_embedding: PromptEmbedding,
        default_num_inference_steps: int = 2,
        default_processing_resolution: int = 640,
        rescale_self_attention: bool = False,
    ) -> None:
        super().__init__()
        # Components may be `None` until a call: diffusers makes pipelines of some of their components.
        _check_fit(unet, vae, prompt_embedding)
        default_num_inference_steps = _integer("default_num_inference_steps", default_num_inference_steps, 1)
        default_processing_resolution = _integer("default_processing_resolution", default_processing_resolution, 0)
        self.register_modules(unet=unet, vae=vae, scheduler=scheduler, prompt_embedding=prompt_embedding)
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps,
            default_processing_resolution=default_processing_resolution,
            rescale_self_attention=rescale_self_attention,
        )
        self.default_num_inference_steps = default_num_inference_steps
        self.default_processing_resolution = default_processing_resolution
        if unet is not None:
            set_self_attention_rescaling(unet, rescale_self_attention)
        self._num_timesteps = 0
        self._interrupt = False

    @property
    def num_timesteps(self) -> int:
        """Number of network evaluations per image and ensemble member in the last call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the remaining evaluations are skipped; a callback may set `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent pixel, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def check_inputs(
        self,
        num_inference_steps: int,
        ensemble_size: int,
        processing_resolution: int,
        resample_method_input: str,
        resample_method_output: str,
        batch_size: int,
        latents: torch.Tensor | list[torch.Tensor] | None,
        generator: torch.Generator | list[torch.Generator] | None,
        output_type: str,
        output_uncertainty: bool,
        output_normals: bool,
        callback_on_step_end_tensor_inputs: Sequence[str] | None,
        fov_x_deg: float,
    ) -> None:
        """Checks the components, and what can be checked of a call's arguments without looking at the images.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of its range, two exclude each other, a component is missing, or the
                components do not fit together.
        """
        missing = [name for name, component in self.components.items() if component is None]
        if missing:
            raise ValueError(f"The pipeline has no {missing[0]}: set `pipe.{missing[0]}`, or pass it when loading.")
        _check_fit(self.unet, self.vae, self.prompt_embedding)
        if not hasattr(self.scheduler, "augment"):
            raise ValueError(
                "`scheduler` must be a FlowMatchingImageToDepthScheduler, or have its method `augment` (the source of "
                f"the flow), but it is a {type(self.scheduler).__name__}."
            )
        for name, value, minimum in (
            ("num_inference_steps", num_inference_steps, 1),
            ("ensemble_size", ensemble_size, 1),
            ("processing_resolution", processing_resolution, 0),
            ("batch_size", batch_size, 1),
        ):
            _integer(name, value, minimum)
        for name, method in (
            ("resample_method_input", resample_method_input),
            ("resample_method_output", resample_method_output),
        ):
            if method not in RESAMPLE_METHODS:
                raise ValueError(f"`{name}` must be one of {RESAMPLE_METHODS}, got {method!r}.")
        if output_type not in ("np", "pt", "pil", "latent"):
            raise ValueError(f"`output_type` must be 'np', 'pt', 'pil' or 'latent', got {output_type!r}.")
        if output_uncertainty and ensemble_size < 2:
            raise ValueError(
                f"`output_uncertainty=True` needs `ensemble_size` of at least 2 (better 5), got {ensemble_size}."
            )
        if output_type == "latent" and (output_uncertainty or output_normals):
            raise ValueError(
                "`output_uncertainty` and `output_normals` need decoded maps: use another `output_type` than 'latent'."
            )
        if output_normals and not 0 < fov_x_deg < 180:
            raise ValueError(f"`fov_x_deg` must be in (0, 180) degrees, got {fov_x_deg!r}.")
        generators = generator if isinstance(generator, list) else [generator]
        for one in generators:
            if not isinstance(one, torch.Generator) and not (one is None and generator is None):
                raise TypeError(f"`generator` must be a torch.Generator or a list of them, got {type(one).__name__}.")
        names = callback_on_step_end_tensor_inputs
        if names is not None and (isinstance(names, str) or not isinstance(names, Sequence)):
            raise TypeError(
                f"`callback_on_step_end_tensor_inputs` must be a list of names among {self._callback_tensor_inputs}, "
                f"got {names!r}."
            )
        unknown = [name for name in names or () if name not in self._callback_tensor_inputs]
        if unknown:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {unknown}."
            )
        processors = self.unet.attn_processors.values()
        if self.config.rescale_self_attention and not any(
            isinstance(processor, RescaledSelfAttnProcessor) for processor in processors
        ):
            raise ValueError(
                "The pipeline has `rescale_self_attention=True`, but its UNet's attention processors were replaced "
                "(by another UNet, attention slicing or `set_default_attn_processor`). Call "
                "depthfm_diffusers.models.attention_processor.set_self_attention_rescaling(pipe.unet, True)."
            )

    def prepare_latents(
        self,
        sizes: Sequence[tuple[int, int]],
        ensemble_size: int,
        latents: torch.Tensor | Sequence[torch.Tensor] | None,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> list[torch.Tensor]:
        """Draws the Gaussian noise of the sources, or takes it from `latents`.

        Noise is drawn in float32, whatever the dtype of the components, so that a seed means the same in all of them:
        one draw 1×C×h×w per image and member, image by image and member by member.

        Args:
            sizes: Height and width of each image's latent.
            ensemble_size: Number of members E per image.
            latents: The noise itself: N·E×C×h×w for images of one latent size, or a list of N tensors E×C×h×w.
            generator: Source of the noise: one for all, or a list of N·E, image by image, member by member. Not used
                when `latents` are given.

        Returns:
            N tensors E×C×h×w, float32, on the execution device.

        Raises:
            TypeError: If `latents` is neither a tensor nor a list of them.
            ValueError: If a shape or the number of generators does not fit, or `latents` are not finite.
        """
        device = self._execution_device
        channels = self.vae.config.latent_channels
        shapes = [(ensemble_size, channels, *size) for size in sizes]
        if latents is None:
            members = len(sizes) * ensemble_size
            if isinstance(generator, list) and len(generator) != members:
                raise ValueError(
                    "`generator` must be one generator, or a list of one per image and ensemble member, "
                    f"{len(sizes)} × {ensemble_size} = {members}; got {len(generator)}."
                )
            generators = generator if isinstance(generator, list) else [generator] * members
            draws = [
                randn_tensor(
                    (1, *shape[1:]), generator=generators[i * ensemble_size + k], device=device, dtype=torch.float32
                )
                for i, shape in enumerate(shapes)
                for k in range(ensemble_size)
            ]
            return [torch.cat(draws[i : i + ensemble_size]) for i in range(0, members, ensemble_size)]

        if isinstance(latents, torch.Tensor) and len(set(sizes)) == 1:
            expected = (len(sizes) * ensemble_size, *shapes[0][1:])
            if tuple(latents.shape) != expected:
                raise ValueError(
                    f"`latents` must have shape {expected} (images × members, channels, and height and width of the "
                    f"processed image, each divided by {self.vae_scale_factor} and rounded up), got "
                    f"{tuple(latents.shape)}."
                )
            latents = latents.split(ensemble_size)
        elif not isinstance(latents, (list, tuple)) or not all(isinstance(x, torch.Tensor) for x in latents):
            raise TypeError(
                "`latents` must be a tensor, or a list of one tensor per image (for images of several sizes it must "
                f"be a list), got {type(latents).__name__}."
            )
        if [tuple(x.shape) for x in latents] != shapes:
            raise ValueError(
                f"`latents` must be a list of tensors of shapes {shapes} (members, channels, and height and width of "
                f"each processed image, divided by {self.vae_scale_factor} and rounded up), got "
                f"{[tuple(x.shape) for x in latents]}."
            )
        if not all(torch.isfinite(x).all() for x in latents):
            raise ValueError("`latents` hold NaN or infinite values.")
        return [x.to(device=device, dtype=torch.float32) for x in latents]

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes images to scaled latents: the condition c, and the signal of the source.

        Args:
            image: B×3×H×W in [-1, 1], both sides multiples of `vae_scale_factor`.

        Returns:
            Latents, B×C×h×w, float32: posterior mode (or the deterministic encoding) × scaling factor.
        """
        encoded = self.vae.encode(image.to(self.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        return latents.float() * self.vae.config.scaling_factor

    def predict_velocity(
        self, latents: torch.Tensor, image_latents: torch.Tensor, t: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Evaluates the UNet once.

        Args:
            latents: Current state x_t, B×C×h×w.
            image_latents: Condition c, B×C×h×w.
            t: Flow time, one of `scheduler.timesteps`.
            prompt_embeds: The constant embedding, 1×tokens×dim.

        Returns:
            Velocity, B×C×h×w, float32.
        """
        dtype = self.unet.dtype
        model_input = torch.cat([self.scheduler.scale_model_input(latents, t), image_latents], dim=1).to(dtype)
        velocity = self.unet(
            model_input,
            t * self.scheduler.config.timestep_scale,
            encoder_hidden_states=prompt_embeds.to(dtype).expand(latents.shape[0], -1, -1),
            return_dict=False,
        )[0]
        return velocity.float()

    def decode_depth(self, latents: torch.Tensor) -> torch.Tensor:
        """Decodes latents to raw log depth: the mean of the decoded channels, not clamped.

        Args:
            latents: B×C×h×w, scaled, at t = 1.

        Returns:
            Log depth, B×1×H×W, float32, still padded.
        """
        decoded = self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype), return_dict=False)[0]
        return decoded.float().mean(dim=1, keepdim=True)

    @torch.no_grad()
    def __call__(
        self,
        image: Any,
        num_inference_steps: int | None = None,
        ensemble_size: int = 1,
        processing_resolution: int | None = None,
        match_input_resolution: bool = True,
        resample_method_input: str = "bilinear",
        resample_method_output: str = "bilinear",
        batch_size: int = 1,
        latents: torch.Tensor | list[torch.Tensor] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "np",
        output_uncertainty: bool = False,
        output_normals: bool = False,
        output_latent: bool = False,
        callback_on_step_end: Callable[[DepthFMPipeline, int, torch.Tensor, dict[str, torch.Tensor]], dict[str, Any]]
        | PipelineCallback
        | MultiPipelineCallbacks
        | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        return_dict: bool = True,
        fov_x_deg: float = 55.0,
    ) -> DepthFMOutput | tuple:
        """Predicts the depth of images.

        Args:
            image: One image or a list of them, of one size or of several: PIL images, arrays (H×W, H×W×C or N×H×W×C)
                or tensors (H×W, C×H×W or N×C×H×W) with 1 or 3 channels. Floats are in [0, 1]. What becomes of other
                modes and types is said in `depthfm_diffusers.image_processing`.
            num_inference_steps: Steps of the solver; `None`: the model's default.
            ensemble_size: Number of members E: predictions from different noise, whose log depth is averaged.
            processing_resolution: Longer side in pixels at which images are processed, larger or smaller than they
                are; 0: their own size; `None`: the model's default. Both sides are then padded to a multiple of
                `vae_scale_factor`, and the padding is cropped off the result.
            match_input_resolution: Whether maps are resized to the size of the input (upright, for PIL images with an
                EXIF orientation); otherwise they have the processing size.
            resample_method_input: Resampling of images: `"nearest"`, `"nearest-exact"`, `"bilinear"`, `"bicubic"` or
                `"area"`.
            resample_method_output: Resampling of maps, the same choice.
            batch_size: Number of images, or of images × members, that go through a network at once. Changes speed and
                memory, not results.
            latents: Gaussian noise of the sources instead of drawn noise, one per image × member: N·E×C×h×w, or a list
                of N tensors E×C×h×w for images of several sizes; h×w is ceil(height / `vae_scale_factor`) ×
                ceil(width / `vae_scale_factor`) of the image as processed, after resizing to `processing_resolution`.
                A result then depends on its own image and noise only.
            generator: Source of the noise. With one generator all noise is drawn from it, image by image and member by
                member. With a list, of one per image × member in the same order, a result depends on its own image
                and generators only. Not used when `latents` are given.
            output_type: `"np"` (arrays), `"pt"` (tensors on the pipeline's device), `"pil"` (16-bit greyscale images
                of the prediction), or `"latent"` (the predicted latents as `prediction`, nothing decoded).
            output_uncertainty: Whether to return the spread of the ensemble; needs `ensemble_size` of at least 2.
            output_normals: Whether to return surface normals, computed with `fov_x_deg`.
            output_latent: Whether to return the predicted latents.
            callback_on_step_end: Called after each evaluation as `callback(pipe, i, t, tensors)`, with the index and
                the flow time; returns the dict of tensors, in which they may be replaced. Images are grouped by padded
                size: `latents` are those of all images and members of one group, whatever `batch_size`, and the
                evaluations of one group follow those of another.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"` (x_t at the end of the evaluation)
                and `"image_latents"`, both float32 (images × members)×C×h×w. `None` is `["latents"]`.
            return_dict: Whether to return a `DepthFMOutput` instead of a tuple of its fields.
            fov_x_deg: Horizontal field of view in degrees that the normals assume.

        Returns:
            `DepthFMOutput`, or the tuple (prediction, log_depth, uncertainty, normals, latent), `None` where not asked
            for. See `DepthFMOutput` for shapes, ranges and units.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument or an image is not acceptable; nothing has been computed then.
            RuntimeError: If a network's output is not finite (float16 overflow, most likely).
        """
        if num_inference_steps is None:
            num_inference_steps = self.default_num_inference_steps
        if processing_resolution is None:
            processing_resolution = self.default_processing_resolution
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs

        # 1. Check the arguments, prepare images and noise. Nothing may fail after this for the caller's mistakes.
        self.check_inputs(
            num_inference_steps,
            ensemble_size,
            processing_resolution,
            resample_method_input,
            resample_method_output,
            batch_size,
            latents,
            generator,
            output_type,
            output_uncertainty,
            output_normals,
            callback_on_step_end_tensor_inputs,
            fov_x_deg,
        )
        # NumPy's integers are accepted; from here on they are Python's.
        num_inference_steps, ensemble_size = operator.index(num_inference_steps), operator.index(ensemble_size)
        processing_resolution, batch_size = operator.index(processing_resolution), operator.index(batch_size)
        if callback_on_step_end_tensor_inputs is None:
            callback_on_step_end_tensor_inputs = ["latents"]
        images = [
            process_image(one, processing_resolution, resample_method_input, self.vae_scale_factor)
            for one in load_images(image)
        ]
        if output_normals and any(min(_output_size(one, match_input_resolution)) < 2 for one in images):
            raise ValueError("`output_normals=True` needs maps of at least 2 pixels along each side.")
        factor = self.vae_scale_factor
        sizes = [(one.pixels.shape[-2] // factor, one.pixels.shape[-1] // factor) for one in images]
        for one, size in zip(images, sizes, strict=True):
            self._check_latent_size(size, one.original_size)
        noise = self.prepare_latents(sizes, ensemble_size, latents, generator)

        # 2. The constant embedding. Called as a module, so that offloading hooks fire.
        device = self._execution_device
        prompt_embeds = self.prompt_embedding(1).to(device)

        # 3. Carry the latents from images to depth maps, one group of images of equal padded size after the other.
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(sizes):
            groups.setdefault(size, []).append(i)
        self._interrupt = False
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        self._num_timesteps = len(self.scheduler.timesteps)
        evaluations = sum(math.ceil(len(group) * ensemble_size / batch_size) for group in groups.values())

        predicted: dict[int, torch.Tensor] = {}  # per image, E×C×h×w
        members: dict[int, torch.Tensor] = {}  # per image, E×1×PH×PW
        with self.progress_bar(total=evaluations * self._num_timesteps) as progress_bar:
            for group in groups.values():
                # Each image is encoded once, however many members it has.
                pixels = torch.cat([images[i].pixels.to(device) for i in group])
                encoded = torch.cat([self.encode_image(batch) for batch in pixels.split(batch_size)])
                self._check_finite(encoded, "vae", "image latents")
                result = self.denoise(
                    encoded.repeat_interleave(ensemble_size, dim=0),
                    torch.cat([noise[i] for i in group]),
                    prompt_embeds,
                    num_inference_steps,
                    batch_size,
                    progress_bar.update,
                    callback_on_step_end,
                    callback_on_step_end_tensor_inputs,
                )
                self._check_finite(result, "unet", "predicted latents")
                predicted.update(zip(group, result.split(ensemble_size), strict=True))
                if output_type != "latent":
                    decoded = torch.cat([self.decode_depth(batch) for batch in result.split(batch_size)])
                    self._check_finite(decoded, "vae", "decoded maps")
                    members.update(zip(group, decoded.split(ensemble_size), strict=True))

        # 4. Ensemble and resize in log depth; depth and normals come last.
        one_size = len({one.original_size for one in images}) == 1
        in_order = [predicted[i] for i in range(len(images))]
        latent = torch.cat(in_order) if one_size else in_order
        log_depths, uncertainties, normals = [], [], []
        for i, one in enumerate(images if members else []):
            cropped = unpad(members.pop(i), one.padding)
            size = _output_size(one, match_input_resolution)
            log_depths.append(resize(ensemble_log_depth(cropped)[None], size, resample_method_output))
            if output_uncertainty:
                # Bicubic interpolation overshoots, and a standard deviation is not negative.
                uncertainty = resize(ensemble_uncertainty(cropped)[None], size, resample_method_output)
                uncertainties.append(uncertainty.clamp_min(0))
            if output_normals:
                depth = torch.exp(log_depths[-1] - log_depths[-1].max())
                normals.append(depth_to_normals(depth, intrinsics_from_fov(fov_x_deg, *size)))
        depths = [depth_from_log_depth(one) for one in log_depths]
        prediction: Maps | list[Image.Image] | None
        if output_type == "latent":
            prediction = latent
        elif output_type == "pil":
            prediction = [_to_pil(one) for one in depths]
        else:
            prediction = collect_maps(depths, one_size, output_type)

        # 5. Offload all models.
        self.maybe_free_model_hooks()

        output = DepthFMOutput(
            prediction=prediction,
            log_depth=collect_maps(log_depths, one_size, output_type),
            uncertainty=collect_maps(uncertainties, one_size, output_type),
            normals=collect_maps(normals, one_size, output_type),
            latent=latent if output_latent else None,
        )
        if not return_dict:
            return (output.prediction, output.log_depth, output.uncertainty, output.normals, output.latent)
        return output

    def denoise(
        self,
        image_latents: torch.Tensor,
        noise: torch.Tensor,
        prompt_embeds: torch.Tensor,
        num_inference_steps: int,
        batch_size: int,
        on_evaluation: Callable[[], object],
        callback_on_step_end: Callable[..., dict[str, Any]] | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
    ) -> torch.Tensor:
        """Carries latents of one size from the images to their depth maps.

        The state of all of them is stepped at once, and only the network's evaluations are split into batches: a
        callback sees each step once, and a solver of several stages needs no state per batch.

        Args:
            image_latents: Condition c, B×C×h×w, float32.
            noise: Gaussian noise of the source, B×C×h×w, float32.
            prompt_embeds: The constant embedding, 1×tokens×dim.
            num_inference_steps: Steps of the solver.
            batch_size: Number of latents per evaluation of the UNet.
            on_evaluation: Called after each evaluation of the UNet, for progress.
            callback_on_step_end: See `__call__`.
            callback_on_step_end_tensor_inputs: See `__call__`.

        Returns:
            Latents at t = 1, B×C×h×w, float32.

        Raises:
            TypeError: If the callback returns something else than a dict.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=image_latents.device)
        latents = self.scheduler.augment(image_latents, noise)
        for i, t in enumerate(self.scheduler.timesteps):
            if self.interrupt:
                continue
            velocities = []
            for batch in zip(latents.split(batch_size), image_latents.split(batch_size), strict=True):
                velocities.append(self.predict_velocity(*batch, t, prompt_embeds))
                on_evaluation()
            latents = self.scheduler.step(torch.cat(velocities), t, latents, return_dict=False)[0]

            if callback_on_step_end is not None:
                tensors = {"latents": latents, "image_latents": image_latents}
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                returned = callback_on_step_end(self, i, t, given)
                if not isinstance(returned, dict):
                    raise TypeError(
                        "`callback_on_step_end` must return the dict of tensors that it was given, changed or not; it "
                        f"returned {type(returned).__name__}."
                    )
                latents = returned.get("latents", latents)
                image_latents = returned.get("image_latents", image_latents)
        return latents

    def _check_latent_size(self, latent_size: tuple[int, int], original_size: tuple[int, int]) -> None:
        """Raises if a network's group normalisation would get a single value per group, which has no variance.

        That takes a feature map of 1×1 where a level has one channel per group: tiny images in narrow networks.
        """
        unet, vae = self.unet.config, self.vae.config
        # Per network: groups, and from where the map has its latent's size, the channels normalised at each halving.
        levels = [unet.block_out_channels[max(0, i - 1) : i + 1] for i in range(len(unet.block_out_channels))]
        for name, groups, widths in (
            ("unet", unet.norm_num_groups, levels),
            ("vae", vae.get("norm_num_groups"), [vae.block_out_channels[-2:]]),
        ):
            if any(max(latent_size) <= 2**level and groups in width for level, width in enumerate(widths)):
                raise ValueError(
                    f"An image of {original_size[0]}×{original_size[1]} pixels (height × width) is processed too "
                    f"small for the `{name}`, which shrinks it to a single value per group of channels: use a larger "
                    "`processing_resolution`."
                )

    def _check_finite(self, tensor: torch.Tensor, component: str, what: str) -> None:
        """Raises if a network's output holds NaN or infinite values, with what to do about it."""
        if torch.isfinite(tensor).all():
            return
        dtype = getattr(self, component).dtype
        if dtype == torch.float16:
            advice = (
                "float16 has overflowed, most likely: load the pipeline in bfloat16 (`dtype=torch.bfloat16`), or keep "
                "the autoencoder in float32 (`pipe.vae.to(torch.float32)`)."
            )
        else:
            advice = "The weights may be damaged or not meant for this configuration; float16 is not the cause."
        raise RuntimeError(f"The {what} hold NaN or infinite values (`{component}` runs in {dtype}). {advice}")


def _integer(name: str, value: Any, minimum: int) -> int:
    """Makes an `int` of an integer of any library; `name` is what errors call it."""
    try:
        integer = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None:
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if integer < minimum:
        raise ValueError(f"`{name}` must be at least {minimum}, got {integer}.")
    return integer


def _check_fit(
    unet: UNet2DConditionModel | None,
    vae: AutoencoderKL | AutoencoderTiny | None,
    prompt_embedding: PromptEmbedding | None,
) -> None:
    """Raises if components, where they are given, do not fit together."""
    if unet is not None and vae is not None and unet.config.in_channels != 2 * vae.config.latent_channels:
        raise ValueError(
            f"`unet` must take {2 * vae.config.latent_channels} channels (the current latent and the image's "
            f"latent of the `vae`), but it takes {unet.config.in_channels}."
        )
    if unet is not None and prompt_embedding is not None:
        # The width may be given per level, and a projection may come before the cross-attention.
        taken = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
        widths = set(taken) if isinstance(taken, (list, tuple)) else {taken}
        if widths != {prompt_embedding.config.dim}:
            raise ValueError(
                f"`prompt_embedding` must have the width of the `unet`'s cross-attention, {taken}, but it has "
                f"{prompt_embedding.config.dim}."
            )


def _output_size(image: ProcessedImage, match_input_resolution: bool) -> tuple[int, int]:
    """Height and width of an image's maps."""
    if match_input_resolution:
        return image.original_size
    return image.pixels.shape[-2] - image.padding[0], image.pixels.shape[-1] - image.padding[1]


def _to_pil(depth: torch.Tensor) -> Image.Image:
    """Makes a 16-bit greyscale image of a depth map 1×1×H×W in [0, 1]."""
    return Image.fromarray((depth[0, 0] * 65535).round().cpu().numpy().astype(np.uint16))
