"""The training scripts from end to end, tiny: what they write loads, and a resumed run equals one never stopped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import train_autoencoder
import train_depthfm
from accelerate.state import AcceleratorState, GradientState, PartialState
from conftest import build_unet, build_vae
from diffusers import AutoencoderKL, DiffusionPipeline
from safetensors.torch import load_file
from shards import sloping_frame, write_shard

import depthfm_diffusers

TRAINING = Path(train_depthfm.__file__).parent


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    return write_shard(folder / "train-000.tar", [sloping_frame(n) for n in range(12)])


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts")
    build_vae().save_pretrained(folder / "vae")
    (folder / "unet.json").write_text(json.dumps(dict(build_unet().config)))
    return folder


def flow_flags(shard: Path, parts: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--train_data", str(shard), "--output_dir", str(output)),
        *("--vae", str(parts / "vae"), "--unet_config", str(parts / "unet.json")),
        *("--validation_fraction", "0.3", "--train_batch_size", "2", "--checkpointing_steps", "2"),
        *("--validation_steps", "100", "--validation_frames", "1", "--lr_warmup_steps", "1"),
        *("--learning_rate", "1e-3", "--report_to", "none"),
        *more,
    ]


def state_files(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        str(path.relative_to(folder)): load_file(path)
        for path in sorted(folder.glob("*/diffusion_pytorch_model.safetensors"))
    }


@pytest.mark.parametrize("extra", [(), ("--cache_latents", "2"), ("--normals_loss_weight", "0.1")])
def test_resumed_run_equals_one_never_stopped(shard, parts, tmp_path, extra):
    """Bit for bit, in float32 on the CPU: weights, moving average and optimizer state; across an epoch's end."""
    jitter = ("--min_crop", "0.8", "--jitter", "0.2", "--gradient_accumulation_steps", "2")
    flags = (*jitter, *extra, "--max_train_steps", "4")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "whole", *flags))
    AcceleratorState._reset_state(reset_partial_state=True)

    resumed = flow_flags(shard, parts, tmp_path / "resumed", *flags)
    train_depthfm.main(resumed)
    for leftover in ("checkpoint-4", "unet"):
        # As if killed after step 3: only the checkpoint of step 2 is there.
        subprocess.run(["rm", "-r", str(tmp_path / "resumed" / leftover)], check=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    train_depthfm.main([*resumed, "--resume_from_checkpoint", "latest"])

    whole, again = state_files(tmp_path / "whole"), state_files(tmp_path / "resumed")
    assert whole.keys() == again.keys()
    assert any("unet" in name for name in whole)
    for name, tensors in whole.items():
        for key, value in tensors.items():
            assert torch.equal(value, again[name][key]), (name, key)
    states = [torch.load(tmp_path / d / "checkpoint-4" / "optimizer.bin") for d in ("whole", "resumed")]
    for index, first in states[0]["state"].items():
        for key, value in first.items():
            assert torch.equal(value, states[1]["state"][index][key]), (index, key)


def test_accelerate_launch_writes_a_folder_that_diffusers_loads(shard, parts, tmp_path, image):
    """As a user types it, with tensorboard, two checkpoints kept, and a loss that is logged."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    flags = flow_flags(shard, parts, tmp_path, "--max_train_steps", "6", "--checkpoints_total_limit", "2")
    flags[flags.index("none")] = "tensorboard"
    run = subprocess.run([*command, str(TRAINING / "train_depthfm.py"), *flags], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Steps: 100%" in run.stderr
    assert "loss=" in run.stderr
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]

    pipe = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(pipe, depthfm_diffusers.DepthFMPipeline)
    assert pipe.config.default_processing_resolution == 64
    assert str(parts) not in (tmp_path / "vae" / "config.json").read_text()
    pipe.set_progress_bar_config(disable=True)
    assert pipe(image, output_type="pt").prediction.shape == (1, 1, 48, 72)

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(tmp_path.glob("logs/**/events*")).parent)).Reload()
    assert {"loss", "learning_rate", "validation/abs_rel_depth"} <= set(events.Tags()["scalars"])
    assert len(events.Scalars("loss")) == 6
    assert events.Tags()["images"]


def test_training_goes_on_from_a_finished_folder(shard, parts, tmp_path):
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "first", "--max_train_steps", "2"))
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = flow_flags(shard, parts, tmp_path / "second", "--max_train_steps", "2", "--noise_augmentation_step", "200")
    at = flags.index("--vae")
    flags[at : at + 4] = ["--pretrained_model_name_or_path", str(tmp_path / "first")]
    train_depthfm.main(flags)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "second")
    assert pipe.scheduler.config.noise_augmentation_step == 200
    again = train_depthfm.parse_args(
        [*flags[:4], "--pretrained_model_name_or_path", str(tmp_path / "second")],
    )
    assert train_depthfm.build_pipeline(again).scheduler.config.noise_augmentation_step == 200
    before = load_file(tmp_path / "first" / "unet" / "diffusion_pytorch_model.safetensors")
    after = pipe.unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_autoencoder_script_writes_an_autoencoder(shard, tmp_path):
    flags = ["--train_data", str(shard), "--output_dir", str(tmp_path), "--max_train_steps", "3", "--crop_size", "32"]
    flags += ["--block_out_channels", "8", "8", "8", "8", "--norm_num_groups", "4", "--train_batch_size", "2"]
    train_autoencoder.main([*flags, "--report_to", "none", "--validation_fraction", "0.3", "--lr_warmup_steps", "1"])
    vae = AutoencoderKL.from_pretrained(tmp_path)
    latents = vae.encode(torch.rand(1, 3, 48, 64) * 2 - 1).latent_dist.mode()
    assert latents.shape == (1, 4, 6, 8)
    assert vae.config.scaling_factor not in (0.18215, 1.0)
    assert vae.config.scaling_factor > 0


def test_frames_of_several_sizes_need_a_resolution(parts, tmp_path):
    frames = [sloping_frame(n, *size) for n, size in enumerate([(48, 64), (40, 72)] * 6)]
    mixed = write_shard(tmp_path / "mixed.tar", frames)
    with pytest.raises(ValueError, match="set --resolution HEIGHT WIDTH"):
        train_depthfm.main(flow_flags(mixed, parts, tmp_path / "refused", "--max_train_steps", "9"))
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = flow_flags(mixed, parts, tmp_path / "out", "--max_train_steps", "1", "--resolution", "32", "48")
    flags[flags.index("none")] = "tensorboard"
    flags[flags.index("--validation_frames") + 1] = "4"
    train_depthfm.main(flags)
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").config.default_processing_resolution == 48
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = ["--train_data", str(mixed), "--output_dir", str(tmp_path / "vae"), "--max_train_steps", "1"]
    flags += ["--block_out_channels", "8", "8", "8", "8", "--norm_num_groups", "4", "--train_batch_size", "2"]
    train_autoencoder.main([*flags, "--validation_fraction", "0.3", "--crop_size", "32"])
    assert AutoencoderKL.from_pretrained(tmp_path / "vae").config.scaling_factor > 0


def test_loss_that_is_not_finite_stops_the_run(shard, parts, tmp_path):
    flags = flow_flags(shard, parts, tmp_path, "--max_train_steps", "9", "--checkpointing_steps", "1")
    flags[flags.index("1e-3")] = "1e30"
    with pytest.raises(FloatingPointError, match="--learning_rate"):
        train_depthfm.main([*flags, "--max_grad_norm", "1e30"])
    assert (tmp_path / "checkpoint-1").is_dir()
    assert not (tmp_path / "model_index.json").exists()


def test_resume_with_other_settings_is_refused(shard, parts, tmp_path):
    flags = flow_flags(shard, parts, tmp_path, "--max_train_steps", "2")
    train_depthfm.main(flags)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="--seed was 0, now 1"):
        train_depthfm.main([*flags, "--seed", "1", "--resume_from_checkpoint", "latest"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --pretrained_model_name_or_path, or both"),
        (["--vae", "v"], "either --pretrained_model_name_or_path, or both"),
        (
            ["--pretrained_model_name_or_path", "m", "--cache_latents", "2", "--normals_loss_weight", "1"],
            "cannot be used",
        ),
        (["--pretrained_model_name_or_path", "m", "--train_batch_size", "0"], "at least 1"),
    ],
)
def test_contradicting_flags_are_refused(capsys, flags, message):
    with pytest.raises(SystemExit):
        train_depthfm.parse_args(["--train_data", "a.tar", "--output_dir", "o", *flags])
    assert message in capsys.readouterr().err


def test_unet_of_other_channels_and_too_large_batches_are_refused(shard, parts, tmp_path):
    config = dict(build_unet().config) | {"in_channels": 4}
    (tmp_path / "four.json").write_text(json.dumps(config))
    flags = flow_flags(shard, parts, tmp_path / "out")
    flags[flags.index(str(parts / "unet.json"))] = str(tmp_path / "four.json")
    with pytest.raises(ValueError, match="8 input and 4 output channels"):
        train_depthfm.main(flags)
    AcceleratorState._reset_state(reset_partial_state=True)
    with pytest.raises(ValueError, match="--train_batch_size 64 is larger"):
        train_depthfm.main(flow_flags(shard, parts, tmp_path / "big", "--train_batch_size", "64"))
