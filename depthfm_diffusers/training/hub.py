"""The upload of a trained folder to the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from ..utils.locks import LOCK_NAME

# What a run leaves in its folder that is not the model.
NOT_THE_MODEL = (
    *("checkpoint-*", "partial-*", "latents*", "latents*/**", "checkpoint-*/**", "partial-*/**"),
    LOCK_NAME,
)


def check_hub_access(repo_id: str) -> None:
    """Creates the repository, so that an error comes before the training and not after it.

    Raises:
        RuntimeError: If the Hub cannot be reached, or this user may not write there.
    """
    try:
        HfApi().create_repo(repo_id, exist_ok=True)
    except Exception as error:  # of many kinds: no token, no network, offline mode, no permission
        raise RuntimeError(
            f"--push_to_hub: cannot write to {repo_id} ({error}). Log in with `hf auth login`, or leave the flag out."
        ) from error


def push_to_hub(folder: Path, repo_id: str) -> None:
    """Uploads the model, its card, its configuration and the logs; no checkpoints and no caches."""
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=list(NOT_THE_MODEL))
