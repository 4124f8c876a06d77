"""How steady the depth of rendered clips is, against known camera poses: the table of `docs/video.md`.

    python benchmarks/video/video_steadiness.py --clips SHARDS --output results.json --picture strip.webp

SHARDS are folders that `training/prepare/scenes.py --path_frames N` has written. Four ways, all of the same model:
each frame for itself with noise of its own; each frame for itself with the noise of one seed, as `depthfm predict`
does with images; that with scale and shift of each frame fitted to the frame before by least squares, along the same
optical flow; and `predict_video`.

TAE and flicker are of depth that is aligned in log depth with one scale and one shift a clip, AbsRel also with those
of each frame; means over the clips. The row of the true depth shows what TAE is left by surfaces that are hidden in
one of two frames and by the rounding to pixels.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm.auto import tqdm

from depthfm_diffusers import DepthFMPipeline, __version__, default_model_path, predict_video
from depthfm_diffusers.evaluation.metrics.alignment import align
from depthfm_diffusers.evaluation.metrics.metrics import absolute_relative_error
from depthfm_diffusers.evaluation.metrics.video import align_clip, flicker, temporal_alignment_error
from depthfm_diffusers.export.images import colorize_depth
from depthfm_diffusers.geometry import intrinsics_from_fov
from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image
from depthfm_diffusers.temporal import optical_flow, warp

MILLIMETRES = 1000.0


@dataclass(frozen=True)
class RenderedClip:
    """A clip with true depth.

    Attributes:
        name: The scene's.
        images: F×H×W×3, uint8.
        depth: F×H×W, metres; 0 where there is none.
        poses: F×4×4, camera to world.
        intrinsics: 3×3.
    """

    name: str
    images: np.ndarray
    depth: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray

    @property
    def valid(self) -> np.ndarray:
        """Where there is a depth."""
        return self.depth > 0


def read_clips(folder: Path) -> list[RenderedClip]:
    """Reads the clips of a folder of shards, each scene being one.

    Raises:
        ValueError: If a frame has no pose.
    """
    frames = defaultdict(list)
    for shard in sorted(folder.glob("*.tar")):
        for key, files in _read_shard(shard).items():
            metadata = json.loads(files["json"])
            if "camera_to_world" not in metadata:
                raise ValueError(f"{shard}: {key} has no `camera_to_world`: render with --path_frames.")
            frames[metadata["scene"]].append((key, files, metadata))
    clips = []
    for scene, found in sorted(frames.items()):
        found.sort(key=lambda one: one[0])
        depth = np.stack([np.asarray(_picture(files["depth.png"])) for _, files, _ in found]) / MILLIMETRES
        clips.append(
            RenderedClip(
                scene,
                np.stack([np.asarray(_picture(files["webp"]).convert("RGB")) for _, files, _ in found]),
                depth,
                np.array([metadata["camera_to_world"] for _, _, metadata in found]),
                intrinsics_from_fov(found[0][2]["fov_x_deg"], *depth.shape[1:]).double().numpy(),
            )
        )
    return clips


def _read_shard(shard: Path) -> dict[str, dict[str, bytes]]:
    """Reads the files of each sample by their extension."""
    samples: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    with tarfile.open(shard) as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if (file := tar.extractfile(member)) is not None:
                samples[key][extension] = file.read()
    return samples


def _picture(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def predict_alone(pipe: DepthFMPipeline, images: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Predicts each frame for itself, with a seed for each; returns F×H×W log depth."""
    return np.stack(
        [
            predict_image(pipe, image, PredictionSettings(seed=seed)).log_depth
            for image, seed in zip(images, seeds, strict=True)
        ]
    )


def fit_to_the_frame_before(images: np.ndarray, log_depth: np.ndarray) -> np.ndarray:
    """Fits scale and shift of each frame to the one before by least squares, at the pixels that flow leads to."""
    greys = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    fitted = [log_depth[0]]
    for number in range(1, len(images)):
        before = warp(fitted[-1], optical_flow(greys[number], greys[number - 1]))
        scale, shift = np.polyfit(log_depth[number].ravel(), before.ravel(), 1)
        fitted.append((scale * log_depth[number] + shift).astype(np.float32))
    return np.stack(fitted)


def scores(log_depth: np.ndarray, clip: RenderedClip) -> dict[str, float]:
    """Returns the measures of one clip."""
    depth = align_clip(log_depth, clip.depth, clip.valid, "log").depth
    by_frame = align(log_depth, clip.depth, clip.valid, "log").depth
    return {
        "tae": temporal_alignment_error(depth, clip.valid, clip.poses, clip.intrinsics),
        "flicker": flicker(depth, clip.depth, clip.valid),
        "abs_rel_clip": float(np.mean(absolute_relative_error(depth, clip.depth, clip.valid))),
        "abs_rel_frame": float(np.mean(absolute_relative_error(by_frame, clip.depth, clip.valid))),
    }


def measure_clip(pipe: DepthFMPipeline, clip: RenderedClip) -> tuple[dict[str, dict[str, float]], np.ndarray]:
    """Measures all ways on one clip; returns the measures of each way, and the steady log depth, F×H×W."""
    count = len(clip.images)
    rows: dict[str, dict[str, float]] = {}

    def timed(name: str, function: Callable[[], np.ndarray]) -> np.ndarray:
        start = time.process_time()
        result = function()
        seconds = (time.process_time() - start) / count
        rows[name] = {**scores(result, clip), "processor_seconds_a_frame": seconds}
        return result

    timed("frame by frame", lambda: predict_alone(pipe, clip.images, range(1, count + 1)))
    same = timed("same noise", lambda: predict_alone(pipe, clip.images, [0] * count))
    timed("least squares", lambda: fit_to_the_frame_before(clip.images, same))
    steady = timed("steady", lambda: np.stack([frame.log_depth for frame in predict_video(pipe, clip.images)]))
    rows["least squares"]["processor_seconds_a_frame"] += rows["same noise"]["processor_seconds_a_frame"]
    rows["true depth"] = scores(np.log(np.where(clip.valid, clip.depth, 1)), clip)
    return rows, steady


def draw_picture(clip: RenderedClip, alone: np.ndarray, steady: np.ndarray, columns: int = 6) -> Image.Image:
    """Draws some frames of a clip and their depth, each frame for itself and steady.

    Args:
        clip: The clip.
        alone: F×H×W log depth, each frame for itself.
        steady: F×H×W log depth.
        columns: Number of frames that are shown.

    Returns:
        Three rows: images, depth of each frame for itself (min-max of the frame), steady depth (one range).
    """
    chosen = np.linspace(0, len(clip.images) - 1, columns).round().astype(int)

    def coloured(maps: np.ndarray, span: np.ndarray) -> np.ndarray:
        low, high = span.min(), span.max()
        return colorize_depth(((np.exp(maps) - np.exp(low)) / (np.exp(high) - np.exp(low))).clip(0, 1))

    rows = [
        np.concatenate([clip.images[number] for number in chosen], axis=1),
        np.concatenate([coloured(alone[number], alone[number]) for number in chosen], axis=1),
        np.concatenate([coloured(steady[number], steady) for number in chosen], axis=1),
    ]
    return Image.fromarray(np.concatenate(rows))


def measure_memory(pipe: DepthFMPipeline, frames: int, early: int = 100) -> dict[str, float]:
    """Returns the peak of the resident memory, MiB, after `early` frames and after all, of random frames."""
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(frames))
    peaks = {}
    start = time.perf_counter()
    for number, _ in enumerate(predict_video(pipe, images, PredictionSettings(processing_resolution=64)), start=1):
        if number in (early, frames):
            peaks[f"MiB after {number} frames"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return peaks | {"seconds": time.perf_counter() - start}


def main() -> None:
    """Runs the script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=default_model_path(), help="model folder (default: bundled)")
    parser.add_argument("--clips", type=Path, nargs="+", required=True, metavar="SHARDS", help="folders of clips")
    parser.add_argument("--memory_frames", type=int, default=0, metavar="N", help="measure memory over N frames too")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the measures")
    parser.add_argument("--picture", type=Path, help="picture of the first clip")
    args = parser.parse_args()
    torch.set_num_threads(1)
    pipe = DepthFMPipeline.from_pretrained(args.model)
    pipe.set_progress_bar_config(disable=True)
    clips = [clip for folder in args.clips for clip in read_clips(folder)]
    measured = [measure_clip(pipe, clip) for clip in tqdm(clips, unit="clip")]
    table = {
        name: {key: float(np.mean([rows[name][key] for rows, _ in measured])) for key in first}
        for name, first in measured[0][0].items()
    }
    results: dict[str, Any] = {
        "version": __version__,
        "means": table,
        "clips": [
            {"name": clip.name, "frames": len(clip.images), "measures": rows}
            for clip, (rows, _) in zip(clips, measured, strict=True)
        ],
    }
    if args.memory_frames:
        results["memory"] = measure_memory(pipe, args.memory_frames)
    args.output.write_text(json.dumps(results, indent=1) + "\n")
    if args.picture:
        images = clips[0].images
        alone = predict_alone(pipe, images, range(1, len(images) + 1))
        draw_picture(clips[0], alone, measured[0][1]).save(args.picture, quality=80)
    print("| | TAE | flicker | AbsRel, one fit a clip | AbsRel, one fit a frame | processor seconds a frame |")
    print("|---|---|---|---|---|---|")
    for name, mean in table.items():
        seconds = mean.get("processor_seconds_a_frame")
        print(
            f"| {name} | {mean['tae']:.2f} | {mean['flicker']:.2f} | {mean['abs_rel_clip']:.3f} | "
            f"{mean['abs_rel_frame']:.3f} | {'' if seconds is None else f'{seconds:.2f}'} |"
        )


if __name__ == "__main__":
    main()
