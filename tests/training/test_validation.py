"""Validation of all three trainers: frames of every held-out scene, and not the first ones alone."""

from __future__ import annotations

import json

import pytest
import torch
import train_autoencoder
import train_depth_controlnet
import train_depthfm
from diffusers import ControlNetModel
from helpers.captioned import picture
from helpers.components import build_components
from helpers.shards import sloping_frame, write_shard
from helpers.stable_diffusion import build_stable_diffusion
from helpers.training_runs import flow_flags

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.frames import CaptionedImage, split_by_scene
from depthfm_diffusers.training.data.controlnet_data import DepthControl
from depthfm_diffusers.training.data.sources import MixedFrames
from depthfm_diffusers.training.validation.controlnet_validation import ControlValidation, ControlValidationSettings

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """A shard of 10 scenes of 6 frames each."""
    samples = [sloping_frame(number) for number in range(60)]
    for number, sample in enumerate(samples):
        sample["json"] = json.dumps(json.loads(sample["json"]) | {"scene": f"scene{number // 6}"}).encode()
    return write_shard(tmp_path_factory.mktemp("frames") / "frames.tar", samples)


@pytest.mark.parametrize("script", [train_depthfm, train_depth_controlnet, train_autoencoder])
def test_frames_that_are_validated_are_spread_over_the_scenes(script, frames, parts, tmp_path, monkeypatch):
    read = []
    get = MixedFrames.__getitem__

    def recorded(self, index):
        read.append(int(index))
        return get(self, index)

    scenes = MixedFrames.open([str(frames)]).scenes
    _, held_out = split_by_scene(scenes, 0.4)
    there = list(dict.fromkeys(scenes[index] for index in held_out))
    assert len(there) > 2
    monkeypatch.setattr(MixedFrames, "__getitem__", recorded)
    flags = flow_flags(frames, parts, tmp_path / "run", "--max_train_steps", "1", "--validation_fraction", "0.4")
    if script is train_depthfm:
        flags[flags.index("--validation_frames") + 1] = "2"
        expected = 2
    else:
        at = flags.index("--vae")
        del flags[at : at + 4]
        at = flags.index("--validation_frames")
        del flags[at : at + 2]
        expected = 16
    if script is train_autoencoder:
        flags += ["--crop_size", "32", "--block_out_channels", "8", "8", "8", "8", "--norm_num_groups", "4"]
    if script is train_depth_controlnet:
        build_stable_diffusion(tmp_path / "sd", "1.5")
        DepthFMPipeline(**build_components(), default_num_inference_steps=1).save_pretrained(tmp_path / "depth")
        flags += ["--pretrained_model_name_or_path", str(tmp_path / "sd"), "--depth_model", str(tmp_path / "depth")]
        flags += ["--conditioning_embedding_out_channels", *"4488", "--validation_inference_steps", "1"]
        flags += ["--validation_images", "2", "--validation_guidance_scale", "1"]
        expected = 2
    script.main(flags)
    validated = [index for index in dict.fromkeys(read) if index in held_out]
    assert len(validated) == min(expected, len(held_out))
    found = {scenes[index] for index in validated}
    assert len(found) == min(expected, len(there))
    if expected == 2:
        # The first two held-out frames are of one scene.
        assert validated != held_out[:2]


def test_depth_noise_is_not_the_initial_latents_of_the_images(tmp_path, monkeypatch):
    """Both have the shape 1×4×6×8 here, and one seed would make them equal."""
    stable = build_stable_diffusion(tmp_path / "sd", "1.5")
    estimator = DepthFMPipeline(**build_components(), default_num_inference_steps=1)
    for pipe in (stable, estimator):
        pipe.set_progress_bar_config(disable=True)
    drawn = []
    standard_normal = torch.randn

    def recorded(*args, **kwargs):
        drawn.append(standard_normal(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr(torch, "randn", recorded)
    controlnet = ControlNetModel.from_unet(stable.unet, conditioning_embedding_out_channels=(4, 4, 8, 8))
    image = CaptionedImage("key", "scene", picture(0), "a")
    validate = ControlValidation(
        ControlValidationSettings(steps=1, guidance_scale=1.0),
        stable,
        DepthControl(estimator, None, "disparity", (2.0, 98.0)),
        [image],
        [0],
        (48, 64),
    )
    assert validate(controlnet).scores
    noises = [noise for noise in drawn if noise.shape == (1, 4, 6, 8)]
    # Of the depth asked for, of the image, and of the depth that it has.
    assert len(noises) == 3
    assert torch.equal(noises[0], noises[2])
    assert not torch.equal(noises[0], noises[1])
