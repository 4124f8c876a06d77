"""The three ControlNet pipelines: they are diffusers' own, on a control image made of the depth."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import cache
from threading import Barrier

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from helpers.controlnet_parts import (
    COUNTERPARTS,
    PIPELINES,
    PREDICTION_TYPES,
    STEPS,
    build_controlnet,
    build_depth_estimator,
    build_image,
    build_mask,
    build_pipelines,
    build_stable_diffusion_pipeline,
    diffusers_arguments,
    seeded,
    start_arguments,
)
from PIL import Image

from depthfm_diffusers import (
    DepthFMControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline,
    DepthFMControlNetOutput,
    DepthFMControlNetPipeline,
    DepthFMPipeline,
)
from depthfm_diffusers.control_image import control_image_from_log_depth
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_noise import depth_generator

each_pipeline = pytest.mark.parametrize("cls", PIPELINES)
each_layout = pytest.mark.parametrize("layout", PREDICTION_TYPES)
FROM_IMAGES = [DepthFMControlNetImg2ImgPipeline, DepthFMControlNetInpaintPipeline]


# Read-only: a test that changes a pipeline builds its own.
shared_pipelines = cache(build_pipelines)


@each_layout
@each_pipeline
def test_equal_to_diffusers_to_the_bit(cls, layout):
    """With both pipelines' defaults, which are the same."""
    pipe, counterpart = shared_pipelines(cls, layout)
    output = pipe("a", **start_arguments(cls), **STEPS, generator=seeded())
    expected = counterpart(
        "a", **diffusers_arguments(cls, output.control_image[0]), **STEPS, generator=seeded()
    ).images
    assert np.array_equal(output.images, expected)
    assert output.images.shape == (1, 48, 64, 3)
    other = counterpart("a", **diffusers_arguments(cls, build_image(5)), **STEPS, generator=seeded()).images
    assert abs(other - expected).max() > 1e-3, "the control image matters"


@pytest.mark.parametrize(
    "options",
    [
        {"guess_mode": True, "guidance_scale": 3.0},
        {"control_guidance_start": 0.5},
        {"control_guidance_end": 0.5, "controlnet_conditioning_scale": 0.3},
        {"guidance_scale": 1.0},
        {"negative_prompt": "!", "num_images_per_prompt": 2, "eta": 0.5},
        {"prompt": ["a"], "negative_prompt": "!", "guidance_scale": 1.0},
        {"latents": torch.linspace(-1, 1, 192).reshape(1, 4, 6, 8)},
        {"height": 32, "width": 40},
        {"output_type": "pt"},
        {"output_type": "latent"},
        {"prompt": None, "prompt_embeds": torch.ones(1, 77, 24), "negative_prompt_embeds": torch.zeros(1, 77, 24)},
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
@each_pipeline
@pytest.mark.filterwarnings("ignore:You have passed 2 text prompts:FutureWarning")
def test_options_mean_what_they_mean_in_diffusers(cls, options):
    pipe, counterpart = shared_pipelines(cls)
    arguments = {"prompt": "a", **STEPS, **options}
    output = pipe(**start_arguments(cls), **arguments, generator=seeded())
    expected = counterpart(**diffusers_arguments(cls, output.control_image[0]), **arguments, generator=seeded())
    assert np.array_equal(np.asarray(output.images), np.asarray(expected.images))


def test_guess_mode_and_guidance_limits_change_the_result():
    pipe, _ = shared_pipelines()
    plain = pipe("a", build_image(), **STEPS, generator=seeded()).images
    for options in ({"guess_mode": True}, {"control_guidance_start": 0.5}, {"control_guidance_end": 0.5}):
        assert abs(pipe("a", build_image(), **options, **STEPS, generator=seeded()).images - plain).max() > 1e-3


@each_pipeline
def test_several_controlnets(cls):
    pipe, counterpart = shared_pipelines(cls, controlnets=2)
    other = build_image(4)
    arguments = {"prompt": "a", "controlnet_conditioning_scale": [1.0, 0.5], **STEPS}
    output = pipe(**start_arguments(cls), control_image=[None, other], **arguments, generator=seeded())
    controls = [output.control_image[0], other]
    expected = counterpart(**diffusers_arguments(cls, controls), **arguments, generator=seeded())
    assert np.array_equal(output.images, expected.images)
    both = pipe(**start_arguments(cls), **arguments, generator=seeded())
    controls = [output.control_image[0]] * 2
    expected = counterpart(**diffusers_arguments(cls, controls), **arguments, generator=seeded())
    assert np.array_equal(both.images, expected.images), "without `control_image`, all get the depth"


@pytest.mark.parametrize("controlnets", [1, 2])
@each_pipeline
def test_batches_of_images_with_prompts(cls, controlnets):
    """Image i of a batch has the depth and the prompt of image i, whatever else is in the batch."""
    pipe, _ = shared_pipelines(cls, controlnets=controlnets)
    images, prompts = [build_image(0), build_image(1)], ["a", "!"]
    arguments = {**STEPS, "control_image": [None] * 2 if controlnets > 1 else None, "guidance_scale": 3.0}
    batch = pipe(prompts, **start_arguments(cls, images), **arguments, generator=[seeded(0), seeded(1)])
    assert batch.images.shape == (2, 48, 64, 3)
    assert batch.depth.shape == batch.log_depth.shape == (2, 48, 64, 1)
    for i in range(2):
        single = pipe(prompts[i], **start_arguments(cls, images[i]), **arguments, generator=seeded(i))
        assert np.array_equal(single.control_image[0], batch.control_image[i])
        np.testing.assert_allclose(single.images[0], batch.images[i], atol=1e-4)
    assert abs(batch.images[0] - batch.images[1]).max() > 1e-2


@pytest.mark.parametrize("cls", FROM_IMAGES)
def test_images_stay_with_their_prompts_for_several_images_per_prompt(cls):
    """In diffusers, prompts are repeated as a, a, b, b, but starting images as a, b, a, b."""
    pipe, _ = shared_pipelines(cls)
    images, prompts = [build_image(0), build_image(3)], ["a", "!"]
    arguments = {**STEPS, "strength": 0.5}
    generators = [seeded(i) for i in range(4)]
    batch = pipe(prompts, **start_arguments(cls, images), num_images_per_prompt=2, generator=generators, **arguments)
    for k in range(4):
        single = pipe(
            prompts[k // 2],
            **start_arguments(cls, images[k // 2]),
            log_depth=batch.log_depth[k // 2],  # that of the seed of the image's first generator
            generator=seeded(k),
            **arguments,
        )
        np.testing.assert_allclose(single.images[0], batch.images[k], atol=1e-4)


def test_one_image_with_several_prompts():
    pipe, _ = shared_pipelines()
    output = pipe(["a", "!", "a a"], build_image(), **STEPS)
    assert output.images.shape == (3, 48, 64, 3)
    assert len(output.control_image) == len(output.depth) == 1


def test_images_of_several_sizes_are_generated_in_one():
    pipe, _ = shared_pipelines()
    images = [build_image(0), build_image(1, (48, 72))]
    output = pipe(["a", "!"], images, height=32, width=48, **STEPS)
    assert output.images.shape == (2, 32, 48, 3)
    assert [one.shape for one in output.depth] == [(48, 64, 1), (72, 48, 1)]
    assert [one.size for one in output.control_image] == [(64, 48), (48, 72)]
    with pytest.raises(ValueError, match=r"several sizes.*\(48, 64\), \(72, 48\).*pass `height` and `width`"):
        pipe(["a", "!"], images, **STEPS)


@each_pipeline
def test_depth_is_the_estimators_own(cls):
    pipe, _ = shared_pipelines(cls)
    output = pipe("a", **start_arguments(cls), **STEPS, generator=seeded(7))
    expected = pipe.depth_estimator(build_image(), generator=depth_generator(seeded(7)))
    assert np.array_equal(output.log_depth, expected.log_depth)
    assert np.array_equal(output.depth, expected.prediction)
    control = control_image_from_log_depth(torch.from_numpy(expected.log_depth).movedim(-1, 1))
    assert np.array_equal(np.asarray(output.control_image[0]), (control[0] * 255).movedim(0, -1).numpy().round())


def test_depth_arguments_reach_the_estimator():
    pipe, _ = shared_pipelines()
    given = {"num_inference_steps": 3, "ensemble_size": 2, "processing_resolution": 32, "generator": seeded(1)}
    output = pipe("a", build_image(), depth_kwargs=given, **STEPS, generator=seeded(0))
    expected = pipe.depth_estimator(build_image(), **{**given, "generator": seeded(1)})
    assert np.array_equal(output.log_depth, expected.log_depth)
    assert list(given) == ["num_inference_steps", "ensemble_size", "processing_resolution", "generator"]


@each_pipeline
def test_given_depth_and_log_depth_give_what_the_estimate_gives(cls):
    pipe, _ = shared_pipelines(cls)
    arguments = {"prompt": "a", **STEPS}
    start = {} if cls is DepthFMControlNetPipeline else start_arguments(cls)
    first = pipe(**start_arguments(cls), **arguments, generator=seeded())
    again = pipe(**start, log_depth=first.log_depth, **arguments, generator=seeded())
    assert np.array_equal(again.images, first.images)
    assert np.array_equal(again.log_depth, first.log_depth)
    metric = pipe(**start, depth=7 * np.exp(first.log_depth), **arguments, generator=seeded())
    difference = np.asarray(metric.control_image[0], int) - np.asarray(first.control_image[0], int)
    assert abs(difference).max() <= 1


def test_no_network_estimates_a_given_depth():
    pipe, _ = build_pipelines()
    pipe.depth_unet.forward = None  # calling it would be an error
    pipe.depth_vae.encode = None
    log_depth = np.linspace(-1, 1, 48 * 64, dtype=np.float32).reshape(48, 64)
    assert np.isfinite(pipe("a", log_depth=log_depth, **STEPS).images).all()
    assert np.isfinite(pipe("a", control_image=build_image(), **STEPS).images).all()


def test_depth_as_a_png_of_millimetres():
    pipe, _ = shared_pipelines()
    millimetres = np.linspace(1000, 8000, 48 * 64).reshape(48, 64).astype(np.uint16)
    output = pipe("a", depth=Image.fromarray(millimetres), **STEPS)
    np.testing.assert_allclose(output.log_depth[0, ..., 0], np.log(millimetres.astype(np.float32)), rtol=1e-6)
    assert output.control_image[0].getpixel((0, 0)) == (255, 255, 255), "near is white"
    inverted = pipe("a", depth=Image.fromarray(millimetres), control_mode="depth", **STEPS)
    assert inverted.control_image[0].getpixel((0, 0)) == (0, 0, 0)


@each_pipeline
def test_given_control_images_are_diffusers_business(cls):
    pipe, counterpart = shared_pipelines(cls)
    control = build_image(5)
    start = {} if cls is DepthFMControlNetPipeline else start_arguments(cls)
    output = pipe("a", **start, control_image=control, **STEPS, generator=seeded())
    expected = counterpart("a", **diffusers_arguments(cls, control), **STEPS, generator=seeded())
    assert np.array_equal(output.images, expected.images)
    assert list(output) == ["images"], "there is no depth, and no control image of ours"


@each_pipeline
def test_sizes_that_are_no_multiples_of_the_latents(cls):
    """As in diffusers, images are rounded down; the depth is that of the whole photo."""
    pipe, counterpart = shared_pipelines(cls)
    photo, size = build_image(size=(61, 45)), (61, 45)
    start = {"image": photo} | ({"mask_image": build_mask(size)} if cls is DepthFMControlNetInpaintPipeline else {})
    output = pipe("a", **start, **STEPS, generator=seeded())
    assert output.images.shape == (1, 40, 56, 3)
    assert output.depth.shape == (1, 45, 61, 1)
    assert output.control_image[0].size == size
    control = output.control_image[0]
    start = {"image": control} if cls is DepthFMControlNetPipeline else {**start, "control_image": control}
    assert np.array_equal(output.images, counterpart("a", **start, **STEPS, generator=seeded()).images)


@pytest.mark.parametrize("cls", FROM_IMAGES)
def test_control_images_of_another_size_than_the_image(cls):
    """Where diffusers itself fails, after the text encoder."""
    pipe, counterpart = shared_pipelines(cls)
    control = build_image(5, (40, 32))
    output = pipe("a", **start_arguments(cls), control_image=control, **STEPS, generator=seeded())
    arguments = {**diffusers_arguments(cls, control), "height": 48, "width": 64}
    assert np.array_equal(output.images, counterpart("a", **arguments, **STEPS, generator=seeded()).images)


def test_latents_of_image_to_image_are_those_of_the_first_step():
    pipe, _ = shared_pipelines(DepthFMControlNetImg2ImgPipeline)
    arguments = {"prompt": "a", "log_depth": np.linspace(0, 1, 48 * 64).reshape(48, 64), **STEPS}
    latents = torch.randn(1, 4, 6, 8, generator=seeded())
    one, other = (pipe(image=build_image(i), latents=latents, **arguments).images for i in (0, 1))
    assert np.array_equal(one, other), "`image` is not used for more than its size"
    assert abs(pipe(image=build_image(), **arguments, generator=seeded()).images - one).max() > 1e-3


def test_schedules_of_the_callers_own():
    pipe, counterpart = build_pipelines()
    for one in (pipe, counterpart):
        one.scheduler = EulerDiscreteScheduler.from_config(one.scheduler.config, timestep_spacing="linspace")
    for schedule, steps in (({"timesteps": [900, 500, 20]}, 3), ({"sigmas": [9.0, 2.0, 0.0]}, 2)):
        output = pipe("a", build_image(), **schedule, output_type="np", generator=seeded())
        assert pipe.num_timesteps == steps
        arguments = {**schedule, "output_type": "np", "generator": seeded()}
        assert np.array_equal(output.images, counterpart("a", output.control_image[0], **arguments).images)


def test_inpainting_models_of_nine_channels():
    stable = build_stable_diffusion_pipeline()
    controlnet = build_controlnet(stable.unet)
    torch.manual_seed(6)
    unet = UNet2DConditionModel.from_config({**stable.unet.config, "in_channels": 9}).eval()
    components = {**stable.components, "unet": unet, "controlnet": controlnet}
    counterpart = StableDiffusionControlNetInpaintPipeline(**components, requires_safety_checker=False)
    pipe = DepthFMControlNetInpaintPipeline.from_pipelines(counterpart, build_depth_estimator())
    pipe.scheduler = DDIMScheduler.from_config(stable.scheduler.config)
    start = start_arguments(DepthFMControlNetInpaintPipeline)
    output = pipe("a", **start, **STEPS, generator=seeded())
    expected = counterpart("a", **start, control_image=output.control_image[0], **STEPS, generator=seeded())
    assert np.array_equal(output.images, expected.images)


@pytest.mark.parametrize("kind", ["np", "pt"])
def test_masks_of_every_kind(kind):
    pipe, counterpart = shared_pipelines(DepthFMControlNetInpaintPipeline)
    array = np.asarray(build_mask(), np.float32) / 255
    mask = {"np": array[None, ..., None], "pt": torch.from_numpy(array)[None, None]}[kind]
    arguments = {"prompt": "a", "image": build_image(), "mask_image": mask, **STEPS}
    output = pipe(**arguments, generator=seeded())
    expected = counterpart(**arguments, control_image=output.control_image[0], generator=seeded())
    assert np.array_equal(output.images, expected.images)


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
@pytest.mark.parametrize("cls", FROM_IMAGES)
def test_starting_images_of_every_kind(cls, kind):
    pipe, counterpart = shared_pipelines(cls)
    array = np.asarray(build_image(), np.float32) / 255
    image = {"pil": build_image(), "np": array[None], "pt": torch.from_numpy(array).permute(2, 0, 1)[None]}[kind]
    output = pipe("a", **start_arguments(cls, image), **STEPS, generator=seeded())
    arguments = diffusers_arguments(cls, output.control_image[0], image)
    expected = counterpart("a", **arguments, **STEPS, generator=seeded())
    assert np.array_equal(output.images, expected.images)


def test_starting_from_latents():
    cls = DepthFMControlNetImg2ImgPipeline
    pipe, counterpart = shared_pipelines(cls)
    latents = torch.randn(1, 4, 6, 8, generator=seeded())
    depth = np.linspace(1, 2, 48 * 64).reshape(48, 64)
    output = pipe("a", **start_arguments(cls, latents), depth=depth, **STEPS, generator=seeded())
    arguments = diffusers_arguments(cls, output.control_image[0], latents)
    assert np.array_equal(output.images, counterpart("a", **arguments, **STEPS, generator=seeded()).images)


def test_cropped_inpainting():
    pipe, counterpart = shared_pipelines(DepthFMControlNetInpaintPipeline)
    arguments = {"prompt": "a", "padding_mask_crop": 4, "num_inference_steps": 2}
    output = pipe(image=build_image(), mask_image=build_mask(), **arguments, generator=seeded())
    expected = counterpart(
        image=build_image(),
        mask_image=build_mask(),
        control_image=output.control_image[0],
        **arguments,
        generator=seeded(),
    )
    assert np.array_equal(np.asarray(output.images[0]), np.asarray(expected.images[0]))
    kept = np.asarray(output.images[0])[np.asarray(build_mask()) == 0]
    np.testing.assert_array_equal(kept, np.asarray(build_image())[np.asarray(build_mask()) == 0])


def test_strength():
    pipe, _ = shared_pipelines(DepthFMControlNetImg2ImgPipeline)
    depth = np.linspace(1, 2, 48 * 64).reshape(48, 64)
    steps = []
    for strength in (0.25, 1.0):
        pipe("a", build_image(), depth=depth, strength=strength, num_inference_steps=4, output_type="pt")
        steps.append(pipe.num_timesteps)
    assert steps == [1, 4]


def test_rotated_photos_are_turned_for_both_networks(tmp_path):
    """Depth and starting image must be of one orientation."""
    pipe, _ = shared_pipelines(DepthFMControlNetImg2ImgPipeline)
    upright = build_image()
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as photo:
        output = pipe("a", photo, **STEPS, generator=seeded())
    assert np.array_equal(output.images, pipe("a", upright, **STEPS, generator=seeded()).images)


def test_controlnet_at_initialisation_changes_nothing():
    stable = build_stable_diffusion_pipeline()
    untrained = build_controlnet(stable.unet, effective=False)
    pipe, _ = build_pipelines()
    pipe.controlnet = untrained
    latents = torch.randn(1, 4, 6, 8, generator=seeded())
    with_control = pipe("a", build_image(), **STEPS, latents=latents).images
    plain = StableDiffusionPipeline(**stable.components, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    without = plain("a", height=48, width=64, **STEPS, latents=latents).images
    assert np.array_equal(with_control, without)


def test_one_seed_fixes_everything_and_the_generator_is_not_spent_on_depth():
    pipe, counterpart = shared_pipelines()
    generator = seeded(3)
    first = pipe("a", build_image(), **STEPS, generator=generator)
    second = pipe("a", build_image(), **STEPS, generator=generator)
    assert np.array_equal(second.log_depth, first.log_depth), "the depth is that of the seed"
    assert abs(second.images - first.images).max() > 1e-3, "the generator goes on"
    assert np.array_equal(pipe("a", build_image(), **STEPS, generator=seeded(3)).images, first.images)
    generator = seeded(3)
    for expected in (first, second):
        images = counterpart("a", first.control_image[0], **STEPS, generator=generator).images
        assert np.array_equal(images, expected.images)


@pytest.mark.parametrize("listed", [False, True])
def test_the_depths_noise_is_not_that_of_the_image(monkeypatch, listed):
    """Where one seed serves both and their latents have one shape."""
    pipe, _ = build_pipelines()
    draws = []
    for cls in (DepthFMPipeline, DepthFMControlNetPipeline):
        original = cls.prepare_latents
        monkeypatch.setattr(
            cls, "prepare_latents", lambda *args, original=original: draws.append(original(*args)) or draws[-1]
        )
    generator = [seeded(5)] if listed else seeded(5)
    depth_kwargs = {"processing_resolution": 64}
    for _ in range(2):
        pipe("a", build_image(), depth_kwargs=depth_kwargs, **STEPS, generator=generator)
    (depth,), image, (again,), _ = draws
    assert depth.shape == image.shape == (1, 4, 6, 8)
    assert abs(torch.corrcoef(torch.stack([depth.flatten(), image.flatten()]))[0, 1]) < 0.2
    assert torch.equal(depth, again), "one seed, one depth"


def test_derived_generators_differ_by_seed_and_not_by_use():
    used = seeded(3)
    torch.randn(5, generator=used)
    assert depth_generator(used).initial_seed() == depth_generator(seeded(3)).initial_seed()
    seeds = {depth_generator(seeded(seed)).initial_seed() % 2**32 for seed in range(1000)}
    assert len(seeds) == 1000, "the CPU's generator uses 32 bits"
    assert not seeds & set(range(1000))


def test_threads_share_the_depth_estimator_and_the_networks():
    """The loop's state is diffusers': one pipeline per thread for that, with a scheduler of its own."""
    pipe, _ = build_pipelines()
    pipes = [
        DepthFMControlNetPipeline.from_pipelines(pipe, pipe.depth_estimator, scheduler=deepcopy(pipe.scheduler))
        for _ in range(2)
    ]
    for one in pipes:
        one.set_progress_bar_config(disable=True)
    inside = Barrier(2, timeout=20)

    def generate(i, together):
        def wait(used, step, t, tensors):
            if together and step == 0:
                inside.wait()
            return tensors

        depth_kwargs = {"num_inference_steps": 2 + i, "callback_on_step_end": wait}
        arguments = {"num_inference_steps": 2 + i, "output_type": "np", "generator": seeded(i)}
        return pipes[i]("a", build_image(i), depth_kwargs=depth_kwargs, callback_on_step_end=wait, **arguments)

    with ThreadPoolExecutor(1) as pool:
        expected = list(pool.map(lambda i: generate(i, together=False), range(2)))
    with ThreadPoolExecutor(2) as pool:
        got = list(pool.map(lambda i: generate(i, together=True), range(2)))
    for one, other in zip(got, expected, strict=True):
        assert np.array_equal(one.log_depth, other.log_depth)
        assert np.array_equal(one.images, other.images)


def test_an_interrupted_depth_is_not_followed():
    def stop(used, i, t, tensors):
        used._interrupt = True
        return tensors

    pipe, _ = shared_pipelines()
    with pytest.raises(RuntimeError, match="depth estimation was interrupted by the callback in `depth_kwargs`"):
        pipe("a", build_image(), depth_kwargs={"callback_on_step_end": stop, "num_inference_steps": 3}, **STEPS)


def test_callbacks_see_the_pipeline_and_may_interrupt_it():
    pipe, _ = shared_pipelines()
    seen = []

    def stop(used, i, t, tensors):
        seen.append((used, i, set(tensors)))
        used._interrupt = True
        return tensors

    names = pipe._callback_tensor_inputs
    pipe("a", build_image(), **STEPS, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=names)
    assert seen == [(pipe, 0, set(names))]
    pipe("a", build_image(), **STEPS, callback_on_step_end=stop, callback_on_step_end_tensor_inputs=None)
    assert seen[1] == (pipe, 0, {"latents"})


def test_dict_and_tuple():
    pipe, _ = shared_pipelines()
    output = pipe("a", build_image(), **STEPS, generator=seeded())
    assert isinstance(output, DepthFMControlNetOutput)
    assert list(output) == ["images", "depth", "log_depth", "control_image"]
    as_tuple = pipe("a", build_image(), **STEPS, generator=seeded(), return_dict=False)
    assert len(as_tuple) == 5
    assert np.array_equal(as_tuple[0], output.images)
    assert as_tuple[1] is None
    assert np.array_equal(as_tuple[2], output.depth)
    assert np.array_equal(as_tuple[3], output.log_depth)
    assert as_tuple[4] == output.control_image


def test_output_types():
    pipe, _ = shared_pipelines()
    arguments = {"prompt": "a", "image": build_image(), "num_inference_steps": 1}
    outputs = {kind: pipe(**arguments, output_type=kind, generator=seeded()) for kind in ("pil", "np", "pt")}
    assert outputs["pt"].depth.shape == (1, 1, 48, 64)
    assert outputs["pt"].images.shape == (1, 3, 48, 64)
    assert np.array_equal(outputs["pt"].depth[0, 0], outputs["pil"].depth[0, ..., 0])
    assert all(output.control_image[0].mode == "RGB" for output in outputs.values())


def test_the_safety_checkers_verdict_is_passed_on(monkeypatch):
    pipe, _ = build_pipelines()
    monkeypatch.setattr(pipe, "run_safety_checker", lambda image, device, dtype: (image, [False]))
    assert pipe("a", build_image(), **STEPS).nsfw_content_detected == [False]


@each_pipeline
def test_signature(cls):
    """All of diffusers' parameters are there, with its defaults; every one is documented."""
    own = inspect.signature(cls.__call__).parameters
    theirs = inspect.signature(COUNTERPARTS[cls].__call__).parameters
    for name, parameter in theirs.items():
        if name in ("kwargs", "self"):
            continue
        default = list(own[name].default) if isinstance(own[name].default, tuple) else own[name].default
        assert default == parameter.default, name
    documentation = inspect.getdoc(cls.__call__)
    for name in list(own)[1:]:
        assert f"\n    {name}: " in documentation, name
    for name in list(inspect.signature(cls.__init__).parameters)[1:]:
        assert f"\n    {name}: " in inspect.getdoc(cls.__init__), name
