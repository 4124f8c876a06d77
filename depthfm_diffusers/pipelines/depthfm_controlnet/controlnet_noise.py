"""Noise of the depth estimator beside that of Stable Diffusion, where one seed serves both."""

from __future__ import annotations

import numpy as np
import torch

# Distinguishes the stream from others that may be derived from a seed in the same way.
_DEPTH_STREAM = 1


def depth_generator(generator: torch.Generator) -> torch.Generator:
    """Returns a generator for the depth estimator's noise, with a seed that follows from another generator's seed.

    With the seed itself, the depth estimator would draw the initial latents of Stable Diffusion where both have one
    shape. The given generator is not advanced, and how far it is does not matter.

    Args:
        generator: Source of Stable Diffusion's noise.

    Returns:
        A new generator on the same device.
    """
    return torch.Generator(device=generator.device).manual_seed(depth_seed(generator.initial_seed()))


def depth_seed(seed: int) -> int:
    """Returns the seed of the depth estimator's noise, below 2**63, where `seed` is that of Stable Diffusion's."""
    # SeedSequence mixes well: close seeds give streams that have nothing in common.
    (derived,) = np.random.SeedSequence([seed, _DEPTH_STREAM]).generate_state(1, np.uint64)
    return int(derived) >> 1
