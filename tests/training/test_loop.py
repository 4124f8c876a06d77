"""The training loop on a tiny model: how often the host waits for the device, what is logged, and where it stops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import train_depthfm
from torch.utils._python_dispatch import TorchDispatchMode

from depthfm_diffusers.training.config import trainer_settings
from depthfm_diffusers.training.data.sampling import EpochBatchSampler, SourceIndices
from depthfm_diffusers.training.loop import COUNT, Trainer
from depthfm_diffusers.training.run import build_accelerator
from depthfm_diffusers.training.settings import TrainerSettings

pytestmark = pytest.mark.usefixtures("fresh_accelerate_state")


class Numbers(torch.utils.data.Dataset):
    """Sample i is the number i."""

    def __getitem__(self, item):
        return torch.tensor([float(item[1])])


class CountOperations(TorchDispatchMode):
    """Counts the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counts[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def settings(folder: Path, *flags: str) -> TrainerSettings:
    base = ["--train_data", "x", "--output_dir", str(folder), "--pretrained_model_name_or_path", "x"]
    base += ["--train_batch_size", "2", "--report_to", "none", "--max_train_steps", "3", "--lr_warmup_steps", "0"]
    return trainer_settings(train_depthfm.parse_args([*base, *flags]))


def train(run: TrainerSettings, compute_loss) -> list[dict[str, float]]:
    """Trains one weight; returns what was logged."""
    accelerator = build_accelerator(run)
    logged: list[dict[str, float]] = []
    accelerator.log = lambda values, step: logged.append(values)
    sampler = EpochBatchSampler([SourceIndices(np.arange(12))], run.train_batch_size, run.seed)
    Trainer(run, accelerator, torch.nn.Linear(1, 1), Numbers(), sampler, compute_loss, validate=None).run()
    return logged


def many_terms(model, batch):
    loss = model(batch).square().mean()
    return {
        "loss": loss,
        "half": loss / 2,
        "largest": batch.max(),
        f"{COUNT}samples": torch.tensor(len(batch)),
        f"{COUNT}even": (batch % 2 == 0).sum(),
    }


@pytest.mark.parametrize("accumulation", [1, 4])
def test_host_waits_for_the_device_once_a_step(tmp_path, monkeypatch, accumulation):
    """Whatever the number of terms and of batches in a step: one transfer, and no scalar is read besides."""
    transfers = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: transfers.append(self.shape) or tolist(self))
    with CountOperations() as operations:
        logged = train(settings(tmp_path, "--gradient_accumulation_steps", str(accumulation)), many_terms)
    assert len(logged) == 3
    assert operations.counts["stack"] > 0  # operations are seen
    # Once an epoch the loader draws its workers' seed, on the CPU.
    epochs = -(-3 * accumulation // 6)
    assert operations.counts["_local_scalar_dense"] == epochs
    assert transfers == [(5 * accumulation + 1,)] * 3


def test_terms_are_means_over_the_batches_of_a_step_and_counts_are_totals(tmp_path):
    logged = train(
        settings(tmp_path, "--gradient_accumulation_steps", "3"),
        lambda model, batch: {"loss": model(batch).sum() * 0 + batch.mean(), f"{COUNT}samples": torch.tensor(2)},
    )
    # Two steps of three batches of two are one epoch over the numbers 0 to 11, whose mean is 5.5.
    assert np.mean([values["loss"] for values in logged[:2]]) == pytest.approx(5.5)
    assert [values[f"{COUNT}samples"] for values in logged] == [6, 12, 18]


@pytest.mark.parametrize(
    ("compute", "message"),
    [
        (lambda weight: weight.sum() * float("nan"), "The loss is nan"),
        # A loss of 1, whose gradient is larger than float32 can hold.
        (lambda weight: ((weight - weight.detach()) * 1e38 * 10).sum() + 1, "The gradient's norm is inf"),
    ],
    ids=["loss", "gradient"],
)
def test_what_is_not_finite_stops_the_run_before_the_weights_change(tmp_path, compute, message):
    weights = []

    def compute_loss(model, batch):
        weights[:] = [model.weight, model.weight.detach().clone()]
        return {"loss": compute(model.weight)}

    with pytest.raises(FloatingPointError, match=message):
        train(settings(tmp_path), compute_loss)
    assert torch.equal(*weights)
    assert not list(tmp_path.glob("checkpoint-*"))
