"""`benchmarks/synthesis/` from frames to the report, tiny: every command of the demonstration does its part."""

from __future__ import annotations

import json
from pathlib import Path

import caption_scenes
import demonstrate
import numpy as np
import pytest
import train_autoencoder
import train_base
import train_depth_controlnet
from diffusers import StableDiffusionPipeline
from helpers.components import build_components
from helpers.repository import ROOT
from helpers.shards import sloping_frame, write_shard
from helpers.training_runs import reset_accelerate
from PIL import Image

from depthfm_diffusers import DepthFMPipeline, cli, default_model_path
from depthfm_diffusers.frames import split_by_scene
from depthfm_diffusers.training.data.sources import open_captioned_images

UNET = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 8,
}

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


@pytest.fixture(scope="module")
def frames(tmp_path_factory) -> Path:
    """A shard of rooms and streets, of many scenes, some of which are held out."""
    samples = [sloping_frame(2 * i) for i in range(60)]
    for i, sample in enumerate(samples):
        sample["json"] = json.dumps(json.loads(sample["json"]) | {"indoor": i % 2 == 0}).encode()
    return write_shard(tmp_path_factory.mktemp("frames") / "train-000.tar", samples)


def test_captions_are_added_and_held_out_frames_are_those_of_training(frames, tmp_path):
    caption_scenes.main([str(frames), "--output", str(tmp_path)])
    images = open_captioned_images([str(tmp_path / "train-000.tar")])
    assert [images[i].caption for i in range(4)] == ["a room", "a street", "a room", "a street"]
    _, held_out = split_by_scene(images.scenes, 0.05)
    rows = [json.loads(line) for line in (tmp_path / "held_out" / "metadata.jsonl").read_text().splitlines()]
    assert held_out
    assert [row["file_name"] for row in rows] == [f"{images[i].key}.png" for i in held_out]
    written = np.asarray(Image.open(tmp_path / "held_out" / rows[0]["file_name"]))
    assert np.array_equal(written, images[held_out[0]].image)


def test_base_tells_captions_apart():
    """The byte tokenizer knows any prompt, and the random text encoder gives each an embedding of its own."""
    vae = str(default_model_path() / "vae")
    args = train_base.build_parser().parse_args(["--train_data", "x", "--output_dir", "x", "--vae", vae])
    pipe = train_base.build_base(args.unet_config, args.vae)
    embeddings = [pipe.encode_prompt(p, "cpu", 1, False)[0] for p in ("a room", "a street", "", "日本")]
    assert all((a - b).abs().max() > 0.1 for i, a in enumerate(embeddings) for b in embeddings[:i])
    unknown = pipe.tokenizer.unk_token_id
    tokens = pipe.tokenizer("日本 a, B!").input_ids
    assert tokens[-1] == pipe.tokenizer.eos_token_id
    assert unknown not in tokens[1:-1]


def test_from_frames_to_the_report(frames, tmp_path, capsys):
    """Two steps of each training with the flags of the demonstration, then the measure on what came out."""
    DepthFMPipeline(
        **build_components(), default_num_inference_steps=1, default_processing_resolution=64
    ).save_pretrained(tmp_path / "depth")
    (tmp_path / "unet.json").write_text(
        json.dumps(json.loads(Path(train_base.__file__).with_name("unet.json").read_text()) | UNET)
    )
    args = demonstrate.build_parser().parse_args(["--shards", str(frames), "--work", str(tmp_path)])
    caption, autoencoder, base, controlnet, longer, adherence = demonstrate.commands(args)
    short = ["--max_train_steps", "2", "--train_batch_size", "4", "--report_to", "none", "--mixed_precision", "no"]
    caption_scenes.main(caption[2:])
    train_autoencoder.main([*autoencoder[2:], *short, "--max_train_steps", "1", "--crop_size", "32"])
    reset_accelerate()
    train_base.main([*base[2:], *short, "--unet_config", str(tmp_path / "unet.json")])
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    pipe.set_progress_bar_config(disable=True)
    assert pipe("a room", height=48, width=64, num_inference_steps=2, output_type="np").images.shape == (1, 48, 64, 3)
    reset_accelerate()
    small = ["--depth_model", str(tmp_path / "depth"), "--validation_images", "1", "--validation_inference_steps", "2"]
    train_depth_controlnet.main([*controlnet[2:], *short, *small])
    reset_accelerate()
    train_depth_controlnet.main([*longer[2:], *short, *small, "--max_train_steps", "3"])
    more = ["--model", str(tmp_path / "depth"), "--steps", "2", "--limit", "2"]
    assert cli.main([*adherence[3:], *more]) == 0
    report = json.loads((tmp_path / "adherence.json").read_text())
    assert report["images"] == 2
    assert {one["prompt"] for one in report["per_image"]} <= {"a room", "a street"}
    assert (tmp_path / "adherence.png").is_file()
    assert "without depth" in capsys.readouterr().out


def test_pages_say_what_the_report_says():
    root = ROOT
    report = json.loads((root / "benchmarks" / "synthesis" / "adherence.json").read_text())
    assert report["images"] == 60
    for page in ("docs/synthesis.md", "model_cards/depth-controlnet-small.md"):
        assert demonstrate.table(report) in (root / page).read_text(encoding="utf-8")
    assert (root / "docs" / "results" / "depth_adherence.png").is_file()


def test_commands_can_be_seen_without_running_them(frames, tmp_path, capsys):
    demonstrate.main(["--shards", str(frames), "--work", str(tmp_path / "w"), "--print"])
    assert len(capsys.readouterr().out.splitlines()) == 6
    assert not (tmp_path / "w").exists()
