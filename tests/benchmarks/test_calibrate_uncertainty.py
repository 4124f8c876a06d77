"""The uncertainty's measurement: its page says what its file says, and its parts are right."""

from __future__ import annotations

import json

import calibrate_uncertainty
import numpy as np
import pytest
from helpers.repository import ROOT

from depthfm_diffusers.uncertainty import UncertaintyCalibration


def test_the_page_has_the_table_of_the_file():
    record = json.loads((ROOT / "benchmarks" / "quality" / "results" / "uncertainty.json").read_text())
    page = (ROOT / "docs" / "uncertainty.md").read_text(encoding="utf-8")
    assert calibrate_uncertainty.table(record["results"]) in page
    assert f"{record['frames']['scored']} frames" in page


def test_an_expected_error_that_is_right_lies_on_the_diagonal():
    draw = np.random.default_rng(0)
    spread = draw.uniform(0.1, 0.4, (4, 30, 40)).astype(np.float32)
    error = 0.5 * spread.astype(np.float64)
    valid = np.ones((30, 40), dtype=bool)
    frames = [calibrate_uncertainty.ScoredFrame(str(i), spread[i], error[i], valid) for i in range(4)]
    found = calibrate_uncertainty.evaluate(frames, UncertaintyCalibration(0.5, 1.0))
    assert found["calibration_error"] < 1e-6
    assert found["ause"] == pytest.approx(0, abs=1e-9)
    assert found["rank_correlation"] == pytest.approx(1)
    assert found["ause_of_random"] > 0.1
