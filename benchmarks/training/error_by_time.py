"""Measures the error of a model's estimate of the target at each flow time: how much training can still improve there.

    python benchmarks/training/error_by_time.py --train_data SHARDS

The mean squared error of x̂₁ in latent space, weighted by the valid share of each cell, mean over draws of the noise,
on training frames and on frames of held-out scenes; beside it the variance of x₁ itself.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "training"))

from torch.utils.data import default_collate

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.depth_normalization import DepthNormalization
from depthfm_diffusers.training.data.draws import FlowDraws, TimeDistribution
from depthfm_diffusers.training.data.flow_data import FlowFrames, encode_batch
from depthfm_diffusers.training.data.samples import DataSettings, SampleSettings, SplitFrames
from depthfm_diffusers.training.networks.encoder_unet import EncoderUNet, FeatureNoise
from depthfm_diffusers.training.objectives.flow_objective import predict_velocity


@torch.no_grad()
def main() -> None:
    """Runs the measurement and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--model", default=None, help="Model folder; default: the bundled one.")
    parser.add_argument("--train_data", nargs="+", required=True, help="Shards that the model was trained on.")
    parser.add_argument("--times", type=float, nargs="+", default=[0.0, 0.2, 0.5, 0.8], help="Flow times.")
    parser.add_argument("--frames", type=int, default=16, help="Frames of each kind.")
    parser.add_argument("--draws", type=int, default=3, help="Draws of the noise.")
    args = parser.parse_args()

    pipe = DepthFMPipeline.from_pretrained(args.model or default_model_path())
    encoder = pipe.image_encoder
    network = pipe.unet if encoder is None else EncoderUNet(pipe.unet, encoder, FeatureNoise())
    data = SplitFrames.open(DataSettings(tuple(args.train_data)))
    kinds = {"training": data.train, "held out": data.held_out}
    print("| frames | t | mean squared error of the estimate | variance of the target |\n|---|---|---|---|")
    for kind, indices in kinds.items():
        dataset = FlowFrames(
            data.frames,
            data.choose(indices, args.frames),
            SampleSettings(),
            DepthNormalization(),
            FlowDraws(TimeDistribution(), pipe.vae.config.latent_channels, feature_seed=encoder is not None),
            pipe.vae_scale_factor,
        )
        draws = [default_collate([dataset[epoch, i] for i in range(len(dataset))]) for epoch in range(args.draws)]
        encoded = encode_batch(pipe, draws[0])
        weight, target = encoded["weight"], encoded["depth_latent"]
        mean = (weight * target).sum((0, 2, 3), keepdim=True) / weight.sum()
        variance = (weight * (target - mean).square().mean(1, keepdim=True)).sum() / weight.sum()
        for time in args.times:
            errors = []
            for draw in draws:
                batch = encoded | {"noise": draw["noise"], "time": torch.full((len(dataset),), time)}
                estimate = predict_velocity(network, pipe.scheduler, pipe.prompt_embedding(), batch).target_estimate
                squared = (estimate - target).square().mean(1, keepdim=True)
                errors.append((weight * squared).sum() / weight.sum())
            print(f"| {kind} | {time} | {torch.stack(errors).mean():.4f} | {variance:.3f} |")


if __name__ == "__main__":
    main()
