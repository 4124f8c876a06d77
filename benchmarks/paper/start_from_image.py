"""Claim (a): starting the flow from the image's latent beats starting it from noise.

python benchmarks/paper/start_from_image.py --data SHARDS --runs DIR
"""

from __future__ import annotations

from typing import Any

from experiment import build_parser, draw_lines, plot, results, score_runs, table, train_runs

SERIES = {"flow": "from the image", "flow-from-noise": "from noise"}
EVALUATIONS = (1, 2, 4)

TABLE = {
    "keys": ["run", "evaluations"],
    "metrics": ["abs_rel", "delta1", "abs_rel_depth", "delta1_depth"],
}


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0, 1, 2)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, SERIES)
        rows = score_runs(args, list(SERIES), EVALUATIONS)
        return rows

    rows = results(args, "start_from_image", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        draw_lines(axes, rows, SERIES)
        axes.set(xlabel="network evaluations", ylabel="AbsRel, aligned in log depth")

    plot(args, "start_from_image", draw)


if __name__ == "__main__":
    main()
