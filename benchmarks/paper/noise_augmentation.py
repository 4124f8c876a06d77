"""Claim (e): some noise on the image's latent at the start of the flow helps; step 400 of the cosine schedule is good.

python benchmarks/paper/noise_augmentation.py --data SHARDS --runs DIR
"""

from __future__ import annotations

from typing import Any

from experiment import build_parser, draw_legend, plot, results, score_runs, spread, table, train_runs

RUN_OF_STEP = {0: "flow-noise-0", 200: "flow-noise-200", 400: "flow", 600: "flow-noise-600"}
EVALUATIONS = (1, 2)

TABLE = {
    "keys": ["noise_augmentation_step", "evaluations"],
    "metrics": ["abs_rel", "delta1", "abs_rel_depth", "delta1_depth"],
}


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0,)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, RUN_OF_STEP.values())
        step_of_run = {run: step for step, run in RUN_OF_STEP.items()}
        rows = [
            row | {"noise_augmentation_step": step_of_run[row["run"]]}
            for row in score_runs(args, list(RUN_OF_STEP.values()), EVALUATIONS)
        ]
        return rows

    rows = results(args, "noise_augmentation", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        for n in EVALUATIONS:
            means = [spread(rows, "abs_rel", noise_augmentation_step=s, evaluations=n)[0] for s in RUN_OF_STEP]
            axes.plot(list(RUN_OF_STEP), means, marker="o", label=f"{n} evaluation{'s' * (n > 1)}")
        axes.set_xticks(list(RUN_OF_STEP))
        axes.set(xlabel="step of the noise augmentation", ylabel="AbsRel, aligned in log depth")
        draw_legend(axes)

    plot(args, "noise_augmentation", draw)


if __name__ == "__main__":
    main()
