"""docs/results.md says what the result files say, and these come from the scripts as they are."""

from __future__ import annotations

import importlib
import json

import experiment
import pytest
from helpers.repository import ROOT

PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
CLAIMS = (
    "start_from_image",
    "normals_loss",
    "flow_or_diffusion",
    "ensemble_size",
    "noise_augmentation",
    "resolution",
    "solvers",
)


def results(claim: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "paper" / "results" / f"{claim}.json").read_text())


@pytest.mark.parametrize("claim", CLAIMS)
def test_tables_are_those_of_the_result_files(claim):
    script = importlib.import_module(claim)
    assert experiment.table(results(claim)["rows"], **script.TABLE) in PAGE
    assert f"results/{claim}.png" in PAGE
    assert f"benchmarks/paper/{claim}.py" in PAGE


@pytest.mark.parametrize("claim", ["start_from_image", "normals_loss", "flow_or_diffusion"])
def test_the_first_three_claims_have_three_seeds(claim):
    rows = results(claim)["rows"]
    for run in {row["run"] for row in rows}:
        assert {row["seed"] for row in rows if row["run"] == run} == {0, 1, 2}


@pytest.mark.parametrize("claim", CLAIMS)
def test_all_had_the_same_budget(claim):
    settings = results(claim)["settings"]
    assert (settings["steps"], settings["batch_size"], settings["max_frames"]) == (1000, 16, None)
