"""`training/objectives/flow_objective.py` in closed form, on real tiny components."""

from __future__ import annotations

import pytest
import torch
from helpers.components import build_components

from depthfm_diffusers.training.objectives.flow_objective import FlowState, data_loss, predict_velocity


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


@pytest.mark.parametrize("sigma_min", [0.05, 0.5])
def test_smoothing_moves_the_sample_and_not_the_target(batch, sigma_min):
    """x_t gets its own noise; a velocity field that is right still costs nothing, and x̂_1 keeps that noise."""
    components = build_components()
    scheduler, embedding = components["scheduler"], components["prompt_embedding"]()
    velocity = batch["depth_latent"] - scheduler.augment(batch["image_latent"], batch["noise"])
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
    plain = predict_velocity(ConstantVelocity(velocity), scheduler, embedding, batch)
    network = ConstantVelocity(velocity)
    smooth = predict_velocity(network, scheduler, embedding, batch | {"path_noise": noise}, sigma_min)
    torch.testing.assert_close(smooth.sample, plain.sample + sigma_min * noise, atol=1e-6, rtol=0)
    torch.testing.assert_close(network.inputs[0][0][:, :4], smooth.sample, atol=0, rtol=0)
    torch.testing.assert_close(network.inputs[0][0][:, 4:], batch["image_latent"], atol=0, rtol=0)
    torch.testing.assert_close(smooth.target_velocity, plain.target_velocity, atol=0, rtol=0)
    torch.testing.assert_close(smooth.target_estimate, batch["depth_latent"] + sigma_min * noise, atol=1e-5, rtol=0)
    assert data_loss(smooth, batch["weight"]).item() < 1e-12


@pytest.mark.parametrize("sigma_min", [-0.1, float("nan"), float("inf")])
def test_smoothing_out_of_range_is_refused(batch, sigma_min):
    components = build_components()
    with pytest.raises(ValueError, match="sigma_min"):
        predict_velocity(
            components["unet"], components["scheduler"], components["prompt_embedding"](), batch, sigma_min
        )
