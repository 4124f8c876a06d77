"""The training loop that the scripts share: batch, loss, step, checkpoint, validation."""

from __future__ import annotations

import argparse
import json
import logging
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.logging import get_logger
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from checkpointing import checkpoint_step, find_checkpoint, save_checkpoint
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from sampling import EpochSampler
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

logger = get_logger(__name__)

# Changing one of these between the start of a run and its resumption would silently train something else.
RESUME_INVARIANTS = ("seed", "train_batch_size", "gradient_accumulation_steps", "train_data", "validation_fraction")


def build_accelerator(args: argparse.Namespace) -> Accelerator:
    """The run's accelerator; also fixes the seeds and creates the output folder."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    # A line for each file that a library opens or writes says nothing about the run.
    for library in ("accelerate", "httpx", "fsspec", "filelock"):
        logging.getLogger(library).setLevel(logging.WARNING)
    output_dir = Path(args.output_dir)
    report_to = None if args.report_to == "none" else args.report_to
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        # Accumulation runs across the epochs' ends, so that a step is always the same number of batches.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=args.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=report_to,
        project_config=ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / args.logging_dir)
        ),
    )
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    set_seed(args.seed)
    return accelerator


def write_run_config(args: argparse.Namespace, accelerator: Accelerator) -> None:
    """Writes `run_config.json`: every flag and the versions, for whoever repeats the run.

    Raises:
        ValueError: If a run is resumed with a setting that would change what it trains on.
    """
    path = Path(args.output_dir) / "run_config.json"
    settings = json.loads(json.dumps(vars(args)))
    if args.resume_from_checkpoint and path.is_file():
        before = json.loads(path.read_text())["settings"]
        changed = [k for k in RESUME_INVARIANTS if k in before and before[k] != settings[k]]
        if changed:
            raise ValueError(
                "Cannot resume with other settings: "
                + ", ".join(f"--{k} was {before[k]!r}, now {settings[k]!r}" for k in changed)
                + ". Use the old values, or start anew in another --output_dir."
            )
    if accelerator.is_main_process:
        versions = {p: version(p) for p in ("torch", "diffusers", "accelerate", "datasets", "numpy")}
        record = {"settings": settings, "versions": versions | {"python": platform.python_version()}}
        path.write_text(json.dumps(record, indent=2) + "\n")


class Trainer:
    """Prepares one trainable model and runs its optimizer steps.

    Args:
        args: Flags of `config.base_parser`.
        accelerator: From `build_accelerator`.
        model: The trainable model, in float32.
        dataset: Map-style; takes `(epoch, index)` and returns what the default collation can batch.
        compute_loss: From (the prepared model, a batch on its device) to named terms; `"loss"` is minimised.
        validate: Called on the main process with the step, every `--validation_steps` and at the end.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        accelerator: Accelerator,
        model: torch.nn.Module,
        dataset: Any,
        compute_loss: Callable[[torch.nn.Module, Any], dict[str, torch.Tensor]],
        validate: Callable[[int], None],
    ) -> None:
        self.args = args
        self.accelerator = accelerator
        self.compute_loss = compute_loss
        self.validate = validate
        self.sampler = EpochSampler(len(dataset), args.seed)
        dataloader = DataLoader(
            dataset,
            batch_size=args.train_batch_size,
            sampler=self.sampler,
            drop_last=True,
            num_workers=args.dataloader_num_workers,
        )
        if len(dataloader) < accelerator.num_processes:
            raise ValueError(
                f"--train_batch_size {args.train_batch_size} is larger than the {len(dataset)} training samples "
                f"allow on {accelerator.num_processes} process(es)."
            )
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=args.learning_rate, weight_decay=args.adam_weight_decay, fused=True
        )
        # accelerate steps the scheduler once per process.
        lr_scheduler = get_scheduler(
            args.lr_scheduler,
            optimizer,
            num_warmup_steps=args.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=args.max_train_steps * accelerator.num_processes,
        )
        self.model, self.optimizer, self.dataloader, self.lr_scheduler = accelerator.prepare(
            model, optimizer, dataloader, lr_scheduler
        )
        self.ema = None
        if args.ema_decay > 0:
            self.ema = EMAModel(accelerator.unwrap_model(self.model).parameters(), decay=args.ema_decay)
            self.ema.to(accelerator.device)
            accelerator.register_for_checkpointing(self.ema)
        self.step = 0
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
            FloatingPointError: If the loss is not finite; the last checkpoint stays as it is.
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
                    sums[name] = sums.get(name, 0.0) + value / args.gradient_accumulation_steps
                if not self.accelerator.sync_gradients:
                    continue
                terms, sums = sums, {}
                self.step += 1
                progress.update()
                progress.set_postfix({name: f"{value:.4f}" for name, value in terms.items()})
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

    def final_model(self) -> torch.nn.Module:
        """The trained model, with the averaged weights where an average was kept."""
        model = self.accelerator.unwrap_model(self.model)
        if self.ema is not None:
            self.ema.copy_to(model.parameters())
        return model

    def _train_on(self, batch: Any) -> dict[str, float]:
        accelerator = self.accelerator
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                terms = self.compute_loss(self.model, batch)
            mean_terms = {name: accelerator.reduce(t.detach().float(), "mean").item() for name, t in terms.items()}
            if not torch.isfinite(torch.tensor(mean_terms["loss"])):
                raise FloatingPointError(
                    f"The loss is {mean_terms['loss']} at step {self.step + 1} ({mean_terms}). Lower --learning_rate "
                    "or use --mixed_precision no; the last checkpoint is unharmed."
                )
            accelerator.backward(terms["loss"])
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(self.model.parameters(), self.args.max_grad_norm)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and self.ema is not None:
            self.ema.step(accelerator.unwrap_model(self.model).parameters())
        return mean_terms

    def _validate(self) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            if self.ema is not None:
                self.ema.store(model.parameters())
                self.ema.copy_to(model.parameters())
            model.eval()
            with torch.no_grad():
                self.validate(self.step)
            model.train()
            if self.ema is not None:
                self.ema.restore(model.parameters())
        self.accelerator.wait_for_everyone()
