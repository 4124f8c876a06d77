"""What the uncertainty of a model says of its error, before and after calibration: the table of docs/uncertainty.md.

    python benchmarks/quality/calibrate_uncertainty.py --data SHARDS --predictions FOLDER

The scenes that training holds out are predicted at one step, with an ensemble of 4, mirrored, and at one and two
steps. Each prediction is aligned to the truth by least squares in log depth; its error is |d - d*| / d* per pixel.
A calibration is fitted on the frames of one half of these scenes, and all numbers are those of the other half:

- AbsRel: mean error.
- AUSE, and its ratio to that of a random order: area between the sparsification curve of the uncertainty and that of
  the error itself, mean over frames. 0 is perfect, a ratio of 1 is no better than chance.
- Rank correlation of uncertainty and error, mean over frames.
- Calibration error: pixels are put into 10 bins of equal number by the expected error; mean over bins of |mean
  expected error - mean error|.

Predictions are kept in --predictions, so that a second run takes seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.checkpoints.model_folder import model_fingerprint
from depthfm_diffusers.evaluation.metrics.alignment import MIN_VALID_PIXELS, align
from depthfm_diffusers.evaluation.metrics.uncertainty import rank_correlation, sparsification_error
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.inference.prediction import PredictionSettings
from depthfm_diffusers.inference.uncertainty import UNCERTAINTY_METHODS, predict_with_uncertainty
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.uncertainty import UncertaintyCalibration, fit_calibration
from depthfm_diffusers.utils.files import atomic_write, save_json

HERE = Path(__file__).resolve().parent
BINS = 10
COSTS = {"ensemble": "4", "flip": "2", "steps": "3"}
COLUMNS = ("abs_rel", "ause", "ause_of_random", "rank_correlation", "calibration_error")


@dataclass(frozen=True)
class ScoredFrame:
    """A frame's uncertainty and error, H×W, where `valid`."""

    scene: str
    spread: NDArray[np.float32]
    error: NDArray[np.float64]
    valid: NDArray[np.bool_]


def predict_frames(
    pipe: DepthFMPipeline, frames: MixedFrames, indices: list[int], folder: Path, ensemble: int
) -> Iterator[Path]:
    """Predicts frames by all methods, unless their files are there already; yields the file of each frame."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in tqdm(indices, desc="Predictions"):
        path = folder / f"{index}.npz"
        if not path.exists():
            maps = {}
            for method in UNCERTAINTY_METHODS:
                size = ensemble if method == "ensemble" else 1
                settings = PredictionSettings(1, size, processing_resolution=0, batch_size=size)
                found = predict_with_uncertainty(pipe, frames[index].image, settings, method)
                maps |= {f"{method}_log_depth": found.log_depth, f"{method}_uncertainty": found.uncertainty}
            with atomic_write(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **maps)
        yield path


def score_frames(frames: MixedFrames, indices: list[int], files: list[Path], method: str) -> list[ScoredFrame]:
    """Aligns the predictions of one method to the truth."""
    scored = []
    for index, path in zip(indices, files, strict=True):
        depth = frames[index].depth
        valid = depth > 0
        if valid.sum() < MIN_VALID_PIXELS:
            continue
        with np.load(path) as maps:
            aligned = align(maps[f"{method}_log_depth"], depth, valid, "log").depth
            spread = maps[f"{method}_uncertainty"]
        error = np.where(valid, np.abs(aligned / np.where(valid, depth, 1) - 1), 0)
        scored.append(ScoredFrame(frames.scenes[index], spread, error, valid))
    return scored


def pixels(frames: list[ScoredFrame]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Returns spread and error of all valid pixels."""
    return (
        np.concatenate([frame.spread[frame.valid] for frame in frames]),
        np.concatenate([frame.error[frame.valid] for frame in frames]),
    )


def reliability(expected: NDArray[np.floating], error: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns mean expected and mean true error of each bin of pixels, BINS×2."""
    bins = np.array_split(np.argsort(expected, kind="stable"), BINS)
    return np.array([[expected[i].mean(dtype=np.float64), error[i].mean()] for i in bins])


def evaluate(frames: list[ScoredFrame], calibration: UncertaintyCalibration) -> dict[str, Any]:
    """Scores an uncertainty on frames that it was not calibrated on."""
    curves, correlations = [], []
    for frame in frames:
        curves.append(sparsification_error(frame.spread, frame.error, frame.valid))
        correlations.append(rank_correlation(frame.spread, frame.error, frame.valid))
    by_uncertainty, oracle = (
        np.mean([getattr(c, name) for c in curves], axis=0) for name in ("by_uncertainty", "oracle")
    )
    spread, error = pixels(frames)
    bins = reliability(calibration.apply(spread), error)
    return {
        "calibration": asdict(calibration),
        "abs_rel": float(np.mean([frame.error[frame.valid].mean() for frame in frames])),
        "ause": float(np.mean([curve.area for curve in curves])),
        # In random order, the error of the remaining pixels stays the mean.
        "ause_of_random": float(np.trapezoid(1 - oracle, curves[0].fractions)),
        "rank_correlation": float(np.nanmean(correlations)),
        "calibration_error": float(np.abs(bins[:, 0] - bins[:, 1]).mean()),
        "reliability": bins.round(5).tolist(),
        "sparsification": {"by_uncertainty": by_uncertainty.round(5).tolist(), "oracle": oracle.round(5).tolist()},
    }


def plot(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Draws the sparsification curves, and the true over the expected error."""
    figure, (curves, bins) = plt.subplots(1, 2, figsize=(9.6, 4), layout="constrained")
    for i, (method, result) in enumerate(results.items()):
        removed = np.arange(100) / 100
        curves.plot(removed, result["sparsification"]["by_uncertainty"], color=f"C{i}", label=method)
        bins.plot(*np.array(result["reliability"]).T, "o-", color=f"C{i}", markersize=4, label=method)
    oracle = next(iter(results.values()))["sparsification"]["oracle"]
    curves.plot(removed, oracle, color="black", linestyle="--", label="by the error itself")
    curves.axhline(1, color="grey", linestyle=":", label="in random order")
    curves.set(xlabel="share of pixels removed, the most uncertain first", ylabel="mean error of the rest / of all")
    limit = max(max(map(max, result["reliability"])) for result in results.values()) * 1.05
    bins.plot([0, limit], [0, limit], color="grey", linestyle=":")
    bins.set(xlabel="expected error (calibrated)", ylabel="mean error", xlim=(0, limit), ylim=(0, limit))
    for axes in (curves, bins):
        axes.legend(frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results as a Markdown table."""
    lines = [
        "| | evaluations | AbsRel | AUSE | of random order | correlation | calibration error | factor, exponent |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method, result in results.items():
        values = " | ".join(f"{result[column]:.3f}" for column in COLUMNS)
        fitted = f"{result['calibration']['factor']:.2f}, {result['calibration']['exponent']:.2f}"
        lines.append(f"| `{method}` | {COSTS[method]} | {values} | {fitted} |")
    return "\n".join(lines)


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="shards that the model was trained on")
    parser.add_argument("--model", default=None, help="model folder (default: the bundled one)")
    parser.add_argument("--predictions", type=Path, required=True, help="folder for predictions")
    parser.add_argument("--validation_fraction", type=float, default=0.05, help="as in training (default: 0.05)")
    parser.add_argument("--max_frames", type=int, default=None, help="use only the first frames")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "uncertainty.json", help="JSON to write")
    parser.add_argument("--plot", type=Path, default=HERE.parents[1] / "docs" / "results" / "uncertainty.png")
    args = parser.parse_args()

    model = Path(args.model or default_model_path())
    pipe = DepthFMPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    frames = MixedFrames.open(args.data)
    indices = split_by_scene(frames.scenes, args.validation_fraction)[1][: args.max_frames]
    files = list(predict_frames(pipe, frames, indices, args.predictions, ensemble=4))

    results, counts = {}, {}
    for method in UNCERTAINTY_METHODS:
        scored = score_frames(frames, indices, files, method)
        fitted = set(sorted({frame.scene for frame in scored})[::2])
        halves = [[f for f in scored if (f.scene in fitted) == is_fitted] for is_fitted in (True, False)]
        counts = {"fitted on": len(halves[0]), "scored": len(halves[1])}
        results[method] = evaluate(halves[1], fit_calibration(*pixels(halves[0])))
    print(f"{counts}\n\n{table(results)}")
    record = {"model": {"name": model.name, "sha256": model_fingerprint(model)}, "frames": counts, "results": results}
    save_json(args.output, record)
    plot(results, args.plot)


if __name__ == "__main__":
    main()
