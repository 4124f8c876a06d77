"""A depth estimator among the components of one of diffusers' Stable Diffusion ControlNet pipelines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel, DiffusionPipeline, UNet2DConditionModel
from diffusers.models import MultiControlNetModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from diffusers.utils.torch_utils import is_compiled_module

from ...models.image_encoder import ImageEncoder
from ...models.prompt_embedding import PromptEmbedding
from ...schedulers.scheduling_flow_matching_image_to_depth import FlowMatchingImageToDepthScheduler
from ..depthfm.pipeline_depthfm import DepthFMPipeline
from ..optional_components import AbsentComponentsMixin
from .controlnet_checks import text_width
from .controlnet_imports import (
    CLIPImageProcessor,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
    StableDiffusionControlNetPipeline,
    StableDiffusionSafetyChecker,
)

if TYPE_CHECKING:
    # Any of the three; this is the mixin's view of what it is mixed into.
    from .controlnet_imports import StableDiffusionControlNetPipeline as _Pipeline
else:
    _Pipeline = object


class ControlNetComponentsMixin(AbsentComponentsMixin, _Pipeline):
    """Adds DepthFM's components to those of Stable Diffusion, under names that start with `depth_`.

    They are components of the pipeline itself, and not of a pipeline inside it, so that saving, `variant`, `dtype`,
    `.to()` and offloading apply to them too. Among the bases of a class, this one comes before diffusers' pipeline.
    """

    # In the order of use: the depth estimator is off the accelerator while the image is made.
    model_cpu_offload_seq = (
        "depth_prompt_embedding->depth_image_encoder->depth_unet->depth_vae->text_encoder->image_encoder->unet->vae"
    )
    _optional_components: ClassVar[list[str]] = [
        *StableDiffusionControlNetPipeline._optional_components,
        "depth_image_encoder",
    ]
    _left_out_if_none = ("depth_image_encoder",)

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel | list[ControlNetModel] | tuple[ControlNetModel, ...] | MultiControlNetModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        depth_unet: UNet2DConditionModel,
        depth_vae: AutoencoderKL | AutoencoderTiny,
        depth_scheduler: FlowMatchingImageToDepthScheduler,
        depth_prompt_embedding: PromptEmbedding,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        default_depth_num_inference_steps: int = 2,
        default_depth_processing_resolution: int = 640,
        rescale_depth_self_attention: bool = False,
        depth_image_encoder: ImageEncoder | None = None,
    ) -> None:
        """Makes a pipeline of its components; `from_pipelines` makes one of two loaded pipelines.

        Args:
            vae: Stable Diffusion's autoencoder.
            text_encoder: Encoder of the prompts.
            tokenizer: Tokenizer of the prompts.
            unet: Stable Diffusion's denoiser; for inpainting, with 4 input channels or the 9 of an inpainting model.
            controlnet: The ControlNet that follows the depth, or several.
            scheduler: Stable Diffusion's scheduler.
            safety_checker: Detector of offensive images, or `None`.
            feature_extractor: What prepares images for the safety checker and for IP-Adapters, or `None`.
            depth_unet: Velocity field of the depth estimator; see `DepthFMPipeline` for all of its components.
            depth_vae: Autoencoder of the depth estimator. May be the same module as `vae`; a saved folder holds it
                twice then.
            depth_scheduler: Scheduler of the depth estimator.
            depth_prompt_embedding: Constant embedding of the depth estimator.
            image_encoder: Image encoder of an IP-Adapter, or `None`.
            requires_safety_checker: Whether diffusers warns where there is no safety checker.
            default_depth_num_inference_steps: Steps of the depth estimator if a call names none.
            default_depth_processing_resolution: Longer side in pixels at which depth is estimated if a call names
                none; 0 for the images' own size.
            rescale_depth_self_attention: See `rescale_self_attention` of `DepthFMPipeline`.
            depth_image_encoder: Image encoder of the depth estimator, or `None`.

        Raises:
            TypeError: If a default is not an integer.
            ValueError: If components do not fit together (ControlNet, UNet and text encoder of different widths, for
                instance), or if a default is out of its range.
        """
        super().__init__(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            controlnet=controlnet,
            scheduler=scheduler,
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
            image_encoder=image_encoder,
            requires_safety_checker=requires_safety_checker,
        )
        self.register_modules(
            depth_unet=depth_unet,
            depth_vae=depth_vae,
            depth_scheduler=depth_scheduler,
            depth_prompt_embedding=depth_prompt_embedding,
            depth_image_encoder=depth_image_encoder,
        )
        self.register_to_config(
            default_depth_num_inference_steps=default_depth_num_inference_steps,
            default_depth_processing_resolution=default_depth_processing_resolution,
            rescale_depth_self_attention=rescale_depth_self_attention,
        )
        self.check_components()

    @classmethod
    def from_pipelines(cls, pipeline: DiffusionPipeline, depth_estimator: DepthFMPipeline, **components: Any) -> Self:
        """Makes a pipeline of two loaded ones. Nothing is copied: all three hold the same modules.

        Args:
            pipeline: A Stable Diffusion pipeline, with or without ControlNet.
            depth_estimator: The DepthFM pipeline; its parameters are kept.
            **components: Components to use instead of those of `pipeline`, or beside them; `controlnet` must be among
                them if `pipeline` has none: a `ControlNetModel`, or a list of them.

        Returns:
            The pipeline, with the components where and in the dtype in which they were.

        Raises:
            TypeError: If `depth_estimator` is not a DepthFM pipeline, or a component is missing or not one of the
                pipeline's.
            ValueError: If components do not fit together.
        """
        if not isinstance(depth_estimator, DepthFMPipeline):
            raise TypeError(f"`depth_estimator` must be a DepthFMPipeline, got {type(depth_estimator).__name__}.")
        required, _ = cls._get_signature_keys(cls)
        own = {name for name in required if not name.startswith("depth_")}
        available = {name: value for name, value in pipeline.components.items() if name in own} | components
        for name in ("safety_checker", "feature_extractor"):
            available.setdefault(name, None)
        available["requires_safety_checker"] = pipeline.config.get("requires_safety_checker", True)
        return cls(
            **available,
            **{f"depth_{name}": component for name, component in depth_estimator.components.items()},
            default_depth_num_inference_steps=depth_estimator.default_num_inference_steps,
            default_depth_processing_resolution=depth_estimator.default_processing_resolution,
            rescale_depth_self_attention=depth_estimator.config.rescale_self_attention,
        )

    @property
    def depth_estimator(self) -> DepthFMPipeline:
        """A `DepthFMPipeline` on the pipeline's own depth components, none of which is copied.

        A change of its components (`pipe.depth_estimator.load_lora_weights(...)`, for instance) changes those of the
        pipeline.
        """
        estimator = DepthFMPipeline(
            unet=self.depth_unet,
            vae=self.depth_vae,
            scheduler=self.depth_scheduler,
            prompt_embedding=self.depth_prompt_embedding,
            image_encoder=self.depth_image_encoder,
            default_num_inference_steps=self.config.default_depth_num_inference_steps,
            default_processing_resolution=self.config.default_depth_processing_resolution,
            rescale_self_attention=self.config.rescale_depth_self_attention,
        )
        estimator.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        return estimator

    @property
    def controlnets(self) -> list[ControlNetModel]:
        """The ControlNets one by one, of which there may be one or several, as before `torch.compile`."""
        controlnet = self._plain_controlnet()
        return list(controlnet.nets) if isinstance(controlnet, MultiControlNetModel) else [controlnet]

    @property
    def has_several_controlnets(self) -> bool:
        """Whether `controlnet` is a list of ControlNets (which may have one entry only)."""
        return isinstance(self._plain_controlnet(), MultiControlNetModel)

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
        # Components may be `None` until a call: diffusers makes pipelines of some of their components.
        if self.unet is None or self.controlnet is None:
            return
        width = text_width(self.unet)
        for i, controlnet in enumerate(self.controlnets):
            if text_width(controlnet) != width:
                name = f"controlnet[{i}]" if len(self.controlnets) > 1 else "controlnet"
                raise ValueError(
                    f"`{name}` attends to text embeddings of width {text_width(controlnet)}, but `unet` to "
                    f"{width}: use a ControlNet made for this Stable Diffusion (1.x has 768, 2.x 1024)."
                )
        if self.text_encoder is not None and self.text_encoder.config.hidden_size != width:
            raise ValueError(
                f"`text_encoder` makes embeddings of width {self.text_encoder.config.hidden_size}, but `unet` attends "
                f"to {width}."
            )

    def check_is_complete(self) -> None:
        """Checks that the components that every generation needs are there.

        Raises:
            ValueError: If one is.
        """
        for name in ("vae", "unet", "controlnet", "scheduler"):
            if getattr(self, name) is None:
                raise ValueError(f"The pipeline has no {name}: set `pipe.{name}`, or pass it when loading.")

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """Does what diffusers' method does, and offloads an autoencoder that both parts share only once.

        The second time, its weights are already gone.

        Args:
            *args: Arguments of diffusers' method.
            **kwargs: The same, by name.
        """
        shared = self.depth_vae if self.depth_vae is self.vae else None
        if shared is not None:
            self.register_modules(depth_vae=None)
        try:
            super().enable_sequential_cpu_offload(*args, **kwargs)
        finally:
            if shared is not None:
                self.register_modules(depth_vae=shared)

    def _plain_controlnet(self) -> Any:
        """Returns the ControlNet, or several, as they were before `torch.compile`."""
        return self.controlnet._orig_mod if is_compiled_module(self.controlnet) else self.controlnet
