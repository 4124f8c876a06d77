"""What is not acceptable is refused with a message that says so, before any network has run."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from helpers.components import build_unet
from helpers.controlnet_parts import (
    PIPELINES,
    build_controlnet,
    build_depth_estimator,
    build_image,
    build_mask,
    build_pipelines,
    build_stable_diffusion_pipeline,
    start_arguments,
)
from PIL import Image

from depthfm_diffusers import (
    DepthFMControlNetImg2ImgPipeline,
    DepthFMControlNetInpaintPipeline,
    DepthFMControlNetPipeline,
)
from depthfm_diffusers.pipelines.depthfm_controlnet.controlnet_inputs import (
    load_initial_images,
    load_log_depths,
    load_masks,
)

each_pipeline = pytest.mark.parametrize("cls", PIPELINES)
FROM_IMAGES = [DepthFMControlNetImg2ImgPipeline, DepthFMControlNetInpaintPipeline]
DEPTH = np.ones((48, 64), np.float32)


@cache
def untouchable(cls: type, controlnets: int = 1):
    """A pipeline none of whose networks can be run."""
    pipe, _ = build_pipelines(cls, controlnets=controlnets)

    def refuse(*_, **__):
        raise AssertionError("a network was run")

    for component in pipe.components.values():
        if isinstance(component, torch.nn.Module):
            for module in component.modules():
                module.forward = refuse
    return pipe


def refused(cls: type, message: str, error: type = ValueError, controlnets: int = 1, **arguments: object) -> None:
    pipe = untouchable(cls, controlnets)
    with pytest.raises(error, match=message):
        pipe(**{"prompt": "a", "num_inference_steps": 2, **arguments})


def test_a_network_that_is_run_would_be_noticed():
    with pytest.raises(AssertionError, match="a network was run"):
        untouchable(DepthFMControlNetPipeline)("a", build_image())


@pytest.mark.parametrize("cls", FROM_IMAGES)
@pytest.mark.parametrize("name", ["depth", "log_depth"])
def test_depth_of_another_size_than_the_image(cls, name):
    message = r"depth must be of the size of `image`.*\(48, 64\).*\(64, 48\)"
    refused(cls, message, **start_arguments(cls), **{name: np.ones((64, 48))})
    refused(cls, "one map per image", **start_arguments(cls), **{name: np.ones((2, 48, 64, 1))})


def test_depth_of_another_size_than_the_latents():
    refused(
        DepthFMControlNetImg2ImgPipeline,
        r"\(48, 64\).*\(32, 64\)",
        image=torch.zeros(1, 4, 6, 8),
        depth=np.ones((32, 64)),
    )


@each_pipeline
@pytest.mark.parametrize("prompt", [["a"], ["a"] * 3, "a"])
def test_prompt_list_of_the_wrong_length(cls, prompt):
    images = [build_image(0), build_image(1)]
    message = f"one prompt per image: there are 2 images or depth maps, but {len(prompt)} prompt"
    refused(cls, message, prompt=prompt, **start_arguments(cls, images))


def test_embeddings_of_the_wrong_number_or_width():
    refused(
        DepthFMControlNetPipeline,
        "2 images or depth maps, but 3 prompts",
        prompt=None,
        prompt_embeds=torch.zeros(3, 77, 24),
        depth=[DEPTH] * 2,
    )
    refused(
        DepthFMControlNetPipeline,
        r"`prompt_embeds` must have the width 24 .* \(1, 77, 32\)",
        prompt=None,
        prompt_embeds=torch.zeros(1, 77, 32),
        depth=DEPTH,
    )


@each_pipeline
@pytest.mark.parametrize(
    ("arguments", "message", "error"),
    [
        ({"depth": DEPTH, "log_depth": DEPTH}, "`depth` or `log_depth`, not both", ValueError),
        ({"control_mode": "midas"}, "`control_mode` must be one of", ValueError),
        ({"control_percentiles": (5, 5)}, "percentiles", ValueError),
        ({"depth_kwargs": {"steps": 4}}, "got an unexpected keyword argument 'steps'", TypeError),
        ({"depth_kwargs": {"output_type": "pt"}}, "key 'output_type', which the pipeline sets", TypeError),
        ({"depth_kwargs": {"ensemble_size": 0}}, "`ensemble_size` must be at least 1", ValueError),
        ({"prompt": None}, "Provide either `prompt` or `prompt_embeds`", ValueError),
        ({"prompt": 5}, "`prompt` has to be of type", ValueError),
        ({"negative_prompt": ["b"]}, "`negative_prompt` must be of the type of `prompt`, str, got list", TypeError),
        ({"prompt": ["a"], "negative_prompt": ["b"] * 2}, "there are 1 prompts, but 2 negative", ValueError),
        ({"generator": [torch.Generator()] * 3}, "1 prompts × 1 images = 1; got 3", ValueError),
        ({"num_images_per_prompt": 0}, "`num_images_per_prompt` must be at least 1", ValueError),
        ({"num_inference_steps": 2.5}, "`num_inference_steps` must be an integer", TypeError),
        ({"num_inference_steps": 0}, "`num_inference_steps` must be at least 1", ValueError),
        ({"controlnet_conditioning_scale": 1}, "must be type `float`", TypeError),
        ({"control_guidance_start": 0.7, "control_guidance_end": 0.2}, "cannot be larger or equal", ValueError),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, "has to be in", ValueError),
        ({"callback_on_step_end_tensor_inputs": "latents"}, r"has to be in \[.*but found \['l', 'a'", ValueError),
        ({"control_percentiles": 5.0}, "must be two numbers, .* got 5.0", ValueError),
        ({"depth_kwargs": ["ensemble_size"]}, "`depth_kwargs` must be a dict .* got list", TypeError),
        ({"prompt": []}, "`prompt` is empty", ValueError),
        ({"prompt": ["a", 5]}, "`prompt` must hold texts only", TypeError),
        ({"generator": 5}, "`generator` must be a torch.Generator .* got int", TypeError),
        ({"height": "64"}, "`height` must be an integer, got '64'", TypeError),
        ({"width": 0}, "would have no pixels: both sides must be at least 8 .* Pass `height` and `width`", ValueError),
        ({"guidance_scale": "7"}, "'>' not supported between instances of 'str'", TypeError),
        ({"output_type": "jpg"}, "`output_type` must be one of .* got 'jpg'", ValueError),
        ({"latents": torch.zeros(1, 4, 3, 3)}, r"must have shape 1×4×6×8 .* got \(1, 4, 3, 3\)", ValueError),
        ({"latents": np.zeros((1, 4, 6, 8))}, "`latents` must be a torch tensor, got ndarray", TypeError),
        ({"negative_prompt_embeds": torch.zeros(1, 77, 32)}, r"1×tokens×24, got \(1, 77, 32\)", ValueError),
        ({"negative_prompt_embeds": torch.zeros(3, 77, 24)}, r"1×tokens×24, got \(3, 77, 24\)", ValueError),
        ({"ip_adapter_image": build_image()}, "no IP-Adapter is loaded: call `pipe.load_ip_adapter", ValueError),
        ({"ip_adapter_image_embeds": [torch.zeros(2, 1, 8)]}, "no IP-Adapter is loaded", ValueError),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments(cls, arguments, message, error):
    start = {} if "depth" in arguments and cls is DepthFMControlNetPipeline else start_arguments(cls)
    refused(cls, message, error, **start, **arguments)


@pytest.mark.parametrize("cls", FROM_IMAGES)
@pytest.mark.parametrize(
    ("arguments", "message", "error"),
    [
        ({"strength": 0.0}, r"`strength` must be in \(0, 1\], got 0.0", ValueError),
        ({"strength": 1.5}, r"`strength` must be in \(0, 1\]", ValueError),
        ({"strength": 0.2}, "there is no step to take: got 0.2 × 2", ValueError),
        ({"image": None}, "`image` is missing", TypeError),
        ({"image": "photo.jpg"}, "must be a PIL image", TypeError),
        ({"image": [torch.zeros(3, 8, 8), torch.zeros(3, 8, 16)]}, "several sizes", ValueError),
    ],
)
def test_bad_starting_images(cls, arguments, message, error):
    refused(cls, message, error, **{**start_arguments(cls), **arguments})


def test_schedules_that_the_scheduler_does_not_take():
    cls, image = DepthFMControlNetPipeline, build_image()
    refused(cls, "`sigmas` cannot be given: DDIMScheduler has", image=image, sigmas=[1.0, 0.5])
    refused(cls, "`timesteps` or `sigmas`, not both", image=image, timesteps=[9, 1], sigmas=[1.0, 0.5])


@pytest.mark.parametrize("cls", FROM_IMAGES)
def test_prompts_are_counted_with_given_control_images_too(cls):
    start = start_arguments(cls, [build_image()] * 2)
    refused(
        cls, "there are 2 images or depth maps, but 3 prompts", prompt=["a"] * 3, **start, control_image=build_image()
    )


def test_latents_are_not_resized():
    refused(
        DepthFMControlNetImg2ImgPipeline,
        "latents of 48×64 pixels .* ask for 32×64",
        image=torch.zeros(1, 4, 6, 8),
        depth=DEPTH,
        height=32,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((48, 64, 3))}, "one PIL image as `image`, got ndarray"),
        ({"mask_image": np.ones((48, 64))}, "mask image should be a PIL image .*torch.Tensor"),
        ({"image": [build_image()] * 2, "prompt": ["a", "!"]}, "image should be a PIL image .*list"),
        ({"control_image": torch.zeros(1, 3, 48, 64)}, "image should be a PIL image .*torch.Tensor"),
        ({"mask_image": Image.new("L", (64, 48))}, "`mask_image` is black"),
        ({"output_type": "np"}, "output type should be PIL"),
        ({"padding_mask_crop": -4}, "`padding_mask_crop` must be at least 0"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_cropped(arguments, message):
    cls = DepthFMControlNetInpaintPipeline
    refused(cls, message, **{**start_arguments(cls), "padding_mask_crop": 4, **arguments})


def test_prompts_without_a_text_encoder():
    components = untouchable(DepthFMControlNetPipeline).components | {"text_encoder": None, "tokenizer": None}
    pipe = DepthFMControlNetPipeline(**components, requires_safety_checker=False)
    embeddings = torch.zeros(1, 77, 24)
    with pytest.raises(ValueError, match=r"The pipeline has no text_encoder.*`prompt_embeds`"):
        pipe("a", build_image())
    with pytest.raises(ValueError, match=r"The pipeline has no text_encoder.*`negative_prompt_embeds`"):
        pipe(image=build_image(), prompt_embeds=embeddings)
    with pytest.raises(AssertionError, match="a network was run"):
        pipe(image=build_image(), prompt_embeds=embeddings, guidance_scale=1.0)


def test_sizes_without_a_pixel():
    refused(DepthFMControlNetPipeline, "no pixels: both sides must be at least 8", image=build_image(), height=4)
    refused(DepthFMControlNetImg2ImgPipeline, "first image is 48×4", image=build_image(size=(4, 48)))


def test_sources_of_depth():
    cls = DepthFMControlNetPipeline
    refused(cls, "nothing to make a control image of: .* or an `image`")
    refused(cls, "`image` to estimate its depth, or .* not both", image=build_image(), depth=DEPTH)
    refused(cls, "would not be used", image=build_image(), control_image=build_image())
    refused(cls, "would not be used", depth=DEPTH, control_image=build_image())
    refused(DepthFMControlNetImg2ImgPipeline, "`image` holds latents", image=torch.zeros(1, 4, 6, 8))
    refused(
        DepthFMControlNetInpaintPipeline,
        "1 or 3 channels|C of 1 or 3",
        image=torch.zeros(1, 4, 6, 8),
        mask_image=build_mask(),
    )


def test_lists_for_several_controlnets():
    arguments = {"image": build_image(), "controlnets": 2}
    message = r"list of 2 entries, one per ControlNet \(`None` where the depth is to be used\)"
    refused(DepthFMControlNetPipeline, message, **arguments, control_image=build_image())
    refused(DepthFMControlNetPipeline, message, **arguments, control_image=[None])
    refused(DepthFMControlNetPipeline, "holds an empty list", **arguments, control_image=[None, []])
    # diffusers would leave the second out without a word.
    refused(
        DepthFMControlNetPipeline,
        "one per ControlNet: there are 2 ControlNets",
        **arguments,
        controlnet_conditioning_scale=[1.0],
    )
    refused(
        DepthFMControlNetPipeline,
        "2 controlnets available",
        **arguments,
        control_guidance_start=[0.0],
        control_guidance_end=[1.0],
    )


@each_pipeline
@pytest.mark.parametrize("where", ["controlnet", "text_encoder"])
def test_components_of_different_width(cls, where):
    stable = build_stable_diffusion_pipeline("1.5")
    other = build_stable_diffusion_pipeline("2.1")
    controlnet = build_controlnet((other if where == "controlnet" else stable).unet)
    messages = {
        "controlnet": "`controlnet` attends to text embeddings of width 32, but `unet` to 24",
        "text_encoder": "`text_encoder` makes embeddings of width 32, but `unet` attends to 24",
    }
    changed = {"text_encoder": other.text_encoder} if where == "text_encoder" else {}
    with pytest.raises(ValueError, match=messages[where]):
        cls.from_pipelines(stable, build_depth_estimator(), controlnet=controlnet, **changed)
    # Components may be exchanged later; a call then finds it out.
    pipe, _ = build_pipelines(cls)
    setattr(pipe, where, getattr(other, where) if where == "text_encoder" else controlnet)
    with pytest.raises(ValueError, match=messages[where]):
        pipe("a", **start_arguments(cls))


def test_one_of_several_controlnets_is_named():
    stable, other = build_stable_diffusion_pipeline("1.5"), build_stable_diffusion_pipeline("2.1")
    with pytest.raises(ValueError, match=r"`controlnet\[1\]` attends"):
        DepthFMControlNetPipeline.from_pipelines(
            stable,
            build_depth_estimator(),
            controlnet=[build_controlnet(stable.unet), build_controlnet(other.unet)],
        )


def test_depth_components_that_do_not_fit():
    pipe, _ = build_pipelines()
    components = pipe.components
    with pytest.raises(ValueError, match=r"components of the depth estimator.*must take 8 channels"):
        DepthFMControlNetPipeline(
            **{**components, "depth_unet": build_unet(in_channels=4)}, requires_safety_checker=False
        )
    with pytest.raises(TypeError, match="default_num_inference_steps"):
        DepthFMControlNetPipeline(**components, requires_safety_checker=False, default_depth_num_inference_steps=1.5)
    pipe.depth_vae = None
    with pytest.raises(ValueError, match=r"The pipeline has no depth_vae: set `pipe\.depth_vae`"):
        pipe("a", build_image())


def test_two_pipelines_are_checked():
    stable, estimator = build_stable_diffusion_pipeline(), build_depth_estimator()
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'controlnet'"):
        DepthFMControlNetPipeline.from_pipelines(stable, estimator)
    with pytest.raises(TypeError, match="must be a DepthFMPipeline, got StableDiffusionPipeline"):
        DepthFMControlNetPipeline.from_pipelines(stable, stable)
    with pytest.raises(AttributeError, match="'str' object has no attribute 'components'"):
        DepthFMControlNetPipeline.from_pipelines("stable-diffusion", estimator)
    with pytest.raises(TypeError, match="unexpected keyword argument 'control_net'"):
        DepthFMControlNetPipeline.from_pipelines(stable, estimator, control_net=None)
    assert isinstance(stable, StableDiffusionPipeline)


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.ones((3, 4)), [(3, 4)]),
        (np.ones((3, 4, 1)), [(3, 4)]),
        (np.ones((2, 3, 4, 1), np.uint16), [(3, 4)] * 2),
        (torch.ones(3, 4), [(3, 4)]),
        (torch.ones(1, 3, 4, dtype=torch.float16), [(3, 4)]),
        (torch.ones(2, 1, 3, 4), [(3, 4)] * 2),
        ([np.ones((3, 4, 1)), torch.ones(1, 5, 6)], [(3, 4), (5, 6)]),
        (Image.fromarray(np.ones((3, 4), np.float32)), [(3, 4)]),
        (Image.fromarray(np.ones((3, 4), np.uint16)), [(3, 4)]),
    ],
)
def test_accepted_depth_maps(value, shape):
    maps = load_log_depths(value, None)
    assert [one.shape for one in maps] == [(1, 1, *size) for size in shape]
    assert all(one.dtype == torch.float32 and (one == 0).all() for one in maps)


@pytest.mark.parametrize(
    ("depth", "log_depth", "error", "message"),
    [
        (np.zeros((2, 2)), None, ValueError, "positive everywhere, and 4 of its values are not.*pass `log_depth`"),
        ([np.ones((2, 2)), -np.ones((2, 2))], None, ValueError, r"`depth\[1\]` must be positive"),
        (np.full((2, 2), np.nan), None, ValueError, "NaN or infinite"),
        (None, np.full((2, 2), -np.inf), ValueError, "`log_depth` holds NaN or infinite"),
        (np.ones((2, 3, 4)), None, ValueError, r"H×W, H×W×1 or N×H×W×1.*got the shape \(2, 3, 4\)"),
        (torch.ones(3, 4, 1), None, ValueError, "tensor H×W, 1×H×W or N×1×H×W"),
        (np.ones((0, 4)), None, ValueError, "at least one pixel"),
        (np.ones(4), None, ValueError, "got the shape"),
        ([], None, ValueError, "`depth` is empty"),
        ("depth.png", None, TypeError, "`depth` must be a NumPy array, a torch tensor or a PIL image, got str"),
        (None, Image.new("F", (2, 2)), TypeError, "`log_depth` must be a NumPy array or a torch tensor"),
        (Image.new("L", (2, 2), 1), None, ValueError, "mode L: 8 bit are too few"),
    ],
)
def test_refused_depth_maps(depth, log_depth, error, message):
    with pytest.raises(error, match=message):
        load_log_depths(depth, log_depth)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (None, TypeError, "`mask_image` is missing"),
        (build_mask((48, 64)), ValueError, r"images of \(height, width\) \[\(48, 64\)\], masks of \[\(64, 48\)\]"),
        ([build_mask()] * 2, ValueError, "one mask per image"),
        (np.full((48, 64), 255, np.int32), ValueError, r"values in \[0, 1\]"),
        (np.zeros((48, 64, 3)), ValueError, "H×W, H×W×1"),
        ([], ValueError, "masks of"),
        ("mask.png", TypeError, "`mask_image` must be"),
    ],
)
def test_refused_masks(mask, error, message):
    with pytest.raises(error, match=message):
        load_masks(mask, [(48, 64)])


def test_masks_of_every_kind_are_one_mask():
    images = load_initial_images([build_image()] * 2, None, 8)
    array = np.asarray(build_mask(), np.float32) / 255
    for mask in (array, array[..., None], torch.from_numpy(array), torch.from_numpy(array > 0.5)):
        assert torch.equal(load_masks(mask, images.sizes)[0, 0], torch.from_numpy(array))
    two = replace(images, masks=load_masks([array, 1 - array], images.sizes)).for_diffusers(2)["mask_image"]
    assert [one[0, 0, 0].item() for one in two] == [0, 0, 1, 1]
    one = replace(images, masks=load_masks([build_mask()], images.sizes)).for_diffusers(2)["mask_image"]
    assert one.size == (64, 48)
