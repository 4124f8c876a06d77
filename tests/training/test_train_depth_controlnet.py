"""`train_depth_controlnet.py` on tiny real components: what it starts from, what it learns, going on after a stop."""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import train_depth_controlnet
from accelerate import Accelerator
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline
from helpers import forked_python
from helpers.captioned import picture, write_caption_shard, write_image_folder
from helpers.components import build_components
from helpers.controlnet_parts import build_controlnet as build_effective_controlnet
from helpers.stable_diffusion import build_stable_diffusion
from helpers.training_runs import assert_same_state, reset_accelerate
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from depthfm_diffusers import DepthFMControlNetPipeline, DepthFMPipeline
from depthfm_diffusers.control_image import control_image_from_log_depth
from depthfm_diffusers.training.data.controlnet_data import (
    ControlImages,
    DepthControl,
    PromptTokens,
    cache_control,
    cover_view,
    encode_control_batch,
    image_view,
)
from depthfm_diffusers.training.data.depth_transforms import AugmentationConfig
from depthfm_diffusers.training.data.draws import DiffusionDraws
from depthfm_diffusers.training.data.latent_cache import CachedSamples, CacheSettings
from depthfm_diffusers.training.data.samples import SampleSettings
from depthfm_diffusers.training.data.sources import open_captioned_images
from depthfm_diffusers.training.networks.controlnet_model import build_controlnet, predict_with_control
from depthfm_diffusers.training.objectives.denoising import denoising_loss

# What a run leaves: no averaged weights by default.
STATE = ("diffusion_pytorch_model", "checkpoint", "optimizer.bin")

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Folders of tiny models: both layouts of Stable Diffusion, a DepthFM, a ControlNet."""
    root = tmp_path_factory.mktemp("models")
    for layout, prediction in (("1.5", "epsilon"), ("2.1", "v_prediction")):
        pipe = build_stable_diffusion(root / layout, layout, prediction)
        if layout == "1.5":
            build_effective_controlnet(pipe.unet).save_pretrained(root / "controlnet")
    DepthFMPipeline(
        **build_components(), default_num_inference_steps=1, default_processing_resolution=64
    ).save_pretrained(root / "depth")
    return {name: root / name for name in ("1.5", "2.1", "controlnet", "depth")}


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_caption_shard(tmp_path_factory.mktemp("images") / "images.tar", count=12, captions="caption")


def flags(models, images, output, *more: str, base: str = "1.5") -> list[str]:
    return [
        *("--pretrained_model_name_or_path", str(models[base]), "--depth_model", str(models["depth"])),
        *("--train_data", str(images), "--output_dir", str(output)),
        *("--validation_fraction", "0.3", "--train_batch_size", "2", "--checkpointing_steps", "2"),
        *("--validation_steps", "100", "--validation_images", "1", "--validation_inference_steps", "2"),
        *("--lr_warmup_steps", "1", "--learning_rate", "1e-3", "--report_to", "none"),
        *([] if "--controlnet" in more else ["--conditioning_embedding_out_channels", *"4488"]),
        *more,
    ]


def train(*args, **kwargs) -> None:
    reset_accelerate()
    train_depth_controlnet.main(flags(*args, **kwargs))


def depth_control(models, mode: str = "disparity") -> DepthControl:
    estimator = DepthFMPipeline.from_pretrained(models["depth"])
    estimator.set_progress_bar_config(disable=True)
    return DepthControl(estimator, None, mode, (2.0, 98.0))


def control_images(models, source, empty_prompts: float = 0.5, **settings) -> ControlImages:
    frames = open_captioned_images([str(source)])
    tokens = PromptTokens(CLIPTokenizer.from_pretrained(models["1.5"] / "tokenizer"))
    draws = DiffusionDraws(1000, 4, empty_prompts)
    return ControlImages(frames, range(len(frames)), SampleSettings(**settings), tokens, draws, 8, depth_noise=(4, 8))


def cache_once(folder, vae, control, dataset) -> CachedSamples:
    return cache_control(vae, control, dataset, CacheSettings(folder, 1, 4), Accelerator(cpu=True))


# What is trained, and what comes of it.


@pytest.mark.parametrize("base", ["1.5", "2.1"])
def test_a_new_controlnet_changes_nothing_and_a_few_steps_on_one_sample_do(base, models, tmp_path):
    """Its zero convolutions: the pipeline's images are Stable Diffusion's to the bit, until it is trained."""
    one = write_caption_shard(tmp_path / "one.tar", count=1, captions="caption")
    train(models, one, tmp_path / "run", "--max_train_steps", "8", "--train_batch_size", "1",
          "--validation_fraction", "0", "--learning_rate", "1e-2", base=base)  # fmt: skip
    stable = StableDiffusionPipeline.from_pretrained(models[base])
    untrained = ControlNetModel.from_unet(stable.unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    trained = ControlNetModel.from_pretrained(tmp_path / "run")
    settings = {"num_inference_steps": 2, "output_type": "np"}

    def generate(controlnet, number):
        pipe = DepthFMControlNetPipeline.from_pipelines(
            stable, DepthFMPipeline.from_pretrained(models["depth"]), controlnet=controlnet
        )
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        return pipe("a", Image.fromarray(picture(number)), generator=generator, **settings).images

    stable.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    plain = stable("a", height=48, width=64, generator=generator, **settings).images
    assert np.array_equal(generate(untrained, 0), plain)
    assert np.abs(generate(trained, 0) - plain).max() > 1e-2
    # And what it adds depends on the depth.
    assert not np.array_equal(generate(trained, 0), generate(trained, 3))


def test_the_loss_of_one_sample_falls(models, images):
    """Through the script's own loss, at fixed noise: what is learnt is what was asked for."""
    stable = StableDiffusionPipeline.from_pretrained(models["1.5"])
    control = depth_control(models)
    dataset = control_images(models, images)
    sample = dataset[(0, 0)]
    batch = encode_control_batch(stable.vae, control, {name: tensor[None] for name, tensor in sample.items()})
    embedding = stable.text_encoder(batch["tokens"])[0].detach()
    controlnet = ControlNetModel.from_unet(stable.unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    stable.unet.requires_grad_(False)
    optimizer = torch.optim.AdamW(controlnet.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = denoising_loss(
            DDPMScheduler.from_pretrained(models["1.5"], subfolder="scheduler"),
            batch,
            lambda x, t: predict_with_control(controlnet, stable.unet, x, t, embedding, batch["control"]),
        )
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_the_base_is_left_alone_and_the_result_is_complete(models, images, tmp_path):
    before = load_file(models["1.5"] / "unet" / "diffusion_pytorch_model.safetensors")
    train(models, images, tmp_path / "run", "--max_train_steps", "4", "--validation_steps", "2")
    after = load_file(models["1.5"] / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["_name_or_path"] == ""
    assert config["conditioning_embedding_out_channels"] == [4, 4, 8, 8]
    card = (tmp_path / "run" / "README.md").read_text()
    assert "near is white" in card
    assert "abs_rel" in card
    assert str(tmp_path) not in card
    assert not (tmp_path / "run" / "unet").exists()


def test_card_of_a_finished_run_is_kept_when_it_is_resumed(models, images, tmp_path):
    train(models, images, tmp_path / "run", "--max_train_steps", "2")
    card = (tmp_path / "run" / "README.md").read_text()
    assert "abs_rel" in card
    train(models, images, tmp_path / "run", "--max_train_steps", "2", "--resume_from_checkpoint", "latest")
    assert (tmp_path / "run" / "README.md").read_text() == card


def test_half_precision_is_refused_on_the_cpu(models, images, tmp_path):
    with pytest.raises(ValueError, match="--mixed_precision fp16 needs a GPU"):
        train(models, images, tmp_path / "run", "--mixed_precision", "fp16")


def test_training_goes_on_from_a_controlnet(models, images, tmp_path):
    train(models, images, tmp_path / "run", "--controlnet", str(models["controlnet"]), "--max_train_steps", "2")
    old = load_file(models["controlnet"] / "diffusion_pytorch_model.safetensors")
    new = load_file(tmp_path / "run" / "diffusion_pytorch_model.safetensors")
    assert old.keys() == new.keys()
    changes = [(new[name] - old[name]).abs().max().item() for name in old]
    assert 0 < max(changes) < 0.01


@pytest.mark.parametrize("start", ["unet", "controlnet"])
def test_lora_trains_adapters_and_leaves_a_whole_controlnet(start, models, images, tmp_path):
    """Merged, so that it loads anywhere; beside it are the adapters. New layers are trained in full."""
    more = ["--controlnet", str(models["controlnet"])] if start == "controlnet" else []
    train(models, images, tmp_path / "run", *more, "--lora_rank", "2", "--lora_alpha", "6", "--max_train_steps", "4")
    merged = load_file(tmp_path / "run" / "diffusion_pytorch_model.safetensors")
    if start == "controlnet":
        original = ControlNetModel.from_pretrained(models["controlnet"])
    else:
        unet = StableDiffusionPipeline.from_pretrained(models["1.5"]).unet
        original = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    old = original.state_dict()
    assert merged.keys() == old.keys()
    changed = {name for name in old if not torch.equal(old[name], merged[name])}
    adapted = {
        name for name in changed if name.endswith(("to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"))
    }
    assert adapted
    fresh = ("controlnet_cond_embedding", "controlnet_down_blocks", "controlnet_mid_block")
    others = {name for name in changed - adapted if not name.startswith(fresh)}
    assert not others
    assert (changed != adapted) == (start == "unet")
    assert not (tmp_path / "run" / "checkpoint-4" / "model.safetensors").exists()
    assert (tmp_path / "run" / "lora").exists() == (start == "controlnet")
    if start == "controlnet":
        original.load_lora_adapter(
            tmp_path / "run" / "lora", prefix=None, weight_name="pytorch_lora_weights.safetensors"
        )
        x, t, text = torch.ones(1, 4, 6, 8), torch.tensor([10]), torch.ones(1, 77, 24)
        control = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
        by_adapter = original(x, t, text, controlnet_cond=control, return_dict=False)[1]
        whole = ControlNetModel.from_pretrained(tmp_path / "run")(
            x, t, text, controlnet_cond=control, return_dict=False
        )[1]
        torch.testing.assert_close(by_adapter, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("proportion", [0.0, 0.5, 1.0])
def test_proportion_of_empty_prompts(proportion, models, images):
    dataset = control_images(models, images, empty_prompts=proportion)
    left_out = np.mean([dataset[(epoch, i)]["without_prompt"] for epoch in range(25) for i in range(8)])
    assert left_out == pytest.approx(proportion, abs=0.12 if proportion == 0.5 else 0)


# Going on.


@pytest.mark.parametrize(
    "extra",
    [
        ("--gradient_accumulation_steps", "2", "--dataloader_num_workers", "2", "--min_crop", "0.8"),
        ("--cache_latents", "2", "--jitter", "0.2"),
        ("--lora_rank", "2", "--gradient_checkpointing"),
        ("--ema_decay", "0.9", "--streaming"),
    ],
    ids=["images", "cache", "lora", "averaged"],
)
def test_resumed_run_equals_one_never_stopped(models, images, tmp_path, extra):
    """Bit for bit: weights and optimizer state; across an epoch's end."""
    more = (*extra, "--max_train_steps", "6")
    train(models, images, tmp_path / "whole", *more)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for leftover in ("checkpoint-4", "checkpoint-6"):
        shutil.rmtree(tmp_path / "resumed" / leftover)
    (tmp_path / "resumed" / "diffusion_pytorch_model.safetensors").unlink()
    train(models, images, tmp_path / "resumed", *more, "--resume_from_checkpoint", "latest")
    assert_same_state(tmp_path / "whole", tmp_path / "resumed", 6, STATE)


def test_run_killed_at_a_random_step_ends_as_one_never_stopped(models, images, tmp_path):
    more = ("--max_train_steps", "10")
    train(models, images, tmp_path / "whole", *more)
    command = [train_depth_controlnet.__file__, *flags(models, images, tmp_path / "killed", *more)]
    command += ["--resume_from_checkpoint", "latest"]
    seed = random.randrange(10**6)
    reached = random.Random(seed).choice([2, 4, 6])
    process = forked_python.start(command)
    while process.exitcode is None and not (tmp_path / "killed" / f"checkpoint-{reached}").is_dir():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert not (tmp_path / "killed" / "config.json").exists(), f"the run ended before it was killed (seed {seed})"
    status, said = forked_python.run(command, tmp_path / "log")
    assert status == 0, said
    assert_same_state(tmp_path / "whole", tmp_path / "killed", 10, STATE)


# Samples.


def test_control_is_the_pipelines_own(models, images):
    """A sample's control image is what `control_image_from_log_depth` makes of the pipeline's log depth."""
    control = depth_control(models)
    sample = control_images(models, images)[(0, 2)]
    made = control(sample["image"][None], sample["depth_noise"][None])
    log_depth = control.estimator(
        Image.fromarray(picture(2)), latents=sample["depth_noise"][None], processing_resolution=0, output_type="pt"
    ).log_depth
    expected = control_image_from_log_depth(log_depth) * 255
    assert made.dtype == torch.uint8
    assert (made.int() - expected[:, :1].round().int()).abs().max() <= 1
    assert made.float().std() > 10


def test_cached_samples_equal_encoded_ones(models, images, tmp_path):
    vae, control = StableDiffusionPipeline.from_pretrained(models["1.5"]).vae, depth_control(models)
    dataset = control_images(models, images, augmentation=AugmentationConfig(flip=True, min_crop=0.8))
    cached = cache_once(tmp_path, vae, control, dataset)
    for index in (0, 5):
        sample = dataset[(0, index)]
        expected = encode_control_batch(vae, control, {name: value[None] for name, value in sample.items()})
        found = cached[(7, index)]
        torch.testing.assert_close(found["image_latent"], expected["image_latent"][0], rtol=0, atol=5e-3)
        assert (found["control"].int() - expected["control"][0].int()).abs().max() <= 1
        assert torch.equal(found["tokens"], expected["tokens"][0])


@pytest.mark.parametrize("what", ["mode", "depth model", "captions", "images"])
def test_another_choice_meets_no_old_cache(what, models, tmp_path):
    vae, control = StableDiffusionPipeline.from_pretrained(models["1.5"]).vae, depth_control(models)
    first = control_images(models, write_image_folder(tmp_path / "a", count=2))
    old = cache_once(tmp_path / "cache", vae, control, first).files.folder
    assert cache_once(tmp_path / "cache", vae, control, first).files.folder == old
    second = first
    if what == "mode":
        control = depth_control(models, "depth")
    elif what == "depth model":
        with torch.no_grad():
            control.estimator.unet.conv_out.bias += 0.1
    else:
        folder = write_image_folder(tmp_path / "b", count=2)
        metadata = folder / "metadata.jsonl"
        if what == "captions":
            metadata.write_text(metadata.read_text().replace("a a", "b b"))
        else:
            Image.fromarray(picture(5)).save(folder / "photo0.png")
        second = control_images(models, folder)
    assert cache_once(tmp_path / "cache", vae, control, second).files.folder != old


@given(
    height=st.integers(9, 90), width=st.integers(9, 90), size=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_images_of_any_size_cover_the_resolution(height, width, size, seed):
    """Without stretching: a picture of equal squares keeps them square, up to rounding."""
    size = (8 * size[0], 8 * size[1])
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    columns = torch.linspace(0, 1, width)[None].expand(height, width)
    view = cover_view(image_view(torch.stack([rows, columns, rows])), *size, np.random.default_rng(seed))
    assert view.image.shape == (3, *size)
    scale = max(size[0] / height, size[1] / width)
    # The part of the image that is left along each side.
    for channel, side, full in ((0, size[0], height), (1, size[1], width)):
        covered = (view.image[channel].max() - view.image[channel].min()).item()
        assert covered == pytest.approx(min(1.0, (side - 1) / max(full - 1, 1) / scale), abs=0.6 / scale / full + 0.15)


def test_a_bad_image_is_an_error_or_a_sample_that_does_not_count(models, tmp_path):
    folder = write_image_folder(tmp_path / "a", count=3, captioned=False)
    (folder / "photo1.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"photo1\.png.*not a readable image"):
        control_images(models, folder)[(0, 1)]
    Accelerator(cpu=True)  # whose logger is used
    sample = control_images(models, folder, skip_bad_frames=True)[(0, 1)]
    assert sample["weight"] == 0
    assert sample["skipped"] == 1
    schedule = DDPMScheduler()
    batch = {"image_latent": torch.ones(2, 4, 6, 8), "noise": torch.zeros(2, 4, 6, 8)}
    batch |= {"timestep": torch.tensor([3, 3]), "weight": torch.tensor([1.0, 0.0])}
    wrong = torch.stack([torch.full((4, 6, 8), 2.0), torch.full((4, 6, 8), 100.0)])
    assert denoising_loss(schedule, batch, lambda x, t: wrong) == 4.0


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_target_is_what_the_base_predicts(prediction_type):
    """A perfect denoiser has no loss: what it must say follows from x_t by the schedule's own formulas."""
    schedule = DDPMScheduler(prediction_type=prediction_type)
    rng = torch.Generator().manual_seed(0)
    latent, noise = (torch.randn(3, 4, 2, 2, generator=rng) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    batch = {"image_latent": latent, "noise": noise, "timestep": t, "weight": torch.ones(3)}
    alpha = schedule.alphas_cumprod[t].sqrt()[:, None, None, None]
    sigma = (1 - alpha**2).sqrt()

    def perfect(x, timestep):
        assert torch.equal(timestep, t)
        torch.testing.assert_close(x, alpha * latent + sigma * noise)
        return {"epsilon": noise, "v_prediction": alpha * noise - sigma * latent, "sample": latent}[prediction_type]

    assert denoising_loss(schedule, batch, perfect) < 1e-10


# Bad input, before anything is trained.


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--controlnet", "{other}"), "attends to text embeddings of width 24, the base's unet to 32"),
        (("--controlnet", "{nowhere}"), "nowhere"),
        (("--conditioning_embedding_out_channels", "4", "8"), "give 4 widths"),
        (("--depth_model", "{nowhere}"), "nowhere"),
        (("--resolution", "50", "64"), "must be multiples of 8"),
        (("--train_batch_size", "100"), "is larger than the"),
        (("--lora_rank", "2", "--lora_target_modules", "to_nowhere"), "to_nowhere"),
    ],
)
def test_bad_input_is_named(more, message, models, images, tmp_path):
    names = {"other": models["controlnet"], "nowhere": tmp_path / "nowhere"}
    more = [word.format(**names) for word in more]
    with pytest.raises((ValueError, OSError), match=message):
        train(models, images, tmp_path / "run", *more, "--max_train_steps", "2", base="2.1")
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--control_percentiles", "98", "2"), "must be 0 <= LOW < HIGH <= 100"),
        (("--proportion_empty_prompts", "1.5"), r"must be in \[0, 1\]"),
        (("--controlnet", "a", "--conditioning_embedding_out_channels", "4"), "for a new ControlNet"),
    ],
)
def test_bad_flags_are_refused(more, message, models, images, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train(models, images, tmp_path / "run", *more)
    assert message.replace("\\", "") in capsys.readouterr().err


def test_resume_with_other_settings_is_refused(models, images, tmp_path):
    train(models, images, tmp_path / "run", "--max_train_steps", "2")
    with pytest.raises(ValueError, match="--control_mode was 'disparity', now 'depth'"):
        train(models, images, tmp_path / "run", "--max_train_steps", "4", "--control_mode", "depth",
              "--resume_from_checkpoint", "latest")  # fmt: skip


def test_adapters_of_a_new_controlnet_leave_its_new_layers_trainable(models):
    args = train_depth_controlnet.parse_args(
        ["--pretrained_model_name_or_path", "x", "--train_data", "x", "--output_dir", "x", "--lora_rank", "2",
         "--conditioning_embedding_out_channels", *"4488"]
    )  # fmt: skip
    unet = StableDiffusionPipeline.from_pretrained(models["1.5"]).unet
    controlnet = build_controlnet(train_depth_controlnet.controlnet_settings(args), unet, 8)
    trained = {name for name, parameter in controlnet.named_parameters() if parameter.requires_grad}
    assert any("lora_A" in name for name in trained)
    assert "controlnet_mid_block.weight" in trained
    assert "conv_in.weight" not in trained
