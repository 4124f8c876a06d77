"""Claim (c), the headline: at one network evaluation flow matching beats a diffusion model at one, and at four.

python benchmarks/paper/flow_or_diffusion.py --data SHARDS --runs DIR

The peer is Marigold's kind of model: the same UNet, data, steps and order of samples, v-prediction, sampled by DDIM
through diffusers' `MarigoldDepthPipeline`. Both are trained twice: with the time drawn uniformly, as both papers do,
and with three quarters of the samples at the time where sampling starts.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import DDPMScheduler
from experiment import build_parser, draw_lines, plot, results, score_runs, table, train_runs
from train_marigold import SCHEDULE

from depthfm_diffusers import FlowMatchingImageToDepthScheduler

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


def shares_of_hard_times(limit: float = 0.2) -> tuple[float, float]:
    """Shares of uniformly drawn times with a signal-to-noise ratio of the target below `limit`: flow, diffusion.

    Latents of depth are smooth: where the ratio is higher, averaging neighbours gives the target away, and a network
    learns to denoise, not to see. On the flow's path the target's weight is t, the noise's (1 - t) σ, with σ the noise
    on the image's latent; the image is known and does not hide anything.
    """
    flow = FlowMatchingImageToDepthScheduler()
    one = torch.ones(1, 1, 1, 1)
    sigma = float(flow.add_noise(torch.zeros_like(one), one, torch.tensor([flow.config.noise_augmentation_step])))
    signal = DDPMScheduler(**SCHEDULE).alphas_cumprod.double()
    return limit * sigma / (1 + limit * sigma), float(((signal / (1 - signal)).sqrt() < limit).double().mean())


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0, 1, 2)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, SERIES)
        rows = score_runs(args, ["flow-uniform", "diffusion-uniform"], EVALUATIONS_UNIFORM)
        rows += score_runs(args, ["flow", "diffusion"], EVALUATIONS)
        return rows

    rows = results(args, "flow_or_diffusion", compute)
    print(table(rows, **TABLE))
    shares = shares_of_hard_times()
    print(f"times with signal to noise below 0.2: {shares[0]:.1%} on the flow's path, {shares[1]:.1%} on the schedule")

    def draw(axes) -> None:
        draw_lines(axes, rows, SERIES)
        axes.set_xscale("log")
        axes.minorticks_off()
        axes.set_xticks(EVALUATIONS, [str(n) for n in EVALUATIONS])
        axes.set(xlabel="network evaluations", ylabel="AbsRel, aligned in log depth")

    plot(args, "flow_or_diffusion", draw)


if __name__ == "__main__":
    main()
