"""The training loop that the scripts share: batch, loss, step, checkpoint, validation."""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.logging import get_logger
from accelerate.utils import DistributedType
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from .checkpointing import checkpoint_step, find_checkpoint, save_checkpoint
from .data.sampling import EpochBatchSampler
from .settings import TrainerSettings
from .validation.validation import Validation

logger = get_logger(__name__)

# Terms of the loss with this prefix are numbers of samples, added up over batches and processes.
COUNT = "count/"
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED)


def build_optimizer(settings: TrainerSettings, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Builds AdamW, or its 8-bit form.

    Raises:
        ImportError: If 8-bit Adam is asked for without bitsandbytes.
    """
    options: dict[str, Any] = {"lr": settings.learning_rate, "weight_decay": settings.adam_weight_decay}
    if not settings.use_8bit_adam:
        return torch.optim.AdamW(parameters, **options, fused=True)
    try:
        bitsandbytes = importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise ImportError("--use_8bit_adam needs bitsandbytes: pip install bitsandbytes") from error
    return bitsandbytes.optim.AdamW8bit(parameters, **options)


class Trainer:
    """Prepares one trainable model and runs its optimizer steps.

    Args:
        settings: Of the run.
        accelerator: From `run.start_run`.
        model: The trainable model; its parameters that require a gradient are trained, in float32.
        dataset: Map-style; takes `(epoch, index)` and returns what the default collation can batch.
        sampler: Draws the batches' `(epoch, index)`.
        compute_loss: From (the prepared model, a batch on its device) to named terms; `"loss"` is minimised, terms
            whose name starts with `COUNT` are counts. The names are the same for every batch.
        validate: From the model as it is now to its validation; called on the main process every `validation_steps`
            and at the end. `None`: nothing is validated.

    Attributes:
        scores: Of the last validation since this process was started; empty if there was none.
    """

    def __init__(
        self,
        settings: TrainerSettings,
        accelerator: Accelerator,
        model: torch.nn.Module,
        dataset: Dataset,
        sampler: EpochBatchSampler,
        compute_loss: Callable[[torch.nn.Module, Any], dict[str, torch.Tensor]],
        validate: Callable[[Any], Validation] | None,
    ) -> None:
        self.settings = settings
        self.accelerator = accelerator
        self.compute_loss = compute_loss
        self.validate = validate
        self.sampler = sampler
        dataloader = DataLoader(dataset, batch_sampler=sampler, num_workers=settings.dataloader_num_workers)
        model.train()
        optimizer = build_optimizer(settings, [p for p in model.parameters() if p.requires_grad])
        # accelerate steps the scheduler once per process.
        lr_scheduler = get_scheduler(
            settings.lr_scheduler,
            optimizer,
            num_warmup_steps=settings.lr_warmup_steps * accelerator.num_processes,
            num_training_steps=settings.max_train_steps * accelerator.num_processes,
        )
        # Under FSDP the shards are gathered into this copy at the end.
        self._whole = copy.deepcopy(model) if accelerator.distributed_type is DistributedType.FSDP else None
        if accelerator.distributed_type is DistributedType.DEEPSPEED:
            # accelerate would look for it in the loader, which has no batch size beside its batch sampler.
            config = accelerator.state.deepspeed_plugin.deepspeed_config
            config["train_micro_batch_size_per_gpu"] = settings.train_batch_size
        if settings.torch_compile:
            model.compile()
        self.model, self.optimizer, self.dataloader, self.lr_scheduler = accelerator.prepare(
            model, optimizer, dataloader, lr_scheduler
        )
        self.ema: EMAModel | None = None
        if settings.ema_decay > 0:
            if accelerator.distributed_type in SHARDED:
                raise ValueError(
                    f"--ema_decay {settings.ema_decay}: no averaged weights are kept under "
                    f"{accelerator.distributed_type.value}, which shards them; set --ema_decay 0."
                )
            self.ema = EMAModel(self._trainable(), decay=settings.ema_decay)
            self.ema.to(accelerator.device)
            accelerator.register_for_checkpointing(self.ema)
        self.step = 0
        self.counts: dict[str, int] = {}
        self.scores: dict[str, float] = {}
        self._names: list[str] = []
        self._pending: list[torch.Tensor] = []
        if settings.resume_from_checkpoint is not None:
            checkpoint = find_checkpoint(settings.output_dir, settings.resume_from_checkpoint)
            if checkpoint is None:
                logger.info(f"No checkpoint in {settings.output_dir} yet: starting from the beginning.")
            else:
                accelerator.load_state(str(checkpoint))
                self.step = checkpoint_step(checkpoint)
                logger.info(f"Resumed from {checkpoint}.")

    def run(self) -> None:
        """Trains up to `max_train_steps`, then checkpoints and validates once more.

        Raises:
            FloatingPointError: If the loss or a gradient is not finite; the last checkpoint is not touched.
        """
        settings = self.settings
        progress = tqdm(
            total=settings.max_train_steps,
            initial=self.step,
            desc="Steps",
            disable=not self.accelerator.is_local_main_process,
        )
        consumed = self.step * settings.gradient_accumulation_steps
        epoch, skip = divmod(consumed, len(self.dataloader))
        while self.step < settings.max_train_steps:
            self.sampler.start_epoch(epoch)
            batches = skip_first_batches(self.dataloader, skip) if skip else self.dataloader
            for batch in batches:
                terms = self._train_on(batch)
                if terms is None:
                    continue
                self.step += 1
                progress.update()
                progress.set_postfix({name: f"{value:.4f}" for name, value in terms.items() if COUNT not in name})
                self.accelerator.log(terms | {"learning_rate": self.lr_scheduler.get_last_lr()[0]}, step=self.step)
                done = self.step == settings.max_train_steps
                if done or self.step % settings.checkpointing_steps == 0:
                    save_checkpoint(self.accelerator, settings.output_dir, self.step, settings.checkpoints_total_limit)
                if done or self.step % settings.validation_steps == 0:
                    self._validate()
                if done:
                    break
            epoch, skip = epoch + 1, 0
        progress.close()
        for name, count in self.counts.items():
            if count:
                logger.warning(f"{name.removeprefix(COUNT)}: {count}, since this process was started.")

    def final_model(self) -> Any:
        """Returns the trained model, with the averaged weights if an average was kept; call on every process."""
        if self._whole is not None:
            state = self.accelerator.get_state_dict(self.model)
            if self.accelerator.is_main_process:
                self._whole.load_state_dict(state)
            return self._whole
        if self.ema is not None:
            self.ema.copy_to(self._trainable())
        return self.accelerator.unwrap_model(self.model)

    def _trainable(self) -> list[torch.nn.Parameter]:
        return [p for p in self.accelerator.unwrap_model(self.model).parameters() if p.requires_grad]

    def _train_on(self, batch: Any) -> dict[str, float] | None:
        """Trains on one batch; returns the terms of the step if the batch completes one."""
        accelerator, terms = self.accelerator, None
        with accelerator.accumulate(self.model):
            with accelerator.autocast():
                losses = self.compute_loss(self.model, batch)
            self._names = list(losses)
            # Terms stay on the device until the step is complete, so that the host need not wait for each.
            self._pending.append(torch.stack([term.detach().float() for term in losses.values()]))
            accelerator.backward(losses["loss"])
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
                terms = self._collect_terms(norm)
            self.optimizer.step()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
        if accelerator.sync_gradients and self.ema is not None:
            self.ema.step(self._trainable())
        return terms

    def _collect_terms(self, norm: torch.Tensor | float | None) -> dict[str, float]:
        """Transfers the terms of the step's batches, in one piece: means over them; counts as totals since the start.

        Args:
            norm: Norm of the gradients; `None` where it is not known.

        Raises:
            FloatingPointError: If the loss or the norm is not finite.
        """
        accelerator = self.accelerator
        batches = accelerator.reduce(torch.stack(self._pending), "sum")
        self._pending = []
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        # With fp16 the loss scaler skips a step whose gradients are not finite.
        checked = torch.as_tensor(0.0 if norm is None or accelerator.scaler is not None else norm)
        *rows, last = torch.cat([batches.flatten(), checked.to(batches).reshape(1)]).tolist()
        columns = dict(zip(self._names, (rows[n :: len(self._names)] for n in range(len(self._names))), strict=True))
        terms = {}
        for name, values in columns.items():
            if name.startswith(COUNT):
                self.counts[name] = self.counts.get(name, 0) + round(sum(values))
                terms[name] = float(self.counts[name])
            else:
                terms[name] = sum(values) / (accelerator.num_processes * len(values))
        if not math.isfinite(terms["loss"]):
            self._stop(f"loss is {terms['loss']} ({terms})")
        if not math.isfinite(last):
            self._stop(f"gradient's norm is {last} (loss {terms['loss']})")
        return terms

    def _stop(self, what: str) -> NoReturn:
        raise FloatingPointError(
            f"The {what} at step {self.step + 1}. Lower --learning_rate or use --mixed_precision no; the last "
            "checkpoint is not touched."
        )

    def _validate(self) -> None:
        if self.validate is not None and self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            model.eval()
            with self._averaged_weights(), torch.no_grad():
                validation = self.validate(model)
            model.train()
            self.scores = dict(validation.scores)
            self._log_validation(validation)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        """Gives the model the averaged weights, if an average is kept, until the block ends."""
        if self.ema is not None:
            self.ema.store(self._trainable())
            self.ema.copy_to(self._trainable())
        yield
        if self.ema is not None:
            self.ema.restore(self._trainable())

    def _log_validation(self, validation: Validation) -> None:
        scores = {f"validation/{name}": value for name, value in validation.scores.items()}
        self.accelerator.log(scores, step=self.step)
        logger.info(f"Step {self.step}: {dict(validation.scores)}")
        for tracker in self.accelerator.trackers:
            options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images({validation.title: validation.picture[None]}, step=self.step, **options)
