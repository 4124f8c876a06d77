"""Stable Diffusion's classes of diffusers and transformers, imported without a warning on stderr.

Without torchvision, transformers uses the Pillow versions of its image processors, and warns of this when they are
*imported*, which diffusers' Stable Diffusion pipelines do. The Pillow versions are right here, so the warning would
only disturb, above all in a command that just predicts depth.
"""

from __future__ import annotations

import logging

_logger = logging.getLogger("transformers.utils.import_utils")
_level = _logger.level
_logger.setLevel(logging.ERROR)
try:
    from diffusers import (
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
        StableDiffusionControlNetPipeline,
        StableDiffusionPipeline,
    )
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection
finally:
    _logger.setLevel(_level)

__all__ = [
    "CLIPImageProcessor",
    "CLIPTextModel",
    "CLIPTokenizer",
    "CLIPVisionModelWithProjection",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionPipeline",
    "StableDiffusionSafetyChecker",
]
