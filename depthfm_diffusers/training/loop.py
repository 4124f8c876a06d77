"""The training loop that the scripts share: batch, loss, step, checkpoint, validation."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .checkpointing import (
    checkpoint_step,
    find_checkpoint,
    save_checkpoint,
)
from .data.sampling import EpochBatchSampler

logger = get_logger(__name__)

# What may differ between a run and its resumption: everything else would silently train something else.
RESUME_FREE = (
    "checkpointing_steps",
    "checkpoints_total_limit",
    "config",
    "dataloader_num_workers",
    "hub_model_id",
    "latent_cache_dir",
    "logging_dir",
    "max_train_steps",
    "output_dir",
    "push_to_hub",
    "report_to",
    "resume_from_checkpoint",
    "validation_frames",
    "validation_guidance_scale",
    "validation_images",
    "validation_inference_steps",
    "validation_steps",
)
TRACKERS = {"tensorboard": ["tensorboard"], "wandb": ["wandb"], "all": ["tensorboard", "wandb"], "none": []}

# Terms of the loss with this prefix are numbers of samples, added up over batches and processes.
COUNT = "count/"


def build_accelerator(args: argparse.Namespace) -> Accelerator:
    """The run's accelerator; also fixes the seeds and creates the output folder.

    Raises:
        ImportError: If a tracker that `--report_to` asks for is not installed.
        ValueError: If float16 is asked for on the CPU.
        RuntimeError: If the processes that were launched do not know of each other.
    """
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    # A line for each file that a library opens or writes says nothing about the run.
    for library in ("accelerate", "httpx", "fsspec", "filelock"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for tracker in TRACKERS[args.report_to]:
        if find_spec(tracker) is None:
            extra = "train" if tracker == "tensorboard" else tracker
            raise ImportError(
                f"--report_to {args.report_to} needs {tracker}: pip install 'depthfm_diffusers[{extra}]', "
                "or set --report_to none."
            )
    output_dir = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # Accumulation runs across the epochs' ends, so that a step is always the same number of batches.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=TRACKERS[args.report_to] or None,
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / args.logging_dir)
        ),
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU: use bf16 or no on the CPU.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: they would train "
            "apart and write to one folder. On the CPU, set ACCELERATE_USE_CPU=true (docs/scale.md)."
        )
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    set_seed(args.seed)
    return accelerator


def check_can_validate(held_out: Sequence[int], accelerator: Accelerator) -> None:
    """Refuses to hold data out where no process has the whole model.

    Raises:
        ValueError: If so.
    """
    if held_out and accelerator.distributed_type is DistributedType.FSDP:
        raise ValueError("--validation_fraction must be 0 under FSDP: one process validates, and it has only a shard.")


def write_run_config(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Writes `run_config.json`: every flag and the versions, for whoever repeats the run (`--config` takes it).

    Raises:
        ValueError: If a run is resumed with a setting that would change what it trains.
    """
    path = Path(args.output_dir) / "run_config.json"
    settings = json.loads(json.dumps(vars(args)))
    if args.resume_from_checkpoint and path.is_file():
        record = json.loads(path.read_text())
        before = record["settings"]
        changed = {f"--{k}": (before[k], v) for k, v in settings.items() if k in before and k not in RESUME_FREE}
        changed["the number of processes"] = (
            record.get("num_processes", accelerator.num_processes),
            accelerator.num_processes,
        )
        differences = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items() if old != new]
        if differences:
            raise ValueError(
                f"Cannot resume with other settings: {', '.join(differences)}. Use the old values, or start anew in "
                "another --output_dir."
            )
    accelerator.wait_for_everyone()  # every process has read the old file
    if accelerator.is_main_process:
        versions = {p: version(p) for p in ("torch", "diffusers", "accelerate", "datasets", "peft", "numpy")}
        record = {
            "settings": settings,
            "num_processes": accelerator.num_processes,
            "mixed_precision": accelerator.mixed_precision,
            "versions": versions | {"python": platform.python_version()},
        }
        path.write_text(json.dumps(record, indent=2) + "\n")


def build_optimizer(args: argparse.Namespace, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, or its 8-bit form.

    Raises:
        ImportError: If `--use_8bit_adam` is asked for without bitsandbytes.
    """
    settings = {"lr": args.learning_rate, "weight_decay": args.adam_weight_decay}
    if not args.use_8bit_adam:
        return torch.optim.AdamW(parameters, **settings, fused=True)
    try:
        import bitsandbytes
    except ImportError as error:
        raise ImportError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from error
    return bitsandbytes.optim.AdamW8bit(parameters, **settings)


def log_pictures(accelerator: Accelerator, name: str, pictures: np.ndarray, step: int) -> None:
    """Sends one picture (H×W×3, uint8) to every tracker that takes pictures."""
    for tracker in accelerator.trackers:
        options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({name: pictures[None]}, step=step, **options)


class Trainer:
    """Prepares one trainable model and runs its optimizer steps.

    Args:
        args: Flags of `config.base_parser`.
        accelerator: From `build_accelerator`.
        model: The trainable model; parameters that require a gradient are trained, in float32.
        dataset: Map-style; takes `(epoch, index)` and returns what the default collation can batch.
        sampler: Draws the batches' `(epoch, index)`.
        compute_loss: From (the prepared model, a batch on its device) to named terms; `"loss"` is minimised, terms
            whose name starts with `COUNT` are counts.
        validate: Called on the main process with the step, every `--validation_steps` and at the end.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        model: torch.nn.Module,
        dataset: Any,
        sampler: EpochBatchSampler,
        compute_loss: Callable[[torch.nn.Module, Any], dict[str, torch.Tensor]],
        validate: Callable[[int], None],
    ) -> None:
        self.args = args
        self.accelerator = accelerator
        self.compute_loss = compute_loss
        self.validate = validate
        self.sampler = sampler
        dataloader = DataLoader(dataset, batch_sampler=sampler, num_workers=args.dataloader_num_workers)
        model.train()
        optimizer = build_optimizer(args, [p for p in model.parameters() if p.requires_grad])
        # accelerate steps the scheduler once per process.
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=args.max_train_steps * accelerator.num_processes,
        )
        # Under FSDP the shards are gathered into this copy at the end.
        self._whole = copy.deepcopy(model) if accelerator.distributed_type is DistributedType.FSDP else None
        if accelerator.distributed_type is DistributedType.DEEPSPEED:
            # accelerate would read it off the loader, which has no batch size beside its batch sampler.
            settings = accelerator.state.deepspeed_plugin.deepspeed_config
            settings["train_micro_batch_size_per_gpu"] = args.train_batch_size
        if args.torch_compile:
            model.compile()
        self.model, self.optimizer, self.dataloader, self.lr_scheduler = accelerator.prepare(
            model, optimizer, dataloader, lr_scheduler
        )
        self.ema = None
        if args.ema_decay > 0:
            if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
                raise ValueError(
                    f"--ema_decay {args.ema_decay}: averaged weights are not kept under "
                    f"{accelerator.distributed_type.value}, which shards them; set --ema_decay 0."
                )
            self.ema = EMAModel(self._trainable(), decay=args.ema_decay)
            self.ema.to(accelerator.device)
            accelerator.register_for_checkpointing(self.ema)
        self.step = 0
        self.counts: dict[str, int] = {}
        if args.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(args.output_dir, args.resume_from_checkpoint)
            if checkpoint is None:
                logger.info(f"No checkpoint in {args.output_dir} yet: starting from the beginning.")
            else:
                accelerator.load_state(str(checkpoint))
                self.step = checkpoint_step(checkpoint)
                logger.info(f"Resumed from {checkpoint}.")

    def run(self) -> None:
        """Trains up to `--max_train_steps`, then checkpoints and validates once more.

        Raises:
            FloatingPointError: If the loss or a gradient is not finite; the last checkpoint stays as it is.
        """
        args = self.args
        progress = tqdm(
            total=args.max_train_steps,
            initial=self.step,
            desc="Steps",
            disable=not self.accelerator.is_local_main_process,
        )
        consumed = self.step * args.gradient_accumulation_steps
        epoch, skip = divmod(consumed, len(self.dataloader))
        sums: dict[str, float] = {}
        while self.step < args.max_train_steps:
            self.sampler.start_epoch(epoch)
            batches = skip_first_batches(self.dataloader, skip) if skip else self.dataloader
            for batch in batches:
                for name, value in self._train_on(batch).items():
                    sums[name] = sums.get(name, 0.0) + value
                if not self.accelerator.sync_gradients:
                    continue
                terms, sums = self._mean_terms(sums), {}
                self.step += 1
                progress.update()
                progress.set_postfix({name: f"{value:.4f}" for name, value in terms.items() if COUNT not in name})
                self.accelerator.log(terms | {"learning_rate": self.lr_scheduler.get_last_lr()[0]}, step=self.step)
                done = self.step == args.max_train_steps
                if done or self.step % args.checkpointing_steps == 0:
                    save_checkpoint(self.accelerator, args.output_dir, self.step, args.checkpoints_total_limit)
                if done or self.step % args.validation_steps == 0:
                    self._validate()
                if done:
                    break
            epoch, skip = epoch + 1, 0
        progress.close()
        for name, count in self.counts.items():
            if count:
                logger.warning(f"{name.removeprefix(COUNT)}: {count}, since this process was started.")

    def final_model(self) -> torch.nn.Module:
        """The trained model, with the averaged weights where an average was kept; to be called on every process."""
        if self._whole is not None:
            state = self.accelerator.get_state_dict(self.model)
            if self.accelerator.is_main_process:
                self._whole.load_state_dict(state)
            return self._whole
        model = self.accelerator.unwrap_model(self.model)
        if self.ema is not None:
            self.ema.copy_to(self._trainable())
        return model

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.accelerator.unwrap_model(self.model).parameters() if p.requires_grad]

    def _mean_terms(self, sums: dict[str, float]) -> dict[str, float]:
        """Terms as means over the step's batches; counts as totals since the start."""
        terms = {}
        for name, value in sums.items():
            if name.startswith(COUNT):
                self.counts[name] = self.counts.get(name, 0) + round(value)
                terms[name] = float(self.counts[name])
            else:
                terms[name] = value / self.args.gradient_accumulation_steps
        return terms

    def _train_on(self, batch: Any) -> dict[str, float]:
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                terms = self.compute_loss(self.model, batch)
            values = {
                name: accelerator.reduce(t.detach().float(), "sum" if name.startswith(COUNT) else "mean").item()
                for name, t in terms.items()
            }
            if not np.isfinite(values["loss"]):
                self._stop(f"loss is {values['loss']} ({values})")
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
                # With fp16 the loss scaler meets such gradients by skipping the step.
                if accelerator.scaler is None and norm is not None and not torch.isfinite(torch.as_tensor(norm)):
                    self._stop(f"gradient's norm is {float(norm)} (loss {values['loss']})")
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and self.ema is not None:
            self.ema.step(self._trainable())
        return values

    def _stop(self, what: str) -> None:
        raise FloatingPointError(
            f"The {what} at step {self.step + 1}. Lower --learning_rate or use --mixed_precision no; the last "
            "checkpoint is unharmed."
        )

    def _validate(self) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            if self.ema is not None:
                self.ema.store(self._trainable())
                self.ema.copy_to(self._trainable())
            model.eval()
            with torch.no_grad():
                self.validate(self.step)
            model.train()
            if self.ema is not None:
                self.ema.restore(self._trainable())
        self.accelerator.wait_for_everyone()
