"""Depth adherence: the measure on known maps, and runs over images on tiny real components."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from controlnet_parts import build_image, build_pipelines
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from depthfm_diffusers import DepthFMControlNetPipeline
from depthfm_diffusers.evaluation import adherence_run, depth_adherence
from depthfm_diffusers.evaluation.adherence import CONDITIONS, AdherenceSettings, AdherenceTest, draw_partners
from depthfm_diffusers.evaluation.adherence_run import PromptedImage, format_adherence, run_adherence

FAST = {"num_inference_steps": 2, "guidance_scale": 2.0}


def scene(seed: int = 0, height: int = 24, width: int = 32) -> np.ndarray:
    """A log depth with a receding floor and a near box."""
    rng = np.random.default_rng(seed)
    log_depth = np.linspace(1, -1, height)[:, None].repeat(width, 1)
    top, left = rng.integers(2, height // 2), rng.integers(2, width // 2)
    log_depth[top : top + 9, left : left + 11] = -1.1
    return log_depth.astype(np.float32)


# The measure.


def test_the_same_depth_is_perfect():
    scores = depth_adherence(scene(), scene())
    assert scores == {"abs_rel": pytest.approx(0, abs=1e-12), "delta1": 1.0, "boundary_f1": pytest.approx(1.0)}


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 20))
def test_scale_and_shift_of_the_estimate_do_not_matter(scale, shift, seed):
    rng = np.random.default_rng(seed)
    found = scene(seed) + rng.normal(0, 0.1, scene().shape).astype(np.float32)
    plain = depth_adherence(scene(), found.astype(np.float64))
    moved = depth_adherence(scene(), found.astype(np.float64) * scale + shift)
    assert moved["abs_rel"] == pytest.approx(plain["abs_rel"], rel=1e-6)
    assert moved["delta1"] == pytest.approx(plain["delta1"], abs=0.01)
    assert moved["boundary_f1"] == pytest.approx(plain["boundary_f1"], abs=0.01)


def test_known_value():
    """Half of the pixels fit, half are e times as far after the best fit: worked out by hand.

    Control 0 everywhere but for two pixels at ±1; an estimate that is 0 leaves scale 0 and shift 0: AbsRel is the mean
    of |1 - e^c| / e^c over the pixels.
    """
    control = np.zeros((4, 4))
    control[0, 0], control[1, 1] = 1.0, -1.0
    scores = depth_adherence(control, np.zeros((4, 4)))
    assert scores["abs_rel"] == pytest.approx(((1 - np.exp(-1)) + (np.e - 1)) / 16)
    assert scores["delta1"] == pytest.approx(14 / 16)
    assert scores["boundary_f1"] == 0


def test_worse_the_less_it_follows():
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1, scene().shape).astype(np.float32)
    errors = [depth_adherence(scene(), scene() + share * noise)["abs_rel"] for share in (0, 0.1, 0.3, 1.0)]
    assert errors == sorted(errors)
    assert depth_adherence(scene(0), scene(7))["abs_rel"] > 0.05


def test_a_control_without_edges_has_no_edge_score():
    smooth = np.linspace(0, 0.1, 24 * 32).reshape(24, 32)
    assert np.isnan(depth_adherence(smooth, scene())["boundary_f1"])


@pytest.mark.parametrize(
    ("control", "found", "message"),
    [
        (np.zeros((4, 5)), np.zeros((5, 4)), r"must be H×W of one size, got the shapes \(4, 5\) and \(5, 4\)"),
        (np.zeros((1, 4, 5)), np.zeros((1, 4, 5)), "must be H×W"),
        (np.full((4, 5), np.nan), np.zeros((4, 5)), "`control_log_depth` holds NaN"),
        (np.zeros((4, 5)), np.full((4, 5), np.inf), "non-finite"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(control, found, message):
    with pytest.raises(ValueError, match=message):
        depth_adherence(control, found)


@given(count=st.integers(2, 60), seed=st.integers(0, 1000))
def test_nobody_is_shuffled_with_itself(count, seed):
    partners = draw_partners(count, seed)
    assert sorted(partners) == list(range(count))
    assert all(partner != i for i, partner in enumerate(partners))
    assert partners == draw_partners(count, seed)


# Runs.


@pytest.fixture(scope="module")
def pipe() -> DepthFMControlNetPipeline:
    return build_pipelines()[0]


@pytest.fixture
def images(tmp_path) -> list[PromptedImage]:
    found = []
    for i in range(3):
        path = tmp_path / f"photo{i}.png"
        build_image(i).save(path)
        found.append(PromptedImage(path.name, path, "a" * i))
    return found


def run(pipe, images, output, **settings):
    return run_adherence(pipe, images, AdherenceSettings(**{**FAST, **settings}), output, {"base": "tiny"})


def without_times(path) -> dict:
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "time"}


def test_report(pipe, images, tmp_path):
    report = run_adherence(
        pipe, images, AdherenceSettings(**FAST), tmp_path / "new" / "r.json", {"base": "tiny"}, tmp_path / "r.png"
    )
    assert json.loads((tmp_path / "new" / "r.json").read_text()) == report
    assert not (tmp_path / "new" / "r.partial").exists()
    assert set(report["mean"]) == {"photo", *CONDITIONS}
    first = report["per_image"][1]
    assert first["prompt"] == "a"
    assert first["seed"] == 1
    assert first["shuffled_with"] != first["key"]
    for condition in ("photo", *CONDITIONS):
        column = [one[condition]["abs_rel"] for one in report["per_image"]]
        assert report["mean"][condition]["abs_rel"] == pytest.approx(np.mean(column))
        assert min(column) > 0
    better = [one["depth"]["abs_rel"] < one["none"]["abs_rel"] for one in report["per_image"]]
    assert report["wins"]["none"] == np.mean(better)
    assert report["settings"]["weights"]["controlnet"] != report["settings"]["weights"]["unet"]
    sheet = Image.open(tmp_path / "r.png")
    assert sheet.width > 8 * 320
    text = format_adherence(report)
    assert "generated with its depth" in text
    assert f"{report['mean']['none']['abs_rel']:.3f}" in text


def test_two_runs_say_the_same(pipe, images, tmp_path):
    run(pipe, images, tmp_path / "a.json")
    run(pipe, images, tmp_path / "b.json")
    assert without_times(tmp_path / "a.json") == without_times(tmp_path / "b.json")


def test_a_stopped_run_goes_on(pipe, images, tmp_path):
    run(pipe, images, tmp_path / "whole.json")
    steps = []

    def stop(done: int, total: int) -> None:
        steps.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    settings = AdherenceSettings(**FAST)
    with pytest.raises(KeyboardInterrupt):
        run_adherence(pipe, images, settings, tmp_path / "r.json", {"base": "tiny"}, on_progress=stop)
    assert not (tmp_path / "r.json").exists()
    assert (tmp_path / "r.partial").is_dir()
    with pytest.raises(ValueError, match=r"results of another evaluation.*settings\.seed"):
        run(pipe, images, tmp_path / "r.json", seed=3)
    steps.clear()
    run_adherence(
        pipe, images, settings, tmp_path / "r.json", {"base": "tiny"}, on_progress=lambda *s: steps.append(s)
    )
    assert steps == [(2, 3), (3, 3)]
    assert without_times(tmp_path / "r.json") == without_times(tmp_path / "whole.json")


def test_conditions_are_what_they_say(pipe):
    """With: as the pipeline makes it of that depth. Without: Stable Diffusion alone, of the same noise. To the bit."""
    test = AdherenceTest(pipe, AdherenceSettings(**FAST, seed=5))
    own, other = test.log_depth(build_image(0)), test.log_depth(build_image(4))
    arguments = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "np"}

    def seeded() -> torch.Generator:
        return torch.Generator().manual_seed(5 + 2)

    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    plain = StableDiffusionPipeline(**{n: getattr(pipe, n) for n in names}, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    alone = plain("a", height=48, width=64, generator=seeded(), **arguments).images[0]
    assert np.array_equal(test.generate("none", "a", 2, own, None)[0], alone)
    unmoved = pipe("a", log_depth=own, controlnet_conditioning_scale=0.0, generator=seeded(), **arguments).images[0]
    assert np.array_equal(alone, unmoved)
    with_own = pipe("a", log_depth=own, generator=seeded(), **arguments).images[0]
    assert np.array_equal(test.generate("depth", "a", 2, own, None)[0], with_own)
    with_other = pipe("a", log_depth=other, generator=seeded(), **arguments).images[0]
    assert np.array_equal(test.generate("shuffled", "a", 2, own, other)[0], with_other)
    assert not np.array_equal(with_own, with_other)


def test_images_of_odd_and_several_sizes(pipe, tmp_path):
    """Sides are cut to whole latents, estimates are brought back to the photo's size."""
    images = []
    for i, size in enumerate([(64, 48), (51, 77)]):
        build_image(i, size).save(tmp_path / f"{i}.png")
        images.append(PromptedImage(f"{i}", tmp_path / f"{i}.png", ""))
    report = run(pipe, images, tmp_path / "r.json")
    assert report["images"] == 2


def test_conditions_can_be_left_out(pipe, images, tmp_path):
    report = run(pipe, images[:1], tmp_path / "r.json", conditions=("depth", "none"))
    assert set(report["mean"]) == {"photo", "depth", "none"}
    assert set(report["wins"]) == {"none"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ("depth", "noise")}, "`conditions` must be one or more of"),
        ({"conditions": ()}, "`conditions` must be one or more of"),
        ({"control_mode": "log"}, "`control_mode` must be one of"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be at least 1"),
        ({"seed": -1}, "`seed` must be 0 or more"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AdherenceSettings(**settings)


def test_bad_images_are_refused(pipe, images, tmp_path):
    with pytest.raises(ValueError, match="'shuffled' needs two images"):
        run(pipe, images[:1], tmp_path / "r.json")
    with pytest.raises(ValueError, match=r"Two images are called 'photo0\.png'"):
        run(pipe, [images[0], images[0]], tmp_path / "r.json")
    with pytest.raises(ValueError, match="There is no image"):
        run(pipe, [], tmp_path / "r.json", conditions=("depth",))
    assert not list(tmp_path.glob("*.partial"))
    images[1].path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"image 'photo1\.png'"):
        run(pipe, images, tmp_path / "r.json")


def test_flagged_images_are_said():
    entry = {"key": "a", "flagged": {"depth": True}, "photo": {}, "depth": {}}
    for condition in ("photo", "depth"):
        entry[condition] = {"abs_rel": 0.1, "delta1": 0.9, "boundary_f1": None}
    report = adherence_run.build_adherence_report([entry], ["depth"]) | {"per_image": [entry]}
    text = format_adherence(report)
    assert "1 images were blackened" in text
    assert report["mean"]["depth"]["boundary_f1"] is None
