"""Claim (g): Euler is as good as solvers of second order at equal network evaluations.

python benchmarks/paper/solvers.py --data SHARDS --runs DIR
"""

from __future__ import annotations

import argparse
from typing import Any

from experiment import (
    HeldOut,
    build_parser,
    draw_lines,
    in_processes,
    load_flow,
    plot,
    results,
    score_model,
    table,
    train_runs,
)

EVALUATIONS = {"euler": (1, 2, 4), "midpoint": (2, 4), "heun": (2, 4)}

TABLE = {
    "keys": ["run", "evaluations"],
    "metrics": ["abs_rel", "delta1", "abs_rel_depth"],
}


def score_solver(args: argparse.Namespace, run: str, seed: int, solver: str) -> list[dict[str, Any]]:
    """A row for each number of evaluations."""
    pipe, held_out = load_flow(args, run, seed, solver_type=solver), HeldOut(args)
    settings = {"run": solver, "model": run, "seed": seed}
    return [settings | {"evaluations": n} | score_model(pipe, held_out, n) for n in EVALUATIONS[solver]]


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0,)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, ["flow-uniform"])
        jobs = [(args, "flow-uniform", seed, solver) for seed in args.seeds for solver in EVALUATIONS]
        rows = [row for rows in in_processes(args, score_solver, jobs) for row in rows]
        return rows

    rows = results(args, "solvers", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        draw_lines(axes, rows, {solver: solver.capitalize() for solver in EVALUATIONS})
        axes.set(xlabel="network evaluations", ylabel="AbsRel, aligned in log depth")

    plot(args, "solvers", draw)


if __name__ == "__main__":
    main()
