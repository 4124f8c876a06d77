"""Solvers, time grids, noise and misuse of the scheduler."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from helpers.host_reads import HostReads
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers import FlowMatchingImageToDepthScheduler

SOLVERS = ("euler", "midpoint", "heun")
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2}


def solve(scheduler, field, sample):
    """Follow a velocity field v(x, t) from t = 0 to 1 along `scheduler.timesteps`."""
    for t in scheduler.timesteps:
        sample = scheduler.step(field(scheduler.scale_model_input(sample, t), float(t)), t, sample).prev_sample
    return sample


@pytest.mark.parametrize("solver", SOLVERS)
def test_converges_at_its_order(solver):
    # dx/dt = -(1 + t) x has the solution x_0 exp(-t - t^2 / 2); float64 keeps rounding out of the slope.
    start = torch.linspace(0.5, 2, 7, dtype=torch.float64)
    steps = (8, 16, 32, 64)
    errors = []
    for n in steps:
        scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
        scheduler.set_timesteps(n)
        end = solve(scheduler, lambda x, t: -(1 + t) * x, start)
        errors.append((end - start * math.exp(-1.5)).abs().max().item())
    slope = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert slope == pytest.approx(ORDERS[solver], abs=0.12)


@pytest.mark.parametrize("solver", SOLVERS)
def test_one_step_of_a_constant_field_is_exact(solver):
    source, target = torch.randn(2, 4, 3, 5, dtype=torch.float64), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    scheduler.set_timesteps(1)
    velocity = scheduler.get_velocity(source, target)
    torch.testing.assert_close(solve(scheduler, lambda x, t: velocity, source), target, rtol=0, atol=1e-12)


def test_midpoint_and_heun_agree_with_their_textbook_step():
    def field(x, t):
        return torch.sin(x) + t

    x = torch.tensor([0.3], dtype=torch.float64)
    first = field(x, 0.0)
    expected = {
        "midpoint": x + field(x + first / 2, 0.5),
        "heun": x + (first + field(x + first, 1.0)) / 2,
    }
    for solver, value in expected.items():
        scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
        scheduler.set_timesteps(1)
        torch.testing.assert_close(solve(scheduler, field, x), value, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(
    solver=st.sampled_from(SOLVERS),
    starts=st.lists(st.integers(0, 999), min_size=1, max_size=8, unique=True).map(
        lambda s: [t / 1000 for t in sorted(s)]
    ),
    velocity=st.floats(-10, 10),
)
def test_any_grid_integrates_a_constant_field_exactly(solver, starts, velocity):
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    scheduler.set_timesteps(timesteps=starts)
    assert len(scheduler.timesteps) == len(starts) * scheduler.order == scheduler.num_inference_steps * scheduler.order
    end = solve(scheduler, lambda x, t: torch.full_like(x, velocity), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(end, torch.full_like(end, velocity * (1 - starts[0])), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("solver", "expected"),
    [("euler", [0, 0.5]), ("midpoint", [0, 0.25, 0.5, 0.75]), ("heun", [0, 0.5, 0.5, 1])],
)
def test_timesteps_are_flow_times_of_evaluations(solver, expected):
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver, timestep_scale=1000)
    scheduler.set_timesteps(2)
    assert scheduler.timesteps.dtype == torch.float32
    assert scheduler.timesteps.tolist() == expected
    assert scheduler.order == ORDERS[solver]


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_evaluation_predicts_the_end_point(solver):
    source, target = torch.randn(1, 4, 2, 2), torch.randn(1, 4, 2, 2)
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    scheduler.set_timesteps(3)
    sample = source
    for t in scheduler.timesteps:
        torch.testing.assert_close(sample, scheduler.interpolate(source, target, t))
        output = scheduler.step(scheduler.get_velocity(source, target), t, sample)
        torch.testing.assert_close(output.pred_original_sample, target)
        sample = output.prev_sample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("solver", SOLVERS)
def test_arithmetic_is_in_float32_at_least_and_the_dtype_is_kept(solver, dtype):
    sample = torch.linspace(-2, 2, 9).to(dtype)
    velocity = torch.linspace(3, 5, 9).to(dtype)
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    scheduler.set_timesteps(3)
    output = scheduler.step(velocity, scheduler.timesteps[0], sample)
    step = {"euler": 1 / 3, "midpoint": 1 / 6, "heun": 1 / 3}[solver]
    # Rounded once, at the end.
    assert torch.equal(output.prev_sample, (sample.double() + step * velocity.double()).to(dtype))
    assert output.pred_original_sample.dtype == dtype


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_interrupted_run_does_not_change_the_next(solver):
    def field(x, t):
        return torch.sin(3 * x + t)

    x = torch.linspace(-1, 1, 5)
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    scheduler.set_timesteps(4)
    expected = solve(scheduler, field, x)
    for evaluations in range(1, len(scheduler.timesteps)):
        scheduler.set_timesteps(4)
        for t in scheduler.timesteps[:evaluations]:
            scheduler.step(torch.full((2, 3), 9.0), t, torch.ones(2, 3))
        scheduler.set_timesteps(4)
        assert torch.equal(solve(scheduler, field, x), expected)


def test_starts_midway_by_lookup_or_begin_index():
    x = torch.zeros(2)
    scheduler = FlowMatchingImageToDepthScheduler(solver_type="heun")
    for begin_index in (None, 2):
        scheduler.set_timesteps(2)
        if begin_index is not None:
            scheduler.set_begin_index(begin_index)
        for t in scheduler.timesteps[2:]:
            x_next = scheduler.step(torch.ones(2), t, x).prev_sample
        assert x_next.tolist() == [0.5, 0.5]
        assert scheduler.step_index == 4


def test_timesteps_rounded_to_the_network_dtype_are_recognised():
    scheduler = FlowMatchingImageToDepthScheduler()
    scheduler.set_timesteps(3)
    for t in scheduler.timesteps.to(torch.bfloat16):
        scheduler.step(torch.ones(1), t, torch.ones(1))
    assert scheduler.step_index == 3


def test_cosine_schedule_at_known_steps():
    scheduler = FlowMatchingImageToDepthScheduler()
    ones, zeros = torch.ones(1, 1), torch.zeros(1, 1)
    signal, noise = (
        scheduler.add_noise(a, b, 400).item() for a, b in ((ones, zeros), (zeros, ones))
    )  # fmt: skip
    assert signal**2 == pytest.approx(0.6545, abs=5e-5)
    assert (signal, noise) == (pytest.approx(0.809, abs=5e-4), pytest.approx(0.588, abs=5e-4))
    # The authors' formula, in NumPy.
    log_snr = -2 * np.log(np.tan(np.pi * 0.1234 / 2) + 1e-5)
    assert scheduler.add_noise(ones, zeros, 123.4).item() ** 2 == pytest.approx(1 / (1 + np.exp(-log_snr)), abs=1e-6)


def test_step_zero_adds_exactly_nothing_and_the_last_step_leaves_nothing():
    scheduler = FlowMatchingImageToDepthScheduler(noise_augmentation_step=0)
    latents, noise = torch.randn(2, 4, 3, 3), 1e6 * torch.randn(2, 4, 3, 3)
    assert torch.equal(scheduler.augment(latents, noise), latents)
    torch.testing.assert_close(scheduler.add_noise(latents, noise, 1000), noise)


@settings(deadline=None, max_examples=60)
@given(steps=st.lists(st.floats(0, 1000, allow_nan=False), min_size=1, max_size=4))
def test_add_noise_preserves_variance_and_treats_samples_one_by_one(steps):
    scheduler = FlowMatchingImageToDepthScheduler()
    ones, zeros = torch.ones(len(steps), 3, 2, dtype=torch.float64), torch.zeros(len(steps), 3, 2, dtype=torch.float64)
    timesteps = torch.tensor(steps, dtype=torch.float64)
    signal, noise = scheduler.add_noise(ones, zeros, timesteps), scheduler.add_noise(zeros, ones, timesteps)
    torch.testing.assert_close(signal**2 + noise**2, ones, rtol=0, atol=1e-12)
    for i, step in enumerate(steps):
        assert torch.equal(signal[i : i + 1], scheduler.add_noise(ones[:1], zeros[:1], step))


@settings(deadline=None, max_examples=60)
@given(times=st.lists(st.floats(0, 1), min_size=2, max_size=2))
def test_interpolate_runs_from_source_to_target(times):
    scheduler = FlowMatchingImageToDepthScheduler()
    source, target = torch.randn(2, 4, 3, 3, dtype=torch.float64), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    assert torch.equal(scheduler.interpolate(source, target, 0), source)
    assert torch.equal(scheduler.interpolate(source, target, 1.0), target)
    expected = torch.stack([source[i] + t * (target[i] - source[i]) for i, t in enumerate(times)])
    actual = scheduler.interpolate(source, target, torch.tensor(times, dtype=torch.float64))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"solver_type": "rk4"}, "solver_type"),
        ({"noise_augmentation_step": -1}, "noise_augmentation_step"),
        ({"noise_augmentation_step": 1001}, "noise_augmentation_step"),
        ({"num_train_timesteps": 0, "noise_augmentation_step": 0}, "num_train_timesteps"),
        ({"timestep_scale": 0.0}, "timestep_scale"),
        ({"timestep_scale": float("nan")}, "timestep_scale"),
    ],
)
def test_constructor_names_the_argument_at_fault(arguments, name):
    with pytest.raises(ValueError, match=f"`{name}`"):
        FlowMatchingImageToDepthScheduler(**arguments)


@pytest.mark.parametrize("name", ["num_train_timesteps", "noise_augmentation_step", "timestep_scale"])
@pytest.mark.parametrize("value", ["400", None, True])
def test_constructor_names_what_is_not_a_number(name, value):
    with pytest.raises(TypeError, match=f"`{name}` must be a number, got {value!r}"):
        FlowMatchingImageToDepthScheduler(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, "Give `num_inference_steps` or `timesteps`"),
        ({"num_inference_steps": 0}, ValueError, "at least 1, got 0"),
        ({"num_inference_steps": 2.5}, TypeError, "integer, got 2.5"),
        ({"num_inference_steps": True}, TypeError, "integer, got True"),
        ({"timesteps": []}, ValueError, "strictly increasing"),
        ({"timesteps": [0, 0.5, 0.5]}, ValueError, "strictly increasing"),
        ({"timesteps": [0.5, 0]}, ValueError, "strictly increasing"),
        ({"timesteps": [0, 1.0]}, ValueError, "strictly increasing"),
        ({"timesteps": [-0.1, 0.5]}, ValueError, "strictly increasing"),
        ({"timesteps": [0, float("nan")]}, ValueError, "strictly increasing"),
        ({"num_inference_steps": 3, "timesteps": [0, 0.5]}, ValueError, "2 entries"),
    ],
)
def test_set_timesteps_refuses_bad_grids(arguments, error, message):
    with pytest.raises(error, match=message):
        FlowMatchingImageToDepthScheduler().set_timesteps(**arguments)


def test_step_refuses_misuse():
    scheduler = FlowMatchingImageToDepthScheduler(solver_type="midpoint")
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="before `set_timesteps`"):
        scheduler.step(x, 0.0, x)
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match="shape of `sample`"):
        scheduler.step(x[:1], scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="single flow time"):
        scheduler.step(x, scheduler.timesteps, x)
    with pytest.raises(ValueError, match=r"not among `scheduler.timesteps`: \[0.0, 0.25, 0.5, 0.75\]\.$"):
        scheduler.step(x, 0.1, x)
    with pytest.raises(ValueError, match="second evaluation"):
        scheduler.step(x, scheduler.timesteps[1], x)

    scheduler.set_timesteps(2)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="out of order"):
        scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="keep its shape"):
        scheduler.step(x[:1], scheduler.timesteps[1], x[:1])

    scheduler.set_timesteps(1)
    for t in scheduler.timesteps:
        scheduler.step(x, t, x)
    with pytest.raises(ValueError, match="all steps were taken"):
        scheduler.step(x, scheduler.timesteps[1], x)


@pytest.mark.parametrize("kind", [int, np.int64, torch.tensor])
def test_integers_are_flow_times_and_an_index_gets_a_hint(kind):
    """0 is the first time of every grid, and 1 the last of Heun's."""
    x = torch.ones(2, 3)
    scheduler = FlowMatchingImageToDepthScheduler(solver_type="heun")
    scheduler.set_timesteps(1)
    expected = scheduler.step(x, 0.0, x).prev_sample
    assert torch.equal(scheduler.step(x, 1.0, expected).prev_sample, expected)
    scheduler.set_timesteps(1)
    assert torch.equal(scheduler.step(x, kind(0), x).prev_sample, expected)
    assert torch.equal(scheduler.step(x, kind(1), expected).prev_sample, expected)

    scheduler = FlowMatchingImageToDepthScheduler()
    scheduler.set_timesteps(2)
    with pytest.raises(ValueError, match=r"not among .* indices, as from `enumerate\(scheduler.timesteps\)`"):
        scheduler.step(x, kind(1), x)
    scheduler.step(x, kind(0), x)
    with pytest.raises(ValueError, match=r"out of order: the next one is 0\.5.* indices, as from"):
        scheduler.step(x, kind(1), x)


def test_times_per_sample_may_have_the_dimensions_of_the_samples():
    scheduler = FlowMatchingImageToDepthScheduler()
    source, target, times = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2), torch.tensor([0.0, 0.25, 1.0])
    expected = scheduler.interpolate(source, target, times)
    assert torch.equal(scheduler.interpolate(source, target, times.view(3, 1, 1, 1)), expected)
    noisy = scheduler.add_noise(source, target, times * 1000)
    assert torch.equal(scheduler.add_noise(source, target, (times * 1000).view(3, 1, 1, 1)), noisy)
    for shape in ((3, 1), (1, 3, 1, 1), (1, 1, 1, 3)):
        with pytest.raises(ValueError, match="`t` must be one number or one per sample"):
            scheduler.interpolate(source, target, times.view(shape))


def test_training_helpers_refuse_misuse():
    scheduler = FlowMatchingImageToDepthScheduler()
    x = torch.ones(2, 3)
    with pytest.raises(ValueError, match="`noise` must have the shape"):
        scheduler.augment(x, x[:1])
    for steps in (-1, 1001, float("nan"), torch.tensor([0.0, 2000.0])):
        with pytest.raises(ValueError, match="`timesteps` must lie between 0 and 1000"):
            scheduler.add_noise(x, x, steps)
    with pytest.raises(ValueError, match="`timesteps` must be one number or one per sample"):
        scheduler.add_noise(x, x, torch.zeros(3))
    with pytest.raises(ValueError, match="`t` must be one number or one per sample"):
        scheduler.interpolate(x, x, torch.zeros(1, 2))
    for t in (-0.01, 1.01, 400, float("nan"), torch.tensor([0.5, 2.0])):
        with pytest.raises(ValueError, match=r"`t` must lie in \[0, 1\], got"):
            scheduler.interpolate(x, x, t)
    for helper in (lambda: scheduler.interpolate(x, x[:1], 0.5), lambda: scheduler.get_velocity(x, x[:1])):
        with pytest.raises(ValueError, match="`target` must have the shape"):
            helper()


@pytest.mark.parametrize("solver", SOLVERS)
def test_steps_do_not_wait_for_the_device(solver):
    """A time that comes from `timesteps` is known on the host, and is not read back from the device."""
    scheduler = FlowMatchingImageToDepthScheduler(solver_type=solver)
    scheduler.set_timesteps(3)
    sample = torch.linspace(-1, 1, 6)
    with HostReads() as host:
        sample = scheduler.augment(sample, torch.ones(6))
        for t in scheduler.timesteps:
            sample = scheduler.step(-sample, t, scheduler.scale_model_input(sample, t)).prev_sample
    assert host.reads == []
    with HostReads() as host, pytest.raises(ValueError, match="all steps were taken"):
        scheduler.step(-sample, torch.tensor(1.0), sample)


def test_a_time_from_elsewhere_is_read():
    """Only its value tells whether it is the next one."""
    scheduler = FlowMatchingImageToDepthScheduler()
    scheduler.set_timesteps(2)
    sample = torch.ones(2)
    with HostReads() as host:
        sample = scheduler.step(sample, scheduler.timesteps[0].clone(), sample).prev_sample
    assert host.reads
    scheduler.timesteps = scheduler.timesteps + 0.25  # no longer the grid that was laid out
    with pytest.raises(ValueError, match=r"0\.75 is out of order: the next one is 0\.5"):
        scheduler.step(sample, scheduler.timesteps[1], sample)


def test_paths_do_not_wait_for_the_device():
    """On a device, times are not checked: `meta` tensors have no value that could be read."""
    scheduler = FlowMatchingImageToDepthScheduler()
    source = torch.ones(2, 3, device="meta")
    for t in (0.5, torch.ones(2, device="meta")):
        assert scheduler.interpolate(source, source, t).shape == (2, 3)
    assert scheduler.augment(source, source).device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_one_number_gives_what_a_tensor_per_sample_gives(dtype):
    scheduler = FlowMatchingImageToDepthScheduler()
    source, target = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(2, 3, 4, 4).to(dtype)
    for step in (0, 1, 123.4, 400, 999, 1000):
        expected = scheduler.add_noise(source, target, torch.full((2,), step, dtype=torch.float64))
        assert torch.equal(scheduler.add_noise(source, target, step), expected)
        t = step / 1000
        expected = scheduler.interpolate(source, target, torch.full((2,), t, dtype=torch.float64))
        assert torch.equal(scheduler.interpolate(source, target, t), expected)
