"""Tiny data, models and flags for the tests that run the training scripts from end to end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file


def flow_flags(shard: Path, parts: Path, output: Path, *more: str) -> list[str]:
    return [
        *("--train_data", str(shard), "--output_dir", str(output)),
        *("--vae", str(parts / "vae"), "--unet_config", str(parts / "unet.json")),
        *("--validation_fraction", "0.3", "--train_batch_size", "2", "--checkpointing_steps", "2"),
        *("--validation_steps", "100", "--validation_frames", "1", "--lr_warmup_steps", "1"),
        *("--learning_rate", "1e-3", "--report_to", "none"),
        *more,
    ]


def scalars(run: Path, name: str) -> list[float]:
    """The values of a term that a run logged for tensorboard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(next(run.glob("logs/**/events*")).parent)).Reload()
    return [event.value for event in events.Scalars(name)]


def reset_accelerate() -> None:
    """Lets the next run in this process start as in a new one."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()
    GradientState._reset_state()


def final_state(run: Path, step: int) -> dict[str, torch.Tensor]:
    """Every tensor that a run ends with: the result's weights, and the last checkpoint."""
    state: dict[str, torch.Tensor] = {}
    for path in sorted(run.glob("**/*.safetensors")):
        if "latents" not in path.parts[len(run.parts)] and not path.parent.name.startswith("latents"):
            state |= {f"{path.relative_to(run)}/{name}": tensor for name, tensor in load_file(path).items()}
    for path in sorted((run / f"checkpoint-{step}").glob("*.bin")):
        _flatten(torch.load(path, weights_only=True), path.name, state)
    for path in sorted((run / f"checkpoint-{step}").glob("custom_checkpoint_*.pkl")):
        _flatten(torch.load(path, weights_only=True), path.name, state)
    return state


def _flatten(value: object, name: str, into: dict[str, torch.Tensor]) -> None:
    if isinstance(value, torch.Tensor):
        into[name] = value
    elif isinstance(value, (int, float)):
        into[name] = torch.tensor(float(value), dtype=torch.float64)
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{name}/{key}", into)
    elif isinstance(value, (list, tuple)):
        for key, item in enumerate(value):
            _flatten(item, f"{name}/{key}", into)


def assert_same_state(
    first: Path, second: Path, step: int, kinds: Sequence[str] = ("checkpoint", "optimizer.bin", "custom_checkpoint")
) -> None:
    """Compares two runs' `final_state` bit for bit; each of `kinds` is in the name of a tensor at least."""
    one, other = final_state(first, step), final_state(second, step)
    assert one.keys() == other.keys()
    assert all(any(kind in name for name in one) for kind in kinds), sorted(one)[:20]
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
