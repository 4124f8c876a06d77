"""Claim (c), the headline: at one network evaluation flow matching beats a diffusion model at one, and at four.

python benchmarks/paper/flow_or_diffusion.py --data SHARDS --runs DIR

The peer is Marigold's kind of model: the same UNet, data, steps and order of samples, v-prediction, sampled by DDIM
through diffusers' `MarigoldDepthPipeline`. Both are trained twice: with the time drawn uniformly, as both papers do,
and with three quarters of the samples at the time where sampling starts.
"""

from __future__ import annotations

from experiment import build_parser, draw_lines, plot, save_results, score_runs, table, train_runs

SERIES = {
    "flow-uniform": "flow matching, uniform times",
    "diffusion-uniform": "diffusion, uniform times",
    "flow": "flow matching, 3/4 at the start",
    "diffusion": "diffusion, 3/4 at the start",
}
EVALUATIONS = (1, 2, 4, 10)
EVALUATIONS_UNIFORM = (1, 4)

TABLE = {
    "keys": ["run", "evaluations"],
    "metrics": ["abs_rel", "delta1", "abs_rel_depth", "delta1_depth"],
}


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0, 1, 2)).parse_args()
    train_runs(args, SERIES)
    rows = score_runs(args, ["flow-uniform", "diffusion-uniform"], EVALUATIONS_UNIFORM)
    rows += score_runs(args, ["flow", "diffusion"], EVALUATIONS)
    save_results(args, "flow_or_diffusion", rows)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        draw_lines(axes, rows, SERIES)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axes.set(xlabel="network evaluations", ylabel="AbsRel, aligned in log depth")

    plot(args, "flow_or_diffusion", draw)


if __name__ == "__main__":
    main()
