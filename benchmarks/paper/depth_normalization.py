"""Beside the paper's claims: depth normalised as Diff2Flow's code does it, against this package's default.

python benchmarks/paper/depth_normalization.py --data SHARDS --runs DIR

Runs that are complete are not trained again, and one that was stopped is resumed. `bound_…` are the scores of the true
depth, normalised in the one or the other way and passed through the autoencoder, on the same frames.
"""

from __future__ import annotations

import argparse
from typing import Any

from experiment import (
    HeldOut,
    build_parser,
    draw_legend,
    load_flow,
    mean_scores,
    plot,
    results,
    score,
    score_runs,
    table,
    train_runs,
)

from depthfm_diffusers.depth_normalization import NORMALIZATIONS
from depthfm_diffusers.evaluation.runs.upper_bounds import true_log_depths

NORMALIZATION_OF_RUN = {"flow": "depthfm", "flow-diff2flow": "diff2flow"}
EVALUATIONS = (1, 2)
METRICS = ("abs_rel", "delta1", "boundary_f1", "abs_rel_depth", "delta1_depth")
PANELS = {"abs_rel": "AbsRel, log depth", "abs_rel_depth": "AbsRel, depth", "boundary_f1": "edge F1"}

TABLE = {
    "keys": ["normalization", "evaluations"],
    "metrics": [*METRICS, "bound_abs_rel", "bound_abs_rel_depth"],
}


def upper_bounds(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Scores of the true depth after normalisation and autoencoder, by the name of the normalisation."""
    held_out, bounds = HeldOut(args), {}
    for run, name in NORMALIZATION_OF_RUN.items():
        # The autoencoder is the same in all runs.
        pipe = load_flow(args, run, args.seeds[0])
        maps = ((true_log_depths(pipe, f.depth, None, 0, NORMALIZATIONS[name])[1], f) for f in held_out)
        scores = mean_scores([score(autoencoded, frame) for autoencoded, frame in maps])
        bounds[name] = {f"bound_{metric}": value for metric, value in scores.items()}
    return bounds


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0, 1, 2)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, NORMALIZATION_OF_RUN)
        bounds = upper_bounds(args)
        rows = []
        for row in score_runs(args, list(NORMALIZATION_OF_RUN), EVALUATIONS):
            name = NORMALIZATION_OF_RUN[row["run"]]
            rows.append(row | {"normalization": name} | bounds[name])
        return rows

    rows = results(args, "depth_normalization", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        """Each seed's values in one step, relative to the mean of the default."""
        first = [row for row in rows if row["evaluations"] == 1]
        for x, metric in enumerate(PANELS):
            default = [row[metric] for row in first if row["normalization"] == "depthfm"]
            mean = sum(default) / len(default)
            for number, name in enumerate(NORMALIZATION_OF_RUN.values()):
                values = [row[metric] / mean for row in first if row["normalization"] == name]
                place = [x + 0.2 * number - 0.1] * len(values)
                axes.plot(place, values, f"C{number}o", label=None if x else name)
        axes.set_xticks(range(len(PANELS)), list(PANELS.values()))
        axes.set(ylabel="relative to the mean of the default", xlim=(-0.5, len(PANELS) - 0.5))
        draw_legend(axes)

    plot(args, "depth_normalization", draw)


if __name__ == "__main__":
    main()
