"""Uncertainty by an ensemble, by mirroring and by more steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import ImageOps

from depthfm_diffusers.inference.prediction import PredictionSettings, predict_image
from depthfm_diffusers.inference.uncertainty import UNCERTAINTY_METHODS, predict_with_uncertainty
from depthfm_diffusers.pipelines.depthfm.ensembling import ensemble_uncertainty

SETTINGS = PredictionSettings(num_inference_steps=1, ensemble_size=2, seed=5)


@pytest.mark.parametrize("method", UNCERTAINTY_METHODS)
def test_maps_have_the_size_of_the_image(pipe, image, method, tmp_path):
    image.save(tmp_path / "a.png")
    found = predict_with_uncertainty(pipe, tmp_path / "a.png", SETTINGS, method)
    for values in (found.depth, found.log_depth, found.uncertainty):
        assert values.shape == (48, 72)
        assert values.dtype == np.float32
    assert (found.uncertainty >= 0).all()
    assert found.uncertainty.max() > 0
    assert (found.depth.min(), found.depth.max()) == (0, 1)


def test_steps_are_compared_with_twice_as_many(pipe, image):
    found = predict_with_uncertainty(pipe, image, SETTINGS, "steps")
    maps = [
        predict_image(pipe, image, PredictionSettings(num_inference_steps=n, ensemble_size=2, seed=5)).log_depth
        for n in (1, 2)
    ]
    np.testing.assert_array_equal(found.log_depth, maps[0])
    np.testing.assert_allclose(
        found.uncertainty, ensemble_uncertainty(torch.from_numpy(np.stack(maps))).numpy(), atol=1e-6
    )


def test_image_padding_and_noise_are_mirrored(pipe, image, monkeypatch):
    seen, noises = [], []
    pipe.vae.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    augment = type(pipe.scheduler).augment

    def recorded(scheduler, latents, noise):
        noises.append(noise)
        return augment(scheduler, latents, noise)

    monkeypatch.setattr(type(pipe.scheduler), "augment", recorded)
    settings = PredictionSettings(ensemble_size=2, processing_resolution=0, batch_size=2)
    predict_with_uncertainty(pipe, image.resize((61, 43)), settings)
    ((plain, mirrored),), (noise,) = seen, noises
    assert plain.shape[-1] == 64
    assert (plain[..., 60:] == plain[..., 60:61]).all(), "three columns of padding on the right"
    torch.testing.assert_close(mirrored, plain.flip(-1))
    torch.testing.assert_close(noise[2:], noise[:2].flip(-1))


def test_without_noise_the_mirror_image_has_the_mirrored_maps(pipe, image):
    pipe.register_modules(scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config, noise_augmentation_step=0))
    settings = PredictionSettings(num_inference_steps=1, processing_resolution=0)
    found, mirrored = (predict_with_uncertainty(pipe, one, settings) for one in (image, ImageOps.mirror(image)))
    for name in ("log_depth", "uncertainty"):
        np.testing.assert_allclose(getattr(mirrored, name)[:, ::-1], getattr(found, name), atol=1e-5)
    plain = pipe(image, num_inference_steps=1, processing_resolution=0).log_depth[0, ..., 0]
    np.testing.assert_allclose(2 * found.log_depth - plain, predict_mirrored(pipe, image, settings), atol=1e-5)


def predict_mirrored(pipe, image, settings):
    """The log depth of the mirror image, mirrored back."""
    return predict_image(pipe, ImageOps.mirror(image), settings).log_depth[:, ::-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "dropout", "settings": SETTINGS}, "`method` must be one of"),
        ({"method": "ensemble", "settings": PredictionSettings()}, "ensemble_size"),
    ],
)
def test_what_is_refused(pipe, image, arguments, message):
    with pytest.raises(ValueError, match=message):
        predict_with_uncertainty(pipe, image, **arguments)


def test_several_images_are_refused(pipe, image):
    with pytest.raises(ValueError, match="must be one image, got 2"):
        predict_with_uncertainty(pipe, [image, image], SETTINGS)
