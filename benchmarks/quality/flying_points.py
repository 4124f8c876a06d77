"""How many flying points two rules leave among as many points: the table of `docs/geometry.md`.

    python benchmarks/quality/flying_points.py --train_data SHARDS

Frames are those of the scenes kept out of training. Their depth is predicted, and brought to metres by the least
squares fit of a·y + b to the true log depth. Two rules choose which pixels become points:

- MoGe's: pixels are left out if depth in the 3×3 pixels around them differs by more than 0.04 of their own depth
  (`depth_map_edge(depth, rtol=0.04)` of utils3d, in MoGe's `infer.py`).
- `flying_pixels` of this package.

The tolerance of either is set such that both keep the same share of all pixels. The truth says which of those that
are kept fly. At each of its jumps, alone within 6 pixels along a row or a column, the prediction has a near and a far
end, 6 pixels from the jump. If they are at least 10 % apart, and the right way round, the pixels between them whose
predicted log depth is from a quarter to three quarters of the way are flying points.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.evaluation.metrics.alignment import MIN_VALID_PIXELS, align
from depthfm_diffusers.export.surfaces import SurfaceSettings, flying_pixels, jumps
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image
from depthfm_diffusers.training.data.sources import MixedFrames

MOGE_TOLERANCES = (0.02, 0.04, 0.08, 0.15)
REACH = 6  # pixels from a jump to where its two surfaces are looked at
TRUE_JUMP = 0.1  # relative difference in inverse depth that counts as a jump in the truth
SMALLEST_GAP = 1.1  # ratio of the far to the near end in the prediction
FLYING = (0.25, 0.75)  # share of the way from the near to the far end, in log depth


@dataclass(frozen=True)
class Sample:
    """A predicted map in metres, the pixels that count, and those of them that fly; each H×W."""

    depth: np.ndarray
    known: np.ndarray
    flies: np.ndarray


def moge_score(depth: np.ndarray) -> np.ndarray:
    """MoGe's measure, H×W: the range of depth in the 3×3 pixels around each, relative to its depth."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(depth, 1, mode="edge"), (3, 3))
    return np.ptp(windows, axis=(-2, -1)) / depth


def flying_points(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Finds flying points along the rows of a map; see the module.

    Args:
        truth: H×W, metres; 0 where not known.
        predicted: H×W, metres.

    Returns:
        H×W, bool.
    """
    found = np.zeros(truth.shape, dtype=bool)
    log_depth = np.log(predicted)
    is_jump = jumps(np.where(truth > 0, truth, np.nan), TRUE_JUMP)
    for row, before in np.argwhere(is_jump):
        near, far = before - REACH, before + 1 + REACH
        if (
            near < 0
            or far >= truth.shape[1]
            or is_jump[row, near:far].sum() > 1
            or not truth[row, near : far + 1].all()
        ):
            continue
        gap = log_depth[row, far] - log_depth[row, near]
        if abs(gap) < np.log(SMALLEST_GAP) or gap * (truth[row, before + 1] - truth[row, before]) < 0:
            continue
        share = (log_depth[row, near : far + 1] - log_depth[row, near]) / gap
        found[row, near : far + 1] |= (share > FLYING[0]) & (share < FLYING[1])
    return found


def read_samples(pipe: DepthFMPipeline, frames: MixedFrames, indices: Sequence[int]) -> list[Sample]:
    """Predicts frames; those with hardly any depth are left out."""
    samples = []
    for index in tqdm(indices, desc="Frames"):
        frame = frames[index]
        known = frame.depth > 0
        if known.sum() < MIN_VALID_PIXELS:
            continue
        log_depth = predict_image(pipe, frame.image, PredictionSettings()).log_depth
        depth = align(log_depth, frame.depth, known, "log").depth
        across = flying_points(frame.depth, depth)
        samples.append(Sample(depth, known, across | flying_points(frame.depth.T, depth.T).T))
    return samples


def tolerance_for(samples: list[Sample], coverage: float, settings: SurfaceSettings) -> float:
    """Finds the tolerance at which `flying_pixels` keeps a share of the pixels, by bisection."""
    low, high = 1e-4, 2.0
    for _ in range(16):
        middle = (low * high) ** 0.5
        tried = replace(settings, tolerance=middle)
        kept = np.concatenate([~flying_pixels(s.depth, s.known, tried)[s.known] for s in samples]).mean()
        low, high = (middle, high) if kept < coverage else (low, middle)
    return high


def measure(samples: list[Sample], settings: SurfaceSettings) -> list[dict[str, float]]:
    """Compares the rules at each of MoGe's tolerances."""
    flies = np.concatenate([s.flies[s.known] for s in samples])
    scores = np.concatenate([moge_score(s.depth)[s.known] for s in samples])
    rows = []
    for tolerance in MOGE_TOLERANCES:
        moge = scores <= tolerance
        own = tolerance_for(samples, moge.mean(), settings)
        tried = replace(settings, tolerance=own)
        kept = np.concatenate([~flying_pixels(s.depth, s.known, tried)[s.known] for s in samples])
        rows.append(
            {
                "coverage_moge": float(moge.mean()),
                "coverage": float(kept.mean()),
                "tolerance_moge": tolerance,
                "tolerance": own,
                "flying_moge": float(flies[moge].mean()),
                "flying": float(flies[kept].mean()),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model folder (default: the bundled model)")
    parser.add_argument("--train_data", nargs="+", required=True, help="shards that the model was trained on")
    parser.add_argument("--validation_fraction", type=float, default=0.05, help="as in training (default: 0.05)")
    parser.add_argument("--max_frames", type=int, help="only the first frames (default: all)")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    pipe = DepthFMPipeline.from_pretrained(args.model or default_model_path(), torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    frames = MixedFrames.open(args.train_data)
    _, held_out = split_by_scene(frames.scenes, args.validation_fraction)
    samples = read_samples(pipe, frames, held_out[: args.max_frames])
    settings = SurfaceSettings()
    rows = measure(samples, settings)
    flies = np.concatenate([s.flies[s.known] for s in samples])
    print(f"\n{len(samples)} frames, {flies.size:,} pixels, {flies.mean():.2%} of them flying points\n")
    print("| points kept | MoGe's tolerance | flying points left | `tolerance` here | flying points left |")
    print("|---" * 5 + "|")
    for row in rows:
        print(
            f"| {row['coverage']:.1%} | {row['tolerance_moge']:g} | {row['flying_moge']:.3%} | {row['tolerance']:.3f} "
            f"| {row['flying']:.3%} |"
        )
    if args.output is not None:
        args.output.write_text(json.dumps({"frames": len(samples), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
