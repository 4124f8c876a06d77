"""The picture of depth completion in docs/guide.md: scikit-image's motorcycle, and some points of its measured depth.

python benchmarks/completion/completion_picture.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quality"))

from evaluate_bundled_model import motorcycle

from depthfm_diffusers import DepthFMDepthCompletionPipeline, default_model_path

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "results" / "completion.webp"


def sparse_depth(depth: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Keeps `count` pixels of a depth map, H×W, drawn from those that are known; the others become 0."""
    known = np.flatnonzero(depth > 0)
    kept = np.random.default_rng(0).choice(known, count, replace=False)
    points = np.zeros_like(depth)
    points.flat[kept] = depth.flat[kept]
    return points


def error(metres: NDArray[np.float32], depth: NDArray[np.float32]) -> float:
    """Returns the mean absolute error in metres over the pixels with measured depth."""
    return float(np.abs(metres - depth)[depth > 0].mean())


def main() -> None:
    """Completes the depth, prints the errors, draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=500)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    args = parser.parse_args()

    pair = motorcycle()
    depth = np.where(np.isfinite(pair.depth), pair.depth, 0).astype(np.float32)
    pipe = DepthFMDepthCompletionPipeline.from_pretrained(default_model_path())
    points = sparse_depth(depth, args.points)

    def run(correct_residual: bool) -> NDArray[np.float32]:
        generator = torch.Generator().manual_seed(0)
        return pipe(pair.image, points, generator=generator, correct_residual=correct_residual).depth[0, ..., 0]

    fitted, completed = run(False), run(True)
    print(f"MAE, m: fitted to the points {error(fitted, depth):.3f}, completed {error(completed, depth):.3f}")

    near, far = np.quantile(depth[depth > 0], (0.01, 0.99))
    figure, axes = plt.subplots(1, 5, figsize=(16, 2.6), layout="constrained")
    axes[0].imshow(pair.image)
    rows, columns = np.nonzero(points)
    axes[1].imshow(np.full((*depth.shape, 3), 255, np.uint8))
    axes[1].scatter(columns, rows, s=3, c=points[rows, columns], cmap="Spectral", vmin=near, vmax=far)
    measured = np.where(depth > 0, depth, np.nan)
    for place, metres in zip(axes[2:], (fitted, completed, measured), strict=True):
        place.imshow(metres, cmap="Spectral", vmin=near, vmax=far)
    titles = ("", f"{args.points} points", "prediction, fitted", "completed", "measured")
    for place, title in zip(axes, titles, strict=True):
        place.set_title(title)
        place.axis("off")
    figure.savefig(args.picture, dpi=80)


if __name__ == "__main__":
    main()
