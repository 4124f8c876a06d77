"""`train_depthfm.py --completion` from end to end: with and without a cache, resumed, one step, adapters, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import train_depthfm
from diffusers import DiffusionPipeline
from helpers.components import build_components, build_image_encoder, build_unet
from helpers.training_runs import assert_same_state, flow_flags, reset_accelerate
from safetensors.torch import load_file

from depthfm_diffusers import DepthFMPipeline

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A DepthFM with an image encoder that was not trained for completion."""
    folder = tmp_path_factory.mktemp("base") / "model"
    parts = build_components() | {"unet": build_unet(in_channels=13), "image_encoder": build_image_encoder()}
    DepthFMPipeline(**parts, default_processing_resolution=64).save_pretrained(folder)
    return folder


def flags(shard: Path, base: Path, output: Path, *more: str) -> list[str]:
    arguments = flow_flags(shard, base, output, "--completion", *more)
    at = arguments.index("--vae")
    arguments[at : at + 4] = ["--pretrained_model_name_or_path", str(base)]
    return arguments


@pytest.mark.parametrize(
    "more",
    [
        ("--gradient_accumulation_steps", "2"),
        ("--cache_latents", "2"),
        ("--stage", "one_step", "--train_decoder", "--cache_latents", "2", "--start_share", "1"),
    ],
    ids=["flow", "cached", "one step"],
)
def test_a_stopped_run_ends_as_one_never_stopped(shard, base, tmp_path, more):
    """Bit for bit: the points of a sample are drawn anew, the same. The result takes points, and images alone."""
    more = (*more, "--max_train_steps", "4")
    train_depthfm.main(flags(shard, base, tmp_path / "whole", *more))
    reset_accelerate()
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    assert pipe.takes_partial_depth
    assert pipe.unet.conv_in.weight.shape[1] == 19
    assert pipe.unet.conv_in.weight[:, 8:14].flatten(2).any(dim=-1).any(dim=0).all(), "every new channel has learnt"
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "DepthFMDepthCompletionPipeline" in card
    assert "| completion_mae |" in card
    assert "- depth-completion" in card

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for leftover in ("checkpoint-4", "unet", "vae"):
        shutil.rmtree(tmp_path / "resumed" / leftover)
    train_depthfm.main(flags(shard, base, tmp_path / "resumed", *more, "--resume_from_checkpoint", "latest"))
    assert_same_state(tmp_path / "whole", tmp_path / "resumed", step=4)


def test_a_trained_model_is_adapted_and_does_not_forget(shard, base, tmp_path):
    train_depthfm.main(flags(shard, base, tmp_path / "first", "--max_train_steps", "1"))
    reset_accelerate()
    adapted = flags(shard, tmp_path / "first", tmp_path / "adapted", "--lora_rank", "2", "--max_train_steps", "1")
    train_depthfm.main(adapted)
    reset_accelerate()
    assert load_file(tmp_path / "adapted" / "pytorch_lora_weights.safetensors")
    with pytest.raises(ValueError, match="give --completion"):
        train_depthfm.main([flag for flag in adapted if flag != "--completion"])
    reset_accelerate()
    with pytest.raises(ValueError, match="--lora_rank freezes the UNet, which must learn to read partial depth"):
        train_depthfm.main(flags(shard, base, tmp_path / "other", "--lora_rank", "2"))


def test_a_new_network_with_a_new_image_encoder(shard, parts, tmp_path):
    encoder = build_image_encoder()
    encoder.save_pretrained(tmp_path / "encoder")
    more = ("--completion", "--image_encoder", str(tmp_path / "encoder"), "--max_train_steps", "3")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "run", *more))
    unet = json.loads((tmp_path / "run" / "unet" / "config.json").read_text())
    assert unet["in_channels"] == 8 + 6 + 5
    weight = load_file(tmp_path / "run" / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert weight[:, 8:].flatten(2).any(dim=-1).any(dim=0).all()
    assert torch.isfinite(weight).all()


def test_losses_that_align_are_replaced_by_default(shard, base, tmp_path):
    args = train_depthfm.parse_args(flags(shard, base, tmp_path, "--stage", "one_step"))
    assert (args.l1_loss_weight, args.ssi_loss_weight) == (1.0, 0.0)
    args = train_depthfm.parse_args(flags(shard, base, tmp_path, "--stage", "one_step", "--ssi_loss_weight", "0.5"))
    assert (args.l1_loss_weight, args.ssi_loss_weight) == (1.0, 0.5)
    args = train_depthfm.parse_args(flags(shard, base, tmp_path))
    assert (args.l1_loss_weight, args.ssi_loss_weight) == (0.0, 0.0)
