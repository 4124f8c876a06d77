"""Order and randomness as pure functions of (seed, epoch, sample index), and the choice of validation frames.

A resumed run therefore sees the same samples, with the same randomness, as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

SHUFFLE_WINDOW = 1024


@dataclass(frozen=True)
class SourceIndices:
    """The training samples of one data source.

    Attributes:
        indices: Positions in the data set.
        weight: How often batches are drawn from this source, relative to the other sources; `None` for all sources:
            each sample is drawn once an epoch.
        groups: Shard of each sample, for shards that are read fast in their own order only; `None` for random access.
    """

    indices: np.ndarray
    weight: float | None = None
    groups: np.ndarray | None = None


def shuffled_by_window(groups: np.ndarray, rng: np.random.Generator, window: int = SHUFFLE_WINDOW) -> np.ndarray:
    """Returns a permutation that shuffles the groups, then the samples within a window that slides over them.

    Neighbours in the result come from a few groups only, so that tar files are read nearly in order.

    Args:
        groups: N, group of each sample; samples of a group stay in their order before the window mixes them.
        rng: Source of the randomness.
        window: Number of samples that are held back; each next sample is drawn from these.
    """
    _, group_numbers, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group_numbers, kind="stable"), np.cumsum(sizes)[:-1])
    order = np.concatenate([members[number] for number in rng.permutation(len(sizes))])
    held = order[:window].copy()
    slots = rng.integers(len(held), size=len(order) - len(held))
    result = np.empty_like(order)
    for place, (slot, following) in enumerate(zip(slots, order[window:], strict=True)):
        result[place] = held[slot]
        held[slot] = following
    result[len(slots) :] = held[rng.permutation(len(held))]
    return result


def spread_over_scenes(indices: Sequence[int], scenes: Sequence[str], count: int) -> list[int]:
    """Chooses frames evenly over their scenes, always the same ones.

    Where there are more scenes than frames to choose, scenes at equal distances in their order are taken, one frame of
    each. Otherwise every scene gives the same number of frames, as far as it has them, at equal distances.

    Args:
        indices: The frames to choose from, increasing.
        scenes: Scene of every frame of the data set.
        count: Number of frames to choose, at most; at least 1.

    Returns:
        The chosen ones of `indices`, increasing.
    """
    of_scene: dict[str, list[int]] = {}
    for index in indices:
        of_scene.setdefault(scenes[index], []).append(index)
    members = list(of_scene.values())
    if len(members) > count:
        members = [members[n * len(members) // count] for n in range(count)]
    shares = [0] * len(members)
    left = min(count, len(indices))
    while left:
        for number, frames in enumerate(members):
            if left and shares[number] < len(frames):
                shares[number] += 1
                left -= 1
    return sorted(
        frames[(2 * n + 1) * len(frames) // (2 * share)]
        for frames, share in zip(members, shares, strict=True)
        for n in range(share)
    )


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Draws batches of `(pass, index)`, each from one source, in an order that depends on `(seed, epoch)` alone.

    A pass goes once through a source's samples, in an order of its own. Without weights an epoch is one pass through
    every source; samples that do not fill a batch for each process are left out, other ones in each epoch. With
    weights an epoch has the same length, the source of each batch is drawn, and a source that is used up starts its
    next pass.

    Args:
        sources: At least one; either all have a weight or none has.
        batch_size: Samples of a batch on one process.
        seed: Seed of the run.
        num_processes: Processes that share the batches; an epoch has the same number for each.

    Raises:
        ValueError: If there are too few samples for one batch on each process, or only some sources have a weight.
    """

    drop_last = True  # read by accelerate

    def __init__(self, sources: Sequence[SourceIndices], batch_size: int, seed: int, num_processes: int = 1) -> None:
        given = [s.weight is not None for s in sources]
        if any(given) and not all(given):
            raise ValueError("Either every data source has a weight or none has.")
        self.sources = list(sources)
        self.batch_size = batch_size
        self.seed = seed
        self.num_processes = num_processes
        self.epoch = 0
        self.per_pass = [len(s.indices) // batch_size for s in sources]
        total = sum(len(s.indices) for s in sources)
        if total == 0:
            raise ValueError("The data set is empty: no sample is left to train on.")
        for number, (source, batches) in enumerate(zip(sources, self.per_pass, strict=True)):
            if batches == 0:
                raise ValueError(
                    f"--train_batch_size {batch_size} is larger than the {len(source.indices)} training samples of "
                    f"data source {number + 1}."
                )
        self.length = sum(self.per_pass) // num_processes * num_processes
        if self.length == 0:
            raise ValueError(
                f"--train_batch_size {batch_size} is larger than the {total} training samples allow on "
                f"{num_processes} processes."
            )

    def start_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration, and with it the order.

        It is not called `set_epoch`: accelerate calls a method of that name with a count that restarts at 0 when a run
        is resumed.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        """Returns the number of batches in an epoch, over all processes."""
        return self.length

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yields the batches of one epoch."""
        weighted = self.sources[0].weight is not None
        # Without weights every epoch is a pass of its own. With weights a source continues where the last epoch ended.
        position = self._drawn_before(self.epoch) if weighted else [self.epoch * n for n in self.per_pass]
        orders: dict[int, tuple[int, np.ndarray]] = {}
        for source in self._choices(self.epoch):
            source_pass, within = divmod(position[source], self.per_pass[source])
            if source not in orders or orders[source][0] != source_pass:
                orders[source] = (source_pass, self._order(source, source_pass))
            batch = orders[source][1][within * self.batch_size : (within + 1) * self.batch_size]
            position[source] += 1
            yield [(source_pass, int(index)) for index in batch]

    def _choices(self, epoch: int) -> np.ndarray:
        """Draws the source of each batch of an epoch."""
        if len(self.sources) == 1:
            return np.zeros(self.length, dtype=int)
        rng = np.random.default_rng([self.seed, epoch, 0, 2])
        if self.sources[0].weight is None:
            return rng.permutation(np.repeat(np.arange(len(self.sources)), self.per_pass))[: self.length]
        weights = np.array([s.weight for s in self.sources], dtype=float)
        return rng.choice(len(self.sources), size=self.length, p=weights / weights.sum())

    def _drawn_before(self, epoch: int) -> list[int]:
        counts = np.zeros(len(self.sources), dtype=int)
        for earlier in range(epoch):
            counts += np.bincount(self._choices(earlier), minlength=len(self.sources))
        return counts.tolist()

    def _order(self, number: int, source_pass: int) -> np.ndarray:
        source = self.sources[number]
        rng = np.random.default_rng([self.seed, source_pass, number, 3] if number else [self.seed, source_pass])
        if source.groups is not None:
            return source.indices[shuffled_by_window(source.groups, rng)]
        return source.indices[rng.permutation(len(source.indices))]


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Returns the generator of everything random about one sample in one epoch."""
    # The 1 at the end tells this stream from those of the permutations.
    return np.random.default_rng([seed, epoch, index, 1])
