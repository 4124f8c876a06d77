"""DepthFM for diffusers: an image straight to its depth map, by flow matching.

Public names are imported when they are first used, so that importing the package takes no time. Importing it also
makes its classes attributes of `diffusers`, whichever of the two is imported first: saved folders load through
`diffusers.DiffusionPipeline.from_pretrained` too (see `depthfm_diffusers.loaders.registration`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .loaders.registration import register_with_diffusers, require_diffusers
from .pretrained.bundled import default_model_path
from .utils.lazy import lazy_names
from .utils.version import __version__

if TYPE_CHECKING:
    from .checkpoints.convert import convert_checkpoint
    from .inference.video.steady import VideoDepth, predict_video
    from .models.image_encoder import ImageEncoder
    from .models.prompt_embedding import PromptEmbedding
    from .pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
    from .pipelines.depthfm.pipeline_depthfm_completion import DepthFMDepthCompletionPipeline
    from .pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
    from .pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_img2img import DepthFMControlNetImg2ImgPipeline
    from .pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_inpaint import DepthFMControlNetInpaintPipeline
    from .pipelines.depthfm_controlnet.pipeline_output import DepthFMControlNetOutput
    from .pipelines.pipeline_output import DepthFMDepthCompletionOutput, DepthFMOutput
    from .schedulers.scheduling_flow_matching_image_to_depth import (
        FlowMatchingImageToDepthScheduler,
        FlowMatchingImageToDepthSchedulerOutput,
    )

# What `model_index.json` names: pipelines, and components that are not diffusers' own.
_REGISTERED = {
    "DepthFMControlNetImg2ImgPipeline": ".pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_img2img",
    "DepthFMControlNetInpaintPipeline": ".pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_inpaint",
    "DepthFMControlNetPipeline": ".pipelines.depthfm_controlnet.pipeline_depthfm_controlnet",
    "DepthFMDepthCompletionPipeline": ".pipelines.depthfm.pipeline_depthfm_completion",
    "DepthFMPipeline": ".pipelines.depthfm.pipeline_depthfm",
    "FlowMatchingImageToDepthScheduler": ".schedulers.scheduling_flow_matching_image_to_depth",
    "ImageEncoder": ".models.image_encoder",
    "PromptEmbedding": ".models.prompt_embedding",
}
_OTHERS = {
    "DepthFMControlNetOutput": ".pipelines.depthfm_controlnet.pipeline_output",
    "DepthFMDepthCompletionOutput": ".pipelines.pipeline_output",
    "DepthFMOutput": ".pipelines.pipeline_output",
    "FlowMatchingImageToDepthSchedulerOutput": ".schedulers.scheduling_flow_matching_image_to_depth",
    "VideoDepth": ".inference.video.steady",
    "convert_checkpoint": ".checkpoints.convert",
    "predict_video": ".inference.video.steady",
}
_get_name, __dir__ = lazy_names(__name__, _REGISTERED | _OTHERS)

register_with_diffusers({name: f"{__name__}{module}" for name, module in _REGISTERED.items()})


def __getattr__(name: str) -> Any:
    if name in __all__:
        require_diffusers()  # an older one would fail in the module's import, with a less helpful error
    return _get_name(name)


__all__ = [
    "DepthFMControlNetImg2ImgPipeline",
    "DepthFMControlNetInpaintPipeline",
    "DepthFMControlNetOutput",
    "DepthFMControlNetPipeline",
    "DepthFMDepthCompletionOutput",
    "DepthFMDepthCompletionPipeline",
    "DepthFMOutput",
    "DepthFMPipeline",
    "FlowMatchingImageToDepthScheduler",
    "FlowMatchingImageToDepthSchedulerOutput",
    "ImageEncoder",
    "PromptEmbedding",
    "VideoDepth",
    "__version__",
    "convert_checkpoint",
    "default_model_path",
    "predict_video",
]
