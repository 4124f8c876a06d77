"""Training with an image encoder from end to end: frozen and cached, tuned, resumed, continued, and with LoRA."""

from __future__ import annotations

import shutil

import pytest
import torch
import train_depthfm
from diffusers import DiffusionPipeline
from helpers.components import build_image_encoder
from helpers.training_runs import assert_same_state, flow_flags, reset_accelerate
from safetensors.torch import load_file

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    build_image_encoder().save_pretrained(folder)
    return folder


def changed_parts(pipe: DiffusionPipeline, before: dict[str, torch.Tensor]) -> set[str]:
    """The parts of the image encoder that differ from `before`: trunk, projection, statistics."""
    after = pipe.image_encoder.state_dict()
    assert after.keys() == before.keys()
    return {name.split(".")[0] for name, tensor in after.items() if not torch.equal(tensor, before[name])}


STATISTICS = {"feature_mean", "feature_std"}


@pytest.mark.parametrize(
    ("flags", "trained"),
    [
        ((), {"projection"}),
        (("--cache_latents", "2"), {"projection"}),
        (("--train_image_encoder", "--gradient_checkpointing"), {"projection", "trunk"}),
    ],
    ids=["frozen", "cached", "tuned"],
)
def test_trained_resumed_and_loaded(shard, parts, encoder, tmp_path, image, flags, trained):
    """A resumed run ends as one never stopped, and the result is a pipeline with what was trained."""
    flags = ("--image_encoder", str(encoder), *flags, "--max_train_steps", "4")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "whole", *flags))
    reset_accelerate()
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "whole")
    before = load_file(encoder / "diffusion_pytorch_model.safetensors")
    assert changed_parts(pipe, before) == trained | STATISTICS
    assert pipe.unet.conv_in.weight[:, 8:].any()
    pipe.set_progress_bar_config(disable=True)
    assert pipe(image, output_type="pt").prediction.shape == (1, 1, 48, 72)

    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for leftover in ("checkpoint-4", "unet", "image_encoder"):
        shutil.rmtree(tmp_path / "resumed" / leftover)
    resumed = flow_flags(shard, parts, tmp_path / "resumed", *flags)
    train_depthfm.main([*resumed, "--resume_from_checkpoint", "latest"])
    assert_same_state(tmp_path / "whole", tmp_path / "resumed", step=4)


def test_continued_and_adapted(shard, parts, encoder, tmp_path):
    """A base's own encoder is trained on with its statistics; adapters leave it alone."""
    train_depthfm.main(
        flow_flags(shard, parts, tmp_path / "first", "--image_encoder", str(encoder), "--max_train_steps", "1")
    )
    reset_accelerate()
    first = load_file(tmp_path / "first" / "image_encoder" / "diffusion_pytorch_model.safetensors")

    def base_flags(output: str, *more: str) -> list[str]:
        flags = flow_flags(shard, parts, tmp_path / output, "--max_train_steps", "2", *more)
        at = flags.index("--vae")
        flags[at : at + 4] = ["--pretrained_model_name_or_path", str(tmp_path / "first")]
        return flags

    train_depthfm.main(base_flags("second"))
    reset_accelerate()
    assert changed_parts(DiffusionPipeline.from_pretrained(tmp_path / "second"), first) == {"projection"}
    train_depthfm.main(base_flags("adapted", "--lora_rank", "2"))
    reset_accelerate()
    adapters = load_file(tmp_path / "adapted" / "pytorch_lora_weights.safetensors")
    assert all(name.startswith("unet.") for name in adapters)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / "first")
    pipe.load_lora_weights(tmp_path / "adapted")
    assert changed_parts(pipe, first) == set()
    with pytest.raises(ValueError, match="has an image encoder already"):
        train_depthfm.main(base_flags("third", "--image_encoder", str(encoder)))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train_image_encoder", "--cache_latents", "1"), "needs the images"),
        (("--image_encoder", "folder", "--lora_rank", "2"), "--lora_rank freezes the UNet"),
        (("--train_image_encoder", "--lora_rank", "2"), "--lora_rank freezes the UNet"),
    ],
)
def test_flags_that_exclude_each_other(shard, parts, tmp_path, capsys, flags, message):
    arguments = flow_flags(shard, parts, tmp_path, *flags, "--max_train_steps", "1")
    if "--lora_rank" in flags:
        at = arguments.index("--vae")
        arguments[at : at + 4] = ["--pretrained_model_name_or_path", "base"]
    with pytest.raises(SystemExit):
        train_depthfm.parse_args(arguments)
    assert message in capsys.readouterr().err
