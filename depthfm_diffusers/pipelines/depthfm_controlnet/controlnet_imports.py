"""Stable Diffusion's classes as diffusers and transformers have them, imported without a word on stderr.

Without torchvision, transformers takes the Pillow versions of its image processors and warns of it when they are
*imported*, which diffusers' Stable Diffusion pipelines do. The same happens to be right here, and a command that only
predicts depth has no use for the warning.
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
