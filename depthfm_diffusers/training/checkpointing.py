"""Checkpoints in `checkpoint-STEP/` folders, which are complete or absent."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from accelerate import Accelerator

_NAME = re.compile(r"checkpoint-(\d+)")


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Lists the complete checkpoints in `output_dir`, oldest first."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if p.is_dir() and _NAME.fullmatch(p.name)]
    return sorted(found, key=checkpoint_step)


def checkpoint_step(path: Path) -> int:
    """Returns the optimizer step after which a checkpoint was written.

    Raises:
        ValueError: If the folder is not called `checkpoint-STEP`.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is not named checkpoint-STEP.")
    return int(match.group(1))


def find_checkpoint(output_dir: str | Path, wanted: str) -> Path | None:
    """Finds the checkpoint that `--resume_from_checkpoint` names.

    Args:
        output_dir: Folder of the run.
        wanted: `"latest"`, or the path (or the name inside `output_dir`) of a checkpoint.

    Returns:
        The folder; `None` for `"latest"` if there is none yet.

    Raises:
        FileNotFoundError: If a named checkpoint does not exist.
        ValueError: If `output_dir` has later checkpoints: the resumed run would mix with theirs.
    """
    if wanted == "latest":
        checkpoints = list_checkpoints(output_dir)
        return checkpoints[-1] if checkpoints else None
    for path in (Path(wanted), Path(output_dir) / wanted):
        if path.is_dir():
            later = [p.name for p in list_checkpoints(output_dir) if checkpoint_step(p) > checkpoint_step(path)]
            if later:
                raise ValueError(
                    f"--resume_from_checkpoint: {output_dir} has later checkpoints ({', '.join(later)}). Move them "
                    "away, or set another --output_dir."
                )
            return path
    raise FileNotFoundError(f"--resume_from_checkpoint: {wanted} does not exist.")


def save_checkpoint(accelerator: Accelerator, output_dir: str | Path, step: int, total_limit: int | None) -> Path:
    """Writes `checkpoint-STEP`, complete or not at all, then removes the oldest ones beyond `total_limit`.

    Call on every process. The state is written to a folder of another name, renamed when it is complete: after
    a kill or a full disk, the earlier checkpoints are the latest ones.

    Raises:
        Exception: Any error of writing; the incomplete folder is removed.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = Path(output_dir) / f"partial-{final.name}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        error.add_note(f"{final} could not be written; earlier checkpoints are unharmed. Is the disk full?")
        raise
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        if total_limit is not None:
            for old in list_checkpoints(output_dir)[:-total_limit]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return final
