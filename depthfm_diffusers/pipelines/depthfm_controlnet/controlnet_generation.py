"""The call of the three ControlNet pipelines: its checks, control images made of depth, and diffusers' own loop."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from PIL import Image

from ...control_image import check_control_arguments, control_image_from_log_depth
from ...image_processing import depth_from_log_depth, load_images
from ..pipeline_output import collect_maps
from .controlnet_checks import (
    aligned_guidance,
    check_crop,
    check_generators,
    check_ip_adapter,
    check_latents,
    check_numbers,
    check_options,
    check_prompts,
    count_prompts,
)
from .controlnet_components import ControlNetComponentsMixin
from .controlnet_inputs import InitialImages, Size, load_log_depths, to_pil
from .controlnet_noise import depth_generator
from .pipeline_output import DepthFMControlNetOutput

# Of `DepthFMPipeline.__call__`, what a pipeline that makes control images decides by itself.
_SET_BY_THE_PIPELINE = {
    "image",
    "match_input_resolution",
    "output_type",
    "output_uncertainty",
    "output_normals",
    "output_latent",
    "return_dict",
    "fov_x_deg",
}


class ControlNetGenerationMixin(ControlNetComponentsMixin):
    """Makes control images of depth for one of diffusers' Stable Diffusion ControlNet pipelines.

    Among the bases of a class, this one comes before diffusers' pipeline. It has no denoising loop: diffusers' own
    `__call__` gets the control images.

    Depth is estimated once per image, whatever the number of ControlNets, prompts and images per prompt. The latents
    of the depth estimator are not used for the image that generation starts from, even if both parts share their
    autoencoder: depth is estimated at `processing_resolution`, bilinearly resized and padded, from the mode of
    the posterior; generation starts at `height`×`width`, cropped by diffusers' filter, from a sample of the posterior.
    """

    def generate_from_depth(
        self, generate: Callable[..., Any], call: Mapping[str, Any], initial: InitialImages | None
    ) -> DepthFMControlNetOutput | tuple:
        """Checks a call, makes the control images, and runs diffusers' pipeline on them.

        Args:
            generate: diffusers' `__call__`, bound.
            call: Arguments of the pipeline's own `__call__`, by name. Those that `generate` also has are passed to it,
                all others are about the control images.
            initial: Images that generation starts from, whose depth is used too; `generate` takes the control image as
                `control_image` then. `None` for text-to-image, where `image` is a photo whose depth is estimated, and
                `generate` takes the control image as `image`.

        Returns:
            The output, or the tuple of its fields.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is not acceptable. No network has run then.
        """
        # 1. Check everything, with blank pictures in place of the control images that are still to be made.
        self.check_components()
        check_control_arguments(call["control_mode"], call["control_percentiles"])
        check_numbers(call)
        estimator_arguments = self._check_depth_kwargs(call["depth_kwargs"])
        given = self._check_control_image(call["control_image"])
        needs_depth = any(entry is None for entry in given)
        images, log_depths = self._load_depth_source(call, initial)
        sizes = self._check_depth_source(needs_depth, images, log_depths, initial)

        arguments = self._arguments_of_diffusers(inspect.signature(generate).parameters, call, initial, sizes)
        blank = [Image.new("RGB", (width, height)) for height, width in sizes]
        num_images = len(sizes if initial is None else initial.sizes)
        self._check_generation(arguments, self._arrange_controls(blank, given, arguments), num_images)

        # 2. Depth, unless it is given or not needed.
        if needs_depth and images is not None and log_depths is None:
            log_depths = self._predict_log_depth(images, estimator_arguments, arguments)
        log_depths = log_depths or []
        # 8-bit pictures, as diffusers takes them: it resizes and crops those as it does a user's own.
        control = call["control_mode"], call["control_percentiles"]
        made = [to_pil(control_image_from_log_depth(one, *control)) for one in log_depths]

        # 3. diffusers' own loop.
        control_name = "image" if initial is None else "control_image"
        arguments |= {control_name: self._arrange_controls(made, given, arguments), "return_dict": True}
        generated = generate(**arguments)
        one_size = len(set(sizes)) == 1
        output = DepthFMControlNetOutput(
            images=generated.images,
            nsfw_content_detected=generated.nsfw_content_detected,
            depth=collect_maps([depth_from_log_depth(x) for x in log_depths], one_size, arguments["output_type"]),
            log_depth=collect_maps(log_depths, one_size, arguments["output_type"]),
            control_image=made or None,
        )
        if not call["return_dict"]:
            return (
                output.images,
                output.nsfw_content_detected,
                output.depth,
                output.log_depth,
                output.control_image,
            )
        return output

    def _load_depth_source(
        self, call: Mapping[str, Any], initial: InitialImages | None
    ) -> tuple[list[torch.Tensor] | None, list[torch.Tensor] | None]:
        """Returns images 1×3×H×W to estimate the depth of, and given log depth 1×1×H×W; `None` for what is missing."""
        log_depths = load_log_depths(call["depth"], call["log_depth"])
        if initial is not None:
            initial.check_depth_sizes(log_depths, self.vae_scale_factor)
            return initial.loaded, log_depths
        images = None if call["image"] is None else load_images(call["image"])
        if images is not None and log_depths is not None:
            raise ValueError("Pass `image` to estimate its depth, or `depth` or `log_depth` itself, not both.")
        return images, log_depths

    def _arguments_of_diffusers(
        self,
        accepted: Collection[str],
        call: Mapping[str, Any],
        initial: InitialImages | None,
        sizes: Sequence[Size],
    ) -> dict[str, Any]:
        """Returns the arguments that diffusers' `__call__` accepts, as it takes them, without control images."""
        arguments = {name: value for name, value in call.items() if name in accepted}
        names = call["callback_on_step_end_tensor_inputs"]
        arguments["callback_on_step_end_tensor_inputs"] = ["latents"] if names is None else list(names)
        if initial is None:
            self._set_output_size(arguments, sizes)
            return arguments
        self._set_output_size(arguments, initial.sizes)
        initial.check_output_size(arguments["height"], arguments["width"])
        return arguments | initial.for_diffusers(call["num_images_per_prompt"])

    def _predict_log_depth(
        self, images: list[torch.Tensor], estimator_arguments: dict[str, Any], arguments: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Estimates the log depth of each image, 1×1×H×W, float32.

        The noise has generators of its own, whose seeds follow from those of the call's generators: one seed fixes
        everything, the depth's noise is not the noise of diffusers' loop, and that loop finds the call's generators as
        it would find them without depth estimation.

        Raises:
            RuntimeError: If a callback has interrupted the estimation, or an output is not finite.
        """
        generator = arguments["generator"]
        if generator is not None and not estimator_arguments.keys() & {"generator", "latents"}:
            if isinstance(generator, list):
                members = estimator_arguments.get("ensemble_size", 1)
                own = [depth_generator(generator[i * arguments["num_images_per_prompt"]]) for i in range(len(images))]
                estimator_arguments["generator"] = [one for one in own for _ in range(members)]
            else:
                estimator_arguments["generator"] = depth_generator(generator)
        estimator_arguments |= {"output_type": "pt", "return_dict": False}
        estimator = self.depth_estimator
        _, log_depths, *_ = estimator(images, **estimator_arguments)
        # With model offloading, nothing of the depth estimator stays on the accelerator from here on.
        self.maybe_free_model_hooks()
        if estimator.interrupt:
            raise RuntimeError(
                "The depth estimation was interrupted by the callback in `depth_kwargs`: there is no finished "
                "depth to make a control image of."
            )
        return [one[None] for one in log_depths]

    def _arrange_controls(self, made: list[Image.Image], given: list[Any], arguments: Mapping[str, Any]) -> Any:
        """Puts control images into the form that diffusers takes: one entry, or a list of one entry per ControlNet."""
        arranged = []
        for entry in given:
            control = made if entry is None else entry
            if isinstance(control, list) and len(control) == 1:
                control = control[0]
            elif isinstance(control, list) and self.has_several_controlnets:
                # Lists of lists mean other things in each of diffusers' pipelines; a tensor is a batch in all of them.
                control = self.control_image_processor.preprocess(
                    control, height=arguments["height"], width=arguments["width"]
                )
            arranged.append(control)
        return arranged if self.has_several_controlnets else arranged[0]

    def _set_output_size(self, arguments: dict[str, Any], sizes: Sequence[Size]) -> None:
        """Sets `height` and `width` of the generated images, which diffusers would take from the control image.

        With several ControlNets, diffusers would prepare each control image in its own size, and initial images in
        theirs. `sizes` are those of the photos or depth maps; if there are none, diffusers takes the size from the
        user's control images.
        """
        if not sizes:
            return
        asked = arguments["height"], arguments["width"]
        if len(set(sizes)) > 1 and None in asked:
            raise ValueError(
                f"The images or depth maps are of several sizes, (height, width) {list(sizes)}, but the generated "
                "ones are of one: pass `height` and `width`."
            )
        height, width = sizes[0]
        arguments["height"], arguments["width"] = self.control_image_processor.get_default_height_width(
            Image.new("RGB", (width, height)), *asked
        )
        if min(arguments["height"], arguments["width"]) < 1:
            raise ValueError(
                f"The generated images would have no pixels: both sides must be at least {self.vae_scale_factor} "
                f"pixels, but the first image is {height}×{width}. Pass `height` and `width`."
            )

    def _check_depth_kwargs(self, depth_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Raises if `depth_kwargs` has a key that is set by the pipeline, which would be ignored; returns a copy."""
        if not isinstance(depth_kwargs, Mapping) and depth_kwargs is not None:
            raise TypeError(
                "`depth_kwargs` must be a dict of arguments of the depth estimator, got "
                f"{type(depth_kwargs).__name__}."
            )
        ignored = [name for name in depth_kwargs or {} if name in _SET_BY_THE_PIPELINE]
        if ignored:
            raise TypeError(f"`depth_kwargs` has the key {ignored[0]!r}, which the pipeline sets itself.")
        return dict(depth_kwargs or {})

    def _check_control_image(self, control_image: Any) -> list[Any]:
        """Returns one entry per ControlNet, `None` where the control image is made of the depth."""
        count = len(self.controlnets)
        if control_image is None:
            return [None] * count
        is_list = self.has_several_controlnets and isinstance(control_image, (list, tuple))
        given = list(control_image) if is_list else [control_image]
        if len(given) != count:
            raise ValueError(
                f"`control_image` must be a list of {count} entries, one per ControlNet (`None` where the depth is to "
                f"be used), got {len(given)}."
            )
        if any(isinstance(entry, list) and not entry for entry in given):
            raise ValueError("`control_image` holds an empty list: pass at least one control image, or `None`.")
        return given

    def _check_depth_source(
        self,
        needs_depth: bool,
        images: list[torch.Tensor] | None,
        log_depths: list[torch.Tensor] | None,
        initial: InitialImages | None,
    ) -> list[Size]:
        """Checks that there is something to make control images of, and nothing unused; returns its sizes."""
        if not needs_depth:
            if log_depths is not None or (images is not None and initial is None):
                raise ValueError(
                    "`control_image` is given for every ControlNet, so that `image`, `depth` or `log_depth` would not "
                    "be used: pass only the one or the other."
                )
            return []
        if log_depths is not None:
            return [(one.shape[-2], one.shape[-1]) for one in log_depths]
        if images is None:
            raise ValueError(
                "There is nothing to make a control image of: pass `depth` or `log_depth`"
                + (", or an `image` to estimate it of." if initial is None else ", for `image` holds latents.")
            )
        for name in ("depth_unet", "depth_vae", "depth_scheduler", "depth_prompt_embedding"):
            if getattr(self, name) is None:
                raise ValueError(f"The pipeline has no {name}: set `pipe.{name}`, or pass `depth` or `log_depth`.")
        return [(one.shape[-2], one.shape[-1]) for one in images]

    def _check_generation(self, arguments: Mapping[str, Any], controls: Any, num_images: int) -> None:
        """Checks the arguments of diffusers' `__call__`: by its own `check_inputs`, then what that does not check."""
        num_prompts = count_prompts(arguments)
        if num_images > 1 and num_images != num_prompts:
            raise ValueError(
                f"`prompt` must be a list of one prompt per image: there are {num_images} images or depth maps, but "
                f"{num_prompts} prompt{'s' if num_prompts != 1 else ''}."
            )
        check_options(arguments, self.scheduler)
        aligned = aligned_guidance(arguments, len(self.controlnets))
        callback = arguments["callback_on_step_end"]
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            aligned["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
        checked = {**arguments, **aligned, "image": controls, "callback_steps": None}
        self.check_inputs(**{name: checked[name] for name in inspect.signature(self.check_inputs).parameters})
        check_crop(arguments)
        check_prompts(arguments, self.components)
        check_generators(arguments, num_prompts)
        check_latents(arguments, num_prompts, self.vae.config.latent_channels, self.vae_scale_factor)
        check_ip_adapter(arguments, self.components)
        scale = arguments["controlnet_conditioning_scale"]
        if isinstance(scale, list) and len(scale) != len(self.controlnets):
            raise ValueError(
                f"`controlnet_conditioning_scale` must be one number, or one per ControlNet: there are "
                f"{len(self.controlnets)} ControlNets, got {scale}."
            )
