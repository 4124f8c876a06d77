"""Settings of a training run, as the modules below the scripts take them; `config` builds them from the flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class TrainerSettings:
    """How a run is started, trained, logged and checkpointed.

    The fields are the flags of the same names, which `config.base_parser` describes.
    """

    output_dir: Path
    logging_dir: str
    report_to: str
    seed: int
    resume_from_checkpoint: str | None
    checkpointing_steps: int
    checkpoints_total_limit: int | None
    validation_steps: int
    max_train_steps: int
    train_batch_size: int
    gradient_accumulation_steps: int
    dataloader_num_workers: int
    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    adam_weight_decay: float
    use_8bit_adam: bool
    max_grad_norm: float
    ema_decay: float
    mixed_precision: str | None
    torch_compile: bool


@dataclass(frozen=True)
class MemorySettings:
    """Choices that trade time for memory, and the memory format.

    Attributes:
        gradient_checkpointing: Whether activations are computed again in the backward pass.
        xformers: Whether xformers' attention is used.
        channels_last: Whether weights and images are in the channels-last memory format.
    """

    gradient_checkpointing: bool = False
    xformers: bool = False
    channels_last: bool = False

    def apply(self, network: Any) -> None:
        """Applies all three to a UNet or a ControlNet, in place."""
        self.apply_memory_format(network)
        if self.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        if self.xformers:
            network.enable_xformers_memory_efficient_attention()

    def apply_memory_format(self, network: Any) -> None:
        """Applies the memory format alone, in place."""
        if self.channels_last:
            network.to(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LoraSettings:
    """Low-rank adapters.

    Attributes:
        rank: Rank of each adapter.
        alpha: Adapters are scaled by alpha / rank.
        target_modules: Endings of the names of the layers that get an adapter.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
