"""`training/data/draws.py`: the distributions of what is drawn for each sample."""

from __future__ import annotations

import numpy as np
import pytest

from depthfm_diffusers.training.data.draws import TimeDistribution


def test_times_follow_their_distribution():
    rng = np.random.default_rng(0)
    uniform = np.array([TimeDistribution().sample(rng) for _ in range(4000)])
    assert abs(uniform.mean() - 0.5) < 0.02
    assert uniform.min() >= 0
    assert uniform.max() < 1
    early = np.array([TimeDistribution("logit_normal", mean=-1.0).sample(rng) for _ in range(4000)])
    assert np.median(early) == pytest.approx(1 / (1 + np.e), abs=0.02)
    at_start = np.array([TimeDistribution(start_share=0.75).sample(rng) for _ in range(4000)]) == 0
    assert abs(at_start.mean() - 0.75) < 0.03
    with pytest.raises(ValueError, match="share of t = 0"):
        TimeDistribution(start_share=1.5)
    with pytest.raises(ValueError, match="distribution of t"):
        TimeDistribution("normal")
    with pytest.raises(ValueError, match="standard deviation"):
        TimeDistribution("logit_normal", std=0.0)
