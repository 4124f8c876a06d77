"""`training/objectives/decoded_losses.py` and `training/networks/decoding_unet.py`, on real tiny components."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers.components import build_components
from helpers.walls import wall

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.depth_normalization import DepthNormalization, normalize_log_depth
from depthfm_diffusers.training.networks.decoding_unet import DecodingUNet, prepare_decoder
from depthfm_diffusers.training.objectives.decoded_losses import DecodedLosses, DecodedWeights
from depthfm_diffusers.training.objectives.flow_objective import FlowState, predict_velocity
from depthfm_diffusers.training.objectives.pixel_losses import gradient_matching_loss, normals_loss


@pytest.fixture
def frozen() -> DepthFMPipeline:
    pipe = DepthFMPipeline(**build_components())
    pipe.vae.requires_grad_(False)
    return pipe


def decoded_losses(
    state: FlowState,
    decode_depth: Callable[[torch.Tensor], torch.Tensor],
    batch: dict[str, torch.Tensor],
    normals_weight: float = 0.0,
    gradient_weight: float = 0.0,
    **settings: float,
) -> dict[str, torch.Tensor]:
    """What training does with a frozen decoder."""
    losses = DecodedLosses(DecodedWeights(normals_weight, gradient_weight), **settings)
    rows = losses.choose(batch)
    values = losses.decode(decode_depth, state.target_estimate[rows]) if len(rows) else None
    return losses.compute(values, batch, rows)


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


@pytest.mark.parametrize("name", ["normals", "relative"])
def test_values_that_are_not_clipped_are_compared_as_they_are(name):
    """The true map itself costs nothing, however far it leaves [-1, 1]."""
    batch = decoded_batch()
    normalized = [normalize_log_depth(depth, DepthNormalization(0.3, 0.7, clip=False)) for depth in batch["depth"]]
    values = torch.stack([one.values for one in normalized])
    batch |= {"depth_map": values, "bounds": torch.tensor([[one.log_near, one.log_far] for one in normalized])}
    assert values.abs().max() > 2.5
    loss = DecodedLosses(DecodedWeights(**{name: 1.0}))
    if name == "relative":  # exp(y) is linear in depth where log d = y + const
        batch["depth"] = torch.where(batch["known"], values.exp(), 0)
    assert loss.compute(values, batch, torch.arange(len(values)))[name] < 1e-4


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
        ({}, "must be positive"),
        ({"normals_weight": -1.0, "gradient_weight": 1.0}, "at least 0"),
        ({"normals_weight": 1.0, "fraction": 0.0}, "`fraction`"),
        ({"normals_weight": 1.0, "min_time": 1.5}, "`min_time`"),
    ],
)
def test_decoding_settings_are_checked(frozen, settings, message):
    batch = decoded_batch(1)
    with pytest.raises(ValueError, match=message):
        decoded_losses(state_of(batch), frozen.decode_depth, batch, **settings)


def test_at_the_start_only_samples_at_time_zero_are_decoded():
    batch = decoded_batch(6)
    batch["time"][[1, 4]] = 0.0
    losses = DecodedLosses(DecodedWeights(ssi=1.0), at_start=True)
    assert losses.choose(batch).tolist() == [1, 4]
    batch["bounds"][1] = 0.0  # no range of depth
    assert losses.choose(batch).tolist() == [4]


def test_every_weight_names_a_term():
    batch = decoded_batch()
    weights = DecodedWeights(normals=0.1, gradient=0.2, l1=0.3, ssi=0.4, relative=0.5, matching=0.6)
    losses = DecodedLosses(weights)
    values = batch["depth_map"] + 0.1 * torch.randn(batch["depth_map"].shape)
    terms = losses.compute(values, batch, losses.choose(batch))
    assert all(terms[name] > 0 for name in weights.positive())
    expected = sum(weight * terms[name] for name, weight in weights.positive().items())
    torch.testing.assert_close(terms["weighted"], expected)
    truth = losses.compute(batch["depth_map"], batch, losses.choose(batch))
    assert all(truth[name] < 1e-4 for name in ("gradient", "l1", "ssi", "matching"))


@pytest.mark.parametrize("weights", [{"l1": -1.0}, {"ssi": np.nan}, {"matching": np.inf}])
def test_weights_are_checked(weights):
    with pytest.raises(ValueError, match="must be at least 0 and finite"):
        DecodedWeights(**weights)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_trained_decoder_is_part_of_the_network(frozen, recompute):
    batch = decoded_batch()
    batch["time"][:2] = 0.0
    losses = DecodedLosses(DecodedWeights(l1=1.0), at_start=True, recompute=recompute)
    prepare_decoder(frozen)
    network = DecodingUNet(frozen.unet, frozen.vae, 1.0, losses.decode)
    rows = losses.choose(batch)
    state = predict_velocity(network, frozen.scheduler, frozen.prompt_embedding(), batch, decoded_rows=rows)
    plain = predict_velocity(frozen.unet, frozen.scheduler, frozen.prompt_embedding(), batch)
    torch.testing.assert_close(state.velocity, plain.velocity, rtol=0, atol=0)
    torch.testing.assert_close(state.decoded, frozen.decode_depth(plain.target_estimate[:2]), rtol=0, atol=1e-5)
    losses.compute(state.decoded, batch, rows)["weighted"].backward()
    assert frozen.vae.decoder.conv_in.weight.grad.abs().max() > 0
    assert frozen.unet.conv_in.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in frozen.vae.encoder.parameters())


def test_a_trained_decoder_has_a_gradient_of_zero_if_nothing_is_decoded(frozen):
    """Data parallelism waits for the gradient of every weight."""
    batch = decoded_batch()
    losses = DecodedLosses(DecodedWeights(l1=1.0), at_start=True)
    prepare_decoder(frozen)
    network = DecodingUNet(frozen.unet, frozen.vae, 1.0, losses.decode)
    rows = losses.choose(batch)
    assert len(rows) == 0
    state = predict_velocity(network, frozen.scheduler, frozen.prompt_embedding(), batch, decoded_rows=rows)
    terms = losses.compute(state.decoded, batch, rows)
    assert terms["l1"].item() == terms["weighted"].item() == 0.0
    (terms["weighted"] + state.velocity.mean()).backward()
    for parameter in frozen.vae.parameters():
        assert (parameter.grad is not None) == parameter.requires_grad
        assert parameter.grad is None or not parameter.grad.any()
