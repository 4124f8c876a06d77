"""`training/run.py`: what may change when a run is resumed, and what is said about it."""

from __future__ import annotations

import json
from argparse import Namespace

import pytest
import train_depthfm

from depthfm_diffusers.training.config import trainer_settings
from depthfm_diffusers.training.run import build_accelerator, start_run, write_run_config

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


def flags(folder, *more: str) -> Namespace:
    base = ["--train_data", "x", "--output_dir", str(folder), "--pretrained_model_name_or_path", "x"]
    return train_depthfm.parse_args([*base, "--report_to", "none", "--max_train_steps", "100", *more])


def record(args: Namespace, **changes: object) -> None:
    """Writes `run_config.json`, as a run of `changes` in what accelerate is configured to."""
    accelerator = build_accelerator(trainer_settings(args))
    write_run_config(trainer_settings(args), vars(args), accelerator)
    path = trainer_settings(args).output_dir / "run_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def resume(folder, *more: str) -> None:
    args = flags(folder, "--resume_from_checkpoint", "latest", *more)
    write_run_config(trainer_settings(args), vars(args), build_accelerator(trainer_settings(args)))


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant_with_warmup"])
def test_other_number_of_steps_is_warned_of_where_the_learning_rate_depends_on_it(tmp_path, caplog, schedule):
    record(flags(tmp_path, "--lr_scheduler", schedule))
    resume(tmp_path, "--lr_scheduler", schedule)
    assert not caplog.records
    resume(tmp_path, "--lr_scheduler", schedule, "--max_train_steps", "150")
    if schedule == "constant_with_warmup":
        assert not caplog.records
    else:
        (message,) = (entry.message for entry in caplog.records)
        assert f"--max_train_steps was 100, now 150: --lr_scheduler {schedule} depends on it" in message
        assert "from the schedule over 100 steps to that over 150 steps" in message
    # What is resumed next is compared with the last resumption.
    assert json.loads((tmp_path / "run_config.json").read_text())["settings"]["max_train_steps"] == 150


def test_resume_in_the_precision_of_another_accelerate_configuration_is_refused(tmp_path):
    """Which no flag says: `--mixed_precision` is not given in either."""
    record(flags(tmp_path), mixed_precision="bf16")
    with pytest.raises(ValueError, match="accelerate's mixed precision was 'bf16', now 'no'"):
        resume(tmp_path)


def test_record_of_an_older_version_is_resumed(tmp_path):
    """It may lack flags and entries that came later."""
    args = flags(tmp_path)
    record(args)
    path = tmp_path / "run_config.json"
    content = json.loads(path.read_text())
    del content["num_processes"], content["mixed_precision"], content["settings"]["decoded_min_time"]
    path.write_text(json.dumps(content))
    resume(tmp_path)
    assert json.loads(path.read_text())["num_processes"] == 1


def test_two_runs_on_one_output_folder(tmp_path):
    """The second is refused before it writes; after the first has ended, or failed, the folder can be used again."""

    def run(seed: int, inside) -> None:
        args = flags(tmp_path, "--seed", str(seed))
        with start_run(trainer_settings(args), vars(args)):
            inside()

    def second_and_failure() -> None:
        with pytest.raises(BlockingIOError, match="another command is writing here") as caught:
            run(2, lambda: None)
        assert caught.value.filename == str(tmp_path)
        raise FloatingPointError

    for _ in range(2):
        with pytest.raises(FloatingPointError):
            run(1, second_and_failure)
        assert json.loads((tmp_path / "run_config.json").read_text())["settings"]["seed"] == 1
        assert [path.name for path in tmp_path.iterdir()] == ["run_config.json"]


def test_another_normalisation_of_depth_is_recorded_and_not_resumed_with(tmp_path):
    record(flags(tmp_path, "--depth_normalization", "diff2flow"))
    settings = json.loads((tmp_path / "run_config.json").read_text())["settings"]
    assert settings["depth_normalization"] == "diff2flow"
    assert (settings["depth_quantiles"], settings["depth_cap"]) == ([0.01, 0.99], 120.0)
    resume(tmp_path, "--depth_normalization", "diff2flow")
    with pytest.raises(ValueError, match="--depth_normalization was 'diff2flow', now 'depthfm'"):
        resume(tmp_path)


def test_a_record_from_before_the_normalisations_had_names_is_resumed_with_the_first_alone(tmp_path):
    record(flags(tmp_path))
    path = tmp_path / "run_config.json"
    content = json.loads(path.read_text())
    assert content["settings"]["depth_quantiles"] == [0.02, 0.98]
    del content["settings"]["depth_normalization"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"--depth_quantiles was \[0.02, 0.98\], now \[0.01, 0.99\]"):
        resume(tmp_path, "--depth_normalization", "diff2flow")
    resume(tmp_path)
