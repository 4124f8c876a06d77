"""Reading of the DepthFM authors' checkpoints, without running code from them."""

from __future__ import annotations

import operator
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
    content = _read(Path(path), trust_pickle)
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
    if not isinstance(hparams, dict):
        raise ValueError(f"`ldm_hparams` in {path} must be a dict, got {type(hparams).__name__}.")
    return LdmCheckpoint(
        state_dict=dict(state_dict),
        hparams={str(name): value for name, value in hparams.items()},
        empty_text_embedding=_embedding(content["empty_text_embedding"], path),
        noising_step=_noising_step(content["noising_step"], path),
    )


def _read(path: Path, trust_pickle: bool) -> Any:
    """Unpickles the file; raises errors that say what to do."""
    if not path.exists():
        raise FileNotFoundError(f"`checkpoint` {path} does not exist.")
    if not path.is_file():
        raise ValueError(f"`checkpoint` {path} is not a file.")
    with path.open("rb") as file:
        magic = file.read(4)
    is_zip = magic.startswith(b"PK")
    if is_zip and not zipfile.is_zipfile(path):
        raise ValueError(f"`checkpoint` {path} is damaged: its end is missing. Download or copy it again.")
    if not is_zip and not magic.startswith(b"\x80"):
        raise ValueError(
            f"`checkpoint` {path} is not a file saved by torch.save. The authors' checkpoint (.ckpt) is needed; the "
            "weights alone, as safetensors for example, lack `ldm_hparams`."
        )
    try:
        with torch.serialization.safe_globals(_NUMPY_STAND_INS):
            # Only the current format can be mapped into memory.
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=is_zip)
    except ModuleNotFoundError as error:
        raise ImportError(_missing_module_message(path, error)) from error
    except Exception as error:
        # A damaged file can raise any exception. The restricted unpickler gives its reason after a page of advice.
        _, _, reason = str(error).rpartition("WeightsUnpickler error: ")
        reason = reason.strip().split("\n")[0]
        refused = re.search(r"GLOBAL (\S+)|(NumPy data of .+) is not supported", str(error))
        if refused and isinstance(error, pickle.UnpicklingError):
            raise ValueError(_refusal(path, refused[1] or refused[2])) from error
        raise ValueError(
            f"`checkpoint` {path} could not be read; it is damaged or not a PyTorch checkpoint: "
            f"{type(error).__name__}: {reason}"
        ) from error


def _refusal(path: Path, what: str) -> str:
    extra = " It needs omegaconf: pip install 'depthfm_diffusers[convert]'." if what.startswith("omegaconf") else ""
    return (
        f"`checkpoint` {path} holds Python objects ({what}) that can only be read by unrestricted unpickling, which "
        "can run any code that the file contains. If you trust its source, convert it with `trust_pickle=True` "
        f"(`--trust-pickle` on the command line).{extra}"
    )


def _missing_module_message(path: Path, error: ModuleNotFoundError) -> str:
    package = (error.name or "").split(".")[0]
    how = (
        "Install it: pip install 'depthfm_diffusers[convert]'"
        if package == "omegaconf"
        else "Install the package that provides it"
    )
    return f"`checkpoint` {path} holds objects of the package {package!r}, which is not installed. {how}."


def _plain(value: Any) -> Any:
    """Turns containers, OmegaConf's too, into dicts and lists, and numbers of NumPy and torch into Python's."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (str, bytes)):
        return [_plain(entry) for entry in value]
    if isinstance(value, _Array):
        value = value.array
    if isinstance(value, (np.ndarray, np.generic, torch.Tensor)):
        return value.tolist()
    return value


def _embedding(value: Any, path: str | Path) -> torch.Tensor:
    array = value.array if isinstance(value, _Array) else value
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
    return embedding


def _noising_step(value: Any, path: str | Path) -> int:
    plain = _plain(value)
    try:
        step = int(plain) if isinstance(plain, float) and plain.is_integer() else operator.index(plain)
    except TypeError:
        raise ValueError(f"`noising_step` in {path} must be an integer, got {plain!r}.") from None
    # The authors add noise only if the step is positive.
    return max(step, 0)


# Unpickling real NumPy objects is not safe with hostile data: the state of an array may claim to hold Python objects.
# So NumPy's names stand for these classes and functions, which accept plain numbers only.


class _Dtype:
    """Stands in for `numpy.dtype`."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[biuf][1248]", code):
            raise pickle.UnpicklingError(f"NumPy data of type {code!r} is not supported.")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        byte_order, others = state[1], state[2:5]
        if byte_order not in ("<", ">", "|", "=") or any(other is not None for other in others):
            raise pickle.UnpicklingError("NumPy data of a structured type is not supported.")
        self.dtype = self.dtype.newbyteorder(byte_order)


class _Array:
    """Stands in for `numpy.ndarray`; `array` has the values that were read, in native byte order."""

    array: np.ndarray = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _Dtype) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("NumPy data of Python objects is not supported.")
        array = np.frombuffer(data, dtype.dtype).reshape(shape, order="F" if is_fortran else "C")
        self.array = array.astype(dtype.dtype.newbyteorder("="))


def _new_array(cls: type, shape: tuple[int, ...], code: bytes) -> _Array:
    """Stands in for `numpy._core.multiarray._reconstruct`, which makes the empty array that a state then fills."""
    return _Array()


def _number(dtype: _Dtype, data: bytes) -> bool | int | float:
    """Stands in for `numpy._core.multiarray.scalar`."""
    return np.frombuffer(data, dtype.dtype)[0].item()


_NUMPY_STAND_INS: list[Any] = [
    (_Array, "numpy.ndarray"),
    (_Dtype, "numpy.dtype"),
    *[(_new_array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")],
    *[(_number, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")],
]
