"""Samples that are computed once and kept on disk, in files that are complete or absent."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors import safe_open
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from ...checkpoints.weights_hash import update_with_weights
from ...utils.files import atomic_write
from ...utils.locks import lock_output
from .draws import Draws
from .samples import TrainingSamples
from .sampling import sample_rng

logger = get_logger(__name__)

# Samples in a file of the cache: what is lost at most when encoding is killed.
CHUNK = 1024
# Part of the names of caches; raised when pictures are read to other pixels. 2: since 0.6.0.
READER_VERSION = 2


@dataclass(frozen=True)
class CacheSettings:
    """A latent cache.

    Attributes:
        folder: Where the caches are kept; each is a folder inside, named after what its content depends on.
        variants: Augmented variants that are encoded of each frame.
        batch_size: Samples that are encoded at once.
    """

    folder: Path
    variants: int
    batch_size: int


def chunk_name(variant: int, chunk: int) -> str:
    """Returns the name of a file of the cache."""
    return f"variant-{variant:03d}-{chunk:05d}.safetensors"


def size_content(dataset: TrainingSamples) -> Any:
    """Returns the sizes of the samples, for the name of a cache: one size, or one per source."""
    sizes = list(dataset.sizes.values())
    return sizes[0] if len(set(sizes)) == 1 else sizes


def choose_cache(
    names: Sequence[str],
    earlier_names: Callable[[], Sequence[str]],
    dataset: TrainingSamples,
    settings: CacheSettings,
) -> Path:
    """Returns the folder of a cache that is complete; if there is none, the folder to fill.

    Args:
        names: Names of the caches that will do; the first is that of the folder to fill.
        earlier_names: Returns the names that earlier versions gave to these caches. Such a cache is used if it is
            complete and the pictures are read as these versions did.
        dataset: What is encoded.
        settings: Of the cache.
    """
    folders = [settings.folder / name for name in names]
    for folder in folders:
        if is_complete(folder, dataset, settings.variants):
            return folder
    earlier = [settings.folder / name for name in earlier_names()]
    complete = next((folder for folder in earlier if is_complete(folder, dataset, settings.variants)), None)
    if complete is None:
        return folders[0]
    if all(map(dataset.frames.reads_as_before, dataset.indices)):
        return complete
    logger.warning(
        f"The latent cache {complete} is not used, and can be removed: a version before 0.6.0 may have written it, "
        "which read transparency, colour profiles or EXIF orientations differently, and the data have such pictures."
    )
    return folders[0]


def is_complete(folder: Path, dataset: TrainingSamples, variants: int) -> bool:
    """Returns whether all files of a cache exist."""
    return all((folder / chunk_name(*one)).is_file() for one in _files(_ranges(dataset), variants))


def fill_cache(
    folder: Path,
    dataset: TrainingSamples,
    settings: CacheSettings,
    encode: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
) -> None:
    """Encodes the samples of a cache whose files are missing; after a kill that is what is left.

    Call on every process: they share the work. One run at a time fills a cache. A run of one process waits for the
    other, and then has its files; several processes would give up waiting for each other before it is done.

    Args:
        folder: The cache; its name must tell apart all that its content depends on.
        dataset: Takes `(variant, index)`: the variant takes the epoch's place, so that each has draws of its own.
        settings: Number of variants, and how many samples are encoded at once.
        encode: From a batch on the device to the tensors that are kept.
        accelerator: Of the run.

    Raises:
        FloatingPointError: If latents are not finite.
        BlockingIOError: If this run has several processes, and another run is filling the cache.
    """
    ranges = _ranges(dataset)
    chunks = _files(ranges, settings.variants)

    def find_missing() -> list[tuple[int, int]]:
        return [one for one in chunks if not (folder / chunk_name(*one)).is_file()]

    missing = find_missing()
    accelerator.wait_for_everyone()  # every process has looked before one writes
    logger.info(f"Latent cache {folder}: {len(chunks) - len(missing)} of {len(chunks)} files exist.")
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    alone = accelerator.num_processes == 1
    with ExitStack() as stack:
        if accelerator.is_main_process:
            stack.enter_context(lock_output(folder.with_name(f".{folder.name}.lock"), folder, wait=alone))
        if alone:
            missing = find_missing()  # another run may have filled it meanwhile
        accelerator.wait_for_everyone()  # nothing is written without the lock
        own = missing[accelerator.process_index :: accelerator.num_processes]
        for variant, chunk in tqdm(own, desc="Encoding latents", disable=not own):
            items = [(variant, index) for index in ranges[chunk]]
            tensors = _encode_items(dataset, items, settings.batch_size, encode, accelerator)
            with atomic_write(folder / chunk_name(variant, chunk)) as path:
                save_file(tensors, path)
        accelerator.wait_for_everyone()


def _encode_items(
    dataset: TrainingSamples,
    items: Sequence[tuple[int, int]],
    batch_size: int,
    encode: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    accelerator: Accelerator,
) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {}
    for batch in DataLoader(dataset, batch_size=batch_size, sampler=list(items)):
        on_device = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with torch.no_grad(), accelerator.autocast():
            encoded = encode(on_device)
        for name, tensor in encoded.items():
            parts.setdefault(name, []).append(tensor.cpu())
    tensors = {name: torch.cat(part).contiguous() for name, part in parts.items()}
    for name, tensor in tensors.items():
        if name.endswith("_latent") and not torch.isfinite(tensor).all():
            raise FloatingPointError(
                f"The autoencoder's {name} has values that are not finite: check the weights of the vae, or use "
                "--mixed_precision no."
            )
    return tensors


def cache_key(content: str, models: Sequence[torch.nn.Module], settings: Sequence[Any]) -> str:
    """Returns a short hash of all that a cache's content depends on.

    Args:
        content: A hash of the data.
        models: The networks that encode them.
        settings: Everything else, as values that JSON can hold.
    """
    digest = hashlib.sha256(content.encode())
    for model in models:
        update_with_weights(digest, model, values_only=True)
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()[:16]


class CacheFiles:
    """Reads the samples of a cache.

    Args:
        folder: The cache, complete.
        starts: First sample of each of its files, increasing.
    """

    def __init__(self, folder: Path, starts: Sequence[int]) -> None:
        self.folder = folder
        self.starts = list(starts)
        self._opened: dict[Path, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Returns the state without the open files: each process opens its own."""
        return self.__dict__ | {"_opened": {}}

    def read(self, variant: int, index: int) -> dict[str, torch.Tensor]:
        """Returns the tensors of one sample."""
        chunk = bisect_right(self.starts, index) - 1
        row = index - self.starts[chunk]
        path = self.folder / chunk_name(variant, chunk)
        if path not in self._opened:
            self._opened[path] = safe_open(path, "pt")
        file = self._opened[path]
        return {name: file.get_slice(name)[row] for name in file.keys()}


class CachedSamples(Dataset):
    """Encoded samples of several augmented variants per frame; an epoch takes one variant of each, drawn anew.

    Args:
        folder: A complete cache, see `fill_cache`.
        dataset: What was encoded. It says what is drawn besides.
        variants: Number of variants.
        restore: From the tensors of a sample as they are kept to those that training takes.
    """

    def __init__(
        self,
        folder: Path,
        dataset: TrainingSamples,
        variants: int,
        restore: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]],
    ) -> None:
        self.files = CacheFiles(folder, [indices.start for indices in _ranges(dataset)])
        self.samples = len(dataset)
        self.variants = variants
        self.seed = dataset.settings.seed
        self.draws: Draws = dataset.draws
        self.restore = restore

    def __len__(self) -> int:
        """Returns the number of samples in each variant."""
        return self.samples

    def __getitem__(self, item: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns an encoded sample, and what is drawn besides.

        Args:
            item: Epoch and index.
        """
        epoch, index = item
        rng = sample_rng(self.seed, epoch, index)
        sample = self.restore(self.files.read(int(rng.integers(self.variants)), index))
        return sample | self.draws.draw(rng, sample["image_latent"].shape[-2:])


def _ranges(dataset: TrainingSamples) -> list[range]:
    """Returns the samples of each file of a variant: at most `CHUNK`, neighbours of one size."""
    sizes = [dataset.size_of(index) for index in range(len(dataset))]
    ends = [index for index in range(1, len(sizes)) if sizes[index] != sizes[index - 1]]
    ranges: list[range] = []
    for start, stop in pairwise([0, *ends, len(sizes)]):
        ranges += [range(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]
    return ranges


def _files(ranges: Sequence[range], variants: int) -> list[tuple[int, int]]:
    """Returns the files of a cache, as (variant, number of the range)."""
    return [(variant, chunk) for variant in range(variants) for chunk in range(len(ranges))]
