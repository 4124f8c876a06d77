"""Claim (f): trained at one resolution, tested at others, with and without the rescaling of self-attention.

python benchmarks/paper/resolution.py --data SHARDS --runs DIR
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from experiment import (
    HeldOut,
    build_parser,
    draw_legend,
    in_processes,
    mean_scores,
    plot,
    results,
    run_folder,
    score,
    spread,
    table,
    train_runs,
)

from depthfm_diffusers import DepthFMPipeline

RESOLUTIONS = (128, 192, 256, 384)  # longer side in pixels; frames have 256, and so had the training

TABLE = {
    "keys": ["rescale_self_attention", "resolution"],
    "metrics": ["abs_rel", "delta1", "abs_rel_depth"],
}


def score_resolutions(args: argparse.Namespace, seed: int, rescale: bool) -> list[dict[str, Any]]:
    """A row for each resolution; the prediction is brought back to the frame's size before it is scored."""
    pipe = DepthFMPipeline.from_pretrained(run_folder(args, "flow", seed), rescale_self_attention=rescale)
    pipe.set_progress_bar_config(disable=True)
    scores: dict[int, list[dict[str, float]]] = {resolution: [] for resolution in RESOLUTIONS}
    for frame in HeldOut(args):
        image = torch.from_numpy(frame.image.copy()).permute(2, 0, 1)[None].float() / 255
        for resolution in RESOLUTIONS:
            noise = torch.Generator().manual_seed(0)
            output = pipe(image, num_inference_steps=1, processing_resolution=resolution, generator=noise)
            scores[resolution].append(score(output.log_depth[0, ..., 0], frame))
    settings = {"run": "flow", "seed": seed, "rescale_self_attention": rescale}
    return [settings | {"resolution": resolution} | mean_scores(s) for resolution, s in scores.items()]


def main() -> None:
    """Trains, scores, writes."""
    args = build_parser(__doc__.splitlines()[0], seeds=(0,)).parse_args()

    def compute() -> list[dict[str, Any]]:
        train_runs(args, ["flow"])
        jobs = [(args, seed, rescale) for seed in args.seeds for rescale in (False, True)]
        rows = [row for rows in in_processes(args, score_resolutions, jobs) for row in rows]
        return rows

    rows = results(args, "resolution", compute)
    print(table(rows, **TABLE))

    def draw(axes) -> None:
        for rescale in (False, True):
            means = [spread(rows, "abs_rel", rescale_self_attention=rescale, resolution=r)[0] for r in RESOLUTIONS]
            axes.plot(RESOLUTIONS, means, marker="o", label="rescaled self-attention" if rescale else "plain")
        axes.axvline(256, color="0.7", linestyle=":")
        axes.set_xticks(RESOLUTIONS)
        axes.set(xlabel="longer side at test (trained at 256)", ylabel="AbsRel, aligned in log depth")
        draw_legend(axes)

    plot(args, "resolution", draw)


if __name__ == "__main__":
    main()
