"""`training/objective.py` in closed form, on real tiny components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import build_components
from depth_transforms import normalize_log_depth
from objective import (
    FlowState,
    TimeDistribution,
    data_loss,
    latent_weight,
    normals_loss,
    predict_velocity,
)

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.geometry import depth_to_normals, intrinsics_from_fov


class ConstantVelocity(torch.nn.Module):
    """Stands for a network that has learnt its target."""

    def __init__(self, velocity: torch.Tensor) -> None:
        super().__init__()
        self.velocity = velocity
        self.inputs: list[tuple] = []

    def forward(self, sample, timestep, embedding, return_dict=False):
        """Returns the velocity and keeps the inputs."""
        self.inputs.append((sample, timestep, embedding))
        return (self.velocity,)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents = {
        name: torch.randn(3, 4, 8, 8, generator=generator) for name in ("image_latent", "depth_latent", "noise")
    }
    return latents | {"time": torch.tensor([0.0, 0.5, 0.9]), "weight": torch.ones(3, 1, 8, 8)}


def test_network_sees_the_path_the_clean_condition_and_unscaled_time(batch):
    components = build_components()
    scheduler = components["scheduler"]
    source = scheduler.augment(batch["image_latent"], batch["noise"])
    network = ConstantVelocity(batch["depth_latent"] - source)
    state = predict_velocity(network, scheduler, components["prompt_embedding"](), batch)
    sample, time, embedding = network.inputs[0]
    t = batch["time"].view(-1, 1, 1, 1)
    torch.testing.assert_close(sample[:, :4], (1 - t) * source + t * batch["depth_latent"])
    torch.testing.assert_close(sample[:, 4:], batch["image_latent"], rtol=0, atol=0)
    assert time.tolist() == batch["time"].tolist()
    assert embedding.shape == (3, 4, 16)
    # The right velocity leads to the target from anywhere on the path, and costs nothing.
    torch.testing.assert_close(state.target_estimate, batch["depth_latent"], atol=1e-5, rtol=0)
    assert data_loss(state, batch["weight"]).item() < 1e-12


def test_data_loss_counts_valid_cells_only():
    target = torch.zeros(1, 4, 2, 2)
    velocity = target.clone()
    velocity[..., 0, 0] = 2.0
    state = FlowState(torch.zeros(1), target, velocity, target)
    weight = torch.ones(1, 1, 2, 2)
    assert data_loss(state, weight).item() == pytest.approx(1.0)  # 4 / 4 cells
    weight[..., 0, 0] = 0
    assert data_loss(state, weight).item() == 0.0
    assert data_loss(state, torch.zeros_like(weight)).item() == 0.0


def test_latent_weight_is_the_share_of_valid_pixels():
    valid = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    valid[..., :8, :8] = True
    valid[..., :4, 8:] = True
    assert latent_weight(valid, (2, 2)).flatten().tolist() == [1.0, 0.5, 0.0, 0.0]


def test_times_follow_their_distribution():
    rng = np.random.default_rng(0)
    uniform = np.array([TimeDistribution().sample(rng) for _ in range(4000)])
    assert abs(uniform.mean() - 0.5) < 0.02
    assert uniform.min() >= 0
    assert uniform.max() < 1
    early = np.array([TimeDistribution("logit_normal", mean=-1.0).sample(rng) for _ in range(4000)])
    assert np.median(early) == pytest.approx(1 / (1 + np.e), abs=0.02)
    at_start = np.array([TimeDistribution(start_share=0.75).sample(rng) for _ in range(4000)]) == 0
    assert abs(at_start.mean() - 0.75) < 0.03
    with pytest.raises(ValueError, match="share of t = 0"):
        TimeDistribution(start_share=1.5)
    with pytest.raises(ValueError, match="distribution of t"):
        TimeDistribution("normal")
    with pytest.raises(ValueError, match="standard deviation"):
        TimeDistribution("logit_normal", std=0.0)


def wall(slope: float, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth of the plane z = 3 - slope x, and intrinsics of a 60 degree camera."""
    intrinsics = intrinsics_from_fov(60.0, size, size)
    x = (torch.arange(size) - (size - 1) / 2) / intrinsics[0, 0]
    return (3 / (1 + slope * x)).expand(1, 1, size, size).clone(), intrinsics[None]


@pytest.mark.parametrize(("slope", "expected"), [(0.0, 0.0), (1.0, 1 - 1 / np.sqrt(2))])
def test_normals_loss_is_the_cosine_of_the_angle_between_planes(slope, expected):
    """A tilt of 0 and of 45 degrees against a frontal wall; 1e-3 for the finite differences."""
    tilted, intrinsics = wall(slope)
    true, _ = wall(0.0)
    bounds = torch.tensor([[np.log(0.5), np.log(10.0)]], dtype=torch.float32)
    values = 2 * (tilted.log() - bounds[:, :1, None, None]) / (bounds[:, 1:] - bounds[:, :1])[..., None, None] - 1
    # The decoder is the identity: the latent is the map itself.
    state = FlowState(torch.ones(1), values, torch.zeros_like(values), torch.zeros_like(values))
    loss = normals_loss(
        state, lambda latent: latent, true, torch.ones_like(true, dtype=torch.bool), bounds, intrinsics
    )
    assert loss.item() == pytest.approx(expected, abs=1e-3)


def test_normals_loss_trains_the_network_through_the_frozen_decoder():
    pipe = DepthFMPipeline(**build_components())
    pipe.vae.requires_grad_(False)
    depth, intrinsics = wall(0.5, size=32)
    depth[..., :2, :] = 0
    normalized = normalize_log_depth(depth[0])
    velocity = torch.randn(1, 4, 4, 4, requires_grad=True)
    state = FlowState(torch.tensor([0.2]), torch.randn(1, 4, 4, 4), velocity, torch.zeros(1, 4, 4, 4))
    bounds = torch.tensor([[normalized.log_near, normalized.log_far]])
    loss = normals_loss(state, pipe.decode_depth, depth, normalized.valid[None], bounds, intrinsics)
    loss.backward()
    assert 0 < loss.item() < 2
    assert torch.isfinite(velocity.grad).all()
    assert velocity.grad.abs().sum() > 0
    assert all(p.grad is None for p in pipe.vae.parameters())
    nothing = normals_loss(
        state, pipe.decode_depth, depth, torch.zeros_like(depth, dtype=torch.bool), bounds, intrinsics
    )
    assert nothing.item() == 0.0
    assert torch.isfinite(depth_to_normals(torch.ones(1, 1, 8, 8), intrinsics)).all()
