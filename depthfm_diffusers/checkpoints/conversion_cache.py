"""Models converted from single files, kept for the next run."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import describe_error
from ..utils.files import file_sha256
from ..utils.version import __version__
from .convert import convert_checkpoint, find_autoencoder
from .model_folder import check_model_folder

CACHE_VARIABLE = "DEPTHFM_CACHE"


def cache_folder() -> Path:
    """Returns the folder of converted models: `$DEPTHFM_CACHE`, else one in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "depthfm_diffusers"


def converted_model(
    checkpoint: str | Path, vae: str | Path, *, on_message: Callable[[str], object], **options: Any
) -> Path:
    """Returns the folder of a model that was converted from single files, and converts it the first time.

    What is in the cache is found by the contents of the files: wherever they lie, the same files are converted once,
    and changed files again.

    Args:
        checkpoint: See `convert_checkpoint`.
        vae: See `convert_checkpoint`.
        on_message: Called with what happens and what was assumed, a sentence each.
        **options: Other arguments of `convert_checkpoint` that say what the files mean.

    Returns:
        The folder, in `cache_folder()`.

    Raises:
        OSError: If the cache cannot be written.
        ValueError: As for `convert_checkpoint`.
    """
    checkpoint, vae = Path(checkpoint).expanduser(), Path(vae).expanduser()
    folder = cache_folder() / f"{checkpoint.stem}-{_key(checkpoint, vae, options)}"
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"the cache folder {folder.parent} cannot be written to ({describe_error(error)}). Set {CACHE_VARIABLE} "
            "to another folder, or use `depthfm convert`."
        ) from error
    try:
        on_message(f"converting {checkpoint} once, to {folder}")
        new = convert_checkpoint(checkpoint, vae, work / "model", on_assumption=on_message, **options)
        # Another process may have made it meanwhile, and may be reading it.
        if not _is_whole(folder):
            if folder.exists():
                os.replace(folder, work / "damaged")
            os.replace(new, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _is_whole(folder: Path) -> bool:
    """Returns whether a model is there and undamaged."""
    try:
        check_model_folder(folder)
    except (OSError, ValueError):
        return False
    return True


def _key(checkpoint: Path, vae: Path, options: dict[str, Any]) -> str:
    """Hashes what a conversion depends on; 16 hexadecimal digits."""
    autoencoder = find_autoencoder(vae)
    sources = {"checkpoint": [checkpoint], "vae": _files(autoencoder)}
    if autoencoder.is_file():
        sources["vae"] += _files(autoencoder.with_name("config.json"))
    for name in ("hparams", "empty_text_embedding"):
        sources[name] = [Path(options[name])] if options.get(name) is not None else []
    if options.get("text_encoder") is not None:
        for part in ("tokenizer", "text_encoder"):
            sources[part] = _files(Path(options["text_encoder"]) / part)
    digest = hashlib.sha256(f"{__version__} {options.get('noise_augmentation_step')}\n".encode())
    for name, files in sources.items():
        for file in files:
            digest.update(f"{name} {file.name if len(files) > 1 else ''} {_sha256(file)}\n".encode())
    return digest.hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(file for file in path.glob("*") if file.is_file())


def _sha256(file: Path) -> str:
    """Hashes a file; what cannot be read, the conversion refuses with a better message."""
    try:
        return file_sha256(file)
    except OSError:
        return ""
