"""The training scripts from end to end, tiny: what they write loads, and a resumed run equals one never stopped."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import train_autoencoder
import train_depthfm
import yaml
from diffusers import AutoencoderKL, DiffusionPipeline
from helpers import forked_python
from helpers.components import build_unet
from helpers.shards import png, sloping_frame, write_pairs, write_shard
from helpers.stable_diffusion import build_stable_diffusion
from helpers.training_runs import flow_flags, reset_accelerate
from safetensors.torch import load_file

import depthfm_diffusers

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def test_accelerate_launch_writes_a_folder_that_diffusers_loads(shard, parts, tmp_path, image):
    """As a user types it, with tensorboard, two checkpoints kept, and a loss that is logged."""
    command = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    flags = flow_flags(shard, parts, tmp_path, "--max_train_steps", "6", "--checkpoints_total_limit", "2")
    flags[flags.index("none")] = "tensorboard"
    errors = tmp_path / "errors.txt"
    status, _ = forked_python.run([*command, train_depthfm.__file__, *flags], tmp_path / "log.txt", errors=errors)
    said = errors.read_text(encoding="utf-8")
    assert status == 0, said
    assert "Steps: 100%" in said
    assert "loss=" in said
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
    reset_accelerate()
    flags = flow_flags(shard, parts, tmp_path / "second", "--max_train_steps", "2", "--noise_augmentation_step", "200")
    at = flags.index("--vae")
    flags[at : at + 4] = ["--pretrained_model_name_or_path", str(tmp_path / "first")]
    train_depthfm.main(flags)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "second")
    assert pipe.scheduler.config.noise_augmentation_step == 200
    again = train_depthfm.build_pipeline(str(tmp_path / "second"))
    assert again.scheduler.config.noise_augmentation_step == 200
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
    reset_accelerate()
    flags = flow_flags(mixed, parts, tmp_path / "out", "--max_train_steps", "1", "--resolution", "32", "48")
    flags[flags.index("none")] = "tensorboard"
    flags[flags.index("--validation_frames") + 1] = "4"
    train_depthfm.main(flags)
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").config.default_processing_resolution == 48
    reset_accelerate()
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


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "either --pretrained_model_name_or_path, or both"),
        (["--vae", "v"], "either --pretrained_model_name_or_path, or both"),
        (["--pretrained_model_name_or_path", "m", "--start", "noise", "--noise_augmentation_step", "9"], "no meaning"),
        (["--pretrained_model_name_or_path", "m", "--decoded_fraction", "0"], "--decoded_fraction must be in"),
        (["--vae", "v", "--unet_config", "u", "--lora_rank", "2"], "--lora_rank adapts a trained model"),
        (["--pretrained_model_name_or_path", "m", "--train_data", "{oops"], "is not a JSON object"),
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
    reset_accelerate()
    with pytest.raises(ValueError, match="--train_batch_size 64 is larger"):
        train_depthfm.main(flow_flags(shard, parts, tmp_path / "big", "--train_batch_size", "64"))


def on_base(flags: list[str], base: Path) -> list[str]:
    """The same flags, with a base in place of `--vae` and `--unet_config`."""
    at = flags.index("--vae")
    return [*flags[:at], "--pretrained_model_name_or_path", str(base), *flags[at + 4 :]]


def test_starts_from_stable_diffusion(shard, parts, tmp_path, image):
    """What is written needs no text encoder, and its embedding is that of the empty prompt."""
    base = build_stable_diffusion(tmp_path / "sd", "2.1")
    flags = on_base(flow_flags(shard, parts, tmp_path / "full", "--max_train_steps", "2"), tmp_path / "sd")
    train_depthfm.main(flags)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "full")
    assert isinstance(pipe, depthfm_diffusers.DepthFMPipeline)
    expected = base.encode_prompt("", "cpu", 1, False)[0]
    torch.testing.assert_close(pipe.prompt_embedding(), expected, rtol=0, atol=1e-6)
    assert pipe.vae.config.scaling_factor == 0.3
    pipe.set_progress_bar_config(disable=True)
    assert pipe(image, output_type="pt").prediction.shape == (1, 1, 48, 72)
    card = (tmp_path / "full" / "README.md").read_text()
    assert "abs_rel_log" in card
    assert str(tmp_path) not in card


def test_adapters_from_stable_diffusion_bring_their_base(shard, parts, tmp_path, image):
    build_stable_diffusion(tmp_path / "sd", "1.5")
    flags = on_base(flow_flags(shard, parts, tmp_path / "lora", "--max_train_steps", "2"), tmp_path / "sd")
    flags[flags.index("1e-3")] = "1e-1"
    train_depthfm.main([*flags, "--lora_rank", "2"])
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "lora")
    pipe.set_progress_bar_config(disable=True)
    plain = pipe(image, output_type="pt", generator=torch.Generator().manual_seed(0)).log_depth
    pipe.load_lora_weights(tmp_path / "lora")
    adapted = pipe(image, output_type="pt", generator=torch.Generator().manual_seed(0)).log_depth
    assert not torch.allclose(plain, adapted, atol=1e-4)


def test_broken_frames_stop_the_run_or_are_counted(parts, tmp_path, caplog):
    frames = [sloping_frame(n) for n in range(10)]
    frames[3]["depth.png"] = png(np.zeros((48, 64), np.uint16))  # no depth at all
    frames[5]["depth.png"] = png(np.ones((40, 64), np.uint16))  # another size than its image
    shard = write_shard(tmp_path / "broken.tar", frames)
    flags = flow_flags(shard, parts, tmp_path / "out", "--max_train_steps", "5", "--validation_fraction", "0")
    with pytest.raises(ValueError, match=r"frame0005.*depth\.png"):
        train_depthfm.main(flags)
    reset_accelerate()
    flags = flow_flags(shard, parts, tmp_path / "skip", "--max_train_steps", "5", "--validation_fraction", "0")
    flags[flags.index("none")] = "tensorboard"
    train_depthfm.main([*flags, "--bad_frames", "skip"])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next((tmp_path / "skip").glob("logs/**/events*")).parent)).Reload()
    # One epoch is five batches of two: each frame once.
    assert events.Scalars("count/frames_skipped")[-1].value == 1
    assert events.Scalars("count/frames_without_depth")[-1].value == 2
    assert "frame0005" in caplog.text


def test_mixed_sources_of_two_formats_train_together(shard, parts, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", [sloping_frame(n) for n in range(20, 28)])
    settings = [{"path": str(shard), "weight": 3}, {"path": str(pairs), "weight": 1, "fov_x_deg": 70}]
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"train_data": settings, "normals_loss_weight": 0.1}))
    flags = flow_flags(shard, parts, tmp_path / "out", "--max_train_steps", "3", "--validation_fraction", "0")
    train_depthfm.main(["--config", str(tmp_path / "mixed.yaml"), *flags[2:]])
    assert (tmp_path / "out" / "model_index.json").is_file()
    record = json.loads((tmp_path / "out" / "run_config.json").read_text())
    assert record["settings"]["train_data"] == settings


def test_normals_loss_without_a_camera_is_refused(parts, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", [sloping_frame(n) for n in range(8)])
    with pytest.raises(ValueError, match="--normals_loss_weight needs the camera of each frame"):
        train_depthfm.main(flow_flags(pairs, parts, tmp_path / "out", "--normals_loss_weight", "1"))


def test_size_that_the_autoencoder_cannot_halve_is_refused(parts, tmp_path):
    odd = write_shard(tmp_path / "odd.tar", [sloping_frame(n, 44, 64) for n in range(4)])
    with pytest.raises(ValueError, match=r"\(44, 64\) must be multiples of 8.*--resolution"):
        train_depthfm.main(flow_flags(odd, parts, tmp_path / "out"))
