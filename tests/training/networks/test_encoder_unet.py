"""A UNet with an image encoder in front of it: growing one, noise on the features, and what is trained."""

from __future__ import annotations

import pytest
import torch
from helpers.components import build_components, build_image_encoder

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.training.data.flow_data import FEATURES
from depthfm_diffusers.training.networks.encoder_unet import (
    EncoderUNet,
    FeatureNoise,
    add_image_encoder,
    prepare_image_encoder,
    take_networks,
)
from depthfm_diffusers.training.objectives.flow_objective import encoder_inputs


@pytest.fixture
def folder(tmp_path):
    encoder = build_image_encoder()
    encoder.set_feature_statistics([torch.rand(2, 3, 64, 64) * 2 - 1])
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def grown(folder) -> DepthFMPipeline:
    return add_image_encoder(DepthFMPipeline(**build_components()), str(folder))


@pytest.mark.parametrize("seed", [0, 1])
@torch.no_grad()
def test_an_encoder_changes_nothing_at_first(grown, seed):
    """To 1e-5: the first layer adds more products, all of them 0, in another order."""
    torch.manual_seed(seed)
    inputs, time, embedding = torch.randn(2, 8, 8, 8), torch.tensor([0.0, 0.7]), grown.prompt_embedding(2)
    expected = build_components()["unet"](inputs, time, embedding).sample
    features = torch.randn(2, 5, 8, 8) * 10
    got = grown.unet(torch.cat([inputs, features], dim=1), time, embedding).sample
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert grown.unet.config.in_channels == 13
    assert not grown.unet.conv_in.weight[:, 8:].any()
    assert type(grown) is DepthFMPipeline
    assert grown.config.rescale_self_attention is False


def test_refuses_what_cannot_be_added(grown, folder, tmp_path):
    with pytest.raises(ValueError, match="has an image encoder already"):
        add_image_encoder(grown, str(folder))
    with pytest.raises(FileNotFoundError, match="is not the folder of an image encoder"):
        add_image_encoder(DepthFMPipeline(**build_components()), str(tmp_path))
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="image_encoder"):
        add_image_encoder(DepthFMPipeline(**build_components()), str(folder))
    with pytest.raises(ValueError, match="the model has no image encoder"):
        prepare_image_encoder(DepthFMPipeline(**build_components()), train_trunk=True, train_projection=True)


def test_image_and_features_give_the_same(grown):
    torch.nn.init.normal_(grown.unet.conv_in.weight, std=0.1)
    network = EncoderUNet(grown.unet, grown.image_encoder, FeatureNoise())
    image, latents = torch.rand(2, 3, 48, 64) * 2 - 1, torch.randn(2, 8, 6, 8)
    arguments = (latents, torch.tensor([0.2, 0.4]), grown.prompt_embedding(2))
    features = dict(zip(FEATURES, grown.image_encoder.extract_features(image), strict=True))
    batch = {"image": image, "feature_seed": torch.arange(2)}
    assert encoder_inputs({"image": image}) == {}
    assert encoder_inputs(batch)["image_or_features"] is image
    with torch.no_grad():
        expected = grown.unet(torch.cat([latents, grown.image_encoder(image)], dim=1), *arguments[1:]).sample
        for inputs in (encoder_inputs(batch), encoder_inputs(batch | features)):
            torch.testing.assert_close(network(*arguments, **inputs).sample, expected)
        halved = encoder_inputs(batch | {name: feature.half() for name, feature in features.items()})
        assert (network(*arguments, **halved).sample - expected).abs().max() < 0.02


def test_noise_and_dropout_depend_on_the_samples_own_seed():
    features, noise = torch.randn(3, 400, 6, 8), FeatureNoise(std=0.3, dropout=0.25)
    seeds = torch.tensor([5, 2**62, 5])
    changed = noise.apply(features, seeds)
    assert torch.equal(changed[1], noise.apply(features[1:2], seeds[1:2])[0])
    assert torch.equal(noise.apply(features[:1].expand(2, -1, -1, -1), seeds[::2])[0], changed[0])
    dropped = (changed == 0).flatten(2).all(dim=2)
    assert ((changed == 0).flatten(2).any(dim=2) == dropped).all()
    assert abs(dropped.float().mean() - 0.25) < 0.05
    assert not torch.equal(dropped[0], dropped[1])
    difference = (changed * 0.75 - features)[~dropped]
    assert abs(difference.std() - 0.3) < 0.01
    assert abs(difference.mean()) < 0.01
    assert torch.equal(FeatureNoise().apply(features, seeds), features)


@pytest.mark.parametrize("train_trunk", [False, True])
def test_what_is_trained(grown, train_trunk):
    prepare_image_encoder(grown, train_trunk, train_projection=True)
    torch.nn.init.normal_(grown.unet.conv_in.weight, std=0.1)
    network = EncoderUNet(grown.unet, grown.image_encoder, FeatureNoise(0.3, 0.25)).train()
    inputs = {"seeds": torch.arange(2), "image_or_features": torch.rand(2, 3, 64, 64)}
    network(torch.randn(2, 8, 8, 8), torch.rand(2), grown.prompt_embedding(2), **inputs).sample.sum().backward()
    assert grown.unet.conv_in.weight.grad[:, 8:].any()
    assert grown.image_encoder.projection.weight.grad.any()
    assert (grown.image_encoder.trunk.stem.conv.weight.grad is not None) is train_trunk
    pipe = DepthFMPipeline(**build_components() | {"unet": None})
    take_networks(pipe, network)
    assert pipe.unet is network.unet
    assert pipe.image_encoder is network.image_encoder
