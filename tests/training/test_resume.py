"""A run that was stopped in any way and resumed ends exactly as one that never was (CPU, float32)."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import train_depthfm
from helpers import forked_python
from helpers.training_runs import assert_same_state, flow_flags, reset_accelerate

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")

JITTER = ("--min_crop", "0.8", "--jitter", "0.2")


@pytest.fixture(scope="module")
def whole(shard, parts, tmp_path_factory) -> Path:
    """A run of six steps that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_depthfm.main(flow_flags(shard, parts, folder, *JITTER, "--max_train_steps", "6"))
    reset_accelerate()
    return folder


@pytest.mark.parametrize(
    "extra",
    [
        ("--dataloader_num_workers", "2", "--gradient_accumulation_steps", "2"),
        ("--cache_latents", "2", "--normals_loss_weight", "0.1", "--dataloader_num_workers", "2"),
        ("--normals_loss_weight", "0.1", "--gradient_loss_weight", "0.1", "--decoded_fraction", "0.5"),
        ("--streaming", "--sigma_min", "0.01", "--start", "noise", "--gradient_checkpointing"),
    ],
    ids=["frames", "cache", "decoded", "streaming"],
)
def test_resumed_run_equals_one_never_stopped(shard, parts, tmp_path, extra):
    """Bit for bit: weights, moving average and optimizer state; across an epoch's end."""
    flags = (*JITTER, *extra, "--max_train_steps", "6")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "whole", *flags))
    reset_accelerate()

    resumed = flow_flags(shard, parts, tmp_path / "resumed", *flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for leftover in ("checkpoint-4", "checkpoint-6", "unet"):
        # As if killed after step 3: only the checkpoint of step 2 is there.
        shutil.rmtree(tmp_path / "resumed" / leftover)
    reset_accelerate()
    train_depthfm.main([*resumed, "--resume_from_checkpoint", "latest"])
    assert_same_state(tmp_path / "whole", tmp_path / "resumed", step=6)


def test_number_of_workers_changes_nothing(shard, parts, whole, tmp_path):
    flags = (*JITTER, "--max_train_steps", "6", "--dataloader_num_workers", "2")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "two", *flags))
    assert_same_state(whole, tmp_path / "two", step=6)


def test_run_killed_at_random_steps_ends_as_one_never_stopped(shard, parts, tmp_path):
    flags = (*JITTER, "--max_train_steps", "12")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "whole", *flags))
    seed = random.randrange(10**6)
    choice = random.Random(seed)

    output = tmp_path / "killed"
    command = [train_depthfm.__file__, *flow_flags(shard, parts, output, *flags), "--resume_from_checkpoint", "latest"]
    for lowest in (2, 6):
        reached = choice.choice([lowest, lowest + 2])
        process = forked_python.start(command)
        while process.exitcode is None and not (output / f"checkpoint-{reached}").is_dir():
            time.sleep(0.01)
        time.sleep(choice.uniform(0, 0.3))
        process.kill()
        process.join()
    assert not (output / "model_index.json").exists(), f"the run ended before it was killed (seed {seed})"
    status, said = forked_python.run(command, tmp_path / "log")
    assert status == 0, said
    assert_same_state(tmp_path / "whole", output, step=12)


# Runs the script with what is put in BEFORE done when the second checkpoint begins.
DRIVER = """
import os, resource, signal, sys
import accelerate.checkpointing as checkpointing
from accelerate import Accelerator
import train_depthfm
save_state = Accelerator.save_state
def save_second_state(self, folder, **kwargs):
    if folder.endswith("checkpoint-4"):
        {before}
    return save_state(self, folder, **kwargs)
def kill(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)
Accelerator.save_state = save_second_state
train_depthfm.main(sys.argv[1:])
"""
# After the model's file, when the optimizer's is to be written.
KILLED = "checkpointing.save = kill"
# No file may grow over 300 kB: to the program it is as if the disk were full.
FULL = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, -1))"


@pytest.mark.parametrize(("before", "returned"), [(KILLED, -signal.SIGKILL), (FULL, 1)], ids=["killed", "disk full"])
def test_checkpoint_that_cannot_be_written_leaves_the_last_one(shard, parts, whole, tmp_path, before, returned):
    """Although one checkpoint only is kept: the old one goes when the new one is complete."""
    flags = (*JITTER, "--max_train_steps", "6", "--checkpoints_total_limit", "1")
    stopped = flow_flags(shard, parts, tmp_path / "stopped", *flags)
    status, said = forked_python.run(["-c", DRIVER.format(before=before), *stopped], tmp_path / "log")
    assert status == returned, said
    left = sorted(p.name for p in (tmp_path / "stopped").glob("*checkpoint-*"))
    if before == FULL:
        assert "earlier checkpoints are unharmed" in said
        assert left == ["checkpoint-2"]
    else:
        assert left == ["checkpoint-2", "partial-checkpoint-4"]
    train_depthfm.main([*stopped, "--resume_from_checkpoint", "latest"])
    older = shutil.ignore_patterns("checkpoint-2", "checkpoint-4")
    expected = shutil.copytree(whole, tmp_path / "whole", ignore=older)
    assert_same_state(expected, tmp_path / "stopped", step=6)
    assert [p.name for p in (tmp_path / "stopped").glob("*checkpoint-*")] == ["checkpoint-6"]


def test_encoding_that_was_killed_goes_on(shard, parts, tmp_path):
    """Of the latent cache's files the complete ones are kept, and the result is the same."""
    flags = (*JITTER, "--max_train_steps", "2", "--cache_latents", "3")
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "whole", *flags))
    reset_accelerate()
    latents = next((tmp_path / "whole" / "latents").iterdir())
    copy = tmp_path / "again" / "latents" / latents.name
    copy.mkdir(parents=True)
    kept = sorted(latents.iterdir())
    assert len(kept) == 3
    os.link(kept[0], copy / kept[0].name)
    (copy / f"partial-1-{kept[1].name}").write_bytes(b"half")
    before = (copy / kept[0].name).stat().st_mtime_ns
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "again", *flags))
    assert (copy / kept[0].name).stat().st_mtime_ns == before
    for path in kept:
        assert path.read_bytes() == (copy / path.name).read_bytes()
    assert_same_state(tmp_path / "whole", tmp_path / "again", step=2)


def test_resume_with_other_settings_is_refused(shard, parts, tmp_path):
    flags = flow_flags(shard, parts, tmp_path, "--max_train_steps", "2")
    train_depthfm.main(flags)
    reset_accelerate()
    resume = [*flags, "--resume_from_checkpoint", "latest"]
    with pytest.raises(ValueError, match="--seed was 0, now 1"):
        train_depthfm.main([*resume, "--seed", "1"])
    reset_accelerate()
    with pytest.raises(ValueError, match=r"--sigma_min was 0\.0, now 0\.1, --sky was 'mask', now 'far'"):
        train_depthfm.main([*resume, "--sigma_min", "0.1", "--sky", "far"])
    reset_accelerate()
    train_depthfm.main([*resume, "--max_train_steps", "3", "--validation_steps", "7"])  # neither changes the past
    assert (tmp_path / "checkpoint-3").is_dir()
