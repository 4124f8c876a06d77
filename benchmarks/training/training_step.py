"""Measures memory and speed of the trainer's steps with its options on and off, in the same run.

python benchmarks/training/training_step.py --train_data SHARDS

Each row is the real script, run on its own: peak resident memory of the process, and the median time between two
steps in its log, so that loading and encoding the cache are left out of the time (not of the memory). The rows are
repeated in turn; ratios to the first row are taken within a repeat, and their median is shown.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import depthfm_diffusers

SCRIPT = Path(__file__).parents[2] / "training" / "train_depthfm.py"
ROWS = {
    "frames encoded in every step": (),
    "cached latents": ("--cache_latents", "1"),
    "gradient checkpointing": ("--gradient_checkpointing",),
    "cached latents, gradient checkpointing": ("--cache_latents", "1", "--gradient_checkpointing"),
    "normals loss": ("--normals_loss_weight", "0.1"),
    "normals loss on a quarter of the batch": ("--normals_loss_weight", "0.1", "--decoded_fraction", "0.25"),
    "LoRA of rank 8": ("--lora_rank", "8"),
    "one-step stage on a quarter of the batch": ("--stage", "one_step", "--decoded_fraction", "0.25"),
    "the same, with the decoder": ("--stage", "one_step", "--decoded_fraction", "0.25", "--train_decoder"),
    "image encoder's trunk trained": ("--train_image_encoder",),
}


def run_row(args: argparse.Namespace, flags: tuple[str, ...], folder: Path) -> tuple[float, float]:
    """Peak resident memory in MB and seconds a step."""
    command = [sys.executable, str(SCRIPT), "--train_data", *args.train_data, "--output_dir", str(folder)]
    command += ["--pretrained_model_name_or_path", str(args.model), "--max_train_steps", str(args.steps)]
    command += ["--train_batch_size", str(args.batch_size), "--validation_fraction", "0", "--ema_decay", "0"]
    command += [
        "--checkpointing_steps",
        "1000000",
        "--lr_warmup_steps",
        "0",
        "--mixed_precision",
        args.mixed_precision,
    ]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    messages = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{messages}")
    events = EventAccumulator(str(next(folder.glob("logs/**/events*")).parent)).Reload()
    times = [event.wall_time for event in events.Scalars("loss")]
    return usage.ru_maxrss / 1024, statistics.median(b - a for a, b in pairwise(times[1:]))


def main() -> None:
    """Runs the rows and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train_data", nargs="+", required=True, help="As train_depthfm.py takes it; a few frames do."
    )
    parser.add_argument("--model", default=depthfm_diffusers.default_model_path(), help="Pipeline to train.")
    parser.add_argument("--steps", type=int, default=8, help="Steps of each run; at least 4.")
    parser.add_argument("--batch_size", type=int, default=8, help="Samples a step.")
    parser.add_argument("--repeats", type=int, default=2, help="Runs of each row.")
    parser.add_argument("--mixed_precision", default="no", help="As train_depthfm.py takes it.")
    parser.add_argument("--output", type=Path, default=None, help="JSON file for the measurements.")
    args = parser.parse_args()

    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ROWS}
    for _ in range(args.repeats):
        for name, flags in ROWS.items():
            with tempfile.TemporaryDirectory() as folder:
                measured[name].append(run_row(args, flags, Path(folder)))
    first = measured[next(iter(ROWS))]
    print("| | peak memory, MB | samples/s | time of a step against the first row |\n|---|---|---|---|")
    for name, runs in measured.items():
        memory = statistics.median(m for m, _ in runs)
        speed = statistics.median(args.batch_size / t for _, t in runs)
        ratio = statistics.median(t / t0 for (_, t), (_, t0) in zip(runs, first, strict=True))
        print(f"| {name} | {memory:.0f} | {speed:.1f} | {ratio:.2f} |")
    if args.output is not None:
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items() if k != "output"}
        args.output.write_text(json.dumps({"settings": settings, "runs": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
