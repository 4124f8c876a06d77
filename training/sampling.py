"""Order and randomness as pure functions of (seed, epoch, sample index), so that a resumed run repeats nothing."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


class EpochSampler(Sampler[tuple[int, int]]):
    """Yields `(epoch, index)` for a permutation of all samples that depends on `(seed, epoch)` alone.

    Args:
        num_samples: Number of samples in the data set.
        seed: Seed of the run.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        if num_samples < 1:
            raise ValueError("The data set is empty: no sample is left to train on.")
        self.num_samples = num_samples
        self.seed = seed
        self.epoch = 0

    def start_epoch(self, epoch: int) -> None:
        """Chooses the permutation of the next iteration.

        Not called `set_epoch`: accelerate calls that itself with a count that starts again when a run is resumed.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """One epoch."""
        epoch = self.epoch
        for index in np.random.default_rng([self.seed, epoch]).permutation(self.num_samples):
            yield epoch, int(index)

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self.num_samples


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of everything random about one sample in one epoch."""
    # The trailing 1 keeps it apart from the permutation's stream.
    return np.random.default_rng([seed, epoch, index, 1])
