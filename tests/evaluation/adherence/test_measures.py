"""Depth adherence: the measure on known maps, and runs over images on tiny real components."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.controlnet import pipeline_controlnet
from helpers.controlnet_parts import build_image, build_pipelines
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from depthfm_diffusers import DepthFMControlNetPipeline
from depthfm_diffusers.evaluation import depth_adherence
from depthfm_diffusers.evaluation.adherence.images import PromptedImage
from depthfm_diffusers.evaluation.adherence.measures import (
    AdherenceSettings,
    AdherenceTest,
    aligned_depths,
    draw_partners,
)
from depthfm_diffusers.evaluation.adherence.report import build_adherence_report, format_adherence
from depthfm_diffusers.evaluation.adherence.run import run_adherence
from depthfm_diffusers.evaluation.choices import CONDITIONS
from depthfm_diffusers.image_processing import load_images
from depthfm_diffusers.inference.prediction import PredictionSettings
from depthfm_diffusers.pipelines.depthfm import pipeline_depthfm
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_noise import depth_seed

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
    perfect = {"abs_rel": 0, "delta1": 1, "boundary_f1": 1, "correlation": 1}
    assert scores == {name: pytest.approx(value, abs=1e-12) for name, value in perfect.items()}


@given(scale=st.floats(0.1, 10), shift=st.floats(-5, 5), seed=st.integers(0, 20))
@hypothesis_settings(deadline=None, max_examples=40)
def test_scale_and_shift_of_the_estimate_do_not_matter(scale, shift, seed):
    rng = np.random.default_rng(seed)
    found = scene(seed) + rng.normal(0, 0.1, scene().shape).astype(np.float32)
    plain = depth_adherence(scene(), found.astype(np.float64))
    moved = depth_adherence(scene(), found.astype(np.float64) * scale + shift)
    assert moved["abs_rel"] == pytest.approx(plain["abs_rel"], rel=1e-6)
    assert moved["delta1"] == pytest.approx(plain["delta1"], abs=0.01)
    assert moved["boundary_f1"] == pytest.approx(plain["boundary_f1"], abs=0.01)
    assert moved["correlation"] == pytest.approx(plain["correlation"], abs=1e-9)


@pytest.mark.parametrize("shift", [-12, 12])
def test_the_unit_of_the_control_does_not_matter(shift):
    """Depth in millimetres or kilometres: alignment clips depth near 0, which no unit may bring about."""
    found = scene() + np.random.default_rng(0).normal(0, 0.1, scene().shape)
    plain, moved = depth_adherence(scene(), found), depth_adherence(scene() + np.float64(shift), found)
    assert moved == pytest.approx(plain, rel=1e-6)


@pytest.mark.parametrize("generated", [-scene(), -2 * scene() + 1])
def test_swapping_near_and_far_is_no_adherence(generated):
    """Least squares would give it a negative scale, and perfect scores."""
    scores = depth_adherence(scene(), generated)
    nothing = depth_adherence(scene(), np.zeros(scene().shape, np.float32))
    assert scores["correlation"] == pytest.approx(-1)
    assert {**scores, "correlation": 0} == {**nothing, "correlation": 0}
    assert scores["abs_rel"] > 0.3
    assert scores["boundary_f1"] == 0


def test_maps_of_two_sizes_are_compared_at_that_of_the_generated_image():
    large = scene().repeat(2, 0).repeat(2, 1)
    truth, depth = aligned_depths(large, scene())
    assert truth.shape == depth.shape == scene().shape
    assert truth.min() == 1
    assert depth_adherence(large, scene())["abs_rel"] < 0.03
    assert depth_adherence(large, scene(7))["abs_rel"] > 0.05


@pytest.mark.parametrize("value", [0.0, -1.7, 300.0])
def test_a_control_without_relief_has_no_score(value):
    """Constant up to the last digit, as resizing leaves it: there is nothing to follow, so nothing is followed."""
    control = np.full((24, 32), value, np.float32)
    control[3, 4] = np.nextafter(control[3, 4], np.float32(np.inf))
    assert all(np.isnan(score) for score in depth_adherence(control, scene()).values())


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
        (np.zeros((1, 4, 5)), np.zeros((4, 5)), r"`control_log_depth` must be H×W .* \(1, 4, 5\)"),
        (np.zeros((4, 5)), np.zeros((0, 5)), r"`generated_log_depth` must be H×W with at least one pixel"),
        (np.full((4, 5), np.nan), np.zeros((4, 5)), "`control_log_depth` holds NaN"),
        (np.zeros((4, 5)), np.full((4, 5), np.inf), "`generated_log_depth` holds NaN or infinite"),
        (np.array([[0.0, 900.0]]), np.zeros((1, 2)), "differ by more than 700"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused(control, found, message):
    with pytest.raises(ValueError, match=message):
        depth_adherence(control, found)


@given(count=st.integers(2, 60), seed=st.integers(0, 1000))
@hypothesis_settings(deadline=None)
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
    return write_images(tmp_path)


def write_images(folder: Path) -> list[PromptedImage]:
    found = []
    for i in range(3):
        path = folder / f"photo{i}.png"
        build_image(i).save(path)
        found.append(PromptedImage(path.name, path, "a" * i))
    return found


def settings_of(seed: int = 0, depth_num_inference_steps: int | None = None, **settings) -> AdherenceSettings:
    depth = PredictionSettings(num_inference_steps=depth_num_inference_steps, seed=seed)
    return AdherenceSettings(**{**FAST, **settings}, depth=depth)


def run(pipe, images, output, **settings):
    return run_adherence(pipe, images, settings_of(**settings), output, {"base": "tiny"})


@pytest.fixture(scope="module")
def finished(pipe, tmp_path_factory) -> tuple[dict, Path]:
    """The report of a run that nothing stopped, and the folder that it left: `new/r.json` and `r.png`."""
    folder = tmp_path_factory.mktemp("finished")
    output = folder / "new" / "r.json"
    settings = AdherenceSettings(**FAST)
    return run_adherence(pipe, write_images(folder), settings, output, {"base": "tiny"}, folder / "r.png"), folder


def without_times(path) -> dict:
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ("time", "models")}


def test_report(finished):
    report, folder = finished
    assert json.loads((folder / "new" / "r.json").read_text()) == report
    assert not (folder / "new" / "r.partial").exists()
    assert set(report["mean"]) == {"photo", *CONDITIONS}
    first = report["per_image"][1]
    assert first["prompt"] == "a"
    assert first["seed"] == 1
    assert first["shuffled_with"] != first["key"]
    for condition in ("photo", *CONDITIONS):
        column = [one[condition]["abs_rel"] for one in report["per_image"]]
        assert report["mean"][condition]["abs_rel"] == pytest.approx(np.mean(column))
        assert min(column) > 0
    assert report["settings"]["weights"]["controlnet"] != report["settings"]["weights"]["unet"]
    for condition in ("none", "shuffled"):
        differences = [one["depth"]["abs_rel"] - one[condition]["abs_rel"] for one in report["per_image"]]
        paired = report["paired"][condition]
        assert paired["images"] == 3
        assert paired["better"] == np.mean([difference < 0 for difference in differences])
        assert paired["abs_rel_difference"] == pytest.approx(np.mean(differences))
        assert paired["interval"][0] <= paired["abs_rel_difference"] <= paired["interval"][1]
    sheet = Image.open(folder / "r.png")
    assert sheet.width > 9 * 320
    text = format_adherence(report)
    assert "generated with its depth" in text
    assert f"{report['mean']['none']['abs_rel']:.3f}" in text


def test_a_score_is_that_of_the_images_themselves(pipe, images, tmp_path):
    """One entry worked out by hand, from diffusers' own output and the photo's own depth.

    To 1e-3: a run computes with one thread, and sums that are split otherwise have other last digits.
    """
    entry = run(pipe, images, tmp_path / "r.json", seed=3)["per_image"][1]
    estimator = pipe.depth_estimator

    def log_depth(picture):
        found = estimator(picture, generator=torch.Generator().manual_seed(depth_seed(3)), output_type="pt").log_depth
        return found[0, 0].numpy()

    output = pipe(
        "a", build_image(1), depth_kwargs={"generator": torch.Generator().manual_seed(depth_seed(3))},
        generator=torch.Generator().manual_seed(3 + 1), output_type="np", **FAST,
    )  # fmt: skip
    expected = depth_adherence(log_depth(build_image(1)), log_depth(output.images[0]))
    assert entry["depth"]["abs_rel"] == pytest.approx(expected["abs_rel"], rel=1e-3)
    photo = load_images(build_image(1))[0]
    with torch.no_grad():
        decoded = pipe.vae.decode(pipe.vae.encode(photo * 2 - 1).latent_dist.mode()).sample
    expected = depth_adherence(log_depth(build_image(1)), log_depth((decoded / 2 + 0.5).clamp(0, 1)))
    assert entry["photo"]["abs_rel"] == pytest.approx(expected["abs_rel"], rel=1e-3)


def test_depth_and_the_first_image_have_noise_of_their_own(images, tmp_path, monkeypatch):
    """Both follow from one seed, and the latents of the depth estimator and of the image have one shape here."""
    drawn = {}

    def record(name, module):
        draw = module.randn_tensor

        def drawing(*args, **kwargs):
            drawn.setdefault(name, draw(*args, **kwargs))
            return draw(*args, **kwargs)

        monkeypatch.setattr(module, "randn_tensor", drawing)

    record("depth", pipeline_depthfm)
    record("image", pipeline_controlnet)
    pipe = build_pipelines()[0]
    pipe.register_to_config(default_depth_processing_resolution=64)
    run(pipe, images, tmp_path / "r.json", seed=3)
    assert drawn["depth"].shape == drawn["image"].shape
    assert (drawn["depth"] - drawn["image"]).abs().mean() > 0.5


def test_nothing_is_computed_twice(pipe, images, tmp_path, monkeypatch):
    """A photo's depth is estimated once, each picture is generated once, and the picture of them costs nothing."""
    calls = {"log_depth": 0, "generate": 0}

    def count(name: str) -> None:
        original = getattr(AdherenceTest, name)

        def counting(self, *args):
            calls[name] += 1
            return original(self, *args)

        monkeypatch.setattr(AdherenceTest, name, counting)

    for name in calls:
        count(name)
    run_adherence(pipe, images, AdherenceSettings(**FAST), tmp_path / "r.json", {}, tmp_path / "r.png")
    assert calls == {"log_depth": 3 + 3 * 4, "generate": 3 * 3}


def test_two_runs_say_the_same(pipe, images, tmp_path, finished):
    run(pipe, images, tmp_path / "again.json")
    assert without_times(tmp_path / "again.json") == without_times(finished[1] / "new" / "r.json")


def test_a_stopped_run_goes_on(pipe, images, tmp_path, finished):
    settings = AdherenceSettings(**FAST)
    whole = finished[1]
    steps = []

    def stop(done: int, total: int) -> None:
        steps.append((done, total))
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_adherence(pipe, images, settings, tmp_path / "r.json", {}, tmp_path / "r.png", stop)
    assert not (tmp_path / "r.json").exists()
    assert (tmp_path / "r.partial").is_dir()
    with pytest.raises(ValueError, match=r"results of another evaluation.*settings\.seed"):
        run(pipe, images, tmp_path / "r.json", seed=3)
    steps.clear()
    run_adherence(
        pipe, images, settings, tmp_path / "r.json", {}, tmp_path / "r.png", lambda *step: steps.append(step)
    )
    assert steps == [(2, 3), (3, 3)]
    assert (tmp_path / "r.png").read_bytes() == (whole / "r.png").read_bytes()
    assert without_times(tmp_path / "r.json") == without_times(whole / "new" / "r.json")


def test_conditions_are_what_they_say(pipe):
    """With: as the pipeline makes it of that depth. Without: Stable Diffusion alone, of the same noise. To the bit."""
    test = AdherenceTest(pipe, settings_of(seed=5))
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
    """Sides are rounded down to whole latents; the whole photo is shown to the autoencoder, not a part of it."""
    images = []
    for i, size in enumerate([(64, 48), (51, 77)]):
        build_image(i, size).save(tmp_path / f"{i}.png")
        images.append(PromptedImage(f"{i}", tmp_path / f"{i}.png", ""))
    report = run(pipe, images, tmp_path / "r.json")
    assert [(one["height"], one["width"]) for one in report["per_image"]] == [(48, 64), (72, 48)]
    report = run(pipe, images, tmp_path / "r.json", height=50, width=80)
    assert [(one["height"], one["width"]) for one in report["per_image"]] == [(48, 80)] * 2
    photo = load_images(build_image(0, (48, 80)))[0]
    # Pillow's filter is another implementation of the same one.
    channels = [Image.fromarray(one.numpy()).resize((48, 40), Image.Resampling.BILINEAR) for one in photo[0]]
    squeezed = torch.from_numpy(np.stack([np.asarray(channel) for channel in channels]))[None]
    found = AdherenceTest(pipe, AdherenceSettings(**FAST, height=40)).reconstruct(photo)
    expected = AdherenceTest(pipe, AdherenceSettings(**FAST)).reconstruct(squeezed)
    assert found.shape == (40, 48, 3)
    assert found == pytest.approx(expected, abs=1e-4)


def test_conditions_can_be_left_out(pipe, images, tmp_path):
    report = run(pipe, images[:1], tmp_path / "r.json", conditions=("depth", "none"))
    assert set(report["mean"]) == {"photo", "depth", "none"}
    assert set(report["paired"]) == {"none"}
    assert "shuffled_with" not in report["per_image"][0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ("depth", "noise")}, "`conditions` must be one or more of"),
        ({"conditions": ()}, "`conditions` must be one or more of"),
        ({"control_mode": "log"}, "`control_mode` must be one of"),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be at least 1"),
        ({"seed": -1}, "`seed` must be from 0"),
        ({"height": 0}, "`height` must be at least 1"),
        ({"guidance_scale": float("nan")}, "`guidance_scale` must be a finite number"),
        ({"controlnet_conditioning_scale": float("inf")}, "`controlnet_conditioning_scale` must be a finite number"),
        ({"depth_num_inference_steps": 0}, "`num_inference_steps` must be at least 1"),
        ({"conditions": ("depth", "depth")}, "each once"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of(**settings)


def test_bad_images_are_refused(pipe, images, tmp_path):
    with pytest.raises(ValueError, match="'shuffled' needs two images"):
        run(pipe, images[:1], tmp_path / "r.json")
    with pytest.raises(ValueError, match=r"two are called 'photo0\.png'"):
        run(pipe, [images[0], images[0]], tmp_path / "r.json")
    with pytest.raises(ValueError, match="`images` is empty"):
        run(pipe, [], tmp_path / "r.json", conditions=("depth",))
    build_image(0, (64, 5)).save(tmp_path / "thin.png")
    with pytest.raises(ValueError, match=r"image 'thin': images of 5×64 pixels .* at least 8"):
        run(pipe, [*images, PromptedImage("thin", tmp_path / "thin.png", "")], tmp_path / "r.json")
    images[2].path.write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"image 'photo2\.png'"):
        run(pipe, images, tmp_path / "r.json")
    assert not list(tmp_path.glob("*.partial"))  # nothing has run


def _entry(depth: float | None, none: float | None) -> dict:
    entry = {"key": "a", "flagged": {"depth": False}}
    for condition, abs_rel in {"photo": 0.1, "depth": depth, "none": none}.items():
        entry[condition] = {"abs_rel": abs_rel, "delta1": 0.9, "boundary_f1": None, "correlation": 0.5}
    return entry


def test_report_of_known_entries():
    entries = [_entry(0.1, 0.3), _entry(0.2, 0.2), _entry(0.4, 0.1), _entry(None, None)]
    entries[0]["flagged"]["depth"] = True
    report = build_adherence_report(entries, ["depth", "none"])
    assert report["mean"]["depth"]["abs_rel"] == pytest.approx(0.7 / 3)
    assert report["counts"]["depth"] == {"abs_rel": 3, "delta1": 4, "boundary_f1": 0, "correlation": 4}
    assert report["mean"]["depth"]["boundary_f1"] is None
    # Of a draw, neither is better.
    assert report["paired"]["none"]["better"] == pytest.approx(1 / 3)
    assert report["paired"]["none"]["abs_rel_difference"] == pytest.approx((-0.2 + 0 + 0.3) / 3)
    text = format_adherence(report | {"per_image": entries})
    assert "it is lower for 33% of 3 images" in text
    assert "AbsRel is defined for 3 images" in text
    assert "edge F1 is defined for 0 images" in text
    assert "blackened what was generated for 1 of the images" in text


def test_report_without_any_score():
    entries = [_entry(None, None)]
    report = build_adherence_report(entries, ["depth", "none"])
    assert report["paired"]["none"] == {"images": 0, "better": None, "abs_rel_difference": None, "interval": None}
    assert "generated with its depth" in format_adherence(report | {"per_image": entries})
