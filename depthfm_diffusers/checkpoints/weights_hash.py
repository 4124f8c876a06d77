"""A hash of the weights of networks in memory, whatever files they came from.

Of a model's files, `model_folder.model_fingerprint` is the hash.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 of a network's tensors with their names, dtypes and shapes: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    update_with_weights(digest, module)
    return digest.hexdigest()


def update_with_weights(digest: Any, module: torch.nn.Module, values_only: bool = False) -> None:
    """Adds a network's tensors to a hash, in the order of their names.

    Args:
        digest: An object of `hashlib`.
        module: The network.
        values_only: Whether weights of one value in two dtypes are the same: only names, and values as float32, are
            added. The names of latent caches are made so. Otherwise dtypes and shapes are added, too.
    """
    for name, tensor in sorted(module.state_dict().items()):
        content = tensor.detach().cpu().contiguous()
        if values_only:
            digest.update(name.encode() + content.float().numpy().tobytes())
        else:
            digest.update(f"{name} {content.dtype} {tuple(content.shape)}".encode())
            digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes())
