"""The one prediction call: what it hands to the pipeline and what it returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers.picture_files import orientation
from PIL import Image

from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image, predict_log_depth


def test_a_file_an_array_and_a_tensor_give_the_pipelines_maps(pipe, image, tmp_path):
    image.save(tmp_path / "a.png")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)[None].float() / 255
    expected = pipe(image, ensemble_size=2, generator=torch.Generator().manual_seed(3), output_uncertainty=True)
    settings = PredictionSettings(ensemble_size=2, seed=3)
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), image, array, tensor):
        found = predict_image(pipe, given, settings, output_uncertainty=True)
        assert np.array_equal(found.depth, expected.prediction[0, ..., 0])
        assert np.array_equal(found.log_depth, expected.log_depth[0, ..., 0])
        assert np.array_equal(found.uncertainty, expected.uncertainty[0, ..., 0])
        assert {found.depth.dtype, found.log_depth.dtype} == {np.dtype(np.float32)}
    assert predict_image(pipe, image).uncertainty is None
    log_depth = predict_log_depth(pipe, tensor, settings)
    assert np.array_equal(log_depth[0, 0].cpu().numpy(), expected.log_depth[0, ..., 0])


def test_a_large_file_is_read_at_a_lower_resolution(pipe, tmp_path, monkeypatch):
    """Its maps have its size, and are those of the whole file but for the way of resizing."""
    array = np.linspace(0, 255, 480 * 640).reshape(480, 640).round().astype(np.uint8)
    Image.fromarray(array).convert("RGB").save(tmp_path / "a.jpg", exif=orientation(6))
    settings = PredictionSettings(processing_resolution=64)
    whole = predict_image(pipe, tmp_path / "a.jpg", settings)
    monkeypatch.setattr("depthfm_diffusers.pictures.reading.SHRINK_ABOVE", 10_000)
    small = predict_image(pipe, tmp_path / "a.jpg", settings)
    assert small.depth.shape == whole.depth.shape == (640, 480)
    assert np.abs(small.depth - whole.depth).max() < 0.1
    with pytest.raises(ValueError, match=r"a\.jpg is too large"):
        predict_image(pipe, tmp_path / "a.jpg", max_pixels=1000)


def test_log_depths_of_a_batch_from_given_noise(pipe):
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.rand(2, 3, 16, 24, generator=generator), torch.randn(2, 4, 2, 3, generator=generator)
    settings = PredictionSettings(num_inference_steps=1, processing_resolution=0, batch_size=2)
    expected = pipe(images, num_inference_steps=1, processing_resolution=0, batch_size=2, latents=noise)
    found = predict_log_depth(pipe, images, settings, noise)
    assert found.shape == (2, 1, 16, 24)
    assert found.dtype == torch.float32
    assert np.array_equal(found.cpu().numpy(), expected.log_depth.transpose(0, 3, 1, 2))


def test_settings_are_passed_on_and_filled_in(pipe, image):
    settings = PredictionSettings(num_inference_steps=3, processing_resolution=32, seed=1)
    expected = pipe(image, num_inference_steps=3, processing_resolution=32, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(predict_image(pipe, image, settings).log_depth, expected.log_depth[0, ..., 0])
    assert settings.resolve(pipe) == settings
    assert PredictionSettings(processing_resolution=0).resolve(pipe).processing_resolution == 0
    assert PredictionSettings().resolve(pipe) == PredictionSettings(2, 1, 0, 64, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_inference_steps", 0),
        ("ensemble_size", 0),
        ("batch_size", 0),
        ("processing_resolution", -1),
        ("seed", -1),
        ("seed", 2**63),
    ],
)
def test_settings_out_of_range_are_named(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must .*got {value}"):
        PredictionSettings(**{name: value})
