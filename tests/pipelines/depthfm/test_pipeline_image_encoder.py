"""The optional image encoder: its features reach the UNet, once per image, and without it nothing changes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline
from helpers.components import build_components, build_image_encoder, build_unet, build_vae

from depthfm_diffusers import DepthFMPipeline, ImageEncoder
from depthfm_diffusers.checkpoints.model_folder import halve_weights, load_pipeline, resolve_model, save_pipeline

FEATURES = 8


def build_encoder_pipeline(**changes: object) -> DepthFMPipeline:
    """A tiny random pipeline with an image encoder, quiet."""
    components = build_components() | {
        "unet": build_unet(in_channels=8 + FEATURES),
        "image_encoder": build_image_encoder(out_channels=FEATURES),
    }
    pipe = DepthFMPipeline(**{**components, **changes}, default_processing_resolution=64)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def with_encoder() -> DepthFMPipeline:
    return build_encoder_pipeline()


def predict(pipe: DepthFMPipeline, image: object, **arguments: object) -> np.ndarray:
    return pipe(image, **{"generator": torch.Generator().manual_seed(0), "ensemble_size": 2} | arguments).log_depth


def test_the_unet_gets_the_encoders_features_after_both_latents(with_encoder, image):
    given, images = [], []
    with_encoder.unet.register_forward_pre_hook(lambda module, args: given.append(args[0]))
    with_encoder.image_encoder.register_forward_pre_hook(lambda module, args: images.append(args[0]))
    predict(with_encoder, image, num_inference_steps=2, batch_size=2)
    assert len(images) == 1, "features are computed once per image"
    assert images[0].shape == (1, 3, 48, 64)
    assert images[0].min() >= -1
    assert images[0].max() <= 1
    with torch.no_grad():
        features = with_encoder.image_encoder(images[0])
        latents = with_encoder.encode_image(images[0])
    assert [one.shape for one in given] == [(2, 8 + FEATURES, 6, 8)] * 2
    for one in given:
        assert torch.equal(one[:, 4:8], latents.expand(2, -1, -1, -1))
        assert torch.equal(one[:, 8:], features.expand(2, -1, -1, -1))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_images_of_several_sizes_get_their_own_features(with_encoder, batch_size):
    rng = np.random.default_rng(0)
    images = [rng.random((*size, 3), dtype=np.float32) for size in ((48, 72), (40, 40), (48, 72), (64, 24))]
    noises = [torch.randn(2, 4, *size) for size in ((6, 8), (8, 8), (6, 8), (8, 3))]
    together = predict(with_encoder, images, latents=noises, batch_size=batch_size)
    for one, noise, expected in zip(images, noises, together, strict=True):
        np.testing.assert_allclose(predict(with_encoder, one, latents=noise)[0], expected, atol=1e-5)


def test_features_matter_and_zero_weights_give_the_pipeline_without_encoder(pipe, with_encoder, image):
    conv_in = with_encoder.unet.conv_in
    changed = predict(with_encoder, image)
    with torch.no_grad():
        conv_in.weight[:, 8:] = 0
        with_encoder.unet.load_state_dict(
            {
                name: torch.cat([tensor, conv_in.weight[:, 8:]], dim=1) if name == "conv_in.weight" else tensor
                for name, tensor in pipe.unet.state_dict().items()
            }
        )
    expected = predict(pipe, image)
    np.testing.assert_allclose(predict(with_encoder, image), expected, atol=1e-5)
    assert abs(changed - expected).max() > 1e-3


@pytest.mark.parametrize("loader", [DiffusionPipeline, DepthFMPipeline])
def test_saved_and_loaded(with_encoder, image, loader, tmp_path):
    with_encoder.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["image_encoder"] == ["diffusers", "ImageEncoder"]
    loaded = loader.from_pretrained(tmp_path / "model", local_files_only=True)
    assert type(loaded) is DepthFMPipeline
    assert type(loaded.image_encoder) is ImageEncoder
    loaded.set_progress_bar_config(disable=True)
    for name in ("unet", "vae", "prompt_embedding", "image_encoder"):
        weights = loaded.components[name].state_dict()
        assert all(torch.equal(weights[key], w) for key, w in with_encoder.components[name].state_dict().items())
    np.testing.assert_allclose(predict(loaded, image), predict(with_encoder, image), atol=1e-6)
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "model_index.json").read_text())
    assert again["image_encoder"] == index["image_encoder"]
    passed = DepthFMPipeline.from_pretrained(tmp_path / "model", image_encoder=with_encoder.image_encoder)
    assert passed.image_encoder is with_encoder.image_encoder


def test_halved_saved_and_loaded_by_the_commands(with_encoder, image, tmp_path):
    expected = predict(with_encoder, image)
    halve_weights(with_encoder)
    save_pipeline(with_encoder, tmp_path / "model")
    loaded = load_pipeline(resolve_model(str(tmp_path / "model")), device="cpu")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.image_encoder.dtype == torch.float32
    assert abs(predict(loaded, image) - expected).max() < 0.05 * np.ptp(expected)
    weights = tmp_path / "model" / "image_encoder" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode & 0o777 == (tmp_path / "model" / "model_index.json").stat().st_mode & 0o777
    weights.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded: .*image_encoder"):
        load_pipeline(tmp_path / "model", device="cpu")


def test_a_folder_of_before_loads_without_encoder(pipe, image, tmp_path):
    pipe.save_pretrained(tmp_path)
    path = tmp_path / "model_index.json"
    index = json.loads(path.read_text())
    assert index.pop("image_encoder") == [None, None]
    path.write_text(json.dumps(index))
    loaded = DiffusionPipeline.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert loaded.image_encoder is None
    assert np.array_equal(predict(loaded, image), predict(pipe, image))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(with_encoder, image, dtype, tmp_path):
    expected = predict(with_encoder, image)
    with_encoder.save_pretrained(tmp_path)
    half = DepthFMPipeline.from_pretrained(tmp_path, dtype=dtype)
    half.set_progress_bar_config(disable=True)
    assert half.image_encoder.dtype == half.unet.dtype == dtype
    assert abs(predict(half, image) - expected).max() < 0.1 * np.ptp(expected)
    mixed = DepthFMPipeline.from_pretrained(tmp_path, dtype={"image_encoder": torch.float32, "default": dtype})
    mixed.set_progress_bar_config(disable=True)
    assert (mixed.image_encoder.dtype, mixed.unet.dtype) == (torch.float32, dtype)
    assert abs(predict(mixed, image) - expected).max() < 0.1 * np.ptp(expected)


def test_offloading_runs_through_the_encoders_hooks(image):
    expected = predict(build_encoder_pipeline(), image)
    pipe = build_encoder_pipeline()
    pipe.enable_model_cpu_offload(device="cpu")
    assert all(hasattr(module, "_hf_hook") for module in (pipe.unet, pipe.vae, pipe.image_encoder))
    np.testing.assert_allclose(predict(pipe, image), expected, atol=1e-6)
    pipe = build_encoder_pipeline()
    pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    np.testing.assert_allclose(predict(pipe, image), expected, atol=1e-6)


def test_lora_leaves_the_encoder_alone(with_encoder):
    before = {name: tensor.clone() for name, tensor in with_encoder.image_encoder.state_dict().items()}
    with_encoder.load_lora_weights(
        {
            f"unet.conv_in.lora_{side}.weight": torch.ones(shape)
            for side, shape in (("A", (2, 8 + FEATURES, 3, 3)), ("B", (32, 2, 1, 1)))
        }
    )
    with_encoder.fuse_lora()
    after = with_encoder.image_encoder.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_components_that_do_not_fit_are_refused(pipe, with_encoder, image):
    with pytest.raises(ValueError, match=r"`unet` must take 16 channels .* and 8 of the `image_encoder`.* takes 8"):
        build_encoder_pipeline(unet=build_unet())
    with pytest.raises(ValueError, match=r"`unet` must take 8 channels .* takes 16"):
        build_encoder_pipeline(image_encoder=None)
    pipe.image_encoder = build_image_encoder(out_channels=FEATURES)
    with pytest.raises(ValueError, match="`unet` must take 16 channels"):
        predict(pipe, image)
    coarse = build_vae(
        block_out_channels=(8, 8, 8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 5,
        up_block_types=("UpDecoderBlock2D",) * 5,
    )
    assert isinstance(coarse, AutoencoderKL)
    with pytest.raises(ValueError, match="1/8 of the image's size, but those of the `vae` have 1/16"):
        build_encoder_pipeline(vae=coarse)


def test_features_that_are_not_finite_are_named(with_encoder, image):
    with torch.no_grad():
        with_encoder.image_encoder.projection.bias[0] = torch.inf
    with pytest.raises(RuntimeError, match=r"image features hold NaN or infinite values \(`image_encoder` runs in"):
        predict(with_encoder, image)
