"""DepthFM for diffusers: an image straight to its depth map, by flow matching.

Importing this package also makes its classes attributes of `diffusers`, so that saved folders load through
`diffusers.DiffusionPipeline.from_pretrained` too (see `depthfm_diffusers.loaders.registration`).
"""

from __future__ import annotations

import diffusers
from packaging.version import Version

# Checked before any module of this package is imported: an older diffusers would fail there with a less helpful error.
if Version(diffusers.__version__).release < (0, 42):
    raise ImportError(
        f"depthfm_diffusers needs diffusers >= 0.42, but {diffusers.__version__} is installed. "
        "Upgrade it: pip install --upgrade 'diffusers>=0.42'"
    )

from .checkpoints.convert import convert_checkpoint
from .loaders.registration import register_with_diffusers
from .models.prompt_embedding import PromptEmbedding
from .pipelines.depthfm.pipeline_depthfm import DepthFMPipeline
from .pipelines.depthfm_controlnet.pipeline_depthfm_controlnet import DepthFMControlNetPipeline
from .pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_img2img import DepthFMControlNetImg2ImgPipeline
from .pipelines.depthfm_controlnet.pipeline_depthfm_controlnet_inpaint import DepthFMControlNetInpaintPipeline
from .pipelines.depthfm_controlnet.pipeline_output import DepthFMControlNetOutput
from .pipelines.pipeline_output import DepthFMOutput
from .pretrained.bundled import default_model_path
from .schedulers.scheduling_flow_matching_image_to_depth import (
    FlowMatchingImageToDepthScheduler,
    FlowMatchingImageToDepthSchedulerOutput,
)
from .utils.version import __version__

register_with_diffusers(
    DepthFMPipeline,
    DepthFMControlNetPipeline,
    DepthFMControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline,
    FlowMatchingImageToDepthScheduler,
    PromptEmbedding,
)

__all__ = [
    "DepthFMControlNetImg2ImgPipeline",
    "DepthFMControlNetInpaintPipeline",
    "DepthFMControlNetOutput",
    "DepthFMControlNetPipeline",
    "DepthFMOutput",
    "DepthFMPipeline",
    "FlowMatchingImageToDepthScheduler",
    "FlowMatchingImageToDepthSchedulerOutput",
    "PromptEmbedding",
    "__version__",
    "convert_checkpoint",
    "default_model_path",
]
