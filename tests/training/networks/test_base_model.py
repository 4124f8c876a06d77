"""`training/networks/base_model.py` on tiny random Stable Diffusions of both layouts, as diffusers saves them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline
from helpers.components import build_components, build_unet, build_vae
from helpers.stable_diffusion import LAYOUTS, build_stable_diffusion
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer

from depthfm_diffusers import DepthFMPipeline, FlowMatchingImageToDepthScheduler
from depthfm_diffusers.models.prompt_embedding import embed_empty_prompt
from depthfm_diffusers.training.networks.base_model import (
    CONV_IN_INITS,
    build_pipeline,
    grow_conv_in,
    source_noise_step,
)

WEIGHTS = "diffusion_pytorch_model.safetensors"


# What tells Stable Diffusion 1.5 from 2.1, as far as it matters here, scaled down.
@pytest.fixture(scope="module", params=LAYOUTS)
def stable(request, tmp_path_factory) -> tuple[StableDiffusionPipeline, Path]:
    folder = tmp_path_factory.mktemp("sd") / "model"
    return build_stable_diffusion(folder, request.param), folder


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("template") / "model"
    build_stable_diffusion(folder, "1.5")
    return folder


@pytest.fixture
def sd_folder(template, tmp_path) -> Path:
    return shutil.copytree(template, tmp_path / "model")


@pytest.fixture
def depthfm_folder(tmp_path) -> Path:
    pipe = DepthFMPipeline(**build_components())
    pipe.scheduler.register_to_config(noise_augmentation_step=200)
    pipe.save_pretrained(tmp_path / "depthfm")
    return tmp_path / "depthfm"


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("init", CONV_IN_INITS)
@torch.no_grad()
def test_first_forward_pass_is_stable_diffusions(stable, init):
    """cat[x, x] for `duplicate`, cat[x, anything] for `zero`, to 4e-6 with outputs of order 1.

    The first layer adds twice as many products. The order in which a convolution adds depends on its shape and on the
    number of threads: differences of 1.5e-6 were seen with one thread, less than 1e-6 with two. float32 rounds at
    1.2e-7 of a value, and the network has some ten layers.
    """
    base, folder = stable
    pipe = build_pipeline(str(folder), conv_in_init=init)
    x, condition = latents(0), latents(1)
    time, embedding = torch.tensor([3, 700]), pipe.prompt_embedding(2)
    old = base.unet(x, time, embedding).sample
    same = pipe.unet(torch.cat([x, x], 1), time, embedding).sample
    other = pipe.unet(torch.cat([x, condition], 1), time, embedding).sample
    assert old.abs().mean() > 0.1
    torch.testing.assert_close(same, old, rtol=1e-6, atol=4e-6)
    if init == "zero":
        torch.testing.assert_close(other, old, rtol=1e-6, atol=4e-6)
    else:
        assert (other - old).abs().max() > 1e-2


def test_condition_is_learnt_from_zero(stable):
    pipe = build_pipeline(str(stable[1]), conv_in_init="zero")
    pipe.unet(torch.cat([latents(0), latents(1)], 1), 0.5, pipe.prompt_embedding(2)).sample.square().mean().backward()
    assert pipe.unet.conv_in.weight.grad[:, 4:].abs().max() > 0


@pytest.mark.parametrize("init", CONV_IN_INITS)
def test_result_is_saved_as_a_whole_and_loads_in_diffusers(stable, init, tmp_path, image):
    base, folder = stable
    made = build_pipeline(str(folder), conv_in_init=init)
    made.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded, DepthFMPipeline)
    assert loaded.unet.config.in_channels == 8
    assert loaded.unet.conv_in.weight.shape[1] == 8
    assert loaded.vae.config.scaling_factor == 0.3
    for name in ("unet", "vae", "prompt_embedding"):
        before, after = getattr(made, name).state_dict(), getattr(loaded, name).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[key], after[key]) for key in before)
        assert {tensor.dtype for tensor in after.values()} == {torch.float32}
    for name, tensor in base.vae.state_dict().items():
        assert torch.equal(tensor, loaded.vae.state_dict()[name])
    loaded.set_progress_bar_config(disable=True)
    assert loaded(image, processing_resolution=64, output_type="pt").prediction.shape == (1, 1, 48, 72)


def test_prompt_embedding_is_what_stable_diffusion_makes_of_the_empty_prompt(stable):
    base, folder = stable
    expected, unconditional = base.encode_prompt("", "cpu", 1, True)
    embedding = build_pipeline(str(folder)).prompt_embedding()
    assert embedding.shape == (1, 77, base.unet.config.cross_attention_dim)
    torch.testing.assert_close(embedding, expected, rtol=0, atol=0)
    torch.testing.assert_close(embedding, unconditional, rtol=0, atol=0)
    assert not embedding.requires_grad
    other, _ = base.encode_prompt("a", "cpu", 1, False)
    assert (embedding - other).abs().max() > 1e-2


def test_mask_is_used_where_the_text_encoder_asks_for_it(stable):
    """In diffusers this is a setting of the text encoder; the padding then no longer matters to "" itself."""
    base, _ = stable
    plain = embed_empty_prompt(base.tokenizer, base.text_encoder)()
    base.text_encoder.config.use_attention_mask = True
    try:
        masked = embed_empty_prompt(base.tokenizer, base.text_encoder)()
        expected, _ = base.encode_prompt("", "cpu", 1, False)
    finally:
        del base.text_encoder.config.use_attention_mask
    torch.testing.assert_close(masked, expected, rtol=0, atol=0)
    assert masked.shape == plain.shape


def test_files_as_stable_diffusion_was_published_load_too(sd_folder):
    """Text encoder's tensors under `text_model.`, autoencoder's attention under its old names, pickled weights."""
    expected = build_pipeline(str(sd_folder))
    path = sd_folder / "text_encoder" / "model.safetensors"
    published = {f"text_model.{name.removeprefix('text_model.')}": t for name, t in load_file(path).items()}
    published["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    torch.save(published, sd_folder / "text_encoder" / "pytorch_model.bin")
    path.unlink()
    path = sd_folder / "vae" / WEIGHTS
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for key, tensor in load_file(path).items():
        for new_name, old_name in names.items():
            key = key.replace(f".{new_name}.", f".{old_name}.")
        old[key] = tensor
    assert any("query" in key for key in old)
    torch.save(old, sd_folder / "vae" / "diffusion_pytorch_model.bin")
    path.unlink()
    again = build_pipeline(str(sd_folder))
    torch.testing.assert_close(again.prompt_embedding(), expected.prompt_embedding(), rtol=0, atol=0)
    for key, tensor in expected.vae.state_dict().items():
        assert torch.equal(tensor, again.vae.state_dict()[key])


def test_folder_of_half_precision_files_alone_loads_in_float32(sd_folder, tmp_path):
    StableDiffusionPipeline.from_pretrained(sd_folder, dtype=torch.float16).save_pretrained(
        tmp_path / "half", variant="fp16"
    )
    assert not (tmp_path / "half" / "unet" / WEIGHTS).exists()
    pipe = build_pipeline(str(tmp_path / "half"))
    whole = build_pipeline(str(sd_folder))
    for name, tensor in whole.unet.state_dict().items():
        half = pipe.unet.state_dict()[name]
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, tensor, rtol=1e-3, atol=1e-4)


def test_prediction_type_scheduler_and_safety_checker_do_not_matter(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    build_stable_diffusion(one, "2.1", "epsilon")
    build_stable_diffusion(other, "2.1", "v_prediction")
    shutil.rmtree(other / "scheduler")
    index = json.loads((other / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (other / "model_index.json").write_text(json.dumps(index))
    first, second = build_pipeline(str(one)), build_pipeline(str(other))
    for name, tensor in first.unet.state_dict().items():
        assert torch.equal(tensor, second.unet.state_dict()[name])
    assert first.scheduler.config == second.scheduler.config


def test_goes_on_from_depthfm(depthfm_folder):
    pipe = build_pipeline(str(depthfm_folder))
    assert pipe.scheduler.config.noise_augmentation_step == 200
    for name, tensor in build_components()["unet"].state_dict().items():
        assert torch.equal(tensor, pipe.unet.state_dict()[name])
    assert pipe.unet.dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "step"),
    [({}, 200), ({"noise_augmentation_step": 0}, 0), ({"start": "noise"}, 1000), ({"start": "image"}, 200)],
)
def test_start_of_the_flow_is_saved_with_the_scheduler(depthfm_folder, tmp_path, arguments, step):
    build_pipeline(str(depthfm_folder), **arguments).save_pretrained(tmp_path / "out")
    assert DiffusionPipeline.from_pretrained(tmp_path / "out").scheduler.config.noise_augmentation_step == step


@pytest.mark.parametrize("last", [1000, 50])
def test_start_from_noise_has_nothing_of_the_image(last, tmp_path):
    """At the schedule's last step the source is the noise to the bit, and a saved scheduler starts so as well."""
    step = source_noise_step("noise", 400, last)
    FlowMatchingImageToDepthScheduler(last, step).save_pretrained(tmp_path)
    scheduler = FlowMatchingImageToDepthScheduler.from_pretrained(tmp_path)
    image, other, noise = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(3))
    assert torch.equal(scheduler.augment(100 * image, noise), noise)
    assert torch.equal(scheduler.augment(other, noise), noise)
    signal = scheduler.augment(torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)).item()
    assert 0 <= signal**2 < 1e-30
    assert source_noise_step("image", 40, last) == 40
    with pytest.raises(ValueError, match="start distribution"):
        source_noise_step("depth", 40)


def test_new_network_around_an_autoencoder(tmp_path):
    build_vae().save_pretrained(tmp_path / "vae")
    (tmp_path / "unet.json").write_text(json.dumps(dict(build_unet().config)))
    pipe = build_pipeline(vae=str(tmp_path / "vae"), unet_config=str(tmp_path / "unet.json"))
    assert pipe.scheduler.config.noise_augmentation_step == 400
    assert pipe.prompt_embedding().shape == (1, 1, 16)
    assert pipe.unet.config.in_channels == 8


def test_bad_configurations_are_refused(tmp_path):
    build_vae().save_pretrained(tmp_path / "vae")
    config, vae = tmp_path / "unet.json", str(tmp_path / "vae")
    with pytest.raises(FileNotFoundError, match=r"unet_config .*unet\.json cannot be read"):
        build_pipeline(vae=vae, unet_config=str(config))
    for content, message in (("{", "is not JSON"), ("[]", "must be a JSON object")):
        config.write_text(content)
        with pytest.raises(ValueError, match=message):
            build_pipeline(vae=vae, unet_config=str(config))
    config.write_text(json.dumps(dict(build_unet().config) | {"in_channels": 4}))
    with pytest.raises(ValueError, match="8 input and 4 output channels, not 4 and 4"):
        build_pipeline(vae=vae, unet_config=str(config))
    config.write_text(json.dumps(dict(build_unet().config)))
    with pytest.raises(FileNotFoundError, match=r"vae .* has no config\.json"):
        build_pipeline(vae=str(tmp_path), unet_config=str(config))
    (tmp_path / "vae" / WEIGHTS).write_bytes(b"partial")
    with pytest.raises(ValueError, match=r"vae .* cannot be loaded"):
        build_pipeline(vae=vae, unet_config=str(config))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either `base`, or both"),
        ({"vae": "v"}, "either `base`, or both"),
        ({"base": "b", "vae": "v"}, "either `base`, or both"),
        ({"base": "b", "vae": "v", "unet_config": "u"}, "either `base`, or both"),
        ({"base": "b", "start": "noise", "noise_augmentation_step": 400}, "has no meaning"),
    ],
)
def test_contradicting_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        build_pipeline(**arguments)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer"])
def test_missing_component_is_named(sd_folder, name):
    index = json.loads((sd_folder / "model_index.json").read_text())
    (sd_folder / "model_index.json").write_text(json.dumps({k: v for k, v in index.items() if k != name}))
    with pytest.raises(FileNotFoundError, match=f"{sd_folder}: its {name} is missing, model_index"):
        build_pipeline(str(sd_folder))
    (sd_folder / "model_index.json").write_text(json.dumps(index))
    shutil.rmtree(sd_folder / name)
    with pytest.raises(FileNotFoundError, match=f"{sd_folder}: its {name} is missing, there is no folder"):
        build_pipeline(str(sd_folder))


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer"])
def test_damaged_component_is_named(sd_folder, name):
    weights = next((sd_folder / name).glob("*.safetensors"), None) or sd_folder / "tokenizer" / "tokenizer.json"
    weights.write_bytes(b"partial")
    with pytest.raises(ValueError, match=f"{sd_folder}: its {name} cannot be loaded"):
        build_pipeline(str(sd_folder))


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder"])
def test_weight_files_that_lack_a_tensor_are_refused(sd_folder, name):
    """The libraries would leave random weights in its place."""
    path = next((sd_folder / name).glob("*.safetensors"))
    tensors = load_file(path)
    lost = sorted(tensors)[0]
    del tensors[lost]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"{sd_folder}: its {name} is incomplete: .* lack .*{lost}"):
        build_pipeline(str(sd_folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 9}, "9 input and 4 output channels, not 4 and 4 .*inpainting"),
        ({"in_channels": 8}, "8 input channels already"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"num_class_embeds": 3}, "num_class_embeds=3"),
        (
            {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 8,
                "projection_class_embeddings_input_dim": 64,
            },
            "addition_embed_type='text_time'.*SDXL",
        ),
        ({"cross_attention_dim": 16}, "embeddings of width 24, but its unet attends to width 16"),
    ],
)
def test_other_networks_are_refused(sd_folder, changes, message):
    settings = {"in_channels": 4, **LAYOUTS["1.5"]["unet"], **changes}
    build_unet(**settings).save_pretrained(sd_folder / "unet")
    with pytest.raises(ValueError, match=message):
        build_pipeline(str(sd_folder))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"text_encoder_2": ["transformers", "CLIPTextModelWithProjection"]}, "with text_encoder_2 .*SDXL"),
        ({"text_encoder": ["transformers", "T5EncoderModel"]}, "its text_encoder is a T5EncoderModel"),
        ({"vae": ["diffusers", "VQModel"]}, "its vae is a VQModel"),
    ],
)
def test_other_pipelines_are_refused(sd_folder, entry, message):
    path = sd_folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(ValueError, match=message):
        build_pipeline(str(sd_folder))


def test_what_is_no_model_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model_index\.json is missing"):
        build_pipeline(str(tmp_path))
    (tmp_path / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match=r"model_index\.json is damaged"):
        build_pipeline(str(tmp_path))
    (tmp_path / "sd.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match="is a file, not a folder"):
        build_pipeline(str(tmp_path / "sd.ckpt"))
    with pytest.raises(FileNotFoundError, match="nobody/nothing: there is no such folder"):
        build_pipeline("nobody/nothing")


def test_incomplete_depthfm_folder_is_refused(depthfm_folder):
    shutil.rmtree(depthfm_folder / "vae")
    with pytest.raises(FileNotFoundError, match="the folder vae/ is missing"):
        build_pipeline(str(depthfm_folder))


def test_only_a_plain_network_grows():
    with pytest.raises(ValueError, match="`init` must be one of"):
        grow_conv_in(build_unet(in_channels=4), "random")
    with pytest.raises(ValueError, match="got 8 and 4"):
        grow_conv_in(build_unet())


def test_tokenizer_without_a_length_is_refused(stable):
    base, folder = stable
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(ValueError, match="model_max_length"):
        embed_empty_prompt(tokenizer, base.text_encoder)
