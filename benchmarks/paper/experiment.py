"""What the scripts of this folder share: training runs, scores on held-out frames, results and plots.

A training run is a row of `RUNS`: a script and the flags by which it differs from the others. A run that a script
needs and that does not exist yet is trained, with the same data, budget and seeds as all others. The scripts share the
runs, and resume those that were stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from diffusers import MarigoldDepthPipeline
from matplotlib import pyplot as plt
from tqdm.auto import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

import train_marigold

from depthfm_diffusers import DepthFMPipeline, FlowMatchingImageToDepthScheduler, default_model_path
from depthfm_diffusers.evaluation import absolute_relative_error, align, all_metrics, delta_accuracy
from depthfm_diffusers.frames import Frame, split_by_scene
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.utils.files import atomic_write, save_json

ROOT = Path(__file__).resolve().parents[2]
FLOW = ROOT / "training" / "train_depthfm.py"
DIFFUSION = Path(train_marigold.__file__)

# The emphasis on the time at which sampling starts, for small networks (see `TimeDistribution`): "flow" and
# "diffusion" have it alike, "-uniform" are without, as the papers'.
EMPHASIS = ["--start_share", "0.75"]
RUNS: dict[str, tuple[Path, list[str]]] = {
    "flow": (FLOW, EMPHASIS),
    "flow-uniform": (FLOW, []),
    "flow-from-noise": (FLOW, [*EMPHASIS, "--start", "noise"]),
    "flow-diff2flow": (FLOW, [*EMPHASIS, "--depth_normalization", "diff2flow"]),
    "flow-normals": (FLOW, [*EMPHASIS, "--normals_loss_weight", "0.2", "--decoded_fraction", "0.125"]),
    "flow-noise-0": (FLOW, [*EMPHASIS, "--noise_augmentation_step", "0"]),
    "flow-noise-200": (FLOW, [*EMPHASIS, "--noise_augmentation_step", "200"]),
    "flow-noise-600": (FLOW, [*EMPHASIS, "--noise_augmentation_step", "600"]),
    "diffusion": (DIFFUSION, EMPHASIS),
    "diffusion-uniform": (DIFFUSION, []),
}
PACKAGES = ("depthfm_diffusers", "diffusers", "torch")
METRICS = ("abs_rel", "delta1", "rmse", "boundary_f1", "normals_mean_deg")


def build_parser(description: str, seeds: Sequence[int]) -> argparse.ArgumentParser:
    """The flags of all scripts: sizes, seeds and folders."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="Shards, as training/train_depthfm.py takes them.")
    parser.add_argument("--runs", type=Path, required=True, help="Folder of the training runs; shared by all scripts.")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/paper/results", help="Folder of the JSON.")
    parser.add_argument("--plots", type=Path, default=ROOT / "docs/results", help="Folder of the plot.")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds), help="One training run for each.")
    parser.add_argument("--steps", type=int, default=1000, help="Optimizer steps of a run.")
    parser.add_argument("--batch_size", type=int, default=16, help="Samples of a step.")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="Its peak.")
    parser.add_argument("--variants", type=int, default=2, help="Augmented variants of each frame that are encoded.")
    parser.add_argument("--unet_config", default=str(Path(__file__).parent / "unet.json"), help="The UNet.")
    parser.add_argument("--vae", default=str(default_model_path() / "vae"), help="The autoencoder.")
    parser.add_argument("--max_frames", type=int, default=None, help="Score only the first held-out frames.")
    parser.add_argument(
        "--from_results",
        action="store_true",
        help="Train and score nothing: table and plot of the JSON that is there.",
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="Runs trained or scored at once.")
    return parser


def training_command(args: argparse.Namespace, name: str, seed: int) -> list[str]:
    """The command that trains a run of `RUNS`."""
    script, flags = RUNS[name]
    settings = {
        "train_data": args.data,
        "vae": [args.vae],
        "unet_config": [args.unet_config],
        "output_dir": [run_folder(args, name, seed)],
        "latent_cache_dir": [args.runs / "latents"],
        "cache_latents": [args.variants],
        "seed": [seed],
        "max_train_steps": [args.steps],
        "train_batch_size": [args.batch_size],
        "learning_rate": [args.learning_rate],
        "lr_warmup_steps": [args.steps // 10],
        "ema_decay": [0.995],
        "min_crop": [0.5],
        "jitter": [0.4],
        "mixed_precision": ["bf16"],
        "validation_frames": [1],
        "validation_steps": [args.steps],
        "checkpointing_steps": [250],
        "checkpoints_total_limit": [1],
        "resume_from_checkpoint": ["latest"],
        "report_to": ["tensorboard"],
    }
    words = [word for key, values in settings.items() for word in (f"--{key}", *map(str, values))]
    return [sys.executable, str(script), *words, "--channels_last", *flags]


def run_folder(args: argparse.Namespace, name: str, seed: int) -> Path:
    """Where a run is kept."""
    return args.runs / f"{name}-seed{seed}"


def train_runs(args: argparse.Namespace, names: Iterable[str]) -> None:
    """Trains those of the named runs that are missing, for each seed; a run that was stopped is resumed.

    Raises:
        ValueError: If a finished run was trained with other settings.
        RuntimeError: If a training fails; its messages are in `train.log` in its folder.
    """
    missing = []
    for name in names:
        for seed in args.seeds:
            folder = run_folder(args, name, seed)
            command = training_command(args, name, seed)
            done = folder / "finished.json"
            if not done.is_file():
                missing.append((folder, command))
            elif json.loads(done.read_text()) != command[2:]:
                raise ValueError(f"{folder} was trained with other settings: choose another --runs, or remove it.")
    # Runs of one seed share their latents: encoded here, by the first of each seed, before the others start.
    first: dict[str, tuple[Path, list[str]]] = {}
    for folder, command in missing:
        first.setdefault(folder.name.rpartition("-seed")[2], (folder, command))
    later = [run for run in missing if run not in first.values()]
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(missing), desc="Training runs") as progress:
        for batch in (list(first.values()), later):
            for _ in pool.map(lambda run: _train(*run, threads=_threads(args.jobs)), batch):
                progress.update()


def _threads(jobs: int) -> int:
    return max(1, (os.cpu_count() or 1) // jobs)


def _train(folder: Path, command: list[str], threads: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with (folder / "train.log").open("a") as log:
        log.write(shlex.join(command) + "\n")
        log.flush()
        status = subprocess.run(command, stdout=log, stderr=log, env=environment, check=False).returncode
    if status:
        raise RuntimeError(f"Training of {folder.name} failed: see {folder / 'train.log'}.")
    save_json(folder / "finished.json", command[2:])


class HeldOut:
    """The held-out frames with a known depth, and predictions for them."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.frames = MixedFrames.open(args.data)
        held_out = split_by_scene(self.frames.scenes, 0.05)[1]
        self.indices = [i for i in held_out if (self.frames[i].depth > 0).any()][: args.max_frames]

    def __iter__(self):
        for index in tqdm(self.indices, desc="Frames", leave=False):
            yield self.frames[index]


def load_flow(args: argparse.Namespace, name: str, seed: int, **scheduler_options: Any) -> DepthFMPipeline:
    """A trained flow model; `scheduler_options` override its scheduler's configuration."""
    pipe = DepthFMPipeline.from_pretrained(run_folder(args, name, seed))
    pipe.scheduler = FlowMatchingImageToDepthScheduler.from_config(pipe.scheduler.config, **scheduler_options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_run(args: argparse.Namespace, name: str, seed: int) -> DepthFMPipeline | MarigoldDepthPipeline:
    """A trained model of either kind."""
    if RUNS[name][0] == DIFFUSION:
        return train_marigold.load(run_folder(args, name, seed))
    return load_flow(args, name, seed)


def predict_log_depth(
    pipe: DepthFMPipeline | MarigoldDepthPipeline, frame: Frame, evaluations: int, seed: int = 0
) -> np.ndarray:
    """Normalised log depth by either kind of model, H×W; Marigold's map is the same quantity, moved to [0, 1]."""
    image = torch.from_numpy(frame.image.copy()).permute(2, 0, 1)[None].float() / 255
    steps = evaluations
    if isinstance(pipe, DepthFMPipeline):
        steps = evaluations // pipe.scheduler.order
    output = pipe(
        image,
        num_inference_steps=steps,
        processing_resolution=0,
        generator=torch.Generator().manual_seed(seed),
    )
    if isinstance(pipe, DepthFMPipeline):
        return output.log_depth[0, ..., 0]
    return output.prediction[0, ..., 0] * 2 - 1


def score(log_depth: np.ndarray, frame: Frame) -> dict[str, float]:
    """`METRICS` after alignment in log depth; AbsRel and δ1 of the exponential aligned in depth (`..._depth`)."""
    valid = frame.depth > 0
    aligned = align(log_depth, frame.depth, valid, "log").depth
    values = all_metrics(aligned, frame.depth, valid, intrinsics=frame.intrinsics)
    scores = {name: float(values[name]) for name in METRICS}
    aligned = align(np.exp(log_depth), frame.depth, valid, "depth").depth
    scores["abs_rel_depth"] = float(absolute_relative_error(aligned, frame.depth, valid))
    scores["delta1_depth"] = float(delta_accuracy(aligned, frame.depth, valid))
    return scores


def mean_scores(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over frames; a metric that a frame does not have (NaN: no occlusion edge in it) leaves that frame out."""
    return {name: float(np.nanmean([s[name] for s in scores])) for name in scores[0]}


def score_model(
    pipe: DepthFMPipeline | MarigoldDepthPipeline, held_out: HeldOut, evaluations: int
) -> dict[str, float]:
    """Mean scores on the held-out frames."""
    return mean_scores([score(predict_log_depth(pipe, frame, evaluations), frame) for frame in held_out])


def score_runs(args: argparse.Namespace, names: Sequence[str], evaluations: Sequence[int]) -> list[dict[str, Any]]:
    """Rows `run, seed, evaluations, scores…` for the named runs; processes share the work.

    Frames, noise and settings are the same for all. After a change of how scores are computed, remove `scores/` in
    the runs' folders.
    """
    jobs = [(args, name, seed, evaluations) for name in names for seed in args.seeds]
    return [row for rows in in_processes(args, _score_run, jobs) for row in rows]


def _score_run(args: argparse.Namespace, name: str, seed: int, evaluations: Sequence[int]) -> list[dict[str, Any]]:
    """Scores of a run are kept beside it, as several scripts ask for them."""
    held_out, folder = HeldOut(args), run_folder(args, name, seed) / "scores"
    made_with = {
        "data": held_out.frames.fingerprint(),
        "frames": len(held_out.indices),
        "versions": {package: version(package) for package in PACKAGES},
    }
    folder.mkdir(exist_ok=True)
    pipe, rows = None, []
    for n in evaluations:
        path = folder / f"evaluations-{n}.json"
        known = json.loads(path.read_text()) if path.is_file() else {}
        if known.get("made_with") != made_with:
            pipe = pipe or load_run(args, name, seed)
            known = {"made_with": made_with, "scores": score_model(pipe, held_out, n)}
            save_json(path, known)
        rows.append({"run": name, "seed": seed, "evaluations": n} | known["scores"])
    return rows


def in_processes(args: argparse.Namespace, function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Any]:
    """Calls `function` once for each tuple of arguments, in `--jobs` processes."""
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(min(args.jobs, len(jobs)), torch.set_num_threads, (_threads(args.jobs),)) as pool:
        return pool.starmap(function, jobs, chunksize=1)


def spread(rows: Sequence[dict[str, Any]], metric: str, **where: Any) -> tuple[float, float]:
    """Mean and standard deviation (n - 1; 0 for one) of a metric over the rows with these values."""
    values = [row[metric] for row in rows if all(row[key] == value for key, value in where.items())]
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def table(rows: Sequence[dict[str, Any]], keys: Sequence[str], metrics: Sequence[str]) -> str:
    """A Markdown table: a line for each combination of `keys`, mean ± spread over the rest (the seeds)."""
    lines = ["| " + " | ".join([*keys, *metrics]) + " |", "|" + "---|" * (len(keys) + len(metrics))]
    for combination in dict.fromkeys(tuple(row[key] for key in keys) for row in rows):
        cells = [str(value) for value in combination]
        for metric in metrics:
            if not any(metric in row for row in rows if tuple(row[key] for key in keys) == combination):
                cells.append("–")
                continue
            mean, deviation = spread(rows, metric, **dict(zip(keys, combination, strict=True)))
            cells.append(f"{mean:.3f} ± {deviation:.3f}" if deviation else f"{mean:.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def results(args: argparse.Namespace, name: str, compute: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of a claim: computed and written, with the settings and versions that made them; or read back."""
    path = args.output / f"{name}.json"
    if args.from_results:
        return json.loads(path.read_text())["rows"]
    rows = compute()
    hidden = ("data", "runs", "output", "plots", "jobs", "vae", "unet_config", "from_results")
    record = {
        "settings": {key: value for key, value in vars(args).items() if key not in hidden},
        "versions": {package: version(package) for package in PACKAGES} | {"python": platform.python_version()},
        "rows": rows,
    }
    args.output.mkdir(parents=True, exist_ok=True)
    save_json(path, record)
    return rows


def plot(args: argparse.Namespace, name: str, draw: Callable[[Any], None]) -> None:
    """Writes a plot that `draw` draws on axes."""
    matplotlib.use("agg")
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    draw(axes)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    args.plots.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.plots / f"{name}.png") as path:
        figure.savefig(path, dpi=120, format="png")
    plt.close(figure)


def draw_legend(axes: Any) -> None:
    """A legend above the axes, where no line can run through it."""
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)


def draw_lines(
    axes: Any, rows: Sequence[dict[str, Any]], series: dict[str, str], x: str = "evaluations", metric: str = "abs_rel"
) -> None:
    """A line with error bars (spread over the seeds) for each run of `series`: run to label."""
    for run, label in series.items():
        xs = sorted({row[x] for row in rows if row["run"] == run})
        points = [spread(rows, metric, run=run, **{x: value}) for value in xs]
        axes.errorbar(xs, [p[0] for p in points], [p[1] for p in points], marker="o", capsize=3, label=label)
    axes.set_xticks(sorted({row[x] for row in rows}))
    draw_legend(axes)
