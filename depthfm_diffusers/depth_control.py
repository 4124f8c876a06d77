"""What the three ControlNet pipelines have in common: a depth estimator among their components, and its control image.

A pipeline of diffusers is made depth-conditioned by naming `DepthControlMixin` before it among the bases. The mixin
holds no loop: it checks a call, makes the control images, and hands both to diffusers' own `__call__`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, UNet2DConditionModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.models import MultiControlNetModel
from diffusers.utils.torch_utils import is_compiled_module
from PIL import Image

from .control_checks import aligned_guidance, check_generation_arguments, text_width
from .control_image import check_control_arguments, control_image_from_log_depth
from .control_inputs import Size, to_pil
from .image_processing import depth_from_log_depth
from .pipeline_depthfm import DepthFMPipeline
from .pipeline_output import DepthFMControlNetOutput, collect_maps
from .prompt_embedding import PromptEmbedding
from .scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler

# Of `DepthFMPipeline.__call__`, what a pipeline that makes control images decides by itself.
_SET_BY_THE_PIPELINE = {
    "self",
    "image",
    "match_input_resolution",
    "output_type",
    "output_uncertainty",
    "output_normals",
    "output_latent",
    "return_dict",
    "fov_x_deg",
}


class DepthControlMixin:
    """Depth estimation inside one of diffusers' Stable Diffusion ControlNet pipelines.

    The components of a `DepthFMPipeline` are components of the pipeline itself, under names that start with `depth_`,
    so that saving, `variant`, `dtype`, `.to()` and offloading reach them as they reach Stable Diffusion's.
    """

    depth_unet: UNet2DConditionModel
    depth_vae: AutoencoderKL | AutoencoderTiny
    depth_scheduler: FlowMatchingImageToDepthScheduler
    depth_prompt_embedding: PromptEmbedding

    # In the order of use: what has made the depth is off the accelerator while the image is made.
    model_cpu_offload_seq = "depth_prompt_embedding->depth_unet->depth_vae->text_encoder->image_encoder->unet->vae"

    def register_depth_components(
        self,
        depth_unet: UNet2DConditionModel,
        depth_vae: AutoencoderKL | AutoencoderTiny,
        depth_scheduler: FlowMatchingImageToDepthScheduler,
        depth_prompt_embedding: PromptEmbedding,
        default_depth_num_inference_steps: int,
        default_depth_processing_resolution: int,
        rescale_depth_self_attention: bool,
    ) -> None:
        """Registers DepthFM's components and parameters beside those of Stable Diffusion, and checks that all fit.

        Raises:
            TypeError: If a parameter has the wrong type.
            ValueError: If components do not fit together.
        """
        self.register_modules(  # type: ignore[attr-defined]
            depth_unet=depth_unet,
            depth_vae=depth_vae,
            depth_scheduler=depth_scheduler,
            depth_prompt_embedding=depth_prompt_embedding,
        )
        self.register_to_config(  # type: ignore[attr-defined]
            default_depth_num_inference_steps=default_depth_num_inference_steps,
            default_depth_processing_resolution=default_depth_processing_resolution,
            rescale_depth_self_attention=rescale_depth_self_attention,
        )
        self.check_components()

    @property
    def depth_estimator(self) -> DepthFMPipeline:
        """A `DepthFMPipeline` on the pipeline's own depth components, none of which is copied.

        What is done to its components (`pipe.depth_estimator.load_lora_weights(...)`, for instance) is done to the
        pipeline's.
        """
        config = self.config  # type: ignore[attr-defined]
        estimator = DepthFMPipeline(
            unet=self.depth_unet,
            vae=self.depth_vae,
            scheduler=self.depth_scheduler,
            prompt_embedding=self.depth_prompt_embedding,
            default_num_inference_steps=config.default_depth_num_inference_steps,
            default_processing_resolution=config.default_depth_processing_resolution,
            rescale_self_attention=config.rescale_depth_self_attention,
        )
        estimator.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return estimator

    @classmethod
    def from_pipelines(
        cls, pipeline: DiffusionPipeline, depth_estimator: DepthFMPipeline, **components: Any
    ) -> DepthControlMixin:
        """Makes a pipeline of two loaded ones. Nothing is copied: all three hold the same modules.

        Args:
            pipeline: A Stable Diffusion pipeline, with or without ControlNet.
            depth_estimator: The DepthFM pipeline; its parameters are kept.
            **components: Components to use instead of those of `pipeline`, or beside them; `controlnet` must be among
                them if `pipeline` has none: a `ControlNetModel`, or a list of them.

        Returns:
            The pipeline, with the components where and in the dtype in which they were.

        Raises:
            TypeError: If `depth_estimator` is not a DepthFM pipeline, or a component is not one of the pipeline's.
            ValueError: If a component is missing, or components do not fit together.
        """
        if not isinstance(depth_estimator, DepthFMPipeline):
            raise TypeError(f"`depth_estimator` must be a DepthFMPipeline, got {type(depth_estimator).__name__}.")
        required, _ = cls._get_signature_keys(cls)  # type: ignore[attr-defined]
        own = {name for name in required if not name.startswith("depth_")} | set(cls._optional_components)  # type: ignore[attr-defined]
        unknown = sorted(components.keys() - own)
        if unknown:
            raise TypeError(f"`{unknown[0]}` is not a component of {cls.__name__} that can be given: {sorted(own)}.")
        available = {name: value for name, value in pipeline.components.items() if name in own} | components
        missing = sorted(own - available.keys() - set(cls._optional_components))  # type: ignore[attr-defined]
        if missing:
            raise ValueError(
                f"`{missing[0]}` is missing: the {type(pipeline).__name__} has none, so pass `{missing[0]}=...`."
            )
        for name in ("safety_checker", "feature_extractor"):
            available.setdefault(name, None)
        available["requires_safety_checker"] = pipeline.config.get("requires_safety_checker", True)
        return cls(  # type: ignore[call-arg]
            **available,
            **{f"depth_{name}": component for name, component in depth_estimator.components.items()},
            default_depth_num_inference_steps=depth_estimator.default_num_inference_steps,
            default_depth_processing_resolution=depth_estimator.default_processing_resolution,
            rescale_depth_self_attention=depth_estimator.config.rescale_self_attention,
        )

    @property
    def controlnets(self) -> list[Any]:
        """The ControlNets one by one, of which there may be one or several."""
        controlnet = self._plain_controlnet()
        return list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]

    def check_components(self) -> None:
        """Checks that those components that are there fit together.

        Raises:
            TypeError: If a parameter of the depth estimator has the wrong type.
            ValueError: If the text encoder, the UNet and the ControlNets are not of one width, or the depth
                estimator's components do not fit.
        """
        try:
            _ = self.depth_estimator
        except (TypeError, ValueError) as error:
            raise type(error)(f"The components of the depth estimator (`depth_*`): {error}") from error
        unet = self.unet  # type: ignore[attr-defined]
        # Components may be `None` until a call: diffusers makes pipelines of some of their components.
        if unet is None or self._plain_controlnet() is None:
            return
        width = text_width(unet)
        for i, controlnet in enumerate(self.controlnets):
            if text_width(controlnet) != width:
                name = f"controlnet[{i}]" if len(self.controlnets) > 1 else "controlnet"
                raise ValueError(
                    f"`{name}` attends to text embeddings of width {text_width(controlnet)}, but `unet` to "
                    f"{width}: use a ControlNet made for this Stable Diffusion (1.x has 768, 2.x 1024)."
                )
        text_encoder = self.text_encoder  # type: ignore[attr-defined]
        if text_encoder is not None and text_encoder.config.hidden_size != width:
            raise ValueError(
                f"`text_encoder` makes embeddings of width {text_encoder.config.hidden_size}, but `unet` attends to "
                f"{width}."
            )

    def check_is_complete(self) -> None:
        """Checks that no component is missing that generation cannot do without.

        Raises:
            ValueError: If one is.
        """
        for name in ("vae", "unet", "controlnet", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"The pipeline has no {name}: set `pipe.{name}`, or pass it when loading.")

    def generate_from_depth(
        self,
        generate: Callable[..., Any],
        arguments: dict[str, Any],
        images: list[torch.Tensor] | None,
        log_depths: list[torch.Tensor] | None,
        control_image: Any,
        control_mode: str,
        control_percentiles: Sequence[float],
        depth_kwargs: Mapping[str, Any] | None,
        return_dict: bool,
    ) -> DepthFMControlNetOutput | tuple:
        """Checks a call, makes the control images, and runs diffusers' pipeline on them.

        Args:
            generate: diffusers' `__call__`, bound.
            arguments: Its arguments, without the control image. If `image` is among them, the control image is called
                `control_image`, else `image`.
            images: Images to estimate the depth of, 1×3×H×W each, float32 in [0, 1].
            log_depths: Log depth to use instead, 1×1×H×W each, finite.
            control_image: Control images that are not made here, see the pipelines' `__call__`.
            control_mode: See `control_image_from_log_depth`.
            control_percentiles: See `control_image_from_log_depth`.
            depth_kwargs: Arguments of the depth estimator.
            return_dict: Whether to return the output object.

        Returns:
            The output, or the tuple of its fields.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is not acceptable. No network has run then.
        """
        # 1. Check everything, with blank pictures in place of the control images that are still to be made.
        self.check_components()
        check_control_arguments(control_mode, control_percentiles)
        estimator_arguments = self._check_depth_kwargs(depth_kwargs)
        given = self._check_control_image(control_image)
        needs_depth = any(entry is None for entry in given)
        sizes = self._check_depth_source(needs_depth, images, log_depths, "image" in arguments)
        if needs_depth:
            self._set_output_size(arguments, sizes)
        blank = [Image.new("RGB", (width, height)) for height, width in sizes]
        self._check_generation(arguments, self._arrange_controls(blank, given, arguments), len(sizes))

        # 2. Depth, once per image, whatever the number of ControlNets, prompts and images per prompt.
        if needs_depth and images is not None and log_depths is None:
            log_depths = self._predict_log_depth(images, estimator_arguments, arguments)
        log_depths = log_depths or []
        # 8-bit pictures, as diffusers takes them: it resizes and crops those as it does a user's own.
        made = [to_pil(control_image_from_log_depth(one, control_mode, control_percentiles)) for one in log_depths]

        # 3. diffusers' own loop.
        controls = {_control_name(arguments): self._arrange_controls(made, given, arguments)}
        generated = generate(**arguments, **controls, return_dict=True)
        one_size = len(set(sizes)) == 1
        output = DepthFMControlNetOutput(
            images=generated.images,
            nsfw_content_detected=generated.nsfw_content_detected,
            depth=collect_maps([depth_from_log_depth(x) for x in log_depths], one_size, arguments["output_type"]),
            log_depth=collect_maps(log_depths, one_size, arguments["output_type"]),
            control_image=made or None,
        )
        if not return_dict:
            return (
                output.images,
                output.nsfw_content_detected,
                output.depth,
                output.log_depth,
                output.control_image,
            )
        return output

    def _predict_log_depth(
        self, images: list[torch.Tensor], estimator_arguments: dict[str, Any], arguments: Mapping[str, Any]
    ) -> list[torch.Tensor]:
        """Log depth of each image, 1×1×H×W, float32.

        The noise has generators of its own that start from the seeds of those of the call: one seed fixes everything,
        and diffusers' loop finds the call's generators as it would find them without depth estimation.
        """
        generator = arguments["generator"]
        if generator is not None and not estimator_arguments.keys() & {"generator", "latents"}:
            if isinstance(generator, list):
                members = estimator_arguments.get("ensemble_size", 1)
                own = [_restarted(generator[i * arguments["num_images_per_prompt"]]) for i in range(len(images))]
                estimator_arguments["generator"] = [one for one in own for _ in range(members)]
            else:
                estimator_arguments["generator"] = _restarted(generator)
        estimator_arguments |= {"output_type": "pt", "return_dict": False}
        _, log_depths, *_ = self.depth_estimator(images, **estimator_arguments)
        # With model offloading, nothing of the depth estimator stays on the accelerator from here on.
        self.maybe_free_model_hooks()  # type: ignore[attr-defined]
        return [one[None] for one in log_depths]

    def _arrange_controls(self, made: list[Image.Image], given: list[Any], arguments: Mapping[str, Any]) -> Any:
        """Puts control images into the form that diffusers takes: those of the one ControlNet, or a list of each's."""
        several = isinstance(self._plain_controlnet(), MultiControlNetModel)
        arranged = []
        for entry in given:
            control = made if entry is None else entry
            if isinstance(control, list) and len(control) == 1:
                control = control[0]
            elif isinstance(control, list) and several:
                # Lists of lists mean other things in each of diffusers' pipelines; a tensor is a batch in all of them.
                control = self.control_image_processor.preprocess(  # type: ignore[attr-defined]
                    control, height=arguments["height"], width=arguments["width"]
                )
            arranged.append(control)
        return arranged if several else arranged[0]

    def _set_output_size(self, arguments: dict[str, Any], sizes: Sequence[Size]) -> None:
        """Names the size of the generated images in `arguments`, which diffusers would take from the control image.

        With several ControlNets, each would otherwise be given its image in that image's own size.
        """
        if len(set(sizes)) > 1 and (arguments["height"] is None or arguments["width"] is None):
            raise ValueError(
                f"The images or depth maps are of several sizes, (height, width) {list(sizes)}, but the generated "
                "ones are of one: pass `height` and `width`."
            )
        processor = self.control_image_processor  # type: ignore[attr-defined]
        height, width = sizes[0]
        arguments["height"], arguments["width"] = processor.get_default_height_width(
            Image.new("RGB", (width, height)), arguments["height"], arguments["width"]
        )
        if min(arguments["height"], arguments["width"]) < 1:
            raise ValueError(
                f"The generated images would have no pixels: both sides must be at least {self.vae_scale_factor} "  # type: ignore[attr-defined]
                f"pixels, but the first image is {height}×{width}. Pass `height` and `width`."
            )

    def _check_depth_kwargs(self, depth_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        """Raises if `depth_kwargs` has a key that is not for the caller to set; gives a copy."""
        accepted = [
            name for name in inspect.signature(DepthFMPipeline.__call__).parameters if name not in _SET_BY_THE_PIPELINE
        ]
        unknown = [name for name in depth_kwargs or {} if name not in accepted]
        if unknown:
            raise TypeError(f"`depth_kwargs` has the key {unknown[0]!r}, which is not among {accepted}.")
        return dict(depth_kwargs or {})

    def _check_control_image(self, control_image: Any) -> list[Any]:
        """One entry per ControlNet, `None` where the control image is made here."""
        count = len(self.controlnets)
        if control_image is None:
            return [None] * count
        if not isinstance(self._plain_controlnet(), MultiControlNetModel):
            return [control_image]
        if not isinstance(control_image, (list, tuple)) or len(control_image) != count:
            got = f"{len(control_image)} entries" if isinstance(control_image, (list, tuple)) else "no list"
            raise ValueError(
                f"`control_image` must be a list of {count} entries, one per ControlNet (`None` where the depth is to "
                f"be used), got {got}."
            )
        return list(control_image)

    def _check_depth_source(
        self,
        needs_depth: bool,
        images: list[torch.Tensor] | None,
        log_depths: list[torch.Tensor] | None,
        images_have_another_use: bool,
    ) -> list[Size]:
        """Checks that there is something to make control images of, and no more; gives its sizes."""
        if not needs_depth:
            if log_depths is not None or (images is not None and not images_have_another_use):
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
                + (", for `image` holds latents." if images_have_another_use else ", or an `image` to estimate it of.")
            )
        for name in ("depth_unet", "depth_vae", "depth_scheduler", "depth_prompt_embedding"):
            if getattr(self, name) is None:
                raise ValueError(f"The pipeline has no {name}: set `pipe.{name}`, or pass `depth` or `log_depth`.")
        return [(one.shape[-2], one.shape[-1]) for one in images]

    def _check_generation(self, arguments: Mapping[str, Any], controls: Any, num_maps: int) -> None:
        """Checks the arguments of diffusers' `__call__`: by its own `check_inputs`, and what that leaves to later."""
        prompt, prompt_embeds = arguments["prompt"], arguments["prompt_embeds"]
        num_prompts = len(prompt) if isinstance(prompt, list) else 1 if prompt_embeds is None else len(prompt_embeds)
        if num_maps > 1 and num_maps != num_prompts:
            raise ValueError(
                f"`prompt` must be a list of one prompt per image: there are {num_maps} images or depth maps, but "
                f"{num_prompts} prompt{'s' if num_prompts != 1 else ''}."
            )
        aligned = aligned_guidance(arguments, len(self.controlnets))
        callback = arguments["callback_on_step_end"]
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            aligned["callback_on_step_end_tensor_inputs"] = callback.tensor_inputs
        checked = {**arguments, **aligned, "image": controls, "callback_steps": None}
        parameters = inspect.signature(self.check_inputs).parameters  # type: ignore[attr-defined]
        self.check_inputs(**{name: checked[name] for name in parameters})  # type: ignore[attr-defined]
        check_generation_arguments(arguments, num_prompts)
        scale = arguments["controlnet_conditioning_scale"]
        if isinstance(scale, list) and len(scale) != len(self.controlnets):
            raise ValueError(
                f"`controlnet_conditioning_scale` must be one number, or one per ControlNet: there are "
                f"{len(self.controlnets)} ControlNets, got {scale}."
            )
        width = text_width(self.unet)  # type: ignore[attr-defined]
        if prompt_embeds is not None and prompt_embeds.shape[-1] != width:
            raise ValueError(
                f"`prompt_embeds` must have the width {width} that the `unet` attends to, got "
                f"{tuple(prompt_embeds.shape)}."
            )

    def _plain_controlnet(self) -> Any:
        """The ControlNet, or several, as they were before `torch.compile`."""
        controlnet = self.controlnet  # type: ignore[attr-defined]
        return controlnet._orig_mod if is_compiled_module(controlnet) else controlnet


def _control_name(arguments: Mapping[str, Any]) -> str:
    """What diffusers calls the control image."""
    return "control_image" if "image" in arguments else "image"


def _restarted(generator: torch.Generator) -> torch.Generator:
    """A new generator that starts from the seed that another one started from."""
    return torch.Generator(device=generator.device).manual_seed(generator.initial_seed())
