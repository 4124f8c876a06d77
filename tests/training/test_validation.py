"""Validation of all three trainers: frames of every held-out scene, and not the first ones alone."""

from __future__ import annotations

import json

import pytest
import train_autoencoder
import train_depth_controlnet
import train_depthfm
from helpers.components import build_components
from helpers.shards import sloping_frame, write_shard
from helpers.stable_diffusion import build_stable_diffusion
from helpers.training_runs import flow_flags

from depthfm_diffusers import DepthFMPipeline
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.training.data.sources import MixedFrames

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
