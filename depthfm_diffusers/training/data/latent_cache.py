"""Samples that are computed once and kept on disk, in files that are complete or not there."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

logger = get_logger(__name__)

CHUNK = 1024  # samples in a file of the cache: what a kill during encoding can cost

Item = tuple[int, int]


def chunk_name(variant: int, chunk: int) -> str:
    """Name of a file of the cache."""
    return f"variant-{variant:03d}-{chunk:05d}.safetensors"


def is_complete(folder: Path, samples: int, variants: int) -> bool:
    """Whether all files of a cache are there."""
    return all((folder / chunk_name(*one)).is_file() for one in _chunks(samples, variants))


def fill_cache(
    folder: Path,
    samples: int,
    variants: int,
    encode_items: Callable[[Sequence[Item]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
) -> None:
    """Writes the files of a cache that are not there yet; what was killed goes on with the missing ones.

    Call on every process: they share the work.

    Args:
        folder: The cache; its name must tell apart all that its content depends on.
        samples: Number of samples.
        variants: Number of variants of each.
        encode_items: From `(variant, index)` to tensors with one row for each.
        accelerator: Of the run.
    """
    chunks = _chunks(samples, variants)
    missing = [one for one in chunks if not (folder / chunk_name(*one)).is_file()]
    accelerator.wait_for_everyone()  # every process has looked before one writes
    logger.info(f"Latent cache {folder}: {len(chunks) - len(missing)} of {len(chunks)} files are there.")
    folder.mkdir(parents=True, exist_ok=True)
    own = missing[accelerator.process_index :: accelerator.num_processes]
    for variant, chunk in tqdm(own, desc="Encoding latents", disable=not own):
        indices = range(chunk * CHUNK, min((chunk + 1) * CHUNK, samples))
        # The variant takes the epoch's place: each has draws of its own.
        tensors = encode_items([(variant, index) for index in indices])
        path = folder / chunk_name(variant, chunk)
        partial = path.with_name(f"partial-{os.getpid()}-{path.name}")
        save_file(tensors, partial)
        partial.replace(path)
    accelerator.wait_for_everyone()


def encode_batches(
    dataset: Dataset,
    items: Sequence[Item],
    batch_size: int,
    encode: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
) -> dict[str, torch.Tensor]:
    """Encodes samples of a data set batch by batch.

    Args:
        dataset: Takes items.
        items: Which of them.
        batch_size: How many at once.
        encode: From a batch on the device to the tensors that are kept.
        accelerator: Of the run.

    Returns:
        On the CPU, a row for each item.
    """
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in DataLoader(dataset, batch_size=batch_size, sampler=list(items)):
        on_device = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with torch.no_grad(), accelerator.autocast():
            encoded = encode(on_device)
        for name, tensor in encoded.items():
            parts.setdefault(name, []).append(tensor.cpu())
    return {name: torch.cat(part).contiguous() for name, part in parts.items()}


def cache_key(content: str, models: Sequence[torch.nn.Module], settings: Sequence[Any]) -> str:
    """A short hash of all that a cache's content depends on.

    Args:
        content: A hash of the data.
        models: The networks that encode them.
        settings: Everything else, as JSON has it.
    """
    digest = hashlib.sha256(content.encode())
    for model in models:
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode() + tensor.cpu().contiguous().float().numpy().tobytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:16]


class CacheFiles:
    """Reads the samples of a cache.

    Args:
        folder: The cache, complete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._opened: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Open files do not travel to other processes: each opens its own."""
        return self.__dict__ | {"_opened": {}}

    def read(self, variant: int, index: int) -> dict[str, torch.Tensor]:
        """The tensors of one sample."""
        chunk, row = divmod(index, CHUNK)
        path = self.folder / chunk_name(variant, chunk)
        if path not in self._opened:
            self._opened[path] = safe_open(path, "pt")
        file = self._opened[path]
        return {name: file.get_slice(name)[row] for name in file.keys()}


def _chunks(samples: int, variants: int) -> list[tuple[int, int]]:
    return [(variant, chunk) for variant in range(variants) for chunk in range(-(-samples // CHUNK))]
