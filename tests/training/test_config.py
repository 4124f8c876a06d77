"""Flags from YAML and from the command line; the card that a run writes."""

from __future__ import annotations

import json

import pytest
import train_depthfm

from depthfm_diffusers.depth_normalization import NORMALIZATIONS, DepthNormalization
from depthfm_diffusers.training import run
from depthfm_diffusers.training.config import card_facts, trainer_settings
from depthfm_diffusers.training.hub import check_hub_access
from depthfm_diffusers.training.model_card import write_model_card

BASE = ["--train_data", "a.tar", "--output_dir", "o", "--pretrained_model_name_or_path", "m"]


def parse(tmp_path, text: str, *flags: str):
    (tmp_path / "run.yaml").write_text(text)
    return train_depthfm.parse_args([*BASE, "--config", str(tmp_path / "run.yaml"), *flags])


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    text = "learning_rate: 2e-4\nseed: 7\nresolution: [384, 512]\nflip: false\nchannels_last: true\nsky: far\n"
    args = parse(tmp_path, text, "--seed", "3", "--no-channels_last")
    assert (args.learning_rate, args.seed, args.resolution) == (2e-4, 3, [384, 512])
    assert (args.flip, args.channels_last, args.sky) == (False, False, "far")
    assert args.train_batch_size == 16


def test_sources_of_the_file_keep_their_settings(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "train_data:\n  - {path: hypersim, weight: 0.9}\n  - {path: vkitti, weight: 0.1, fov_x_deg: 80}\n"
        "output_dir: o\npretrained_model_name_or_path: m\n"
    )
    args = train_depthfm.parse_args(["--config", str(tmp_path / "run.yaml")])
    expected = [{"path": "hypersim", "weight": 0.9}, {"path": "vkitti", "weight": 0.1, "fov_x_deg": 80}]
    assert args.train_data == expected


def test_record_of_a_run_repeats_it(tmp_path):
    args = train_depthfm.parse_args([*BASE, "--jitter", "0.3", "--no-flip", "--lora_rank", "4"])
    (tmp_path / "run_config.json").write_text(json.dumps({"settings": vars(args), "versions": {}}))
    again = train_depthfm.parse_args(["--config", str(tmp_path / "run_config.json")])
    assert vars(again) | {"config": None} == vars(args)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat: 1", "'learning_rat', which is no flag"),
        ("[1, 2]", "is not a mapping"),
        ("a: [", "is not YAML"),
        ("flip: 3", "flip must be true or false, got 3"),
        ("seed: -1", "must be at least 0"),
        ("sky: blue", "invalid choice: 'blue'"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, capsys, text, message):
    with pytest.raises(SystemExit):
        parse(tmp_path, text)
    assert message in capsys.readouterr().err


def test_missing_file_is_named(capsys):
    with pytest.raises(SystemExit):
        train_depthfm.parse_args([*BASE, "--config", "nowhere.yaml"])
    assert "cannot read nowhere.yaml" in capsys.readouterr().err


def test_card_names_base_data_and_scores_but_no_path(tmp_path):
    data = tmp_path / "secret" / "shards"
    data.mkdir(parents=True)
    flags = [
        "--train_data",
        str(data),
        "--output_dir",
        str(tmp_path),
        "--pretrained_model_name_or_path",
        "org/depthfm",
    ]
    facts = card_facts(train_depthfm.parse_args(flags), "org/depthfm")
    write_model_card(facts, {"abs_rel_log": 0.1234}, lora=False, validation_frames=32)
    card = (tmp_path / "README.md").read_text()
    assert "library_name: diffusers" in card
    assert "base_model: org/depthfm" in card
    assert "| abs_rel_log | 0.1234 |" in card
    assert "shards" in card
    assert "secret" not in card
    assert "load_lora_weights" not in card
    write_model_card(facts, {}, lora=True, validation_frames=32)
    card = (tmp_path / "README.md").read_text()
    assert "load_lora_weights" in card
    assert "Not validated" in card


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], DepthNormalization()),
        (["--depth_normalization", "diff2flow"], NORMALIZATIONS["diff2flow"]),
        (
            ["--depth_normalization", "diff2flow", "--depth_cap", "80", "--depth_quantiles", "0", "1", "--sky", "far"],
            DepthNormalization(0.0, 1.0, 80.0, "far", clip=False),
        ),
        (["--depth_cap", "80"], DepthNormalization(cap=80.0)),
    ],
)
def test_the_normalisation_of_the_flags_and_of_the_card(tmp_path, given, expected):
    args = train_depthfm.parse_args([*BASE, "--output_dir", str(tmp_path), *given])
    assert train_depthfm.depth_normalization(args) == expected
    write_model_card(card_facts(args, "org/depthfm"), {}, lora=False, validation_frames=1)
    card = (tmp_path / "README.md").read_text()
    settings = json.loads(card.partition("```json\n")[2].partition("```")[0])
    assert settings["depth_normalization"] == args.depth_normalization
    assert (settings["depth_quantiles"], settings["depth_cap"]) == ([expected.low, expected.high], expected.cap)


def test_hub_that_cannot_be_written_is_said_before_training():
    with pytest.raises(RuntimeError, match=r"--push_to_hub: cannot write to me/model .*hf auth login"):
        check_hub_access("me/model")


def test_trackers_that_are_missing_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    args = train_depthfm.parse_args([*BASE, "--report_to", "wandb"])
    with pytest.raises(ImportError, match=r"needs wandb: pip install 'depthfm_diffusers\[wandb\]'"):
        run.build_accelerator(trainer_settings(args))


def test_processes_that_do_not_know_of_each_other_are_refused(tmp_path, monkeypatch, fresh_accelerate_state):
    """As two CPU processes under a GPU configuration are, each the first of one."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    flags = [*BASE[:2], "--output_dir", str(tmp_path / "out"), *BASE[4:], "--report_to", "none"]
    with pytest.raises(RuntimeError, match="2 processes were launched, but accelerate sees 1"):
        run.build_accelerator(trainer_settings(train_depthfm.parse_args(flags)))
    assert not (tmp_path / "out").exists()
