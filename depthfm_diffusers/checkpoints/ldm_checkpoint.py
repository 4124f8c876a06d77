"""Reading of the DepthFM authors' checkpoints, without running code from them."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .model_files import not_finite
from .torch_files import ArrayStandIn, read_torch_file

_ENTRIES = ("state_dict", "ldm_hparams", "empty_text_embedding", "noising_step")


@dataclass(frozen=True)
class LdmCheckpoint:
    """Content of a checkpoint in the authors' layout.

    Attributes:
        state_dict: Weights of the UNet under the authors' names, on the CPU.
        hparams: Arguments of the authors' `UNetModel`, as plain Python values.
        empty_text_embedding: 1×tokens×dim, float32.
        noising_step: Step of the cosine schedule whose noise level the source image gets; 0 adds no noise.
    """

    state_dict: dict[str, torch.Tensor]
    hparams: dict[str, Any]
    empty_text_embedding: torch.Tensor
    noising_step: int


def load_checkpoint(path: str | Path, *, trust_pickle: bool = False) -> LdmCheckpoint:
    """Reads a checkpoint in the layout that the DepthFM authors publish.

    That is a dict saved by `torch.save`, with `state_dict`, `ldm_hparams`, `empty_text_embedding` (a tensor or a NumPy
    array) and `noising_step`; other entries are ignored. It is read with `weights_only=True`, which runs no code from
    the file; NumPy arrays and numbers are accepted as well, of plain numeric types.

    Args:
        path: The file.
        trust_pickle: Whether to read the file by unrestricted unpickling, which can run any code that it contains.
            Needed if it holds other objects, such as OmegaConf's.

    Returns:
        The content, with types checked. Large tensors may be mapped from the file, not copied.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If objects in a trusted file need a package that is not installed.
        ValueError: If the file is not a checkpoint, is damaged, lacks entries, or needs `trust_pickle`.
    """
    content = read_torch_file(Path(path), "`checkpoint`", trust_pickle)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"`checkpoint` {path} holds a {type(content).__name__}, not a dict with {', '.join(_ENTRIES)}."
        )
    missing = [name for name in _ENTRIES if content.get(name) is None]
    if missing:
        raise ValueError(
            f"`checkpoint` {path} is not in the layout of the DepthFM authors: it lacks {', '.join(missing)}; it has "
            f"{', '.join(map(str, list(content)[:10])) or 'nothing'}."
        )

    state_dict, hparams = content["state_dict"], _plain(content["ldm_hparams"])
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"`state_dict` in {path} is a {type(state_dict).__name__}, not a dict of tensors.")
    odd = [
        str(name)
        for name, value in state_dict.items()
        if not (isinstance(name, str) and isinstance(value, torch.Tensor) and value.is_floating_point())
    ]
    if odd:
        raise ValueError(f"`state_dict` in {path} has entries that are not floating-point tensors: {', '.join(odd)}.")
    if bad := not_finite(state_dict):
        raise ValueError(f"`checkpoint` {path} is damaged: the weights {bad} have NaN or infinite values.")
    if not isinstance(hparams, dict):
        raise ValueError(f"`ldm_hparams` in {path} must be a dict, got {type(hparams).__name__}.")
    return LdmCheckpoint(
        state_dict=dict(state_dict),
        hparams={str(name): value for name, value in hparams.items()},
        empty_text_embedding=_embedding(content["empty_text_embedding"], path),
        noising_step=_noising_step(content["noising_step"], path),
    )


def _plain(value: Any) -> Any:
    """Turns containers, OmegaConf's too, into dicts and lists, and numbers of NumPy and torch into Python's."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        return [_plain(entry) for entry in value]
    if isinstance(value, ArrayStandIn):
        value = value.array
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    return value


def _embedding(value: Any, path: str | Path) -> torch.Tensor:
    array = value.array if isinstance(value, ArrayStandIn) else value
    if not isinstance(array, (np.ndarray, torch.Tensor)):
        raise ValueError(
            f"`empty_text_embedding` in {path} must be a tensor or a NumPy array, got {type(array).__name__}."
        )
    embedding = torch.as_tensor(array).detach().to(torch.float32)
    if embedding.ndim == 2:
        embedding = embedding[None]
    if embedding.ndim != 3 or embedding.shape[0] != 1 or 0 in embedding.shape:
        raise ValueError(
            f"`empty_text_embedding` in {path} must have shape 1×tokens×dim or tokens×dim, got {tuple(array.shape)}."
        )
    if not_finite({"": embedding}) is not None:
        raise ValueError(f"`empty_text_embedding` in {path} has NaN or infinite values.")
    return embedding


def _noising_step(value: Any, path: str | Path) -> int:
    plain = _plain(value)
    try:
        step = int(plain) if isinstance(plain, float) and plain.is_integer() else operator.index(plain)
    except TypeError:
        raise ValueError(f"`noising_step` in {path} must be an integer, got {plain!r}.") from None
    # The authors add noise only if the step is positive.
    return max(step, 0)
