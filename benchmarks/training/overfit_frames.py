"""Trains on a few frames until the model has memorised them, and scores it on them: can this trainer fit at all?

python benchmarks/training/overfit_frames.py --train_data SHARD.tar

Starts from a random UNet of the bundled architecture, around the bundled model's autoencoder. The error of the
autoencoder alone (the true depth map, encoded and decoded) is printed as well: it is a lower bound for any UNet.
"""

from __future__ import annotations

import argparse
import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import torch

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.depth_normalization import normalize_log_depth
from depthfm_diffusers.export.images import save_image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import train_depthfm

from depthfm_diffusers.training.data.depth_transforms import frame_to_view
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.training.validation.depth_validation import depth_grid, score_frames, score_log_depth

UNET_CONFIG = Path(train_depthfm.__file__).parent / "configs" / "depthfm-tiny-unet.json"


def first_frames(shard: Path, count: int, target: Path) -> Path:
    """Copies the first frames of a shard into a new one."""
    keys: list[str] = []
    with tarfile.open(shard) as source, tarfile.open(target, "w") as result:
        for member in source:
            key = member.name.split(".")[0]
            if key not in keys and len(keys) == count:
                break
            if key not in keys:
                keys.append(key)
            result.addfile(member, source.extractfile(member))
    return target


@torch.no_grad()
def autoencoder_error(pipe: DepthFMPipeline, frames: MixedFrames) -> float:
    """AbsRel, aligned in log depth, of the true depth maps after the autoencoder."""
    errors = []
    for frame in frames:
        view = frame_to_view(frame)
        depth_map = normalize_log_depth(view.depth).values[None].expand(-1, 3, -1, -1)
        decoded = pipe.decode_depth(pipe.encode_image(depth_map))[0, 0].numpy()
        errors.append(score_log_depth(decoded, frame.depth)["abs_rel_log"])
    return float(np.mean(errors))


def main() -> None:
    """Runs the training and prints the scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_data", type=Path, required=True, help="A WebDataset shard.")
    parser.add_argument("--frames", type=int, default=8, help="Frames to fit.")
    parser.add_argument("--steps", type=int, default=800, help="Optimizer steps.")
    parser.add_argument("--learning_rate", default="1e-3", help="Peak learning rate.")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the scores.")
    parser.add_argument("--picture", type=Path, default=None, help="PNG: image, truth, prediction at 1 and 2 steps.")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        shard = first_frames(args.train_data, args.frames, Path(folder) / "frames.tar")
        flags = ["--train_data", str(shard), "--output_dir", f"{folder}/run", "--validation_fraction", "0"]
        flags += ["--vae", str(default_model_path() / "vae")]
        flags += ["--unet_config", str(UNET_CONFIG)]
        flags += ["--train_batch_size", str(args.frames), "--max_train_steps", str(args.steps), "--no-flip"]
        flags += ["--cache_latents", "1", "--start_share", "1", "--learning_rate", args.learning_rate]
        flags += ["--lr_warmup_steps", "50", "--ema_decay", "0.98", "--adam_weight_decay", "0", "--report_to", "none"]
        flags += ["--checkpointing_steps", "1000000", "--mixed_precision", "bf16", "--channels_last"]
        train_depthfm.main(flags)
        pipe = DepthFMPipeline.from_pretrained(f"{folder}/run")
        pipe.set_progress_bar_config(disable=True)
        frames = MixedFrames.open([str(shard)])
        indices = range(len(frames))
        result = {
            "frames": len(frames),
            "steps": args.steps,
            "learning_rate": float(args.learning_rate),
            "abs_rel_log": score_frames(pipe, frames, indices, steps=1)["abs_rel_log"],
            "autoencoder_alone": autoencoder_error(pipe, frames),
        }
        if args.picture is not None:
            save_image(args.picture, depth_grid(pipe, frames, indices, (1, 2)))
    print(json.dumps(result, indent=2))
    if args.output is not None:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
