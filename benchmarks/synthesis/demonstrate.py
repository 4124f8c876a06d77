"""Shows in small that images made with a depth ControlNet follow the depth, and that those without it do not.

    python benchmarks/synthesis/demonstrate.py --shards SHARD.tar ... --work DIR

Runs, one after the other: `caption_scenes.py`, `training/train_autoencoder.py` (that of the bundled model decodes
depth alone), `train_base.py`, `training/train_depth_controlnet.py` and `depthfm adherence` on frames of held-out
scenes. After a stop, the same command resumes. The report and its picture are copied to `--output` and `--plots`;
docs/synthesis.md shows them, with the table that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from depthfm_diffusers import default_model_path
from depthfm_diffusers.evaluation.adherence.measures import MEASURES
from depthfm_diffusers.evaluation.adherence.report import ROWS

ROOT = Path(__file__).resolve().parents[2]
# Alike for both trainings: the second then finds the images of the first encoded.
DATA = ["--min_crop", "0.7", "--train_batch_size", "16", "--mixed_precision", "bf16", "--channels_last"]
GOING_ON = ["--checkpoints_total_limit", "2", "--resume_from_checkpoint", "latest"]
AUTOENCODER = ["--max_train_steps", "1500", "--learning_rate", "5e-4"]
BASE = [
    *("--max_train_steps", "7000", "--learning_rate", "1e-3", "--lr_warmup_steps", "200", "--ema_decay", "0.998"),
    *("--cache_latents", "3", "--validation_steps", "7000"),
]
# Trained in two stages, each with a learning rate that falls to 0: after the first, images began to follow the depth.
CONTROLNET_STAGES = (2000, 3400)
CONTROLNET = [
    *("--learning_rate", "1e-3", "--lr_scheduler", "cosine", "--lr_warmup_steps", "100"),
    *("--conditioning_embedding_out_channels", "8", "16", "32", "64", "--proportion_empty_prompts", "0.1"),
    *("--cache_latents", "2", "--validation_guidance_scale", "2", "--validation_steps", "4000"),
]
ADHERENCE = ["--steps", "20", "--guidance-scale", "2", "--limit", "60"]


def build_parser() -> argparse.ArgumentParser:
    """The script's flags."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", nargs="+", type=Path, required=True, help="Rendered scenes with depth.")
    parser.add_argument("--work", type=Path, required=True, help="Folder for data and models.")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/synthesis", help="Folder of the report.")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs/results", help="Folder of the picture.")
    parser.add_argument("--print", action="store_true", dest="only_print", help="Print the commands, run none.")
    return parser


def commands(args: argparse.Namespace) -> list[list[str]]:
    """The commands, in order."""
    work, here = args.work, Path(__file__).parent
    captioned = work / "captioned"
    shards = [str(captioned / shard.name) for shard in args.shards]
    base, controlnet, latents = work / "base", work / "controlnet", ["--latent_cache_dir", str(work / "latents")]
    python = sys.executable
    autoencoder = [
        *(python, str(ROOT / "training/train_autoencoder.py"), "--train_data", *map(str, args.shards)),
        *(
            "--pretrained_model_name_or_path",
            str(default_model_path() / "vae"),
            "--output_dir",
            str(work / "autoencoder"),
        ),
        *(*AUTOENCODER, *GOING_ON),
    ]
    train_base = [
        *(python, str(here / "train_base.py"), "--train_data", *shards, "--output_dir", str(base)),
        *("--vae", str(work / "autoencoder")),
        *(*DATA, *latents, *BASE, *GOING_ON),
    ]
    train_controlnet = [
        *(python, str(ROOT / "training/train_depth_controlnet.py"), "--train_data", *shards),
        *("--pretrained_model_name_or_path", str(base), "--output_dir", str(controlnet)),
        *(*DATA, *latents, *CONTROLNET, *GOING_ON, "--max_train_steps"),
    ]
    stages = [[*train_controlnet, str(steps)] for steps in CONTROLNET_STAGES]
    adherence = [
        *(python, "-m", "depthfm_diffusers.cli", "adherence", str(captioned / "held_out")),
        *("--prompts", str(captioned / "held_out/metadata.jsonl"), "--base", str(base)),
        *("--controlnet", str(controlnet), "--output", str(work / "adherence.json"), *ADHERENCE),
    ]
    caption = [python, str(here / "caption_scenes.py"), *map(str, args.shards), "--output", str(captioned)]
    return [caption, autoencoder, train_base, *stages, adherence]


def table(report: Mapping[str, Any]) -> str:
    """The report's means and intervals as a Markdown table."""
    lines = ["| | AbsRel | δ1 | edge F1 | correlation |", "|---|---|---|---|---|"]
    for condition in ("photo", "depth", "shuffled", "none"):
        cells = []
        for measure in MEASURES:
            low, high = report["interval"][condition][measure]
            cells.append(f"{report['mean'][condition][measure]:.3f} [{low:.3f}, {high:.3f}]")
        lines.append(f"| {ROWS[condition]} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shrink(source: Path, destination: Path) -> None:
    """Writes a picture at half its size."""
    picture = Image.open(source)
    picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS).save(destination)


def main(argv: list[str] | None = None) -> None:
    """Runs the program; `argv` defaults to the command line."""
    args = build_parser().parse_args(argv)
    for command in commands(args):
        print(shlex.join(command), flush=True)
        if not args.only_print:
            subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if not args.only_print:
        shutil.copy(args.work / "adherence.json", args.output / "adherence.json")
        print(table(json.loads((args.work / "adherence.json").read_text())))
        args.plots.mkdir(parents=True, exist_ok=True)
        shrink(args.work / "adherence.png", args.plots / "depth_adherence.png")


if __name__ == "__main__":
    main()
