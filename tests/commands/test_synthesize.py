"""`depthfm synthesize`, run in this process on tiny random models."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.controlnet_parts import (
    build_controlnet,
    build_depth_estimator,
    build_image,
    build_mask,
    build_pipelines,
    build_stable_diffusion_pipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig

from depthfm_diffusers import (
    DepthFMControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline,
    DepthFMControlNetPipeline,
    DepthFMPipeline,
    cli,
)
from depthfm_diffusers.control_image import control_image_from_log_depth
from depthfm_diffusers.inference import synthesis_files
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_imports import (
    CLIPImageProcessor,
    StableDiffusionSafetyChecker,
)
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_noise import depth_generator


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A folder with `base`, `net`, `second` (two ControlNets), `depth` and `whole` (one saved pipeline)."""
    folder = tmp_path_factory.mktemp("models")
    stable = build_stable_diffusion_pipeline()
    stable.save_pretrained(folder / "base")
    for name, seed in (("net", 3), ("second", 4)):
        build_controlnet(stable.unet, seed).save_pretrained(folder / name)
    build_depth_estimator().save_pretrained(folder / "depth")
    build_pipelines()[0].save_pretrained(folder / "whole")
    return folder


@pytest.fixture
def photo(tmp_path) -> Path:
    (tmp_path / "in").mkdir()
    build_image().save(tmp_path / "in" / "photo.png")
    return tmp_path / "in" / "photo.png"


@pytest.fixture
def synthesize(models, tmp_path, monkeypatch):
    """Runs `depthfm synthesize ... --output out` with two steps in the temporary folder, on the tiny models."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, prompt: str = "a", **changes: object) -> int:
        given = {"base": models / "base", "controlnet": models / "net", "model": models / "depth", "steps": 2}
        options = [(f"--{name}", value) for name, value in {**given, **changes}.items() if value is not None]
        flat = [str(part) for option in options for part in option]
        return cli.main(
            ["synthesize", *map(str, arguments), "--prompt", prompt, "--output", "out", "--device", "cpu", *flat]
        )

    return run


def read_metadata(folder: Path) -> dict:
    return json.loads((folder / "metadata.json").read_text(encoding="utf-8"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


def expected(models: Path, cls: type, seed: int = 0, **arguments: object) -> np.ndarray:
    """The image that the pipeline makes, as in the command: depth from a seed of its own."""
    pipe = cls.from_pretrained(models / "whole", local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    if "log_depth" not in arguments:
        arguments["depth_kwargs"] = {"generator": depth_generator(torch.Generator().manual_seed(0))}
    output = pipe("a", generator=torch.Generator().manual_seed(seed), num_inference_steps=2, **arguments)
    return np.asarray(output.images[0])


RESULT = ["metadata.json", "photo_control.png", "photo_log_depth.npy", "photo_seed0.png"]


# What is written


@pytest.mark.parametrize(
    ("options", "cls"),
    [
        ((), DepthFMControlNetPipeline),
        (("--img2img",), DepthFMControlNetImg2ImgPipeline),
        (("--img2img", "--strength", 0.5), DepthFMControlNetImg2ImgPipeline),
        (("--mask", "in/mask.png"), DepthFMControlNetInpaintPipeline),
    ],
)
def test_writes_what_the_pipeline_returns(synthesize, models, photo, tmp_path, capsys, options, cls):
    build_mask().save(tmp_path / "in" / "mask.png")
    assert synthesize(photo, *options) == 0
    assert capsys.readouterr() == ("1 images of 1 of 1 inputs written to out\n", "")
    out = tmp_path / "out"
    assert names(out) == RESULT
    start = {"mask_image": build_mask()} if cls is DepthFMControlNetInpaintPipeline else {}
    if "--strength" in options:
        start["strength"] = 0.5
    assert np.array_equal(pixels(out / "photo_seed0.png"), expected(models, cls, image=build_image(), **start))
    log_depth = np.load(out / "photo_log_depth.npy", allow_pickle=False)
    assert (log_depth.dtype, log_depth.shape) == (np.float32, (48, 64))
    depth = DepthFMPipeline.from_pretrained(models / "depth")
    prediction = depth(build_image(), generator=depth_generator(torch.Generator().manual_seed(0)))
    assert np.array_equal(log_depth, prediction.log_depth[0, ..., 0]), "the depth that DepthFM alone estimates"
    control = control_image_from_log_depth(torch.from_numpy(log_depth)[None, None])[0]
    assert np.array_equal(pixels(out / "photo_control.png"), (control * 255).round().permute(1, 2, 0).byte().numpy())


def test_each_image_can_be_made_again_by_itself(synthesize, photo, tmp_path):
    assert synthesize(photo, "-n", 3, "--seed", 5) == 0
    together = {seed: pixels(tmp_path / "out" / f"photo_seed{seed}.png") for seed in (5, 6, 7)}
    assert not np.array_equal(together[5], together[6])
    shutil.rmtree(tmp_path / "out")
    assert synthesize(photo, "--seed", 7) == 0
    assert np.array_equal(pixels(tmp_path / "out" / "photo_seed7.png"), together[7])


def test_depth_has_a_seed_of_its_own(synthesize, photo, tmp_path):
    depths = []
    for options in (("--seed", 0), ("--seed", 1), ("--depth-seed", 1)):
        assert synthesize(photo, *options) == 0
        depths.append(np.load(tmp_path / "out" / "photo_log_depth.npy"))
        shutil.rmtree(tmp_path / "out")
    assert np.array_equal(depths[0], depths[1])
    assert not np.array_equal(depths[0], depths[2])


def test_metadata_says_how_to_repeat(synthesize, photo, tmp_path, models):
    assert synthesize(photo, "-n", 2, "--negative-prompt", "b", "--control-scale", 0.7, "--img2img") == 0
    metadata = read_metadata(tmp_path / "out")
    (run,) = metadata["runs"]
    settings = run["settings"]
    assert (settings["prompt"], settings["negative_prompt"], settings["start"]) == ("a", "b", "image")
    assert (settings["strength"], settings["controlnet_conditioning_scale"]) == (0.8, 0.7)
    assert (settings["depth_num_inference_steps"], settings["depth_processing_resolution"]) == (1, 48)
    assert (settings["num_inference_steps"], settings["guidance_scale"]) == (2, 7.5)
    assert [len(one["sha256"]) for one in (run["models"]["base"], *run["models"]["controlnets"])] == [64, 64]
    assert run["models"]["depth_model"]["name"] == "depth"
    assert (run["scheduler"]["class"], run["depth_scheduler"]["class"]) == (
        "DDIMScheduler",
        "FlowMatchingImageToDepthScheduler",
    )
    assert run["has_safety_checker"] is False
    assert run["versions"]["torch"] == torch.__version__
    (entry,) = metadata["images"]
    assert (entry["input"], entry["height"], entry["width"]) == (str(photo), 48, 64)
    assert entry["images"] == [{"file": f"photo_seed{n}.png", "seed": n, "nsfw": None} for n in (0, 1)]


def test_settings_reach_the_pipeline(synthesize, models, photo, tmp_path):
    options = {"control-mode": "depth", "control-start": 0.5, "guidance-scale": 3, "height": 32, "width": 48}
    assert synthesize(photo, "--guess-mode", "--control-scale", 0.6, "--negative-prompt", "b", **options) == 0
    arguments = {
        "image": build_image(),
        "control_mode": "depth",
        "control_guidance_start": 0.5,
        "guidance_scale": 3.0,
        "height": 32,
        "width": 48,
        "guess_mode": True,
        "controlnet_conditioning_scale": 0.6,
        "negative_prompt": "b",
    }
    image = expected(models, DepthFMControlNetPipeline, **arguments)
    assert np.array_equal(pixels(tmp_path / "out" / "photo_seed0.png"), image)


@pytest.mark.parametrize(("side", "size"), [("height", (24, 32)), ("width", (24, 32))])
def test_the_other_side_follows_the_proportions(synthesize, photo, tmp_path, side, size):
    assert synthesize(photo, **{side: size[side == "width"]}) == 0
    assert pixels(tmp_path / "out" / "photo_seed0.png").shape == (*size, 3)
    assert pixels(tmp_path / "out" / "photo_control.png").shape == (48, 64, 3)


# Depth that is given


@pytest.mark.parametrize("option", ["--log-depth", "--depth", "png"])
def test_depth_that_is_given(synthesize, models, tmp_path, option):
    y = np.linspace(0.2, 1.5, 48 * 64, dtype=np.float32).reshape(48, 64)
    millimetres = (np.exp(y) * 1000).round().astype(np.uint16)
    if option == "png":
        file, option, log_depth = "d.png", "--depth", np.log(millimetres.astype(np.float32))
        Image.fromarray(millimetres).save(tmp_path / file)
    else:
        file, log_depth = "d.npy", y
        np.save(tmp_path / file, y if option == "--log-depth" else np.exp(y))
    assert synthesize(option, file) == 0
    image = expected(models, DepthFMControlNetPipeline, log_depth=log_depth)
    assert np.array_equal(pixels(tmp_path / "out" / "d_seed0.png"), image)
    given = read_metadata(tmp_path / "out")["runs"][0]["given"][option.removeprefix("--").replace("-", "_")]
    assert given["file"] == str(tmp_path / file)


def test_depth_for_a_photo_that_is_started_from(synthesize, models, photo, tmp_path):
    log_depth = np.linspace(-1, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    np.save(tmp_path / "y.npy", log_depth)
    assert synthesize(photo, "--img2img", "--log-depth", "y.npy") == 0
    image = expected(models, DepthFMControlNetImg2ImgPipeline, image=build_image(), log_depth=log_depth)
    assert np.array_equal(pixels(tmp_path / "out" / "photo_seed0.png"), image)


def test_depth_and_log_depth_of_one_file_are_two_results(synthesize, tmp_path):
    np.save(tmp_path / "d.npy", np.linspace(0.2, 1.5, 48 * 64, dtype=np.float32).reshape(48, 64))
    assert synthesize("--depth", "d.npy") == 0
    first = (tmp_path / "out" / "d_seed0.png").read_bytes()
    assert synthesize("--log-depth", "d.npy") == 0
    assert (tmp_path / "out" / "d_seed0.png").read_bytes() == first
    assert len(read_metadata(tmp_path / "out")["images"]) == 2


@pytest.mark.parametrize(
    ("content", "option", "message"),
    [
        (np.zeros((4, 4), np.float32), "--depth", "must be positive"),
        (np.ones((2, 4, 4, 1), np.float32), "--depth", "one map"),
        (np.full((4, 4), np.nan, np.float32), "--log-depth", "NaN"),
        (np.array([{}]), "--depth", "allow_pickle"),
        (None, "--depth", "No such file"),
    ],
)
def test_bad_depth_is_refused_before_models_are_loaded(synthesize, tmp_path, capsys, content, option, message):
    if content is not None:
        np.save(tmp_path / "d.npy", content, allow_pickle=True)
    assert synthesize(option, "d.npy", base="gone") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "d.npy" in error
    assert "gone" not in error
    assert not (tmp_path / "out").exists()


# Nothing is lost


def test_the_same_command_and_other_seeds_share_a_result(synthesize, photo, tmp_path):
    assert synthesize(photo, "-n", 2) == 0
    before = {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")}
    assert synthesize(photo, "-n", 2) == 0
    assert {name: (tmp_path / "out" / name).read_bytes() for name in names(tmp_path / "out")} == before
    assert synthesize(photo, "--seed", 9) == 0
    assert names(tmp_path / "out") == sorted([*before, "photo_seed9.png"])
    metadata = read_metadata(tmp_path / "out")
    assert [one["seed"] for one in metadata["images"][0]["images"]] == [0, 1, 9]
    assert (len(metadata["runs"]), len(metadata["images"])) == (1, 1)


def test_other_settings_overwrite_nothing(synthesize, photo, tmp_path):
    assert synthesize(photo) == 0
    first = (tmp_path / "out" / "photo_seed0.png").read_bytes()
    assert synthesize(photo, "--guidance-scale", 2) == 0
    build_image(seed=2).save(photo)
    assert synthesize(photo) == 0
    assert (tmp_path / "out" / "photo_seed0.png").read_bytes() == first
    metadata = read_metadata(tmp_path / "out")
    assert [entry["name"] for entry in metadata["images"]] == ["photo", "photo_png", "photo_2"]
    scales = [metadata["runs"][entry["run"]]["settings"]["guidance_scale"] for entry in metadata["images"]]
    assert scales == [7.5, 2, 7.5]


def test_files_of_others_and_inputs_are_not_overwritten(synthesize, photo, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "photo_seed0.png").write_text("mine")
    for name, picture in {"a.png": build_image(), "a_control.png": build_mask()}.items():
        picture.save(out / name)
    mask = (out / "a_control.png").read_bytes()
    assert synthesize(photo, out / "a.png", "--mask", "out/a_control.png") == 0
    assert (out / "photo_seed0.png").read_text() == "mine"
    assert (out / "a_control.png").read_bytes() == mask
    assert [entry["name"] for entry in read_metadata(out)["images"]] == ["photo_png", "a_png"]


def test_results_are_not_inputs_of_the_next_run(synthesize, photo, tmp_path):
    shutil.copytree(photo.parent, tmp_path / "out")
    assert synthesize("out") == 0
    before = names(tmp_path / "out")
    assert synthesize("out") == 0
    assert names(tmp_path / "out") == before


def test_a_folder_of_predictions_is_refused(synthesize, photo, tmp_path, capsys, models):
    arguments = ["predict", str(photo), "--output", "out", "--model", str(models / "depth"), "--device", "cpu"]
    assert cli.main(arguments) == 0
    assert synthesize(photo) == 1
    assert "was not written by `depthfm synthesize`" in capsys.readouterr().err


def test_interruption_leaves_whole_images(synthesize, photo, tmp_path, monkeypatch, capsys):
    save_image = synthesis_files.save_image

    def interrupting(path, array):
        if (tmp_path / "out" / "photo_seed0.png").exists():
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        save_image(path, array)

    monkeypatch.setattr(synthesis_files, "save_image", interrupting)
    assert synthesize(photo, "-n", 2) == 130
    assert "interrupted" in capsys.readouterr().err
    assert names(tmp_path / "out") == RESULT
    assert [one["seed"] for one in read_metadata(tmp_path / "out")["images"][0]["images"]] == [0]


# What goes wrong


def test_bad_inputs_are_named_and_do_not_stop_the_others(synthesize, photo, tmp_path, capsys):
    (tmp_path / "text.png").write_text("not an image")
    build_image(size=(40, 40)).save(tmp_path / "square.png")
    build_mask().save(tmp_path / "mask.png")
    assert synthesize("text.png", "gone.png", "square.png", photo, "--mask", "mask.png", "-n", 2) == 1
    captured = capsys.readouterr()
    for name, reason in {"text.png": "not an image", "gone.png": "no such file", "square.png": "mask_image"}.items():
        (line,) = [line for line in captured.err.splitlines() if name in line]
        assert reason in line
    assert captured.out == "2 images of 1 of 4 inputs written to out\n"
    assert names(tmp_path / "out") == sorted([*RESULT, "photo_seed1.png"])


def test_progress_is_shown_on_a_terminal(synthesize, photo, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.png").write_text("not an image")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert synthesize("text.png", photo, "-n", 2) == 1
    shown = capsys.readouterr().err
    assert "4/4" in shown, "images that will not be made count as done"
    assert "step/s" in shown


def copy_base(models: Path, target: Path) -> Path:
    shutil.copytree(models / "base", target)
    return target


def test_images_that_are_not_finite_are_not_written(synthesize, models, photo, tmp_path, capsys):
    base = copy_base(models, tmp_path / "base")
    weights = base / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    # Finite weights, whose products overflow: others are refused when the model is loaded.
    save_file(tensors | {"decoder.conv_in.weight": torch.full_like(tensors["decoder.conv_in.weight"], 3e38)}, weights)
    assert synthesize(photo, base=base) == 1
    assert "NaN or infinite values: compute in another dtype" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_the_safety_checker_finds_is_said(synthesize, photo, tmp_path, capsys):
    vision = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=8))
    checker.concept_embeds_weights.data.fill_(-2)  # thresholds of similarity, from which on all are found
    pipe = build_stable_diffusion_pipeline()
    extractor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    pipe.register_modules(safety_checker=checker, feature_extractor=extractor)
    pipe.save_pretrained(tmp_path / "base")
    assert synthesize(photo, base=tmp_path / "base") == 0
    file = tmp_path / "out" / "photo_seed0.png"
    assert f"{file}: the safety checker took it for offensive and made it black" in capsys.readouterr().err
    assert not pixels(file).any()
    metadata = read_metadata(tmp_path / "out")
    assert metadata["images"][0]["images"] == [{"file": "photo_seed0.png", "seed": 0, "nsfw": True}]
    assert metadata["runs"][0]["has_safety_checker"] is True


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.png"], "--prompt"),
        (["--prompt", "a"], "IMAGE is missing (or --depth, or --log-depth)"),
        (["--prompt", "a", "--img2img", "--depth", "d.npy"], "IMAGE is missing"),
        (["photo.png", "--prompt", "a", "--strength", "0.5"], "--strength: needs --img2img or --mask"),
        (["photo.png", "--prompt", "a", "--img2img", "--mask", "m.png"], "--mask: not allowed"),
        (["photo.png", "--prompt", "a", "--depth", "d.npy"], "IMAGE would not be used"),
        (["a.png", "b.png", "--prompt", "a", "--img2img", "--depth", "d.npy"], "is the depth of one IMAGE"),
        (["photo.png", "--prompt", "a", "--depth", "d.npy", "--log-depth", "y.npy"], "not allowed with"),
        (["photo.png", "--prompt", "a", "--control-scale", "much"], "must be a number"),
    ],
)
def test_wrong_usage(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["synthesize", *arguments, "--base", "gone", "--output", "out"])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--control-start", 0.6, "--control-end", 0.4), "`control_guidance_start` must be less"),
        (("--img2img", "--strength", 1.5), "`strength` must be in (0, 1], got 1.5"),
        (("--img2img", "--strength", 0.2), "less than a step"),
        (("--mask", "black.png"), "black everywhere"),
        (("--mask", "gone.png"), "gone.png"),
    ],
)
def test_bad_settings_are_found_before_models_are_loaded(synthesize, photo, tmp_path, capsys, options, message):
    Image.new("L", (64, 48)).save(tmp_path / "black.png")
    assert synthesize(photo, *options, base="no-model") == 1
    error = capsys.readouterr().err
    assert message in error
    assert "no-model" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "changes", "message"),
    [
        (("--controlnet", "gone"), {}, "controlnet gone: no such folder"),
        ((), {"controlnet": None}, "has no ControlNet"),
        (("--offload",), {}, "`offload` is for accelerators"),
        (("--control-scale", 1, "--control-scale", 0.5), {}, "given 2 times, but there are 1 ControlNets"),
        (("--lora", "gone"), {}, "lora gone: no such file or folder"),
        (("--variant", "fp16"), {}, "there is no *.fp16.safetensors"),
        ((), {"device": "toaster"}, "device 'toaster' cannot be used"),
        ((), {"model": "gone"}, "model gone: no such folder"),
    ],
)
def test_what_cannot_be_loaded_is_said_once(synthesize, photo, tmp_path, capsys, options, changes, message):
    assert synthesize(photo, *options, **changes) == 1
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Models


def test_several_controlnets(synthesize, models, photo, tmp_path):
    assert synthesize(photo) == 0
    single = pixels(tmp_path / "out" / "photo_seed0.png")
    assert synthesize(photo, "--controlnet", models / "second", "--control-scale", 0, "--control-scale", 1) == 0
    both = pixels(tmp_path / "out" / "photo_png_seed0.png")
    np.testing.assert_allclose(both, single.astype(int), atol=1, err_msg="the other one has no weight")
    settings = read_metadata(tmp_path / "out")["runs"][1]["settings"]
    assert settings["controlnet_conditioning_scale"] == [0, 1]


def test_a_saved_pipeline_needs_no_other_models(synthesize, models, photo, tmp_path):
    assert synthesize(photo) == 0
    assert synthesize(photo, base=models / "whole", controlnet=None, model=None) == 0
    parts, whole = (pixels(tmp_path / "out" / f"{name}_seed0.png") for name in ("photo", "photo_png"))
    assert np.array_equal(parts, whole)
    assert set(read_metadata(tmp_path / "out")["runs"][1]["models"]) == {
        "base",
        "variant",
        "rescale_depth_self_attention",
    }


def test_a_prompt_that_is_cut_is_said(synthesize, photo, capsys):
    assert synthesize(photo, prompt="a " * 90) == 0
    assert "the prompt is too long for Stable Diffusion: its last 15 tokens are not used" in capsys.readouterr().err
