"""The experiments of benchmarks/paper: the peer is a correct diffusion model, and runs differ in what they name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import experiment
import flow_or_diffusion
import numpy as np
import pytest
import torch
import train_depthfm
import train_marigold
from diffusers import DDIMScheduler, DDPMScheduler, MarigoldDepthPipeline
from helpers.components import build_unet
from helpers.training_runs import flow_flags

from depthfm_diffusers import FlowMatchingImageToDepthScheduler


@pytest.fixture
def args(tmp_path):
    return experiment.build_parser("test", seeds=(0, 1)).parse_args(
        ["--data", "shard.tar", "--runs", str(tmp_path), "--jobs", "2", "--steps", "20"]
    )


def test_unet_has_at_most_three_million_parameters(args):
    config = json.loads(Path(args.unet_config).read_text())
    unet = build_unet(**{key: value for key, value in config.items() if not key.startswith("_")})
    assert 2e6 < sum(p.numel() for p in unet.parameters()) <= 3e6


@pytest.mark.parametrize("name", sorted(experiment.RUNS))
def test_runs_differ_in_what_they_name_alone(args, name):
    """The scripts take the flags, and all but these agree with the run called flow."""
    free = {
        "output_dir",
        "start_share",
        "start",
        "noise_augmentation_step",
        "normals_loss_weight",
        "decoded_fraction",
        "depth_normalization",
        "depth_quantiles",
        "depth_cap",
    }
    script, _ = experiment.RUNS[name]
    parse = train_marigold.parse_args if script == experiment.DIFFUSION else train_depthfm.parse_args
    settings = vars(parse(experiment.training_command(args, name, 1)[2:]))
    reference = vars(train_depthfm.parse_args(experiment.training_command(args, "flow", 1)[2:]))
    assert settings["seed"] == 1
    assert {key for key in settings if settings[key] != reference[key]} <= free
    assert (
        name == "flow"
        or {key for key in settings if settings[key] != reference[key]} > {"output_dir"}
        or (script == experiment.DIFFUSION)
    )


def test_a_finished_run_with_other_settings_is_not_taken_for_this_one(args):
    folder = experiment.run_folder(args, "flow", 0)
    folder.mkdir()
    (folder / "finished.json").write_text(json.dumps(["--max_train_steps", "5"]))
    with pytest.raises(ValueError, match="flow-seed0 was trained with other settings"):
        experiment.train_runs(args, ["flow"])


def test_a_training_that_fails_names_its_log(args, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("raise ValueError('there is no vae')")
    monkeypatch.setitem(experiment.RUNS, "flow", (tmp_path / "broken.py", []))
    args.seeds = [0]
    with pytest.raises(RuntimeError, match=r"train\.log"):
        experiment.train_runs(args, ["flow"])
    assert "there is no vae" in (experiment.run_folder(args, "flow", 0) / "train.log").read_text()
    assert not (experiment.run_folder(args, "flow", 0) / "finished.json").exists()


@pytest.mark.parametrize("evaluations", [1, 2, 4, 10])
def test_sampling_undoes_what_training_asks_for(evaluations):
    """With the true v at every step DDIM ends at the depth latent, from pure noise, in any number of evaluations."""
    generator = torch.Generator().manual_seed(0)
    depth = torch.randn(2, 4, 6, 8, generator=generator)
    noise = torch.randn(2, 4, 6, 8, generator=generator)
    training = DDPMScheduler(**train_marigold.SCHEDULE)
    sampling = DDIMScheduler(**train_marigold.SCHEDULE, **train_marigold.SAMPLING)
    sampling.set_timesteps(evaluations)
    assert sampling.timesteps[0] == 999
    sample = noise
    for t in sampling.timesteps:
        noisy = training.add_noise(depth, noise, t.expand(2))
        torch.testing.assert_close(sample, noisy, atol=2e-3, rtol=0)
        v = training.get_velocity(depth, noise, t.expand(2))
        sample = sampling.step(v, t, sample).prev_sample
    # The last step ends at the least noisy one of the schedule, not at none: set_alpha_to_one is False, as Marigold's.
    least = DDPMScheduler(**train_marigold.SCHEDULE).alphas_cumprod[0]
    torch.testing.assert_close(sample, least.sqrt() * depth + (1 - least).sqrt() * noise, atol=2e-3, rtol=0)


def test_peer_trains_and_is_sampled_by_diffusers_pipeline(shard, parts, tmp_path, fresh_accelerate_state):
    flags = flow_flags(shard, parts, tmp_path / "run", "--max_train_steps", "2", "--start_share", "0.5")
    train_marigold.main(flags)
    pipe = train_marigold.load(tmp_path / "run")
    assert type(pipe) is MarigoldDepthPipeline
    assert pipe.scheduler.config.timestep_spacing == "trailing"
    assert not torch.equal(pipe.unet.conv_in.weight, build_unet().conv_in.weight)
    image = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    output = pipe(image, num_inference_steps=2, processing_resolution=0, generator=torch.Generator().manual_seed(0))
    assert output.prediction.shape == (1, 48, 64, 1)
    assert np.ptp(output.prediction) > 0


def test_flags_of_the_flow_are_refused_for_the_peer(shard, parts, tmp_path):
    flags = flow_flags(shard, parts, tmp_path, "--noise_augmentation_step", "200")
    with pytest.raises(SystemExit, match="--noise_augmentation_step has no meaning"):
        train_marigold.parse_args(flags)


def test_spread_over_seeds_and_table():
    rows = [
        {"run": run, "seed": seed, "abs_rel": value}
        for run, values in {"a": (0.1, 0.2, 0.3), "b": (0.5,)}.items()
        for seed, value in enumerate(values)
    ]
    assert experiment.spread(rows, "abs_rel", run="a") == pytest.approx((0.2, 0.1))
    assert experiment.spread(rows, "abs_rel", run="b") == (0.5, 0.0)
    assert experiment.table(rows, ["run"], ["abs_rel"]).splitlines() == [
        "| run | abs_rel |",
        "|---|---|",
        "| a | 0.200 ± 0.100 |",
        "| b | 0.500 |",
    ]


def test_mean_leaves_out_frames_without_the_metric():
    scores = [{"boundary_f1": math.nan, "abs_rel": 1.0}, {"boundary_f1": 0.5, "abs_rel": 3.0}]
    assert experiment.mean_scores(scores) == {"boundary_f1": 0.5, "abs_rel": 2.0}


def test_shares_of_hard_times_agree_with_draws():
    """Counted on a fine grid of times, with the schedulers' own paths."""
    flow, diffusion = flow_or_diffusion.shares_of_hard_times(0.2)
    scheduler = FlowMatchingImageToDepthScheduler()
    t = torch.linspace(0, 1, 20001)[:-1]
    zero, one = torch.zeros(len(t), 1, 1, 1), torch.ones(len(t), 1, 1, 1)
    noise = scheduler.interpolate(scheduler.augment(zero, one), zero, t).flatten()
    assert flow == pytest.approx(float((t / noise < 0.2).float().mean()), abs=2e-4)
    training = DDPMScheduler(**train_marigold.SCHEDULE)
    steps = torch.arange(1000)
    signal = training.add_noise(torch.ones(1000, 1), torch.zeros(1000, 1), steps)
    noise = training.add_noise(torch.zeros(1000, 1), torch.ones(1000, 1), steps)
    assert diffusion == pytest.approx(float((signal / noise < 0.2).float().mean()), abs=2e-3)
