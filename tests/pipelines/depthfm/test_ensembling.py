"""Mean and aligned spread of an ensemble."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.pipelines.depthfm.ensembling import ensemble_log_depth, ensemble_uncertainty


def smooth_map(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 9, generator=torch.Generator().manual_seed(seed))


def test_the_ensemble_is_the_plain_mean():
    members = torch.stack([torch.zeros(2, 3), torch.full((2, 3), 3.0), torch.full((2, 3), 6.0)])
    assert torch.equal(ensemble_log_depth(members), torch.full((2, 3), 3.0))
    assert ensemble_log_depth(members[:, None]).shape == (1, 2, 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(-10, 10)), min_size=2, max_size=6))
def test_affine_copies_have_no_uncertainty(coefficients):
    """Positive scale and any shift are aligned away, up to rounding (1e-5 of the values)."""
    members = torch.stack([scale * smooth_map() + shift for scale, shift in coefficients])
    assert ensemble_uncertainty(members).max() < 1e-5 * members.abs().max()


def test_uncertainty_does_not_depend_on_the_members_own_scale_and_shift():
    """Only the common scale, the mean of the members' spreads, matters."""
    members = torch.stack([smooth_map(seed) for seed in range(4)])
    scales = torch.tensor([0.5, 1.0, 2.0, 4.0]).view(4, 1, 1)
    changed = members * scales + torch.arange(4.0).view(4, 1, 1)
    spread = members.std(dim=(1, 2), correction=0)
    factor = (spread * scales.flatten()).mean() / spread.mean()
    torch.testing.assert_close(ensemble_uncertainty(changed), ensemble_uncertainty(members) * factor)


def test_uncertainty_of_two_known_members():
    """Already aligned (mean 0, standard deviation 1): the standard deviation of +-1 is sqrt(2), of equals 0."""
    a = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    b = torch.tensor([[1.0, -1.0, -1.0, 1.0]])
    expected = torch.tensor([[0.0, 0.0, 2**0.5, 2**0.5]])
    torch.testing.assert_close(ensemble_uncertainty(torch.stack([a, b])), expected)


def test_uncertainty_is_where_the_members_differ():
    members = smooth_map().repeat(5, 1, 1)
    members[:, 2, 3] += torch.linspace(-1, 1, 5)
    uncertainty = ensemble_uncertainty(members)
    assert uncertainty.argmax() == 2 * 9 + 3
    assert uncertainty[2, 3] > 3 * uncertainty.median()


def test_constant_members_are_no_division_by_zero():
    constants = torch.tensor([1.0, 2.0, 0.1]).view(3, 1, 1).expand(3, 5, 5)
    assert torch.equal(ensemble_uncertainty(constants), torch.zeros(5, 5))
    mixed = torch.stack([torch.full((6, 9), 0.3), smooth_map()])
    assert torch.isfinite(ensemble_uncertainty(mixed)).all()


def test_shape_and_dtype_follow_the_members():
    members = torch.stack([smooth_map(0), smooth_map(1)])[:, None]
    assert ensemble_uncertainty(members).shape == (1, 6, 9)
    assert ensemble_uncertainty(members.half()).dtype == torch.float32
    assert ensemble_uncertainty(members.double()).dtype == torch.float64


def test_wrong_members_are_refused():
    with pytest.raises(ValueError, match="at least 2"):
        ensemble_uncertainty(torch.zeros(1, 4, 4))
    for shape in [(4, 4), (2, 3, 4, 4), (0, 4, 4), (2, 0, 4)]:
        with pytest.raises(ValueError, match="`members`"):
            ensemble_log_depth(torch.zeros(shape))
