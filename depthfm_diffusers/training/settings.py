"""Settings of a training run, as the modules below the scripts take them; `config` builds them from the flags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer, its learning rate and the averaged weights.

    Attributes:
        learning_rate: Peak learning rate.
        lr_scheduler: Name of the schedule, as diffusers' `get_scheduler` takes it.
        lr_warmup_steps: Optimizer steps of linear warm-up.
        weight_decay: AdamW's weight decay.
        use_8bit_adam: Whether bitsandbytes' 8-bit AdamW is used.
        max_grad_norm: Gradients are clipped to this norm.
        ema_decay: Decay of the averaged weights, in [0, 1); 0: no average is kept.
    """

    learning_rate: float
    lr_scheduler: str
    lr_warmup_steps: int
    weight_decay: float
    use_8bit_adam: bool
    max_grad_norm: float
    ema_decay: float


@dataclass(frozen=True)
class TrainerSettings:
    """How a run is started, trained, logged and checkpointed.

    Attributes:
        output_dir: Folder of the run.
        seed: Fixes weights, order, augmentation and noise.
        max_train_steps: Optimizer steps in all.
        train_batch_size: Samples of a batch on one process.
        gradient_accumulation_steps: Batches of an optimizer step.
        dataloader_num_workers: Processes that read and decode samples.
        optimizer: See `OptimizerSettings`.
        checkpointing_steps: Optimizer steps between checkpoints.
        checkpoints_total_limit: Checkpoints that are kept; `None`: all.
        validation_steps: Optimizer steps between validations.
        resume_from_checkpoint: `"latest"`, a checkpoint folder, or `None` to start from the beginning.
        mixed_precision: `"no"`, `"fp16"`, `"bf16"`, or `None` for what accelerate is configured to.
        torch_compile: Whether the trained network is compiled.
        report_to: `"tensorboard"`, `"wandb"`, `"all"` or `"none"`.
        logging_dir: Folder of the tracker, inside `output_dir`.
    """

    output_dir: Path
    seed: int
    max_train_steps: int
    train_batch_size: int
    gradient_accumulation_steps: int
    dataloader_num_workers: int
    optimizer: OptimizerSettings
    checkpointing_steps: int
    checkpoints_total_limit: int | None
    validation_steps: int
    resume_from_checkpoint: str | None
    mixed_precision: str | None
    torch_compile: bool
    report_to: str
    logging_dir: str


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
