"""Errors at edges: the soft edge error, and AbsRel near edges and away from them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthfm_diffusers.evaluation import edge_errors

NAMES = ["see3", "see5", "see7", "abs_rel_edges", "abs_rel_away"]


def post(shift: int = 0, width: int = 40) -> np.ndarray:
    """A wall at 4 m, with a post at 2 m from column 16 to 23, both moved by `shift` columns."""
    depth = np.full((12, width), 4.0)
    depth[:, 16 + shift : 24 + shift] = 2.0
    return depth


def errors(depth: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    return edge_errors(depth, truth, truth > 0)


def test_an_edge_that_is_off_costs_less_than_one_that_is_blurred():
    truth, blurred = post(), post()
    for column in (15, 16, 23, 24):
        blurred[:, column] = 3.0
    assert errors(truth, truth) == dict.fromkeys(NAMES, 0.0)
    off = errors(post(1), truth)
    assert (off["see3"], off["see5"], off["see7"]) == (0, 0, 0)
    # Columns 16 (4 m in place of 2 m) and 24 (2 m in place of 4 m), of the columns 12 to 27.
    assert off["abs_rel_edges"] == pytest.approx((1.0 + 0.5) / 16)
    assert off["abs_rel_away"] == 0
    # All four columns at edges have 3 m, 25 % off the wall, which is nearer in relation than the post.
    soft = errors(blurred, truth)
    assert [soft[name] for name in NAMES[:3]] == pytest.approx([0.25] * 3)


def test_the_square_limits_how_far_an_edge_may_be_off():
    truth = np.full((12, 40), 4.0)
    truth[:, 16:18] = 2.0
    truth[:, 18:] = 8.0
    found = errors(np.full_like(truth, 8.0), truth)
    # Of the four columns at edges, 15 to 18, so many do not see the 8 m that begin in column 18; for them it is 4 m.
    assert [found[name] for name in NAMES[:3]] == pytest.approx([2 / 4, 1 / 4, 0])


def test_away_from_edges():
    truth = post()
    depth = truth.copy()
    depth[:, :12] *= 1.5
    found = errors(depth, truth)
    # Columns up to 12 and from 27 on are more than three columns from those at edges (15, 16, 23, 24).
    assert found["abs_rel_away"] == pytest.approx(0.5 * 12 / (12 + 12))
    assert found["abs_rel_edges"] == 0


def test_without_edges_there_is_nothing_to_measure_there():
    slope = np.linspace(1, 9, 40)[None].repeat(12, 0)
    found = errors(slope * 1.1, slope)
    assert np.isnan([found[name] for name in NAMES[:4]]).all()
    assert found["abs_rel_away"] == pytest.approx(0.1)
    noise = np.random.default_rng(0).uniform(1, 9, (12, 12))
    assert np.isnan(errors(noise, noise)["abs_rel_away"])


def test_unknown_depth_makes_no_edge():
    truth = post()
    truth[:, 15] = truth[:, 24] = 0
    assert np.isnan(errors(post(), truth)["see3"])


@given(seed=st.integers(0, 999), scale=st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_against_the_definition(seed, scale):
    """A batch with holes, pixel by pixel; a common scale changes nothing."""
    rng = np.random.default_rng(seed)
    depth, truth = rng.uniform(1, 2, (2, 2, 9, 8))
    valid = rng.random(truth.shape) < 0.8
    found = edge_errors(depth * scale, truth * scale, valid)
    for image in range(2):
        d, t, v = depth[image], truth[image], valid[image]
        pixels = [(int(y), int(x)) for y, x in np.argwhere(v)]

        def beside(y, x, pixels=pixels):
            return [p for p in ((y, x - 1), (y, x + 1), (y - 1, x), (y + 1, x)) if p in pixels]

        edges = [p for p in pixels if any(max(t[p] / t[q], t[q] / t[p]) > 1.25 for q in beside(*p))]

        def around(p, k, pixels):
            return [q for q in pixels if max(abs(p[0] - q[0]), abs(p[1] - q[1])) <= k // 2]

        for k in (3, 5, 7):
            smallest = [min(abs(d[p] - t[q]) / t[q] for q in around(p, k, pixels)) for p in edges]
            assert found[f"see{k}"][image] == pytest.approx(np.mean(smallest), rel=1e-9)
        near = [p for p in pixels if around(p, 7, edges)]
        assert found["abs_rel_edges"][image] == pytest.approx(
            np.mean([abs(d[p] - t[p]) / t[p] for p in near]), rel=1e-9
        )


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="must have one shape"):
        edge_errors(np.ones((2, 3)), np.ones((3, 2)), np.ones((3, 2), bool))
