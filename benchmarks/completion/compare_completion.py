"""Compares depth completion with interpolation, with fits of scale and shift, and with Marigold-DC's algorithm.

    python benchmarks/completion/compare_completion.py --data /path/to/scenes --output results/completion

The frames are those of scenes that the bundled model has not seen (as `depthfm evaluate --benchmark scenes`). Writes
`rows.jsonl` (one line for each frame, density, seed and method), `table.md` and `completion.png`. A second run goes on
where the first one stopped. Seconds are those of one thread, CPU time, without waiting for other processes.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import torch
from interpolators import SPACES, fitted, guided_filter, linear, natural_neighbour, nearest
from numpy.typing import NDArray

from depthfm_diffusers import DepthFMDepthCompletionPipeline, default_model_path
from depthfm_diffusers.evaluation.data.benchmark_data import Sample
from depthfm_diffusers.evaluation.data.configs import load_benchmark
from depthfm_diffusers.evaluation.data.open_benchmark import open_benchmark
from depthfm_diffusers.image_processing import load_image

MARIGOLD_DC = "Marigold-DC's algorithm"
OURS: dict[str, dict[str, Any]] = {
    "completion": {},
    "completion, 5 steps on the latent": {"num_optimization_steps": 5},
}


def parse_args() -> argparse.Namespace:
    """Reads the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder of shards of rendered scenes")
    parser.add_argument(
        "--example", type=Path, help="instead: the folder data/ of prs-eth/Marigold-DC, one real image"
    )
    parser.add_argument("--model", default=str(default_model_path()), help="DepthFM model (default: the bundled one)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--frames", type=int, default=0, help="frames, evenly spaced (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="choices of points for each frame")
    parser.add_argument(
        "--densities", type=float, nargs="+", default=[10, 100, 500, 1000, 0.01, 0.05, 0.2], help="points, or share"
    )
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.0], help="shares of points that are wrong")
    parser.add_argument("--marigold_frames", type=int, default=0, help="frames for Marigold-DC's algorithm (slow)")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    return parser.parse_args()


def choose_points(sample: Sample, density: float, seed: int, wrong: float) -> NDArray[np.float64]:
    """Returns depth H×W that is known at random pixels; wrong ones have any depth of the frame's range, in log."""
    rng = np.random.default_rng(seed)
    valid = np.flatnonzero(sample.valid)
    count = min(len(valid), int(density) if density >= 1 else round(density * len(valid)))
    chosen = rng.choice(valid, count, replace=False)
    known = np.zeros(sample.depth.shape)
    known.flat[chosen] = sample.depth.flat[chosen]
    low, high = np.log(sample.depth.flat[valid].min()), np.log(sample.depth.flat[valid].max())
    bad = chosen[: round(wrong * count)]
    known.flat[bad] = np.exp(rng.uniform(low, high, len(bad)))
    return known


def methods(pipe: Any, image: Any, known: NDArray, seed: int, with_marigold: bool) -> Iterator[tuple[str, Callable]]:
    """Yields the name of each method and a function that returns the completed depth, H×W, and details."""
    yield "nearest", lambda: (nearest(known), {})
    yield "linear", lambda: (linear(known), {})
    yield "natural neighbour", lambda: (natural_neighbour(known), {})
    yield "guided filter", lambda: (guided_filter(known, np.asarray(image)), {})

    def run(**options: Any) -> tuple[NDArray, dict[str, Any]]:
        output = pipe(image, known.astype(np.float32), generator=torch.Generator().manual_seed(seed), **options)
        return output.depth[0, ..., 0], {"uncertainty": output.uncertainty[0, ..., 0]}

    for name, options in OURS.items():
        yield name, lambda options=options: run(**options)
    if with_marigold:
        yield MARIGOLD_DC, lambda: run(guided_flow=True, num_optimization_steps=0, correct_residual=False)


def scores(depth: NDArray, truth: NDArray, valid: NDArray, details: dict[str, Any]) -> dict[str, float]:
    """Returns MAE and RMSE in metres, AbsRel; and how the uncertainty ranks the errors."""
    error, true = np.abs(depth - truth)[valid], truth[valid]
    found = {
        "mae": error.mean(),
        "rmse": np.sqrt(np.square(error).mean()),
        "abs_rel": (error / true).mean(),
    }
    if "uncertainty" in details:
        uncertainty = details["uncertainty"][valid]
        ranks = [values.argsort().argsort() for values in (error, uncertainty)]
        found |= {
            "rank_correlation": np.corrcoef(*ranks)[0, 1],
            "within_2_deviations": (error <= 2 * uncertainty).mean(),
        }
    return {name: float(value) for name, value in found.items()}


def measure_frame(task: dict[str, Any]) -> list[dict[str, Any]]:
    """Measures all methods on one frame."""
    torch.set_num_threads(1)
    pipe = DepthFMDepthCompletionPipeline.from_pretrained(task["model"])
    pipe.set_progress_bar_config(disable=True)
    if task["example"]:
        folder = Path(task["example"])
        truth = np.load(folder / "gt.npy").astype(np.float64)
        sample = None
        image = load_image(folder / "image.png").convert("RGB")
        cases = [(n, 0, 0.0, np.load(folder / f"sparse_{n}.npy").astype(np.float64)) for n in (10, 100, 1000)]
        valid = truth > 0
    else:
        sample = open_benchmark(load_benchmark("scenes"), task["data"])[task["index"]]
        truth, valid, image = sample.depth.astype(np.float64), sample.valid, sample.image
        cases = [
            (density, seed, wrong, choose_points(sample, density, seed, wrong))
            for density in task["densities"]
            for seed in range(task["seeds"])
            for wrong in task["wrong"]
        ]
    rows = []
    log_depth, uses = None, {}
    for density, seed, wrong, known in cases:
        if log_depth is None:
            plain = pipe_log_depth(pipe, image)
            log_depth, uses = plain
        case = {"frame": task["index"], "density": density, "seed": seed, "wrong": wrong}
        for space in SPACES:
            started = time.process_time()
            depth = fitted(known, log_depth, space)
            seconds = time.process_time() - started + uses
            rows.append(
                {**case, "method": f"scale and shift, {space}", "seconds": seconds, **scores(depth, truth, valid, {})}
            )
        for name, complete in methods(pipe, image, known, seed, task["marigold"]):
            started = time.process_time()
            depth, details = complete()
            seconds = time.process_time() - started
            rows.append({**case, "method": name, "seconds": seconds, **scores(depth, truth, valid, details)})
    return rows


def pipe_log_depth(pipe: Any, image: Any) -> tuple[NDArray[np.float64], float]:
    """Predicts log depth H×W without points; also returns the seconds."""
    from depthfm_diffusers import DepthFMPipeline

    plain = DepthFMPipeline.from_pipe(pipe)
    plain.set_progress_bar_config(disable=True)
    started = time.process_time()
    output = plain(image, generator=torch.Generator().manual_seed(0))
    return output.log_depth[0, ..., 0].astype(np.float64), time.process_time() - started


def write_table(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the means over frames and seeds as Markdown, one table for each share of wrong points."""
    lines = []
    for wrong in sorted({row["wrong"] for row in rows}):
        of_wrong = [row for row in rows if row["wrong"] == wrong]
        densities = list(dict.fromkeys(row["density"] for row in sorted(of_wrong, key=_order)))
        frames = len({row["frame"] for row in of_wrong})
        seeds = len({row["seed"] for row in of_wrong})
        lines += [f"MAE in metres, {frames} frames, {seeds} seed(s), {wrong:.0%} of the points wrong:", ""]
        lines += ["| | " + " | ".join(map(_name, densities)) + " | AbsRel | RMSE | seconds |"]
        lines += ["|---" * (len(densities) + 4) + "|"]
        for method in dict.fromkeys(row["method"] for row in of_wrong):
            own = [row for row in of_wrong if row["method"] == method]
            by_density = [_mean(own, "mae", density=density) for density in densities]
            rest = (f"{_mean(own, 'abs_rel'):.3f}", f"{_mean(own, 'rmse'):.3f}", f"{_mean(own, 'seconds'):.2f}")
            count = len({row["frame"] for row in own})
            name = method if count == frames else f"{method} ({count} frames)"
            lines.append(f"| {name} | " + " | ".join([*(f"{x:.3f}" for x in by_density), *rest]) + " |")
        compared = {row["frame"] for row in of_wrong if row["method"] == MARIGOLD_DC}
        if compared and len(compared) < frames:
            lines += ["", f"On the {len(compared)} frame(s) of {MARIGOLD_DC} only:", ""]
            for method in (*OURS, MARIGOLD_DC):
                own = [row for row in of_wrong if row["method"] == method and row["frame"] in compared]
                values = ", ".join(f"{_name(d)}: {_mean(own, 'mae', density=d):.3f}" for d in densities)
                lines.append(f"- {method}: {values}; {_mean(own, 'seconds'):.1f} s")
        ranked = [row for row in of_wrong if row["method"] == "completion"]
        lines += [
            "",
            f"Uncertainty of the completion: rank correlation with the error {_mean(ranked, 'rank_correlation'):.2f}, "
            f"{_mean(ranked, 'within_2_deviations'):.0%} of the pixels within two standard deviations.",
            "",
        ]
    path.write_text("\n".join(lines), encoding="utf-8")


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws MAE against the number of points, without wrong points."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    clean = sorted((row for row in rows if row["wrong"] == 0), key=_order)
    densities = list(dict.fromkeys(row["density"] for row in clean))
    for method in dict.fromkeys(row["method"] for row in clean):
        own = [row for row in clean if row["method"] == method]
        axes.plot([_name(d) for d in densities], [_mean(own, "mae", density=d) for d in densities], "o-", label=method)
    axes.set(xlabel="known points", ylabel="MAE, m", yscale="log")
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _order(row: dict[str, Any]) -> tuple[bool, float]:
    return row["density"] < 1, row["density"]


def _name(density: float) -> str:
    return f"{density:.0f}" if density >= 1 else f"{density:.0%}"


def _mean(rows: Iterable[dict[str, Any]], name: str, **conditions: float) -> float:
    by_frame = defaultdict(list)
    for row in rows:
        if all(row[key] == value for key, value in conditions.items()):
            by_frame[row["frame"]].append(row[name])
    return float(np.mean([np.mean(values) for values in by_frame.values()])) if by_frame else float("nan")


def main() -> None:
    """Runs the comparison."""
    args = parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    lines = args.output / "rows.jsonl"
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    indices = [0]
    if not args.example:
        total = len(open_benchmark(load_benchmark("scenes"), args.data))
        count = args.frames or total
        indices = [i * total // count for i in range(count)]
    common = {"data": str(args.data), "model": args.model, "example": str(args.example) if args.example else None}
    common |= {"densities": args.densities, "seeds": args.seeds, "wrong": args.wrong}
    done = {row["frame"] for row in rows}
    tasks = [
        {**common, "index": index, "marigold": place < args.marigold_frames}
        for place, index in enumerate(indices)
        if index not in done
    ]
    with ProcessPoolExecutor(args.jobs) as pool:
        for future in as_completed([pool.submit(measure_frame, task) for task in tasks]):
            found = future.result()
            rows += found
            with lines.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(row) + "\n" for row in found)
    write_table(rows, args.output / "table.md")
    draw(rows, args.output / "completion.png")


if __name__ == "__main__":
    main()
