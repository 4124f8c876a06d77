"""Pipeline from images to depth maps by flow matching."""

from __future__ import annotations

import copy
import itertools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from ...focal_length import DEFAULT_FOV_X_DEG
from ...image_processing import process_images
from ...loaders.lora import UNetLoraLoaderMixin
from ...loaders.registration import NativeLibraryNamesMixin
from ...models.attention_processor import set_self_attention_rescaling
from ...models.image_encoder import ImageEncoder
from ...models.prompt_embedding import PromptEmbedding
from ...schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ..optional_components import AbsentComponentsMixin
from ..pipeline_output import DepthFMOutput
from . import checks
from .call_state import CallStateMixin
from .further_channels import further_channels, takes_partial_depth
from .image_maps import decode_log_depth, latent_size, make_output, output_size
from .tiling import enlarge_tiles


class DepthFMPipeline(
    NativeLibraryNamesMixin, AbsentComponentsMixin, CallStateMixin, DiffusionPipeline, UNetLoraLoaderMixin
):
    """Pipeline for monocular depth estimation with [DepthFM](https://arxiv.org/abs/2403.13788).

    The latent of an image, with a little noise added, is carried along a learnt velocity field from t = 0 (image) to
    t = 1 (depth map), in a few steps or a single one. The pipeline inherits loading, saving, devices and offloading
    from `DiffusionPipeline`, and LoRA for its UNet from diffusers' `StableDiffusionLoraLoaderMixin`. Several threads
    may call one pipeline at the same time: each call has a state of its own, and steps a copy of the scheduler.

    ```python
    pipe = DepthFMPipeline.from_pretrained(default_model_path())
    output = pipe(load_image("photo.jpg"), ensemble_size=4, generator=torch.Generator().manual_seed(0))
    output.prediction  # 1×H×W×1, 0 is near and 1 is far
    ```

    Args:
        unet: Velocity field. Its input is the current latent and the image's latent, concatenated; then what is known
            of the depth, if it was trained for completion; and the image's features, if there is an `image_encoder`.
        vae: Autoencoder of images and depth maps: `AutoencoderKL` (the posterior's mode is used) or `AutoencoderTiny`.
        scheduler: Noise of the source, time grid and solver.
        prompt_embedding: The constant embedding for the UNet's cross-attention, that of the empty prompt.
        default_num_inference_steps: Used when a call names no number of steps.
        default_processing_resolution: The same for the processing resolution: pixels of the longer side, 0 for the
            images' own size. Best is the size that the model was trained at. Tiles of the `vae` are at least as large.
        rescale_self_attention: Whether the UNet's self-attention is scaled by the number of tokens, see
            `depthfm_diffusers.models.attention_processor`. Sets the UNet's attention processors.
        image_encoder: Encoder of features of the image for the UNet's input, or `None`: the authors' models have none.

    Raises:
        TypeError: If a default is not an integer.
        ValueError: If the components do not fit together, or a default is out of its range.
    """

    model_cpu_offload_seq = "prompt_embedding->image_encoder->unet->vae"
    _optional_components: ClassVar[list[str]] = ["image_encoder"]
    _left_out_if_none = ("image_encoder",)
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
        image_encoder: ImageEncoder | None = None,
    ) -> None:
        super().__init__()
        # Components may be `None` until a call: diffusers makes pipelines of some of their components.
        checks.check_components_fit(unet, vae, prompt_embedding, image_encoder)
        steps = checks.as_integer("default_num_inference_steps", default_num_inference_steps, 1)
        resolution = checks.as_integer("default_processing_resolution", default_processing_resolution, 0)
        self.register_modules(
            unet=unet, vae=vae, scheduler=scheduler, prompt_embedding=prompt_embedding, image_encoder=image_encoder
        )
        self.register_to_config(
            default_num_inference_steps=steps,
            default_processing_resolution=resolution,
            rescale_self_attention=rescale_self_attention,
        )
        self.default_num_inference_steps, self.default_processing_resolution = steps, resolution
        if unet is not None:
            set_self_attention_rescaling(unet, rescale_self_attention)
        if vae is not None:
            enlarge_tiles(vae, default_processing_resolution)

    @property
    def vae_scale_factor(self) -> int:
        """Pixels per latent pixel, along one side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def takes_partial_depth(self) -> bool:
        """Whether the UNet has input channels for known depth, which are 0 in a call of this pipeline."""
        return takes_partial_depth(self.unet, self.vae, self.image_encoder)

    def check_inputs(
        self,
        num_inference_steps: int,
        ensemble_size: int,
        processing_resolution: int,
        resample_method_input: str,
        resample_method_output: str,
        batch_size: int,
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
            ValueError: If an argument is out of its range or excludes another, or a component is missing or unfit.
        """
        checks.check_components(self.components, self._optional_components, self.config.rescale_self_attention)
        checks.as_integer("num_inference_steps", num_inference_steps, 1)
        checks.as_integer("ensemble_size", ensemble_size, 1)
        checks.as_integer("processing_resolution", processing_resolution, 0)
        checks.as_integer("batch_size", batch_size, 1)
        checks.check_resample_method("resample_method_input", resample_method_input)
        checks.check_resample_method("resample_method_output", resample_method_output)
        checks.check_outputs(output_type, output_uncertainty, output_normals, ensemble_size, fov_x_deg)
        checks.check_generator(generator)
        checks.check_callback_tensor_inputs(callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

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
        if latents is not None:
            given = checks.check_noise(latents, sizes, ensemble_size, channels, self.vae_scale_factor)
            return [x.to(device=device, dtype=torch.float32) for x in given]
        checks.check_number_of_generators(generator, len(sizes), ensemble_size)
        generators = itertools.cycle(generator if isinstance(generator, list) else [generator])

        def draw(size: tuple[int, int]) -> torch.Tensor:
            return randn_tensor((1, channels, *size), next(generators), device=device, dtype=torch.float32)

        return [torch.cat([draw(size) for _ in range(ensemble_size)]) for size in sizes]

    def encode_image(self, image: torch.Tensor) -> torch.Tensor:
        """Encodes images to latents as the UNet takes them: the condition c, and the signal of the source.

        Args:
            image: B×3×H×W in [-1, 1], both sides multiples of `vae_scale_factor`.

        Returns:
            Latents, B×C×h×w, float32: (z - shift factor) × scaling factor, z being the posterior's mode (or the
            deterministic encoding).
        """
        encoded = self.vae.encode(image.to(self.vae.dtype))
        latents = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        shift = self.vae.config.get("shift_factor") or 0.0  # `None` or 0 in most autoencoders
        return (latents.float() - shift) * self.vae.config.scaling_factor

    def predict_velocity(
        self, latents: torch.Tensor, image_latents: torch.Tensor, t: torch.Tensor, prompt_embeds: torch.Tensor
    ) -> torch.Tensor:
        """Evaluates the UNet once.

        Args:
            latents: Current state x_t, B×C×h×w.
            image_latents: Condition c, B×C×h×w, followed by the UNet's channels of the module `further_channels`.
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
            latents: B×C×h×w at t = 1, scaled and shifted as `encode_image` does.

        Returns:
            Log depth, B×1×H×W, float32, still padded.
        """
        return decode_log_depth(self.vae, latents)

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
        callback_on_step_end: Callable[..., dict[str, Any]] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] | None = ("latents",),
        return_dict: bool = True,
        fov_x_deg: float = DEFAULT_FOV_X_DEG,
    ) -> DepthFMOutput | tuple:
        """Predicts the depth of images.

        Args:
            image: One image or a list of them, of one size or of several: PIL images, arrays (H×W, H×W×C or N×H×W×C)
                or tensors (H×W, C×H×W or N×C×H×W) with 1 or 3 channels. Floats are in [0, 1]. What becomes of other
                modes and types is said in `depthfm_diffusers.image_processing`.
            num_inference_steps: Steps of the solver; `None`: the model's default.
            ensemble_size: Number of members E, whose log depth is averaged: predictions from different noise.
            processing_resolution: Longer side in pixels at which images are processed, larger or smaller than they
                are; 0: their own size; `None`: the model's default. Both sides are then padded to a multiple of
                `vae_scale_factor`, and the padding is cropped off the result.
            match_input_resolution: Whether maps are resized to the size of the input (upright, for PIL images with an
                EXIF orientation); otherwise they have the processing size.
            resample_method_input: Resampling of images, one of `image_processing.RESAMPLE_METHODS`.
            resample_method_output: Resampling of maps, the same choice.
            batch_size: Number of images × members that go through a network at once; does not change results.
            latents: Gaussian noise of the sources instead of drawn noise, one per image × member: N·E×C×h×w, or a list
                of N tensors E×C×h×w for images of several sizes; h and w are the sides of the processed image divided
                by `vae_scale_factor`, rounded up. A result then depends on its own image and noise only.
            generator: Source of the noise. With one generator all noise is drawn from it, image by image and member by
                member. With a list, of one per image × member in the same order, a result depends on its own image
                and generators only. Not used when `latents` are given.
            output_type: `"np"` (arrays), `"pt"` (tensors on the pipeline's device), `"pil"` (16-bit greyscale images
                of the prediction), or `"latent"` (the predicted latents as `prediction`, nothing decoded).
            output_uncertainty: Whether to return the spread of the ensemble; needs `ensemble_size` of at least 2.
            output_normals: Whether to return surface normals, computed with `fov_x_deg`.
            output_latent: Whether to return the predicted latents.
            callback_on_step_end: Called after each evaluation as `callback(pipe, i, t, tensors)`, with the index and
                the flow time; returns the dict of tensors, in which they may be replaced. Images are processed in
                groups of one padded size, and `latents` are those of all images and members of a group, whatever
                `batch_size`. `pipe._interrupt = True` skips the remaining evaluations, see below.
            callback_on_step_end_tensor_inputs: What the callback gets: `"latents"` (x_t at the end of the evaluation)
                and `"image_latents"`, both float32 (images × members)×C×h×w. `None` is `["latents"]`.
            return_dict: Whether to return a `DepthFMOutput` instead of a tuple of its fields.
            fov_x_deg: Horizontal field of view in degrees that the normals assume; that of a picture file is
                `focal_length_pixels(path).fov_x_deg(width)`, see `depthfm_diffusers.focal_length`.

        Returns:
            `DepthFMOutput`, or the tuple (prediction, log_depth, uncertainty, normals, latent), `None` where not asked
            for. An interrupted call returns maps of the unfinished latents, as diffusers' pipelines do, and `None` for
            an image whose group was not begun (in place of all maps together, if none was).

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

        # 1. Check the arguments, prepare images and noise: no mistake of the caller may cause an error after this.
        self.check_inputs(
            num_inference_steps,
            ensemble_size,
            processing_resolution,
            resample_method_input,
            resample_method_output,
            batch_size,
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
        images = process_images(image, processing_resolution, resample_method_input, self.vae_scale_factor)
        if output_normals and any(min(output_size(one, match_input_resolution)) < 2 for one in images):
            raise ValueError("`output_normals=True` needs maps of at least 2 pixels along each side.")
        sizes = [latent_size(one, self.vae_scale_factor) for one in images]
        for one, size in zip(images, sizes, strict=True):
            checks.check_latent_size(self.unet, self.vae, size, one.original_size)
        noise = self.prepare_latents(sizes, ensemble_size, latents, generator)

        # 2. The constant embedding. Called as a module, so that offloading hooks fire.
        device = self._execution_device
        prompt_embeds = self.prompt_embedding(1).to(device)

        # 3. Carry the latents from images to depth maps, in groups of images of equal padded size.
        groups = [[i for i, size in enumerate(sizes) if size == one] for one in dict.fromkeys(sizes)]
        num_timesteps = num_inference_steps * self.scheduler.order
        evaluations = sum(math.ceil(len(group) * ensemble_size / batch_size) for group in groups)

        predicted: dict[int, torch.Tensor] = {}  # per image, E×C×h×w
        members: dict[int, torch.Tensor] = {}  # per image, E×1×PH×PW
        with self._new_call(num_timesteps), self.progress_bar(total=evaluations * num_timesteps) as progress_bar:
            for group in groups:
                if self.interrupt:
                    break
                # Each image is encoded once, however many members it has.
                pixels = torch.cat([images[i].pixels.to(device) for i in group])
                encoded = torch.cat([self.encode_image(batch) for batch in pixels.split(batch_size)])
                checks.check_finite(encoded, "image latents", "vae", self.vae.dtype)
                channels = further_channels(self, pixels, batch_size)
                if self.image_encoder is not None:
                    checks.check_finite(channels, "image features", "image_encoder", self.image_encoder.dtype)
                encoded, drawn = encoded.repeat_interleave(ensemble_size, dim=0), torch.cat([noise[i] for i in group])
                channels = channels.repeat_interleave(ensemble_size, dim=0)
                callback = callback_on_step_end, callback_on_step_end_tensor_inputs
                flow = prompt_embeds, num_inference_steps, batch_size, progress_bar.update
                result = self.denoise(encoded, drawn, *flow, *callback, channels)
                if result is None:
                    break
                checks.check_finite(result, "predicted latents", "unet", self.unet.dtype)
                predicted.update(zip(group, result.split(ensemble_size), strict=True))
                if output_type != "latent":
                    decoded = torch.cat([self.decode_depth(batch) for batch in result.split(batch_size)])
                    checks.check_finite(decoded, "decoded maps", "vae", self.vae.dtype)
                    members.update(zip(group, decoded.split(ensemble_size), strict=True))

        # 4. Ensemble and resize. Without an interruption, every image has its members.
        output = make_output(
            images,
            [members.get(i) for i in range(len(images))],
            [predicted.get(i) for i in range(len(images))],
            match_input_resolution,
            resample_method_output,
            output_type,
            output_uncertainty,
            output_latent,
            fov_x_deg if output_normals else None,
        )

        # 5. Offload all models.
        self.maybe_free_model_hooks()

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
        further_channels: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
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
            further_channels: See the module `further_channels`; `None` is the same as no channels.

        Returns:
            Latents at t = 1, B×C×h×w, float32; of an earlier time if the call was interrupted, and `None` if it was
            before the first evaluation.

        Raises:
            TypeError: If the callback returns something else than a dict.
        """
        scheduler = copy.copy(self.scheduler)
        scheduler.set_timesteps(num_inference_steps, device=image_latents.device)
        latents = None
        for i, t in enumerate(scheduler.timesteps):
            if self.interrupt:
                continue
            if latents is None:
                latents = scheduler.augment(image_latents, noise)
            velocities = []
            condition = image_latents if further_channels is None else torch.cat([image_latents, further_channels], 1)
            for batch in zip(latents.split(batch_size), condition.split(batch_size), strict=True):
                velocities.append(self.predict_velocity(*batch, t, prompt_embeds))
                on_evaluation()
            latents = scheduler.step(torch.cat(velocities), t, latents, return_dict=False)[0]

            if callback_on_step_end is not None:
                tensors = {"latents": latents, "image_latents": image_latents}
                given = {name: tensors[name] for name in callback_on_step_end_tensor_inputs}
                tensors |= checks.returned_tensors(callback_on_step_end(self, i, t, given))
                latents, image_latents = tensors["latents"], tensors["image_latents"]
        return latents
