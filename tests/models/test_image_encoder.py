"""Image features: the trunk's arithmetic, standardisation, saving, precision and training."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from diffusers import ModelMixin
from helpers.components import build_image_encoder
from safetensors.torch import load_file

from depthfm_diffusers import ImageEncoder
from depthfm_diffusers.models.image_encoder import ConvNormActivation, FrozenStatisticsNorm


@pytest.fixture
def encoder() -> ImageEncoder:
    return build_image_encoder()


def images(*size: int, count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("size", [(64, 96), (64, 97), (33, 40), (8, 8), (1, 5)])
def test_has_the_size_of_a_latent(encoder, size):
    height, width = size
    assert encoder(images(*size)).shape == (2, 5, -(-height // 8), -(-width // 8))
    expected = [(2, c, -(-height // s), -(-width // s)) for c, s in zip((8, 12, 16), (8, 16, 32), strict=True)]
    assert [tuple(feature.shape) for feature in encoder.extract_features(images(*size))] == expected


def test_default_sizes_are_those_of_lite0():
    encoder = ImageEncoder()
    assert encoder.feature_channels == (40, 112, 320)
    assert encoder.projection.weight.shape == (64, 472, 1, 1)
    assert len([name for name, _ in encoder.named_modules() if name.endswith(".project")]) == 16
    # 4.65 million of the published network, without the 1280 channels of its head and its classifier.
    assert sum(parameter.numel() for parameter in encoder.trunk.parameters()) == 2958848


def test_pads_as_tensorflow_does():
    def convolve(values: list[int], kernel_size: int) -> list[float]:
        layer = ConvNormActivation(1, 1, kernel_size, stride=2, activation=False)
        torch.nn.init.ones_(layer.conv.weight)
        layer.norm = torch.nn.Identity()
        # The padding beside the column is zero, so that sums are over the column only.
        column = torch.tensor(values, dtype=torch.float32)[None, None, :, None]
        along_height = layer(column).flatten().tolist()
        assert layer(column.transpose(2, 3)).flatten().tolist() == along_height
        return along_height

    # Worked out by hand. An even side gets its one zero at the end, an odd side one at each end.
    assert convolve([1, 2, 3, 4], 3) == [1 + 2 + 3, 3 + 4]
    assert convolve([1, 2, 3, 4, 5], 3) == [1 + 2, 2 + 3 + 4, 4 + 5]
    # Kernel 5: one zero before and two after, or two and two.
    assert convolve([1, 2, 3, 4], 5) == [1 + 2 + 3 + 4, 2 + 3 + 4]
    assert convolve([1, 2, 3], 5) == [1 + 2 + 3, 1 + 2 + 3]


def test_images_do_not_depend_on_their_batch(encoder):
    batch = images(40, 56, count=3)
    apart = torch.cat([encoder(image) for image in batch.split(1)])
    torch.testing.assert_close(encoder(batch), apart, rtol=1e-5, atol=1e-6)


def test_features_are_standardised_by_the_statistics_of_given_images(encoder):
    batches = [images(64, 96, seed=1), images(40, 40, count=1, seed=2)]
    raw = [encoder.extract_features(batch) for batch in batches]
    encoder.set_feature_statistics(batches)
    for i in range(3):
        pixels = torch.cat([features[i].transpose(0, 1).flatten(1) for features in raw], dim=1)
        start = sum(encoder.feature_channels[:i])
        channels = slice(start, start + encoder.feature_channels[i])
        torch.testing.assert_close(encoder.feature_mean[channels], pixels.mean(dim=1), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            encoder.feature_std[channels], pixels.std(dim=1, correction=0), rtol=1e-4, atol=1e-5
        )
    resized = torch.nn.functional.interpolate(raw[0][2], (8, 12), mode="bilinear")
    merged = [encoder.merge_features(features) for features in raw]
    expected = (resized - encoder.feature_mean[20:, None, None]) / encoder.feature_std[20:, None, None]
    torch.testing.assert_close(merged[0][:, 20:], expected)
    finest = torch.cat([one[:, :8].transpose(0, 1).flatten(1) for one in merged], dim=1)
    assert finest.mean(dim=1).abs().max() < 1e-4
    assert (finest.std(dim=1, correction=0) - 1).abs().max() < 1e-4


def test_a_constant_channel_is_not_scaled(encoder):
    with torch.no_grad():
        norm = encoder.trunk.stages[2][-1].project.norm
        norm.weight[:2], norm.bias[0], norm.bias[1] = 0, 0, 7
    encoder.set_feature_statistics([images(64, 96)])
    assert encoder.feature_std[:2].tolist() == [1, 1]
    assert encoder.feature_mean[:2].tolist() == [0, 7]
    assert torch.isfinite(encoder(images(64, 96))).all()


def test_statistics_need_images_and_finite_features(encoder):
    with pytest.raises(ValueError, match="at least one image"):
        encoder.set_feature_statistics([])
    with pytest.raises(ValueError, match="NaN or infinite"):
        encoder.set_feature_statistics([torch.full((1, 3, 32, 32), torch.nan)])
    assert encoder.feature_std.tolist() == [1] * 36


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_saved_and_loaded_identical_without_warnings(encoder, variant, tmp_path, caplog):
    encoder.set_feature_statistics([images(64, 64)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.save_pretrained(tmp_path, variant=variant)
        loaded = ImageEncoder.from_pretrained(tmp_path, variant=variant, local_files_only=True)
    assert caplog.text == ""
    assert loaded.config.block_out_channels == list(encoder.config.block_out_channels)
    name = f"diffusion_pytorch_model{'.fp16' if variant else ''}.safetensors"
    assert load_file(tmp_path / name).keys() == encoder.state_dict().keys()
    assert torch.equal(loaded(images(40, 56)), encoder(images(40, 56)))
    half = ImageEncoder.from_pretrained(tmp_path, variant=variant, dtype=torch.bfloat16)
    assert half(images(40, 56)).dtype == torch.bfloat16
    mapped = ImageEncoder.from_pretrained(tmp_path, variant=variant, device_map={"": "cpu"})
    assert torch.equal(mapped(images(40, 56)), encoder(images(40, 56)))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
def test_half_precision_is_close(encoder, dtype, tolerance):
    expected = encoder(images(64, 64))
    computed = encoder.to(dtype)(images(64, 64))
    assert computed.dtype == dtype
    assert (computed.float() - expected).norm() < tolerance * expected.norm()


def test_training_keeps_the_statistics_of_normalisation(encoder):
    expected = encoder(images(64, 64))
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    assert torch.equal(encoder.train()(images(64, 64)), expected)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in encoder.named_buffers())
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    assert any(isinstance(module, FrozenStatisticsNorm) for module in encoder.modules())


def test_a_frozen_trunk_leaves_the_projection_to_be_trained(encoder):
    encoder.trunk.requires_grad_(False)
    encoder(images(64, 64)).square().mean().backward()
    assert {name for name, p in encoder.named_parameters() if p.grad is not None} == {
        "projection.weight",
        "projection.bias",
    }


def test_gradient_checkpointing_changes_no_gradient(encoder):
    checkpointed = copy.deepcopy(encoder)
    checkpointed.enable_gradient_checkpointing()
    assert isinstance(checkpointed, ModelMixin)
    assert checkpointed.is_gradient_checkpointing
    for module in (encoder, checkpointed):
        module.train()(images(64, 64)).square().mean().backward()
    for (name, expected), (_, got) in zip(encoder.named_parameters(), checkpointed.named_parameters(), strict=True):
        assert expected.grad is not None, name
        torch.testing.assert_close(got.grad, expected.grad)


@pytest.mark.parametrize(
    "arguments",
    [
        {"out_channels": 0},
        {"stem_channels": 0},
        {"block_out_channels": (8,) * 6},
        {"layers_per_block": (1, 1, 1, 1, 1, 1, 0)},
    ],
)
def test_refuses_sizes_that_make_no_network(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must"):
        ImageEncoder(**arguments)
