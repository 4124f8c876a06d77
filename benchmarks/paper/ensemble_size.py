"""Claim (d): averaging members lowers the error, and their spread says where it is.

python benchmarks/paper/ensemble_size.py --data SHARDS --runs DIR
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from experiment import (
    HeldOut,
    build_parser,
    in_processes,
    load_flow,
    mean_scores,
    plot,
    predict_log_depth,
    results,
    score,
    spread,
    table,
    train_runs,
)

from depthfm_diffusers.evaluation import align
from depthfm_diffusers.evaluation.metrics.uncertainty import rank_correlation, sparsification_error
from depthfm_diffusers.frames import Frame
from depthfm_diffusers.pipelines.depthfm.ensembling import ensemble_log_depth, ensemble_uncertainty

MEMBERS = 10

TABLE = {
    "keys": ["ensemble_size"],
    "metrics": ["abs_rel", "delta1", "ause", "rank_correlation"],
}


def score_ensembles(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A row for each ensemble size; the first members of the same ten."""
    pipe = load_flow(args, "flow", seed)
    scores: dict[int, list[dict[str, float]]] = {size: [] for size in range(1, MEMBERS + 1)}
    for frame in HeldOut(args):
        members = np.stack([predict_log_depth(pipe, frame, 1, seed=member) for member in range(MEMBERS)])
        for size in scores:
            scores[size].append(score_ensemble(torch.from_numpy(members[:size])[:, None], frame))
    return [{"run": "flow", "seed": seed, "ensemble_size": size} | mean_scores(s) for size, s in scores.items()]


def score_ensemble(members: torch.Tensor, frame: Frame) -> dict[str, float]:
    """Error of the members' mean (M×1×H×W, log depth), and how well their spread ranks its pixels."""
    log_depth = ensemble_log_depth(members).squeeze().numpy()
    scores = score(log_depth, frame)
    if len(members) > 1:
        valid = frame.depth > 0
        aligned = align(log_depth, frame.depth, valid, "log").depth
        error = np.abs(aligned - frame.depth) / np.where(valid, frame.depth, 1)
        uncertainty = ensemble_uncertainty(members).squeeze().numpy()
        scores["ause"] = float(sparsification_error(uncertainty, error, valid).area)
        scores["rank_correlation"] = float(rank_correlation(uncertainty, error, valid))
    return scores


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0,)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, ["flow"])
        rows = [
            row for rows in in_processes(args, score_ensembles, [(args, seed) for seed in args.seeds]) for row in rows
        ]
        return rows

    rows = results(args, "ensemble_size", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        sizes = range(1, MEMBERS + 1)
        errors = [spread(rows, "abs_rel", ensemble_size=n)[0] for n in sizes]
        axes.plot(sizes, errors, "C0o-")
        axes.set_ylim(0, 1.2 * max(errors))
        axes.set(xlabel="ensemble members", xticks=sizes)
        axes.set_ylabel("AbsRel, aligned in log depth", color="C0")
        other = axes.twinx()
        other.plot(sizes[1:], [spread(rows, "rank_correlation", ensemble_size=n)[0] for n in sizes[1:]], "C1s-")
        other.set_ylabel("rank correlation of spread and error", color="C1")

    plot(args, "ensemble_size", draw)


if __name__ == "__main__":
    main()
