"""Reading of a file of weights, of `torch.save` or of safetensors: its content tells which."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..utils.errors import describe_error
from .torch_files import read_torch_file

# What is often found in place of a large file, by how it begins.
_NO_WEIGHTS = {
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<": "it is a web page; download the file itself",
    b"GGUF": "it is a GGUF file, which cannot be read",
}

_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")


def read_weight_file(path: Path, what: str, trust_pickle: bool | None = None) -> Any:
    """Reads a file of weights, checked for damage and without running code from it.

    Args:
        path: The file.
        what: What errors call it.
        trust_pickle: See `read_torch_file`.

    Returns:
        Of safetensors, a dict of tensors on the CPU; of `torch.save`, whatever was saved.

    Raises:
        FileNotFoundError: If there is no such file.
        ImportError: If objects in a trusted file need a package that is not installed.
        ValueError: If it is of another format, is damaged, or needs `trust_pickle`.
    """
    if not path.exists():
        raise FileNotFoundError(f"{what} {path} does not exist.")
    if not path.is_file():
        raise ValueError(f"{what} {path} is not a file.")
    with path.open("rb") as file:
        beginning = file.read(24)
    if beginning.startswith((b"PK", b"\x80")) and beginning[8:9] != b"{":
        return read_torch_file(path, what, trust_pickle)
    if beginning[8:9] == b"{" or (path.suffix == ".safetensors" and not _reason(beginning)):
        try:
            with safe_open(path, framework="pt") as weights:
                return {name: weights.get_tensor(name) for name in weights.keys()}
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{what} {path} is damaged or incomplete: {describe_error(error)}. Download or copy it again."
            ) from error
    reason = _reason(beginning) or "its content is of another format"
    raise ValueError(f"{what} {path} is not a file saved by torch.save, nor a safetensors file: {reason}.")


def unwrap_state_dict(content: Any) -> Any:
    """Returns the tensors of a file, which training programs save as an entry, such as `state_dict`."""
    while isinstance(content, Mapping):
        inner = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), None)
        if inner is None:
            break
        content = inner
    return content


def find_network(tensors: Mapping[str, Any], key: str, what: str) -> tuple[dict[str, Any], str] | None:
    """Finds a network among tensors: under its own names, or under names with a prefix.

    Args:
        tensors: The tensors of a file.
        key: The name of a tensor that every such network has.
        what: What errors call the file.

    Returns:
        The entries with the network's prefix, without it, and the prefix. `None` if no name is `key`, nor ends in it.

    Raises:
        ValueError: If there is more than one such network.
    """
    names = [name for name in tensors if isinstance(name, str) and (name == key or name.endswith(f".{key}"))]
    if len(names) > 1:
        raise ValueError(f"{what} has several networks of this kind: {', '.join(names)}. Keep one of them.")
    if not names:
        return None
    prefix = names[0].removesuffix(key)
    return {
        name.removeprefix(prefix): tensor for name, tensor in tensors.items() if str(name).startswith(prefix)
    }, prefix


def is_weight(value: Any) -> bool:
    """Returns whether an entry of a file is a floating-point tensor."""
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _reason(beginning: bytes) -> str | None:
    return next((reason for start, reason in _NO_WEIGHTS.items() if beginning.lstrip().startswith(start)), None)
