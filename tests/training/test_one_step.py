"""`train_depthfm.py --stage one_step`: a trained flow is tuned for one step on decoded depth, with its decoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import train_depthfm
from diffusers import DiffusionPipeline
from helpers import forked_python
from helpers.components import build_components, build_image_encoder, build_unet
from helpers.training_runs import assert_same_state, reset_accelerate, scalars

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.frames import SourceConfig, open_source
from depthfm_diffusers.training.objectives.pixel_losses import scale_shift_invariant_loss

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A DepthFM with an image encoder."""
    folder = tmp_path_factory.mktemp("base") / "model"
    parts = build_components() | {"unet": build_unet(in_channels=13), "image_encoder": build_image_encoder()}
    DepthFMPipeline(**parts, default_processing_resolution=64).save_pretrained(folder)
    return folder


def flags(shard: Path, base: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--train_data", str(shard), "--output_dir", str(output), "--pretrained_model_name_or_path", str(base)),
        *("--stage", "one_step", "--validation_fraction", "0.3", "--train_batch_size", "2"),
        *("--checkpointing_steps", "2", "--validation_steps", "100", "--validation_frames", "1"),
        *("--lr_warmup_steps", "1", "--learning_rate", "1e-3", "--report_to", "none", *more),
    ]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    pipe = DiffusionPipeline.from_pretrained(folder)
    return {
        f"{name}.{key}": tensor
        for name in ("unet", "vae", "image_encoder")
        for key, tensor in getattr(pipe, name).state_dict().items()
    }


def changed(base: Path, output: Path) -> set[str]:
    """The first two parts of the names of weights that differ."""
    before, after = weights(base), weights(output)
    return {".".join(name.split(".")[:2]) for name, tensor in before.items() if not torch.equal(tensor, after[name])}


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_a_stopped_run_ends_as_one_never_stopped(shard, base, tmp_path, trained):
    """Bit for bit; the decoder is trained if asked for, and the encoder never."""
    more = ("--max_train_steps", "4", *(("--train_decoder",) if trained else ()))
    cached = ("--cache_latents", "2", "--no-decoded_checkpointing")
    train_depthfm.main(flags(shard, base, tmp_path / "whole", *more, *cached))
    reset_accelerate()
    found = changed(base, tmp_path / "whole")
    assert any(name.startswith("unet.") for name in found)
    assert ("vae.decoder" in found) == trained
    assert not any(name.startswith(("vae.encoder", "vae.quant")) for name in found)

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for leftover in ("checkpoint-4", "unet", "vae"):
        shutil.rmtree(tmp_path / "resumed" / leftover)
    train_depthfm.main(flags(shard, base, tmp_path / "resumed", *more, *cached, "--resume_from_checkpoint", "latest"))
    assert_same_state(tmp_path / "whole", tmp_path / "resumed", step=4)


def one_step_loss(model: Path, shard: Path) -> float:
    """Mean scale-and-shift-invariant L1 of the frames' one-step predictions."""
    pipe, losses = DepthFMPipeline.from_pretrained(model), []
    pipe.set_progress_bar_config(disable=True)
    for frame in open_source(SourceConfig(str(shard))):
        output = pipe(frame.image, num_inference_steps=1, generator=torch.Generator().manual_seed(0))
        log_depth = torch.from_numpy(output.log_depth).permute(0, 3, 1, 2)
        depth = torch.from_numpy(frame.depth)[None, None]
        losses.append(scale_shift_invariant_loss(log_depth, depth.clamp_min(0.1).log(), depth > 0).item())
    return float(np.mean(losses))


def test_it_lowers_the_error_of_one_step(shard, base, tmp_path):
    more = ("--train_decoder", "--max_train_steps", "15", "--checkpointing_steps", "100", "--ema_decay", "0")
    train_depthfm.main(flags(shard, base, tmp_path / "tuned", *more, "--no-flip", "--start_share", "1"))
    assert DepthFMPipeline.from_pretrained(tmp_path / "tuned").default_num_inference_steps == 1
    before, after = one_step_loss(base, shard), one_step_loss(tmp_path / "tuned", shard)
    assert after < 0.8 * before, (before, after)


def test_two_processes_give_the_curve_of_one_with_twice_the_accumulation(shard, base, tmp_path):
    """With a batch that has no sample at t = 0 on one of the processes, too."""
    more = (
        *("--max_train_steps", "5", "--report_to", "tensorboard", "--validation_fraction", "0"),
        *("--train_decoder", "--start_share", "0.3", "--l1_loss_weight", "1"),
    )
    command = [train_depthfm.__file__, *flags(shard, base, tmp_path / "two", *more)]
    two = forked_python.start(command, tmp_path / "log", environment={"ACCELERATE_USE_CPU": "true"}, processes=2)
    train_depthfm.main(flags(shard, base, tmp_path / "one", *more, "--gradient_accumulation_steps", "2"))
    two.join()
    assert two.exitcode == 0, (tmp_path / "log").read_text(encoding="utf-8")
    assert min(scalars(tmp_path / "one", "decoded_share")) < 0.5, "one of two samples in each batch: no batch is empty"
    for name in ("loss", "ssi", "matching", "l1"):
        np.testing.assert_allclose(scalars(tmp_path / "two", name), scalars(tmp_path / "one", name), rtol=1e-5)


def test_adapters_are_trained_beside_the_decoder(shard, base, tmp_path):
    more = ("--lora_rank", "2", "--train_decoder", "--gradient_checkpointing", "--max_train_steps", "2")
    train_depthfm.main(flags(shard, base, tmp_path / "adapted", *more))
    assert (tmp_path / "adapted" / "pytorch_lora_weights.safetensors").is_file()
    found = changed(base, tmp_path / "adapted")
    assert "vae.decoder" in found
    assert not any(name.startswith("unet.") for name in found), "the base is saved without its adapters"
    pipe = DepthFMPipeline.from_pretrained(tmp_path / "adapted")
    pipe.load_lora_weights(tmp_path / "adapted")
    assert pipe.get_active_adapters() == ["default_0"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--decoded_min_time", "0.5"), "leave out --decoded_min_time"),
        (("--start_share", "0"), "needs samples at t = 0"),
        (("--ssi_loss_weight", "0", "--gradient_loss_weight", "0", "--matching_loss_weight", "0"), "needs samples"),
        (("--stage", "flow", "--train_decoder"), "--train_decoder needs --stage one_step"),
        (("--stage", "flow", "--velocity_loss_weight", "0"), "leaves no loss"),
    ],
)
def test_flags_that_do_not_fit_the_stage_are_refused(shard, base, tmp_path, capsys, more, message):
    with pytest.raises(SystemExit):
        train_depthfm.main(flags(shard, base, tmp_path / "out", *more))
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_stage_needs_a_trained_model(shard, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_depthfm.main(
            [
                *("--train_data", str(shard), "--output_dir", str(tmp_path / "out"), "--stage", "one_step"),
                *("--vae", "vae", "--unet_config", "unet.json"),
            ]
        )
    assert "--stage one_step tunes a trained model" in capsys.readouterr().err
