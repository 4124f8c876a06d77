"""The start of a run: the accelerator, the record of its settings, and what may change when it is resumed."""

from __future__ import annotations

import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import DistributedType, GradientAccumulationPlugin, ProjectConfiguration, set_seed

from ..utils.files import save_json
from ..utils.locks import LOCK_NAME, lock_output
from .hub import check_hub_access
from .settings import TrainerSettings

logger = get_logger(__name__)

# Flags that may differ when a run is resumed. With another value of any other flag it would train something else.
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
# Learning-rate schedules of diffusers that do not depend on the number of steps in all.
ENDLESS_SCHEDULES = ("constant", "constant_with_warmup", "piecewise_constant")
PACKAGES = ("torch", "diffusers", "accelerate", "datasets", "peft", "numpy")


@contextmanager
def start_run(
    settings: TrainerSettings, flags: Mapping[str, Any], hub_model_id: str | None = None
) -> Iterator[Accelerator]:
    """Starts a run: builds the accelerator, locks the output folder, records the flags, and checks the Hub.

    The main process holds the lock until the block ends.

    Args:
        settings: Of the run.
        flags: Every flag, for `run_config.json`.
        hub_model_id: Repository that the result will be uploaded to; `None`: no upload.

    Yields:
        The accelerator.

    Raises:
        BlockingIOError: If another run is writing to the output folder.
        ImportError: If a tracker that `--report_to` names is not installed.
        ValueError: If float16 is asked for on the CPU, or a run is resumed with other settings.
        RuntimeError: If the launched processes are not connected, or the Hub cannot be written to.
    """
    accelerator = build_accelerator(settings)
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(lock_output(settings.output_dir / LOCK_NAME, settings.output_dir))
        accelerator.wait_for_everyone()  # nothing is read or written without the lock
        write_run_config(settings, flags, accelerator)
        if hub_model_id is not None and accelerator.is_main_process:
            check_hub_access(hub_model_id)
        yield accelerator


def build_accelerator(settings: TrainerSettings) -> Accelerator:
    """Builds the run's accelerator; also fixes the seeds and creates the output folder."""
    logging.basicConfig(format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    # These libraries log every file that they open or write.
    for library in ("accelerate", "httpx", "fsspec", "filelock"):
        logging.getLogger(library).setLevel(logging.WARNING)
    trackers = TRACKERS[settings.report_to]
    for tracker in trackers:
        if find_spec(tracker) is None:
            extra = "train" if tracker == "tensorboard" else tracker
            raise ImportError(
                f"--report_to {settings.report_to} needs {tracker}: pip install 'depthfm_diffusers[{extra}]', "
                "or set --report_to none."
            )
    accelerator = Accelerator(
        mixed_precision=settings.mixed_precision,
        # Accumulation continues across the ends of epochs, so that a step is always the same number of batches.
        gradient_accumulation_plugin=GradientAccumulationPlugin(
            num_steps=settings.gradient_accumulation_steps, sync_with_dataloader=False
        ),
        log_with=trackers or None,
        project_config=ProjectConfiguration(
            project_dir=str(settings.output_dir), logging_dir=str(settings.output_dir / settings.logging_dir)
        ),
    )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("--mixed_precision fp16 needs a GPU: use bf16 or no on the CPU.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise RuntimeError(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: each would train "
            "alone, and all would write to one folder. On the CPU, set ACCELERATE_USE_CPU=true (docs/scale.md)."
        )
    if accelerator.is_main_process:
        settings.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    set_seed(settings.seed)
    return accelerator


def check_can_validate(held_out: Sequence[int], accelerator: Accelerator) -> None:
    """Checks that one process has the whole model, if frames are held out for validation.

    Raises:
        ValueError: If it has not.
    """
    if held_out and accelerator.distributed_type is DistributedType.FSDP:
        raise ValueError("--validation_fraction must be 0 under FSDP: one process validates, and it has only a shard.")


def write_run_config(settings: TrainerSettings, flags: Mapping[str, Any], accelerator: Accelerator) -> None:
    """Writes `run_config.json`: every flag and the versions. `--config` takes the file to repeat the run.

    Args:
        settings: Of the run.
        flags: Every flag.
        accelerator: Of the run.

    Raises:
        ValueError: If a run is resumed with a setting that would change what it trains.
    """
    path = settings.output_dir / "run_config.json"
    now = {
        "settings": json.loads(json.dumps(dict(flags))),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "versions": _installed_versions() | {"python": platform.python_version()},
    }
    if settings.resume_from_checkpoint and path.is_file():
        _compare_with_record(json.loads(path.read_text()), now)
    accelerator.wait_for_everyone()  # every process has read the old file
    if accelerator.is_main_process:
        save_json(path, now)


def _installed_versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _compare_with_record(record: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compares the record of a run with the settings of its resumption: refuses some changes, warns of one."""
    before, after = record["settings"], now["settings"]
    changes = {
        f"--{name}": (before[name], value)
        for name, value in after.items()
        if name in before and name not in RESUME_FREE
    }
    for key, name in (
        ("num_processes", "the number of processes"),
        ("mixed_precision", "accelerate's mixed precision"),
    ):
        changes[name] = (record.get(key, now[key]), now[key])
    differences = [f"{name} was {old!r}, now {new!r}" for name, (old, new) in changes.items() if old != new]
    if differences:
        raise ValueError(
            f"Cannot resume with other settings: {', '.join(differences)}. Use the old values, or start a new run in "
            "another --output_dir."
        )
    old, new = before.get("max_train_steps"), after.get("max_train_steps")
    schedule = after.get("lr_scheduler")
    if old != new and schedule not in ENDLESS_SCHEDULES:
        logger.warning(
            f"--max_train_steps was {old}, now {new}: --lr_scheduler {schedule} depends on it. The learning rate "
            f"changes at the checkpoint from the schedule over {old} steps to that over {new} steps, so that the "
            f"result is neither that of a run of {old} steps nor that of a run of {new} steps."
        )
