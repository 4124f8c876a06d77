"""Scores of a model beside trivial baselines and upper bounds: the table of `model_cards/depthfm-tiny.md`.

    python benchmarks/quality/evaluate_bundled_model.py --train_data SHARDS --output results.json

Two data sets: the frames of the scenes kept out of training, at their own resolution; and scikit-image's motorcycle
pair (Middlebury 2014), a real photograph with measured disparity. Means over images; aligned per image by least
squares over valid pixels, in depth and in log depth; aligned depth clipped from below at 1e-3 m. Boundary F1 is Depth
Pro's, of the map aligned in log depth; frames whose truth has no edge are left out of its mean.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from depthfm_diffusers import DepthFMPipeline, __version__, default_model_path
from depthfm_diffusers.depth_normalization import normalize_log_depth
from depthfm_diffusers.evaluation.metrics.alignment import MIN_VALID_PIXELS, align
from depthfm_diffusers.evaluation.metrics.boundary import boundary_f1
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.training.validation.depth_validation import score_log_depth

# Middlebury's calibration of the pair at scikit-image's resolution: focal length (pixels), baseline (m), offset of the
# two principal points (pixels).
FOCAL, BASELINE, OFFSET = 994.978, 0.193001, 31.086
COLUMNS = ("abs_rel_depth", "delta1_depth", "abs_rel_log", "delta1_log", "boundary_f1")


@dataclass(frozen=True)
class Example:
    """An image (H×W×3, uint8), its depth (H×W, metres, 0 where unknown), and the pixels of its longer side to use."""

    image: np.ndarray
    depth: np.ndarray
    processing_resolution: int


def motorcycle() -> Example:
    """The pair's left image and its depth."""
    folder = files("skimage") / "data"
    with (folder / "motorcycle_left.png").open("rb") as file:
        image = np.asarray(Image.open(file).convert("RGB"))
    with (folder / "motorcycle_disp.npz").open("rb") as file:
        disparity = np.load(file)["arr_0"].astype(np.float64)
    valid = np.isfinite(disparity)
    depth = np.where(valid, FOCAL * BASELINE / (np.where(valid, disparity, 0) + OFFSET), 0)
    return Example(image, depth.astype(np.float32), 0)


def row_prior(frames: MixedFrames, indices: Iterable[int]) -> np.ndarray:
    """Mean normalised log depth of each image row over frames, H."""
    total, count = 0.0, 0.0
    for index in tqdm(indices, desc="Row prior"):
        normalized = normalize_log_depth(torch.from_numpy(frames[index].depth)[None])
        total = total + torch.where(normalized.valid, normalized.values, 0).sum(-1)[0].numpy()
        count = count + normalized.valid.sum(-1)[0].numpy()
    return total / np.maximum(count, 1)


def spread_rows(prior: np.ndarray, height: int, width: int) -> np.ndarray:
    """The row prior as a map of another size, H×W."""
    rows = np.interp((np.arange(height) + 0.5) / height, (np.arange(len(prior)) + 0.5) / len(prior), prior)
    return np.repeat(rows[:, None], width, 1)


def candidates(
    pipe: DepthFMPipeline, example: Example, prior: np.ndarray, steps: list[int], ensemble: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Log depth maps to score: baselines, upper bounds, and the model's predictions."""
    height, width = example.depth.shape
    yield "constant", np.zeros((height, width))
    yield "row prior", spread_rows(prior, height, width)
    truth = normalize_log_depth(torch.from_numpy(example.depth)[None]).values
    yield "truth, normalised", truth[0].numpy()
    if not height % 8 and not width % 8:
        with torch.no_grad():
            latent = pipe.vae.encode(truth.expand(1, 3, -1, -1)).latent_dist.mode()
            yield "truth, normalised, autoencoded", pipe.vae.decode(latent).sample[0].mean(0).numpy()
    for n in steps:
        for size in sorted({1, ensemble}):
            settings = PredictionSettings(n, size, processing_resolution=example.processing_resolution)
            yield f"model, {n} step(s), ensemble of {size}", predict_image(pipe, example.image, settings).log_depth


def score(log_depth: np.ndarray, depth: np.ndarray) -> dict[str, float]:
    """All scores of one map, see `COLUMNS`."""
    valid = depth > 0
    edges = boundary_f1(align(log_depth, depth, valid, "log").depth, depth, valid)
    return score_log_depth(log_depth, depth) | {"boundary_f1": float(edges)}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default=None, help="Model folder; default: the bundled one.")
    parser.add_argument("--train_data", nargs="+", required=True, help="Shards that the model was trained on.")
    parser.add_argument("--validation_fraction", type=float, default=0.05, help="As in training.")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4], help="Numbers of steps.")
    parser.add_argument("--ensemble", type=int, default=4, help="Second ensemble size, beside 1.")
    parser.add_argument("--max_frames", type=int, default=None, help="Score only the first frames.")
    parser.add_argument("--output", type=Path, default=None, help="JSON file to write.")
    parser.add_argument("--row_prior", type=Path, default=None, help="File to write the row prior to (.npy).")
    args = parser.parse_args()

    model = args.model or default_model_path()
    pipe = DepthFMPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    frames = MixedFrames.open(args.train_data)
    train, held_out = split_by_scene(frames.scenes, args.validation_fraction)
    prior = row_prior(frames, train)
    if args.row_prior is not None:
        np.save(args.row_prior, prior.astype(np.float32))

    results: dict[str, dict[str, list[dict[str, float]]]] = {}
    pair = motorcycle()
    sets = {
        "validation scenes": [(frames[i].image, frames[i].depth, 0) for i in held_out[: args.max_frames]],
        "motorcycle": [(pair.image, pair.depth, pipe.default_processing_resolution)],
    }
    for name, examples in sets.items():
        for image, depth, resolution in tqdm(examples, desc=name):
            if (depth > 0).sum() < MIN_VALID_PIXELS:
                continue
            for method, log_depth in candidates(
                pipe, Example(image, depth, resolution), prior, args.steps, args.ensemble
            ):
                results.setdefault(name, {}).setdefault(method, []).append(score(log_depth, depth))

    summary = {
        name: {m: {c: float(np.nanmean([r[c] for r in rows])) for c in COLUMNS} for m, rows in methods.items()}
        for name, methods in results.items()
    }
    for name, methods in summary.items():
        print(f"\n{name} ({len(results[name]['constant'])} images)\n")
        print("| | AbsRel, aligned in depth | δ1 | AbsRel, aligned in log depth | δ1 | boundary F1 |")
        print("|---" * 6 + "|")
        for method, values in methods.items():
            print(f"| {method} | " + " | ".join(f"{values[c]:.3f}" for c in COLUMNS) + " |")
    if args.output is not None:
        packages = {"depthfm_diffusers": __version__}
        packages |= {p: version(p) for p in ("torch", "diffusers", "scikit-image")}
        record = {
            "mean": summary,
            "images": {name: len(methods["constant"]) for name, methods in results.items()},
            "settings": {
                "model": args.model or "bundled",
                "validation_fraction": args.validation_fraction,
                "steps": args.steps,
                "ensemble": args.ensemble,
                "max_frames": args.max_frames,
                "seed": 0,
            },
            "versions": packages | {"python": platform.python_version()},
        }
        args.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
