"""Checkpoints: complete or absent, pruned, found again."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from depthfm_diffusers.training.checkpointing import (
    checkpoint_step,
    find_checkpoint,
    list_checkpoints,
    save_checkpoint,
)


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def test_oldest_are_pruned_by_number_not_by_name(tmp_path, accelerator):
    for step in (8, 9, 10):
        save_checkpoint(accelerator, tmp_path, step, total_limit=2)
    assert [checkpoint_step(p) for p in list_checkpoints(tmp_path)] == [9, 10]
    assert not list(tmp_path.glob("partial-*"))


def test_failed_write_leaves_the_earlier_ones(tmp_path, accelerator, monkeypatch):
    save_checkpoint(accelerator, tmp_path, 1, total_limit=1)

    def full_disk(path):
        (tmp_path / "partial-checkpoint-2").mkdir()
        raise OSError("No space left on device")

    monkeypatch.setattr(accelerator, "save_state", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(accelerator, tmp_path, 2, total_limit=1)
    assert find_checkpoint(tmp_path, "latest") == tmp_path / "checkpoint-1"


def test_finding(tmp_path):
    assert find_checkpoint(tmp_path, "latest") is None
    (tmp_path / "checkpoint-3").mkdir()
    assert find_checkpoint(tmp_path, "checkpoint-3") == tmp_path / "checkpoint-3"
    assert find_checkpoint("elsewhere", str(tmp_path / "checkpoint-3")) == tmp_path / "checkpoint-3"
    with pytest.raises(FileNotFoundError, match="checkpoint-4"):
        find_checkpoint(tmp_path, "checkpoint-4")
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(ValueError, match=r"later checkpoints \(checkpoint-5\)"):
        find_checkpoint(tmp_path, "checkpoint-3")
    (tmp_path / "weights").mkdir()
    with pytest.raises(ValueError, match="not named checkpoint-STEP"):
        find_checkpoint(tmp_path, "weights")
