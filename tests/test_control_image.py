"""The control image: polarity, normalisation, and what becomes of odd maps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from depthfm_diffusers.control_image import CONTROL_MODES, control_image_from_log_depth

MIN_MAX = (0.0, 100.0)


def control(values: object, mode: str = "disparity", percentiles: tuple[float, float] = MIN_MAX) -> torch.Tensor:
    """First channel of the control image of one map, H×W."""
    log_depth = torch.as_tensor(np.asarray(values, dtype=np.float32))[None, None]
    return control_image_from_log_depth(log_depth, mode, percentiles)[0, 0]


def test_polarity_of_a_known_scene():
    """Depths of 1, 2 and 4 metres: disparities 1, 1/2 and 1/4, of which the nearest is white."""
    log_depth = np.log([[1.0, 2.0, 4.0]])
    np.testing.assert_allclose(control(log_depth)[0], [1.0, 1 / 3, 0.0], atol=1 / 510)
    np.testing.assert_allclose(control(log_depth, "depth")[0], [0.0, 1 / 3, 1.0], atol=1 / 510)


def test_default_is_what_depth_controlnets_are_trained_on():
    log_depth = torch.linspace(-1, 1, 100).reshape(1, 1, 10, 10)
    image = control_image_from_log_depth(log_depth)
    assert image[0, 0, 0, 0] == 1, "near is white"
    assert image[0, 0, -1, -1] == 0, "far is black"


def test_percentiles_are_those_of_the_quantity_shown():
    log_depth = torch.log(torch.arange(1.0, 102.0)).reshape(1, 1, 1, 101)
    low, high = 11.0, 91.0  # the depths at 10 % and 90 %
    expected = ((torch.arange(1.0, 102.0) - low) / (high - low)).clamp(0, 1)
    torch.testing.assert_close(
        control_image_from_log_depth(log_depth, "depth", (10, 90))[0, 0, 0], expected, rtol=0, atol=1 / 510 + 1e-5
    )


def test_outliers_do_not_darken_the_rest():
    log_depth = np.linspace(0, 1, 1000).reshape(20, 50)
    log_depth[0, 0] = -20  # a speck right in front of the camera
    assert control(log_depth)[1:].max() < 0.01
    assert control(log_depth, percentiles=(2.0, 98.0))[1:].max() > 0.9


def test_each_map_is_normalised_by_itself():
    maps = torch.stack([torch.linspace(0, 1, 20), torch.linspace(3, 30, 20)]).reshape(2, 1, 4, 5)
    together = control_image_from_log_depth(maps)
    for i in range(2):
        assert torch.equal(together[i : i + 1], control_image_from_log_depth(maps[i : i + 1]))


@pytest.mark.parametrize("mode", CONTROL_MODES)
@pytest.mark.parametrize("value", [0.0, -1.0, 1.0, 88.8, -2000.0])
def test_constant_maps_are_black(mode, value):
    assert (control(np.full((3, 4), value), mode) == 0).all()


@pytest.mark.parametrize("mode", CONTROL_MODES)
def test_rounding_of_a_constant_map_is_not_a_relief(mode):
    log_depth = np.full((4, 4), 7.3, np.float32)
    log_depth[1, 2] = np.nextafter(log_depth[1, 2], np.float32(np.inf))
    assert (control(log_depth, mode) == 0).all()


def test_equal_percentiles_of_a_map_that_is_not_constant():
    log_depth = np.zeros((10, 10))
    log_depth[3, 3] = -1  # 1 % of the pixels are nearer
    expected = np.zeros((10, 10))
    expected[3, 3] = 1
    np.testing.assert_array_equal(control(log_depth, percentiles=(2, 98)), expected)


@settings(deadline=None, max_examples=60)
@given(
    arrays(np.float32, (4, 5), elements=st.floats(-4, 4, width=32)),
    st.sampled_from(CONTROL_MODES),
    st.sampled_from([MIN_MAX, (2.0, 98.0), (2.0, 85.0)]),
    st.floats(-5, 5),
)
def test_properties(values, mode, percentiles, shift):
    image = control(values, mode, percentiles)
    assert image.min() >= 0
    assert image.max() <= 1
    assert torch.equal(image * 255, (image * 255).round())
    in_order = image.flatten()[np.argsort(values, axis=None, kind="stable")]
    steps = in_order.diff() * (1 if mode == "depth" else -1)
    assert (steps >= 0).all(), "the order of depths is kept"
    # The unit of the depth does not matter. Rounding in the shift is 5e-7, and so is the noise in a range of 1e-2.
    if np.ptp(values) > 0.05 and percentiles == MIN_MAX:
        assert image.max() == 1
        assert image.min() == 0
        moved = control(values + np.float32(shift), mode, percentiles)
        assert (moved - image).abs().max() <= 1.01 / 255


@settings(deadline=None, max_examples=30)
@given(arrays(np.float32, (3, 3), elements=st.floats(-1e4, 1e4, width=32)), st.sampled_from(CONTROL_MODES))
def test_no_range_overflows(values, mode):
    image = control(values, mode)
    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1


def test_more_pixels_than_torch_takes_quantiles_of():
    log_depth = torch.linspace(0, 1, 2**24 + 64).reshape(1, 1, 64, -1)
    image = control_image_from_log_depth(log_depth)
    assert (image[0, 0, 0, 0], image[0, 0, -1, -1]) == (1, 0)


def test_shape_dtype_and_grey():
    image = control_image_from_log_depth(torch.rand(2, 1, 3, 4, dtype=torch.float16))
    assert image.shape == (2, 3, 3, 4)
    assert image.dtype == torch.float32
    assert torch.equal(image[:, 0], image[:, 2])


def test_no_gradient_goes_through_it():
    log_depth = torch.linspace(0, 1, 20).reshape(1, 1, 4, 5)
    image = control_image_from_log_depth(log_depth.clone().requires_grad_())
    assert not image.requires_grad
    assert torch.equal(image, control_image_from_log_depth(log_depth))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_depth": torch.zeros(3, 4)}, r"N×1×H×W.*\(3, 4\)"),
        ({"log_depth": torch.zeros(1, 3, 4, 4)}, "N×1×H×W"),
        ({"log_depth": torch.zeros(1, 1, 0, 4)}, "at least one pixel"),
        ({"log_depth": torch.full((1, 1, 2, 2), math.nan)}, "NaN or infinite"),
        ({"log_depth": torch.full((1, 1, 2, 2), -math.inf)}, "NaN or infinite"),
        ({"control_mode": "inverse"}, "`control_mode` must be one of .*'disparity', 'depth'.* got 'inverse'"),
        ({"percentiles": (98, 2)}, r"0 <= low < high <= 100, got \(98, 2\)"),
        ({"percentiles": (0, 101)}, "low < high <= 100"),
        ({"percentiles": (50,)}, "two numbers"),
        ({"percentiles": 98}, "two numbers, .* got 98"),
        ({"percentiles": ("low", "high")}, "two numbers"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        control_image_from_log_depth(**{"log_depth": torch.zeros(1, 1, 2, 2), **arguments})
