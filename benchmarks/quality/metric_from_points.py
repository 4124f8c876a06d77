"""Metres from a few known points on a real photograph: the table and the picture of docs/metric.md.

    python benchmarks/quality/metric_from_points.py

scikit-image's motorcycle has a measured depth map. The bundled model predicts its log depth once; then points are
drawn from the measured depth, some of them made wrong by a factor of 1/4 to 4, and metres are fitted to them: by the
robust fit of `depthfm_diffusers.metric`, and by least squares in log depth. The error of the whole map is its AbsRel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from evaluate_bundled_model import motorcycle
from numpy.typing import NDArray

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image
from depthfm_diffusers.line_fitting import fit_least_squares
from depthfm_diffusers.metric import fit_depth_map, fit_points

COUNTS = (3, 5, 10, 30, 100)
WRONG_SHARES = (0.0, 0.2)
DRAWS = 20
POINTS_SHOWN = 5
PICTURE = Path(__file__).resolve().parents[2] / "docs" / "results" / "metric.png"


def draw_points(depth: NDArray[np.float32], count: int, wrong: float, seed: int) -> NDArray[np.float64]:
    """Draws pixels of known depth, `count`×3: x, y, metres; a share of the metres is wrong."""
    draw = np.random.default_rng(seed)
    rows, columns = np.nonzero(depth > 0)
    chosen = draw.integers(len(rows), size=count)
    metres = depth[rows[chosen], columns[chosen]].astype(np.float64)
    metres[: round(wrong * count)] *= 4 ** draw.uniform(-1, 1, round(wrong * count))
    return np.stack([columns[chosen], rows[chosen], metres], axis=1)


def errors(log_depth: NDArray[np.float32], depth: NDArray[np.float32], points: NDArray[np.float64]) -> list[float]:
    """Returns AbsRel of the robust fit and of least squares; infinite where the fit is refused."""
    y = log_depth[points[:, 1].astype(int), points[:, 0].astype(int)].astype(np.float64)
    scale, shift = fit_least_squares(y, np.log(points[:, 2]))
    # A twentieth of the pixels says the same.
    valid = depth > 0
    log_depth_there, depth_there = log_depth[valid][::20], depth[valid][::20]
    by_least_squares = np.exp(scale * log_depth_there + shift)
    try:
        robust = fit_points(log_depth, points).apply(log_depth_there)
    except ValueError:
        robust = np.full_like(depth_there, np.inf)
    return [float(np.abs(metres / depth_there - 1).mean()) for metres in (robust, by_least_squares)]


def plot(image: NDArray[np.uint8], log_depth: NDArray[np.float32], depth: NDArray[np.float32], path: Path) -> None:
    """Draws the photograph with some points, the metres that follow, and the measured ones."""
    points = draw_points(depth, POINTS_SHOWN, 0, seed=1)
    metres = fit_points(log_depth, points).apply(log_depth)
    figure, panels = plt.subplots(1, 3, figsize=(11, 2.9), layout="constrained")
    limits = {"vmin": depth[depth > 0].min(), "vmax": depth.max(), "cmap": "Spectral"}
    panels[0].imshow(image)
    for x, y, known in points:
        panels[0].plot(x, y, "o", color="white", markeredgecolor="black", markersize=5)
        # Towards the middle, where there is room.
        side = -1 if x > image.shape[1] / 2 else 1
        up = 4 if y > image.shape[0] / 2 else -12
        place = {"ha": "left" if side > 0 else "right", "textcoords": "offset points", "color": "white", "fontsize": 8}
        panels[0].annotate(f"{known:.2f} m", (x, y), (4 * side, up), **place)
    panels[1].imshow(metres, **limits)
    shown = panels[2].imshow(np.where(depth > 0, depth, np.nan), **limits)
    titles = (f"{POINTS_SHOWN} known points", "predicted, in metres", "measured")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=9)
        panel.axis("off")
    figure.colorbar(shown, ax=panels, label="metres", shrink=0.9)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, default=PICTURE, help="picture to write")
    args = parser.parse_args()
    example = motorcycle()
    pipe = DepthFMPipeline.from_pretrained(default_model_path())
    log_depth = predict_image(pipe, example.image, PredictionSettings()).log_depth
    fit = fit_depth_map(log_depth, example.depth)
    print(f"fitted to the whole measured map: {fit}\n")
    print("| points | wrong | robust fit | least squares |\n|---|---|---|---|")
    for wrong in WRONG_SHARES:
        for count in COUNTS:
            if count > 3 or not wrong:  # of three points, nothing tells the wrong one
                found = [
                    errors(log_depth, example.depth, draw_points(example.depth, count, wrong, seed))
                    for seed in range(DRAWS)
                ]
                robust, least_squares = np.median(found, axis=0)
                print(f"| {count} | {wrong:.0%} | {robust:.3f} | {least_squares:.3f} |")
    plot(example.image, log_depth, example.depth, args.plot)


if __name__ == "__main__":
    main()
