"""The contracts that diffusers asks of every scheduler, on this one."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from depthfm_diffusers import FlowMatchingImageToDepthScheduler, FlowMatchingImageToDepthSchedulerOutput

CONFIGS = [{"solver_type": solver, "noise_augmentation_step": 123} for solver in ("euler", "midpoint", "heun")]


@pytest.fixture(params=CONFIGS, ids=lambda config: config["solver_type"])
def scheduler(request):
    return FlowMatchingImageToDepthScheduler(**request.param)


def run(scheduler, n=5):
    scheduler.set_timesteps(n)
    sample = torch.linspace(-1, 1, 24).reshape(2, 3, 2, 2)
    for t in scheduler.timesteps:
        sample = scheduler.step(0.1 * sample - t, t, scheduler.scale_model_input(sample, t)).prev_sample
    return sample


@pytest.mark.parametrize("save", ["save_config", "save_pretrained"])
def test_saved_and_loaded_scheduler_is_the_same(scheduler, save, tmp_path):
    getattr(scheduler, save)(tmp_path)
    loaded = FlowMatchingImageToDepthScheduler.from_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    expected = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    assert {k: v for k, v in saved.items() if not k.startswith("_")} == expected
    assert {k: v for k, v in loaded.config.items() if not k.startswith("_")} == expected
    assert torch.equal(run(loaded), run(scheduler))


def test_from_config_takes_changes(scheduler):
    changed = FlowMatchingImageToDepthScheduler.from_config(scheduler.config, noise_augmentation_step=7)
    assert changed.config.noise_augmentation_step == 7
    assert changed.config.solver_type == scheduler.config.solver_type
    assert changed.order == scheduler.order


def test_only_compatible_with_itself(scheduler):
    # Noise schedules of other schedulers mean something else; diffusers always counts the class itself.
    assert scheduler.compatibles == [FlowMatchingImageToDepthScheduler]


def test_public_interface(scheduler):
    assert isinstance(scheduler, SchedulerMixin)
    assert scheduler.init_noise_sigma == 1.0
    assert len(scheduler) == 1000
    sample = torch.rand(1, 2)
    assert scheduler.scale_model_input(sample, 0.0) is sample
    assert "timesteps" in inspect.signature(scheduler.set_timesteps).parameters
    assert scheduler.step_index is None
    assert scheduler.begin_index is None
    scheduler.set_begin_index(2)
    assert scheduler.begin_index == 2
    scheduler.set_timesteps(3)
    assert scheduler.begin_index is None


def test_tuple_and_output_hold_the_same(scheduler):
    sample = torch.rand(2, 3, 4, 4)
    results = []
    for return_dict in (True, False):
        scheduler.set_timesteps(5)
        results.append(scheduler.step(0.1 * sample, scheduler.timesteps[0], sample, return_dict=return_dict))
    output, as_tuple = results
    assert isinstance(output, FlowMatchingImageToDepthSchedulerOutput)
    assert isinstance(output, BaseOutput)
    assert isinstance(as_tuple, tuple)
    assert [value.shape for value in as_tuple] == [sample.shape] * 2
    assert torch.equal(output.prev_sample, as_tuple[0])
    assert torch.equal(output.pred_original_sample, as_tuple[1])


def test_runs_repeat_and_inputs_are_left_alone(scheduler):
    sample, velocity = torch.rand(2, 3), torch.rand(2, 3)
    copies = sample.clone(), velocity.clone()
    scheduler.set_timesteps(2)
    scheduler.step(velocity, scheduler.timesteps[0], sample)
    assert torch.equal(sample, copies[0])
    assert torch.equal(velocity, copies[1])
    assert torch.equal(run(scheduler), run(scheduler))


def test_set_timesteps_puts_them_on_the_device(scheduler):
    scheduler.set_timesteps(4, device="meta")
    assert scheduler.timesteps.device.type == "meta"
    # The same grid works without a value on the host being read from the device.
    sample = torch.zeros(1)
    assert scheduler.step(sample, 0.0, sample).prev_sample.tolist() == [0.0]
