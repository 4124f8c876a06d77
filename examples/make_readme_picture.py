"""Writes the README's picture: a photograph and its depth, side by side. Run it from anywhere: `python FILE`.

The depth is made by the bundled model with its default settings and seed 0.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.export.images import colorize_depth, save_image
from depthfm_diffusers.image_processing import load_image
from depthfm_diffusers.utils.files import atomic_write

HERE = Path(__file__).parent
GAP = 8


def main() -> None:
    """Predicts and writes."""
    photo = load_image(HERE / "coffee.png").convert("RGB")
    pipe = DepthFMPipeline.from_pretrained(default_model_path())
    depth = pipe(photo, generator=torch.Generator().manual_seed(0)).prediction[0]
    gap = np.full((photo.height, GAP, 3), 255, dtype=np.uint8)
    picture = np.concatenate([np.asarray(photo), gap, colorize_depth(depth)], axis=1)
    target = HERE / "coffee_depth_side_by_side.png"
    with atomic_write(target) as temporary:
        save_image(temporary, picture)
    print(f"written to {target}")


if __name__ == "__main__":
    main()
