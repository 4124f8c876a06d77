"""The order of the samples: a function of (seed, epoch), complete, mixed by weight, near in a shard."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthfm_diffusers.training.data.sampling import (
    EpochBatchSampler,
    SourceIndices,
    sample_rng,
    shuffled_by_window,
    spread_over_scenes,
)


def epoch_of(sampler: EpochBatchSampler, epoch: int) -> list[list[tuple[int, int]]]:
    sampler.start_epoch(epoch)
    return list(sampler)


@given(
    sizes=st.lists(st.integers(4, 30), min_size=1, max_size=3),
    batch_size=st.integers(1, 4),
    processes=st.integers(1, 3),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 4),
)
def test_epoch_without_weights_is_every_sample_at_most_once(sizes, batch_size, processes, seed, epoch):
    starts = np.cumsum([0, *sizes])
    sources = [SourceIndices(np.arange(a, b)) for a, b in pairwise(starts)]
    if sum(size // batch_size for size in sizes) < processes:
        return
    sampler = EpochBatchSampler(sources, batch_size, seed, processes)
    batches = epoch_of(sampler, epoch)
    assert len(batches) == len(sampler)
    assert len(batches) % processes == 0
    indices = [index for batch in batches for _, index in batch]
    assert len(set(indices)) == len(indices)
    # What is left out does not fill a batch of its source, or not one for each process.
    assert sum(sizes) - len(indices) < batch_size * (len(sizes) + processes)
    for batch in batches:
        assert len(batch) == batch_size
        assert len({int(np.searchsorted(starts, index, side="right")) for _, index in batch}) == 1
        assert {number for number, _ in batch} == {epoch}
    assert epoch_of(EpochBatchSampler(sources, batch_size, seed, processes), epoch) == batches


def test_epochs_and_seeds_differ():
    def order(seed, epoch):
        return epoch_of(EpochBatchSampler([SourceIndices(np.arange(50))], 5, seed), epoch)

    assert order(0, 0) != order(0, 1)
    assert [i for b in order(0, 0) for _, i in b] != [i for b in order(1, 0) for _, i in b]


def test_weights_set_the_shares_and_a_source_is_used_up_before_it_repeats():
    sources = [SourceIndices(np.arange(100), weight=3.0), SourceIndices(np.arange(100, 110), weight=1.0)]
    sampler = EpochBatchSampler(sources, 2, seed=0)
    batches = [batch for epoch in range(20) for batch in epoch_of(sampler, epoch)]
    small = [batch for batch in batches if batch[0][1] >= 100]
    assert len(batches) == 20 * 55
    assert 0.2 < len(small) / len(batches) < 0.3
    samples = [sample for batch in small for sample in batch]
    for start in range(0, len(samples) - 10, 10):
        one_pass = samples[start : start + 10]
        assert sorted(index for _, index in one_pass) == list(range(100, 110))
        assert {number for number, _ in one_pass} == {start // 10}
    # Nothing is drawn twice with the same randomness.
    assert len({sample for batch in batches for sample in batch}) == 2 * len(batches)


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), window=st.integers(1, 64), seed=st.integers(0, 9))
def test_window_shuffle_is_a_permutation_that_stays_near(sizes, window, seed):
    groups = np.repeat(np.arange(len(sizes)), sizes)
    order = shuffled_by_window(groups, np.random.default_rng(seed), window)
    assert sorted(order) == list(range(len(groups)))
    if window == 1:
        changes = np.count_nonzero(np.diff(groups[order]))
        assert changes == len(sizes) - 1


def test_window_shuffle_reads_few_shards_at_a_time():
    groups = np.repeat(np.arange(50), 100)
    order = groups[shuffled_by_window(groups, np.random.default_rng(0), window=200)]
    open_at_once = [len(set(order[start : start + 100])) for start in range(0, 4900, 100)]
    assert np.mean(open_at_once) < 12
    assert np.mean(open_at_once) > 2


@pytest.mark.parametrize(
    ("shards", "samples", "window", "seed", "digest"),
    [
        (12, 5, 1024, 0, "6da9cd54568f24ce"),
        (3000, 100, 1024, 1, "6ba00a63a0046542"),
        (5000, 7, 256, 2, "0d5c91bcde574d59"),
        (50, 50, 1, 3, "b48704d35d38d5f3"),
        (4, 1000, 1024, 4, "e359217dbfccee44"),
    ],
)
def test_window_shuffle_gives_the_order_of_version_0_4_0(shards, samples, window, seed, digest):
    """Runs that 0.4.0 started and this version resumes see the samples in one order."""
    groups = np.repeat(np.random.default_rng(seed).permutation(shards), samples)
    order = shuffled_by_window(groups, np.random.default_rng([seed, 3]), window)
    assert hashlib.sha256(order.astype("<i8").tobytes()).hexdigest()[:16] == digest


def test_window_shuffle_takes_time_in_proportion_to_the_samples():
    """20,000 shards of 10 samples: 0.15 s; looking for the samples of each shard among all of them took 3.2 s."""
    groups = np.repeat(np.arange(20_000), 10)
    start = time.process_time()
    shuffled_by_window(groups, np.random.default_rng(0))
    assert time.process_time() - start < 1.5


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=9), count=st.integers(1, 30), data=st.data())
def test_chosen_frames_are_spread_evenly_over_scenes(sizes, count, data):
    scenes = [name for number, size in enumerate(sizes) for name in [f"scene{number}"] * size]
    indices = sorted(data.draw(st.sets(st.integers(0, len(scenes) - 1), min_size=1)))
    chosen = spread_over_scenes(indices, scenes, count)
    assert chosen == sorted(set(chosen))
    assert set(chosen) <= set(indices)
    assert len(chosen) == min(count, len(indices))
    there, taken = Counter(scenes[i] for i in indices), Counter(scenes[i] for i in chosen)
    assert len(taken) == min(count, len(there))
    for scene, number in taken.items():
        # A scene gives one frame less than another only if it is that other's turn, or it has no more.
        assert number >= max(taken.values()) - 1 or number == there[scene]


def test_few_chosen_frames_come_from_the_whole_range():
    """Five of 100 scenes, at equal distances in their order; each gives its middle frame."""
    scenes = [f"scene{number // 3:03d}" for number in range(300)]
    assert spread_over_scenes(range(300), scenes, 5) == [1, 61, 121, 181, 241]
    assert spread_over_scenes(range(0, 3), scenes, 2) == [0, 2]


def test_too_few_samples_and_missing_weights_are_refused():
    some = SourceIndices(np.arange(5))
    with pytest.raises(ValueError, match="is empty"):
        EpochBatchSampler([SourceIndices(np.arange(0))], 1, 0)
    with pytest.raises(ValueError, match="--train_batch_size 6 is larger than the 5 training samples"):
        EpochBatchSampler([some], 6, 0)
    with pytest.raises(ValueError, match="on 3 processes"):
        EpochBatchSampler([some], 2, 0, num_processes=3)
    with pytest.raises(ValueError, match="every data source has a weight"):
        EpochBatchSampler([some, SourceIndices(np.arange(5, 9), weight=1.0)], 2, 0)


def test_randomness_of_a_sample_depends_on_all_three():
    values = {sample_rng(*key).random() for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(values) == 4
    assert sample_rng(1, 2, 3).random() == sample_rng(1, 2, 3).random()
