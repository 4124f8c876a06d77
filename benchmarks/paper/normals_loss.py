"""Claim (b): a loss on surface normals, through the decoder, makes better depth.

python benchmarks/paper/normals_loss.py --data SHARDS --runs DIR
"""

from __future__ import annotations

from typing import Any

from experiment import build_parser, draw_legend, plot, results, score_runs, table, train_runs

SERIES = {"flow": "without", "flow-normals": "with the normals loss"}
PANELS = {"abs_rel": "AbsRel", "rmse": "RMSE", "normals_mean_deg": "normals, mean angle"}

TABLE = {
    "keys": ["run", "evaluations"],
    "metrics": ["abs_rel", "delta1", "normals_mean_deg", "boundary_f1", "abs_rel_depth"],
}


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0, 1, 2)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, SERIES)
        rows = score_runs(args, list(SERIES), (1, 2))
        return rows

    rows = results(args, "normals_loss", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        """Each seed's pair of values, relative to the mean without the loss."""
        first = [row for row in rows if row["evaluations"] == 1]
        for x, metric in enumerate(PANELS):
            base = [row[metric] for row in first if row["run"] == "flow"]
            mean = sum(base) / len(base)
            for offset, (run, label) in zip((-0.1, 0.1), SERIES.items(), strict=True):
                values = [row[metric] / mean for row in first if row["run"] == run]
                axes.plot([x + offset] * len(values), values, f"C{int(offset > 0)}o", label=None if x else label)
        axes.set_xticks(range(len(PANELS)), list(PANELS.values()))
        axes.set(ylabel="relative to the mean without", xlim=(-0.5, len(PANELS) - 0.5))
        draw_legend(axes)

    plot(args, "normals_loss", draw)


if __name__ == "__main__":
    main()
