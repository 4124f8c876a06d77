"""`training/objectives/flow_objective.py` in closed form, on real tiny components."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.components import build_components

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.depth_normalization import normalize_log_depth
from depthfm_diffusers.geometry import intrinsics_from_fov
from depthfm_diffusers.training.objectives.flow_objective import (
    MAX_DECODED,
    FlowState,
    data_loss,
    decoded_losses,
    gradient_matching_loss,
    has_intrinsics,
    normals_loss,
    predict_velocity,
)


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


BOUNDS = (float(np.log(0.5)), float(np.log(10.0)))


def normalized_map(depth: torch.Tensor) -> torch.Tensor:
    """Normalised log depth under `BOUNDS`, not clipped."""
    return 2 * (depth.log() - BOUNDS[0]) / (BOUNDS[1] - BOUNDS[0]) - 1


def wall(slope: float, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Depth of the plane z = 3 - slope x, and intrinsics of a 60 degree camera."""
    intrinsics = intrinsics_from_fov(60.0, size, size)
    x = (torch.arange(size) - (size - 1) / 2) / intrinsics[0, 0]
    return (3 / (1 + slope * x)).expand(1, 1, size, size).clone(), intrinsics[None]


SLOPES = [(0.0, 0.0), (1.0, 1 - 1 / np.sqrt(2)), (-0.75, 0.2)]


@pytest.mark.parametrize(("slope", "expected"), SLOPES)
def test_normals_loss_is_the_cosine_of_the_angle_between_planes(slope, expected):
    """Tilts of 0, 45 and -37 degrees against a frontal wall; 1e-3 for the finite differences.

    Unknown pixels and their neighbours, and samples without a camera, do not count.
    """
    tilted, intrinsics = wall(slope)
    true, _ = wall(0.0)
    known = torch.ones_like(true, dtype=torch.bool)
    bounds = torch.tensor([BOUNDS])
    loss = normals_loss(normalized_map(tilted), true, known, bounds, intrinsics)
    assert loss.item() == pytest.approx(expected, abs=1e-3)

    values, holes = normalized_map(tilted), known.clone()
    holes[..., 3:7, 5:9] = False
    values[..., 3:7, 5:9] = 1.5
    loss = normals_loss(values, torch.where(holes, true, 0), holes, bounds, intrinsics)
    assert loss.item() == pytest.approx(expected, abs=1e-3)
    # A second sample, of another slope, whose camera is not known.
    pair = torch.cat([normalized_map(tilted), normalized_map(wall(0.7)[0])])
    cameras = torch.cat([intrinsics, torch.full((1, 3, 3), np.nan)])
    doubled = (t.expand(2, *t.shape[1:]) for t in (true, known, bounds))
    assert has_intrinsics(cameras).tolist() == [True, False]
    assert normals_loss(pair, *doubled, cameras).item() == pytest.approx(expected, abs=1e-3)


def test_normals_use_the_intrinsics_of_each_sample():
    """One map of values under two cameras is two planes; each matches its own truth only."""
    narrow, wide = (intrinsics_from_fov(fov, 24, 24)[None] for fov in (30.0, 90.0))
    depth, _ = wall(0.5)
    values, known = normalized_map(depth).expand(2, -1, -1, -1), torch.ones(2, 1, 24, 24, dtype=torch.bool)
    bounds, cameras = torch.tensor([BOUNDS]).expand(2, -1), torch.cat([narrow, wide])
    assert normals_loss(values, depth.expand(2, -1, -1, -1), known, bounds, cameras).item() < 1e-6
    alone = [normals_loss(values[:1], wall(0.0)[0], known[:1], bounds[:1], one).item() for one in (narrow, wide)]
    assert abs(alone[0] - alone[1]) > 0.05
    both = normals_loss(values, wall(0.0)[0].expand(2, -1, -1, -1), known, bounds, cameras).item()
    assert both == pytest.approx(np.mean(alone), abs=1e-6)


def test_normals_of_a_wild_estimate_are_finite():
    depth, intrinsics = wall(0.3)
    values = (torch.randn(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 1e4).requires_grad_()
    bounds = torch.tensor([[np.log(1e-3), np.log(1e4)]], dtype=torch.float32)
    loss = normals_loss(values, depth, torch.ones_like(depth, dtype=torch.bool), bounds, intrinsics)
    loss.backward()
    assert 0 <= loss.item() <= 2
    assert torch.isfinite(values.grad).all()
    assert not values.grad[values.abs() > MAX_DECODED].any()


def test_gradient_matching_of_a_ramp():
    """Residual a x: |differences| a, 2a, 4a, 8a at the four scales, horizontally; b y adds the same vertically."""
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(30.0), indexing="ij")
    target = torch.randn(2, 1, 20, 30, generator=torch.Generator().manual_seed(0))
    everywhere = torch.ones_like(target, dtype=torch.bool)
    assert gradient_matching_loss(target + 3.0, target, everywhere).item() < 1e-4  # a shift costs nothing
    loss = gradient_matching_loss(target + 0.01 * x - 0.02 * y, target, everywhere)
    assert loss.item() == pytest.approx(15 * (0.01 + 0.02), rel=1e-3)
    # What is not valid is not looked at, as long as a scale has valid pairs.
    part, values = everywhere.clone(), target + 0.01 * x - 0.02 * y
    part[..., 5:9, 3:11] = False
    values[..., 5:9, 3:11] = np.nan
    assert gradient_matching_loss(values, target, part).item() == pytest.approx(15 * 0.03, rel=1e-3)
    assert gradient_matching_loss(values, target, torch.zeros_like(part)).item() == 0.0


def test_gradient_matching_of_maps_smaller_than_its_scales():
    values = torch.tensor([[0.0, 1.0, 2.0]]).view(1, 1, 1, 3)
    valid = torch.ones_like(values, dtype=torch.bool)
    # Differences 1 and 1; then the pixels 0 and 2, difference 2; then a single pixel.
    assert gradient_matching_loss(values, torch.zeros_like(values), valid).item() == pytest.approx(3.0)


@pytest.fixture
def frozen() -> DepthFMPipeline:
    pipe = DepthFMPipeline(**build_components())
    pipe.vae.requires_grad_(False)
    return pipe


def decoded_batch(count: int = 4, size: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    """Walls of several slopes, with a strip of holes, and random latents for them."""
    generator = torch.Generator().manual_seed(seed)
    depths = torch.cat([wall(0.2 * (n % 6), size)[0] for n in range(count)])
    depths[..., :2, :] = 0
    normalized = [normalize_log_depth(torch.where(d > 0, d + 0.05 * d * (d > 0).cumsum(-2), d)) for d in depths]
    cells = size // 8
    noises = {
        name: torch.randn(count, 4, cells, cells, generator=generator)
        for name in ("image_latent", "depth_latent", "noise")
    }
    return noises | {
        "time": torch.linspace(0.2, 0.8, count),
        "depth": depths,
        "depth_map": torch.stack([n.values for n in normalized]),
        "valid": torch.stack([n.valid for n in normalized]),
        "known": torch.stack([n.known for n in normalized]),
        "bounds": torch.tensor([[n.log_near, n.log_far] for n in normalized]),
        "intrinsics": wall(0.0, size)[1].repeat(count, 1, 1),
    }


def state_of(batch: dict[str, torch.Tensor], requires_grad: bool = True) -> FlowState:
    velocity = torch.randn(batch["noise"].shape, generator=torch.Generator().manual_seed(9))
    return FlowState(batch["time"], batch["noise"], velocity.requires_grad_(requires_grad), torch.zeros_like(velocity))


def test_decoded_terms_train_the_unet_through_the_frozen_decoder(frozen):
    batch = decoded_batch()
    state = predict_velocity(frozen.unet, frozen.scheduler, frozen.prompt_embedding(), batch)
    terms = decoded_losses(state, frozen.decode_depth, batch, normals_weight=0.5, gradient_weight=0.25)
    expected = 0.5 * terms["normals"] + 0.25 * terms["gradient"]
    torch.testing.assert_close(terms["weighted"], expected)
    assert terms["decoded_share"].item() == 1.0
    terms["weighted"].backward()
    assert all(p.grad is None for p in frozen.vae.parameters())
    gradients = [p.grad for p in frozen.unet.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in gradients)
    assert frozen.unet.conv_in.weight.grad.abs().max() > 0
    assert frozen.unet.conv_out.weight.grad.abs().max() > 0


def test_each_term_alone_reaches_the_velocity(frozen):
    for weights in ({"normals_weight": 1.0}, {"gradient_weight": 1.0}):
        batch = decoded_batch()
        state = state_of(batch)
        terms = decoded_losses(state, frozen.decode_depth, batch, **weights)
        assert set(terms) == {"weighted", "decoded_share", next(iter(weights)).removesuffix("_weight")}
        terms["weighted"].backward()
        assert (state.velocity.grad.abs().amax((1, 2, 3)) > 0).all()


def test_checkpointed_gradient_is_the_plain_one(frozen):
    """The same numbers as the whole batch decoded at once; 1e-5 relative, convolutions sum in another order."""
    batch, calls = decoded_batch(), []

    def decode(latents: torch.Tensor) -> torch.Tensor:
        calls.append(len(latents))
        return frozen.decode_depth(latents)

    state = state_of(batch)
    terms = decoded_losses(state, decode, batch, normals_weight=1.0, gradient_weight=1.0)
    assert calls == [1, 1, 1, 1]
    terms["weighted"].backward()
    assert calls == [1] * 8  # decoded again for the gradient
    plain = state_of(batch)
    values = frozen.decode_depth(plain.target_estimate)
    loss = normals_loss(values, *(batch[name] for name in ("depth", "known", "bounds", "intrinsics")))
    loss = loss + gradient_matching_loss(values, batch["depth_map"], batch["valid"])
    loss.backward()
    torch.testing.assert_close(terms["weighted"], loss, rtol=1e-5, atol=1e-6)
    scale = plain.velocity.grad.abs().max()
    torch.testing.assert_close(state.velocity.grad / scale, plain.velocity.grad / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "decoded"),
    [
        ({}, [0, 1, 3, 4, 5]),
        ({"fraction": 0.5}, [0, 1, 3]),
        ({"fraction": 0.4}, [0, 1, 3]),  # 2.4 samples
        ({"fraction": 0.1}, [0]),
        ({"min_time": 0.5}, [3, 4, 5]),
        ({"min_time": 0.9}, []),
        ({"min_time": 0.5, "fraction": 0.25}, [3, 4]),
        ({"gradient_weight": 1.0, "fraction": 0.5}, [0, 1, 2]),  # the gradients need no camera
    ],
)
def test_which_samples_are_decoded(frozen, settings, decoded):
    """Six samples, t = 0.2 ... 0.8, the third without a camera: the first that qualify."""
    batch = decoded_batch(6)
    batch["intrinsics"][2] = np.nan
    state = state_of(batch)
    terms = decoded_losses(state, frozen.decode_depth, batch, **{"normals_weight": 1.0, **settings})
    assert terms["decoded_share"].item() == pytest.approx(len(decoded) / 6)
    if decoded:
        terms["weighted"].backward()
        assert state.velocity.grad.abs().amax((1, 2, 3)).nonzero()[:, 0].tolist() == decoded
        assert torch.isfinite(state.velocity.grad).all()
    else:
        assert terms["normals"].item() == terms["weighted"].item() == 0.0


def test_share_of_a_batch_is_not_rounded_up_by_floats(frozen):
    batch = decoded_batch(25)
    assert 0.28 * 25 > 7
    terms = decoded_losses(state_of(batch, False), frozen.decode_depth, batch, gradient_weight=1.0, fraction=0.28)
    assert terms["decoded_share"].item() == pytest.approx(7 / 25)


def test_batch_with_nothing_to_count_costs_nothing(frozen):
    """No depth, no camera, or no range; the names of the terms stay, as several processes average them by name."""
    batch = decoded_batch(2)
    names = set(decoded_losses(state_of(batch), frozen.decode_depth, batch, 1.0, 1.0))
    nowhere = torch.zeros_like(batch["valid"])
    for changes in (
        {"valid": nowhere, "known": nowhere, "depth": torch.zeros_like(batch["depth"])},
        {"intrinsics": torch.full((2, 3, 3), np.nan), "valid": nowhere},
        {"bounds": torch.zeros(2, 2)},
    ):
        state = state_of(batch)
        terms = decoded_losses(state, frozen.decode_depth, batch | changes, 1.0, 1.0)
        assert set(terms) == names
        assert terms["weighted"].item() == 0.0
        (terms["weighted"] + state.velocity.sum()).backward()
        torch.testing.assert_close(state.velocity.grad, torch.ones_like(state.velocity), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "one of them positive"),
        ({"normals_weight": -1.0, "gradient_weight": 1.0}, "at least 0"),
        ({"normals_weight": 1.0, "fraction": 0.0}, "`fraction`"),
        ({"normals_weight": 1.0, "min_time": 1.5}, "`min_time`"),
    ],
)
def test_decoding_settings_are_checked(frozen, settings, message):
    batch = decoded_batch(1)
    with pytest.raises(ValueError, match=message):
        decoded_losses(state_of(batch), frozen.decode_depth, batch, **settings)
