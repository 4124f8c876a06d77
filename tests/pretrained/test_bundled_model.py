"""The model in the package: what it is made of, and that it sees.

`tests/data/row_prior.npy` is the mean normalised log depth of each image row of its training set, written by
`benchmarks/quality/evaluate_bundled_model.py --row_prior`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from evaluate_bundled_model import motorcycle, spread_rows
from helpers.components import DATA
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, default_model_path
from depthfm_diffusers.training.validation.depth_validation import score_log_depth


@pytest.fixture(scope="module")
def bundled() -> DepthFMPipeline:
    pipe = DepthFMPipeline.from_pretrained(default_model_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_is_float16_on_disk_float32_in_memory_and_names_no_path(bundled):
    assert bundled.dtype == torch.float32
    for path in default_model_path().rglob("*.json"):
        assert json.loads(path.read_text()).get("_name_or_path", "") == ""
    weights = sum(path.stat().st_size for path in default_model_path().rglob("*.safetensors"))
    parameters = sum(p.numel() for c in (bundled.unet, bundled.vae) for p in c.parameters())
    assert 2 * parameters <= weights <= 40e6


def test_it_beats_both_baselines_on_a_real_photograph(bundled):
    """The motorcycle pair, AbsRel at 1 step; aligned in depth and in log depth."""
    pair = motorcycle()
    height, width = pair.depth.shape
    prior = np.load(DATA / "row_prior.npy")
    generator = torch.Generator().manual_seed(0)
    output = bundled(Image.fromarray(pair.image), num_inference_steps=1, ensemble_size=4, generator=generator)
    model = score_log_depth(output.log_depth[0, ..., 0], pair.depth)
    constant = score_log_depth(np.zeros((height, width)), pair.depth)
    row_prior = score_log_depth(spread_rows(prior, height, width), pair.depth)
    for measure in ("abs_rel_depth", "abs_rel_log"):
        assert model[measure] < 0.95 * row_prior[measure]
        assert model[measure] < 0.75 * constant[measure]


def test_a_mirrored_photograph_gives_a_mirrored_depth(bundled):
    """A model that ignored the image, or its left and right, would fail: correlation of the two maps."""
    photo = Image.open(DATA.parent.parent / "examples" / "coffee.png").convert("RGB")
    maps = [
        bundled(image, ensemble_size=2, generator=torch.Generator().manual_seed(0)).log_depth[0, ..., 0]
        for image in (photo, photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    ]
    flat = [maps[0].ravel(), maps[1][:, ::-1].ravel()]
    assert np.corrcoef(flat)[0, 1] > 0.9
    assert np.corrcoef(maps[0].ravel(), maps[1].ravel())[0, 1] < np.corrcoef(flat)[0, 1]
