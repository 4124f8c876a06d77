"""Checkpoints: complete or absent; order of the samples; resuming."""

from __future__ import annotations

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from checkpointing import checkpoint_step, find_checkpoint, list_checkpoints, save_checkpoint
from sampling import EpochSampler, sample_rng


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


def test_order_depends_on_seed_and_epoch_alone():
    sampler = EpochSampler(10, seed=3)
    first = list(sampler)
    assert sorted(i for _, i in first) == list(range(10))
    assert first == list(EpochSampler(10, seed=3))
    sampler.start_epoch(1)
    second = list(sampler)
    assert [i for _, i in second] != [i for _, i in first]
    assert {e for e, _ in second} == {1}
    with pytest.raises(ValueError, match="empty"):
        EpochSampler(0, seed=0)


def test_samples_have_independent_reproducible_streams():
    draws = {key: sample_rng(*key).random() for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]}
    assert len(set(draws.values())) == 4
    assert sample_rng(0, 0, 1).random() == draws[(0, 0, 1)]
