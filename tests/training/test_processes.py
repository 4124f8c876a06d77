"""Two processes train as one does with twice the accumulation, and share the samples."""

from __future__ import annotations

import numpy as np
import torch
import train_depthfm
from accelerate.data_loader import prepare_data_loader
from helpers import forked_python
from helpers.training_runs import flow_flags, scalars
from torch.utils.data import DataLoader

from depthfm_diffusers.training.data.sampling import EpochBatchSampler, SourceIndices


def test_two_processes_give_the_curve_of_one_with_twice_the_accumulation(
    shard, parts, tmp_path, fresh_accelerate_state
):
    more = (
        "--max_train_steps",
        "5",
        "--report_to",
        "tensorboard",
        "--min_crop",
        "0.8",
        # All 12 frames: six batches, so that an epoch ends at the same sample on one process and on two.
        "--validation_fraction",
        "0",
        "--normals_loss_weight",
        "0.1",
    )
    command = [train_depthfm.__file__, *flow_flags(shard, parts, tmp_path / "two", *more)]
    environment = {"ACCELERATE_USE_CPU": "true"}
    two = forked_python.start(command, tmp_path / "log", environment=environment, processes=2)
    train_depthfm.main(flow_flags(shard, parts, tmp_path / "one", *more, "--gradient_accumulation_steps", "2"))
    two.join()
    assert two.exitcode == 0, (tmp_path / "log").read_text(encoding="utf-8")
    for name in ("loss", "normals", "learning_rate"):
        one, two = scalars(tmp_path / "one", name), scalars(tmp_path / "two", name)
        assert len(one) == 5
        np.testing.assert_allclose(two, one, rtol=1e-5)
    assert len(set(scalars(tmp_path / "one", "loss"))) == 5


def test_every_sample_is_seen_once_an_epoch_over_all_processes():
    """Through accelerate's own loaders, each as one of three processes has it; across a resumption too."""

    class Positions(torch.utils.data.Dataset):
        def __getitem__(self, item):
            return item[1]

    for epoch in (0, 3):
        seen = []
        for process in range(3):
            sampler = EpochBatchSampler([SourceIndices(np.arange(60))], batch_size=4, seed=1, num_processes=3)
            loader = prepare_data_loader(
                DataLoader(Positions(), batch_sampler=sampler), num_processes=3, process_index=process
            )
            sampler.start_epoch(epoch)
            assert len(loader) == 5
            seen += [int(index) for batch in loader for index in batch]
        assert sorted(seen) == list(range(60))
